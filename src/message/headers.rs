//! The lines that a proxy takes out, puts in and changes (contract section 3).
//!
//! A head is written afresh for each attempt, from the client's own head and the rules: nothing is edited, so that nothing
//! need be put back. What `Connection` names is looked up among the client's lines only, which is why it can remove nothing
//! of ours.

use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::{
    chunked::Trailers,
    framing::{Framing, content_length, has_no_body},
    head::{Fields, Line, Place, RequestHead, ResponseHead, Version},
    known::Known,
    target::Target,
    websocket::Opening,
};

/// How a client reached us, as a backend is told. One of these serves a whole connection.
#[derive(Clone, Debug)]
pub struct Provenance {
    address: Box<str>,
    port: Box<str>,
    scheme: &'static str,
}

impl Provenance {
    /// For a client at `address` that connected to `port`, with TLS or without.
    pub fn new(address: IpAddr, port: u16, is_tls: bool) -> Self {
        let scheme = if is_tls { "https" } else { "http" };
        Self { address: address.to_string().into(), port: port.to_string().into(), scheme }
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }
}

/// Whose name a request carries in `Host`.
#[derive(Clone, Copy, Debug)]
pub enum Addressee<'a> {
    /// The host as the client sent it.
    Client(&'a [u8]),
    /// The backend, known by a name; two other headers carry the host as the client sent it.
    Backend {
        /// The backend's name.
        name: &'a [u8],
        /// The client's host.
        original: &'a [u8],
    },
}

/// What a request becomes for one backend.
#[derive(Clone, Copy, Debug)]
pub struct RequestRules<'a> {
    /// How the client reached us.
    pub provenance: &'a Provenance,
    /// The header that carries request ids, and the id, which [`request_id`] finds or the caller makes.
    pub request_id: Option<(&'a [u8], &'a [u8])>,
    /// What asks to become a WebSocket.
    pub opening: Option<&'a Opening>,
    /// What the client's verified certificate says of it.
    pub certificate: Option<&'a [u8]>,
    /// Which host is told.
    pub addressee: Addressee<'a>,
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

/// Writes the head of a request for a backend.
pub fn write_request(
    out: &mut BytesMut,
    head: &RequestHead,
    target: &Target<'_>,
    rules: &RequestRules<'_>,
    framing: Framing,
) {
    let filter = RequestFilter::new(head, rules);
    out.reserve(head.byte_len() + OUR_LINES);
    let method = if filter.key.is_some() { "GET" } else { head.method() };
    let [prefix, rest] = target.parts();
    put(out, &[method.as_bytes(), b" ", prefix, rest, b" HTTP/1.1\r\nHost: "]);
    put(out, &[filter.host, b"\r\n"]);
    put_passing(out, head, |line| filter.passes(line));
    filter.put_our_lines(out);
    put_framing(out, framing);
    out.extend_from_slice(b"\r\n");
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
        _ if head.status() == SWITCHING_PROTOCOLS => out.extend_from_slice(UPGRADE),
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
    let switches = head.status() == SWITCHING_PROTOCOLS;
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

/// The id that a request has under this name already. An empty one is none, and one that `Connection` names ends here.
pub fn request_id<'a>(head: &'a RequestHead, name: &'a [u8]) -> Option<&'a [u8]> {
    let id = head.named(name).next().filter(|id| !id.is_empty())?;
    (!ConnectionOptions::of(head).name(name)).then_some(id)
}

/// `X-Forwarded-For` as the client sent it, its lines joined; `None` if it sent none.
pub fn forwarded_for(head: &RequestHead) -> Option<Bytes> {
    let mut lines = head.all(Known::XForwardedFor);
    let first = lines.next()?;
    if lines.next().is_none() {
        return Some(head.value_bytes(first));
    }
    let mut joined = BytesMut::new();
    put_joined(&mut joined, head.all(Known::XForwardedFor), b", ");
    Some(joined.freeze())
}

/// Whether the sender of this head keeps its connection open after the message (RFC 9112 section 9.3).
pub fn keeps_alive(version: Version, head: &Fields) -> bool {
    if !head.has(Known::Connection) {
        return version != Version::Http10;
    }
    !head.lists(Known::Connection, b"close")
        && (version != Version::Http10 || head.lists(Known::Connection, b"keep-alive"))
}

/// What of a request passes to a backend, and what is ours.
struct RequestFilter<'a> {
    head: &'a RequestHead,
    rules: &'a RequestRules<'a>,
    host: &'a [u8],
    options: ConnectionOptions<'a>,
    /// Those of [`RequestFilter::said_of_client`] that somebody before us has said, as a set of names.
    said: u64,
    /// Whether the cookies have to become one line.
    joins_cookies: bool,
    /// The WebSocket key that we made.
    key: Option<&'a str>,
}

