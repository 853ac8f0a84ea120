//! Where a check goes: below the backend's URL first, and then wherever it is redirected. Pure.

use http::{HeaderMap, Uri, header::LOCATION};
use url::{Position, Url};

use crate::routing::{Backend, Origin};

/// What is asked for, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where to connect.
    pub origin: Origin,
    /// Host and port for the `Host` header.
    pub authority: String,
    /// Path and query.
    pub uri: Uri,
}

/// A redirect that leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Astray;

impl Target {
    /// This path below a backend's URL; `None` if no request can ask for that.
    pub fn below(backend: &Backend, path: &[u8]) -> Option<Self> {
        let base = backend.path().trim_end_matches('/');
        let below = path.iter().position(|&byte| byte != b'/').map_or(&[][..], |start| &path[start..]);
        Some(Self {
            origin: backend.origin().clone(),
            authority: backend.address().to_owned(),
            uri: uri(&[base.as_bytes(), b"/", below].concat())?,
        })
    }

    /// Where a response of a redirect's status leads, if it says so. Whatever its `Location` holds was chosen by a stranger.
    ///
    /// # Errors
    /// When no request can be made of it.
    pub fn redirected(&self, headers: &HeaderMap) -> Result<Option<Self>, Astray> {
        let Some(location) = headers.get(LOCATION).filter(|location| !location.is_empty()) else { return Ok(None) };
        let location = std::str::from_utf8(location.as_bytes()).map_err(|_| Astray)?;
        if location.len() > LONGEST_LOCATION {
            return Err(Astray);
        }
        let base = Url::parse(&format!("{}{}", self.origin, self.uri)).map_err(|_| Astray)?;
        let next = base.join(location).map_err(|_| Astray)?;
        if !matches!(next.scheme(), "http" | "https") {
            return Err(Astray);
        }
        let uri = uri(next[Position::BeforePath..Position::AfterQuery].as_bytes()).ok_or(Astray)?;
        // A host that stays is the one that the backend's URL names, whatever the library makes of it.
        if next[..Position::BeforePath] == base[..Position::BeforePath] {
            return Ok(Some(Self { uri, ..self.clone() }));
        }
        let origin = Origin::parse(&next[..Position::BeforePath]).map_err(|_| Astray)?;
        let authority = next[Position::BeforeHost..Position::AfterPort].to_owned();
        Ok(Some(Self { origin, authority, uri }))
    }
}

/// A path as a request can have it: without a fragment, and what is no character of a path as its percent code.
fn uri(path: &[u8]) -> Option<Uri> {
    let path = path.split(|&byte| byte == b'#').next().unwrap_or_default();
    let mut text = String::with_capacity(path.len());
    for &byte in path {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push('%');
            text.extend([byte >> 4, byte & 0xF].map(|digit| char::from(b"0123456789ABCDEF"[usize::from(digit)])));
        }
    }
    Uri::builder().path_and_query(text).build().ok()
}

