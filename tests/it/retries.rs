//! What becomes of a request whose attempt at a backend fails: one test for each row of the table in the README.
//!
//! Each backend here is one of two, of which the other answers, so that a retry shows in what the client gets.

use std::{io::Write, net::TcpListener, thread, time::Instant};

use socket2::SockRef;

use super::support::{
    Backend, Client, Exchange, Gate, Response, Stack, closed_port, full_backlog, redis_cli, wait_until,
};

const HOST: &str = "retry.test";
const RETRIES: &str = "planb_reverseproxy_retries_total";

/// A backend that fails, one that answers, and a proxy with one worker, so that kept connections are found again.
struct Row {
    stack: Stack,
    good: Backend,
}

impl Row {
    fn with(failing: &str) -> Self {
        Self::with_flags(failing, &[])
    }

    fn with_flags(failing: &str, flags: &[&str]) -> Self {
        let row = Self { stack: Stack::start(&[&["--workers=1"], flags].concat()), good: Backend::echo() };
        // The first turn is the first element's.
        row.stack.list(HOST, &[failing, &row.good.url()]);
        row
    }

    fn post(&self) -> Response {
        let mut client = self.stack.planb.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 6\r\n\r\na body"));
        client.response()
    }

    fn get(&self) -> Response {
        self.stack.planb.connect().get(HOST, "/")
    }

    /// Makes the next turn the failing backend's again.
    fn skip_a_turn(&self) {
        assert_eq!(self.get().status, 200);
    }

    fn retries(&self) -> u64 {
        self.stack.planb.count(RETRIES)
    }

    /// The request went on to the other backend, whole; and the first is out of rotation for every instance.
    fn assert_goes_on_and_marks(&self, error: &str) {
        let response = self.post();
        assert_eq!(response.status, 200);
        assert!(response.text().ends_with("\r\n\r\na body"), "{}", response.text());
        let line = self.stack.planb.wait_for_log(error);
        assert!(line.starts_with(&format!("ERROR in {HOST} -> ")) && line.ends_with(" *DEAD*"), "{line}");
        assert_eq!((self.retries(), self.marks()), (1, 1));
        let key = format!("dead:{HOST}");
        wait_until("the mark is recorded", || redis_cli(&self.stack.master, &["SMEMBERS", &key]) == "0");
        assert_eq!(self.post().status, 200);
        assert_eq!(self.retries(), 1, "a dead backend was tried again");
    }

    /// The client is told, and that is all: the request goes nowhere else, and nobody is out of rotation.
    fn assert_ends_with(&self, response: &Response, error: &str) {
        assert_eq!((response.status, response.text().as_str()), (503, ""));
        let line = self.stack.planb.wait_for_log(error);
        assert!(line.starts_with(&format!("ERROR in {HOST} -> ")) && !line.contains("DEAD"), "{line}");
        assert_eq!((self.retries(), self.marks(), self.good.requests().len()), (0, 0, 0));
    }

    fn marks(&self) -> u64 {
        self.stack.planb.count("planb_router_backend_markdead_total")
    }
}

/// Closes the connection, having read the request or not, so that the proxy is told by a reset.
fn reset(exchange: &Exchange<'_>) -> bool {
    SockRef::from(&**exchange.stream.get_ref()).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    false
}

#[test]
fn a_refused_dial_goes_on_and_marks() {
    let (_guard, refusing) = closed_port();
    Row::with(&refusing).assert_goes_on_and_marks("error in backend dial: Connection refused");
}

#[test]
fn an_unreachable_network_goes_on_and_marks() {
    // Nothing but a datagram can be sent to everybody.
    Row::with("http://255.255.255.255:80").assert_goes_on_and_marks("error in backend dial: Network is unreachable");
}

#[test]
fn a_dial_that_times_out_goes_on_and_marks() {
    let (_queue, address) = full_backlog(([127, 0, 0, 1], 0).into());
    Row::with_flags(&format!("http://{address}"), &["--dial-timeout=1"])
        .assert_goes_on_and_marks("dial timeout after 1s");
}

#[test]
fn a_dial_that_takes_all_of_a_request_s_time_goes_on_and_marks() {
    let (_queue, address) = full_backlog(([127, 0, 0, 1], 0).into());
    let row = Row::with_flags(&format!("http://{address}"), &["--request-timeout=2", "--dial-timeout=10"]);
    row.assert_goes_on_and_marks("dial timeout after 1.9");
}

#[test]
fn a_tls_handshake_that_fails_goes_on_and_marks() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            // Whoever spoke TLS has read enough of this.
            let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
        }
    });
    Row::with(&url).assert_goes_on_and_marks("error in backend TLS handshake");
    // Nobody has signed its certificate.
    Row::with(&Backend::start_tls(|_| false).url())
        .assert_goes_on_and_marks("the backend's certificate is not trusted");
}

#[test]
fn a_tls_handshake_that_stalls_goes_on_and_marks() {
    let (silent, _gate) = Backend::holding();
    let url = silent.url().replace("http:", "https:");
    Row::with_flags(&url, &["--dial-timeout=1"]).assert_goes_on_and_marks("dial timeout after 1s");
}

