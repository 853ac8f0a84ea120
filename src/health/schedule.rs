//! All watches, and whose turn it is. Pure.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    routing::Backend,
    store::{Standing, Visit},
};

use super::{
    slots::{Pace, Slots},
    watch::{Subject, Turn, Watch},
};

/// The dead backends under watch. Each is in [`Schedule::visits`], and in one of the queues for checks while one is due.
#[derive(Debug, Default)]
pub struct Schedule {
    watches: HashMap<Arc<Subject>, Watch>,
    visits: BTreeSet<Turnout>,
    checks: [BTreeSet<Turnout>; 3],
    running: HashMap<u64, Running>,
    slots: Slots,
    tickets: u64,
    held: usize,
}

/// A visit that is due.
#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    /// Of which backend.
    pub subject: Arc<Subject>,
    /// What it consists of.
    pub visit: Visit,
}

/// A check that may begin.
#[derive(Debug)]
pub struct Permit {
    /// What it is to be reported by.
    pub ticket: u64,
    /// Of which backend.
    pub subject: Arc<Subject>,
    /// Where that is.
    pub backend: Arc<Backend>,
}

/// What becomes of a backend that was announced dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is watched from now on.
    New,
    /// It was watched already.
    Known,
    /// There are too many.
    Full,
}

#[derive(Debug)]
struct Running {
    subject: Arc<Subject>,
    pace: Pace,
    since: Instant,
}

type Turnout = (Instant, Arc<Subject>);

impl Schedule {
    /// A backend was announced dead for the frontend with this host, under this index.
    pub fn announce(&mut self, host: &str, backend: Arc<Backend>, index: usize, now: Instant) -> Admission {
        let subject = Subject::new(host, &backend);
        if let Some((subject, _)) = self.watches.get_key_value(&subject) {
            let subject = Arc::clone(subject);
            self.change(&subject, |watch| watch.announced(backend.url(), index, now));
            return Admission::Known;
        }
        if self.watches.len() >= MOST {
            return Admission::Full;
        }
        let subject = Arc::new(subject);
        self.visits.insert((now, Arc::clone(&subject)));
        self.watches.insert(subject, Watch::new(backend, index, now));
        Admission::New
    }

    /// How many backends are watched.
    pub fn len(&self) -> usize {
        self.watches.len()
    }

    /// How many leases are held.
    pub fn held(&self) -> usize {
        self.held
    }

    /// The backends whose leases are held: the frontends' hosts, and the URLs after which the leases are named.
    pub fn leases(&self) -> impl Iterator<Item = (&str, &str)> {
        let held = self.watches.iter().filter(|(_, watch)| watch.is_held());
        held.map(|(subject, watch)| (&*subject.host, watch.backend().url()))
    }

    /// The visits that are due, the longest overdue first, `most` at once.
    pub fn visits(&self, most: usize, now: Instant) -> Vec<Due> {
        let due = self.visits.iter().take_while(|(at, _)| *at <= now).take(most);
        due.map(|(_, subject)| {
            let visit = self.watches[subject].visit(&subject.host, now);
            Due { subject: Arc::clone(subject), visit }
        })
        .collect()
    }

    /// Takes in what a visit has come to. A check of a backend that is not ours any more is forgotten; its ticket is returned.
    pub fn visited(&mut self, subject: &Arc<Subject>, standing: Standing, now: Instant) -> (Turn, Option<u64>) {
        let ran = self.watches.get(subject).and_then(Watch::running);
        let turn = self.change(subject, |watch| watch.visited(standing, now)).unwrap_or(Turn::None);
        if matches!(turn, Turn::Ended(_)) {
            self.remove(subject);
        }
        let runs = self.watches.get(subject).and_then(Watch::running);
        let forgotten = ran.filter(|_| runs.is_none());
        if let Some(ticket) = forgotten {
            self.vacate(ticket);
        }
        (turn, forgotten)
    }

    /// The next check that is due and may begin.
    pub fn permit(&mut self, now: Instant) -> Option<Permit> {
        let pace = Pace::ALL.into_iter().find(|&pace| self.is_due(pace, now) && self.slots.admits(pace))?;
        let (_, subject) = self.checks[pace.rank()].first()?.clone();
        self.tickets += 1;
        let ticket = self.tickets;
        self.change(&subject, |watch| watch.check_begun(ticket));
        self.slots.take(pace);
        self.running.insert(ticket, Running { subject: Arc::clone(&subject), pace, since: now });
        let backend = Arc::clone(self.watches.get(&subject)?.backend());
        Some(Permit { ticket, subject, backend })
    }

    /// A check has ended.
    pub fn checked(&mut self, ticket: u64, is_healthy: bool, now: Instant) {
        let Some(ran) = self.vacate(ticket) else { return };
        let pace = if now.saturating_duration_since(ran.since) < STALL { Pace::Prompt } else { Pace::Stalled };
        self.change(&ran.subject, |watch| {
            if watch.pace == Pace::Unknown && !is_healthy {
                watch.hurry(now);
            }
            watch.checked(is_healthy, now);
            watch.pace = pace;
        });
    }

