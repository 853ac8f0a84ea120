//! A snapshot file is refused, or read into what would be written again as it is. The checksum stops whatever is not written by us; so
//! the bytes are read once more with one that fits.

use planb::sync::Saved;

/// Reads these bytes.
pub fn check(bytes: &[u8]) {
    // With a sum that fits by chance, a snapshot would be read.
    assert!(Saved::of(bytes).is_err() || bytes.starts_with(b"planb snapshot 1\n"));
    let Ok(saved) = Saved::of(&Saved::sealed(bytes)) else { return };
    let content = saved.content().expect("it can be written");
    assert_eq!(Saved::of(&Saved::sealed(&content)).expect("it can be read"), saved);
}
