//! The active health check: dead backends are asked whether they are well again, and return to rotation when they are.
//!
//! The [`Checker`] watches each backend that the channel `dead` announces, and, whenever it begins anew, each that is dead in the
//! routing table. Of several instances, the one with a backend's lease checks it; the others stand by. Whatever is decided
//! about a backend is decided on the master, in one step with what it is decided by; so what is known here may be old, and does no
//! harm. Nothing here knows of requests, or of how the table is kept.

mod probe;
mod schedule;
mod slots;
mod target;
mod watch;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    task::{AbortHandle, JoinError, JoinSet},
    time,
};
use tracing::{info, warn};

use crate::{
    clock::{self, Clock, Moment},
    dial::{BackendTls, Names},
    drain::Drain,
    routing::{Backend, Routes, Slot},
    store::{DeadNotice, Found, HealthSession, Moved, Patience, Place, Standing, StoreError, Watch as ServerWatch},
    telemetry::Metrics,
};

use probe::{Finding, Prober};
use schedule::{Admission, Schedule};
use watch::{End, Turn};

/// How backends are checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The write Redis.
    pub place: Place,
    /// The name in which leases are held; no other instance may have it.
    pub holder: String,
    /// Most header lines of a response, as for the proxy: what that accepts is healthy here too. A check accepts 1,000 at least.
    pub max_headers: usize,
}

/// The task that checks dead backends.
pub struct Checker {
    config: Config,
    routes: Routes,
    clock: Clock,
    metrics: Arc<Metrics>,
    prober: Prober,
    schedule: Schedule,
    probes: JoinSet<(u64, Finding)>,
    /// What ends each of the probes, by its ticket.
    aborts: HashMap<u64, AbortHandle>,
}

