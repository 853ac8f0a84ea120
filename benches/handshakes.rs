//! A load of TLS handshakes for any server, which `bench/tls` runs against three. Prints one line of JSON.
//!
//! Each connection carries one small request, so that the server really serves on it and its session ticket arrives.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the figures are the point")]

use std::{
    env,
    io::{self, Read, Write},
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind,
    client::Resumption,
    pki_types::ServerName,
    version::{TLS12, TLS13},
};

mod client;

fn main() -> anyhow::Result<()> {
    let load = Load::from_arguments()?;
    let began = Instant::now();
    let deadline = began + load.duration;
    let outcome = thread::scope(|scope| {
        let clients: Vec<_> = (0..load.connections).map(|_| scope.spawn(|| load.run(deadline))).collect();
        let mut total = Outcome::default();
        for client in clients {
            total.add(client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
        }
        anyhow::Ok(total)
    })?;
    outcome.print(began.elapsed());
    Ok(())
}

/// What is asked for on the command line.
struct Load {
    address: SocketAddr,
    name: String,
    duration: Duration,
    /// How many at once.
    connections: usize,
    resume: bool,
    tls12: bool,
}

impl Load {
    fn from_arguments() -> anyhow::Result<Self> {
        // Cargo adds the first to what a benchmark is given.
        let (flags, words): (Vec<_>, Vec<_>) =
            env::args().skip(1).filter(|argument| argument != "--bench").partition(|word| word.starts_with("--"));
        if let Some(unknown) = flags.iter().find(|flag| !["--resume", "--tls12"].contains(&flag.as_str())) {
            bail!("unknown: {unknown}; {USAGE}");
        }
        let [address, name, seconds, connections] = words.as_slice() else { bail!(USAGE) };
        Ok(Self {
            address: address.parse().context(USAGE)?,
            name: name.clone(),
            duration: Duration::try_from_secs_f64(seconds.parse()?)?,
            connections: connections.parse().context(USAGE)?,
            resume: flags.iter().any(|flag| flag == "--resume"),
            tls12: flags.iter().any(|flag| flag == "--tls12"),
        })
    }

    /// One client, with a session store of its own.
    fn run(&self, deadline: Instant) -> anyhow::Result<Outcome> {
        let resumption = if self.resume { Resumption::in_memory_sessions(8) } else { Resumption::disabled() };
        let config = client::config(if self.tls12 { &TLS12 } else { &TLS13 }, resumption)?;
        let name = ServerName::try_from(self.name.clone())?;
        let mut outcome = Outcome::default();
        while Instant::now() < deadline {
            let began = Instant::now();
            match self.operate(&name, &config) {
                Ok(connection) => outcome.count(&connection, began.elapsed())?,
                Err(error) => {
                    outcome.failures += 1;
                    outcome.error = Some(error);
                    // A server that refuses everything should not be asked as fast as it refuses.
                    thread::sleep(Duration::from_millis(10));
                }
            }
        }
        Ok(outcome)
    }

    /// Connect, handshake, request, response, close.
    fn operate(&self, name: &ServerName<'static>, config: &Arc<ClientConfig>) -> anyhow::Result<ClientConnection> {
        let mut stream = client::connect(self.address, name, config)?;
        write!(stream, "GET /small HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.name)?;
        let mut response = Vec::with_capacity(1_024);
        match stream.read_to_end(&mut response) {
            // Servers need not announce the end where HTTP does.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error.into()),
            _ => {}
        }
        let response = String::from_utf8_lossy(&response);
        let (head, body) = response.split_once("\r\n\r\n").context("no response")?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>())
        });
        ensure!(head.starts_with("HTTP/1.1 200 ") && length == Some(Ok(body.len())), "{response}");
        Ok(stream.conn)
    }
}

/// What came of it.
#[derive(Default)]
struct Outcome {
    /// From connecting to the end of the response, of those that succeeded.
    times: Vec<Duration>,
    resumed: usize,
    failures: usize,
    /// The last failure's.
    error: Option<anyhow::Error>,
    /// What the last connection agreed on: version, cipher, key exchange.
    agreed: Option<String>,
}

impl Outcome {
    fn count(&mut self, connection: &ClientConnection, time: Duration) -> anyhow::Result<()> {
        self.times.push(time);
        if connection.handshake_kind() == Some(HandshakeKind::Resumed) {
            self.resumed += 1;
        }
        if self.agreed.is_none() {
            let version = connection.protocol_version().context("no version")?;
            let cipher = connection.negotiated_cipher_suite().context("no cipher")?.suite();
            let group = connection.negotiated_key_exchange_group().context("no key exchange")?.name();
            self.agreed = Some(format!("{version:?} {cipher:?} {group:?}"));
        }
        Ok(())
    }

    fn add(&mut self, other: Self) {
        self.times.extend(other.times);
        self.resumed += other.resumed;
        self.failures += other.failures;
        self.error = other.error.or(self.error.take());
        self.agreed = other.agreed.or(self.agreed.take());
    }

    fn print(mut self, elapsed: Duration) {
        if let Some(error) = &self.error {
            eprintln!("{} failures, of which the last: {error:#}", self.failures);
        }
        self.times.sort_unstable();
        let at = |percent: usize| {
            let index = self.times.len().saturating_sub(1) * percent / 100;
            self.times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        println!(
            r#"{{"handshakes": {}, "resumed": {}, "failures": {}, "seconds": {:.3}, "p50": {:.3}, "p99": {:.3}, "agreed": "{}"}}"#,
            self.times.len(),
            self.resumed,
            self.failures,
            elapsed.as_secs_f64(),
            at(50),
            at(99),
            self.agreed.as_deref().unwrap_or_default(),
        );
    }
}

const USAGE: &str = "usage: handshakes ADDRESS NAME SECONDS CONNECTIONS [--resume] [--tls12]";
