//! Requests over HTTP/2, as the backend behind HTTP/1.1 and the logs see them.

use std::{
    collections::BTreeSet,
    sync::{Arc, Barrier},
};

use http::{Method, Request, Version, request};

use super::support::{Authority, Backend, Http2, Response, Stack, curl, wait_until};

pub const NAME: &str = "http2.test";

/// A stack that serves [`NAME`] over TLS.
pub struct Site {
    pub stack: Stack,
    pub authority: Authority,
}

impl Site {
    /// With these backends; the access log goes to the standard output.
    pub fn start(arguments: &[&str], backends: &[&str]) -> Self {
        let stack = Stack::start(&[&["--tls-listen=127.0.0.1:0", "--access-log=stdout"], arguments].concat());
        let authority = Authority::new();
        authority.issue(&[NAME]).install(&stack.master, NAME);
        stack.list(NAME, backends);
        stack.planb.wait_for_log("a certificate is put into service");
        Self { stack, authority }
    }

    pub fn connect(&self) -> Http2 {
        Http2::connect(&self.authority, self.stack.planb.tls_address(), NAME)
    }

    /// The lines of the access log that contain `text`, once there are `count` of them.
    pub fn lines(&self, text: &str, count: usize) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        wait_until(&format!("{count} lines tell of {text}"), || {
            lines = self.stack.planb.stdout();
            lines.retain(|line| line.contains(text));
            lines.len() >= count
        });
        assert_eq!(lines.len(), count, "{lines:#?}");
        lines
    }

    /// Checks that a new client is served, and that nothing has panicked.
    pub fn is_well(&self) {
        assert_eq!(self.connect().ask(get("/well")).status, 200);
        let log = self.stack.planb.log();
        assert!(!log.iter().any(|line| line.contains("panicked")), "{log:#?}");
    }
}

/// A request for a path of [`NAME`].
pub fn get(path: &str) -> Request<()> {
    to(path).body(()).unwrap()
}

/// The same, to be continued.
pub fn to(path: &str) -> request::Builder {
    Request::builder().uri(format!("https://{NAME}{path}"))
}

/// The same with another method.
pub fn with(method: &str, path: &str) -> request::Builder {
    to(path).method(method)
}

/// What an echoing backend says a request's header was, all lines of it.
fn echoed(response: &Response, name: &str) -> Vec<String> {
    let text = response.text();
    let lines = text.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
    lines.filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).collect()
}

#[test]
fn method_path_and_query_reach_the_backend_byte_for_byte() {
    let backend = Backend::echo();
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/a%20b/../c//d;e=f?x=1&y=%2F&&z=?"),
        ("GET", "/?"),
        ("GET", "/%ff%00\"{}"),
        ("PROPFIND", "/dav"),
        ("M-SEARCH", "/!$&'()*+,-._~:@"),
        ("get", "/lower"),
        ("TRACE", "/trace"),
    ] {
        let response = client.ask(with(method, path).body(()).unwrap());
        assert!(response.text().starts_with(&format!("{method} {path} HTTP/1.1\r\n")), "{}", response.text());
    }
    let request = Request::builder().method(Method::OPTIONS).uri(format!("https://{NAME}")).body(()).unwrap();
    let text = client.ask(request).text();
    assert!(text.starts_with("OPTIONS * HTTP/1.1\r\n") || text.starts_with("OPTIONS / HTTP/1.1\r\n"), "{text}");
    assert_eq!(backend.connections(), 1, "the connection to the backend is kept");
}

#[test]
fn the_authority_becomes_the_host_as_sent() {
    let backend = Backend::echo();
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    for authority in ["http2.test", "http2.test:8443", "HTTP2.Test", "http2.test.", "Http2.TEST.:443"] {
        let request = Request::builder().uri(format!("https://{authority}/")).body(()).unwrap();
        let response = client.ask(request);
        assert_eq!(echoed(&response, "host"), [authority], "{}", response.text());
        assert_eq!(echoed(&response, "x-forwarded-proto"), ["https"]);
    }
    site.stack.list("named.test", &[&format!("http://localhost:{}", backend.address().port())]);
    let request =
        Request::builder().uri("https://Named.test:1/").header("x-forwarded-host", "forged").body(()).unwrap();
    let response = client.ask(request);
    assert_eq!(echoed(&response, "host"), ["localhost"]);
    assert_eq!(echoed(&response, "x-host"), ["Named.test:1"]);
    assert_eq!(echoed(&response, "x-forwarded-host"), ["Named.test:1"]);
}

