//! Heads that come from elsewhere than a reader: from HTTP/2, or from ourselves.

use std::rc::Rc;

use bytes::{BufMut, BytesMut};
use smallvec::SmallVec;

use super::{
    head::{Fields, LONGEST, Place, RequestHead, ResponseHead, Span, Version},
    known::Known,
    parse::{ParseError, check_target, is_text, is_token},
};

/// Builds a head, all of it in one buffer, whose first line is this.
#[derive(Debug)]
pub struct HeadBuilder<F> {
    lines: LinesBuilder,
    first: F,
}

/// Builds the head of a request.
pub type RequestHeadBuilder = HeadBuilder<RequestFirst>;

/// Builds the head of a response.
pub type ResponseHeadBuilder = HeadBuilder<ResponseFirst>;

/// A request's first line, and what HTTP/2 says beside it.
#[derive(Debug)]
pub struct RequestFirst {
    version: Version,
    method: Span,
    target: Span,
    protocol: Option<Span>,
}

/// A response's first line.
#[derive(Debug)]
pub struct ResponseFirst {
    version: Version,
    status: u16,
    reason: Span,
}

impl<F> HeadBuilder<F> {
    /// Adds a line.
    pub fn line(mut self, name: &[u8], value: &[u8]) -> Self {
        self.push(name, value);
        self
    }

    /// Adds a line.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.lines.push(name, value);
    }

    /// Adds a line whose name a library keeps in small letters, as most servers write it: a capital at the beginning and behind
    /// each hyphen.
    pub fn push_capitalised(&mut self, name: &str, value: &[u8]) {
        self.lines.push(&capitalised(name), value);
    }
}

impl RequestHeadBuilder {
    /// With the target as HTTP/1.1 would have it.
    pub fn new(version: Version, method: &[u8], target: &[u8]) -> Self {
        Self::begin(version, method, &[target])
    }

    /// With what HTTP/2 tells in parts (RFC 9113 section 8.3.1). The target takes the absolute form, so that the authority is
    /// compared with `Host` as it is for HTTP/1.1.
    pub fn from_parts(version: Version, method: &[u8], scheme: &[u8], authority: &[u8], path: &[u8]) -> Self {
        let path = if path == b"*" { b"" } else { path };
        Self::begin(version, method, &[scheme, b"://", authority, path])
    }

    fn begin(version: Version, method: &[u8], target: &[&[u8]]) -> Self {
        let mut lines = LinesBuilder::default();
        let method = lines.put(&[method]);
        lines.buffer.put_u8(b' ');
        let target = lines.put(target);
        lines.put(&[b"\r\n"]);
        if !is_token(method.of(&lines.buffer)) {
            lines.error = Some(ParseError::Method);
        } else if let Err(error) = check_target(target.of(&lines.buffer)) {
            lines.error = Some(error);
        }
        Self { lines, first: RequestFirst { version, method, target, protocol: None } }
    }

    /// The protocol that an extended CONNECT asks for (RFC 8441).
    pub fn protocol(mut self, protocol: &[u8]) -> Self {
        let span = self.lines.put(&[protocol]);
        self.lines.put(&[b"\r\n"]);
        self.first.protocol = Some(span);
        self
    }

    /// The head; an error if a part of it cannot stand in one.
    pub fn build(self) -> Result<RequestHead, ParseError> {
        let RequestFirst { version, method, target, protocol } = self.first;
        Ok(RequestHead { fields: self.lines.build()?, method, target, protocol, version })
    }
}

impl ResponseHeadBuilder {
    /// With the reason phrase that goes with the status, if any does.
    pub fn new(version: Version, status: u16) -> Self {
        let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let mut lines = LinesBuilder::default();
        if !(100..=999).contains(&status) {
            lines.error = Some(ParseError::Status);
        }
        let reason = lines.put(&[reason.unwrap_or_default().as_bytes()]);
        lines.put(&[b"\r\n"]);
        Self { lines, first: ResponseFirst { version, status, reason } }
    }

