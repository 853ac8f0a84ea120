//! What `Connection` says, and which lines are about one connection (RFC 9110 section 7.6.1).

use smallvec::SmallVec;

use crate::message::{
    head::{Fields, Version},
    known::Known,
};

/// Whether the sender of this head keeps its connection open after the message (RFC 9112 section 9.3).
pub fn keeps_alive(version: Version, head: &Fields) -> bool {
    if !head.has(Known::Connection) {
        return version != Version::Http10;
    }
    !head.lists(Known::Connection, b"close")
        && (version != Version::Http10 || head.lists(Known::Connection, b"keep-alive"))
}

/// The headers that `Connection` names (RFC 9110 section 7.6.1), apart from those that never pass anyway.
#[derive(Default)]
pub(super) struct ConnectionOptions<'a>(SmallVec<[&'a [u8]; 4]>);

impl<'a> ConnectionOptions<'a> {
    pub(super) fn of(head: &'a Fields) -> Self {
        if !head.has(Known::Connection) {
            return Self::default();
        }
        let is_a_name = |option: &&[u8]| {
            let known = Known::of(option);
            known != Known::Host && !is_hop_by_hop(known) && !option.eq_ignore_ascii_case(b"close")
        };
        let mut names: SmallVec<[&[u8]; 4]> = head.elements(Known::Connection).filter(is_a_name).collect();
        // Neither side of a connection may keep us busy with a long list.
        if names.len() > FEW {
            names.sort_unstable_by(|one, other| compare(one, other));
        }
        Self(names)
    }

    pub(super) fn name(&self, name: &[u8]) -> bool {
        if self.0.len() > FEW {
            self.0.binary_search_by(|option| compare(option, name)).is_ok()
        } else {
            self.0.iter().any(|option| option.eq_ignore_ascii_case(name))
        }
    }
}

/// Whether a header is about a connection (RFC 9110 section 7.6.1). `Trailer` is not: trailers are passed on.
pub(super) fn is_hop_by_hop(known: Known) -> bool {
    matches!(
        known,
        Known::Connection
            | Known::KeepAlive
            | Known::ProxyAuthenticate
            | Known::ProxyAuthorization
            | Known::ProxyConnection
            | Known::Te
            | Known::TransferEncoding
            | Known::Upgrade
    )
}

/// Orders names, whatever their case.
fn compare(one: &[u8], other: &[u8]) -> std::cmp::Ordering {
    one.iter().map(u8::to_ascii_lowercase).cmp(other.iter().map(u8::to_ascii_lowercase))
}

/// A list of so many names is searched from its beginning.
const FEW: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::headers::samples::request;

    /// RFC 9112 section 9.3.
    #[test]
    fn a_connection_is_kept_as_its_sender_says() {
        for (version, lines, expected) in [
            (Version::Http11, "", true),
            (Version::Http11, "Connection: close\r\n", false),
            (Version::Http11, "Connection: x, CLOSE\r\nConnection: keep-alive\r\n", false),
            (Version::Http11, "Connection: x\r\n", true),
            (Version::Http10, "", false),
            (Version::Http10, "Connection: Keep-Alive\r\n", true),
            (Version::Http10, "Connection: keep-alive, close\r\n", false),
        ] {
            assert_eq!(keeps_alive(version, &request(lines)), expected, "{version:?} {lines}");
        }
    }
}