    /// Ends one check that stalls, if others that are due have to wait for it; it will go on among the stalled, who have all
    /// the time that a check may take. Returns the ticket.
    pub fn stop_stalled(&mut self, now: Instant) -> Option<u64> {
        self.is_anyone_waiting(now).then_some(())?;
        let (ticket, since) = self.impatient().min_by_key(|(_, since)| *since)?;
        if now < since + STALL {
            return None;
        }
        let ran = self.vacate(ticket)?;
        self.change(&ran.subject, |watch| {
            watch.pace = Pace::Stalled;
            watch.check_stopped(now);
        });
        Some(ticket)
    }

    /// When there is something to do next.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let visit = self.visits.first().map(|(at, _)| *at);
        let open = Pace::ALL.into_iter().filter(|&pace| self.slots.admits(pace));
        let check = open.filter_map(|pace| Some(self.checks[pace.rank()].first()?.0)).min();
        let waiting = self.is_anyone_waiting(now).then(|| self.impatient().map(|(_, since)| since + STALL).min());
        [visit, check, waiting.flatten()].into_iter().flatten().min()
    }

    /// Begins again with all that is known of the backends and nothing that is known of their leases. No check runs any more.
    pub fn unsettle(&mut self, now: Instant) {
        self.running.clear();
        self.slots = Slots::default();
        let subjects: Vec<_> = self.watches.keys().cloned().collect();
        for subject in subjects {
            self.change(&subject, |watch| watch.unsettle(now));
        }
    }

    fn is_due(&self, pace: Pace, now: Instant) -> bool {
        self.checks[pace.rank()].first().is_some_and(|(at, _)| *at <= now)
    }

    /// Whether a check of a backend that is not known to stall is due, but may not begin.
    fn is_anyone_waiting(&self, now: Instant) -> bool {
        [Pace::Prompt, Pace::Unknown].into_iter().any(|pace| self.is_due(pace, now) && !self.slots.admits(pace))
    }

    /// Checks that run on a promise of being prompt, and since when.
    fn impatient(&self) -> impl Iterator<Item = (u64, Instant)> {
        let quick = self.running.iter().filter(|(_, running)| running.pace != Pace::Stalled);
        quick.map(|(ticket, running)| (*ticket, running.since))
    }

    fn vacate(&mut self, ticket: u64) -> Option<Running> {
        self.running.remove(&ticket).inspect(|ran| self.slots.free(ran.pace))
    }

    /// Changes a watch, and keeps the queues in step with it.
    fn change<T>(&mut self, subject: &Arc<Subject>, change: impl FnOnce(&mut Watch) -> T) -> Option<T> {
        let watch = self.watches.get_mut(subject)?;
        let key = |at| (at, Arc::clone(subject));
        self.visits.remove(&key(watch.visit_at()));
        if let Some(at) = watch.check_at() {
            self.checks[watch.pace.rank()].remove(&key(at));
        }
        self.held -= usize::from(watch.is_held());
        let result = change(watch);
        self.visits.insert(key(watch.visit_at()));
        if let Some(at) = watch.check_at() {
            self.checks[watch.pace.rank()].insert(key(at));
        }
        self.held += usize::from(watch.is_held());
        Some(result)
    }

    fn remove(&mut self, subject: &Arc<Subject>) {
        self.change(subject, |watch| watch.unsettle(watch.visit_at()));
        if let Some(watch) = self.watches.remove(subject) {
            self.visits.remove(&(watch.visit_at(), Arc::clone(subject)));
        }
    }
}

/// Backends that may be watched at the same time.
const MOST: usize = 10_000;

