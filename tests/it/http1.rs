//! HTTP/1.1 with clients, passed on as it was written.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{Mutex, mpsc},
    thread,
};

use super::support::{Backend, PATIENCE, Stack};

const HOST: &str = "plain.test";

fn start(arguments: &[&str]) -> (Stack, Backend) {
    let stack = Stack::start(arguments);
    let backend = Backend::start(|exchange| {
        exchange.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
        let body = exchange.read_body();
        let text = [exchange.head.as_bytes(), b"\r\n\r\n", &body].concat();
        exchange.answer("200 Fine by me", "x-oDD: 1\r\n", &text);
        true
    });
    stack.route(HOST, &[&backend]);
    (stack, backend)
}

#[test]
fn targets_and_names_reach_the_backend_as_they_were_written() {
    let (stack, _backend) = start(&[]);
    let mut client = stack.planb.connect();
    for target in ["/a\"<>|{}^`\\", "/\u{e9}", "/%zz?[]", "/a//../b"] {
        client.send(format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\nx-mIXED: 1\r\n\r\n"));
        assert_eq!(client.head().unwrap().status, 103);
        let response = client.response();
        assert!(response.text().starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{}", response.text());
        assert!(response.text().contains("\r\nx-mIXED: 1\r\n"), "{}", response.text());
        assert!(response.headers.contains(&("x-oDD".to_owned(), "1".to_owned())), "{:?}", response.headers);
    }
}

#[test]
fn an_informational_response_is_passed_on_to_those_who_know_of_it() {
    let (stack, _backend) = start(&[]);
    let mut client = stack.planb.connect();
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    let early = client.head().unwrap();
    assert_eq!((early.status, early.header("link")), (103, Some("</a>")));
    assert_eq!(client.response().status, 200);

    let mut client = stack.planb.connect();
    client.send(format!("GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n"));
    assert_eq!(client.response().status, 200);
}

#[test]
fn informational_responses_come_to_an_end() {
    let stack = Stack::start(&["--workers=1"]);
    let backend = Backend::start(|exchange| {
        let early = |length: usize| format!("HTTP/1.1 103 Early Hints\r\nLink: </{}>\r\n\r\n", "a".repeat(length));
        match exchange.head.split(' ').nth(1).unwrap() {
            "/endless" => while exchange.send(early(1)) {},
            "/large" => {
                exchange.send(early(20_000).repeat(4));
            }
            "/many" => {
                exchange.send(early(1).repeat(16));
            }
            _ => {}
        }
        exchange.answer("200 OK", "", b"ok");
        true
    });
    stack.route(HOST, &[&backend]);
    for (path, expected) in [("/endless", 503), ("/large", 503), ("/many", 200), ("/", 200)] {
        let mut client = stack.planb.connect();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        let mut head = client.head().unwrap();
        while head.status < 200 {
            head = client.head().unwrap();
        }
        assert_eq!(head.status, expected, "{path}");
    }
    stack.planb.wait_for_log("informational responses without an end");
}

#[test]
fn a_client_of_http_1_0_keeps_its_connection_where_a_response_has_a_length() {
    let stack = Stack::start(&[]);
    let backend = Backend::start(|exchange| {
        if exchange.head.contains("/chunked") {
            exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
        } else {
            exchange.answer("200 OK", "", b"hi");
            true
        }
    });
    stack.route(HOST, &[&backend]);
    let mut client = stack.planb.connect();
    for (path, connection) in [("/", "keep-alive"), ("/", "keep-alive"), ("/chunked", "close")] {
        client.send(format!("GET {path} HTTP/1.0\r\nHost: {HOST}\r\nConnection: keep-alive\r\n\r\n"));
        let response = client.response();
        assert_eq!((response.header("connection"), response.text().as_str()), (Some(connection), "hi"), "{path}");
        assert_eq!(response.header("transfer-encoding"), None);
    }
}

#[test]
fn a_request_whose_body_nobody_reads_costs_the_next_one_nothing() {
    let stack = Stack::start(&[]);
    let mut client = stack.planb.connect();
    let post = |length: usize| format!("POST / HTTP/1.1\r\nHost: nobody.test\r\nContent-Length: {length}\r\n\r\n");
    for length in [0, 1, 1_000, 20_000] {
        // All of it is there before the answer is.
        client.send(post(length) + &"x".repeat(length));
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (400, None), "{length} bytes");
    }
    client.send("POST / HTTP/1.1\r\nHost: nobody.test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n");
    assert_eq!(client.response().header("connection"), None);
    // Of this one, nobody knows whether the rest ever comes.
    client.send(post(1_000_000));
    let response = client.response();
    assert_eq!((response.status, response.header("connection")), (400, Some("close")));
    assert!(client.ends_silently());
}

#[test]
fn trailers_reach_clients_that_have_not_asked_for_them() {
    let stack = Stack::start(&[]);
    let backend = Backend::start(|exchange| {
        exchange.send(
            "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n",
        )
    });
    stack.route(HOST, &[&backend]);
    let mut client = stack.planb.connect();
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"));
    assert_eq!(client.head().unwrap().header("trailer"), Some("X-Sum"));
    assert_eq!(client.rest().unwrap(), b"2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n");
}

#[test]
fn requests_behind_one_another_are_answered_in_their_order() {
    let (stack, _backend) = start(&[]);
    let mut client = stack.planb.connect();
    for number in 0..50 {
        let body = number.to_string();
        let length = body.len();
        client.send(format!("POST /{number} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n{body}"));
    }
    for number in 0..50 {
        assert_eq!(client.head().unwrap().status, 103);
        let response = client.response();
        assert!(response.text().starts_with(&format!("POST /{number} ")), "{number}: {}", response.text());
        assert!(response.text().ends_with(&format!("\r\n\r\n{number}")), "{number}: {}", response.text());
    }
}

#[test]
fn http_2_is_not_spoken_where_http_1_alone_is_wanted() {
    let (stack, backend) = start(&["--engine=fasthttp"]);
    let before = backend.requests().len();
    let mut client = stack.planb.connect();
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(client.response().status, 400);
    assert_eq!(backend.requests().len(), before);
}

#[test]
fn an_upload_that_is_answered_early_arrives_whole_before_its_connection_closes() {
    let stack = Stack::start(&["--workers=1"]);
    let (whole, arrived) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let may_go = Mutex::new(may_go);
    let backend = Backend::start(move |exchange| {
        exchange.answer("202 Accepted", "", b"go on");
        may_go.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        whole.send(exchange.read_body()).unwrap();
        true
    });
    stack.list(HOST, &[&backend.url()]);
    let body: Vec<u8> = (0..5_000_000u32).flat_map(u32::to_be_bytes).collect();
    let head =
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut client = TcpStream::connect(stack.planb.address()).unwrap();
    let mut writer = client.try_clone().unwrap();
    let sent = [head.as_bytes(), &body].concat();
    // Much of it waits in the sockets while nobody reads.
    let sender = thread::spawn(move || writer.write_all(&sent));
    let mut answer = Vec::new();
    while !answer.ends_with(b"go on") {
        let mut piece = [0; 512];
        let length = client.read(&mut piece).unwrap();
        assert!(length > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..length]);
    }
    go.send(()).unwrap();
    assert!(arrived.recv_timeout(PATIENCE).unwrap() == body, "the upload is not intact");
    sender.join().unwrap().unwrap();
}
