//! Instances of different flags beside Hipache and the original PlanB, which are played from what they are recorded to say to
//! Redis (`originals.txt`): no mark is lost, and none stays.

use std::{
    io::{BufRead, BufReader, Lines, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::support::{
    Backend, PATIENCE, Planb, PrivateRedis, closed_port, redis, redis_cli, redis_pair, redis_pipe, replica_of,
    wait_until,
};

const ORIGINALS: &str = include_str!("originals.txt");

/// A master and two replicas; two instances that check dead backends, and two that do not.
struct Fleet {
    master: PrivateRedis,
    replicas: [PrivateRedis; 2],
    checking: [Planb; 2],
    passive: [Planb; 2],
    good: Backend,
}

/// A backend of a host, and how it is spelled by whom.
struct Mark<'a> {
    host: &'a str,
    /// The list element, to the byte.
    url: &'a str,
    /// What was heard of it.
    heard: &'a str,
    index: usize,
}

impl Fleet {
    fn start() -> Self {
        let (master, replica) = redis_pair();
        redis(&master, &["CONFIG", "SET", "notify-keyspace-events", "KA"]);
        let other = replica_of(&master);
        let start = |read: &PrivateRedis, flags: &[&str]| Planb::builder(read, &master).arguments(flags).start();
        let checking = [
            start(&replica, &["--active-healthcheck", "--hostname=one"]),
            start(&other, &["--active-healthcheck", "--hostname=two", "--dead-backend-time=7"]),
        ];
        for planb in &checking {
            planb.wait_for_log("dead backends are checked");
        }
        let passive = [start(&master, &["--dead-backend-time=600"]), start(&other, &["--hostname=three"])];
        Self { master, replicas: [replica, other], checking, passive, good: Backend::named("good") }
    }

    fn instances(&self) -> impl Iterator<Item = &Planb> {
        self.checking.iter().chain(&self.passive)
    }

    /// Writes a host's list, of which each element may have any bytes, and waits until everybody has it.
    fn list(&self, host: &str, urls: &[&str]) {
        let key = format!("frontend:{host}");
        let words = [&["RPUSH", &key, "id"], urls].concat();
        redis_pipe(&self.master, &[words.iter().map(|word| word.as_bytes()).collect()]);
        self.settle();
    }

    /// Waits until every instance has taken in what the master was told so far.
    fn settle(&self) {
        let host = format!("sign-{}.test", fastrand::u64(..));
        redis(&self.master, &["RPUSH", &format!("frontend:{host}"), "id", &self.good.url()]);
        for planb in self.instances() {
            planb.wait_for_route(&host);
        }
    }

    /// Says what an original says.
    fn play(&self, what: &str, mark: &Mark<'_>) {
        let (index, heard) = (mark.index.to_string(), mark.heard);
        let href = href(mark.url);
        let fill = |word: &str| {
            let replaced = word.replace("{host}", mark.host).replace("{url}", mark.url).replace("{href}", &href);
            let replaced = replaced.replace("{heard}", heard).replace("{index}", &index).replace("{ttl}", "30");
            replaced.replace("{backends}", "2").replace("{machine}", "go-planb").into_bytes()
        };
        let commands: Vec<Vec<Vec<u8>>> = lines_of(what).map(|line| line.split(' ').map(fill).collect()).collect();
        assert!(!commands.is_empty(), "there is no record of how {what}");
        let commands: Vec<Vec<&[u8]>> =
            commands.iter().map(|words| words.iter().map(Vec::as_slice).collect()).collect();
        redis_pipe(&self.master, &commands);
    }

    /// The indexes in a dead set, in order.
    fn dead(&self, host: &str) -> Vec<String> {
        let members = redis_cli(&self.master, &["SMEMBERS", &format!("dead:{host}")]);
        let mut members: Vec<String> = members.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
        members.sort();
        members
    }

    /// The keys of all leases of a host's backends.
    fn leases(&self, host: &str) -> Vec<String> {
        let keys = redis_cli(&self.master, &["KEYS", &format!("dead:{host}:*")]);
        keys.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    fn watched(&self) -> Vec<[u64; 2]> {
        let watched =
            |planb: &Planb| ["planb_health_watched", "planb_health_leases_held"].map(|name| planb.count(name));
        self.checking.iter().map(watched).collect()
    }

    /// Each instance is asked for both turns and more, and all that answer are good.
    fn only_good_answers(&self, host: &str) {
        for planb in self.instances() {
            assert_eq!([(); 4].map(|()| planb.ask(host)), ["good"; 4]);
        }
    }

    /// Waits until a backend is in rotation everywhere, and nothing is left of its mark.
    fn wait_for_revival(&self, host: &str) {
        wait_until("nothing is left of the mark", || self.dead(host).is_empty() && self.leases(host).is_empty());
        for planb in self.instances() {
            wait_until("both answer", || {
                let mut answers = [(); 4].map(|()| planb.ask(host));
                answers.sort();
                answers == ["good", "good", "well", "well"]
            });
        }
        wait_until("nothing is watched", || self.watched() == [[0, 0]; 2]);
    }
}

/// The commands of one recorded sequence.
fn lines_of(what: &str) -> impl Iterator<Item = &'static str> {
    let title = format!("[{what}]");
    let lines = ORIGINALS.lines().skip_while(move |line| *line != title).skip(1);
    lines.take_while(|line| !line.starts_with('[')).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// A URL as Node's `url.parse` writes it.
fn href(url: &str) -> String {
    let url = url.trim();
    if url.matches('/').count() == 2 { format!("{url}/") } else { url.to_owned() }
}

/// A backend that refuses its requests until it is cured, and then answers "well".
fn patient() -> (Backend, Arc<AtomicBool>) {
    let is_well = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&is_well);
    let backend = Backend::start(move |exchange| {
        let is_well = state.load(Ordering::SeqCst);
        if is_well {
            exchange.answer("200 OK", "", b"well");
        }
        is_well
    });
    (backend, is_well)
}

/// What is published on the channel `dead` from now on.
fn notices(server: &PrivateRedis) -> Lines<BufReader<TcpStream>> {
    let mut channel = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    channel.set_read_timeout(Some(PATIENCE)).unwrap();
    channel.write_all(b"SUBSCRIBE dead\r\n").unwrap();
    let mut lines = BufReader::new(channel).lines();
    assert_eq!(lines.by_ref().map_while(Result::ok).take(6).last().as_deref(), Some(":1"));
    lines
}

#[test]
fn a_mark_stands_for_as_long_as_its_backend_is_sick_however_it_is_spelled() {
    let fleet = Fleet::start();
    for (number, original) in
        ["hipache marks", "planb marks", "hipache marks", "hipache marks", "planb marks"].iter().enumerate()
    {
        let (sick, is_well) = patient();
        let host = format!("spelled{number}.test");
        let url = match number {
            0 | 1 => sick.url(),
            2 => format!("{}/\n", sick.url()),
            3 => format!("{}/base", sick.url()),
            _ => format!(" {}", sick.address()),
        };
        fleet.list(&host, &[&url, &fleet.good.url()]);
        fleet.play(original, &Mark { host: &host, url: &url, heard: "", index: 0 });
        wait_until("it was checked again and again", || {
            assert_eq!(fleet.dead(&host), ["0"], "{original} {url:?}");
            sick.requests().len() >= 4
        });
        fleet.only_good_answers(&host);
        let lease = format!("dead:{host}:{}", url.trim());
        assert!(!redis_cli(&fleet.master, &["GET", &lease]).is_empty(), "nobody holds {lease}");
        let mut held: Vec<_> = fleet.watched();
        held.sort_unstable();
        assert_eq!(held, [[1, 0], [1, 1]], "one checks and the other stands by");
        let is_check = |head: &String| head.contains("planb-healthcheck/");
        assert!(sick.requests().iter().all(is_check), "nobody but the check has asked it");
        is_well.store(true, Ordering::SeqCst);
        fleet.wait_for_revival(&host);
    }
}

#[test]
fn a_lease_of_the_original_s_is_respected_under_whatever_it_heard() {
    let fleet = Fleet::start();
    for (number, suffix) in ["", "\n", "/"].iter().enumerate() {
        let (sick, is_well) = patient();
        let (host, url) = (format!("leased{number}.test"), format!("{}{suffix}", sick.url()));
        // In the end the list has a slash, and the original has heard of Hipache's mark. Else it has heard of its own.
        let heard = if *suffix == "/" { href(&url) } else { url.clone() };
        let mark = Mark { host: &host, url: &url, heard: &heard, index: 0 };
        fleet.list(&host, &[&url, &fleet.good.url()]);
        fleet.play("planb reserves", &mark);
        fleet.play(if *suffix == "/" { "hipache marks" } else { "planb marks" }, &mark);
        wait_until("both stand by", || fleet.watched() == [[1, 0]; 2]);
        for _ in 0..3 {
            fleet.play("planb reserves", &mark);
            fleet.play("planb finds it sick", &mark);
            fleet.settle();
            fleet.only_good_answers(&host);
        }
        assert_eq!((sick.requests().len(), fleet.watched()), (0, vec![[1, 0]; 2]), "{url:?}");
        is_well.store(true, Ordering::SeqCst);
        fleet.play("planb finds it well", &mark);
        fleet.play("planb lets go", &mark);
        fleet.wait_for_revival(&host);
    }
}

#[test]
fn what_the_original_heard_of_hipache_and_lets_go_of_is_taken_over() {
    let fleet = Fleet::start();
    let (sick, is_well) = patient();
    let (host, url) = ("handed.test", sick.url());
    let mark = Mark { host, url: &url, heard: &href(&url), index: 0 };
    fleet.list(host, &[&url, &fleet.good.url()]);
    fleet.play("planb reserves", &mark);
    fleet.play("hipache marks", &mark);
    wait_until("both stand by", || fleet.watched() == [[1, 0]; 2]);
    assert_eq!(sick.requests().len(), 0);
    // The list has no slash, and so the original is not concerned.
    fleet.play("planb lets go", &mark);
    wait_until("one of ours checks it", || {
        assert_eq!(fleet.dead(host), ["0"]);
        sick.requests().len() >= 2
    });
    fleet.only_good_answers(host);
    is_well.store(true, Ordering::SeqCst);
    fleet.wait_for_revival(host);
}

#[test]
fn what_the_list_does_not_have_is_left_alone() {
    let fleet = Fleet::start();
    let (_socket, refusing) = closed_port();
    let url = fleet.good.url();
    fleet.list("other.test", &["http://127.0.0.1:9", &url]);
    fleet.list("*.wild.test", &[&refusing, &url]);
    let marks = [
        // Another backend; another port; another scheme; and of a wildcard's host, which is Hipache's own.
        ("other.test", "http://127.0.0.9:9"),
        ("other.test", "http://127.0.0.1:99"),
        ("other.test", "https://127.0.0.1:9"),
        ("x.wild.test", refusing.as_str()),
    ];
    for (host, url) in marks {
        fleet.play("hipache marks", &Mark { host, url, heard: "", index: 1 });
        fleet.settle();
    }
    for planb in &fleet.checking {
        let ended = |host: &str| {
            planb.log().iter().filter(|line| line.contains("not listed any more") && line.contains(host)).count()
        };
        wait_until("each watch has ended", || (ended("other.test"), ended("x.wild.test")) == (3, 1));
    }
    assert_eq!((fleet.dead("other.test"), fleet.dead("x.wild.test")), (vec!["1".to_owned()], vec!["1".to_owned()]));
    assert_eq!(fleet.leases("other.test").len() + fleet.leases("x.wild.test").len(), 0);
    assert_eq!(redis_cli(&fleet.master, &["DEL", "dead:other.test"]), "1");
}

#[test]
fn a_mark_follows_its_backend_through_other_spellings_and_places() {
    let fleet = Fleet::start();
    let (sick, is_well) = patient();
    let (host, list, url) = ("respelled.test", "frontend:respelled.test", sick.url());
    fleet.list(host, &[&url, &fleet.good.url()]);
    fleet.play("hipache marks", &Mark { host, url: &url, heard: "", index: 0 });
    wait_until("it is checked", || !sick.requests().is_empty());
    let slashed = format!("{url}/");
    redis(&fleet.master, &["LSET", list, "1", &slashed]);
    let lease = |url: &str| format!("dead:{host}:{url}");
    wait_until("the lease has the list's spelling", || fleet.leases(host) == [lease(&slashed)]);
    fleet.only_good_answers(host);
    assert_eq!(fleet.dead(host), ["0"]);
    // Two spellings are one backend, which is dead in both places.
    let address = sick.address().to_string();
    redis(&fleet.master, &["RPUSH", list, &address]);
    wait_until("both places are marked", || fleet.dead(host) == ["0", "2"]);
    fleet.only_good_answers(host);
    redis(&fleet.master, &["LREM", list, "0", &slashed]);
    wait_until("the mark is where the other spelling is", || {
        fleet.dead(host) == ["1"] && fleet.leases(host) == [lease(&address)]
    });
    fleet.settle();
    fleet.only_good_answers(host);
    is_well.store(true, Ordering::SeqCst);
    fleet.wait_for_revival(host);
}

#[test]
fn what_is_published_has_the_list_s_spelling_without_white_space() {
    let fleet = Fleet::start();
    let (socket, refusing) = closed_port();
    let host = "published.test";
    fleet.list(host, &[&format!("\t{refusing}/ \n"), &fleet.good.url()]);
    let mut lines = notices(&fleet.master).map_while(Result::ok);
    for planb in &fleet.passive {
        assert_eq!([planb.ask(host), planb.ask(host)], ["good", "good"]);
    }
    let notice = format!("{host};{refusing}/;0;2");
    assert!(lines.any(|line| line == notice), "nobody has published {notice}");
    wait_until("it is checked", || fleet.leases(host) == [format!("dead:{host}:{refusing}/")]);
    socket.listen(16).unwrap();
    let _well = Backend::start_on(socket.into(), |exchange| {
        exchange.answer("200 OK", "", b"well");
        true
    });
    fleet.wait_for_revival(host);
}

#[test]
fn marks_that_hipache_leaves_to_others_are_made_by_the_check() {
    let fleet = Fleet::start();
    let (sick, is_well) = patient();
    let (host, url) = ("left.test", sick.url());
    fleet.list(host, &[&fleet.good.url(), &url]);
    fleet.play("hipache announces", &Mark { host, url: &url, heard: "", index: 1 });
    wait_until("the check has marked it", || fleet.dead(host) == ["1"]);
    fleet.settle();
    fleet.only_good_answers(host);
    is_well.store(true, Ordering::SeqCst);
    fleet.wait_for_revival(host);
}

/// A host of the random walk: where its sick backend is in the list, and how it is spelled there.
struct Walker {
    host: String,
    sick: Backend,
    is_well: Arc<AtomicBool>,
    url: String,
    index: usize,
}

impl Walker {
    fn new(number: usize) -> Self {
        let (sick, is_well) = patient();
        Self { host: format!("walk{number}.test"), url: sick.url(), sick, is_well, index: 0 }
    }

    fn elements<'a>(&'a self, good: &'a str) -> [&'a str; 2] {
        if self.index == 0 { [&self.url, good] } else { [good, &self.url] }
    }

    /// Writes the list anew, in one step.
    fn rewrite(&self, fleet: &Fleet) {
        let (key, good) = (format!("frontend:{}", self.host), fleet.good.url());
        let [first, second] = self.elements(&good).map(str::as_bytes);
        let push = vec![&b"RPUSH"[..], key.as_bytes(), b"id", first, second];
        redis_pipe(&fleet.master, &[vec![b"MULTI"], vec![b"DEL", key.as_bytes()], push, vec![b"EXEC"]]);
    }

    fn mark(&self) -> Mark<'_> {
        Mark { host: &self.host, url: &self.url, heard: &self.url, index: self.index }
    }
}

