//! What every topic needs: servers to put around the proxy, clients to use it, and patience.

mod backend;
mod client;
mod dns;
mod hello;
mod http2;
mod planb;
mod sentinel;
mod tls;

use std::{
    io::{BufWriter, Write},
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

pub use ::planb::demo::PrivateRedis;
pub use backend::{Backend, Exchange, Gate};
pub use client::{Client, Response, get};
pub use dns::{DnsServer, Reply};
pub use hello::{hello, hello_message, record};
pub use http2::{Http2, Stream};
pub use planb::{Planb, PlanbBuilder};
pub use sentinel::{MASTER_NAME, Sentinels};
pub use tls::{Authority, OpensslServer, Pair, connect_tls, curl, s_client, shown};

/// A Redis master, its replica with notifications on, and a proxy that reads from the one and writes to the other.
pub struct Stack {
    pub planb: Planb,
    pub replica: PrivateRedis,
    pub master: PrivateRedis,
    sign: Backend,
    signs: AtomicUsize,
}

impl Stack {
    /// Starts everything; `arguments` are further flags of the proxy.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_in(&[], arguments)
    }

    /// The same with environment variables.
    pub fn start_in(environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        let (master, replica) = redis_pair();
        let planb = Planb::builder(&replica, &master).arguments(arguments);
        let planb = environment.iter().fold(planb, |planb, (name, value)| planb.environment(name, value)).start();
        Self { planb, replica, master, sign: Backend::named("sign"), signs: AtomicUsize::new(0) }
    }

    /// Registers a host with these backends, and waits until the proxy routes it.
    pub fn route(&self, host: &str, backends: &[&Backend]) {
        let urls: Vec<String> = backends.iter().map(|backend| backend.url()).collect();
        self.list(host, &urls.iter().map(String::as_str).collect::<Vec<_>>());
        self.planb.wait_for_route(host);
    }

    /// Runs a command on the master, and waits until the proxy has taken in everything up to it. Events keep their order,
    /// so the sign is the appearance of a host that was edited afterwards.
    pub fn edit(&self, words: &[&str]) {
        redis(&self.master, words);
        self.settle();
    }

    /// Waits until the proxy has taken in everything that the master was told so far.
    pub fn settle(&self) {
        let sign = format!("sign-{}.test", self.signs.fetch_add(1, Ordering::Relaxed));
        redis(&self.master, &["RPUSH", &format!("frontend:{sign}"), "id", &self.sign.url()]);
        wait_until(&format!("{sign} answers"), || self.planb.ask(&sign) == "sign");
    }

    /// Registers a new host with these backend URLs, and waits until the proxy has it, without sending it a request.
    pub fn list(&self, host: &str, urls: &[&str]) {
        let known = self.planb.metric("planb_router_frontends");
        redis(&self.master, &[&["RPUSH", &format!("frontend:{host}"), "id"], urls].concat());
        wait_until(&format!("{host} is listed"), || self.planb.metric("planb_router_frontends") > known);
    }
}

/// A master and a replica in step with it, on which keyspace notifications are on.
pub fn redis_pair() -> (PrivateRedis, PrivateRedis) {
    let master = PrivateRedis::start(&[]).unwrap();
    let replica = replica_of(&master);
    (master, replica)
}

/// A replica in step with `master`, on which keyspace notifications are on.
pub fn replica_of(master: &PrivateRedis) -> PrivateRedis {
    let port = master.port().to_string();
    let replica = PrivateRedis::start(&["--replicaof", "127.0.0.1", &port, "--notify-keyspace-events", "KA"]).unwrap();
    master.wait_for_replica(&replica).unwrap();
    replica
}

/// Runs a command whose arguments contain no white space; fails the test if Redis refuses it.
pub fn redis(server: &PrivateRedis, words: &[&str]) -> String {
    let reply = server.command(words).unwrap();
    assert!(!reply.starts_with('-'), "{words:?} was refused: {reply}");
    reply
}

/// What `redis-cli` prints.
pub fn redis_cli(server: &PrivateRedis, arguments: &[&str]) -> String {
    let output = std::process::Command::new("redis-cli")
        .args(["-p", &server.port().to_string()])
        .args(arguments)
        .output()
        .expect("redis-cli comes with redis-server");
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Sends commands of any bytes in one pipeline; fails the test if Redis refuses one.
pub fn redis_pipe(server: &PrivateRedis, commands: &[Vec<&[u8]>]) {
    let mut process = std::process::Command::new("redis-cli")
        .args(["-p", &server.port().to_string(), "--pipe"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("redis-cli comes with redis-server");
    let mut input = BufWriter::new(process.stdin.take().unwrap());
    for words in commands {
        write!(input, "*{}\r\n", words.len()).unwrap();
        for word in words {
            write!(input, "${}\r\n", word.len()).unwrap();
            input.write_all(word).unwrap();
            input.write_all(b"\r\n").unwrap();
        }
    }
    drop(input);
    let output = process.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("errors: 0,"), "redis-cli --pipe: {said}");
}

/// Waits for a condition, or fails the test.
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, condition);
}

/// Waits for a condition for at most `limit`, or fails the test.
pub fn wait_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    let mut pause = SHORTEST_PAUSE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {limit:?} in vain: {what}");
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Sends a signal to a process that the test has started.
pub fn signal(pid: u32, name: &str) {
    let status = std::process::Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -s {name} {pid}");
}

/// A loopback address where nobody listens, and nobody will: the socket is bound for as long as the guard lives.
pub fn closed_port() -> (Socket, String) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, format!("http://{address}"))
}

/// A listener whose queue is full, so that no further connection to it is ever made; and its address.
pub fn full_backlog(address: SocketAddr) -> (Vec<Socket>, SocketAddr) {
    let socket = || Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    let listener = socket();
    listener.bind(&address.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut sockets = vec![listener];
    for _ in 0..4 {
        let filler = socket();
        filler.set_nonblocking(true).unwrap();
        // It is on its way; whether it arrives does not matter.
        let _ = filler.connect(&address);
        sockets.push(filler);
    }
    (sockets, address.as_socket().unwrap())
}

/// Longer than anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// How often a condition is looked at. Most looks are a connection, of which a machine that tracks them has room for so many
/// within two minutes.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
