//! What a backend sees of a request, and a client of a response, apart from their bodies.

use super::support::{Backend, Stack, wait_until};

const HOST: &str = "headers.test";

/// A proxy with a backend that answers `HOST`'s requests with their own heads.
fn echo(arguments: &[&str]) -> (Stack, Backend) {
    let (stack, backend) = (Stack::start(arguments), Backend::echo());
    stack.route(HOST, &[&backend]);
    (stack, backend)
}

impl Stack {
    /// The head that a backend of `HOST` receives when a client sends this one; both without their final empty lines.
    fn head_of(&self, request: &str) -> String {
        let mut client = self.planb.connect();
        client.send(format!("{request}\r\n\r\n"));
        let response = client.response();
        assert_eq!(response.status, 200, "{request} was answered {response:?}");
        response.text().trim_end().to_owned()
    }
}

/// All values of a header, in whatever spelling of its name.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let lines = head.split("\r\n").filter_map(|line| line.split_once(": "));
    lines.filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

/// A head with these further lines.
fn with(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{lines}")
}

#[test]
fn method_path_and_query_arrive_byte_for_byte() {
    let (stack, _backend) = echo(&[]);
    for line in [
        "GET /",
        "GET /a%2Fb%2fc/%zz/%00",
        "GET //double//slashes//",
        "GET /./a/../b/;p=1?a=b?c&d=/../e&&=",
        "GET /?",
        "GET /a|b^{c}~!$&'()*+,;=:@[]\"",
        "GET /caf\u{e9}?q=\u{e9}`",
        "DELETE /thing",
        "PROPFIND /dav",
        "get /lower-case-method",
        "M-SEARCH /x",
        "OPTIONS *",
    ] {
        let head = stack.head_of(&format!("{line} HTTP/1.1\r\nHost: {HOST}"));
        assert_eq!(head.split("\r\n").next().unwrap(), format!("{line} HTTP/1.1"));
    }
}

#[test]
fn an_absolute_target_is_reduced_to_what_it_asks_for() {
    let (stack, _backend) = echo(&[]);
    for (target, expected) in [
        ("GET http://headers.test/a?b=//c", "GET /a?b=//c"),
        ("GET HTTP://HEADERS.test:80/a", "GET /a"),
        ("GET http://headers.test", "GET /"),
        ("GET http://headers.test?q", "GET /?q"),
        ("OPTIONS http://headers.test/", "OPTIONS /"),
    ] {
        let head = stack.head_of(&format!("{target} HTTP/1.1\r\nHost: {HOST}"));
        assert_eq!(head.split("\r\n").next().unwrap(), format!("{expected} HTTP/1.1"), "{target}");
        assert_eq!(values(&head, "Host"), [HOST]);
    }
}

#[test]
fn a_backend_known_by_address_gets_the_host_as_sent() {
    let (stack, _backend) = echo(&[]);
    for host in [HOST, "HEADERS.Test", "headers.test:8080", "headers.test."] {
        let head = stack.head_of(&format!("GET / HTTP/1.1\r\nHost: {host}"));
        assert_eq!(values(&head, "Host"), [host]);
        assert!(values(&head, "X-Host").is_empty() && values(&head, "X-Forwarded-Host").is_empty(), "{head}");
    }
}

#[test]
fn a_backend_known_by_name_is_addressed_by_it() {
    let (stack, backend) = (Stack::start(&[]), Backend::echo());
    stack.list(HOST, &[&format!("http://localhost:{}", backend.address().port())]);
    let head = stack.head_of("GET / HTTP/1.1\r\nHost: Headers.TEST:81\r\nX-Forwarded-Host: evil\r\nX-Host: evil");
    assert_eq!(values(&head, "Host"), ["localhost"]);
    assert_eq!(values(&head, "X-Host"), ["Headers.TEST:81"]);
    assert_eq!(values(&head, "X-Forwarded-Host"), ["Headers.TEST:81"]);
}

#[test]
fn the_client_and_its_scheme_are_passed_on() {
    let (stack, _backend) = echo(&[]);
    let head = stack.head_of(&with("Accept: */*"));
    assert_eq!(values(&head, "X-Forwarded-For"), ["127.0.0.1"]);
    assert_eq!(values(&head, "X-Forwarded-Proto"), ["http"]);

    let lines = "X-Forwarded-For: 1.1.1.1\r\nA: b\r\nx-forwarded-for: 2.2.2.2, ::3\r\nX-Forwarded-Proto: https";
    let head = stack.head_of(&with(lines));
    assert_eq!(values(&head, "X-Forwarded-For"), ["1.1.1.1, 2.2.2.2, ::3, 127.0.0.1"]);
    assert_eq!(values(&head, "X-Forwarded-Proto"), ["https"]);
}