/// Why a session was given up.
enum Ended {
    Moved(Moved),
    Failed(StoreError),
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl Checker {
    /// A checker of the backends in `routes`, which should be loaded.
    pub fn new(
        config: Config,
        routes: Routes,
        clock: Clock,
        metrics: Arc<Metrics>,
        tls: BackendTls,
        names: Names,
    ) -> Self {
        Self {
            prober: Prober::new(tls, names, config.max_headers),
            config,
            routes,
            clock,
            metrics,
            schedule: Schedule::default(),
            probes: JoinSet::new(),
            aborts: HashMap::new(),
        }
    }

    /// Checks until the drain begins, and then leaves what is dead to other instances. While the write Redis is away nothing is
    /// checked.
    pub async fn run(mut self, drain: Drain) {
        let longest = if self.config.place.is_movable() { LONGEST_SEARCH } else { LONGEST_PAUSE };
        let mut patience = Patience::new(longest);
        loop {
            let ended = tokio::select! {
                () = drain.begun() => return,
                opened = self.open() => match opened {
                    Ok((mut session, mut watch)) => {
                        match self.serve(&mut session, &mut watch, &mut patience, &drain).await {
                            Ok(()) => return self.release(&session).await,
                            Err(ended) => ended,
                        }
                    }
                    Err(error) => Ended::Failed(error),
                },
            };
            self.pause();
            let problem = match ended {
                Ended::Moved(moved) => moved.to_string(),
                Ended::Failed(error) => error.to_string(),
            };
            if patience.is_news(&problem) {
                warn!(watched = self.schedule.len(), "dead backends cannot be checked: {problem}");
            }
            tokio::select! {
                () = drain.begun() => return,
                () = time::sleep(patience.pause()) => {}
            }
        }
    }

    async fn open(&self) -> Result<(HealthSession, ServerWatch), StoreError> {
        let Found { server, watch } = self.config.place.find().await?;
        Ok((HealthSession::open(&server, &self.config.holder).await?, watch))
    }

    /// Checks until the drain begins, or the session is lost.
    async fn serve(
        &mut self,
        session: &mut HealthSession,
        watch: &mut ServerWatch,
        patience: &mut Patience,
        drain: &Drain,
    ) -> Result<(), Ended> {
        self.schedule.unsettle(Instant::now());
        self.watch_the_dead().await;
        let mut beat = time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        self.visit(session).await?;
        self.check(session).await?;
        // A server may let everybody in and refuse all that is asked of it, if it is out of memory for instance.
        patience.renew();
        info!(server = %session.server(), holder = &*self.config.holder, "dead backends are checked until they are healthy");
        loop {
            self.visit(session).await?;
            self.check(session).await?;
            self.count();
            let next = self.schedule.next(Instant::now());
            tokio::select! {
                biased;
                () = drain.begun() => return Ok(()),
                notice = session.notice() => {
                    self.announce(notice?);
                    while let Some(notice) = session.arrived()? {
                        self.announce(notice);
                    }
                }
                moved = watch.moved() => return Err(Ended::Moved(moved)),
                Some(ended) = self.probes.join_next() => self.take(ended),
                _ = beat.tick() => session.beat().await?,
                () = clock::reached(next.map(time::Instant::from)) => {}
            }
        }
    }

    /// Begins to watch what the routing table knows to be dead: messages that nobody was there to hear.
    async fn watch_the_dead(&mut self) {
        let (routes, now) = (self.routes.clone(), self.clock.now());
        // A large table takes its time.
        let dead = tokio::task::spawn_blocking(move || dead_in(&routes, now)).await.unwrap_or_default();
        let now = Instant::now();
        for (host, backend, index) in dead {
            self.admit(&host, backend, index, now);
        }
    }

    fn announce(&mut self, notice: Option<DeadNotice>) {
        let Some(DeadNotice { host, url, index, .. }) = notice else { return };
        // What is no backend receives no requests, and can be sent none here.
        let Ok(backend) = Backend::parse(&url) else { return };
        if host.len() + url.len() <= LONGEST_NAMES {
            self.admit(&host, Arc::new(backend), index, Instant::now());
        }
    }

    fn admit(&mut self, host: &str, backend: Arc<Backend>, index: usize, now: Instant) {
        if self.schedule.announce(host, backend, index, now) == Admission::Full {
            self.metrics.health.dropped.inc();
        }
    }

    /// Makes the visits to Redis that are due, a pipeline of them at most.
    async fn visit(&mut self, session: &HealthSession) -> Result<(), StoreError> {
        let due = self.schedule.visits(PIPELINE, Instant::now());
        if due.is_empty() {
            return Ok(());
        }
        let (subjects, visits): (Vec<_>, Vec<_>) = due.into_iter().map(|due| (due.subject, due.visit)).unzip();
        // What is granted counts from before it was asked for.
        let now = Instant::now();
        let standings = session.visit(&visits).await?;
        for ((subject, visit), standing) in subjects.iter().zip(&visits).zip(standings) {
            let url = match &standing {
                Standing::Held { url, .. } => url.clone(),
                _ => visit.urls[0].clone(),
            };
            let (turn, forgotten) = self.schedule.visited(subject, standing, now);
            self.abort(forgotten);
            say(&visit.host, &url, turn);
        }
        Ok(())
    }

    /// Begins the checks that are due, and stops those that must give way to them.
    async fn check(&mut self, session: &HealthSession) -> Result<(), StoreError> {
        let mut permits = Vec::new();
        loop {
            let now = Instant::now();
            permits.extend(std::iter::from_fn(|| self.schedule.permit(now)));
            let Some(stopped) = self.schedule.stop_stalled(now) else { break };
            self.metrics.health.count_check("stalled");
            self.abort(Some(stopped));
        }
        if permits.is_empty() {
            return Ok(());
        }
        let hosts: Vec<&str> = permits.iter().map(|permit| permit.subject.host.as_str()).collect();
        let criteria = session.criteria(&hosts).await?;
        // Whoever was stopped has let go of its connection before another takes its place.
        while self.probes.len() > self.aborts.len()
            && let Some(ended) = self.probes.join_next().await
        {
            self.take(ended);
        }
        for (permit, criteria) in permits.into_iter().zip(criteria) {
            let prober = self.prober.clone();
            let ticket = permit.ticket;
            let probing = async move { (ticket, prober.probe(&permit.backend, &criteria).await) };
            self.aborts.insert(ticket, self.probes.spawn(probing));
        }
        Ok(())
    }

    /// Takes in how a probe ended.
    fn take(&mut self, ended: Result<(u64, Finding), JoinError>) {
        let (ticket, finding) = match ended {
            Ok(ended) => ended,
            // It was aborted, and is accounted for.
            Err(error) if error.is_cancelled() => return,
            Err(error) => {
                let lost = self.aborts.iter().find(|(_, handle)| handle.id() == error.id());
                let Some((&ticket, _)) = lost else { return };
                (ticket, Finding::Broken)
            }
        };
        // One that was given up in its last moment has no say.
        if self.aborts.remove(&ticket).is_some() {
            self.metrics.health.count_check(finding.label());
            self.schedule.checked(ticket, finding == Finding::Healthy, Instant::now());
        }
    }

    fn abort(&mut self, ticket: Option<u64>) {
        if let Some(handle) = ticket.and_then(|ticket| self.aborts.remove(&ticket)) {
            handle.abort();
        }
    }

    /// Without a session nothing is checked: what would be found could not be recorded.
    fn pause(&mut self) {
        self.probes.abort_all();
        self.aborts.clear();
        self.schedule.unsettle(Instant::now());
        self.count();
    }

    /// Gives up all leases, within [`RELEASE_LIMIT`].
    async fn release(mut self, session: &HealthSession) {
        self.probes.abort_all();
        let leases: Vec<_> = self.schedule.leases().map(|(host, url)| (host.to_owned(), url.to_owned())).collect();
        let released = async {
            for page in leases.chunks(PIPELINE) {
                session.release(page).await?;
            }
            Ok::<_, StoreError>(())
        };
        match time::timeout(RELEASE_LIMIT, released).await {
            Ok(Ok(())) if leases.is_empty() => {}
            Ok(Ok(())) => info!(leases = leases.len(), "dead backends are left to other instances"),
            Ok(Err(error)) => warn!("the leases of dead backends could not be given up: {error}"),
            Err(_) => warn!("the leases of dead backends could not be given up in {RELEASE_LIMIT:?}"),
        }
    }

    fn count(&self) {
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.health.watched.set(gauge(self.schedule.len()));
        self.metrics.health.leases_held.set(gauge(self.schedule.held()));
    }
}

fn dead_in(routes: &Routes, now: Moment) -> Vec<(String, Arc<Backend>, usize)> {
    let snapshot = routes.load();
    let mut dead = Vec::new();
    for frontend in snapshot.iter() {
        let host = frontend.key();
        let is_meant =
            |slot: &&Slot| slot.backend.is_dead(now) && host.len() + slot.backend.url().len() <= LONGEST_NAMES;
        let slots = frontend.slots().iter().filter(is_meant);
        dead.extend(slots.map(|slot| (host.to_owned(), Arc::clone(&slot.backend), slot.index)));
    }
    dead
}

fn say(host: &str, backend: &str, turn: Turn) {
    match turn {
        Turn::None | Turn::Ended(End::RevivedElsewhere) => {}
        Turn::Began => info!(host, backend, "a dead backend is checked until it is healthy"),
        Turn::Yielded => info!(host, backend, "a dead backend is checked by another instance now"),
        Turn::Ended(End::Revived) => info!(host, backend, "a backend is healthy, and back in rotation"),
        Turn::Ended(End::Unlisted) => info!(host, backend, "a dead backend is not listed any more"),
    }
}

/// How long the end may be held up by leases that are not given up yet.
pub const RELEASE_LIMIT: Duration = Duration::from_secs(2);

/// How often the session is examined when there is nothing else to say.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// Visits to Redis in one round trip.
const PIPELINE: usize = 256;

/// Bytes of a host and a backend's URL together, beyond which they are junk.
const LONGEST_NAMES: usize = 4_096;

/// The longest pause between attempts to reach the master, jitter aside.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// As [`LONGEST_PAUSE`], where another server may have become the master meanwhile.
const LONGEST_SEARCH: Duration = Duration::from_millis(100);
