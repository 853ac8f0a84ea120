//! Bodies on their way through, in both directions: as they come, whole or visibly not, and never piled up.

use std::{
    io::{self, BufRead, Read, Write},
    process::Command,
    sync::{
        Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use super::support::{Backend, PATIENCE, Stack, wait_until};

const HOST: &str = "bodies.test";

/// A large body: numbered blocks of a length that fits no buffer.
const BLOCK: usize = 65_537;
const BLOCKS: usize = 1_024;
const LARGE: usize = BLOCK * BLOCKS;

fn block(number: usize) -> Vec<u8> {
    let mut block: Vec<u8> = b"\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n\0".repeat(BLOCK / 20);
    block.resize(BLOCK, b'x');
    block[..8].copy_from_slice(&number.to_be_bytes());
    block
}

/// The large body.
pub fn large() -> Vec<u8> {
    (0..BLOCKS).flat_map(block).collect()
}

/// Writes the large body from position `at` on, which is kept current.
fn write_large(stream: &mut impl Write, at: &mut usize) -> io::Result<()> {
    while *at < LARGE {
        let rest = &block(*at / BLOCK)[*at % BLOCK..];
        *at += stream.write(rest)?;
    }
    Ok(())
}

fn assert_large(stream: &mut impl Read) {
    let mut received = vec![0; BLOCK];
    for number in 0..BLOCKS {
        stream.read_exact(&mut received).unwrap();
        assert!(received == block(number), "block {number} is not intact");
    }
}

/// Waits for the other thread to get so far.
fn wait<T>(from: &Mutex<Receiver<T>>) -> T {
    from.lock().unwrap().recv_timeout(PATIENCE).unwrap()
}

fn signals<T>() -> (Sender<T>, Mutex<Receiver<T>>) {
    let (sender, receiver) = channel();
    (sender, Mutex::new(receiver))
}

/// A backend that reads the large body and sends it back at the same time, each as fast as it goes.
pub fn two_way() -> Backend {
    Backend::start(|exchange| {
        let mut writer = exchange.stream.get_ref().try_clone().unwrap();
        let sender = thread::spawn(move || {
            write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n")?;
            write_large(&mut writer, &mut 0)
        });
        assert_large(exchange);
        sender.join().unwrap().unwrap();
        true
    })
}

#[test]
fn an_upload_goes_on_while_nobody_reads_the_answer_that_has_begun() {
    let (stack, backend) = (Stack::start(&[]), two_way());
    stack.list(HOST, &[&backend.url()]);
    let mut client = stack.planb.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {LARGE}\r\n\r\n"));
    client.send(large());
    assert_eq!(client.head().unwrap().status, 200);
    assert_large(client.stream());
}

#[test]
fn each_piece_of_a_response_arrives_while_the_backend_holds_the_next() {
    let stack = Stack::start(&[]);
    let (go, may_go) = signals();
    let backend = Backend::start(move |exchange| {
        let chunked = exchange.head.starts_with("GET /chunked");
        exchange.send(match exchange.head.split(' ').nth(1).unwrap() {
            "/chunked" => "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
            "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\n\r\n",
        });
        for _ in 0..3 {
            wait(&may_go);
            exchange.send(if chunked { "9\r\ndata: 1\n\n\r\n" } else { "data: 1\n\n" });
        }
        if chunked {
            wait(&may_go);
            exchange.send("0\r\n\r\n");
        }
        false
    });
    stack.list(HOST, &[&backend.url()]);
    for path in ["/chunked", "/length", "/until-close"] {
        let mut client = stack.planb.connect();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        let framed_by_chunks = client.head().unwrap().header("transfer-encoding").is_some();
        for _ in 0..3 {
            go.send(()).unwrap();
            let piece = if framed_by_chunks { client.chunk().unwrap().unwrap() } else { client.read(9).unwrap() };
            assert_eq!(piece, b"data: 1\n\n", "{path}");
        }
        if path == "/chunked" {
            go.send(()).unwrap();
        }
        if framed_by_chunks {
            assert_eq!(client.chunk().unwrap(), None);
        }
    }
}

#[test]
fn each_piece_of_an_upload_arrives_while_the_client_holds_the_next() {
    let stack = Stack::start(&[]);
    let (tell, seen) = signals();
    let backend = Backend::start(move |exchange| {
        let mut body = Vec::new();
        while !body.ends_with(b"third") && !body.ends_with(b"0\r\n\r\n") {
            let piece = exchange.stream.fill_buf().unwrap().to_vec();
            exchange.stream.consume(piece.len());
            body.extend(piece);
            tell.send(String::from_utf8_lossy(&body).into_owned()).unwrap();
        }
        exchange.answer("200 OK", "", b"");
        true
    });
    stack.list(HOST, &[&backend.url()]);
    for (framing, pieces) in [
        ("Content-Length: 16", ["first", "second", "third"]),
        ("Transfer-Encoding: chunked", ["5\r\nfirst\r\n", "6\r\nsecond\r\n", "5\r\nthird\r\n0\r\n\r\n"]),
    ] {
        let mut client = stack.planb.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n\r\n"));
        for (piece, text) in pieces.into_iter().zip(["first", "second", "third"]) {
            client.send(piece);
            while !wait(&seen).contains(text) {}
        }
        assert_eq!(client.response().status, 200, "{framing}");
        assert!(backend.requests().last().unwrap().contains(framing));
    }
}

#[test]
fn a_client_that_does_not_read_holds_the_backend_up_and_gets_everything_later() {
    let stack = Stack::start(&["--workers=1"]);
    let (tell, stuck) = signals();
    let backend = Backend::start(move |exchange| {
        exchange.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"));
        exchange.stream.get_ref().set_write_timeout(Some(STUCK)).unwrap();
        let mut at = 0;
        let stopped = write_large(exchange.stream.get_mut(), &mut at).is_err();
        tell.send((stopped, at)).unwrap();
        exchange.stream.get_ref().set_write_timeout(None).unwrap();
        write_large(exchange.stream.get_mut(), &mut at).is_ok()
    });
    stack.list(HOST, &[&backend.url()]);
    let memory = stack.planb.metric(MEMORY);
    let mut client = stack.planb.connect();
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    let (stopped, at) = wait(&stuck);
    assert!(stopped, "the backend could write all {at} bytes");
    assert!(stack.planb.metric(MEMORY) - memory < MUCH, "the proxy holds much of {at} bytes");
    assert_eq!(client.head().unwrap().status, 200);
    assert_large(client.stream());
}

#[test]
fn a_backend_that_does_not_read_holds_the_client_up_and_gets_everything_later() {
    let stack = Stack::start(&["--workers=1"]);
    let (go, may_go) = signals();
    let backend = Backend::start(move |exchange| {
        wait(&may_go);
        assert_large(exchange.stream);
        exchange.answer("200 OK", "", b"intact");
        true
    });
    stack.list(HOST, &[&backend.url()]);
    let memory = stack.planb.metric(MEMORY);
    let mut client = stack.planb.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {LARGE}\r\n\r\n"));
    client.socket().set_write_timeout(Some(STUCK)).unwrap();
    let mut at = 0;
    assert!(write_large(&mut client.socket(), &mut at).is_err(), "the client could write all of it");
    assert!(stack.planb.metric(MEMORY) - memory < MUCH, "the proxy holds much of {at} bytes");
    go.send(()).unwrap();
    client.socket().set_write_timeout(None).unwrap();
    write_large(&mut client.socket(), &mut at).unwrap();
    assert_eq!(client.response().text(), "intact");
}

/// A write that makes no progress for so long is taken to wait for the other side.
const STUCK: Duration = Duration::from_millis(500);

const MEMORY: &str = "process_resident_memory_bytes";
const MUCH: f64 = 8_000_000.0;

#[test]
fn a_client_that_asks_before_it_sends_is_told_to_go_on() {
    let stack = Stack::start(&[]);
    let backend = Backend::start(|exchange| {
        if exchange.header("expect").is_some() {
            exchange.send("HTTP/1.1 100 Continue\r\n\r\n");
        }
        let body = exchange.read_body();
        exchange.answer("200 OK", "", &body);
        true
    });
    stack.route(HOST, &[&backend]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    std::fs::write(&file, block(0).repeat(20)).unwrap();
    for framing in ["A: b", "Transfer-Encoding: chunked"] {
        let output = Command::new("curl")
            .args(["-sS", "-H", &format!("Host: {HOST}"), "-H", "Expect: 100-continue", "-H", framing])
            .args(["--data-binary", &format!("@{}", file.display()), &format!("http://{}/", stack.planb.address())])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.ends_with(&block(0).repeat(20)), "{framing}: the body is not intact");
    }

    let mut client = stack.planb.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"));
    assert_eq!(client.head().unwrap().status, 100);
    client.send("body");
    let response = client.response();
    assert!(response.status == 200 && response.text().ends_with("body"), "{response:?}");
}

#[test]
fn interim_responses_of_a_backend_do_not_confuse() {
    let stack = Stack::start(&[]);
    let backend = Backend::start(|exchange| {
        exchange.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
        let body = exchange.read_body();
        exchange.answer("200 OK", "", &body);
        true
    });
    stack.list(HOST, &[&backend.url()]);
    let mut client = stack.planb.connect();
    for _ in 0..2 {
        client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\nbody"));
        // They may come before the response, or be kept from the client.
        let mut response = client.head().unwrap();
        while response.status < 200 {
            response = client.head().unwrap();
        }
        client.finish(&mut response).unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "body"));
    }
}

