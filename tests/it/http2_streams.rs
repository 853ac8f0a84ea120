//! Streams of HTTP/2 that somebody does not read, or breaks off, and the others beside them.

use std::{
    io::Read,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::channel,
    },
    time::Duration,
};

use h2::Reason;
use http::Request;

use super::{
    http2::{Site, get, with},
    http2_bodies::{mirror, pattern},
    http2_junk::{DATA, END_HEADERS, HEADERS, PLAIN, RST_STREAM, Raw, fields, frame},
    support::{Backend, PATIENCE, closed_port, wait_until},
};

const RESIDENT: &str = "process_resident_memory_bytes";

#[test]
fn a_client_that_takes_nothing_makes_the_proxy_keep_little() {
    const WHOLE: usize = 500_000_000;
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let backend = Backend::start(move |exchange| {
        if exchange.head.contains(" /well ") {
            exchange.answer("200 OK", "", b"ok");
            return true;
        }
        exchange.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {WHOLE}\r\n\r\n"));
        while exchange.send(vec![0; 50_000]) {
            if count.fetch_add(50_000, Ordering::SeqCst) > WHOLE {
                break;
            }
        }
        false
    });
    let site = Site::start(&["--workers=1"], &[&backend.url()]);
    let before = site.stack.planb.metric(RESIDENT);
    let mut client = site.connect();
    let mut deaf: Vec<_> = (0..4).map(|number| client.begin(get(&format!("/{number}")))).collect();
    for stream in &mut deaf {
        assert_eq!(stream.head().status, 200);
    }
    // No part has been read, so that no window is open any more. Others are served meanwhile; they have no body, because
    // the connection's window may be closed as well.
    wait_until("the backend is held up", || {
        let now = sent.load(Ordering::SeqCst);
        (0..20).for_each(|_| site.is_well());
        now > 0 && now == sent.load(Ordering::SeqCst)
    });
    let kept = sent.load(Ordering::SeqCst);
    assert!(kept < 60_000_000, "{kept} bytes were taken from the backend");
    let grown = site.stack.planb.metric(RESIDENT) - before;
    assert!(grown < 40e6, "{grown} bytes more are in memory");
    drop(deaf);
    for number in 0..4 {
        site.lines(&format!("GET /{number} "), 1);
    }
}

/// The connection's window must be larger than a stream's, or one upload whose backend does not read closes it for all.
#[test]
fn an_upload_that_no_backend_reads_leaves_room_for_others() {
    let (release, released) = channel::<()>();
    let released = Mutex::new(released);
    let backend = Backend::start(move |exchange| {
        if exchange.head.contains(" /stalled ") {
            let _ = released.lock().unwrap().recv();
            return false;
        }
        let body = exchange.read_body();
        exchange.answer("200 OK", "", &body);
        true
    });
    let site = Site::start(&["--workers=1"], &[&backend.url()]);
    let before = site.stack.planb.metric(RESIDENT);
    let mut client = site.connect();
    // The second takes what the first has left of the connection's window.
    let mut stalled: Vec<_> = (0..2).map(|_| client.open(with("POST", "/stalled").body(()).unwrap())).collect();
    let mut sent = 0;
    for stream in &mut stalled {
        while sent < 500_000_000 && stream.send_within(Duration::from_millis(500), &[0; 16_384]) {
            sent += 16_384;
        }
    }
    assert!(sent < 40_000_000, "{sent} bytes were taken from the client");
    let grown = site.stack.planb.metric(RESIDENT) - before;
    assert!(grown < 40e6, "{grown} bytes more are in memory");
    let mut other = client.open(with("POST", "/other").body(()).unwrap());
    for _ in 0..10 {
        assert!(other.send_within(Duration::from_secs(2), &[1; 16_384]), "one stalled upload holds up the others");
    }
    other.finish();
    assert_eq!(other.response().body.len(), 163_840);
    drop(release);
}

