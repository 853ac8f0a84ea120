//! What operators see: metrics, the access log, the error log, and the admin listener.

mod access_log;
mod admin;
mod health;
mod lines;
mod metrics;

pub use access_log::{AccessLog, Entry};
pub use admin::Admin;
pub use health::StoreHealth;
pub use lines::{Lines, LinesGuard, LogTarget};
pub use metrics::Metrics;
