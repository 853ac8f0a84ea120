//! Logging in to Redis: users, passwords and TLS, from the start to the day on which they change.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::support::{
    Authority, Backend, Pair, Planb, PlanbBuilder, PrivateRedis, closed_port, redis, redis_cli, shown, wait_until,
};

/// A Redis with the two users of the README, which anybody may administrate, on a plain port and one for TLS.
struct Guarded {
    redis: PrivateRedis,
    tls_port: u16,
    authority: Authority,
    folder: TempDir,
}

impl Guarded {
    fn start() -> Self {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        fs::write(folder.path().join("password"), format!("{PASSWORD}\n")).unwrap();
        let users = folder.path().join("users.acl");
        fs::write(&users, format!("user default on nopass ~* &* +@all\n{}\n", users_of_the_readme().join("\n")))
            .unwrap();
        let users = users.display().to_string();
        let redis = PrivateRedis::start(&["--notify-keyspace-events", "KA", "--aclfile", &users]).unwrap();
        let mut guarded = Self { redis, tls_port: 0, authority, folder };
        guarded.show(&guarded.authority.issue(&["localhost", "127.0.0.1"]));
        // Below the range that the kernel gives to clients. Redis refuses a port that is taken.
        let mut candidates = (0..20).map(|_| 20_000 + u16::from(rand_byte()) * 40 + u16::from(rand_byte()) % 40);
        let open =
            |port: &u16| guarded.redis.command(&["CONFIG", "SET", "tls-port", &port.to_string()]).unwrap() == "+OK";
        guarded.tls_port = candidates.find(open).expect("a port is free");
        guarded
    }

    /// Has the server show this certificate from now on.
    fn show(&self, pair: &Pair) {
        pair.write(self.folder.path(), "server");
        let (certificate, key, ca) = (self.path("server.crt"), self.path("server.key"), self.path("ca.pem"));
        let files = ["tls-cert-file", &certificate, "tls-key-file", &key, "tls-ca-cert-file", &ca];
        redis(&self.redis, &[&["CONFIG", "SET", "tls-auth-clients", "no"], &files[..]].concat());
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// The flags that log in as the users of the README, over TLS if wanted.
    fn flags(&self, tls: bool) -> Vec<String> {
        let mut flags = Vec::new();
        for side in ["read", "write"] {
            flags.push(format!("--{side}-redis-username=planb-{side}"));
            flags.push(format!("--{side}-redis-password-file={}", self.path("password")));
            if tls {
                flags.push(format!("--{side}-redis-tls"));
                flags.push(format!("--{side}-redis-tls-ca={}", self.path("ca.pem")));
                flags.push(format!("--{side}-redis-port={}", self.tls_port));
            }
        }
        flags
    }

    /// A proxy with these flags; further ones come after, and win.
    fn planb(&self, tls: bool, further: &[&str]) -> PlanbBuilder {
        let flags = self.flags(tls);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        Planb::builder(&self.redis, &self.redis).arguments(&flags).arguments(further)
    }

    fn set_user(&self, rules: &[&str]) {
        redis(&self.redis, &[&["ACL", "SETUSER"], rules].concat());
    }

    /// The users of the connections that there are.
    fn connected(&self, user: &str) -> usize {
        redis_cli(&self.redis, &["CLIENT", "LIST"])
            .lines()
            .filter(|line| line.contains(&format!(" user={user} ")))
            .count()
    }
}

/// The lines that the README has for an access list, with a password.
fn users_of_the_readme() -> Vec<String> {
    let readme = include_str!("../../README.md");
    let lines: Vec<String> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("    user planb-"))
        .map(|line| format!("user planb-{line}"))
        .collect();
    assert_eq!(lines.len(), 2);
    lines.iter().map(|line| line.replace("PASSWORD", PASSWORD)).collect()
}

