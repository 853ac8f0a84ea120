//! Requests that are refused before their heads are whole: what is known of them, for the access log.

use std::{net::IpAddr, time::Duration};

use crate::{proxy::worker::Shared, telemetry::Entry};

/// Records a request that was answered with this status, of which so much had arrived.
pub fn record(shared: &Shared, client: IpAddr, arrived: &[u8], status: u16) {
    shared.metrics.malformed_requests.inc();
    shared.metrics.count_responses(status, 1);
    let [method, path, protocol] = words(arrived);
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

/// Method, path without the query, and protocol of the first line; `-` for what cannot be told.
fn words(arrived: &[u8]) -> [&[u8]; 3] {
    // Empty lines before the request line are allowed (RFC 9112 section 2.2).
    let leading = arrived.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let line = &arrived[leading..];
    let end = memchr::memchr(b'\n', line).unwrap_or(line.len());
    let line = line[..end.min(MOST_TOLD)].trim_ascii();
    let (method, rest) = match memchr::memchr(b' ', line) {
        Some(end) => (&line[..end], line[end..].trim_ascii_start()),
        None => (line, &[][..]),
    };
    let (target, protocol) = match memchr::memrchr(b' ', rest) {
        Some(start) if rest[start + 1..].starts_with(b"HTTP/") => (rest[..start].trim_ascii_end(), &rest[start + 1..]),
        _ => (rest, &[][..]),
    };
    let path = memchr::memchr2(b'?', b'#', target).map_or(target, |end| &target[..end]);
    [method, path, protocol].map(|word| if word.is_empty() { UNKNOWN } else { word })
}

const UNKNOWN: &[u8] = b"-";

/// Bytes of a request line that are told.
const MOST_TOLD: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn told(arrived: &[u8]) -> [String; 3] {
        words(arrived).map(|word| String::from_utf8_lossy(word).into_owned())
    }

    #[test]
    fn a_request_line_is_told_as_far_as_it_is_known() {
        assert_eq!(told(b"GET /a?secret HTTP/1.1\r\nHost: a\r\n"), ["GET", "/a", "HTTP/1.1"]);
        assert_eq!(told(b"\r\nGET /a b HTTP/1.1\r\nHost"), ["GET", "/a b", "HTTP/1.1"]);
        assert_eq!(told(b"GET /\r\n"), ["GET", "/", "-"]);
        assert_eq!(told(b"GET HTTP/1.1\r\n"), ["GET", "HTTP/1.1", "-"]);
        assert_eq!(told(b"\x16\x03\x01"), ["\x16\x03\x01", "-", "-"]);
        assert_eq!(told(b"\r\n"), ["-", "-", "-"]);
        assert_eq!(told(b""), ["-", "-", "-"]);
    }

    #[test]
    fn little_of_a_long_line_is_told() {
        let [_, path, protocol] = told(&[b"GET /", &b"a".repeat(100_000)[..]].concat());
        assert_eq!((path.len(), protocol.as_str()), (MOST_TOLD - 4, "-"));
    }
}
