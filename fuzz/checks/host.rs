//! A host is either refused or read into a form that stays as it is, with few and proper wildcard suffixes.

use planb::routing::Host;

/// Reads these bytes.
pub fn check(bytes: &[u8]) {
    let Ok(value) = std::str::from_utf8(bytes) else { return };
    let Ok(host) = Host::parse(value) else { return };
    assert!(host.full().starts_with(host.name()));
    assert!(host.full().len() <= value.len());
    assert!(!host.full().bytes().any(|byte| byte.is_ascii_uppercase()));
    let suffixes: Vec<_> = host.wildcard_suffixes().collect();
    assert!(suffixes.len() <= 5);
    for pair in suffixes.windows(2) {
        assert_eq!(pair[0].split_once('.').map(|(_, rest)| rest), Some(pair[1]));
    }
    for suffix in suffixes {
        assert!(host.name().strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.')));
    }
    // One trailing dot is dropped at a time, so a name that has another is not yet in its last form.
    if !host.name().ends_with('.') {
        assert_eq!(Host::parse(host.full()).as_ref(), Ok(&host));
    }
}
