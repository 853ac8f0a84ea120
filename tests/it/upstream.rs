//! Connections to backends: which are kept, what is sent again, and who is taken for dead.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::support::{Backend, Exchange, Response, Stack, closed_port, redis, wait_until};

const HOST: &str = "upstream.test";
const MARKED: &str = "planb_router_backend_markdead_total";

impl Stack {
    /// A GET, on a connection of its own.
    fn try_get(&self) -> Response {
        self.planb.connect().get(HOST, "/path")
    }

    /// A POST, on a connection of its own.
    fn try_post(&self, body: &str) -> Response {
        let mut client = self.planb.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        client.response()
    }

    fn marks(&self) -> u64 {
        self.planb.count(MARKED)
    }

    /// Waits until the master knows of this host's dead backends, by their indexes.
    fn wait_for_dead(&self, host: &str, indexes: &str) {
        let key = format!("dead:{host}");
        let members = || super::support::redis_cli(&self.master, &["SMEMBERS", &key]);
        wait_until(&format!("{key} is {indexes:?}"), || members() == indexes);
    }
}

/// A backend that treats its first request, its second and so on as told, and further ones like the last.
fn in_turn(handlers: &'static [fn(&mut Exchange<'_>) -> bool]) -> Backend {
    let turn = AtomicUsize::new(0);
    Backend::start(move |exchange| {
        let turn = turn.fetch_add(1, Ordering::SeqCst);
        handlers[turn.min(handlers.len() - 1)](exchange)
    })
}

fn answer(exchange: &mut Exchange<'_>) -> bool {
    exchange.read_body();
    exchange.answer("200 OK", "", b"ok");
    true
}

fn answer_and_close(exchange: &mut Exchange<'_>) -> bool {
    answer(exchange);
    false
}

fn close(exchange: &mut Exchange<'_>) -> bool {
    exchange.read_body();
    false
}

fn assert_is_503(response: &Response, body: &str) {
    assert_eq!((response.status, response.text().as_str()), (503, body));
}

#[test]
fn a_connection_is_kept_for_the_next_request() {
    let stack = Stack::start(&["--workers=1"]);
    let backend = Backend::echo();
    stack.list(HOST, &[&backend.url()]);
    for _ in 0..5 {
        assert_eq!(stack.try_get().status, 200);
        assert!(stack.try_post("body").text().ends_with("body"));
    }
    assert_eq!((backend.requests().len(), backend.connections()), (10, 1));
}

#[test]
fn one_refusing_backend_among_several_costs_no_client_anything() {
    let stack = Stack::start(&[]);
    let (_guard, refusing) = closed_port();
    let alive = Backend::echo();
    stack.list(HOST, &[&alive.url(), &refusing, &alive.url()]);
    for _ in 0..6 {
        assert!(stack.try_post("a body").text().ends_with("a body"));
        assert_eq!(stack.try_get().status, 200);
    }
    assert_eq!((stack.marks(), alive.requests().len()), (1, 12));
    stack.wait_for_dead(HOST, "1");
    let line = stack.planb.wait_for_log("*DEAD*");
    assert!(line.starts_with(&format!("ERROR in {HOST} -> {refusing} - /")) && line.ends_with(" *DEAD*"), "{line}");
    let ttl: u32 = redis(&stack.master, &["TTL", &format!("dead:{HOST}")]).trim_start_matches(':').parse().unwrap();
    assert!((1..=30).contains(&ttl), "{ttl}");
}

#[test]
fn a_single_refusing_backend_is_dead_to_the_next_request() {
    let stack = Stack::start(&[]);
    let (_guard, refusing) = closed_port();
    stack.list(HOST, &[&refusing]);
    assert_is_503(&stack.try_get(), "");
    assert_is_503(&stack.try_get(), "all backends are dead");
    assert_is_503(&stack.try_post("body"), "all backends are dead");
    stack.planb.wait_for_log(&format!("ERROR in {HOST} -> ? - /path - : - all backends are dead"));
    stack.wait_for_dead(HOST, "0");
}

#[test]
fn a_connection_that_its_backend_has_closed_costs_no_client_anything() {
    let stack = Stack::start(&["--workers=1"]);
    let backend = in_turn(&[answer_and_close]);
    stack.list(HOST, &[&backend.url()]);
    for _ in 0..2 {
        assert_eq!(stack.try_get().status, 200);
        wait_until("the pool is empty", || stack.planb.count("planb_reverseproxy_pool_idle_connections") == 0);
        assert_eq!(stack.try_post("body").status, 200);
        wait_until("the pool is empty", || stack.planb.count("planb_reverseproxy_pool_idle_connections") == 0);
    }
    assert_eq!((backend.requests().len(), backend.connections()), (4, 4));
}