#[test]
fn whatever_happens_marks_end_with_the_illness_and_not_before() {
    let mut fleet = Fleet::start();
    let mut random = fastrand::Rng::with_seed(7);
    let mut walkers = [0, 1, 2].map(Walker::new);
    for walker in &walkers {
        fleet.list(&walker.host, &walker.elements(&fleet.good.url()));
        fleet.play("hipache marks", &walker.mark());
    }
    for step in 0..30 {
        let walker = random.choice(&mut walkers).unwrap();
        let what = random.u8(..7);
        match what {
            0 => fleet.play("hipache marks", &walker.mark()),
            1 => fleet.play("planb marks", &walker.mark()),
            2 => ["planb reserves", "planb finds it sick", "planb lets go"]
                .iter()
                .for_each(|what| fleet.play(what, &walker.mark())),
            // A cache has kept an older list.
            3 => fleet.play("hipache marks", &Mark { index: 1 - walker.index, ..walker.mark() }),
            4 => {
                walker.index = 1 - walker.index;
                walker.rewrite(&fleet);
            }
            5 => {
                let address = walker.sick.address();
                let spellings = ["http://A/", "http://A", "A/base\n", " HTTP://A?q"];
                walker.url = random.choice(spellings).unwrap().replace('A', &address.to_string());
                walker.rewrite(&fleet);
            }
            _ => {
                let number = random.usize(..2);
                let hostname = format!("--hostname={}", ["one", "two"][number]);
                fleet.checking[number].signal("KILL");
                let planb = Planb::builder(&fleet.replicas[number], &fleet.master);
                fleet.checking[number] = planb.arguments(&["--active-healthcheck", &hostname]).start();
            }
        }
        let index = walker.index.to_string();
        wait_until(&format!("after step {step}, {what}, {} is marked", walker.url), || {
            fleet.dead(&walker.host) == [index.as_str()]
        });
        fleet.settle();
        fleet.only_good_answers(&walker.host);
    }
    for walker in &walkers {
        let is_check = |head: &String| head.contains("planb-healthcheck/");
        assert!(walker.sick.requests().iter().all(is_check), "nobody but the check has asked {}", walker.host);
        walker.is_well.store(true, Ordering::SeqCst);
    }
    for walker in &walkers {
        fleet.wait_for_revival(&walker.host);
    }
}
