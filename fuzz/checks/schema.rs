//! What other instances and operators write into Redis is read without panic, and without loss.

use bytes::Bytes;
use planb::store::{DeadNotice, DeadSet};

/// Reads these bytes.
pub fn check(bytes: &[u8]) {
    notice(bytes);
    dead_set(bytes);
}

/// The bytes as a message on the channel `dead`.
fn notice(bytes: &[u8]) {
    let Ok(payload) = std::str::from_utf8(bytes) else { return };
    if let Some(notice) = DeadNotice::decode(payload) {
        assert!(!notice.host.contains(';'));
        assert_eq!(DeadNotice::decode(&notice.encode()).as_ref(), Some(&notice));
    }
}

/// The bytes as a PTTL and the members of a dead set, one per line.
fn dead_set(bytes: &[u8]) {
    let Some((pttl, lines)) = bytes.split_first_chunk() else { return };
    let pttl = i64::from_be_bytes(*pttl);
    let members: Vec<_> = lines.split(|&byte| byte == b'\n').map(Bytes::copy_from_slice).collect();
    let set = DeadSet::from_members(&members, pttl);
    assert_eq!(set.indexes.len() + set.malformed, members.len());
    assert_eq!(set.ttl.is_some(), pttl >= 0);
}
