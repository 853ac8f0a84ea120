//! Certificates from Redis: which one answers, how it is replaced, and when it goes.

use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, SystemTime},
};

use rustls::{
    client::Resumption,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::support::{
    Authority, Backend, Pair, Planb, Stack, connect_tls, redis, redis_pair, redis_pipe, s_client, shown, signal,
    wait_until,
};

const NAME: &str = "secure.site.test";

/// A stack that serves TLS with certificates from Redis.
pub struct Secure {
    pub stack: Stack,
    pub authority: Authority,
    signs: AtomicUsize,
}

impl Secure {
    pub fn start() -> Self {
        let stack = Stack::start(&["--tls-listen=127.0.0.1:0"]);
        Self { stack, authority: Authority::new(), signs: AtomicUsize::new(0) }
    }

    pub fn address(&self) -> SocketAddr {
        self.stack.planb.tls_address()
    }

    /// A new pair that is good for every name `<label>.site.test`.
    pub fn issue(&self) -> Pair {
        self.authority.issue(&["*.site.test"])
    }

    /// Puts a new pair into service under a name.
    pub fn install(&self, name: &str) -> Pair {
        let pair = self.issue();
        pair.install(&self.stack.master, name);
        self.wait_for(name, &pair);
        pair
    }

    /// Hands over a pair, and waits until it was dealt with in either way.
    pub fn offer(&self, name: &str, pair: &Pair) {
        let dealt_with = || self.loaded() + self.refused();
        let before = dealt_with();
        pair.install(&self.stack.master, name);
        wait_until(&format!("{name} is dealt with"), || dealt_with() > before);
    }

    /// Sets one field of a name's hash.
    pub fn set(&self, name: &str, field: &str, value: &[u8]) {
        redis_pipe(&self.stack.master, &[vec![b"HSET", format!("tls:{name}").as_bytes(), field.as_bytes(), value]]);
    }

    pub fn command(&self, words: &[&str]) {
        redis(&self.stack.master, words);
    }

    pub fn serves(&self, name: &str, pair: &Pair) -> bool {
        shown(&self.authority, self.address(), name) == Some(pair.der())
    }

    pub fn wait_for(&self, name: &str, pair: &Pair) {
        wait_until(&format!("{name} is served with its new pair"), || self.serves(name, pair));
    }

    pub fn wait_for_none(&self, name: &str) {
        wait_until(&format!("{name} is not served"), || shown(&self.authority, self.address(), name).is_none());
    }

    /// Waits until all certificates that the master was told of so far are dealt with, and the log of it is here: the last is
    /// in service, and on a line of its own unless it was one of many.
    pub fn settle(&self) {
        let sign = format!("sign-{}.site.test", self.signs.fetch_add(1, Ordering::Relaxed));
        self.install(&sign);
        self.stack.planb.wait_for_log(&sign);
    }

    pub fn loaded(&self) -> u64 {
        self.stack.planb.count("planb_tls_certificates_loaded_total")
    }

    pub fn refused(&self) -> u64 {
        self.stack.planb.count("planb_tls_certificates_refused_total")
    }

    /// How many lines of the log say that this name's certificate cannot be served.
    pub fn complaints(&self, name: &str) -> usize {
        let name = format!("certificate=\"tls:{name}\"");
        let lines = self.stack.planb.log();
        lines.iter().filter(|line| line.contains("cannot be served") && line.contains(&name)).count()
    }

    /// The chain that `openssl` is shown, whatever it thinks of it.
    pub fn chain(&self, arguments: &[&str]) -> Vec<CertificateDer<'static>> {
        let said = s_client(self.address(), &[&["-showcerts"], arguments].concat(), "");
        CertificateDer::pem_slice_iter(said.as_bytes()).map(Result::unwrap).collect()
    }
}

/// The command that sets a key to a pair.
pub fn hset<'a>(key: &'a str, pair: &'a Pair) -> Vec<&'a [u8]> {
    ["HSET", key, "certificate", &pair.certificate, "key", &pair.key].map(str::as_bytes).to_vec()
}