/// What the README gives the second user besides, for the active health check.
fn rights_to_check() -> Vec<&'static str> {
    let readme = include_str!("../../README.md");
    let mut lines = readme.lines().filter_map(|line| line.strip_prefix("    ~frontend:* ~healthcheck:* "));
    let rights = lines.next().unwrap().split(' ');
    ["planb-write", "~frontend:*", "~healthcheck:*"].into_iter().chain(rights).collect()
}

/// Waits until a dead mark, an edit and their absence get from Redis to the proxy, and a dead mark from there to Redis.
fn works(planb: &Planb, server: &PrivateRedis, host: &str) {
    let a = Backend::named("a");
    redis(server, &["RPUSH", &format!("frontend:{host}"), "id", &a.url()]);
    planb.wait_for_route(host);
    redis(server, &["SADD", &format!("dead:{host}"), "0"]);
    wait_until("the mark is heeded", || planb.ask(host) == "all backends are dead");
    redis(server, &["DEL", &format!("dead:{host}")]);
    wait_until("the mark is gone", || planb.ask(host) == "a");
    redis(server, &["DEL", &format!("frontend:{host}")]);
    planb.wait_for_no_route(host);
    refuses(planb, server, &format!("refused.{host}"));
}

/// Waits until a backend that cannot be reached is recorded as dead.
fn refuses(planb: &Planb, server: &PrivateRedis, host: &str) {
    let (_guard, refused) = closed_port();
    redis(server, &["RPUSH", &format!("frontend:{host}"), "id", &refused]);
    wait_until("the dead backend is recorded", || {
        planb.ask(host);
        redis_cli(server, &["SMEMBERS", &format!("dead:{host}")]) == "0"
    });
}

/// The one line with which a start ends that cannot succeed.
fn last_words(mut planb: Planb, code: i32) -> String {
    assert_eq!(planb.wait_for_exit().code(), Some(code));
    let lines: Vec<String> = planb.log().into_iter().filter(|line| line.starts_with("planb: ")).collect();
    assert_eq!(lines.len(), 1, "{:#?}", planb.log());
    tells_no_secret(&planb);
    lines[0].clone()
}

fn tells_no_secret(planb: &Planb) {
    let lines = [planb.log(), planb.stdout()].concat();
    assert!(!lines.iter().any(|line| line.contains(PASSWORD) || line.contains(WRONG)), "{lines:#?}");
}

fn rand_byte() -> u8 {
    uuid::Uuid::new_v4().as_bytes()[0]
}

#[test]
fn the_users_of_the_readme_can_do_everything_over_tls() {
    let guarded = Guarded::start();
    let planb = guarded
        .planb(true, &["--tls-listen=127.0.0.1:0", "--tls-ticket-rotation=2s", "--reconcile-interval=100ms"])
        .arguments(&["--write-redis-host=localhost"])
        .environment("PLANB_TLS_TICKET_SECRET", "correct horse battery staple")
        .environment("RUST_LOG", "trace")
        .start();
    works(&planb, &guarded.redis, "able.test");
    let authority = Authority::new();
    authority.issue(&["able.test"]).install(&guarded.redis, "able.test");
    wait_until("the certificate is shown", || shown(&authority, planb.tls_address(), "able.test").is_some());
    redis(&guarded.redis, &["HSET", "planb:tickets", "junk", "junk"]);
    wait_until("junk is cleared away", || redis(&guarded.redis, &["HEXISTS", "planb:tickets", "junk"]) == ":0");
    assert_eq!(planb.count("planb_tls_ticket_keys_shared"), 1);
    assert_eq!((planb.count("planb_sync_polling"), planb.count("planb_sync_drift_total")), (0, 0));
    assert_eq!(guarded.connected("planb-read"), 3);
    assert!(guarded.connected("planb-write") >= 1);
    assert_eq!(redis_cli(&guarded.redis, &["ACL", "LOG"]), "", "nothing was denied");
    tells_no_secret(&planb);
    let command_line = fs::read(format!("/proc/{}/cmdline", planb.pid())).unwrap();
    assert!(!String::from_utf8_lossy(&command_line).contains(PASSWORD));
}

