//! One backend of a frontend: where it is, and whether it is out of rotation.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderValue, uri::Authority};

use super::Moment;

/// A backend as a frontend's list names it. Its identity is the text of its URL: a dead mark follows that text through every
/// edit of the list, never an index.
#[derive(Debug)]
pub struct Backend {
    url: Box<str>,
    origin: Arc<Origin>,
    dead_until: AtomicU64,
    failed_at: AtomicU64,
    held_until: AtomicU64,
    is_retired: AtomicBool,
    pub(super) in_flight: AtomicUsize,
    tag: OnceLock<Box<str>>,
}

/// Where connections go: backends of different frontends with the same origin share their pooled connections.
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OriginHost {
    /// A literal address, which needs no look-up and leaves the request's `Host` alone.
    Ip(IpAddr),
    /// A name, whose addresses may change and which replaces the request's `Host`.
    Name(HeaderValue),
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

impl Backend {
    /// Parses a list element such as `http://10.0.0.1:8080`, `https://name` or `10.0.0.1:8080`. A path is ignored.
    pub fn parse(url: &str) -> Result<Self, BackendError> {
        Ok(Self {
            url: url.into(),
            origin: Arc::new(Origin::parse(url)?),
            dead_until: AtomicU64::new(0),
            failed_at: AtomicU64::new(0),
            held_until: AtomicU64::new(0),
            is_retired: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            tag: OnceLock::new(),
        })
    }

    /// The list element, to the byte.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where to connect.
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// Whether the backend is out of rotation at `now`.
    pub fn is_dead(&self, now: Moment) -> bool {
        self.dead_until() > now
    }

    /// When the backend returns to rotation; [`Moment::PAST`] if it never left.
    pub fn dead_until(&self) -> Moment {
        let [marked, held] = [&self.dead_until, &self.held_until].map(|until| until.load(Ordering::Relaxed));
        Moment::from_millis(marked.max(held))
    }

    /// Takes the backend out of rotation until `until`, unless it already is for longer. Returns whether it was alive at
    /// `now`, which is true for exactly one of several callers that fail on it at the same time.
    pub fn mark_dead(&self, now: Moment, until: Moment) -> bool {
        let before = self.dead_until.fetch_max(until.as_millis(), Ordering::Relaxed);
        before <= now.as_millis() && until > now
    }

    /// A request of this instance's could not reach the backend, or was answered so that it is held against it: marks it dead
    /// as [`Backend::mark_dead`] does, with the same return value.
    ///
    /// Somebody else may find it well, and revive it at once, again and again. So when a mark that was lifted early
    /// turns out to have been right, this instance alone leaves the backend out for a while, whatever others say of it: for a
    /// moment, and at each further relapse for twice as long, up to half of the mark's own time.
    pub fn fail(&self, now: Moment, until: Moment) -> bool {
        let held_until = self.held_until.load(Ordering::Relaxed);
        // Requests that were on their way when it was last revived say nothing new.
        if held_until > now.as_millis() || !self.mark_dead(now, until) {
            return false;
        }
        let length = now.until(until);
        let failed_at = Moment::from_millis(self.failed_at.swap(now.as_millis(), Ordering::Relaxed));
        let is_relapse = failed_at > Moment::PAST && now < failed_at.after(length);
        let held = failed_at.until(Moment::from_millis(held_until));
        let hold = if is_relapse { (held * 2).clamp(FIRST_HOLD, LONGEST_HOLD).min(length / 2) } else { Duration::ZERO };
        self.held_until.store(now.after(hold).as_millis(), Ordering::Relaxed);
        true
    }

    /// How many requests it was given and is not done with, as far as they are counted (see [`InFlight`](super::InFlight)).
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What clients are given to name this backend by. Derived at the first call, and the same ever after.
    pub fn tag(&self, derive: impl FnOnce() -> Box<str>) -> &str {
        self.tag.get_or_init(derive)
    }

    /// Puts the backend back into rotation, at the latest when it is not held out of it any more (see [`Backend::fail`]).
    pub fn revive(&self) {
        self.dead_until.store(Moment::PAST.as_millis(), Ordering::Relaxed);
    }

    /// Whether no list names the backend any more, so that connections to it are not worth keeping.
    pub fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed)
    }

    /// Takes note of whether a list names the backend.
    pub fn set_retired(&self, is_retired: bool) {
        self.is_retired.store(is_retired, Ordering::Relaxed);
    }
}

impl Origin {
    fn parse(url: &str) -> Result<Self, BackendError> {
        let (tls, rest) = match url.split_once("://") {
            None => (false, url),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some(_) => return Err(BackendError::Scheme),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let authority: Authority = rest[..end].parse().map_err(|_| BackendError::Host)?;
        let host = authority.host();
        if host.is_empty() {
            return Err(BackendError::Host);
        }
        let after_user = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, rest)| rest);
        let port = match after_user[host.len()..].strip_prefix(':') {
            None | Some("") => {
                if tls {
                    443
                } else {
                    80
                }
            }
            Some(digits) => digits.parse().ok().filter(|&port| port != 0).ok_or(BackendError::Port)?,
        };
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let host = match bare.parse::<IpAddr>() {
            Ok(address) => OriginHost::Ip(address),
            Err(_) if bare.len() != host.len() => return Err(BackendError::Host),
            Err(_) => OriginHost::Name(HeaderValue::from_str(host).map_err(|_| BackendError::Host)?),
        };
        Ok(Self { tls, host, port })
    }
}