#[test]
fn what_hipache_tells_of_a_client_is_told_where_nobody_has() {
    let (stack, _backend) = echo(&[]);
    let port = stack.planb.address().port().to_string();
    let told = [
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Protocol", "http"),
        ("X-Forwarded-Port", &port),
        ("X-Real-IP", "127.0.0.1"),
    ];
    for (name, value) in told {
        for empty in ["A: b".to_owned(), format!("{name}:"), format!("{name}:  ")] {
            assert_eq!(values(&stack.head_of(&with(&empty)), name), [value], "after {empty:?}");
        }
        assert_eq!(values(&stack.head_of(&with(&format!("{name}: said"))), name), ["said"]);
    }
}

#[test]
fn a_thousand_lines_and_a_megabyte_pass_both_ways() {
    let (stack, backend) = (
        Stack::start(&[]),
        Backend::start(|exchange| {
            let received = exchange.head.lines().filter(|line| line.starts_with("X-")).map(str::len).sum::<usize>();
            let (many, long) = ("X-Many: y\r\n".repeat(900), format!("X-Long: {}\r\n", "z".repeat(1_000_000)));
            let lines = if exchange.head.contains(" /many ") { many } else { long };
            exchange.answer("200 OK", &lines, received.to_string().as_bytes());
            true
        }),
    );
    stack.route(HOST, &[&backend]);
    for (path, line, count) in
        [("/many", "X-A: b\r\n".to_owned(), 900), ("/long", format!("X-A: {}\r\n", "c".repeat(1_040_000)), 1)]
    {
        let mut client = stack.planb.connect();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{}\r\n", line.repeat(count)));
        let response = client.response();
        assert_eq!(response.status, 200, "{path}");
        assert!(response.text().parse::<usize>().unwrap() >= (line.len() - 2) * count, "{path}");
        let answered = response.headers.iter().filter(|(name, _)| name.starts_with("X-"));
        assert_eq!(
            answered.map(|(_, value)| value.len()).sum::<usize>(),
            if path == "/many" { 900 } else { 1_000_000 }
        );
    }
}

#[test]
fn every_request_gets_an_id_or_keeps_its_own() {
    let (stack, _backend) = echo(&["--request-id-header=X-Request-ID"]);
    let id = |lines: &str| match values(&stack.head_of(&with(lines)), "X-Request-Id")[..] {
        [id] => id.to_owned(),
        ref ids => panic!("the request's ids are {ids:?}"),
    };
    assert_eq!(id("x-request-id: my own"), "my own");
    let added = [id("A: b"), id("X-Request-Id: "), id("Connection: X-Request-Id\r\nX-Request-Id: 7")];
    for id in &added {
        assert_eq!(uuid::Uuid::parse_str(id).unwrap().get_version_num(), 4, "{id}");
    }
    assert!(added[0] != added[1] && added[1] != added[2]);
}

#[test]
fn a_debugged_request_learns_where_it_went() {
    let (stack, backend) = (Stack::start(&[]), Backend::echo());
    stack.list("*.headers.test", &["http://127.0.0.1:0", &backend.url()]);
    let mut client = stack.planb.connect();
    client.send("GET / HTTP/1.1\r\nHost: a.headers.test\r\nx-debug-router: 0\r\n\r\n");
    let response = client.response();
    assert_eq!(response.header("X-Debug-Backend-Url"), Some(backend.url().as_str()));
    assert_eq!(response.header("X-Debug-Backend-Id"), Some("1"));
    assert_eq!(response.header("X-Debug-Frontend-Key"), Some("*.headers.test"));
    assert!(!response.text().to_lowercase().contains("x-debug-router"), "{}", response.text());

    let response = client.get("a.headers.test", "/");
    assert!(!response.headers.iter().any(|(name, _)| name.starts_with("X-Debug")), "{response:?}");
}

