//! What Prometheus sees.

use std::{collections::BTreeSet, net::TcpListener};

use tokio_tungstenite::tungstenite::{self, Message};

use super::support::{Backend, Client, Planb, Stack, closed_port, get, redis, signal, wait_until};

const PREFIX: &str = "planb_reverseproxy";

/// Checks by how much the counters rise in the course of `work`. A request is counted at its very end, which may come after
/// its client has all of the response.
fn assert_rises(planb: &Planb, rises: &[(&str, u64)], work: impl FnOnce()) {
    let read = || rises.iter().map(|(name, _)| planb.count(name)).collect::<Vec<_>>();
    let before = read();
    work();
    let expected: Vec<_> = before.iter().zip(rises).map(|(before, (_, rise))| before + rise).collect();
    wait_until(&format!("the counters rise by {rises:?}, from {before:?}"), || read() == expected);
}

#[test]
fn every_metric_is_on_the_page() {
    let stack = Stack::start(&[]);
    stack.planb.ask("nowhere.test");
    let expected: BTreeSet<&str> = [
        "planb_health_leases_held",
        "planb_health_watched",
        "planb_health_watches_dropped_total",
        "planb_dns_lookups_total",
        "planb_dns_names",
        "planb_log_access_lines_dropped_total",
        "planb_log_dump_lines_dropped_total",
        "planb_log_error_lines_dropped_total",
        "planb_log_error_lines_suppressed_total",
        "planb_log_lines_lost_total",
        "planb_reverseproxy_accept_errors_total",
        "planb_reverseproxy_backend_request_duration_seconds",
        "planb_reverseproxy_backends_responses_total",
        "planb_reverseproxy_client_timeouts_total",
        "planb_reverseproxy_clients_dismissed_total",
        "planb_reverseproxy_clients_shed_total",
        "planb_memory_limit_bytes",
        "planb_reverseproxy_connections_current_open",
        "planb_reverseproxy_http2_floods_total",
        "planb_reverseproxy_http_exchange_duration_seconds",
        "planb_reverseproxy_http_request_duration_seconds",
        "planb_reverseproxy_malformed_requests_total",
        "planb_reverseproxy_pool_dials_total",
        "planb_reverseproxy_pool_idle_connections",
        "planb_reverseproxy_pool_reuses_total",
        "planb_reverseproxy_retries_total",
        "planb_reverseproxy_retries_refused_total",
        "planb_reverseproxy_tunnels_current_open",
        "planb_router_backend_markdead_total",
        "planb_router_dead_marks_dropped_total",
        "planb_router_dead_marks_pending",
        "planb_router_frontends",
        "planb_sync_connected",
        "planb_sync_drift_total",
        "planb_sync_events_total",
        "planb_sync_held",
        "planb_sync_load_progress",
        "planb_sync_malformed_total",
        "planb_sync_polling",
        "planb_sync_publish_duration_seconds",
        "planb_sync_resyncs_total",
        "planb_sync_snapshot_age_seconds",
        "planb_tls_certificates",
        "planb_tls_certificates_loaded_total",
        "planb_tls_certificates_refused_total",
        "planb_tls_resumptions_total",
        "planb_tls_soonest_expiry_seconds",
        "planb_tls_ticket_keys_shared",
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_threads",
        "process_virtual_memory_bytes",
    ]
    .into();
    let find = |page: &str| page.lines().filter(|line| line.starts_with("# TYPE ")).count();
    wait_until("the request is counted", || find(&stack.planb.metrics_page()) == expected.len());
    let page = stack.planb.metrics_page();
    let found: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(found, expected);
}

#[test]
fn requests_are_counted_by_status_and_timed() {
    let stack = Stack::start(&[]);
    let backend = Backend::start(|exchange| {
        let status = if exchange.head.starts_with("GET /missing") { "404 Not Found" } else { "200 OK" };
        exchange.answer(status, "", b"");
        true
    });
    stack.route("count.test", &[&backend]);
    wait_until("the route's own requests are counted", || {
        stack.planb.count(&format!("{PREFIX}_backends_responses_total{{status_code=\"200\"}}")) > 0
    });
    let rises = [
        (&*format!("{PREFIX}_backends_responses_total{{status_code=\"200\"}}"), 3),
        (&*format!("{PREFIX}_backends_responses_total{{status_code=\"404\"}}"), 2),
        (&*format!("{PREFIX}_backends_responses_total{{status_code=\"400\"}}"), 1),
        (&*format!("{PREFIX}_http_request_duration_seconds_count"), 6),
        (&*format!("{PREFIX}_http_request_duration_seconds_bucket{{le=\"+Inf\"}}"), 6),
        (&*format!("{PREFIX}_http_exchange_duration_seconds_count"), 6),
        (&*format!("{PREFIX}_backend_request_duration_seconds_count"), 6),
        (&*format!("{PREFIX}_malformed_requests_total"), 0),
    ];
    assert_rises(&stack.planb, &rises, || {
        for path in ["/", "/missing", "/", "/missing", "/"] {
            get(stack.planb.address(), "count.test", path);
        }
        get(stack.planb.address(), "nowhere.test", "/");
        get(stack.planb.address(), "__ping__", "/");
    });
    assert_rises(&stack.planb, &[("planb_reverseproxy_malformed_requests_total", 2)], || {
        for request in ["GET / HTTP/1.1\r\n\r\n", "nonsense\r\n\r\n"] {
            let mut client = stack.planb.connect();
            client.send(request);
            assert_eq!(client.response().status, 400);
        }
    });
}