/// Bytes of a `Location`, beyond which it is junk.
const LONGEST_LOCATION: usize = 16_384;

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn target(url: &str, path: &str) -> Target {
        Target::below(&Backend::parse(url).unwrap(), path.as_bytes()).unwrap()
    }

    fn path(url: &str, path: &str) -> String {
        target(url, path).uri.to_string()
    }

    fn redirected(from: &Target, location: &[u8]) -> Result<Option<Target>, Astray> {
        from.redirected(&HeaderMap::from_iter([(LOCATION, HeaderValue::from_bytes(location).unwrap())]))
    }

    #[test]
    fn a_path_begins_with_a_slash() {
        assert_eq!(path("b", ""), "/");
        assert_eq!(path("b", "health"), "/health");
        assert_eq!(path("b", "/health?deep=1"), "/health?deep=1");
        assert_eq!(path("b", "http://other/"), "/http://other/");
    }

    #[test]
    fn a_path_is_below_the_url_s_own() {
        for url in ["http://b/base", "b/base/", "http://b/base//?q#f"] {
            assert_eq!(path(url, "health"), "/base/health", "{url}");
            assert_eq!(path(url, "//health/"), "/base/health/", "{url}");
            assert_eq!(path(url, ""), "/base/", "{url}");
        }
        assert_eq!(path("http://b/", "/"), "/");
        assert_eq!(path("http://b/a b", "c"), "/a%20b/c");
    }

    #[test]
    fn what_is_no_character_of_a_path_is_encoded() {
        assert_eq!(path("b", "/a b\r\nX: y"), "/a%20b%0D%0AX:%20y");
        assert_eq!(path("b", "/ä#top"), "/%C3%A4");
        assert_eq!(path("b", "/100%25"), "/100%25");
    }

    #[test]
    fn the_host_is_as_the_url_has_it() {
        for (url, authority) in [
            ("http://10.0.0.1:8080", "10.0.0.1:8080"),
            ("https://Name", "Name"),
            ("name:81/base", "name:81"),
            ("http://user:secret@[::1]:80/?q", "[::1]:80"),
        ] {
            assert_eq!(target(url, "").authority, authority);
        }
    }

    #[test]
    fn redirects_lead_where_they_say() {
        let from = target("http://Name:81/base", "a/b?c");
        for (location, origin, authority, uri) in [
            ("d", "http://name:81", "Name:81", "/base/a/d"),
            ("/d?e#f", "http://name:81", "Name:81", "/d?e"),
            ("?e", "http://name:81", "Name:81", "/base/a/b?e"),
            ("../../../../d", "http://name:81", "Name:81", "/d"),
            ("//other/d", "http://other:80", "other", "/d"),
            ("https://other", "https://other:443", "other", "/"),
            ("HTTP://user@OTHER:8080/ä b", "http://other:8080", "other:8080", "/%C3%A4%20b"),
            ("http://[::1]:82/", "http://[::1]:82", "[::1]:82", "/"),
            ("http://NAME:81/{d}", "http://name:81", "Name:81", "/%7Bd%7D"),
        ] {
            let next = redirected(&from, location.as_bytes()).unwrap().unwrap();
            assert_eq!(
                (&*next.origin.to_string(), &*next.authority, &*next.uri.to_string()),
                (origin, authority, uri),
                "{location}"
            );
        }
    }

    #[test]
    fn a_host_that_a_library_would_read_otherwise_stays() {
        let from = target("http://1.2.3:80", "");
        assert_eq!(redirected(&from, b"/d").unwrap().unwrap().origin, from.origin);
    }

    #[test]
    fn a_redirect_to_nowhere_is_astray() {
        let from = target("http://b", "");
        let all = [
            "ftp://b/",
            "javascript:alert(1)",
            "a:",
            "b:81/",
            "http://",
            "http://b:99999/",
            "http://a b/",
            "http://b:0/",
        ];
        for location in all {
            assert_eq!(redirected(&from, location.as_bytes()), Err(Astray), "{location}");
        }
        assert_eq!(redirected(&from, b"/\xff"), Err(Astray));
        assert_eq!(redirected(&from, "x".repeat(LONGEST_LOCATION + 1).as_bytes()), Err(Astray));
        assert_eq!(redirected(&from, b""), Ok(None));
        assert_eq!(from.redirected(&HeaderMap::new()), Ok(None));
    }

    proptest! {
        #[test]
        fn any_path_can_be_asked_for(base in "(/[a-z ]{0,5}){0,3}", path in proptest::collection::vec(any::<u8>(), 0..60)) {
            let backend = Backend::parse(&format!("http://b{base}")).unwrap();
            prop_assert!(Target::below(&backend, &path).unwrap().uri.path().starts_with('/'));
        }

        #[test]
        fn no_location_is_a_panic(location in proptest::collection::vec(prop_oneof![32..127u8, 128..=255u8], 0..60)) {
            if let Ok(Some(next)) = redirected(&target("http://b/base", "health"), &location) {
                prop_assert!(next.uri.path().starts_with('/') && !next.authority.is_empty());
            }
        }
    }
}
