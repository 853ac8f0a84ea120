//! When a client's connection ends though neither side has ended it.

use std::{future::poll_fn, net::IpAddr, pin::Pin, sync::Arc, task::Poll, time::Duration};

use tracing::debug;

use crate::{
    drain::Drain,
    proxy::{
        client_timeouts::{Alarm, Deadlines},
        worker::Worker,
    },
};

/// When an HTTP connection is to end though neither side has ended it.
pub struct Ending<'a, D, A> {
    /// Ready when it is to finish what is in flight and take nothing new.
    pub draining: Pin<&'a mut D>,
    /// Ready when it may be dropped.
    pub abandoned: Pin<&'a mut A>,
    /// Its deadlines.
    pub deadlines: Option<Arc<Deadlines>>,
}

/// Runs an HTTP connection to its end. Returns the error that ended it, if one did.
pub async fn see_through<C, D, A>(
    worker: &Worker,
    address: IpAddr,
    mut connection: Pin<&mut C>,
    shut_down: impl Fn(Pin<&mut C>),
    mut ending: Ending<'_, D, A>,
) -> Option<hyper::Error>
where
    C: Future<Output = hyper::Result<()>>,
    D: Future<Output = ()>,
    A: Future<Output = ()>,
{
    let mut drained = false;
    let mut alarm = ending.deadlines.map(Alarm::new);
    let ended = poll_fn(|cx| {
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(Some(result));
        }
        if !drained && ending.draining.as_mut().poll(cx).is_ready() {
            drained = true;
            shut_down(connection.as_mut());
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                return Poll::Ready(Some(result));
            }
        }
        if drained && ending.abandoned.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Ok(())));
        }
        match &mut alarm {
            Some(alarm) => alarm.poll(worker.shared.clock, cx).map(|()| None),
            None => Poll::Pending,
        }
    });
    match ended.await {
        Some(Ok(())) => None,
        Some(Err(error)) => {
            debug!(%address, %error, "a client connection ended with an error");
            Some(error)
        }
        None => {
            worker.shared.metrics.client_timeouts.inc();
            debug!(%address, "a client connection was too slow");
            None
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
