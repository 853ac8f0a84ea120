//! Where a backend is: scheme, host and port. These three, and nothing else of a URL, say which backend is meant.

use std::{
    fmt,
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

/// Where connections go. Backends of different frontends with the same origin share their pooled connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Whether the connection is TLS (`https`).
    pub tls: bool,
    /// The address or name to connect to.
    pub host: OriginHost,
    /// 80 or 443 when the URL has none.
    pub port: u16,
}

/// The host part of an [`Origin`].
#[derive(Clone, Debug)]
pub enum OriginHost {
    /// A literal address, which needs no look-up and leaves the request's `Host` alone.
    Ip(IpAddr),
    /// A name, whose addresses may change and which replaces the request's `Host`. It is compared without regard to case.
    Name(Arc<str>),
}

/// Why a list element cannot be a backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// Neither `http` nor `https`.
    #[error("the scheme is neither http nor https")]
    Scheme,
    /// No host, or one with illegal characters.
    #[error("the host is missing or malformed")]
    Host,
    /// Not a number from 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
}

/// A URL taken apart, of which nothing has been checked yet.
pub(super) struct Parts<'a> {
    /// `None` where the URL begins with its host.
    pub scheme: Option<&'a str>,
    /// From the scheme to the path, with a user's name if there is one.
    pub authority: &'a str,
    /// The path, the query and the fragment.
    pub rest: &'a str,
}

impl Origin {
    /// Reads a URL such as `http://10.0.0.1:8080`, `https://name` or `10.0.0.1:8080`. White space around it and what comes
    /// after the port are ignored. Scripts on the master read URLs in the same way (`store/scripts/identity.lua`), since
    /// everybody must agree on what is one backend.
    ///
    /// # Errors
    /// When it is no backend's.
    pub fn parse(url: &str) -> Result<Self, BackendError> {
        let parts = Parts::of(url);
        let tls = match parts.scheme {
            None => false,
            Some(scheme) if scheme.eq_ignore_ascii_case("http") => false,
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => true,
            Some(_) => return Err(BackendError::Scheme),
        };
        if !parts.authority.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(BackendError::Host);
        }
        let address = parts.address();
        let end = match address.strip_prefix('[') {
            Some(rest) => rest.find(']').map(|end| end + "[]".len()).ok_or(BackendError::Host)?,
            None => address.find(':').unwrap_or(address.len()),
        };
        let (host, port) = address.split_at(end);
        let host = OriginHost::parse(host)?;
        let port = match port.strip_prefix(':') {
            None if !port.is_empty() => return Err(BackendError::Host),
            None | Some("") if tls => 443,
            None | Some("") => 80,
            Some(digits) if !digits.bytes().all(|byte| byte.is_ascii_digit()) => return Err(BackendError::Port),
            Some(digits) => digits.parse().ok().filter(|&port| port != 0).ok_or(BackendError::Port)?,
        };
        Ok(Self { tls, host, port })
    }
}

impl OriginHost {
    fn parse(text: &str) -> Result<Self, BackendError> {
        if let Some(bracketed) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return bracketed
                .parse::<Ipv6Addr>()
                .map(|address| Self::Ip(address.into()))
                .map_err(|_| BackendError::Host);
        }
        // What RFC 3986 section 3.2.2 allows in a name, percent codes aside.
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte);
        if text.is_empty() || !text.bytes().all(is_allowed) {
            return Err(BackendError::Host);
        }
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Self::Ip(address)),
            Err(_) => Ok(Self::Name(text.into())),
        }
    }

    /// The name, where it is one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Ip(_) => None,
            Self::Name(name) => Some(name),
        }
    }
}

impl PartialEq for OriginHost {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ip(one), Self::Ip(other)) => one == other,
            (Self::Name(one), Self::Name(other)) => one.eq_ignore_ascii_case(other),
            (Self::Ip(_), Self::Name(_)) | (Self::Name(_), Self::Ip(_)) => false,
        }
    }
}

impl Eq for OriginHost {}

impl Hash for OriginHost {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Ip(address) => address.hash(state),
            Self::Name(name) => {
                for byte in name.as_bytes() {
                    state.write_u8(byte.to_ascii_lowercase());
                }
                state.write_u8(0xFF);
            }
        }
    }
}

/// The one spelling that all URLs of the same backend have in common.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        match &self.host {
            OriginHost::Ip(IpAddr::V6(address)) => write!(f, "{scheme}://[{address}]:{}", self.port),
            OriginHost::Ip(address) => write!(f, "{scheme}://{address}:{}", self.port),
            OriginHost::Name(name) => write!(f, "{scheme}://{}:{}", name.to_ascii_lowercase(), self.port),
        }
    }
}

impl<'a> Parts<'a> {
    pub fn of(url: &'a str) -> Self {
        let url = url.trim_ascii();
        let (before, after) = url.split_at(url.find(PATH).unwrap_or(url.len()));
        let (scheme, url) = match before.strip_suffix(':').zip(after.strip_prefix("//")) {
            Some((scheme, url)) => (Some(scheme), url),
            None => (None, url),
        };
        let (authority, rest) = url.split_at(url.find(PATH).unwrap_or(url.len()));
        Self { scheme, authority, rest }
    }

