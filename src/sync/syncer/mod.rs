//! The routing table's single writer.

mod convergence;
mod keeping;
mod probing;

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    sync::oneshot,
    task,
    time::{self, MissedTickBehavior},
};
use tracing::{info, warn};

use self::probing::Probing;
use super::{
    Config, Stock, Table,
    belief::Belief,
    dirty::{Batch, Dirty},
    progress::Progress,
    reconcile::excerpt,
    snapshot_file::{SnapshotFile, Turn},
    sweep::Sweep,
    trust::Trust,
    whereabouts::{Home, Move, Whereabouts},
};
use crate::{
    clock::{self, Clock},
    routing::{Routes, Seen},
    store::{Class, Doubt, Found, List, Moved, Notifications, Patience, Pattern, Record, Session, StoreError, Watch},
    telemetry::{Metrics, StoreHealth},
};

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
    trust: Trust,
    belief: Belief,
    file: Option<SnapshotFile>,
    /// How many frontends and certificates are kept although Redis does not mention them.
    kept: usize,
    /// Hosts whose malformed values have been logged.
    complained: HashSet<String>,
    /// Since when a replica has not shown the lists of these hosts any more, without an event: their time may be over, which it
    /// announces only when its master does.
    vanished: HashMap<String, Instant>,
    /// Hosts whose values are so large that this has been logged.
    huge: HashSet<String>,
    /// Whether it has been logged that notifications are off.
    is_off_told: bool,
    loaded: Option<oneshot::Sender<()>>,
    whereabouts: Whereabouts,
}

