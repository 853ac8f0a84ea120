//! Requests that two readers could understand differently: refused, and nothing behind them is ever a request.

use super::support::{Backend, Stack};

const HOST: &str = "malformed.test";

/// What follows each request: if a backend ever sees it, a request was smuggled.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: malformed.test\r\nConnection: close\r\n\r\n";

/// Complete requests that must be refused, with what follows them when they are understood wrongly.
fn malformed() -> Vec<(&'static str, String)> {
    let get = |lines: &str| format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n");
    let post = |lines: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n{body}");
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    vec![
        ("no Host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("two Hosts", get("Host: other.test\r\n")),
        ("the same Host twice", get(&format!("host: {HOST}\r\n"))),
        ("a Host with a path", format!("GET / HTTP/1.1\r\nHost: {HOST}/a\r\n\r\n")),
        ("a Host with a blank", format!("GET / HTTP/1.1\r\nHost: {HOST} a\r\n\r\n")),
        ("a Host with two ports", format!("GET / HTTP/1.1\r\nHost: {HOST}:1:2\r\n\r\n")),
        ("an absolute target of another host", get("").replacen('/', "http://other.test/", 1)),
        ("an absolute target of another port", get("").replacen('/', "http://malformed.test:81/", 1)),
        ("an absolute target of another scheme", get("").replacen('/', "ftp://malformed.test/", 1)),
        ("a target that is no path", get("").replacen("/ ", "path ", 1)),
        ("a target with a fragment", get("").replacen("/ ", "/path#fragment ", 1)),
        ("a target with a blank", get("").replacen("/ ", "/a b ", 1)),
        ("no target", get("").replacen(" / ", " ", 1)),
        ("CONNECT", format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n")),
        ("CONNECT to a path", get("").replacen("GET", "CONNECT", 1)),
        ("a method that is no token", get("").replacen("GET", "GE(T", 1)),
        ("HTTP/1.2 of lower case", get("").replacen("HTTP/1.1", "http/1.1", 1)),
        ("HTTP/2.0", get("").replacen("HTTP/1.1", "HTTP/2.0", 1)),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        ("HTTP/0.9", "GET /\r\n".to_owned()),
        ("a bare LF after the request line", get("").replacen("\r\n", "\n", 1)),
        ("a bare LF after a header", get("A: b\nC: d\r\n")),
        ("bare LFs everywhere", get("A: b\r\n").replace("\r\n", "\n")),
        ("a bare LF at the end", get("A: b\r\n").replace("b\r\n\r\n", "b\r\n\n")),
        ("a bare CR in a header", get("A: b\rTransfer-Encoding: chunked\r\n")),
        ("a NUL in a value", get("A: b\0c\r\n")),
        ("a NUL in a name", get("A\0: b\r\n")),
        ("a NUL in the target", get("").replacen("/ ", "/\0 ", 1)),
        ("a folded line", get("A: b\r\n c\r\n")),
        ("a folded first line", format!("GET / HTTP/1.1\r\n A: b\r\nHost: {HOST}\r\n\r\n")),
        ("a blank before a colon", get("A : b\r\n")),
        ("a blank before the framing's colon", post("Content-Length : 4\r\n", "body")),
        ("a header without a colon", get("A\r\n")),
        ("a header without a name", get(": b\r\n")),
        ("a length, then an encoding", post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        ("an encoding, then a length", post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "0\r\n\r\n")),
        ("a hidden encoding and a length", post("transfer-encoding:\tchunked\r\nCONTENT-length:4\r\n", "0\r\n\r\n")),
        ("two different lengths", post("Content-Length: 4\r\nContent-Length: 5\r\n", "body")),
        ("two different lengths in one", post("Content-Length: 4, 5\r\n", "body")),
        ("a negative length", post("Content-Length: -4\r\n", "body")),
        ("a signed length", post("Content-Length: +4\r\n", "body")),
        ("a hexadecimal length", post("Content-Length: 0x4\r\n", "body")),
        ("an empty length", post("Content-Length: \r\n", "")),
        ("an overflowing length", post("Content-Length: 18446744073709551620\r\n", "body")),
        ("an unknown encoding", post("Transfer-Encoding: gzip\r\n", "")),
        ("an encoding besides chunked", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n")),
        ("an encoding on another line", post("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        ("chunked, and something after it", post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n")),
        ("chunked twice", post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n")),
        ("almost chunked", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n")),
        ("chunked, quoted", post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n")),
        ("chunked in HTTP/1.0", chunked("0\r\n\r\n").replacen("1.1", "1.0", 1)),
        ("a header of 1.1 MB", get(&format!("A: {}\r\n", "b".repeat(1_100_000)))),
        ("a target of 70 kB", get("").replacen("/ ", &format!("/{} ", "a".repeat(70_000)), 1)),
        ("1,001 headers", get(&"A: b\r\n".repeat(1_001))),
    ]
}

/// Requests whose heads are sound and whose bodies are not.
const BAD_CHUNKS: [(&str, &str); 11] = [
    ("a size that is no number", "x\r\nab\r\n0\r\n\r\n"),
    ("an empty size", "\r\nab\r\n0\r\n\r\n"),
    ("a negative size", "-2\r\nab\r\n0\r\n\r\n"),
    ("a signed size", "+2\r\nab\r\n0\r\n\r\n"),
    ("a size with a prefix", "0x2\r\nab\r\n0\r\n\r\n"),
    ("an overflowing size", "10000000000000002\r\nab\r\n0\r\n\r\n"),
    ("a size that is too small", "1\r\nab\r\n0\r\n\r\n"),
    ("a size that is too large", "3\r\nab\r\n0\r\n\r\n"),
    ("a bare LF after a size", "2\nab\r\n0\r\n\r\n"),
    ("a bare LF after data", "2\r\nab\n0\r\n\r\n"),
    ("a bare LF in an extension", "2;a\nb\r\nab\r\n0\r\n\r\n"),
];

fn start() -> (Stack, Backend) {
    let (stack, backend) = (Stack::start(&["--workers=1"]), Backend::echo_patiently());
    stack.route(HOST, &[&backend]);
    (stack, backend)
}

impl Backend {
    /// A backend that answers any request at its head.
    fn echo_patiently() -> Self {
        Self::start(|exchange| {
            exchange.answer("200 OK", "", b"");
            exchange.header("content-length").or(exchange.header("transfer-encoding")).is_none()
        })
    }
}

/// Sends all of it in pieces, followed by the request to smuggle; returns all that comes back.
fn exchange(stack: &Stack, request: &str, step: usize) -> String {
    let mut client = stack.planb.connect();
    let text = [request, SMUGGLED].concat();
    for piece in text.as_bytes().chunks(step) {
        // The proxy may have seen enough.
        if client.try_send(piece).is_err() {
            break;
        }
    }
    let answers = client.rest_or_reset().unwrap_or_else(|error| panic!("{request:?} in pieces of {step}: {error}"));
    String::from_utf8(answers).unwrap()
}

#[test]
fn a_malformed_head_is_refused_and_ends_the_connection() {
    let (stack, backend) = start();
    let mut before = backend.requests().len();
    let mut wrong = Vec::new();
    for (what, request) in malformed() {
        let steps: &[usize] = if request.len() > 2_000 { &[usize::MAX, 1_000] } else { &[usize::MAX, 7, 1] };
        for &step in steps {
            let answers = exchange(&stack, &request, step);
            let is_refused = ["HTTP/1.1 4", "HTTP/1.0 4"].iter().any(|start| answers.starts_with(start))
                && answers.matches("HTTP/1.").count() == 1;
            let seen = backend.requests().len();
            if !is_refused || seen > std::mem::replace(&mut before, seen) {
                wrong.push(format!("{what}, in pieces of {step}: {answers:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(stack.planb.metric("planb_reverseproxy_malformed_requests_total") > 0.0);
}

#[test]
fn too_many_or_too_long_headers_are_called_so() {
    let (stack, _backend) = start();
    let long = |size: usize| format!("A: {}\r\n", "b".repeat(size));
    for lines in [long(1_100_000), long(10_000_000), "A: b\r\n".repeat(1_001)] {
        let answers = exchange(&stack, &format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n"), usize::MAX);
        assert!(answers.starts_with("HTTP/1.1 431 "), "{answers}");
    }
}

#[test]
fn the_limits_of_a_head_are_the_operators() {
    let stack = Stack::start(&["--max-header-size=16384", "--max-headers=50"]);
    stack.route(HOST, &[&Backend::named("a")]);
    let ask = |lines: String| {
        let mut client = stack.planb.connect();
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n"));
        client.response().status
    };
    assert_eq!(ask(format!("A: {}\r\n", "b".repeat(16_300))), 200, "a single line of nearly all");
    assert_eq!(ask(format!("A: {}\r\n", "b".repeat(16_400))), 431);
    assert_eq!(ask("A: b\r\n".repeat(49)), 200);
    assert_eq!(ask("A: b\r\n".repeat(50)), 431, "with Host there are 51");
}

#[test]
fn a_malformed_chunk_ends_the_connection() {
    let (stack, backend) = start();
    for (what, body) in BAD_CHUNKS {
        for step in [usize::MAX, 7, 1] {
            let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n");
            let answers = exchange(&stack, &(head + body), step);
            assert!(answers.matches("HTTP/1.1 ").count() <= 1, "{what}, in pieces of {step}: {answers}");
        }
    }
    for head in backend.requests() {
        assert!(!head.contains("smuggled"), "{head}");
    }
}

#[test]
fn a_sound_request_in_any_pieces_is_no_malformed_one() {
    let (stack, backend) = start();
    for step in [usize::MAX, 7, 1] {
        let before = backend.requests().len();
        let mut client = stack.planb.connect();
        let request = format!("\r\nGET /a HTTP/1.1\r\nhOST:\t{HOST} \r\nX-Content-Length: 4\r\nA:\r\n\r\n");
        for piece in (request + SMUGGLED).as_bytes().chunks(step) {
            client.send(piece);
        }
        assert_eq!((client.response().status, client.response().status), (200, 200));
        assert_eq!(backend.requests().len() - before, 2, "in pieces of {step}");
    }
}
