//! Bodies on their way through. Nothing is ever collected: each frame goes on as it comes, and is asked for only when the
//! other side has room.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;

use super::{client_timeouts::Deadlines, exchange::Exchange, headers, upstream::Lease};
use crate::telemetry::Subject;

/// A request's body on its way to a backend. By default there is none.
#[derive(Default)]
pub struct RequestBody(Option<Rc<RefCell<Upload>>>);

struct Upload {
    incoming: Incoming,
    /// Told of the body's end, where the connection cannot tell.
    deadlines: Option<Arc<Deadlines>>,
    /// What has been handed over, while it can be handed over once more.
    handed: Option<Vec<Bytes>>,
    /// What is to be handed over once more, last piece first.
    again: Vec<Bytes>,
}

impl RequestBody {
    /// A client's body. Its deadlines are told when it has arrived.
    pub fn new(incoming: Incoming, deadlines: Option<Arc<Deadlines>>) -> Self {
        if incoming.is_end_stream() && deadlines.is_none() {
            return Self::default();
        }
        let upload = Upload { incoming, deadlines, handed: Some(Vec::new()), again: Vec::new() };
        Self(Some(Rc::new(RefCell::new(upload))))
    }

    /// The same body, for when whoever has this one loses it. They must not both be read.
    pub fn share(&self) -> Self {
        Self(self.0.clone())
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
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut frame = match self.again.pop() {
            Some(data) => Some(Ok(Frame::data(data))),
            None => ready!(Pin::new(&mut self.incoming).poll_frame(cx)),
        };
        match &mut frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    headers::prepare_trailers(trailers);
                }
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
        self.again.is_empty() && self.incoming.is_end_stream()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &self.0 {
            Some(upload) => upload.borrow_mut().poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|upload| upload.borrow().is_end())
    }

    fn size_hint(&self) -> SizeHint {
        let Some(upload) = &self.0 else { return SizeHint::with_exact(0) };
        let upload = upload.borrow();
        let again: u64 = upload.again.iter().map(|data| data.len() as u64).sum();
        let rest = upload.incoming.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(again + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(again + upper);
        }
        hint
    }
}

/// A response's body on its way to the client. When it ends, or is given up, its exchange is recorded.
pub struct ResponseBody {
    source: Source,
    exchange: Option<Box<Exchange>>,
}

/// What a response of our own says.
pub enum Content {
    /// Plain text; nothing at all where it is empty.
    Text(Bytes),
    /// A page of the operator's.
    Html(Bytes),
}

impl From<&'static str> for Content {
    fn from(text: &'static str) -> Self {
        Self::Text(Bytes::from_static(text.as_bytes()))
    }
}

enum Source {
    Own(Full<Bytes>),
    Backend { incoming: Incoming, lease: Option<Lease> },
}

impl ResponseBody {
    /// A backend's body; `lease` goes back to the pool when it has been read to the end.
    pub fn from_backend(incoming: Incoming, lease: Lease, exchange: Box<Exchange>) -> Self {
        Self { source: Source::Backend { incoming, lease: Some(lease) }, exchange: Some(exchange) }
    }

    /// No body; for the answer to an upgrade, whose exchange ends with its tunnel.
    pub fn none() -> Self {
        Self { source: Source::Own(Full::default()), exchange: None }
    }

    /// A whole response of our own.
    pub fn own(status: StatusCode, content: Content, exchange: Option<Box<Exchange>>) -> Response<Self> {
        let (media_type, bytes) = match content {
            Content::Text(text) => ("text/plain; charset=utf-8", text),
            Content::Html(page) => ("text/html; charset=utf-8", page),
        };
        let mut headers = HeaderMap::new();
        if !bytes.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        }
        let mut response = Response::new(Self { source: Source::Own(Full::new(bytes)), exchange });
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    /// Turns a response into what a HEAD is answered with. For HTTP/2: on HTTP/1, the library does this.
    pub fn leave_out(response: &mut Response<Self>) {
        let Source::Own(full) = &mut response.body_mut().source else { return };
        let length = std::mem::take(full).size_hint().exact().unwrap_or_default();
        if length > 0 {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Own(full) => {
                ready!(Pin::new(full).poll_frame(cx)).map(|frame| frame.map_err(|never| match never {}))
            }
            Source::Backend { incoming, lease } => {
                let mut frame = ready!(Pin::new(incoming).poll_frame(cx));
                if let Some(Ok(frame)) = &mut frame
                    && let Some(trailers) = frame.trailers_mut()
                {
                    headers::prepare_trailers(trailers);
                }
                if frame.is_none()
                    && let Some(lease) = lease.take()
                {
                    lease.give_back();
                }
                frame
            }
        };
        if let Some(exchange) = &mut this.exchange {
            match &frame {
                Some(Ok(frame)) => exchange.sent(frame.data_ref().map_or(0, |data| data.len() as u64)),
                Some(Err(error)) => exchange.log_error(Subject::Backend, error),
                None => {}
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(full) => full.is_end_stream(),
            Source::Backend { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(full) => full.size_hint(),
            Source::Backend { incoming, .. } => incoming.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // A body of known length is not polled past its last byte.
        if let Source::Backend { incoming, lease } = &mut self.source
            && incoming.is_end_stream()
            && let Some(lease) = lease.take()
        {
            lease.give_back();
        }
    }
}

/// Bytes of a request's body that are remembered: as many as are handed over before the socket is tried.
const MOST_HANDED: usize = 64 * 1024;

/// Pieces of it. A client may send single bytes, of which each would cost us more than the one before.
const MOST_PIECES: usize = 64;
