//! Connections to Redis: how they begin, how they end, and what clients see of that.

use super::support::{
    Backend, Planb, PrivateRedis, Stack, closed_port, get, redis, redis_cli, redis_pair, signal, wait_until,
};

#[test]
fn connections_killed_by_the_server_are_made_anew() {
    let stack = Stack::start(&[]);
    let a = Backend::named("a");
    stack.route("before.test", &[&a]);
    for (kind, host) in [("pubsub", "first.test"), ("normal", "second.test")] {
        let resyncs = stack.planb.count("planb_sync_resyncs_total");
        redis(&stack.replica, &["CLIENT", "KILL", "TYPE", kind]);
        redis(&stack.master, &["RPUSH", &format!("frontend:{host}"), "id", &a.url()]);
        stack.planb.wait_for_route(host);
        wait_until("the table is loaded again", || stack.planb.count("planb_sync_resyncs_total") > resyncs);
        assert_eq!(stack.planb.ask("before.test"), "a");
    }
    pings(&stack.planb);
    stack.route("after.test", &[&a]);
    assert_eq!(stack.planb.count("planb_sync_drift_total"), 0);
}

#[test]
fn each_connection_that_the_server_kills_is_missed() {
    let stack = Stack::start(&[]);
    let a = Backend::named("a");
    stack.route("before.test", &[&a]);
    // That of redis-cli is the last.
    let ids = || -> Vec<String> {
        let ours = redis_cli(&stack.replica, &["CLIENT", "LIST", "TYPE", "normal"]);
        let id = |line: &str| line.split(' ').find_map(|field| field.strip_prefix("id=")).unwrap().to_owned();
        let mut ids: Vec<String> = ours.lines().filter(|line| !line.contains("cmd=client")).map(id).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids().len(), 2);
    for which in 0..2 {
        let resyncs = stack.planb.count("planb_sync_resyncs_total");
        redis(&stack.replica, &["CLIENT", "KILL", "ID", &ids()[which]]);
        wait_until("the table is loaded again", || stack.planb.count("planb_sync_resyncs_total") > resyncs);
        stack.route(&format!("after-{which}.test"), &[&a]);
    }
}

#[test]
fn a_server_that_closes_idle_connections_closes_none_of_ours() {
    let stack = Stack::start(&[]);
    redis(&stack.replica, &["CONFIG", "SET", "timeout", "2"]);
    let ages = || -> Vec<u64> {
        let ours = redis_cli(&stack.replica, &["CLIENT", "LIST"]);
        let age = |line: &str| line.split(' ').find_map(|field| field.strip_prefix("age=")).unwrap().parse().unwrap();
        ours.lines().filter(|line| line.contains("cmd=") && !line.contains("flags=M")).map(age).collect()
    };
    wait_until("three have been there for long", || ages().iter().filter(|&&age| age >= 5).count() == 3);
    assert_eq!(stack.planb.count("planb_sync_resyncs_total"), 0);
}

#[test]
fn a_replica_that_is_killed_and_returns_is_followed_again() {
    let mut stack = Stack::start(&[]);
    let a = Backend::named("a");
    stack.route("before.test", &[&a]);
    stack.route("gone.test", &[&a]);
    stack.replica.kill();
    let reason = ping_fails(&stack.planb);
    assert!(reason.contains(&stack.replica.port().to_string()), "{reason}");
    assert_eq!(stack.planb.ask("before.test"), "a");
    assert_eq!(stack.planb.count("planb_sync_connected"), 0);

    redis(&stack.master, &["DEL", "frontend:gone.test"]);
    redis(&stack.master, &["RPUSH", "frontend:meanwhile.test", "id", &a.url()]);
    let port = stack.master.port().to_string();
    stack.replica.restart(&["--replicaof", "127.0.0.1", &port, "--notify-keyspace-events", "KA"]).unwrap();
    // It returns without data and is given its master's only later; no request may notice that.
    wait_until("the table is loaded again", || {
        assert_eq!(stack.planb.ask("before.test"), "a");
        stack.planb.ask("meanwhile.test") == "a"
    });
    assert_eq!(stack.planb.ask("gone.test"), "no such route");
    pings(&stack.planb);
    stack.route("after.test", &[&a]);
}

