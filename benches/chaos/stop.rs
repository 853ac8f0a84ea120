//! The wish to end early, which every wait of the campaign heeds.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Whether the campaign was asked to end.
#[derive(Default)]
pub struct Stop(AtomicBool);

impl Stop {
    /// Asks everybody to end.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether to end.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sleeps.
    ///
    /// # Errors
    /// When the campaign is to end.
    pub fn pause(&self, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        loop {
            anyhow::ensure!(!self.is_requested(), "interrupted");
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}
