//! What of a trailer section passes.

use bytes::BytesMut;

use super::{
    connection::{ConnectionOptions, is_hop_by_hop},
    lines::put_passing,
};
use crate::message::{chunked::Trailers, head::Line, known::Known};

/// Writes the trailers of a request for a backend, and the empty line after them.
pub fn write_request_trailers(out: &mut BytesMut, trailers: &Trailers) {
    // What only we may say in a head may nobody say behind our back.
    write_trailers(out, trailers, |known| known == Known::Disguised || known.is_guarded());
}

/// Writes the trailers of a response for a client, and the empty line after them.
pub fn write_response_trailers(out: &mut BytesMut, trailers: &Trailers) {
    write_trailers(out, trailers, |_| false);
}

/// The trailers of a response that pass, for a client on HTTP/2.
pub fn response_trailer_lines(trailers: &Trailers) -> impl Iterator<Item = Line<'_>> {
    let options = trailers.fields().map(ConnectionOptions::of).unwrap_or_default();
    trailers.lines().filter(move |line| passes_as_trailer(line, &options))
}

fn write_trailers(out: &mut BytesMut, trailers: &Trailers, is_refused: impl Fn(Known) -> bool) {
    if let Some(fields) = trailers.fields() {
        let options = ConnectionOptions::of(fields);
        put_passing(out, fields, |line| passes_as_trailer(line, &options) && !is_refused(line.known));
    }
    out.extend_from_slice(b"\r\n");
}

/// A trailer says nothing of a message's way or its framing (RFC 9110 section 6.5.1).
fn passes_as_trailer(line: &Line<'_>, options: &ConnectionOptions<'_>) -> bool {
    !matches!(line.known, Known::ContentLength | Known::Host | Known::Trailer)
        && !is_hop_by_hop(line.known)
        && !options.name(line.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Chunk, ChunkReader};

    /// RFC 9110 section 6.5.1.
    #[test]
    fn trailers_say_nothing_that_a_head_may_not() {
        let text = "0\r\nX-Sum: 7\r\nConnection: x-gone\r\nX-Gone: 1\r\nTransfer-Encoding: x\r\nContent-Length: 1\r\nHost: b\r\n\
                    X-Forwarded-Client-Cert: forged\r\nX_Forwarded_Client_Cert: forged\r\nX-Real-IP: 1\r\n\r\n";
        let read = ChunkReader::default().read(&mut BytesMut::from(text.as_bytes()));
        let Ok(Some(Chunk::End(trailers))) = read else { panic!("{read:?}") };
        let mut out = BytesMut::new();
        write_request_trailers(&mut out, &trailers);
        assert_eq!(&out[..], b"X-Sum: 7\r\n\r\n");
        let mut out = BytesMut::new();
        write_response_trailers(&mut out, &trailers);
        assert!(out.starts_with(b"X-Sum: 7\r\nX-Forwarded-Client-Cert: ") && out.ends_with(b"X-Real-IP: 1\r\n\r\n"));
        assert_eq!(response_trailer_lines(&trailers).count(), 4);
    }
}
