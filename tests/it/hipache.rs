//! Hipache's ways, where they are asked for: answers that are held against a backend, and an only backend that is spared.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{
    http2::{self, NAME, Site},
    support::{Backend, Client, Exchange, Gate, Response, Stack, closed_port, redis, redis_cli, wait_until},
};

const HOST: &str = "hipache.test";
const ON_5XX: &str = "--dead-backend-on-5xx";
const SPARE: &str = "--spare-only-backend";

/// A backend that answers every request with this status line, these complete header lines, and the status as its body.
fn answering(status: &'static str, headers: &'static str) -> Backend {
    Backend::start(move |exchange| {
        exchange.read_body();
        exchange.answer(status, headers, status.as_bytes());
        true
    })
}

/// A proxy, a host, and its two backends, of which the first in turn is not well.
struct Pair<'a> {
    stack: &'a Stack,
    host: String,
    bad: Backend,
    good: Backend,
}

impl<'a> Pair<'a> {
    fn of(stack: &'a Stack, host: &str, bad: Backend) -> Self {
        let pair = Self { stack, host: host.to_owned(), bad, good: Backend::named("good") };
        stack.list(host, &[&pair.bad.url(), &pair.good.url()]);
        pair
    }

    fn ask(&self, method: &str, more: &str) -> Response {
        ask(self.stack, &self.host, method, more)
    }

    /// Requests that the two have had.
    fn seen(&self) -> [usize; 2] {
        [&self.bad, &self.good].map(|backend| backend.requests().len())
    }

    /// The first left rotation for this, here and for every instance.
    fn assert_is_marked(&self, reason: &str) {
        let start = format!("ERROR in {} -> {} - / - ", self.host, self.bad.url());
        let line = self.stack.planb.wait_for_log(&start);
        assert!(line.ends_with(&format!(" - {reason} *DEAD*")), "{line}");
        wait_until("the mark is recorded", || dead(self.stack, &self.host) == "0");
        let seen = self.seen();
        assert!((0..4).all(|_| self.ask("GET", "\r\n").text() == "good"));
        assert_eq!(self.seen(), [seen[0], seen[1] + 4]);
    }
}

/// One request on a connection of its own; `more` is the rest of its header lines, the empty one, and a body.
fn ask(stack: &Stack, host: &str, method: &str, more: &str) -> Response {
    let mut client = stack.planb.connect();
    client.send(format!("{method} / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}"));
    client.response()
}

fn get(stack: &Stack, host: &str) -> (u16, String) {
    let response = ask(stack, host, "GET", "\r\n");
    (response.status, response.text())
}

fn dead(stack: &Stack, key: &str) -> String {
    redis_cli(&stack.master, &["SMEMBERS", &format!("dead:{key}")])
}

fn marks(stack: &Stack) -> u64 {
    stack.planb.count("planb_router_backend_markdead_total")
}

fn retries(stack: &Stack) -> u64 {
    stack.planb.count("planb_reverseproxy_retries_total")
}

#[test]
fn a_get_goes_on_to_the_next_backend_and_the_first_leaves() {
    let stack = Stack::start(&[ON_5XX, "--dead-backend-time=77"]);
    let statuses =
        ["501 Not Implemented", "502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout", "599 <none>"];
    for (count, status) in (1..).zip(statuses) {
        let pair = Pair::of(&stack, &format!("{}.test", &status[..3]), answering(status, ""));
        assert_eq!(pair.ask("GET", "\r\n").text(), "good", "{status}");
        pair.assert_is_marked(&format!(
            "the backend answered {}",
            status.replace("599 <none>", "599 <unknown status code>")
        ));
        assert_eq!((retries(&stack), marks(&stack), pair.seen()), (count, count, [1, 5]));
        let left: u64 =
            redis(&stack.master, &["TTL", &format!("dead:{}", pair.host)]).trim_start_matches(':').parse().unwrap();
        assert!((60..=77).contains(&left), "{left} s");
    }
}

