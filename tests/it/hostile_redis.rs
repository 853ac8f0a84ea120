//! A Redis server, or whoever sits on the way to it, that answers what no server should.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use super::support::{Backend, Planb, closed_port, redis, redis_pair, wait_until};

/// Relays to a Redis server; of some commands, it answers the next itself.
struct Liar {
    port: u16,
    lie: Arc<Mutex<Option<Lie>>>,
}

struct Lie {
    /// What the command has in it that is not passed on.
    instead_of: &'static str,
    answer: Vec<u8>,
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

    fn lie_once(&self, instead_of: &'static str, answer: &[u8]) {
        *self.lie.lock().unwrap() = Some(Lie { instead_of, answer: answer.to_vec() });
    }

    fn has_lied(&self) -> bool {
        self.lie.lock().unwrap().is_none()
    }
}

fn take_if_meant(lie: &Mutex<Option<Lie>>, asked: &[u8]) -> Option<Vec<u8>> {
    let is_meant = |lie: &mut Lie| asked.windows(lie.instead_of.len()).any(|part| part == lie.instead_of.as_bytes());
    lie.lock().unwrap().take_if(is_meant).map(|lie| lie.answer)
}

/// Passes bytes on until either side is gone; `instead` tells what is answered to some.
fn pass(mut from: TcpStream, mut to: &TcpStream, mut instead: impl FnMut(&[u8]) -> Option<Vec<u8>>) {
    let mut buffer = [0; 16_384];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let passed = match instead(&buffer[..length]) {
            Some(answer) => from.write_all(&answer),
            None => to.write_all(&buffer[..length]),
        };
        if passed.is_err() {
            break;
        }
    }
    // The other direction ends as well.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

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
    let told = |liar: &Liar| wait_until("the lie is told", || liar.has_lied());
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
