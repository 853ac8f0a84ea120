//! From an accepted connection to a finished response.
//!
//! Each core has one [`run_worker`]: a single-threaded runtime with a listening socket and a pool of backend connections of
//! its own, so that no request ever crosses a thread. What the workers share is read-only or atomic. This module knows
//! nothing of Redis: it reads [`Routes`], and says what died into a channel.

mod client_timeouts;
mod downstream;
mod error;
mod error_pages;
mod exchange;
mod forward;
mod headers;
mod response_body;
mod retry;
mod sticky;
mod tunnel;
mod upstream;
mod websocket;

use std::{io, rc::Rc, sync::Arc, time::Duration};

use hyper::{client, server};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{JoinSet, LocalSet},
};
use tokio_util::task::TaskTracker;

use crate::{
    clock::Clock,
    dial::{BackendTls, Dialer, Names},
    drain::Drain,
    routing::{DeadMark, Routes},
    secret::Secret,
    telemetry::{AccessLog, Activities, Activity, ErrorLog, Metrics, StoreHealth},
};

pub use client_timeouts::ClientTimeouts;
pub use downstream::listener::{Door, Listeners, Protocol};
pub use error_pages::ErrorPages;
pub use headers::RequestIdHeader;
pub use sticky::Sticky;
pub use upstream::Traffic;
use upstream::{Pool, Upstream};

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
    /// Client connections served at the same time, tunnels included; others wait in the kernel's queue.
    pub max_connections: usize,
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
    fn longest_dial(&self) -> Option<Duration> {
        let most_of_a_request = self.request_timeout.map(|timeout| timeout * 19 / 20);
        [self.dial_timeout, most_of_a_request].into_iter().flatten().min()
    }
}

/// What all workers share.
pub struct Shared {
    /// How requests are handled.
    pub config: Config,
    /// The routing table.
    pub routes: Routes,
    /// The clock of the table's dead marks.
    pub clock: Clock,
    /// Whether the table is current, for `__ping__`.
    pub health: Arc<StoreHealth>,
    /// Where dead marks go to be recorded.
    pub marks: mpsc::Sender<DeadMark>,
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// One line a request.
    pub access_log: AccessLog,
    /// One line an error.
    pub errors: ErrorLog,
    /// The operator's pages for answers of our own, if there are any.
    pub error_pages: Option<Arc<ErrorPages>>,
    /// What the workers' requests are doing.
    pub activities: Arc<Activities>,
    /// Permits for client connections.
    pub connections: Arc<Semaphore>,
    /// How `https` backends are spoken to.
    pub backend_tls: BackendTls,
    /// What names backends to clients, where load balancing is sticky.
    pub sticky: Option<Sticky>,
    /// Where backends are that are known by name.
    pub names: Names,
}

/// One thread's share of the proxy.
struct Worker {
    shared: Arc<Shared>,
    http1: server::conn::http1::Builder,
    upstream: Upstream,
    pool: Rc<Pool>,
    activity: Arc<Activity>,
    /// Connections and tunnels, for the drain to wait for.
    tasks: TaskTracker,
    drain: Drain,
}

/// Serves the connections of its listening sockets until the drain is over. Blocks the thread.
///
/// # Errors
/// When the runtime cannot be made, or a socket cannot be used.
pub fn run_worker(shared: Arc<Shared>, doors: Vec<Door>, drain: &Drain) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let result = local.block_on(&runtime, async {
        let worker = Rc::new(Worker::new(shared, drain.clone()));
        let reaper = tokio::task::spawn_local(reap(Rc::clone(&worker.pool), worker.shared.routes.retirements()));
        let mut accepting = JoinSet::new();
        for door in doors {
            accepting.spawn_local(downstream::listener::accept(Rc::clone(&worker), door));
        }
        while let Some(ended) = accepting.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        worker.tasks.close();
        tokio::select! {
            () = worker.tasks.wait() => {}
            () = drain.expired() => {}
        }
        reaper.abort();
        Ok(())
    });
    drop(local);
    runtime.shutdown_background();
    result
}

impl Worker {
    fn new(shared: Arc<Shared>, drain: Drain) -> Self {
        let metrics = &shared.metrics;
        let traffic = Traffic {
            dials: metrics.pool.dials.clone(),
            reuses: metrics.pool.reuses.clone(),
            idle: metrics.pool.idle.clone(),
        };
        let pool = Pool::new(traffic.clone());
        let (mut server, mut client) = (server::conn::http1::Builder::new(), client::conn::http1::Builder::new());
        let Config { max_header_size, max_headers, .. } = shared.config;
        // The library gives up on a head that fills its buffer, whatever its limit for heads is.
        let buffer = max_header_size + BUFFER_RESERVE;
        server.title_case_headers(true).header_read_timeout(None);
        server.max_header_size(max_header_size).max_headers(max_headers).max_buf_size(buffer);
        client.title_case_headers(true).max_headers(max_headers).max_buf_size(buffer);
        let dialer = Dialer::new(shared.config.longest_dial(), shared.backend_tls.clone(), shared.names.clone());
        let upstream = Upstream::new(dialer, client, Rc::clone(&pool), traffic);
        let activity = shared.activities.join();
        Self { shared, http1: server, upstream, pool, activity, tasks: TaskTracker::new(), drain }
    }
}

async fn reap(pool: Rc<Pool>, mut retirements: watch::Receiver<()>) {
    let mut ticks = tokio::time::interval(REAP_EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            // The sender is as old as the routing table, and that outlives the worker.
            _ = retirements.changed() => {}
        }
        pool.reap();
        tokio::time::sleep(REAP_PAUSE).await;
    }
}

/// Bytes of a connection's buffer beyond the longest head.
const BUFFER_RESERVE: usize = 16 * 1024;

/// How often idle connections to backends are looked over, retirements aside.
const REAP_EVERY: Duration = Duration::from_secs(1);

/// The least time between two such looks: backends may be retired hundreds of times a second, and there may be thousands of
/// connections to look at.
const REAP_PAUSE: Duration = Duration::from_millis(20);
