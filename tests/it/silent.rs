//! Changes that Redis announces by no event: what the heartbeat is for. And notifications that are off altogether.

use super::support::{Backend, Planb, PrivateRedis, Stack, redis, redis_cli, redis_pipe, signal, wait_until};

#[test]
fn flushdb_is_seen() {
    let stack = Stack::start(&[]);
    let a = Backend::named("a");
    stack.route("wiped.test", &[&a]);
    redis(&stack.master, &["FLUSHDB"]);
    stack.planb.wait_for_no_route("wiped.test");
    stack.route("after.test", &[&a]);
    assert_eq!(drift(&stack.planb), 0);
}

#[test]
fn flushall_is_seen() {
    let stack = Stack::start(&[]);
    let a = Backend::named("a");
    stack.route("wiped.test", &[&a]);
    redis(&stack.master, &["FLUSHALL", "ASYNC"]);
    stack.planb.wait_for_no_route("wiped.test");
    stack.route("after.test", &[&a]);
    assert_eq!(drift(&stack.planb), 0);
}

#[test]
fn a_flush_hidden_by_as_many_new_keys_is_seen() {
    let stack = Stack::start(&[]);
    let (a, b) = (Backend::named("a").url(), Backend::named("b").url());
    let keys = |name: &str| -> Vec<String> { (0..20).map(|host| format!("frontend:{name}{host}.test")).collect() };
    let (old, new) = (keys("old"), keys("new"));
    let fill = |keys: &[String], url: &str, first: &str| {
        let lists = keys.iter().map(|key| vec!["RPUSH".as_bytes(), key.as_bytes(), b"id", url.as_bytes()]);
        let both = ["RPUSH", "frontend:both.test", "id", url].map(str::as_bytes).to_vec();
        let warm_up = ["SET", "warm-up", "1"].map(str::as_bytes).to_vec();
        let commands: Vec<_> = [vec![first.as_bytes()], warm_up, both].into_iter().chain(lists).collect();
        redis_pipe(&stack.master, &commands);
    };
    fill(&old, &a, "PING");
    stack.settle();
    redis(&stack.master, &["DEL", "frontend:sign-0.test"]);
    stack.planb.wait_for_no_route("sign-0.test");
    assert_eq!(stack.planb.ask("old7.test"), "a");

    fill(&new, &b, "FLUSHDB");
    for host in 0..20 {
        stack.planb.wait_for_no_route(&format!("old{host}.test"));
        assert_eq!(stack.planb.ask(&format!("new{host}.test")), "b");
    }
    assert_eq!((stack.planb.ask("both.test").as_str(), drift(&stack.planb)), ("b", 0));
}

#[test]
fn swapdb_is_seen() {
    let stack = Stack::start(&[]);
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    stack.edit(&["RPUSH", "frontend:both.test", "id", &a.url()]);
    stack.edit(&["RPUSH", "frontend:old.test", "id", &a.url()]);
    for host in ["both", "new"] {
        redis_cli(&stack.master, &["-n", "1", "RPUSH", &format!("frontend:{host}.test"), "id", &b.url()]);
    }
    redis(&stack.master, &["SWAPDB", "0", "1"]);
    stack.planb.wait_for_route("new.test");
    let answers = ["both", "old", "new"].map(|host| stack.planb.ask(&format!("{host}.test")));
    assert_eq!(answers, ["b", "no such route", "b"]);
    assert_eq!(drift(&stack.planb), 0);
}

#[test]
fn a_full_copy_from_the_same_master_is_seen() {
    let stack = Stack::start(&[]);
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    for host in ["kept", "changed", "gone"] {
        stack.edit(&["RPUSH", &format!("frontend:{host}.test"), "id", &a.url()]);
    }
    let id = info(&stack.replica, "replication", "master_replid");
    let copies = info(&stack.master, "stats", "sync_full");

    // What the frozen replica misses exceeds what the master remembers, so that it must be sent everything anew.
    signal(stack.replica.pid(), "STOP");
    redis(&stack.master, &["CONFIG", "SET", "repl-backlog-size", "16kb"]);
    redis(&stack.master, &["CLIENT", "KILL", "TYPE", "replica"]);
    let filler = vec![b'x'; 100_000];
    let url = b.url();
    redis_pipe(
        &stack.master,
        &[
            vec![b"SET", b"filler", &filler],
            vec![b"DEL", b"frontend:gone.test"],
            vec![b"LSET", b"frontend:changed.test", b"1", url.as_bytes()],
            vec![b"RPUSH", b"frontend:new.test", b"id", url.as_bytes()],
            vec![b"SET", b"filler", &filler],
        ],
    );
    signal(stack.replica.pid(), "CONT");

    stack.planb.wait_for_route("new.test");
    let answers = ["kept", "changed", "gone", "new"].map(|host| stack.planb.ask(&format!("{host}.test")));
    assert_eq!(answers, ["a", "b", "no such route", "b"]);
    assert_eq!(drift(&stack.planb), 0);
    // Otherwise this would have tested something else.
    assert_eq!(info(&stack.replica, "replication", "master_replid"), id);
    assert_ne!(info(&stack.master, "stats", "sync_full"), copies);
    stack.route("after.test", &[&a]);
}

