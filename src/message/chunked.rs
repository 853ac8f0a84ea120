//! Bodies in chunks (RFC 9112 section 7.1).

use bytes::{Buf, Bytes, BytesMut};

use super::{
    head::{Fields, Line},
    parse::{Limits, LineEnds, LineScanner, ParseError, fields, is_text},
};

/// What comes next of a body.
#[derive(Debug)]
pub enum Chunk {
    /// Bytes of it, which need not be a whole chunk.
    Data(Bytes),
    /// Its end.
    End(Trailers),
}

/// Why bytes are no chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// No hexadecimal number, or too large a one.
    #[error("a chunk's size is malformed")]
    Size,
    /// A control character.
    #[error("a chunk's extension is malformed")]
    Extension,
    /// More bytes beside the data than any sender has use for.
    #[error("the chunks' extensions are too long")]
    TooLong,
    /// A chunk's size, or its data, is not followed by CR and LF.
    #[error("a chunk does not end in CR and LF")]
    LineEnd,
    /// The lines after the last chunk.
    #[error("the trailers are malformed: {0}")]
    Trailers(#[from] ParseError),
}

/// The lines that follow a body.
#[derive(Clone, Debug, Default)]
pub struct Trailers(Option<Fields>);

impl Trailers {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// All of them.
    pub fn lines(&self) -> impl Iterator<Item = Line<'_>> + Clone {
        self.0.iter().flat_map(Fields::lines)
    }

    /// The lines as a head has them, where there are any.
    pub fn fields(&self) -> Option<&Fields> {
        self.0.as_ref()
    }
}

impl From<Fields> for Trailers {
    fn from(fields: Fields) -> Self {
        Self((!fields.is_empty()).then_some(fields))
    }
}

/// Reads one body. What it hands out are slices of the input.
#[derive(Debug, Default)]
pub struct ChunkReader {
    state: State,
    /// How many bytes of the chunk there are to come.
    left: u64,
    /// How many bytes of data there have been; the extensions of long bodies may be long.
    data: u64,
    /// How many bytes of sizes' lines there have been beyond the digits that matter.
    beside: u64,
}

#[derive(Debug, Default)]
enum State {
    /// Before the first digit of a size.
    #[default]
    SizeBegin,
    Size,
    /// The blanks that may stand behind a size.
    Blanks,
    Extension,
    /// A size's line had its CR.
    SizeEnd,
    Data,
    /// The chunk's data is over.
    DataCr,
    DataLf,
    Trailers(LineScanner),
    Ended,
}

