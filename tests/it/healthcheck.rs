//! The active health check: who checks a dead backend, what makes it healthy, and what becomes of its mark meanwhile.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::support::{
    Backend, DnsServer, PATIENCE, Planb, PrivateRedis, Stack, closed_port, redis, redis_cli, redis_pair, redis_pipe,
    signal, wait_until, wait_within,
};

const FLAGS: &[&str] = &["--active-healthcheck", "--hostname=one"];

/// A backend that breaks every connection until it is cured, and then answers "well".
struct Patient {
    backend: Backend,
    is_well: Arc<AtomicBool>,
}

impl Patient {
    fn sick() -> Self {
        let is_well = Arc::new(AtomicBool::new(false));
        let state = Arc::clone(&is_well);
        let backend = Backend::start(move |exchange| {
            let is_well = state.load(Ordering::SeqCst);
            if is_well {
                exchange.answer("200 OK", "", b"well");
            }
            is_well
        });
        Self { backend, is_well }
    }

    fn cure(&self) {
        self.is_well.store(true, Ordering::SeqCst);
    }

    fn url(&self) -> String {
        self.backend.url()
    }

    fn wait_for_checks(&self, more: usize) {
        wait_for_checks(&self.backend, more);
    }
}

/// Requests of the health check so far.
fn checks(backend: &Backend) -> usize {
    backend.requests().iter().filter(|head| head.contains("planb-healthcheck/")).count()
}

fn wait_for_checks(backend: &Backend, more: usize) {
    let before = checks(backend);
    wait_until("it is checked", || checks(backend) >= before + more);
}

/// Does what an instance does that cannot reach a backend: records it for so many seconds, and announces it.
fn bury(server: &PrivateRedis, host: &str, url: &str, index: usize, seconds: usize) {
    redis(server, &["SADD", &format!("dead:{host}"), &index.to_string()]);
    redis(server, &["EXPIRE", &format!("dead:{host}"), &seconds.to_string()]);
    announce(server, host, url, index);
}

fn announce(server: &PrivateRedis, host: &str, url: &str, index: usize) {
    redis(server, &["PUBLISH", "dead", &format!("{host};{url};{index};2")]);
}

/// The indexes in a dead set, in order.
fn dead(server: &PrivateRedis, host: &str) -> Vec<String> {
    let mut members: Vec<String> =
        redis_cli(server, &["SMEMBERS", &format!("dead:{host}")]).lines().map(str::to_owned).collect();
    members.retain(|member| !member.is_empty());
    members.sort();
    members
}

/// Who holds the lease of a backend; empty for nobody.
fn holder(server: &PrivateRedis, host: &str, url: &str) -> String {
    redis_cli(server, &["GET", &format!("dead:{host}:{url}")])
}

fn wait_for_holder(server: &PrivateRedis, host: &str, url: &str, name: &str) {
    wait_until(&format!("{name:?} holds the lease"), || holder(server, host, url) == name);
}

/// Waits until a backend is recorded dead no more, and nobody's.
fn wait_for_revival(server: &PrivateRedis, host: &str, url: &str) {
    wait_until("it is revived", || dead(server, host).is_empty() && holder(server, host, url).is_empty());
}

/// A stack whose proxy has begun to listen for dead backends.
fn start(arguments: &[&str]) -> Stack {
    let stack = Stack::start(&[FLAGS, arguments].concat());
    stack.planb.wait_for_log("dead backends are checked");
    stack
}

fn another(stack: &Stack, name: &str) -> Planb {
    let flags = ["--active-healthcheck=true", &format!("--hostname={name}")];
    let planb = Planb::builder(&stack.replica, &stack.master).arguments(&flags).start();
    planb.wait_for_log("dead backends are checked");
    planb
}

fn watched(planb: &Planb) -> [u64; 2] {
    ["planb_health_watched", "planb_health_leases_held"].map(|name| planb.count(name))
}

