//! Where the requests on a client connection begin and end, as bytes.
//!
//! The HTTP library reads leniently: it takes a bare LF for a line end, and drops Content-Length where Transfer-Encoding
//! stands beside it. A proxy in front of other readers must not (RFC 9112 sections 2.2 and 6.1), so every head is looked
//! over here first. So is a fragment, which has no place in a target, and which the library drops. What is illegal is not
//! answered here: the offending bytes are overwritten with NUL, which no HTTP parser accepts, so that the library itself
//! answers 400 and closes. The same walk tells when a head begins and a body ends, which is what the client timeouts are
//! measured by.

/// Follows one request's head.
#[expect(clippy::struct_excessive_bools, reason = "four independent facts about what has been read")]
#[derive(Debug, Default)]
pub struct HeadScanner {
    /// The current line's first bytes, enough to recognise the two framing headers.
    start: [u8; LONGEST_NAME],
    /// The current line's length so far.
    length: usize,
    /// Whether the last byte was a carriage return.
    after_cr: bool,
    /// Whether a line with content has been seen; empty lines before the request line are allowed (RFC 9112 section 2.2).
    begun: bool,
    has_length: bool,
    has_encoding: bool,
}

impl HeadScanner {
    /// Whether any byte of the request line has arrived.
    pub fn has_begun(&self) -> bool {
        self.begun || self.length > 0
    }

    /// Looks over the next bytes. Returns how many belong to the head once it is complete; what follows is not touched.
    pub fn scan(&mut self, bytes: &mut [u8]) -> Option<usize> {
        let mut position = 0;
        while let Some(offset) = memchr::memchr(b'\n', &bytes[position..]) {
            let feed = position + offset;
            self.poison_fragment(&mut bytes[position..feed]);
            self.extend(&bytes[position..feed]);
            position = feed + 1;
            if !self.after_cr {
                bytes[feed] = POISON;
                self.extend(&[POISON]);
                continue;
            }
            if self.length == 1 {
                if self.begun {
                    if self.has_length && self.has_encoding {
                        bytes[feed] = POISON;
                    }
                    *self = Self::default();
                    return Some(position);
                }
            } else {
                self.begun = true;
                self.note_name();
            }
            self.length = 0;
            self.after_cr = false;
        }
        self.poison_fragment(&mut bytes[position..]);
        self.extend(&bytes[position..]);
        None
    }

    fn poison_fragment(&self, part: &mut [u8]) {
        if !self.begun
            && let Some(fragment) = memchr::memchr(b'#', part)
        {
            part[fragment] = POISON;
        }
    }

    fn extend(&mut self, part: &[u8]) {
        if let Some(last) = part.last() {
            self.after_cr = *last == b'\r';
        }
        if self.length < LONGEST_NAME {
            let kept = part.len().min(LONGEST_NAME - self.length);
            self.start[self.length..self.length + kept].copy_from_slice(&part[..kept]);
        }
        self.length += part.len();
    }

    fn note_name(&mut self) {
        let start = &self.start[..self.length.min(LONGEST_NAME)];
        let named = |name: &[u8]| start.len() >= name.len() && start[..name.len()].eq_ignore_ascii_case(name);
        self.has_length |= named(b"content-length:");
        self.has_encoding |= named(b"transfer-encoding:");
    }
}

/// Follows one chunked body (RFC 9112 section 7.1) to its end. The HTTP library checks its form; here only the end matters.
#[derive(Debug, Default)]
pub struct ChunkScanner {
    state: Chunk,
    size: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Chunk {
    /// The hexadecimal size.
    #[default]
    Size,
    /// The rest of the size's line.
    Extension,
    /// The data and the line end after it.
    Data,
    /// A line of the trailer section, and whether it has content.
    Trailer { empty: bool },
}

impl ChunkScanner {
    /// Looks over the next bytes. Returns how many belong to the body once it is complete.
    pub fn scan(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut position = 0;
        while let Some(&byte) = bytes.get(position) {
            if self.state == Chunk::Data {
                let step = usize::try_from(self.size).unwrap_or(usize::MAX).min(bytes.len() - position);
                position += step;
                self.size -= step as u64;
                if self.size == 0 {
                    self.state = Chunk::Size;
                }
                continue;
            }
            position += 1;
            match (&mut self.state, byte) {
                (Chunk::Size | Chunk::Extension, b'\n') => {
                    self.state = if self.size == 0 {
                        Chunk::Trailer { empty: true }
                    } else {
                        self.size = self.size.saturating_add(2);
                        Chunk::Data
                    };
                }
                (Chunk::Size, digit) => match char::from(digit).to_digit(16) {
                    Some(digit) => self.size = self.size.saturating_mul(16).saturating_add(digit.into()),
                    None => self.state = Chunk::Extension,
                },
                (Chunk::Trailer { empty: true }, b'\n') => {
                    *self = Self::default();
                    return Some(position);
                }
                (Chunk::Trailer { empty }, b'\n') => *empty = true,
                (Chunk::Trailer { .. }, b'\r') | (Chunk::Extension | Chunk::Data, _) => {}
                (Chunk::Trailer { empty }, _) => *empty = false,
            }
        }
        None
    }
}

/// A byte that no HTTP parser accepts in a head.
pub const POISON: u8 = 0;

/// The length of `transfer-encoding:`.
const LONGEST_NAME: usize = 18;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Scans `text` in pieces of `step` bytes; returns what the library would see, and where the head ended.
    fn head(text: &[u8], step: usize) -> (Vec<u8>, Option<usize>) {
        let (mut scanner, mut seen) = (HeadScanner::default(), Vec::new());
        for piece in text.chunks(step) {
            let mut piece = piece.to_vec();
            let end = scanner.scan(&mut piece);
            seen.extend(&piece[..end.unwrap_or(piece.len())]);
            if end.is_some() {
                let length = seen.len();
                return (seen, Some(length));
            }
        }
        (seen, None)
    }

