//! The headers that a proxy takes out, puts in and changes (contract section 3).

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Version,
    header::{self, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TE, TRANSFER_ENCODING, UPGRADE},
};
use http_body::Body;

/// A request's headers before any backend is chosen.
pub struct Forwarding<'a> {
    /// How the client reached us.
    pub origin: &'a Provenance,
    /// The header that carries request ids, where one is configured.
    pub request_id_header: Option<&'a HeaderName>,
    /// Whether the request asks to become a WebSocket.
    pub upgrade: bool,
    /// What the client's verified certificate says of it.
    pub certificate: Option<&'a HeaderValue>,
}

/// How a client reached us, as a backend is told.
pub struct Provenance {
    /// The client's address.
    address: HeaderValue,
    /// The port that it connected to.
    port: HeaderValue,
    /// `http` or `https`.
    scheme: &'static str,
}

impl Provenance {
    /// For a client at `address` that connected to `port`, with TLS or without.
    pub fn new(address: IpAddr, port: u16, is_tls: bool) -> Self {
        let address = HeaderValue::from_maybe_shared(bytes::Bytes::from(address.to_string()));
        Self {
            address: address.expect("an address is visible ASCII"),
            port: HeaderValue::from(port),
            scheme: if is_tls { "https" } else { "http" },
        }
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }
}

/// The header that carries request ids.
#[derive(Clone, Debug)]
pub struct RequestIdHeader {
    name: HeaderName,
    canonical: Box<str>,
}

impl From<HeaderName> for RequestIdHeader {
    fn from(name: HeaderName) -> Self {
        let mut begins = true;
        let capitalise = |letter: char| {
            let shown = if begins { letter.to_ascii_uppercase() } else { letter };
            begins = letter == '-';
            shown
        };
        let canonical = name.as_str().chars().map(capitalise).collect();
        Self { name, canonical }
    }
}

impl RequestIdHeader {
    /// Its name.
    pub fn name(&self) -> &HeaderName {
        &self.name
    }

    /// Its name in the form that logs have it in, whatever the operator wrote: a capital at the beginning and behind each
    /// hyphen.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }
}

/// Prepares a client's headers for any backend: removes what concerns only the client's connection, then adds our own, so
/// that a `Connection` header can never remove what we add. Returns whether debug headers were asked for.
pub fn prepare_request(headers: &mut HeaderMap, forwarding: &Forwarding<'_>) -> bool {
    let wants_trailers = lists_token(headers, TE, "trailers");
    remove_hop_by_hop(headers);
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if forwarding.upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    tell_provenance(headers, forwarding.origin);
    match forwarding.certificate {
        None => drop(headers.remove(&X_FORWARDED_CLIENT_CERT)),
        Some(certificate) => drop(headers.insert(X_FORWARDED_CLIENT_CERT, certificate.clone())),
    }
    if let Some(name) = forwarding.request_id_header
        && is_missing(headers, name)
    {
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        let id = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut text);
        headers.insert(name, HeaderValue::from_str(id).expect("a UUID is visible ASCII"));
    }
    headers.remove(&X_DEBUG_ROUTER).is_some()
}

/// Addresses the request to one backend. `original` is the client's `Host`; a backend that is known by `name` gets that
/// instead, and the original in two other headers. Before the request is addressed to another backend, what that replaced
/// must be put back.
pub fn address_request(headers: &mut HeaderMap, original: &HeaderValue, name: Option<&HeaderValue>) -> Replaced {
    headers.insert(HOST, name.unwrap_or(original).clone());
    Replaced(name.map(|_| {
        [X_HOST, X_FORWARDED_HOST].map(|header| {
            let before = headers.insert(header.clone(), original.clone());
            (header, before)
        })
    }))
}

/// What the client itself said in the headers that carry the original host.
#[derive(Default)]
pub struct Replaced(Option<[(HeaderName, Option<HeaderValue>); 2]>);

impl Replaced {
    /// Restores the headers as they were.
    pub fn put_back(self, headers: &mut HeaderMap) {
        for (header, before) in self.0.into_iter().flatten() {
            match before {
                Some(before) => headers.insert(header, before),
                None => headers.remove(header),
            };
        }
    }
}

/// Removes what a backend said about its own connection; `upgrade` keeps what completes a WebSocket handshake.
pub fn prepare_response(headers: &mut HeaderMap, upgrade: bool) {
    // An encoding overrides a length (RFC 9112 section 6.3), which would otherwise outlive it.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    remove_hop_by_hop(headers);
    if upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
}

/// Removes what completes a WebSocket handshake in HTTP/1.1.
pub fn remove_upgrade(headers: &mut HeaderMap) {
    headers.remove(CONNECTION);
    headers.remove(UPGRADE);
}

/// Makes headers that came over HTTP/2 what HTTP/1.1 allows: one line of `Cookie`, which HTTP/2 may split (RFC 9113 section
/// 8.2.3), and one of `Content-Length`, of which the library has made sure that all say the same.
pub fn as_http1(headers: &mut HeaderMap) {
    if let Some(length) = headers.get(CONTENT_LENGTH).cloned() {
        headers.insert(CONTENT_LENGTH, length);
    }
    join_cookies(headers);
}

fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(COOKIE).iter();
    if let (Some(first), Some(second)) = (lines.next(), lines.next()) {
        let lines = [first, second].into_iter().chain(lines).map(HeaderValue::as_bytes);
        let joined = lines.collect::<Vec<_>>().join(&b"; "[..]);
        let joined = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined));
        headers.insert(COOKIE, joined.expect("header values joined by semicolons are one"));
    }
}

/// Says that the body's length is not known, where that is so. Left to itself, the HTTP library takes it that a GET without
/// a length has no body.
pub fn declare_body<B: Body>(request: &mut Request<B>) {
    if request.body().size_hint().exact().is_none() && !request.body().is_end_stream() {
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Removes from trailers what belongs to the connection that they came on, and what a backend must only hear from us.
pub fn prepare_trailers(trailers: &mut HeaderMap) {
    remove_hop_by_hop(trailers);
    trailers.remove(&X_FORWARDED_CLIENT_CERT);
}

/// Whether a request asks to become a WebSocket, which HTTP/1.0 cannot (RFC 9110 section 7.8).
pub fn wants_websocket<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11 && lists_token(request.headers(), UPGRADE, "websocket")
}

/// X-Forwarded-For as the client sent it, its lines joined; `None` if it sent none.
pub fn forwarded_for(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut lines = headers.get_all(&X_FORWARDED_FOR).iter();
    let first = lines.next()?;
    let mut joined = None;
    for line in lines {
        let joined: &mut Vec<u8> = joined.get_or_insert_with(|| first.as_bytes().to_vec());
        joined.extend_from_slice(b", ");
        joined.extend_from_slice(line.as_bytes());
    }
    Some(match joined {
        None => first.clone(),
        Some(joined) => HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)).unwrap_or_else(|_| first.clone()),
    })
}

/// Appends the client to X-Forwarded-For, and says what else is known of it where nobody before us has. Two of these headers
/// are Hipache's own.
fn tell_provenance(headers: &mut HeaderMap, origin: &Provenance) {
    append_client(headers, &origin.address);
    let scheme = || HeaderValue::from_static(origin.scheme);
    for (name, value) in [
        (X_FORWARDED_PROTO, scheme()),
        (X_FORWARDED_PROTOCOL, scheme()),
        (X_FORWARDED_PORT, origin.port.clone()),
        (X_REAL_IP, origin.address.clone()),
    ] {
        if is_missing(headers, &name) {
            headers.insert(name, value);
        }
    }
}

fn append_client(headers: &mut HeaderMap, client: &HeaderValue) {
    let value = match forwarded_for(headers).filter(|before| !before.is_empty()) {
        None => client.clone(),
        Some(before) => {
            let joined = bytes::Bytes::from([before.as_bytes(), client.as_bytes()].join(&b", "[..]));
            HeaderValue::from_maybe_shared(joined).expect("header values joined by commas are one")
        }
    };
    headers.insert(X_FORWARDED_FOR, value);
}

/// Whether nothing is said under this name. An empty line says nothing.
fn is_missing(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.get(name).is_none_or(HeaderValue::is_empty)
}

/// Removes the headers of RFC 9110 section 7.6.1, and those that `Connection` names. `Trailer` stays: trailers are passed
/// on. `Host` stays whatever `Connection` says.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: smallvec::SmallVec<[HeaderName; 4]> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
            .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
            .filter(|name| *name != HOST)
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

