//! Whether to believe that every change is announced. Pure: no Redis, no clock.
//!
//! Evidence comes from elsewhere: Redis says that its events are on, or enough of them have been heard. It is no proof, so
//! each walk through Redis is a test of it. An edit from just before the evidence was there may have gone unannounced, which
//! a walk that begins later finds; and one that goes unannounced while events are believed shows the evidence to be wrong.

/// The judge of one session's events.
#[derive(Debug)]
pub struct Belief {
    /// How many walks without an unannounced difference are wanted before events are believed.
    owed: u32,
    /// How often events that were believed have failed.
    failures: u32,
    walk: Walk,
}

/// What the present walk through Redis is good for.
#[derive(Debug, Default)]
struct Walk {
    /// Whether an unannounced difference would be one that events should have announced.
    counts: bool,
    /// Whether there has been evidence since it began, and no unannounced difference.
    is_clean: bool,
}

impl Belief {
    /// At the beginning of a session, with or without evidence. What is loaded with evidence needs no further walk.
    pub fn new(is_evident: bool) -> Self {
        Self { owed: u32::from(!is_evident), failures: 0, walk: Walk::default() }
    }

    /// Whether events are believed, given that there is evidence.
    pub fn holds(&self) -> bool {
        self.owed == 0
    }

    /// There is no evidence at present.
    pub fn lack_evidence(&mut self) {
        self.owed = self.owed.max(1);
        self.walk.is_clean = false;
    }

    /// A walk begins, with or without evidence.
    pub fn begin_walk(&mut self, is_evident: bool) {
        let counts = is_evident && (self.holds() || self.failures > 0);
        self.walk = Walk { counts, is_clean: is_evident };
    }

    /// Whether a difference that this walk finds, and that no event has announced, is the fault of events.
    pub fn counts(&self) -> bool {
        self.walk.counts
    }

    /// The walk has found a difference that no event has announced; returns whether events were believed until now.
    pub fn fail(&mut self) -> bool {
        let were_believed = self.holds();
        self.failures = self.failures.saturating_add(u32::from(were_believed));
        self.owed = match self.failures {
            0 => 1,
            failures => FIRST_PENANCE << (failures - 1).min(DOUBLINGS),
        };
        self.walk.is_clean = false;
        were_believed
    }

    /// The walk has ended.
    pub fn end_walk(&mut self) {
        self.owed = self.owed.saturating_sub(u32::from(self.walk.is_clean));
    }
}

/// How many walks are wanted after the first failure. One would be too few, for most seconds see no edit at all.
const FIRST_PENANCE: u32 = 10;

/// How often that doubles with further failures; so it is at most 1,280 walks, which take 20 minutes or more.
const DOUBLINGS: u32 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    /// How many clean walks it takes until events are believed.
    fn walks_until_believed(belief: &mut Belief) -> u32 {
        let mut walks = 0;
        while !belief.holds() {
            walk(belief);
            walks += 1;
        }
        walks
    }

    fn walk(belief: &mut Belief) {
        belief.begin_walk(true);
        belief.end_walk();
    }

    #[test]
    fn a_server_that_says_so_is_believed_at_once() {
        assert!(Belief::new(true).holds());
    }

    #[test]
    fn evidence_that_comes_later_is_believed_after_a_walk_that_began_with_it() {
        let mut belief = Belief::new(false);
        belief.begin_walk(false);
        belief.end_walk();
        assert!(!belief.holds(), "that one began without evidence");
        belief.begin_walk(true);
        belief.lack_evidence();
        belief.end_walk();
        assert!(!belief.holds(), "that one was without evidence for a while");
        belief.begin_walk(true);
        assert!(!belief.counts() && !belief.fail(), "an edit from before the evidence is no failure");
        belief.end_walk();
        assert!(!belief.holds());
        assert_eq!(walks_until_believed(&mut belief), 1);
    }

    #[test]
    fn evidence_that_is_lost_takes_a_walk_to_come_back() {
        let mut belief = Belief::new(true);
        belief.lack_evidence();
        assert_eq!(walks_until_believed(&mut belief), 1);
    }

    #[test]
    fn a_failure_is_news_once_and_costs_more_each_time() {
        let mut belief = Belief::new(true);
        for penance in [10, 20, 40, 80, 160, 320, 640, 1_280, 1_280, 1_280] {
            walk(&mut belief);
            belief.begin_walk(true);
            assert!(belief.fail() && !belief.fail() && belief.counts());
            belief.end_walk();
            assert_eq!(walks_until_believed(&mut belief), penance);
        }
    }

    #[test]
    fn a_difference_during_the_penance_begins_it_anew() {
        let mut belief = Belief::new(true);
        belief.begin_walk(true);
        belief.fail();
        belief.end_walk();
        for _ in 0..9 {
            walk(&mut belief);
        }
        belief.begin_walk(true);
        assert!(belief.counts() && !belief.fail());
        belief.end_walk();
        assert_eq!(walks_until_believed(&mut belief), 10);
    }
}