impl<'a> RequestFilter<'a> {
    fn new(head: &'a RequestHead, rules: &'a RequestRules<'a>) -> Self {
        let options = ConnectionOptions::of(head);
        let is_said = |known: Known, name: &str| {
            head.first(known).is_some_and(|value| !value.is_empty()) && !options.name(name.as_bytes())
        };
        let said = Self::said_of_client(rules.provenance)
            .iter()
            .filter(|(known, name, _)| is_said(*known, name))
            .fold(0, |said, (known, ..)| said | known.bit());
        let host = match rules.addressee {
            Addressee::Client(host) => host,
            Addressee::Backend { name, .. } => name,
        };
        // HTTP/2 may split them, and HTTP/1.1 may not (RFC 9113 section 8.2.3).
        let joins_cookies = head.version() == Version::Http2 && head.has(Known::Cookie);
        Self { head, rules, host, options, said, joins_cookies, key: rules.opening.and_then(Opening::key) }
    }

    /// What is told of a client where nobody has told it before us, and in which lines. Two of them are Hipache's own.
    fn said_of_client(provenance: &Provenance) -> [(Known, &'static str, &str); 4] {
        [
            (Known::XForwardedProto, "X-Forwarded-Proto", provenance.scheme),
            (Known::XForwardedProtocol, "X-Forwarded-Protocol", provenance.scheme),
            (Known::XForwardedPort, "X-Forwarded-Port", &provenance.port),
            (Known::XRealIp, "X-Real-IP", &provenance.address),
        ]
    }

    fn passes(&self, line: &Line<'_>) -> bool {
        let may_pass = match line.known {
            // Said afresh, or not for the backend, or an imitation of such.
            Known::Host
            | Known::ContentLength
            | Known::XForwardedFor
            | Known::XForwardedClientCert
            | Known::XDebugRouter
            | Known::Disguised => false,
            Known::XHost | Known::XForwardedHost => matches!(self.rules.addressee, Addressee::Client(_)),
            Known::XForwardedProto | Known::XForwardedProtocol | Known::XForwardedPort | Known::XRealIp => {
                self.said & line.known.bit() != 0
            }
            Known::SecWebSocketKey => self.key.is_none(),
            Known::Cookie => !self.joins_cookies,
            known => !is_hop_by_hop(known),
        };
        may_pass && !self.is_request_id(line.name) && !self.options.name(line.name)
    }

    /// Whether it is the name of the header that carries request ids, or looks like it to a server that takes hyphens for
    /// underscores.
    fn is_request_id(&self, name: &[u8]) -> bool {
        let is_same = |wanted: &[u8]| {
            let pairs = || name.iter().zip(wanted);
            wanted.len() == name.len()
                && pairs().all(|(&byte, &wanted)| byte.eq_ignore_ascii_case(&wanted) || byte == b'_' && wanted == b'-')
        };
        self.rules.request_id.is_some_and(|(wanted, _)| is_same(wanted))
    }

    fn put_our_lines(&self, out: &mut BytesMut) {
        let Self { head, rules, .. } = self;
        if let Addressee::Backend { original, .. } = rules.addressee {
            put_line(out, b"X-Host", original);
            put_line(out, b"X-Forwarded-Host", original);
        }
        if self.joins_cookies && !self.options.name(b"cookie") {
            out.extend_from_slice(b"Cookie: ");
            put_joined(out, head.all(Known::Cookie), b"; ");
            out.extend_from_slice(b"\r\n");
        }
        self.put_forwarded_for(out);
        for (known, name, value) in Self::said_of_client(rules.provenance) {
            if self.said & known.bit() == 0 {
                put_line(out, name.as_bytes(), value.as_bytes());
            }
        }
        if let Some(certificate) = rules.certificate {
            put_line(out, b"X-Forwarded-Client-Cert", certificate);
        }
        if let Some((name, id)) = rules.request_id {
            put_line(out, name, id);
        }
        if head.has(Known::Te) && head.lists(Known::Te, b"trailers") {
            out.extend_from_slice(b"TE: trailers\r\n");
        }
        if rules.opening.is_some() {
            out.extend_from_slice(UPGRADE);
        }
        if let Some(key) = self.key {
            put_line(out, b"Sec-WebSocket-Key", key.as_bytes());
            if !head.has(Known::SecWebSocketVersion) {
                out.extend_from_slice(b"Sec-WebSocket-Version: 13\r\n");
            }
        }
    }

    /// The client is appended to whoever forwarded for it.
    fn put_forwarded_for(&self, out: &mut BytesMut) {
        out.extend_from_slice(b"X-Forwarded-For: ");
        if self.head.has(Known::XForwardedFor) && !self.options.name(b"x-forwarded-for") {
            let before = self.head.all(Known::XForwardedFor).filter(|value| !value.is_empty());
            put_joined(out, before.clone(), b", ");
            if before.count() > 0 {
                out.extend_from_slice(b", ");
            }
        }
        put(out, &[self.rules.provenance.address.as_bytes(), b"\r\n"]);
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

/// The headers that `Connection` names (RFC 9110 section 7.6.1), apart from those that never pass anyway.
#[derive(Default)]
struct ConnectionOptions<'a>(SmallVec<[&'a [u8]; 4]>);

impl<'a> ConnectionOptions<'a> {
    fn of(head: &'a Fields) -> Self {
        if !head.has(Known::Connection) {
            return Self::default();
        }
        let is_a_name = |option: &&[u8]| {
            let known = Known::of(option);
            known != Known::Host && !is_hop_by_hop(known) && !option.eq_ignore_ascii_case(b"close")
        };
        let mut names: SmallVec<[&[u8]; 4]> = head.elements(Known::Connection).filter(is_a_name).collect();
        // Neither side of a connection may keep us busy with a long list.
        if names.len() > FEW {
            names.sort_unstable_by(|one, other| compare(one, other));
        }
        Self(names)
    }

