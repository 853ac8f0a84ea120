//! How many lines of one kind may be written.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// So many lines at once, and so many a second. What is above that is left out and counted, to be told of in one line when
/// the flood is over, or once a minute. Times are those since some moment that all callers agree on.
pub struct Allowance {
    /// Nanoseconds that a line costs.
    cost: u64,
    /// Nanoseconds that may be owed.
    credit: u64,
    /// Up to when what was written is paid for, in nanoseconds.
    paid_until: AtomicU64,
    /// Lines left out since that was told last.
    left_out: AtomicU64,
    /// When the last one was left out, in nanoseconds.
    last: AtomicU64,
    /// When it was told last, in nanoseconds; `u64::MAX` while it never was.
    told: AtomicU64,
}

impl Allowance {
    /// `per_second` lines a second, and as many as `at_once` after a pause. Neither is 0.
    pub const fn new(per_second: u64, at_once: u64) -> Self {
        let cost = SECOND / per_second;
        Self {
            cost,
            credit: cost * at_once,
            paid_until: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
            last: AtomicU64::new(0),
            told: AtomicU64::new(u64::MAX),
        }
    }

    /// Spends one line. Returns whether there was one to spend; if not, it counts as left out.
    pub fn spend(&self, now: Duration) -> bool {
        let now = nanoseconds(now);
        let after = |paid_until: u64| {
            let after = paid_until.max(now) + self.cost;
            (after - now <= self.credit).then_some(after)
        };
        if self.paid_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after).is_ok() {
            return true;
        }
        self.last.store(now, Ordering::Relaxed);
        self.left_out.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// How many lines were left out, where it is time to tell of it. It counts as told then.
    pub fn news(&self, now: Duration) -> Option<u64> {
        if self.left_out.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let now = nanoseconds(now);
        let is_over = now.saturating_sub(self.last.load(Ordering::Relaxed)) >= FLOOD_END;
        let told = self.told.load(Ordering::Relaxed);
        if !is_over && told != u64::MAX && now.saturating_sub(told) < TELL_EVERY {
            return None;
        }
        self.told.store(now, Ordering::Relaxed);
        Some(self.left_out.swap(0, Ordering::Relaxed))
    }

    /// How many lines were left out and not told of.
    pub fn rest(&self) -> Option<u64> {
        Some(self.left_out.swap(0, Ordering::Relaxed)).filter(|&lines| lines > 0)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2)
}

const SECOND: u64 = 1_000_000_000;

/// A flood is over when nothing was left out for so long.
const FLOOD_END: u64 = 2 * SECOND;

/// A flood that goes on is told of so often.
const TELL_EVERY: u64 = 60 * SECOND;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn spent(allowance: &Allowance, count: usize, now: Duration) -> usize {
        (0..count).filter(|_| allowance.spend(now)).count()
    }

    #[test]
    fn so_many_at_once_and_so_many_a_second() {
        let allowance = Allowance::new(100, 20);
        assert_eq!(spent(&allowance, 1_000, at(0)), 20);
        assert_eq!(spent(&allowance, 1_000, at(50)), 5);
        let in_ten_seconds: usize = (1..=1_000).map(|step| spent(&allowance, 10, at(50 + 10 * step))).sum();
        assert_eq!(in_ten_seconds, 1_000);
        assert_eq!(spent(&allowance, 1_000, at(3_600_000)), 20, "a pause earns no more than that");
    }

    #[test]
    fn a_flood_is_told_of_at_once_each_minute_and_at_its_end() {
        let allowance = Allowance::new(100, 20);
        assert_eq!(spent(&allowance, 20, at(0)), 20);
        assert_eq!(allowance.news(at(5_000)), None);
        spent(&allowance, 120, at(10_000));
        assert_eq!(allowance.news(at(10_000)), Some(100));
        spent(&allowance, 120, at(11_000));
        assert_eq!(allowance.news(at(11_900)), None, "it goes on");
        for second in 12..70 {
            spent(&allowance, 120, at(second * 1_000));
            assert_eq!(allowance.news(at(second * 1_000)), None);
        }
        spent(&allowance, 120, at(70_000));
        assert!(allowance.news(at(70_000)).is_some());
        spent(&allowance, 120, at(70_000));
        assert_eq!(allowance.news(at(71_999)), None);
        assert_eq!(allowance.news(at(72_000)), Some(120));
        assert_eq!(allowance.news(at(1_000_000)), None);
    }
}
