//! Bodies over HTTP/2, in either direction and in both at once.

use std::{
    io::{BufRead, Read, Write},
    sync::{
        Mutex,
        mpsc::{Receiver, Sender, channel},
    },
};

use http::{HeaderMap, HeaderValue, Request};

use super::{
    bodies::{large, two_way},
    http2::{Site, get, with},
    support::{Backend, Exchange, curl, wait_until},
};

/// Something of this size that no shift or repetition leaves as it was.
pub fn pattern(size: usize) -> Vec<u8> {
    (0..size as u64).map(|index| (index.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

/// A backend that sends a request's body back; chunked if the path says so.
pub fn mirror() -> Backend {
    Backend::start(|exchange| {
        let body = exchange.read_body();
        if !exchange.head.contains("/chunked") {
            exchange.answer("200 OK", "", &body);
            return true;
        }
        exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for chunk in body.chunks(70_000) {
            send_chunk(exchange, chunk);
        }
        exchange.send("0\r\n\r\n")
    })
}

fn send_chunk(exchange: &mut Exchange<'_>, chunk: &[u8]) -> bool {
    exchange.send([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat())
}

/// A chunk of a request's body, as the backend receives it; empty at the body's end or if the connection ends before.
fn next_chunk(exchange: &mut Exchange<'_>) -> Vec<u8> {
    let mut line = String::new();
    let mut chunk = Vec::new();
    if exchange.stream.read_line(&mut line).is_ok() {
        let size = u64::from_str_radix(line.trim_end(), 16).unwrap_or(0);
        let _ = exchange.stream.take(size + 2).read_to_end(&mut chunk);
        chunk.truncate(usize::try_from(size).unwrap());
    }
    chunk
}

/// A backend whose chunks of each response are what the test sends, until that hangs up.
fn scripted(head: &'static str) -> (Backend, Sender<&'static str>) {
    let (say, script): (_, Receiver<&str>) = channel();
    let script = Mutex::new(script);
    let backend = Backend::start(move |exchange| {
        exchange.send(head);
        while let Ok(words) = script.lock().unwrap().recv() {
            send_chunk(exchange, words.as_bytes());
        }
        exchange.send("0\r\n\r\n")
    });
    (backend, say)
}

#[test]
fn bodies_of_any_size_pass_both_ways_with_a_length_and_without() {
    let backend = mirror();
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    for size in [0, 1, 16_384, 65_535, 65_536, 300_000, 20_000_000] {
        let body = pattern(size);
        for (path, has_length) in [("/sized", true), ("/chunked", false)] {
            let mut request = with("POST", path);
            if has_length {
                request = request.header("content-length", size);
            }
            let response = client.exchange(request.body(()).unwrap(), &body);
            assert!(response.status == 200 && response.body == body, "{path} of {size}");
            let length = response.header("content-length").map(|length| length.parse().unwrap());
            assert_eq!(length, (path == "/sized").then_some(size), "{path} of {size}");
            let head = backend.requests().pop().unwrap();
            assert_eq!(head.contains("Content-Length"), has_length, "{head}");
            assert_eq!(head.contains("Transfer-Encoding: chunked"), !has_length, "{head}");
        }
    }
    assert_eq!(site.lines("HTTP/2.0\" 200 20000000 ", 2).len(), 2);
}

#[test]
fn any_method_may_have_a_body_of_unknown_length() {
    let backend = mirror();
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    for method in ["GET", "DELETE", "OPTIONS", "PATCH", "QUERY"] {
        let response = client.exchange(with(method, "/").body(()).unwrap(), b"what I look for");
        assert_eq!(response.text(), "what I look for", "{method}");
        let head = backend.requests().pop().unwrap();
        assert!(head.contains("Transfer-Encoding: chunked"), "{method}: {head}");
        let response = client.ask(with(method, "/").body(()).unwrap());
        assert_eq!(response.text(), "", "{method}");
        let head = backend.requests().pop().unwrap();
        assert!(!head.contains("Transfer-Encoding"), "{method}: {head}");
    }
    let mut plain = site.stack.planb.connect();
    for method in ["GET", "DELETE"] {
        plain.send(format!(
            "{method} / HTTP/1.1\r\nHost: http2.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwhat\r\n0\r\n\r\n"
        ));
        assert_eq!(plain.response().text(), "what", "{method}");
    }
}

/// A backend that believed another length than ours would take a part of the body for a request, or a request for a body.
#[test]
fn a_body_has_one_length_or_none() {
    let backend = mirror();
    let site = Site::start(&[], &[&backend.url()]);
    let smuggled = b"GET /smuggled HTTP/1.1\r\nHost: http2.test\r\n\r\n";
    for lengths in [&["44", "0"][..], &["0", "44"], &["44", "x"], &["44, 0"], &["+44"], &["4"], &["99"]] {
        // A connection of its own, which may be closed over this.
        let mut client = site.connect();
        let request =
            lengths.iter().fold(with("POST", "/"), |request, length| request.header("content-length", *length));
        let mut stream = client.open(request.body(()).unwrap());
        // It may be reset before that.
        let _ = stream.try_send(smuggled).and_then(|()| stream.try_finish());
        if let Ok(response) = stream.try_head() {
            assert_eq!(response.status, 400, "{lengths:?}");
        }
        assert_eq!(site.connect().exchange(with("POST", "/").body(()).unwrap(), b"next").text(), "next");
    }
    for head in backend.requests() {
        assert!(!head.contains("smuggled"), "{head}");
        let count = head.matches("Content-Length").count() + head.matches("Transfer-Encoding").count();
        assert!(count <= 1, "{head}");
    }
}

/// As in HTTP/1: the same length twice is no contradiction, but must not be sent on so (RFC 9110 section 8.6).
#[test]
fn a_length_that_is_repeated_is_sent_once() {
    let backend = mirror();
    let site = Site::start(&[], &[&backend.url()]);
    let request = with("POST", "/").header("content-length", 4).header("content-length", 4).body(()).unwrap();
    let mut client = site.connect();
    let mut stream = client.open(request);
    stream.send("body");
    stream.finish();
    assert!(stream.try_head().is_ok_and(|head| head.status == 200 || head.status == 400));
    for head in backend.requests() {
        assert_eq!(head.matches("Content-Length: 4").count(), 1, "{head}");
    }
}

#[test]
fn trailers_pass_both_ways() {
    let backend = Backend::start(|exchange| {
        let mut trailers = String::new();
        while !trailers.ends_with("\r\n\r\n") {
            exchange.stream.read_line(&mut trailers).unwrap();
        }
        let trailers = trailers.split("\r\n0\r\n").last().unwrap();
        exchange.send(format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n{:x}\r\n{trailers}\r\n0\r\nX-Sum: 42\r\n\r\n",
            trailers.len()
        ))
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    let mut stream =
        client.open(with("POST", "/").header("trailer", "X-Check").header("te", "trailers").body(()).unwrap());
    stream.send("body");
    let mut trailers = HeaderMap::new();
    trailers.insert("x-check", HeaderValue::from_static("fine"));
    trailers.insert("x-forwarded-client-cert", HeaderValue::from_static("forged"));
    stream.finish_with(trailers);
    let response = stream.response();
    assert!(response.text().to_lowercase().contains("check: fine\r\n"), "{:?}", response.text());
    assert!(!response.text().contains("forged"));
    assert_eq!(response.header("trailer"), Some("X-Sum"));
    assert_eq!(stream.trailers()["x-sum"], "42");
}

/// What a backend says of its connection has no place in HTTP/2, whose clients take it for malformed.
#[test]
fn trailers_of_one_connection_stay_on_it() {
    let backend = Backend::start(|exchange| {
        exchange.send(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 42\r\nConnection: close\r\n\
             Keep-Alive: timeout=5\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    let mut stream = client.begin(get("/"));
    assert_eq!(stream.response().text(), "body");
    let trailers = stream.trailers();
    assert_eq!((trailers.len(), trailers["x-sum"].as_bytes()), (1, &b"42"[..]), "{trailers:?}");
    let output = curl(&site.authority, site.stack.planb.tls_address(), "http2.test", "/", &["--http2"]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn an_upload_goes_on_while_nobody_reads_the_answer_that_has_begun() {
    let backend = two_way();
    let site = Site::start(&[], &[&backend.url()]);
    let body = large();
    let length = body.len();
    let mut client = site.connect();
    let mut stream = client.open(with("POST", "/").header("content-length", length).body(()).unwrap());
    stream.send(&body);
    stream.finish();
    assert_eq!(stream.head().status, 200);
    assert!(stream.rest().unwrap() == body, "the answer is not intact");
}

#[test]
fn an_answer_reaches_a_client_that_is_still_sending() {
    let backend = Backend::start(|exchange| {
        // In one piece: curl ends its upload early when it has the head, and the library resets a stream that is shorter than its
        // Content-Length has said, whatever of the answer is still to come.
        exchange.send("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 9\r\n\r\ntoo large");
        // To close with bytes unread would be a reset, which overtakes the answer here.
        let _ = std::io::copy(exchange, &mut std::io::sink());
        false
    });
    let site = Site::start(&[], &[&backend.url()]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pattern(60_000_000)).unwrap();
    let data = format!("@{}", file.path().display());
    for round in 0..5 {
        let arguments = ["--http2", "--data-binary", &data, "--write-out", "\n%{http_code}"];
        let output = curl(&site.authority, site.stack.planb.tls_address(), "http2.test", "/", &arguments);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "too large\n413", "round {round}: {output:?}");
    }
}

#[test]
fn answers_without_a_body_have_none() {
    let backend = Backend::start(|exchange| {
        let path = exchange.head.split(' ').nth(1).unwrap().to_owned();
        let answer = match &*path {
            "/length" => "200 OK\r\nContent-Length: 1234\r\n\r\n",
            "/chunked" => "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "/none" => "204 No Content\r\n\r\n",
            "/same" => "304 Not Modified\r\nContent-Length: 1234\r\nETag: \"x\"\r\n\r\n",
            _ => "200 OK\r\nContent-Length: 0\r\n\r\n",
        };
        exchange.send(format!("HTTP/1.1 {answer}"))
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    for (method, path, status, length) in [
        ("HEAD", "/length", 200, Some("1234")),
        ("HEAD", "/chunked", 200, None),
        ("GET", "/none", 204, None),
        ("GET", "/same", 304, Some("1234")),
        ("GET", "/empty", 200, Some("0")),
    ] {
        let response = client.ask(with(method, path).body(()).unwrap());
        assert_eq!((response.status, response.body.len()), (status, 0), "{method} {path}");
        assert_eq!(response.header("content-length"), length, "{method} {path}");
    }
    wait_until("its connections are kept", || {
        site.stack.planb.count("planb_reverseproxy_pool_idle_connections") == backend.connections() as u64
    });
    let output = curl(&site.authority, site.stack.planb.tls_address(), "http2.test", "/length", &["--http2", "--head"]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).starts_with("HTTP/2 200"), "{output:?}");
}

#[test]
fn answers_of_our_own_to_a_head_have_no_body() {
    let site = Site::start(&[], &[&mirror().url()]);
    let mut client = site.connect();
    for (path, status, length) in [("https://nowhere.test/", 400, "13"), ("https://__ping__/", 200, "2")] {
        let request = |method| Request::builder().method(method).uri(path).body(()).unwrap();
        let response = client.ask(request("HEAD"));
        assert_eq!((response.status, response.header("content-length")), (status, Some(length)), "{path}");
        assert_eq!(client.ask(request("GET")).body.len().to_string(), length, "{path}");
    }
    site.lines("\"HEAD / HTTP/2.0\" 400 0 ", 1);
}

#[test]
fn events_pass_at_once() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (backend, say) = scripted(head);
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    let mut stream = client.begin(get("/events"));
    assert_eq!(stream.head().header("content-type"), Some("text/event-stream"), "the head needs no body");
    for event in ["data: one\n\n", "data: two\n\n", "data: three\n\n"] {
        say.send(event).unwrap();
        assert_eq!(stream.part().unwrap().unwrap(), event);
    }
    drop(say);
    assert!(stream.rest().unwrap().is_empty());
}

#[test]
fn chunks_of_a_byte_do_not_become_frames_of_a_byte() {
    let backend = Backend::start(|exchange| {
        let chunks = b"1\r\nx\r\n".repeat(20_000);
        exchange.send([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &chunks[..], b"0\r\n\r\n"].concat())
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    let mut stream = client.begin(get("/"));
    assert_eq!(stream.head().status, 200);
    let (mut frames, mut bytes) = (0, 0);
    while let Some(part) = stream.part().unwrap() {
        frames += 1;
        bytes += part.len();
    }
    assert_eq!(bytes, 20_000);
    assert!(frames < 1_000, "{frames} frames");
}

#[test]
fn a_response_may_come_before_the_request_has_ended() {
    let backend = Backend::start(|exchange| {
        if exchange.head.contains("/refused") {
            exchange.answer("413 Content Too Large", "Connection: close\r\n", b"too much");
            return false;
        }
        exchange.answer("200 OK", "", b"enough");
        exchange.read_body();
        true
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    let mut stream = client.open(with("POST", "/early").body(()).unwrap());
    // The answer may come before even that.
    let _ = stream.try_send(b"begin");
    assert_eq!(stream.response().text(), "enough");
    // The rest may still be wanted or not.
    let _ = stream.try_send(b"end");

    let mut stream = client.open(with("POST", "/refused").header("content-length", 10_000_000).body(()).unwrap());
    let _ = stream.try_send(b"begin");
    let response = stream.response();
    assert_eq!((response.status, response.text().as_str()), (413, "too much"));
    while stream.try_send(&[0; 16_384]).is_ok() {}
    assert_eq!(client.ask(get("/")).text(), "enough");
}

#[test]
fn remote_procedure_calls_stream_both_ways() {
    let backend = Backend::start(|exchange| {
        exchange.send(
            "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\
             Trailer: grpc-status, grpc-message\r\n\r\n",
        );
        loop {
            let message = next_chunk(exchange);
            if message.is_empty() {
                return exchange.send("0\r\ngrpc-status: 0\r\ngrpc-message: fine\r\n\r\n");
            }
            send_chunk(exchange, &message.iter().rev().copied().collect::<Vec<_>>());
        }
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    let call = |method: &str| {
        let request = with("POST", &format!("/service.Test/{method}")).header("te", "trailers");
        request.header("content-type", "application/grpc").header("grpc-timeout", "5S").body(()).unwrap()
    };
    let mut calls: Vec<_> = (0..20).map(|number| client.open(call(&format!("Chat{number}")))).collect();
    for call in &mut calls {
        let head = call.head();
        assert_eq!((head.status, head.header("content-type")), (200, Some("application/grpc")));
    }
    for message in [&b"\0\0\0\0\x02hi"[..], b"\0\0\0\0\x04more", &[7; 9000]] {
        for call in &mut calls {
            call.send(message);
            let mut answer = vec![0; message.len()];
            call.read_exact(&mut answer).unwrap();
            assert!(answer.iter().rev().eq(message), "{answer:?}");
        }
    }
    for call in &mut calls {
        call.flush().unwrap();
        call.finish();
        assert!(call.rest().unwrap().is_empty());
        let trailers = call.trailers();
        assert_eq!(
            (trailers["grpc-status"].as_bytes(), trailers["grpc-message"].as_bytes()),
            (&b"0"[..], &b"fine"[..])
        );
    }
    for head in backend.requests() {
        assert!(head.contains("\r\nTE: trailers") && head.contains("\r\nTransfer-Encoding: chunked"), "{head}");
    }
}
