//! Which dead marks are to be written, and which have been. Pure: no Redis, no clock.
//!
//! A master acknowledges a mark before any replica has it, and in a planned fail-over the old one takes writes for seconds
//! after another has been promoted; what it was told meanwhile is lost. So what has been written is remembered until it
//! expires, and is due again once there is another master.

use std::collections::{HashMap, hash_map::Entry};

use crate::clock::Moment;
use crate::routing::DeadMark;

use super::whereabouts::Home;

/// The newest mark of each backend.
pub struct Ledger {
    most: usize,
    pending: HashMap<Key, Pending>,
    written: HashMap<Key, Moment>,
    home: Option<Home>,
}

/// A frontend's key, and a backend's URL.
pub type Key = (Box<str>, Box<str>);

/// A mark that is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// When it expires.
    pub until: Moment,
    /// Whether it has been written before, to another server.
    pub is_repeat: bool,
}

impl Ledger {
    /// A ledger that holds at most so many pending and so many written marks.
    pub fn new(most: usize) -> Self {
        Self { most, pending: HashMap::new(), written: HashMap::new(), home: None }
    }

    /// Takes in a new mark; `false` if there is no room for it.
    pub fn keep(&mut self, mark: DeadMark, now: Moment) -> bool {
        if self.pending.len() >= self.most {
            self.forget_expired(now);
        }
        let is_full = self.pending.len() >= self.most;
        let new = Pending { until: mark.until, is_repeat: false };
        match self.pending.entry((mark.frontend, mark.url)) {
            Entry::Occupied(mut held) => *held.get_mut() = new,
            Entry::Vacant(_) if is_full => return false,
            Entry::Vacant(entry) => {
                entry.insert(new);
            }
        }
        true
    }

    /// Drops what has expired.
    pub fn forget_expired(&mut self, now: Moment) {
        self.pending.retain(|_, mark| mark.until > now);
        self.written.retain(|_, until| *until > now);
    }

    /// Marks are written to this one from now on. If it is not where they were written before, those are due again.
    pub fn settle(&mut self, home: Home) {
        if self.home.as_ref().is_some_and(|before| *before != home) {
            for (key, until) in self.written.drain() {
                if self.pending.len() < self.most {
                    self.pending.entry(key).or_insert(Pending { until, is_repeat: true });
                }
            }
        }
        self.home = Some(home);
    }

    /// What is to be written: first what is new, and that which expires last at the end, since each sets the expiry of all
    /// marks of its frontend.
    pub fn due(&self) -> Vec<(Key, Pending)> {
        let mut due: Vec<_> = self.pending.iter().map(|(key, mark)| (key.clone(), *mark)).collect();
        due.sort_by_key(|(_, mark)| (mark.is_repeat, mark.until));
        due
    }

    /// A mark has been written.
    pub fn written(&mut self, key: Key, now: Moment) {
        let Some(mark) = self.pending.remove(&key) else { return };
        if self.written.len() >= self.most {
            self.forget_expired(now);
        }
        if self.written.len() < self.most {
            self.written.insert(key, mark.until);
        }
    }

    /// A mark need not be written any more.
    pub fn forget(&mut self, key: &Key) {
        self.pending.remove(key);
    }

    /// How many marks are to be written.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(url: &str, until: u64) -> DeadMark {
        DeadMark { frontend: "a.test".into(), url: url.into(), until: Moment::from_millis(until) }
    }

    fn home(server: &str, history: &str) -> Home {
        Home { server: server.to_owned(), history: history.to_owned() }
    }

    fn due(ledger: &Ledger) -> Vec<(String, u64, bool)> {
        let due = ledger.due();
        due.into_iter().map(|((_, url), mark)| (url.into(), mark.until.as_millis(), mark.is_repeat)).collect()
    }

    fn write_all(ledger: &mut Ledger) {
        for (key, _) in ledger.due() {
            ledger.written(key, Moment::PAST);
        }
    }

    #[test]
    fn what_was_written_is_due_again_elsewhere() {
        let mut ledger = Ledger::new(10);
        ledger.settle(home("a", "1"));
        assert!(ledger.keep(mark("x", 20), Moment::PAST) && ledger.keep(mark("y", 10), Moment::PAST));
        assert_eq!(due(&ledger), [("y".into(), 10, false), ("x".into(), 20, false)]);
        write_all(&mut ledger);
        assert_eq!(ledger.pending(), 0);
        ledger.settle(home("a", "1"));
        assert_eq!(ledger.pending(), 0);
        ledger.settle(home("b", "1"));
        assert_eq!(due(&ledger), [("y".into(), 10, true), ("x".into(), 20, true)]);
        write_all(&mut ledger);
        ledger.keep(mark("z", 30), Moment::PAST);
        ledger.settle(home("b", "2"));
        assert_eq!(due(&ledger), [("z".into(), 30, false), ("y".into(), 10, true), ("x".into(), 20, true)]);
    }

    #[test]
    fn a_newer_mark_is_not_taken_for_a_repetition() {
        let mut ledger = Ledger::new(10);
        ledger.settle(home("a", "1"));
        ledger.keep(mark("x", 10), Moment::PAST);
        write_all(&mut ledger);
        ledger.keep(mark("x", 20), Moment::PAST);
        ledger.settle(home("b", "2"));
        assert_eq!(due(&ledger), [("x".into(), 20, false)]);
        ledger.forget(&("a.test".into(), "x".into()));
        assert_eq!(ledger.pending(), 0);
    }

    #[test]
    fn what_has_expired_is_forgotten() {
        let mut ledger = Ledger::new(10);
        ledger.settle(home("a", "1"));
        ledger.keep(mark("x", 10), Moment::PAST);
        write_all(&mut ledger);
        ledger.keep(mark("y", 10), Moment::PAST);
        ledger.forget_expired(Moment::from_millis(10));
        ledger.settle(home("b", "2"));
        assert_eq!(ledger.pending(), 0);
    }

    #[test]
    fn there_is_room_for_so_many() {
        let mut ledger = Ledger::new(2);
        ledger.settle(home("a", "1"));
        for url in ["x", "y"] {
            assert!(ledger.keep(mark(url, 10), Moment::PAST));
        }
        assert!(!ledger.keep(mark("z", 10), Moment::PAST));
        assert!(ledger.keep(mark("y", 20), Moment::PAST));
        assert!(ledger.keep(mark("z", 30), Moment::from_millis(10)));
        write_all(&mut ledger);
        ledger.keep(mark("v", 10), Moment::PAST);
        ledger.settle(home("b", "2"));
        assert_eq!(ledger.pending(), 2);
    }
}