#[test]
fn the_most_specific_name_answers_in_any_case() {
    let secure = Secure::start();
    let [exact, parent, any] = ["Exact.Site.Test", "*.SITE.TEST", "*"].map(|name| {
        let pair = secure.issue();
        pair.install(&secure.stack.master, name);
        pair
    });
    secure.settle();
    let answers = |name: &str, pair: &Pair| {
        let arguments = if name.is_empty() { vec!["-noservername"] } else { vec!["-servername", name] };
        assert_eq!(secure.chain(&arguments), [pair.der()], "{name}");
    };
    for name in ["exact.site.test", "EXACT.SITE.TEST", "exact.site.test."] {
        answers(name, &exact);
    }
    answers("oTHer.sIte.tEst", &parent);
    for name in ["deep.other.site.test", "site.test", "127.0.0.1", ""] {
        answers(name, &any);
    }
    secure.command(&["DEL", "tls:Exact.Site.Test"]);
    secure.settle();
    answers("exact.site.test", &parent);
    secure.command(&["DEL", "tls:*.SITE.TEST"]);
    secure.settle();
    answers("exact.site.test", &any);
    secure.command(&["DEL", "tls:*"]);
    secure.wait_for_none("exact.site.test");
    assert!(secure.chain(&["-noservername"]).is_empty());
}

#[test]
fn a_rotation_in_one_command_is_live() {
    let secure = Secure::start();
    secure.install(NAME);
    assert_eq!(secure.loaded(), 1);
    let new = secure.install(NAME);
    assert_eq!((secure.loaded(), secure.refused()), (2, 0));
    // The same again is no news.
    new.install(&secure.stack.master, NAME);
    secure.settle();
    assert_eq!(secure.loaded(), 3, "two pairs and a sign");
}

#[test]
fn a_rotation_in_two_commands_keeps_the_previous_pair_in_between() {
    let secure = Secure::start();
    let mut old = secure.install(NAME);
    for (round, is_key_first) in [(1, false), (2, true)] {
        let new = secure.issue();
        let mut halves = [("certificate", &new.certificate), ("key", &new.key)];
        if is_key_first {
            halves.reverse();
        }
        for _ in 0..3 {
            secure.set(NAME, halves[0].0, halves[0].1.as_bytes());
            secure.settle();
        }
        assert!(secure.serves(NAME, &old));
        assert_eq!((secure.complaints(NAME), secure.refused()), (round, round as u64));
        secure.set(NAME, halves[1].0, halves[1].1.as_bytes());
        secure.wait_for(NAME, &new);
        old = new;
    }
    for (round, field) in [(3, "certificate"), (4, "key")] {
        secure.command(&["HDEL", &format!("tls:{NAME}"), field]);
        secure.settle();
        assert!(secure.serves(NAME, &old));
        assert_eq!((secure.complaints(NAME), secure.refused()), (round, round as u64));
        old.install(&secure.stack.master, NAME);
        secure.settle();
    }
    secure.command(&["HDEL", &format!("tls:{NAME}"), "key"]);
    secure.command(&["HDEL", &format!("tls:{NAME}"), "certificate"]);
    secure.wait_for_none(NAME);
}

#[test]
fn a_key_that_goes_takes_its_certificate_along() {
    let secure = Secure::start();
    let still = secure.install("still.site.test");
    for words in [
        &["DEL", "tls:gone.site.test"][..],
        &["UNLINK", "tls:gone.site.test"],
        &["PEXPIRE", "tls:gone.site.test", "1"],
        &["EXPIREAT", "tls:gone.site.test", "1"],
        &["RENAME", "tls:gone.site.test", "elsewhere"],
        &["MOVE", "tls:gone.site.test", "1"],
        &["HDEL", "tls:gone.site.test", "certificate", "key"],
    ] {
        secure.install("gone.site.test");
        secure.command(words);
        secure.wait_for_none("gone.site.test");
    }
    let moved = secure.install("gone.site.test");
    secure.command(&["RENAME", "tls:gone.site.test", "tls:there.site.test"]);
    secure.wait_for("there.site.test", &moved);
    secure.wait_for_none("gone.site.test");
    assert!(secure.serves("still.site.test", &still));
    assert_eq!((secure.refused(), secure.stack.planb.count("planb_sync_resyncs_total")), (0, 0));

    secure.command(&["FLUSHDB"]);
    secure.wait_for_none("still.site.test");
    secure.wait_for_none("there.site.test");
}

