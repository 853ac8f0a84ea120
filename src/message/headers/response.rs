//! What a response becomes for a client.

use bytes::BytesMut;

use super::{
    connection::{ConnectionOptions, is_hop_by_hop},
    lines::{OUR_LINES, UPGRADE, put, put_decimal, put_framing, put_line, put_passing},
};
use crate::message::{
    framing::{Framing, content_length, has_no_body},
    head::{Line, ResponseHead, Version},
    known::Known,
};

/// What a response becomes for a client on HTTP/1.
#[derive(Clone, Copy, Debug)]
pub struct ResponseRules<'a> {
    /// The client's version.
    pub version: Version,
    /// How the client is told where the body ends.
    pub framing: Framing,
    /// What becomes of the connection. A 101 says `Upgrade` instead.
    pub persistence: Persistence,
    /// Further lines of ours.
    pub lines: &'a [(&'a [u8], &'a [u8])],
}

/// What a connection is to be after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// What the version has as its default, of which nothing is said.
    Unsaid,
    /// Closed.
    Close,
    /// Kept, which a client of HTTP/1.0 must be told.
    KeepAlive,
}

/// Writes the head of a response for a client on HTTP/1.
pub fn write_response(out: &mut BytesMut, head: &ResponseHead, rules: &ResponseRules<'_>) {
    let filter = ResponseFilter::new(head);
    out.reserve(head.byte_len() + OUR_LINES);
    let version = if rules.version == Version::Http10 { Version::Http10 } else { Version::Http11 };
    put(out, &[version.as_str().as_bytes(), b" "]);
    put_decimal(out, head.status().into());
    put(out, &[b" ", head.reason(), b"\r\n"]);
    put_passing(out, head, |line| filter.passes(line));
    match told_length(head, rules.framing) {
        Some(length) => put_framing(out, Framing::Length(length)),
        None if !has_no_body(head.status()) => put_framing(out, rules.framing),
        None => {}
    }
    match rules.persistence {
        _ if head.switches_protocols() => out.extend_from_slice(UPGRADE),
        Persistence::Unsaid => {}
        Persistence::Close => out.extend_from_slice(b"Connection: close\r\n"),
        Persistence::KeepAlive => out.extend_from_slice(b"Connection: keep-alive\r\n"),
    }
    for (name, value) in rules.lines {
        put_line(out, name, value);
    }
    out.extend_from_slice(b"\r\n");
}

/// The lines of a response that pass, for a client on HTTP/2. The body's length is not among them, but [`told_length`] knows
/// it; nor is what completes a WebSocket handshake, which HTTP/2 does without.
pub fn response_lines(head: &ResponseHead) -> impl Iterator<Item = Line<'_>> {
    let filter = ResponseFilter::new(head);
    let switches = head.switches_protocols();
    head.lines().filter(move |line| filter.passes(line) && !(switches && line.known == Known::SecWebSocketAccept))
}

/// The length that a client is told of a response's body, or of the one that it would have had: after a HEAD, and with a
/// 304 (RFC 9110 section 8.6).
pub fn told_length(head: &ResponseHead, framing: Framing) -> Option<u64> {
    match framing {
        _ if matches!(head.status(), 100..=199 | 204) => None,
        Framing::Length(length) => Some(length),
        // A transfer coding overrides a length (RFC 9112 section 6.3), which would otherwise outlive it.
        Framing::None if !head.has(Known::TransferEncoding) => content_length(head).unwrap_or_default(),
        Framing::None | Framing::Chunked | Framing::UntilClose => None,
    }
}

/// What of a response passes to a client.
struct ResponseFilter<'a> {
    options: ConnectionOptions<'a>,
}

impl<'a> ResponseFilter<'a> {
    fn new(head: &'a ResponseHead) -> Self {
        Self { options: ConnectionOptions::of(head) }
    }