#[test]
fn headers_of_the_clients_connection_stay_on_it() {
    let (stack, _backend) = echo(&[]);
    let head = stack.head_of(&with(
        "Connection: Keep-Alive, X-Secret\r\nKeep-Alive: 5\r\nProxy-Connection: keep-alive\r\nX-Secret: 1\r\n\
         Proxy-Authorization: Basic eA==\r\nTE: gzip\r\nUpgrade: h2c\r\nconnection: x-other\r\nX-Other: 2\r\nX-Kept: 3\r\n\
         Cookie: a\r\nCookie: b\r\nX-Empty: \r\nX-High: \u{e9}",
    ));
    for gone in ["onnection:", "eep-alive", "ecret", "roxy-", "te:", "pgrade", "ther", "transfer-encoding"] {
        assert!(!head.to_lowercase().contains(gone), "{gone} is in {head}");
    }
    for kept in ["X-Kept: 3", "Cookie: a\r\nCookie: b", "X-Empty: ", "X-High: \u{e9}"] {
        assert!(head.contains(kept), "{kept} is not in {head}");
    }
    assert!(!head.contains("User-Agent") && !head.contains("Accept-Encoding"), "{head}");
}

#[test]
fn connection_cannot_remove_what_the_proxy_adds() {
    let (stack, _backend) = echo(&["--request-id-header=X-Request-Id"]);
    let head = stack.head_of(&with(
        "Connection: close, Host, X-Forwarded-For, X-Forwarded-Proto, X-Request-Id\r\nX-Forwarded-For: 6.6.6.6",
    ));
    assert_eq!(values(&head, "Host"), [HOST]);
    assert_eq!(values(&head, "X-Forwarded-For"), ["127.0.0.1"]);
    assert_eq!(values(&head, "X-Forwarded-Proto"), ["http"]);
    assert_eq!(values(&head, "X-Request-Id").len(), 1);

    let mut client = stack.planb.connect();
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Content-Length\r\nContent-Length: 4\r\n\r\nbody"
    ));
    assert!(client.response().text().ends_with("body"), "the body's framing is the proxy's own affair");
}

#[test]
fn header_names_are_told_both_ways() {
    let stack = Stack::start(&[]);
    let backend = Backend::start(|exchange| {
        let head = exchange.head.clone();
        exchange.answer("200 OK", "x-backend-says: 1\r\netag: \"a\"\r\nSET-COOKIE: b\r\n", head.as_bytes());
        true
    });
    stack.route(HOST, &[&backend]);
    let mut client = stack.planb.connect();
    client.send(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nx-client-says: 1\r\nACCEPT-language: de\r\n\r\n"));
    let response = client.response();
    // Names that others gave stay as they are; ours are in title case.
    for line in ["x-client-says: ", "ACCEPT-language: ", "Host: ", "X-Forwarded-For: ", "X-Forwarded-Proto: "] {
        assert!(response.text().contains(&format!("\r\n{line}")), "{line} is not in {}", response.text());
    }
    for name in ["X-Backend-Says", "Etag", "Set-Cookie", "Content-Length"] {
        assert!(response.header(name).is_some(), "{name} is not among {:?}", response.headers);
    }
}

#[test]
fn headers_of_the_backends_connection_stay_on_it() {
    let stack = Stack::start(&[]);
    let backend = Backend::start(|exchange| {
        let headers = "Connection: keep-alive, X-Secret\r\nKeep-Alive: timeout=5\r\nX-Secret: 1\r\nProxy-Authenticate: x\r\n\
                       Upgrade: h2c\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nServer: s\r\nX-High: \u{e9}\r\n";
        exchange.answer("299 Strange Reason", headers, b"");
        true
    });
    stack.route(HOST, &[&backend]);
    let response = stack.planb.connect().get(HOST, "/");
    assert_eq!(response.status, 299);
    for gone in ["connection", "keep-alive", "x-secret", "proxy-authenticate", "upgrade"] {
        assert_eq!(response.header(gone), None, "{gone} is still there");
    }
    let cookies: Vec<&str> =
        response.headers.iter().filter(|(name, _)| name == "Set-Cookie").map(|(_, value)| value.as_str()).collect();
    assert_eq!(cookies, ["a", "b"]);
    assert_eq!((response.header("server"), response.header("x-high")), (Some("s"), Some("\u{e9}")));
}

#[test]
fn redirects_are_the_clients_to_follow() {
    let stack = Stack::start(&[]);
    let backend = Backend::start(|exchange| {
        let status = exchange.head.split(['/', ' ']).nth(2).unwrap().to_owned();
        exchange.answer(&format!("{status} Elsewhere"), "Location: http://elsewhere.test/x?y\r\n", b"");
        true
    });
    stack.list(HOST, &[&backend.url()]);
    let mut client = stack.planb.connect();
    for status in [301, 302, 303, 307, 308] {
        let response = client.get(HOST, &format!("/{status}"));
        assert_eq!((response.status, response.header("location")), (status, Some("http://elsewhere.test/x?y")));
    }
    assert_eq!(backend.requests().len(), 5);
}

#[test]
fn a_client_of_http_1_0_is_understood() {
    let stack = Stack::start(&[]);
    let backend = Backend::start(|exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
        true
    });
    stack.route(HOST, &[&backend]);
    let mut client = stack.planb.connect();
    client.send(format!("GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n"));
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (200, "abcde"));
    assert_eq!(response.header("transfer-encoding"), None);
    assert!(backend.requests().last().unwrap().starts_with("GET / HTTP/1.1\r\n"));

    let mut client = stack.planb.connect();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (400, "no such route"));
    assert_eq!(client.rest().unwrap(), b"");
}

