//! What the Redis keys and messages mean. Pure: text in, types out, and back.

use std::time::Duration;

use bytes::Bytes;

/// The names of frontend lists: `frontend:<host>`.
pub const FRONTEND_PREFIX: &str = "frontend:";
/// The names of dead sets: `dead:<host>`.
pub const DEAD_PREFIX: &str = "dead:";
/// The names of the hashes that say what a healthy response is: `healthcheck:<host>`.
pub const HEALTHCHECK_PREFIX: &str = "healthcheck:";
/// The names of certificates' hashes: `tls:<name>`.
pub const CERTIFICATE_PREFIX: &str = "tls:";
/// The fields of a certificate's hash: the PEM chain, and the PEM key.
pub const CERTIFICATE_FIELDS: [&str; 2] = ["certificate", "key"];
/// The hash of the keys of session tickets, which instances share.
pub const TICKETS_KEY: &str = "planb:tickets";
/// A list, a set and a hash that mean nothing, and are changed for the sake of the events. They look like dead sets because those are
/// followed and may be written; but no host has a slash, and what is no set marks no backend.
pub const PROBE_KEYS: [&str; 3] = ["dead:/planb/list", "dead:/planb/set", "dead:/planb/hash"];
/// The channel on which instances tell one another of backends they marked dead.
pub const DEAD_CHANNEL: &str = "dead";

/// What a changed key concerns; `None` for keys that are none of ours.
pub fn subject_of_key(key: &str) -> Option<Change> {
    let change = |rest: &str, change: fn(String) -> Change| Some(change(rest.to_owned()));
    if let Some(host) = key.strip_prefix(FRONTEND_PREFIX) {
        return change(host, Change::Host);
    }
    if let Some(name) = key.strip_prefix(DEAD_PREFIX) {
        return change(name, Change::DeadKey);
    }
    change(key.strip_prefix(CERTIFICATE_PREFIX)?, Change::Certificate)
}

/// The lease of a backend's active health check.
pub fn lease_key(host: &str, url: &str) -> String {
    format!("{DEAD_PREFIX}{host}:{url}")
}

/// A hint from Redis that something may have changed. Never more than a hint: the same command gives different events on a
/// master and on a replica, so the key is always read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `frontend:<host>`.
    Host(String),
    /// `frontend:<host>`, which has been deleted or has expired.
    Removal(String),
    /// `dead:<host>`, or a lease, `dead:<host>:<backend url>`. Both parts of a lease may contain colons, so only who knows
    /// the frontends can tell.
    DeadKey(String),
    /// `tls:<name>`.
    Certificate(String),
    /// A backend was marked dead.
    Notice(DeadNotice),
    /// A message on the channel `dead` that is none.
    Junk,
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
    /// The backend's URL, in whatever spelling.
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
    fn keys_name_their_subject() {
        assert_eq!(subject_of_key("frontend:a:80"), Some(Change::Host("a:80".to_owned())));
        assert_eq!(subject_of_key("dead:*.a"), Some(Change::DeadKey("*.a".to_owned())));
        assert_eq!(subject_of_key(&lease_key("a:80", "http://b")), Some(Change::DeadKey("a:80:http://b".to_owned())));
        assert_eq!(subject_of_key("tls:a"), Some(Change::Certificate("a".to_owned())));
        assert_eq!(subject_of_key("frontend"), None);
        assert_eq!(subject_of_key("healthcheck:a"), None);
    }

    #[test]
    fn probe_keys_are_heard_of_with_the_dead_sets() {
        for key in PROBE_KEYS {
            assert!(matches!(subject_of_key(key), Some(Change::DeadKey(name)) if name.contains('/')), "{key}");
        }
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