    fn passes(&self, line: &Line<'_>) -> bool {
        line.known != Known::ContentLength && !is_hop_by_hop(line.known) && !self.options.name(line.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{
        HeadReader, ResponseHeadBuilder,
        headers::samples::{LIMITS, response, values},
    };

    /// What a client of HTTP/1.1 gets of a head.
    fn answered(head: &ResponseHead, framing: Framing, persistence: Persistence) -> String {
        let mut out = BytesMut::new();
        write_response(&mut out, head, &ResponseRules { version: Version::Http11, framing, persistence, lines: &[] });
        let text = String::from_utf8_lossy(&out).into_owned();
        assert!(HeadReader::default().response(&mut out, LIMITS).unwrap().is_some() && out.is_empty(), "{text}");
        text
    }

    #[test]
    fn a_response_says_nothing_of_the_backends_connection() {
        let head = response(
            "299 Strange Reason",
            "Connection: keep-alive, X-Secret\r\nKeep-Alive: timeout=5\r\nX-Secret: 1\r\nProxy-Authenticate: x\r\n\
             Upgrade: h2c\r\nset-COOKIE: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 7\r\nTrailer: X-Sum\r\nX_Own: 1\r\n",
        );
        let rules = ResponseRules {
            version: Version::Http11,
            framing: Framing::Chunked,
            persistence: Persistence::Close,
            lines: &[(b"X-Debug-Backend-Id", b"1")],
        };
        let mut out = BytesMut::new();
        write_response(&mut out, &head, &rules);
        assert_eq!(
            str::from_utf8(&out).unwrap(),
            "HTTP/1.1 299 Strange Reason\r\nset-COOKIE: a\r\nTrailer: X-Sum\r\nX_Own: 1\r\nTransfer-Encoding: chunked\r\n\
             Connection: close\r\nX-Debug-Backend-Id: 1\r\n\r\n"
        );
        let names: Vec<_> = response_lines(&head).map(|line| line.name).collect();
        assert_eq!(names, [&b"set-COOKIE"[..], b"Trailer", b"X_Own"]);

        let old = ResponseRules {
            version: Version::Http10,
            framing: Framing::UntilClose,
            persistence: Persistence::KeepAlive,
            lines: &[],
        };
        let mut out = BytesMut::new();
        write_response(&mut out, &response("200 OK", ""), &old);
        assert_eq!(&out[..], b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n");
    }

    /// RFC 9110 section 8.6.
    #[test]
    fn a_length_is_told_where_there_may_be_one() {
        for (status, lines, framing, expected) in [
            ("200 OK", "Content-Length: 4\r\n", Framing::Length(4), Some("4")),
            ("200 OK", "Content-Length: 4, 4\r\n", Framing::None, Some("4")),
            ("200 OK", "Content-Length: 4\r\nContent-Length: 5\r\n", Framing::None, None),
            ("200 OK", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", Framing::None, None),
            ("200 OK", "Content-Length: 4\r\n", Framing::UntilClose, None),
            ("200 OK", "", Framing::Length(0), Some("0")),
            ("304 Not Modified", "Content-Length: 4\r\n", Framing::None, Some("4")),
            ("204 No Content", "Content-Length: 4\r\n", Framing::None, None),
            ("204 No Content", "Transfer-Encoding: chunked\r\n", Framing::Chunked, None),
            ("103 Early Hints", "Content-Length: 4\r\n", Framing::Length(4), None),
        ] {
            let head = answered(&response(status, lines), framing, Persistence::Unsaid);
            assert_eq!(values(&head, "content-length"), expected.into_iter().collect::<Vec<_>>(), "{status} {lines}");
            assert!(values(&head, "transfer-encoding").is_empty() && values(&head, "connection").is_empty(), "{head}");
        }
    }

    #[test]
    fn a_switch_of_protocols_is_passed_on() {
        let head = response(
            "101 Switching Protocols",
            "Connection: upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: x\r\n",
        );
        let all = answered(&head, Framing::None, Persistence::Close);
        assert_eq!((values(&all, "connection"), values(&all, "upgrade")), (vec!["Upgrade"], vec!["websocket"]));
        assert_eq!(values(&all, "sec-websocket-accept"), ["x"]);
        assert_eq!(response_lines(&head).count(), 0, "HTTP/2 does without");
    }

    #[test]
    fn our_own_answers_are_heads_as_well() {
        let head = ResponseHeadBuilder::new(Version::Http11, 503).line(b"Content-Type", b"text/plain").build().unwrap();
        let all = answered(&head, Framing::Length(0), Persistence::Unsaid);
        assert_eq!(all, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n");
    }
}