#[test]
fn another_master_is_seen() {
    let stack = Stack::start(&[]);
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    for host in ["both", "old"] {
        stack.edit(&["RPUSH", &format!("frontend:{host}.test"), "id", &a.url()]);
    }
    let other = PrivateRedis::start(&[]).unwrap();
    for host in ["both", "new"] {
        redis(&other, &["RPUSH", &format!("frontend:{host}.test"), "id", &b.url()]);
    }
    redis(&stack.replica, &["REPLICAOF", "127.0.0.1", &other.port().to_string()]);
    stack.planb.wait_for_route("new.test");
    let answers = ["both", "old", "new"].map(|host| stack.planb.ask(&format!("{host}.test")));
    assert_eq!(answers, ["b", "no such route", "b"]);
    redis(&other, &["RPUSH", "frontend:after.test", "id", &b.url()]);
    stack.planb.wait_for_route("after.test");
    assert_eq!(drift(&stack.planb), 0);
}

#[test]
fn a_replica_that_becomes_a_master_is_followed_on() {
    let stack = Stack::start(&[]);
    let a = Backend::named("a");
    stack.route("before.test", &[&a]);
    redis(&stack.replica, &["REPLICAOF", "NO", "ONE"]);
    redis(&stack.replica, &["RPUSH", "frontend:after.test", "id", &a.url()]);
    stack.planb.wait_for_route("after.test");
    assert_eq!(stack.planb.ask("before.test"), "a");
}

#[test]
fn with_notifications_off_edits_arrive_by_polling() {
    let stack = Stack::start(&[]);
    let a = Backend::named("a");
    stack.route("before.test", &[&a]);
    let polling = |wanted: u64| {
        wait_until("the metric tells", || stack.planb.count("planb_sync_polling") == wanted);
    };
    polling(0);
    redis(&stack.replica, &["CONFIG", "SET", "notify-keyspace-events", "\"\""]);
    polling(1);
    stack.planb.wait_for_log("CONFIG SET notify-keyspace-events KA");
    let events = stack.planb.count("planb_sync_events_total");
    redis(&stack.master, &["RPUSH", "frontend:polled.test", "id", &a.url()]);
    stack.planb.wait_for_route("polled.test");
    redis(&stack.master, &["DEL", "frontend:before.test"]);
    stack.planb.wait_for_no_route("before.test");
    redis(&stack.master, &["SADD", "dead:polled.test", "0"]);
    wait_until("the mark is heeded", || stack.planb.ask("polled.test") == "all backends are dead");
    redis(&stack.master, &["DEL", "dead:polled.test"]);
    wait_until("the mark is gone", || stack.planb.ask("polled.test") == "a");
    assert_eq!((stack.planb.count("planb_sync_events_total"), drift(&stack.planb)), (events, 0));

    redis(&stack.replica, &["CONFIG", "SET", "notify-keyspace-events", "KA"]);
    polling(0);
    stack.route("after.test", &[&a]);
    assert!(stack.planb.count("planb_sync_events_total") > events);
    let warnings = stack.planb.log().iter().filter(|line| line.contains("CONFIG SET")).count();
    assert_eq!((warnings, drift(&stack.planb)), (1, 0));
}

#[test]
fn notifications_that_are_off_at_the_start_are_named() {
    let redis_server = PrivateRedis::start(&[]).unwrap();
    let planb = Planb::builder(&redis_server, &redis_server).start();
    assert_eq!(planb.count("planb_sync_polling"), 1);
    let line = planb.wait_for_log("CONFIG SET notify-keyspace-events KA");
    assert!(line.contains(&redis_server.port().to_string()), "{line}");
    let a = Backend::named("a");
    redis(&redis_server, &["RPUSH", "frontend:polled.test", "id", &a.url()]);
    planb.wait_for_route("polled.test");
}

#[test]
fn notifications_that_cover_too_little_count_as_off() {
    let stack = Stack::start(&[]);
    redis(&stack.replica, &["CONFIG", "SET", "notify-keyspace-events", "Klshgx"]);
    wait_until("it polls", || stack.planb.count("planb_sync_polling") == 1);
}

fn drift(planb: &Planb) -> u64 {
    planb.count("planb_sync_drift_total")
}

/// A field of INFO.
fn info(server: &PrivateRedis, section: &str, name: &str) -> String {
    let text = redis_cli(server, &["INFO", section]);
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("INFO {section} has no {name}")).trim().to_owned()
}