#[test]
fn what_may_have_reached_a_backend_is_never_sent_twice() {
    let stack = Stack::start(&["--workers=1"]);
    let fresh = in_turn(&[close, answer, close, close, answer]);
    let other = Backend::named("other");
    stack.list(HOST, &[&fresh.url()]);

    assert_is_503(&stack.try_get(), "");
    assert_eq!(fresh.requests().len(), 1, "a GET was repeated that failed on a fresh connection");
    assert_eq!(stack.try_get().status, 200);
    assert_is_503(&stack.try_post("body"), "");
    assert_eq!(fresh.requests().len(), 3, "a POST was repeated");
    assert_is_503(&stack.try_post("body"), "");
    assert_eq!(fresh.requests().len(), 4, "a POST was repeated");

    // Not even to another backend.
    redis(&stack.master, &["RPUSH", "frontend:two.test", "id", &other.url(), &in_turn(&[close]).url()]);
    stack.planb.wait_for_route("two.test");
    let seen = other.requests().len();
    let post = || {
        let mut client = stack.planb.connect();
        client.send("POST / HTTP/1.1\r\nHost: two.test\r\nContent-Length: 4\r\n\r\nbody");
        client.response().status
    };
    let mut statuses: Vec<u16> = (0..4).map(|_| post()).collect();
    statuses.sort_unstable();
    assert_eq!((statuses.as_slice(), other.requests().len() - seen), (&[200, 200, 503, 503][..], 2));

    assert_eq!(stack.marks(), 0);
    assert_eq!(stack.try_get().status, 200);
}

#[test]
fn a_get_that_a_kept_connection_lost_is_repeated() {
    let stack = Stack::start(&["--workers=1"]);
    let backend = in_turn(&[answer, close, answer, close, answer]);
    stack.list(HOST, &[&backend.url()]);
    assert_eq!(stack.try_get().status, 200);
    assert_eq!(stack.try_get().status, 200);
    assert_eq!((backend.requests().len(), backend.connections()), (3, 2));

    let mut client = stack.planb.connect();
    client.send(format!("DELETE / HTTP/1.1\r\nHost: {HOST}\r\nX-A: b\r\n\r\n"));
    assert_eq!(client.response().status, 200);
    let requests = backend.requests();
    assert_eq!(requests.len(), 5);
    assert_eq!(requests[3], requests[4]);
    assert_eq!(stack.marks(), 0);
}

#[test]
fn a_get_is_not_repeated_once_its_response_has_begun() {
    let stack = Stack::start(&["--workers=1"]);
    let backend = in_turn(&[answer, |exchange| !exchange.send("HTTP/1.1 2"), answer]);
    stack.list(HOST, &[&backend.url()]);
    assert_eq!(stack.try_get().status, 200);
    assert_is_503(&stack.try_get(), "");
    assert_eq!(backend.requests().len(), 2);
    assert_eq!(stack.try_get().status, 200);
    assert_eq!(stack.marks(), 0);
}

#[test]
fn a_backend_that_does_not_answer_in_time_is_slow_but_not_dead() {
    let stack = Stack::start(&["--request-timeout=1"]);
    let backend = in_turn(&[
        |exchange| {
            // Until the proxy gives up.
            exchange.read_body();
            std::io::BufRead::fill_buf(exchange.stream).is_ok_and(|bytes| !bytes.is_empty())
        },
        answer,
    ]);
    stack.list(HOST, &[&backend.url()]);
    assert_is_503(&stack.try_post("body"), "");
    stack.planb.wait_for_log("request timeout");
    assert_eq!(backend.requests().len(), 1);
    assert_eq!(stack.try_get().status, 200);
    assert_eq!(stack.marks(), 0);
}

#[test]
fn what_is_not_http_is_not_passed_on() {
    let stack = Stack::start(&["--workers=1"]);
    let backend = Backend::start(|exchange| {
        let say = match exchange.head.split(' ').nth(1).unwrap() {
            "/101" => "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            "/ssh" => "SSH-2.0-OpenSSH_9.2p1\r\n\r\n",
            "/lengths" => "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "/negative" => "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nab",
            "/nul" => "HTTP/1.1 200 OK\r\nX-A: \0\r\nContent-Length: 2\r\n\r\nab",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        };
        exchange.send(say);
        true
    });
    stack.list(HOST, &[&backend.url()]);
    let mut client = stack.planb.connect();
    for path in ["/101", "/ssh", "/lengths", "/negative", "/nul"] {
        let response = client.get(HOST, path);
        assert_eq!((response.status, response.text().as_str()), (503, ""), "{path}");
        assert_eq!(client.get(HOST, "/").text(), "ok", "after {path}");
    }
    assert_eq!(stack.marks(), 0);
    stack.planb.wait_for_log("the backend sent an unexpected 101 response");
}

