//! Chunks that are too small to be passed on one by one.

use bytes::BytesMut;

use super::chunked::{Chunk, ChunkError, ChunkReader};

/// Reads a body in chunks. Small ones that have arrived together become one piece: to pass a piece on, and above all to have
/// it wait for a client, costs many times what a byte of it does.
#[derive(Debug, Default)]
pub struct JoinedChunks {
    reader: ChunkReader,
    /// What came behind the last piece.
    next: Option<Result<Chunk, ChunkError>>,
}

impl JoinedChunks {
    /// As [`ChunkReader::read`].
    pub fn read(&mut self, input: &mut BytesMut) -> Result<Option<Chunk>, ChunkError> {
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

/// A chunk of fewer bytes is joined with others, until there are so many.
const SMALL: usize = 1024;
const ENOUGH: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Trailers;

    fn lengths(text: &[u8]) -> (Vec<usize>, Option<Result<Trailers, ChunkError>>) {
        let (mut chunks, mut input, mut lengths) = (JoinedChunks::default(), BytesMut::from(text), Vec::new());
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
