//! The URL of a backend is refused, or says where to connect; written from what it says, it says the same.

use planb::routing::{Endpoint, Origin};

/// Reads these bytes.
pub fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(origin) = Origin::parse(&text) else {
        assert!(Endpoint::parse(&text).is_err());
        return;
    };
    assert_ne!(origin.port, 0);
    let endpoint = Endpoint::parse(&text).expect("it is one");
    assert_eq!(endpoint.origin(), &origin);
    assert!(endpoint.url() == text.trim_ascii() && endpoint.url().contains(endpoint.address()));
    assert!(endpoint.url().contains(endpoint.path()));
    assert_eq!(Origin::parse(&origin.to_string()).as_ref(), Ok(&origin), "{origin}");
}
