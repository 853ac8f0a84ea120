//! How long clients are waited for, before they speak and when they should have stopped.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFuture;

use crate::drain::Drain;

/// Tells a connection that waits for a request when the drain ends the wait. To wait for the drain takes a lock that all
/// threads share, so that it is done once for a connection and not for each request.
pub struct Patience<'d, 'p> {
    drain: &'d Drain,
    begun: Pin<&'p mut WaitForCancellationFuture<'d>>,
    is_waiting: bool,
    grace: Option<Pin<Box<Sleep>>>,
}

impl<'d, 'p> Patience<'d, 'p> {
    /// With what waits for the drain to begin.
    pub fn new(drain: &'d Drain, begun: Pin<&'p mut WaitForCancellationFuture<'d>>) -> Self {
        Self { drain, begun, is_waiting: false, grace: None }
    }

    /// Ready when the wait is over. All calls come from one task. `is_fresh` says that nothing was said yet.
    pub fn poll(&mut self, is_fresh: bool, cx: &mut Context<'_>) -> Poll<()> {
        let has_begun = if self.is_waiting { self.drain.has_begun() } else { self.begun.as_mut().poll(cx).is_ready() };
        self.is_waiting = true;
        match (has_begun, is_fresh) {
            (false, _) => Poll::Pending,
            (true, false) => Poll::Ready(()),
            (true, true) => {
                self.grace.get_or_insert_with(|| Box::pin(tokio::time::sleep(FRESH_GRACE))).as_mut().poll(cx)
            }
        }
    }
}

/// Waits until the drain has begun, and a moment longer: whoever has just connected is about to say something, which a closed
/// socket would lose.
pub async fn fresh_grace(drain: &Drain) {
    drain.begun().await;
    tokio::time::sleep(FRESH_GRACE).await;
}

/// How long a connection on which nothing was said yet is kept open once the drain has begun.
pub const FRESH_GRACE: Duration = Duration::from_millis(500);

/// How long a client is listened to that has been answered for the last time: what closes a connection, or a stream, may
/// overtake the answer while the client is still sending.
pub const LINGER: Duration = Duration::from_millis(500);