/// A check that takes this long stalls.
const STALL: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Intent, LEASE};

    fn backend(number: usize) -> Arc<Backend> {
        Arc::new(Backend::parse(&format!("http://b{number}")).unwrap())
    }

    fn held(due: &Due) -> Standing {
        Standing::Held { url: due.visit.urls[0].clone(), recorded: due.visit.announced.clone() }
    }

    /// A schedule in which so many backends are held, and due to be checked.
    fn holding(count: usize, now: Instant) -> Schedule {
        let mut schedule = Schedule::default();
        for number in 0..count {
            assert_eq!(schedule.announce("host", backend(number), number, now), Admission::New);
        }
        for due in schedule.visits(MOST, now) {
            assert_eq!(due.visit.intent, Intent::Claim);
            assert_eq!(schedule.visited(&due.subject, held(&due), now), (Turn::Began, None));
        }
        schedule
    }

    fn permits(schedule: &mut Schedule, now: Instant) -> Vec<Permit> {
        std::iter::from_fn(|| schedule.permit(now)).collect()
    }

    #[test]
    fn a_backend_is_watched_once_and_the_number_is_bounded() {
        let now = Instant::now();
        let mut schedule = holding(MOST, now);
        assert_eq!(schedule.announce("host", backend(7), 7, now), Admission::Known);
        assert_eq!(schedule.announce("host", backend(MOST), 0, now), Admission::Full);
        assert_eq!((schedule.len(), schedule.held(), schedule.leases().count()), (MOST, MOST, MOST));
    }

    #[test]
    fn however_a_url_is_spelled_its_backend_is_watched_once() {
        let now = Instant::now();
        let mut schedule = holding(1, now);
        let respelled = Arc::new(Backend::parse("B0:80/").unwrap());
        assert_eq!(schedule.announce("host", Arc::clone(&respelled), 0, now), Admission::Known);
        assert_eq!(schedule.announce("other", respelled, 0, now), Admission::New);
        assert_eq!(schedule.leases().collect::<Vec<_>>(), [("host", "http://b0")]);
    }

    #[test]
    fn watches_that_end_leave_nothing_behind() {
        let now = Instant::now();
        let mut schedule = holding(1, now);
        let permit = schedule.permit(now).unwrap();
        let gone = schedule.visited(&permit.subject, Standing::Unlisted, now);
        assert_eq!(gone, (Turn::Ended(super::super::watch::End::Unlisted), Some(permit.ticket)));
        schedule.checked(permit.ticket, true, now);
        assert_eq!((schedule.len(), schedule.held(), schedule.next(now)), (0, 0, None));
        assert!(schedule.slots.admits(Pace::Stalled) && schedule.running.is_empty());
    }

    #[test]
    fn five_checks_run_at_once_and_never_more() {
        let now = Instant::now();
        let mut schedule = holding(12, now);
        let first = permits(&mut schedule, now);
        assert_eq!(first.len(), 4, "one is left for who is known to be prompt");
        for permit in &first {
            schedule.checked(permit.ticket, false, now);
        }
        let later = now + Duration::from_secs(1);
        assert_eq!(permits(&mut schedule, later).len(), 5);
    }

    #[test]
    fn who_stalls_gives_way_to_others_and_has_its_time_afterwards() {
        let now = Instant::now();
        let mut schedule = holding(6, now);
        let first = permits(&mut schedule, now);
        assert_eq!((first.len(), schedule.stop_stalled(now)), (4, None));
        let later = now + STALL;
        assert_eq!(schedule.next(now), Some(now + Duration::from_secs(1)), "the next visit");
        let stopped: Vec<_> = std::iter::from_fn(|| {
            let stopped = schedule.stop_stalled(later)?;
            Some((stopped, permits(&mut schedule, later).len()))
        })
        .collect();
        assert_eq!(stopped.len(), 2, "two were waiting");
        assert!(stopped.iter().all(|(_, begun)| *begun == 1));
        // The two that wait now are known to stall, and nobody gives way to them.
        assert_eq!(schedule.stop_stalled(later + STALL), None);
        for permit in &first {
            schedule.checked(permit.ticket, false, later);
        }
        assert!(permits(&mut schedule, later).len() <= 3);
    }

    #[test]
    fn a_prompt_backend_never_waits_for_those_that_stall() {
        let now = Instant::now();
        let mut schedule = holding(20, now);
        let [prompt, ..] = &permits(&mut schedule, now)[..] else { panic!() };
        let refused = prompt.ticket;
        schedule.checked(refused, false, now);
        permits(&mut schedule, now);
        let later = now + Duration::from_secs(1);
        assert_eq!(schedule.permit(later).unwrap().subject, prompt.subject);
    }

    #[test]
    fn the_longest_overdue_is_checked_first() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        for number in 0..3 {
            let at = now + Duration::from_millis(10 - number as u64);
            schedule.announce("host", backend(number), 0, at);
            let due = schedule.visits(1, at).remove(0);
            schedule.visited(&due.subject, held(&due), at);
        }
        let urls: Vec<_> =
            permits(&mut schedule, now + STALL).iter().map(|permit| permit.backend.url().to_owned()).collect();
        assert_eq!(urls, ["http://b2", "http://b1", "http://b0"]);
    }

    #[test]
    fn a_bad_first_verdict_is_recorded_at_once() {
        let now = Instant::now();
        let mut schedule = holding(1, now);
        let permit = schedule.permit(now).unwrap();
        assert!(schedule.visits(1, now).is_empty());
        schedule.checked(permit.ticket, false, now);
        assert_eq!(schedule.visits(1, now)[0].visit.intent, Intent::Keep);
    }

    #[test]
    fn a_new_session_begins_with_every_backend_anew() {
        let now = Instant::now();
        let mut schedule = holding(8, now);
        let before = permits(&mut schedule, now);
        let later = now + LEASE;
        schedule.unsettle(later);
        for permit in &before {
            schedule.checked(permit.ticket, true, later);
        }
        assert_eq!((schedule.held(), schedule.len()), (0, 8));
        assert!(schedule.permit(later).is_none());
        assert!(schedule.visits(100, later).iter().all(|due| due.visit.intent == Intent::Claim));
    }
}