#[test]
fn a_response_that_its_backend_cuts_short_never_looks_complete() {
    let stack = Stack::start(&[]);
    let backend = Backend::start(|exchange| {
        exchange.send(match exchange.head.split(' ').nth(1).unwrap() {
            "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "/chunk" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nhalf",
            "/bad-chunk" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nx\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf",
        });
        if exchange.head.starts_with("GET /reset") {
            socket2::SockRef::from(&**exchange.stream.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
        }
        false
    });
    stack.list(HOST, &[&backend.url()]);
    for path in ["/length", "/chunked", "/chunk", "/bad-chunk", "/reset"] {
        for version in ["1.1", "1.0"] {
            let mut client = stack.planb.connect();
            client.send(format!("GET {path} HTTP/{version}\r\nHost: {HOST}\r\n\r\n"));
            let response = client.try_response();
            // A reset may overtake the head, which is then an honest failure.
            let looks_complete = matches!(&response, Ok(response) if response.status == 200);
            assert!(!looks_complete, "{path} looks complete to HTTP/{version}: {response:?}");
        }
    }
}

#[test]
fn an_upload_may_be_answered_before_its_end() {
    let stack = Stack::start(&["--workers=1"]);
    let (go, may_go) = signals();
    let backend = Backend::start(move |exchange| {
        if exchange.head.starts_with("GET") {
            exchange.answer("200 OK", "", b"next");
            return true;
        }
        exchange.answer("413 Content Too Large", "Connection: close\r\n", b"too large");
        wait(&may_go);
        false
    });
    stack.list(HOST, &[&backend.url()]);
    let mut client = stack.planb.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\nthe beginning"));
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (413, "too large"));
    go.send(()).unwrap();
    // What follows is still the upload's, or nobody's.
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    client.socket().set_write_timeout(Some(PATIENCE)).unwrap();
    wait_until("the connection is closed", || client.try_send(&request).is_err());
    assert_eq!(backend.requests().len(), 1);
    assert_eq!(stack.planb.ask(HOST), "next");
}

