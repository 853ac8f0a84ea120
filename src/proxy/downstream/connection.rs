//! One client connection: what is spoken on it.

use std::{net::IpAddr, rc::Rc, sync::Arc};

use tokio::{net::TcpStream, sync::OwnedSemaphorePermit};

use super::{handshake, http1, http2, passthrough};
use crate::{
    message::Provenance,
    proxy::{client::Client, worker::Worker},
    telemetry::Counted,
    tls::Terminator,
};

/// What clients speak on an address.
#[derive(Clone)]
pub enum Protocol {
    /// HTTP/1.
    Http,
    /// HTTP/1 or HTTP/2 under TLS.
    Tls(Arc<Terminator>),
    /// TLS that is not ours to decrypt.
    Passthrough,
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
            let client = Client::new(address, provenance, None, permit);
            http1::serve(worker, stream.into(), Rc::new(client)).await;
        }
        Protocol::Tls(terminator) => {
            // In a box, because the future of a handshake is large, and every connection's would otherwise be as large.
            let handshake = Box::pin(handshake::secure(&worker, &terminator, stream));
            let Some(secured) = handshake.await else { return };
            let provenance = Provenance::new(address, port, true);
            let client = Client::new(address, provenance, secured.certificate, permit);
            if secured.is_http2 {
                Box::pin(http2::serve(worker, secured.transport, Rc::new(client))).await;
            } else {
                http1::serve(worker, secured.transport, Rc::new(client)).await;
            }
        }
        Protocol::Passthrough => Box::pin(passthrough::serve(worker, stream, address, permit)).await,
    }
}
