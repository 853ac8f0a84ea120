//! WebSockets that clients open over HTTP/2 (RFC 8441), and over HTTP/1.1 under TLS.

use std::{
    io::{Read, Write},
    net::Shutdown,
    sync::{
        Mutex,
        mpsc::{Sender, channel},
    },
    time::Duration,
};

use h2::{Reason, ext::Protocol};
use http::Request;
use socket2::SockRef;
use tokio_tungstenite::tungstenite::{
    self, Bytes, Message, WebSocket, client::IntoClientRequest, handshake::derive_accept_key, protocol::Role,
};

use super::{
    http2::{NAME, Site, get, with},
    http2_bodies::pattern,
    support::{Backend, Exchange, Http2, PATIENCE, Stream, closed_port, connect_tls, wait_until, wait_within},
};

impl Site {
    fn tunnels(&self) -> u64 {
        self.stack.planb.count("planb_reverseproxy_tunnels_current_open")
    }
}

/// An extended CONNECT.
fn opening(protocol: &'static str, path: &str) -> Request<()> {
    let request = with("CONNECT", path).extension(Protocol::from_static(protocol));
    request.header("sec-websocket-version", "13").body(()).unwrap()
}

/// A stream that has become a tunnel.
fn tunnel(client: &mut Http2, path: &str) -> Stream {
    client.wait_for_connect_protocol();
    let mut stream = client.open(opening("websocket", path));
    let head = stream.head();
    assert_eq!(head.status, 200);
    for gone in ["upgrade", "connection", "sec-websocket-accept", "transfer-encoding", "content-length"] {
        assert_eq!(head.header(gone), None, "{gone}");
    }
    stream
}

fn socket(client: &mut Http2, path: &str) -> WebSocket<Stream> {
    WebSocket::from_raw_socket(tunnel(client, path), Role::Client, None)
}

/// Becomes a tunnel and sends back every byte until the other side sends no more.
fn echo_bytes(exchange: &mut Exchange<'_>) -> bool {
    exchange.switch();
    let mut bytes = [0; 8192];
    loop {
        match exchange.read(&mut bytes) {
            Ok(count @ 1..) if exchange.send(&bytes[..count]) => {}
            _ => return false,
        }
    }
}

#[test]
fn messages_of_any_kind_and_size_pass_both_ways() {
    let backend = Backend::websocket_echo();
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    let mut socket = socket(&mut client, "/socket?a=b");
    for message in [Message::text("text \u{e9}"), Message::text(""), Message::binary(vec![7; 4_000_000])] {
        socket.send(message.clone()).unwrap();
        assert!(socket.read().unwrap() == message);
    }
    socket.send(Message::Ping(Bytes::from_static(b"there?"))).unwrap();
    assert_eq!(socket.read().unwrap(), Message::Pong(Bytes::from_static(b"there?")));
    assert_eq!(site.tunnels(), 1);
    assert!(!site.stack.planb.stdout().iter().any(|line| line.contains("/socket")), "it is logged at its end");

    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    drop(socket);
    wait_until("the tunnel is gone", || site.tunnels() == 0);
    let line = site.lines(" /socket ", 1).remove(0);
    assert!(line.contains(" HTTP/2.0\" ") && line.contains(&format!("\"{NAME}\"")), "{line}");
    let bytes: u64 = line.split("HTTP/2.0\" ").nth(1).unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    assert!((4_000_000..4_000_100).contains(&bytes), "{line}");
    assert_eq!(client.ask(get("/")).status, 400, "the backend's own answer, over the same connection");
}

#[test]
fn the_backend_is_asked_in_the_way_of_http_1() {
    let backend = Backend::websocket_echo();
    let site = Site::start(&["--request-id-header=X-Request-Id"], &[&backend.url()]);
    let mut client = site.connect();
    client.wait_for_connect_protocol();
    let request = with("CONNECT", "/socket?a=b").extension(Protocol::from_static("websocket"));
    let request = request.header("origin", "https://http2.test").header("cookie", "a=1").header("cookie", "b=2");
    let mut stream = client.open(request.body(()).unwrap());
    assert_eq!(stream.head().status, 200);
    drop(tunnel(&mut client, "/other"));
    let heads = backend.requests();
    let head = &heads[0];
    assert!(head.starts_with("GET /socket?a=b HTTP/1.1\r\n"), "{head}");
    for line in [
        "Host: http2.test",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Origin: https://http2.test",
        "Cookie: a=1; b=2",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Proto: https",
        "X-Request-Id: ",
    ] {
        assert_eq!(head.matches(&format!("\r\n{line}")).count(), 1, "{line} is not once in {head}");
    }
    for absent in ["content-length", "transfer-encoding", ":protocol", "te:"] {
        assert!(!head.to_lowercase().contains(&format!("\r\n{absent}")), "{head}");
    }
    let key = |head: &String| {
        let line = head.split("\r\n").find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
        line.unwrap_or_else(|| panic!("no key in {head}")).to_owned()
    };
    // Sixteen bytes in base64.
    assert!(key(head).len() == 24 && key(head).ends_with("=="), "{head}");
    assert_ne!(key(head), key(&heads[1]));
}

