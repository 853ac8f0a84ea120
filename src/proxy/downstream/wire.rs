//! A client's connection in HTTP/1.1: its socket, what has arrived on it, and what is to be written.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use socket2::SockRef;
use tokio::io::AsyncWrite;

use crate::{
    message::{Chunk, Framing, JoinedChunks},
    proxy::{
        client_timeouts::Deadlines,
        crowd::Pace,
        outbox::Outbox,
        reading::{self, BODY_ROOM},
        trailers::map_of,
        upload::UploadError,
    },
    transport::Transport,
};

/// A connection.
pub struct Wire {
    /// The socket; `None` once it has gone elsewhere.
    transport: Option<Transport>,
    /// What has arrived and was not taken yet.
    pub input: BytesMut,
    /// What waits to be written.
    pub output: Outbox,
    body: Upload,
    /// Whether somebody may still read the request's body, and who waits until nobody does.
    is_body_wanted: bool,
    settled: Option<Waker>,
    deadlines: Rc<Deadlines>,
    pace: Pace,
}

/// What is to come of a request's body.
enum Upload {
    Length(u64),
    Chunked(JoinedChunks),
    Ended,
    Broken,
}

impl Wire {
    /// A connection on which nothing was said yet.
    pub fn new(transport: Transport, deadlines: Rc<Deadlines>, pace: Pace) -> Self {
        Self {
            transport: Some(transport),
            input: BytesMut::new(),
            output: Outbox::default(),
            body: Upload::Ended,
            is_body_wanted: false,
            settled: None,
            deadlines,
            pace,
        }
    }

    /// Gives the memory back that an idle connection has no use for.
    pub fn rest(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        if self.output.is_empty() {
            self.output.rest();
        }
    }

