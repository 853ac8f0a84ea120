//! How lines are written.

use bytes::BytesMut;

use crate::message::{
    framing::Framing,
    head::{Fields, Line, Place},
};

/// Writes the lines that pass. Neighbours that are spelt as we would are copied in one piece.
pub(super) fn put_passing(out: &mut BytesMut, head: &Fields, passes: impl Fn(&Line<'_>) -> bool) {
    let buffer = &head.buffer[..];
    let mut piece = 0..0;
    for (line, place) in head.lines().zip(head.places()) {
        if !passes(&line) {
            continue;
        }
        let start = place.name.start as usize;
        match end_as_spelt(buffer, place) {
            Some(end) if piece.end == start => piece.end = end,
            Some(end) => {
                out.extend_from_slice(&buffer[piece]);
                piece = start..end;
            }
            None => {
                out.extend_from_slice(&buffer[piece]);
                piece = 0..0;
                put_line(out, line.name, line.value);
            }
        }
    }
    out.extend_from_slice(&buffer[piece]);
}

pub(super) fn put_framing(out: &mut BytesMut, framing: Framing) {
    match framing {
        Framing::Length(length) => {
            out.extend_from_slice(b"Content-Length: ");
            put_decimal(out, length);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Framing::None | Framing::UntilClose => {}
    }
}

pub(super) fn put_line(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    put(out, &[name, b": ", value, b"\r\n"]);
}

pub(super) fn put_joined<'a>(out: &mut BytesMut, values: impl Iterator<Item = &'a [u8]>, separator: &[u8]) {
    for (index, value) in values.enumerate() {
        put(out, &[if index == 0 { b"" } else { separator }, value]);
    }
}

pub(super) fn put_decimal(out: &mut BytesMut, number: u64) {
    let mut digits = [0; LONGEST_NUMBER];
    let mut start = LONGEST_NUMBER;
    let mut left = number;
    loop {
        start -= 1;
        digits[start] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

pub(super) fn put(out: &mut BytesMut, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Where a line ends, if it is spelt as we would.
fn end_as_spelt(buffer: &[u8], place: &Place) -> Option<usize> {
    let separator = buffer.get(place.name.end as usize..place.value.start as usize)?;
    let end = place.value.end as usize;
    (separator == b": " && buffer.get(end..end + 2)? == b"\r\n").then_some(end + 2)
}

pub(super) const UPGRADE: &[u8] = b"Connection: Upgrade\r\nUpgrade: websocket\r\n";

/// Room for what we add to a head, in bytes.
pub(super) const OUR_LINES: usize = 512;

/// The digits of a number of 64 bits.
const LONGEST_NUMBER: usize = 20;
