//! Which bytes may stand where.

/// Whether these bytes may be a header's value or a reason phrase (RFC 9110 section 5.5).
pub fn is_text(bytes: &[u8]) -> bool {
    count(bytes, |byte| byte < b' ' && byte != b'\t' || byte == DELETE) == 0
}

/// Whether these bytes are a token (RFC 9110 section 5.6.2).
pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&byte| is_token_byte(byte))
}

pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

pub(super) fn is_never_in_request_line(byte: u8) -> bool {
    byte < b' ' || byte == DELETE || byte == b'#'
}

/// How many bytes are such. All are looked at, which lets the compiler compare many at once.
pub(super) fn count(bytes: &[u8], is_such: impl Fn(u8) -> bool) -> usize {
    bytes.iter().filter(|&&byte| is_such(byte)).count()
}

pub(super) const DELETE: u8 = 0x7F;
