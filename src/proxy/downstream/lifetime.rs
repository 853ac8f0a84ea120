//! How long a connection on which nothing was said yet is waited for.

use std::time::Duration;

use crate::drain::Drain;

/// Waits until the drain has begun, and a moment longer: whoever has just connected is about to say something, which a closed
/// socket would lose.
pub async fn fresh_grace(drain: &Drain) {
    drain.begun().await;
    tokio::time::sleep(FRESH_GRACE).await;
}

/// How long a connection on which nothing was said yet is kept open once the drain has begun.
pub const FRESH_GRACE: Duration = Duration::from_millis(500);