    /// The head; an error if a part of it cannot stand in one.
    pub fn build(self) -> Result<ResponseHead, ParseError> {
        let ResponseFirst { version, status, reason } = self.first;
        Ok(ResponseHead { fields: self.lines.build()?, version, status, reason })
    }
}

#[derive(Debug, Default)]
struct LinesBuilder {
    buffer: BytesMut,
    places: SmallVec<[Place; 16]>,
    /// The first thing that was wrong.
    error: Option<ParseError>,
}

impl LinesBuilder {
    /// Writes these parts after one another.
    fn put(&mut self, parts: &[&[u8]]) -> Span {
        let start = self.buffer.len();
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length > LONGEST - start {
            self.error.get_or_insert(ParseError::TooLong);
            return Span::new(start, start);
        }
        for part in parts {
            self.buffer.extend_from_slice(part);
        }
        Span::new(start, start + length)
    }

    fn push(&mut self, name: &[u8], value: &[u8]) {
        let value = value.trim_ascii();
        if !is_token(name) {
            self.error.get_or_insert(ParseError::Name);
        } else if !is_text(value) {
            self.error.get_or_insert(ParseError::Value);
        }
        let known = Known::of(name);
        let name = self.put(&[name]);
        self.put(&[b": "]);
        let value = self.put(&[value]);
        self.put(&[b"\r\n"]);
        self.places.push(Place { name, value, known });
    }

    fn build(self) -> Result<Fields, ParseError> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(Fields::new(self.buffer.freeze(), Rc::from(&self.places[..]))),
        }
    }
}

fn capitalised(name: &str) -> SmallVec<[u8; 32]> {
    let mut begins = true;
    let capitalise = |byte: u8| {
        let shown = if begins { byte.to_ascii_uppercase() } else { byte };
        begins = byte == b'-';
        shown
    };
    name.bytes().map(capitalise).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_stand_in_a_head_is_not_built_into_one() {
        let request = |method: &[u8], target: &[u8], name: &[u8], value: &[u8]| {
            RequestHeadBuilder::new(Version::Http2, method, target).line(name, value).build().map(drop)
        };
        assert_eq!(request(b"GET", b"/\xE9", b"a", b"\xE9\t b"), Ok(()));
        for (error, built) in [
            (ParseError::Method, request(b"GE T", b"/", b"a", b"b")),
            (ParseError::Method, request(b"", b"/", b"a", b"b")),
            (ParseError::Target, request(b"GET", b"", b"a", b"b")),
            (ParseError::Target, request(b"GET", b"/ HTTP/1.1\r\n", b"a", b"b")),
            (ParseError::Name, request(b"GET", b"/", b":path", b"b")),
            (ParseError::Name, request(b"GET", b"/", b"", b"b")),
            (ParseError::Value, request(b"GET", b"/", b"a", b"b\r\nc: d")),
            (ParseError::Value, request(b"GET", b"/", b"a", b"b\0")),
        ] {
            assert_eq!(built, Err(error));
        }
        assert_eq!(ResponseHeadBuilder::new(Version::Http11, 99).build().map(drop), Err(ParseError::Status));
    }

    #[test]
    fn a_built_head_reads_like_any_other() {
        let builder = RequestHeadBuilder::from_parts(Version::Http2, b"GET", b"https", b"a.test", b"/a");
        let head = builder.line(b"cookie", b" a=1 ").line(b"x-own", b"").build().unwrap();
        assert_eq!((head.method(), head.target(), head.len()), ("GET", &b"https://a.test/a"[..], 2));
        assert_eq!((head.first(Known::Cookie), head.named(b"X-Own").next()), (Some(&b"a=1"[..]), Some(&b""[..])));
        let value = head.value_bytes(head.first(Known::Cookie).unwrap());
        assert_eq!(value.as_ptr(), head.first(Known::Cookie).unwrap().as_ptr());
        assert_eq!(head.value_bytes(b"elsewhere"), "elsewhere");
    }
}