#[test]
fn the_active_health_check_needs_the_rights_that_the_readme_says() {
    let guarded = Guarded::start();
    let planb = guarded.planb(true, &["--active-healthcheck", "--hostname=one"]).start();
    let line = planb.wait_for_log("dead backends cannot be checked");
    assert!(line.contains("NOPERM"), "{line}");
    works(&planb, &guarded.redis, "unchecked.test");
    redis(&guarded.redis, &["ACL", "LOG", "RESET"]);
    guarded.set_user(&rights_to_check());
    planb.wait_for_log("dead backends are checked");
    redis(&guarded.redis, &["ACL", "LOG", "RESET"]);

    let (a, b) = (Backend::named("a"), Backend::named("b"));
    redis(&guarded.redis, &["RPUSH", "frontend:checked.test", "id", &a.url(), &b.url()]);
    redis(&guarded.redis, &["HSET", "healthcheck:checked.test", "body", "b"]);
    planb.wait_for_route("checked.test");
    redis(&guarded.redis, &["SADD", "dead:checked.test", "0", "1"]);
    for (url, index) in [(a.url(), 0), (b.url(), 1)] {
        redis(&guarded.redis, &["PUBLISH", "dead", &format!("checked.test;{url};{index};2")]);
    }
    // Moved, unlisted, revived, kept, and in the end given up.
    redis(&guarded.redis, &["LINSERT", "frontend:checked.test", "BEFORE", &a.url(), "http://127.0.0.1:1"]);
    wait_until("one is kept, and one revived", || redis_cli(&guarded.redis, &["SMEMBERS", "dead:checked.test"]) == "1");
    redis(&guarded.redis, &["LREM", "frontend:checked.test", "0", "http://127.0.0.1:1"]);
    wait_until("the mark follows", || redis_cli(&guarded.redis, &["SMEMBERS", "dead:checked.test"]) == "0");
    let mut planb = planb;
    planb.signal("TERM");
    assert_eq!(planb.wait_for_exit().code(), Some(0));
    assert_eq!(redis_cli(&guarded.redis, &["GET", &format!("dead:checked.test:{}", a.url())]), "");
    assert_eq!(redis_cli(&guarded.redis, &["ACL", "LOG"]), "", "nothing was denied");
    tells_no_secret(&planb);
}

#[test]
fn a_password_is_enough_for_the_default_user_over_tls() {
    let guarded = Guarded::start();
    guarded.set_user(&["default", "resetpass", &format!(">{PASSWORD}")]);
    let planb = guarded.planb(true, &["--read-redis-username=", "--write-redis-username="]).start();
    planb.wait_for_log("dead backends are recorded");
}

#[test]
fn another_database_takes_what_the_readme_says_more() {
    let guarded = Guarded::start();
    guarded.set_user(&["planb-read", "+select", "&__keyspace@5__:frontend:*", "&__keyspace@5__:dead:*"]);
    guarded.set_user(&["planb-write", "+select"]);
    let planb = guarded.planb(true, &["--read-redis-db=5", "--write-redis-db=5"]).start();
    let (a, (_guard, refused)) = (Backend::named("a"), closed_port());
    redis_cli(&guarded.redis, &["-n", "5", "RPUSH", "frontend:five.test", "id", &refused, &a.url()]);
    wait_until("the dead backend is recorded", || {
        planb.ask("five.test");
        redis_cli(&guarded.redis, &["-n", "5", "SMEMBERS", "dead:five.test"]) == "0"
    });
    assert!(planb.count("planb_sync_events_total") > 0);
    assert_eq!(redis_cli(&guarded.redis, &["ACL", "LOG"]), "", "nothing was denied");
}

#[test]
fn without_info_and_config_it_polls_until_each_kind_of_event_has_come() {
    let guarded = Guarded::start();
    guarded.set_user(&["planb-read", "-info", "-config|get", "-client|id"]);
    guarded.set_user(&["planb-write", "-info", "-client|id"]);
    let planb = guarded.planb(false, &[]).start();
    assert_eq!(planb.count("planb_sync_polling"), 1);
    works(&planb, &guarded.redis, "blind.test");
    redis(&guarded.redis, &["PEXPIRE", "dead:refused.blind.test", "20"]);
    wait_until("events are followed", || planb.count("planb_sync_polling") == 0);
    works(&planb, &guarded.redis, "seeing.test");
}

