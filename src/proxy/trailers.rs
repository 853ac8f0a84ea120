//! Trailers, between our form and that in which bodies carry them.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::message::{Line, ResponseHeadBuilder, Trailers, Version};

/// The last chunk and these trailers; `write` knows which of them may pass, and writes them.
pub fn last_chunk(trailers: &HeaderMap, write: impl FnOnce(&mut BytesMut, &Trailers)) -> Bytes {
    let mut head = ResponseHeadBuilder::new(Version::Http11, 200);
    for (name, value) in trailers {
        head.push_capitalised(name.as_str(), value.as_bytes());
    }
    let mut text = BytesMut::from(&b"0\r\n"[..]);
    // What cannot be said in HTTP/1.1 is left out.
    let trailers = head.build().map(|head| Trailers::from((*head).clone())).unwrap_or_default();
    write(&mut text, &trailers);
    text.freeze()
}

/// These lines as a body carries them; what a map has no words for is left out.
pub fn map_of<'a>(lines: impl Iterator<Item = Line<'a>>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in lines {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(line.name), HeaderValue::from_bytes(line.value)) {
            map.append(name, value);
        }
    }
    map
}
