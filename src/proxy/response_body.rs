//! Bodies on their way through. Nothing is ever collected: each frame goes on as it comes, and is asked for only when the
//! other side has room.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;

use super::{exchange::Exchange, headers, upstream::Lease};
use crate::telemetry::Subject;

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
