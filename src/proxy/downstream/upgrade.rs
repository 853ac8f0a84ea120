//! Connections that become WebSockets, and are joined byte for byte.

use std::{cell::Cell, future::pending, rc::Rc};

use http::Response;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, split};
use tokio_util::io::InspectWriter;
use tracing::debug;

use super::{streams::OpenTunnel, translate};
use crate::{
    proxy::{
        client::Client,
        exchange::Exchange,
        forward::Opened,
        response_body::ResponseBody,
        tunnel::{self, Side},
        upstream::Answering,
        worker::Worker,
    },
    telemetry::Counted,
};

/// Opens the tunnel to which a backend has agreed; returns what tells the client of it. `stream` is the client's, on HTTP/2.
pub fn open(
    worker: &Worker,
    client: Rc<Client>,
    from_client: OnUpgrade,
    opened: Opened,
    stream: Option<OpenTunnel>,
) -> Response<ResponseBody> {
    let Opened { head, lines, opening, answering, exchange } = opened;
    let joined = join(client, from_client, answering, exchange, stream);
    let open = Counted::one(&worker.shared.metrics.tunnels_open);
    worker.tasks.spawn_local(async move {
        joined.await;
        drop(open);
    });
    translate::opened(&head, lines, opening.is_connect())
}

/// Joins the two sides until both have closed, or one breaks; the end of one direction is passed on while the other goes
/// on. The exchange is recorded at the end.
async fn join(
    client: Rc<Client>,
    from_client: OnUpgrade,
    answering: Answering,
    mut exchange: Box<Exchange>,
    stream: Option<OpenTunnel>,
) {
    let downstream = match from_client.await {
        Ok(downstream) => downstream,
        Err(error) => return debug!(client = %client.address, %error, "a tunnel was not opened"),
    };
    let Some((upstream, arrived)) = answering.into_socket() else { return };
    let (from_client, to_client) = split(TokioIo::new(downstream));
    let (from_backend, to_backend) = split(upstream);
    let from_backend = (&arrived[..]).chain(from_backend);
    let to_client = InspectWriter::new(to_client, |bytes| exchange.sent(bytes.len() as u64));
    let reset = async |backend_has_ended: &Cell<bool>| {
        let Some(stream) = &stream else { return pending().await };
        stream.closed().await;
        // Else the library has just sent the backend's end.
        if backend_has_ended.get() { pending().await } else { Side::Downstream }
    };
    let end = tunnel::join((from_client, to_client), (from_backend, to_backend), reset).await;
    if let Some(error) = end.error {
        debug!(client = %client.address, by = ?end.by, %error, "a tunnel broke");
    }
}