#[test]
fn an_upload_goes_on_after_its_answer_if_the_backend_reads_on() {
    let stack = Stack::start(&["--workers=1"]);
    let backend = Backend::start(|exchange| {
        exchange.answer("202 Accepted", "", b"go on");
        let body = exchange.read_body();
        body == [b'x'; 60]
    });
    stack.list(HOST, &[&backend.url()]);
    let mut client = stack.planb.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 60\r\n\r\n"));
    assert_eq!(client.response().status, 202);
    let began = std::time::Instant::now();
    for number in 0..60 {
        client.send("x");
        // The line is so slow.
        wait_until("the next byte is due", || began.elapsed().as_millis() >= number * 60);
    }
    wait_until("the connection is kept", || stack.planb.count("planb_reverseproxy_pool_idle_connections") == 1);
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 60\r\n\r\n{}", "x".repeat(60)));
    assert_eq!(client.response().status, 202);
    assert_eq!((backend.requests().len(), backend.connections()), (2, 1));
}

#[test]
fn a_head_reaches_the_client_although_its_body_breaks_off_at_once() {
    let stack = Stack::start(&["--workers=1"]);
    let backend = Backend::start(|exchange| {
        exchange.read_body();
        exchange.send("HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n");
        false
    });
    stack.list(HOST, &[&backend.url()]);
    for number in 1..=40 {
        let mut client = stack.planb.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\nbody"));
        assert_eq!(client.head().unwrap().status, 201, "client {number}");
        assert!(client.rest_or_reset().unwrap().is_empty());
    }
    assert_eq!(backend.requests().len(), 40);
}

#[test]
fn an_upload_that_makes_progress_may_take_its_time() {
    let (stack, backend) = (Stack::start(&["--request-timeout=1"]), Backend::echo());
    stack.list(HOST, &[&backend.url()]);
    let mut client = stack.planb.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 500\r\n\r\n"));
    let began = std::time::Instant::now();
    for number in 0..500 {
        client.send("x");
        // The line is so slow.
        wait_until("the next byte is due", || began.elapsed().as_millis() >= number * 5);
    }
    assert!(began.elapsed().as_secs() >= 2);
    let response = client.response();
    assert_eq!((response.status, response.body.ends_with(&[b'x'; 500])), (200, true));
}

#[test]
fn pipelined_requests_keep_their_bodies_and_their_order() {
    let (stack, backend) = (Stack::start(&[]), Backend::echo());
    stack.route(HOST, &[&backend]);
    let junk = "a\nb\n\nGET /evil HTTP/1.1\r\nHost: bodies.test\r\n\r\n\0\n";
    let length = format!("POST /length HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n{junk}", junk.len());
    let chunked = format!(
        "POST /chunked HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n{:x};ext=\"a\"\r\n{junk}\r\n0\r\n\r\n",
        junk.len()
    );
    let empty = format!("POST /empty HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n");
    let get = format!("GET /get HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let all = [length, chunked, empty, get].concat().repeat(2);
    for step in [usize::MAX, 11, 1] {
        let mut client = stack.planb.connect();
        for piece in all.as_bytes().chunks(step) {
            client.send(piece);
        }
        for _ in 0..2 {
            for (path, body) in [("/length", junk), ("/chunked", junk), ("/empty", ""), ("/get", "")] {
                let text = client.response().text();
                let (head, received) = text.split_once("\r\n\r\n").unwrap();
                assert_eq!((head.split(' ').nth(1), received), (Some(path), body), "in pieces of {step}");
            }
        }
    }
    assert!(!backend.requests().iter().any(|head| head.contains("GET /evil")));
}
