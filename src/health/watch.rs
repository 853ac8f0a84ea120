//! One dead backend under watch: what is due next, and what follows from what was found. Pure.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    routing::Backend,
    store::{Intent, LEASE, Standing, Visit},
};

use super::slots::Pace;

/// A backend of a frontend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// The frontend's host, as its key has it.
    pub host: String,
    /// The backend's origin, which all spellings of its URL have in common.
    pub origin: String,
}

impl Subject {
    /// This backend of the frontend with this host.
    pub fn new(host: &str, backend: &Backend) -> Self {
        Self { host: host.to_owned(), origin: backend.origin().to_string() }
    }
}

/// The state of a watch.
#[derive(Debug)]
pub struct Watch {
    /// Spelled as the list has it, once that is known.
    backend: Arc<Backend>,
    /// The spellings of its URL under which others have announced it.
    heard: Vec<String>,
    /// The spelling under which the lease was last held.
    leased: Option<String>,
    /// The indexes that the backend was seen to have.
    seen: Vec<usize>,
    /// The indexes under which it was announced since.
    announced: Vec<usize>,
    role: Role,
    visit_at: Instant,
    check: Check,
    /// Whether a check has found it sick since the lease was taken.
    is_sick: bool,
    /// How its last check went.
    pub pace: Pace,
}

/// Who sees to the backend.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    /// Not known yet.
    Unsettled,
    /// This instance, and how long its lease lasts without another visit.
    Holder { until: Instant },
    /// Another instance; until when its lease lasts, if it has an end.
    Standby { until: Option<Instant> },
}

/// The checks, which the holder alone makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    None,
    Due(Instant),
    Running(u64),
    Passed,
}

/// What a visit has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing that matters to anybody else.
    None,
    /// The backend is this instance's to check from now on.
    Began,
    /// Another instance checks it.
    Yielded,
    /// The watch is over.
    Ended(End),
}

/// Why a watch is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A check found the backend healthy, and it is in rotation again.
    Revived,
    /// Somebody else has put it into rotation again.
    RevivedElsewhere,
    /// The list does not have it any more.
    Unlisted,
}

