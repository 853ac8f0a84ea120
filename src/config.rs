//! What the process is to do, each part's share in the part's own form.

use std::net::SocketAddr;

use crate::{proxy, store, sync, telemetry::LogTarget};

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where `/metrics` is served.
    pub metrics: Option<SocketAddr>,
    /// Threads that serve clients.
    pub workers: usize,
    /// Where access log lines go.
    pub access_log: LogTarget,
    /// The Redis servers.
    pub store: store::Config,
    /// How the routing table is kept.
    pub sync: sync::Config,
    /// How requests are handled.
    pub proxy: proxy::Config,
}
