//! The end of the process, as clients and whoever started it see it.

use std::net::TcpStream;

use tokio_tungstenite::tungstenite::{self, Message};

use super::support::{Backend, Planb, Stack, closed_port, wait_until};

fn wait_until_refused(planb: &Planb) {
    wait_until("new connections are refused", || {
        TcpStream::connect(planb.address()).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    });
}

fn requests_in_flight_finish_after(signal: &str) {
    let mut stack = Stack::start(&[]);
    let (backend, gate) = Backend::holding();
    stack.route("drain.test", &[&backend]);
    let mut idle = stack.planb.connect();
    assert_eq!(idle.get("drain.test", "/").text(), "done");
    let mut busy = stack.planb.connect();
    busy.send("GET /held HTTP/1.1\r\nHost: drain.test\r\n\r\n");
    wait_until("the request is in flight", || backend.requests().iter().any(|head| head.starts_with("GET /held ")));

    stack.planb.signal(signal);
    wait_until_refused(&stack.planb);
    assert!(idle.rest().unwrap().is_empty(), "an idle connection is closed without a word");
    assert!(!stack.planb.has_exited(), "a request is still in flight");
    gate.open();
    let response = busy.response();
    assert_eq!((response.status, response.text().as_str()), (200, "done"));
    assert_eq!(response.header("connection"), Some("close"));
    assert!(busy.rest().unwrap().is_empty());
    assert_eq!(stack.planb.wait_for_exit().code(), Some(0));
}

#[test]
fn an_interrupt_lets_requests_in_flight_finish() {
    requests_in_flight_finish_after("INT");
}

#[test]
fn a_termination_lets_requests_in_flight_finish() {
    requests_in_flight_finish_after("TERM");
}

#[test]
fn a_response_that_has_begun_is_sent_to_its_end() {
    let mut stack = Stack::start(&[]);
    let (backend, gate) = Backend::holding_bodies();
    stack.route("drain.test", &[&backend]);
    let mut client = stack.planb.connect();
    client.send("GET /held HTTP/1.1\r\nHost: drain.test\r\n\r\n");
    let mut response = client.head().unwrap();
    stack.planb.signal("TERM");
    wait_until_refused(&stack.planb);
    gate.open();
    client.finish(&mut response).unwrap();
    assert_eq!(response.text(), "done");
    assert!(client.rest().unwrap().is_empty());
    assert_eq!(stack.planb.wait_for_exit().code(), Some(0));
}

#[test]
fn connections_that_the_kernel_has_accepted_are_served() {
    let mut stack = Stack::start(&["--workers=1"]);
    stack.planb.signal("STOP");
    // More than are accepted before the signal is heeded.
    let mut clients: Vec<_> = (0..300).map(|_| stack.planb.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: nowhere.test\r\n\r\n");
    }
    stack.planb.signal("TERM");
    stack.planb.signal("CONT");
    for client in &mut clients {
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (400, "no such route"));
        assert!(client.rest().unwrap().is_empty());
    }
    assert_eq!(stack.planb.wait_for_exit().code(), Some(0));
}

#[test]
fn a_websocket_keeps_working_until_it_is_closed() {
    let mut stack = Stack::start(&[]);
    let backend = Backend::websocket_echo();
    stack.route("drain.test", &[&backend]);
    let stream = stack.planb.connect().into_socket();
    let (mut socket, _) = tungstenite::client("ws://drain.test/", stream).unwrap();

    stack.planb.signal("TERM");
    wait_until_refused(&stack.planb);
    for text in ["still", "here"] {
        socket.send(Message::text(text)).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text(text));
    }
    assert!(!stack.planb.has_exited(), "the tunnel is still open");
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    drop(socket);
    assert_eq!(stack.planb.wait_for_exit().code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    for (second, code) in [("INT", 130), ("TERM", 143)] {
        let mut stack = Stack::start(&[]);
        let (backend, _gate) = Backend::holding();
        stack.route("drain.test", &[&backend]);
        let mut client = stack.planb.connect();
        client.send("GET /held HTTP/1.1\r\nHost: drain.test\r\n\r\n");
        wait_until("the request is in flight", || backend.requests().iter().any(|head| head.starts_with("GET /held ")));
        stack.planb.signal("INT");
        stack.planb.wait_for_log("draining");
        stack.planb.signal(second);
        assert_eq!(stack.planb.wait_for_exit().code(), Some(code));
        assert!(client.try_response().is_err(), "the request was given up");
    }
}

#[test]
fn waiting_for_redis_can_be_interrupted() {
    let (_guard, nowhere) = closed_port();
    let port = nowhere.rsplit(':').next().unwrap();
    for signal in ["INT", "TERM"] {
        let mut planb = Planb::with(&[
            &format!("--read-redis-port={port}"),
            &format!("--write-redis-port={port}"),
            "--listen=127.0.0.1:0",
            "--access-log=none",
        ])
        .spawn();
        planb.wait_for_log("waiting for Redis");
        planb.signal(signal);
        assert_eq!(planb.wait_for_exit().code(), Some(0), "after {signal}");
    }
}
