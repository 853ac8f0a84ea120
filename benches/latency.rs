//! From Redis' reply to an edit on the master until a request is routed by it, by way of a replica.
//!
//! One connection asks the proxy again and again, so the time includes the request that finds out. Then, how soon a second
//! instance skips a backend that the first has found dead, without trying it.

#![expect(clippy::print_stdout, reason = "the figures are the point")]

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use planb::demo::PrivateRedis;
use socket2::{Domain, Socket, Type};

const EDITS: usize = 2_000;
const MARKS: usize = 200;
const EXISTING: &str = "existing.example.com";

fn main() -> anyhow::Result<()> {
    let master = PrivateRedis::start(&[])?;
    let master_port = master.port().to_string();
    let replica = PrivateRedis::start(&["--replicaof", "127.0.0.1", &master_port, "--notify-keyspace-events", "KA"])?;
    let backends = Backends { first: backend("first")?, second: backend("second")? };
    master.command(&["RPUSH", &format!("frontend:{EXISTING}"), "bench", &format!("http://{}", backends.first)])?;
    master.wait_for_replica(&replica)?;
    let proxy = Proxy::start(replica.port(), master.port())?;
    let other = Proxy::start(replica.port(), master.port())?;

    let mut redis = Redis::connect(master.port())?;
    let mut client = Client::connect(proxy.address)?;
    let mut elsewhere = Client::connect(other.address)?;
    // Redis is out of reach of the terminal's Ctrl-C, so the end is awaited here, where dropping stops it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measured = runtime.block_on(async {
        let work = tokio::task::spawn_blocking(move || {
            measure(&mut redis, &mut client, &backends)?;
            measure_marks(&mut redis, &mut client, &mut elsewhere, &backends)
        });
        tokio::select! {
            measured = work => Some(measured),
            _ = tokio::signal::ctrl_c() => None,
        }
    });
    runtime.shutdown_background();
    measured.context("interrupted")?.context("the measurement panicked")?
}

struct Backends {
    first: SocketAddr,
    second: SocketAddr,
}

fn measure(redis: &mut Redis, client: &mut Client, backends: &Backends) -> anyhow::Result<()> {
    wait_for(client, EXISTING, "first")?;
    println!("From the reply to RPUSH to the end of the first response by its route, {EDITS} edits each:\n");
    println!("| edit | p50 ms | p99 ms | max ms |\n|---|--:|--:|--:|");
    let mut times = Vec::with_capacity(EDITS);
    for number in 0..EDITS {
        let host = format!("host-{number}.example.com");
        ensure!(!client.get(&host)?.contains("first"), "{host} has a route already");
        redis.command(&format!("RPUSH frontend:{host} bench http://{}", backends.first))?;
        times.push(wait_for(client, &host, "first")?);
    }
    report("a new host", &mut times);
    times.clear();
    // While there are two backends they take turns, so the first request by the new route may be one too early.
    for _ in 0..EDITS {
        redis.command(&format!("RPUSH frontend:{EXISTING} http://{}", backends.second))?;
        times.push(wait_for(client, EXISTING, "second")?);
        redis.command(&format!("RPOP frontend:{EXISTING}"))?;
        while !(client.get(EXISTING)?.contains("first") && client.get(EXISTING)?.contains("first")) {}
    }
    report("another backend for a host", &mut times);
    let requests: Vec<_> = (0..EDITS).map(|_| wait_for(client, EXISTING, "first")).collect::<Result<_, _>>()?;
    report("none: one request alone", &mut { requests });
    Ok(())
}

