//! What the process is to do, each part's share in the part's own form.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::{health, proxy, secret::Secret, store, sync, telemetry::LogTarget, tls};

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect without TLS, or, with the SNI engine, with TLS that is passed through.
    pub listen: Option<SocketAddr>,
    /// What is done with connections to [`Config::listen`].
    pub engine: Engine,
    /// Where clients connect with TLS that ends here.
    pub tls: Option<Tls>,
    /// Where `/metrics` is served.
    pub metrics: Option<SocketAddr>,
    /// Threads that serve clients.
    pub workers: usize,
    /// Where access log lines go.
    pub access_log: LogTarget,
    /// The folder of pages for answers that are not a backend's.
    pub error_pages: Option<PathBuf>,
    /// The Redis servers.
    pub store: store::Config,
    /// How the routing table is kept.
    pub sync: sync::Config,
    /// How dead backends are checked; `None` to leave that to time.
    pub health: Option<health::Config>,
    /// Who is asked for the addresses of backends that are known by name; nobody for those whom /etc/resolv.conf names.
    pub dns_servers: Vec<SocketAddr>,
    /// How requests are handled.
    pub proxy: proxy::Config,
}

/// What is done with a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// HTTP/1.1 is spoken, and HTTP/2 under TLS.
    Native,
    /// HTTP/1.1 is spoken, and nothing else.
    Fasthttp,
    /// TLS is passed through by the name in its ClientHello.
    Sni,
}

/// TLS that ends here.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where certificates come from.
    pub source: tls::CertificateSource,
    /// How handshakes are done.
    pub handshake: tls::Config,
    /// How long a ticket key makes tickets; they are accepted for twice as long.
    pub ticket_rotation: Duration,
    /// What ticket keys are sealed with on the write Redis. Without it they are not shared.
    pub ticket_secret: Option<Secret>,
}
