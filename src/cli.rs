//! The command line and the environment, turned into a [`Config`] once.

mod arguments;
mod redis;
mod values;

use std::{ffi::OsString, net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, error::ErrorKind};
use http::HeaderName;
use tracing::warn;

use crate::{
    config::{Config, Engine, Tls},
    health,
    proxy::{self, ClientTimeouts, LoadBalancing},
    secret::Secret,
    store::{self, Purpose},
    sync,
    telemetry::LogTarget,
    tls::{self, CertificateSource, ClientCa, Preset},
};

use arguments::Arguments;
use redis::{ReadRedis, WriteRedis};
use values::{
    Listen, address, at_least_8192, boolean, certificate_source, dead_backend_time, dns_server, duration, header_name,
    holder, number, optional_address, positive, positive_duration, seconds, secret, ticket_rotation,
};

/// A distributed HTTP, WebSocket and TLS reverse proxy whose routes live in Redis.
#[derive(Debug, Parser)]
#[command(
    name = "planb",
    version,
    disable_version_flag = true,
    args_conflicts_with_subcommands = true,
    args_override_self = true,
    disable_help_subcommand = true
)]
#[command(
    after_help = "Durations are written as in Go: 500ms, 1m30s, 0s; 0 and less mean none. So are whole numbers (30, 0x1e) and \
                        booleans (true, 1, t, and their opposites). One dash or two begin a flag; given twice, the last counts; \
                        an empty value is the default. Every flag can also be set in the environment, as \
                        PLANB_ and its name in capitals: PLANB_READ_REDIS_HOST; an empty variable is an unset one. The environment variable RUST_LOG sets what \
                        is logged to standard error (default: error,planb=info, which is errors alone of the libraries).\n\nSignals: INT and TERM drain (requests and WebSockets \
                        in flight have 60 seconds to finish; a second signal exits at once), HUP reopens the access log and reads certificate files and error pages again."
)]
pub struct Cli {
    /// Print the version
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: Option<bool>,

    #[command(flatten)]
    flags: Flags,

    #[command(subcommand)]
    command: Option<Command>,

    /// What stands behind the flags and means nothing.
    #[arg(skip)]
    stray: Vec<String>,
}

/// What to do instead of proxying.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Command {
    /// Show a private Redis, two backends and the proxy at work on this machine, then stay up for you to try
    Demo,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
struct Flags {
    /// Address for HTTP, or for TLS that the SNI engine passes through; an empty host (":80") means all addresses,
    /// "disabled" means none
    #[arg(short, long, env = "PLANB_LISTEN", default_value = "0.0.0.0:8989", value_parser = optional_address, value_name = "HOST:PORT")]
    listen: Listen,

    /// Address for HTTPS (HTTP/1.1 and HTTP/2) [default: none]
    #[arg(long, env = "PLANB_TLS_LISTEN", value_parser = address, value_name = "HOST:PORT")]
    tls_listen: Option<SocketAddr>,

    /// Which TLS versions clients may speak. No preset offers TLS 1.0, TLS 1.1 or SSL (RFC 8996), nor ciphers other than
    /// ECDHE with AEAD: the TLS library, rustls, has none of these
    #[arg(long, env = "PLANB_TLS_PRESET", default_value = "modern", value_name = "PRESET")]
    tls_preset: Preset,

    /// Where certificates come from: "redis" (hashes tls:NAME with the fields certificate and key), or a folder of NAME.crt
    /// and NAME.key; NAME may be *.DOMAIN, or * for clients that name no known host
    #[arg(long, env = "PLANB_LOAD_CERTIFICATES_FROM", default_value = "redis", value_parser = certificate_source, value_name = "SOURCE")]
    load_certificates_from: CertificateSource,

    /// PEM file of the authorities whose client certificates are accepted; the verified subject is passed on in
    /// X-Forwarded-Client-Cert [default: none are asked for]
    #[arg(long, env = "PLANB_TLS_CLIENT_CA", requires = "tls_listen", value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,

    /// Whether clients must show a certificate, where --tls-client-ca is given
    #[arg(long, env = "PLANB_TLS_CLIENT_AUTH", default_value = "required", value_name = "POLICY")]
    tls_client_auth: ClientAuth,

    /// Secret of at least 16 characters, the same for all instances, under which they share the keys of session tickets on
    /// the write Redis (planb:tickets), so that clients resume on any of them; better set in the environment [default:
    /// none, keys are not shared]
    #[arg(long, env = "PLANB_TLS_TICKET_SECRET", hide_env_values = true, value_parser = secret, value_name = "SECRET")]
    tls_ticket_secret: Option<Secret>,

