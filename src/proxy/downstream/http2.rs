//! HTTP/2 with one client (RFC 9113), until its connection closes or runs out of time.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use http::{HeaderMap, Method};
use hyper::{
    Request,
    body::{Body, Incoming},
    rt::Executor,
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use super::{
    connection::{Client, Ending, FRESH_GRACE, fresh_grace, see_through},
    frames::Watched,
};
use crate::{
    proxy::{
        Worker,
        client_timeouts::{Alarm, Deadlines},
        forward::{self, Turn},
        response_body::ResponseBody,
    },
    transport::Transport,
};

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, transport: Transport, client: Rc<Client>) {
    let shared = &worker.shared;
    let limits = shared.config.client_timeouts;
    let streams = Streams(Rc::new(Inner {
        worker: Rc::clone(&worker),
        connection: Deadlines::begin(limits, shared.clock),
        next: RefCell::default(),
        next_tunnel: RefCell::default(),
        open: Cell::default(),
        held: Cell::default(),
        has_served: Cell::default(),
    }));

    let handler = service_fn(|request: Request<Incoming>| {
        let deadlines = Deadlines::begin(limits, shared.clock);
        if let Some(deadlines) = &deadlines {
            deadlines.head_ended(!request.body().is_end_stream());
        }
        streams.expect(deadlines.clone());
        let turn = Turn { deadlines, streams: Some(streams.clone()) };
        let is_head = request.method() == Method::HEAD;
        let answer = forward::answer(Rc::clone(&worker), Rc::clone(&client), turn, request);
        async move {
            let mut response = answer.await;
            if is_head {
                ResponseBody::leave_out(&mut response);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http2::Builder::new(streams.clone());
    builder
        .enable_connect_protocol()
        .max_concurrent_streams(MOST_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(shared.config.max_header_size).unwrap_or(u32::MAX));
    let watched = {
        let streams = streams.clone();
        Watched::new(transport, move || streams.0.open.get() > 0, shared.metrics.http2_floods.clone())
    };
    let mut connection = pin!(builder.serve_connection(TokioIo::new(watched), handler));
    let draining = pin!(async {
        worker.drain.begun().await;
        if !streams.0.has_served.get() {
            fresh_grace(&worker.drain).await;
        }
    });
    // The goodbye is only complete when the client has answered, and one that is gone does not.
    let abandoned = pin!(async {
        fresh_grace(&worker.drain).await;
        while streams.0.open.get() > 0 {
            tokio::time::sleep(FRESH_GRACE).await;
        }
    });
    let deadlines = streams.0.connection.clone();
    let ending = Ending { draining, abandoned, deadlines };
    see_through(&worker, client.address, connection.as_mut(), http2::Connection::graceful_shutdown, ending).await;
}

/// Runs a connection's streams, each within its own deadlines; one that is late is reset, and the others go on. The
/// connection itself has a deadline only while there is no stream.
#[derive(Clone)]
pub struct Streams(Rc<Inner>);

struct Inner {
    worker: Rc<Worker>,
    connection: Option<Arc<Deadlines>>,
    /// The deadlines of the stream that comes next: the library calls the handler and then, before anything else, has what
    /// that returned executed.
    next: RefCell<Option<Arc<Deadlines>>>,
    /// Likewise, what wants to know of the end of the tunnel that comes next: the library has its sending executed as soon
    /// as the handler's answer is there.
    next_tunnel: RefCell<Option<CancellationToken>>,
    open: Cell<usize>,
    /// Bytes of the heads of requests that have no answer yet.
    held: Cell<usize>,
    has_served: Cell<bool>,
}

impl Streams {
    fn expect(&self, deadlines: Option<Arc<Deadlines>>) {
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
        let mut alarm = self.0.next.borrow_mut().take().map(Alarm::new);
        let tunnel = self.0.next_tunnel.borrow_mut().take();
        let open = Open::one(self);
        self.0.worker.tasks.spawn_local(async move {
            let _tunnel = tunnel.map(CancellationToken::drop_guard);
            let worker = &open.0.0.worker;
            let mut stream = pin!(stream);
            let is_late = poll_fn(|cx| {
                if stream.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(false);
                }
                alarm.as_mut().map_or(Poll::Pending, |alarm| alarm.poll(worker.shared.clock, cx)).map(|()| true)
            });
            if is_late.await {
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

/// Bytes of bodies that a client may send ahead, on one stream and on all; so that eight uploads which no backend reads leave
/// room for others.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 8 * STREAM_WINDOW;

/// What a field counts beside its bytes (RFC 9113 section 10.5.1).
const FIELD_OVERHEAD: usize = 32;

/// How many heads of the largest size a connection may have at once.
const MOST_WHOLE_HEADS: usize = 2;

/// Requests that a client may have in flight on one connection.
const MOST_STREAMS: u32 = 128;
