//! The end of the process, as every part sees it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// The drain: it begins with the first signal, and expires when time or patience has run out. Cloning shares it.
#[derive(Clone, Default)]
pub struct Drain {
    /// Set before anybody is woken. Every request looks at it, and the token would take a lock for that.
    has_begun: Arc<AtomicBool>,
    begun: CancellationToken,
    expired: CancellationToken,
}

impl Drain {
    /// No new work is taken from now on.
    pub fn begin(&self) {
        self.has_begun.store(true, Ordering::Release);
        self.begun.cancel();
    }

    /// What is still unfinished is given up.
    pub fn expire(&self) {
        self.begin();
        self.expired.cancel();
    }

    /// Whether the drain has begun.
    pub fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Acquire)
    }

    /// Waits for the drain to begin.
    pub fn begun(&self) -> WaitForCancellationFuture<'_> {
        self.begun.cancelled()
    }

    /// Waits for the drain to expire.
    pub fn expired(&self) -> WaitForCancellationFuture<'_> {
        self.expired.cancelled()
    }
}

/// How long requests and tunnels in flight may take to finish.
pub const DRAIN_LIMIT: Duration = Duration::from_mins(1);
