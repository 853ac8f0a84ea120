//! From bytes to a head, in one strict reading.
//!
//! A line is lexed by `httparse`; what must hold beyond that stands here. In a request, what two readers could understand
//! differently is refused. A response has one reader, who writes it afresh for the client, so that two old ways of writing
//! one are read as they are meant: lines that end in a bare LF (RFC 9112 section 2.2), and folded lines (section 5.2).

use std::rc::Rc;

use bytes::{Buf, BytesMut};
use memchr::{memchr, memchr_iter};
use smallvec::{SmallVec, smallvec};

use super::{
    head::{Fields, LONGEST, Place, RequestHead, ResponseHead, Span, Version},
    known::Known,
};

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// All of it, to its last line end.
    pub bytes: usize,
    /// Its header lines.
    pub lines: usize,
}

/// Why bytes are not the head of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Something other than a token and a blank at the beginning.
    #[error("the method is malformed")]
    Method,
    /// A byte that no target has, or none at all.
    #[error("the target is malformed")]
    Target,
    /// More bytes of target than anybody reads.
    #[error("the target is too long")]
    TargetTooLong,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    #[error("the version is neither HTTP/1.0 nor HTTP/1.1")]
    Version,
    /// Not three digits from 100 on.
    #[error("the status is malformed")]
    Status,
    /// A control character.
    #[error("the reason phrase is malformed")]
    Reason,
    /// A CR without an LF, or, in a request, an LF without a CR.
    #[error("a line does not end in CR and LF")]
    LineEnd,
    /// No token, or no colon right behind it.
    #[error("a header's name is malformed")]
    Name,
    /// A control character.
    #[error("a header's value is malformed")]
    Value,
    /// More than a few empty lines at the beginning.
    #[error("there are too many empty lines before the message")]
    EmptyLines,
    /// More lines than the limit.
    #[error("there are too many header lines")]
    TooManyLines,
    /// More bytes than the limit.
    #[error("the head is too long")]
    TooLong,
}

impl ParseError {
    /// The status that a request with this error is answered with.
    pub fn status(self) -> u16 {
        match self {
            Self::TooManyLines | Self::TooLong => 431,
            Self::TargetTooLong => 414,
            _ => 400,
        }
    }
}

/// Reads one head after another. It remembers how far it has looked, so that a head costs the same in however many pieces.
#[derive(Debug, Default)]
pub struct HeadReader {
    lines: LineScanner,
    /// How many empty lines there were before the first line.
    empty_lines: usize,
    first: FirstLine,
}

/// What of the first line has been looked at, while the head is not complete.
#[derive(Debug, Default)]
enum FirstLine {
    /// The first so many bytes, which are a method's beginning.
    #[default]
    Unseen,
    Method(usize),
    /// The method ends there, and so many bytes have been looked at.
    Target {
        method: usize,
        seen: usize,
    },
    /// All of it.
    Sound,
}

impl HeadReader {
    /// Whether a head has begun in this buffer: empty lines before it do not count.
    pub fn has_begun(&self, buffer: &[u8]) -> bool {
        self.lines.count > 0 || !matches!(buffer, [] | [b'\r'] | [b'\r', b'\n', ..])
    }

    /// Takes the head of a request off the buffer, once all of it is there. Nothing is copied. An error leaves the buffer as
    /// it is, and there is no telling where the next head begins.
    pub fn request(&mut self, buffer: &mut BytesMut, limits: Limits) -> Result<Option<RequestHead>, ParseError> {
        self.skip_empty_lines(buffer, LineEnds::Strict)?;
        let Some(end) = self.lines.scan(buffer, limits, LineEnds::Strict)? else {
            self.check_request_line(buffer)?;
            return Ok(None);
        };
        let line = RequestLine::parse(buffer)?;
        let places = places(buffer, line.length, end, self.lines.count)?;
        *self = Self::default();
        let fields = Fields::new(buffer.split_to(end).freeze(), places);
        let RequestLine { method, target, version, .. } = line;
        Ok(Some(RequestHead { fields, method, target, protocol: None, version }))
    }

