//! HTTP/2 with clients that are late, and with a proxy that is about to end.

use std::{io::Read, net::TcpStream, thread, time::Duration};

use h2::{Reason, client::Builder, ext::Protocol};
use tokio_tungstenite::tungstenite::{Message, WebSocket, protocol::Role};

use super::{
    http2::{NAME, Site, get, with},
    http2_junk::{CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PLAIN, Raw, Verdict, fields, frame},
    support::{Backend, Http2, Stream, wait_until, wait_within},
};

const TIMEOUTS: &str = "planb_reverseproxy_client_timeouts_total";

fn websocket(client: &mut Http2) -> WebSocket<Stream> {
    client.wait_for_connect_protocol();
    let request = with("CONNECT", "/socket").extension(Protocol::from_static("websocket")).body(()).unwrap();
    let mut stream = client.open(request);
    assert_eq!(stream.head().status, 200);
    WebSocket::from_raw_socket(stream, Role::Client, None)
}

fn says(socket: &mut WebSocket<Stream>, text: &str) {
    socket.send(Message::text(text.to_owned())).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text(text.to_owned()));
}

/// A backend that never answers `/never`, never ends its answer to `/endless`, and else answers at once.
pub fn slow() -> Backend {
    Backend::start(|exchange| {
        match exchange.head.split(' ').nth(1).unwrap() {
            "/never" => {}
            "/endless" => {
                exchange.send("HTTP/1.1 200 OK\r\n\r\n");
                while exchange.send(vec![0; 65_536]) {}
            }
            "/socket" => return Backend::echo_messages(exchange),
            "/upload" => {
                let _ = exchange.read_to_end(&mut Vec::new());
                return false;
            }
            _ => {
                exchange.read_body();
                exchange.answer("200 OK", "", b"ok");
                return true;
            }
        }
        // Until the proxy gives the client up.
        let _ = exchange.read(&mut [0]);
        false
    })
}