    fn name(&self, name: &[u8]) -> bool {
        if self.0.len() > FEW {
            self.0.binary_search_by(|option| compare(option, name)).is_ok()
        } else {
            self.0.iter().any(|option| option.eq_ignore_ascii_case(name))
        }
    }
}

/// Orders names, whatever their case.
fn compare(one: &[u8], other: &[u8]) -> std::cmp::Ordering {
    one.iter().map(u8::to_ascii_lowercase).cmp(other.iter().map(u8::to_ascii_lowercase))
}

/// Whether a header is about a connection (RFC 9110 section 7.6.1). `Trailer` is not: trailers are passed on.
fn is_hop_by_hop(known: Known) -> bool {
    matches!(
        known,
        Known::Connection
            | Known::KeepAlive
            | Known::ProxyAuthenticate
            | Known::ProxyAuthorization
            | Known::ProxyConnection
            | Known::Te
            | Known::TransferEncoding
            | Known::Upgrade
    )
}

/// A trailer says nothing of a message's way or its framing (RFC 9110 section 6.5.1).
fn passes_as_trailer(line: &Line<'_>, options: &ConnectionOptions<'_>) -> bool {
    !matches!(line.known, Known::ContentLength | Known::Host | Known::Trailer)
        && !is_hop_by_hop(line.known)
        && !options.name(line.name)
}

fn write_trailers(out: &mut BytesMut, trailers: &Trailers, is_refused: impl Fn(Known) -> bool) {
    if let Some(fields) = trailers.fields() {
        let options = ConnectionOptions::of(fields);
        put_passing(out, fields, |line| passes_as_trailer(line, &options) && !is_refused(line.known));
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the lines that pass. Neighbours that are spelt as we would are copied in one piece.
fn put_passing(out: &mut BytesMut, head: &Fields, passes: impl Fn(&Line<'_>) -> bool) {
    let buffer = &head.buffer[..];
    let mut piece = 0..0;
    for (line, place) in head.lines().zip(head.places()) {
        if !passes(&line) {
            continue;
        }
        let start = place.name.start as usize;
        match end_as_spelt(buffer, place) {
            Some(end) if piece.end == start => piece.end = end,
            Some(end) => {
                out.extend_from_slice(&buffer[piece]);
                piece = start..end;
            }
            None => {
                out.extend_from_slice(&buffer[piece]);
                piece = 0..0;
                put_line(out, line.name, line.value);
            }
        }
    }
    out.extend_from_slice(&buffer[piece]);
}

/// Where a line ends, if it is spelt as we would.
fn end_as_spelt(buffer: &[u8], place: &Place) -> Option<usize> {
    let separator = buffer.get(place.name.end as usize..place.value.start as usize)?;
    let end = place.value.end as usize;
    (separator == b": " && buffer.get(end..end + 2)? == b"\r\n").then_some(end + 2)
}

fn put_framing(out: &mut BytesMut, framing: Framing) {
    match framing {
        Framing::Length(length) => {
            out.extend_from_slice(b"Content-Length: ");
            put_decimal(out, length);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Framing::None | Framing::UntilClose => {}
    }
}

fn put_line(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    put(out, &[name, b": ", value, b"\r\n"]);
}

fn put_joined<'a>(out: &mut BytesMut, values: impl Iterator<Item = &'a [u8]>, separator: &[u8]) {
    for (index, value) in values.enumerate() {
        put(out, &[if index == 0 { b"" } else { separator }, value]);
    }
}

fn put_decimal(out: &mut BytesMut, number: u64) {
    let mut digits = [0; LONGEST_NUMBER];
    let mut start = LONGEST_NUMBER;
    let mut left = number;
    loop {
        start -= 1;
        digits[start] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

fn put(out: &mut BytesMut, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

const UPGRADE: &[u8] = b"Connection: Upgrade\r\nUpgrade: websocket\r\n";

const SWITCHING_PROTOCOLS: u16 = 101;

/// Room for what we add to a head, in bytes.
const OUR_LINES: usize = 512;

/// A list of so many names is searched from its beginning.
const FEW: usize = 8;

/// The digits of a number of 64 bits.
const LONGEST_NUMBER: usize = 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{ChunkReader, HeadReader, Limits, RequestHeadBuilder, ResponseHeadBuilder};

    const LIMITS: Limits = Limits { bytes: 1_000_000, lines: 1_000 };

    fn request(lines: &str) -> RequestHead {
        let text = format!("GET /a?b HTTP/1.1\r\nHost: a.test\r\n{lines}\r\n");
        HeadReader::default().request(&mut BytesMut::from(text.as_bytes()), LIMITS).unwrap().unwrap()
    }

    fn response(status: &str, lines: &str) -> ResponseHead {
        let text = format!("HTTP/1.1 {status}\r\n{lines}\r\n");
        HeadReader::default().response(&mut BytesMut::from(text.as_bytes()), LIMITS).unwrap().unwrap()
    }

    fn provenance() -> Provenance {
        Provenance::new(IpAddr::from([10, 0, 0, 9]), 8080, false)
    }

    fn rules(provenance: &Provenance) -> RequestRules<'_> {
        RequestRules {
            provenance,
            request_id: None,
            opening: None,
            certificate: None,
            addressee: Addressee::Client(b"a.test"),
        }
    }

    /// What a backend gets of a head.
    fn written_by(head: &RequestHead, rules: &RequestRules<'_>, framing: Framing) -> String {
        let mut out = BytesMut::new();
        let target = Target::of(head, rules.opening).unwrap();
        write_request(&mut out, head, &target, rules, framing);
        let text = String::from_utf8(out.to_vec()).unwrap();
        assert!(text.ends_with("\r\n\r\n"));
        assert!(HeadReader::default().request(&mut out, LIMITS).unwrap().is_some() && out.is_empty(), "{text}");
        text
    }

    fn written(lines: &str) -> String {
        written_by(&request(lines), &rules(&provenance()), Framing::None)
    }

    /// The values of all lines of this name, in any case.
    fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
        let lines = head.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(written, _)| written.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    #[test]
    fn a_plain_request_gets_what_nobody_has_said() {
        assert_eq!(
            written("User-Agent: u\r\nx-Odd:\t y \r\nAccept: */*\r\n"),
            "GET /a?b HTTP/1.1\r\nHost: a.test\r\nUser-Agent: u\r\nx-Odd: y\r\nAccept: */*\r\nX-Forwarded-For: 10.0.0.9\r\n\
             X-Forwarded-Proto: http\r\nX-Forwarded-Protocol: http\r\nX-Forwarded-Port: 8080\r\nX-Real-IP: 10.0.0.9\r\n\r\n"
        );
    }

    #[test]
    fn the_client_is_appended_to_all_lines_joined() {
        let head = request("X-Forwarded-For: 1.1.1.1\r\nA: b\r\nx-forwarded-for:\r\nX-FORWARDED-FOR: 2.2.2.2, ::3\r\n");
        let all = written_by(&head, &rules(&provenance()), Framing::None);
        assert_eq!(values(&all, "x-forwarded-for"), ["1.1.1.1, 2.2.2.2, ::3, 10.0.0.9"]);
        assert_eq!(forwarded_for(&head).unwrap(), "1.1.1.1, , 2.2.2.2, ::3");
        assert_eq!(values(&written("X-Forwarded-For: \r\n"), "x-forwarded-for"), ["10.0.0.9"]);
        assert_eq!(forwarded_for(&request("X-Forwarded-For: 1\r\n")).unwrap(), "1");
        assert_eq!(forwarded_for(&request("")), None);
    }

    #[test]
    fn what_somebody_has_said_is_kept_and_an_empty_line_says_nothing() {
        let told = [
            ("X-Forwarded-Proto", "http"),
            ("X-Forwarded-Protocol", "http"),
            ("X-Forwarded-Port", "8080"),
            ("X-Real-IP", "10.0.0.9"),
        ];
        for (name, value) in told {
            assert_eq!(values(&written(""), name), [value]);
            assert_eq!(values(&written(&format!("{name}:\r\n{name}: \r\n")), name), [value]);
            assert_eq!(values(&written(&format!("{}: said\r\n", name.to_lowercase())), name), ["said"]);
            assert_eq!(values(&written(&format!("{name}: said\r\nConnection: {name}\r\n")), name), [value]);
        }
    }

    /// RFC 9110 section 7.6.1.
    #[test]
    fn connection_removes_what_it_names_but_nothing_of_ours() {
        let provenance = provenance();
        let rules = RequestRules {
            request_id: Some((b"X-Request-Id", b"7")),
            certificate: Some(b"Hash=0"),
            addressee: Addressee::Backend { name: b"name.internal", original: b"a.test:80" },
            ..rules(&provenance)
        };
        let head = request(
            "Connection: close, X-Secret, host,, content-length\r\nConnection: x-forwarded-for,x-request-id, x-host, TE\r\n\
             Connection: x-forwarded-client-cert, transfer-encoding, x-forwarded-host\r\nX-Secret: 1\r\nKeep-Alive: 5\r\n\
             X-Forwarded-For: 6.6.6.6\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\n\
             Proxy-Authenticate: x\r\nTE: gzip, Trailers\r\nTrailer: X-Sum\r\nUpgrade: h2c\r\nX-Host: evil\r\n\
             X-Request-Id: 6\r\nX-Kept: 3\r\nContent-Length: 4\r\n",
        );
        let all = written_by(&head, &rules, Framing::Length(4));
        for (name, expected) in [
            ("host", "name.internal"),
            ("x-host", "a.test:80"),
            ("x-forwarded-host", "a.test:80"),
            ("x-forwarded-for", "10.0.0.9"),
            ("x-forwarded-client-cert", "Hash=0"),
            ("x-request-id", "7"),
            ("te", "trailers"),
            ("trailer", "X-Sum"),
            ("x-kept", "3"),
            ("content-length", "4"),
        ] {
            assert_eq!(values(&all, name), [expected], "{name} in {all}");
        }
        for gone in ["connection", "x-secret", "keep-alive", "upgrade", "transfer-encoding"] {
            assert!(values(&all, gone).is_empty(), "{gone} is in {all}");
        }
        assert!(!all.to_lowercase().contains("proxy-"), "{all}");
    }

    #[test]
    fn a_long_list_of_names_removes_all_of_them_quickly() {
        let names = (0..100_000).map(|number| format!("x-{number},")).collect::<Vec<_>>().concat();
        let lines = (0..900).map(|number| format!("X-{number}: 1\r\n")).collect::<Vec<_>>().concat();
        let all = written(&format!("Connection: {names}\r\n{lines}X-Kept: 1\r\n"));
        assert!(!all.contains("X-0:") && !all.contains("X-899:") && all.contains("X-Kept: 1"), "{all}");
    }

    #[test]
    fn nobody_imitates_us() {
        let provenance = provenance();
        let rules = RequestRules { request_id: Some((b"X-Request-Id", b"7")), ..rules(&provenance) };
        let head = request(
            "X-Forwarded-Client-Cert: Subject=\"CN=admin\"\r\nX_Forwarded_Client_Cert: forged\r\nX_Forwarded-For: 1\r\n\
             x_real_ip: 1\r\nX_Host: a\r\nContent_Length: 5\r\nTransfer_Encoding: chunked\r\nX_Request_Id: 1\r\n\
             x-request_id: 1\r\nX-Debug-Router: 1\r\nX_Debug_Router: 1\r\nX_Own: 1\r\n",
        );
        let all = written_by(&head, &rules, Framing::None).to_lowercase();
        assert!(!all.replace("x_own: 1", "").contains('_'), "{all}");
        assert!(all.contains("x_own: 1"), "{all}");
        for gone in ["x-debug-router", "x-forwarded-client-cert"] {
            assert!(values(&all, gone).is_empty(), "{gone} is in {all}");
        }
        assert_eq!(values(&all, "x-request-id"), ["7"]);
    }

    #[test]
    fn a_client_keeps_the_id_that_it_gave() {
        let id = |lines: &str| request_id(&request(lines), b"X-Request-ID").map(<[u8]>::to_vec);
        assert_eq!(id("x-request-id: my own\r\n").as_deref(), Some(&b"my own"[..]));
        assert_eq!(id("X-Request-Id: \r\n"), None);
        assert_eq!(id("Connection: x-request-id\r\nX-Request-Id: 7\r\n"), None);
        assert_eq!(id("A: b\r\n"), None);
    }

    #[test]
    fn the_clients_word_on_other_hosts_passes_where_we_say_nothing() {
        let all = written("X-Host: b\r\nX-Forwarded-Host: c\r\n");
        assert_eq!((values(&all, "x-host"), values(&all, "x-forwarded-host")), (vec!["b"], vec!["c"]));
        assert_eq!(values(&all, "host"), ["a.test"]);
    }

    #[test]
    fn a_bodys_framing_is_ours() {
        let head = request("Content-Length: 4, 4\r\nContent-Length: 4\r\n");
        assert_eq!(values(&written_by(&head, &rules(&provenance()), Framing::Length(4)), "content-length"), ["4"]);
        let head = request("Transfer-Encoding: Chunked\r\n");
        let all = written_by(&head, &rules(&provenance()), Framing::Chunked);
        assert_eq!(values(&all, "transfer-encoding"), ["chunked"]);
    }

    /// RFC 9113 section 8.2.3.
    #[test]
    fn split_cookies_of_http_2_become_one_line() {
        let builder = RequestHeadBuilder::from_parts(Version::Http2, b"GET", b"https", b"a.test", b"/");
        let head =
            builder.line(b"cookie", b"a=1").line(b"cookie", b"b=2").line(b"cookie", b"c=3; d=4").build().unwrap();
        assert_eq!(values(&written_by(&head, &rules(&provenance()), Framing::None), "cookie"), ["a=1; b=2; c=3; d=4"]);
        assert_eq!(values(&written("Cookie: a\r\nCookie: b\r\n"), "cookie"), ["a", "b"]);
    }

    #[test]
    fn a_websocket_is_asked_for_in_the_way_of_http_1() {
        let head = request("Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: k\r\n");
        let (opening, provenance) = (Opening::of(&head), provenance());
        let all = written_by(&head, &RequestRules { opening: opening.as_ref(), ..rules(&provenance) }, Framing::None);
        assert_eq!((values(&all, "connection"), values(&all, "upgrade")), (vec!["Upgrade"], vec!["websocket"]));
        assert_eq!(values(&all, "sec-websocket-key"), ["k"]);

        let builder = RequestHeadBuilder::from_parts(Version::Http2, b"CONNECT", b"https", b"a.test", b"/chat");
        let head = builder.protocol(b"websocket").line(b"sec-websocket-key", b"forged").build().unwrap();
        let opening = Opening::of(&head).unwrap();
        let all = written_by(&head, &RequestRules { opening: Some(&opening), ..rules(&provenance) }, Framing::None);
        assert!(all.starts_with("GET /chat HTTP/1.1\r\nHost: a.test\r\n"), "{all}");
        assert_eq!(values(&all, "sec-websocket-key"), [opening.key().unwrap()]);
        assert_eq!((values(&all, "sec-websocket-version"), values(&all, "upgrade")), (vec!["13"], vec!["websocket"]));
    }

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

    /// RFC 9110 section 6.5.1.
    #[test]
    fn trailers_say_nothing_that_a_head_may_not() {
        let text = "0\r\nX-Sum: 7\r\nConnection: x-gone\r\nX-Gone: 1\r\nTransfer-Encoding: x\r\nContent-Length: 1\r\nHost: b\r\n\
                    X-Forwarded-Client-Cert: forged\r\nX_Forwarded_Client_Cert: forged\r\nX-Real-IP: 1\r\n\r\n";
        let read = ChunkReader::default().read(&mut BytesMut::from(text.as_bytes()));
        let Ok(Some(crate::message::Chunk::End(trailers))) = read else { panic!("{read:?}") };
        let mut out = BytesMut::new();
        write_request_trailers(&mut out, &trailers);
        assert_eq!(&out[..], b"X-Sum: 7\r\n\r\n");
        let mut out = BytesMut::new();
        write_response_trailers(&mut out, &trailers);
        assert!(out.starts_with(b"X-Sum: 7\r\nX-Forwarded-Client-Cert: ") && out.ends_with(b"X-Real-IP: 1\r\n\r\n"));
        assert_eq!(response_trailer_lines(&trailers).count(), 4);
    }

    /// RFC 9112 section 9.3.
    #[test]
    fn a_connection_is_kept_as_its_sender_says() {
        for (version, lines, expected) in [
            (Version::Http11, "", true),
            (Version::Http11, "Connection: close\r\n", false),
            (Version::Http11, "Connection: x, CLOSE\r\nConnection: keep-alive\r\n", false),
            (Version::Http11, "Connection: x\r\n", true),
            (Version::Http10, "", false),
            (Version::Http10, "Connection: Keep-Alive\r\n", true),
            (Version::Http10, "Connection: keep-alive, close\r\n", false),
        ] {
            assert_eq!(keeps_alive(version, &request(lines)), expected, "{version:?} {lines}");
        }
    }

    proptest! {
        #[test]
        fn whatever_connection_names_our_headers_are_there(tokens in "[ -~]{0,60}") {
            let provenance = provenance();
            let rules = RequestRules { request_id: Some((b"X-Request-Id", b"7")), ..rules(&provenance) };
            let all = written_by(&request(&format!("Connection: {tokens}\r\n")), &rules, Framing::Length(4));
            for ours in ["host", "x-forwarded-for", "x-forwarded-proto", "x-real-ip", "x-request-id", "content-length"] {
                prop_assert_eq!(values(&all, ours).len(), 1);
            }
            prop_assert!(values(&all, "connection").is_empty());
        }

        /// What passes is what was there, in its order.
        #[test]
        fn ordinary_lines_pass_untouched(lines in prop::collection::vec(("[a-z]{3}-[A-Z]{0,8}", "|[!-~]([ -~]{0,20}[!-~])?", "[ \t]{0,2}", "[ \t]{0,2}"), 0..20)) {
            let text = lines.iter().map(|(name, value, before, after)| format!("{name}:{before}{value}{after}\r\n")).collect::<Vec<_>>().concat();
            let all = written(&text);
            let read: Vec<_> = all.split("\r\n").filter_map(|line| line.split_once(": ")).skip(1).take(lines.len()).collect();
            let expected: Vec<_> = lines.iter().map(|(name, value, ..)| (name.as_str(), value.as_str())).collect();
            prop_assert_eq!(read, expected);
        }
    }
}