    /// How long a ticket key makes tickets, from 1s to 48h; clients can resume for twice as long
    #[arg(long, env = "PLANB_TLS_TICKET_ROTATION", default_value = "6h", value_parser = ticket_rotation, value_name = "DURATION")]
    tls_ticket_rotation: Duration,

    /// What is done with connections to --listen: native speaks HTTP, sni passes TLS through to the backend of the name that
    /// the client asks for, without decrypting it; fasthttp is accepted for compatibility and means native
    #[arg(long, env = "PLANB_ENGINE", default_value = "native", value_name = "ENGINE")]
    engine: EngineName,

    /// Address for Prometheus' /metrics [default: none]
    #[arg(long, env = "PLANB_METRICS_ADDRESS", value_parser = address, value_name = "HOST:PORT")]
    metrics_address: Option<SocketAddr>,

    /// Whether, with sentinels, routes are read from the master, or from a healthy replica, and from the master only while
    /// there is none
    #[arg(long, env = "PLANB_READ_REDIS_SENTINEL_ROLE", default_value = "replica", value_name = "ROLE")]
    read_redis_sentinel_role: SentinelRole,

    #[command(flatten)]
    read_redis: ReadRedis,

    #[command(flatten)]
    write_redis: WriteRedis,

    /// Where access log lines go: a file's path, "syslog", "stdout" or "none"
    #[arg(long, env = "PLANB_ACCESS_LOG", default_value = "./access.log", value_name = "TARGET")]
    access_log: LogTarget,

    #[expect(clippy::doc_markdown, reason = "this is the help text")]
    /// Folder of pages for answers that are not a backend's, named as Hipache's: error_400.html and error_503.html, and
    /// error_default.html for whatever has none; HUP reads them again [default: none, they are plain text]
    #[arg(long, env = "PLANB_ERROR_PAGES", value_name = "DIR")]
    error_pages: Option<PathBuf>,

    /// Seconds from choosing a backend to the end of its response head; 0 for no limit
    #[arg(long, env = "PLANB_REQUEST_TIMEOUT", default_value = "30", value_parser = seconds, value_name = "SECONDS")]
    request_timeout: Duration,

    /// Seconds to connect to a backend, TLS handshake included; 0 for the system's limit
    #[arg(long, env = "PLANB_DIAL_TIMEOUT", default_value = "10", value_parser = seconds, value_name = "SECONDS")]
    dial_timeout: Duration,

    /// Limit for receiving a whole request with its body; 0s for none
    #[arg(long, env = "PLANB_CLIENT_READ_TIMEOUT", default_value = "0s", value_parser = duration, value_name = "DURATION")]
    client_read_timeout: Duration,

    /// Limit for receiving a request's head; 0s for none
    #[arg(long, env = "PLANB_CLIENT_READ_HEADER_TIMEOUT", default_value = "0s", value_parser = duration, value_name = "DURATION")]
    client_read_header_timeout: Duration,

    /// Limit from a request's head to the end of its response; 0s for none
    #[arg(long, env = "PLANB_CLIENT_WRITE_TIMEOUT", default_value = "0s", value_parser = duration, value_name = "DURATION")]
    client_write_timeout: Duration,

    /// Limit between two requests on a connection; 0s for none
    #[arg(long, env = "PLANB_CLIENT_IDLE_TIMEOUT", default_value = "0s", value_parser = duration, value_name = "DURATION")]
    client_idle_timeout: Duration,

    /// Seconds that a backend which cannot be reached stays out of rotation; 0 means 30, and "none" leaves it in
    #[arg(long, env = "PLANB_DEAD_BACKEND_TIME", default_value = "30", value_parser = dead_backend_time, value_name = "SECONDS")]
    dead_backend_time: Duration,

    /// Also take a backend out of rotation that answers 501 to 599, as Hipache does, and ask the next one instead if the request
    /// is a GET, HEAD, OPTIONS or TRACE without a body. A 503 with Retry-After is no such answer, nor is a 501 to a method
    /// other than GET and HEAD. Whoever can make backends answer so can then make a host's backends leave
    #[arg(long, env = "PLANB_DEAD_BACKEND_ON_5XX", num_args = 0..=1, default_value = "false", value_parser = boolean, action = clap::ArgAction::Set, value_name = "BOOL")]
    dead_backend_on_5xx: bool,

