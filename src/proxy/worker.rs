//! One thread's share of the proxy, and what all threads share.

use std::{rc::Rc, sync::Arc};

use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use super::{
    config::Config,
    crowd::{Crowd, Room},
    error_pages::ErrorPages,
    sticky::Sticky,
    timers::Timers,
    upstream::{Pool, Traffic, Upstream},
};
use crate::{
    clock::Clock,
    dial::{BackendTls, Dialer, Names},
    drain::Drain,
    message::Limits,
    routing::{DeadMark, Routes},
    telemetry::{AccessLog, Activities, Activity, ErrorLog, Metrics, StoreHealth, Tally},
};

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
    /// The room for client connections.
    pub room: Arc<Room>,
    /// How `https` backends are spoken to.
    pub backend_tls: BackendTls,
    /// What names backends to clients, where load balancing is sticky.
    pub sticky: Option<Sticky>,
    /// Where backends are that are known by name.
    pub names: Names,
}

/// One thread's share of the proxy.
pub struct Worker {
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// The way to the backends.
    pub upstream: Upstream,
    /// Connections to backends that are kept.
    pub pool: Rc<Pool>,
    /// The connections of its clients.
    pub crowd: Rc<Crowd>,
    /// For the limits of its requests.
    pub timers: Timers,
    /// What it has counted.
    pub tally: Rc<Tally>,
    /// What its requests are doing.
    pub activity: Arc<Activity>,
    /// Connections and tunnels, for the drain to wait for.
    pub tasks: TaskTracker,
    /// The end of the process.
    pub drain: Drain,
}

impl Worker {
    /// A worker with an empty pool.
    pub fn new(shared: Arc<Shared>, drain: Drain) -> Self {
        let metrics = &shared.metrics;
        let traffic = Traffic {
            dials: metrics.pool.dials.clone(),
            reuses: metrics.pool.reuses.clone(),
            idle: metrics.pool.idle.clone(),
        };
        let pool = Pool::new(traffic.clone());
        let Config { max_header_size, max_headers, .. } = shared.config;
        let limits = Limits { bytes: max_header_size, lines: max_headers };
        let dialer = Dialer::new(shared.config.longest_dial(), shared.backend_tls.clone(), shared.names.clone());
        let upstream = Upstream::new(dialer, limits, Rc::clone(&pool), traffic);
        let activity = shared.activities.join();
        let tally = Tally::new(metrics);
        let crowd = Crowd::new(Arc::clone(&shared.room), shared.clock);
        Self {
            shared,
            upstream,
            pool,
            crowd,
            timers: Timers::default(),
            tally,
            activity,
            tasks: TaskTracker::new(),
            drain,
        }
    }
}