#[test]
fn a_host_header_must_agree_with_the_authority() {
    let backend = Backend::echo();
    let site = Site::start(&[], &[&backend.url()]);
    site.stack.list("other.test", &[&backend.url()]);
    let mut client = site.connect();
    for (host, status) in [
        (NAME, 200),
        ("HTTP2.test", 200),
        ("http2.test:443", 200),
        ("other.test", 400),
        ("http2.test:444", 400),
        ("http2.test, other.test", 400),
        ("", 400),
    ] {
        let response = client.ask(to("/").header("host", host).body(()).unwrap());
        assert_eq!(response.status, status, "{host}");
    }
    let twice = to("/").header("host", NAME).header("host", NAME).body(()).unwrap();
    assert_eq!(client.ask(twice).status, 400);

    // Of this version the library knows that it has no :authority.
    let without = |host: Option<&str>| {
        let mut request = Request::builder().uri("/").version(Version::HTTP_11);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        request.body(()).unwrap()
    };
    assert_eq!(echoed(&client.ask(without(Some(NAME))), "host"), [NAME]);
    assert_eq!(client.ask(without(None)).status, 400);
    let request = Request::builder().uri(format!("https://user@{NAME}/")).body(()).unwrap();
    assert_eq!(client.ask(request).status, 400, "a user is no part of an :authority");
    assert_eq!(backend.requests().len(), 4);
}

#[test]
fn what_we_say_of_a_request_is_added() {
    let backend = Backend::echo();
    let site = Site::start(&["--request-id-header=X-Request-Id"], &[&backend.url()]);
    let mut client = site.connect();
    let response = client.ask(get("/"));
    assert_eq!(echoed(&response, "x-forwarded-for"), ["127.0.0.1"]);
    let id = echoed(&response, "x-request-id").remove(0);
    assert_eq!(uuid::Uuid::parse_str(&id).unwrap().get_version_num(), 4);
    assert_eq!(response.header("x-debug-backend-url"), None);

    let request = to("/known")
        .header("x-forwarded-for", "1.1.1.1")
        .header("x-forwarded-for", "2.2.2.2, 3.3.3.3")
        .header("x-forwarded-proto", "http")
        .header("x-request-id", "mine")
        .header("x-forwarded-client-cert", "forged")
        .header("x-debug-router", "")
        .body(())
        .unwrap();
    let response = client.ask(request);
    assert_eq!(echoed(&response, "x-forwarded-for"), ["1.1.1.1, 2.2.2.2, 3.3.3.3, 127.0.0.1"]);
    assert_eq!(echoed(&response, "x-forwarded-proto"), ["http"]);
    assert_eq!(echoed(&response, "x-request-id"), ["mine"]);
    assert!(!response.text().to_lowercase().contains("client-cert") && !response.text().contains("ebug-"));
    let debug = ["url", "id"].map(|name| response.header(&format!("x-debug-backend-{name}")));
    assert_eq!(debug, [Some(&*backend.url()), Some("0")]);
    assert_eq!(response.header("x-debug-frontend-key"), Some(NAME));
    assert!(
        site.lines(" /known ", 1)[0].contains("\"X-Request-Id:mine\" \"http2.test\" \"1.1.1.1, 2.2.2.2, 3.3.3.3\"")
    );
}

#[test]
fn cookies_are_one_line_again() {
    let backend = Backend::echo();
    let site = Site::start(&[], &[&backend.url()]);
    let request =
        to("/").header("cookie", "a=1").header("cookie", "b=2; c=3").header("cookie", "d=4").body(()).unwrap();
    let response = site.connect().ask(request);
    assert_eq!(echoed(&response, "cookie"), ["a=1; b=2; c=3; d=4"]);
}

/// Browsers send each cookie as a line of its own (RFC 9113 section 8.2.3) and keep up to 180 of a site, which are one line
/// in HTTP/1.1.
#[test]
fn a_browser_with_many_cookies_is_served() {
    let backend = Backend::echo();
    let site = Site::start(&[], &[&backend.url()]);
    let request = (0..150).fold(to("/"), |request, number| request.header("cookie", format!("c{number}=1")));
    let response = site.connect().ask(request.body(()).unwrap());
    assert_eq!(response.status, 200);
    assert_eq!(echoed(&response, "cookie")[0].matches("; ").count(), 149);
}

#[test]
fn headers_of_one_connection_stay_on_it() {
    let backend = Backend::start(|exchange| {
        exchange.read_body();
        let text = exchange.head.clone();
        exchange.send(format!(
            "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Private\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\n\
             Proxy-Connection: keep-alive\r\nX-Private: 1\r\nX-Public: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
             Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{text}\r\n0\r\n\r\n",
            text.len()
        ))
    });
    let site = Site::start(&[], &[&backend.url()]);
    let response =
        site.connect().ask(to("/").header("te", "trailers").header("proxy-authorization", "x").body(()).unwrap());
    for gone in ["connection", "keep-alive", "upgrade", "proxy-connection", "transfer-encoding", "x-private"] {
        assert_eq!(response.header(gone), None, "{gone}");
    }
    assert_eq!(response.header("x-public"), Some("2"));
    assert_eq!(response.headers.iter().filter(|(name, _)| name == "set-cookie").count(), 2);
    assert_eq!(echoed(&response, "te"), ["trailers"]);
    for gone in ["connection", "keep-alive", "upgrade", "proxy-authorization", "transfer-encoding"] {
        assert!(echoed(&response, gone).is_empty(), "{gone}");
    }
    assert!(!response.text().contains("\r\n:"), "{}", response.text());
}

