//! Slow, stalled and too many clients: what each may take, and that it takes nothing from the others.

use std::{
    io::{ErrorKind, Read, Write},
    sync::{Mutex, mpsc::channel},
};

use super::support::{Backend, Client, Exchange, Planb, Stack, get, redis, redis_cli, redis_pair, wait_until};

const HOST: &str = "limits.test";

/// Starts a proxy with these flags and a route to `backend`.
fn limited(backend: &Backend, arguments: &[&str]) -> Stack {
    let stack = Stack::start(arguments);
    stack.list(HOST, &[&backend.url()]);
    stack
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")
}

/// Whether the proxy has closed a connection on which nothing else can have come.
fn has_ended(client: &Client) -> bool {
    client.socket().set_nonblocking(true).unwrap();
    let peeked = client.socket().peek(&mut [0]);
    client.socket().set_nonblocking(false).unwrap();
    !matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// Sends bytes one by one for as long as the connection stands.
fn trickle(client: &mut Client) {
    wait_until("a trickling client is cut off", || client.try_send("x").is_err());
}

fn timeouts(planb: &Planb) -> u64 {
    planb.count("planb_reverseproxy_client_timeouts_total")
}

#[test]
fn the_idle_timeout_cuts_connections_between_requests_and_no_others() {
    let backend = Backend::named("ok");
    let stack = limited(&backend, &["--client-idle-timeout=1s"]);
    let mut half = stack.planb.connect();
    half.send("GET / HT");
    let mut idle = stack.planb.connect();
    assert_eq!(idle.get(HOST, "/").text(), "ok");
    let mut fresh = stack.planb.connect();
    assert!(idle.ends_silently());
    assert!(fresh.ends_silently(), "a connection without any request is idle too");
    half.send(&request("/")["GET / HT".len()..]);
    assert_eq!(half.response().text(), "ok");
    wait_until("timeouts are counted", || timeouts(&stack.planb) == 2);
}

#[test]
fn the_header_timeout_cuts_slow_heads_and_no_others() {
    let backend = Backend::named("ok");
    let stack = limited(&backend, &["--client-read-header-timeout=1s"]);
    let mut idle = stack.planb.connect();
    assert_eq!(idle.get(HOST, "/").text(), "ok");
    let mut uploading = stack.planb.connect();
    uploading.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\nbo"));

    let (mut second, mut slow, mut fresh) = (stack.planb.connect(), stack.planb.connect(), stack.planb.connect());
    assert_eq!(second.get(HOST, "/").text(), "ok");
    second.send("G");
    slow.send(&request("/")[..20]);
    trickle(&mut slow);
    assert!(second.ends_silently(), "a second head is limited like the first");
    assert!(fresh.ends_silently(), "a connection's first head is limited from its beginning");

    assert_eq!(idle.get(HOST, "/").text(), "ok");
    uploading.send("dy");
    assert_eq!(uploading.response().text(), "ok");
    assert_eq!(timeouts(&stack.planb), 3);
}

#[test]
fn the_read_timeout_cuts_slow_requests_and_no_slow_responses() {
    let (release, released) = channel::<()>();
    let released = Mutex::new(released);
    let backend = Backend::start(move |exchange| {
        if exchange.head.starts_with("GET /slow") {
            // Until another request has been cut off.
            exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no");
            released.lock().unwrap().recv().unwrap();
            return exchange.send("k");
        }
        let mut body = Vec::new();
        if exchange.head.starts_with("POST /endless") {
            // The proxy closes the connection when it gives the client up.
            let _ = exchange.read_to_end(&mut body);
            return false;
        }
        exchange.read_body();
        exchange.answer("200 OK", "", b"ok");
        true
    });
    let stack = limited(&backend, &["--client-read-timeout=1s"]);
    let mut waiting = stack.planb.connect();
    waiting.send(request("/slow"));
    let mut idle = stack.planb.connect();
    assert_eq!(idle.get(HOST, "/").text(), "ok");

    let (mut slow, mut half) = (stack.planb.connect(), stack.planb.connect());
    slow.send(format!("POST /endless HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\n"));
    half.send("POST");
    trickle(&mut slow);
    assert!(half.ends_silently(), "a head is part of its request");

    release.send(()).unwrap();
    assert_eq!(waiting.response().text(), "ok");
    assert_eq!(idle.get(HOST, "/").text(), "ok");
    assert_eq!(timeouts(&stack.planb), 2);
}

#[test]
fn the_write_timeout_cuts_slow_responses_and_nothing_else() {
    let backend = Backend::start(|exchange| {
        if exchange.head.starts_with("GET /endless") {
            exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
            while exchange.send(vec![0; 65_536]) {}
            return false;
        }
        if exchange.head.starts_with("GET /never") {
            // The proxy closes the connection when it gives the client up.
            let _ = exchange.read(&mut [0]);
            return false;
        }
        exchange.answer("200 OK", "", b"ok");
        true
    });
    let stack = limited(&backend, &["--client-write-timeout=1s"]);
    let (mut idle, mut half) = (stack.planb.connect(), stack.planb.connect());
    assert_eq!(idle.get(HOST, "/").text(), "ok");
    half.send("GET / HT");

    let (mut deaf, mut waiting) = (stack.planb.connect(), stack.planb.connect());
    deaf.send(request("/endless"));
    waiting.send(request("/never"));
    wait_until("the client that does not read is cut off", || timeouts(&stack.planb) == 2);
    assert!(deaf.try_response().is_err(), "the response looks complete");
    assert!(waiting.ends_silently());

    assert_eq!(idle.get(HOST, "/").text(), "ok");
    half.send(&request("/")["GET / HT".len()..]);
    assert_eq!(half.response().text(), "ok");
    assert_eq!(timeouts(&stack.planb), 2);
}

#[test]
fn tunnels_have_no_deadline() {
    let backend = Backend::start(|exchange| {
        if exchange.header("upgrade").is_none() {
            exchange.answer("200 OK", "", b"ok");
            return true;
        }
        exchange.switch();
        let mut message = [0; 4];
        exchange.read_exact(&mut message).is_ok_and(|()| exchange.send(message))
    });
    let flags = ["read", "read-header", "write", "idle"].map(|name| format!("--client-{name}-timeout=1s"));
    let stack = limited(&backend, &flags.each_ref().map(String::as_str));
    let mut tunnel = stack.planb.connect();
    tunnel.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"));
    assert_eq!(tunnel.head().unwrap().status, 101);
    assert!(stack.planb.connect().ends_silently());
    tunnel.send("ping");
    assert_eq!(tunnel.read(4).unwrap(), b"ping");
}

#[test]
fn clients_beyond_the_limit_wait_for_their_turn() {
    let (backend, gate) = Backend::holding();
    let stack = limited(&backend, &["--max-connections=2", "--workers=1"]);
    let ask = |path: &str| {
        let mut client = stack.planb.connect();
        client.send(request(path));
        client
    };
    let mut clients = vec![ask("/held"), ask("/held")];
    wait_until("both are served", || backend.requests().len() == 2);
    clients.extend([ask("/2"), ask("/3")]);
    stack.planb.wait_for_log("the connection limit is reached");
    assert_eq!(stack.planb.count("planb_reverseproxy_clients_dismissed_total"), 0, "both are in a request");

    // Each answer makes room, because its client has nothing more to say.
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response().text(), "done");
    }
    wait_until("two have gone", || clients.iter().filter(|client| has_ended(client)).count() == 2);
    assert!(!has_ended(&clients[3]));
    assert_eq!(stack.planb.count("planb_reverseproxy_clients_dismissed_total"), 2);
}

