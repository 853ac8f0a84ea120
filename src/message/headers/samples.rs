//! Heads for the tests, and what of them was written.

use bytes::BytesMut;

use crate::message::{HeadReader, Limits, RequestHead, ResponseHead};

pub(super) const LIMITS: Limits = Limits { bytes: 1_000_000, lines: 1_000 };

pub(super) fn request(lines: &str) -> RequestHead {
    let text = format!("GET /a?b HTTP/1.1\r\nHost: a.test\r\n{lines}\r\n");
    HeadReader::default().request(&mut BytesMut::from(text.as_bytes()), LIMITS).unwrap().unwrap()
}

pub(super) fn response(status: &str, lines: &str) -> ResponseHead {
    let text = format!("HTTP/1.1 {status}\r\n{lines}\r\n");
    HeadReader::default().response(&mut BytesMut::from(text.as_bytes()), LIMITS).unwrap().unwrap()
}

/// The values of all lines of this name, in any case.
pub(super) fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let lines = head.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
    lines.filter(|(written, _)| written.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}
