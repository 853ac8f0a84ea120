//! A response on its way over a connection.

use std::{
    io,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};

use super::connection::Connection;
use crate::message::{
    Chunk, ChunkError, ChunkReader, Framing, FramingError, HeadReader, Limits, ParseError, ResponseHead, Trailers,
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
}

impl HeadReading {
    /// Of a head that has not begun.
    pub fn new(limits: Limits, informational: Option<Informational>) -> Self {
        Self { reader: HeadReader::default(), limits, informational, passed_on: 0 }
    }

    /// The head, once it is complete.
    pub fn poll(&mut self, connection: &mut Connection, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Broken>> {
        loop {
            while let Some(head) = self.reader.response(connection.input(), self.limits)? {
                if !matches!(head.status(), 100..=199) || head.status() == SWITCHING_PROTOCOLS {
                    return Poll::Ready(Ok(head));
                }
                self.passed_on += 1;
                if self.passed_on > MOST_INFORMATIONAL {
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
    Chunked(Chunks),
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
            Framing::Chunked => Self::Chunked(Chunks::default()),
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

    /// The next piece. The end of a body of known length comes with its last piece, and is not told again.
    pub fn poll(&mut self, connection: &mut Connection, cx: &mut Context<'_>) -> Poll<Result<Piece, Broken>> {
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
            let room = self.left().map_or(BODY_ROOM, |left| usize::try_from(left).unwrap_or(BODY_ROOM).min(BODY_ROOM));
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

/// Reads a body in chunks. Small ones that have arrived together become one piece: to pass a piece on, and above all to have
/// it wait for a client, costs many times what a byte of it does.
#[derive(Default)]
pub struct Chunks {
    reader: ChunkReader,
    /// What came behind the last piece.
    next: Option<Result<Chunk, ChunkError>>,
}

impl Chunks {
    fn read(&mut self, input: &mut BytesMut) -> Result<Option<Chunk>, ChunkError> {
        let first = match self.take_next(input).transpose()? {
            Some(Chunk::Data(data)) if data.len() < SMALL => data,
            other => return Ok(other),
        };
        let mut joined = BytesMut::new();
        while first.len() + joined.len() < ENOUGH {
            match self.take_next(input) {
                Some(Ok(Chunk::Data(data))) if data.len() < SMALL => {
                    if joined.is_empty() {
                        joined.reserve(ENOUGH + SMALL);
                        joined.extend_from_slice(&first);
                    }
                    joined.extend_from_slice(&data);
                }
                other => {
                    self.next = other;
                    break;
                }
            }
        }
        Ok(Some(Chunk::Data(if joined.is_empty() { first } else { joined.freeze() })))
    }

    fn take_next(&mut self, input: &mut BytesMut) -> Option<Result<Chunk, ChunkError>> {
        self.next.take().or_else(|| self.reader.read(input).transpose())
    }
}

/// What has arrived, up to a limit.
fn take(connection: &mut Connection, most: u64) -> Option<Bytes> {
    let input = connection.input();
    let length = usize::try_from(most).unwrap_or(usize::MAX).min(input.len());
    (length > 0).then(|| input.split_to(length).freeze())
}

const SWITCHING_PROTOCOLS: u16 = 101;

/// Informational responses before the final one. A backend that sends more keeps us from others.
const MOST_INFORMATIONAL: usize = 16;

/// Bytes of a body that are read at once.
const BODY_ROOM: usize = 64 * 1024;

/// A chunk of fewer bytes is joined with others, until there are so many.
const SMALL: usize = 1024;
const ENOUGH: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(text: &[u8]) -> (Vec<usize>, Option<Result<Trailers, ChunkError>>) {
        let (mut chunks, mut input, mut lengths) = (Chunks::default(), BytesMut::from(text), Vec::new());
        loop {
            match chunks.read(&mut input) {
                Ok(Some(Chunk::Data(data))) => lengths.push(data.len()),
                Ok(Some(Chunk::End(trailers))) => return (lengths, Some(Ok(trailers))),
                Err(error) => return (lengths, Some(Err(error))),
                Ok(None) => return (lengths, None),
            }
        }
    }

    #[test]
    fn small_chunks_that_are_there_become_one_piece() {
        let small = b"1\r\nx\r\n".repeat(40_000);
        let large = [b"1000\r\n", &[b'y'; 0x1000][..], b"\r\n"].concat();
        assert_eq!(lengths(b"3\r\nabc\r\n").0, [3]);
        assert_eq!(lengths(&large.repeat(2)).0, [0x1000, 0x1000]);
        let (pieces, end) = lengths(&[&small[..], &large, b"1\r\nx\r\n1\r\nx\r\n0\r\nA: b\r\n\r\n"].concat());
        assert_eq!(pieces.iter().sum::<usize>(), 40_000 + 0x1000 + 2);
        assert!(pieces.len() == 5 && pieces[3..] == [0x1000, 2], "{pieces:?}");
        assert!(end.is_some_and(|end| end.is_ok_and(|trailers| trailers.lines().count() == 1)));
        let (pieces, end) = lengths(b"1\r\nx\r\n1\r\ny\r\n1\r\nz\r\n5\r\nha");
        assert_eq!((pieces, end.is_none()), (vec![5], true));
        let (pieces, end) = lengths(b"1\r\nx\r\n1\r\ny\r\nno");
        assert_eq!((pieces, end.and_then(Result::err)), (vec![2], Some(ChunkError::Size)));
    }
}
