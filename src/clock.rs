//! Points in time, and waiting for them. What must be small, or is handed to pure code, is counted in milliseconds since the process
//! began.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use tokio::time;

/// Milliseconds of monotonic time since the [`Clock`] was started; small enough to live in one atomic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Before every other moment: a deadline that has always passed.
    pub const PAST: Moment = Moment(0);

    /// The moment `millis` milliseconds after the clock's start.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the clock's start.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The moment `duration` later, saturating at the end of time. Rounded up to whole milliseconds, so that a deadline
    /// is never early.
    pub fn after(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// How long until `later`; zero when that has passed.
    pub fn until(self, later: Moment) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}

/// Turns the system's monotonic clock into [`Moment`]s. Copies agree with one another.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts a clock one second in the past, so that no moment it gives equals [`Moment::PAST`].
    pub fn start() -> Self {
        let now = Instant::now();
        Self { start: now.checked_sub(Duration::from_secs(1)).unwrap_or(now) }
    }

    /// The present moment.
    pub fn now(&self) -> Moment {
        self.at(Instant::now())
    }

    /// The moment of an instant already read, which spares a second look at the clock.
    pub fn at(&self, instant: Instant) -> Moment {
        let millis = instant.saturating_duration_since(self.start).as_millis();
        Moment(u64::try_from(millis).unwrap_or(u64::MAX))
    }
}

/// Waits until the deadline; for ever if there is none.
pub async fn reached(deadline: Option<time::Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_never_early() {
        let now = Moment::from_millis(10);
        assert_eq!(now.after(Duration::from_micros(1)), Moment::from_millis(11));
        assert_eq!(now.after(Duration::from_millis(5)), Moment::from_millis(15));
        assert_eq!(now.after(Duration::MAX), Moment::from_millis(u64::MAX));
    }

    #[test]
    fn time_left_does_not_go_below_zero() {
        assert_eq!(Moment::from_millis(9).until(Moment::from_millis(4)), Duration::ZERO);
    }
}
