//! Trying again: after growing pauses, and without filling the log.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// The pauses between attempts to reach a server, and what has been said about them.
pub struct Patience {
    longest: Duration,
    pauses: ExponentialBackoff,
    said: Option<(String, Instant)>,
}

impl Patience {
    /// Pauses grow, with jitter, from 25 ms to about `longest`.
    pub fn new(longest: Duration) -> Self {
        Self { longest, pauses: pauses(longest), said: None }
    }

    /// It worked: the next failure is a new one.
    pub fn renew(&mut self) {
        *self = Self::new(self.longest);
    }

    /// How long to wait before the next attempt.
    pub fn pause(&mut self) -> Duration {
        self.pauses.next().unwrap_or(self.longest)
    }

    /// Whether a failure is worth a line of the log: when it is another than the last, or that was long ago.
    pub fn is_news(&mut self, failure: &str) -> bool {
        if self.said.as_ref().is_some_and(|(said, when)| said == failure && when.elapsed() < REPEAT) {
            return false;
        }
        self.said = Some((failure.to_owned(), Instant::now()));
        true
    }
}

fn pauses(longest: Duration) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(Duration::from_millis(25).min(longest))
        .with_max_delay(longest)
        .without_max_times()
        .build()
}

/// How often the same failure is said again.
const REPEAT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_is_said_once() {
        let mut patience = Patience::new(Duration::from_secs(1));
        assert!(patience.is_news("refused"));
        assert!(!patience.is_news("refused"));
        assert!(patience.is_news("silent"));
        patience.renew();
        assert!(patience.is_news("silent"));
    }

    #[test]
    fn pauses_grow_to_their_limit_and_never_end() {
        let mut patience = Patience::new(Duration::from_secs(1));
        assert!(patience.pause() < Duration::from_millis(100));
        // The limit, and as much again of jitter.
        assert!((0..100).all(|_| patience.pause() <= Duration::from_secs(2)));
    }
}
