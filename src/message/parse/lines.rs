//! Where lines end, and the header lines themselves.

use std::rc::Rc;

use bytes::Bytes;
use memchr::memchr_iter;
use smallvec::{SmallVec, smallvec};

use super::{Limits, ParseError};
use crate::message::{
    head::{Fields, LONGEST, Place, Span},
    known::Known,
};

/// Which line ends count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LineEnds {
    /// CR and LF.
    Strict,
    /// An LF alone as well.
    Lenient,
}

/// Finds the empty line that ends a head or a trailer section. Each byte is looked at once.
#[derive(Debug, Default)]
pub struct LineScanner {
    /// How many bytes have been looked at.
    seen: usize,
    /// Where the line begins that has not ended.
    line: usize,
    /// How many lines have ended.
    count: usize,
}

impl LineScanner {
    /// Where the block ends, if it does. The first of its lines is not counted against the limit.
    pub fn scan(&mut self, buffer: &[u8], limits: Limits, ends: LineEnds) -> Result<Option<usize>, ParseError> {
        let most = limits.bytes.min(LONGEST);
        let seen = self.seen;
        for offset in memchr_iter(b'\n', &buffer[seen..]) {
            let feed = seen + offset;
            let length = match &buffer[self.line..feed] {
                [.., b'\r'] => feed - self.line - 1,
                _ if ends == LineEnds::Lenient => feed - self.line,
                _ => return Err(ParseError::LineEnd),
            };
            self.line = feed + 1;
            self.seen = feed + 1;
            if self.line > most {
                return Err(ParseError::TooLong);
            }
            if length == 0 {
                return Ok(Some(self.line));
            }
            if self.count > limits.lines {
                return Err(ParseError::TooManyLines);
            }
            self.count += 1;
        }
        self.seen = buffer.len();
        if buffer.len() > most { Err(ParseError::TooLong) } else { Ok(None) }
    }

    /// How many lines have ended, without the empty one.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// Lexes a block of lines that an empty line ends.
pub fn fields(block: Bytes, count: usize) -> Result<Fields, ParseError> {
    let places = places(&block, 0, block.len(), count)?;
    Ok(Fields::new(block, places))
}

/// Lexes the header lines that stand at `start..end`, of which there are fewer than `count`.
pub(super) fn places(buffer: &[u8], start: usize, end: usize, count: usize) -> Result<Rc<[Place]>, ParseError> {
    let mut headers: SmallVec<[httparse::Header<'_>; USUAL_LINES]> = smallvec![httparse::EMPTY_HEADER; count];
    let (length, lines) = match httparse::parse_headers(&buffer[start..end], &mut headers) {
        Ok(httparse::Status::Complete(complete)) => complete,
        Ok(httparse::Status::Partial) | Err(httparse::Error::NewLine) => return Err(ParseError::LineEnd),
        Err(httparse::Error::HeaderValue) => return Err(ParseError::Value),
        Err(httparse::Error::TooManyHeaders) => return Err(ParseError::TooManyLines),
        Err(_) => return Err(ParseError::Name),
    };
    if start + length != end {
        return Err(ParseError::LineEnd);
    }
    let base = buffer.as_ptr() as usize;
    let span = |part: &[u8]| {
        let start = part.as_ptr() as usize - base;
        Span::new(start, start + part.len())
    };
    let place = |line: &httparse::Header<'_>| Place {
        name: span(line.name.as_bytes()),
        value: span(line.value),
        known: Known::of(line.name.as_bytes()),
    };
    Ok(lines.iter().map(place).collect())
}

/// Joins folded lines: each fold becomes blanks (RFC 9112 section 5.2). Returns whether there were any.
pub(super) fn unfold(block: &mut [u8]) -> bool {
    let mut has_folds = false;
    for feed in 1..block.len() {
        if block[feed - 1] == b'\n' && matches!(block[feed], b' ' | b'\t') {
            has_folds = true;
            block[feed - 1] = b' ';
            if feed > 1 && block[feed - 2] == b'\r' {
                block[feed - 2] = b' ';
            }
        }
    }
    has_folds
}

/// Heads of so many lines are lexed without an allocation for it.
const USUAL_LINES: usize = 32;
