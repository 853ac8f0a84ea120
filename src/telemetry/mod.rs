//! What operators see: metrics, the access log, the error log, and the admin listener.

mod access_log;
mod activity;
mod admin;
mod allowance;
mod counted;
mod date;
mod error_log;
mod freshness;
mod lines;
mod metrics;
mod tally;
mod tasks;

pub use access_log::{AccessLog, Entry, put_escaped};
pub use activity::{Activities, Activity, InPhase, Phase};
pub use admin::Admin;
pub use counted::Counted;
pub use date::with_date;
pub use error_log::{ErrorLog, Subject};
pub use freshness::StoreHealth;
pub use lines::{Lines, LinesGuard, LogTarget};
pub use metrics::{ClientMetrics, Metrics};
pub use tally::{Tally, settle_tally};
pub use tasks::Tasks;

use std::{env, sync::Arc};

use tracing::{level_filters::LevelFilter, subscriber, warn};
use tracing_subscriber::{EnvFilter, filter::ParseError};

/// Metrics and the error log, which everything else reports to.
pub struct Telemetry {
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// Standard error.
    pub errors: ErrorLog,
    _guard: Option<LinesGuard>,
}

impl Telemetry {
    /// Sets up the process's metrics and its log on standard error. `RUST_LOG` overrides what is logged.
    ///
    /// # Errors
    /// When the log's thread cannot be started.
    pub fn init() -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::new()?);
        let (lines, guard) = Lines::open(&LogTarget::Stderr, &metrics.error_lines)?;
        let wanted = env::var("RUST_LOG").unwrap_or_default();
        let (filter, mistake) = match filter(&wanted) {
            Ok(filter) => (filter, None),
            Err(mistake) => (filter("")?, Some(mistake)),
        };
        subscriber::set_global_default(subscriber_of(filter, lines.clone()))?;
        if let Some(mistake) = mistake {
            warn!("RUST_LOG is ignored: {mistake}");
        }
        let errors = ErrorLog::new(lines, metrics.error_lines_suppressed.clone());
        Ok(Self { metrics, errors, _guard: guard })
    }
}

fn subscriber_of(filter: EnvFilter, lines: Lines) -> impl tracing::Subscriber + Send + Sync {
    tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(false).with_writer(lines).finish()
}

/// What is logged: what `RUST_LOG` wants, or [`DEFAULT_FILTER`].
fn filter(wanted: &str) -> Result<EnvFilter, ParseError> {
    let directives = if wanted.trim().is_empty() { DEFAULT_FILTER } else { wanted };
    EnvFilter::builder().with_default_directive(LevelFilter::ERROR.into()).parse(directives)
}

/// Libraries have no part in our log but for errors: whatever else they say, clients can make them say as often as they like.
const DEFAULT_FILTER: &str = "error,planb=info";

#[cfg(test)]
mod tests {
    use tracing::{debug, error, info};

    use super::*;

    /// The lines of a log with this filter.
    fn logged(wanted: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let metrics = Metrics::new().unwrap();
        let (lines, guard) = Lines::open(&LogTarget::File(path.clone()), &metrics.error_lines).unwrap();
        subscriber::with_default(subscriber_of(filter(wanted).unwrap(), lines), || {
            info!("ours");
            debug!("our details");
            warn!(target: "h2::server", "a library's warning");
            error!(target: "h2::server", "a library's error");
        });
        drop(guard);
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn libraries_log_errors_only() {
        for wanted in ["", " "] {
            let text = logged(wanted);
            assert_eq!(text.lines().count(), 2, "{text}");
            assert!(text.contains(" INFO ours\n") && text.contains("ERROR a library's error\n"), "{text}");
        }
    }

    #[test]
    fn the_environment_overrides_what_is_logged() {
        let text = logged("h2=warn");
        assert!(text.contains("a library's warning") && !text.contains("ours"), "{text}");
        let text = logged("planb=debug");
        assert!(text.contains("our details") && !text.contains("library"), "{text}");
        assert!(filter("planb=loud").is_err());
    }
}
