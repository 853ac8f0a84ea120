//! Many certificates in Redis: how long the proxy takes to load them, the memory that they need, and the time from the reply to
//! an edit of one to the end of the first handshake that sees it.
//!
//! usage: cargo bench --bench certificates -- [ECDSA certificates] [RSA certificates]

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the figures are the point")]

use std::{
    env, fs,
    fs::File,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::KeySize,
};
use planb::demo::PrivateRedis;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    ClientConfig,
    client::Resumption,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName},
    version::TLS13,
};
use tokio::signal::unix::{SignalKind, signal};

mod client;

const ECDSA: u32 = 100_000;
const RSA: u32 = 2_000;
/// Keys that RSA certificates share, since making one takes a tenth of a second.
const RSA_KEYS: usize = 16;
const ROTATIONS: u32 = 200;

fn main() -> anyhow::Result<()> {
    // Cargo adds the first to what a benchmark is given.
    let mut counts = env::args().skip(1).filter(|argument| argument != "--bench").map(|count| count.parse::<u32>());
    let ecdsa = counts.next().transpose()?.unwrap_or(ECDSA);
    let rsa = counts.next().transpose()?.unwrap_or(RSA);
    ensure!(ecdsa > 1 && rsa > 1, "two certificates are the least");
    let redis = PrivateRedis::start(&["--notify-keyspace-events", "KA"])?;
    let port = redis.port();
    // Redis is out of reach of the terminal's Ctrl-C, so the end is awaited here, where dropping stops it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut work = tokio::task::spawn_blocking(move || compare(port, ecdsa, rsa));
        let mut terminated = signal(SignalKind::terminate())?;
        tokio::select! {
            measured = &mut work => return measured?,
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated.recv() => {}
        }
        INTERRUPTED.store(true, Ordering::Relaxed);
        work.await?
    })
}

/// Asks the work to end where it would go on for long.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn go_on() -> anyhow::Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

