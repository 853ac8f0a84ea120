//! The name that a request asks for, and the frontend keys it may match.

use std::borrow::Cow;

/// A request's host: ASCII-lower-cased, without the trailing dot of a fully qualified name, with its port if one was sent.
///
/// Borrows from the header unless the client used capitals or a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host<'a> {
    full: Cow<'a, str>,
    name_len: usize,
}

/// Why a `Host` header cannot be a host (RFC 9110 section 7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// A byte that neither a name, an address nor a port may contain.
    #[error("the host contains an illegal character")]
    Character,
    /// Something other than digits follows the colon.
    #[error("the host has a malformed port")]
    Port,
}

impl<'a> Host<'a> {
    /// Parses the value of a `Host` header, or the authority of an absolute-form target. The empty string is allowed: it
    /// matches no name but the catch-all.
    pub fn parse(value: &'a str) -> Result<Self, HostError> {
        if !value.bytes().all(is_host_byte) {
            return Err(HostError::Character);
        }
        let name_len = match value.strip_prefix('[').and_then(|rest| rest.find(']')) {
            Some(end) => end + 2,
            None => value.find(':').unwrap_or(value.len()),
        };
        let (name, port) = value.split_at(name_len);
        let digits = port.strip_prefix(':').unwrap_or(port);
        if digits.len() == port.len() && !port.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(HostError::Port);
        }
        let stripped = name.strip_suffix('.').unwrap_or(name);
        let full = if stripped.len() != name.len() {
            Cow::Owned(format!("{stripped}{port}").to_ascii_lowercase())
        } else if value.bytes().any(|b| b.is_ascii_uppercase()) {
            Cow::Owned(value.to_ascii_lowercase())
        } else {
            Cow::Borrowed(value)
        };
        Ok(Self { full, name_len: stripped.len() })
    }

    /// The host as a frontend key names it: `name` or `name:port`.
    pub fn full(&self) -> &str {
        &self.full
    }

    /// The name or address without the port.
    pub fn name(&self) -> &str {
        &self.full[..self.name_len]
    }

    /// What follows `*.` in each wildcard key to try, most specific first (contract: Hipache's rule). A name of more than
    /// six labels is first cut to its last six, so there are at most five.
    pub fn wildcard_suffixes(&self) -> impl Iterator<Item = &str> {
        let name = self.name();
        let mut rest = name;
        let surplus = name.bytes().filter(|&b| b == b'.').count().saturating_sub(MAX_LABELS - 1);
        for _ in 0..surplus {
            rest = parent(rest).unwrap_or(rest);
        }
        std::iter::successors(parent(rest), |name| parent(name))
    }
}

fn parent(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, rest)| rest)
}

/// RFC 3986 `host` and `port` characters: unreserved, sub-delims, percent, and the brackets and colons of addresses.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%:[]".contains(&byte)
}

/// Names longer than this many labels are cut before wildcards are tried, which bounds the look-ups of a hostile name.
const MAX_LABELS: usize = 6;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn suffixes(value: &str) -> Vec<String> {
        Host::parse(value).unwrap().wildcard_suffixes().map(str::to_owned).collect()
    }

    #[test]
    fn case_and_trailing_dot_do_not_matter() {
        let host = Host::parse("WWW.Example.COM.:8080").unwrap();
        assert_eq!(host.full(), "www.example.com:8080");
        assert_eq!(host.name(), "www.example.com");
    }

    #[test]
    fn an_ordinary_host_is_borrowed() {
        assert!(matches!(Host::parse("example.com:80").unwrap().full, Cow::Borrowed(_)));
    }

    #[test]
    fn addresses_keep_their_brackets() {
        let host = Host::parse("[::1]:8080").unwrap();
        assert_eq!((host.full(), host.name()), ("[::1]:8080", "[::1]"));
        assert_eq!(Host::parse("[::1]").unwrap().name(), "[::1]");
    }

    #[test]
    fn wildcards_drop_one_label_at_a_time() {
        assert_eq!(suffixes("www.example.com:80"), ["example.com", "com"]);
        assert!(suffixes("localhost").is_empty());
        assert!(suffixes("").is_empty());
    }

    #[test]
    fn wildcards_stop_at_five_levels() {
        assert_eq!(suffixes("a.b.c.d.e.f"), ["b.c.d.e.f", "c.d.e.f", "d.e.f", "e.f", "f"]);
        assert_eq!(suffixes("x.y.z.a.b.c.d.e.f"), ["b.c.d.e.f", "c.d.e.f", "d.e.f", "e.f", "f"]);
    }

    #[test]
    fn junk_is_refused() {
        assert_eq!(Host::parse("a b"), Err(HostError::Character));
        assert_eq!(Host::parse("user@host"), Err(HostError::Character));
        assert_eq!(Host::parse("a/b"), Err(HostError::Character));
        assert_eq!(Host::parse("host:80x"), Err(HostError::Port));
        assert_eq!(Host::parse("[::1]80"), Err(HostError::Port));
    }

    proptest! {
        #[test]
        fn parsing_is_idempotent_and_never_panics(value in "\\PC{0,40}") {
            if let Ok(host) = Host::parse(&value) {
                // A second trailing dot is a different, equally unknown, name; one is dropped at a time.
                prop_assume!(!host.name().ends_with('.'));
                let again = Host::parse(host.full()).unwrap();
                prop_assert_eq!(again.full(), host.full());
                prop_assert_eq!(again.name(), host.name());
            }
        }

        #[test]
        fn every_suffix_is_a_proper_suffix_of_the_name(value in "[a-z.]{0,60}") {
            let host = Host::parse(&value).unwrap();
            let all: Vec<_> = host.wildcard_suffixes().collect();
            prop_assert!(all.len() <= 5);
            for suffix in all {
                let dotted = format!(".{suffix}");
                prop_assert!(host.name().ends_with(&dotted));
            }
        }
    }
}