#[test]
fn a_client_of_http_1_0_may_keep_its_connection() {
    let (stack, _backend) = echo(&[]);
    let mut client = stack.planb.connect();
    for _ in 0..2 {
        client.send(format!("GET / HTTP/1.0\r\nHost: {HOST}\r\nConnection: keep-alive\r\n\r\n"));
        let response = client.response();
        assert_eq!(response.header("connection"), Some("keep-alive"));
        assert!(response.text().contains("GET / HTTP/1.1"), "{}", response.text());
    }
}

#[test]
fn a_backend_of_http_1_0_is_understood() {
    let stack = Stack::start(&[]);
    let backend = Backend::start(|exchange| {
        exchange.send("HTTP/1.0 200 OK\r\n\r\nuntil the end");
        false
    });
    stack.route(HOST, &[&backend]);
    let mut client = stack.planb.connect();
    for _ in 0..2 {
        let response = client.get(HOST, "/");
        assert_eq!((response.status, response.text().as_str()), (200, "until the end"));
    }
}

#[test]
fn responses_without_a_body_end_with_their_heads() {
    let stack = Stack::start(&["--workers=1"]);
    let backend = Backend::start(|exchange| {
        let status = exchange.head.split(['/', ' ']).nth(2).unwrap();
        exchange.send(match status {
            "204" => "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n",
            "304" => "HTTP/1.1 304 Not Modified\r\nETag: \"e\"\r\nContent-Length: 10\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
        });
        true
    });
    stack.list(HOST, &[&backend.url()]);
    let mut client = stack.planb.connect();
    // Each answer is read as a head alone: what does not end there is taken for the next.
    for _ in 0..2 {
        client.send(format!("HEAD / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        let response = client.head().unwrap();
        assert_eq!((response.status, response.header("content-length")), (200, Some("10")));
        client.send(format!("GET /204 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        let response = client.head().unwrap();
        assert_eq!((response.status, response.header("content-length")), (204, None));
        assert_eq!(response.header("x-a"), Some("b"));
        client.send(format!("GET /304 HTTP/1.1\r\nHost: {HOST}\r\nIf-None-Match: \"e\"\r\n\r\n"));
        let response = client.head().unwrap();
        assert_eq!((response.status, response.header("etag")), (304, Some("\"e\"")));
    }
    wait_until("its connections are kept", || {
        stack.planb.count("planb_reverseproxy_pool_idle_connections") == backend.connections() as u64
    });
}

#[test]
fn trailers_are_passed_on_both_ways() {
    let stack = Stack::start(&[]);
    let backend = Backend::start(|exchange| {
        let mut body = String::new();
        while !body.ends_with("0\r\n\r\n") && !body.ends_with("X-Sum: 7\r\n\r\n") {
            std::io::BufRead::read_line(exchange.stream, &mut body).unwrap();
        }
        exchange.send("HTTP/1.1 200 OK\r\nTrailer: X-Check\r\nTransfer-Encoding: chunked\r\n\r\n");
        exchange.send(format!("{:x}\r\n{body}\r\n0\r\nX-Check: 9\r\n\r\n", body.len()));
        true
    });
    stack.list(HOST, &[&backend.url()]);
    let mut client = stack.planb.connect();
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\
         Connection: close, TE\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n"
    ));
    let response = String::from_utf8(client.rest().unwrap()).unwrap();
    assert!(response.contains("2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n"), "the backend got no trailers: {response}");
    assert!(response.ends_with("0\r\nX-Check: 9\r\n\r\n"), "the client got no trailers: {response}");
    let head = backend.requests().pop().unwrap();
    assert_eq!((values(&head, "Te"), values(&head, "Trailer")), (vec!["trailers"], vec!["X-Sum"]));
}
