//! Redis servers that sentinels name: starting, failing over, and all that can go wrong with those who say so.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::support::{
    Backend, MASTER_NAME, Planb, PrivateRedis, Sentinels, closed_port, redis, redis_cli, signal, wait_until,
};

#[test]
fn edits_arrive_through_a_replica_although_the_first_sentinel_is_dead() {
    let mut redis = Sentinels::start();
    redis.sentinels[0].kill();
    let planb = redis.planb(&[]).start();
    let followed = followed(&planb);
    assert!(redis.servers[1..].iter().any(|replica| replica.port() == followed), "{followed} is followed");
    let a = Backend::named("a");
    route(&redis.servers[0], &planb, "a.test", &a);
    marks(&redis.servers[0], &planb, "dead.test");
    assert_eq!(planb.count("planb_sync_polling"), 0);
}

#[test]
fn a_frozen_sentinel_delays_nothing() {
    let redis = Sentinels::start();
    signal(redis.sentinels[0].pid(), "STOP");
    let planb = redis.planb(&[]).start();
    route(&redis.servers[0], &planb, "a.test", &Backend::named("a"));
    marks(&redis.servers[0], &planb, "dead.test");
}

#[test]
fn a_killed_master_is_replaced_and_has_every_mark() {
    let mut redis = Sentinels::start();
    let planb = redis.planb(&["--dead-backend-time=300"]).start();
    let a = Backend::named("a");
    let (_guard, closed) = closed_port();
    route(&redis.servers[0], &planb, "a.test", &a);
    list(&redis.servers[0], &planb, "early.test", &closed);
    list(&redis.servers[0], &planb, "late.test", &closed);
    planb.ask("early.test");
    wait_until("the mark is recorded", || is_marked(&redis.servers[0], "early.test"));
    redis.servers[0].kill();
    planb.ask("late.test");
    let promoted = redis.wait_until_promoted();
    redis.only_planned();
    let began = Instant::now();
    wait_until("the mark reaches the new master", || {
        assert_eq!(planb.ask("a.test"), "a");
        is_marked(promoted, "late.test")
    });
    println!("after a kill, from the promotion to the first mark: {:?}", began.elapsed());
    wait_until("the earlier mark is there as well", || is_marked(promoted, "early.test"));
    assert_eq!(planb.ask("a.test"), "a");
    route(promoted, &planb, "after.test", &a);
    assert_eq!(planb.ask("a.test"), "a");
    is_said_once(&planb, "dead backends are recorded on another Redis");
}

#[test]
fn a_planned_fail_over_loses_no_mark() {
    let redis = Sentinels::start();
    redis.only_planned();
    let planb = redis.planb(&["--dead-backend-time=300"]).start();
    let a = Backend::named("a");
    let (_guard, closed) = closed_port();
    let hosts: Vec<String> = (0..150).map(|number| format!("dead{number}.test")).collect();
    for host in &hosts {
        redis_push(&redis.servers[0], host, &closed);
    }
    redis_push(&redis.servers[0], "late.test", &closed);
    wait_until("all are listed", || planb.count("planb_router_frontends") == 151);
    route(&redis.servers[0], &planb, "a.test", &a);
    for host in &hosts[..20] {
        planb.ask(host);
    }
    assert_eq!(redis.sentinels[1].cli(&["SENTINEL", "FAILOVER", MASTER_NAME]), "OK");
    let asking = hosts.clone();
    let address = planb.address();
    let asker = thread::spawn(move || {
        // Marks that come all through the fail-over.
        for host in &asking[20..] {
            super::support::get(address, host, "/");
            thread::sleep(Duration::from_millis(15));
        }
    });
    let promoted = redis.wait_until_promoted();
    let began = Instant::now();
    planb.ask("late.test");
    wait_until("a mark reaches the new master", || is_marked(promoted, "late.test"));
    println!("after SENTINEL FAILOVER, from the promotion to the first mark: {:?}", began.elapsed());
    asker.join().unwrap();
    wait_until("the new master has every mark", || hosts.iter().all(|host| is_marked(promoted, host)));
    assert_eq!(planb.ask("a.test"), "a");
    route(promoted, &planb, "after.test", &a);
    wait_until("nothing is pending", || planb.count("planb_router_dead_marks_pending") == 0);
    is_said_once(&planb, "dead backends are recorded on another Redis");
    for host in &hosts {
        assert!(is_marked(promoted, host), "{host} has lost its mark");
        assert_eq!(planb.ask(host), "all backends are dead", "{host} was revived");
    }
}

