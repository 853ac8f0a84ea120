//! What is sent on a stream, as the client has room for it (RFC 9113 section 5.2).

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;
use tracing::debug;

use super::streams::Streams;
use crate::proxy::response_body::ResponseBody;

/// Sends a body as the client takes it; a stream among few reads more of it at once.
pub async fn send_body(
    streams: &Streams,
    stream: &mut SendStream<Bytes>,
    body: &mut ResponseBody,
) -> Result<(), h2::Error> {
    let (mut waiting, mut waits) = (None, None);
    poll_fn(|cx| {
        body.read_at_most(streams.room());
        // What it has waited for until now has come, or not.
        drop(waits.take());
        if let Poll::Ready(sent) = poll_send(stream, body, &mut waiting, cx) {
            return Poll::Ready(sent);
        }
        waits = waiting.is_some().then(|| streams.wait());
        stream.poll_reset(cx).map(|reason| Err(reason?.into()))
    })
    .await
}

/// Sends what there is of a body. A piece is `waiting` until the client has room: none is asked for before there is a piece,
/// because the connection's room is for all of its streams.
fn poll_send(
    stream: &mut SendStream<Bytes>,
    body: &mut ResponseBody,
    waiting: &mut Option<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), h2::Error>> {
    loop {
        if waiting.is_some() {
            ready!(poll_room(stream, cx))?;
        }
        if let Some(data) = waiting.take() {
            let is_last = body.is_end_stream();
            stream.send_data(data, is_last)?;
            if is_last {
                return Poll::Ready(Ok(()));
            }
        }
        match ready!(Pin::new(&mut *body).poll_frame(cx)) {
            None => return Poll::Ready(stream.send_data(Bytes::new(), true)),
            Some(Err(error)) => {
                stream.send_reset(Reason::INTERNAL_ERROR);
                debug!(%error, "a backend's response broke off");
                return Poll::Ready(Err(Reason::INTERNAL_ERROR.into()));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    stream.reserve_capacity(1);
                    *waiting = Some(data);
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        return Poll::Ready(stream.send_trailers(trailers));
                    }
                }
            },
        }
    }
}

/// Waits for room that was asked for.
pub fn poll_room(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
    while stream.capacity() == 0 {
        if ready!(stream.poll_capacity(cx)).transpose()?.is_none() {
            return Poll::Ready(Err(Reason::STREAM_CLOSED.into()));
        }
    }
    Poll::Ready(Ok(()))
}
