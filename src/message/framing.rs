//! Where a message's body ends (RFC 9112 section 6.3), decided here and nowhere else.

use super::{
    head::{Fields, RequestHead, ResponseHead, Version},
    known::Known,
};

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body, and no length of one is told.
    None,
    /// So many bytes, perhaps none.
    Length(u64),
    /// A chunk of no bytes.
    Chunked,
    /// The connection's end.
    UntilClose,
}

/// Why nobody can tell where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// A length that is no number, or too large a one.
    #[error("the body's length is malformed")]
    Length,
    /// Two different lengths.
    #[error("the body has two lengths")]
    TwoLengths,
    /// A length beside a transfer coding.
    #[error("the body has both a length and a transfer coding")]
    LengthAndCoding,
    /// A request's transfer coding that is not exactly one `chunked`.
    #[error("the body's transfer coding is not just chunked")]
    Coding,
    /// A transfer coding in a version that has none.
    #[error("the body has a transfer coding, which this version of HTTP has not")]
    CodingInVersion,
}

impl Framing {
    /// The framing of a request's body. HTTP/2 tells a body's end by itself, so that there `None` says only that the length
    /// is not known.
    pub fn of_request(head: &RequestHead) -> Result<Self, FramingError> {
        if !head.has(Known::TransferEncoding) {
            return Ok(content_length(head)?.map_or(Self::None, Self::Length));
        }
        // RFC 9112 section 6.1: this is how requests are smuggled.
        if head.has(Known::ContentLength) {
            return Err(FramingError::LengthAndCoding);
        }
        if head.version() != Version::Http11 {
            return Err(FramingError::CodingInVersion);
        }
        let mut lines = head.all(Known::TransferEncoding);
        match (lines.next(), lines.next()) {
            (Some(only), None) if only.eq_ignore_ascii_case(CHUNKED) => Ok(Self::Chunked),
            _ => Err(FramingError::Coding),
        }
    }

    /// The framing of a response's body.
    pub fn of_response(is_head_request: bool, head: &ResponseHead) -> Result<Self, FramingError> {
        if is_head_request || has_no_body(head.status()) {
            return Ok(Self::None);
        }
        if head.has(Known::TransferEncoding) {
            let last = head.elements(Known::TransferEncoding).last();
            let is_chunked = last.is_some_and(|coding| coding.eq_ignore_ascii_case(CHUNKED));
            return Ok(if is_chunked { Self::Chunked } else { Self::UntilClose });
        }
        Ok(content_length(head)?.map_or(Self::UntilClose, Self::Length))
    }

    /// Whether there is surely no byte of a body.
    pub fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}

/// Whether a response of this status ends with its head (RFC 9110 section 6.4.1).
pub fn has_no_body(status: u16) -> bool {
    matches!(status, 100..=199 | 204 | 304)
}

/// The length that is told, if any is. All lines, and all elements of one, must say the same (RFC 9110 section 8.6).
pub fn content_length(head: &Fields) -> Result<Option<u64>, FramingError> {
    let mut length = None;
    for line in head.all(Known::ContentLength) {
        for element in line.split(|&byte| byte == b',') {
            let told = parse_length(element.trim_ascii())?;
            if *length.get_or_insert(told) != told {
                return Err(FramingError::TwoLengths);
            }
        }
    }
    Ok(length)
}

fn parse_length(digits: &[u8]) -> Result<u64, FramingError> {
    if digits.is_empty() {
        return Err(FramingError::Length);
    }
    let add = |length: u64, &byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        length.checked_mul(10)?.checked_add(digit)
    };
    digits.iter().try_fold(0, add).ok_or(FramingError::Length)
}

