//! How many retries a frontend's requests may cost, so that trouble does not multiply itself. Who goes on because a backend has
//! just left rotation need not ask: such retries end by themselves.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Moment;

/// The requests and the retries of the last ten seconds. The first twenty of each second are free; those beyond
/// them may be a fifth of the window's requests.
///
/// Several threads may overrun the budget by a retry each.
#[derive(Debug, Default)]
pub struct RetryBudget {
    seconds: [AtomicU64; SECONDS],
}

/// What happened within one second, in one word, so that it changes in one step.
#[derive(Clone, Copy, Default)]
struct Second {
    number: u64,
    requests: u64,
    retries: u64,
}

impl RetryBudget {
    /// A request, whose first attempt costs nothing.
    pub fn count_request(&self, now: Moment) {
        self.change(now, |second| second.requests += 1);
    }

    /// Whether a request may be tried once more; counted if it may.
    pub fn allows_retry(&self, now: Moment) -> bool {
        let number = number_of(now);
        let (mut requests, mut charged, mut current) = (0, 0, 0);
        for second in self.seconds.iter().map(|word| Second::unpack(word.load(Ordering::Relaxed))) {
            // One that another thread has just begun may be ahead of `now`.
            if number.wrapping_sub(second.number) % NUMBERS < WINDOW {
                requests += second.requests;
                charged += second.retries.saturating_sub(FREE_RETRIES);
                if second.number == number {
                    current += second.retries;
                }
            }
        }
        let allows = current < FREE_RETRIES || (charged + 1) * REQUESTS_PER_RETRY <= requests;
        if allows {
            self.change(now, |second| second.retries += 1);
        }
        allows
    }

    fn change(&self, now: Moment, change: impl Fn(&mut Second)) {
        let number = number_of(now);
        let word = &self.seconds[(number % WINDOW) as usize];
        // Never refused, because the new value is always there.
        let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            let mut second = Second::unpack(held);
            if second.number != number {
                second = Second { number, ..Second::default() };
            }
            change(&mut second);
            Some(second.pack())
        });
    }
}

impl Second {
    fn unpack(word: u64) -> Self {
        Self { number: word >> (2 * COUNT_BITS), requests: word >> COUNT_BITS & MOST, retries: word & MOST }
    }

    fn pack(self) -> u64 {
        self.number << (2 * COUNT_BITS) | self.requests.min(MOST) << COUNT_BITS | self.retries.min(MOST)
    }
}

/// The number of a second, as far as it is kept: it comes again after half a year.
fn number_of(now: Moment) -> u64 {
    now.as_millis() / 1_000 % NUMBERS
}

/// Seconds that are looked back.
const SECONDS: usize = 10;
const WINDOW: u64 = SECONDS as u64;

/// Retries in each second that need no requests to justify them.
pub const FREE_RETRIES: u64 = 20;

/// Requests that justify one retry.
const REQUESTS_PER_RETRY: u64 = 5;

/// Bits of each count.
const COUNT_BITS: u32 = 20;
const MOST: u64 = (1 << COUNT_BITS) - 1;
const NUMBERS: u64 = 1 << (64 - 2 * COUNT_BITS);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_millis(seconds * 1_000)
    }

    fn allowed(budget: &RetryBudget, now: Moment, asked: u64) -> u64 {
        (0..asked).map(|_| u64::from(budget.allows_retry(now))).sum()
    }

    #[test]
    fn the_first_of_each_second_are_free() {
        let budget = RetryBudget::default();
        assert_eq!(allowed(&budget, at(1), 100), FREE_RETRIES);
        assert_eq!(allowed(&budget, at(2), 100), FREE_RETRIES);
    }

    #[test]
    fn beyond_them_a_fifth_of_the_requests_may_be_retries() {
        let budget = RetryBudget::default();
        for second in 1..=4 {
            (0..250).for_each(|_| budget.count_request(at(second)));
        }
        assert_eq!(allowed(&budget, at(4), 1_000), FREE_RETRIES + 200);
        assert_eq!(allowed(&budget, at(5), 1_000), FREE_RETRIES);
        // The requests of the first second are forgotten, and with them their share; what is free is not.
        assert_eq!(allowed(&budget, at(1 + WINDOW), 1_000), FREE_RETRIES);
    }

    #[test]
    fn what_is_long_ago_does_not_count() {
        let budget = RetryBudget::default();
        (0..1_000).for_each(|_| budget.count_request(at(1)));
        assert_eq!(allowed(&budget, at(1 + WINDOW), 100), FREE_RETRIES);
    }

    #[test]
    fn counts_that_are_full_stay_so() {
        let full = Second { number: 7, requests: MOST + 5, retries: MOST + 5 };
        let held = Second::unpack(full.pack());
        assert_eq!((held.number, held.requests, held.retries), (7, MOST, MOST));
    }

    proptest! {
        #[test]
        fn the_share_is_never_exceeded(steps in proptest::collection::vec((0..3_000u64, 0..200u64, 0..200u64), 1..40)) {
            let budget = RetryBudget::default();
            let (mut now, mut requests, mut retries) = (0, 0, 0);
            let mut free = std::collections::BTreeSet::new();
            for (pause, asked, retried) in steps {
                now += pause;
                let moment = Moment::from_millis(now);
                (0..asked).for_each(|_| budget.count_request(moment));
                requests += asked;
                retries += allowed(&budget, moment, retried);
                free.insert(now / 1_000);
            }
            prop_assert!(retries <= requests / REQUESTS_PER_RETRY + FREE_RETRIES * free.len() as u64);
        }
    }
}
