//! What a request becomes for a backend.

use std::net::IpAddr;

use bytes::{Bytes, BytesMut};

use super::{
    connection::{ConnectionOptions, is_hop_by_hop},
    lines::{OUR_LINES, UPGRADE, put, put_framing, put_joined, put_line, put_passing},
};
use crate::message::{
    framing::Framing,
    head::{Line, RequestHead, Version},
    known::Known,
    target::Target,
    websocket::Opening,
};

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
    /// The name that `Via` gets, behind those of whoever had the request before.
    pub via: Option<&'a [u8]>,
    /// Which host is told.
    pub addressee: Addressee<'a>,
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
        let is_said =
            |known: Known, name: &str| head.all(known).any(|value| !value.is_empty()) && !options.name(name.as_bytes());
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
                !line.value.is_empty()
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
        if let Some(pseudonym) = rules.via {
            let version = &head.version().as_str().as_bytes()["HTTP/".len()..];
            put(out, &[b"Via: ", version, b" ", pseudonym, b"\r\n"]);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{
        HeadReader, RequestHeadBuilder,
        headers::samples::{LIMITS, request, values},
    };

    fn provenance() -> Provenance {
        Provenance::new(IpAddr::from([10, 0, 0, 9]), 8080, false)
    }

    fn rules(provenance: &Provenance) -> RequestRules<'_> {
        RequestRules {
            provenance,
            request_id: None,
            opening: None,
            certificate: None,
            via: None,
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
            assert_eq!(values(&written(&format!("{name}:\r\n{name}: said\r\n{name}: \r\n")), name), ["said"]);
            assert_eq!(values(&written(&format!("{name}: one\r\n{name}:\r\n{name}: two\r\n")), name), ["one", "two"]);
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
            via: None,
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
