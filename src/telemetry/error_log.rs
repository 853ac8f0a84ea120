//! The log on standard error, and how much of it strangers can fill.

use std::{sync::Arc, time::Instant};

use prometheus::IntCounter;
use tracing::warn;

use super::{Lines, allowance::Allowance};

/// What a line is about that a client can cause. Each has an allowance of its own, so that no flood of one hides another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// What the client did wrong.
    Client,
    /// A frontend of which no backend is left.
    Frontend,
    /// A backend that failed.
    Backend,
    /// The limit of client connections.
    Connections,
    /// Connections that the system does not let us accept.
    Accepting,
    /// The limit of memory.
    Memory,
}

impl Subject {
    const ALL: [Self; 6] =
        [Self::Client, Self::Frontend, Self::Backend, Self::Connections, Self::Accepting, Self::Memory];

    fn allowance(self) -> Allowance {
        match self {
            Self::Client | Self::Frontend | Self::Backend => Allowance::new(100, 500),
            Self::Connections | Self::Accepting | Self::Memory => Allowance::new(1, 10),
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Self::Client => "clients' mistakes",
            Self::Frontend => "frontends without a live backend",
            Self::Backend => "failing backends",
            Self::Connections => "the connection limit",
            Self::Accepting => "connections that cannot be accepted",
            Self::Memory => "the limit of memory",
        }
    }
}

/// The error log. Cloning shares it.
#[derive(Clone)]
pub struct ErrorLog {
    lines: Lines,
    allowances: Arc<[Allowance; Subject::ALL.len()]>,
    suppressed: IntCounter,
    began: Instant,
}

impl ErrorLog {
    /// A log that writes to `lines`; `suppressed` counts what is left out of it.
    pub fn new(lines: Lines, suppressed: IntCounter) -> Self {
        let allowances = Arc::new(Subject::ALL.map(Subject::allowance));
        Self { lines, allowances, suppressed, began: Instant::now() }
    }

    /// Spends a line about this of what is allowed; if there is none left, it counts as suppressed, and must not be written.
    pub fn spend(&self, subject: Subject) -> bool {
        let is_allowed = self.allowances[subject as usize].spend(self.began.elapsed());
        if !is_allowed {
            self.suppressed.inc();
        }
        is_allowed
    }

    /// Queues a line, without its newline.
    pub fn write(&self, line: Vec<u8>) {
        self.lines.write(line);
    }

    /// Tells of floods, for ever.
    pub async fn tell_of_floods(self) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            ticks.tick().await;
            let now = self.began.elapsed();
            self.tell(|allowance| allowance.news(now));
        }
    }

    /// Tells of all that was left out and not told of, at the end.
    pub fn tell_the_rest(&self) {
        self.tell(Allowance::rest);
    }

    fn tell(&self, news: impl Fn(&Allowance) -> Option<u64>) {
        for (subject, allowance) in Subject::ALL.into_iter().zip(&*self.allowances) {
            if let Some(lines) = news(allowance) {
                warn!(lines, "lines about {} were left out: there are too many", subject.plural());
            }
        }
    }
}

/// How often floods are looked for.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{LogTarget, Metrics};

    #[test]
    fn a_flood_of_one_subject_takes_nothing_from_another() {
        let metrics = Metrics::new().unwrap();
        let (lines, _guard) = Lines::open(&LogTarget::None, &metrics.error_lines).unwrap();
        let errors = ErrorLog::new(lines, metrics.error_lines_suppressed.clone());
        let allowed = (0..100_000).filter(|_| errors.spend(Subject::Client)).count();
        assert!((500..10_000).contains(&allowed), "{allowed}");
        assert_eq!(metrics.error_lines_suppressed.get(), 100_000 - allowed as u64);
        assert!(errors.spend(Subject::Backend) && errors.spend(Subject::Frontend));
    }
}
