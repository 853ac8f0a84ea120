//! Which checks may run at the same time. Pure.

/// How a backend's checks have gone so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pace {
    /// The last one ended promptly, either way.
    Prompt,
    /// There was none yet.
    Unknown,
    /// The last one stalled.
    Stalled,
}

/// The checks that run. Of the five slots, those that stall can fill only three, and with those that may only four, so that
/// a backend which used to answer promptly, with a refusal at least, never waits for the others.
#[derive(Debug, Default)]
pub struct Slots {
    running: [usize; 3],
}

impl Pace {
    /// All of them, in the order in which they are served.
    pub const ALL: [Self; 3] = [Self::Prompt, Self::Unknown, Self::Stalled];

    /// The place in [`Pace::ALL`].
    pub fn rank(self) -> usize {
        self as usize
    }
}

impl Slots {
    /// Whether a check of this pace may begin.
    pub fn admits(&self, pace: Pace) -> bool {
        let [prompt, unknown, stalled] = self.running;
        prompt + unknown + stalled < MOST
            && match pace {
                Pace::Prompt => true,
                Pace::Unknown => unknown + stalled < MOST_DOUBTFUL,
                Pace::Stalled => unknown + stalled < MOST_DOUBTFUL && stalled < MOST_STALLED,
            }
    }

    /// A check of this pace begins.
    pub fn take(&mut self, pace: Pace) {
        self.running[pace.rank()] += 1;
    }

    /// A check that began at this pace has ended.
    pub fn free(&mut self, pace: Pace) {
        self.running[pace.rank()] -= 1;
    }
}

/// Checks at the same time.
const MOST: usize = 5;

/// Those among them that are not known to be prompt.
const MOST_DOUBTFUL: usize = 4;

/// Those among them that are known to stall.
const MOST_STALLED: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(slots: &mut Slots, pace: Pace) -> usize {
        let mut count = 0;
        while slots.admits(pace) {
            slots.take(pace);
            count += 1;
        }
        count
    }

    #[test]
    fn each_pace_leaves_room_for_the_better_ones() {
        let mut slots = Slots::default();
        assert_eq!(Pace::ALL.map(Pace::rank), [0, 1, 2]);
        assert_eq!(fill(&mut slots, Pace::Stalled), 3);
        assert_eq!(fill(&mut slots, Pace::Unknown), 1);
        assert_eq!(fill(&mut slots, Pace::Prompt), 1);
        assert_eq!(fill(&mut Slots::default(), Pace::Unknown), 4);
        assert_eq!(fill(&mut Slots::default(), Pace::Prompt), 5);
    }

    #[test]
    fn a_check_that_ends_makes_room() {
        let mut slots = Slots::default();
        fill(&mut slots, Pace::Unknown);
        assert!(!slots.admits(Pace::Stalled));
        slots.free(Pace::Unknown);
        assert!(slots.admits(Pace::Stalled));
    }
}