#[test]
fn where_there_is_no_room_the_connection_that_has_waited_for_the_longest_goes() {
    let backend = Backend::named("ok");
    for workers in ["--workers=1", "--workers=3"] {
        let stack = limited(&backend, &["--max-connections=50", workers]);
        // Some have asked for something, others have never said a word.
        let mut idle: Vec<Client> = (0..50).map(|_| stack.planb.connect()).collect();
        for client in idle.iter_mut().step_by(2) {
            assert_eq!(client.get(HOST, "/").text(), "ok");
        }
        wait_until("all are there", || stack.planb.count("planb_reverseproxy_connections_current_open") == 50);
        for _ in 0..30 {
            assert_eq!(stack.planb.ask(HOST), "ok");
        }
        let dismissed = stack.planb.count("planb_reverseproxy_clients_dismissed_total");
        assert!((1..=30).contains(&dismissed), "{dismissed}");
        assert_eq!(idle.iter().filter(|client| has_ended(client)).count() as u64, dismissed);
        if workers == "--workers=1" {
            assert!(has_ended(&idle[1]) && !has_ended(&idle[48]), "the last one has waited for the shortest time");
        }
    }
}

/// A backend whose answer has no end that anybody waits for.
fn endless() -> Backend {
    Backend::start(|exchange| {
        exchange.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {ENDLESS}\r\n\r\n"));
        while exchange.stream.get_mut().write_all(&[0; 16_384]).is_ok() {}
        false
    })
}

