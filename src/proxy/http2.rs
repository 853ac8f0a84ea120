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

use hyper::{
    Request,
    body::{Body, Incoming},
    rt::Executor,
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::TokioIo;

use super::{
    Worker,
    connection::{Client, fresh_grace, see_through},
    deadlines::{Alarm, Deadlines},
    service,
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
        open: Cell::default(),
        has_served: Cell::default(),
    }));

    let handler = service_fn(|request: Request<Incoming>| {
        let deadlines = Deadlines::begin(limits, shared.clock);
        if let Some(deadlines) = &deadlines {
            deadlines.head_ended(!request.body().is_end_stream());
        }
        streams.expect(deadlines.clone());
        let answer = service::answer(Rc::clone(&worker), Rc::clone(&client), deadlines, request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = http2::Builder::new(streams.clone());
    builder
        .enable_connect_protocol()
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(u32::try_from(shared.config.max_header_size).unwrap_or(u32::MAX));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(transport), handler));
    let draining = pin!(async {
        worker.drain.begun().await;
        if !streams.0.has_served.get() {
            fresh_grace(&worker.drain).await;
        }
    });
    let deadlines = streams.0.connection.clone();
    see_through(
        &worker,
        client.address,
        connection.as_mut(),
        http2::Connection::graceful_shutdown,
        draining,
        deadlines,
    )
    .await;
}

/// Runs a connection's streams, each within its own deadlines; one that is late is reset, and the others go on. The
/// connection itself has a deadline only while there is no stream.
#[derive(Clone)]
struct Streams(Rc<Inner>);

struct Inner {
    worker: Rc<Worker>,
    connection: Option<Arc<Deadlines>>,
    /// The deadlines of the stream that comes next: the library calls the handler and then, before anything else, has what
    /// that returned executed.
    next: RefCell<Option<Arc<Deadlines>>>,
    open: Cell<usize>,
    has_served: Cell<bool>,
}

impl Streams {
    fn expect(&self, deadlines: Option<Arc<Deadlines>>) {
        self.0.has_served.set(true);
        *self.0.next.borrow_mut() = deadlines;
    }
}

impl<F: Future + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let mut alarm = self.0.next.borrow_mut().take().map(Alarm::new);
        let open = Open::one(self);
        self.0.worker.tasks.spawn_local(async move {
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

/// Requests that a client may have in flight on one connection.
const MOST_STREAMS: u32 = 128;
