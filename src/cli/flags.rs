//! Every flag but those of Redis, as an operator writes it. The comments on fields are the text of `--help`.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use http::HeaderName;

use super::{
    redis::{ReadRedis, WriteRedis},
    values::{
        Listen, address, at_least_8192, boolean, certificate_source, dead_backend_time, dns_server, duration,
        header_name, holder, number, optional_address, positive, positive_duration, seconds, secret, ticket_rotation,
    },
};
use crate::{
    proxy::Via,
    secret::Secret,
    store::Purpose,
    telemetry::LogTarget,
    tls::{CertificateSource, Preset},
};

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct Flags {
    /// Address for HTTP, or for TLS that the SNI engine passes through; an empty host (":80") means all addresses,
    /// "disabled" means none
    #[arg(short, long, env = "PLANB_LISTEN", default_value = "0.0.0.0:8989", value_parser = optional_address, value_name = "HOST:PORT")]
    pub(super) listen: Listen,

    /// Address for HTTPS (HTTP/1.1 and HTTP/2) [default: none]
    #[arg(long, env = "PLANB_TLS_LISTEN", value_parser = address, value_name = "HOST:PORT")]
    pub(super) tls_listen: Option<SocketAddr>,

    /// Which TLS versions clients may speak. No preset offers TLS 1.0, TLS 1.1 or SSL (RFC 8996), nor ciphers other than
    /// ECDHE with AEAD: the TLS library, rustls, has none of these
    #[arg(long, env = "PLANB_TLS_PRESET", default_value = "modern", value_name = "PRESET")]
    pub(super) tls_preset: Preset,

    /// Where certificates come from: "redis" (hashes tls:NAME with the fields certificate and key), or a folder of NAME.crt
    /// and NAME.key; NAME may be *.DOMAIN, or * for clients that name no known host
    #[arg(long, env = "PLANB_LOAD_CERTIFICATES_FROM", default_value = "redis", value_parser = certificate_source, value_name = "SOURCE")]
    pub(super) load_certificates_from: CertificateSource,

    /// PEM file of the authorities whose client certificates are accepted; the verified subject is passed on in
    /// X-Forwarded-Client-Cert [default: none are asked for]
    #[arg(long, env = "PLANB_TLS_CLIENT_CA", requires = "tls_listen", value_name = "FILE")]
    pub(super) tls_client_ca: Option<PathBuf>,

    /// Whether clients must show a certificate, where --tls-client-ca is given
    #[arg(long, env = "PLANB_TLS_CLIENT_AUTH", default_value = "required", value_name = "POLICY")]
    pub(super) tls_client_auth: ClientAuth,

    /// Secret of at least 16 characters, the same for all instances, under which they share the keys of session tickets on
    /// the write Redis (planb:tickets), so that clients resume on any of them; better set in the environment [default:
    /// none, keys are not shared]
    #[arg(long, env = "PLANB_TLS_TICKET_SECRET", hide_env_values = true, value_parser = secret, value_name = "SECRET")]
    pub(super) tls_ticket_secret: Option<Secret>,

    /// How long a ticket key makes tickets, from 1s to 48h; clients can resume for twice as long
    #[arg(long, env = "PLANB_TLS_TICKET_ROTATION", default_value = "6h", value_parser = ticket_rotation, value_name = "DURATION")]
    pub(super) tls_ticket_rotation: Duration,

    /// What is spoken with clients: native is HTTP/1.1 and, over TLS, HTTP/2; fasthttp is the same without HTTP/2; sni passes
    /// TLS through to the backend of the name that the client asks for, without decrypting it
    #[arg(long, env = "PLANB_ENGINE", default_value = "native", value_name = "ENGINE")]
    pub(super) engine: EngineName,

    /// Address for Prometheus' /metrics [default: none]
    #[arg(long, env = "PLANB_METRICS_ADDRESS", value_parser = address, value_name = "HOST:PORT")]
    pub(super) metrics_address: Option<SocketAddr>,

    /// Whether, with sentinels, routes are read from the master, or from a healthy replica, and from the master only while
    /// there is none
    #[arg(long, env = "PLANB_READ_REDIS_SENTINEL_ROLE", default_value = "replica", value_name = "ROLE")]
    pub(super) read_redis_sentinel_role: SentinelRole,

    #[command(flatten)]
    pub(super) read_redis: ReadRedis,

    #[command(flatten)]
    pub(super) write_redis: WriteRedis,

    /// Where access log lines go: a file's path, "syslog", "stdout" or "none"; an empty value means
    /// none as well
    #[arg(long, env = "PLANB_ACCESS_LOG", default_value = "./access.log", value_name = "TARGET")]
    pub(super) access_log: LogTarget,

    #[expect(clippy::doc_markdown, reason = "this is the help text")]
    /// Folder of pages for answers that are not a backend's, named as Hipache's: error_400.html and error_503.html, and
    /// error_default.html for whatever has none; HUP reads them again [default: none, they are plain text]
    #[arg(long, env = "PLANB_ERROR_PAGES", value_name = "DIR")]
    pub(super) error_pages: Option<PathBuf>,

    /// Seconds from choosing a backend to the end of its response head; 0 for no limit
    #[arg(long, env = "PLANB_REQUEST_TIMEOUT", default_value = "30", value_parser = seconds, value_name = "SECONDS")]
    pub(super) request_timeout: Duration,

    /// Seconds to connect to a backend, TLS handshake included; 0 for the system's limit
    #[arg(long, env = "PLANB_DIAL_TIMEOUT", default_value = "10", value_parser = seconds, value_name = "SECONDS")]
    pub(super) dial_timeout: Duration,

    /// Limit for receiving a whole request with its body; 0s for none
    #[arg(long, env = "PLANB_CLIENT_READ_TIMEOUT", default_value = "0s", value_parser = duration, value_name = "DURATION")]
    pub(super) client_read_timeout: Duration,

    /// Limit for receiving a request's head; 0s for none but a minute from the head's first byte
    #[arg(long, env = "PLANB_CLIENT_READ_HEADER_TIMEOUT", default_value = "0s", value_parser = duration, value_name = "DURATION")]
    pub(super) client_read_header_timeout: Duration,

    /// Limit from a request's head to the end of its response; 0s for none
    #[arg(long, env = "PLANB_CLIENT_WRITE_TIMEOUT", default_value = "0s", value_parser = duration, value_name = "DURATION")]
    pub(super) client_write_timeout: Duration,

    /// Limit between two requests on a connection; 0s for none
    #[arg(long, env = "PLANB_CLIENT_IDLE_TIMEOUT", default_value = "0s", value_parser = duration, value_name = "DURATION")]
    pub(super) client_idle_timeout: Duration,

    /// Seconds that a backend which cannot be reached stays out of rotation; 0 means 30, and "none" leaves it in
    #[arg(long, env = "PLANB_DEAD_BACKEND_TIME", default_value = "30", value_parser = dead_backend_time, value_name = "SECONDS")]
    pub(super) dead_backend_time: Duration,

    /// Also take a backend out of rotation that answers 501 to 599, as Hipache does, and ask the next one instead if the request
    /// is a GET, HEAD, OPTIONS or TRACE without a body. A 503 with Retry-After is no such answer, nor is a 501 to a method
    /// other than GET and HEAD. Whoever can make backends answer so can then make a host's backends leave
    #[arg(long, env = "PLANB_DEAD_BACKEND_ON_5XX", num_args = 0..=1, default_value = "false", value_parser = boolean, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(super) dead_backend_on_5xx: bool,

    /// Never take a host's only backend out of rotation, as Hipache does, but try it for each request
    #[arg(long, env = "PLANB_SPARE_ONLY_BACKEND", num_args = 0..=1, default_value = "false", value_parser = boolean, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(super) spare_only_backend: bool,

    /// How a request's backend is chosen. round-robin: they take turns. least-requests: of two drawn by lot, the one with
    /// fewer requests in flight. sticky: a client stays with the backend that a cookie of ours names, and new clients
    /// take turns; so do the connections of --engine sni, which cannot carry a cookie
    #[arg(long, env = "PLANB_LOAD_BALANCING", default_value = "round-robin", value_name = "POLICY")]
    pub(super) load_balancing: Policy,

    /// Secret of at least 16 characters, the same for all instances, with which the cookies of --load-balancing sticky are
    /// signed, so that any of them honours them; better set in the environment [default: a random one, cookies are honoured
    /// by the process that set them]
    #[arg(long, env = "PLANB_STICKY_SECRET", hide_env_values = true, value_parser = secret, value_name = "SECRET")]
    pub(super) sticky_secret: Option<Secret>,

    /// Check dead backends once a second, and put them back into rotation when, and not before, they are healthy. What a healthy
    /// response is may be said in the hash healthcheck:HOST (path, status, body). Each dead backend is checked by one of the
    /// instances with this flag
    #[arg(long, env = "PLANB_ACTIVE_HEALTHCHECK", num_args = 0..=1, default_value = "false", value_parser = boolean, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(super) active_healthcheck: bool,

    /// Name in which this instance holds the leases of dead backends that it checks; no other instance may have the same
    /// [default: the system's host name]
    #[arg(long, env = "PLANB_HOSTNAME", value_parser = holder, value_name = "NAME")]
    pub(super) hostname: Option<String>,

    /// Milliseconds that response bytes may be held back; accepted for compatibility: they never are
    #[arg(long, env = "PLANB_FLUSH_INTERVAL", default_value = "10", value_parser = number::<i64>, value_name = "MILLISECONDS")]
    pub(super) flush_interval: i64,

    /// Header that carries request ids; one is added where it is missing [default: none]
    #[arg(long, env = "PLANB_REQUEST_ID_HEADER", value_parser = header_name, value_name = "NAME")]
    pub(super) request_id_header: Option<HeaderName>,

    /// Name that requests to backends have in Via, by which one that comes back, since a backend leads to this proxy, is known
    /// and refused (508); none for no Via [default: a name of this process's own]
    #[arg(long, env = "PLANB_VIA", value_name = "NAME")]
    pub(super) via: Option<Via>,

    /// Accepted for compatibility; changes nothing: routes are always in memory, and never stale
    #[arg(long, env = "PLANB_BACKEND_CACHE", num_args = 0..=1, default_value = "false", value_parser = boolean, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(super) backend_cache: bool,

    /// DNS servers for the names of backends, by their addresses; several with commas between, or the flag several times
    /// [default: those of /etc/resolv.conf]
    #[arg(long, env = "PLANB_DNS_SERVER", value_delimiter = ',', value_parser = dns_server, value_name = "IP:PORT")]
    pub(super) dns_server: Vec<SocketAddr>,

    /// Whether to verify the certificates of https backends. If not, nothing of them is looked at: any will do, and whoever
    /// gets between PlanB and a backend can read and change what is sent; only who merely listens cannot
    #[arg(long, env = "PLANB_BACKEND_TLS_VERIFY", num_args = 0..=1, default_value = "true", value_parser = boolean, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(super) backend_tls_verify: bool,

    /// Client connections served at the same time, tunnels included; 0 for half of the process's file descriptors
    #[arg(long, env = "PLANB_MAX_CONNECTIONS", default_value = "0", value_parser = number::<usize>, value_name = "NUMBER")]
    pub(super) max_connections: usize,

    /// Memory of the whole process, in bytes, beyond which client connections are closed: first those that have moved nothing
    /// for five seconds although something waits for them, then those that wait for a request, then others whose clients hold
    /// something up; 0 for half of the machine's, or of what the control group allows
    #[arg(long, env = "PLANB_MAX_MEMORY", default_value = "0", value_parser = number::<u64>, value_name = "BYTES")]
    pub(super) max_memory: u64,

    /// Longest head of a request or a response, in bytes
    #[arg(long, env = "PLANB_MAX_HEADER_SIZE", default_value_t = 1_048_576, value_parser = at_least_8192, value_name = "BYTES")]
    pub(super) max_header_size: usize,

    /// Most header lines of a request or a response
    #[arg(long, env = "PLANB_MAX_HEADERS", default_value_t = 1_000, value_parser = number::<usize>, value_name = "NUMBER")]
    pub(super) max_headers: usize,

    /// Threads that serve clients [default: one per core]
    #[arg(long, env = "PLANB_WORKERS", value_parser = positive, value_name = "NUMBER")]
    pub(super) workers: Option<NonZeroUsize>,

    /// How often, on average, the routing table is compared with all of Redis, to prove that no event was missed
    #[arg(long, env = "PLANB_RECONCILE_INTERVAL", default_value = "1m", value_parser = positive_duration, value_name = "DURATION")]
    pub(super) reconcile_interval: Duration,

    /// How long to keep routes and certificates that a read Redis without its data does not mention: one that has restarted,
    /// or was exchanged, and lacks all or more than half of them; 0s to believe it at once
    #[arg(long, env = "PLANB_SHRINK_GRACE", default_value = "30s", value_parser = duration, value_name = "DURATION")]
    pub(super) shrink_grace: Duration,

    /// File in which routes, dead marks and certificates are kept (mode 0600), for a start while Redis is away [default:
    /// none]
    #[arg(long, env = "PLANB_SNAPSHOT_FILE", value_name = "PATH")]
    pub(super) snapshot_file: Option<PathBuf>,

    /// How long to wait for Redis at start before what the snapshot file holds is served; without that file PlanB waits for
    /// as long as it takes
    #[arg(long, env = "PLANB_STARTUP_WAIT", default_value = "5s", value_parser = duration, value_name = "DURATION")]
    pub(super) startup_wait: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum EngineName {
    Native,
    Sni,
    Fasthttp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ClientAuth {
    Required,
    Optional,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Policy {
    RoundRobin,
    LeastRequests,
    Sticky,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum SentinelRole {
    Master,
    Replica,
}

impl Flags {
    /// What makes no sense together.
    pub(super) fn contradiction(&self) -> Option<&'static str> {
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

/// Characters of a secret that is not easily guessed.
const SHORTEST_SECRET: usize = 16;
const SHORT_TICKET_SECRET: &str = "--tls-ticket-secret has fewer than 16 characters";
const SHORT_STICKY_SECRET: &str = "--sticky-secret has fewer than 16 characters";