#[test]
fn without_config_it_takes_one_right_more_to_hear_each_kind_of_event() {
    let guarded = Guarded::start();
    guarded.set_user(&["planb-read", "-config|get"]);
    guarded.set_user(&["planb-write", "+rpush"]);
    let planb = guarded.planb(false, &["--tls-listen=127.0.0.1:0"]).start();
    wait_until("events are followed", || planb.count("planb_sync_polling") == 0);
    let denied = redis_cli(&guarded.redis, &["ACL", "LOG"]);
    assert!(!denied.contains("planb-write"), "{denied}");
}

#[test]
fn a_command_that_is_forbidden_is_named_and_waited_for() {
    let guarded = Guarded::start();
    for (rule, pardon) in
        [("-scan", "+scan"), ("-lrange", "+lrange"), ("-psubscribe", "+psubscribe"), ("-dbsize", "+dbsize")]
    {
        redis(&guarded.redis, &["RPUSH", "frontend:there.test", "id", "http://127.0.0.1:1"]);
        guarded.set_user(&["planb-read", rule]);
        let mut planb = guarded.planb(false, &[]).spawn();
        let line = planb.wait_for_log("waiting for Redis");
        assert!(line.contains("NOPERM") && line.contains(&rule[1..]), "{line}");
        guarded.set_user(&["planb-read", pardon]);
        planb.wait_until_listening();
        assert_ne!(planb.ask("there.test"), "no such route");
    }
}

#[test]
fn rights_that_are_taken_away_cost_no_route() {
    let guarded = Guarded::start();
    let planb = guarded.planb(false, &["--reconcile-interval=100ms"]).start();
    let a = Backend::named("a");
    redis(&guarded.redis, &["RPUSH", "frontend:kept.test", "id", &a.url()]);
    planb.wait_for_route("kept.test");
    for (rules, pardon) in [
        (&["-lrange"][..], &["+lrange"][..]),
        (&["resetkeys", "~dead:*", "~tls:*"], &["~frontend:*"]),
        (&["resetchannels"], &["allchannels"]),
        (&["-@all"], &["+@all"]),
    ] {
        guarded.set_user(&[&["planb-read"], rules].concat());
        wait_until("the trouble is noticed", || planb.count("planb_sync_connected") == 0);
        assert_eq!(planb.ask("kept.test"), "a", "{rules:?}");
        guarded.set_user(&[&["planb-read"], pardon].concat());
        wait_until("the trouble is over", || planb.count("planb_sync_connected") == 1);
        assert_eq!(planb.ask("kept.test"), "a", "{rules:?}");
    }
    guarded.set_user(&["planb-write", "-publish"]);
    let (_guard, refused) = closed_port();
    redis(&guarded.redis, &["RPUSH", "frontend:refused.test", "id", &refused]);
    planb.wait_for_route("refused.test");
    let line = planb.wait_for_log("dead backends cannot be recorded");
    assert!(line.contains("NOPERM"), "{line}");
    guarded.set_user(&["planb-write", "+publish"]);
    wait_until("the mark is recorded", || planb.count("planb_router_dead_marks_pending") == 0);
}