#[test]
fn a_frozen_replica_is_noticed_and_its_routes_stay() {
    let stack = Stack::start(&[]);
    let a = Backend::named("a");
    stack.route("before.test", &[&a]);
    signal(stack.replica.pid(), "STOP");
    redis(&stack.master, &["RPUSH", "frontend:meanwhile.test", "id", &a.url()]);
    let reason = ping_fails(&stack.planb);
    assert!(reason.contains("did not answer"), "{reason}");
    assert_eq!(stack.planb.ask("before.test"), "a");
    signal(stack.replica.pid(), "CONT");
    pings(&stack.planb);
    stack.planb.wait_for_route("meanwhile.test");
    assert_eq!(stack.planb.ask("before.test"), "a");
    stack.route("after.test", &[&a]);
}

#[test]
fn a_redis_that_loads_its_data_is_waited_for_while_routes_stay() {
    let mut stack = Stack::start(&[]);
    stack.route("loading.test", &[&Backend::named("a")]);
    for number in 0..40 {
        redis(&stack.master, &["SETRANGE", &format!("ballast-{number}"), "4000", "1"]);
    }
    stack.settle();
    // Microseconds for each key, and how often clients are heard meanwhile.
    let slowly = [
        "--key-load-delay",
        "50000",
        "--loading-process-events-interval-bytes",
        "1024",
        "--notify-keyspace-events",
        "KA",
    ];
    redis(&stack.replica, &["CONFIG", "SET", "rdbcompression", "no"]);
    redis(&stack.replica, &["SAVE"]);
    stack.replica.kill();
    let Stack { planb, replica, .. } = &mut stack;
    std::thread::scope(|scope| {
        scope.spawn(move || replica.restart(&slowly).unwrap());
        planb.wait_for_log("it is loading its data set");
        assert_eq!(planb.ask("loading.test"), "a");
        assert!(ping_fails(planb).contains("loading"));
    });
    pings(planb);
    assert_eq!(planb.ask("loading.test"), "a");
}

#[test]
fn a_replica_without_its_master_serves_on_and_ping_says_why() {
    let mut stack = Stack::start(&[]);
    let a = Backend::named("a");
    stack.route("before.test", &[&a]);
    redis(&stack.master, &["SAVE"]);
    stack.master.kill();
    let reason = ping_fails(&stack.planb);
    assert!(reason.contains("the replica has lost its master"), "{reason}");
    assert_eq!(stack.planb.ask("before.test"), "a");
    stack.master.restart(&[]).unwrap();
    pings(&stack.planb);
    assert_eq!(stack.planb.ask("before.test"), "a");
    stack.route("after.test", &[&a]);
}

#[test]
fn without_redis_at_the_start_the_proxy_waits_for_it() {
    let mut server = PrivateRedis::start(&[]).unwrap();
    let a = Backend::named("a");
    redis(&server, &["RPUSH", "frontend:early.test", "id", &a.url()]);
    redis(&server, &["SAVE"]);
    server.kill();
    // A socket that shares the proxy's address, but never listens, tells the port before the proxy does.
    let guard = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    guard.set_reuse_address(true).unwrap();
    guard.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = guard.local_addr().unwrap().as_socket().unwrap();
    let mut planb = Planb::builder(&server, &server).arguments(&[&format!("--listen={address}")]).spawn();

    let line = planb.wait_for_log("waiting for Redis");
    assert!(line.contains(&format!("127.0.0.1:{}", server.port())), "{line}");
    assert!(std::net::TcpStream::connect(address).is_err(), "clients were accepted before the table was loaded");
    assert!(!planb.has_exited());
    server.restart(&[]).unwrap();
    planb.wait_until_listening();
    assert_eq!(planb.address(), address);
    assert_eq!(planb.ask("early.test"), "a");
    pings(&planb);
}

#[test]
fn a_wrong_password_or_database_ends_the_start_with_one_line() {
    let server = PrivateRedis::start(&["--requirepass", "secret"]).unwrap();
    for (arguments, complaint) in [
        (&["--read-redis-password=wrong", "--write-redis-password=secret"][..], "password"),
        (&["--read-redis-password=secret", "--write-redis-password=wrong"], "password"),
        (&["--read-redis-password=", "--write-redis-password=secret"], "password"),
        (&["--read-redis-password=secret", "--write-redis-password="], "password"),
        (&["--read-redis-password=secret", "--write-redis-password=secret", "--read-redis-db=99"], "database 99"),
        (&["--read-redis-password=secret", "--write-redis-password=secret", "--write-redis-db=99"], "database 99"),
    ] {
        fails_to_start(&server, arguments, complaint);
    }
}

