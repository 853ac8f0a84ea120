//! One backend of a frontend: where it is, and whether it is out of rotation.

use std::{
    ops::Deref,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use once_cell::race::OnceBox;

use super::{BackendError, Endpoint, alive::note_change};
use crate::clock::Moment;

/// A backend as a frontend's list names it. Its identity is its origin: a dead mark follows scheme, host and port through
/// every edit of the list and every other spelling of the URL, never an index.
#[derive(Debug)]
pub struct Backend {
    endpoint: Endpoint,
    dead_until: AtomicU64,
    pub(super) in_flight: AtomicU32,
    is_retired: AtomicBool,
    /// Made when it is first needed: most backends of a large table have none for long.
    rest: OnceBox<Rest>,
}

/// What only some backends have.
#[derive(Debug, Default)]
struct Rest {
    failed_at: AtomicU64,
    held_until: AtomicU64,
    tag: OnceLock<Box<str>>,
}

impl Deref for Backend {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Backend {
    /// Parses a list element such as `http://10.0.0.1:8080`, `https://name` or `10.0.0.1:8080`.
    ///
    /// # Errors
    /// When it is no backend's.
    pub fn parse(url: &str) -> Result<Self, BackendError> {
        Ok(Self::new(Endpoint::parse(url)?))
    }

    /// The backend at this endpoint.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            dead_until: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            is_retired: AtomicBool::new(false),
            rest: OnceBox::new(),
        }
    }

    /// The same backend, as dead as it is, under another spelling of its URL.
    #[must_use]
    pub fn respelled(&self, endpoint: Endpoint) -> Self {
        let copy = |moment: &AtomicU64| moment.load(Ordering::Relaxed).into();
        let respelled = Self { dead_until: copy(&self.dead_until), ..Self::new(endpoint) };
        if let Some(rest) = self.rest.get() {
            let failures = [&rest.failed_at, &rest.held_until].map(copy);
            let [failed_at, held_until] = failures;
            // Nobody else has it yet.
            let _ = respelled.rest.set(Box::new(Rest { failed_at, held_until, tag: OnceLock::new() }));
        }
        respelled
    }

    /// Whether the backend is out of rotation at `now`.
    pub fn is_dead(&self, now: Moment) -> bool {
        self.dead_until() > now
    }

    /// When the backend returns to rotation; [`Moment::PAST`] if it never left.
    pub fn dead_until(&self) -> Moment {
        let marked = self.dead_until.load(Ordering::Relaxed);
        let held = self.rest.get().map_or(0, |rest| rest.held_until.load(Ordering::Relaxed));
        Moment::from_millis(marked.max(held))
    }

    fn rest(&self) -> &Rest {
        self.rest.get_or_init(Box::default)
    }

    /// Takes the backend out of rotation until `until`, unless it already is for longer. Returns whether it was alive at
    /// `now`, which is true for exactly one of several callers that fail on it at the same time.
    pub fn mark_dead(&self, now: Moment, until: Moment) -> bool {
        let before = self.dead_until.fetch_max(until.as_millis(), Ordering::Relaxed);
        if before < until.as_millis() {
            note_change();
        }
        before <= now.as_millis() && until > now
    }

    /// A request of this instance's could not reach the backend, or was answered so that it is held against it: marks it dead
    /// as [`Backend::mark_dead`] does, with the same return value.
    ///
    /// Somebody else may find it well, and revive it at once, again and again. So when a mark that was lifted early
    /// turns out to have been right, this instance alone leaves the backend out for a while, whatever others say of it: for a
    /// moment, and at each further relapse for twice as long, up to half of the mark's own time.
    pub fn fail(&self, now: Moment, until: Moment) -> bool {
        let rest = self.rest();
        let held_until = rest.held_until.load(Ordering::Relaxed);
        // Requests that were on their way when it was last revived say nothing new.
        if held_until > now.as_millis() || !self.mark_dead(now, until) {
            return false;
        }
        let length = now.until(until);
        let failed_at = Moment::from_millis(rest.failed_at.swap(now.as_millis(), Ordering::Relaxed));
        let is_relapse = failed_at > Moment::PAST && now < failed_at.after(length);
        let held = failed_at.until(Moment::from_millis(held_until));
        let hold = if is_relapse { (held * 2).clamp(FIRST_HOLD, LONGEST_HOLD).min(length / 2) } else { Duration::ZERO };
        rest.held_until.store(now.after(hold).as_millis(), Ordering::Relaxed);
        note_change();
        true
    }

    /// How many requests it was given and is not done with, as far as they are counted (see [`InFlight`](super::InFlight)).
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed) as usize
    }

    /// What clients are given to name this backend by. Derived at the first call, and the same ever after.
    pub fn tag(&self, derive: impl FnOnce() -> Box<str>) -> &str {
        self.rest().tag.get_or_init(derive)
    }

    /// Puts the backend back into rotation, at the latest when it is not held out of it any more (see [`Backend::fail`]).
    pub fn revive(&self) {
        if self.dead_until.swap(Moment::PAST.as_millis(), Ordering::Relaxed) != Moment::PAST.as_millis() {
            note_change();
        }
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

/// How long a backend is left out at its first relapse.
const FIRST_HOLD: Duration = Duration::from_millis(10);

/// How long at most.
const LONGEST_HOLD: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn another_spelling_is_as_dead() {
        let (now, until) = (Moment::from_millis(100), Moment::from_millis(200));
        let backend = Backend::parse("http://10.0.0.1").unwrap();
        backend.fail(now, until);
        let respelled = backend.respelled(Endpoint::parse("10.0.0.1/\n").unwrap());
        assert_eq!((respelled.url(), respelled.path(), respelled.dead_until()), ("10.0.0.1/", "/", until));
        assert_eq!(respelled.origin(), backend.origin());
    }
}