    /// Takes the head of a response off the buffer, in the same way.
    pub fn response(&mut self, buffer: &mut BytesMut, limits: Limits) -> Result<Option<ResponseHead>, ParseError> {
        self.skip_empty_lines(buffer, LineEnds::Lenient)?;
        let Some(end) = self.lines.scan(buffer, limits, LineEnds::Lenient)? else {
            self.check_status_line(buffer)?;
            return Ok(None);
        };
        let line = StatusLine::parse(buffer)?;
        let places = match places(buffer, line.length, end, self.lines.count) {
            Err(ParseError::Name) if unfold(&mut buffer[line.length..end]) => {
                places(buffer, line.length, end, self.lines.count)?
            }
            places => places?,
        };
        *self = Self::default();
        let fields = Fields::new(buffer.split_to(end).freeze(), places);
        let StatusLine { version, status, reason, .. } = line;
        Ok(Some(ResponseHead { fields, version, status, reason }))
    }

    /// A few empty lines before a message are none of it (RFC 9112 section 2.2).
    fn skip_empty_lines(&mut self, buffer: &mut BytesMut, ends: LineEnds) -> Result<(), ParseError> {
        if self.lines.count > 0 {
            return Ok(());
        }
        loop {
            let length = match buffer[..] {
                [b'\r', b'\n', ..] => 2,
                [b'\n', ..] if ends == LineEnds::Lenient => 1,
                [b'\n', ..] | [b'\r', _, ..] => return Err(ParseError::LineEnd),
                _ => return Ok(()),
            };
            if self.empty_lines == MOST_EMPTY_LINES {
                return Err(ParseError::EmptyLines);
            }
            self.empty_lines += 1;
            buffer.advance(length);
            self.lines = LineScanner::default();
        }
    }

    /// Refuses what surely becomes no request, each byte looked at once.
    fn check_request_line(&mut self, buffer: &[u8]) -> Result<(), ParseError> {
        if self.lines.count > 0 {
            if !matches!(self.first, FirstLine::Sound) {
                RequestLine::parse(buffer)?;
                self.first = FirstLine::Sound;
            }
            return Ok(());
        }
        if let FirstLine::Unseen = self.first {
            self.first = FirstLine::Method(0);
        }
        if let FirstLine::Method(seen) = self.first {
            let end = memchr(b' ', &buffer[seen..]).map(|offset| seen + offset);
            let method = &buffer[..end.unwrap_or(buffer.len())];
            // An empty line may be about to follow.
            if !method[seen..].iter().all(|&byte| is_token_byte(byte)) && method != b"\r" || end == Some(0) {
                return Err(ParseError::Method);
            }
            self.first = match end {
                None => FirstLine::Method(if method == b"\r" { 0 } else { method.len() }),
                Some(end) => FirstLine::Target { method: end, seen: end + 1 },
            };
        }
        if let FirstLine::Target { method, seen } = self.first {
            let fresh = &buffer[seen..];
            // A CR at the very end may be the line's.
            let (last, before) = fresh.split_last().map_or((b' ', fresh), |(&last, before)| (last, before));
            if before.iter().any(|&byte| is_never_in_request_line(byte))
                || last != b'\r' && is_never_in_request_line(last)
            {
                return Err(ParseError::Target);
            }
            if buffer.len() - method > LONGEST_TARGET + VERSION + 4 {
                return Err(ParseError::TargetTooLong);
            }
            self.first = FirstLine::Target { method, seen: buffer.len() - usize::from(last == b'\r') };
        }
        Ok(())
    }

    /// Refuses what surely becomes no response.
    fn check_status_line(&mut self, buffer: &[u8]) -> Result<(), ParseError> {
        if self.lines.count == 0 {
            let beginning = &buffer[..buffer.len().min(VERSION_PREFIX.len())];
            let may_be_empty_line = beginning == b"\r";
            if !VERSION_PREFIX.starts_with(beginning) && !may_be_empty_line {
                return Err(ParseError::Version);
            }
        } else if !matches!(self.first, FirstLine::Sound) {
            StatusLine::parse(buffer)?;
            self.first = FirstLine::Sound;
        }
        Ok(())
    }
}

