//! Where the parts are put together, started and watched.

mod checking;
mod dump;
mod essential;
mod listeners;
mod outputs;
mod signals;
mod state;
mod tls;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
};
use tracing::{info, warn};

use crate::{
    clock::Clock,
    config::Config,
    dial::{BackendTls, Names},
    drain::Drain,
    health::Checker,
    memory,
    proxy::{self, ErrorPages, LoadBalancing, Room, Shared, Shedding, Sticky},
    sync::{self, MARK_QUEUE, Reporter, Syncer},
    telemetry::{AccessLog, Admin, Telemetry},
};

use checking::Checking;
use dump::Dump;
use essential::{Essential, ReporterTask};
use listeners::Doors;
use outputs::Outputs;
use signals::{Reread, heed_signals};
use state::State;
use tls::Tls;

/// Where the process can be reached, once it can.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// The clients' address.
    pub listen: Option<SocketAddr>,
    /// The address of clients that speak TLS.
    pub tls: Option<SocketAddr>,
    /// The operators' address.
    pub metrics: Option<SocketAddr>,
}

impl Started {
    fn log(&self) {
        info!(
            address = self.listen.map(tracing::field::display),
            tls = self.tls.map(tracing::field::display),
            metrics = self.metrics.map(tracing::field::display),
            "listening"
        );
    }
}

/// Runs the proxy until it is told to stop and has drained. `started` is called once clients are served.
///
/// # Errors
/// When it cannot start, or when a part that must not end has ended.
pub fn run(config: Config, telemetry: &Telemetry, started: impl FnOnce(Started)) -> anyhow::Result<()> {
    // Requests have threads of their own; what is left to this runtime is Redis, metrics and signals.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .thread_stack_size(CONTROL_STACK)
        .enable_all()
        .build()?;
    let result = runtime.block_on(supervise(config, telemetry, started));
    runtime.shutdown_background();
    telemetry.errors.tell_the_rest();
    result
}

async fn supervise(mut config: Config, telemetry: &Telemetry, started: impl FnOnce(Started)) -> anyhow::Result<()> {
    let (drain, mut essential, began) = (Drain::default(), Essential::default(), Instant::now());
    let outputs = Outputs::open(&config.access_log, telemetry)?;
    let metrics = &telemetry.metrics;
    let snapshot_file = config.sync.snapshot_file.as_deref();
    if let Some(path) = snapshot_file {
        sync::check_writable(path).with_context(|| format!("cannot keep a snapshot file at {}", path.display()))?;
    }
    let tls = config.tls.take().map(|tls| Tls::set_up(tls, snapshot_file.is_some())).transpose()?;
    let terminator = tls.as_ref().map(|tls| Arc::clone(&tls.terminator));
    let doors = Doors::bind(&config, tls.as_ref())?;
    let error_pages = config.error_pages.take().map(open_error_pages).transpose()?;
    let again = Reread {
        access_log: outputs.access_log.clone(),
        folder: Arc::default(),
        error_pages: error_pages.clone(),
        terminator,
    };
    let state = State::new(metrics);
    let dump = Dump { output: outputs.standard.clone(), began, state: state.clone(), tasks: essential.names().clone() };
    essential.spawn("signals", heed_signals(drain.clone(), again.clone(), dump)?);
    essential.spawn_endless("floods of errors", telemetry.errors.clone().tell_of_floods());

    let admin = bind_admin(config.metrics, &state).await?;
    let reachable = Started { listen: doors.plain(), tls: doors.tls(), metrics: admin.as_ref().map(Admin::address) };
    if let Some(admin) = admin {
        essential.spawn_endless("metrics", admin.run());
    }

    let State { routes, clock, health, activities, .. } = state;
    let (loaded, table_loaded) = oneshot::channel();
    let (certificates_loaded, stock) = match tls {
        Some(tls) => tls.start(&config.store.write, metrics, again.folder, &mut essential),
        None => (None, None),
    };
    let syncer =
        Syncer::new(config.sync, routes.clone(), clock, Arc::clone(metrics), Arc::clone(&health), stock, loaded);
    essential.spawn("syncer", async move { Ok(syncer.run().await?) });
    let everything_loaded = async {
        if let Some(loaded) = certificates_loaded {
            loaded.await?;
        }
        table_loaded.await
    };
    let (marks, reports) = mpsc::channel(MARK_QUEUE);
    let reporter = Reporter::new(config.store.write, reports, routes.clone(), clock, Arc::clone(metrics));
    let mut reporter = tokio::spawn(essential.names().clone().named("reporter of dead marks", reporter.run()));

    tokio::select! {
        biased;
        () = drain.begun() => return Ok(()),
        ended = essential.first_end(&mut reporter) => return ended,
        // Without a message the syncer has ended, and why is about to be known above.
        Ok(()) = everything_loaded => {}
    }

    let names = Names::new(config.dns_servers, Arc::clone(metrics));
    essential.spawn_endless("names of backends", names.clone().tidy());
    config.proxy.max_connections = connection_limit(config.proxy.max_connections)?;
    let room = Arc::new(Room::new(&metrics.clients));
    let shedding = shedding((config.proxy.max_memory, config.workers), &room, telemetry, clock);
    essential.spawn_endless("memory", shedding.run());
    let backend_tls = BackendTls::new(config.proxy.verify_backends)?;
    let checker = config.health.take().map(|config| {
        Checker::new(config, routes.clone(), clock, Arc::clone(metrics), backend_tls.clone(), names.clone())
    });
    let mut checking = Checking::start(checker, drain.clone(), essential.names().clone());
    let shared = Arc::new(Shared {
        connections: Arc::new(Semaphore::new(config.proxy.max_connections.min(Semaphore::MAX_PERMITS))),
        room,
        backend_tls,
        sticky: sticky(&config.proxy.load_balancing),
        names,
        config: config.proxy,
        routes,
        clock,
        health,
        marks,
        metrics: Arc::clone(metrics),
        access_log: AccessLog::new(outputs.access_log.clone()),
        errors: telemetry.errors.clone(),
        error_pages,
        activities,
    });
    let mut workers = start_workers(&shared, doors, &drain)?;
    drop(shared);
    reachable.log();
    started(reachable);

    let result = tokio::select! {
        biased;
        // First, because workers and the reporter may be done with a drain before this is looked at.
        () = drain.begun() => Ok(()),
        ended = essential.first_end(&mut reporter) => ended,
        ended = checking.ended() => ended,
        worker = workers.join_next() => worker_end(worker, &drain),
    };
    if result.is_err() {
        drain.expire();
    }
    finish(workers, reporter, &drain).await?;
    checking.finish().await;
    result
}

