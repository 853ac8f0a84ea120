//! A request's body on a stream.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::RecvStream;
use http_body::{Body, Frame};
use tokio::time::timeout;

use crate::proxy::{downstream::lifetime::LINGER, upload::UploadError, worker::Worker};

/// A body that is read for a moment more when nobody wants the rest, because its request was answered early. The library resets
/// a stream as soon as nobody reads, and there are clients for whom a reset right behind an answer is all that they see (RFC
/// 9113 section 8.1 allows the reset; curl 7.88 loses the answer).
pub struct StreamBody {
    /// `None` once it is read by nobody but us.
    stream: Option<RecvStream>,
    worker: Rc<Worker>,
}

impl StreamBody {
    /// Of a request that has just begun.
    pub fn new(stream: RecvStream, worker: &Rc<Worker>) -> Self {
        Self { stream: Some(stream), worker: Rc::clone(worker) }
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        if let Some(mut stream) = self.stream.take().filter(|stream| !stream.is_end_stream()) {
            self.worker.tasks.spawn_local(async move {
                let rest = async { while let Some(Ok(_)) = poll_fn(|cx| poll_data(&mut stream, cx)).await {} };
                // However it ends, the stream is reset if the client has not ended it.
                let _ = timeout(LINGER, rest).await;
            });
        }
    }
}

/// The next piece, for which the client may send as much again.
fn poll_data(stream: &mut RecvStream, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
    let Some(data) = ready!(stream.poll_data(cx)).transpose()? else { return Poll::Ready(None) };
    stream.flow_control().release_capacity(data.len())?;
    Poll::Ready(Some(Ok(data)))
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        // A body that its client has given up must not look like a whole one, whatever the reason.
        if let Some(data) = ready!(poll_data(stream, cx)).transpose().map_err(|_| UploadError::Gone)? {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = ready!(stream.poll_trailers(cx)).map_err(|_| UploadError::Gone)?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.as_ref().is_none_or(RecvStream::is_end_stream)
    }
}