    /// Host and port.
    pub fn address(&self) -> &'a str {
        self.authority.rsplit_once('@').map_or(self.authority, |(_, address)| address)
    }

    /// The path alone; may be empty.
    pub fn path(&self) -> &'a str {
        &self.rest[..self.rest.find(['?', '#']).unwrap_or(self.rest.len())]
    }
}

/// Where a path, a query or a fragment begins.
const PATH: [char; 3] = ['/', '?', '#'];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin(url: &str) -> String {
        Origin::parse(url).unwrap().to_string()
    }

    #[test]
    fn urls_seen_in_the_wild() {
        assert_eq!(origin("http://10.0.0.1:8080"), "http://10.0.0.1:8080");
        assert_eq!(origin("http://10.0.0.1"), "http://10.0.0.1:80");
        assert_eq!(origin("https://host"), "https://host:443");
        assert_eq!(origin("HTTPS://host:8443/path?q"), "https://host:8443");
        assert_eq!(origin("10.0.0.1:8080"), "http://10.0.0.1:8080");
        assert_eq!(origin("http://name.internal:80/"), "http://name.internal:80");
        assert_eq!(origin("http://[::1]:80"), "http://[::1]:80");
        assert_eq!(origin("http://user:secret@host:81"), "http://host:81");
        assert_eq!(origin("host:"), "http://host:80");
        assert_eq!(origin("http://10.0.0.1:8080\r\n"), "http://10.0.0.1:8080");
        assert_eq!(origin("10.0.0.1:8080/?next=http://other"), "http://10.0.0.1:8080");
        assert_eq!(origin("my_app:8080"), "http://my_app:8080");
    }

    #[test]
    fn spellings_of_one_backend_are_one() {
        let spellings =
            ["http://App.internal:80", "HTTP://app.internal", " app.INTERNAL/base?q\n", "x@app.internal:080/"];
        for spelling in spellings {
            assert_eq!(Origin::parse(spelling), Origin::parse(spellings[0]), "{spelling:?}");
        }
        assert_eq!(Origin::parse("[0:0::1]:80"), Origin::parse("http://[::1]/"));
        for other in ["https://app.internal:80", "http://app.internal:81", "http://app.internal.", "http://app"] {
            assert_ne!(Origin::parse(other), Origin::parse(spellings[0]), "{other:?}");
        }
    }

    #[test]
    fn junk_is_refused() {
        use BackendError::{Host, Port, Scheme};
        for (url, error) in [
            ("", Host),
            ("http://", Host),
            ("http:///path", Host),
            ("http://@", Host),
            ("//host", Host),
            ("ftp://host", Scheme),
            ("://host", Scheme),
            ("http://host:0", Port),
            ("http://host:65536", Port),
            ("http://host:-1", Port),
            ("http://host:+80", Port),
            ("http://a:b:c", Port),
            ("http://a b", Host),
            ("http://ä", Host),
            ("http://a%20b", Host),
            ("http://::1", Host),
            ("http://[junk]:80", Host),
            ("http://[10.0.0.1]:80", Host),
            ("http://[::1", Host),
            ("http://[::1]80", Host),
        ] {
            assert_eq!(Origin::parse(url), Err(error), "{url}");
        }
    }

    #[test]
    fn a_url_falls_into_its_parts() {
        let parts = |url| {
            let parts = Parts::of(url);
            (parts.address(), parts.path())
        };
        assert_eq!(parts("http://10.0.0.1:8080"), ("10.0.0.1:8080", ""));
        assert_eq!(parts("https://name"), ("name", ""));
        assert_eq!(parts("name:81/base/x?q=/y#z\n"), ("name:81", "/base/x"));
        assert_eq!(parts("http://user:secret@[::1]:80/?q"), ("[::1]:80", "/"));
        assert_eq!(parts("name?q"), ("name", ""));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(url in "\\PC{0,40}") {
            if let Ok(origin) = Origin::parse(&url) {
                prop_assert_ne!(origin.port, 0);
                prop_assert_eq!(Origin::parse(&origin.to_string()), Ok(origin));
            }
        }

        #[test]
        fn what_it_prints_it_parses(url in "(http|https)://([a-z][a-z0-9.]{0,20}|10\\.0\\.0\\.[0-9]):[1-9][0-9]{0,3}") {
            prop_assert_eq!(origin(&url), url);
        }

        #[test]
        fn equal_hosts_have_equal_hashes(name in "[a-zA-Z.-]{1,20}") {
            let hash = |name: &str| {
                let mut hasher = std::hash::DefaultHasher::new();
                OriginHost::parse(name).unwrap().hash(&mut hasher);
                hasher.finish()
            };
            prop_assert_eq!(hash(&name), hash(&name.to_uppercase()));
        }
    }
}