#[test]
fn a_backend_that_comes_back_is_revived_long_before_its_mark_ends() {
    let stack = start(&["--dead-backend-time=600"]);
    let (socket, url) = closed_port();
    stack.list("back.test", &[&url, &Backend::named("b").url()]);
    wait_until("the backend is marked", || {
        stack.planb.ask("back.test");
        dead(&stack.master, "back.test") == ["0"]
    });
    wait_for_holder(&stack.master, "back.test", &url, "one");
    wait_until("a check has failed", || stack.planb.count("planb_health_checks_total{result=\"unreachable\"}") > 0);
    assert_eq!(watched(&stack.planb), [1, 1]);
    socket.listen(16).unwrap();
    let a = Backend::start_on(TcpListener::from(socket), |exchange| {
        exchange.answer("200 OK", "", b"a");
        false
    });
    wait_for_revival(&stack.master, "back.test", &url);
    wait_until("both answer", || stack.planb.ask("back.test") == "a");
    wait_until("nothing is watched", || watched(&stack.planb) == [0, 0]);
    assert_eq!(stack.planb.count("planb_health_checks_total{result=\"healthy\"}"), 1);
    let check = a.requests().remove(0);
    let host = url.strip_prefix("http://").unwrap();
    assert!(check.starts_with(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n")), "{check}");
    assert!(check.contains("Connection: close"), "{check}");
    let lines = stack.planb.log();
    let about = lines.iter().filter(|line| line.contains(&format!("\"{url}\"")) && line.contains("back.test"));
    assert_eq!(about.count(), 2, "one line for the beginning and one for the end: {lines:#?}");
}

#[test]
fn the_keys_are_those_of_the_original() {
    let stack = start(&[]);
    let patient = Patient::sick();
    stack.list("keys.test", &[&patient.url()]);
    bury(&stack.master, "keys.test", &patient.url(), 0, 5);
    patient.wait_for_checks(2);
    let key = format!("dead:keys.test:{}", patient.url());
    assert_eq!(redis_cli(&stack.master, &["TYPE", &key]), "string");
    assert_eq!(redis_cli(&stack.master, &["GET", &key]), "one");
    for key in [key.as_str(), "dead:keys.test"] {
        let ttl: u64 = redis_cli(&stack.master, &["TTL", key]).parse().unwrap();
        assert!((20..=30).contains(&ttl), "{key} lasts {ttl} s");
    }
    patient.cure();
    wait_for_revival(&stack.master, "keys.test", &patient.url());
    assert_eq!(redis_cli(&stack.master, &["KEYS", "dead:*"]), "");
}

#[test]
fn only_the_wanted_status_is_healthy() {
    let stack = start(&[]);
    let status = Arc::new(Mutex::new("503 Service Unavailable"));
    let answered = Arc::clone(&status);
    let backend = Backend::start(move |exchange| {
        exchange.answer(*answered.lock().unwrap(), "Location: http://127.0.0.1:1/\r\n", b"");
        true
    });
    let url = backend.url();
    stack.list("status.test", &[&url]);
    redis(&stack.master, &["HSET", "healthcheck:status.test", "status", "302"]);
    bury(&stack.master, "status.test", &url, 0, 30);
    wait_for_checks(&backend, 3);
    assert_eq!(dead(&stack.master, "status.test"), ["0"]);
    *status.lock().unwrap() = "302 Found";
    wait_for_revival(&stack.master, "status.test", &url);
    assert!(stack.planb.count("planb_health_checks_total{result=\"status\"}") >= 2);

    // Whatever is no status wants none.
    for junk in ["0", "any", ""] {
        redis_pipe(&stack.master, &[vec![b"HSET", b"healthcheck:status.test", b"status", junk.as_bytes()]]);
        *status.lock().unwrap() = "500 Internal Server Error";
        bury(&stack.master, "status.test", &url, 0, 30);
        wait_for_revival(&stack.master, "status.test", &url);
    }
}

#[test]
fn the_wanted_text_is_found_wherever_the_body_is_cut() {
    let stack = start(&[]);
    let is_ready = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&is_ready);
    let backend = Backend::start(move |exchange| {
        exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let end = if state.load(Ordering::SeqCst) { "ng!\r\n" } else { "ngl\r\n" };
        // The text is cut into chunks, each in a packet of its own.
        for chunk in ["6\r\nall sy\r\n", "a\r\nstems stro\r\n", "3\r\n", end, "0\r\n\r\n"] {
            exchange.send(chunk);
            std::thread::yield_now();
        }
        true
    });
    stack.list("body.test", &[&backend.url()]);
    redis_pipe(&stack.master, &[vec![b"HSET", b"healthcheck:body.test", b"body", b"systems strong!"]]);
    bury(&stack.master, "body.test", &backend.url(), 0, 30);
    wait_for_checks(&backend, 3);
    assert_eq!(dead(&stack.master, "body.test"), ["0"]);
    assert!(stack.planb.count("planb_health_checks_total{result=\"body\"}") >= 2);
    is_ready.store(true, Ordering::SeqCst);
    wait_for_revival(&stack.master, "body.test", &backend.url());
}

#[test]
fn the_path_is_asked_for_and_may_change_at_any_time() {
    let stack = start(&[]);
    let backend = Backend::start(|exchange| {
        let is_found = exchange.head.starts_with("GET /health/deep?all=1 ");
        exchange.answer(if is_found { "204 No Content" } else { "404 Not Found" }, "", b"");
        true
    });
    stack.list("path.test", &[&backend.url()]);
    redis(&stack.master, &["HSET", "healthcheck:path.test", "path", "/nowhere", "status", "204"]);
    bury(&stack.master, "path.test", &backend.url(), 0, 30);
    wait_for_checks(&backend, 2);
    redis(&stack.master, &["HSET", "healthcheck:path.test", "path", "health/deep?all=1"]);
    wait_for_revival(&stack.master, "path.test", &backend.url());
    assert!(backend.requests()[0].starts_with("GET /nowhere "));
}

#[test]
fn the_path_is_below_the_url_s_own() {
    let stack = start(&[]);
    let backend = Backend::start(|exchange| {
        let is_found = exchange.head.starts_with("GET /base/health ");
        exchange.answer(if is_found { "200 OK" } else { "404 Not Found" }, "", b"");
        true
    });
    for (number, (end, path)) in [("/base", "health"), ("/base/", "/health"), ("/base?q", "/health")].iter().enumerate()
    {
        let (host, url) = (format!("below{number}.test"), format!("{}{end}", backend.url()));
        stack.list(&host, &[&url]);
        redis(&stack.master, &["HSET", &format!("healthcheck:{host}"), "path", path, "status", "200"]);
        // Whatever is announced, the list has the path.
        bury(&stack.master, &host, &backend.url(), 0, 600);
        wait_for_revival(&stack.master, &host, &url);
    }
}

/// A backend that redirects `/N` to `/N-1`, over and over again, with each status in turn, and answers "well" to `/0`.
fn redirecting() -> Backend {
    Backend::start(|exchange| {
        let number = exchange.head.strip_prefix("GET /").and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
        match number {
            Some(0) => exchange.answer("200 OK", "", b"well"),
            None => exchange.answer("404 Not Found", "", b""),
            Some(number) => {
                let status = [301, 302, 303, 307, 308][number % 5];
                let host = exchange.header("host").unwrap().to_owned();
                // Relative and absolute in turn.
                let before = if number % 2 == 0 { String::new() } else { format!("http://{host}/") };
                exchange.answer(
                    &format!("{status} Elsewhere"),
                    &format!("Location: {before}{}\r\n", number - 1),
                    b"sick",
                );
            }
        }
        true
    })
}

#[test]
fn ten_redirects_are_followed_and_no_more() {
    let stack = start(&[]);
    let backend = redirecting();
    stack.list("long.test", &[&backend.url()]);
    redis(&stack.master, &["HSET", "healthcheck:long.test", "path", "/11", "status", "200", "body", "well"]);
    bury(&stack.master, "long.test", &backend.url(), 0, 600);
    wait_until("it is broken", || stack.planb.count("planb_health_checks_total{result=\"broken\"}") >= 2);
    assert_eq!(dead(&stack.master, "long.test"), ["0"]);
    assert!(!backend.requests().iter().any(|head| head.starts_with("GET /0 ")));
    redis(&stack.master, &["HSET", "healthcheck:long.test", "path", "/10"]);
    wait_for_revival(&stack.master, "long.test", &backend.url());
    assert_eq!(backend.connections(), backend.requests().len(), "each on a connection of its own");
}

#[test]
fn redirects_lead_to_other_hosts_and_schemes_by_name_too() {
    let dns = DnsServer::start();
    let stack = start(&[&dns.flag(), "--backend-tls-verify=false"]);
    let end = Backend::start_tls(|exchange| {
        let is_well = exchange.head.starts_with("GET /end?a=1 HTTP/1.1\r\nHost: end.test:");
        exchange.answer(if is_well { "200 OK" } else { "500 Internal Server Error" }, "", b"well");
        true
    });
    dns.point("end.test", &["127.0.0.1"], 60);
    let location = format!("https://end.test:{}/end?a=1#b", end.address().port());
    let begin = Backend::start(move |exchange| {
        exchange.answer("307 Temporary Redirect", &format!("Location: {location}\r\n"), b"");
        true
    });
    stack.list("far.test", &[&begin.url()]);
    redis(&stack.master, &["HSET", "healthcheck:far.test", "status", "200", "body", "well"]);
    bury(&stack.master, "far.test", &begin.url(), 0, 600);
    wait_for_revival(&stack.master, "far.test", &begin.url());
    assert_eq!((begin.requests().len(), end.requests().len()), (1, 1));
    assert_eq!(stack.planb.count("planb_dns_names"), 0, "names that backends choose are not remembered");
}

#[test]
fn a_location_can_do_no_more_than_make_the_check_fail() {
    let stack = start(&[]);
    let location = Arc::new(Mutex::new("/again".to_owned()));
    let said = Arc::clone(&location);
    let backend = Backend::start(move |exchange| {
        let location = said.lock().unwrap().clone();
        if location == "well" {
            exchange.answer("200 OK", "", b"");
        } else {
            exchange.answer("302 Found", &format!("Location: {location}\r\n"), b"");
        }
        true
    });
    let (_socket, refusing) = closed_port();
    let own = Backend::start_tls(|exchange| {
        exchange.answer("200 OK", "", b"");
        true
    });
    let url = backend.url();
    stack.list("astray.test", &[&url]);
    let ended = || -> u64 {
        let page = stack.planb.metrics_page();
        let counts = page.lines().filter_map(|line| line.strip_prefix("planb_health_checks_total{"));
        counts.map(|line| line.split(' ').next_back().unwrap().parse::<u64>().unwrap()).sum()
    };
    bury(&stack.master, "astray.test", &url, 0, 600);
    for junk in [
        "/again".to_owned(),
        refusing,
        own.url(),
        "ftp://127.0.0.1/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "http://".to_owned(),
        "http://127.0.0.1:99999/".to_owned(),
        "http://a b/".to_owned(),
        "http://no.such.name.invalid/".to_owned(),
        "\u{1F4A3}://\u{1F4A3}".to_owned(),
        format!("/{}", "x".repeat(100_000)),
        "x".repeat(2_000_000),
    ] {
        junk.clone_into(&mut location.lock().unwrap());
        let before = ended();
        wait_until("it was checked", || ended() >= before + 2);
        assert_eq!(dead(&stack.master, "astray.test"), ["0"], "{}", &junk[..junk.len().min(50)]);
    }
    assert_eq!(stack.planb.count("planb_health_checks_total{result=\"healthy\"}"), 0);
    assert_eq!(own.requests().len(), 0, "its certificate is not believed");
    "well".clone_into(&mut location.lock().unwrap());
    wait_for_revival(&stack.master, "astray.test", &url);
}

#[test]
fn a_redirect_that_does_not_say_where_is_an_answer() {
    let stack = start(&[]);
    let backend = Backend::start(|exchange| {
        exchange.answer("302 Found", "", b"well");
        true
    });
    stack.list("nowhere.test", &[&backend.url()]);
    redis(&stack.master, &["HSET", "healthcheck:nowhere.test", "body", "well"]);
    bury(&stack.master, "nowhere.test", &backend.url(), 0, 600);
    wait_for_revival(&stack.master, "nowhere.test", &backend.url());
}

#[test]
fn an_answer_of_a_thousand_header_lines_is_read() {
    let stack = start(&["--max-headers=10"]);
    let backend = Backend::start(|exchange| {
        exchange.answer("200 OK", &"X-Line: one of many\r\n".repeat(999), b"");
        true
    });
    stack.list("lines.test", &[&backend.url()]);
    bury(&stack.master, "lines.test", &backend.url(), 0, 600);
    wait_for_revival(&stack.master, "lines.test", &backend.url());
}

#[test]
fn an_https_backend_is_checked_over_tls() {
    let stack = start(&["--backend-tls-verify=false"]);
    let backend = Backend::start_tls(|exchange| {
        exchange.answer("200 OK", "", b"");
        true
    });
    stack.list("tls.test", &[&backend.url()]);
    bury(&stack.master, "tls.test", &backend.url(), 0, 600);
    wait_for_revival(&stack.master, "tls.test", &backend.url());
    assert_eq!(checks(&backend), 1);

    let verifying = Planb::builder(&stack.replica, &stack.master).arguments(&["--active-healthcheck"]).start();
    verifying.wait_for_log("dead backends are checked");
    stack.planb.signal("KILL");
    bury(&stack.master, "tls.test", &backend.url(), 0, 600);
    wait_until("it is not believed", || verifying.count("planb_health_checks_total{result=\"certificate\"}") >= 2);
    assert_eq!((checks(&backend), dead(&stack.master, "tls.test").len()), (1, 1));
}

#[test]
fn a_backend_that_stays_down_gets_no_request_for_as_long_as_it_is_checked() {
    let stack = start(&["--dead-backend-time=2"]);
    outlives_its_mark(&stack);
}

#[test]
fn marks_are_kept_where_no_event_tells_of_it() {
    let stack = start(&["--dead-backend-time=2"]);
    redis_cli(&stack.replica, &["CONFIG", "SET", "notify-keyspace-events", ""]);
    wait_until("the table is polled", || stack.planb.count("planb_sync_polling") == 1);
    outlives_its_mark(&stack);
}

/// A mark that was learnt with a deadline of seconds, and is not announced again, is kept by the checks alone.
fn outlives_its_mark(stack: &Stack) {
    let (patient, b) = (Patient::sick(), Backend::named("b"));
    let lease = format!("dead:down.test:{}", patient.url());
    stack.list("down.test", &[&b.url(), &patient.url()]);
    redis(&stack.master, &["SET", &lease, "go-planb", "EX", "30"]);
    bury(&stack.master, "down.test", &patient.url(), 1, 8);
    wait_until("the mark is known", || {
        watched(&stack.planb) == [1, 0] && [(); 4].map(|()| stack.planb.ask("down.test")) == ["b"; 4]
    });
    let before = patient.backend.requests().len();
    redis(&stack.master, &["DEL", &lease]);
    wait_within(PATIENCE * 3, "it was checked for longer than that", || {
        assert_eq!(stack.planb.ask("down.test"), "b");
        checks(&patient.backend) >= 9
    });
    assert_eq!(
        checks(&patient.backend),
        patient.backend.requests().len() - before,
        "nobody but the check has asked it"
    );
    let ttl: i64 = redis_cli(&stack.master, &["TTL", "dead:down.test"]).parse().unwrap();
    assert!((20..=30).contains(&ttl), "the mark lasts {ttl} s");
    patient.cure();
    wait_until("it answers again", || stack.planb.ask("down.test") == "well");
}

#[test]
fn an_edit_of_the_list_moves_no_mark_to_a_neighbour() {
    let stack = start(&[]);
    let (patient, b, c) = (Patient::sick(), Backend::named("b"), Backend::named("c"));
    let list = "frontend:edit.test";
    stack.list("edit.test", &[&patient.url(), &b.url()]);
    bury(&stack.master, "edit.test", &patient.url(), 0, 30);
    patient.wait_for_checks(1);
    redis(&stack.master, &["LINSERT", list, "BEFORE", &patient.url(), &c.url()]);
    wait_until("the mark has followed", || dead(&stack.master, "edit.test") == ["1"]);
    // A URL that is listed twice is dead twice.
    redis(&stack.master, &["RPUSH", list, &patient.url()]);
    wait_until("both are marked", || dead(&stack.master, "edit.test") == ["1", "3"]);
    redis(&stack.master, &["LREM", list, "1", &c.url()]);
    wait_until("the marks have followed", || dead(&stack.master, "edit.test") == ["0", "2"]);
    patient.cure();
    wait_for_revival(&stack.master, "edit.test", &patient.url());
    assert_eq!(checks(&b) + checks(&c), 0);
}

/// Moves a backend to the end of its list, in one step.
fn move_to_the_end(master: &PrivateRedis, list: &str, url: &str) {
    let (list, url) = (list.as_bytes(), url.as_bytes());
    redis_pipe(master, &[vec![b"MULTI"], vec![b"LREM", list, b"0", url], vec![b"RPUSH", list, url], vec![b"EXEC"]]);
}

#[test]
fn an_edit_just_before_the_revival_does_not_leave_the_old_index() {
    let stack = start(&[]);
    let patient = Patient::sick();
    stack.list("swap.test", &[&patient.url(), &Backend::named("b").url()]);
    bury(&stack.master, "swap.test", &patient.url(), 0, 30);
    patient.wait_for_checks(1);
    // In one step, so that no visit comes between the edit and the recovery.
    let (list, url) = ("frontend:swap.test", patient.url());
    move_to_the_end(&stack.master, list, &url);
    patient.cure();
    wait_for_revival(&stack.master, "swap.test", &patient.url());
}

#[test]
fn an_index_stays_for_the_one_who_stands_there_and_is_watched_too() {
    let stack = start(&[]);
    let (patient, b) = (Patient::sick(), Backend::named("b"));
    let (list, url) = ("frontend:both.test", patient.url());
    stack.list("both.test", &[&url, &b.url()]);
    bury(&stack.master, "both.test", &url, 0, 30);
    patient.wait_for_checks(1);
    // Another instance watches b.
    let lease = format!("dead:both.test:{}", b.url());
    redis(&stack.master, &["SET", &lease, "go-planb", "EX", "30"]);
    redis(&stack.master, &["SADD", "dead:both.test", "1"]);
    move_to_the_end(&stack.master, list, &url);
    patient.wait_for_checks(3);
    assert_eq!(dead(&stack.master, "both.test"), ["0", "1"]);
    // When nobody does any more, what is left of the old index is cleared away.
    redis(&stack.master, &["DEL", &lease]);
    wait_until("b is not dead for another's sake", || dead(&stack.master, "both.test") == ["1"]);
    patient.cure();
    wait_for_revival(&stack.master, "both.test", &url);
}

#[test]
fn a_backend_that_is_not_listed_any_more_is_left_alone() {
    let stack = start(&[]);
    let (patient, b) = (Patient::sick(), Backend::named("b"));
    stack.list("gone.test", &[&patient.url(), &b.url()]);
    bury(&stack.master, "gone.test", &patient.url(), 0, 30);
    patient.wait_for_checks(1);
    redis(&stack.master, &["LREM", "frontend:gone.test", "0", &patient.url()]);
    wait_for_revival(&stack.master, "gone.test", &patient.url());
    wait_until("the watch ends", || watched(&stack.planb) == [0, 0]);
    stack.planb.wait_for_log("is not listed any more");
    // One that never was is not even asked.
    announce(&stack.master, "gone.test", &patient.url(), 0);
    announce(&stack.master, "never.test", &patient.url(), 0);
    let before = checks(&patient.backend);
    bury(&stack.master, "gone.test", &b.url(), 0, 30);
    wait_until("what came later is done", || checks(&b) == 1);
    wait_for_revival(&stack.master, "gone.test", &b.url());
    assert_eq!((checks(&patient.backend), dead(&stack.master, "gone.test").len()), (before, 0));
}

#[test]
fn what_is_dead_at_the_start_is_checked() {
    let stack = Stack::start(&[]);
    let (a, b) = (Patient::sick(), Patient::sick());
    stack.list("old.test", &[&a.url(), &b.url()]);
    stack.edit(&["SADD", "dead:old.test", "1"]);
    let planb = another(&stack, "late");
    wait_for_holder(&stack.master, "old.test", &b.url(), "late");
    b.wait_for_checks(2);
    assert_eq!((checks(&a.backend), watched(&planb)), (0, [1, 1]));
    b.cure();
    wait_for_revival(&stack.master, "old.test", &b.url());
}

#[test]
fn without_the_flag_nothing_is_checked() {
    let stack = Stack::start(&["--hostname=one"]);
    let patient = Patient::sick();
    stack.list("off.test", &[&patient.url()]);
    bury(&stack.master, "off.test", &patient.url(), 0, 30);
    stack.settle();
    assert_eq!((watched(&stack.planb), holder(&stack.master, "off.test", &patient.url())), ([0, 0], String::new()));
    assert_eq!(patient.backend.connections(), 0);
}

#[test]
fn another_machine_s_lease_is_respected_until_it_ends() {
    let stack = start(&[]);
    let patient = Patient::sick();
    let key = format!("dead:leased.test:{}", patient.url());
    stack.list("leased.test", &[&patient.url()]);
    redis(&stack.master, &["SET", &key, "go-planb", "EX", "4"]);
    bury(&stack.master, "leased.test", &patient.url(), 0, 30);
    wait_until("this one stands by", || watched(&stack.planb) == [1, 0]);
    wait_until("the lease has ended", || {
        let before = checks(&patient.backend);
        let is_held = holder(&stack.master, "leased.test", &patient.url()) == "go-planb";
        assert!(!is_held || before == 0, "it was checked under another's lease");
        !is_held
    });
    wait_for_holder(&stack.master, "leased.test", &patient.url(), "one");
    patient.wait_for_checks(1);

    // A lease that is taken from us is let go of.
    redis(&stack.master, &["SET", &key, "go-planb", "EX", "30"]);
    wait_until("this one stands by", || watched(&stack.planb) == [1, 0]);
    stack.planb.wait_for_log("is checked by another instance now");
    assert_eq!(holder(&stack.master, "leased.test", &patient.url()), "go-planb");
    // What the other has revived is alive.
    redis(&stack.master, &["DEL", "dead:leased.test"]);
    let before = checks(&patient.backend);
    redis(&stack.master, &["DEL", &key]);
    wait_until("the watch ends", || watched(&stack.planb) == [0, 0]);
    assert_eq!(checks(&patient.backend), before);
}

#[test]
fn of_two_instances_one_checks_and_the_other_takes_over_when_it_dies() {
    let stack = start(&[]);
    let two = another(&stack, "two");
    let patient = Patient::sick();
    stack.list("shared.test", &[&patient.url()]);
    bury(&stack.master, "shared.test", &patient.url(), 0, 30);
    patient.wait_for_checks(3);
    let key = format!("dead:shared.test:{}", patient.url());
    let first = holder(&stack.master, "shared.test", &patient.url());
    let (holding, waiting, other) =
        if first == "one" { (&stack.planb, &two, "two") } else { (&two, &stack.planb, "one") };
    assert_eq!((watched(holding), watched(waiting)), ([1, 1], [1, 0]));
    let made = |planb: &Planb| planb.count("planb_health_checks_total{result=\"broken\"}");
    assert_eq!((made(holding) >= 2, made(waiting)), (true, 0));

    signal(holding.pid(), "KILL");
    redis(&stack.master, &["PEXPIRE", &key, "100"]);
    wait_for_holder(&stack.master, "shared.test", &patient.url(), other);
    patient.wait_for_checks(2);
    assert_eq!(dead(&stack.master, "shared.test"), ["0"]);
    patient.cure();
    wait_for_revival(&stack.master, "shared.test", &patient.url());
}

#[test]
fn what_one_instance_revives_all_have_back() {
    let stack = start(&["--dead-backend-time=600"]);
    let two = another(&stack, "two");
    let (patient, b) = (Patient::sick(), Backend::named("b"));
    stack.list("all.test", &[&patient.url(), &b.url()]);
    bury(&stack.master, "all.test", &patient.url(), 0, 600);
    wait_until("both know", || watched(&stack.planb)[0] + watched(&two)[0] == 2);
    patient.wait_for_checks(2);
    patient.cure();
    for planb in [&stack.planb, &two] {
        wait_until("it answers", || planb.ask("all.test") == "well");
        wait_until("nothing is watched", || watched(planb) == [0, 0]);
    }
    assert_eq!(checks(&b), 0);
}

#[test]
fn a_drain_leaves_the_dead_to_others_at_once() {
    let mut stack = start(&[]);
    let patient = Patient::sick();
    let url = patient.url();
    stack.list("drain.test", &[&url]);
    bury(&stack.master, "drain.test", &url, 0, 30);
    wait_for_holder(&stack.master, "drain.test", &url, "one");
    let two = another(&stack, "two");
    wait_until("the other stands by", || watched(&two) == [1, 0]);
    let mut channel = TcpStream::connect(("127.0.0.1", stack.master.port())).unwrap();
    channel.set_read_timeout(Some(PATIENCE)).unwrap();
    channel.write_all(b"SUBSCRIBE dead\r\n").unwrap();
    let mut lines = BufReader::new(channel).lines().map_while(Result::ok);
    assert_eq!(lines.by_ref().take(6).last().as_deref(), Some(":1"), "the subscription is in force");
    stack.planb.signal("TERM");
    let notice = format!("drain.test;{url};0;1");
    assert!(lines.any(|line| line == notice), "whoever does not know of it yet is told");
    assert_eq!(stack.planb.wait_for_exit().code(), Some(0));
    assert_ne!(holder(&stack.master, "drain.test", &url), "one");
    wait_for_holder(&stack.master, "drain.test", &url, "two");
    assert_eq!(dead(&stack.master, "drain.test"), ["0"]);
    patient.wait_for_checks(2);
}

#[test]
fn backends_that_never_answer_hold_up_no_other() {
    let stack = start(&[]);
    let (silent, gate) = Backend::holding();
    let patient = Patient::sick();
    stack.list("patient.test", &[&patient.url()]);
    for number in 0..9 {
        let host = format!("silent{number}.test");
        redis(&stack.master, &["HSET", &format!("healthcheck:{host}"), "path", "/held"]);
        redis(&stack.master, &["RPUSH", &format!("frontend:{host}"), "id", &silent.url()]);
        bury(&stack.master, &host, &silent.url(), 0, 30);
    }
    wait_until("checks are held", || checks(&silent) >= 4);
    bury(&stack.master, "patient.test", &patient.url(), 0, 30);
    let limit = Duration::from_secs(10);
    wait_within(limit, "a new one has its turn", || checks(&patient.backend) >= 1);
    wait_within(limit, "one that is known to be prompt has its turns", || checks(&patient.backend) >= 4);
    patient.cure();
    wait_within(limit, "it is revived", || dead(&stack.master, "patient.test").is_empty());
    let is_kept = |number: usize| dead(&stack.master, &format!("silent{number}.test")) == ["0"];
    assert!((0..9).all(is_kept), "those that wait for a slot stay dead");
    gate.open();
    for number in 0..9 {
        wait_for_revival(&stack.master, &format!("silent{number}.test"), &silent.url());
    }
}

#[test]
fn at_most_five_checks_run_at_once() {
    let stack = start(&[]);
    let (silent, _gate) = Backend::holding();
    for number in 0..20 {
        let host = format!("many{number}.test");
        redis(&stack.master, &["HSET", &format!("healthcheck:{host}"), "path", "/held"]);
        redis(&stack.master, &["RPUSH", &format!("frontend:{host}"), "id", &silent.url()]);
        bury(&stack.master, &host, &silent.url(), 0, 30);
    }
    let port = format!(":{:04X} ", silent.address().port());
    // Sockets of clients of the backend: remote port and state ESTABLISHED.
    let open = || {
        let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", stack.planb.pid())).unwrap();
        table
            .lines()
            .filter(|line| {
                line.split_whitespace().nth(2).is_some_and(|remote| format!("{remote} ").ends_with(&port))
                    && line.contains(" 01 ")
            })
            .count()
    };
    wait_until("checks have come and gone", || {
        let open = open();
        assert!(open <= 5, "{open} checks at once");
        checks(&silent) >= 12
    });
}

#[test]
fn an_operator_cannot_wish_a_sick_backend_alive() {
    let stack = start(&[]);
    let patient = Patient::sick();
    stack.list("wish.test", &[&patient.url()]);
    let key = format!("dead:wish.test:{}", patient.url());
    bury(&stack.master, "wish.test", &patient.url(), 0, 30);
    for wish in [vec!["SREM", "dead:wish.test", "0"], vec!["DEL", &key], vec!["DEL", "dead:wish.test", &key]] {
        patient.wait_for_checks(1);
        redis(&stack.master, &wish);
        wait_until("it is marked again", || {
            dead(&stack.master, "wish.test") == ["0"] && holder(&stack.master, "wish.test", &patient.url()) == "one"
        });
    }
}

#[test]
fn junk_disturbs_nothing() {
    let stack = start(&[]);
    let (patient, b) = (Patient::sick(), Backend::named("b"));
    stack.list("junk.test", &["ftp://nobody", &patient.url()]);
    redis(&stack.master, &["SET", "healthcheck:junk.test", "no-hash"]);
    for junk in ["junk", ";;;", "junk.test;ftp://nobody;0;2", "junk.test;;x;2", "x;http://127.0.0.1:1;0;1"] {
        redis(&stack.master, &["PUBLISH", "dead", junk]);
    }
    redis_pipe(&stack.master, &[vec![b"PUBLISH", b"dead", b"\xff\xfe;http://x;0;1"]]);
    redis(&stack.master, &["SET", "frontend:string.test", "no-list"]);
    announce(&stack.master, "string.test", &b.url(), 0);
    redis(&stack.master, &["SET", "dead:wrong.test", "no-set"]);
    redis(&stack.master, &["RPUSH", "frontend:wrong.test", "id", &b.url()]);
    announce(&stack.master, "wrong.test", &b.url(), 0);
    // A lease that is none is another's.
    redis(&stack.master, &["RPUSH", "frontend:odd.test", "id", &b.url()]);
    redis(&stack.master, &["RPUSH", &format!("dead:odd.test:{}", b.url()), "no-lease"]);
    announce(&stack.master, "odd.test", &b.url(), 0);

    bury(&stack.master, "junk.test", &patient.url(), 1, 30);
    patient.wait_for_checks(2);
    assert_eq!((checks(&b), dead(&stack.master, "junk.test")), (0, vec!["1".to_owned()]));
    patient.cure();
    wait_for_revival(&stack.master, "junk.test", &patient.url());
    let lost = stack.planb.log().into_iter().find(|line| line.contains("cannot be checked"));
    assert_eq!(lost, None, "the session has gone on");
}

#[test]
fn hosts_of_any_form_are_watched_apart() {
    let stack = start(&[]);
    let patient = Patient::sick();
    let hosts = ["a.test", "a.test:8080", "*.a.test", "*"];
    for host in hosts {
        stack.list(host, &[&patient.url()]);
        bury(&stack.master, host, &patient.url(), 0, 2);
    }
    wait_until("all are watched", || watched(&stack.planb) == [4, 4]);
    patient.wait_for_checks(24);
    // Longer than their marks were to last.
    for asked in ["a.test", "a.test:8080", "x.a.test", "other.test"] {
        assert_eq!(stack.planb.ask(asked), "all backends are dead", "{asked}");
    }
    redis(&stack.master, &["LREM", "frontend:a.test:8080", "0", &patient.url()]);
    wait_until("one is not watched any more", || watched(&stack.planb) == [3, 3]);
    patient.cure();
    for host in hosts {
        wait_for_revival(&stack.master, host, &patient.url());
    }
}

#[test]
fn checks_pause_while_the_write_redis_is_away() {
    let read = PrivateRedis::start(&["--notify-keyspace-events", "KA"]).unwrap();
    let mut write = PrivateRedis::start(&[]).unwrap();
    let planb = Planb::builder(&read, &write).arguments(FLAGS).start();
    planb.wait_for_log("dead backends are checked");
    let patient = Patient::sick();
    for server in [&read, &write] {
        redis(server, &["RPUSH", "frontend:away.test", "id", &patient.url()]);
    }
    bury(&write, "away.test", &patient.url(), 0, 600);
    patient.wait_for_checks(1);
    redis(&write, &["SAVE"]);
    write.kill();
    planb.wait_for_log("dead backends cannot be checked");
    wait_until("nothing is held", || watched(&planb) == [1, 0]);
    write.restart(&[]).unwrap();
    wait_for_holder(&write, "away.test", &patient.url(), "one");
    patient.wait_for_checks(2);
    // Scripts that the server forgets are loaded again.
    redis(&write, &["SCRIPT", "FLUSH"]);
    patient.wait_for_checks(2);
    // A frozen server is as good as none.
    signal(write.pid(), "STOP");
    wait_until("nothing is held", || watched(&planb) == [1, 0]);
    signal(write.pid(), "CONT");
    patient.wait_for_checks(2);
    patient.cure();
    wait_for_revival(&write, "away.test", &patient.url());
}

#[test]
fn a_server_that_refuses_everything_fills_no_log() {
    let stack = start(&["--dead-backend-time=600"]);
    let (patient, (_socket, url)) = (Patient::sick(), closed_port());
    stack.list("refused.test", &[&patient.url()]);
    stack.list("unheard.test", &[&url, &Backend::named("b").url()]);
    bury(&stack.master, "refused.test", &patient.url(), 0, 600);
    patient.wait_for_checks(1);
    // As when it is out of memory, or could not save: everybody is let in, and no write is taken.
    redis(&stack.master, &["CONFIG", "SET", "min-replicas-to-write", "9"]);
    let opened = || -> u64 {
        let stats = redis_cli(&stack.master, &["INFO", "stats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.unwrap().trim().parse().unwrap()
    };
    wait_until("the proxy marks one of its own", || {
        stack.planb.ask("unheard.test");
        stack.planb.metric("planb_router_dead_marks_pending") > 0.0
    });
    // Each attempt costs three connections, and each look at them one.
    let mut looks = 0;
    let before = opened();
    wait_until("both have tried many times", || {
        looks += 1;
        opened() >= before + looks + 60
    });
    let said = |text: &str| stack.planb.log().iter().filter(|line| line.contains(text)).count();
    for text in ["cannot be checked", "cannot be recorded"] {
        assert!((1..=4).contains(&said(text)), "{text}: {} lines", said(text));
    }
    for text in ["dead backends are checked", "dead backends are recorded"] {
        assert_eq!(said(text), 1, "{text}");
    }
    redis(&stack.master, &["CONFIG", "SET", "min-replicas-to-write", "0"]);
    patient.cure();
    wait_for_revival(&stack.master, "refused.test", &patient.url());
    for text in ["dead backends are checked", "dead backends are recorded"] {
        wait_until(text, || said(text) == 2);
    }
    assert_eq!(dead(&stack.master, "unheard.test"), ["0"]);
}

#[test]
fn who_alone_cannot_reach_a_backend_leaves_it_alone_and_to_the_others() {
    let (master, replica) = redis_pair();
    let (x, y) = (Backend::named("x"), Backend::named("y"));
    let url = format!("http://x.partition.test:{}", x.address().port());
    let start = |address: &str, flags: &[&str]| {
        let dns = DnsServer::start();
        dns.point("x.partition.test", &[address], 60);
        let planb = Planb::builder(&replica, &master).arguments(&[&[&*dns.flag()], flags].concat()).start();
        (planb, dns)
    };
    let (sound, _dns) = start("127.0.0.1", FLAGS);
    sound.wait_for_log("dead backends are checked");
    let (cut_off, _its_dns) = start("127.0.0.9", &[]);
    redis(&master, &["RPUSH", "frontend:partition.test", "id", &url, &y.url()]);
    for planb in [&sound, &cut_off] {
        planb.wait_for_route("partition.test");
    }
    wait_until("it was revived several times", || {
        assert_eq!(cut_off.ask("partition.test"), "y");
        sound.count("planb_health_checks_total{result=\"healthy\"}") >= 3
    });
    for _ in 0..500 {
        assert_eq!(cut_off.ask("partition.test"), "y");
    }
    let marks = cut_off.count("planb_router_backend_markdead_total");
    assert!(marks <= 20, "it was marked {marks} times");
    wait_until("the others use it", || sound.ask("partition.test") == "x");
}

#[test]
fn nobody_is_buried_before_a_check_has_found_it_sick() {
    let stack = start(&[]);
    let (slow, gate) = Backend::holding();
    stack.list("slow.test", &[&slow.url()]);
    redis(&stack.master, &["HSET", "healthcheck:slow.test", "path", "/held"]);
    // An announcement without a mark: the one has been lifted before the other arrives.
    announce(&stack.master, "slow.test", &slow.url(), 0);
    wait_for_holder(&stack.master, "slow.test", &slow.url(), "one");
    let visits = || -> u64 {
        let stats = redis_cli(&stack.master, &["INFO", "commandstats"]);
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        calls.and_then(|calls| calls.split(',').next()).map_or(0, |calls| calls.parse().unwrap())
    };
    let before = visits();
    wait_until("the lease has been renewed while the check lasts", || {
        assert_eq!(dead(&stack.master, "slow.test"), [""; 0]);
        visits() >= before + 4
    });
    gate.open();
    wait_for_revival(&stack.master, "slow.test", &slow.url());
    assert_eq!(checks(&slow), 1);
}
