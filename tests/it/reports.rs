//! Dead marks on their way to the write Redis, whatever state that is in.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use super::support::{
    Backend, PATIENCE, Planb, PrivateRedis, Stack, closed_port, redis, redis_cli, redis_pair, replica_of, signal,
    wait_until,
};

/// A subscription to the channel `dead`.
struct Subscription(BufReader<TcpStream>);

impl Subscription {
    fn start(server: &PrivateRedis) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"SUBSCRIBE dead\r\n").unwrap();
        let mut subscription = Self(BufReader::new(stream));
        assert_eq!(subscription.array(), ["subscribe", "dead", ":1"]);
        subscription
    }

    fn payload(&mut self) -> String {
        let [kind, channel, payload] = self.array();
        assert_eq!((kind.as_str(), channel.as_str()), ("message", "dead"));
        payload
    }

    fn array(&mut self) -> [String; 3] {
        assert_eq!(self.line(), "*3");
        [(); 3].map(|()| {
            let line = self.line();
            if line.starts_with('$') { self.line() } else { line }
        })
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

/// A proxy whose routes do not come from the Redis that it reports to, so that the one can go while the other stays.
struct Split {
    planb: Planb,
    read: PrivateRedis,
    write: PrivateRedis,
}

impl Split {
    fn start(arguments: &[&str]) -> Self {
        let read = PrivateRedis::start(&["--notify-keyspace-events", "KA"]).unwrap();
        let write = PrivateRedis::start(&[]).unwrap();
        let planb = Planb::builder(&read, &write).arguments(arguments).start();
        planb.wait_for_log("dead backends are recorded");
        Self { planb, read, write }
    }

    fn pending(&self) -> u64 {
        pending(&self.planb)
    }

    /// Waits until nothing is left to be recorded.
    fn wait_until_reported(&self) {
        wait_until("no mark is pending", || self.pending() == 0);
    }

    /// Whether the write Redis is out of use, as far as the proxy knows.
    fn wait_until_write_is_missed(&self) {
        self.planb.wait_for_log("dead backends cannot be recorded");
    }
}

fn pending(planb: &Planb) -> u64 {
    planb.count("planb_router_dead_marks_pending")
}

/// Registers a host whose backends cannot prove that they are routed.
fn register(server: &PrivateRedis, planb: &Planb, host: &str, urls: &[&str]) {
    let before = planb.count("planb_router_frontends");
    redis(server, &[&["RPUSH", &format!("frontend:{host}"), "id"], urls].concat());
    wait_until(&format!("{host} is routed"), || planb.count("planb_router_frontends") == before + 1);
}

fn members(server: &PrivateRedis, host: &str) -> String {
    redis_cli(server, &["SMEMBERS", &format!("dead:{host}")])
}

fn ttl(server: &PrivateRedis, host: &str) -> i64 {
    redis_cli(server, &["TTL", &format!("dead:{host}")]).parse().unwrap()
}

#[test]
fn a_mark_is_recorded_as_the_original_does() {
    let stack = Stack::start(&["--dead-backend-time=77"]);
    let ((_one, first), (_other, second)) = (closed_port(), closed_port());
    let mut subscription = Subscription::start(&stack.master);
    register(&stack.master, &stack.planb, "dead.test", &[&Backend::named("a").url(), &first, &second]);
    wait_until("both are found dead", || {
        assert_eq!(stack.planb.ask("dead.test"), "a");
        stack.planb.count("planb_router_backend_markdead_total") == 2
    });
    let mut payloads = [subscription.payload(), subscription.payload()];
    // The message comes last, so what it tells of is there.
    assert_eq!(members(&stack.master, "dead.test"), "1\n2");
    assert!((70..=77).contains(&ttl(&stack.master, "dead.test")));
    payloads.sort();
    let mut expected = [format!("dead.test;{first};1;3"), format!("dead.test;{second};2;3")];
    expected.sort();
    assert_eq!(payloads, expected);
    wait_until("nothing is pending", || pending(&stack.planb) == 0);
}

#[test]
fn a_mark_belongs_to_the_frontend_that_matched() {
    let stack = Stack::start(&[]);
    let (_guard, closed) = closed_port();
    let mut subscription = Subscription::start(&stack.master);
    register(&stack.master, &stack.planb, "*.Wild.test", &[&closed]);
    stack.planb.ask("a.wild.test:8080");
    assert_eq!(subscription.payload(), format!("*.Wild.test;{closed};0;1"));
    assert_eq!(members(&stack.master, "*.Wild.test"), "0");
}

#[test]
fn without_a_dead_backend_time_nothing_is_marked() {
    let split = Split::start(&["--dead-backend-time=none"]);
    let (_guard, closed) = closed_port();
    register(&split.read, &split.planb, "dead.test", &[&closed]);
    for _ in 0..3 {
        assert_eq!(split.planb.ask("dead.test"), "");
    }
    assert_eq!(split.planb.count("planb_router_backend_markdead_total"), 0);
    assert_eq!(members(&split.write, "dead.test"), "");
    assert!(!split.planb.log().iter().any(|line| line.contains("*DEAD*")));
}

#[test]
fn a_master_that_is_away_learns_of_marks_when_it_is_back() {
    let mut stack = Stack::start(&[]);
    let (_guard, closed) = closed_port();
    register(&stack.master, &stack.planb, "dead.test", &[&closed, &Backend::named("a").url()]);
    redis(&stack.master, &["SAVE"]);
    stack.master.kill();
    stack.planb.wait_for_log("dead backends cannot be recorded");
    for _ in 0..4 {
        assert_eq!(stack.planb.ask("dead.test"), "a");
    }
    wait_until("the mark is pending", || pending(&stack.planb) == 1);
    stack.master.restart(&[]).unwrap();
    wait_until("the mark is recorded", || members(&stack.master, "dead.test") == "0");
    assert!((1..=30).contains(&ttl(&stack.master, "dead.test")));
    wait_until("nothing is pending", || pending(&stack.planb) == 0);
}

#[test]
fn a_master_without_memory_learns_of_marks_when_it_has_some() {
    let split = Split::start(&[]);
    let (_guard, closed) = closed_port();
    register(&split.read, &split.planb, "dead.test", &[&closed, &Backend::named("a").url()]);
    redis(&split.write, &["CONFIG", "SET", "maxmemory", "1"]);
    for _ in 0..4 {
        assert_eq!(split.planb.ask("dead.test"), "a");
    }
    assert!(split.planb.wait_for_log("dead backends cannot be recorded").contains("OOM"));
    assert_eq!(split.pending(), 1);
    redis(&split.write, &["CONFIG", "SET", "maxmemory", "0"]);
    wait_until("the mark is recorded", || members(&split.write, "dead.test") == "0");
    wait_until("nothing is pending", || split.pending() == 0);
}

#[test]
fn a_master_that_answers_nothing_delays_no_request() {
    let split = Split::start(&[]);
    let (_guard, closed) = closed_port();
    register(&split.read, &split.planb, "dead.test", &[&closed, &Backend::named("a").url()]);
    signal(split.write.pid(), "STOP");
    for _ in 0..4 {
        assert_eq!(split.planb.ask("dead.test"), "a");
    }
    wait_until("the mark is pending", || split.pending() == 1);
    let line = split.planb.wait_for_log("dead backends cannot be recorded");
    assert!(line.contains(&format!("127.0.0.1:{} did not answer within", split.write.port())), "{line}");
    assert_eq!(split.planb.ask("dead.test"), "a");
    signal(split.write.pid(), "CONT");
    split.wait_until_reported();
    assert_eq!(members(&split.write, "dead.test"), "0");
}

#[test]
fn the_newest_mark_of_a_backend_is_the_one_that_is_recorded() {
    let split = Split::start(&["--dead-backend-time=5"]);
    let (_guard, closed) = closed_port();
    register(&split.read, &split.planb, "dead.test", &[&closed]);
    redis(&split.write, &["REPLICAOF", "127.0.0.1", &split.read.port().to_string()]);
    wait_until("it has been dead twice", || {
        assert_eq!(split.planb.connect().get("dead.test", "/").status, 503);
        split.planb.count("planb_router_backend_markdead_total") == 2
    });
    wait_until("the second mark is pending", || split.pending() == 1);
    redis(&split.write, &["REPLICAOF", "NO", "ONE"]);
    split.wait_until_reported();
    // The first mark has run out, and would not have been recorded.
    let commands = redis_cli(&split.write, &["INFO", "commandstats"]);
    assert!(commands.contains("cmdstat_sadd:calls=1,"), "{commands}");
}

#[test]
fn a_mark_that_has_run_out_is_not_recorded() {
    let mut split = Split::start(&["--dead-backend-time=1"]);
    let (_guard, closed) = closed_port();
    register(&split.read, &split.planb, "dead.test", &[&closed]);
    split.write.kill();
    split.wait_until_write_is_missed();
    split.planb.ask("dead.test");
    assert_eq!(split.planb.count("planb_router_backend_markdead_total"), 1);
    let marked = Instant::now();
    wait_until("the mark has run out", || marked.elapsed() > Duration::from_secs(1) && split.pending() == 0);
    split.write.restart(&[]).unwrap();
    wait_until("the write Redis is in use again", || {
        split.planb.log().iter().filter(|line| line.contains("dead backends are recorded")).count() == 2
    });
    assert!(!redis_cli(&split.write, &["INFO", "commandstats"]).contains("cmdstat_sadd"));
}

#[test]
fn a_master_that_returns_without_its_marks_is_told_again() {
    let mut split = Split::start(&["--dead-backend-time=300"]);
    let (_guard, closed) = closed_port();
    register(&split.read, &split.planb, "dead.test", &[&closed]);
    assert_eq!(split.planb.connect().get("dead.test", "/").status, 503);
    wait_until("the mark is recorded", || members(&split.write, "dead.test") == "0");
    split.write.restart(&[]).unwrap();
    wait_until("the mark is recorded again", || members(&split.write, "dead.test") == "0");
    assert!((200..=300).contains(&ttl(&split.write, "dead.test")));
    assert_eq!(split.planb.count("planb_router_backend_markdead_total"), 1);
}

#[test]
fn a_backend_that_has_left_the_list_is_not_marked() {
    let mut split = Split::start(&[]);
    let ((_one, gone), (_other, stays)) = (closed_port(), closed_port());
    register(&split.read, &split.planb, "gone.test", &[&gone]);
    register(&split.read, &split.planb, "stays.test", &[&stays]);
    split.write.kill();
    split.wait_until_write_is_missed();
    for host in ["gone.test", "stays.test"] {
        assert_eq!(split.planb.connect().get(host, "/").status, 503);
    }
    wait_until("both marks are pending", || split.pending() == 2);
    redis(&split.read, &["LSET", "frontend:gone.test", "1", &Backend::named("new").url()]);
    wait_until("the list's new backend answers", || split.planb.ask("gone.test") == "new");
    split.write.restart(&[]).unwrap();
    split.wait_until_reported();
    assert_eq!(members(&split.write, "stays.test"), "0");
    assert_eq!(members(&split.write, "gone.test"), "");
}

#[test]
fn the_index_is_the_one_that_the_backend_has_when_it_is_recorded() {
    let mut split = Split::start(&[]);
    let (_guard, closed) = closed_port();
    register(&split.read, &split.planb, "moved.test", &[&closed]);
    split.write.kill();
    split.wait_until_write_is_missed();
    assert_eq!(split.planb.connect().get("moved.test", "/").status, 503);
    wait_until("the mark is pending", || split.pending() == 1);
    redis(&split.read, &["LINSERT", "frontend:moved.test", "AFTER", "id", &Backend::named("new").url()]);
    wait_until("the list's new backend answers", || split.planb.ask("moved.test") == "new");
    split.write.restart(&[]).unwrap();
    split.wait_until_reported();
    assert_eq!(members(&split.write, "moved.test"), "1");
}

#[test]
fn a_replica_cannot_be_written_to_and_traffic_goes_on() {
    let (master, replica) = redis_pair();
    let read_only = replica_of(&master);
    let planb = Planb::builder(&replica, &read_only).start();
    let (_guard, closed) = closed_port();
    register(&master, &planb, "dead.test", &[&closed, &Backend::named("a").url()]);
    let reason =
        format!("Redis at 127.0.0.1:{} is a replica, so dead backends cannot be recorded there", read_only.port());
    planb.wait_for_log(&reason);
    for _ in 0..4 {
        assert_eq!(planb.ask("dead.test"), "a");
    }
    wait_until("the mark is pending", || pending(&planb) == 1);
    redis(&read_only, &["REPLICAOF", "NO", "ONE"]);
    wait_until("the mark is recorded on the new master", || members(&read_only, "dead.test") == "0");
}

#[test]
fn a_master_that_becomes_a_replica_is_noticed_at_the_next_mark() {
    let split = Split::start(&[]);
    let (_guard, closed) = closed_port();
    register(&split.read, &split.planb, "dead.test", &[&closed]);
    redis(&split.write, &["REPLICAOF", "127.0.0.1", &split.read.port().to_string()]);
    assert_eq!(split.planb.ask("dead.test"), "");
    split.planb.wait_for_log("is a replica, so dead backends cannot be recorded there");
    assert_eq!(split.pending(), 1);
    assert_eq!(split.planb.ask("dead.test"), "all backends are dead");
}

#[test]
fn marks_are_recorded_before_the_end() {
    let mut split = Split::start(&[]);
    let (_guard, closed) = closed_port();
    let hosts: Vec<String> = (0..20).map(|number| format!("dead{number}.test")).collect();
    for host in &hosts {
        register(&split.read, &split.planb, host, &[&closed]);
    }
    for host in &hosts {
        split.planb.ask(host);
    }
    split.planb.signal("TERM");
    assert_eq!(split.planb.wait_for_exit().code(), Some(0));
    for host in &hosts {
        assert_eq!(members(&split.write, host), "0", "{host}");
    }
}