fn compare(redis: u16, ecdsa: u32, rsa: u32) -> anyhow::Result<()> {
    println!(
        "Each certificate comes with one intermediate; ECDSA ones have a key each, RSA ones share {RSA_KEYS}. Rotation is from \
         the reply to HSET to the end of the first handshake with the new certificate, over {ROTATIONS}; it includes that \
         handshake, and one alone stands beside it.\n"
    );
    println!(
        "| certificates | s to listen | s to a handshake | RSS MiB | peak MiB | KiB each | handshake p50 ms | rotation p50 ms | p99 ms | max ms |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    let one = measure(redis, &Authority::ecdsa()?, 1)?;
    one.print("1, ECDSA P-256", "");
    for (count, kind, authority) in [(ecdsa, "ECDSA P-256", Authority::ecdsa()?), (rsa, "RSA-2048", Authority::rsa()?)]
    {
        let figures = measure(redis, &authority, count)?;
        let each = (figures.memory.resident - one.memory.resident) / f64::from(count - 1);
        figures.print(&format!("{count}, {kind}"), &format!("{:.2}", each * 1024.0));
    }
    Ok(())
}

/// What one number of certificates costs.
struct Figures {
    listening: Duration,
    /// From the start to a handshake for the last of the names.
    serving: Duration,
    memory: Memory,
    /// Handshakes alone, sorted.
    handshakes: Vec<Duration>,
    /// Sorted.
    rotations: Vec<Duration>,
}

impl Figures {
    fn print(&self, certificates: &str, each: &str) {
        let at = |times: &[Duration], percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        println!(
            "| {certificates} | {:.2} | {:.2} | {:.1} | {:.1} | {each} | {:.3} | {:.3} | {:.3} | {:.3} |",
            self.listening.as_secs_f64(),
            self.serving.as_secs_f64(),
            self.memory.resident,
            self.memory.peak,
            at(&self.handshakes, 50),
            at(&self.rotations, 50),
            at(&self.rotations, 99),
            at(&self.rotations, 100),
        );
    }
}

fn measure(redis: u16, authority: &Authority, count: u32) -> anyhow::Result<Figures> {
    let began = Instant::now();
    let mut connection = Redis::connect(redis)?;
    connection.command(&["FLUSHALL"])?;
    load(redis, authority, count)?;
    eprintln!("{count} certificates made and loaded into Redis in {:.1} s", began.elapsed().as_secs_f64());

    let proxy = Proxy::start(redis)?;
    let handshakes = Handshakes { address: proxy.address, config: client::config(&TLS13, Resumption::disabled())? };
    handshakes.peer(&name(count - 1))?;
    let serving = proxy.started.elapsed();
    let memory = proxy.memory()?;

    let (mut alone, mut rotations) = (Vec::new(), Vec::new());
    for rotation in 0..ROTATIONS {
        go_on()?;
        let name = name((u64::from(rotation) * u64::from(count) / u64::from(ROTATIONS)).try_into()?);
        let began = Instant::now();
        handshakes.peer(&name)?;
        alone.push(began.elapsed());
        let pair = authority.issue(&name, rotation)?;
        pair.store(&mut connection, &name)?;
        connection.reply()?;
        let began = Instant::now();
        while handshakes.peer(&name)? != pair.leaf {
            ensure!(began.elapsed() < ROTATION_LIMIT, "{name} keeps its old certificate");
        }
        rotations.push(began.elapsed());
    }
    alone.sort_unstable();
    rotations.sort_unstable();
    Ok(Figures { listening: proxy.listening, serving, memory, handshakes: alone, rotations })
}

/// Fills Redis, from all cores.
fn load(redis: u16, authority: &Authority, count: u32) -> anyhow::Result<()> {
    let loaders = u32::try_from(thread::available_parallelism()?.get())?;
    let work = |loader: u32| {
        let mut connection = Redis::connect(redis)?;
        let numbers: Vec<u32> = (loader..count).step_by(loaders as usize).collect();
        for batch in numbers.chunks(100) {
            go_on()?;
            for &number in batch {
                authority.issue(&name(number), number)?.store(&mut connection, &name(number))?;
            }
            for _ in batch {
                connection.reply()?;
            }
        }
        anyhow::Ok(())
    };
    thread::scope(|scope| {
        let loaders: Vec<_> = (0..loaders).map(|loader| scope.spawn(move || work(loader))).collect();
        loaders.into_iter().try_for_each(|loader| loader.join().map_err(|_| anyhow::anyhow!("a loader panicked"))?)
    })
}

fn name(number: u32) -> String {
    format!("host{number}.example")
}

/// Handshakes with the proxy.
struct Handshakes {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl Handshakes {
    /// The certificate that the proxy has for this name now.
    fn peer(&self, name: &str) -> anyhow::Result<CertificateDer<'static>> {
        let stream = client::connect(self.address, &ServerName::try_from(name.to_owned())?, &self.config)?;
        let chain = stream.conn.peer_certificates().context("no certificate")?;
        Ok(chain.first().context("an empty chain")?.clone().into_owned())
    }
}

/// An intermediate that signs the certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    intermediate: String,
    /// The keys that certificates share; if there are none, each has its own.
    keys: Vec<KeyPair>,
}

impl Authority {
    fn ecdsa() -> anyhow::Result<Self> {
        Self::new(KeyPair::generate, Vec::new())
    }

    fn rsa() -> anyhow::Result<Self> {
        let keys = (0..RSA_KEYS).map(|_| rsa_key()).collect::<Result<_, _>>()?;
        Self::new(rsa_key, keys)
    }

    fn new(key: impl Fn() -> Result<KeyPair, rcgen::Error>, keys: Vec<KeyPair>) -> anyhow::Result<Self> {
        let root = Issuer::new(authority("A root"), key()?);
        let (parameters, key) = (authority("An intermediate"), key()?);
        let intermediate = parameters.signed_by(&key, &root)?.pem();
        Ok(Self { issuer: Issuer::new(parameters, key), intermediate, keys })
    }