#[test]
fn connections_are_counted_while_they_are_open() {
    let stack = Stack::start(&[]);
    let open = || stack.planb.count("planb_reverseproxy_connections_current_open");
    let clients: Vec<Client> = (0..3).map(|_| stack.planb.connect()).collect();
    wait_until("three are open", || open() == 3);
    drop(clients);
    wait_until("none is open", || open() == 0);
}

#[test]
fn tunnels_are_counted_while_they_are_open() {
    let stack = Stack::start(&[]);
    stack.route("socket.test", &[&Backend::websocket_echo()]);
    let open = || ["tunnels", "connections"].map(|what| stack.planb.count(&format!("{PREFIX}_{what}_current_open")));
    let (mut socket, _) = tungstenite::client("ws://socket.test/", stack.planb.connect().into_socket()).unwrap();
    socket.send(Message::text("hello")).unwrap();
    socket.read().unwrap();
    wait_until("it is a tunnel, and no connection any more", || open() == [1, 0]);
    drop(socket);
    wait_until("nothing is open", || open() == [0, 0]);
}

#[test]
fn a_request_is_timed_to_its_response_s_head_and_an_exchange_to_the_last_byte() {
    let stack = Stack::start(&[]);
    let (backend, gate) = Backend::holding_bodies();
    redis(&stack.master, &["RPUSH", "frontend:slow.test", "id", &backend.url()]);
    wait_until("the host is routed", || stack.planb.count("planb_router_frontends") == 1);
    let count = |what: &str| stack.planb.count(&format!("{PREFIX}_http_{what}_duration_seconds_count"));
    let mut client = stack.planb.connect();
    client.send("GET /held HTTP/1.1\r\nHost: slow.test\r\n\r\n");
    wait_until("the head is there", || count("request") == 1);
    assert_eq!(count("exchange"), 0);
    gate.open();
    assert_eq!(client.response().text(), "done");
    wait_until("all of it is", || count("exchange") == 1);
    assert_eq!(count("request"), 1);
}

#[test]
fn a_websocket_is_no_long_request() {
    let stack = Stack::start(&[]);
    stack.route("socket.test", &[&Backend::websocket_echo()]);
    let count = |what: &str| stack.planb.count(&format!("{PREFIX}_http_{what}_duration_seconds_count"));
    wait_until("the route's own requests are counted", || {
        count("request") > 0 && count("request") == count("exchange")
    });
    let before = count("request");
    let (socket, _) = tungstenite::client("ws://socket.test/", stack.planb.connect().into_socket()).unwrap();
    wait_until("the handshake is counted", || count("request") == before + 1);
    drop(socket);
    wait_until("the tunnel has ended", || {
        stack.planb.count(&format!("{PREFIX}_backends_responses_total{{status_code=\"101\"}}")) == 1
    });
    assert_eq!((count("request"), count("exchange")), (before + 1, before));
}