#[test]
fn other_requests_that_change_nothing_go_on_too() {
    let stack = Stack::start(&[ON_5XX]);
    for method in ["OPTIONS", "TRACE"] {
        let pair = Pair::of(&stack, &format!("{method}.test").to_lowercase(), answering("502 Bad Gateway", ""));
        assert_eq!(pair.ask(method, "\r\n").text(), "good", "{method}");
        pair.assert_is_marked("the backend answered 502 Bad Gateway");
    }
    let empty = Backend::start(|exchange| exchange.send("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 9\r\n\r\n"));
    let pair = Pair::of(&stack, "head.test", empty);
    let mut client = stack.planb.connect();
    client.send("HEAD / HTTP/1.1\r\nHost: head.test\r\n\r\n");
    assert_eq!(client.head().unwrap().status, 200);
    pair.assert_is_marked("the backend answered 502 Bad Gateway");
}

#[test]
fn what_might_do_harm_twice_gets_the_answer_and_the_backend_leaves() {
    let stack = Stack::start(&[ON_5XX]);
    for (number, (method, more)) in (1..).zip([
        ("POST", "Content-Length: 6\r\n\r\na body"),
        ("POST", "\r\n"),
        ("PUT", "\r\n"),
        ("DELETE", "\r\n"),
        ("MADE-UP", "\r\n"),
        ("GET", "Content-Length: 6\r\n\r\na body"),
        ("GET", "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"),
    ]) {
        let pair = Pair::of(&stack, &format!("{number}.test"), answering("502 Bad Gateway", "X-Own: yes\r\n"));
        let response = pair.ask(method, more);
        assert_eq!((response.status, response.text().as_str()), (502, "502 Bad Gateway"), "{method} {more:?}");
        assert_eq!((response.header("x-own"), pair.seen()), (Some("yes"), [1, 0]), "{method} {more:?}");
        pair.assert_is_marked("the backend answered 502 Bad Gateway");
        assert_eq!((retries(&stack), marks(&stack)), (0, number));
    }
}

#[test]
fn answers_that_say_nothing_against_the_backend_pass_and_it_stays() {
    let stack = Stack::start(&[ON_5XX]);
    for (host, status, headers, method) in [
        ("one-request.test", "500 Internal Server Error", "", "GET"),
        ("maintenance.test", "503 Service Unavailable", "Retry-After: 120\r\n", "GET"),
        ("method.test", "501 Not Implemented", "", "MADE-UP"),
        ("post.test", "501 Not Implemented", "", "POST"),
        ("client.test", "499 Unknown", "", "GET"),
    ] {
        let pair = Pair::of(&stack, host, answering(status, headers));
        for turn in 1..=2 {
            assert_eq!(pair.ask(method, "\r\n").text(), status);
            assert_eq!(pair.ask(method, "\r\n").text(), "good");
            assert_eq!(pair.seen(), [turn, turn]);
        }
    }
    assert_eq!((retries(&stack), marks(&stack)), (0, 0));
    assert!(!stack.planb.log().iter().any(|line| line.contains("ERROR in ")));
}

#[test]
fn without_the_flag_every_answer_passes_and_nobody_leaves() {
    let stack = Stack::start(&[]);
    let pair = Pair::of(&stack, HOST, answering("502 Bad Gateway", ""));
    let answers: Vec<_> = (0..4).map(|_| pair.ask("GET", "\r\n").text()).collect();
    assert_eq!(answers, ["502 Bad Gateway", "good", "502 Bad Gateway", "good"]);
    assert_eq!((retries(&stack), marks(&stack)), (0, 0));
}

#[test]
fn an_only_backend_s_answer_reaches_the_client() {
    let stack = Stack::start(&[ON_5XX]);
    stack.list(HOST, &[&answering("502 Bad Gateway", "X-Own: yes\r\n").url()]);
    let response = ask(&stack, HOST, "GET", "\r\n");
    assert_eq!((response.status, response.text().as_str()), (502, "502 Bad Gateway"));
    assert_eq!((response.header("x-own"), retries(&stack), marks(&stack)), (Some("yes"), 0, 1));
    assert_eq!(get(&stack, HOST), (503, "all backends are dead".to_owned()));
}

