//! Connections that become WebSockets, and are joined byte for byte.

use std::{cell::Cell, future::pending, rc::Rc};

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, split};
use tokio_util::io::InspectWriter;
use tracing::debug;

use super::http2::streams::OpenTunnel;
use crate::{
    proxy::{
        client::Client,
        exchange::Exchange,
        forward::Opened,
        tunnel::{self, Side},
        upstream::Answering,
        worker::Worker,
    },
    telemetry::Counted,
    transport::Transport,
};

/// Opens the tunnel over a client's connection, once the client has been told, and `open` has counted it. `arrived` has come from it already.
pub fn open(worker: &Worker, client: Rc<Client>, transport: Transport, arrived: Bytes, opened: Opened, open: Counted) {
    worker.tasks.spawn_local(async move {
        let (from_client, to_client) = split(transport);
        let downstream = ((&arrived[..]).chain(from_client), to_client);
        join(&client, downstream, opened.answering, opened.exchange, None).await;
        drop(open);
    });
}

/// Opens the tunnel over a stream of a client's connection (RFC 8441), once the library has told the client.
pub fn open_stream(
    worker: &Worker,
    client: Rc<Client>,
    from_client: OnUpgrade,
    answering: Answering,
    exchange: Box<Exchange>,
    stream: OpenTunnel,
) {
    let open = Counted::one(&worker.shared.metrics.tunnels_open);
    worker.tasks.spawn_local(async move {
        match from_client.await {
            Ok(downstream) => join(&client, split(TokioIo::new(downstream)), answering, exchange, Some(stream)).await,
            Err(error) => debug!(client = %client.address, %error, "a tunnel was not opened"),
        }
        drop(open);
    });
}

/// Joins the two sides until both have closed, or one breaks; the end of one direction is passed on while the other goes
/// on. The exchange is recorded at the end.
async fn join(
    client: &Client,
    (from_client, to_client): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    answering: Answering,
    mut exchange: Box<Exchange>,
    stream: Option<OpenTunnel>,
) {
    let Some((upstream, arrived)) = answering.into_socket() else { return };
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
