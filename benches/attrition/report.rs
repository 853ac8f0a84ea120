//! What came of a campaign, as Markdown.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{
    book::{PROXIES, Pages},
    fleet::BACKENDS,
    load::Load,
    sockets::Waiting,
    verdict::Verdict,
};

/// The figures of one seed.
#[derive(Default)]
pub struct Report {
    /// What it was drawn from.
    pub seed: u64,
    /// How long it took.
    pub time: Duration,
    /// How often each kind of fault came.
    pub faults: BTreeMap<&'static str, usize>,
    /// How long it took until all backends were asked again, each time.
    pub calms: Vec<Duration>,
    /// What each proxy has done for it.
    pub proxies: Vec<Spent>,
    /// What became of the failures.
    pub verdict: Verdict,
    /// What else must not be.
    pub violations: Vec<String>,
    latencies: Vec<Duration>,
    answered: [u64; BACKENDS],
    sent: u64,
    posts: usize,
    alone: u64,
    outage: u64,
    posts_twice: usize,
    gets_twice: usize,
    waiting: Waiting,
}

/// Figures of one proxy's metrics.
#[derive(Default)]
pub struct Spent {
    /// Seconds of processor time.
    pub processor: f64,
    /// The most memory that it has had, in megabytes.
    pub memory: u64,
    /// Attempts after the first.
    pub retries: f64,
    /// Attempts that the budget refused.
    pub refused: f64,
    /// Backends marked dead.
    pub marks: f64,
    /// Connections made to backends.
    pub dials: f64,
    /// Requests sent on kept ones.
    pub reuses: f64,
    /// Lines missing in the error log.
    pub lines_lost: f64,
}

impl Report {
    /// An empty report on a seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Takes over what the clients have seen.
    pub fn take_load(&mut self, load: &Load) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.sent = count(&load.tally.sent);
        self.alone = count(&load.tally.alone);
        self.outage = count(&load.tally.outage);
        self.answered = load.tally.answered.each_ref().map(count);
        self.latencies = load.latencies();
        self.latencies.sort_unstable();
    }

    /// Takes over what the backends have received.
    pub fn take_book(&mut self, pages: &Pages, posts: &HashSet<u64>) {
        let several = pages.receipts.iter().filter(|(_, receipts)| receipts.len() > 1);
        let (posts_twice, gets_twice): (Vec<_>, Vec<_>) = several.partition(|(id, _)| posts.contains(id));
        self.posts = posts.len();
        self.posts_twice = posts_twice.len();
        self.gets_twice = gets_twice.len();
        self.waiting = pages.waiting;
    }

    /// Whether nothing happened that must not.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty() && self.verdict.failed.is_empty() && self.posts_twice == 0
    }

    fn latency(&self, share: f64) -> f64 {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is small"
        )]
        let index = (self.latencies.len() as f64 * share) as usize;
        self.latencies.get(index.min(self.latencies.len().saturating_sub(1))).map_or(0.0, Duration::as_secs_f64)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_clean() { "nothing amiss" } else { "VIOLATIONS" };
        let slowest = self.calms.iter().max().copied().unwrap_or_default();
        writeln!(out, "## Seed {}: {verdict}\n", self.seed)?;
        writeln!(out, "| | |\n|---|--:|")?;
        writeln!(out, "| duration | {:.1} s |", self.time.as_secs_f64())?;
        writeln!(out, "| faults | {} |", self.faults.values().sum::<usize>())?;
        writeln!(out, "| requests | {} |", self.sent)?;
        writeln!(out, "| of these, POST | {} |", self.posts)?;
        writeln!(out, "| of these, over a connection of their own | {} |", self.alone)?;
        writeln!(out, "| **failed** | {} |", self.verdict.failed.len())?;
        writeln!(out, "| POSTs that were received twice | {} |", self.posts_twice)?;
        for (kind, times) in &self.verdict.excused {
            writeln!(out, "| lost with its backend: {kind} | {times} |")?;
        }
        let Waiting { fresh, accepted } = self.waiting;
        writeln!(out, "| unread by frozen backends when they were killed: over fresh connections | {fresh} |")?;
        writeln!(out, "| over accepted ones | {accepted} |")?;
        writeln!(out, "| 503 while all backends were away | {} |", self.outage)?;
        writeln!(out, "| GETs that were received twice | {} |", self.gets_twice)?;
        writeln!(out, "| answered in: median | {:.1} ms |", self.latency(0.5) * 1e3)?;
        writeln!(out, "| 99 % | {:.1} ms |", self.latency(0.99) * 1e3)?;
        writeln!(out, "| longest | {:.1} ms |", self.latency(1.0) * 1e3)?;
        writeln!(out, "| calms, in which all backends were asked again | {} |", self.calms.len())?;
        writeln!(out, "| longest time until they were | {:.2} s |", slowest.as_secs_f64())?;
        let answered = self.answered.map(|answered| answered.to_string()).join(", ");
        writeln!(out, "| answered by each backend | {answered} |")?;
        writeln!(out, "\n| fault | times |\n|---|--:|")?;
        for (kind, times) in &self.faults {
            writeln!(out, "| {kind} | {times} |")?;
        }
        let heads: [String; PROXIES] = std::array::from_fn(|number| format!("proxy {}", number + 1));
        writeln!(out, "\n| | {} |\n|---|{}", heads.join(" | "), "--:|".repeat(PROXIES))?;
        self.row(out, "processor time", |spent| format!("{:.1} s", spent.processor))?;
        self.row(out, "peak memory", |spent| format!("{} MB", spent.memory))?;
        self.row(out, "retries and repeats", |spent| spent.retries.to_string())?;
        self.row(out, "retries refused", |spent| spent.refused.to_string())?;
        self.row(out, "dead marks", |spent| spent.marks.to_string())?;
        self.row(out, "connections made to backends", |spent| spent.dials.to_string())?;
        self.row(out, "requests over kept ones", |spent| spent.reuses.to_string())?;
        self.row(out, "lines lost of the error log", |spent| spent.lines_lost.to_string())?;
        if !self.violations.is_empty() {
            writeln!(out, "\nViolations:\n")?;
            self.violations.iter().try_for_each(|violation| writeln!(out, "- {violation}"))?;
        }
        if !self.verdict.failed.is_empty() {
            let head = "| at | after | request | to | answer | backend | why it is no excuse | in force |";
            writeln!(out, "\nThe first failed requests:\n\n{head}\n|--:|--:|---|---|---|---|---|---|")?;
        }
        for (failure, reason) in self.verdict.failed.iter().take(FAILURES_SHOWN) {
            let took = failure.to - failure.from;
            let method = if failure.is_post { "POST" } else { "GET" };
            write!(out, "| {:.2} s | {took:.2?} | {method} {} ", failure.at.as_secs_f64(), failure.id)?;
            write!(out, "| {} | {} ", failure.answer, failure.backend.as_deref().unwrap_or("?"))?;
            writeln!(out, "| {reason} | {} |", failure.scene)?;
        }
        Ok(())
    }
}

impl Report {
    fn row(&self, out: &mut fmt::Formatter<'_>, name: &str, of: impl Fn(&Spent) -> String) -> fmt::Result {
        let cells: Vec<String> = self.proxies.iter().map(of).collect();
        writeln!(out, "| {name} | {} |", cells.join(" | "))
    }
}

const FAILURES_SHOWN: usize = 40;
