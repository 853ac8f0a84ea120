//! Heads, one after another, in whatever pieces they arrive.

use bytes::{Buf, BytesMut};

use super::{
    Limits, ParseError,
    first_line::{FirstLine, RequestLine, StatusLine},
    lines::{LineEnds, LineScanner, places, unfold},
};
use crate::message::head::{Fields, RequestHead, ResponseHead};

/// Reads one head after another. It remembers how far it has looked, so that a head costs the same in however many pieces.
#[derive(Debug, Default)]
pub struct HeadReader {
    lines: LineScanner,
    /// How many empty lines there were before the first line.
    empty_lines: usize,
    first: FirstLine,
}

impl HeadReader {
    /// Whether a head has begun in this buffer: empty lines before it do not count.
    pub fn has_begun(&self, buffer: &[u8]) -> bool {
        self.lines.count() > 0 || !matches!(buffer, [] | [b'\r'] | [b'\r', b'\n', ..])
    }

    /// Takes the head of a request off the buffer, once all of it is there. Nothing is copied. An error leaves the buffer as
    /// it is, and there is no telling where the next head begins.
    pub fn request(&mut self, buffer: &mut BytesMut, limits: Limits) -> Result<Option<RequestHead>, ParseError> {
        self.skip_empty_lines(buffer, LineEnds::Strict)?;
        let Some(end) = self.lines.scan(buffer, limits, LineEnds::Strict)? else {
            self.first.check_request_line(buffer, self.lines.count() > 0)?;
            return Ok(None);
        };
        let line = RequestLine::parse(buffer)?;
        let places = places(buffer, line.length, end, self.lines.count())?;
        *self = Self::default();
        let fields = Fields::new(buffer.split_to(end).freeze(), places);
        let RequestLine { method, target, version, .. } = line;
        Ok(Some(RequestHead { fields, method, target, protocol: None, version }))
    }

    /// Takes the head of a response off the buffer, in the same way.
    pub fn response(&mut self, buffer: &mut BytesMut, limits: Limits) -> Result<Option<ResponseHead>, ParseError> {
        self.skip_empty_lines(buffer, LineEnds::Lenient)?;
        let Some(end) = self.lines.scan(buffer, limits, LineEnds::Lenient)? else {
            self.first.check_status_line(buffer, self.lines.count() > 0)?;
            return Ok(None);
        };
        let line = StatusLine::parse(buffer)?;
        let places = match places(buffer, line.length, end, self.lines.count()) {
            Err(ParseError::Name) if unfold(&mut buffer[line.length..end]) => {
                places(buffer, line.length, end, self.lines.count())?
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
        if self.lines.count() > 0 {
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
}

/// Empty lines before a message that are passed over. Some clients send one behind a body.
const MOST_EMPTY_LINES: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{Known, Version};

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
