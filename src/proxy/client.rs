//! The client's side of a request.

use std::net::IpAddr;

use http::HeaderValue;
use tokio::sync::OwnedSemaphorePermit;

use crate::message::Provenance;

/// A client, as long as its connection or tunnel lives.
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

impl Client {
    /// A client that holds this permit.
    pub fn new(
        address: IpAddr,
        provenance: Provenance,
        certificate: Option<HeaderValue>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self { address, provenance, certificate, _permit: permit }
    }
}