/// Which line ends count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LineEnds {
    /// CR and LF.
    Strict,
    /// An LF alone as well.
    Lenient,
}

/// Finds the empty line that ends a head or a trailer section. Each byte is looked at once.
#[derive(Debug, Default)]
pub(super) struct LineScanner {
    /// How many bytes have been looked at.
    seen: usize,
    /// Where the line begins that has not ended.
    line: usize,
    /// How many lines have ended.
    count: usize,
}

impl LineScanner {
    /// Where the block ends, if it does. The first of its lines is not counted against the limit.
    pub(super) fn scan(&mut self, buffer: &[u8], limits: Limits, ends: LineEnds) -> Result<Option<usize>, ParseError> {
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
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

/// A request line (RFC 9112 section 3).
struct RequestLine {
    method: Span,
    target: Span,
    version: Version,
    /// With its line end.
    length: usize,
}

impl RequestLine {
    /// Parses the first line of a buffer, which is complete.
    fn parse(buffer: &[u8]) -> Result<Self, ParseError> {
        let line =
            memchr(b'\n', buffer).and_then(|feed| buffer[..feed].strip_suffix(b"\r")).ok_or(ParseError::LineEnd)?;
        let method = memchr(b' ', line).ok_or(ParseError::Method)?;
        if method == 0 || !line[..method].iter().all(|&byte| is_token_byte(byte)) {
            return Err(ParseError::Method);
        }
        let start = method + 1;
        let end = start + memchr(b' ', &line[start..]).ok_or(ParseError::Version)?;
        check_target(&line[start..end])?;
        let version = version(&line[end + 1..])?;
        Ok(Self { method: Span::new(0, method), target: Span::new(start, end), version, length: line.len() + 2 })
    }
}

/// A status line (RFC 9112 section 4).
struct StatusLine {
    version: Version,
    status: u16,
    reason: Span,
    /// With its line end.
    length: usize,
}

impl StatusLine {
    /// Parses the first line of a buffer, which is complete.
    fn parse(buffer: &[u8]) -> Result<Self, ParseError> {
        let feed = memchr(b'\n', buffer).ok_or(ParseError::LineEnd)?;
        let line = buffer[..feed].strip_suffix(b"\r").unwrap_or(&buffer[..feed]);
        let (name, rest) = line.split_at_checked(VERSION).ok_or(ParseError::Version)?;
        let version = version(name)?;
        let &[b' ', hundreds @ b'1'..=b'9', tens @ b'0'..=b'9', ones @ b'0'..=b'9', ref rest @ ..] = rest else {
            return Err(ParseError::Status);
        };
        let digit = |byte: u8| u16::from(byte - b'0');
        let status = digit(hundreds) * 100 + digit(tens) * 10 + digit(ones);
        // The blank before an empty reason is often left out.
        let reason = match rest {
            [] => rest,
            [b' ', reason @ ..] => reason,
            _ => return Err(ParseError::Status),
        };
        if !is_text(reason) {
            return Err(ParseError::Reason);
        }
        Ok(Self { version, status, reason: Span::new(line.len() - reason.len(), line.len()), length: feed + 1 })
    }
}

/// Lexes the header lines that stand at `start..end`, of which there are fewer than `count`.
fn places(buffer: &[u8], start: usize, end: usize, count: usize) -> Result<Rc<[Place]>, ParseError> {
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

/// Lexes a block of lines that an empty line ends.
pub(super) fn fields(block: bytes::Bytes, count: usize) -> Result<Fields, ParseError> {
    let places = places(&block, 0, block.len(), count)?;
    Ok(Fields::new(block, places))
}

/// Joins folded lines: each fold becomes blanks (RFC 9112 section 5.2). Returns whether there were any.
fn unfold(block: &mut [u8]) -> bool {
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

pub(super) fn check_target(target: &[u8]) -> Result<(), ParseError> {
    if target.len() > LONGEST_TARGET {
        return Err(ParseError::TargetTooLong);
    }
    if target.is_empty() || count(target, |byte| byte <= b' ' || byte == DELETE || byte == b'#') > 0 {
        return Err(ParseError::Target);
    }
    Ok(())
}

/// How many bytes are such. All are looked at, which lets the compiler compare many at once.
fn count(bytes: &[u8], is_such: impl Fn(u8) -> bool) -> usize {
    bytes.iter().filter(|&&byte| is_such(byte)).count()
}

fn version(name: &[u8]) -> Result<Version, ParseError> {
    match name {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        _ => Err(ParseError::Version),
    }
}

/// Whether these bytes may be a header's value or a reason phrase (RFC 9110 section 5.5).
pub(super) fn is_text(bytes: &[u8]) -> bool {
    count(bytes, |byte| byte < b' ' && byte != b'\t' || byte == DELETE) == 0
}

/// Whether these bytes are a token (RFC 9110 section 5.6.2).
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&byte| is_token_byte(byte))
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_never_in_request_line(byte: u8) -> bool {
    byte < b' ' || byte == DELETE || byte == b'#'
}

const DELETE: u8 = 0x7F;

/// The length of a version's name, and how it begins.
const VERSION: usize = 8;
const VERSION_PREFIX: &[u8] = b"HTTP/1.";

/// The longest target that is read. Longer ones make no sense to any server.
pub(super) const LONGEST_TARGET: usize = 65_534;

/// Empty lines before a message that are passed over. Some clients send one behind a body.
const MOST_EMPTY_LINES: usize = 4;

/// Heads of so many lines are lexed without an allocation for it.
const USUAL_LINES: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { bytes: 4_096, lines: 50 };

    type Outcome<H> = Result<Option<(H, usize)>, ParseError>;

    /// Reads a head that arrives in pieces of `step` bytes; with what of the text was not taken.
    fn read<H>(
        text: &[u8],
        step: usize,
        read: impl Fn(&mut HeadReader, &mut BytesMut, Limits) -> Result<Option<H>, ParseError>,
    ) -> Outcome<H> {
        let (mut reader, mut buffer, mut arrived) = (HeadReader::default(), BytesMut::new(), 0);
        for piece in text.chunks(step) {
            buffer.extend_from_slice(piece);
            arrived += piece.len();
            if let Some(head) = read(&mut reader, &mut buffer, LIMITS)? {
                return Ok(Some((head, text.len() - arrived + buffer.len())));
            }
        }
        Ok(None)
    }

    fn request(text: &[u8], step: usize) -> Outcome<RequestHead> {
        read(text, step, HeadReader::request)
    }

    fn response(text: &[u8], step: usize) -> Outcome<ResponseHead> {
        read(text, step, HeadReader::response)
    }

    fn lines(head: &Fields) -> Vec<(&[u8], &[u8])> {
        head.lines().map(|line| (line.name, line.value)).collect()
    }

    #[test]
    fn a_request_is_read_as_it_stands_in_any_pieces() {
        let head =
            b"\r\nPOST /a%2Fb?c=\xE9\"<>` HTTP/1.1\r\nhOST:\ta.test \r\nA:\r\nB: \t \r\nC:x y\r\nc:  \xE9\r\n\r\n";
        let text = [&head[..], b"body\n"].concat();
        for step in 1..=text.len() {
            let (head, left) = request(&text, step).unwrap().unwrap();
            assert_eq!((head.method(), head.version(), left), ("POST", Version::Http11, 5), "in pieces of {step}");
            assert_eq!(head.target(), b"/a%2Fb?c=\xE9\"<>`");
            let expected: [(&[u8], &[u8]); 5] =
                [(b"hOST", b"a.test"), (b"A", b""), (b"B", b""), (b"C", b"x y"), (b"c", b"\xE9")];
            assert_eq!(lines(&head), expected);
            assert_eq!(head.first(Known::Host), Some(&b"a.test"[..]));
            assert_eq!(head.named(b"C").collect::<Vec<_>>(), [&b"x y"[..], b"\xE9"]);
        }
    }

    #[test]
    fn requests_follow_one_another_in_one_buffer() {
        let mut buffer = BytesMut::from(&b"GET /1 HTTP/1.1\r\n\r\n\r\nGET /2 HTTP/1.0\r\nA: b\r\n\r\nGET /3"[..]);
        let mut reader = HeadReader::default();
        assert!(reader.has_begun(&buffer));
        let first = reader.request(&mut buffer, LIMITS).unwrap().unwrap();
        assert!(!reader.has_begun(&buffer), "an empty line begins nothing");
        let second = reader.request(&mut buffer, LIMITS).unwrap().unwrap();
        assert_eq!((first.target(), second.target(), second.version()), (&b"/1"[..], &b"/2"[..], Version::Http10));
        assert!(reader.has_begun(&buffer));
        assert!(reader.request(&mut buffer, LIMITS).unwrap().is_none());
    }

    /// RFC 9112 sections 2.2, 3, 5.1 and 5.2.
    #[test]
    fn what_two_readers_could_understand_differently_is_no_request() {
        use ParseError::*;
        let long = [b"GET /", &b"a".repeat(70_000)[..], b" HTTP/1.1\r\n\r\n"].concat();
        let cases: &[(&[u8], ParseError)] = &[
            (b"GET / HTTP/1.1\nA: b\r\n\r\n", LineEnd),
            (b"GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n", LineEnd),
            (b"GET / HTTP/1.1\r\nA: b\r\n\n", LineEnd),
            (b"\nGET / HTTP/1.1\r\n\r\n", LineEnd),
            (b"GET / HTTP/1.1\r\nA: b\rC: d\r\n\r\n", Value),
            (b"GET / HTTP/1.1\r\nA: b\r\r\n\r\n", Value),
            (b"GET / HTTP/1.1\r\nA: b\0\r\n\r\n", Value),
            (b"GET / HTTP/1.1\r\nA: b\x7F\r\n\r\n", Value),
            (b"GET / HTTP/1.1\r\nA\0: b\r\n\r\n", Name),
            (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", Name),
            (b"GET / HTTP/1.1\r\nA\r\n\r\n", Name),
            (b"GET / HTTP/1.1\r\n: b\r\n\r\n", Name),
            (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", Name),
            (b"GET / HTTP/1.1\r\n A: b\r\n\r\n", Name),
            (b"GET / HTTP/1.1\r\n\xE9: b\r\n\r\n", Name),
            (b"GET /a#b HTTP/1.1\r\n\r\n", Target),
            (b"GET /\0 HTTP/1.1\r\n\r\n", Target),
            (b"GET /\x7F HTTP/1.1\r\n\r\n", Target),
            (b"GET /\t HTTP/1.1\r\n\r\n", Target),
            (b"GET  HTTP/1.1\r\n\r\n", Target),
            (b"GET  / HTTP/1.1\r\n\r\n", Target),
            (b"GET / \r\n\r\n", Version),
            (b"GET /\r\n", Version),
            (b"GET /a b HTTP/1.1\r\n\r\n", Version),
            (b"GET /  HTTP/1.1\r\n\r\n", Version),
            (b"GET / HTTP/1.1 \r\n\r\n", Version),
            (b"GET / http/1.1\r\n\r\n", Version),
            (b"GET / HTTP/1.2\r\n\r\n", Version),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Version),
            (b"GE(T / HTTP/1.1\r\n\r\n", Method),
            (b" GET / HTTP/1.1\r\n\r\n", Method),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xFC\x03\x03", Method),
            (b"\r\n\r\n\r\n\r\n\r\n", EmptyLines),
            (&long, TargetTooLong),
        ];
        for (text, error) in cases {
            let limits = Limits { bytes: 100_000, lines: 50 };
            let mut buffer = BytesMut::from(*text);
            let outcome = HeadReader::default().request(&mut buffer, limits);
            assert_eq!(outcome.map(|_| ()), Err(*error), "{}", text.escape_ascii());
            let text = &text[..text.len().min(5_000)];
            for step in 1..text.len().min(50) {
                assert!(request(text, step).is_err(), "{} in pieces of {step}", text.escape_ascii());
            }
        }
    }

    #[test]
    fn garbage_is_refused_before_its_line_ends() {
        for text in [&b"\x16\x03"[..], b"\0", b"GE(", b"GET /\x01", b"GET /a#", b"GET\r\n", b"GET / HTTP/1.1\n"] {
            assert!(request(text, 1).is_err(), "{}", text.escape_ascii());
        }
        for text in [&b"\r"[..], b"G", b"GET", b"GET ", b"GET /a b", b"GET / HTTP/1.1\r", b"GET / HTTP/1.1\r\nA\0"] {
            assert_eq!(request(text, 1).map(drop), Ok(()), "{}", text.escape_ascii());
        }
        for text in [&b"SSH-2.0"[..], b"\x15\x03", b"HTTP/2", b"http"] {
            assert!(response(text, 1).is_err(), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn limits_are_exact_and_have_a_status() {
        let read = |lines: usize, value: usize, limits| {
            let text = format!("GET / HTTP/1.1\r\n{}B: {}\r\n\r\n", "A: b\r\n".repeat(lines - 1), "c".repeat(value));
            let whole = HeadReader::default().request(&mut BytesMut::from(text.as_bytes()), limits);
            (text.len(), whole.map(|head| head.unwrap().len()))
        };
        let limits = |bytes, lines| Limits { bytes, lines };
        let (length, read_lines) = read(50, 10, limits(10_000, 50));
        assert_eq!(read_lines, Ok(50));
        assert_eq!(read(50, 10, limits(length, 50)).1, Ok(50));
        assert_eq!(read(50, 10, limits(length - 1, 50)).1, Err(ParseError::TooLong));
        assert_eq!(read(51, 10, limits(10_000, 50)).1, Err(ParseError::TooManyLines));
        assert_eq!(read(1_000, 10, limits(10_000, 1_000)).1, Ok(1_000));
        let statuses = [ParseError::TooLong, ParseError::TooManyLines, ParseError::TargetTooLong, ParseError::Name]
            .map(ParseError::status);
        assert_eq!(statuses, [431, 431, 414, 400]);

        let mut endless = BytesMut::from(&b"GET / HTTP/1.1\r\nA: "[..]);
        let mut reader = HeadReader::default();
        while endless.len() <= 4_096 {
            assert_eq!(reader.request(&mut endless, LIMITS).map(drop), Ok(()));
            endless.extend_from_slice(&[b'a'; 100]);
        }
        assert_eq!(reader.request(&mut endless, LIMITS).map(drop), Err(ParseError::TooLong));
    }

    #[test]
    fn a_response_is_read_as_it_stands_in_any_pieces() {
        let text = b"HTTP/1.0 299 Strange \xE9 Reason\r\nServer: s\r\nX-High: \xE9\r\n\r\nbody";
        for step in 1..=text.len() {
            let (head, left) = response(text, step).unwrap().unwrap();
            assert_eq!((head.version(), head.status(), left), (Version::Http10, 299, 4));
            assert_eq!(head.reason(), b"Strange \xE9 Reason");
            assert_eq!(head.first(Known::Server), Some(&b"s"[..]));
        }
        for (line, reason) in [("HTTP/1.1 200", ""), ("HTTP/1.1 200 ", ""), ("HTTP/1.1 200  OK", " OK")] {
            let (head, _) = response(format!("{line}\r\n\r\n").as_bytes(), 1).unwrap().unwrap();
            assert_eq!((head.status(), head.reason()), (200, reason.as_bytes()));
        }
    }

    /// RFC 9112 sections 2.2 and 5.2.
    #[test]
    fn old_ways_of_writing_a_response_are_understood() {
        let text = b"HTTP/1.1 200 OK\nA: b\r\n\tc\r\n  d\nE:\r\n f\r\n\n";
        for step in 1..=text.len() {
            let (head, left) = response(text, step).unwrap().unwrap();
            let expected: [(&[u8], &[u8]); 2] = [(b"A", b"b  \tc    d"), (b"E", b"f")];
            assert_eq!((lines(&head), left), (expected.to_vec(), 0), "in pieces of {step}");
        }
    }

    /// RFC 9112 section 4.
    #[test]
    fn what_is_no_response_is_refused() {
        use ParseError::*;
        let cases: &[(&[u8], ParseError)] = &[
            (b"HTTP/1.1 20 OK\r\n\r\n", Status),
            (b"HTTP/1.1 099 OK\r\n\r\n", Status),
            (b"HTTP/1.1 2000 OK\r\n\r\n", Status),
            (b"HTTP/1.1  200 OK\r\n\r\n", Status),
            (b"HTTP/1.1 +20 OK\r\n\r\n", Status),
            (b"HTTP/1.1\r\n\r\n", Status),
            (b"HTTP/1\r\n\r\n", Version),
            (b"HTTP/1.2 200 OK\r\n\r\n", Version),
            (b"ICY 200 OK\r\n\r\n", Version),
            (b"HTTP/1.1 200 O\0K\r\n\r\n", Reason),
            (b"HTTP/1.1 200 OK\rA: b\r\n\r\n", Reason),
            (b"HTTP/1.1 200 OK\r\n A: b\r\n\r\n", Name),
            (b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", Name),
            (b"HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n", Value),
            (b"HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n", Value),
        ];
        for (text, error) in cases {
            for step in 1..=text.len() {
                let outcome = response(text, step);
                assert_eq!(outcome.map(|_| ()), Err(*error), "{} in pieces of {step}", text.escape_ascii());
            }
        }
    }

    /// Text that is likely to look like a head.
    fn nearly_a_head() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            4 => prop::sample::select(vec![
                "\r\n", "\n", "\r", " ", "\t", ":", "GET", " / ", "HTTP/1.1", "HTTP/1.0", " 200 OK", "A: b\r\n", "Host", "#", "\0",
            ])
            .prop_map(|part| part.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..4),
        ];
        let beginning = prop::sample::select(vec!["", "GET / HTTP/1.1\r\n", "HTTP/1.1 200 OK\r\n"]);
        (beginning, prop::collection::vec(part, 0..12)).prop_map(|(beginning, parts)| {
            let mut text = beginning.as_bytes().to_vec();
            text.extend(parts.concat());
            text
        })
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(text in nearly_a_head(), step in 1..20usize) {
            let told = |outcome: Outcome<RequestHead>| {
                outcome.map(|head| head.map(|(head, left)| (head.method().to_owned(), head.target().to_vec(), lines_owned(&head), left)))
            };
            let (whole, pieces) = (told(request(&text, text.len().max(1))), told(request(&text, step)));
            // Which of several faults is found first may differ.
            prop_assert_eq!(whole.is_err(), pieces.is_err());
            prop_assert!(whole.is_err() || whole == pieces);

            let told = |outcome: Outcome<ResponseHead>| {
                outcome.map(|head| head.map(|(head, left)| (head.status(), head.reason().to_vec(), lines_owned(&head), left)))
            };
            let (whole, pieces) = (told(response(&text, text.len().max(1))), told(response(&text, step)));
            prop_assert_eq!(whole.is_err(), pieces.is_err());
            prop_assert!(whole.is_err() || whole == pieces);
        }

        /// Whatever is read as a request, a lenient reader reads in the same way.
        #[test]
        fn no_request_is_read_that_another_reader_refuses(text in nearly_a_head()) {
            if let Ok(Some((head, left))) = request(&text, text.len().max(1)) {
                let mut headers = [httparse::EMPTY_HEADER; 64];
                let mut other = httparse::Request::new(&mut headers);
                match other.parse(&text) {
                    Ok(status) => {
                        prop_assert_eq!(status, httparse::Status::Complete(text.len() - left));
                        prop_assert_eq!(other.path.unwrap().as_bytes(), head.target());
                        let others: Vec<_> = other.headers.iter().map(|line| (line.name.as_bytes(), line.value)).collect();
                        prop_assert_eq!(others, lines(&head));
                    }
                    // It takes no targets but those in UTF-8.
                    Err(error) => prop_assert!(error == httparse::Error::Token && str::from_utf8(head.target()).is_err()),
                }
            }
        }
    }

    fn lines_owned(head: &Fields) -> Vec<(Vec<u8>, Vec<u8>)> {
        head.lines().map(|line| (line.name.to_vec(), line.value.to_vec())).collect()
    }
}
