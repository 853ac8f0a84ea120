//! A Redis server, or whoever sits on the way to it, that answers what no server should.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use super::support::{Backend, Planb, closed_port, redis, redis_cli, redis_pair, redis_pipe, wait_until};

/// Relays to a Redis server; of some commands, it answers the next itself.
struct Liar {
    port: u16,
    lie: Arc<Mutex<Option<Lie>>>,
}

struct Lie {
    /// What the command has in it that is not passed on.
    instead_of: String,
    answer: Vec<u8>,
    /// How often it has been told, and is to be told.
    told: usize,
    times: usize,
}

impl Liar {
    fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let lie = Arc::new(Mutex::new(None));
        let this = Self { port: listener.local_addr().unwrap().port(), lie: Arc::clone(&lie) };
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let (back, lie) = ((server.try_clone().unwrap(), client.try_clone().unwrap()), Arc::clone(&lie));
                thread::spawn(move || pass(back.0, &back.1, |_| None));
                thread::spawn(move || pass(client, &server, |asked| take_if_meant(&lie, asked)));
            }
        });
        this
    }

    fn lie_once(&self, instead_of: &str, answer: &[u8]) {
        self.lie(instead_of, answer, 1);
    }

    fn lie(&self, instead_of: &str, answer: &[u8], times: usize) {
        let (instead_of, answer) = (instead_of.to_owned(), answer.to_vec());
        *self.lie.lock().unwrap() = Some(Lie { instead_of, answer, told: 0, times });
    }

    fn has_lied(&self, times: usize) -> bool {
        self.lie.lock().unwrap().as_ref().is_some_and(|lie| lie.told >= times)
    }

    fn be_honest(&self) {
        *self.lie.lock().unwrap() = None;
    }
}

fn take_if_meant(lie: &Mutex<Option<Lie>>, asked: &[u8]) -> Option<Vec<u8>> {
    let mut lie = lie.lock().unwrap();
    let lie = lie.as_mut().filter(|lie| lie.told < lie.times)?;
    let is_meant = asked.windows(lie.instead_of.len()).any(|part| part == lie.instead_of.as_bytes());
    lie.told += usize::from(is_meant);
    is_meant.then(|| lie.answer.clone())
}

/// Passes bytes on until either side is gone; `instead` tells what is answered to some.
fn pass(mut from: TcpStream, mut to: &TcpStream, mut instead: impl FnMut(&[u8]) -> Option<Vec<u8>>) {
    let (mut buffer, mut before) = ([0; 16_384], Vec::new());
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        // What is meant may have come in two pieces.
        let asked = [&before[..], &buffer[..length]].concat();
        let passed = match instead(&asked) {
            Some(answer) => from.write_all(&answer),
            None => to.write_all(&buffer[..length]),
        };
        before = asked[asked.len().saturating_sub(LONGEST)..].to_vec();
        if passed.is_err() {
            break;
        }
    }
    // The other direction ends as well.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Less than the shortest of what a lie is told instead of, so that it is told once for each.
const LONGEST: usize = 3;

#[test]
fn a_load_that_breaks_off_changes_nothing() {
    let (master, replica) = redis_pair();
    let reads = Liar::before(replica.port());
    let [a, b] = ["a", "b"].map(Backend::named);
    let host = |number: usize| format!("{number}.load.test");
    let write = |backend: &Backend| {
        let (keys, url) =
            ((0..HOSTS).map(|number| format!("frontend:{}", host(number))).collect::<Vec<_>>(), backend.url());
        let commands = keys.iter().flat_map(|key| {
            let (key, url) = (key.as_bytes(), url.as_bytes());
            [vec![&b"DEL"[..], key], vec![&b"RPUSH"[..], key, b"id", url]]
        });
        redis_pipe(&master, &commands.collect::<Vec<_>>());
    };
    write(&a);
    let newest = format!("frontend:{}", host(HOSTS - 1));
    wait_until("the replica has them", || redis(&replica, &["EXISTS", &newest]) == ":1");
    let flag = format!("--read-redis-port={}", reads.port);
    let planb = Planb::builder(&replica, &master).arguments(&[&flag]).start();

    // The load reads in the order of a scan, so that it breaks off at its end.
    let scanned = redis_cli(&replica, &["--scan", "--pattern", "frontend:*"]);
    let last = scanned.lines().last().unwrap();
    reads.lie(&format!("{last}\r\n"), b"?\r\n", usize::MAX);
    redis(&replica, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    wait_until("the session ends", || reads.has_lied(1));
    write(&b);
    wait_until("loads have been tried", || reads.has_lied(3));
    for number in (0..HOSTS).step_by(100) {
        assert_eq!(planb.ask(&host(number)), "a");
    }
    reads.be_honest();
    for number in (0..HOSTS).step_by(100) {
        wait_until("it is loaded", || planb.ask(&host(number)) == "b");
    }
}

const HOSTS: usize = 10_000;

#[test]
fn no_answer_ends_the_process_or_bloats_it() {
    let (master, replica) = redis_pair();
    let (reads, writes) = (Liar::before(replica.port()), Liar::before(master.port()));
    let planb = Planb::builder(&replica, &master)
        .arguments(&[&format!("--read-redis-port={}", reads.port), &format!("--write-redis-port={}", writes.port)])
        .start();
    let a = Backend::named("a");
    redis(&master, &["RPUSH", "frontend:kept.test", "id", &a.url()]);
    planb.wait_for_route("kept.test");

    let lies = [
        b"*1\r\n".repeat(100_000),
        b"~1\r\n".repeat(100_000),
        b"%1\r\n+a\r\n".repeat(100_000),
        b"*2000000000\r\n$1\r\na\r\n".to_vec(),
        b"$1073741824\r\n".to_vec(),
        b"$99999999999999999999\r\n".to_vec(),
        b"*-7\r\n".to_vec(),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
    ];
    let (_taken, dead) = closed_port();
    let told = |liar: &Liar| wait_until("the lie is told", || liar.has_lied(1));
    for (number, answer) in lies.iter().enumerate() {
        // An edit makes it ask for a list; the rest is asked every second.
        for instead_of in ["LRANGE", "INFO"].into_iter().chain((number == 0).then_some("PING")) {
            let host = format!("{}-{number}.test", instead_of.to_lowercase());
            reads.lie_once(instead_of, answer);
            redis(&master, &["RPUSH", &format!("frontend:{host}"), "id", &a.url()]);
            told(&reads);
            planb.wait_for_route(&host);
            assert_eq!(planb.ask("kept.test"), "a");
        }
        let host = format!("marked-{number}.test");
        writes.lie_once("marked-", answer);
        redis(&master, &["RPUSH", &format!("frontend:{host}"), "id", &dead, &a.url()]);
        planb.wait_for_route(&host);
        told(&writes);
        assert_eq!(planb.ask(&host), "a");
    }
    planb.wait_for_log("answers with what is no reply, or beyond all bounds");
    assert!(planb.metric("process_resident_memory_bytes") < 200e6);
}
