//! Values in Redis that cannot be routes: they are logged and counted, and harm no other frontend.

use std::sync::atomic::{AtomicU64, Ordering};

use super::support::{Backend, Planb, Stack, redis_pipe};

#[test]
fn keys_of_other_types_harm_only_their_own_frontend() {
    let junk = Junk::start();
    junk.edit(&["SET", "frontend:string.test", "junk"]);
    junk.edit(&["SADD", "frontend:set.test", "junk"]);
    junk.edit(&["HSET", "frontend:hash.test", "junk", "junk"]);
    junk.edit(&["ZADD", "frontend:sorted.test", "1", "junk"]);
    junk.edit(&["XADD", "frontend:stream.test", "*", "junk", "junk"]);
    for host in ["string", "set", "hash", "sorted", "stream"] {
        assert_eq!(junk.stack.planb.ask(&format!("{host}.test")), "no such route");
        assert_eq!(junk.complaints(&format!("{host}.test")), 1, "{host}");
    }
    assert_eq!(junk.count(), 5);
    // A second write of the same kind is neither news nor counted again.
    junk.edit(&["SET", "frontend:string.test", "more"]);
    assert_eq!((junk.complaints("string.test"), junk.count()), (1, 5));
    junk.edit(&["DEL", "frontend:string.test"]);
    junk.edit(&["RPUSH", "frontend:string.test", "id", &junk.good.url()]);
    assert_eq!(junk.stack.planb.ask("string.test"), "good");
    junk.others_are_unharmed();
}

#[test]
fn urls_that_are_none_are_skipped_beside_good_ones() {
    let junk = Junk::start();
    let good = junk.good.url();
    junk.pipe(&[&["RPUSH", "frontend:urls.test", "id", "", "ftp://x", "http://", &good, "http://a b", "http://x:0"]]);
    junk.pipe(&[&["RPUSH", "frontend:bare.test", "id", "http://:80", "http://x:99999", "\r\n"]]);
    junk.stack.settle();
    assert_eq!([(); 3].map(|()| junk.stack.planb.ask("urls.test")), ["good", "good", "good"]);
    assert_eq!(junk.stack.planb.ask("bare.test"), "no such route");
    assert_eq!(junk.count(), 8);
    assert_eq!((junk.complaints("urls.test"), junk.complaints("bare.test")), (1, 1));
    junk.others_are_unharmed();
}

#[test]
fn bytes_that_are_no_text_harm_nothing() {
    let junk = Junk::start();
    let good = junk.good.url();
    redis_pipe(
        &junk.stack.master,
        &[
            vec![b"RPUSH", b"frontend:\xff\xfe\x00.test", b"id", good.as_bytes()],
            vec![b"SADD", b"dead:\xff\xfe", b"0"],
            vec![b"SET", b"frontend:\xff", b"\xff"],
            vec![b"RPUSH", b"frontend:elements.test", b"\xff\x00", b"http://\xff\xfe", good.as_bytes(), b"\x00"],
            vec![b"SADD", b"dead:elements.test", b"\xff", b"\x00"],
            vec![b"PUBLISH", b"dead", b"\xff;\xfe;0;1"],
            vec![b"PUBLISH", b"dead", b"\x00"],
            vec![b"PUBLISH", b"dead", b""],
            vec![b"PUBLISH", b"dead", b"elements.test;http://127.0.0.1:1;18446744073709551615;18446744073709551615"],
        ],
    );
    junk.stack.settle();
    assert_eq!(junk.stack.planb.ask("elements.test"), "good");
    assert_eq!(junk.complaints("elements.test"), 1);
    // Two elements and three messages; the set's members count only where they are read together with the list.
    assert!(junk.count() >= 5, "{}", junk.count());
    junk.others_are_unharmed();
    // What was loaded by event loads by scan as well.
    let late = Planb::builder(&junk.stack.replica, &junk.stack.master).start();
    assert_eq!((late.ask("elements.test"), late.ask("other.test")), ("good".into(), "good".into()));
}

#[test]
fn values_that_look_like_the_messages_of_a_subscription_are_mere_values() {
    let junk = Junk::start();
    let good = junk.good.url();
    // In the protocol's second version a message is an array like any other, told only by its first elements.
    junk.pipe(&[
        &["RPUSH", "frontend:message.test", "message", &good, &good],
        &["RPUSH", "frontend:pmessage.test", "pmessage", &good, &good, &good],
        &["RPUSH", "frontend:smessage.test", "smessage", &good, &good],
        &["RPUSH", "frontend:subscribe.test", "subscribe", &good, &good],
        &["RPUSH", "frontend:pubsub.test", "pubsub", "message", &good, &good],
        &["SADD", "dead:message.test", "message", "x", "y"],
        &["SET", "frontend:string.test", "message"],
    ]);
    let late = Planb::builder(&junk.stack.replica, &junk.stack.master).start();
    junk.stack.settle();
    for host in ["message", "pmessage", "smessage", "subscribe", "pubsub"] {
        let host = format!("{host}.test");
        assert_eq!((junk.stack.planb.ask(&host), late.ask(&host)), ("good".into(), "good".into()), "{host}");
    }
    junk.others_are_unharmed();
}

