//! What requests are doing at the moment, as counts that each worker keeps for itself.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

/// What a request is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is looked into, and no backend is asked yet.
    Routing,
    /// A backend is connected to, or its answer is waited for.
    Backend,
    /// Its answer is on its way to the client.
    Response,
    /// It has become a tunnel.
    Tunnel,
}

/// The counts of all workers.
#[derive(Default)]
pub struct Activities(Mutex<Vec<Arc<Activity>>>);

/// One worker's counts.
#[derive(Default)]
pub struct Activity([AtomicI64; PHASES.len()]);

/// One request among the counts, for as long as it lives.
pub struct InPhase {
    activity: Arc<Activity>,
    phase: Phase,
}

impl Activities {
    /// The counts of one more worker.
    pub fn join(&self) -> Arc<Activity> {
        let activity = Arc::<Activity>::default();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&activity));
        activity
    }

    /// How many requests are in each phase.
    pub fn totals(&self) -> [(Phase, i64); PHASES.len()] {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total = |phase: Phase| all.iter().map(|one| one.count(phase).load(Ordering::Relaxed)).sum();
        PHASES.map(|phase| (phase, total(phase)))
    }
}

impl Activity {
    /// Counts a request that begins now.
    pub fn begin(self: &Arc<Self>) -> InPhase {
        self.count(Phase::Routing).fetch_add(1, Ordering::Relaxed);
        InPhase { activity: Arc::clone(self), phase: Phase::Routing }
    }

    fn count(&self, phase: Phase) -> &AtomicI64 {
        &self.0[phase as usize]
    }
}

impl InPhase {
    /// The request goes on to this phase.
    pub fn enter(&mut self, phase: Phase) {
        self.activity.count(self.phase).fetch_sub(1, Ordering::Relaxed);
        self.activity.count(phase).fetch_add(1, Ordering::Relaxed);
        self.phase = phase;
    }

    /// Where the request is.
    pub fn phase(&self) -> Phase {
        self.phase
    }
}

impl Drop for InPhase {
    fn drop(&mut self) {
        self.activity.count(self.phase).fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Routing => "routing",
            Self::Backend => "waiting for a backend",
            Self::Response => "responding",
            Self::Tunnel => "tunnels",
        })
    }
}

const PHASES: [Phase; 4] = [Phase::Routing, Phase::Backend, Phase::Response, Phase::Tunnel];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_counted_where_it_is() {
        let activities = Activities::default();
        let (one, other) = (activities.join(), activities.join());
        let (mut first, second) = (one.begin(), other.begin());
        first.enter(Phase::Backend);
        let counts = || activities.totals().map(|(_, count)| count);
        assert_eq!(counts(), [1, 1, 0, 0]);
        first.enter(Phase::Tunnel);
        drop(second);
        assert_eq!(counts(), [0, 0, 0, 1]);
        drop(first);
        assert_eq!(counts(), [0; 4]);
    }
}