#[test]
fn connections_to_backends_are_dialled_once_and_reused() {
    let stack = Stack::start(&["--workers=1"]);
    let backend = Backend::named("a");
    redis(&stack.master, &["RPUSH", "frontend:pool.test", "id", &backend.url()]);
    wait_until("the host is routed", || stack.planb.count("planb_router_frontends") == 1);
    let rises = [
        ("planb_reverseproxy_pool_dials_total", 1),
        ("planb_reverseproxy_pool_reuses_total", 2),
        ("planb_reverseproxy_pool_idle_connections", 1),
    ];
    assert_rises(&stack.planb, &rises, || {
        let mut client = stack.planb.connect();
        for _ in 0..3 {
            assert_eq!(client.get("pool.test", "/").text(), "a");
        }
    });
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_retry_and_a_dead_mark_are_counted() {
    let stack = Stack::start(&[]);
    let (_guard, closed) = closed_port();
    redis(&stack.master, &["RPUSH", "frontend:retry.test", "id", &closed, &Backend::named("a").url()]);
    wait_until("the host is routed", || stack.planb.count("planb_router_frontends") == 1);
    let rises = [
        ("planb_reverseproxy_retries_total", 1),
        ("planb_router_backend_markdead_total", 1),
        ("planb_reverseproxy_backends_responses_total{status_code=\"200\"}", 4),
        ("planb_reverseproxy_backends_responses_total{status_code=\"503\"}", 0),
        ("planb_router_dead_marks_pending", 0),
        ("planb_router_dead_marks_dropped_total", 0),
    ];
    assert_rises(&stack.planb, &rises, || {
        for _ in 0..4 {
            assert_eq!(stack.planb.ask("retry.test"), "a");
        }
    });
}

#[test]
fn the_table_s_size_and_its_events_follow_redis() {
    let stack = Stack::start(&[]);
    let events = || stack.planb.count("planb_sync_events_total");
    let timed = || stack.planb.count("planb_sync_publish_duration_seconds_count");
    assert_eq!((events(), stack.planb.count("planb_router_frontends")), (0, 0));
    let edits: [(&[&str], u64); 4] = [
        (&["RPUSH", "frontend:a.test", "id", "http://127.0.0.1:1"], 1),
        (&["RPUSH", "frontend:b.test", "id", "http://127.0.0.1:1"], 2),
        (&["DEL", "frontend:a.test"], 1),
        (&["RPOP", "frontend:b.test"], 0),
    ];
    for (number, (edit, frontends)) in (1..).zip(edits) {
        redis(&stack.master, edit);
        wait_until(&format!("{edit:?} is counted"), || {
            (events(), timed(), stack.planb.count("planb_router_frontends")) == (number, number, frontends)
        });
    }
    assert_eq!(stack.planb.count("planb_sync_connected"), 1);
    assert_eq!(stack.planb.count("planb_sync_polling"), 0);
    assert_eq!(stack.planb.count("planb_sync_malformed_total"), 0);
    redis(&stack.master, &["RPUSH", "frontend:bad.test", "id", "ftp://127.0.0.1"]);
    wait_until("the malformed backend is counted", || stack.planb.count("planb_sync_malformed_total") == 1);
}

#[test]
fn the_table_s_age_grows_while_redis_is_silent() {
    let stack = Stack::start(&[]);
    let age = || stack.planb.metric("planb_sync_snapshot_age_seconds");
    signal(stack.replica.pid(), "STOP");
    // Between two heartbeats it is at most a second or so.
    wait_until("the table is old", || age() > 2.0);
    wait_until("the session is given up", || stack.planb.count("planb_sync_connected") == 0);
    signal(stack.replica.pid(), "CONT");
    wait_until("the table is current", || age() < 1.0 && stack.planb.count("planb_sync_connected") == 1);
    assert!(stack.planb.count("planb_sync_resyncs_total") > 0);
}

#[test]
fn no_label_takes_a_value_that_a_client_can_choose() {
    let stack = Stack::start(&["--request-id-header=X-Request-Id"]);
    stack.route("*", &[&Backend::named("a")]);
    for number in 0..20 {
        let mut client = stack.planb.connect();
        client.send(format!(
            "ODD{number} /odd{number}?odd{number} HTTP/1.1\r\nHost: odd{number}.test\r\nUser-Agent: odd{number}\r\n\
             X-Request-Id: odd{number}\r\nX-Forwarded-For: odd{number}\r\nUpgrade: odd{number}\r\n\r\n"
        ));
        assert_eq!(client.response().text(), "a");
    }
    let page = stack.planb.metrics_page();
    assert!(!page.to_lowercase().contains("odd"), "{page}");
    let labels = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('{'));
    for (name, label) in labels {
        let is_bucket = name.ends_with("_bucket") && label.starts_with("le=\"");
        let is_status = name.ends_with("_responses_total")
            && ["200", "400"].iter().any(|status| label.starts_with(&format!("status_code=\"{status}\"}} ")));
        let is_result = name == "planb_dns_lookups_total"
            && ["ok", "none", "failed"].iter().any(|result| label.starts_with(&format!("result=\"{result}\"}} ")));
        let is_loss = name == "planb_log_lines_lost_total"
            && ["slow", "no_space", "no_reader", "error"].iter().any(|reason| {
                ["access", "error", "dump"]
                    .iter()
                    .any(|log| label.starts_with(&format!("log=\"{log}\",reason=\"{reason}\"}} ")))
            });
        assert!(is_bucket || is_status || is_result || is_loss, "{name}{{{label}");
    }
}

#[test]
fn there_is_nothing_but_metrics_to_see() {
    let stack = Stack::start(&[]);
    let mut admin = Client::connect(stack.planb.metrics_address());
    for path in ["/", "/metrics/", "/debug", "/metric"] {
        assert_eq!(admin.get("admin", path).status, 404, "{path}");
    }
    let page = admin.get("admin", "/metrics?name=x");
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    admin.send("POST /metrics HTTP/1.1\r\nHost: admin\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(admin.response().status, 405);
    assert_eq!(get(stack.planb.address(), "admin", "/metrics").status, 400, "clients see no metrics");
}

#[test]
fn an_address_that_is_in_use_is_one_clear_line() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let mut planb =
        Planb::with(&["--listen=127.0.0.1:0", "--access-log=none", &format!("--metrics-address={address}")]).spawn();
    assert_eq!(planb.wait_for_exit().code(), Some(1));
    let reason = format!("planb: cannot serve metrics on {address}: Address already in use (os error 98)");
    assert_eq!(planb.log(), [reason]);
}