#[test]
fn what_the_two_sides_negotiate_passes() {
    let backend = Backend::start(|exchange| {
        let accept = derive_accept_key(exchange.header("sec-websocket-key").unwrap().as_bytes());
        let protocol = exchange.header("sec-websocket-protocol").unwrap().split(", ").next().unwrap();
        let extensions = exchange.header("sec-websocket-extensions").unwrap();
        exchange.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade, X-Private\r\nX-Private: 1\r\n\
             Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {protocol}\r\n\
             Sec-WebSocket-Extensions: {extensions}\r\nSet-Cookie: a=1\r\n\r\nat once"
        ));
        exchange.read(&mut [0]).is_ok_and(|_| false)
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    client.wait_for_connect_protocol();
    let mut request = opening("websocket", "/");
    for (name, value) in [
        ("sec-websocket-protocol", "chat, superchat"),
        ("sec-websocket-extensions", "permessage-deflate"),
        ("x-debug-router", "1"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let mut stream = client.open(request);
    let head = stream.head();
    assert_eq!((head.status, head.header("sec-websocket-protocol")), (200, Some("chat")));
    assert_eq!(head.header("sec-websocket-extensions"), Some("permessage-deflate"));
    assert_eq!(head.header("set-cookie"), Some("a=1"));
    assert_eq!(head.header("x-debug-frontend-key"), Some(NAME));
    assert_eq!((head.header("x-private"), head.header("connection")), (None, None));
    let mut early = [0; 7];
    stream.read_exact(&mut early).unwrap();
    assert_eq!(&early, b"at once");
}

#[test]
fn many_websockets_and_requests_share_a_connection() {
    let backend = Backend::websocket_echo();
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    let mut sockets: Vec<_> = (0..40).map(|number| socket(&mut client, &format!("/{number}"))).collect();
    assert_eq!((site.tunnels(), backend.connections()), (40, 40));
    assert_eq!(site.stack.planb.count("planb_reverseproxy_connections_current_open"), 1);
    for (number, socket) in sockets.iter_mut().enumerate() {
        socket.send(Message::text(format!("message {number}"))).unwrap();
        assert_eq!(client.ask(get("/")).status, 400, "the backend's own answer");
    }
    for (number, socket) in sockets.iter_mut().enumerate().rev() {
        assert_eq!(socket.read().unwrap(), Message::text(format!("message {number}")));
    }
    drop(client);
    wait_until("the tunnels are gone with their connection", || site.tunnels() == 0);
}

#[test]
fn the_end_of_one_direction_is_passed_on_while_the_other_goes_on() {
    half_closes(&[], |_| ());
}

/// The half that is still open is no idle connection.
#[test]
fn a_half_that_is_open_keeps_its_connection_from_being_idle() {
    half_closes(&["--client-idle-timeout=1s"], |site| {
        let mut idle = site.connect();
        assert_eq!(idle.ask(get("/")).status, 400);
        let _ = idle.end();
    });
}

/// Opens tunnels of which each side ends its direction first, and does something else while one half is open.
fn half_closes(arguments: &[&str], meanwhile: impl Fn(&Site)) {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let backend = Backend::start(move |exchange| {
        let mut heard = String::new();
        if exchange.head.contains("/backend-first") {
            exchange.switch();
            exchange.send("all I have to say");
            exchange.stream.get_ref().shutdown(Shutdown::Write).unwrap();
            let _ = exchange.read_to_string(&mut heard);
            tell.lock().unwrap().send(heard).unwrap();
        } else if exchange.head.contains("/client-first") {
            exchange.switch();
            let _ = exchange.read_to_string(&mut heard);
            exchange.send(format!("heard {heard}"));
        } else {
            exchange.answer("400 Bad Request", "", b"");
        }
        false
    });
    let site = Site::start(arguments, &[&backend.url()]);
    let mut client = site.connect();
    let mut stream = tunnel(&mut client, "/client-first");
    stream.send("something");
    stream.finish();
    assert_eq!(stream.rest().unwrap(), b"heard something");

    let mut stream = tunnel(&mut client, "/backend-first");
    assert_eq!(stream.rest().unwrap(), b"all I have to say");
    wait_until("the first tunnel is gone", || site.tunnels() == 1);
    meanwhile(&site);
    stream.send("something ");
    stream.send("else");
    stream.finish();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "something else");
    wait_until("the tunnels are gone", || site.tunnels() == 0);
    site.lines("-first ", 2);
}

#[test]
fn a_side_that_breaks_off_takes_the_other_with_it() {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let backend = Backend::start(move |exchange| {
        exchange.switch();
        if exchange.head.contains("/break") {
            exchange.read_exact(&mut [0; 4]).unwrap();
            SockRef::from(&**exchange.stream.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
            return false;
        }
        while exchange.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
        tell.lock().unwrap().send(()).unwrap();
        false
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    let mut stream = tunnel(&mut client, "/break");
    stream.send("stop");
    // An orderly end or not: a WebSocket knows by itself whether it was closed.
    let _ = stream.rest();
    wait_until("the tunnel is gone", || site.tunnels() == 0);

    for reason in [Reason::CANCEL, Reason::INTERNAL_ERROR] {
        let mut stream = tunnel(&mut client, "/reset");
        stream.send("hello");
        stream.reset(reason);
        told.recv_timeout(PATIENCE).unwrap();
        wait_until("the tunnel is gone", || site.tunnels() == 0);
    }
    assert!(client.is_open());
}

/// A backend that neither speaks nor closes when its client has ended its side.
fn silent() -> (Backend, Sender<()>) {
    let (release, released) = channel::<()>();
    let released = Mutex::new(released);
    let backend = Backend::start(move |exchange| {
        exchange.switch();
        let _ = released.lock().unwrap().recv();
        false
    });
    (backend, release)
}

#[test]
fn a_connection_that_ends_takes_tunnels_to_silent_backends_with_it() {
    let (backend, _release) = silent();
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    let stream = tunnel(&mut client, "/silent");
    assert_eq!(site.tunnels(), 1);
    drop(client);
    wait_until("the tunnel is gone", || site.tunnels() == 0);
    drop(stream);
}

/// RFC 8441 section 5: a reset is what RST is in TCP, and not the end of one direction.
#[test]
fn a_reset_ends_a_tunnel_to_a_silent_backend() {
    let (backend, _release) = silent();
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    let mut stream = tunnel(&mut client, "/silent");
    stream.send("hello");
    assert_eq!(site.tunnels(), 1);
    stream.reset(Reason::CANCEL);
    wait_within(Duration::from_secs(5), "the tunnel is gone", || site.tunnels() == 0);
    site.lines("/silent", 1);
}

#[test]
fn a_tunnel_that_the_client_does_not_read_keeps_little() {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let backend = Backend::start(move |exchange| {
        exchange.switch();
        let tell = tell.lock().unwrap().clone();
        while exchange.send(vec![0; 50_000]) {
            tell.send(50_000).unwrap();
        }
        false
    });
    let site = Site::start(&["--workers=1"], &[&backend.url()]);
    let before = site.stack.planb.metric("process_resident_memory_bytes");
    let mut client = site.connect();
    let stream = tunnel(&mut client, "/");
    let mut taken: usize = told.recv_timeout(PATIENCE).unwrap();
    while let Ok(more) = told.recv_timeout(Duration::from_millis(500)) {
        taken += more;
        assert!(taken < 60_000_000, "the proxy takes what the client does not");
    }
    let grown = site.stack.planb.metric("process_resident_memory_bytes") - before;
    assert!(grown < 40e6, "{grown} bytes more are in memory");
    drop(stream);
    wait_until("the tunnel is gone", || site.tunnels() == 0);
}

#[test]
fn a_backend_that_opens_no_websocket_is_not_taken_for_one() {
    let backend = Backend::start(|exchange| {
        let path = exchange.head.split(' ').nth(1).unwrap().to_owned();
        match &*path {
            "/refused" => exchange.answer("403 Forbidden", "X-A: b\r\n", b"no socket here"),
            "/moved" => exchange.answer("302 Found", "Location: /elsewhere\r\n", b""),
            "/version" => exchange.answer("426 Upgrade Required", "Sec-WebSocket-Version: 8\r\n", b""),
            "/page" => exchange.answer("200 OK", "", b"a page"),
            "/empty" => exchange.answer("204 No Content", "", b""),
            "/forged" => drop(exchange.send(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
            )),
            "/bare" => drop(
                exchange.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
            ),
            _ => return false,
        }
        !matches!(&*path, "/forged" | "/bare")
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    client.wait_for_connect_protocol();
    for (path, status, body) in [
        ("/refused", 403, "no socket here"),
        ("/moved", 302, ""),
        ("/version", 426, ""),
        ("/page", 503, ""),
        ("/empty", 503, ""),
        ("/forged", 503, ""),
        ("/bare", 503, ""),
        ("/closed", 503, ""),
    ] {
        let mut stream = client.open(opening("websocket", path));
        let response = stream.response();
        assert_eq!((response.status, response.text().as_str()), (status, body), "{path}");
        let line = site.lines(&format!(" {path} "), 1).remove(0);
        assert!(line.contains(&format!("HTTP/2.0\" {status} {} ", body.len())), "{line}");
    }
    site.stack.planb.wait_for_log("/page - : - the backend opened no WebSocket");
    assert_eq!(site.tunnels(), 0);
    assert_eq!(site.stack.planb.count("planb_router_backend_markdead_total"), 0);
    assert!(client.is_open());
}

#[test]
fn a_refusing_backend_costs_no_client_its_websocket() {
    let (_guard, refusing) = closed_port();
    let backend = Backend::websocket_echo();
    let site = Site::start(&[], &[&refusing, &backend.url()]);
    let mut client = site.connect();
    for _ in 0..4 {
        let mut socket = socket(&mut client, "/");
        socket.send(Message::text("hello")).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text("hello"));
    }
    assert!(site.stack.planb.wait_for_log("*DEAD*").contains(&refusing));
    assert_eq!(site.stack.planb.count("planb_router_backend_markdead_total"), 1);

    site.stack.list("single.test", &[&refusing]);
    let request =
        Request::builder().method("CONNECT").uri("https://single.test/").extension(Protocol::from_static("websocket"));
    let response = client.open(request.body(()).unwrap()).response();
    assert_eq!((response.status, response.text().as_str()), (503, ""));
    let request =
        Request::builder().method("CONNECT").uri("https://nowhere.test/").extension(Protocol::from_static("websocket"));
    let response = client.open(request.body(()).unwrap()).response();
    assert_eq!((response.status, response.text().as_str()), (400, "no such route"));
}

#[test]
fn no_other_protocol_can_be_opened() {
    let backend = Backend::websocket_echo();
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    client.wait_for_connect_protocol();
    for protocol in ["connect-udp", "websocket2", "", "websocket, h2c"] {
        assert_eq!(client.open(opening(protocol, "/")).response().status, 400, "{protocol:?}");
    }
    let plain = Request::builder().method("CONNECT").uri("http2.test:443").body(()).unwrap();
    assert_eq!(client.open(plain).response().status, 400);
    assert!(backend.requests().is_empty());
    let mut socket = socket(&mut client, "/");
    socket.send(Message::text("hello")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text("hello"));
}

#[test]
fn bytes_pass_as_they_are_in_both_directions_at_once() {
    let backend = Backend::start(echo_bytes);
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    let mut streams: Vec<_> = (0..4).map(|number| tunnel(&mut client, &format!("/{number}"))).collect();
    std::thread::scope(|scope| {
        for (seed, stream) in streams.iter_mut().enumerate() {
            scope.spawn(move || {
                for round in 0..40_usize {
                    let sent = pattern(30_000 + 100 * seed + round);
                    stream.write_all(&sent).unwrap();
                    let mut received = vec![0; sent.len()];
                    stream.read_exact(&mut received).unwrap();
                    assert!(received == sent);
                }
                stream.finish();
                assert!(stream.rest().unwrap().is_empty());
            });
        }
    });
    wait_until("the tunnels are gone", || site.tunnels() == 0);
}

#[test]
fn a_websocket_may_be_opened_over_tls_without_http_2() {
    let backend = Backend::websocket_echo();
    let site = Site::start(&[], &[&backend.url()]);
    for protocols in [&["http/1.1"][..], &[]] {
        let stream = connect_tls(&site.authority.client(protocols), site.stack.planb.tls_address(), NAME).unwrap();
        let request = format!("wss://{NAME}/secure").into_client_request().unwrap();
        let (mut socket, response) = tungstenite::client(request, stream).unwrap();
        assert_eq!(response.status().as_u16(), 101);
        for message in [Message::text("hello"), Message::binary(vec![7; 1_000_000])] {
            socket.send(message.clone()).unwrap();
            assert!(socket.read().unwrap() == message);
        }
        assert_eq!(site.tunnels(), 1);
        socket.close(None).unwrap();
        while socket.read().is_ok() {}
        drop(socket);
        wait_until("the tunnel is gone", || site.tunnels() == 0);
    }
    assert!(backend.requests().iter().all(|head| head.contains("\r\nX-Forwarded-Proto: https")));
    assert!(site.lines(" /secure HTTP/1.1\" 101 ", 2).len() == 2);
}