#[test]
fn a_login_that_is_refused_ends_the_start() {
    let guarded = Guarded::start();
    guarded.set_user(&["planb-off", "off", &format!(">{PASSWORD}"), "+@all"]);
    let wrong_file = guarded.path("wrong");
    fs::write(&wrong_file, WRONG).unwrap();
    let wrong_file = wrong_file.as_str();
    for side in ["read", "write"] {
        for flag in
            ["-username=nobody".to_owned(), "-username=planb-off".to_owned(), format!("-password-file={wrong_file}")]
        {
            let planb =
                guarded.planb(true, &[&format!("--{side}-redis{flag}")]).environment("RUST_LOG", "trace").spawn();
            let line = last_words(planb, 1);
            let said = line.contains(&format!("127.0.0.1:{}", guarded.tls_port)) && line.contains("refuses the user");
            assert!(said && line.matches("WRONGPASS").count() == 1, "{flag}: {line}");
        }
        let planb = Planb::builder(&guarded.redis, &guarded.redis)
            .arguments(&[&format!("--{side}-redis-username=planb-{side}"), &format!("--{side}-redis-password={WRONG}")])
            .spawn();
        assert!(last_words(planb, 1).contains(&format!("refuses the user \"planb-{side}\" or the password")));
    }
}

#[test]
fn a_password_that_changes_costs_no_route() {
    let guarded = Guarded::start();
    let planb = guarded.planb(false, &[]).start();
    planb.wait_for_log("dead backends are recorded");
    let a = Backend::named("a");
    redis(&guarded.redis, &["RPUSH", "frontend:kept.test", "id", &a.url()]);
    planb.wait_for_route("kept.test");
    for user in ["planb-read", "planb-write"] {
        guarded.set_user(&[user, "resetpass", ">another-password"]);
        redis(&guarded.redis, &["CLIENT", "KILL", "USER", user]);
    }
    planb.wait_for_log("refuses the user \"planb-read\" or the password");
    planb.wait_for_log("refuses the user \"planb-write\" or the password");
    assert_eq!(planb.ask("kept.test"), "a");

    // While it is exchanged, the file may be in any state.
    let file = guarded.path("password");
    fs::remove_file(&file).unwrap();
    planb.wait_for_log("cannot read the password in");
    assert_eq!(planb.ask("kept.test"), "a");
    fs::write(&file, "another-password\r\n").unwrap();
    wait_until("the table is followed again", || planb.count("planb_sync_connected") == 1);
    assert_eq!(planb.ask("kept.test"), "a");
    works(&planb, &guarded.redis, "after.test");

    guarded.set_user(&["planb-read", "off"]);
    redis(&guarded.redis, &["CLIENT", "KILL", "USER", "planb-read"]);
    wait_until("the trouble is noticed", || planb.count("planb_sync_connected") == 0);
    guarded.set_user(&["planb-read", "on"]);
    wait_until("the table is followed again", || planb.count("planb_sync_connected") == 1);
    works(&planb, &guarded.redis, "on.test");
    assert!(!planb.log().iter().any(|line| line.contains("another-password")));
}

#[test]
fn a_certificate_that_cannot_be_verified_is_waited_out() {
    let guarded = Guarded::start();
    let (stranger, good) = (Authority::new(), guarded.authority.issue(&["127.0.0.1"]));
    for bad in [stranger.issue(&["127.0.0.1"]), guarded.authority.issue(&["elsewhere.test", "127.0.0.2"])] {
        guarded.show(&bad);
        let mut planb = guarded.planb(true, &[]).spawn();
        for complaint in ["waiting for Redis", "dead backends cannot be recorded"] {
            let line = planb.wait_for_log(complaint);
            assert!(line.contains("shows a certificate that cannot be verified"), "{line}");
        }
        assert!(!planb.has_exited());
        guarded.show(&good);
        planb.wait_until_listening();
        planb.wait_for_log("dead backends are recorded");
        works(&planb, &guarded.redis, "verified.test");
        redis(&guarded.redis, &["FLUSHALL"]);
    }
}

#[test]
fn without_authorities_of_its_own_redis_needs_those_that_the_world_has() {
    let guarded = Guarded::start();
    let planb = Planb::builder(&guarded.redis, &guarded.redis)
        .arguments(&["--read-redis-tls", &format!("--read-redis-port={}", guarded.tls_port)])
        .spawn();
    planb.wait_for_log("shows a certificate that cannot be verified");
    // The place of the system's authorities, for whoever asks for them.
    let mut planb = Planb::builder(&guarded.redis, &guarded.redis)
        .arguments(&["--read-redis-tls=true", &format!("--read-redis-port={}", guarded.tls_port)])
        .environment("SSL_CERT_FILE", &guarded.path("ca.pem"))
        .spawn();
    planb.wait_until_listening();
}