#[test]
fn a_key_of_another_type_leaves_the_last_certificate_in_service() {
    let secure = Secure::start();
    let (pair, other) = (secure.install(NAME), secure.install("other.site.test"));
    secure.command(&["SET", &format!("tls:{NAME}"), "junk"]);
    secure.command(&["RPUSH", "tls:list.site.test", "junk"]);
    secure.settle();
    assert!(secure.serves(NAME, &pair) && secure.serves("other.site.test", &other));
    assert_eq!((secure.complaints(NAME), secure.complaints("list.site.test"), secure.refused()), (1, 1, 2));
    // It also counts after everything was loaded again, with such keys among the others.
    redis(&secure.stack.replica, &["CLIENT", "KILL", "TYPE", "pubsub"]);
    wait_until("the table is loaded again", || secure.stack.planb.count("planb_sync_resyncs_total") == 1);
    secure.settle();
    assert!(secure.serves(NAME, &pair) && secure.serves("other.site.test", &other));
    assert_eq!(secure.refused(), 2);
    secure.command(&["DEL", &format!("tls:{NAME}")]);
    secure.wait_for_none(NAME);
}

#[test]
fn what_changes_while_redis_is_out_of_reach_is_served_afterwards() {
    let mut secure = Secure::start();
    let resyncs = |secure: &Secure| secure.stack.planb.count("planb_sync_resyncs_total");
    for kind in ["pubsub", "normal"] {
        let (before, _) = (resyncs(&secure), secure.install("gone.site.test"));
        let old = secure.install(NAME);
        redis(&secure.stack.replica, &["CLIENT", "KILL", "TYPE", kind]);
        let new = secure.issue();
        new.install(&secure.stack.master, NAME);
        secure.command(&["DEL", "tls:gone.site.test"]);
        wait_until("the new pair is served", || {
            let shown = shown(&secure.authority, secure.address(), NAME);
            assert!(shown == Some(old.der()) || shown == Some(new.der()), "{kind}");
            shown == Some(new.der())
        });
        secure.wait_for_none("gone.site.test");
        wait_until("everything is loaded again", || resyncs(&secure) > before);
    }

    let (old, _) = (secure.install(NAME), secure.install("gone.site.test"));
    signal(secure.stack.replica.pid(), "STOP");
    let new = secure.issue();
    new.install(&secure.stack.master, NAME);
    secure.command(&["DEL", "tls:gone.site.test"]);
    wait_until("the loss is noticed", || secure.stack.planb.count("planb_sync_connected") == 0);
    assert!(secure.serves(NAME, &old));
    signal(secure.stack.replica.pid(), "CONT");
    secure.wait_for(NAME, &new);
    secure.wait_for_none("gone.site.test");

    let old = secure.install("gone.site.test");
    secure.stack.replica.kill();
    let newest = secure.issue();
    newest.install(&secure.stack.master, NAME);
    secure.command(&["DEL", "tls:gone.site.test"]);
    assert!(secure.serves(NAME, &new) && secure.serves("gone.site.test", &old));
    let port = secure.stack.master.port().to_string();
    let arguments = ["--replicaof", "127.0.0.1", &port, "--notify-keyspace-events", "KA"];
    secure.stack.replica.restart(&arguments).unwrap();
    // It returns without data at first; no client may notice that.
    wait_until("the newest pair is served", || {
        let shown = shown(&secure.authority, secure.address(), NAME).unwrap();
        shown == newest.der()
    });
    secure.wait_for_none("gone.site.test");
    secure.settle();
}