    /// Never take a host's only backend out of rotation, as Hipache does, but try it for each request
    #[arg(long, env = "PLANB_SPARE_ONLY_BACKEND", num_args = 0..=1, default_value = "false", value_parser = boolean, action = clap::ArgAction::Set, value_name = "BOOL")]
    spare_only_backend: bool,

    /// How a request's backend is chosen. round-robin: they take turns. least-requests: of two drawn by lot, the one with
    /// fewer requests in flight. sticky: a client stays with the backend that a cookie of ours names, and new clients
    /// take turns; so do the connections of --engine sni, which cannot carry a cookie
    #[arg(long, env = "PLANB_LOAD_BALANCING", default_value = "round-robin", value_name = "POLICY")]
    load_balancing: Policy,

    /// Secret of at least 16 characters, the same for all instances, with which the cookies of --load-balancing sticky are
    /// signed, so that any of them honours them; better set in the environment [default: a random one, cookies are honoured
    /// by the process that set them]
    #[arg(long, env = "PLANB_STICKY_SECRET", hide_env_values = true, value_parser = secret, value_name = "SECRET")]
    sticky_secret: Option<Secret>,

    /// Check dead backends once a second, and put them back into rotation when, and not before, they are healthy. What a healthy
    /// response is may be said in the hash healthcheck:HOST (path, status, body). Each dead backend is checked by one of the
    /// instances with this flag
    #[arg(long, env = "PLANB_ACTIVE_HEALTHCHECK", num_args = 0..=1, default_value = "false", value_parser = boolean, action = clap::ArgAction::Set, value_name = "BOOL")]
    active_healthcheck: bool,

    /// Name in which this instance holds the leases of dead backends that it checks; no other instance may have the same
    /// [default: the system's host name]
    #[arg(long, env = "PLANB_HOSTNAME", value_parser = holder, value_name = "NAME")]
    hostname: Option<String>,

    /// Milliseconds that response bytes may be held back; accepted for compatibility: they never are
    #[arg(long, env = "PLANB_FLUSH_INTERVAL", default_value = "10", value_parser = number::<i64>, value_name = "MILLISECONDS")]
    flush_interval: i64,

    /// Header that carries request ids; one is added where it is missing [default: none]
    #[arg(long, env = "PLANB_REQUEST_ID_HEADER", value_parser = header_name, value_name = "NAME")]
    request_id_header: Option<HeaderName>,

    /// Accepted for compatibility; changes nothing: routes are always in memory, and never stale
    #[arg(long, env = "PLANB_BACKEND_CACHE", num_args = 0..=1, default_value = "false", value_parser = boolean, action = clap::ArgAction::Set, value_name = "BOOL")]
    backend_cache: bool,

    /// DNS servers for the names of backends, by their addresses; several with commas between, or the flag several times
    /// [default: those of /etc/resolv.conf]
    #[arg(long, env = "PLANB_DNS_SERVER", value_delimiter = ',', value_parser = dns_server, value_name = "IP:PORT")]
    dns_server: Vec<SocketAddr>,

    /// Whether to verify the certificates of https backends. If not, nothing of them is looked at: any will do, and whoever
    /// gets between PlanB and a backend can read and change what is sent; only who merely listens cannot
    #[arg(long, env = "PLANB_BACKEND_TLS_VERIFY", num_args = 0..=1, default_value = "true", value_parser = boolean, action = clap::ArgAction::Set, value_name = "BOOL")]
    backend_tls_verify: bool,

    /// Client connections served at the same time, tunnels included; 0 for half of the process's file descriptors
    #[arg(long, env = "PLANB_MAX_CONNECTIONS", default_value = "0", value_parser = number::<usize>, value_name = "NUMBER")]
    max_connections: usize,

    /// Longest head of a request or a response, in bytes
    #[arg(long, env = "PLANB_MAX_HEADER_SIZE", default_value_t = 1_048_576, value_parser = at_least_8192, value_name = "BYTES")]
    max_header_size: usize,

    /// Most header lines of a request or a response
    #[arg(long, env = "PLANB_MAX_HEADERS", default_value_t = 1_000, value_parser = number::<usize>, value_name = "NUMBER")]
    max_headers: usize,

    /// Threads that serve clients [default: one per core]
    #[arg(long, env = "PLANB_WORKERS", value_parser = positive, value_name = "NUMBER")]
    workers: Option<NonZeroUsize>,

    /// How often the routing table is compared with all of Redis, to prove that no event was missed
    #[arg(long, env = "PLANB_RECONCILE_INTERVAL", default_value = "1m", value_parser = positive_duration, value_name = "DURATION")]
    reconcile_interval: Duration,