#[test]
fn tls_on_a_plain_port_and_the_reverse_are_waited_out() {
    let guarded = Guarded::start();
    let plain = format!("--read-redis-port={}", guarded.redis.port());
    let mut planb = guarded.planb(true, &[&plain]).spawn();
    let line = planb.wait_for_log("waiting for Redis");
    assert!(line.contains("completes no TLS handshake"), "{line}");
    assert!(!planb.has_exited());

    let tls = format!("--read-redis-port={}", guarded.tls_port);
    let mut planb = guarded.planb(false, &[&tls]).spawn();
    let line = planb.wait_for_log("waiting for Redis");
    assert!(line.contains("is unreachable"), "{line}");
    assert!(!planb.has_exited());
}

#[test]
fn a_server_that_speaks_no_tls_is_not_hammered() {
    let redis = PrivateRedis::start(&[]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let planb =
        Planb::builder(&redis, &redis).arguments(&["--read-redis-tls", &format!("--read-redis-port={port}")]).spawn();
    let mut began = None;
    for _ in 0..6 {
        let (mut stream, _) = listener.accept().unwrap();
        began.get_or_insert_with(Instant::now);
        stream.write_all(b"-ERR what is this?\r\n").unwrap();
    }
    // Five pauses, of which each is about twice the one before.
    assert!(began.unwrap().elapsed() > Duration::from_millis(500));
    let complaints = planb.log().into_iter().filter(|line| line.contains("completes no TLS handshake")).count();
    assert_eq!(complaints, 1, "{:#?}", planb.log());
}

#[test]
fn a_file_that_is_wrong_is_one_clear_line() {
    let guarded = Guarded::start();
    let (none, key, folder) = (guarded.path("none"), guarded.path("server.key"), guarded.path(""));
    let empty = guarded.path("empty");
    fs::write(&empty, "\n").unwrap();
    for side in ["read", "write"] {
        for (flag, file, reason) in [
            ("password-file", &none, "cannot be logged in to: cannot read the password in"),
            ("password-file", &folder, "it is not a regular file"),
            ("password-file", &empty, "it is empty"),
            ("tls-ca", &none, "cannot read the authorities of Redis in"),
            ("tls-ca", &key, "is not a PEM file of authorities: there is no certificate"),
        ] {
            let line = last_words(guarded.planb(true, &[&format!("--{side}-redis-{flag}={file}")]).spawn(), 1);
            assert!(line.contains(reason) && line.contains(file.as_str()), "{line}");
            assert!(line.matches("os error").count() <= 1, "{line}");
        }
    }
}

#[test]
fn flags_that_contradict_one_another_are_one_clear_line() {
    let guarded = Guarded::start();
    for (flags, reason) in [
        (["--read-redis-password=a", "--read-redis-password-file=b"], "are two passwords"),
        (["--write-redis-tls-ca=ca.pem", "--write-redis-tls=false"], "--write-redis-tls-ca is of no use without"),
        (["--write-redis-network=unix", "--write-redis-tls"], "needs --write-redis-network tcp"),
        (["--read-redis-host=no name", "--read-redis-tls"], "--read-redis-host is no name"),
        (["--read-redis-tls=perhaps", "--read-redis-tls-ca=b"], "'perhaps' for '--read-redis-tls"),
    ] {
        let planb = Planb::with(&flags).environment("PLANB_READ_REDIS_USERNAME", "me").spawn();
        let line = last_words(planb, 2);
        assert!(line.contains(reason), "{line}");
    }
    let planb = guarded.planb(false, &[]).environment("PLANB_WRITE_REDIS_PASSWORD", PASSWORD).spawn();
    assert!(last_words(planb, 2).contains("--write-redis-password and --write-redis-password-file are two passwords"));
}

const PASSWORD: &str = "open-sesame";
const WRONG: &str = "wrong-guess";
