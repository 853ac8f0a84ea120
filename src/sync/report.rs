//! Dead marks on their way to the write Redis.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, time};
use tracing::{info, warn};

use crate::{
    routing::{Clock, DeadMark, Moment, Routes},
    store::{DeadNotice, Server, StoreError, WriteSession},
    telemetry::Metrics,
};

use super::patience::Patience;

/// The task that records dead marks on the master. While the master is away it keeps the newest mark of each backend, and
/// forgets those that have run out.
pub struct Reporter {
    server: Server,
    marks: mpsc::Receiver<DeadMark>,
    routes: Routes,
    clock: Clock,
    metrics: Arc<Metrics>,
    pending: HashMap<(Box<str>, Box<str>), Moment>,
}

impl Reporter {
    /// A reporter of what arrives on `marks`, which should hold [`MARK_QUEUE`].
    pub fn new(
        server: Server,
        marks: mpsc::Receiver<DeadMark>,
        routes: Routes,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { server, marks, routes, clock, metrics, pending: HashMap::new() }
    }

    /// Runs until every sender of marks is gone and what could be written has been.
    ///
    /// # Errors
    /// Only before the first connection, and only when waiting cannot help: a wrong password or database.
    pub async fn run(mut self) -> Result<(), StoreError> {
        let mut patience = Patience::new(LONGEST_PAUSE);
        let mut was_connected = false;
        loop {
            let error = match WriteSession::open(&self.server).await {
                Ok(mut session) => {
                    info!(server = %self.server, "dead backends are recorded on the write Redis");
                    patience.renew();
                    was_connected = true;
                    match self.serve(&mut session).await {
                        Ok(()) => return Ok(()),
                        Err(error) => error,
                    }
                }
                Err(error) if error.is_misconfiguration() && !was_connected => return Err(error),
                Err(error) => error,
            };
            let problem = error.to_string();
            if patience.is_news(&problem) {
                warn!(pending = self.pending.len(), "dead backends cannot be recorded: {problem}");
            }
            let until = time::Instant::now() + patience.pause();
            if !self.keep_until(until).await {
                return Ok(());
            }
        }
    }

    /// Writes marks as they come; `Ok` when no more can come.
    async fn serve(&mut self, session: &mut WriteSession) -> Result<(), StoreError> {
        self.flush(session).await?;
        loop {
            tokio::select! {
                mark = self.marks.recv() => match mark {
                    Some(mark) => {
                        self.keep(mark);
                        self.flush(session).await?;
                    }
                    None => return Ok(()),
                },
                error = session.broken() => return Err(error),
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
                    self.forget_expired();
                    return true;
                }
            }
        }
    }

    fn keep(&mut self, mark: DeadMark) {
        if self.pending.len() >= MARK_QUEUE {
            self.forget_expired();
        }
        let full = self.pending.len() >= MARK_QUEUE;
        match self.pending.entry((mark.frontend, mark.url)) {
            Entry::Occupied(mut until) => *until.get_mut() = mark.until,
            Entry::Vacant(_) if full => self.metrics.marks_dropped.inc(),
            Entry::Vacant(entry) => {
                entry.insert(mark.until);
            }
        }
        self.count();
    }

    fn forget_expired(&mut self) {
        let now = self.clock.now();
        self.pending.retain(|_, until| *until > now);
        self.count();
    }

    async fn flush(&mut self, session: &WriteSession) -> Result<(), StoreError> {
        self.forget_expired();
        let waiting: Vec<_> = self.pending.iter().map(|(key, until)| (key.clone(), *until)).collect();
        for (key, until) in waiting {
            let ttl = self.clock.now().until(until);
            if let Some(notice) = self.notice(&key.0, &key.1)
                && !ttl.is_zero()
            {
                session.mark_dead(&notice, ttl).await?;
            }
            self.pending.remove(&key);
            self.count();
        }
        Ok(())
    }

    /// Finds the index that the backend has now; the list may have changed since it failed. `None` if it is not listed
    /// any more, and then there is nothing to mark.
    fn notice(&self, frontend: &str, url: &str) -> Option<DeadNotice> {
        let snapshot = self.routes.load();
        let frontend = snapshot.get(&frontend.to_ascii_lowercase()).filter(|held| held.key() == frontend)?;
        let index = frontend.slot_of(url)?.index;
        Some(DeadNotice { host: frontend.key().to_owned(), url: url.to_owned(), index, backends: frontend.listed() })
    }

    fn count(&self) {
        self.metrics.marks_pending.set(i64::try_from(self.pending.len()).unwrap_or(i64::MAX));
    }
}

/// Marks that may wait, both in the channel from the proxy and, by backend, for the master.
pub const MARK_QUEUE: usize = 10_000;

/// The longest pause between attempts to reach the master, jitter aside.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
