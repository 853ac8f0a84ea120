//! Requests that the HTTP library refuses before we see them: what is known of them, for the access log.

use std::{net::IpAddr, time::Duration};

use crate::{proxy::worker::Shared, telemetry::Entry};

/// The beginning of a request's first line, as the client sent it.
#[derive(Debug, Default)]
pub struct Opening {
    bytes: Vec<u8>,
    /// Bytes of the whole line, as far as it has been seen.
    length: usize,
    has_ended: bool,
}

impl Opening {
    /// Another request begins.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.length = 0;
        self.has_ended = false;
    }

    /// Takes the next bytes of a head, of which only the first line is kept, and not all of a long one.
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.has_ended {
            return;
        }
        // Empty lines before the request line are allowed (RFC 9112 section 2.2).
        let leading = bytes.iter().take_while(|byte| self.bytes.is_empty() && matches!(byte, b'\r' | b'\n')).count();
        let bytes = &bytes[leading..];
        let end = memchr::memchr(b'\n', bytes);
        let line = &bytes[..end.unwrap_or(bytes.len())];
        let room = MOST_KEPT - self.bytes.len();
        self.bytes.extend_from_slice(&line[..line.len().min(room)]);
        self.length += line.len();
        self.has_ended = end.is_some();
    }

    /// Whether the target is longer than the HTTP library takes, which it answers with a status of its own.
    pub fn has_long_target(&self) -> bool {
        let [method, ..] = self.words();
        let around = method.len() + b" ".len() + b" HTTP/1.1\r".len();
        self.has_ended && self.length > LONGEST_TARGET + around
    }

    /// Method, path without the query, and protocol; `-` for what cannot be told.
    fn words(&self) -> [&[u8]; 3] {
        let line = self.bytes.trim_ascii();
        let (method, rest) = match memchr::memchr(b' ', line) {
            Some(end) => (&line[..end], line[end..].trim_ascii_start()),
            None => (line, &[][..]),
        };
        let (target, protocol) = match memchr::memrchr(b' ', rest) {
            Some(start) if rest[start + 1..].starts_with(b"HTTP/") => {
                (rest[..start].trim_ascii_end(), &rest[start + 1..])
            }
            _ => (rest, &[][..]),
        };
        let path = memchr::memchr2(b'?', b'#', target).map_or(target, |end| &target[..end]);
        [method, path, protocol].map(|word| if word.is_empty() { UNKNOWN } else { word })
    }
}

/// Records a request that the library has answered with this status.
pub fn record(shared: &Shared, client: IpAddr, opening: &Opening, status: u16) {
    shared.metrics.malformed_requests.inc();
    shared.metrics.count_response(status);
    let [method, path, protocol] = opening.words();
    shared.access_log.write(&Entry {
        client,
        method,
        path,
        protocol,
        status,
        body_bytes: 0,
        referer: b"",
        user_agent: b"",
        request_id_header: shared.config.request_id_header.as_ref().map_or("", |header| header.canonical()),
        request_id: b"",
        frontend: "",
        forwarded_for: b"",
        total: Duration::ZERO,
        backend: Duration::ZERO,
    });
}

const UNKNOWN: &[u8] = b"-";

/// Bytes of the longest target that the HTTP library takes.
const LONGEST_TARGET: usize = 65_534;

/// Bytes of a request line that are kept.
const MOST_KEPT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pieces: &[&[u8]]) -> [String; 3] {
        let mut opening = Opening::default();
        for piece in pieces {
            opening.extend(piece);
        }
        opening.words().map(|word| String::from_utf8_lossy(word).into_owned())
    }

    #[test]
    fn a_request_line_is_told_as_far_as_it_is_known() {
        assert_eq!(words(&[b"GET /a?secret HTTP/1.1\r\nHost: a\r\n"]), ["GET", "/a", "HTTP/1.1"]);
        assert_eq!(words(&[b"\r\nGE", b"T /", b"a b HTTP", b"/1.1\r\n", b"Host"]), ["GET", "/a b", "HTTP/1.1"]);
        assert_eq!(words(&[b"GET /\r\n"]), ["GET", "/", "-"]);
        assert_eq!(words(&[b"GET HTTP/1.1\r\n"]), ["GET", "HTTP/1.1", "-"]);
        assert_eq!(words(&[b"\x16\x03\x01"]), ["\x16\x03\x01", "-", "-"]);
        assert_eq!(words(&[b"\r\n"]), ["-", "-", "-"]);
        assert_eq!(words(&[]), ["-", "-", "-"]);
    }

    #[test]
    fn a_target_is_long_from_where_the_library_says_so() {
        let is_long = |length: usize, end: &[u8]| {
            let mut opening = Opening::default();
            opening.extend(b"GET ");
            opening.extend(&vec![b'a'; length]);
            opening.extend(end);
            opening.has_long_target()
        };
        assert!(!is_long(LONGEST_TARGET, b" HTTP/1.1\r\nHost: a"));
        assert!(is_long(LONGEST_TARGET + 1, b" HTTP/1.1\r\nHost: a"));
        assert!(!is_long(1_000_000, b""), "a head without an end is refused for its own length");
    }

    #[test]
    fn little_of_a_long_line_is_kept() {
        let [_, path, protocol] = words(&[b"GET /", &vec![b'a'; 100_000], &vec![b'b'; 100_000]]);
        assert_eq!((path.len(), protocol.as_str()), (MOST_KEPT - 4, "-"));
    }
}