impl OriginHost {
    /// The name, where it is one. Authorities are ASCII, so a name always is too.
    pub fn name(&self) -> Option<&str> {
        self.header().and_then(|name| name.to_str().ok())
    }

    /// The name, where it is one, as a `Host` header.
    pub fn header(&self) -> Option<&HeaderValue> {
        match self {
            Self::Ip(_) => None,
            Self::Name(name) => Some(name),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        match &self.host {
            OriginHost::Ip(IpAddr::V6(address)) => write!(f, "{scheme}://[{address}]:{}", self.port),
            OriginHost::Ip(address) => write!(f, "{scheme}://{address}:{}", self.port),
            OriginHost::Name(name) => write!(f, "{scheme}://{}:{}", name.to_str().unwrap_or("?"), self.port),
        }
    }
}

/// How long a backend is left out at its first relapse.
const FIRST_HOLD: Duration = Duration::from_millis(10);

/// How long at most.
const LONGEST_HOLD: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin(url: &str) -> String {
        Backend::parse(url).unwrap().origin().to_string()
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
    }

    #[test]
    fn junk_is_refused() {
        for (url, error) in [
            ("", BackendError::Host),
            ("http://", BackendError::Host),
            ("ftp://host", BackendError::Scheme),
            ("http://host:0", BackendError::Port),
            ("http://host:65536", BackendError::Port),
            ("http://host:-1", BackendError::Host),
            ("http://a b", BackendError::Host),
            ("http://[junk]:80", BackendError::Host),
        ] {
            assert!(Backend::parse(url).is_err(), "{url} was accepted");
            if error != BackendError::Host {
                assert_eq!(Backend::parse(url).unwrap_err(), error, "{url}");
            }
        }
    }

    #[test]
    fn only_the_first_of_several_failures_marks() {
        let backend = Backend::parse("http://10.0.0.1").unwrap();
        let (now, until) = (Moment::from_millis(100), Moment::from_millis(200));
        assert!(backend.mark_dead(now, until));
        assert!(!backend.mark_dead(now, until));
        assert!(backend.is_dead(Moment::from_millis(199)));
        assert!(!backend.is_dead(until));
        assert!(backend.mark_dead(until, Moment::from_millis(300)));
        backend.revive();
        assert!(!backend.is_dead(until));
    }

    #[test]
    fn a_mark_of_no_length_is_none() {
        let backend = Backend::parse("http://10.0.0.1").unwrap();
        assert!(!backend.mark_dead(Moment::from_millis(100), Moment::from_millis(100)));
    }

    #[test]
    fn relapses_are_held_for_longer_and_longer() {
        let backend = Backend::parse("http://10.0.0.1").unwrap();
        let at = Moment::from_millis;
        let fail = |now: u64| {
            let is_news = backend.fail(at(now), at(now + 100));
            backend.revive();
            (is_news, (now..now + 1_000).find(|&later| !backend.is_dead(at(later))).unwrap() - now)
        };
        assert_eq!(fail(1_000), (true, 0));
        assert_eq!(fail(1_001), (true, 10));
        assert_eq!(fail(1_005), (false, 6), "it is being held");
        assert_eq!(fail(1_011), (true, 20));
        assert_eq!(fail(1_031), (true, 40));
        assert_eq!(fail(1_071), (true, 50), "half of a mark");
        assert_eq!(fail(1_121), (true, 50));
        assert_eq!(fail(1_221), (true, 0), "the mark would have run out");
        assert_eq!(fail(1_222), (true, 10));
    }

    #[test]
    fn a_mark_of_its_whole_length_is_no_relapse() {
        let backend = Backend::parse("http://10.0.0.1").unwrap();
        for start in [1_000, 2_000, 3_000] {
            let (now, until) = (Moment::from_millis(start), Moment::from_millis(start + 1_000));
            assert!(backend.fail(now, until));
            assert!(backend.is_dead(Moment::from_millis(start + 999)) && !backend.is_dead(until));
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(url in "\\PC{0,40}") {
            if let Ok(backend) = Backend::parse(&url) {
                prop_assert_eq!(backend.url(), url.as_str());
                prop_assert_ne!(backend.origin().port, 0);
            }
        }

        #[test]
        fn what_it_prints_it_parses(url in "(http|https)://([a-z][a-z0-9.]{0,20}|10\\.0\\.0\\.[0-9]):[1-9][0-9]{0,3}") {
            prop_assert_eq!(origin(&url), url);
        }
    }
}