    /// How long to keep routes and certificates that a read Redis without its data does not mention: one that has restarted,
    /// or was exchanged, and lacks all or more than half of them; 0s to believe it at once
    #[arg(long, env = "PLANB_SHRINK_GRACE", default_value = "30s", value_parser = duration, value_name = "DURATION")]
    shrink_grace: Duration,

    /// File in which routes, dead marks and certificates are kept (mode 0600), for a start while Redis is away [default:
    /// none]
    #[arg(long, env = "PLANB_SNAPSHOT_FILE", value_name = "PATH")]
    snapshot_file: Option<PathBuf>,

    /// How long to wait for Redis at start before what the snapshot file holds is served; without that file PlanB waits for
    /// as long as it takes
    #[arg(long, env = "PLANB_STARTUP_WAIT", default_value = "5s", value_parser = duration, value_name = "DURATION")]
    startup_wait: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum EngineName {
    Native,
    Sni,
    Fasthttp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ClientAuth {
    Required,
    Optional,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Policy {
    RoundRobin,
    LeastRequests,
    Sticky,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SentinelRole {
    Master,
    Replica,
}

impl Cli {
    /// Reads the process's arguments and environment. Prints help, the version, or one line about what is wrong, and
    /// exits, where that is called for.
    pub fn from_process() -> Self {
        let read = Self::read(std::env::args_os()).and_then(|cli| {
            let problem = cli.flags.contradiction();
            problem.map_or(Ok(cli), |text| Err(clap::Error::raw(ErrorKind::ArgumentConflict, text)))
        });
        read.unwrap_or_else(|error| {
            if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
                error.exit();
            }
            let text = error.to_string();
            let reason = text.lines().next().unwrap_or_default();
            eprintln!("planb: {} (try planb --help)", reason.strip_prefix("error: ").unwrap_or(reason));
            std::process::exit(2);
        })
    }

    /// Reads a command line, the program's name first. An empty variable of the environment is an unset one.
    fn read(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        command.build();
        let Arguments { words, emptied, stray } = Arguments::read(&command, words);
        let is_void = |variable: &std::ffi::OsStr| std::env::var_os(variable).is_some_and(|value| value.is_empty());
        let command = Self::command().mut_args(|arg| {
            let is_emptied = arg.get_long().is_some_and(|name| emptied.contains(name));
            if is_emptied || arg.get_env().is_some_and(is_void) { arg.env(None) } else { arg }
        });
        let mut cli = Self::from_arg_matches(&command.try_get_matches_from(words)?)?;
        cli.stray = stray;
        Ok(cli)
    }

    /// Logs that there are words on the command line which mean nothing, since that may be a mistake. Flags among them may be
    /// secret.
    pub fn warn_of_stray_words(&self) {
        if let Some((first, rest)) = self.stray.split_first() {
            warn!("{first:?} is no flag, and {} words behind it are ignored, flags included", rest.len());
        }
    }

    /// What to do instead of proxying, if anything.
    pub fn subcommand(&self) -> Option<Command> {
        self.command
    }

    /// The configuration that the flags describe.
    ///
    /// # Errors
    /// When a file of Redis' authorities is not usable.
    pub fn into_config(self) -> Result<Config, store::TlsError> {
        let flags = self.flags;
        let read = flags.read_redis.into_place(flags.read_redis_sentinel_role.into())?;
        let write = flags.write_redis.into_place(Purpose::Write)?;
        let unless_zero = |time: Duration| Some(time).filter(|time| !time.is_zero());
        let handshake = tls::Config {
            preset: flags.tls_preset,
            client_ca: flags
                .tls_client_ca
                .map(|path| ClientCa { path, required: flags.tls_client_auth == ClientAuth::Required }),
        };
        let tls = flags.tls_listen.map(|listen| Tls {
            listen,
            source: flags.load_certificates_from,
            handshake,
            ticket_rotation: flags.tls_ticket_rotation,
            ticket_secret: flags.tls_ticket_secret,
        });
        Ok(Config {
            listen: flags.listen.0,
            engine: match flags.engine {
                EngineName::Native | EngineName::Fasthttp => Engine::Native,
                EngineName::Sni => Engine::Sni,
            },
            tls,
            metrics: flags.metrics_address,
            workers: flags.workers.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get),
            access_log: flags.access_log,
            error_pages: flags.error_pages,
            sync: sync::Config {
                place: read.clone(),
                reconcile_every: flags.reconcile_interval,
                shrink_grace: flags.shrink_grace,
                snapshot_file: flags.snapshot_file,
                startup_wait: flags.startup_wait,
            },
            health: flags.active_healthcheck.then(|| health::Config {
                place: write.clone(),
                holder: flags.hostname.unwrap_or_else(system_hostname),
                max_headers: flags.max_headers,
            }),
            store: store::Config { read, write },
            dns_servers: flags.dns_server,
            proxy: proxy::Config {
                request_timeout: unless_zero(flags.request_timeout),
                dial_timeout: unless_zero(flags.dial_timeout),
                client_timeouts: ClientTimeouts {
                    read: unless_zero(flags.client_read_timeout),
                    read_header: unless_zero(flags.client_read_header_timeout),
                    write: unless_zero(flags.client_write_timeout),
                    idle: unless_zero(flags.client_idle_timeout),
                },
                handshake_timeout: unless_zero(flags.client_read_header_timeout).unwrap_or(HANDSHAKE_TIMEOUT),
                dead_backend_time: flags.dead_backend_time,
                dead_backend_on_5xx: flags.dead_backend_on_5xx,
                spare_only_backend: flags.spare_only_backend,
                request_id_header: flags.request_id_header.map(Into::into),
                max_connections: flags.max_connections,
                max_header_size: flags.max_header_size,
                max_headers: flags.max_headers,
                verify_backends: flags.backend_tls_verify,
                load_balancing: match flags.load_balancing {
                    Policy::RoundRobin => LoadBalancing::RoundRobin,
                    Policy::LeastRequests => LoadBalancing::LeastRequests,
                    Policy::Sticky => LoadBalancing::Sticky(flags.sticky_secret),
                },
            },
        })
    }
}

impl Flags {
    /// What makes no sense together.
    fn contradiction(&self) -> Option<&'static str> {
        let listening = match (self.listen.0, self.engine, self.tls_listen) {
            (None, EngineName::Sni, _) => Some("--engine sni has nowhere to listen: --listen is disabled"),
            (None, _, None) => Some("there is nowhere to listen: --listen is disabled, and there is no --tls-listen"),
            _ => None,
        };
        // The parser would quote it.
        let is_short = |secret: &Option<Secret>| secret.as_ref().is_some_and(|secret| secret.0.len() < SHORTEST_SECRET);
        listening
            .or(is_short(&self.tls_ticket_secret).then_some(SHORT_TICKET_SECRET))
            .or(is_short(&self.sticky_secret).then_some(SHORT_STICKY_SECRET))
            .or_else(|| self.read_redis.contradiction())
            .or_else(|| self.write_redis.contradiction())
    }
}

impl From<SentinelRole> for Purpose {
    fn from(role: SentinelRole) -> Self {
        match role {
            SentinelRole::Master => Self::ReadMaster,
            SentinelRole::Replica => Self::ReadReplica,
        }
    }
}

/// The system's name, as the original uses it.
fn system_hostname() -> String {
    let name = hostname::get().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // Without a name of its own, it must not be taken for another without one.
    if name.is_empty() { format!("planb-{}", uuid::Uuid::new_v4()) } else { name }
}

/// For a TLS handshake, or a ClientHello, where heads have no limit.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Characters of a secret that is not easily guessed.
const SHORTEST_SECRET: usize = 16;
const SHORT_TICKET_SECRET: &str = "--tls-ticket-secret has fewer than 16 characters";
const SHORT_STICKY_SECRET: &str = "--sticky-secret has fewer than 16 characters";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Login, Password, Place};

    fn read(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::read(["planb"].iter().chain(arguments).map(OsString::from))
    }

    fn config(arguments: &[&str]) -> Config {
        read(arguments).unwrap().into_config().unwrap()
    }

    fn contradiction(arguments: &[&str]) -> bool {
        read(arguments).unwrap().flags.contradiction().is_some()
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_the_contracts() {
        let config = config(&[]);
        assert_eq!(config.listen.unwrap().to_string(), "0.0.0.0:8989");
        assert!(config.tls.is_none() && config.engine == Engine::Native);
        assert_eq!(config.proxy.handshake_timeout, Duration::from_secs(10));
        assert_eq!(config.access_log, LogTarget::File("./access.log".into()));
        assert_eq!(config.store.read.to_string(), "127.0.0.1:6379");
        assert_eq!(config.proxy.request_timeout, Some(Duration::from_secs(30)));
        assert_eq!(config.proxy.dial_timeout, Some(Duration::from_secs(10)));
        assert_eq!(config.proxy.dead_backend_time, Duration::from_secs(30));
        assert!(config.proxy.client_timeouts.idle.is_none() && config.proxy.verify_backends);
        assert_eq!(config.proxy.load_balancing, LoadBalancing::RoundRobin);
        assert!(config.health.is_none());
    }

    #[test]
    fn an_empty_host_means_all_addresses() {
        assert_eq!(config(&["--listen", ":80"]).listen.unwrap().to_string(), "[::]:80");
        assert_eq!(config(&["-l", "127.0.0.1:81"]).listen.unwrap().to_string(), "127.0.0.1:81");
        assert_eq!(config(&["--listen=disabled"]).listen, None);
    }

    #[test]
    fn tls_has_its_defaults() {
        let tls = config(&["--tls-listen", ":443"]).tls.unwrap();
        assert_eq!(tls.handshake.preset, Preset::Modern);
        assert_eq!((tls.source, tls.handshake.client_ca), (CertificateSource::Redis, None));
        assert_eq!((tls.ticket_rotation, tls.ticket_secret), (Duration::from_hours(6), None));
        let arguments = ["--tls-listen=:443", "--tls-client-ca=ca.pem", "--load-certificates-from=certs"];
        let tls = config(&arguments).tls.unwrap();
        assert_eq!(tls.handshake.client_ca, Some(ClientCa { path: "ca.pem".into(), required: true }));
        assert_eq!(tls.source, CertificateSource::Folder("certs".into()));
        assert!(
            config(&["--engine", "sni"]).engine == Engine::Sni
                && config(&["--engine=fasthttp"]).engine == Engine::Native
        );
    }

    #[test]
    fn no_secret_is_shown() {
        const SECRET: &str = "correct horse battery staple";
        let config = config(&[
            "--tls-listen=:443",
            &format!("--tls-ticket-secret={SECRET}"),
            "--load-balancing=sticky",
            &format!("--sticky-secret={SECRET}"),
        ]);
        assert_eq!(config.proxy.load_balancing, LoadBalancing::Sticky(Some(Secret(SECRET.to_owned()))));
        assert!(!format!("{config:?}").contains("horse"));
        let cli = read(&["--read-redis-password=battery", "--write-redis-password=battery"]).unwrap();
        assert!(!format!("{cli:?}").contains("battery"));
        assert!(!format!("{:?}", cli.into_config().unwrap()).contains("battery"));
    }

    #[test]
    fn each_redis_has_its_own_login() {
        let config = config(&[
            "--read-redis-username=reader",
            "--read-redis-password-file=/run/secrets/redis",
            "--write-redis-username=",
            "--write-redis-password=sesame",
            "--write-redis-tls",
        ])
        .store;
        let (Place::At(read), Place::At(write)) = (config.read, config.write) else { panic!("no sentinel was named") };
        let from_file = Password::File("/run/secrets/redis".into());
        assert_eq!(read.login, Login { user: Some("reader".to_owned()), password: Some(from_file) });
        let sesame = Password::Text(Secret("sesame".to_owned()));
        assert_eq!(write.login, Login { user: None, password: Some(sesame) });
        assert!(read.tls.is_none() && write.tls.is_some());
    }

    #[test]
    fn somewhere_clients_must_connect() {
        assert!(contradiction(&["--listen=disabled"]));
        assert!(contradiction(&["--listen=disabled", "--tls-listen=:443", "--engine=sni"]));
        assert!(!contradiction(&["--listen=disabled", "--tls-listen=:443"]));
    }

    #[test]
    fn sentinels_are_many_and_take_their_own_password() {
        let sentinels = ["--read-redis-sentinel-addrs=s1:26379, [::1]:26380", "--read-redis-sentinel-name=main"];
        let passwords = ["--read-redis-password=horse", "--read-redis-sentinel-password=battery"];
        let config = config(&[sentinels, passwords].concat());
        assert!(matches!(&config.store.read, Place::Sentinel(_)) && matches!(&config.store.write, Place::At(_)));
        let shown = format!("{config:?}");
        assert!(shown.contains("s1:26379") && shown.contains("::1:26380") && shown.contains("ReadReplica"), "{shown}");
        assert!(!shown.contains("horse") && !shown.contains("battery"));
    }

    #[test]
    fn half_of_what_sentinels_need_is_a_contradiction() {
        for kind in ["read", "write"] {
            for half in ["addrs=s1:26379", "name=main"] {
                let flag = format!("--{kind}-redis-sentinel-{half}");
                let problem = read(&[&flag]).unwrap().flags.contradiction();
                assert!(problem.is_some_and(|text| text.starts_with(&flag[..flag.find('=').unwrap()])), "{flag}");
            }
        }
    }

    #[test]
    fn a_secret_is_not_easily_guessed() {
        assert!(contradiction(&["--tls-ticket-secret=fifteen letters"]));
        assert!(!contradiction(&["--tls-ticket-secret=sixteen letters!"]));
        assert!(contradiction(&["--sticky-secret=fifteen letters"]));
        assert!(!contradiction(&["--sticky-secret=sixteen letters!"]));
    }

    #[test]
    fn a_login_must_make_sense() {
        assert!(contradiction(&["--read-redis-password=a", "--read-redis-password-file=b"]));
        assert!(contradiction(&["--write-redis-password=a", "--write-redis-password-file=b"]));
        assert!(contradiction(&["--read-redis-tls-ca=ca.pem"]));
        assert!(contradiction(&["--write-redis-tls-ca=ca.pem", "--write-redis-tls=false"]));
        assert!(contradiction(&["--read-redis-tls", "--read-redis-network=unix", "--read-redis-host=/run/redis.sock"]));
        assert!(contradiction(&["--read-redis-tls", "--read-redis-host=not a name"]));
        assert!(!contradiction(&["--read-redis-password=", "--read-redis-password-file=b"]));
        assert!(!contradiction(&["--read-redis-password=a", "--write-redis-password-file=b"]));
        assert!(!contradiction(&["--read-redis-tls", "--read-redis-tls-ca=ca.pem", "--read-redis-host=::1"]));
    }

    #[test]
    fn booleans_take_an_optional_value() {
        assert!(!config(&["--backend-tls-verify", "false"]).proxy.verify_backends);
        assert!(!config(&["--backend-tls-verify=false"]).proxy.verify_backends);
        assert!(config(&["--backend-tls-verify", "--backend-cache"]).proxy.verify_backends);
        config(&["--backend-cache=true", "--flush-interval=10"]);
        assert!(
            config(&["--active-healthcheck"]).health.is_some()
                && config(&["--active-healthcheck=true"]).health.is_some()
        );
        assert!(config(&["--active-healthcheck=false"]).health.is_none());
        let marking = |arguments| {
            let config = config(arguments).proxy;
            (config.dead_backend_on_5xx, config.spare_only_backend)
        };
        assert_eq!(marking(&["--dead-backend-on-5xx", "--spare-only-backend=true"]), (true, true));
        assert_eq!(marking(&["--dead-backend-on-5xx=false"]), (false, false));
    }

    #[test]
    fn leases_are_held_in_the_system_s_name_or_another() {
        let holder =
            |arguments: &[&str]| config(&[&["--active-healthcheck"], arguments].concat()).health.unwrap().holder;
        assert_eq!(holder(&[]), hostname::get().unwrap().to_str().unwrap());
        assert_eq!(holder(&["--hostname=planb-2"]), "planb-2");
        assert!(config(&["--hostname=planb-2"]).health.is_none());
    }

    #[test]
    fn durations_are_gos() {
        for (text, millis) in
            [("500ms", 500), ("1m30s", 90_000), ("0s", 0), ("0", 0), ("1.5h", 5_400_000), ("1h2m3s", 3_723_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for (text, millis) in [(".5s", 500), ("1.s", 1_000), ("+1m.5s", 60_500), ("-0", 0), ("-5s", 0), ("-.5h", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "1x", "s", ".s", "-", "5-s"] {
            assert!(duration(text).is_err(), "{text} was accepted");
        }
    }

    #[test]
    fn whole_numbers_are_gos() {
        for (text, value) in [("0", 0), ("-0", 0), ("+7", 7), ("0x1e", 30), ("0X1E", 30), ("1_0", 10), ("010", 8)] {
            assert_eq!(number::<i64>(text), Ok(value), "{text}");
        }
        for (text, value) in [("0b11", 3), ("0o17", 15), ("0_7", 7), ("0x_ff", 255), ("-0x10", -16)] {
            assert_eq!(number::<i64>(text), Ok(value), "{text}");
        }
        assert_eq!(number::<i64>("-9223372036854775808"), Ok(i64::MIN));
        for text in ["", "-", "x", "1__0", "_1", "1_", "0x", "0b2", "08", "1.5", "30s", "9223372036854775808"] {
            assert!(number::<i64>(text).is_err(), "{text} was accepted");
        }
        assert!(number::<u16>("65536").is_err() && number::<u16>("-1").is_err());
    }

    #[test]
    fn booleans_are_gos() {
        for text in ["1", "t", "T", "true", "TRUE", "True"] {
            assert!(config(&[&format!("-active-healthcheck={text}")]).health.is_some(), "{text}");
        }
        for text in ["0", "f", "F", "false", "FALSE", "False", ""] {
            assert!(config(&[&format!("-active-healthcheck={text}")]).health.is_none(), "{text}");
        }
        assert!(read(&["--active-healthcheck=yes"]).is_err());
        assert!(config(&["--active-healthcheck=0", "--active-healthcheck"]).health.is_some(), "the last counts");
    }

    #[test]
    fn the_last_of_a_flag_given_twice_counts() {
        let twice = config(&["-l", ":80", "--request-timeout=0x1e", "--listen=127.0.0.1:81", "-request-timeout", "5"]);
        assert_eq!(twice.listen.unwrap().to_string(), "127.0.0.1:81");
        assert_eq!(twice.proxy.request_timeout, Some(Duration::from_secs(5)));
    }

    #[test]
    fn what_is_empty_has_its_default() {
        let config = config(&["--listen=", "--tls-listen=", "--read-redis-host", "", "--hostname=", "--access-log="]);
        assert_eq!(config.listen.unwrap().to_string(), "0.0.0.0:8989");
        assert!(config.tls.is_none() && config.access_log == LogTarget::None);
        assert_eq!(config.store.read.to_string(), "127.0.0.1:6379");
    }

    #[test]
    fn a_dead_backend_returns_after_30_seconds_unless_something_else_is_said() {
        let time = |text: &str| config(&["--dead-backend-time", text]).proxy.dead_backend_time;
        for (text, seconds) in [("0", 30), ("", 30), ("5", 5), ("none", 0), ("-1", 0)] {
            assert_eq!(time(text), Duration::from_secs(seconds), "{text}");
        }
        assert!(read(&["--dead-backend-time=never"]).is_err());
    }

    #[test]
    fn less_than_nothing_is_nothing() {
        let config = config(&["--request-timeout", "-5", "-dial-timeout=-1", "--client-idle-timeout=-5s"]);
        assert_eq!((config.proxy.request_timeout, config.proxy.dial_timeout), (None, None));
        assert_eq!(config.proxy.client_timeouts.idle, None);
        assert!(read(&["--reconcile-interval=-5s"]).is_err(), "without it nothing would be proved");
    }

    #[test]
    fn zero_means_no_limit() {
        let config = config(&["--request-timeout", "0", "--dial-timeout=0", "--client-idle-timeout", "5s"]);
        assert_eq!((config.proxy.request_timeout, config.proxy.dial_timeout), (None, None));
        assert_eq!(config.proxy.client_timeouts.idle, Some(Duration::from_secs(5)));
    }

    #[test]
    fn dns_servers_add_up() {
        assert!(config(&[]).dns_servers.is_empty());
        let servers = config(&["--dns-server=127.0.0.1:8600,[::1]:53", "--dns-server", "10.0.0.1:53"]).dns_servers;
        assert_eq!(
            servers.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["127.0.0.1:8600", "[::1]:53", "10.0.0.1:53"]
        );
    }

    #[test]
    fn a_socket_is_named_by_its_path() {
        let config = config(&["--read-redis-network", "unix", "--read-redis-host", "/run/redis.sock"]);
        assert_eq!(config.store.read.to_string(), "/run/redis.sock");
    }

    #[test]
    fn bad_values_are_refused() {
        for arguments in [
            ["--listen", "nonsense"],
            ["--read-redis-network", "udp"],
            ["--read-redis-db", "-1"],
            ["--request-timeout", "30s"],
            ["--client-read-timeout", "5"],
            ["--request-id-header", "a b"],
            ["--reconcile-interval", "0s"],
            ["--engine", "nginx"],
            ["--load-balancing", "random"],
            ["--tls-preset", "weak"],
            ["--tls-ticket-rotation", "49h"],
            ["--tls-client-ca", "ca.pem"],
            ["--read-redis-sentinel-addrs", "s1"],
            ["--read-redis-sentinel-addrs", "s1:26379,"],
            ["--write-redis-sentinel-addrs", "s1:0"],
            ["--write-redis-sentinel-addrs", ":26379"],
            ["--read-redis-sentinel-role", "slave"],
            ["--dns-server", "localhost:53"],
            ["--dns-server", "127.0.0.1"],
            ["--dns-server", "127.0.0.1:0"],
            ["--dns-server", "127.0.0.1:53,"],
        ] {
            assert!(read(&arguments).is_err(), "{arguments:?}");
        }
    }
}