#[test]
fn where_no_other_is_better_the_client_gets_the_answer_that_is_there() {
    let stack = Stack::start(&[ON_5XX, "--request-timeout=1", "--access-log=stdout"]);
    let (_guard, refusing) = closed_port();
    let (silent, _gate) = Backend::holding();
    let breaking = Backend::start(|_| false);
    let large = || {
        Backend::start(|exchange| {
            exchange.answer("502 Bad Gateway", "X-Own: yes\r\n", &vec![b'x'; 1_000_000]);
            true
        })
    };
    for (host, other) in
        [("refusing.test", &refusing), ("silent.test", &silent.url()), ("breaking.test", &breaking.url())]
    {
        let bad = large();
        stack.list(host, &[&bad.url(), other]);
        let mut client = stack.planb.connect();
        client.send(format!("GET /held HTTP/1.1\r\nHost: {host}\r\nX-Debug-Router: 1\r\n\r\n"));
        let response = client.response();
        assert_eq!((response.status, response.body.len(), response.header("x-own")), (502, 1_000_000, Some("yes")));
        assert_eq!(response.header("x-debug-backend-url"), Some(&*bad.url()), "{host}");
        let errors = || stack.planb.log().iter().filter(|line| line.contains(&format!("ERROR in {host} "))).count();
        wait_until("both failures are logged", || errors() == 2);
        stack.planb.wait_for_stdout(&format!("\"GET /held HTTP/1.1\" 502 1000000 \"\" \"\" \":\" \"{host}\""));
    }
}

#[test]
fn several_that_are_not_well_all_leave_and_the_last_one_answers() {
    let stack = Stack::start(&[ON_5XX]);
    let statuses =
        ["501 Not Implemented", "502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout", "505 X"];
    let backends = statuses.map(|status| answering(status, ""));
    let urls = backends.each_ref().map(Backend::url);
    stack.list("two.test", &[&urls[0], &urls[1], &urls[0]]);
    let (status, _) = get(&stack, "two.test");
    assert_eq!((status, retries(&stack), marks(&stack)), (502, 1, 2));
    assert_eq!(get(&stack, "two.test"), (503, "all backends are dead".to_owned()));

    stack.list("five.test", &urls.each_ref().map(String::as_str));
    let (status, _) = get(&stack, "five.test");
    assert!((501..=505).contains(&status));
    assert_eq!((retries(&stack), marks(&stack)), (4, 6), "at most three retries");
    let requests: usize = backends.iter().map(|backend| backend.requests().len()).sum();
    assert_eq!(requests, 2 + 4, "no backend twice");
}

#[test]
fn however_many_are_answered_so_at_once_retries_have_a_budget() {
    let stack = Stack::start(&[ON_5XX]);
    let gate = Gate::default();
    let opened = gate.clone();
    let bad = Backend::start(move |exchange| {
        opened.wait();
        exchange.answer("502 Bad Gateway", "", b"");
        true
    });
    stack.list(HOST, &[&bad.url(), &Backend::named("good").url()]);
    let mut clients: Vec<_> = (0..300).map(|_| stack.planb.connect()).collect();
    for client in &mut clients {
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    }
    wait_until("half of them wait", || bad.requests().len() == 150);
    gate.open();
    let statuses: Vec<u16> = clients.iter_mut().map(|client| client.response().status).collect();
    let [well, passed] = [200, 502].map(|wanted| statuses.iter().filter(|&&status| status == wanted).count() as u64);
    let refused = stack.planb.count("planb_reverseproxy_retries_refused_total");
    assert_eq!((well + passed, passed), (300, refused));
    assert!(passed > 0 && retries(&stack) >= 20, "{passed} of 150 were not sent again");
    assert_eq!(marks(&stack), 1);
}

#[test]
fn an_answer_that_is_thrown_away_holds_no_connection() {
    let stack = Stack::start(&[ON_5XX]);
    let is_closed = Arc::new(AtomicBool::new(false));
    let closed = Arc::clone(&is_closed);
    let endless = Backend::start(move |exchange| {
        exchange.send("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 1000000000000\r\n\r\n");
        while exchange.send([b'x'; 8192]) {}
        closed.store(true, Ordering::SeqCst);
        false
    });
    let pair = Pair::of(&stack, HOST, endless);
    assert_eq!(pair.ask("GET", "\r\n").text(), "good");
    wait_until("the backend can send no more", || is_closed.load(Ordering::SeqCst));
}