impl ChunkReader {
    /// Takes what comes next off the input; nothing if that is still to arrive. After the body's end there is an end for
    /// ever, and nothing more is taken.
    pub fn read(&mut self, input: &mut BytesMut) -> Result<Option<Chunk>, ChunkError> {
        loop {
            match &mut self.state {
                State::Data => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len());
                    self.took_data(length as u64);
                    return Ok(Some(Chunk::Data(input.split_to(length).freeze())));
                }
                State::Trailers(scanner) => {
                    let Some(end) = scanner.scan(input, TRAILER_LIMITS, LineEnds::Strict)? else { return Ok(None) };
                    let count = scanner.count();
                    self.state = State::Ended;
                    let block = input.split_to(end);
                    let trailers =
                        if count == 0 { Trailers::default() } else { Trailers::from(fields(block.freeze(), count)?) };
                    return Ok(Some(Chunk::End(trailers)));
                }
                State::Ended => return Ok(Some(Chunk::End(Trailers::default()))),
                _ => {
                    if !self.read_between(input)? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// How many bytes of the current chunk are to come. So many may be read from a connection in any other way, if
    /// [`Self::took_data`] is told.
    pub fn left_of_chunk(&self) -> u64 {
        if matches!(self.state, State::Data) { self.left } else { 0 }
    }

    /// So many bytes of the current chunk, and no more than are left of it, were taken.
    pub fn took_data(&mut self, length: u64) {
        self.left = self.left.saturating_sub(length);
        self.data = self.data.saturating_add(length);
        if self.left == 0 {
            self.state = State::DataCr;
        }
    }

    /// Whether the body's end was read.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Reads what stands between the data of two chunks. Returns whether all of it has arrived.
    fn read_between(&mut self, input: &mut BytesMut) -> Result<bool, ChunkError> {
        let mut read = 0;
        while let Some(&byte) = input.get(read) {
            self.step(byte)?;
            read += 1;
            if matches!(self.state, State::Data | State::Trailers(_)) {
                input.advance(read);
                return Ok(true);
            }
        }
        input.advance(read);
        Ok(false)
    }

    fn step(&mut self, byte: u8) -> Result<(), ChunkError> {
        self.state = match (&self.state, byte) {
            (State::SizeBegin | State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if self.left == 0 {
                    self.note_beside()?;
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.left = self.left.checked_mul(16).ok_or(ChunkError::Size)? | u64::from(digit);
                State::Size
            }
            (State::Size | State::Blanks | State::Extension, b'\r') => State::SizeEnd,
            (State::Size | State::Blanks, b';') => State::Extension,
            (State::Size | State::Blanks, b' ' | b'\t') => {
                self.note_beside()?;
                State::Blanks
            }
            (State::Size | State::Blanks, b'\n') => return Err(ChunkError::LineEnd),
            (State::SizeBegin | State::Size | State::Blanks, _) => return Err(ChunkError::Size),
            (State::Extension, _) if is_text(&[byte]) => {
                self.note_beside()?;
                State::Extension
            }
            (State::Extension, _) => return Err(ChunkError::Extension),
            (State::SizeEnd, b'\n') if self.left == 0 => State::Trailers(LineScanner::default()),
            (State::SizeEnd, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::SizeBegin,
            (State::SizeEnd | State::DataCr | State::DataLf, _) => return Err(ChunkError::LineEnd),
            (State::Data | State::Trailers(_) | State::Ended, _) => return Ok(()),
        };
        Ok(())
    }

    /// A long body may have long extensions altogether, but a sender may not keep us busy with those alone.
    fn note_beside(&mut self) -> Result<(), ChunkError> {
        self.beside += 1;
        if self.beside > self.data.saturating_add(MOST_BESIDE) { Err(ChunkError::TooLong) } else { Ok(()) }
    }
}

/// The line that begins a chunk.
#[derive(Clone, Copy, Debug)]
pub struct ChunkHeader {
    text: [u8; LONGEST_HEADER],
    start: usize,
}

/// Writes the line that begins a chunk of so many bytes, of which there must be one at least: none is the body's end.
pub fn chunk_header(length: usize) -> ChunkHeader {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; LONGEST_HEADER];
    let mut start = LONGEST_HEADER - 2;
    text[start..].copy_from_slice(b"\r\n");
    let mut left = length;
    loop {
        start -= 1;
        text[start] = DIGITS[left % 16];
        left /= 16;
        if left == 0 {
            break;
        }
    }
    ChunkHeader { text, start }
}

impl AsRef<[u8]> for ChunkHeader {
    fn as_ref(&self) -> &[u8] {
        &self.text[self.start..]
    }
}

/// What follows the data of a chunk.
pub const DATA_END: &[u8] = b"\r\n";

/// The last chunk, and no trailers.
pub const END: &[u8] = b"0\r\n\r\n";

/// The last chunk, when trailers and an empty line follow.
pub const LAST_CHUNK: &[u8] = b"0\r\n";

/// A size of 64 bits, and its line end.
const LONGEST_HEADER: usize = 18;

/// Bytes beside the data and what is necessary that a body may have besides as many as it has data.
const MOST_BESIDE: u64 = 16_384;

const TRAILER_LIMITS: Limits = Limits { bytes: 16_384, lines: 100 };

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A body, its trailers, and how much of the text was not taken.
    type Body = (Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>, usize);

    /// Reads a body that arrives in pieces of `step` bytes; nothing if it does not end.
    fn read(text: &[u8], step: usize) -> Result<Option<Body>, ChunkError> {
        let (mut reader, mut input, mut body, mut arrived) = (ChunkReader::default(), BytesMut::new(), Vec::new(), 0);
        for piece in text.chunks(step) {
            input.extend_from_slice(piece);
            arrived += piece.len();
            while let Some(chunk) = reader.read(&mut input)? {
                match chunk {
                    Chunk::Data(data) => body.extend(data),
                    Chunk::End(trailers) => {
                        let lines = trailers.lines().map(|line| (line.name.to_vec(), line.value.to_vec())).collect();
                        return Ok(Some((body, lines, text.len() - arrived + input.len())));
                    }
                }
            }
        }
        Ok(None)
    }

    #[test]
    fn chunks_are_read_in_any_pieces() {
        let text =
            b"4;ext=\"x\";y\r\nab\r\n\r\n00001 \t\r\n\n\r\nA ;e\r\n0123456789\r\n0\r\nX: y\r\nz:\t w\r\n\r\nGET /";
        for step in 1..=text.len() {
            let (body, trailers, left) = read(text, step).unwrap().unwrap();
            assert_eq!((body, left), (b"ab\r\n\n0123456789".to_vec(), 5), "in pieces of {step}");
            assert_eq!(trailers, [(b"X".to_vec(), b"y".to_vec()), (b"z".to_vec(), b"w".to_vec())]);
        }
        assert_eq!(read(b"0\r\n\r\n0\r\n\r\n", 100), Ok(Some((vec![], vec![], 5))));
    }

    #[test]
    fn data_is_not_copied_and_does_not_wait_for_its_chunk() {
        let mut input = BytesMut::from(&b"100\r\nabc"[..]);
        let place = input[5..].as_ptr();
        let mut reader = ChunkReader::default();
        let Some(Chunk::Data(data)) = reader.read(&mut input).unwrap() else { panic!("there is data") };
        assert_eq!((&data[..], data.as_ptr()), (&b"abc"[..], place));
        assert!(reader.read(&mut input).unwrap().is_none());
        assert_eq!(reader.left_of_chunk(), 253);
        reader.took_data(253);
        input.extend_from_slice(b"\r\n0\r\n\r\nGET");
        assert!(matches!(reader.read(&mut input), Ok(Some(Chunk::End(trailers))) if trailers.is_empty()));
        assert!(matches!(reader.read(&mut input), Ok(Some(Chunk::End(_)))));
        assert!(reader.has_ended());
        assert_eq!(&input[..], b"GET");
    }

    /// RFC 9112 sections 7.1 and 2.2.
    #[test]
    fn malformed_chunks_are_refused() {
        use ChunkError::*;
        for (text, error) in [
            (&b"x\r\n"[..], Size),
            (b"\r\nab", Size),
            (b"-2\r\n", Size),
            (b"+2\r\n", Size),
            (b" 2\r\n", Size),
            (b";a\r\n", Size),
            (b"0x2\r\n", Size),
            (b"2 2\r\n", Size),
            (b"10000000000000000\r\n", Size),
            (b"1\r\nab\r\n", LineEnd),
            (b"3\r\nab\r\n0", LineEnd),
            (b"2\nab\r\n", LineEnd),
            (b"2 \nab\r\n", LineEnd),
            (b"2\r\nab\n0\r\n\r\n", LineEnd),
            (b"2\rab", LineEnd),
            (b"2;a\nb\r\n", Extension),
            (b"2;a\rb\r\n", LineEnd),
            (b"2;\0\r\n", Extension),
            (b"0\r\nA: b\n\r\n", Trailers(ParseError::LineEnd)),
            (b"0\r\n\n", Trailers(ParseError::LineEnd)),
            (b"0\r\nA : b\r\n\r\n", Trailers(ParseError::Name)),
            (b"0\r\nA: b\r\n c\r\n\r\n", Trailers(ParseError::Name)),
            (b"0\r\nA: b\0\r\n\r\n", Trailers(ParseError::Value)),
        ] {
            for step in 1..=text.len() {
                assert_eq!(read(text, step), Err(error), "{} in pieces of {step}", text.escape_ascii());
            }
        }
        assert_eq!(read(b"ffffffffffffffff\r\nab", 1), Ok(None));
    }

    #[test]
    fn what_stands_beside_the_data_is_bounded() {
        let endless = [&b"2;"[..], &vec![b'a'; 20_000]].concat();
        assert_eq!(read(&endless, 1_000), Err(ChunkError::TooLong));
        assert_eq!(read(&vec![b'0'; 20_000], 1_000), Err(ChunkError::TooLong));
        assert_eq!(read(&b"1;aaaaaaaaaaaaaaa\r\nb\r\n".repeat(2_000), 1_000), Err(ChunkError::TooLong));
        let signed = [&b"400;signature="[..], &[b'a'; 64], b"\r\n", &[b'b'; 1_024], b"\r\n"].concat();
        assert_eq!(read(&signed.repeat(1_000), 1_000), Ok(None), "a long body may be signed chunk by chunk");
        let trailer = [&b"0\r\nA: "[..], &vec![b'a'; 20_000]].concat();
        assert_eq!(read(&trailer, 1_000), Err(ChunkError::Trailers(ParseError::TooLong)));
        let trailers = [&b"0\r\n"[..], &b"A: b\r\n".repeat(102)].concat();
        assert_eq!(read(&trailers, 1_000), Err(ChunkError::Trailers(ParseError::TooManyLines)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..8), step in 1..50usize) {
            let mut text = Vec::new();
            for piece in &pieces {
                text.extend([chunk_header(piece.len()).as_ref(), piece, DATA_END].concat());
            }
            text.extend([LAST_CHUNK, b"A: b\r\n\r\n", b"more"].concat());
            prop_assert_eq!(read(&text, step), Ok(Some((pieces.concat(), vec![(b"A".to_vec(), b"b".to_vec())], 4))));
        }

        #[test]
        fn pieces_make_no_difference(
            parts in prop::collection::vec(prop::sample::select(vec!["\r\n", "\r", "\n", "0", "2", "ab", ";", " ", "A: b", "F", "\0"]), 0..16),
            step in 1..9usize,
        ) {
            let text = parts.concat();
            prop_assert_eq!(read(text.as_bytes(), step), read(text.as_bytes(), text.len().max(1)));
        }

        #[test]
        fn a_chunks_header_is_its_size(length in any::<usize>()) {
            let (written, expected) = (chunk_header(length), format!("{length:x}\r\n"));
            prop_assert_eq!(written.as_ref(), expected.as_bytes());
        }
    }
}
