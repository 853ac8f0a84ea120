//! Lines that are lost: why, how many, and what the operator is told of it.

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus::IntCounter;
use tracing::warn;

use crate::telemetry::metrics::LogMetrics;

/// Why a line is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Lines come faster than the target takes them.
    Slow,
    /// The disk, a quota or the process's limit of a file's size is full.
    NoSpace,
    /// Nobody is at the other end of the pipe or socket.
    NoReader,
    /// Any other error.
    Error,
}

impl Loss {
    const ALL: [Self; 4] = [Self::Slow, Self::NoSpace, Self::NoReader, Self::Error];

    /// Sorts what the system says of a write, or of an attempt to open.
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Self::NoSpace,
            Some(libc::ENXIO) => Self::NoReader,
            _ => match error.kind() {
                io::ErrorKind::BrokenPipe
                | io::ErrorKind::NotConnected
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset => Self::NoReader,
                _ => Self::Error,
            },
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::NoSpace => "no_space",
            Self::NoReader => "no_reader",
            Self::Error => "error",
        }
    }
}

/// What an operator should read of an error. The system's own text for a pipe without a reader is about devices.
pub fn explain(error: &io::Error) -> String {
    if error.raw_os_error() == Some(libc::ENXIO) { "nobody reads the pipe".to_owned() } else { error.to_string() }
}

/// The lines that one log has lost. Each reason is told of at once, and then at most once a minute.
pub struct Losses {
    log: &'static str,
    total: IntCounter,
    tallies: [Tally; Loss::ALL.len()],
    began: Instant,
}

/// The lines that were lost for one reason.
struct Tally {
    lost: IntCounter,
    /// How many of them were told of.
    told: AtomicU64,
    /// When it may be told of again, in milliseconds since the log was opened.
    next: AtomicU64,
    /// What the system said last.
    error: Mutex<Option<String>>,
}

impl Losses {
    /// None yet.
    pub fn new(metrics: &LogMetrics) -> Self {
        let tally = |loss: Loss| Tally {
            lost: metrics.lost(loss.label()),
            told: AtomicU64::new(0),
            next: AtomicU64::new(0),
            error: Mutex::new(None),
        };
        Self { log: metrics.name, total: metrics.dropped.clone(), tallies: Loss::ALL.map(tally), began: Instant::now() }
    }

    /// These lines found no room.
    pub fn count_slow(&self, lines: u64) {
        self.count(Loss::Slow, lines);
    }

    /// These lines are lost to an error.
    pub fn count_failed(&self, lines: u64, error: &io::Error) {
        let loss = Loss::of(error);
        let mut last = self.tallies[loss as usize].error.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(explain(error));
        drop(last);
        self.count(loss, lines);
    }

    fn count(&self, loss: Loss, lines: u64) {
        self.total.inc_by(lines);
        self.tallies[loss as usize].lost.inc_by(lines);
    }

    /// Tells of what was lost since it was told last, where that is long enough ago.
    pub fn tell(&self) {
        for tally in &self.tallies {
            if let Some(lines) = tally.news(self.began.elapsed()) {
                let error = tally.error.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let why = error.as_deref().unwrap_or("the log is written faster than its target takes it");
                warn!(lines, "{} log lines were dropped: {why}", self.log);
            }
        }
    }
}

impl Tally {
    /// How many lines there are to tell of now, if any. What is returned counts as told.
    fn news(&self, now: Duration) -> Option<u64> {
        let (lost, told) = (self.lost.get(), self.told.load(Ordering::Relaxed));
        if lost <= told {
            return None;
        }
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let next = self.next.load(Ordering::Relaxed);
        if now < next {
            return None;
        }
        // Of several threads, one tells.
        self.next.compare_exchange(next, now + TELL_EVERY, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        Some(lost - self.told.swap(lost, Ordering::Relaxed))
    }
}

/// Milliseconds.
const TELL_EVERY: u64 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn losses_are_sorted_by_what_the_system_says() {
        let sorted = |code| Loss::of(&io::Error::from_raw_os_error(code));
        assert_eq!(sorted(libc::ENOSPC), Loss::NoSpace);
        assert_eq!(sorted(libc::EDQUOT), Loss::NoSpace);
        assert_eq!(sorted(libc::EFBIG), Loss::NoSpace);
        assert_eq!(sorted(libc::EPIPE), Loss::NoReader);
        assert_eq!(sorted(libc::ENXIO), Loss::NoReader);
        assert_eq!(sorted(libc::ECONNREFUSED), Loss::NoReader);
        assert_eq!(sorted(libc::EIO), Loss::Error);
    }

    #[test]
    fn the_first_loss_is_told_at_once_and_the_next_a_minute_later() {
        let metrics = Metrics::new().unwrap();
        let losses = Losses::new(&metrics.access_lines);
        let tally = &losses.tallies[Loss::Slow as usize];
        let at = Duration::from_secs;
        assert_eq!(tally.news(at(0)), None);
        losses.count_slow(3);
        assert_eq!(tally.news(at(10)), Some(3));
        losses.count_slow(4);
        assert_eq!(tally.news(at(69)), None);
        losses.count_slow(1);
        assert_eq!(tally.news(at(70)), Some(5));
        assert_eq!(tally.news(at(1_000)), None);
    }

    #[test]
    fn every_loss_is_in_the_sum_and_under_its_reason() {
        let metrics = Metrics::new().unwrap();
        let losses = Losses::new(&metrics.access_lines);
        losses.count_slow(3);
        losses.count_failed(4, &io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(metrics.access_lines.dropped.get(), 7);
        assert_eq!((metrics.access_lines.lost("slow").get(), metrics.access_lines.lost("no_space").get()), (3, 4));
        assert_eq!(metrics.error_lines.dropped.get(), 0);
    }
}
