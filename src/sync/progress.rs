//! How far a long load has come: for the log, a metric, and whoever sits before a terminal.

use std::{
    convert::Infallible,
    fmt,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use prometheus::Gauge;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tracing::info;

/// What is known of a walk that is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Keys that have been read.
    pub read: usize,
    /// About how many there are to read.
    pub of: usize,
}

impl Estimate {
    /// What a walk has come to that has passed over so many of the database's keys, whosever they are, and found so many of
    /// ours on the way, of which so many have been read.
    pub fn new(passed: usize, all: u64, found: usize, read: usize) -> Self {
        let of = (found as u128 * u128::from(all)).checked_div(passed as u128).unwrap_or_default();
        Self { read, of: usize::try_from(of).unwrap_or(usize::MAX).max(found) }
    }

    /// How much of it is read, from 0 to 1.
    pub fn share(self) -> f64 {
        let millionths = (self.read as u128 * MILLION).checked_div(self.of as u128).unwrap_or_default();
        f64::from(u32::try_from(millionths.min(MILLION)).unwrap_or_default()) / 1e6
    }

    /// How long the rest takes, if it goes on as it has in this time.
    fn left(self, took: Duration) -> Option<Duration> {
        let share = self.share();
        (share > 0.0).then(|| took.mul_f64((1.0 - share) / share))
    }
}

/// Tells of one load. A short one is over before there is anything to tell.
pub struct Progress {
    began: Instant,
    gauge: Gauge,
    bar: Option<Bar>,
    due: Interval,
    estimate: Estimate,
}

impl Progress {
    /// At the beginning of a load.
    pub fn begin(gauge: &Gauge) -> Self {
        gauge.set(0.0);
        let terminal = io::stderr();
        let bar = terminal.is_terminal().then(|| Bar { terminal });
        let period = if bar.is_some() { REDRAWN } else { SAID };
        let began = Instant::now();
        let mut due = interval_at(began + SAID, period);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { began, gauge: gauge.clone(), bar, due, estimate: Estimate::default() }
    }

    /// It has come so far.
    pub fn note(&mut self, estimate: Estimate) {
        self.estimate = estimate;
        self.gauge.set(estimate.share());
    }

    /// Tells of it whenever that is due; never ends. Cancel-safe.
    pub async fn tell(&mut self) -> Infallible {
        loop {
            self.due.tick().await;
            let (estimate, left) = (self.estimate, self.estimate.left(self.began.elapsed()));
            if let Some(bar) = &mut self.bar {
                bar.draw(&Drawing { estimate, left });
            } else {
                let Estimate { read, of } = estimate;
                info!(read, of_about = of, left = ?left.map(seconds), "loading the routing table");
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.gauge.set(1.0);
    }
}

/// A line on the terminal that is written again and again. The cursor is left at its beginning, so that a line of the log
/// takes its place, and the bar comes back below.
struct Bar {
    terminal: io::Stderr,
}

impl Bar {
    fn draw(&mut self, drawing: &Drawing) {
        // A terminal that is gone needs none.
        let _ = write!(self.terminal, "\r{ERASE}{drawing}\r");
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        let _ = write!(self.terminal, "\r{ERASE}");
    }
}

struct Drawing {
    estimate: Estimate,
    left: Option<Duration>,
}

impl fmt::Display for Drawing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Estimate { read, of } = self.estimate;
        let full = (read * WIDTH).checked_div(of).unwrap_or_default().min(WIDTH);
        let (full, empty) = ("#".repeat(full), "-".repeat(WIDTH - full));
        write!(f, "[{full}{empty}] {read} of about {of} keys")?;
        match self.left {
            Some(left) => write!(f, ", {:?} left", seconds(left)),
            None => Ok(()),
        }
    }
}

fn seconds(left: Duration) -> Duration {
    Duration::from_secs(left.as_secs() + u64::from(left.subsec_nanos() > 0))
}

/// How often a line of the log is written, which is also how long a load takes at least before there is one.
const SAID: Duration = Duration::from_secs(1);

/// How often the bar is drawn.
const REDRAWN: Duration = Duration::from_millis(200);

const MILLION: u128 = 1_000_000;

/// Characters of the bar.
const WIDTH: usize = 30;

/// What erases the cursor's line (ECMA-48 section 8.3.41).
const ERASE: &str = "\x1b[2K";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_reckoned_from_what_has_been_passed() {
        let estimate = Estimate::new(2_500, 10_000, 1_000, 900);
        assert_eq!(estimate, Estimate { read: 900, of: 4_000 });
        assert_eq!(estimate.left(Duration::from_secs(9)).map(seconds), Some(Duration::from_secs(31)));
        let drawing = Drawing { estimate, left: estimate.left(Duration::from_millis(8_999)) };
        assert_eq!(drawing.to_string(), "[######------------------------] 900 of about 4000 keys, 31s left");
    }

    #[test]
    fn a_walk_that_has_not_begun_or_finds_more_than_there_were_is_no_trouble() {
        assert!(Estimate::default().share() < 0.001);
        assert_eq!(Estimate::default().left(Duration::from_secs(1)), None);
        assert_eq!(Estimate::new(0, 0, 0, 0), Estimate::default());
        let grown = Estimate::new(5_000, 1_000, 4_000, 4_000);
        assert!(grown.of == 4_000 && grown.share() > 0.999);
        assert_eq!(Drawing { estimate: Estimate::default(), left: None }.to_string().matches('-').count(), WIDTH);
    }
}