const CHUNKED: &[u8] = b"chunked";

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::message::{HeadReader, Limits};

    const LIMITS: Limits = Limits { bytes: 10_000, lines: 100 };

    fn request(version: &str, lines: &str) -> Result<Framing, FramingError> {
        let mut buffer = BytesMut::from(format!("POST / {version}\r\nHost: a\r\n{lines}\r\n").as_bytes());
        Framing::of_request(&HeadReader::default().request(&mut buffer, LIMITS).unwrap().unwrap())
    }

    fn response(is_head: bool, status: &str, lines: &str) -> Result<Framing, FramingError> {
        let mut buffer = BytesMut::from(format!("{status}\r\n{lines}\r\n").as_bytes());
        Framing::of_response(is_head, &HeadReader::default().response(&mut buffer, LIMITS).unwrap().unwrap())
    }

    /// RFC 9112 section 6.3, and section 6.1 for requests that are of two minds.
    #[test]
    fn a_requests_framing() {
        use Framing::*;
        for (lines, expected) in [
            ("", Ok(None)),
            ("Content-Length: 0\r\n", Ok(Length(0))),
            ("content-LENGTH:4\r\n", Ok(Length(4))),
            ("Content-Length: 2, 2\r\n", Ok(Length(2))),
            ("Content-Length: 2\r\nContent-Length: 02\r\n", Ok(Length(2))),
            ("Content-Length: 18446744073709551615\r\n", Ok(Length(u64::MAX))),
            ("Content-Length: 18446744073709551616\r\n", Err(FramingError::Length)),
            ("Content-Length: 2\r\nContent-Length: 3\r\n", Err(FramingError::TwoLengths)),
            ("Content-Length: 2, 3\r\n", Err(FramingError::TwoLengths)),
            ("Content-Length: 2,\r\n", Err(FramingError::Length)),
            ("Content-Length:\r\n", Err(FramingError::Length)),
            ("Content-Length: +2\r\n", Err(FramingError::Length)),
            ("Content-Length: -2\r\n", Err(FramingError::Length)),
            ("Content-Length: 0x2\r\n", Err(FramingError::Length)),
            ("Content-Length: 2 2\r\n", Err(FramingError::Length)),
            ("Transfer-Encoding: chunked\r\n", Ok(Chunked)),
            ("Transfer-Encoding:\tChunked \r\n", Ok(Chunked)),
            ("Transfer-Encoding:\r\n", Err(FramingError::Coding)),
            ("Transfer-Encoding: xchunked\r\n", Err(FramingError::Coding)),
            ("Transfer-Encoding: \"chunked\"\r\n", Err(FramingError::Coding)),
            ("Transfer-Encoding: chunked;a=b\r\n", Err(FramingError::Coding)),
            ("Transfer-Encoding: gzip, chunked\r\n", Err(FramingError::Coding)),
            ("Transfer-Encoding: chunked, chunked\r\n", Err(FramingError::Coding)),
            ("Transfer-Encoding: chunked,\r\n", Err(FramingError::Coding)),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Err(FramingError::Coding)),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", Err(FramingError::Coding)),
            ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", Err(FramingError::LengthAndCoding)),
            ("Transfer-Encoding: chunked\r\nContent-Length: x\r\n", Err(FramingError::LengthAndCoding)),
        ] {
            assert_eq!(request("HTTP/1.1", lines), expected, "{lines}");
        }
        assert_eq!(request("HTTP/1.0", "Transfer-Encoding: chunked\r\n"), Err(FramingError::CodingInVersion));
        assert_eq!(request("HTTP/1.0", "Content-Length: 4\r\n"), Ok(Length(4)));
    }

    #[test]
    fn a_responses_framing() {
        use Framing::*;
        for (status, lines, expected) in [
            ("HTTP/1.1 200 OK", "", Ok(UntilClose)),
            ("HTTP/1.1 200 OK", "Content-Length: 4\r\n", Ok(Length(4))),
            ("HTTP/1.1 200 OK", "Content-Length: 4, 4\r\n", Ok(Length(4))),
            ("HTTP/1.1 200 OK", "Content-Length: 4\r\nContent-Length: 5\r\n", Err(FramingError::TwoLengths)),
            ("HTTP/1.1 200 OK", "Content-Length: x\r\n", Err(FramingError::Length)),
            ("HTTP/1.1 200 OK", "Content-Length: x\r\nTransfer-Encoding: chunked\r\n", Ok(Chunked)),
            ("HTTP/1.1 200 OK", "Transfer-Encoding: gzip, Chunked\r\n", Ok(Chunked)),
            ("HTTP/1.1 200 OK", "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", Ok(Chunked)),
            ("HTTP/1.1 200 OK", "Transfer-Encoding: chunked, identity\r\n", Ok(UntilClose)),
            ("HTTP/1.1 200 OK", "Transfer-Encoding: gzip\r\nContent-Length: 4\r\n", Ok(UntilClose)),
            ("HTTP/1.0 200 OK", "Transfer-Encoding: chunked\r\n", Ok(Chunked)),
            ("HTTP/1.1 100 Continue", "Content-Length: 4\r\n", Ok(None)),
            ("HTTP/1.1 204 No Content", "Transfer-Encoding: chunked\r\n", Ok(None)),
            ("HTTP/1.1 304 Not Modified", "Content-Length: 4\r\n", Ok(None)),
            ("HTTP/1.1 205 Reset Content", "Content-Length: 0\r\n", Ok(Length(0))),
        ] {
            assert_eq!(response(false, status, lines), expected, "{status}, {lines}");
            assert_eq!(response(true, status, lines), Ok(None), "{status}, {lines}");
        }
    }
}
