//! What operators see: metrics, the access log, the error log, and the admin listener.

mod access_log;
mod activity;
mod admin;
mod health;
mod lines;
mod metrics;
mod tasks;

pub use access_log::{AccessLog, Entry, put_escaped};
pub use activity::{Activities, Activity, InPhase, Phase};
pub use admin::Admin;
pub use health::StoreHealth;
pub use lines::{Lines, LinesGuard, LogTarget};
pub use metrics::Metrics;
pub use tasks::Tasks;

use std::sync::Arc;

use tracing_subscriber::EnvFilter;

/// Metrics and the error log, which everything else reports to.
pub struct Telemetry {
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// Standard error.
    pub errors: Lines,
    _guard: Option<LinesGuard>,
}

impl Telemetry {
    /// Sets up the process's metrics and its log on standard error. `RUST_LOG` overrides what is logged.
    ///
    /// # Errors
    /// When the log's thread cannot be started.
    pub fn init() -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::new()?);
        let (errors, guard) = Lines::open(&LogTarget::Stderr, metrics.error_lines_dropped.clone())?;
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).from_env_lossy())
            .with_target(false)
            .with_ansi(false)
            .with_writer(errors.clone())
            .init();
        Ok(Self { metrics, errors, _guard: guard })
    }
}
