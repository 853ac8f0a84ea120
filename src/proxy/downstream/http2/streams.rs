//! The streams of one HTTP/2 connection.

use std::{cell::Cell, rc::Rc};

use http::HeaderMap;

use crate::proxy::{client_timeouts::Deadlines, crowd::Pace, reading::BODY_ROOM, worker::Worker};

/// Counts a connection's streams, and what they keep in memory together. The connection itself has a deadline only while there
/// is no stream.
#[derive(Clone)]
pub struct Streams(Rc<Inner>);

struct Inner {
    connection: Option<Rc<Deadlines>>,
    /// Bytes that one head may have.
    max_header_size: usize,
    open: Cell<usize>,
    /// Bytes of the heads of requests that have no answer yet.
    held: Cell<usize>,
    has_served: Cell<bool>,
    /// How many have a piece that waits for the client.
    waiting: Cell<usize>,
    pace: Pace,
}

impl Streams {
    /// For a connection that begins now.
    pub fn new(worker: &Worker, pace: Pace) -> Self {
        Self(Rc::new(Inner {
            connection: Deadlines::after_head(worker.shared.config.client_timeouts, worker.shared.clock),
            max_header_size: worker.shared.config.max_header_size,
            open: Cell::default(),
            held: Cell::default(),
            has_served: Cell::default(),
            waiting: Cell::default(),
            pace,
        }))
    }

    /// Whether there is any at the moment.
    pub fn are_open(&self) -> bool {
        self.0.open.get() > 0
    }

    /// Bytes of a body that one of them may read at once.
    pub fn room(&self) -> usize {
        (ROOM / self.0.open.get().max(1)).clamp(LEAST_ROOM, BODY_ROOM)
    }

    /// Whether there has been any.
    pub fn have_been(&self) -> bool {
        self.0.has_served.get()
    }

    /// The deadlines of the connection, which count while there is none.
    pub fn deadlines(&self) -> Option<Rc<Deadlines>> {
        self.0.connection.clone()
    }

    /// Counts a stream, or a tunnel on it, for as long as the result lives.
    pub fn open(&self) -> OpenStream {
        let inner = &self.0;
        inner.has_served.set(true);
        inner.open.set(inner.open.get() + 1);
        if let Some(connection) = &inner.connection {
            connection.became_busy();
        }
        OpenStream(self.clone())
    }

    /// Counts a stream whose client has no room for what there is, for as long as the result lives.
    pub fn wait(&self) -> WaitingStream {
        self.wait_for(self.0.waiting.get() + 1);
        WaitingStream(self.clone())
    }

    fn wait_for(&self, waiting: usize) {
        self.0.waiting.set(waiting);
        if waiting > 0 {
            self.0.pace.is_held_up(waiting * HELD_UP);
        }
    }

    /// Counts a request's head for as long as the result lives; `None` if the connection's heads are too much already. Each
    /// may be as large as the operator allows, but not a hundred at once.
    pub fn hold(&self, headers: &HeaderMap) -> Option<HeldHead> {
        let size =
            headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD).sum::<usize>();
        let held = self.0.held.get() + size;
        (held <= self.0.max_header_size * MOST_WHOLE_HEADS).then(|| {
            self.0.held.set(held);
            HeldHead { streams: self.clone(), size }
        })
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

/// A stream that has a piece which waits for the client.
pub struct WaitingStream(Streams);

impl Drop for WaitingStream {
    fn drop(&mut self) {
        let streams = &self.0;
        streams.0.pace.moves();
        streams.wait_for(streams.0.waiting.get() - 1);
    }
}

/// A stream that is open.
pub struct OpenStream(Streams);

impl Drop for OpenStream {
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

/// Bytes of bodies that all may read at once, as long as it is not less than the least that is worth it for each.
const ROOM: usize = 16 * BODY_ROOM;
const LEAST_ROOM: usize = 16 * 1024;

/// About what waits in a stream whose client takes nothing: a piece, what the library has of it, and the next at the backend's
/// end.
const HELD_UP: usize = 3 * LEAST_ROOM;

/// How many heads of the largest size a connection may have at once.
const MOST_WHOLE_HEADS: usize = 2;