fn lists_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .any(|listed| listed.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PROTOCOL: HeaderName = HeaderName::from_static("x-forwarded-protocol");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_HOST: HeaderName = HeaderName::from_static("x-host");
const X_DEBUG_ROUTER: HeaderName = HeaderName::from_static("x-debug-router");

/// On responses to requests with `X-Debug-Router`: the backend's URL.
pub const X_DEBUG_BACKEND_URL: HeaderName = HeaderName::from_static("x-debug-backend-url");
/// The backend's index.
pub const X_DEBUG_BACKEND_ID: HeaderName = HeaderName::from_static("x-debug-backend-id");
/// The frontend key that matched.
pub const X_DEBUG_FRONTEND_KEY: HeaderName = HeaderName::from_static("x-debug-frontend-key");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn prepared(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = headers(lines);
        let forwarding = Forwarding {
            origin: &Provenance::new(IpAddr::from([10, 0, 0, 9]), 8080, false),
            request_id_header: Some(&HeaderName::from_static("x-request-id")),
            upgrade: false,
            certificate: None,
        };
        prepare_request(&mut headers, &forwarding);
        headers
    }

    #[test]
    fn the_client_is_appended_to_all_lines_joined() {
        let all = prepared(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2, 3.3.3.3")]);
        assert_eq!(all.get_all("x-forwarded-for").iter().count(), 1);
        assert_eq!(all["x-forwarded-for"], "1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.9");
        assert_eq!(prepared(&[])["x-forwarded-for"], "10.0.0.9");
    }

    #[test]
    fn what_the_client_already_knows_is_kept() {
        let all = prepared(&[("x-forwarded-proto", "https"), ("x-request-id", "mine")]);
        assert_eq!(
            (all["x-forwarded-proto"].as_bytes(), all["x-request-id"].as_bytes()),
            (&b"https"[..], &b"mine"[..])
        );
        let all = prepared(&[]);
        assert_eq!(all["x-forwarded-proto"], "http");
        let id = uuid::Uuid::parse_str(all["x-request-id"].to_str().unwrap()).unwrap();
        assert_eq!(id.get_version_num(), 4);
    }

    #[test]
    fn what_nobody_has_said_of_the_client_is_added() {
        let added = [
            ("x-forwarded-proto", "http"),
            ("x-forwarded-protocol", "http"),
            ("x-forwarded-port", "8080"),
            ("x-real-ip", "10.0.0.9"),
        ];
        for (name, value) in added {
            assert_eq!(prepared(&[])[name], value);
            let empty = prepared(&[(name, "")]);
            assert_eq!(empty.get_all(name).iter().collect::<Vec<_>>(), [value], "an empty line says nothing");
            assert_eq!(prepared(&[(name, "said before")])[name], "said before");
        }
    }

    #[test]
    fn connection_removes_what_it_names_but_nothing_of_ours() {
        let all = prepared(&[
            ("host", "a"),
            ("connection", "close, X-Secret, host"),
            ("connection", "x-forwarded-for,x-request-id, x-forwarded-proto"),
            ("x-secret", "1"),
            ("x-forwarded-for", "6.6.6.6"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip"),
            ("proxy-authorization", "Basic eA=="),
        ]);
        assert_eq!(all["host"], "a");
        assert_eq!(all["x-forwarded-for"], "10.0.0.9");
        assert!(all.contains_key("x-request-id") && all.contains_key("x-forwarded-proto"));
        for gone in ["connection", "x-secret", "keep-alive", "te", "proxy-authorization"] {
            assert!(!all.contains_key(gone), "{gone} is still there");
        }
    }

    #[test]
    fn only_we_say_who_a_client_is() {
        assert!(
            !prepared(&[("x-forwarded-client-cert", "Subject=\"CN=admin\"")]).contains_key("x-forwarded-client-cert")
        );
        let mut all = headers(&[("x-forwarded-client-cert", "forged"), ("connection", "x-forwarded-client-cert")]);
        let certificate = HeaderValue::from_static("Hash=0");
        let forwarding = Forwarding {
            origin: &Provenance::new(IpAddr::from([10, 0, 0, 9]), 8443, true),
            request_id_header: None,
            upgrade: false,
            certificate: Some(&certificate),
        };
        prepare_request(&mut all, &forwarding);
        assert_eq!(
            (all["x-forwarded-client-cert"].as_bytes(), all["x-forwarded-proto"].as_bytes()),
            (&b"Hash=0"[..], &b"https"[..])
        );
        prepare_trailers(&mut all);
        assert!(!all.contains_key("x-forwarded-client-cert"));
    }

    #[test]
    fn split_cookies_become_one_line() {
        let mut all = headers(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3; d=4")]);
        join_cookies(&mut all);
        assert_eq!(all.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3; d=4"]);
        let mut all = headers(&[("cookie", "a=1")]);
        join_cookies(&mut all);
        assert_eq!(all["cookie"], "a=1");
    }

    #[test]
    fn trailers_stay_possible() {
        assert_eq!(prepared(&[("te", "gzip, Trailers")])["te"], "trailers");
    }

    #[test]
    fn a_backend_known_by_name_is_addressed_by_it() {
        let mut all = headers(&[("host", "www.example.com:80")]);
        let original = all["host"].clone();
        let replaced = address_request(&mut all, &original, Some(&HeaderValue::from_static("name.internal")));
        assert_eq!(
            (all["host"].as_bytes(), all["x-host"].as_bytes()),
            (&b"name.internal"[..], &b"www.example.com:80"[..])
        );
        assert_eq!(all["x-forwarded-host"], "www.example.com:80");
        replaced.put_back(&mut all);
        address_request(&mut all, &original, None);
        assert!(!all.contains_key("x-host") && !all.contains_key("x-forwarded-host"));
        assert_eq!(all["host"], "www.example.com:80");
    }

    #[test]
    fn websocket_is_recognised_in_any_case_and_list() {
        let wants = |version, value: &str| {
            wants_websocket(&Request::builder().version(version).header("upgrade", value).body(()).unwrap())
        };
        assert!(wants(Version::HTTP_11, "WebSocket"));
        assert!(wants(Version::HTTP_11, "h2c, websocket"));
        assert!(!wants(Version::HTTP_11, "h2c"));
        assert!(!wants(Version::HTTP_10, "websocket"));
    }

    proptest! {
        #[test]
        fn whatever_connection_names_our_headers_are_there(tokens in "[ -~]{0,60}") {
            let all = prepared(&[("connection", &tokens), ("host", "a")]);
            for ours in ["host", "x-forwarded-for", "x-forwarded-proto", "x-request-id"] {
                prop_assert!(all.contains_key(ours));
            }
            prop_assert!(!all.contains_key("connection"));
        }
    }
}
