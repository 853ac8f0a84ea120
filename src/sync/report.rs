//! Dead marks on their way to the write Redis.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time};
use tracing::{info, warn};

use crate::{
    clock::Clock,
    routing::{Backend, DeadMark, Routes},
    store::{DeadNotice, Found, Moved, Patience, Place, StoreError, Watch, WriteSession},
    telemetry::Metrics,
};

use super::{
    ledger::{Key, Ledger, Pending},
    whereabouts::{Home, Move, Whereabouts},
};

/// The task that records dead marks on the master. While the master is away it keeps the newest mark of each backend, and
/// forgets those that have run out. When another server has become the master, it sees to it that this has them all.
pub struct Reporter {
    place: Place,
    marks: mpsc::Receiver<DeadMark>,
    routes: Routes,
    clock: Clock,
    metrics: Arc<Metrics>,
    ledger: Ledger,
    whereabouts: Whereabouts,
}

/// Why a session was given up.
enum Ended {
    Drained,
    Moved(Moved),
    Failed(StoreError),
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl Reporter {
    /// A reporter of what arrives on `marks`, which should hold [`MARK_QUEUE`].
    pub fn new(
        place: Place,
        marks: mpsc::Receiver<DeadMark>,
        routes: Routes,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            place,
            marks,
            routes,
            clock,
            metrics,
            ledger: Ledger::new(MARK_QUEUE),
            whereabouts: Whereabouts::default(),
        }
    }

    /// Runs until every sender of marks is gone and what could be written has been.
    ///
    /// # Errors
    /// Only before the first connection and soon after the start, and only when waiting cannot help: a wrong password or
    /// database. Later, whoever is being served matters more.
    pub async fn run(mut self) -> Result<(), StoreError> {
        let longest = if self.place.is_movable() { LONGEST_SEARCH } else { LONGEST_PAUSE };
        let mut patience = Patience::new(longest);
        let began = time::Instant::now();
        loop {
            let ended = match self.open().await {
                Ok((mut session, mut watch)) => match self.serve(&mut session, &mut watch, &mut patience).await {
                    Ok(never) => match never {},
                    Err(ended) => ended,
                },
                Err(error)
                    if error.is_misconfiguration()
                        && self.whereabouts.home().is_none()
                        && began.elapsed() < STARTING =>
                {
                    return Err(error);
                }
                Err(error) => Ended::Failed(error),
            };
            let reason = match ended {
                Ended::Drained => return Ok(()),
                Ended::Moved(moved) => moved.to_string(),
                Ended::Failed(error) => {
                    let problem = error.to_string();
                    if patience.is_news(&problem) {
                        warn!(pending = self.ledger.pending(), "dead backends cannot be recorded: {problem}");
                    }
                    problem
                }
            };
            self.whereabouts.leave(reason);
            let until = time::Instant::now() + patience.pause();
            if !self.keep_until(until).await {
                return Ok(());
            }
        }
    }

    async fn open(&self) -> Result<(WriteSession, Watch), StoreError> {
        let Found { server, watch } = self.place.find().await?;
        Ok((WriteSession::open(&server).await?, watch))
    }

    /// Writes what is due at the beginning of a session, and says where that was.
    async fn arrive(&mut self, session: &WriteSession) -> Result<(), StoreError> {
        let server = session.server().to_string();
        let home = Home { server: server.clone(), history: session.replication_id().to_owned() };
        self.ledger.settle(home.clone());
        self.flush(session).await?;
        match self.whereabouts.arrive(home) {
            None => info!(server, "dead backends are recorded on the write Redis"),
            Some(Move { from, reason }) => {
                info!(from, to = server, reason, "dead backends are recorded on another Redis");
            }
        }
        Ok(())
    }

