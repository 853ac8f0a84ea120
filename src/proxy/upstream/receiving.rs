//! A response on its way over a connection.

use std::{
    io,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;

use super::connection::Connection;
use crate::message::{
    Chunk, ChunkError, Framing, FramingError, HeadReader, JoinedChunks, Limits, ParseError, ResponseHead, Trailers,
};

/// How a connection ended, or its response.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The backend closed it.
    #[error("connection closed before message completed")]
    Closed,
    /// The system reports an error.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What came is no head of a response.
    #[error("the response is malformed: {0}")]
    Head(#[from] ParseError),
    /// Nobody can tell where the body ends.
    #[error("the response is malformed: {0}")]
    Framing(#[from] FramingError),
    /// The body's chunks are none.
    #[error("the response is malformed: {0}")]
    Chunks(#[from] ChunkError),
    /// More informational responses than anybody has use for.
    #[error("the backend sends informational responses without an end")]
    Informational,
}

/// Takes informational responses, one after the other, before the final one comes.
pub type Informational = Rc<dyn Fn(&ResponseHead)>;

/// Reads the head of a response, and informational ones before it (RFC 9110 section 15.2).
pub struct HeadReading {
    reader: HeadReader,
    limits: Limits,
    informational: Option<Informational>,
    passed_on: usize,
    passed_on_bytes: usize,
}

impl HeadReading {
    /// Of a head that has not begun.
    pub fn new(limits: Limits, informational: Option<Informational>) -> Self {
        Self { reader: HeadReader::default(), limits, informational, passed_on: 0, passed_on_bytes: 0 }
    }

    /// The head, once it is complete.
    pub fn poll(&mut self, connection: &mut Connection, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Broken>> {
        loop {
            while let Some(head) = self.reader.response(connection.input(), self.limits)? {
                if !matches!(head.status(), 100..=199) || head.switches_protocols() {
                    return Poll::Ready(Ok(head));
                }
                self.passed_on += 1;
                self.passed_on_bytes += head.byte_len();
                if self.passed_on > MOST_INFORMATIONAL || self.passed_on_bytes > MOST_INFORMATIONAL_BYTES {
                    return Poll::Ready(Err(Broken::Informational));
                }
                if let Some(pass_on) = &self.informational {
                    pass_on(&head);
                }
            }
            if ready!(connection.poll_fill_head(cx))? == 0 {
                return Poll::Ready(Err(Broken::Closed));
            }
        }
    }
}

/// Reads the body of a response.
pub enum BodyReading {
    /// So many bytes are to come.
    Length(u64),
    /// Chunks are.
    Chunked(JoinedChunks),
    /// Whatever comes before the connection's end.
    UntilClose,
    /// Nothing.
    Ended,
}

/// What comes next of a body.
pub enum Piece {
    /// Bytes of it.
    Data(Bytes),
    /// Its end.
    End(Trailers),
}

impl BodyReading {
    /// Of a body that is told in this way.
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Ended,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(JoinedChunks::default()),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Whether nothing more is to come.
    pub fn has_ended(&self) -> bool {
        matches!(self, Self::Ended)
    }

    /// What is to come, where it is known.
    pub fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Ended => Some(0),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// The next piece, for which about `room` bytes are read at once. The end of a body of known length comes with its last
    /// piece, and is not told again.
    pub fn poll(
        &mut self,
        connection: &mut Connection,
        room: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Piece, Broken>> {
        loop {
            match self {
                Self::Ended => return Poll::Ready(Ok(Piece::End(Trailers::default()))),
                Self::Length(left) => {
                    if let Some(data) = take(connection, *left) {
                        *left -= data.len() as u64;
                        if *left == 0 {
                            *self = Self::Ended;
                        }
                        return Poll::Ready(Ok(Piece::Data(data)));
                    }
                }
                Self::UntilClose => {
                    if let Some(data) = take(connection, u64::MAX) {
                        return Poll::Ready(Ok(Piece::Data(data)));
                    }
                }
                Self::Chunked(chunks) => match chunks.read(connection.input())? {
                    Some(Chunk::Data(data)) => return Poll::Ready(Ok(Piece::Data(data))),
                    Some(Chunk::End(trailers)) => {
                        *self = Self::Ended;
                        return Poll::Ready(Ok(Piece::End(trailers)));
                    }
                    None => {}
                },
            }
            let room = self.left().map_or(room, |left| usize::try_from(left).unwrap_or(room).min(room));
            if ready!(connection.poll_fill(room, cx))? == 0 {
                if matches!(self, Self::UntilClose) {
                    *self = Self::Ended;
                    continue;
                }
                return Poll::Ready(Err(Broken::Closed));
            }
        }
    }
}

/// What has arrived, up to a limit.
fn take(connection: &mut Connection, most: u64) -> Option<Bytes> {
    let input = connection.input();
    let length = usize::try_from(most).unwrap_or(usize::MAX).min(input.len());
    (length > 0).then(|| input.split_to(length).freeze())
}

/// Informational responses before the final one, and their bytes. A backend that sends more keeps us from others, and what its client
/// does not read is kept for it.
const MOST_INFORMATIONAL: usize = 16;
const MOST_INFORMATIONAL_BYTES: usize = 64 * 1024;
