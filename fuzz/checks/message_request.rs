//! A request's head is read alike in whatever pieces it comes, is within its limits, and has one meaning: what a lenient
//! parser makes of the same bytes is the same.

use bytes::BytesMut;
use planb::message::{Framing, HeadReader, Limits, Opening, ParseError, RequestHead, Target};

const LIMITS: Limits = Limits { bytes: 2_048, lines: 30 };

/// Reads these bytes.
pub fn check(bytes: &[u8]) {
    let whole = read(bytes, bytes.len().max(1));
    for step in [1, 7] {
        let pieces = read(bytes, step);
        assert_eq!(whole.is_err(), pieces.is_err(), "in pieces of {step}");
        if let (Ok(Some((one, left))), Ok(Some((other, also_left)))) = (&whole, &pieces) {
            assert_eq!((left, one.method(), one.target()), (also_left, other.method(), other.target()));
            assert!(one.lines().eq(other.lines()));
        }
    }
    let Ok(Some((head, left))) = whole else { return };
    assert!(head.byte_len() <= LIMITS.bytes && head.len() <= LIMITS.lines);
    assert!(!head.method().is_empty() && !head.target().is_empty());
    for line in head.lines() {
        assert!(!line.name.is_empty() && line.value.trim_ascii() == line.value);
        assert!(!line.value.iter().any(|&byte| byte < b' ' && byte != b'\t' || byte == 0x7F));
        assert_eq!(head.value_bytes(line.value), line.value);
    }
    let opening = Opening::of(&head);
    if let Ok(target) = Target::of(&head, opening.as_ref()) {
        let asked = target.parts().concat();
        assert!(asked.starts_with(b"/") || asked == b"*");
        assert!(asked.starts_with(target.path()));
        let _ = target.host(&head);
    }
    let _ = Framing::of_request(&head);
    as_another_reads_it(&head, bytes, left);
}

fn read(bytes: &[u8], step: usize) -> Result<Option<(RequestHead, usize)>, ParseError> {
    let (mut reader, mut buffer, mut arrived) = (HeadReader::default(), BytesMut::new(), 0);
    for piece in bytes.chunks(step) {
        buffer.extend_from_slice(piece);
        arrived += piece.len();
        if let Some(head) = reader.request(&mut buffer, LIMITS)? {
            return Ok(Some((head, bytes.len() - arrived + buffer.len())));
        }
        assert!(buffer.len() <= LIMITS.bytes);
    }
    Ok(None)
}

fn as_another_reads_it(head: &RequestHead, bytes: &[u8], left: usize) {
    if std::str::from_utf8(head.target()).is_err() {
        return;
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut other = httparse::Request::new(&mut headers);
    assert_eq!(other.parse(bytes), Ok(httparse::Status::Complete(bytes.len() - left)));
    assert_eq!((other.method, other.path.map(str::as_bytes)), (Some(head.method()), Some(head.target())));
    let others = other.headers.iter().map(|line| (line.name.as_bytes(), line.value));
    assert!(others.eq(head.lines().map(|line| (line.name, line.value))));
}