#[test]
fn a_response_of_two_framings_cannot_become_two_responses() {
    let stack = Stack::start(&["--workers=1"]);
    let backend = Backend::start(|exchange| {
        if exchange.head.starts_with("GET /two") {
            exchange.send(
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
                 1e\r\nHTTP/1.1 200 OK\r\nX-Evil: 1\r\n\r\n\r\n0\r\n\r\n",
            );
        } else {
            exchange.answer("200 OK", "", b"ok");
        }
        true
    });
    stack.list(HOST, &[&backend.url()]);
    let mut client = stack.planb.connect();
    client.send(format!("GET /two HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    let response = client.response();
    assert_eq!((response.header("content-length"), response.header("transfer-encoding")), (None, Some("chunked")));
    assert_eq!(response.text(), "HTTP/1.1 200 OK\r\nX-Evil: 1\r\n\r\n");
    assert_eq!(client.get(HOST, "/").text(), "ok");
}

#[test]
fn what_a_backend_sends_beyond_its_answer_reaches_nobody() {
    let stack = Stack::start(&["--workers=1"]);
    let backend = Backend::start(|exchange| {
        let own = match exchange.head.split(' ').nth(1).unwrap() {
            "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
            "/304" => "HTTP/1.1 304 Not Modified\r\n\r\n",
            "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            _ if exchange.head.starts_with("HEAD") => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        };
        exchange.send([own, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"].concat())
    });
    stack.list(HOST, &[&backend.url()]);
    let mut client = stack.planb.connect();
    for _ in 0..5 {
        for (path, status, text) in [("/", 200, "ok"), ("/204", 204, ""), ("/304", 304, ""), ("/chunked", 200, "ok")] {
            let response = client.get(HOST, path);
            assert_eq!((response.status, response.text().as_str()), (status, text), "{path}");
        }
        client.send(format!("HEAD / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        assert_eq!(client.head().unwrap().header("content-length"), Some("2"));
    }
    assert_eq!((backend.requests().len(), backend.connections()), (25, 25));
}

#[test]
fn the_proxy_itself_answers_for_its_own_health_and_for_strangers() {
    let stack = Stack::start(&[]);
    let mut client = stack.planb.connect();
    let response = client.get("__ping__", "/");
    assert_eq!((response.status, response.text().as_str()), (200, "OK"));
    for (host, path) in [("stranger.test", "/"), ("__ping__", "/other"), ("", "/")] {
        let response = client.get(host, path);
        assert_eq!((response.status, response.text().as_str()), (400, "no such route"), "{host}{path}");
    }
    redis(&stack.master, &["RPUSH", "frontend:empty.test", "id"]);
    assert_eq!(client.get("empty.test", "/").text(), "no such route");
}

#[test]
fn a_backend_with_a_certificate_of_its_own_making_is_dead_unless_that_is_allowed() {
    let backend = Backend::start_tls(answer);
    let stack = Stack::start(&[]);
    stack.list(HOST, &[&backend.url()]);
    assert_is_503(&stack.try_get(), "");
    assert_is_503(&stack.try_get(), "all backends are dead");
    assert!(stack.planb.wait_for_log("certificate is not trusted: it is self-signed").ends_with("*DEAD*"));
    stack.wait_for_dead(HOST, "0");
    assert_eq!(backend.requests().len(), 0);
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    stack.list("deaf.test", &[&format!("https://{}", deaf.local_addr().unwrap())]);
    let mut client = stack.planb.connect();
    client.send("GET / HTTP/1.1\r\nHost: deaf.test\r\n\r\n");
    drop(deaf.accept().unwrap());
    assert_is_503(&client.response(), "");
    assert!(stack.planb.wait_for_log("error in backend TLS handshake").ends_with("*DEAD*"));
    stack.wait_for_dead("deaf.test", "0");
    let failures =
        |reason: &str| stack.planb.count(&format!("planb_reverseproxy_dial_failures_total{{reason=\"{reason}\"}}"));
    assert_eq!((failures("certificate"), failures("tls"), failures("connect")), (1, 1, 0));
}

#[test]
fn a_backend_with_a_certificate_of_its_own_making_is_used_where_that_is_allowed() {
    let backend = Backend::start_tls(answer);
    let stack = Stack::start(&["--backend-tls-verify=false", "--workers=1"]);
    stack.list(HOST, &[&backend.url()]);
    stack.list("name.test", &[&format!("https://localhost:{}", backend.address().port())]);
    for _ in 0..3 {
        assert_eq!(stack.try_get().text(), "ok");
        assert_eq!(stack.try_post("body").text(), "ok");
    }
    assert_eq!(backend.connections(), 1);
    assert_eq!(stack.planb.ask("name.test"), "ok");
    assert!(backend.requests().last().unwrap().contains("Host: localhost\r\n"));
}