/// Takes the operators' address, if there is one.
async fn bind_admin(address: Option<SocketAddr>, state: &State) -> anyhow::Result<Option<Admin>> {
    let Some(address) = address else { return Ok(None) };
    let bound = Admin::bind(address, Arc::clone(&state.metrics), Arc::clone(&state.health), state.clock).await;
    bound.map(Some).with_context(|| format!("cannot serve metrics on {address}"))
}

/// Opens the doors, and starts a thread behind each worker's.
fn start_workers(shared: &Arc<Shared>, doors: Doors, drain: &Drain) -> anyhow::Result<Workers> {
    let mut workers = JoinSet::new();
    for doors in doors.open()? {
        let (shared, drain) = (Arc::clone(shared), drain.clone());
        let (finished, wait) = oneshot::channel();
        thread::Builder::new().name("worker".to_owned()).spawn(move || {
            // The receiver is gone only when the process is ending.
            let _ = finished.send(proxy::run_worker(shared, doors, &drain));
        })?;
        workers.spawn(wait);
    }
    Ok(workers)
}

/// Waits for the workers to drain, and for the last dead marks to be recorded.
async fn finish(mut workers: Workers, reporter: ReporterTask, drain: &Drain) -> anyhow::Result<()> {
    let began = Instant::now();
    while let Some(worker) = workers.join_next().await {
        worker_end(Some(worker), drain)?;
    }
    info!(took = ?began.elapsed(), "drained");
    // The workers held the last senders of dead marks, so the reporter ends when it has written them.
    if !reporter.is_finished() && tokio::time::timeout(REPORT_LIMIT, reporter).await.is_err() {
        warn!("the last dead marks could not be recorded");
    }
    Ok(())
}

type Workers = JoinSet<Result<io::Result<()>, oneshot::error::RecvError>>;

type WorkerEnd = Result<Result<io::Result<()>, oneshot::error::RecvError>, tokio::task::JoinError>;

fn worker_end(worker: Option<WorkerEnd>, drain: &Drain) -> anyhow::Result<()> {
    if let Some(worker) = worker {
        worker.context("a worker was lost")?.context("a worker thread panicked")?.context("a worker cannot serve")?;
    }
    if !drain.has_begun() {
        bail!("a worker ended");
    }
    Ok(())
}

/// What names backends to clients, where load balancing is sticky.
fn sticky(load_balancing: &LoadBalancing) -> Option<Sticky> {
    let LoadBalancing::Sticky(secret) = load_balancing else { return None };
    Some(secret.as_ref().map_or_else(
        || {
            warn!("without --sticky-secret, cookies of --load-balancing sticky are honoured by this process only");
            Sticky::with_random_key()
        },
        Sticky::new,
    ))
}

fn open_error_pages(folder: PathBuf) -> anyhow::Result<Arc<ErrorPages>> {
    let shown = folder.display().to_string();
    Ok(Arc::new(ErrorPages::open(folder).with_context(|| format!("cannot read the error pages in {shown}"))?))
}

/// How many client connections to serve at once. Each may need a second descriptor for its backend.
fn connection_limit(wanted: usize) -> io::Result<usize> {
    let descriptors = rlimit::increase_nofile_limit(u64::MAX)?;
    if wanted != 0 {
        return Ok(wanted);
    }
    let half = descriptors.saturating_sub(RESERVED_DESCRIPTORS) / 2;
    Ok(usize::try_from(half).unwrap_or(usize::MAX).max(1))
}

/// What watches memory. Where nobody knows how much there is, and the operator says nothing, there is no limit.
fn shedding((wanted, workers): (u64, usize), room: &Arc<Room>, telemetry: &Telemetry, clock: Clock) -> Shedding {
    let limit = match wanted {
        0 => memory::available().map_or(u64::MAX, |available| available / 2),
        wanted => wanted,
    };
    Shedding {
        limit,
        workers,
        room: Arc::clone(room),
        metrics: Arc::clone(&telemetry.metrics),
        errors: telemetry.errors.clone(),
        clock,
    }
}

/// Bytes of stack. The Redis client's futures are large, and nested some ten deep.
const CONTROL_STACK: usize = 16 * 1024 * 1024;

/// Descriptors kept for Redis, logs, metrics and the runtimes.
const RESERVED_DESCRIPTORS: u64 = 64;

/// How long the end may be held up by dead marks that are not recorded yet.
const REPORT_LIMIT: Duration = Duration::from_secs(2);
