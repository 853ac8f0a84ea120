//! The cookie that names the backend which answered a client, so that the client comes back to it.
//!
//! Its value is a keyed hash of the frontend and the backend. It tells nothing about either, cannot be made up, and is worth
//! nothing to another frontend; nothing needs to be remembered for it. It is set for a frontend with a single backend as
//! well: when a second is added, no client is to lose what it has on the first. It is passed on to backends as any other.

use std::sync::Arc;

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    hkdf::{HKDF_SHA256, Salt},
    hmac, rand,
};
use data_encoding::BASE64URL_NOPAD;
use http::HeaderValue;

use crate::{
    routing::{Backend, Choice, Frontend},
    secret::Secret,
};

/// What names backends to clients.
pub struct Sticky {
    key: hmac::Key,
}

impl Sticky {
    /// With a secret that all processes are given which are to honour one another's cookies. It should be hard to guess:
    /// nothing here slows a guesser down.
    pub fn new(secret: &Secret) -> Self {
        Self::from_bytes(secret.0.as_bytes())
    }

    /// Whose cookies no other process honours.
    pub fn with_random_key() -> Self {
        let mut secret = [0; 32];
        rand::fill(&mut secret).expect("the system has random numbers");
        Self::from_bytes(&secret)
    }

    fn from_bytes(secret: &[u8]) -> Self {
        let extracted = Salt::new(HKDF_SHA256, b"planb sticky cookies").extract(secret);
        let expanded = extracted.expand(&[b"tag"], hmac::HMAC_SHA256);
        Self { key: expanded.expect("the length is within what HKDF can give").into() }
    }

    /// The backend that a request's cookie names, dead or alive: the first cookie counts that names one of the frontend's.
    /// `cookies` are the lines of `Cookie`.
    pub fn wanted<'a>(&self, frontend: &Frontend, cookies: impl Iterator<Item = &'a [u8]>) -> Option<Choice> {
        let named = |value: &[u8]| {
            let slot = frontend.slot_by_tag(value, |backend| self.tag(frontend, backend))?;
            let tag = self.tag(frontend, &slot.backend);
            verify_slices_are_equal(tag.as_bytes(), value).is_ok().then(|| Choice::of(slot))
        };
        values(cookies).take(MOST_COOKIES).find_map(named)
    }

    /// What a response sets: nothing if the backend that answered is the one that the request's cookie named. `scheme` is how
    /// the client reached us.
    pub fn cookie(
        &self,
        frontend: &Frontend,
        answered: &Choice,
        wanted: Option<&Choice>,
        scheme: &str,
    ) -> Option<HeaderValue> {
        if wanted.is_some_and(|wanted| Arc::ptr_eq(&wanted.backend, &answered.backend)) {
            return None;
        }
        let tag = self.tag(frontend, &answered.backend);
        let secure = if scheme == "https" { "; Secure" } else { "" };
        let cookie = format!("{NAME}={tag}; Path=/; HttpOnly; SameSite=Lax{secure}");
        Some(HeaderValue::from_maybe_shared(bytes::Bytes::from(cookie)).expect("base64 is visible ASCII"))
    }

    /// What stands for a backend, however its URL is spelled. Kept with it, which is possible because no two frontends share
    /// one.
    fn tag<'a>(&self, frontend: &Frontend, backend: &'a Backend) -> &'a str {
        backend.tag(|| {
            let (key, origin) = (frontend.key().as_bytes(), backend.origin().to_string());
            let mut hash = hmac::Context::with_key(&self.key);
            // The length says where the one ends and the other begins.
            for part in [&(key.len() as u64).to_be_bytes()[..], key, origin.as_bytes()] {
                hash.update(part);
            }
            BASE64URL_NOPAD.encode(&hash.sign().as_ref()[..TAG_BYTES]).into()
        })
    }
}

/// The values of all cookies of our name that are as long as ours.
fn values<'a>(lines: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    let pairs = lines.flat_map(|line| line.split(|&byte| byte == b';'));
    pairs.filter_map(|pair| {
        let value = pair.trim_ascii().strip_prefix(NAME.as_bytes())?.strip_prefix(b"=")?;
        (value.len() == TAG_LENGTH).then_some(value)
    })
}

const NAME: &str = "planb_backend";

/// How much of a hash is kept, and how long that is in base64.
const TAG_BYTES: usize = 24;
const TAG_LENGTH: usize = TAG_BYTES / 3 * 4;