const ENDLESS: u64 = 1_000_000_000_000;

#[test]
fn where_memory_is_short_those_go_that_wait_or_hold_something_up_and_no_others() {
    let (backend, gate) = Backend::holding();
    let stack = limited(&backend, &["--max-memory=1"]);
    let endless = endless();
    stack.list("endless.test", &[&endless.url()]);
    let mut served = stack.planb.connect();
    served.send(request("/held"));
    let [mut reading, mut half, mut uploading, mut idle] = std::array::from_fn(|_| stack.planb.connect());
    reading.send("GET / HTTP/1.1\r\nHost: endless.test\r\n\r\n");
    half.send("GET / HT");
    uploading.send(format!("GET /held HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\nbo"));
    for client in [&mut idle, &mut half, &mut uploading] {
        assert!(client.ends_silently());
    }
    stack.planb.wait_for_log("there is too little memory");
    wait_until("all four are counted", || stack.planb.count("planb_reverseproxy_clients_shed_total") == 4);
    let mut read = 0;
    while let Ok(count @ 1..) = reading.socket().read(&mut [0; 16_384]) {
        read += count as u64;
    }
    assert!(read < ENDLESS);
    gate.open();
    assert_eq!(served.response().text(), "done");
}

#[test]
fn a_lack_of_descriptors_passes_and_no_backend_dies_of_it() {
    let backend = Backend::named("ok");
    let (master, replica) = redis_pair();
    redis(&replica, &["CONFIG", "SET", "replica-read-only", "no"]);
    redis(&replica, &["RPUSH", &format!("frontend:{HOST}"), "id", &backend.url()]);
    let planb =
        Planb::builder(&replica, &master).arguments(&["--workers=1", "--max-connections=1000"]).descriptors(64).start();
    let mut admitted = planb.connect();
    let others: Vec<Client> = (0..100).map(|_| planb.connect()).collect();
    planb.wait_for_log("no connection can be accepted");
    // None is left for a backend either.
    let response = admitted.get(HOST, "/");
    assert_eq!((response.status, response.text().as_str()), (503, ""));
    planb.wait_for_log("no more connections can be made from here");

    drop(others);
    wait_until("there are descriptors again", || get(planb.address(), HOST, "/").text() == "ok");
    assert_eq!(admitted.get(HOST, "/").text(), "ok");
    assert_eq!(planb.count("planb_router_backend_markdead_total"), 0);
    assert_eq!(redis_cli(&master, &["EXISTS", &format!("dead:{HOST}")]), "0");
}

#[test]
fn stalled_clients_and_backends_do_not_disturb_others() {
    let stack = Stack::start(&["--workers=1"]);
    let backend = Backend::start(|exchange: &mut Exchange<'_>| match exchange.head.split(' ').nth(1).unwrap() {
        "/stalled" => exchange.read(&mut [0]).is_ok_and(|read| read > 0),
        "/half" => {
            exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
            exchange.read(&mut [0]).is_ok_and(|read| read > 0)
        }
        "/endless" => {
            exchange.send("HTTP/1.1 200 OK\r\n\r\n");
            while exchange.send(vec![0; 65_536]) {}
            false
        }
        _ => {
            exchange.read_body();
            exchange.answer("200 OK", "", b"ok");
            true
        }
    });
    stack.route(HOST, &[&backend]);
    let stalled: Vec<Client> = (0..12)
        .flat_map(|_| {
            [
                String::new(),
                "GET / HT".to_owned(),
                format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 9\r\n\r\nhalf"),
                request("/stalled"),
                request("/half"),
                request("/endless"),
            ]
        })
        .map(|bytes| {
            let mut client = stack.planb.connect();
            client.send(bytes);
            client
        })
        .collect();
    wait_until("they all are stalled", || backend.requests().len() > 48);
    let mut client = stack.planb.connect();
    for _ in 0..50 {
        assert_eq!(client.get(HOST, "/").text(), "ok");
        assert_eq!(stack.planb.ask(HOST), "ok");
    }
    drop(stalled);
    client.get(HOST, "/");
    wait_until("their connections are gone", || stack.planb.count("planb_reverseproxy_connections_current_open") == 1);
}