#[test]
fn many_streams_at_once_get_their_own_answers() {
    const STREAMS: usize = 128;
    let all = Arc::new(Barrier::new(STREAMS));
    let backend = Backend::start(move |exchange| {
        let body = exchange.read_body();
        if !exchange.head.contains("/well ") {
            all.wait();
        }
        let path = exchange.head.split(' ').nth(1).unwrap().as_bytes().to_vec();
        exchange.answer("200 OK", "", &[&path, &b" "[..], &body].concat());
        true
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    assert_eq!(client.ask(get("/well")).status, 200);
    assert_eq!(client.most_streams(), STREAMS);
    // The second round finds as many kept connections to the backend.
    for round in 0..2 {
        let path = |number: usize| format!("/{round}/{number}");
        let mut streams: Vec<_> =
            (0..STREAMS).map(|number| client.open(with("POST", &path(number)).body(()).unwrap())).collect();
        for (number, stream) in streams.iter_mut().enumerate() {
            stream.send(format!("first of {number}, "));
        }
        for (number, stream) in streams.iter_mut().enumerate().rev() {
            stream.send(format!("second of {number}"));
            stream.finish();
        }
        for (number, stream) in streams.iter_mut().enumerate() {
            let expected = format!("{} first of {number}, second of {number}", path(number));
            assert_eq!(stream.response().text(), expected);
        }
        let lines = site.lines(&format!("\"POST /{round}/"), STREAMS);
        let paths: BTreeSet<&str> = lines.iter().filter_map(|line| line.split(' ').nth(6)).collect();
        assert_eq!(paths.len(), STREAMS, "a line a request");
    }
    assert_eq!(site.stack.planb.count("planb_reverseproxy_connections_current_open"), 1);
}

#[test]
fn the_logs_and_metrics_tell_of_each_request() {
    let backend = Backend::start(|exchange| {
        let body = vec![b'x'; if exchange.head.contains("/large") { 100_000 } else { 5 }];
        exchange.answer("202 Accepted", "", &body);
        true
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    let request =
        to("/large?a=secret").header("referer", "http://from/").header("user-agent", "a \"b\"").body(()).unwrap();
    assert_eq!(client.ask(request).body.len(), 100_000);
    let line = site.lines("/large", 1).remove(0);
    let expected = r#""GET /large HTTP/2.0" 202 100000 "http://from/" "a \"b\"" ":" "http2.test" """#;
    assert!(line.starts_with("::ffff:127.0.0.1 - - [") && line.contains(expected), "{line}");

    let request = Request::builder().uri("https://nowhere.test/lost").body(()).unwrap();
    assert_eq!(client.ask(request).text(), "no such route");
    let line = site.lines("/lost", 1).remove(0);
    assert!(line.contains(r#""GET /lost HTTP/2.0" 400 13 "" "" ":" "" """#), "{line}");
    assert!(site.stack.planb.wait_for_log("ERROR in nowhere.test").contains(" -> ? - /lost - : - no such route"));

    let connect = Request::builder().method("CONNECT").uri("http2.test:443").body(()).unwrap();
    assert_eq!(client.ask(connect).status, 400);
    assert!(site.lines("\"CONNECT ", 1)[0].contains("\"CONNECT http2.test:443 HTTP/2.0\" 400 0 "));

    let ping = Request::builder().uri("https://__ping__/").body(()).unwrap();
    assert_eq!(client.ask(ping).text(), "OK");
    let responses = |status| {
        site.stack.planb.count(&format!("planb_reverseproxy_backends_responses_total{{status_code=\"{status}\"}}"))
    };
    assert_eq!((responses("202"), responses("400")), (1, 2));
    assert_eq!(site.stack.planb.count("planb_reverseproxy_http_request_duration_seconds_count"), 3);
    assert!(!site.stack.planb.stdout().iter().any(|line| line.contains("__ping__")));
}

#[test]
fn curl_sends_and_receives_over_one_connection() {
    let backend = Backend::echo();
    let site = Site::start(&[], &[&backend.url()]);
    let body = "b".repeat(300_000);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &body).unwrap();
    let data = format!("@{}", file.path().display());
    let arguments = ["--http2", "--data-binary", &data, "--write-out", "\n%{http_version} %{num_connects}"];
    let output = curl(&site.authority, site.stack.planb.tls_address(), NAME, "/upload-[1-3]", &arguments);
    let text = String::from_utf8_lossy(&output.stdout);
    for number in 1..=3 {
        assert!(text.contains(&format!("POST /upload-{number} HTTP/1.1\r\n")), "{output:?}");
    }
    assert_eq!(text.matches(&body).count(), 3);
    assert_eq!((text.matches("\n2 1").count(), text.matches("\n2 0").count()), (1, 2), "one connection");
}
