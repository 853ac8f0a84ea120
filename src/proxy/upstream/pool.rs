//! Connections to backends that are kept for reuse.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1::SendRequest},
};
use prometheus::{IntCounter, IntGauge};

use super::io::Meter;
use crate::{
    proxy::upload::RequestBody,
    routing::{Backend, Origin},
};

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

/// A connection to a backend, over which one request at a time can be sent.
pub struct Connection {
    sender: SendRequest<RequestBody>,
    meter: Arc<Meter>,
    backend: Arc<Backend>,
}

impl Connection {
    pub(super) fn new(sender: SendRequest<RequestBody>, meter: Arc<Meter>, backend: Arc<Backend>) -> Self {
        Self { sender, meter, backend }
    }

    /// What its bytes are counted by.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Sends a request; gives it back if it was not begun.
    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        self.sender.try_send_request(request).await
    }
}

/// One worker's kept connections, by origin. The one used last is used first, so that after a burst the surplus ages out.
pub struct Pool {
    idle: RefCell<HashMap<Arc<Origin>, VecDeque<Idle>, RandomState>>,
    traffic: Traffic,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Idle {
    fn is_worth_keeping(&self) -> bool {
        let Self { connection, since } = self;
        since.elapsed() < KEEP && !connection.sender.is_closed() && !connection.backend.is_retired()
    }
}

impl Pool {
    /// An empty pool.
    pub fn new(traffic: Traffic) -> Rc<Self> {
        Rc::new(Self { idle: RefCell::default(), traffic })
    }

    /// Takes a connection that is, as far as can be told, still open.
    pub(super) fn take(&self, origin: &Arc<Origin>) -> Option<Connection> {
        let mut all = self.idle.borrow_mut();
        let kept = all.get_mut(origin)?;
        while let Some(idle) = kept.pop_back() {
            self.traffic.idle.dec();
            if idle.connection.sender.is_ready() && idle.since.elapsed() < KEEP {
                self.traffic.reuses.inc();
                return Some(idle.connection);
            }
        }
        None
    }

    fn put(&self, connection: Connection) {
        if connection.backend.is_retired() {
            return;
        }
        let mut all = self.idle.borrow_mut();
        let kept = all.entry(Arc::clone(connection.backend.origin())).or_default();
        if kept.len() >= MOST_PER_ORIGIN && kept.pop_front().is_some() {
            self.traffic.idle.dec();
        }
        kept.push_back(Idle { connection, since: Instant::now() });
        self.traffic.idle.inc();
    }

    /// Closes connections that have been idle too long, or whose backend has closed them or is retired.
    pub fn reap(&self) {
        let mut closed = 0;
        self.idle.borrow_mut().retain(|_, kept| {
            let before = kept.len();
            kept.retain(Idle::is_worth_keeping);
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

/// A connection in use by one response. Dropping it closes the connection; returning it keeps it.
pub struct Lease {
    connection: Connection,
    pool: Rc<Pool>,
}

impl Lease {
    pub(super) fn new(connection: Connection, pool: &Rc<Pool>) -> Self {
        Self { connection, pool: Rc::clone(pool) }
    }

    /// The response has been read to its end: the connection may serve another request, once the library is done with
    /// this one.
    pub fn give_back(self) {
        let Self { mut connection, pool } = self;
        if connection.sender.is_ready() {
            pool.put(connection);
        } else if !connection.sender.is_closed() {
            // Usually because the request's body is still being sent, though the response is complete.
            tokio::task::spawn_local(async move {
                if let Ok(Ok(())) = tokio::time::timeout(SETTLE, connection.sender.ready()).await {
                    pool.put(connection);
                }
            });
        }
    }
}

/// How long a connection is kept: less than the five seconds after which common servers close it.
const KEEP: Duration = Duration::from_secs(4);

/// Connections kept per origin and worker.
const MOST_PER_ORIGIN: usize = 256;

/// How long a connection may take to become ready again after a complete response.
const SETTLE: Duration = Duration::from_secs(1);