#[test]
fn where_there_is_no_room_a_connection_without_streams_goes_and_no_other() {
    let (backend, gate) = Backend::holding();
    let site = Site::start(&["--max-connections=1", "--workers=1"], &[&backend.url()]);
    let mut client = Http2::connect(&site.authority, site.stack.planb.tls_address(), NAME);
    let mut stream = client.begin(get("/held"));
    wait_until("it is asked", || !backend.requests().is_empty());
    let mut next = site.stack.planb.connect();
    next.send(format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n"));
    site.stack.planb.wait_for_log("the connection limit is reached");
    assert!(client.is_open());
    gate.open();
    assert_eq!(stream.response().status, 200);
    assert_eq!(next.response().status, 200);
    wait_until("it is told to go", || !client.is_open());
}

#[test]
fn the_idle_timeout_ends_connections_without_streams_and_no_others() {
    let (backend, gate) = Backend::holding();
    let site = Site::start(&["--client-idle-timeout=1s"], &[&backend.url()]);
    let sockets = Backend::websocket_echo();
    site.stack.list("sockets.test", &[&sockets.url()]);
    let (mut idle, mut fresh, mut busy, mut tunnelled) =
        (site.connect(), site.connect(), site.connect(), site.connect());
    tunnelled.wait_for_connect_protocol();
    let request = http::Request::builder().method("CONNECT").uri("https://sockets.test/");
    let mut stream = tunnelled.open(request.extension(Protocol::from_static("websocket")).body(()).unwrap());
    assert_eq!(stream.head().status, 200);
    let mut socket = WebSocket::from_raw_socket(stream, Role::Client, None);
    let mut held = busy.begin(get("/held"));
    assert_eq!(busy.ask(get("/")).text(), "done", "another stream's end does not make it idle");
    assert_eq!(idle.ask(get("/")).text(), "done");
    // With a GOAWAY, or just so.
    let _ = idle.end();
    let _ = fresh.end();
    says(&mut socket, "still here");
    gate.open();
    assert_eq!(held.response().text(), "done");
    let _ = busy.end();
    says(&mut socket, "still here");
    assert_eq!(site.stack.planb.count(TIMEOUTS), 3);
}

/// However its last stream has ended, a connection is idle from then on.
#[test]
fn a_connection_is_idle_after_its_last_stream_whatever_became_of_that() {
    let backend = slow();
    let site = Site::start(&["--client-idle-timeout=1s", "--client-write-timeout=2s"], &[&backend.url()]);
    let (mut reset, mut late, mut broken, mut closed) =
        (site.connect(), site.connect(), site.connect(), site.connect());
    let mut stream = reset.begin(get("/never"));
    let mut second = broken.begin(get("/endless"));
    assert_eq!(second.head().status, 200);
    let mut third = late.begin(get("/never"));
    let mut socket = websocket(&mut closed);
    wait_until("the backend has them", || backend.requests().len() == 4);
    stream.reset(Reason::CANCEL);
    drop(second);
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    drop(socket);
    assert!(third.try_head().is_err());
    for mut client in [reset, broken, closed, late] {
        let _ = client.end();
    }
}

#[test]
fn the_write_timeout_resets_late_streams_and_no_others() {
    let backend = slow();
    let site = Site::start(&["--client-write-timeout=1s"], &[&backend.url()]);
    // What is not read of one stream leaves room for the others.
    let mut settings = Builder::new();
    settings.initial_connection_window_size(10_000_000);
    let mut client = Http2::with(&settings, &site.authority, site.stack.planb.tls_address(), NAME);
    let mut socket = websocket(&mut client);
    let (mut never, mut endless) = (client.begin(get("/never")), client.begin(get("/endless")));
    assert_eq!(endless.head().status, 200);
    let mut unread = client.begin(get("/endless"));
    assert_eq!(unread.head().status, 200);
    assert!(never.try_head().is_err_and(|error| error.is_reset()));
    assert!(endless.rest().is_err_and(|error| error.is_reset()));
    assert_ne!(unread.reset_by_server(), Reason::NO_ERROR);
    assert_eq!(client.ask(get("/")).text(), "ok");
    says(&mut socket, "still here");
    assert!(client.is_open());
    assert_eq!(site.stack.planb.count(TIMEOUTS), 3);
    assert!(site.lines(" /never ", 1)[0].contains("HTTP/2.0\" 499 0 "));
    assert_eq!(site.lines(" /endless ", 2).len(), 2);
}

#[test]
fn the_read_timeout_resets_stalled_uploads_and_no_others() {
    let backend = slow();
    let site = Site::start(&["--client-read-timeout=1s"], &[&backend.url()]);
    let mut client = site.connect();
    let (holding, gate) = Backend::holding_bodies();
    site.stack.list("held.test", &[&holding.url()]);
    let mut waiting = client.begin(http::Request::get("https://held.test/held").body(()).unwrap());
    assert_eq!(waiting.head().status, 200);
    let mut socket = websocket(&mut client);
    let mut stalled = client.open(with("POST", "/upload").body(()).unwrap());
    stalled.send("some");
    assert!(stalled.try_head().is_err_and(|error| error.is_reset()));
    gate.open();
    assert_eq!(waiting.rest().unwrap(), b"done", "a response takes as long as it takes");
    says(&mut socket, "still here");
    assert_eq!(client.exchange(with("POST", "/").body(()).unwrap(), b"all").text(), "ok");
    assert_eq!(site.stack.planb.count(TIMEOUTS), 1);
}

#[test]
fn the_header_timeout_ends_connections_that_ask_for_nothing() {
    let backend = slow();
    let site = Site::start(&["--client-read-header-timeout=1s"], &[&backend.url()]);
    let (mut asked, mut fresh) = (site.connect(), site.connect());
    assert_eq!(asked.ask(get("/")).text(), "ok");
    let mut half = Raw::connect(&site);
    half.send(&frame(HEADERS, END_STREAM, 1, &fields(&[(":method", "GET")])));
    let _ = fresh.end();
    half.until_closed();
    assert_eq!(asked.ask(get("/")).text(), "ok");
    assert_eq!(site.stack.planb.count(TIMEOUTS), 2);
}

#[test]
fn where_memory_is_short_a_client_that_takes_nothing_goes_and_one_that_is_served_does_not() {
    let (backend, (holding, gate)) = (slow(), Backend::holding());
    let site = Site::start(&["--max-memory=1"], &[&backend.url()]);
    site.stack.list("held.test", &[&holding.url()]);
    let mut served = site.connect();
    let mut waiting = served.begin(http::Request::get("https://held.test/held").body(()).unwrap());
    let mut slow = Raw::connect(&site);
    let endless = [(":method", "GET"), (":scheme", "https"), (":authority", NAME), (":path", "/endless")];
    slow.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields(&endless)));
    slow.until_closed();
    wait_until("it is counted", || site.stack.planb.count("planb_reverseproxy_clients_shed_total") == 1);
    gate.open();
    assert_eq!(waiting.head().status, 200);
    assert_eq!(waiting.rest().unwrap(), b"done");
}