impl Watch {
    /// A watch that begins now; `index` is where the backend was announced.
    pub fn new(backend: Arc<Backend>, index: usize, now: Instant) -> Self {
        Self {
            heard: vec![backend.url().to_owned()],
            backend,
            leased: None,
            seen: Vec::new(),
            announced: vec![index],
            role: Role::Unsettled,
            visit_at: now,
            check: Check::None,
            is_sick: false,
            pace: Pace::Unknown,
        }
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// When Redis is to be visited next.
    pub fn visit_at(&self) -> Instant {
        self.visit_at
    }

    /// When the next check is due; `None` while one is running, or another instance sees to it.
    pub fn check_at(&self) -> Option<Instant> {
        match self.check {
            Check::Due(at) => Some(at),
            _ => None,
        }
    }

    /// Whether the lease is this instance's.
    pub fn is_held(&self) -> bool {
        matches!(self.role, Role::Holder { .. })
    }

    /// The backend was announced dead once more, under this spelling and index.
    pub fn announced(&mut self, url: &str, index: usize, now: Instant) {
        let is_known = self.seen.contains(&index) || self.announced.contains(&index);
        if !is_known && self.seen.len() + self.announced.len() < MOST_RECORDED {
            self.announced.push(index);
        }
        if !self.heard.iter().any(|heard| heard == url) {
            if self.heard.len() == MOST_HEARD {
                self.heard.remove(0);
            }
            self.heard.push(url.to_owned());
        }
        if matches!(self.role, Role::Standby { .. }) {
            self.visit_at = now;
        }
    }

    /// Nothing is known about the lease any more.
    pub fn unsettle(&mut self, now: Instant) {
        self.role = Role::Unsettled;
        self.check = Check::None;
        self.visit_at = now;
    }

    /// The visit that is due.
    pub fn visit(&self, host: &str, now: Instant) -> Visit {
        let own = self.backend.url();
        let others = self.heard.iter().filter(|heard| *heard != own).cloned();
        Visit {
            host: host.to_owned(),
            urls: std::iter::once(own.to_owned()).chain(others).collect(),
            leased: self.leased.clone(),
            intent: self.intent(now),
            seen: self.seen.clone(),
            announced: self.announced.clone(),
        }
    }

    fn intent(&self, now: Instant) -> Intent {
        match self.role {
            Role::Holder { .. } if self.check == Check::Passed => Intent::Revive,
            Role::Holder { until } if now < until && self.is_sick => Intent::Keep,
            Role::Standby { until: Some(until) } if now >= until && now < self.visit_at + TARDY => Intent::Follow,
            Role::Standby { until } if until.is_none_or(|until| now < until) => Intent::FollowEarly,
            // Nobody is buried before a check has said so. And who has overslept may find that others have revived it.
            Role::Unsettled | Role::Holder { .. } | Role::Standby { .. } => Intent::Claim,
        }
    }

    /// Takes in what the visit at `now` has come to.
    pub fn visited(&mut self, standing: Standing, now: Instant) -> Turn {
        match standing {
            Standing::Held { url, recorded } => {
                (self.seen, self.announced) = (recorded, Vec::new());
                self.spell(&url);
                self.leased = Some(url);
                self.visit_at = now + PACE;
                let was_held = self.is_held();
                self.role = Role::Holder { until: now + LEASE };
                if was_held {
                    return Turn::None;
                }
                self.check = Check::Due(now);
                self.is_sick = false;
                Turn::Began
            }
            Standing::AnothersFor(left) => {
                let was_held = self.is_held();
                self.role = Role::Standby { until: left.map(|left| now + left) };
                self.check = Check::None;
                self.visit_at = now + left.map_or(LOOK, |left| (left + MARGIN).min(LOOK));
                if was_held { Turn::Yielded } else { Turn::None }
            }
            Standing::Alive if self.check == Check::Passed => Turn::Ended(End::Revived),
            Standing::Alive => Turn::Ended(End::RevivedElsewhere),
            Standing::Unlisted => Turn::Ended(End::Unlisted),
        }
    }

    /// Takes in how the list spells the backend's URL.
    fn spell(&mut self, url: &str) {
        if self.backend.url() != url
            && let Ok(backend) = Backend::parse(url)
        {
            self.backend = Arc::new(backend);
        }
    }

    /// A check has begun.
    pub fn check_begun(&mut self, ticket: u64) {
        self.check = Check::Running(ticket);
    }

    /// The check that runs, if one does.
    pub fn running(&self) -> Option<u64> {
        match self.check {
            Check::Running(ticket) => Some(ticket),
            _ => None,
        }
    }

    /// The check has ended.
    pub fn checked(&mut self, is_healthy: bool, now: Instant) {
        self.check = if is_healthy { Check::Passed } else { Check::Due(now + PACE) };
        self.is_sick = !is_healthy;
        if is_healthy {
            self.visit_at = now;
        }
    }

    /// The check was stopped, to go on among those that take their time.
    pub fn check_stopped(&mut self, now: Instant) {
        self.check = Check::Due(now);
    }

    /// The first verdict since the lease was taken was bad: what was not marked is, without waiting for the next turn.
    pub fn hurry(&mut self, now: Instant) {
        self.visit_at = now;
    }
}

/// Between two visits of the holder, and from the end of a check to the next.
const PACE: Duration = Duration::from_secs(1);

/// How often another's lease is looked at, at least.
const LOOK: Duration = Duration::from_secs(5);

/// By how much another's lease must have run out.
const MARGIN: Duration = Duration::from_millis(20);

/// How late a visit may be, before what was known of another's lease counts for nothing.
const TARDY: Duration = Duration::from_secs(3);

/// Indexes under which one backend may be recorded, before further ones are taken for junk.
const MOST_RECORDED: usize = 16;

/// Spellings of one backend's URL that are remembered, the latest.
const MOST_HEARD: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(now: Instant) -> Watch {
        Watch::new(Arc::new(Backend::parse("http://b").unwrap()), 3, now)
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn held(recorded: &[usize]) -> Standing {
        Standing::Held { url: "http://b".to_owned(), recorded: recorded.to_vec() }
    }

    fn intent(watch: &Watch, now: Instant) -> Intent {
        watch.visit("host", now).intent
    }

    #[test]
    fn a_watch_claims_checks_keeps_and_revives() {
        let now = Instant::now();
        let mut watch = watch(now);
        let visit = watch.visit("host", now);
        assert_eq!(
            (watch.visit_at(), visit.intent, visit.seen, visit.announced),
            (now, Intent::Claim, vec![], vec![3])
        );
        assert_eq!(watch.visited(held(&[4]), now), Turn::Began);
        assert_eq!((watch.check_at(), watch.visit_at()), (Some(now), now + PACE));
        watch.check_begun(7);
        assert_eq!((watch.check_at(), watch.running()), (None, Some(7)));
        let visit = watch.visit("host", now + PACE);
        assert_eq!(
            (visit.intent, visit.seen, visit.announced),
            (Intent::Claim, vec![4], vec![]),
            "nothing is known yet"
        );
        assert_eq!(watch.visited(held(&[4]), now + PACE), Turn::None);
        assert_eq!(watch.running(), Some(7));
        watch.checked(false, now + secs(5));
        assert_eq!(watch.check_at(), Some(now + secs(6)));
        watch.check_begun(8);
        assert_eq!(intent(&watch, now + secs(6)), Intent::Keep, "whether a check runs or not");
        watch.checked(true, now + secs(6));
        assert_eq!((watch.visit_at(), intent(&watch, now + secs(6))), (now + secs(6), Intent::Revive));
        assert_eq!(watch.visited(Standing::Alive, now + secs(6)), Turn::Ended(End::Revived));
    }

    #[test]
    fn another_s_lease_is_watched_until_it_ends() {
        let now = Instant::now();
        let mut watch = watch(now);
        assert_eq!(watch.visited(Standing::AnothersFor(Some(secs(29))), now), Turn::None);
        assert_eq!((watch.check_at(), watch.visit_at()), (None, now + LOOK));
        assert_eq!(intent(&watch, now + LOOK), Intent::FollowEarly);
        watch.visited(Standing::AnothersFor(Some(secs(2))), now + secs(27));
        assert_eq!(watch.visit_at(), now + secs(29) + MARGIN);
        assert_eq!(intent(&watch, watch.visit_at()), Intent::Follow);
        assert_eq!(watch.visited(held(&[3]), now + secs(30)), Turn::Began);
    }

    #[test]
    fn a_lease_that_vanishes_early_was_given_up_for_a_reason() {
        let now = Instant::now();
        let mut watch = watch(now);
        watch.visited(Standing::AnothersFor(Some(secs(29))), now);
        assert_eq!(watch.visited(Standing::Alive, now + LOOK), Turn::Ended(End::RevivedElsewhere));
    }

    #[test]
    fn a_lease_without_an_end_is_looked_at_again() {
        let now = Instant::now();
        let mut watch = watch(now);
        watch.visited(Standing::AnothersFor(None), now);
        assert_eq!((watch.visit_at(), intent(&watch, now + secs(999))), (now + LOOK, Intent::FollowEarly));
    }

    #[test]
    fn a_lease_that_is_lost_ends_the_checks() {
        let now = Instant::now();
        let mut watch = watch(now);
        watch.visited(held(&[3]), now);
        watch.check_begun(1);
        assert_eq!(watch.visited(Standing::AnothersFor(Some(secs(30))), now), Turn::Yielded);
        assert_eq!((watch.running(), watch.check_at(), watch.is_held()), (None, None, false));
    }

    #[test]
    fn who_oversleeps_claims_anew() {
        let now = Instant::now();
        let mut watch = watch(now);
        watch.visited(held(&[3]), now);
        watch.checked(false, now);
        assert_eq!(intent(&watch, now + LEASE.saturating_sub(secs(1))), Intent::Keep);
        assert_eq!(intent(&watch, now + LEASE), Intent::Claim);
        watch.unsettle(now);
        assert_eq!((intent(&watch, now), watch.check_at()), (Intent::Claim, None));
    }

    #[test]
    fn who_stands_by_and_oversleeps_buries_nobody() {
        let now = Instant::now();
        let mut watch = watch(now);
        watch.visited(Standing::AnothersFor(Some(secs(30))), now);
        assert_eq!(intent(&watch, now + secs(29)), Intent::FollowEarly);
        assert_eq!(intent(&watch, now + secs(40)), Intent::Claim, "it has been revived meanwhile, for all we know");
        watch.visited(Standing::AnothersFor(Some(secs(1))), now);
        assert_eq!(intent(&watch, now + secs(2)), Intent::Follow, "a little late");
        assert_eq!(intent(&watch, now + secs(5)), Intent::Claim);
    }

    #[test]
    fn a_new_announcement_hurries_who_stands_by_and_is_remembered() {
        let now = Instant::now();
        let mut watch = watch(now);
        watch.visited(Standing::AnothersFor(Some(secs(29))), now);
        for index in 0..100 {
            watch.announced(&format!("http://b/{index}"), index, now);
        }
        let visit = watch.visit("host", now);
        assert_eq!((watch.visit_at(), visit.announced.len(), visit.urls.len()), (now, MOST_RECORDED, MOST_HEARD + 1));
        assert_eq!((&*visit.urls[0], &*visit.urls[MOST_HEARD]), ("http://b", "http://b/99"));
    }

    #[test]
    fn the_list_s_spelling_takes_the_place_of_the_announced_one() {
        let now = Instant::now();
        let mut watch = Watch::new(Arc::new(Backend::parse("http://b/").unwrap()), 0, now);
        assert_eq!(
            (watch.visit("host", now).urls, watch.visit("host", now).leased),
            (vec!["http://b/".to_owned()], None)
        );
        watch.visited(held(&[0]), now);
        let visit = watch.visit("host", now);
        assert_eq!((visit.urls, visit.leased), (vec!["http://b".into(), "http://b/".into()], Some("http://b".into())));
        assert_eq!(watch.backend().url(), "http://b");
    }
}
