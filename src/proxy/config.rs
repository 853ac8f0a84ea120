//! What the proxy is told to do.

use std::time::Duration;

use super::{client_timeouts::ClientTimeouts, request_id::RequestIdHeader, via::Via};
use crate::secret::Secret;

/// How requests are handled.
#[derive(Clone, Debug)]
pub struct Config {
    /// From choosing a backend to the end of its response head; `None` means no limit.
    pub request_timeout: Option<Duration>,
    /// Look-up, connection and TLS handshake together; `None` means the system's limit.
    pub dial_timeout: Option<Duration>,
    /// What clients are allowed.
    pub client_timeouts: ClientTimeouts,
    /// How long a client's TLS handshake may take, or its ClientHello where that alone is read.
    pub handshake_timeout: Duration,
    /// How long a backend that cannot be reached stays out of rotation; zero means not at all.
    pub dead_backend_time: Duration,
    /// Whether answers of 501 and above are held against their backend.
    pub dead_backend_on_5xx: bool,
    /// Whether a frontend's only backend stays in rotation, whatever its failures.
    pub spare_only_backend: bool,
    /// The header that carries request ids.
    pub request_id_header: Option<RequestIdHeader>,
    /// What `Via` names this proxy.
    pub via: Via,
    /// Client connections served at the same time, tunnels included; others wait in the kernel's queue.
    pub max_connections: usize,
    /// Bytes of the process's memory beyond which clients are let go; 0 for half of what there is.
    pub max_memory: u64,
    /// The longest head, in bytes. A request with a longer one is answered 431, a response is none.
    pub max_header_size: usize,
    /// The most header lines of a request, where more are answered 431, and of a response.
    pub max_headers: usize,
    /// Whether the certificates of `https` backends are verified.
    pub verify_backends: bool,
    /// How a frontend's requests are spread over its backends.
    pub load_balancing: LoadBalancing,
}

/// How a frontend's requests are spread over its backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadBalancing {
    /// They take turns.
    RoundRobin,
    /// Of two backends that are drawn by lot, the one with fewer requests in flight.
    LeastRequests,
    /// As the first, but a client stays with the backend that a cookie names. The secret is what cookies are signed with;
    /// without it, one of the process's own is.
    Sticky(Option<Secret>),
}

impl Config {
    /// How long a dial may take: less than a request may, or a backend that accepts nobody would only ever be slow.
    pub fn longest_dial(&self) -> Option<Duration> {
        let most_of_a_request = self.request_timeout.map(|timeout| timeout * 19 / 20);
        [self.dial_timeout, most_of_a_request].into_iter().flatten().min()
    }
}
