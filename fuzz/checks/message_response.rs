//! A response's head is read alike in whatever pieces it comes, and what is written of it for a client is strict, has one
//! framing and says nothing of the backend's connection.

use bytes::BytesMut;
use planb::message::{
    Framing, HeadReader, Known, Limits, ParseError, Persistence, ResponseHead, ResponseRules, Version, headers,
};

const LIMITS: Limits = Limits { bytes: 2_048, lines: 30 };

/// Reads these bytes.
pub fn check(bytes: &[u8]) {
    let whole = read(bytes, bytes.len().max(1));
    for step in [1, 7] {
        let pieces = read(bytes, step);
        assert_eq!(whole.is_err(), pieces.is_err(), "in pieces of {step}");
        if let (Ok(Some((one, left))), Ok(Some((other, also_left)))) = (&whole, &pieces) {
            assert_eq!((left, one.status(), one.reason()), (also_left, other.status(), other.reason()));
            assert!(one.lines().eq(other.lines()));
        }
    }
    let Ok(Some((head, _))) = whole else { return };
    assert!((100..=999).contains(&head.status()) && head.byte_len() <= LIMITS.bytes);
    for is_head in [false, true] {
        if let Ok(framing) = Framing::of_response(is_head, &head) {
            as_the_client_reads_it(&head, framing, is_head);
        }
    }
    let _ = headers::response_lines(&head).count();
}

fn read(bytes: &[u8], step: usize) -> Result<Option<(ResponseHead, usize)>, ParseError> {
    let (mut reader, mut buffer, mut arrived) = (HeadReader::default(), BytesMut::new(), 0);
    for piece in bytes.chunks(step) {
        buffer.extend_from_slice(piece);
        arrived += piece.len();
        if let Some(head) = reader.response(&mut buffer, LIMITS)? {
            return Ok(Some((head, bytes.len() - arrived + buffer.len())));
        }
    }
    Ok(None)
}

fn as_the_client_reads_it(head: &ResponseHead, framing: Framing, is_head: bool) {
    let rules = ResponseRules { version: Version::Http11, framing, persistence: Persistence::Close, lines: &[] };
    let mut out = BytesMut::new();
    headers::write_response(&mut out, head, &rules);
    let mut feeds = memchr::memchr_iter(b'\n', &out);
    assert!(feeds.all(|feed| feed > 0 && out[feed - 1] == b'\r'), "there is a bare LF");
    let limits = Limits { bytes: usize::MAX, lines: usize::MAX };
    let read = HeadReader::default().response(&mut out, limits).unwrap().unwrap();
    assert!(out.is_empty());
    assert_eq!((read.status(), read.reason()), (head.status(), head.reason()));
    assert_eq!(Framing::of_response(is_head, &read), Ok(framing));
    assert_eq!(read.all(Known::Connection).count(), 1);
    assert!(!read.has(Known::KeepAlive) && !read.has(Known::ProxyAuthenticate));
}
