//! Two upgraded connections, joined byte for byte.

use std::{cell::Cell, future::pending, rc::Rc};

use hyper::{
    Response,
    upgrade::{self, OnUpgrade},
};
use hyper_util::rt::TokioIo;
use tokio::io::split;
use tokio_util::io::InspectWriter;
use tracing::debug;

use super::streams::OpenTunnel;
use crate::{
    proxy::{
        client::Client,
        exchange::Exchange,
        forward::Opened,
        response_body::ResponseBody,
        tunnel::{self, Side},
        upstream::Lease,
        worker::Worker,
    },
    telemetry::Counted,
};

/// Opens the tunnel to which a backend has agreed; returns what tells the client of it. `stream` is the client's, on HTTP/2.
pub fn open(worker: &Worker, client: Rc<Client>, opened: Opened, stream: Option<OpenTunnel>) -> Response<ResponseBody> {
    let Opened { mut response, opening, lease, exchange } = opened;
    let to_backend = upgrade::on(&mut response);
    opening.accept(&mut response);
    let joined = join(client, opening.from_client, to_backend, lease, exchange, stream);
    let open = Counted::one(&worker.shared.metrics.tunnels_open);
    worker.tasks.spawn_local(async move {
        joined.await;
        drop(open);
    });
    response.map(|_| ResponseBody::none())
}

/// Joins the two sides until both have closed, or one breaks; the end of one direction is passed on while the other goes
/// on. The lease keeps the backend's connection from being reused, and the exchange is recorded at the end.
async fn join(
    client: Rc<Client>,
    from_client: OnUpgrade,
    to_backend: OnUpgrade,
    lease: Lease,
    mut exchange: Box<Exchange>,
    stream: Option<OpenTunnel>,
) {
    match tokio::try_join!(from_client, to_backend) {
        Ok((downstream, upstream)) => {
            let (from_client, to_client) = split(TokioIo::new(downstream));
            let upstream = split(TokioIo::new(upstream));
            let to_client = InspectWriter::new(to_client, |bytes| exchange.sent(bytes.len() as u64));
            let reset = async |backend_has_ended: &Cell<bool>| {
                let Some(stream) = &stream else { return pending().await };
                stream.closed().await;
                // Else the library has just sent the backend's end.
                if backend_has_ended.get() { pending().await } else { Side::Downstream }
            };
            let end = tunnel::join((from_client, to_client), upstream, reset).await;
            if let Some(error) = end.error {
                debug!(client = %client.address, by = ?end.by, %error, "a tunnel broke");
            }
        }
        Err(error) => debug!(client = %client.address, %error, "a tunnel was not opened"),
    }
    drop(lease);
}