#[test]
fn what_was_revived_is_not_marked_again() {
    let redis = Sentinels::start();
    redis.only_planned();
    let planb = redis.planb(&["--dead-backend-time=300"]).start();
    let ((_one, revived), (_other, stays)) = (closed_port(), closed_port());
    for (host, url) in [("revived.test", &revived), ("stays.test", &stays)] {
        list(&redis.servers[0], &planb, host, url);
        planb.ask(host);
        wait_until("the mark is recorded", || is_marked(&redis.servers[0], host));
    }
    let events = planb.count("planb_sync_events_total");
    assert_eq!(redis_cli(&redis.servers[0], &["SREM", "dead:revived.test", "0"]), "1");
    wait_until("that is taken in", || planb.count("planb_sync_events_total") > events);
    // The next master is one that has never heard of the other mark.
    let followed = followed(&planb);
    let next = redis.servers[1..].iter().find(|replica| replica.port() != followed).unwrap();
    redis.prefer(next);
    redis_cli(next, &["CONFIG", "SET", "replica-read-only", "no"]);
    assert_eq!(redis_cli(next, &["DEL", "dead:stays.test"]), "1");
    assert_eq!(redis.sentinels[0].cli(&["SENTINEL", "FAILOVER", MASTER_NAME]), "OK");
    let promoted = redis.wait_until_promoted();
    assert_eq!(promoted.port(), next.port());
    planb.wait_for_log("dead backends are recorded on another Redis");
    wait_until("the standing mark is there", || is_marked(promoted, "stays.test"));
    wait_until("nothing is pending", || planb.count("planb_router_dead_marks_pending") == 0);
    assert!(!is_marked(promoted, "revived.test"));
    assert_eq!(planb.ask("stays.test"), "all backends are dead");
}

#[test]
fn sentinels_may_die_while_routes_keep_flowing() {
    let mut redis = Sentinels::start();
    let planb = redis.planb(&[]).start();
    let a = Backend::named("a");
    for index in 0..3 {
        route(&redis.servers[0], &planb, &format!("before{index}.test"), &a);
        redis.sentinels[index].kill();
        route(&redis.servers[0], &planb, &format!("after{index}.test"), &a);
    }
    marks(&redis.servers[0], &planb, "dead.test");
    assert_eq!(planb.count("planb_sync_resyncs_total"), 0);
    assert_eq!(planb.count("planb_sync_connected"), 1);
}

#[test]
fn sentinels_may_want_a_password() {
    let redis = Sentinels::with_password(Some("open-sesame"));
    let planb = redis.planb(&[]).start();
    route(&redis.servers[0], &planb, "a.test", &Backend::named("a"));
    marks(&redis.servers[0], &planb, "dead.test");
    for flag in ["--read-redis-sentinel-password=wrong", "--write-redis-sentinel-password=wrong"] {
        let mut planb = redis.planb(&[flag]).spawn();
        assert_eq!(planb.wait_for_exit().code(), Some(1));
        let line = planb.log().pop().unwrap();
        assert!(line.starts_with("planb: no sentinel can be asked for main: ") && line.contains("password"), "{line}");
    }
}

#[test]
fn an_unknown_name_is_waited_for() {
    let redis = Sentinels::start();
    let names = ["--read-redis-sentinel-name=other", "--write-redis-sentinel-name=other"];
    let mut planb = redis.planb(&names).spawn();
    let line = planb.wait_for_log("waiting for Redis: ");
    assert!(line.ends_with("the sentinels know no master by the name of other"), "{line}");
    let master = redis.servers[0].port().to_string();
    for sentinel in &redis.sentinels {
        assert_eq!(sentinel.cli(&["SENTINEL", "MONITOR", "other", "127.0.0.1", &master, "2"]), "OK");
    }
    planb.wait_until_listening();
    is_said_once(&planb, "waiting for Redis: ");
    is_said_once(&planb, "dead backends cannot be recorded: ");
    route(&redis.servers[0], &planb, "a.test", &Backend::named("a"));
}

#[test]
fn a_frozen_replica_is_left_for_another() {
    let redis = Sentinels::start();
    let planb = redis.planb(&[]).start();
    let a = Backend::named("a");
    route(&redis.servers[0], &planb, "before.test", &a);
    let frozen = followed(&planb);
    signal(redis.server(frozen).pid(), "STOP");
    redis_push(&redis.servers[0], "meanwhile.test", &a.url());
    planb.wait_for_route("meanwhile.test");
    assert_eq!(planb.ask("before.test"), "a");
    planb.wait_for_log("following another Redis");
    let now = followed(&planb);
    assert!(now != frozen && now != redis.servers[0].port());
    is_said_once(&planb, "following another Redis");
    route(&redis.servers[0], &planb, "after.test", &a);
}