#[test]
fn certificates_arrive_without_notifications_too() {
    let secure = Secure::start();
    redis(&secure.stack.replica, &["CONFIG", "SET", "notify-keyspace-events", "KE"]);
    secure.stack.planb.wait_for_log("keyspace notifications are off");
    secure.install(NAME);
    secure.command(&["DEL", &format!("tls:{NAME}")]);
    secure.wait_for_none(NAME);
    assert_eq!(secure.stack.planb.count("planb_sync_drift_total"), 0);
}

#[test]
fn no_client_notices_a_hundred_rotations() {
    const ROTATIONS: usize = 120;
    let secure = Secure::start();
    let backend = Backend::named("here");
    secure.stack.list(NAME, &[&backend.url()]);
    secure.install(NAME);
    let (is_over, handshakes, requests) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut config = rustls::ClientConfig::clone(&secure.authority.client(&["http/1.1"]));
    config.resumption = Resumption::disabled();
    let config = std::sync::Arc::new(config);
    let connect = || connect_tls(&config, secure.address(), NAME).unwrap();
    let last = thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    assert_eq!(connect().conn.handshake_kind(), Some(rustls::HandshakeKind::Full));
                    handshakes.fetch_add(1, Ordering::Relaxed);
                }
            });
            scope.spawn(|| {
                let mut stream = connect();
                let request = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
                while !is_over.load(Ordering::Relaxed) {
                    stream.write_all(request.as_bytes()).unwrap();
                    let mut response = Vec::new();
                    while !response.ends_with(b"\r\n\r\nhere") {
                        let mut bytes = [0; 1024];
                        let count = stream.read(&mut bytes).unwrap();
                        assert!(count > 0, "{}", String::from_utf8_lossy(&response));
                        response.extend_from_slice(&bytes[..count]);
                    }
                    assert!(response.starts_with(b"HTTP/1.1 200 "));
                    requests.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let last = scope.spawn(|| rotate(&secure, ROTATIONS)).join();
        is_over.store(true, Ordering::Relaxed);
        last.unwrap()
    });
    assert!(secure.serves(NAME, &last));
    let (handshakes, requests) = (handshakes.into_inner(), requests.into_inner());
    assert!(handshakes > ROTATIONS && requests > ROTATIONS, "{handshakes} handshakes, {requests} requests");
}

/// Replaces the pair of [`NAME`] again and again, in all ways that people do it, and returns the last when it is served.
fn rotate(secure: &Secure, rotations: usize) -> Pair {
    let key = format!("tls:{NAME}");
    let mut last = None;
    for round in 0..rotations {
        let pair = secure.issue();
        match round % 4 {
            0 => pair.install(&secure.stack.master, NAME),
            1 => {
                secure.set(NAME, "certificate", pair.certificate.as_bytes());
                secure.set(NAME, "key", pair.key.as_bytes());
            }
            2 => {
                secure.set(NAME, "key", pair.key.as_bytes());
                secure.set(NAME, "certificate", pair.certificate.as_bytes());
            }
            _ => {
                let hset = ["HSET", &key, "key", &pair.key, "certificate", &pair.certificate];
                let commands = [&["MULTI"][..], &["DEL", &key], &hset, &["EXEC"]];
                let commands = commands.map(|words| words.iter().map(|word| word.as_bytes()).collect());
                redis_pipe(&secure.stack.master, &commands);
            }
        }
        if round % 10 == 9 {
            secure.wait_for(NAME, &pair);
        }
        last = Some(pair);
    }
    let last = last.unwrap();
    secure.wait_for(NAME, &last);
    last
}

#[test]
fn a_name_that_has_a_certificate_before_and_after_is_served_in_between() {
    let secure = Secure::start();
    let [exact, wildcard] = ["tls:a.site.test", "tls:*.site.test"];
    secure.install("a.site.test");
    let config = secure.authority.client(&[]);
    for (old, new) in [(exact, wildcard), (wildcard, exact)].into_iter().cycle().take(100) {
        let pair = secure.issue();
        redis_pipe(
            &secure.stack.master,
            &[vec![b"MULTI"], vec![b"DEL", old.as_bytes()], hset(new, &pair), vec![b"EXEC"]],
        );
        wait_until("the change is seen", || {
            let stream = connect_tls(&config, secure.address(), "a.site.test").unwrap();
            stream.conn.peer_certificates().unwrap()[0] == pair.der()
        });
    }
}

