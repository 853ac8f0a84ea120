//! One client connection: what is spoken on it, and when it ends.

use std::{future::poll_fn, net::IpAddr, pin::Pin, rc::Rc, sync::Arc, task::Poll, time::Duration};

use http::HeaderValue;
use tokio::{net::TcpStream, sync::OwnedSemaphorePermit};
use tracing::debug;

use super::{handshake, http1, http2, listener::Protocol, passthrough};
use crate::{
    drain::Drain,
    proxy::{
        Worker,
        client_timeouts::{Alarm, Deadlines},
        headers::Provenance,
    },
};

/// The client's side of a request.
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// What backends are told of it.
    pub provenance: Provenance,
    /// What its verified certificate says of it.
    pub certificate: Option<HeaderValue>,
    /// Held for as long as the connection or its tunnel lives.
    _permit: OwnedSemaphorePermit,
}

/// Serves a connection from this address to this port of ours, to its end.
pub async fn serve(
    worker: Rc<Worker>,
    protocol: Protocol,
    stream: TcpStream,
    (address, port): (IpAddr, u16),
    permit: OwnedSemaphorePermit,
) {
    let _open = Counted::one(&worker.shared.metrics.connections_open);
    match protocol {
        Protocol::Http => {
            let provenance = Provenance::new(address, port, false);
            let client = Client { address, provenance, certificate: None, _permit: permit };
            http1::serve(worker, stream.into(), Rc::new(client)).await;
        }
        Protocol::Tls(terminator) => {
            // In a box, because the future of a handshake is large, and every connection's would otherwise be as large.
            let handshake = Box::pin(handshake::secure(&worker, &terminator, stream));
            let Some(secured) = handshake.await else { return };
            let provenance = Provenance::new(address, port, true);
            let client = Client { address, provenance, certificate: secured.certificate, _permit: permit };
            if secured.is_http2 {
                Box::pin(http2::serve(worker, secured.transport, Rc::new(client))).await;
            } else {
                http1::serve(worker, secured.transport, Rc::new(client)).await;
            }
        }
        Protocol::Passthrough => Box::pin(passthrough::serve(worker, stream, address, permit)).await,
    }
}

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

/// Keeps a gauge one higher while it lives.
pub struct Counted(prometheus::IntGauge);

impl Counted {
    /// Counts one more.
    pub fn one(gauge: &prometheus::IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
