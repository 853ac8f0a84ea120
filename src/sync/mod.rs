//! Keeping the routing table in step with Redis.
//!
//! The [`Syncer`] is the table's single writer. It opens a session with the read Redis, loads everything, and then re-reads
//! just the keys that Redis says may have changed. Any doubt about the session ends it and begins another; meanwhile the
//! last snapshot stays in force. The [`Reporter`] carries dead marks the other way, to the write Redis.
//!
//! Certificates come the same way, with the same session, or from a folder, by way of the [`FolderSyncer`]; either puts them
//! into service through a [`Stock`]. The [`TicketSyncer`] renews the keys of session tickets.

mod dirty;
mod expiry;
mod folder;
mod patience;
mod reconcile;
mod report;
mod stock;
mod sweep;
mod tickets;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::oneshot,
    time::{self, MissedTickBehavior},
};
use tracing::{info, warn};

use crate::{
    routing::{Clock, Routes},
    store::{CertificateRecord, Doubt, Notifications, Pattern, Record, Server, Session, StoreError},
    telemetry::{Metrics, StoreHealth},
};

use dirty::Dirty;
pub use expiry::watch_expiry;
pub use folder::FolderSyncer;
use patience::Patience;
use reconcile::excerpt;
pub use reconcile::{Applied, Malformed, Table};
pub use report::{MARK_QUEUE, Reporter};
pub use stock::Stock;
use sweep::{Step, Sweep};
pub use tickets::TicketSyncer;

/// How the table is kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// The read Redis.
    pub server: Server,
    /// How long to wait between the end of one proof of convergence and the beginning of the next.
    pub reconcile_every: Duration,
}

/// The task that owns the routing table.
pub struct Syncer {
    config: Config,
    routes: Routes,
    clock: Clock,
    metrics: Arc<Metrics>,
    health: Arc<StoreHealth>,
    table: Table,
    /// Where Redis is the source of certificates.
    stock: Option<Stock>,
    /// Hosts whose malformed values have been logged.
    complained: HashSet<String>,
    loaded: Option<oneshot::Sender<()>>,
}

