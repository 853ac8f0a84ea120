//! Two upgraded connections, joined byte for byte.

use std::rc::Rc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio_util::io::InspectWriter;
use tracing::debug;

use super::{connection::Client, exchange::Exchange, upstream::Lease};

/// Joins the two sides until both have closed, or one breaks; the end of one direction is passed on while the other goes
/// on. The lease keeps the backend's connection from being reused, and the exchange is recorded at the end.
pub async fn join(
    client: Rc<Client>,
    from_client: OnUpgrade,
    to_backend: OnUpgrade,
    lease: Lease,
    mut exchange: Box<Exchange>,
) {
    let result = match tokio::try_join!(from_client, to_backend) {
        Ok((downstream, upstream)) => {
            let mut downstream =
                InspectWriter::new(TokioIo::new(downstream), |bytes| exchange.sent(bytes.len() as u64));
            let mut upstream = TokioIo::new(upstream);
            copy_bidirectional(&mut downstream, &mut upstream).await.map(drop).map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = result {
        debug!(client = %client.address, error, "a tunnel broke");
    }
    drop(lease);
}