/// How many cookies of our name are looked at. Clients have one; others may not keep us busy.
const MOST_COOKIES: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::routing::Slot;

    fn frontend(key: &str, urls: &[&str]) -> Frontend {
        let backend = |url: &&str| Arc::new(Backend::parse(url).unwrap());
        let slots = urls.iter().map(backend).enumerate().map(|(index, backend)| Slot { index, backend }).collect();
        Frontend::new(key, "id", slots, urls.len()).unwrap()
    }

    fn sticky(secret: &str) -> Sticky {
        Sticky::new(&Secret(secret.to_owned()))
    }

    fn choice(frontend: &Frontend, index: usize) -> Choice {
        Choice { index, backend: frontend.slots()[index].backend.clone() }
    }

    /// The pair that a client sends back.
    fn pair(sticky: &Sticky, frontend: &Frontend, index: usize) -> String {
        let cookie = sticky.cookie(frontend, &choice(frontend, index), None, "http").unwrap();
        cookie.to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    fn wanted(sticky: &Sticky, frontend: &Frontend, lines: &[&str]) -> Option<usize> {
        sticky.wanted(frontend, lines.iter().map(|line| line.as_bytes())).map(|choice| choice.index)
    }

    const URLS: [&str; 2] = ["http://10.0.0.1:8080", "http://10.0.0.2:8080"];

    #[test]
    fn a_cookie_names_its_backend_wherever_the_secret_is_the_same() {
        let (here, there) = (frontend("host", &URLS), frontend("host", &["http://10.0.0.9", URLS[1]]));
        let pair = pair(&sticky("one"), &here, 1);
        assert_eq!(wanted(&sticky("one"), &here, &[&pair]), Some(1));
        assert_eq!(wanted(&sticky("one"), &there, &[&pair]), Some(1), "another process, where the list is another");
        for fresh in [sticky("other"), Sticky::with_random_key(), Sticky::with_random_key()] {
            assert_eq!(wanted(&fresh, &frontend("host", &URLS), &[&pair]), None);
        }
    }

    #[test]
    fn a_cookie_is_bound_to_its_frontend() {
        let sticky = sticky("one");
        let pair = pair(&sticky, &frontend("host", &URLS), 0);
        assert_eq!(wanted(&sticky, &frontend("other", &URLS), &[&pair]), None);
        let [one, other] = [("ab", "c"), ("a", "bc")]
            .map(|(key, url)| sticky.tag(&frontend(key, &URLS), &Backend::parse(url).unwrap()).to_owned());
        assert_ne!(one, other, "what is hashed can be read in two ways");
    }

    #[test]
    fn a_cookie_names_its_backend_however_the_url_is_spelled() {
        let sticky = sticky("one");
        let pair = pair(&sticky, &frontend("host", &URLS), 1);
        let respelled = frontend("host", &["http://10.0.0.9", " HTTP://10.0.0.2:8080/base\n"]);
        assert_eq!(wanted(&sticky, &respelled, &[&pair]), Some(1));
    }

    #[test]
    fn the_first_valid_cookie_counts() {
        let (sticky, frontend) = (sticky("one"), frontend("host", &URLS));
        let [first, second] = [0, 1].map(|index| pair(&sticky, &frontend, index));
        let unknown = format!("{NAME}={}", "A".repeat(TAG_LENGTH));
        for (lines, index) in [
            (&[&*format!("a=b; {first}; {second}")][..], 0),
            (&[&*format!("a=b;{second} ;{first}")][..], 1),
            (&["a=b", &*second, &*first][..], 1),
            (&[&*unknown, "planb_backend", "planb_backend=", &*second][..], 1),
            (&[&*"x".repeat(50_000), ";;==;\u{e9};", &*first][..], 0),
        ] {
            assert_eq!(wanted(&sticky, &frontend, lines), Some(index), "{lines:?}");
        }
        for junk in [&*unknown, &first.to_uppercase(), &format!("{first}A"), &first[..first.len() - 1]] {
            assert_eq!(wanted(&sticky, &frontend, &[junk]), None, "{junk}");
        }
        assert_eq!(wanted(&sticky, &frontend, &[&format!("x{first}")]), None);
        let flood = format!("{unknown};").repeat(MOST_COOKIES);
        assert_eq!(wanted(&sticky, &frontend, &[&format!("{flood}{first}")]), None);
    }

    #[test]
    fn a_cookie_is_set_when_another_backend_has_answered() {
        let (sticky, frontend) = (sticky("one"), frontend("host", &URLS));
        let [first, second] = [0, 1].map(|index| choice(&frontend, index));
        assert_eq!(sticky.cookie(&frontend, &first, Some(&first), "http"), None);
        let [plain, secure] = ["http", "https"].map(|scheme| {
            let cookie = sticky.cookie(&frontend, &first, Some(&second), scheme).unwrap();
            cookie.to_str().unwrap().to_owned()
        });
        let (pair, attributes) = plain.split_once("; ").unwrap();
        assert_eq!((pair.len(), attributes), (NAME.len() + 1 + TAG_LENGTH, "Path=/; HttpOnly; SameSite=Lax"));
        assert_eq!(secure, format!("{plain}; Secure"));
    }

    proptest! {
        #[test]
        fn no_line_of_cookies_is_an_error(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(sticky("one").wanted(&frontend("host", &URLS), [&line[..]].into_iter()).is_none());
        }
    }
}
