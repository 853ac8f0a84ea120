//! Connections that become WebSockets, and are joined byte for byte.

use std::{future::pending, rc::Rc};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, split};
use tokio_util::io::InspectWriter;
use tracing::debug;

use crate::{
    proxy::{
        client::Client,
        forward::Opened,
        tunnel::{self, Side},
        worker::Worker,
    },
    telemetry::Counted,
    transport::Transport,
};

/// Opens the tunnel over a client's connection, once the client has been told, and `open` has counted it. `arrived` has come from it already.
pub fn open(worker: &Worker, client: Rc<Client>, transport: Transport, arrived: Bytes, opened: Opened, open: Counted) {
    worker.tasks.spawn_local(async move {
        let (from_client, to_client) = split(transport);
        join(&client, ((&arrived[..]).chain(from_client), to_client), opened, pending()).await;
        drop(open);
    });
}

/// Joins the two sides until both have closed, or one breaks; the end of one direction is passed on while the other goes
/// on. `reset` ends when a side is gone though nothing that is copied shows it. The exchange is recorded at the end.
pub async fn join(
    client: &Client,
    (from_client, to_client): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    opened: Opened,
    reset: impl Future<Output = Side>,
) {
    let Opened { answering, mut exchange, .. } = opened;
    let Some((upstream, arrived)) = answering.into_socket() else { return };
    let (from_backend, to_backend) = split(upstream);
    let from_backend = (&arrived[..]).chain(from_backend);
    let to_client = InspectWriter::new(to_client, |bytes| exchange.sent(bytes.len() as u64));
    let end = tunnel::join((from_client, to_client), (from_backend, to_backend), reset).await;
    if let Some(error) = end.error {
        debug!(client = %client.address, by = ?end.by, %error, "a tunnel broke");
    }
}
