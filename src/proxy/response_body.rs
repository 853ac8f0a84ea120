//! A response's body on its way to a client. Nothing is ever collected: each piece goes on as it comes, and is asked for only
//! when the other side has room.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::Sleep;

use super::{
    exchange::Exchange,
    trailers::map_of,
    upstream::{Answering, Broken, Piece},
};
use crate::{message::headers::response_trailer_lines, telemetry::Subject};

/// A body. When it ends, or is given up, its exchange is recorded.
pub struct ResponseBody {
    source: Source,
    exchange: Option<Box<Exchange>>,
    /// How it has broken off, which the client's connection is told when this is over.
    breaking: Option<(Pin<Box<Sleep>>, Broken)>,
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
    Own(Bytes),
    Backend(Answering),
}

impl ResponseBody {
    /// A backend's body.
    pub fn from_backend(mut answering: Answering, exchange: Box<Exchange>) -> Self {
        if answering.has_ended() {
            answering.give_back();
        }
        Self { source: Source::Backend(answering), exchange: Some(exchange), breaking: None }
    }

    /// A body of our own.
    pub fn own(text: Bytes, exchange: Option<Box<Exchange>>) -> Self {
        Self { source: Source::Own(text), exchange, breaking: None }
    }

    /// The length of a body of our own.
    pub fn own_length(&self) -> Option<usize> {
        match &self.source {
            Source::Own(text) => Some(text.len()),
            Source::Backend(_) => None,
        }
    }

    /// Bytes that are to come, where that is known.
    pub fn left(&self) -> Option<u64> {
        match &self.source {
            Source::Own(text) => Some(text.len() as u64),
            Source::Backend(answering) => answering.left(),
        }
    }

    /// From now on, no more than about so many bytes are taken at once.
    pub fn read_at_most(&mut self, room: usize) {
        if let Source::Backend(answering) = &mut self.source {
            answering.read_at_most(room);
        }
    }

    /// Leaves a body of our own out, as the answer to a HEAD does.
    pub fn leave_out(&mut self) {
        if let Source::Own(text) = &mut self.source {
            text.clear();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        if let Some((pause, _)) = &mut this.breaking {
            ready!(pause.as_mut().poll(cx));
            return Poll::Ready(this.breaking.take().map(|(_, error)| Err(error)));
        }
        let frame = match &mut this.source {
            Source::Own(text) if text.is_empty() => None,
            Source::Own(text) => Some(Ok(Frame::data(std::mem::take(text)))),
            Source::Backend(answering) if answering.has_ended() => None,
            Source::Backend(answering) => match ready!(answering.poll_piece(cx)) {
                None => None,
                Some(Err(error)) => Some(Err(error)),
                Some(Ok(Piece::Data(data))) => Some(Ok(Frame::data(data))),
                Some(Ok(Piece::End(trailers))) if trailers.is_empty() => None,
                Some(Ok(Piece::End(trailers))) => Some(Ok(Frame::trailers(map_of(response_trailer_lines(&trailers))))),
            },
        };
        if let Some(Err(error)) = frame {
            if let Some(exchange) = &mut this.exchange {
                exchange.log_error(Subject::Backend, &error);
            }
            // The connection is cut for this, and what it has not sent yet with it: the head least of all may be lost, or the
            // client takes it that nothing has happened and asks again.
            this.breaking = Some((Box::pin(tokio::time::sleep(LAST_WORDS)), error));
            return self.poll_frame(cx);
        }
        if let (Some(exchange), Some(Ok(frame))) = (&mut this.exchange, &frame) {
            exchange.sent(frame.data_ref().map_or(0, |data| data.len() as u64));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(text) => text.is_empty(),
            Source::Backend(answering) => answering.has_ended(),
        }
    }
}

/// How long what was said before a body broke off has to be sent.
const LAST_WORDS: Duration = Duration::from_millis(100);