/// Why a session was given up.
enum Ended {
    Failed(StoreError),
    Doubted(Doubt),
    /// What Redis does not mention has been held for long enough.
    GraceOver,
    /// A table from a file has waited long enough for Redis.
    WaitOver,
    Moved(Moved),
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
        Self {
            trust: Trust::new(config.shrink_grace),
            belief: Belief::new(false),
            file: config.snapshot_file.clone().map(|path| SnapshotFile::new(path, clock)),
            config,
            routes,
            clock,
            metrics,
            health,
            table: Table::default(),
            stock,
            kept: 0,
            complained: HashSet::new(),
            huge: HashSet::new(),
            vanished: HashMap::new(),
            is_off_told: false,
            loaded: Some(loaded),
            whereabouts: Whereabouts::default(),
        }
    }

    /// Follows Redis for ever.
    ///
    /// # Errors
    /// Only before the first load, and only when waiting cannot help: a wrong password or database.
    pub async fn run(mut self) -> Result<(), StoreError> {
        let mut patience = Patience::new(LONGEST_PAUSE);
        let mut serve_at = self.restore().await.then(|| time::Instant::now() + self.config.startup_wait);
        loop {
            serve_at = serve_at.filter(|_| self.loaded.is_some());
            let began = Instant::now();
            let ended = tokio::select! {
                ended = self.attempt() => ended,
                () = clock::reached(serve_at) => Ended::WaitOver,
            };
            // However often sentinels change their minds, the table is not loaded as often.
            if self.metrics.connected.get() == 1 && !(matches!(ended, Ended::Moved(_)) && began.elapsed() < SETTLED) {
                patience.renew();
            }
            if let Ended::Failed(error) = &ended {
                self.health.impaired(error.to_string());
            }
            self.metrics.connected.set(0);
            let reason = match ended {
                Ended::Doubted(doubt) => {
                    let server = self.whereabouts.home().map(|home| &home.server);
                    info!(server, reason = %doubt, "loading the whole routing table again");
                    self.whereabouts.leave(doubt.to_string());
                    continue;
                }
                Ended::GraceOver => {
                    info!("the time of grace is over: loading everything again");
                    continue;
                }
                Ended::WaitOver => {
                    self.publish();
                    let routes = self.table.count();
                    warn!(routes, "Redis cannot be used yet: serving the routing table of the snapshot file");
                    self.announce_load();
                    continue;
                }
                Ended::Moved(moved) => moved.to_string(),
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
                    problem
                }
            };
            self.whereabouts.leave(reason);
            time::sleep(patience.pause()).await;
        }
    }

    /// One session, from its beginning to its end.
    async fn attempt(&mut self) -> Ended {
        let patterns: &[Pattern] = match self.stock {
            None => &[Pattern::Frontends, Pattern::DeadSets],
            Some(_) => &[Pattern::Frontends, Pattern::DeadSets, Pattern::Certificates],
        };
        let opened = async {
            let Found { server, watch } = self.config.place.find().await?;
            Ok((Session::open(&server, patterns).await?, watch))
        };
        let (mut session, mut watch) = match opened.await {
            Ok(opened) => opened,
            Err(error) => return Ended::Failed(error),
        };
        match Box::pin(self.follow(&mut session, &mut watch)).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    /// Tells who waits for it that there is a table to serve; returns whether that is the first.
    fn announce_load(&mut self) -> bool {
        // The receiver is gone only when the process is ending.
        self.loaded.take().map(|loaded| loaded.send(())).is_some()
    }

    async fn follow(&mut self, session: &mut Session, watch: &mut Watch) -> Result<Infallible, Ended> {
        let mut dirty = Dirty::default();
        self.belief = Belief::new(is_evident(session));
        self.load(session, &mut dirty).await?;
        self.catch_up(session, &mut dirty).await?;

        let mut heartbeat = time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut probing = Probing::new(self.config.write.clone());
        let mut sweep: Option<Sweep> = None;
        let mut sweeps = 0u32;
        let mut sweep_at = time::Instant::now() + self.sweep_interval(session);
        loop {
            tokio::select! {
                () = clock::reached(self.grace_ends()) => return Err(Ended::GraceOver),
                turn = wait_for(self.file.as_mut()) => {
                    if matches!(turn, Turn::Save) {
                        self.save();
                    }
                }
                change = session.change() => {
                    dirty.add(change?);
                    self.catch_up(session, &mut dirty).await?;
                }
                _ = heartbeat.tick() => {
                    let polled = self.metrics.polling.get() == 1;
                    if let Some(doubt) = session.beat().await? {
                        return Err(Ended::Doubted(doubt));
                    }
                    self.take_pulse(session);
                    probing.begin_if_due(session);
                    if session.vitals().stale().is_some() {
                        watch.doubt();
                    }
                    if self.is_polling(session) && !polled {
                        sweep_at = time::Instant::now();
                    }
                }
                moved = watch.moved() => return Err(Ended::Moved(moved)),
                () = time::sleep_until(sweep_at) => {
                    let began = Instant::now();
                    let current = sweep.get_or_insert_with(|| {
                        sweeps = sweeps.wrapping_add(1);
                        let is_thorough = self.is_polling(session) || self.trust.holds_until().is_some();
                        let has_turn = sweeps.is_multiple_of(CERTIFICATES_EVERY);
                        self.belief.begin_walk(is_evident(session));
                        Sweep::at_leisure(self.stock.is_some() && (is_thorough || has_turn))
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
        self.vanished.clear();
        let vitals = session.vitals();
        let home = Home { server: session.server().to_string(), history: vitals.replication_id.clone() };
        let is_another = self.whereabouts.home().is_some_and(|before| *before != home);
        self.table.spare_marks(self.config.place.is_movable() && is_another);
        let held = self.held();
        let mut sweep = Sweep::in_haste(self.stock.is_some(), held == [0, 0]);
        let mut progress = Progress::begin(&self.metrics.load_progress);
        let keys = session.vitals().keys;
        // What is served stays as it is until everything is read, since the server may still turn out to be another.
        let is_unserved = self.loaded.is_some();
        self.table.begin(if is_unserved { Seen::OneByOne } else { Seen::Together });
        loop {
            let step = tokio::select! {
                step = sweep.step(session) => step?,
                never = progress.tell() => match never {},
            };
            let Some(step) = step else { break };
            self.take(session, step, !sweep.is_first()).await?;
            dirty.collect(session)?;
            let estimate = sweep.estimate(keys);
            progress.note(estimate);
            if sweep.is_first() {
                self.table.expect(estimate.read, estimate.of);
            }
        }
        drop(progress);
        Box::pin(self.settle(session, &sweep, held, None)).await?;
        self.table.spare_marks(false);
        self.publish();
        let frontends = self.metrics.frontends.get();
        let certificates = self.stock.as_ref().map(Stock::in_service);
        self.take_pulse(session);
        self.metrics.connected.set(1);
        info!(server = %session.server(), frontends, certificates, took = ?began.elapsed(), "the routing table is loaded");
        if let Some(Move { from, reason }) = self.whereabouts.arrive(home) {
            info!(from, to = %session.server(), reason, "following another Redis");
        }
        self.has_changed();
        if !self.announce_load() {
            self.metrics.resyncs.inc();
        }
        Ok(())
    }

    fn grace_ends(&self) -> Option<time::Instant> {
        let until = self.trust.holds_until()?;
        Some(time::Instant::now() + self.clock.now().until(until))
    }

    fn take_batch(&self, dirty: &mut Dirty) -> Option<Batch> {
        dirty.take_batch(|name| self.table.lease(name), |host| self.huge.contains(host))
    }

    /// Re-reads the keys that may have changed until none is left, publishing after each batch.
    async fn catch_up(&mut self, session: &mut Session, dirty: &mut Dirty) -> Result<(), Ended> {
        let (began, mut edits) = (Instant::now(), 0);
        dirty.collect(session)?;
        let mut following: Option<Batch> = None;
        loop {
            let (batch, is_asked) = match following.take() {
                Some(batch) => (batch, true),
                None => match self.take_batch(dirty) {
                    Some(batch) => (batch, false),
                    None => break,
                },
            };
            let records =
                if is_asked { session.read_asked(batch.hosts).await? } else { session.read(batch.hosts).await? };
            self.verify(session, records.iter().any(|record| self.table.would_remove(record))).await?;
            if dirty.is_burst() {
                // Redis and the parser have something to do while this batch is applied.
                following = self.take_batch(dirty);
                if let Some(batch) = &following {
                    session.read_ahead(&batch.hosts).await?;
                }
            }
            if !self.vanished.is_empty() {
                self.vanished.retain(|host, _| !records.iter().any(|record| record.host == *host));
            }
            self.table.begin(Seen::of(records.len()));
            let changed = apart(records.len(), || {
                let mut changed = false;
                for (record, notices) in records.iter().zip(batch.notices) {
                    changed |= self.apply(record);
                    for url in notices {
                        if let Some(dead) = &record.dead {
                            self.table.remark(&record.host, &url, dead, self.clock.now());
                        }
                    }
                }
                changed
            });
            if changed {
                self.publish();
            }
            self.heed_leases(session, &batch.leases).await?;
            if !batch.certificates.is_empty() {
                let records = session.certificates(&batch.certificates).await?;
                self.take_certificates(session, records).await?;
            }
            self.has_changed();
            edits += batch.events;
            self.metrics.events.inc_by(batch.events);
            self.metrics.malformed_records.inc_by(batch.junk);
            self.metrics.publish_duration.observe(batch.since.elapsed().as_secs_f64());
            dirty.collect(session)?;
        }
        if edits >= BURST {
            info!(edits, took = ?began.elapsed(), "a burst of edits is in force");
        }
        Ok(())
    }

    /// Applies one record to the table, and logs once what is wrong with it.
    fn apply(&mut self, record: &Record) -> bool {
        let applied = self.table.apply(record, self.clock.now());
        if applied.malformed.is_empty() {
            // A record that holds only half of what Redis says cannot clear the other half.
            if record.list.is_some() && record.dead.is_some() && !self.complained.is_empty() {
                self.complained.remove(&record.host);
            }
        } else if self.complained.insert(record.host.clone()) {
            self.metrics.malformed_records.inc_by(applied.malformed.len() as u64);
            let rest = applied.malformed.len() - 1;
            let host = excerpt(&record.host);
            warn!(host = &*host, "malformed value in Redis: {} (and {rest} more)", applied.malformed[0]);
        }
        self.heed_size(record);
        applied.changed
    }

    /// Says once of a value that it is so large that it holds up others.
    fn heed_size(&mut self, record: &Record) {
        let Some(List::Elements(elements)) = &record.list else { return };
        let bytes: usize = elements.iter().map(Bytes::len).sum();
        if bytes < HUGE && elements.len() < HUGE_LIST {
            if !self.huge.is_empty() {
                self.huge.remove(&record.host);
            }
        } else if self.huge.insert(record.host.clone()) {
            let host = excerpt(&record.host);
            warn!(
                host = &*host,
                elements = elements.len(),
                bytes,
                "a very large value in Redis, which delays other edits"
            );
        }
    }

    fn publish(&mut self) {
        let snapshot = self.table.snapshot();
        let frontends = snapshot.len();
        self.routes.publish(snapshot);
        self.table.tidy();
        // Only what is in force is told.
        for (gauge, number) in [(&self.metrics.frontends, frontends), (&self.metrics.held, self.kept)] {
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        }
        if self.table.has_retired() {
            self.routes.announce_retirements();
        }
    }

    fn take_pulse(&mut self, session: &Session) {
        if !is_evident(session) {
            self.belief.lack_evidence();
        }
        self.tell_polling(session);
        let server = session.server();
        let problem = match (session.vitals().stale(), self.trust.holds_until()) {
            (Some(problem), _) => Some(problem.to_owned()),
            (None, Some(_)) => Some(format!("it has lost data: {} entries are kept without it", self.kept)),
            (None, None) => None,
        };
        match problem {
            None => self.health.agreed(self.clock.now()),
            Some(problem) => self.health.impaired(format!("Redis at {server}: {problem}")),
        }
    }

    /// Says whether events are followed, where that has changed.
    pub(super) fn tell_polling(&mut self, session: &Session) {
        let server = session.server();
        let (was_polling, polls) = (self.metrics.polling.get() == 1, self.is_polling(session));
        let was_off_told = std::mem::replace(&mut self.is_off_told, session.announces() == Some(false));
        self.metrics.polling.set(i64::from(polls));
        match &session.vitals().notifications {
            Notifications::Off(flags) if !was_off_told => warn!(
                %server,
                "keyspace notifications are off (notify-keyspace-events is \"{flags}\"), so edits take up to a second or \
                 more to arrive: run CONFIG SET notify-keyspace-events KA on this server"
            ),
            Notifications::Unknown if polls && !was_polling => warn!(
                %server,
                "this user may not run CONFIG GET, so each kind of keyspace notifications is known to be on only when one \
                 has come; everything is read once a second until they all have, and still missing are: {}",
                listed(session.unheard()),
            ),
            _ if was_polling && !polls => info!(%server, "keyspace notifications are on: following events"),
            _ => {}
        }
    }

    fn sweep_interval(&self, session: &Session) -> Duration {
        // While something is held, data that has come back is soon noticed.
        if self.is_polling(session) || self.trust.holds_until().is_some() {
            return POLL;
        }
        // Instances that were started together would walk through Redis together for ever.
        let every = self.config.reconcile_every;
        (every / 2).saturating_add(every.mul_f64(fastrand::f64()))
    }

    fn is_polling(&self, session: &Session) -> bool {
        !(is_evident(session) && self.belief.holds())
    }
}

/// Whether there is evidence that every change is announced.
fn is_evident(session: &Session) -> bool {
    session.announces() == Some(true)
}

fn listed(classes: &[Class]) -> String {
    classes.iter().map(Class::to_string).collect::<Vec<_>>().join(", ")
}

async fn wait_for(file: Option<&mut SnapshotFile>) -> Turn {
    match file {
        Some(file) => file.ready().await,
        None => std::future::pending().await,
    }
}

/// So many edits at once are told of.
const BURST: u64 = 10_000;

/// Bytes, and elements, of a list that is told of: it takes a tenth of a second or more to read.
const HUGE: usize = 10_000_000;
const HUGE_LIST: usize = 100_000;

/// Does something with so many records. Where they are many, others have this thread's tasks meanwhile: events to receive, the
/// next replies to parse.
fn apart<T>(records: usize, work: impl FnOnce() -> T) -> T {
    if records < MANY { work() } else { task::block_in_place(work) }
}

/// So many records take longer to apply than it takes another thread to take over.
const MANY: usize = 256;

/// How often the session is examined. Silent changes are noticed within this and the time of one load.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Only each so-manieth proof of convergence takes in the certificates, which weigh a hundred times what lists do.
const CERTIFICATES_EVERY: u32 = 10;

/// How often the table is re-read while events are not believed.
const POLL: Duration = Duration::from_secs(1);

/// A sweep rests this many times as long as each of its steps took, so that it uses at most a fifth of one Redis core.
const SWEEP_REST: u32 = 4;

/// A move after less than this is one of several.
const SETTLED: Duration = Duration::from_secs(10);

/// The longest pause between attempts to reach Redis, jitter aside.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
