//! Whatever a client sends as cookies, they name no backend but by the pair that it was given, wherever among others that stands.

use std::sync::Arc;

use planb::{
    proxy::Sticky,
    routing::{Backend, Choice, Frontend, Slot},
    secret::Secret,
};

/// Reads these bytes, a line of `Cookie` each.
pub fn check(bytes: &[u8]) {
    let backend = Arc::new(Backend::parse("http://10.0.0.1:8080").expect("it is one"));
    let frontend = Frontend::new("host", "id", vec![Slot { index: 0, backend }], 1).expect("it has a backend");
    let sticky = Sticky::new(&Secret("a secret".to_owned()));
    let choice = Choice::of(&frontend.slots()[0]);
    let cookie = sticky.cookie(&frontend, &choice, None, "http").expect("none was sent");
    let pair = cookie.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default();
    let wanted = |lines: &[&[u8]]| sticky.wanted(&frontend, lines.iter().copied()).is_some();
    let lines: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
    let is_given = lines.iter().flat_map(|line| line.split(|&byte| byte == b';')).any(|part| part.trim_ascii() == pair);
    assert!(is_given || !wanted(&lines), "it was made up");
    // However many others there are, a browser sends what was set last in front.
    let first: Vec<&[u8]> = [pair].into_iter().chain(lines).collect();
    assert!(wanted(&first));
}