/// As in HTTP/1. Nothing else can be sent on a connection while a head is incomplete (RFC 9113 section 6.10).
#[test]
fn a_second_head_that_never_ends_leaves_the_connection_idle() {
    let backend = slow();
    let site = Site::start(&["--client-idle-timeout=1s"], &[&backend.url()]);
    let mut raw = Raw::connect(&site);
    raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields(&PLAIN)));
    assert_eq!(raw.verdict(), Verdict::Status(200));
    raw.send(&frame(HEADERS, END_STREAM, 3, &fields(&PLAIN)));
    raw.until_closed();
}

#[test]
fn the_header_timeout_ends_heads_that_come_in_pieces_whatever_came_before() {
    let backend = slow();
    let site = Site::start(&["--client-read-header-timeout=1s"], &[&backend.url()]);
    let mut raw = Raw::connect(&site);
    let head = fields(&PLAIN);
    let (first, rest) = head.split_at(1);
    for stream in [1, 3] {
        raw.send(&frame(HEADERS, END_STREAM, stream, first));
        // The proxy has to see this piece by itself, and answers nothing to it.
        thread::sleep(Duration::from_millis(100));
        raw.send(&frame(CONTINUATION, END_HEADERS, stream, rest));
        assert_eq!(raw.verdict_of(stream), Verdict::Status(200));
    }
    raw.send(&frame(HEADERS, END_STREAM, 5, first));
    raw.until_closed();
    assert_eq!(site.stack.planb.count(TIMEOUTS), 1);
}

fn wait_until_refused(site: &Site) {
    wait_until("new connections are refused", || TcpStream::connect(site.stack.planb.tls_address()).is_err());
}

#[test]
fn streams_in_flight_finish_when_the_proxy_drains() {
    let (backend, gate) = Backend::holding();
    let mut site = Site::start(&[], &[&backend.url()]);
    let (mut idle, mut busy) = (site.connect(), site.connect());
    assert_eq!(idle.ask(get("/")).text(), "done");
    let mut held: Vec<_> = (0..10).map(|_| busy.begin(get("/held"))).collect();
    wait_until("they are in flight", || backend.requests().len() == 11);
    site.stack.planb.signal("TERM");
    wait_until_refused(&site);
    // Its own goodbye may come too late.
    let _ = idle.end();
    wait_until("no more requests are taken", || {
        busy.try_begin(get("/late"), true)
            .is_err_and(|error| error.is_go_away() && error.reason() == Some(Reason::NO_ERROR))
    });
    assert!(!site.stack.planb.has_exited());
    gate.open();
    for stream in &mut held {
        assert_eq!(stream.response().text(), "done");
    }
    let _ = busy.end();
    assert_eq!(site.stack.planb.wait_for_exit().code(), Some(0));
}

/// A client that has shaken hands, and has said nothing since.
#[test]
fn a_silent_client_does_not_hold_up_the_drain() {
    let backend = slow();
    let mut site = Site::start(&[], &[&backend.url()]);
    let _silent = Raw::bare(&site);
    ends_soon(&mut site);
}

/// As do those that have lost their network. There is no stream to wait for, whether they answer our PING or not.
#[test]
fn an_idle_client_that_no_longer_answers_does_not_hold_up_the_drain() {
    let backend = slow();
    let mut site = Site::start(&[], &[&backend.url()]);
    let mut idle = Raw::connect(&site);
    idle.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields(&PLAIN)));
    assert_eq!(idle.verdict(), Verdict::Status(200));
    ends_soon(&mut site);
}

fn ends_soon(site: &mut Site) {
    site.stack.planb.signal("TERM");
    wait_within(Duration::from_secs(5), "the proxy has ended", || site.stack.planb.has_exited());
    assert_eq!(site.stack.planb.wait_for_exit().code(), Some(0));
}

#[test]
fn a_websocket_keeps_working_while_the_proxy_drains() {
    for second in [None, Some("TERM")] {
        let backend = slow();
        let mut site = Site::start(&[], &[&backend.url()]);
        let mut client = site.connect();
        let mut socket = websocket(&mut client);
        site.stack.planb.signal("TERM");
        wait_until_refused(&site);
        says(&mut socket, "still");
        says(&mut socket, "here");
        assert!(!site.stack.planb.has_exited());
        if let Some(second) = second {
            site.stack.planb.signal(second);
            assert_eq!(site.stack.planb.wait_for_exit().code(), Some(143));
            assert!(socket.read().is_err());
        } else {
            socket.close(None).unwrap();
            while socket.read().is_ok() {}
            drop(socket);
            let _ = client.end();
            assert_eq!(site.stack.planb.wait_for_exit().code(), Some(0));
        }
    }
}