    /// Reads what has arrived; returns how many bytes, 0 at the end.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(transport) = &mut self.transport else { return Poll::Ready(Ok(0)) };
        reading::poll_read(transport, &mut self.input, cx)
    }

    /// The same for a body, which may be large.
    fn poll_fill_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(transport) = &mut self.transport else { return Poll::Ready(Ok(0)) };
        let read = reading::poll_read_body(transport, &mut self.input, BODY_ROOM, cx);
        if read.is_pending() {
            self.pace.is_held_up(self.input.capacity());
        } else {
            self.pace.moves();
        }
        read
    }

    /// A part of a head has arrived, and the rest has not.
    pub fn awaits_head(&self) {
        self.pace.is_held_up(self.input.capacity());
    }

    /// A head is whole.
    pub fn has_whole_head(&self) {
        self.pace.moves();
    }

    /// Writes what waits; ready when nothing does any more.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(transport) = &mut self.transport else { return Poll::Ready(Ok(())) };
        while !self.output.is_empty() {
            let Poll::Ready(written) = self.output.poll_write(transport, cx) else {
                // As much again waits at the backend's end, where the next piece is read.
                self.pace.is_held_up(2 * self.output.len());
                return Poll::Pending;
            };
            written?;
            self.pace.moves();
        }
        Pin::new(transport).poll_flush(cx)
    }

    /// A request's body comes next, whose end is told in this way.
    pub fn expect_body(&mut self, framing: Framing) {
        self.body = match framing {
            Framing::Chunked => Upload::Chunked(JoinedChunks::default()),
            Framing::Length(length) if length > 0 => Upload::Length(length),
            Framing::None | Framing::Length(_) | Framing::UntilClose => Upload::Ended,
        };
    }

    /// Whether the body of the request has been read to its end.
    pub fn has_read_body(&self) -> bool {
        matches!(self.body, Upload::Ended)
    }

    /// Whether the body has been read to its end, or somebody may still do so. What has arrived of a body that nobody reads is
    /// dropped for this, up to a limit.
    pub fn is_body_in_hand(&mut self, cx: &mut Context<'_>) -> bool {
        let mut dropped = 0;
        while !self.has_read_body() && !self.is_body_wanted && dropped < MOST_DROPPED {
            match self.poll_body(cx) {
                Poll::Ready(Some(Ok(frame))) => dropped += frame.data_ref().map_or(0, Bytes::len),
                Poll::Ready(None) => {}
                Poll::Ready(Some(Err(_))) | Poll::Pending => return false,
            }
        }
        self.has_read_body() || self.is_body_wanted
    }

    /// What is to come of the body is dropped: whoever still reads it must not take what comes later for it.
    pub fn abandon_body(&mut self) {
        if !self.has_read_body() {
            self.body = Upload::Broken;
        }
    }

    /// Waits until the request's body has been read to its end, or nobody reads it.
    pub fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_read_body() || !self.is_body_wanted {
            return Poll::Ready(());
        }
        self.settled = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The next piece of the body.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        loop {
            match &mut self.body {
                Upload::Ended => return Poll::Ready(None),
                Upload::Broken => return Poll::Ready(Some(Err(UploadError::Gone))),
                Upload::Length(left) => {
                    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(self.input.len());
                    if length > 0 {
                        *left -= length as u64;
                        let data = self.input.split_to(length).freeze();
                        if *left == 0 {
                            self.end_body();
                        }
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Upload::Chunked(reader) => match reader.read(&mut self.input) {
                    Err(error) => {
                        self.body = Upload::Broken;
                        return Poll::Ready(Some(Err(error.into())));
                    }
                    Ok(Some(Chunk::Data(data))) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Ok(Some(Chunk::End(trailers))) => {
                        self.end_body();
                        if trailers.is_empty() {
                            return Poll::Ready(None);
                        }
                        return Poll::Ready(Some(Ok(Frame::trailers(map_of(trailers.lines())))));
                    }
                    Ok(None) => {}
                },
            }
            if !matches!(ready!(self.poll_fill_body(cx)), Ok(1..)) {
                self.body = Upload::Broken;
            }
        }
    }

    fn end_body(&mut self) {
        self.body = Upload::Ended;
        self.deadlines.body_ended();
    }

    /// Waits for the client to leave while it is owed an answer. What it sends meanwhile is kept, up to a limit.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if !self.has_read_body() || self.input.len() >= MOST_AHEAD {
                return Poll::Pending;
            }
            let before = self.input.len();
            match ready!(self.poll_fill(cx)) {
                Ok(1..) => {
                    if before == 0 {
                        self.deadlines.head_began();
                    }
                }
                Ok(0) | Err(_) => return Poll::Ready(()),
            }
        }
    }

    /// Closes our direction.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Some(transport) => Pin::new(transport).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Says under TLS that the connection ends. A plain socket says so by being closed.
    pub fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.transport {
            Some(Transport::Tls(_)) => self.poll_shutdown(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Has the socket end with a reset.
    pub fn reset_at_close(&self) {
        if let Some(transport) = &self.transport {
            // Where that is not possible, the client is gone.
            let _ = SockRef::from(transport.socket()).set_linger(Some(Duration::ZERO));
        }
    }

    /// Gives the socket away, with what has arrived on it.
    pub fn take(&mut self) -> Option<(Transport, Bytes)> {
        let transport = self.transport.take()?;
        Some((transport, std::mem::take(&mut self.input).freeze()))
    }
}

/// The body of the request that a connection is at.
pub struct ClientBody(Rc<RefCell<Wire>>);

impl ClientBody {
    /// Of this connection.
    pub fn of(wire: &Rc<RefCell<Wire>>) -> Self {
        wire.borrow_mut().is_body_wanted = true;
        Self(Rc::clone(wire))
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        let mut wire = self.0.borrow_mut();
        wire.is_body_wanted = false;
        if let Some(waker) = wire.settled.take() {
            waker.wake();
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        self.0.borrow_mut().poll_body(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.borrow().has_read_body()
    }
}

/// Bytes of a body that nobody reads which are dropped so that its connection can be kept.
const MOST_DROPPED: usize = 64 * 1024;

/// Bytes of further requests that are read while one is being answered.
const MOST_AHEAD: usize = 64 * 1024;
