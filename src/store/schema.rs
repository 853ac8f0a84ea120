//! What the Redis keys and messages mean. Pure: text in, types out, and back.

use std::time::Duration;

use bytes::Bytes;

/// The names of frontend lists: `frontend:<host>`.
pub const FRONTEND_PREFIX: &str = "frontend:";
/// The names of dead sets: `dead:<host>`.
pub const DEAD_PREFIX: &str = "dead:";
/// The names of certificates' hashes: `tls:<name>`.
pub const CERTIFICATE_PREFIX: &str = "tls:";
/// The fields of a certificate's hash: the PEM chain, and the PEM key.
pub const CERTIFICATE_FIELDS: [&str; 2] = ["certificate", "key"];
/// The hash of the keys of session tickets, which instances share.
pub const TICKETS_KEY: &str = "planb:tickets";
/// The channel on which instances tell one another of backends they marked dead.
pub const DEAD_CHANNEL: &str = "dead";

/// The host that a changed key concerns, as the key spells it; `None` for keys that are none of ours. Leases of the
/// active health check (`dead:<host>:<url>`) give a name that no frontend has, and reading it finds nothing.
pub fn host_of_key(key: &str) -> Option<&str> {
    key.strip_prefix(FRONTEND_PREFIX).or_else(|| key.strip_prefix(DEAD_PREFIX))
}

/// What a frontend key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum List {
    /// The list's elements: the identifier, then the backends. Empty when there is no such key.
    Elements(Vec<Bytes>),
    /// The key exists but is no list.
    WrongType,
}

/// What a dead key holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadSet {
    /// The indexes in the set, without members that are no index. Empty when there is no such key, or it is no set.
    pub indexes: Vec<usize>,
    /// How many members were no index.
    pub malformed: usize,
    /// How long the key has to live (PTTL); `None` when it does not expire.
    pub ttl: Option<Duration>,
}

/// What Redis says about one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The host as its keys spell it.
    pub host: String,
    /// `frontend:<host>`; `None` if it was not read.
    pub list: Option<List>,
    /// `dead:<host>`; `None` if it was not read.
    pub dead: Option<DeadSet>,
}

/// What Redis has of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRecord {
    /// The name as its key spells it.
    pub name: String,
    /// `tls:<name>`.
    pub hash: CertificateHash,
}

/// What a certificate's key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateHash {
    /// Neither of the fields; or there is no such key.
    Absent,
    /// The key exists but is no hash.
    WrongType,
    /// At least one of the fields; a missing one is empty.
    Fields {
        /// The PEM chain.
        certificate: Bytes,
        /// The PEM key.
        key: Bytes,
    },
}

impl DeadSet {
    /// Reads the members of a dead set and its PTTL in milliseconds (negative when it does not expire).
    pub fn from_members(members: &[Bytes], pttl: i64) -> Self {
        let indexes: Vec<usize> =
            members.iter().filter_map(|member| std::str::from_utf8(member).ok()?.parse().ok()).collect();
        Self {
            malformed: members.len() - indexes.len(),
            indexes,
            ttl: u64::try_from(pttl).ok().map(Duration::from_millis),
        }
    }
}

/// A backend that failed: the payload of a message on the channel `dead`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadNotice {
    /// The frontend's host, as its key spells it.
    pub host: String,
    /// The backend's URL, as the list has it.
    pub url: String,
    /// Its index when it was marked.
    pub index: usize,
    /// How many backends the list had then.
    pub backends: usize,
}

impl DeadNotice {
    /// `<host>;<backend url>;<index>;<number of backends>`.
    pub fn encode(&self) -> String {
        format!("{};{};{};{}", self.host, self.url, self.index, self.backends)
    }

    /// Reads a payload. URLs may contain semicolons, hosts and numbers may not. `None` for anything else.
    pub fn decode(payload: &str) -> Option<Self> {
        let (host, rest) = payload.split_once(';')?;
        let (rest, backends) = rest.rsplit_once(';')?;
        let (url, index) = rest.rsplit_once(';')?;
        Some(Self {
            host: host.to_owned(),
            url: url.to_owned(),
            index: index.parse().ok()?,
            backends: backends.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_name_their_host() {
        assert_eq!(host_of_key("frontend:a:80"), Some("a:80"));
        assert_eq!(host_of_key("dead:*.a"), Some("*.a"));
        assert_eq!(host_of_key("tls:a"), None);
        assert_eq!(host_of_key("frontend"), None);
    }

    #[test]
    fn junk_members_are_counted_and_left_out() {
        let members = ["0", "x", "-1", "7", "99999999999999999999"].map(Bytes::from);
        let set = DeadSet::from_members(&members, 1500);
        assert_eq!(set, DeadSet { indexes: vec![0, 7], malformed: 3, ttl: Some(Duration::from_millis(1500)) });
        assert_eq!(DeadSet::from_members(&[Bytes::from_static(b"\xff")], -1).malformed, 1);
    }

    #[test]
    fn a_key_without_expiry_has_no_ttl() {
        assert_eq!(DeadSet::from_members(&[], -1).ttl, None);
        assert_eq!(DeadSet::from_members(&[], 0).ttl, Some(Duration::ZERO));
    }

    #[test]
    fn junk_messages_are_refused() {
        for payload in ["", "a", "a;b", "a;b;1", "a;b;x;1", "a;b;1;x"] {
            assert_eq!(DeadNotice::decode(payload), None, "{payload}");
        }
    }

    proptest! {
        #[test]
        fn notices_survive_the_journey(host in "[^;]{0,20}", url in "\\PC{0,30}", index in any::<usize>(), backends in any::<usize>()) {
            let notice = DeadNotice { host, url, index, backends };
            prop_assert_eq!(DeadNotice::decode(&notice.encode()), Some(notice));
        }

        #[test]
        fn decoding_never_panics(payload in "\\PC{0,60}") {
            DeadNotice::decode(&payload);
        }
    }
}
