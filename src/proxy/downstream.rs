//! The client's end of a connection, read under supervision.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    deadlines::Deadlines,
    framing::{ChunkScanner, HeadScanner},
};

/// A client's connection whose request heads are looked over before the HTTP library sees them.
///
/// Bytes beyond a head are held back until [`Verdict`] says what they are, so that every head is scanned, pipelined ones
/// too, and no byte of a body ever is.
pub struct Downstream {
    stream: TcpStream,
    state: State,
    held_back: Bytes,
    verdict: Arc<Verdict>,
    deadlines: Option<Arc<Deadlines>>,
}

enum State {
    Head(HeadScanner),
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
pub struct Verdict(AtomicU64);

const UNDECIDED: u64 = u64::MAX;
const CHUNKED: u64 = u64::MAX - 1;
const OPAQUE: u64 = u64::MAX - 2;

impl Default for Verdict {
    fn default() -> Self {
        Self(AtomicU64::new(UNDECIDED))
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
        self.0.store(code, Ordering::Relaxed);
    }

    fn take(&self) -> Option<Follows> {
        match self.0.swap(UNDECIDED, Ordering::Relaxed) {
            UNDECIDED => None,
            CHUNKED => Some(Follows::Chunked),
            OPAQUE => Some(Follows::Opaque),
            length => Some(Follows::Length(length)),
        }
    }
}

impl Downstream {
    /// Wraps an accepted connection.
    pub fn new(stream: TcpStream, verdict: Arc<Verdict>, deadlines: Option<Arc<Deadlines>>) -> Self {
        Self { stream, state: State::Head(HeadScanner::default()), held_back: Bytes::new(), verdict, deadlines }
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
                let end = scanner.scan(bytes);
                if let Some(deadlines) = &self.deadlines
                    && !had_begun
                    && (end.is_some() || scanner.has_begun())
                {
                    deadlines.head_began();
                }
                if end.is_some() {
                    self.state = State::Undecided;
                }
                return end.unwrap_or(bytes.len());
            }
            State::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                (*left == 0).then_some(taken)
            }
            State::Chunked(scanner) => scanner.scan(bytes),
            State::Undecided | State::Opaque => None,
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
        let before = buf.filled().len();
        if self.held_back.is_empty() {
            std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
            let filled = buf.filled().len();
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

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