#[test]
fn the_end_of_validity_is_measured_and_warned_of() {
    const DAY: f64 = 86_400.0;
    let secure = Secure::start();
    let planb = &secure.stack.planb;
    assert!(planb.metric("planb_tls_soonest_expiry_seconds").is_infinite());
    let days = [("far.site.test", 90.0), ("late.site.test", 14.1), ("soon.site.test", 13.9), ("over.site.test", -1.0)];
    for (count, (name, left)) in (1..).zip(days) {
        let pair = secure.authority.issue_with(&["*.site.test"], &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
            let now = SystemTime::now();
            let until = Duration::from_secs_f64(f64::abs(left) * DAY);
            params.not_after = if left < 0.0 { now - until } else { now + until }.into();
        });
        pair.install(&secure.stack.master, name);
        wait_until("it is counted", || planb.count("planb_tls_certificates") == count);
        let soonest = planb.metric("planb_tls_soonest_expiry_seconds");
        assert!((soonest - left * DAY).abs() < 60.0, "{name}: {soonest}");
        wait_until("it is served, whatever its age", || secure.chain(&["-servername", name]) == [pair.der()]);
    }
    let lines = |name: &str| -> Vec<String> {
        let about = |line: &String| line.contains(name) && line.contains("a certificate expire");
        planb.log().into_iter().filter(about).collect()
    };
    wait_until("the last is warned of", || !lines("over.site.test").is_empty());
    secure.command(&["DEL", "tls:over.site.test"]);
    wait_until("one fewer is counted", || planb.count("planb_tls_certificates") == 3);
    assert!((planb.metric("planb_tls_soonest_expiry_seconds") - 13.9 * DAY).abs() < 60.0);
    assert_eq!((lines("far.site.test").len(), lines("late.site.test").len()), (0, 0), "{:?}", planb.log());
    let (soon, over) = (lines("soon.site.test"), lines("over.site.test"));
    assert!(soon.len() == 1 && soon[0].contains("WARN") && soon[0].contains("expires on 20"), "{soon:?}");
    assert!(over.len() == 1 && over[0].contains("WARN") && over[0].contains("expired on 20"), "{over:?}");
}

#[test]
fn two_thousand_certificates_are_there_before_the_port_is() {
    let (master, replica) = redis_pair();
    let authority = Authority::new();
    let pair = authority.issue(&["*.site.test"]);
    let keys: Vec<String> = (0..2_000).map(|number| format!("tls:n{number}.site.test")).collect();
    redis_pipe(&master, &keys.iter().map(|key| hset(key, &pair)).collect::<Vec<_>>());
    redis_pipe(&master, &[vec![b"HSET", b"tls:bad.site.test", b"certificate", b"junk"]]);
    master.wait_for_replica(&replica).unwrap();
    // A socket that shares the proxy's address, but never listens, tells the port before the proxy does.
    let guard = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    guard.set_reuse_address(true).unwrap();
    guard.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = guard.local_addr().unwrap().as_socket().unwrap();
    let mut planb = Planb::builder(&replica, &master).arguments(&[&format!("--tls-listen={address}")]).spawn();
    let config = authority.client(&[]);
    wait_until("the port is there", || match connect_tls(&config, address, "n1999.site.test") {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => false,
        result => result.map(|stream| stream.conn.peer_certificates().unwrap()[0] == pair.der()).unwrap(),
    });
    planb.wait_until_listening();
    for key in keys.iter().step_by(7) {
        assert!(connect_tls(&config, address, key.trim_start_matches("tls:")).is_ok(), "{key}");
    }
    assert_eq!(planb.count("planb_tls_certificates_loaded_total"), 2_000);
    assert_eq!(planb.count("planb_tls_certificates_refused_total"), 1);
    wait_until("they are counted", || planb.count("planb_tls_certificates") == 2_000);
}