#[test]
fn a_websocket_that_is_refused_so_is_told_and_the_backend_leaves() {
    let stack = Stack::start(&[ON_5XX]);
    let (bad, good) = (answering("503 Service Unavailable", ""), Backend::websocket_echo());
    stack.list(HOST, &[&bad.url(), &good.url()]);
    let open = || {
        let mut client = stack.planb.connect();
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"));
        client
    };
    assert_eq!(open().response().text(), "503 Service Unavailable");
    let sockets: Vec<(Client, u16)> = (0..3)
        .map(|_| {
            let mut client = open();
            let status = client.head().unwrap().status;
            (client, status)
        })
        .collect();
    assert!(sockets.iter().all(|&(_, status)| status == 101));
    assert_eq!((bad.requests().len(), retries(&stack), marks(&stack)), (1, 0, 1));
}

#[test]
fn http_2_goes_on_as_well() {
    let (bad, good) = (answering("502 Bad Gateway", ""), Backend::echo());
    let site = Site::start(&[ON_5XX], &[&bad.url(), &good.url()]);
    let response = site.connect().ask(http2::get("/path?query"));
    assert_eq!(response.status, 200);
    assert!(response.text().starts_with("GET /path?query HTTP/1.1\r\n"), "{}", response.text());
    wait_until("the mark is recorded", || dead(&site.stack, NAME) == "0");
}

#[test]
fn a_request_that_goes_on_is_the_same_for_the_next_backend() {
    let stack = Stack::start(&[ON_5XX, "--request-id-header=X-Request-ID"]);
    let (bad, good) = (answering("502 Bad Gateway", ""), Backend::echo());
    // The name of the first must not reach the second.
    let named = bad.url().replace("127.0.0.1", "localhost");
    stack.list(HOST, &[&named, &good.url()]);
    let response = ask(&stack, HOST, "GET", "X-Own: 1\r\nX-Own: 2\r\nCookie: a=b\r\n\r\n");
    assert_eq!(response.status, 200);
    let [first, second] = [bad.requests().pop().unwrap(), response.text().trim_end().to_owned()];
    let line = |head: &str, name: &str| {
        let mut lines: Vec<_> = head.split("\r\n").filter(|line| line.to_lowercase().starts_with(name)).collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    for name in ["get ", "x-own:", "cookie:", "x-request-id:", "x-forwarded-for:"] {
        assert_eq!(line(&first, name), line(&second, name));
        assert!(!line(&first, name).is_empty(), "{name}");
    }
    assert_eq!((line(&first, "host:"), line(&second, "host:")), ("Host: localhost".into(), format!("Host: {HOST}")));
    assert_eq!(line(&second, "x-host:"), "");
}

#[test]
fn whatever_chooses_the_backend_such_an_answer_is_held_against_it() {
    for policy in ["least-requests", "sticky"] {
        let stack = Stack::start(&[ON_5XX, &format!("--load-balancing={policy}")]);
        let sick = Arc::new(AtomicBool::new(false));
        let state = Arc::clone(&sick);
        let bad = Backend::start(move |exchange| {
            let status = if state.load(Ordering::SeqCst) { "502 Bad Gateway" } else { "200 OK" };
            exchange.answer(status, "", b"bad");
            true
        });
        let pair = Pair::of(&stack, HOST, bad);
        let cookie =
            |response: &Response| response.header("set-cookie").map(|line| line.split(';').next().unwrap().to_owned());
        let mut before = None;
        wait_until("the first is chosen", || {
            let response = pair.ask("GET", "\r\n");
            before = cookie(&response);
            response.text() == "bad"
        });
        sick.store(true, Ordering::SeqCst);
        let more = format!("Cookie: {}\r\n\r\n", before.clone().unwrap_or_default());
        wait_until("it is found out", || {
            let response = pair.ask("GET", &more);
            assert_eq!(response.text(), "good", "{policy}");
            assert!(policy != "sticky" || cookie(&response) != before, "the client is told that it has moved");
            marks(&stack) == 1
        });
        pair.assert_is_marked("the backend answered 502 Bad Gateway");
    }
}

#[test]
fn the_active_health_check_revives_it_by_its_own_criteria() {
    let flags = [ON_5XX, "--active-healthcheck", "--hostname=one", "--dead-backend-time=600"];
    let stack = Stack::start(&flags);
    stack.planb.wait_for_log("dead backends are checked");
    redis(&stack.master, &["HSET", &format!("healthcheck:{HOST}"), "status", "200"]);
    let is_well = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&is_well);
    let bad = Backend::start(move |exchange: &mut Exchange<'_>| {
        let status = if state.load(Ordering::SeqCst) { "200 OK" } else { "503 Service Unavailable" };
        exchange.answer(status, "", b"well");
        true
    });
    let pair = Pair::of(&stack, HOST, bad);
    assert_eq!(pair.ask("GET", "\r\n").text(), "good");
    let checks = || pair.bad.requests().iter().filter(|head| head.contains("planb-healthcheck/")).count();
    wait_until("it is found sick twice", || checks() >= 2);
    assert_eq!((pair.ask("GET", "\r\n").text(), dead(&stack, HOST)), ("good".into(), "0".into()));
    is_well.store(true, Ordering::SeqCst);
    wait_until("it is back", || pair.ask("GET", "\r\n").text() == "well");
    assert_eq!((dead(&stack, HOST), marks(&stack)), (String::new(), 1));
}