#[test]
fn a_replica_that_loses_its_master_is_left_for_another() {
    let redis = Sentinels::start();
    let planb = redis.planb(&[]).start();
    let a = Backend::named("a");
    route(&redis.servers[0], &planb, "before.test", &a);
    let lost = followed(&planb);
    // Nobody listens on port 1, and the sentinels put it right only after ten seconds.
    assert_eq!(self::redis(redis.server(lost), &["REPLICAOF", "127.0.0.1", "1"]), "+OK");
    planb.wait_for_log("following another Redis");
    assert_ne!(followed(&planb), lost);
    route(&redis.servers[0], &planb, "after.test", &a);
    assert_eq!(planb.ask("before.test"), "a");
}

#[test]
fn without_replicas_the_master_is_followed_until_there_is_one() {
    let mut redis = Sentinels::start();
    let planb = redis.planb(&[]).start();
    let a = Backend::named("a");
    route(&redis.servers[0], &planb, "before.test", &a);
    for replica in &mut redis.servers[1..] {
        replica.kill();
    }
    let master = redis.servers[0].port();
    wait_until("the master is followed", || followed(&planb) == master);
    route(&redis.servers[0], &planb, "meanwhile.test", &a);
    let port = redis.servers[1].port();
    let of_master = ["--replicaof", "127.0.0.1", &master.to_string(), "--notify-keyspace-events", "KA"];
    redis.server_mut(port).restart(&of_master).unwrap();
    wait_until("the replica is followed", || followed(&planb) == port);
    assert_eq!([planb.ask("before.test"), planb.ask("meanwhile.test")], ["a", "a"]);
    route(&redis.servers[0], &planb, "after.test", &a);
}

#[test]
fn the_master_is_read_on_request_and_a_sentinel_that_is_behind_brings_nobody_back() {
    let redis = Sentinels::start();
    redis.only_planned();
    let planb = redis.planb(&["--read-redis-sentinel-role=master", "--dead-backend-time=300"]).start();
    let a = Backend::named("a");
    assert_eq!(followed(&planb), redis.servers[0].port());
    route(&redis.servers[0], &planb, "before.test", &a);
    let (_guard, closed) = closed_port();
    list(&redis.servers[0], &planb, "dead.test", &closed);
    planb.ask("dead.test");
    signal(redis.sentinels[0].pid(), "STOP");
    assert_eq!(redis.sentinels[1].cli(&["SENTINEL", "FAILOVER", MASTER_NAME]), "OK");
    let promoted = redis.wait_until_promoted();
    wait_until("the new master is followed", || followed(&planb) == promoted.port());
    signal(redis.sentinels[0].pid(), "CONT");
    route(promoted, &planb, "after.test", &a);
    let address = format!("127.0.0.1\n{}", promoted.port());
    wait_until("all sentinels agree", || {
        let ask = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER_NAME];
        redis.sentinels.iter().all(|sentinel| sentinel.cli(&ask) == address)
    });
    wait_until("the mark is on the new master", || is_marked(promoted, "dead.test"));
    assert_eq!([planb.ask("before.test"), planb.ask("dead.test")], ["a", "all backends are dead"]);
    is_said_once(&planb, "following another Redis");
}

/// The port of the server that the table was last loaded from.
fn followed(planb: &Planb) -> u16 {
    let line = planb.log().into_iter().rfind(|line| line.contains("the routing table is loaded")).unwrap();
    let (_, address) = line.split_once("server=127.0.0.1:").unwrap();
    address.split(' ').next().unwrap().parse().unwrap()
}

fn redis_push(master: &PrivateRedis, host: &str, url: &str) {
    redis(master, &["RPUSH", &format!("frontend:{host}"), "id", url]);
}

/// Registers a host, and waits until its backend answers.
fn route(master: &PrivateRedis, planb: &Planb, host: &str, backend: &Backend) {
    redis_push(master, host, &backend.url());
    planb.wait_for_route(host);
}

/// Registers a host whose backend must not be asked yet.
fn list(master: &PrivateRedis, planb: &Planb, host: &str, url: &str) {
    let before = planb.count("planb_router_frontends");
    redis_push(master, host, url);
    wait_until(&format!("{host} is listed"), || planb.count("planb_router_frontends") > before);
}

fn is_marked(server: &PrivateRedis, host: &str) -> bool {
    // A replica that is promoted is told to cut its clients off.
    server.command(&["SISMEMBER", &format!("dead:{host}"), "0"]).is_ok_and(|reply| reply == ":1")
}

/// A backend that cannot be reached is recorded as dead on the master.
fn marks(master: &PrivateRedis, planb: &Planb, host: &str) {
    let (_guard, closed) = closed_port();
    list(master, planb, host, &closed);
    planb.ask(host);
    wait_until("the mark is recorded", || is_marked(master, host));
}

fn is_said_once(planb: &Planb, text: &str) {
    let lines: Vec<String> = planb.log().into_iter().filter(|line| line.contains(text)).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
}
