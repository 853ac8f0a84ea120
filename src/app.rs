//! Where the parts are put together, started and watched.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
};
use tracing::{info, warn};

use crate::{
    config::Config,
    drain::{DRAIN_LIMIT, Drain},
    proxy::{self, BackendTls, Listeners, Shared},
    routing::{Clock, Routes},
    sync::{MARK_QUEUE, Reporter, Syncer},
    telemetry::{AccessLog, Admin, Lines, LogTarget, StoreHealth, Telemetry},
};

/// Where the process can be reached, once it can.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// The clients' address.
    pub listen: SocketAddr,
    /// The operators' address.
    pub metrics: Option<SocketAddr>,
}

/// Runs the proxy until it is told to stop and has drained. `started` is called once clients are served.
///
/// # Errors
/// When it cannot start, or when a part that must not end has ended.
pub fn run(config: Config, telemetry: &Telemetry, started: impl FnOnce(Started)) -> anyhow::Result<()> {
    // Requests have threads of their own; what is left to this runtime is Redis, metrics and signals.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("control").enable_all().build()?;
    let result = runtime.block_on(supervise(config, telemetry, started));
    runtime.shutdown_background();
    result
}

async fn supervise(mut config: Config, telemetry: &Telemetry, started: impl FnOnce(Started)) -> anyhow::Result<()> {
    let drain = Drain::default();
    let access = open_access_log(&config.access_log, telemetry)?;
    let mut essential = JoinSet::new();
    essential.spawn(heed_signals(drain.clone(), access.lines.clone())?);

    let listeners = Listeners::bind(config.listen, config.workers)
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listeners.address();
    let clock = Clock::start();
    let routes = Routes::default();
    let metrics = &telemetry.metrics;
    let health = Arc::new(StoreHealth::starting(clock.now()));
    let admin_address = match config.metrics {
        None => None,
        Some(address) => {
            let admin = Admin::bind(address, Arc::clone(metrics), Arc::clone(&health), clock)
                .await
                .with_context(|| format!("cannot serve metrics on {address}"))?;
            let address = admin.address();
            essential.spawn(async move {
                admin.run().await;
                Ok(())
            });
            Some(address)
        }
    };

    let (loaded, table_loaded) = oneshot::channel();
    let syncer = Syncer::new(config.sync, routes.clone(), clock, Arc::clone(metrics), Arc::clone(&health), loaded);
    essential.spawn(async move { Ok(syncer.run().await?) });
    let (marks, reports) = mpsc::channel(MARK_QUEUE);
    let reporter = Reporter::new(config.store.write, reports, routes.clone(), clock, Arc::clone(metrics));
    let mut reporter = tokio::spawn(reporter.run());

    tokio::select! {
        biased;
        () = drain.begun() => return Ok(()),
        ended = first_end(&mut essential, &mut reporter) => return ended,
        // Without a message the syncer has ended, and why is about to be known above.
        Ok(()) = table_loaded => {}
    }

    config.proxy.max_connections = connection_limit(config.proxy.max_connections)?;
    let shared = Arc::new(Shared {
        connections: Arc::new(Semaphore::new(config.proxy.max_connections.min(Semaphore::MAX_PERMITS))),
        backend_tls: BackendTls::new(config.proxy.verify_backends)?,
        config: config.proxy,
        routes,
        clock,
        health,
        marks,
        metrics: Arc::clone(metrics),
        access_log: AccessLog::new(access.lines.clone()),
        errors: telemetry.errors.clone(),
    });
    let mut workers = JoinSet::new();
    for listener in listeners.listen().with_context(|| format!("cannot listen on {address}"))? {
        let (shared, drain) = (Arc::clone(&shared), drain.clone());
        let (finished, wait) = oneshot::channel();
        thread::Builder::new().name("worker".to_owned()).spawn(move || {
            // The receiver is gone only when the process is ending.
            let _ = finished.send(proxy::run_worker(shared, listener, &drain));
        })?;
        workers.spawn(wait);
    }
    drop(shared);
    info!(%address, metrics = admin_address.map(tracing::field::display), "listening");
    started(Started { listen: address, metrics: admin_address });

    let result = tokio::select! {
        ended = first_end(&mut essential, &mut reporter) => ended,
        worker = workers.join_next() => worker_end(worker, &drain),
        () = drain.begun() => Ok(()),
    };
    if result.is_err() {
        drain.expire();
    }
    let began = Instant::now();
    while let Some(worker) = workers.join_next().await {
        worker_end(Some(worker), &drain)?;
    }
    info!(took = ?began.elapsed(), "drained");
    // The workers held the last senders of dead marks, so the reporter ends when it has written them.
    if tokio::time::timeout(REPORT_LIMIT, reporter).await.is_err() {
        warn!("the last dead marks could not be recorded");
    }
    result
}

/// Waits for the first of the tasks that must not end.
async fn first_end(
    essential: &mut JoinSet<anyhow::Result<()>>,
    reporter: &mut tokio::task::JoinHandle<Result<(), crate::store::StoreError>>,
) -> anyhow::Result<()> {
    tokio::select! {
        Some(ended) = essential.join_next() => {
            ended.context("an essential task panicked")??;
            bail!("an essential task ended")
        }
        ended = reporter => {
            ended.context("the task that records dead backends panicked")??;
            bail!("the task that records dead backends ended")
        }
    }
}

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

/// The access log, and what keeps it open.
struct Access {
    lines: Lines,
    _guard: Option<crate::telemetry::LinesGuard>,
}

fn open_access_log(target: &LogTarget, telemetry: &Telemetry) -> anyhow::Result<Access> {
    let (lines, guard) =
        Lines::open(target, telemetry.metrics.access_lines_dropped.clone()).with_context(|| match target {
            LogTarget::File(path) => format!("cannot open the access log {}", Path::new(path).display()),
            _ => "cannot open the access log".to_owned(),
        })?;
    Ok(Access { lines, _guard: guard })
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

/// Handles signals until the second one that asks to stop.
fn heed_signals(
    drain: Drain,
    access_log: Lines,
) -> io::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        let mut deadline = None;
        loop {
            let code = tokio::select! {
                _ = interrupt.recv() => 128 + SignalKind::interrupt().as_raw_value(),
                _ = terminate.recv() => 128 + SignalKind::terminate().as_raw_value(),
                _ = hang_up.recv() => {
                    info!("reopening the access log");
                    access_log.reopen();
                    continue;
                }
                () = wait_until(deadline) => {
                    warn!("the drain took too long; what is unfinished is given up");
                    drain.expire();
                    deadline = None;
                    continue;
                }
            };
            if drain.has_begun() {
                std::process::exit(code);
            }
            info!(limit = ?DRAIN_LIMIT, "draining: no new connections; requests and tunnels in flight may finish");
            drain.begin();
            deadline = Some(tokio::time::Instant::now() + DRAIN_LIMIT);
        }
    })
}

async fn wait_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Descriptors kept for Redis, logs, metrics and the runtimes.
const RESERVED_DESCRIPTORS: u64 = 64;

/// How long the end may be held up by dead marks that are not recorded yet.
const REPORT_LIMIT: Duration = Duration::from_secs(2);