    /// Writes marks as they come.
    async fn serve(
        &mut self,
        session: &mut WriteSession,
        watch: &mut Watch,
        patience: &mut Patience,
    ) -> Result<Infallible, Ended> {
        self.arrive(session).await?;
        // A server may let everybody in and refuse all that is asked of it, if it is out of memory for instance.
        patience.renew();
        loop {
            tokio::select! {
                mark = self.marks.recv() => match mark {
                    Some(mark) => {
                        self.keep(mark);
                        self.flush(session).await?;
                    }
                    None => return Err(Ended::Drained),
                },
                moved = watch.moved() => return Err(Ended::Moved(moved)),
                error = session.broken() => return Err(Ended::Failed(error)),
            }
        }
    }

    /// Takes marks in without writing them; returns whether more can come.
    async fn keep_until(&mut self, until: time::Instant) -> bool {
        loop {
            match time::timeout_at(until, self.marks.recv()).await {
                Ok(Some(mark)) => self.keep(mark),
                Ok(None) => return false,
                Err(_) => {
                    self.ledger.forget_expired(self.clock.now());
                    self.count();
                    return true;
                }
            }
        }
    }

    fn keep(&mut self, mark: DeadMark) {
        if !self.ledger.keep(mark, self.clock.now()) {
            self.metrics.marks_dropped.inc();
        }
        self.count();
    }

    async fn flush(&mut self, session: &WriteSession) -> Result<(), StoreError> {
        self.ledger.forget_expired(self.clock.now());
        for (key, mark) in self.ledger.due() {
            if self.write(session, &key, mark).await? {
                self.ledger.written(key, self.clock.now());
            } else {
                self.ledger.forget(&key);
            }
            self.count();
        }
        Ok(())
    }

    /// Sees to it that the master has a mark; `false` if it should not have it any more.
    async fn write(&self, session: &WriteSession, key: &Key, mark: Pending) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let ttl = now.until(mark.until);
        let Some((notice, backend)) = self.notice(&key.0, &key.1).filter(|_| !ttl.is_zero()) else { return Ok(false) };
        if !mark.is_repeat {
            return session.mark_dead(&notice, ttl).await.map(|()| true);
        }
        // Somebody may have revived it since.
        if !backend.is_dead(now) {
            return Ok(false);
        }
        let (is_there, left) = match session.look_up(&notice).await {
            // An access list that was made for writing marks may forbid to read them.
            Err(StoreError::Refused { .. }) => (false, None),
            answer => answer?,
        };
        let left = left.unwrap_or_default();
        if !is_there || left + ROUNDING < ttl {
            session.mark_dead(&notice, ttl.max(left)).await?;
        }
        Ok(true)
    }

    /// The backend, and the index and the spelling that it has now; the list may have changed since it failed. `None` if it is
    /// not listed any more, and then there is nothing to mark.
    fn notice(&self, frontend: &str, url: &str) -> Option<(DeadNotice, Arc<Backend>)> {
        let snapshot = self.routes.load();
        let frontend = snapshot.get(&frontend.to_ascii_lowercase()).filter(|held| held.key() == frontend)?;
        let slot = frontend.slot_of(url)?;
        let (host, url) = (frontend.key().to_owned(), slot.backend.url().to_owned());
        let notice = DeadNotice { host, url, index: slot.index, backends: frontend.listed() };
        Some((notice, Arc::clone(&slot.backend)))
    }

    fn count(&self) {
        self.metrics.marks_pending.set(i64::try_from(self.ledger.pending()).unwrap_or(i64::MAX));
    }
}

/// Marks that may wait, both in the channel from the proxy and, by backend, for the master; and those that are remembered.
pub const MARK_QUEUE: usize = 10_000;

/// How long a wrong password may end the process.
const STARTING: Duration = Duration::from_secs(30);

/// The longest pause between attempts to reach the master, jitter aside.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// As [`LONGEST_PAUSE`], where another server may have become the master meanwhile.
const LONGEST_SEARCH: Duration = Duration::from_millis(100);

/// Expiries are written in whole seconds.
const ROUNDING: Duration = Duration::from_secs(1);
