//! Whether to believe a Redis that has much less to say than before. Pure: no Redis, no clock.
//!
//! A Redis that restarts without its data, or a replica that copies such a master, looks just like one whose operator has
//! deleted everything. What tells them apart is whether it is the server that the table was loaded from: an operator's
//! deletion arrives from that one, a loss of data comes with another.

use std::time::Duration;

use crate::{clock::Moment, store::Identity};

/// What a whole load has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Entries that the table held before.
    pub held: usize,
    /// How many of them Redis does not mention.
    pub lost: usize,
    /// Entries that Redis mentions.
    pub found: usize,
}

/// What to do about entries that Redis does not mention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// They are gone.
    Believe,
    /// Keep them until then.
    Hold {
        /// When to believe it after all.
        until: Moment,
        /// Whether this is the beginning.
        is_new: bool,
    },
}

/// The judge of one read Redis.
pub struct Trust {
    grace: Duration,
    believed: Option<Identity>,
    until: Option<Moment>,
}

impl Trust {
    /// A judge that holds what seems lost for `grace`; not at all if that is zero.
    pub fn new(grace: Duration) -> Self {
        Self { grace, believed: None, until: None }
    }

    /// The table comes from this server, though not in this process's life.
    pub fn inherit(&mut self, identity: Identity) {
        self.believed = Some(identity);
    }

    /// Judges a server after a whole load from it.
    pub fn judge(&mut self, identity: &Identity, evidence: &[Evidence], now: Moment) -> Judgement {
        let is_known = self.believed.as_ref() == Some(identity) && *identity != Identity::default();
        let is_suspicious = !is_known && evidence.iter().any(Evidence::is_suspicious);
        if !is_suspicious || self.grace.is_zero() || self.until.is_some_and(|until| until <= now) {
            self.believed = Some(identity.clone());
            self.until = None;
            return Judgement::Believe;
        }
        let is_new = self.until.is_none();
        let until = *self.until.get_or_insert_with(|| now.after(self.grace));
        Judgement::Hold { until, is_new }
    }

    /// Until when entries are held that Redis does not mention, if any are.
    pub fn holds_until(&self) -> Option<Moment> {
        self.until
    }

    /// The server that the table agrees with.
    pub fn believed(&self) -> Option<&Identity> {
        self.believed.as_ref()
    }
}

impl Evidence {
    fn is_suspicious(&self) -> bool {
        self.held > 0 && (self.found == 0 || self.lost >= FEW && self.lost > self.held / 2)
    }
}

/// Losing fewer entries than this is nothing to wonder at.
const FEW: usize = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GRACE: Duration = Duration::from_millis(100);
    const ALL_LOST: Evidence = Evidence { held: 5, lost: 5, found: 0 };
    const NOTHING_LOST: Evidence = Evidence { held: 5, lost: 0, found: 5 };

    fn server(run: &str) -> Identity {
        Identity { run: run.to_owned(), history: "h".to_owned() }
    }

    fn at(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    fn judge_of(first: &str) -> Trust {
        let mut trust = Trust::new(GRACE);
        assert_eq!(trust.judge(&server(first), &[Evidence { held: 0, lost: 0, found: 5 }], at(0)), Judgement::Believe);
        trust
    }

    #[test]
    fn the_server_itself_is_believed_whatever_it_has_lost() {
        let mut trust = judge_of("one");
        assert_eq!(trust.judge(&server("one"), &[ALL_LOST], at(1)), Judgement::Believe);
        assert_eq!(trust.holds_until(), None);
    }

    #[test]
    fn another_server_without_anything_is_believed_after_the_grace() {
        let mut trust = judge_of("one");
        let hold = |is_new| Judgement::Hold { until: at(110), is_new };
        assert_eq!(trust.judge(&server("two"), &[ALL_LOST], at(10)), hold(true));
        assert_eq!(trust.judge(&server("two"), &[ALL_LOST], at(109)), hold(false));
        assert_eq!(trust.judge(&server("three"), &[ALL_LOST], at(109)), hold(false), "a further restart buys no time");
        assert_eq!(trust.judge(&server("two"), &[ALL_LOST], at(110)), Judgement::Believe);
        assert_eq!(trust.judge(&server("two"), &[ALL_LOST], at(111)), Judgement::Believe);
    }

    #[test]
    fn a_server_whose_data_comes_back_is_believed_at_once() {
        let mut trust = judge_of("one");
        trust.judge(&server("two"), &[ALL_LOST], at(10));
        assert_eq!(trust.judge(&server("two"), &[NOTHING_LOST], at(20)), Judgement::Believe);
        assert_eq!(trust.holds_until(), None);
        assert!(matches!(trust.judge(&server("three"), &[ALL_LOST], at(200)), Judgement::Hold { is_new: true, .. }));
    }

    #[test]
    fn a_copy_of_another_history_is_another_server() {
        let mut trust = judge_of("one");
        let other = Identity { history: "other".to_owned(), ..server("one") };
        assert!(matches!(trust.judge(&other, &[ALL_LOST], at(1)), Judgement::Hold { .. }));
    }

    #[test]
    fn a_server_that_does_not_say_who_it_is_is_never_known() {
        let mut trust = Trust::new(GRACE);
        trust.judge(&Identity::default(), &[NOTHING_LOST], at(0));
        assert!(matches!(trust.judge(&Identity::default(), &[ALL_LOST], at(1)), Judgement::Hold { .. }));
    }

    #[test]
    fn small_losses_are_no_wonder() {
        for (held, lost, found, is_suspicious) in [
            (0, 0, 0, false),
            (1, 1, 0, true),
            (9, 8, 1, false),
            (18, 9, 9, false),
            (19, 10, 9, true),
            (20, 10, 10, false),
            (1_000, 500, 500, false),
            (1_000, 501, 499, true),
            (1_000, 501, 5_000, true),
        ] {
            let evidence = Evidence { held, lost, found };
            assert_eq!(evidence.is_suspicious(), is_suspicious, "{evidence:?}");
        }
    }

    #[test]
    fn without_grace_everything_is_believed() {
        let mut trust = Trust::new(Duration::ZERO);
        trust.inherit(server("one"));
        assert_eq!(trust.judge(&server("two"), &[ALL_LOST], at(1)), Judgement::Believe);
    }

    #[test]
    fn what_was_inherited_is_held_too() {
        let mut trust = Trust::new(GRACE);
        trust.inherit(server("one"));
        assert!(matches!(trust.judge(&server("two"), &[ALL_LOST], at(1)), Judgement::Hold { .. }));
        let mut trust = Trust::new(GRACE);
        trust.inherit(server("one"));
        assert_eq!(trust.judge(&server("one"), &[ALL_LOST], at(1)), Judgement::Believe);
    }

    proptest! {
        #[test]
        fn a_hold_ends_in_time_whatever_the_servers_do(steps in proptest::collection::vec((0u8..4, 1u64..40), 1..60)) {
            let mut trust = judge_of("0");
            let (mut now, mut began) = (0, None);
            for (run, passed) in steps {
                now += passed;
                match trust.judge(&server(&run.to_string()), &[ALL_LOST], at(now)) {
                    Judgement::Believe => began = None,
                    Judgement::Hold { until, .. } => {
                        let began = *began.get_or_insert(now);
                        prop_assert_eq!(until, at(began + 100));
                        prop_assert!(now < began + 100);
                    }
                }
            }
        }
    }
}
