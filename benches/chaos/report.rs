//! What came of a campaign, as Markdown.

use std::{
    collections::BTreeMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::load::{Failure, Load};

/// The figures of one seed.
#[derive(Default)]
pub struct Report {
    /// What it was drawn from.
    pub seed: u64,
    /// How long it took.
    pub time: Duration,
    /// How often each kind of fault came.
    pub faults: BTreeMap<String, usize>,
    /// Edits made.
    pub edits: u64,
    /// How long it took to agree, each time, and after what.
    pub convergence: Vec<(Duration, String)>,
    /// `planb_sync_drift_total`
    pub drift: f64,
    /// Of the drift, on hosts with an EXPIRE.
    pub drift_excused: usize,
    /// `planb_sync_resyncs_total`
    pub resyncs: f64,
    /// The proxy's CPU seconds.
    pub cpu: f64,
    /// The proxy's peak memory in megabytes.
    pub memory: u64,
    /// What must not be.
    pub violations: Vec<String>,
    failures: Vec<Failure>,
    steady: u64,
    steady_failed: u64,
    pardoned: u64,
    others: u64,
    others_unrouted: u64,
    others_failed: u64,
}

impl Report {
    /// An empty report on a seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Takes over what the clients have seen.
    pub fn take(&mut self, load: &Load) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.steady = count(&load.tally.steady);
        self.steady_failed = count(&load.tally.steady_failed);
        self.pardoned = count(&load.tally.pardoned);
        self.others = count(&load.tally.others);
        self.others_unrouted = count(&load.tally.others_unrouted);
        self.others_failed = count(&load.tally.others_failed);
        self.failures = load.failures();
    }

    /// Whether nothing happened that must not.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty() && self.steady_failed == 0 && self.others_failed == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut times = self.convergence.clone();
        times.sort();
        let (worst, scene) = times.last().cloned().unwrap_or_default();
        let median = times.get(times.len() / 2).map(|(time, _)| *time).unwrap_or_default();
        let verdict = if self.is_clean() { "nothing amiss" } else { "VIOLATIONS" };
        writeln!(out, "## Seed {}: {verdict}\n", self.seed)?;
        writeln!(out, "| | |\n|---|--:|")?;
        writeln!(out, "| duration | {:.1} s |", self.time.as_secs_f64())?;
        writeln!(out, "| faults | {} |", self.faults.values().sum::<usize>())?;
        writeln!(out, "| edits | {} |", self.edits)?;
        writeln!(out, "| requests to never-edited hosts | {} |", self.steady)?;
        writeln!(out, "| failures of these | {} |", self.steady_failed)?;
        writeln!(out, "| failures of these while FLUSHDB was in force | {} |", self.pardoned)?;
        writeln!(out, "| requests to edited hosts | {} |", self.others)?;
        writeln!(out, "| answered 400 or 503, legally | {} |", self.others_unrouted)?;
        writeln!(out, "| answered illegally | {} |", self.others_failed)?;
        writeln!(out, "| calms | {} |", times.len())?;
        writeln!(out, "| median time to converge | {:.3} s |", median.as_secs_f64())?;
        writeln!(out, "| worst time to converge | {:.3} s |", worst.as_secs_f64())?;
        writeln!(out, "| drift | {}, {} of it by EXPIRE |", self.drift, self.drift_excused)?;
        writeln!(out, "| reloads | {} |", self.resyncs)?;
        writeln!(out, "| the proxy's CPU | {:.1} s |", self.cpu)?;
        writeln!(out, "| the proxy's peak memory | {} MB |", self.memory)?;
        writeln!(out, "\nThe worst convergence came after: {scene}\n")?;
        writeln!(out, "| fault | times |\n|---|--:|")?;
        for (kind, times) in &self.faults {
            writeln!(out, "| {kind} | {times} |")?;
        }
        if !self.violations.is_empty() {
            writeln!(out, "\nViolations:\n")?;
            self.violations.iter().try_for_each(|violation| writeln!(out, "- {violation}"))?;
        }
        if !self.failures.is_empty() {
            writeln!(out, "\nThe first failed requests:\n\n| at | host | answer | in force |\n|--:|---|---|---|")?;
            for Failure { at, host, scene, answer } in &self.failures {
                writeln!(out, "| {:.2} s | {host} | {answer} | {scene} |", at.as_secs_f64())?;
            }
        }
        Ok(())
    }
}
