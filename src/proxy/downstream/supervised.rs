//! The client's end of a connection, read under supervision.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use super::{
    malformed::Opening,
    scanner::{ChunkScanner, HeadScanner, POISON},
};
use crate::{proxy::client_timeouts::Deadlines, transport::Transport};

/// A client's connection whose request heads are looked over before the HTTP library sees them.
///
/// Bytes beyond a head are held back until [`Verdict`] says what they are, so that every head is scanned, pipelined ones
/// too, and no byte of a body ever is.
pub struct Downstream {
    stream: Transport,
    state: State,
    held_back: Bytes,
    at_end: bool,
    linger: Option<Pin<Box<Sleep>>>,
    verdict: Arc<Verdict>,
    deadlines: Option<Arc<Deadlines>>,
}

enum State {
    Head(HeadScanner),
    /// A head was poisoned. Its end is delivered next, because the library looks at a head in pieces only when it has ended.
    Refused,
    /// A head was delivered; what follows depends on what the HTTP library made of it.
    Undecided,
    Length(u64),
    Chunked(ChunkScanner),
    /// No longer HTTP, or not any more after this exchange.
    Opaque,
}

/// What follows a request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// This many bytes of body, then the next head.
    Length(u64),
    /// A chunked body, then the next head.
    Chunked,
    /// Perhaps another protocol. The connection must not be used for a further request.
    Opaque,
}

/// The way from the request's handler, which knows the framing, back to the reader, which needs it.
pub struct Verdict {
    follows: AtomicU64,
    has_read: AtomicBool,
    opening: Mutex<Opening>,
}

const UNDECIDED: u64 = u64::MAX;
const CHUNKED: u64 = u64::MAX - 1;
const OPAQUE: u64 = u64::MAX - 2;

impl Default for Verdict {
    fn default() -> Self {
        Self { follows: AtomicU64::new(UNDECIDED), has_read: AtomicBool::new(false), opening: Mutex::default() }
    }
}

impl Verdict {
    /// Must be called as soon as the HTTP library hands over a request, before it can read on.
    pub fn give(&self, follows: Follows) {
        let code = match follows {
            Follows::Length(length) => length.min(OPAQUE - 1),
            Follows::Chunked => CHUNKED,
            Follows::Opaque => OPAQUE,
        };
        self.follows.store(code, Ordering::Relaxed);
    }

    /// Whether the client has sent anything yet.
    pub fn has_read(&self) -> bool {
        self.has_read.load(Ordering::Relaxed)
    }

    /// How the last head began.
    pub fn with_opening(&self, see: impl FnOnce(&Opening)) {
        see(&self.opening.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn note_opening(&self, bytes: &[u8], is_first: bool) {
        let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if is_first {
            opening.clear();
        }
        opening.extend(bytes);
    }

    fn take(&self) -> Option<Follows> {
        match self.follows.swap(UNDECIDED, Ordering::Relaxed) {
            UNDECIDED => None,
            CHUNKED => Some(Follows::Chunked),
            OPAQUE => Some(Follows::Opaque),
            length => Some(Follows::Length(length)),
        }
    }
}

impl Downstream {
    /// Wraps an accepted connection.
    pub fn new(stream: Transport, verdict: Arc<Verdict>, deadlines: Option<Arc<Deadlines>>) -> Self {
        Self {
            stream,
            state: State::Head(HeadScanner::default()),
            held_back: Bytes::new(),
            at_end: false,
            linger: None,
            verdict,
            deadlines,
        }
    }

    /// Whether the client may still be sending something that nobody will read.
    fn is_interrupted(&mut self) -> bool {
        if self.at_end {
            return false;
        }
        if self.heed_verdict().is_err() {
            return true;
        }
        match &self.state {
            State::Head(scanner) => scanner.has_begun() || !self.held_back.is_empty(),
            State::Opaque => false,
            State::Refused | State::Undecided | State::Length(_) | State::Chunked(_) => true,
        }
    }

    fn heed_verdict(&mut self) -> io::Result<()> {
        if matches!(self.state, State::Undecided) {
            self.state = match self.verdict.take() {
                Some(Follows::Length(0)) => State::Head(HeadScanner::default()),
                Some(Follows::Length(length)) => State::Length(length),
                Some(Follows::Chunked) => State::Chunked(ChunkScanner::default()),
                Some(Follows::Opaque) => State::Opaque,
                None => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a request head of two minds"));
                }
            };
        }
        Ok(())
    }

    /// Follows bytes that are about to be delivered; returns how many may be.
    fn follow(&mut self, bytes: &mut [u8]) -> usize {
        let end = match &mut self.state {
            State::Head(scanner) => {
                let had_begun = scanner.has_begun();
                // Before what is illegal in it is overwritten.
                self.verdict.note_opening(bytes, !had_begun);
                let end = scanner.scan(bytes);
                if let Some(deadlines) = &self.deadlines
                    && !had_begun
                    && (end.is_some() || scanner.has_begun())
                {
                    deadlines.head_began();
                }
                let length = end.unwrap_or(bytes.len());
                if memchr::memchr(POISON, &bytes[..length]).is_some() {
                    self.state = State::Refused;
                } else if end.is_some() {
                    self.state = State::Undecided;
                }
                return length;
            }
            State::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                (*left == 0).then_some(taken)
            }
            State::Chunked(scanner) => scanner.scan(bytes),
            State::Refused | State::Undecided | State::Opaque => None,
        };
        if end.is_some() {
            self.state = State::Head(HeadScanner::default());
            if let Some(deadlines) = &self.deadlines {
                deadlines.body_ended();
            }
        }
        end.unwrap_or(bytes.len())
    }
}

impl AsyncRead for Downstream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.heed_verdict()?;
        let was_refused = matches!(self.state, State::Refused);
        let before = buf.filled().len();
        if self.held_back.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
            let filled = buf.filled().len();
            if filled == before {
                self.at_end = true;
            }
            self.verdict.has_read.store(true, Ordering::Relaxed);
            let allowed = before + self.follow(&mut buf.filled_mut()[before..]);
            if allowed < filled {
                self.held_back = Bytes::copy_from_slice(&buf.filled()[allowed..]);
                buf.set_filled(allowed);
            }
        } else {
            let taken = self.held_back.len().min(buf.remaining());
            buf.put_slice(&self.held_back[..taken]);
            let allowed = self.follow(&mut buf.filled_mut()[before..]);
            buf.set_filled(before + allowed);
            self.held_back.advance(allowed);
        }
        if !was_refused && matches!(self.state, State::Refused) {
            self.held_back = Bytes::from_static(b"\r\n\r\n");
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Downstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Closes our direction. Where the client is in the middle of something, what it still sends is read and dropped for a
    /// while: closing a socket with unread bytes resets it, and the reset can overtake the answer that explains it (RFC 9112
    /// section 9.6).
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if !this.is_interrupted() {
                return Poll::Ready(Ok(()));
            }
        }
        let linger = this.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut dropped = [0; 4_096];
        while linger.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut dropped);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// How long a client that is interrupted is listened to.
const LINGER: Duration = Duration::from_millis(500);
