//! A request's body on an HTTP/2 stream.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::proxy::{downstream::lifetime::LINGER, worker::Worker};

/// A body that is read for a moment more when nobody wants the rest, because its request was answered early. The library resets
/// a stream as soon as nobody reads, and there are clients for whom a reset right behind an answer is all that they see (RFC
/// 9113 section 8.1 allows the reset; curl 7.88 loses the answer).
pub struct LingeringBody {
    /// `None` once it is read by nobody but us.
    body: Option<Incoming>,
    worker: Rc<Worker>,
}

impl LingeringBody {
    /// Of a request that has just begun.
    pub fn new(body: Incoming, worker: &Rc<Worker>) -> Self {
        Self { body: Some(body), worker: Rc::clone(worker) }
    }
}

impl Drop for LingeringBody {
    fn drop(&mut self) {
        if let Some(mut body) = self.body.take().filter(|body| !body.is_end_stream()) {
            self.worker.tasks.spawn_local(async move {
                let rest = async { while let Some(Ok(_)) = body.frame().await {} };
                // However it ends, the stream is reset if the client has not ended it.
                let _ = timeout(LINGER, rest).await;
            });
        }
    }
}

impl Body for LingeringBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