#[test]
fn values_of_a_megabyte_are_logged_in_one_short_line() {
    let junk = Junk::start();
    let (name, good) = ("x".repeat(1 << 20), junk.good.url());
    let url = format!("ftp://{name}");
    junk.pipe(&[
        &["RPUSH", "frontend:huge.test", &name, &url, &good],
        &["SADD", "dead:huge.test", &name],
        &["PUBLISH", "dead", &name],
        &["RPUSH", &format!("frontend:{name}"), "id", &good],
        &["RPUSH", &format!("frontend:y{name}"), "id", "ftp://x"],
    ]);
    junk.stack.settle();
    assert_eq!(junk.stack.planb.ask("huge.test"), "good");
    assert_eq!(junk.complaints("huge.test"), 1);
    let longest = junk.stack.planb.log().iter().map(String::len).max();
    assert!(longest < Some(1_000), "a line of {longest:?} bytes was logged");
    junk.others_are_unharmed();
}

#[test]
fn a_list_of_twenty_thousand_backends_is_served() {
    let junk = Junk::start();
    let good = junk.good.url();
    let (paths, nonsense): (Vec<String>, Vec<String>) =
        (0..MANY).map(|number| (format!("{good}/{number}"), format!("junk {number}"))).unzip();
    let list = |host: &'static str, urls: &'_ [String]| -> Vec<String> {
        [host, "id"].map(str::to_owned).into_iter().chain(urls.iter().cloned()).collect()
    };
    for (key, urls) in [("frontend:many.test", &paths), ("frontend:nonsense.test", &nonsense)] {
        let words: Vec<String> = [vec!["RPUSH".to_owned()], list(key, urls)].concat();
        redis_pipe(&junk.stack.master, &[words.iter().map(String::as_bytes).collect()]);
    }
    junk.stack.settle();
    assert_eq!(junk.stack.planb.ask("many.test"), "good");
    assert_eq!(junk.stack.planb.ask("nonsense.test"), "no such route");
    assert_eq!((junk.complaints("nonsense.test"), junk.count()), (1, MANY));
    junk.edit(&["RPUSH", "frontend:nonsense.test", &good]);
    assert_eq!(junk.stack.planb.ask("nonsense.test"), "good");
    assert_eq!(junk.complaints("nonsense.test"), 1);
    junk.others_are_unharmed();
}

/// A stack with a well-formed frontend beside which the junk is put.
struct Junk {
    stack: Stack,
    good: Backend,
    provoked: AtomicU64,
}

impl Junk {
    fn start() -> Self {
        let junk = Self { stack: Stack::start(&[]), good: Backend::named("good"), provoked: AtomicU64::new(0) };
        junk.stack.route("other.test", &[&junk.good]);
        junk
    }

    fn edit(&self, words: &[&str]) {
        self.stack.edit(words);
    }

    fn pipe(&self, commands: &[&[&str]]) {
        let bytes: Vec<Vec<&[u8]>> =
            commands.iter().map(|words| words.iter().map(|word| word.as_bytes()).collect()).collect();
        redis_pipe(&self.stack.master, &bytes);
    }

    /// How many lines complain of this host.
    fn complaints(&self, host: &str) -> usize {
        // The log keeps its order, so that a complaint provoked now comes after all that are of interest.
        let last = format!("last{}.test", self.provoked.fetch_add(1, Ordering::Relaxed));
        self.edit(&["SET", &format!("frontend:{last}"), "junk"]);
        self.stack.planb.wait_for_log(&last);
        let wanted = format!("\"{host}\"");
        let log = self.stack.planb.log();
        log.iter().filter(|line| line.contains("malformed") && line.contains(&wanted)).count()
    }

    /// How many malformed values were counted, those that [`Junk::complaints`] provoked aside.
    fn count(&self) -> u64 {
        self.stack.planb.count("planb_sync_malformed_total") - self.provoked.load(Ordering::Relaxed)
    }

    /// The other frontend is served and can be edited, in the very session in which the junk arrived.
    fn others_are_unharmed(&self) {
        assert_eq!(self.stack.planb.ask("other.test"), "good");
        let new = Backend::named("new");
        self.edit(&["LSET", "frontend:other.test", "1", &new.url()]);
        assert_eq!(self.stack.planb.ask("other.test"), "new");
        self.edit(&["LSET", "frontend:other.test", "1", &self.good.url()]);
        for (name, value) in
            [("planb_sync_resyncs_total", 0), ("planb_sync_drift_total", 0), ("planb_sync_connected", 1)]
        {
            assert_eq!(self.stack.planb.count(name), value, "{name}");
        }
    }
}

const MANY: u64 = 20_000;