#[test]
fn another_database_is_followed_and_the_first_is_not() {
    let server = PrivateRedis::start(&["--notify-keyspace-events", "KA"]).unwrap();
    let planb = Planb::builder(&server, &server).arguments(&["--read-redis-db=5", "--write-redis-db=5"]).start();
    follows_database_five(&planb, &server, &[]);
}

#[test]
fn a_password_and_a_socket_work() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("redis.sock");
    let path = path.to_str().unwrap();
    let server = PrivateRedis::start(&[
        "--notify-keyspace-events",
        "KA",
        "--requirepass",
        "secret",
        "--unixsocket",
        path,
        "--unixsocketperm",
        "700",
    ])
    .unwrap();
    let planb = Planb::builder(&server, &server)
        .arguments(&[
            "--read-redis-network=unix",
            "--write-redis-network=unix",
            &format!("--read-redis-host={path}"),
            &format!("--write-redis-host={path}"),
            "--read-redis-password=secret",
            "--write-redis-password=secret",
            "--read-redis-db=5",
            "--write-redis-db=5",
        ])
        .start();
    follows_database_five(&planb, &server, &["--no-auth-warning", "-a", "secret"]);
}

#[test]
fn a_write_redis_that_is_down_or_no_master_hinders_no_one() {
    let (mut master, replica) = redis_pair();
    let planb = Planb::builder(&replica, &replica).start();
    planb.wait_for_log("is a replica, so dead backends cannot be recorded there");
    master.kill();
    let server = PrivateRedis::start(&[]).unwrap();
    let other = Planb::builder(&server, &master).start();
    other.wait_for_log("dead backends cannot be recorded");
    pings(&other);
}

/// The proxy ends with status 1, and its one line names the server and the trouble.
fn fails_to_start(server: &PrivateRedis, arguments: &[&str], complaint: &str) {
    let mut planb = Planb::builder(server, server).arguments(arguments).spawn();
    let status = planb.wait_for_exit();
    wait_until("the log is complete", || planb.log().iter().any(|line| line.starts_with("planb: ")));
    // The other of the two servers may have been reached in time to be reported.
    let complaints: Vec<String> = planb.log().into_iter().filter(|line| !line.contains(" INFO ")).collect();
    assert_eq!((status.code(), complaints.len()), (Some(1), 1), "{arguments:?}: {complaints:?}");
    let named = complaints[0].contains(&format!("127.0.0.1:{}", server.port())) && complaints[0].contains(complaint);
    assert!(named, "{arguments:?}: {complaints:?}");
}

/// Events of database 5 arrive and those of database 0 do not matter.
fn follows_database_five(planb: &Planb, server: &PrivateRedis, login: &[&str]) {
    let (a, decoy) = (Backend::named("a"), Backend::named("decoy"));
    let run = |words: &[&str]| redis_cli(server, &[login, words].concat());
    run(&["RPUSH", "frontend:five.test", "id", &decoy.url()]);
    run(&["-n", "5", "RPUSH", "frontend:five.test", "id", &a.url()]);
    planb.wait_for_route("five.test");
    run(&["DEL", "frontend:five.test"]);
    run(&["-n", "5", "SADD", "dead:five.test", "0"]);
    wait_until("the mark is heeded", || planb.ask("five.test") == "all backends are dead");
    run(&["-n", "5", "DEL", "dead:five.test"]);
    wait_until("the mark is gone", || planb.ask("five.test") == "a");
    assert_eq!(planb.count("planb_sync_polling"), 0);
    assert!(planb.count("planb_sync_events_total") > 0);
    let (_guard, refused) = closed_port();
    run(&["-n", "5", "RPUSH", "frontend:refused.test", "id", &refused]);
    wait_until("the dead backend is recorded", || {
        planb.ask("refused.test");
        run(&["-n", "5", "SMEMBERS", "dead:refused.test"]) == "0"
    });
}

/// Waits until `__ping__` is answered with 200.
fn pings(planb: &Planb) {
    wait_until("__ping__ succeeds", || {
        let response = get(planb.address(), "__ping__", "/");
        (response.status, response.text().as_str()) == (200, "OK")
    });
}

/// Waits until `__ping__` is answered with 500, and returns the reason.
fn ping_fails(planb: &Planb) -> String {
    let mut reason = String::new();
    wait_until("__ping__ fails", || {
        let response = get(planb.address(), "__ping__", "/");
        reason = response.text();
        response.status == 500
    });
    reason
}
