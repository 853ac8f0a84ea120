//! The command line and the environment, turned into a [`Config`] once.

mod arguments;
mod flags;
mod redis;
mod values;

use std::{ffi::OsString, num::NonZeroUsize, time::Duration};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};
use tracing::warn;

use crate::{
    config::{Config, Engine, Tls},
    health,
    proxy::{self, ClientTimeouts, LoadBalancing, Via},
    store::{self, Purpose},
    sync,
    tls::{self, ClientCa},
};

use arguments::Arguments;
use flags::{ClientAuth, EngineName, Flags, Policy};

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
                        in flight have 60 seconds to finish; a second signal exits at once), HUP reopens the access log and reads certificate files and error pages again, \
                        USR1 reopens the access log and writes to standard output what the process is doing."
)]
pub struct Cli {
    /// Print the version
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: Option<bool>,

    #[command(flatten)]
    flags: Flags,

    #[command(subcommand)]
    command: Option<Command>,

    /// How many words stand behind the flags and mean nothing.
    #[arg(skip)]
    stray: usize,
}

/// What to do instead of proxying.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Command {
    /// Show a private Redis, two backends and the proxy at work on this machine, then stay up for you to try
    Demo,
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

    /// Logs that there are words on the command line which mean nothing, since that may be a mistake. None is quoted: they may be
    /// the rest of a password with a space in it.
    pub fn warn_of_stray_words(&self) {
        if self.stray > 0 {
            warn!(words = self.stray, "the end of the command line is ignored: it begins with a word that is no flag");
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
            offers_http2: !matches!(flags.engine, EngineName::Fasthttp),
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
                EngineName::Native => Engine::Native,
                EngineName::Fasthttp => Engine::Fasthttp,
                EngineName::Sni => Engine::Sni,
            },
            tls,
            metrics: flags.metrics_address,
            workers: flags.workers.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get),
            access_log: flags.access_log,
            error_pages: flags.error_pages,
            sync: sync::Config {
                place: read.clone(),
                write: write.clone(),
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
                via: flags.via.unwrap_or_else(Via::random),
                max_connections: flags.max_connections,
                max_memory: flags.max_memory,
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

/// The system's name, as the original uses it.
fn system_hostname() -> String {
    let name = hostname::get().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // Without a name of its own, it must not be taken for another without one.
    if name.is_empty() { format!("planb-{}", uuid::Uuid::new_v4()) } else { name }
}

/// For a TLS handshake, or a ClientHello, where heads have no limit.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        secret::Secret,
        store::{Login, Password, Place},
        telemetry::LogTarget,
        tls::{CertificateSource, Preset},
    };

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
                && config(&["--engine=fasthttp"]).engine == Engine::Fasthttp
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
            ["--via", "a b"],
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