#[test]
fn a_name_without_an_address_goes_on_and_marks() {
    let name = format!("http://{}.test:80", "a".repeat(64));
    Row::with(&name).assert_goes_on_and_marks("the backend's name does not resolve");
}

#[test]
fn a_reset_on_a_fresh_connection_ends_the_request() {
    let failing = Backend::start(|exchange| {
        exchange.read_body();
        reset(exchange)
    });
    let row = Row::with(&failing.url());
    row.assert_ends_with(&row.post(), "error in backend request");
    assert_eq!(failing.requests().len(), 1);
}

#[test]
fn an_end_before_the_head_ends_the_request() {
    let failing = Backend::start(|exchange| {
        exchange.read_body();
        false
    });
    let row = Row::with(&failing.url());
    row.assert_ends_with(&row.post(), "error in backend request");
    assert_eq!(failing.requests().len(), 1);
}

#[test]
fn a_get_that_a_fresh_connection_has_lost_goes_to_another_backend_once() {
    let failing: Vec<Backend> = (0..3).map(|_| Backend::start(|_| false)).collect();
    let urls: Vec<String> = failing.iter().map(Backend::url).collect();
    let seen = || failing.iter().map(|backend| backend.requests().len()).sum::<usize>();
    let stack = Stack::start(&["--workers=1"]);
    let ask = |host: &str, method: &str| {
        let mut client = stack.planb.connect();
        client.send(format!("{method} / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        client.head().unwrap().status
    };
    stack.list(HOST, &[&urls[0], &Backend::echo().url()]);
    for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
        let before = seen();
        assert_eq!([ask(HOST, method), ask(HOST, method)], [200, 200], "{method}");
        assert_eq!(seen(), before + 1, "{method}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let mut statuses = [ask(HOST, method), ask(HOST, method)];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 503], "{method}");
    }
    // Neither twice, nor to the same.
    stack.list("three.test", &[&urls[0], &urls[1], &urls[2]]);
    let before = seen();
    assert_eq!((ask("three.test", "GET"), seen()), (503, before + 2));
    stack.list("one.test", &[&urls[0]]);
    let before = seen();
    assert_eq!((ask("one.test", "GET"), seen()), (503, before + 1));
    assert_eq!(stack.planb.count("planb_router_backend_markdead_total"), 0);
}

#[test]
fn a_head_that_is_cut_short_ends_the_request() {
    let failing = Backend::start(|exchange| !exchange.send("HTTP/1.1 200 OK\r\nContent-Le"));
    let row = Row::with(&failing.url());
    row.assert_ends_with(&row.get(), "error in backend request");
    assert_eq!(failing.requests().len(), 1);
}

#[test]
fn a_body_that_is_cut_short_is_cut_short_for_the_client() {
    for head in ["Content-Length: 100\r\n\r\n0123456789", "Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n"] {
        for resets in [false, true] {
            let gate = Gate::default();
            let opened = gate.clone();
            let failing = Backend::start(move |exchange| {
                exchange.send(format!("HTTP/1.1 200 OK\r\n{head}"));
                opened.wait();
                resets && reset(exchange)
            });
            let row = Row::with(&failing.url());
            let mut client = row.stack.planb.connect();
            client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
            let mut response = client.head().unwrap();
            gate.open();
            assert!(client.finish(&mut response).is_err(), "{head}: the client takes this for the whole: {response:?}");
            row.stack.planb.wait_for_log(&format!("ERROR in {HOST} -> {}", failing.url()));
            assert_eq!((row.retries(), row.marks(), row.good.requests().len()), (0, 0, 0));
        }
    }
}

#[test]
fn a_request_timeout_ends_the_request() {
    let (silent, _gate) = Backend::holding();
    let row = Row::with_flags(&silent.url(), &["--request-timeout=1"]);
    let mut client = row.stack.planb.connect();
    let response = client.get(HOST, "/held");
    row.assert_ends_with(&response, "request timeout after 1s");
}

#[test]
fn a_get_that_a_kept_connection_loses_is_sent_once_more_to_another_backend() {
    let failing = every_second_request_is_lost();
    let row = Row::with(&failing.url());
    assert_eq!(row.get().status, 200);
    row.skip_a_turn();
    assert_eq!(row.get().status, 200);
    // The second time over a new connection, although there is a kept one.
    assert_eq!((failing.requests().len(), row.good.requests().len(), row.good.connections()), (2, 2, 2));
    assert_eq!((row.retries(), row.marks()), (1, 0));
}

#[test]
fn a_get_that_is_lost_twice_ends() {
    let (first, others) = (every_second_request_is_lost(), [0, 1].map(|_| Backend::start(|exchange| reset(exchange))));
    let row = Row::with(&first.url());
    assert_eq!(row.get().status, 200);
    row.stack.list("three.test", &[&first.url(), &others[0].url(), &others[1].url()]);
    assert_eq!(row.stack.planb.connect().get("three.test", "/").status, 503);
    assert_eq!((first.requests().len(), others.each_ref().map(|other| other.requests().len()).iter().sum()), (2, 1));
    assert_eq!((row.retries(), row.marks()), (1, 0));
}

#[test]
fn a_get_that_its_last_backend_has_lost_returns_to_it_though_others_are_away() {
    let (_guard, refusing) = closed_port();
    let failing = every_second_request_is_lost();
    let row = Row::with(&failing.url());
    assert_eq!(row.get().status, 200);
    row.stack.list("two.test", &[&failing.url(), &refusing]);
    assert_eq!(row.stack.planb.connect().get("two.test", "/").status, 200);
    assert_eq!((failing.requests().len(), failing.connections(), row.retries()), (3, 2, 2));
}

#[test]
fn a_post_that_a_kept_connection_loses_ends() {
    let failing = every_second_request_is_lost();
    let row = Row::with(&failing.url());
    assert_eq!(row.get().status, 200);
    row.skip_a_turn();
    let seen = row.good.requests().len();
    assert_eq!(row.post().status, 503);
    assert_eq!((failing.requests().len(), row.good.requests().len()), (2, seen));
    assert_eq!((row.retries(), row.marks()), (0, 0));
}

/// A backend that loses the second request of each connection by a reset.
fn every_second_request_is_lost() -> Backend {
    let count = std::sync::atomic::AtomicUsize::new(0);
    Backend::start(move |exchange| {
        exchange.read_body();
        if count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 3 == 1 {
            return reset(exchange);
        }
        exchange.answer("200 OK", "", b"ok");
        true
    })
}

#[test]
fn a_client_that_leaves_is_logged_and_nobody_is_blamed() {
    let (silent, _gate) = Backend::holding();
    let row = Row::with_flags(&silent.url(), &["--access-log=stdout"]);
    for leave in [
        |client: Client| drop(client),
        |client: Client| {
            SockRef::from(client.socket()).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        },
    ] {
        let before = silent.requests().len();
        let mut client = row.stack.planb.connect();
        client.send(format!("GET /held HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        wait_until("the request is in flight", || silent.requests().len() > before);
        leave(client);
        let lines = || row.stack.planb.stdout().iter().filter(|line| line.contains("\" 499 0 ")).count();
        wait_until("it is logged", || lines() == before + 1);
        row.skip_a_turn();
    }
    assert_eq!((row.retries(), row.marks()), (0, 0));
    assert!(!row.stack.planb.log().iter().any(|line| line.contains("ERROR in retry.test")));
}

#[test]
fn no_more_than_three_retries_and_no_backend_twice() {
    let stack = Stack::start(&["--dead-backend-time=none"]);
    let refusing: Vec<_> = (0..5).map(|_| closed_port()).collect();
    let urls: Vec<&str> = refusing.iter().map(|(_, url)| url.as_str()).collect();
    stack.list("five.test", &urls);
    stack.list("two.test", &[urls[0], urls[1], urls[0], urls[1]]);
    assert_eq!(stack.planb.connect().get("five.test", "/").status, 503);
    assert_eq!((dials(&stack), stack.planb.count(RETRIES)), (4, 3));
    assert_eq!(stack.planb.connect().get("two.test", "/").status, 503);
    assert_eq!((dials(&stack), stack.planb.count(RETRIES)), (6, 4));
}

#[test]
fn retries_are_a_fifth_of_the_requests_beyond_the_first_of_each_second() {
    let stack = Stack::start(&["--dead-backend-time=none"]);
    let (_guard, refusing) = closed_port();
    stack.list(HOST, &[&refusing, &Backend::named("good").url()]);
    let began = Instant::now();
    let mut client = stack.planb.connect();
    let requests = 2_000;
    let refused = (0..requests).filter(|_| client.get(HOST, "/").status == 503).count() as u64;
    // It may have begun at the end of one second and ended at the beginning of another.
    let seconds = began.elapsed().as_secs() + 2;
    let retries = stack.planb.count(RETRIES);
    assert_eq!(stack.planb.count("planb_reverseproxy_retries_refused_total"), refused);
    assert_eq!(retries + refused, requests / 2, "each second request begins at the backend that refuses");
    assert!(retries <= requests / 5 + 20 * seconds, "{retries} retries of {requests} requests in {seconds} s");
    assert!(retries >= requests / 5 - 1, "{retries} retries of {requests} requests");

    // Other frontends have budgets of their own.
    stack.list("other.test", &[&refusing, &Backend::named("good").url()]);
    assert_eq!(client.get("other.test", "/").text(), "good");
}

#[test]
fn however_many_wait_for_a_backend_that_dies_all_go_on() {
    let (_queue, address) = full_backlog(([127, 0, 0, 1], 0).into());
    let row = Row::with_flags(&format!("http://{address}"), &["--dial-timeout=3"]);
    let mut clients: Vec<_> = (0..300).map(|_| row.stack.planb.connect()).collect();
    for client in &mut clients {
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    }
    assert!(clients.iter_mut().all(|client| client.response().status == 200));
    assert!(row.retries() > 100, "{} waited", row.retries());
    assert_eq!((row.marks(), row.good.requests().len()), (1, 300));
}

fn dials(stack: &Stack) -> u64 {
    stack.planb.count("planb_reverseproxy_pool_dials_total")
}
