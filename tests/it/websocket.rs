//! WebSockets, and what asks to become one.

use std::{
    io::{BufRead, Read},
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

use socket2::SockRef;
use tokio_tungstenite::tungstenite::{Bytes, Message, WebSocket, client::IntoClientRequest};

use super::support::{Backend, Client, Stack, closed_port, wait_until};

const HOST: &str = "websocket.test";
const TUNNELS: &str = "planb_reverseproxy_tunnels_current_open";

impl Stack {
    /// A WebSocket, opened by a real client.
    fn open(&self) -> WebSocket<TcpStream> {
        let request = format!("ws://{HOST}/socket?a=b").into_client_request().unwrap();
        let (socket, response) =
            tokio_tungstenite::tungstenite::client(request, self.planb.connect().into_socket()).unwrap();
        assert_eq!(response.status().as_u16(), 101);
        socket
    }

    /// A connection that asks to become a WebSocket and says `early` without waiting for the answer.
    fn ask_for_tunnel(&self, upgrade: &str, early: &str) -> Client {
        let mut client = self.planb.connect();
        client.send(format!(
            "GET /socket HTTP/1.1\r\nHost: {HOST}\r\nConnection: keep-alive, upgrade\r\nUpgrade: {upgrade}\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n{early}"
        ));
        client
    }

    /// The same, once it is one.
    fn tunnel(&self, early: &str) -> Client {
        let mut client = self.ask_for_tunnel("websocket", early);
        assert_eq!(client.head().unwrap().status, 101);
        client
    }

    fn tunnels(&self) -> u64 {
        self.planb.count(TUNNELS)
    }
}

fn echo() -> (Stack, Backend) {
    let (stack, backend) = (Stack::start(&["--workers=1"]), Backend::websocket_echo());
    stack.list(HOST, &[&backend.url()]);
    (stack, backend)
}

#[test]
fn messages_of_any_kind_and_size_pass_both_ways() {
    let (stack, backend) = echo();
    let mut socket = stack.open();
    for message in [
        Message::text("text \u{e9}"),
        Message::binary(vec![0, 255, 10, 13]),
        Message::text(""),
        Message::binary(vec![7; 4_000_000]),
    ] {
        socket.send(message.clone()).unwrap();
        assert!(socket.read().unwrap() == message);
    }
    socket.send(Message::Ping(Bytes::from_static(b"there?"))).unwrap();
    assert_eq!(socket.read().unwrap(), Message::Pong(Bytes::from_static(b"there?")));
    assert_eq!(stack.tunnels(), 1);
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    drop(socket);
    wait_until("the tunnel is gone", || stack.tunnels() == 0);

    let head = backend.requests().pop().unwrap();
    assert!(head.starts_with("GET /socket?a=b HTTP/1.1\r\n"), "{head}");
    for line in ["X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http", "Host: websocket.test", "Upgrade: websocket"]
    {
        assert!(head.contains(&format!("\r\n{line}")), "{line} is not in {head}");
    }
}

#[test]
fn the_upgrade_header_is_understood_in_any_case() {
    let (stack, backend) = echo();
    for upgrade in ["websocket", "WebSocket", "WEBSOCKET", "h2c, WebSocket"] {
        let mut client = stack.ask_for_tunnel(upgrade, "");
        let response = client.head().unwrap();
        assert_eq!(response.status, 101, "{upgrade}");
        assert_eq!(response.header("upgrade"), Some("websocket"));
        assert_eq!(response.header("connection"), Some("Upgrade"));
        assert_eq!(response.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        let head = backend.requests().pop().unwrap();
        assert!(head.contains("\r\nConnection: Upgrade") && head.contains("\r\nUpgrade: websocket"), "{head}");
    }
    let response = stack.planb.connect().get(HOST, "/");
    assert_eq!(response.status, 400, "the backend's own answer to what asks for no upgrade");
}

#[test]
fn a_refusing_backend_costs_no_client_its_websocket() {
    let stack = Stack::start(&[]);
    let (_guard, refusing) = closed_port();
    let backend = Backend::websocket_echo();
    stack.list(HOST, &[&refusing, &backend.url()]);
    for _ in 0..4 {
        let mut socket = stack.open();
        socket.send(Message::text("hello")).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text("hello"));
    }
    assert_eq!(stack.planb.count("planb_router_backend_markdead_total"), 1);
    assert!(stack.planb.wait_for_log("*DEAD*").contains(&refusing));
    wait_until("the master knows", || {
        super::support::redis_cli(&stack.master, &["SMEMBERS", &format!("dead:{HOST}")]) == "0"
    });

    stack.list("single.test", &[&closed_port().1]);
    let mut client = stack.planb.connect();
    client.send("GET / HTTP/1.1\r\nHost: single.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (503, ""));
}

#[test]
fn an_answer_other_than_101_is_passed_on() {
    let stack = Stack::start(&[]);
    let backend = Backend::start(|exchange| {
        let status = if exchange.head.contains("/socket") { "403 Forbidden" } else { "200 OK" };
        exchange.answer(status, "X-A: b\r\n", b"no socket here");
        true
    });
    stack.list(HOST, &[&backend.url()]);
    let mut client = stack.ask_for_tunnel("websocket", "GET /smuggled HTTP/1.1\r\nHost: websocket.test\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (403, "no socket here"));
    assert_eq!(response.header("x-a"), Some("b"));
    assert!(client.ends_silently(), "what followed was taken for a request");

    let mut client = stack.planb.connect();
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"));
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (200, "no socket here"));
    assert_eq!(client.rest().unwrap(), b"");
    assert_eq!((backend.requests().len(), stack.tunnels()), (2, 0));
}

#[test]
fn bytes_right_behind_the_upgrade_are_not_lost() {
    let stack = Stack::start(&[]);
    let backend = Backend::start(|exchange| {
        exchange.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello\n");
        let mut line = String::new();
        exchange.stream.read_line(&mut line).unwrap();
        exchange.send(&line);
        false
    });
    stack.list(HOST, &[&backend.url()]);
    let mut client = stack.tunnel("early\n bird\n");
    assert_eq!(client.read(12).unwrap(), b"hello\nearly\n");
    // Large enough for several reads, and full of what would be malformed in a request's head.
    let mut client = stack.tunnel(&(String::from("\0\r").repeat(100_000) + "\n"));
    assert_eq!(client.read(200_007).unwrap(), (String::from("hello\n") + &"\0\r".repeat(100_000) + "\n").as_bytes());
}

#[test]
fn the_end_of_one_direction_is_passed_on_while_the_other_goes_on() {
    let stack = Stack::start(&[]);
    let last_words: Arc<Mutex<String>> = Arc::default();
    let heard_last = Arc::clone(&last_words);
    let backend = Backend::start(move |exchange| {
        exchange.switch();
        let mut heard = String::new();
        if exchange.head.contains("X-First: backend") {
            exchange.send("all I have to say");
            exchange.stream.get_ref().shutdown(Shutdown::Write).unwrap();
            exchange.stream.read_to_string(&mut heard).unwrap();
            *heard_last.lock().unwrap() = heard;
        } else {
            exchange.stream.read_to_string(&mut heard).unwrap();
            exchange.send(format!("heard {heard}"));
        }
        false
    });
    stack.list(HOST, &[&backend.url()]);

    let mut client = stack.tunnel("");
    client.send("something");
    client.close_write();
    assert_eq!(client.rest().unwrap(), b"heard something");

    let mut client = stack.planb.connect();
    client.send(format!(
        "GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-First: backend\r\n\r\n"
    ));
    assert_eq!(client.head().unwrap().status, 101);
    assert_eq!(client.rest().unwrap(), b"all I have to say");
    wait_until("the first tunnel is gone", || stack.tunnels() == 1);
    client.send("something else");
    client.close_write();
    wait_until("the backend has heard it", || *last_words.lock().unwrap() == "something else");
    wait_until("the tunnels are gone", || stack.tunnels() == 0);
}

#[test]
fn many_tunnels_at_once_do_not_mix() {
    let (stack, backend) = echo();
    let mut sockets: Vec<_> = (0..100).map(|_| stack.open()).collect();
    assert_eq!((stack.tunnels(), backend.connections()), (100, 100));
    let connections = || stack.planb.count("planb_reverseproxy_connections_current_open");
    wait_until("what is a tunnel is no connection any more", || connections() == 0);
    for (number, socket) in sockets.iter_mut().enumerate() {
        socket.send(Message::text(format!("message {number}"))).unwrap();
    }
    for (number, socket) in sockets.iter_mut().enumerate() {
        assert_eq!(socket.read().unwrap(), Message::text(format!("message {number}")));
    }
    drop(sockets);
    wait_until("the tunnels are gone", || stack.tunnels() == 0);
}

#[test]
fn a_side_that_vanishes_takes_the_other_with_it() {
    let stack = Stack::start(&[]);
    let backend = Backend::start(|exchange| {
        exchange.switch();
        exchange.stream.read_exact(&mut [0; 4]).unwrap();
        SockRef::from(&**exchange.stream.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
        false
    });
    stack.list(HOST, &[&backend.url()]);
    let mut client = stack.tunnel("");
    client.send("stop");
    assert!(client.ends_silently());
    wait_until("the tunnel is gone", || stack.tunnels() == 0);
}

#[test]
fn a_backend_may_speak_tls() {
    let stack = Stack::start(&["--backend-tls-verify=false"]);
    let backend = Backend::start_tls(Backend::echo_messages);
    stack.list(HOST, &[&backend.url()]);
    let mut socket = stack.open();
    socket.send(Message::text("hello")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text("hello"));
}
