//! `planb demo`: the main job before one's eyes, on this machine alone.

#![expect(clippy::print_stdout, reason = "the demonstration talks to whoever started it")]

mod backend;
mod redis;

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{app, cli::Cli, telemetry::Telemetry};

pub use redis::PrivateRedis;

/// Starts a private Redis master and replica, two backends and the proxy; registers a host, edits it, and stays up until it
/// is interrupted.
///
/// # Errors
/// When `redis-server` is missing or anything does not start.
pub fn run() -> anyhow::Result<()> {
    let mut interrupts = Interrupts::note()?;
    let master = PrivateRedis::start(&[])?;
    let master_port = master.port().to_string();
    let replica = PrivateRedis::start(&["--replicaof", "127.0.0.1", &master_port, "--notify-keyspace-events", "KA"])?;
    println!("A Redis master is on port {master_port}, its replica on port {}.", replica.port());
    let first = backend::serve("first")?;
    let second = backend::serve("second")?;
    println!("Two backends are on {first} and {second}.");
    master.command(&["RPUSH", &format!("frontend:{HOST}"), "demo", &format!("http://{first}")])?;
    master.wait_for_replica(&replica)?;

    let folder = tempfile::tempdir().context("cannot make a folder for the access log")?;
    let access_log = folder.path().join("access.log");
    let config = Cli::try_parse_from([
        "planb",
        "--listen=127.0.0.1:0",
        "--metrics-address=127.0.0.1:0",
        &format!("--read-redis-port={}", replica.port()),
        &format!("--write-redis-port={master_port}"),
        &format!("--access-log={}", access_log.display()),
    ])?
    .into_config()?;
    let telemetry = Telemetry::init()?;
    if interrupts.came() {
        return Ok(());
    }
    thread::scope(|scope| {
        app::run(config, &telemetry, |started| {
            let master = &master;
            let access_log = &access_log;
            let listen = started.listen.expect("the demonstration's own flags say where to listen");
            scope.spawn(move || {
                if let Err(error) = show(listen, master, second) {
                    println!("The demonstration failed: {error:#}");
                }
                hints(listen, started.metrics, master, &access_log.display().to_string());
            });
        })
    })?;
    println!("Everything has been stopped.");
    Ok(())
}

/// Requests to stop that come before the proxy heeds them itself. Left to the system, they would end this process and leave
/// its Redis servers behind.
struct Interrupts {
    runtime: tokio::runtime::Runtime,
    signals: [Signal; 2],
}

impl Interrupts {
    fn note() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _entered = runtime.enter();
            [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]
        };
        Ok(Self { runtime, signals })
    }

    fn came(&mut self) -> bool {
        let [interrupt, terminate] = &mut self.signals;
        self.runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => true,
                _ = terminate.recv() => true,
                // Signals arrive while the runtime has nothing to do.
                () = tokio::time::sleep(Duration::from_millis(1)) => false,
            }
        })
    }
}

/// The demonstration proper.
fn show(listen: SocketAddr, master: &PrivateRedis, second: SocketAddr) -> anyhow::Result<()> {
    println!("PlanB listens on {listen}. Its routes come from the replica; it has loaded one host.\n");
    wait_for(listen, "first")?;
    println!("GET / with Host: {HOST} is answered by: {}", get(listen)?);

    println!("Now RPUSH frontend:{HOST} http://{second} on the master...");
    master.command(&["RPUSH", &format!("frontend:{HOST}"), &format!("http://{second}")])?;
    let edited = Instant::now();
    wait_for(listen, "second")?;
    println!("...and the second backend answered a request {:.2?} after Redis' reply.\n", edited.elapsed());
    Ok(())
}

fn hints(listen: SocketAddr, metrics: Option<SocketAddr>, master: &PrivateRedis, access_log: &str) {
    let port = master.port();
    println!("Try, in another terminal:");
    println!("  curl -i -H 'Host: {HOST}' -H 'X-Debug-Router: 1' http://{listen}/");
    println!("  redis-cli -p {port} LRANGE frontend:{HOST} 0 -1");
    println!("  redis-cli -p {port} RPUSH frontend:{HOST} http://127.0.0.1:1     # a backend that is not there");
    println!("  redis-cli -p {port} SMEMBERS dead:{HOST}                         # after a few requests");
    println!("  redis-cli -p {port} DEL frontend:{HOST}");
    if let Some(metrics) = metrics {
        println!("  curl -s http://{metrics}/metrics | grep planb_");
    }
    println!("  tail {access_log}");
    println!("\nCtrl-C stops everything.");
}

/// Repeats a request until a certain backend answers.
fn wait_for(proxy: SocketAddr, backend: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !get(proxy)?.contains(backend) {
        anyhow::ensure!(Instant::now() < deadline, "the {backend} backend was not reached");
    }
    Ok(())
}

/// The body of one request through the proxy.
fn get(proxy: SocketAddr) -> io::Result<String> {
    let mut connection = TcpStream::connect(proxy)?;
    write!(connection, "GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")?;
    let mut response = String::new();
    connection.read_to_string(&mut response)?;
    Ok(response.split_once("\r\n\r\n").map_or(response.as_str(), |(_, body)| body).trim_end().to_owned())
}

/// The host that the demonstration registers.
const HOST: &str = "demo.localhost";