    fn chunked(text: &[u8], step: usize) -> Option<usize> {
        let (mut scanner, mut before) = (ChunkScanner::default(), 0);
        for piece in text.chunks(step) {
            if let Some(end) = scanner.scan(piece) {
                return Some(before + end);
            }
            before += piece.len();
        }
        None
    }

    #[test]
    fn a_clean_head_passes_untouched_in_any_pieces() {
        let text = b"\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody\n";
        let end = text.len() - 5;
        for step in 1..=text.len() {
            let (seen, found) = head(text, step);
            assert_eq!(found, Some(end), "in pieces of {step}");
            assert_eq!(seen, text[..end], "in pieces of {step}");
        }
    }

    #[test]
    fn a_bare_line_feed_is_poisoned_in_any_pieces() {
        for text in [
            &b"GET / HTTP/1.1\nHost: a\r\n\r\n"[..],
            b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
            b"\nGET / HTTP/1.1\r\n\r\n",
        ] {
            for step in 1..=text.len() {
                let (seen, _) = head(text, step);
                assert!(seen.contains(&POISON), "{text:?} in pieces of {step}");
            }
        }
    }

    #[test]
    fn a_request_with_two_framings_is_poisoned_whatever_their_order_and_case() {
        for text in [
            &b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
            b"POST / HTTP/1.1\r\nTRANSFER-encoding:chunked\r\nHost: a\r\ncontent-LENGTH:4\r\n\r\n",
        ] {
            for step in 1..=text.len() {
                let (seen, _) = head(text, step);
                assert!(seen.contains(&POISON), "{text:?} in pieces of {step}");
            }
        }
        let (seen, _) = head(b"POST / HTTP/1.1\r\nX-Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", 7);
        assert!(!seen.contains(&POISON));
    }

    #[test]
    fn a_fragment_is_poisoned_in_any_pieces() {
        let text = b"GET /a#b HTTP/1.1\r\nHost: a\r\nReferer: /a#b\r\n\r\n";
        for step in 1..=text.len() {
            let (seen, found) = head(text, step);
            assert_eq!(found, Some(text.len()), "in pieces of {step}");
            assert_eq!(memchr::memchr_iter(POISON, &seen).count(), 1, "in pieces of {step}");
        }
    }

    #[test]
    fn a_scanner_is_ready_for_the_next_head() {
        let mut scanner = HeadScanner::default();
        let mut text = b"GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n".to_vec();
        assert!(scanner.scan(&mut text).is_some());
        assert!(!scanner.has_begun());
        let mut text = b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        assert!(scanner.scan(&mut text).is_some());
        assert!(!text.contains(&POISON));
    }

    #[test]
    fn a_chunked_body_ends_after_its_trailers_in_any_pieces() {
        for (body, after) in [
            (&b"4;ext=\"x\"\r\nab\r\n\r\n1\r\n\n\r\n0\r\n\r\n"[..], &b"GET /"[..]),
            (b"A\r\n0123456789\r\n0\r\nX: y\r\nZ: w\r\n\r\n", b"GET /"),
            (b"0\r\n\r\n", b"0\r\n\r\n"),
        ] {
            let text = [body, after].concat();
            for step in 1..=text.len() {
                assert_eq!(chunked(&text, step), Some(body.len()), "{text:?} in pieces of {step}");
            }
        }
    }

    proptest! {
        #[test]
        fn scanning_junk_never_panics_and_does_not_depend_on_the_pieces(text in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), any::<u8>()], 0..80), step in 1..9usize) {
            prop_assert_eq!(head(&text, step), head(&text, text.len().max(1)));
            prop_assert_eq!(chunked(&text, step), chunked(&text, text.len().max(1)));
        }

        #[test]
        fn no_bare_line_feed_survives(text in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'a')], 0..80)) {
            let (seen, _) = head(&text, text.len().max(1));
            for (position, &byte) in seen.iter().enumerate() {
                prop_assert!(byte != b'\n' || (position > 0 && seen[position - 1] == b'\r'));
            }
        }
    }
}
