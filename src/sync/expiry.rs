//! How long the certificates in service are still valid.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time;
use tracing::warn;

use super::reconcile::excerpt;
use crate::{
    telemetry::Metrics,
    tls::{Certificates, Shelf},
};

/// Keeps the metrics of the certificates in service current, and warns of those that are about to expire: each once a day.
pub async fn watch_expiry(certificates: Certificates, metrics: Arc<Metrics>) {
    let mut ticks = time::interval(TICK);
    let mut said: HashSet<(i64, Arc<str>)> = HashSet::new();
    let mut fresh_at = time::Instant::now() + REPEAT;
    loop {
        ticks.tick().await;
        let now = seconds_since_1970();
        let shelf = Arc::clone(&certificates.load());
        measure(&shelf, &metrics);
        if time::Instant::now() >= fresh_at {
            said.clear();
            fresh_at = time::Instant::now() + REPEAT;
        }
        let soon = shelf.by_expiry().take_while(|(expiry, _)| expiry - now < WARNING.as_secs().cast_signed());
        let news: Vec<_> = soon.filter(|entry| !said.contains(*entry)).cloned().collect();
        for (expiry, name) in news.iter().take(MOST_LINES) {
            let on = jiff::Timestamp::from_second(*expiry).map_or_else(|_| "long ago".to_owned(), |on| on.to_string());
            let has_expired = *expiry <= now;
            let name = &*excerpt(name);
            warn!(name, "a certificate {} on {on}", if has_expired { "expired" } else { "expires" });
        }
        if news.len() > MOST_LINES {
            warn!("{} more certificates expire within {} days", news.len() - MOST_LINES, WARNING.as_secs() / 86_400);
        }
        said.extend(news);
    }
}

/// Sets the metrics of the certificates in service.
pub(super) fn measure(shelf: &Shelf, metrics: &Metrics) {
    let now = seconds_since_1970();
    metrics.tls.certificates.set(i64::try_from(shelf.len()).unwrap_or(i64::MAX));
    #[expect(clippy::cast_precision_loss, reason = "a metric is a float; thousands of years lose no second")]
    let left = shelf.by_expiry().next().map_or(f64::INFINITY, |(expiry, _)| (expiry - now) as f64);
    metrics.tls.soonest_expiry.set(left);
}

/// What the clock on the wall says; 0 if it is before 1970.
pub fn seconds_since_1970() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}

const TICK: Duration = Duration::from_secs(1);

/// How long before its end a certificate is warned of, and how often again.
const WARNING: Duration = Duration::from_hours(14 * 24);
const REPEAT: Duration = Duration::from_hours(24);

/// Lines of the log that may be filled at once.
const MOST_LINES: usize = 10;