/// Asks the second instance some time after the first has answered that the only backend cannot be reached. If it has not
/// heard of that yet, it finds out for itself, and its answer says so.
fn measure_marks(
    redis: &mut Redis,
    client: &mut Client,
    elsewhere: &mut Client,
    backends: &Backends,
) -> anyhow::Result<()> {
    let refusing = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    refusing.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    let port = refusing.local_addr()?.as_socket().context("it is bound")?.port();
    println!("\nOf {MARKS} backends found dead by one instance, how many another skipped without having tried them:\n");
    println!("| asked this long after the first one's answer | skipped |\n|---|--:|");
    let pauses = [0_u32, 500, 1_000, 2_000, 5_000];
    let host = |micros, number| format!("dead-{micros}-{number}.example.com");
    for micros in pauses {
        for number in 0..MARKS {
            redis.command(&format!("RPUSH frontend:{} bench http://127.0.0.1:{port}", host(micros, number)))?;
        }
    }
    // The last of the routes is there on both when the one that follows it is.
    redis.command(&format!("RPUSH frontend:sign.example.com bench http://{}", backends.first))?;
    wait_for(client, "sign.example.com", "first")?;
    wait_for(elsewhere, "sign.example.com", "first")?;
    for micros in pauses {
        let mut skipped = 0;
        for number in 0..MARKS {
            let host = host(micros, number);
            let answer = client.get(&host)?;
            ensure!(answer.starts_with("HTTP/1.1 503"), "{host}: {answer}");
            thread::sleep(Duration::from_micros(micros.into()));
            let answer = elsewhere.get(&host)?;
            ensure!(answer.starts_with("HTTP/1.1 503"), "{host}: {answer}");
            skipped += usize::from(answer.contains("all backends are dead"));
        }
        println!("| {} ms | {skipped} |", f64::from(micros) / 1e3);
    }
    Ok(())
}

fn report(edit: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!("| {edit} | {:.3} | {:.3} | {:.3} |", at(50), at(99), at(100));
}

/// How long it takes until this backend answers.
fn wait_for(client: &mut Client, host: &str, backend: &str) -> anyhow::Result<Duration> {
    let began = Instant::now();
    while !client.get(host)?.contains(backend) {
        ensure!(began.elapsed() < Duration::from_secs(10), "{backend} does not answer for {host}");
    }
    Ok(began.elapsed())
}

/// One kept connection to the proxy.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(proxy: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(proxy)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 4_096] })
    }

    /// A response, head and body. All that are expected here have a Content-Length or no body.
    fn get(&mut self, host: &str) -> anyhow::Result<&str> {
        self.stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..])?;
            ensure!(read > 0, "the proxy closed the connection");
            filled += read;
            let text = std::str::from_utf8(&self.buffer[..filled])?;
            let Some(head) = text.find("\r\n\r\n") else { continue };
            let length = text[..head].lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>())
            });
            if filled >= head + 4 + length.transpose()?.unwrap_or(0) {
                break;
            }
        }
        Ok(std::str::from_utf8(&self.buffer[..filled])?)
    }
}

/// One kept connection to the master.
struct Redis(BufReader<TcpStream>);

impl Redis {
    fn connect(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends one command and reads its reply, which is a number or a string.
    fn command(&mut self, command: &str) -> anyhow::Result<()> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let mut reply = String::new();
        self.0.read_line(&mut reply)?;
        ensure!(reply.starts_with([':', '$']), "{command}: {reply}");
        if reply.starts_with('$') {
            self.0.read_line(&mut reply)?;
        }
        Ok(())
    }
}

/// A backend that answers its name to any request.
fn backend(name: &'static str) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let response = response.clone();
            thread::spawn(move || answer(stream?, &response));
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream, response: &str) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Vec::new();
    let mut buffer = [0; 4_096];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..read]);
        if request.ends_with(b"\r\n\r\n") {
            request.clear();
            stream.write_all(response.as_bytes())?;
        }
    }
}

/// The release build of the proxy. Killed when dropped.
struct Proxy {
    process: Child,
    address: SocketAddr,
}

impl Proxy {
    fn start(replica: u16, master: u16) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let process = Command::new(env!("CARGO_BIN_EXE_planb"))
            .env_clear()
            .args(["--listen=127.0.0.1:0", "--access-log=none"])
            .arg(format!("--read-redis-port={replica}"))
            .arg(format!("--write-redis-port={master}"))
            .stdin(Stdio::null())
            // Not a pipe, which somebody would have to empty while the time is taken.
            .stderr(File::create(&log)?)
            .spawn()?;
        let mut proxy = Self { process, address: (Ipv4Addr::LOCALHOST, 0).into() };
        let began = Instant::now();
        loop {
            let text = std::fs::read_to_string(&log)?;
            if let Some((_, rest)) = text.split_once("listening address=")
                && let Some((address, _)) = rest.split_once('\n')
            {
                proxy.address = address.trim().parse()?;
                return Ok(proxy);
            }
            ensure!(began.elapsed() < Duration::from_secs(10), "the proxy does not listen: {text}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