/// Whatever becomes of an upload, its bytes are given back to the connection's window.
#[test]
fn uploads_that_come_to_nothing_use_nothing_up() {
    let backend = Backend::start(|exchange| {
        if exchange.head.contains("/dying") {
            return false;
        }
        if exchange.head.contains("/reset") {
            let _ = exchange.read_to_end(&mut Vec::new());
            return false;
        }
        let body = exchange.read_body();
        exchange.answer("200 OK", "", &body);
        true
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    for round in 0..40 {
        let refused = Request::post("https://nowhere.test/").body(()).unwrap();
        let mut streams = [refused, with("POST", "/dying").body(()).unwrap(), with("POST", "/reset").body(()).unwrap()]
            .map(|request| client.open(request));
        for stream in &mut streams {
            // Refused before its end, or not.
            let _ = stream.try_send(&vec![0; 100_000]);
        }
        streams[2].reset(Reason::CANCEL);
        assert_eq!((streams[0].head().status, streams[1].head().status), (400, 503), "round {round}");
    }
    assert_eq!(client.exchange(with("POST", "/").body(()).unwrap(), &pattern(300_000)).body, pattern(300_000));
}

#[test]
fn a_body_is_sent_to_the_next_backend_when_the_first_refuses() {
    let (_guard, refusing) = closed_port();
    let backend = mirror();
    let site = Site::start(&[], &[&refusing, &backend.url()]);
    let mut client = site.connect();
    for _ in 0..2 {
        assert_eq!(client.exchange(with("POST", "/").body(()).unwrap(), &pattern(300_000)).body, pattern(300_000));
    }
    site.stack.planb.wait_for_log("*DEAD*");
}

#[test]
fn a_stream_that_the_client_resets_is_cancelled_alone() {
    let (broken, breaks) = channel::<String>();
    let broken = Mutex::new(broken);
    let backend = Backend::start(move |exchange| {
        let path = exchange.head.split(' ').nth(1).unwrap().to_owned();
        match &*path {
            "/unanswered" | "/uploading" => {}
            "/answering" => drop(exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")),
            _ => {
                let body = exchange.read_body();
                exchange.answer("200 OK", "", &body);
                return true;
            }
        }
        // Until the proxy closes the connection.
        let _ = exchange.read_to_end(&mut Vec::new());
        broken.lock().unwrap().send(path).unwrap();
        false
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    let mut going_on = client.open(with("POST", "/going-on").body(()).unwrap());
    going_on.send("first, ");
    for path in ["/unanswered", "/answering", "/uploading"] {
        let mut stream = match path {
            "/uploading" => client.open(with("POST", path).body(()).unwrap()),
            _ => client.begin(get(path)),
        };
        match path {
            "/answering" => drop(stream.head()),
            "/uploading" => stream.send("part"),
            _ => {}
        }
        wait_until("the backend has it", || backend.requests().iter().any(|head| head.contains(path)));
        stream.reset(Reason::CANCEL);
        assert_eq!(breaks.recv_timeout(PATIENCE).unwrap(), path);
        let line = site.lines(path, 1).remove(0);
        match path {
            "/unanswered" => assert!(line.contains("HTTP/2.0\" 499 0 "), "{line}"),
            "/answering" => assert!(line.contains("HTTP/2.0\" 200 4 "), "{line}"),
            _ => {}
        }
    }
    going_on.send("second");
    going_on.finish();
    assert_eq!(going_on.response().text(), "first, second");
    assert_eq!(site.stack.planb.count("planb_router_backend_markdead_total"), 0);
}

#[test]
fn an_upload_that_its_client_gives_up_is_no_fault_of_the_backend() {
    let backend = Backend::start(|exchange| {
        let _ = exchange.read_to_end(&mut Vec::new());
        false
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = Raw::connect(&site);
    let head = fields(&[(":method", "POST"), PLAIN[1], PLAIN[2], (":path", "/given-up")]);
    for number in 0..100 {
        let stream = 2 * number + 1;
        client.send(&frame(HEADERS, END_HEADERS, stream, &head));
        wait_until("the backend has it", || backend.requests().len() > number as usize);
        // In one piece, so that whoever waits for the body is the first to learn of it.
        client.send(&[frame(DATA, 0, stream, b"part"), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat());
    }
    let lines = site.lines("/given-up", 100);
    let blamed: Vec<_> = lines.iter().filter(|line| !line.contains("HTTP/2.0\" 499 0 ")).collect();
    let log: Vec<_> = site.stack.planb.log().into_iter().filter(|line| line.starts_with("ERROR ")).collect();
    assert!(blamed.is_empty() && log.is_empty(), "{blamed:#?} {log:#?}");
}

/// An upload without a length is ended by a last chunk, which a backend must not be sent for one that was given up: it would
/// keep half a file.
#[test]
fn an_upload_that_its_client_gives_up_never_looks_whole() {
    let (broken, breaks) = channel::<Vec<u8>>();
    let broken = Mutex::new(broken);
    let backend = Backend::start(move |exchange| {
        let mut rest = Vec::new();
        let _ = exchange.read_to_end(&mut rest);
        broken.lock().unwrap().send(rest).unwrap();
        false
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = Raw::connect(&site);
    let head = fields(&[(":method", "POST"), PLAIN[1], PLAIN[2], (":path", "/half")]);
    for (number, reason) in (0..60).map(|number| (number, [0, 5, 8][number as usize % 3])) {
        let stream = 2 * number + 1;
        client.send(&frame(HEADERS, END_HEADERS, stream, &head));
        wait_until("the backend has it", || backend.requests().len() > number as usize);
        client.send(&[frame(DATA, 0, stream, b"part"), frame(RST_STREAM, 0, stream, &[0, 0, 0, reason])].concat());
        let rest = breaks.recv_timeout(PATIENCE).unwrap();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "reason {reason}: {}", String::from_utf8_lossy(&rest));
    }
}

#[test]
fn a_client_that_vanishes_cancels_all_its_streams() {
    let (broken, breaks) = channel::<()>();
    let broken = Mutex::new(broken);
    let backend = Backend::start(move |exchange| {
        let _ = exchange.read_to_end(&mut Vec::new());
        broken.lock().unwrap().send(()).unwrap();
        false
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    let streams: Vec<_> = (0..10).map(|number| client.begin(get(&format!("/gone/{number}")))).collect();
    wait_until("the backend has them", || backend.requests().len() == 10);
    drop(client);
    for _ in 0..10 {
        breaks.recv_timeout(PATIENCE).unwrap();
    }
    drop(streams);
    assert!(site.lines("/gone/", 10).iter().all(|line| line.contains(" 499 0 ")));
    wait_until("its connection is gone", || site.stack.planb.count("planb_reverseproxy_connections_current_open") == 0);
}

#[test]
fn a_backend_that_dies_in_a_body_breaks_that_stream_alone() {
    let backend = Backend::start(|exchange| {
        let path = exchange.head.split(' ').nth(1).unwrap().to_owned();
        match &*path {
            "/length" => exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"),
            "/chunked" => exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
            "/junk" => exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nxyz\r\n"),
            "/nothing" => false,
            _ => {
                let body = exchange.read_body();
                exchange.answer("200 OK", "", &body);
                return true;
            }
        };
        false
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    let mut going_on = client.open(with("POST", "/going-on").body(()).unwrap());
    for path in ["/length", "/chunked", "/junk"] {
        let mut stream = client.begin(get(path));
        assert_eq!(stream.head().status, 200);
        let error = stream.rest().unwrap_err();
        assert!(error.is_reset() && error.reason() != Some(Reason::NO_ERROR), "{path}: {error:?}");
        site.lines(path, 1);
    }
    assert_eq!(client.ask(get("/nothing")).status, 503);
    going_on.send("whole");
    going_on.finish();
    assert_eq!(going_on.response().text(), "whole");
}