    /// `number` chooses among shared keys.
    fn issue(&self, name: &str, number: u32) -> anyhow::Result<Pair> {
        let own;
        let key = if self.keys.is_empty() {
            own = KeyPair::generate()?;
            &own
        } else {
            &self.keys[number as usize % self.keys.len()]
        };
        let mut parameters = CertificateParams::new([name.to_owned()])?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        parameters.use_authority_key_identifier_extension = true;
        let leaf = parameters.signed_by(key, &self.issuer)?;
        Ok(Pair { certificate: leaf.pem() + &self.intermediate, key: key.serialize_pem(), leaf: leaf.der().clone() })
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    parameters
}

fn rsa_key() -> Result<KeyPair, rcgen::Error> {
    let key =
        aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa2048).map_err(|_| rcgen::Error::KeyGenerationUnavailable)?;
    let der = AsDer::<Pkcs8V1Der>::as_der(&key).map_err(|_| rcgen::Error::KeyGenerationUnavailable)?;
    KeyPair::try_from(&PrivatePkcs8KeyDer::from(der.as_ref()))
}

/// A certificate with its chain, and its key, as Redis has them.
struct Pair {
    certificate: String,
    key: String,
    leaf: CertificateDer<'static>,
}

impl Pair {
    fn store(&self, redis: &mut Redis, name: &str) -> anyhow::Result<()> {
        redis.send(&["HSET", &format!("tls:{name}"), "certificate", &self.certificate, "key", &self.key])
    }
}

/// One kept connection to Redis.
struct Redis(BufReader<TcpStream>);

impl Redis {
    fn connect(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    fn command(&mut self, words: &[&str]) -> anyhow::Result<()> {
        self.send(words)?;
        self.reply()
    }

    fn send(&mut self, words: &[&str]) -> anyhow::Result<()> {
        let mut command = Vec::new();
        write!(command, "*{}\r\n", words.len())?;
        for word in words {
            write!(command, "${}\r\n{word}\r\n", word.len())?;
        }
        Ok(self.0.get_mut().write_all(&command)?)
    }

    /// Reads a reply of one line.
    fn reply(&mut self) -> anyhow::Result<()> {
        let mut reply = String::new();
        self.0.read_line(&mut reply)?;
        ensure!(reply.starts_with([':', '+']), "Redis says: {reply}");
        Ok(())
    }
}

/// The release build of the proxy. Killed when dropped.
struct Proxy {
    process: Child,
    started: Instant,
    /// From the start until it said that it listens.
    listening: Duration,
    address: SocketAddr,
}

/// In MiB.
struct Memory {
    resident: f64,
    peak: f64,
}

impl Proxy {
    fn start(redis: u16) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let started = Instant::now();
        let process = Command::new(env!("CARGO_BIN_EXE_planb"))
            .env_clear()
            .args(["--listen=disabled", "--tls-listen=127.0.0.1:0", "--tls-preset=modern", "--access-log=none"])
            .arg(format!("--read-redis-port={redis}"))
            .arg(format!("--write-redis-port={redis}"))
            .stdin(Stdio::null())
            // Not a pipe, which somebody would have to empty while the time is taken.
            .stderr(File::create(&log)?)
            .spawn()?;
        let mut proxy = Self { process, started, listening: Duration::ZERO, address: (Ipv4Addr::LOCALHOST, 0).into() };
        loop {
            let text = fs::read_to_string(&log)?;
            if let Some(port) = port(&text) {
                proxy.listening = started.elapsed();
                proxy.address.set_port(port);
                return Ok(proxy);
            }
            go_on()?;
            ensure!(proxy.process.try_wait()?.is_none(), "the proxy has ended: {text}");
            ensure!(started.elapsed() < START_LIMIT, "the proxy does not listen: {text}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn memory(&self) -> anyhow::Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no memory in the status")?;
            anyhow::Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
        };
        Ok(Memory { resident: of("VmRSS:")?, peak: of("VmHWM:")? })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The port in the whole line that says where the proxy listens, once there is one.
fn port(log: &str) -> Option<u16> {
    let (whole, _) = log.rsplit_once('\n')?;
    let line = whole.lines().find(|line| line.contains("listening"))?;
    let (_, rest) = line.split_once("127.0.0.1:")?;
    rest.split(|end: char| !end.is_ascii_digit()).next()?.parse().ok()
}

/// How long the proxy may take to follow an edit.
const ROTATION_LIMIT: Duration = Duration::from_secs(10);

/// How long the proxy may take to load everything.
const START_LIMIT: Duration = Duration::from_mins(5);
