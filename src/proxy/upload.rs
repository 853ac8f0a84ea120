//! A request's body on its way to a backend: pulled, and handed over once more while it is small.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http_body::{Body, Frame};

use super::client_timeouts::Deadlines;
use crate::message::ChunkError;

/// A request's body on its way to a backend. By default there is none.
#[derive(Default)]
pub struct RequestBody(Option<Rc<RefCell<Upload>>>);

struct Upload {
    source: Source,
    /// Told of the body's end, where the connection cannot tell.
    deadlines: Option<Rc<Deadlines>>,
    /// What has been handed over, while it can be handed over once more.
    handed: Option<Vec<Bytes>>,
    /// What is to be handed over once more, last piece first.
    again: Vec<Bytes>,
    /// When the client's last piece was taken on.
    moved_at: Option<Instant>,
}

/// Where a body comes from.
type Source = Pin<Box<dyn Body<Data = Bytes, Error = UploadError>>>;

/// Why the rest of a body does not come.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum UploadError {
    /// The client is gone, or has reset the stream.
    #[error("the client is gone")]
    Gone,
    /// Its chunks are none.
    #[error("{0}")]
    Chunks(#[from] ChunkError),
}

impl RequestBody {
    /// A client's body. Its deadlines are told when it has arrived.
    pub fn new(body: impl Body<Data = Bytes, Error = UploadError> + 'static, deadlines: Option<Rc<Deadlines>>) -> Self {
        if body.is_end_stream() && deadlines.is_none() {
            return Self::default();
        }
        let source: Source = Box::pin(body);
        let upload = Upload { source, deadlines, handed: Some(Vec::new()), again: Vec::new(), moved_at: None };
        Self(Some(Rc::new(RefCell::new(upload))))
    }

    /// The same body, for when whoever has this one loses it. They must not both be read.
    pub fn share(&self) -> Self {
        Self(self.0.clone())
    }

    /// Whether there is surely no byte of it.
    pub fn is_empty(&self) -> bool {
        self.is_end_stream()
    }

    /// When the client's last piece was taken on, for a backend that had room for it.
    pub fn moved_at(&self) -> Option<Instant> {
        self.0.as_ref()?.borrow().moved_at
    }

    /// Begins again at the body's first byte; `false` if too much of it is gone.
    pub fn rewind(&self) -> bool {
        let Some(upload) = &self.0 else { return true };
        let upload = &mut *upload.borrow_mut();
        let Some(handed) = &mut upload.handed else { return false };
        upload.again.extend(handed.drain(..).rev());
        true
    }
}

impl Upload {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let frame = match self.again.pop() {
            Some(data) => Some(Ok(Frame::data(data))),
            None => ready!(self.source.as_mut().poll_frame(cx)),
        };
        match &frame {
            Some(Ok(frame)) => {
                self.moved_at = Some(Instant::now());
                self.remember(frame);
            }
            Some(Err(_)) => self.handed = None,
            None => {}
        }
        if (frame.is_none() || self.is_end())
            && let Some(deadlines) = self.deadlines.take()
        {
            deadlines.body_ended();
        }
        Poll::Ready(frame)
    }

    fn remember(&mut self, frame: &Frame<Bytes>) {
        let Some(handed) = &mut self.handed else { return };
        let is_little = |data: &Bytes| handed.iter().map(Bytes::len).sum::<usize>() + data.len() <= MOST_HANDED;
        match frame.data_ref() {
            Some(data) if handed.len() < MOST_PIECES && is_little(data) => handed.push(data.clone()),
            _ => self.handed = None,
        }
    }

    fn is_end(&self) -> bool {
        self.again.is_empty() && self.source.is_end_stream()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        match &self.0 {
            Some(upload) => upload.borrow_mut().poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|upload| upload.borrow().is_end())
    }
}

/// Bytes of a request's body that are remembered: as many as are handed over before the socket is tried.
const MOST_HANDED: usize = 64 * 1024;

/// Pieces of it. A client may send single bytes, of which each would cost us more than the one before.
const MOST_PIECES: usize = 64;