/// Why a session was given up.
enum Ended {
    Failed(StoreError),
    Doubted(Doubt),
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl Syncer {
    /// A syncer that publishes to `routes`, and tells `loaded` when the first snapshot is in force. With a `stock`, it keeps
    /// certificates in step with Redis too.
    pub fn new(
        config: Config,
        routes: Routes,
        clock: Clock,
        metrics: Arc<Metrics>,
        health: Arc<StoreHealth>,
        stock: Option<Stock>,
        loaded: oneshot::Sender<()>,
    ) -> Self {
        let (table, complained) = (Table::default(), HashSet::new());
        Self { config, routes, clock, metrics, health, table, stock, complained, loaded: Some(loaded) }
    }

    /// Follows Redis for ever.
    ///
    /// # Errors
    /// Only before the first load, and only when waiting cannot help: a wrong password or database.
    pub async fn run(mut self) -> Result<(), StoreError> {
        let mut patience = Patience::new(LONGEST_PAUSE);
        loop {
            let patterns: &[Pattern] = match self.stock {
                None => &[Pattern::Frontends, Pattern::DeadSets],
                Some(_) => &[Pattern::Frontends, Pattern::DeadSets, Pattern::Certificates],
            };
            let ended = match Session::open(&self.config.server, patterns).await {
                Ok(mut session) => {
                    let ended = self.follow(&mut session).await;
                    if self.metrics.connected.get() == 1 {
                        patience.renew();
                    }
                    ended
                }
                Err(error) => Ended::Failed(error),
            };
            self.metrics.connected.set(0);
            match ended {
                Ended::Doubted(doubt) => {
                    info!(server = %self.config.server, reason = %doubt, "loading the whole routing table again");
                }
                Ended::Failed(error) if error.is_misconfiguration() && self.loaded.is_some() => return Err(error),
                Ended::Failed(error) => {
                    let problem = error.to_string();
                    if !patience.is_news(&problem) {
                        // Said already.
                    } else if self.loaded.is_some() {
                        warn!("waiting for Redis: {problem}");
                    } else {
                        warn!(frontends = self.metrics.frontends.get(), "{problem}; keeping the last routing table");
                    }
                    self.health.impaired(problem);
                    time::sleep(patience.pause()).await;
                }
            }
        }
    }

    async fn follow(&mut self, session: &mut Session) -> Ended {
        match self.try_follow(session).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn try_follow(&mut self, session: &mut Session) -> Result<std::convert::Infallible, Ended> {
        let mut dirty = Dirty::default();
        self.load(session, &mut dirty).await?;
        self.catch_up(session, &mut dirty).await?;

        let mut heartbeat = time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sweep: Option<Sweep> = None;
        let mut sweeps = 0u32;
        let mut sweep_at = time::Instant::now() + self.sweep_interval(session);
        loop {
            tokio::select! {
                change = session.change() => {
                    dirty.add(change?);
                    self.catch_up(session, &mut dirty).await?;
                }
                _ = heartbeat.tick() => {
                    let polled = is_polling(session);
                    if let Some(doubt) = session.beat().await? {
                        return Err(Ended::Doubted(doubt));
                    }
                    self.take_pulse(session);
                    if is_polling(session) && !polled {
                        sweep_at = time::Instant::now();
                    }
                }
                () = time::sleep_until(sweep_at) => {
                    let began = Instant::now();
                    let current = sweep.get_or_insert_with(|| {
                        sweeps = sweeps.wrapping_add(1);
                        Sweep::at_leisure(is_polling(session) || sweeps.is_multiple_of(CERTIFICATES_EVERY))
                    });
                    if self.sweep(session, current, &mut dirty).await? {
                        sweep = None;
                        sweep_at = time::Instant::now() + self.sweep_interval(session);
                    } else {
                        sweep_at = time::Instant::now() + began.elapsed() * SWEEP_REST;
                    }
                    self.catch_up(session, &mut dirty).await?;
                }
            }
        }
    }

    /// Loads everything, collecting what changes meanwhile, and publishes it as one snapshot.
    async fn load(&mut self, session: &mut Session, dirty: &mut Dirty) -> Result<(), Ended> {
        let began = Instant::now();
        let mut sweep = Sweep::in_haste();
        while let Some(step) = sweep.step(session, &self.table, self.stock.as_ref()).await? {
            match step {
                Step::Hosts(records) => {
                    for record in &records {
                        self.apply(record);
                    }
                }
                Step::Certificates(records) => self.apply_certificates(records).await,
            }
            dirty.collect(session)?;
        }
        self.publish();
        let frontends = self.metrics.frontends.get();
        let certificates = self.stock.as_ref().map(Stock::in_service);
        info!(server = %self.config.server, frontends, certificates, took = ?began.elapsed(), "the routing table is loaded");
        self.metrics.connected.set(1);
        self.take_pulse(session);
        match self.loaded.take() {
            // The receiver is gone only when the process is ending.
            Some(loaded) => drop(loaded.send(())),
            None => self.metrics.resyncs.inc(),
        }
        Ok(())
    }

    /// Re-reads the keys that may have changed until none is left, publishing after each batch.
    async fn catch_up(&mut self, session: &mut Session, dirty: &mut Dirty) -> Result<(), Ended> {
        dirty.collect(session)?;
        while let Some(batch) = dirty.take_batch() {
            let records = session.read(batch.hosts()).await?;
            let mut changed = false;
            for record in &records {
                changed |= self.apply(record);
                for url in batch.notices(&record.host) {
                    if let Some(dead) = &record.dead {
                        self.table.remark(&record.host, url, dead, self.clock.now());
                    }
                }
            }
            if changed {
                self.publish();
            }
            if !batch.certificates.is_empty() {
                let records = session.certificates(&batch.certificates).await?;
                self.apply_certificates(records).await;
            }
            self.metrics.events.inc_by(batch.events);
            self.metrics.malformed_records.inc_by(batch.junk);
            self.metrics.publish_duration.observe(batch.since.elapsed().as_secs_f64());
            dirty.collect(session)?;
        }
        Ok(())
    }

    /// One step of a proof of convergence; returns whether that was the last. Differences that no event announces are
    /// mended, and counted unless there are no events to announce them.
    async fn sweep(&mut self, session: &mut Session, sweep: &mut Sweep, dirty: &mut Dirty) -> Result<bool, Ended> {
        match sweep.step(session, &self.table, self.stock.as_ref()).await? {
            None => return Ok(true),
            Some(Step::Hosts(records)) => {
                let suspects: Vec<&Record> = records.iter().filter(|record| self.table.differs(record)).collect();
                if !suspects.is_empty() && !is_polling(session) {
                    session.barrier().await?;
                    dirty.collect(session)?;
                    for record in suspects.iter().filter(|record| !dirty.contains(&record.host)) {
                        self.metrics.drift.inc();
                        warn!(host = record.host, "the routing table had drifted from Redis without an event");
                    }
                }
                let changed = records.iter().fold(false, |changed, record| self.apply(record) | changed);
                if changed {
                    self.publish();
                }
            }
            Some(Step::Certificates(records)) => {
                let suspects = self.stock.as_ref().map(|stock| stock.differing(&records)).unwrap_or_default();
                if !suspects.is_empty() && !is_polling(session) {
                    session.barrier().await?;
                    dirty.collect(session)?;
                    for name in suspects.iter().filter(|name| !dirty.contains_certificate(name)) {
                        self.metrics.drift.inc();
                        let name = &*excerpt(name);
                        warn!(name, "the certificates had drifted from Redis without an event");
                    }
                }
                self.apply_certificates(records).await;
            }
        }
        Ok(false)
    }

    async fn apply_certificates(&mut self, records: Vec<CertificateRecord>) {
        if let Some(stock) = &mut self.stock {
            stock.apply(records).await;
        }
    }

    /// Applies one record to the table, and logs once what is wrong with it.
    fn apply(&mut self, record: &Record) -> bool {
        let applied = self.table.apply(record, self.clock.now());
        if applied.malformed.is_empty() {
            // A record that holds only half of what Redis says cannot clear the other half.
            if record.list.is_some() && record.dead.is_some() {
                self.complained.remove(&record.host);
            }
        } else if self.complained.insert(record.host.clone()) {
            self.metrics.malformed_records.inc_by(applied.malformed.len() as u64);
            let rest = applied.malformed.len() - 1;
            let host = excerpt(&record.host);
            warn!(host = &*host, "malformed value in Redis: {} (and {rest} more)", applied.malformed[0]);
        }
        applied.changed
    }

    fn publish(&self) {
        let snapshot = self.table.snapshot();
        self.metrics.frontends.set(i64::try_from(snapshot.len()).unwrap_or(i64::MAX));
        self.routes.publish(snapshot);
    }

    fn take_pulse(&self, session: &Session) {
        if let Notifications::Off(flags) = &session.vitals().notifications
            && self.metrics.polling.get() == 0
        {
            warn!(
                server = %self.config.server,
                "keyspace notifications are off (notify-keyspace-events is \"{flags}\"), so edits take up to a second or \
                 more to arrive: run CONFIG SET notify-keyspace-events KA on this server"
            );
        }
        self.metrics.polling.set(i64::from(is_polling(session)));
        match session.vitals().stale() {
            None => self.health.agreed(self.clock.now()),
            Some(problem) => self.health.impaired(format!("Redis at {}: {problem}", self.config.server)),
        }
    }

    fn sweep_interval(&self, session: &Session) -> Duration {
        if is_polling(session) { POLL } else { self.config.reconcile_every }
    }
}

fn is_polling(session: &Session) -> bool {
    matches!(session.vitals().notifications, Notifications::Off(_))
}

/// How often the session is examined. Silent changes are noticed within this and the time of one load.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Only each so-manieth proof of convergence takes in the certificates, which weigh a hundred times what lists do.
const CERTIFICATES_EVERY: u32 = 10;

/// How often the table is re-read while keyspace notifications are off.
const POLL: Duration = Duration::from_secs(1);

/// A sweep rests this many times as long as each of its steps took, so that it uses at most a fifth of one Redis core.
const SWEEP_REST: u32 = 4;

/// The longest pause between attempts to reach Redis, jitter aside.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
