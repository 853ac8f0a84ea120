//! A backend that is taken from its list while it is in use.

use std::sync::mpsc;

use tokio_tungstenite::tungstenite::{self, Message};

use super::support::{Backend, Gate, Stack, wait_until};

const HOST: &str = "removal.test";
const LIST: &str = "frontend:removal.test";

/// A backend that tells how many of its connections have ended.
fn watched(name: &'static str) -> (Backend, impl Fn() -> usize) {
    let (ended, ends) = mpsc::channel();
    let backend = Backend::start(move |exchange| {
        exchange.answer("200 OK", "", name.as_bytes());
        // A request more, or the end of the connection.
        let more = std::io::BufRead::fill_buf(exchange.stream).is_ok_and(|bytes| !bytes.is_empty());
        if !more {
            ended.send(()).unwrap();
        }
        more
    });
    let mut count = 0;
    let ends = std::cell::RefCell::new(move || {
        count += ends.try_iter().count();
        count
    });
    (backend, move || ends.borrow_mut()())
}

#[test]
fn idle_connections_to_it_are_closed_at_once_and_to_others_are_not() {
    let stack = Stack::start(&["--workers=1"]);
    let ((kept, kept_ended), (removed, removed_ended)) = (watched("kept"), watched("removed"));
    stack.list(HOST, &[&kept.url(), &removed.url()]);
    // The connection that has been idle for longer is the one that is to stay.
    assert_eq!((stack.planb.ask(HOST).as_str(), stack.planb.ask(HOST).as_str()), ("kept", "removed"));
    super::support::redis(&stack.master, &["LREM", LIST, "0", &removed.url()]);
    wait_until("the connection is closed", || removed_ended() == 1);
    assert_eq!(kept_ended(), 0);
    assert_eq!(stack.planb.ask(HOST), "kept");
    assert_eq!((kept.connections(), removed.connections()), (1, 1));
}

#[test]
fn an_origin_that_another_frontend_has_goes_on_serving_it() {
    let stack = Stack::start(&["--workers=1"]);
    let shared = Backend::named("shared");
    stack.list(HOST, &[&shared.url()]);
    stack.list("other.test", &[&shared.url()]);
    assert_eq!((stack.planb.ask(HOST).as_str(), stack.planb.ask("other.test").as_str()), ("shared", "shared"));
    stack.edit(&["DEL", LIST]);
    for _ in 0..10 {
        assert_eq!(stack.planb.ask("other.test"), "shared");
    }
    // The first connection may have been made for the frontend that is gone.
    assert!(shared.connections() <= 2, "{} connections", shared.connections());
}

#[test]
fn a_request_in_flight_finishes_and_its_connection_is_not_kept() {
    let stack = Stack::start(&["--workers=1"]);
    let (removed, gate) = Backend::holding();
    let other = Backend::named("other");
    stack.list(HOST, &[&removed.url(), &other.url()]);
    let mut client = stack.planb.connect();
    client.send(format!("GET /held HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    wait_until("the request is in flight", || removed.requests().len() == 1);
    stack.edit(&["LREM", LIST, "0", &removed.url()]);
    assert_eq!((stack.planb.ask(HOST).as_str(), stack.planb.ask(HOST).as_str()), ("other", "other"));
    gate.open();
    assert_eq!(client.response().text(), "done");
    stack.edit(&["RPUSH", LIST, &removed.url()]);
    let mut answers: Vec<String> = (0..2).map(|_| stack.planb.ask(HOST)).collect();
    answers.sort();
    assert_eq!((answers, removed.connections()), (vec!["done".to_owned(), "other".to_owned()], 2));
}

#[test]
fn a_response_that_has_begun_is_passed_on_to_its_end() {
    let stack = Stack::start(&[]);
    let (removed, gate) = Backend::holding_bodies();
    stack.list(HOST, &[&removed.url()]);
    let mut client = stack.planb.connect();
    client.send(format!("GET /held HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    let mut response = client.head().unwrap();
    stack.edit(&["DEL", LIST]);
    assert_eq!(stack.planb.ask(HOST), "no such route");
    gate.open();
    client.finish(&mut response).unwrap();
    assert_eq!(response.text(), "done");
}

#[test]
fn a_websocket_to_it_goes_on() {
    let stack = Stack::start(&[]);
    let removed = Backend::websocket_echo();
    stack.list(HOST, &[&removed.url()]);
    let stream = stack.planb.connect().into_socket();
    let (mut socket, _) = tungstenite::client(format!("ws://{HOST}/"), stream).unwrap();
    stack.edit(&["LREM", LIST, "0", &removed.url()]);
    for text in ["still", "here"] {
        socket.send(Message::text(text)).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text(text));
    }
}

#[test]
fn a_retry_keeps_to_the_list_that_the_request_began_with() {
    let gate = Gate::default();
    let opened = gate.clone();
    // Nobody has signed its certificate.
    let unreachable = Backend::start_tls(|_| false);
    let slow = Backend::start(move |exchange| {
        opened.wait();
        exchange.answer("200 OK", "", b"slow");
        true
    });
    let stack = Stack::start(&[]);
    stack.list(HOST, &[&unreachable.url(), &slow.url()]);
    let mut client = stack.planb.connect();
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    wait_until("the retry is in flight", || slow.requests().len() == 1);
    stack.edit(&["DEL", LIST]);
    gate.open();
    assert_eq!(client.response().text(), "slow");
    // The mark has nowhere to go any more.
    wait_until("no mark is pending", || stack.planb.count("planb_router_dead_marks_pending") == 0);
}

#[test]
fn a_backend_that_drips_its_head_meets_the_request_timeout() {
    let stack = Stack::start(&["--request-timeout=1"]);
    let dripping = Backend::start(|exchange| {
        let head = b"HTTP/1.1 200 OK\r\nX-A: ".iter().chain(std::iter::repeat(&b'a'));
        // Until the proxy has closed the connection.
        for byte in head {
            if !exchange.send([*byte]) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        false
    });
    stack.list(HOST, &[&dripping.url()]);
    let response = stack.planb.connect().get(HOST, "/");
    assert_eq!((response.status, response.text().as_str()), (503, ""));
    stack.planb.wait_for_log("request timeout after 1s");
    assert_eq!(stack.planb.count("planb_router_backend_markdead_total"), 0);
}
