//! The streams of one HTTP/2 connection.

use std::{
    cell::{Cell, RefCell},
    pin::pin,
    rc::Rc,
};

use http::HeaderMap;
use hyper::rt::Executor;
use tokio_util::sync::CancellationToken;

use crate::proxy::{
    client_timeouts::{Deadlines, is_late},
    worker::Worker,
};

/// Runs a connection's streams, each within its own deadlines; one that is late is reset, and the others go on. The
/// connection itself has a deadline only while there is no stream.
#[derive(Clone)]
pub struct Streams(Rc<Inner>);

struct Inner {
    worker: Rc<Worker>,
    connection: Option<Rc<Deadlines>>,
    /// The deadlines of the stream that comes next: the library calls the handler and then, before anything else, has what
    /// that returned executed.
    next: RefCell<Option<Rc<Deadlines>>>,
    /// Likewise, what wants to know of the end of the tunnel that comes next: the library has its sending executed as soon
    /// as the handler's answer is there.
    next_tunnel: RefCell<Option<CancellationToken>>,
    open: Cell<usize>,
    /// Bytes of the heads of requests that have no answer yet.
    held: Cell<usize>,
    has_served: Cell<bool>,
}

impl Streams {
    /// For a connection that begins now.
    pub fn new(worker: &Rc<Worker>) -> Self {
        Self(Rc::new(Inner {
            connection: Deadlines::begin(worker.shared.config.client_timeouts, worker.shared.clock),
            worker: Rc::clone(worker),
            next: RefCell::default(),
            next_tunnel: RefCell::default(),
            open: Cell::default(),
            held: Cell::default(),
            has_served: Cell::default(),
        }))
    }

    /// Whether there is any at the moment.
    pub fn are_open(&self) -> bool {
        self.0.open.get() > 0
    }

    /// Whether there has been any.
    pub fn have_been(&self) -> bool {
        self.0.has_served.get()
    }

    /// The deadlines of the connection, which count while there is none.
    pub fn deadlines(&self) -> Option<Rc<Deadlines>> {
        self.0.connection.clone()
    }

    /// To be called when the handler is about to return what becomes of a request, which has these deadlines.
    pub fn expect(&self, deadlines: Option<Rc<Deadlines>>) {
        self.0.has_served.set(true);
        *self.0.next.borrow_mut() = deadlines;
    }

    /// Counts a request's head for as long as the result lives; `None` if the connection's heads are too much already. Each
    /// may be as large as the operator allows, but not a hundred at once.
    pub fn hold(&self, headers: &HeaderMap) -> Option<HeldHead> {
        let size =
            headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD).sum::<usize>();
        let held = self.0.held.get() + size;
        (held <= self.0.worker.shared.config.max_header_size * MOST_WHOLE_HEADS).then(|| {
            self.0.held.set(held);
            HeldHead { streams: self.clone(), size }
        })
    }

    /// To be called when the handler is about to answer that a tunnel is open.
    pub fn open_tunnel(&self) -> OpenTunnel {
        let closed = CancellationToken::new();
        *self.0.next_tunnel.borrow_mut() = Some(closed.clone());
        OpenTunnel { _open: Open::one(self), closed }
    }
}

impl<F: Future + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let deadlines = self.0.next.borrow_mut().take();
        let tunnel = self.0.next_tunnel.borrow_mut().take();
        let open = Open::one(self);
        self.0.worker.tasks.spawn_local(async move {
            let _tunnel = tunnel.map(CancellationToken::drop_guard);
            let worker = &open.0.0.worker;
            if is_late(deadlines, worker.shared.clock, pin!(stream)).await {
                worker.shared.metrics.client_timeouts.inc();
            }
        });
    }
}

/// The head of a request that has no answer yet.
pub struct HeldHead {
    streams: Streams,
    size: usize,
}

impl Drop for HeldHead {
    fn drop(&mut self) {
        let held = &self.streams.0.held;
        held.set(held.get() - self.size);
    }
}

/// A tunnel within a connection, which is not idle for as long as this lives.
pub struct OpenTunnel {
    _open: Open,
    closed: CancellationToken,
}

impl OpenTunnel {
    /// Waits until nothing more can be sent to the client: because all has been, or because it has reset the stream, which
    /// the library does not tell apart from its end (RFC 8441 section 5).
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

/// Counts a stream for as long as it lives.
struct Open(Streams);

impl Open {
    fn one(streams: &Streams) -> Self {
        let inner = &streams.0;
        inner.open.set(inner.open.get() + 1);
        if let Some(connection) = &inner.connection {
            connection.became_busy();
        }
        Self(streams.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let inner = &self.0.0;
        inner.open.set(inner.open.get() - 1);
        if inner.open.get() == 0
            && let Some(connection) = &inner.connection
        {
            connection.became_idle();
        }
    }
}

/// What a field counts beside its bytes (RFC 9113 section 10.5.1).
const FIELD_OVERHEAD: usize = 32;

/// How many heads of the largest size a connection may have at once.
const MOST_WHOLE_HEADS: usize = 2;
