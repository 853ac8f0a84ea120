//! Connections to backends that are kept for reuse.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    rc::Rc,
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use prometheus::{IntCounter, IntGauge};

use super::connection::Connection;
use crate::routing::Origin;

/// What connections to backends are counted by.
#[derive(Clone)]
pub struct Traffic {
    /// Connections made.
    pub dials: IntCounter,
    /// Requests sent on a kept connection.
    pub reuses: IntCounter,
    /// Connections in all pools.
    pub idle: IntGauge,
}

/// One worker's kept connections, by origin. The one used last is used first, so that after a burst the surplus ages out.
pub struct Pool {
    idle: RefCell<HashMap<Origin, VecDeque<Idle>, RandomState>>,
    /// When it was last looked over.
    now: Cell<Instant>,
    traffic: Traffic,
}

struct Idle {
    connection: Box<Connection>,
    /// When the pool had last been looked over before.
    since: Instant,
}

impl Idle {
    fn is_worth_keeping(&mut self, now: Instant) -> bool {
        // One that is in use again and again keeps its memory.
        self.connection.rest();
        now.saturating_duration_since(self.since) < KEEP
            && !self.connection.backend().is_retired()
            && self.connection.is_usable()
    }
}

impl Pool {
    /// An empty pool.
    pub fn new(traffic: Traffic) -> Rc<Self> {
        Rc::new(Self { idle: RefCell::default(), now: Instant::now().into(), traffic })
    }

    /// Takes a connection that is still open, and on which nothing has come that nobody has asked for: it would be taken for the
    /// answer to the next request. What has been announced may be milliseconds old while a worker has much to do, so the
    /// system is asked as well.
    pub fn take(&self, origin: &Origin) -> Option<Box<Connection>> {
        let mut all = self.idle.borrow_mut();
        let kept = all.get_mut(origin)?;
        while let Some(mut idle) = kept.pop_back() {
            self.traffic.idle.dec();
            let is_open = idle.connection.is_usable() && idle.connection.is_silent();
            if is_open {
                self.traffic.reuses.inc();
                return Some(idle.connection);
            }
        }
        None
    }

    /// Keeps a connection that is ready for another request.
    pub fn put(&self, mut connection: Box<Connection>) {
        if connection.backend().is_retired() || !connection.is_usable() {
            return;
        }
        let mut all = self.idle.borrow_mut();
        let kept = all.entry(connection.backend().origin().clone()).or_default();
        if kept.len() >= MOST_PER_ORIGIN && kept.pop_front().is_some() {
            self.traffic.idle.dec();
        }
        kept.push_back(Idle { connection, since: self.now.get() });
        self.traffic.idle.inc();
    }

    /// To be called every second. Closes connections that have been idle too long, or whose backend has closed them or is retired.
    pub fn reap(&self) {
        let (now, mut closed) = (Instant::now(), 0);
        self.now.set(now);
        self.idle.borrow_mut().retain(|_, kept| {
            let before = kept.len();
            kept.retain_mut(|idle| idle.is_worth_keeping(now));
            closed += before - kept.len();
            !kept.is_empty()
        });
        self.traffic.idle.sub(i64::try_from(closed).unwrap_or(i64::MAX));
    }

    /// Closes every kept connection, to free descriptors.
    pub fn clear(&self) {
        let closed: usize = self.idle.borrow_mut().drain().map(|(_, kept)| kept.len()).sum();
        self.traffic.idle.sub(i64::try_from(closed).unwrap_or(i64::MAX));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.clear();
    }
}

/// How long a connection is kept: less than the five seconds after which common servers close it.
const KEEP: Duration = Duration::from_secs(4);

/// Connections kept per origin and worker. With fewer than there are requests at once, connections are made and closed all the time.
const MOST_PER_ORIGIN: usize = 1_024;
