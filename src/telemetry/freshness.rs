//! Whether the routing table can be trusted to be current.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;

use crate::clock::Moment;

/// What `__ping__` and the snapshot's age are answered from. Written by the syncer, read by everyone.
pub struct StoreHealth {
    problem: ArcSwapOption<String>,
    agreed_at: AtomicU64,
    /// How old the table was at `agreed_at`, in milliseconds; 0 unless it came from a file.
    age_then: AtomicU64,
    /// Whether the table has ever agreed with Redis, in this process or an earlier one.
    is_loaded: AtomicBool,
}

impl StoreHealth {
    /// Unhealthy until the first load.
    pub fn starting(now: Moment) -> Self {
        Self {
            problem: ArcSwapOption::from_pointee("the routing table is not loaded yet".to_owned()),
            agreed_at: AtomicU64::new(now.as_millis()),
            age_then: AtomicU64::new(0),
            is_loaded: AtomicBool::new(false),
        }
    }

    /// The table is one that agreed with Redis so long ago, in an earlier process.
    pub fn inherited(&self, age: Duration) {
        self.age_then.store(u64::try_from(age.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.is_loaded.store(true, Ordering::Relaxed);
    }

    /// The table agreed with a usable read Redis at `now`.
    pub fn agreed(&self, now: Moment) {
        self.agreed_at.store(now.as_millis(), Ordering::Relaxed);
        self.age_then.store(0, Ordering::Relaxed);
        self.is_loaded.store(true, Ordering::Relaxed);
        self.problem.store(None);
    }

    /// The read Redis cannot be used, or what it says is old.
    pub fn impaired(&self, problem: String) {
        self.problem.store(Some(Arc::new(problem)));
    }

    /// Why the read Redis is not usable, if it is not.
    pub fn problem(&self) -> Option<Arc<String>> {
        self.problem.load_full()
    }

    /// Whether there is a table: until then, its age is that of the process.
    pub fn is_loaded(&self) -> bool {
        self.is_loaded.load(Ordering::Relaxed)
    }

    /// How long ago the table last agreed with Redis.
    pub fn age(&self, now: Moment) -> Duration {
        let since = Moment::from_millis(self.agreed_at.load(Ordering::Relaxed)).until(now);
        since + Duration::from_millis(self.age_then.load(Ordering::Relaxed))
    }
}