#[test]
fn a_mark_belongs_to_the_key_that_matched() {
    let stack = Stack::start(&[ON_5XX]);
    let bad = answering("502 Bad Gateway", "");
    stack.list("*.wild.test", &[&bad.url(), &Backend::named("good").url()]);
    assert_eq!(get(&stack, "a.wild.test"), (200, "good".to_owned()));
    wait_until("the mark is recorded", || dead(&stack, "*.wild.test") == "0");
    assert_eq!(dead(&stack, "a.wild.test"), "");
    assert!(["a.wild.test", "b.wild.test", "c.b.wild.test"].iter().all(|host| get(&stack, host).1 == "good"));
    assert_eq!(bad.requests().len(), 1);
}

#[test]
fn an_only_backend_is_spared_whatever_becomes_of_its_requests() {
    let stack = Stack::start(&[SPARE, ON_5XX]);
    let (_guard, refusing) = closed_port();
    let bad = answering("502 Bad Gateway", "");
    stack.list("refusing.test", &[&refusing]);
    // Listed twice, it is still the only one; so it is beside what is no backend.
    stack.list("bad.test", &[&bad.url(), &bad.url(), "nonsense://"]);
    for _ in 0..3 {
        assert_eq!(get(&stack, "refusing.test"), (503, String::new()));
        assert_eq!(get(&stack, "bad.test"), (502, "502 Bad Gateway".to_owned()));
    }
    assert_eq!((bad.requests().len(), retries(&stack), marks(&stack)), (3, 0, 0));
    for (host, reason) in [("refusing", "Connection refused"), ("bad", "the backend answered 502 Bad Gateway")] {
        let line = stack.planb.wait_for_log(&format!("ERROR in {host}.test"));
        assert!(line.contains(reason) && !line.contains("DEAD"), "{line}");
        assert_eq!(dead(&stack, &format!("{host}.test")), "");
    }
}

#[test]
fn once_there_is_another_nobody_is_spared_until_that_is_gone() {
    let stack = Stack::start(&[SPARE, "--dead-backend-time=600"]);
    let (_guard, refusing) = closed_port();
    let (key, good) = (format!("frontend:{HOST}"), Backend::named("good"));
    stack.list(HOST, &[&refusing]);
    assert_eq!(get(&stack, HOST).0, 503);
    stack.edit(&["RPUSH", &key, &good.url()]);
    assert!((0..3).all(|_| get(&stack, HOST).1 == "good"));
    assert_eq!(marks(&stack), 1);
    wait_until("the mark is recorded", || dead(&stack, HOST) == "0");
    // A mark that stands is obeyed, whoever set it and for whatever reason.
    stack.edit(&["LREM", &key, "0", &good.url()]);
    assert_eq!(get(&stack, HOST), (503, "all backends are dead".to_owned()));
    stack.edit(&["DEL", &format!("dead:{HOST}")]);
    assert_eq!((0..2).map(|_| get(&stack, HOST)).collect::<Vec<_>>(), vec![(503, String::new()); 2]);
    assert_eq!(marks(&stack), 1);
}
