//! Where clients connect.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;

use super::Tls;
use crate::{
    config::{Config, Engine},
    proxy::{Door, Listeners, Protocol},
};

/// The addresses of clients, bound but not listening yet.
pub struct Doors {
    plain: Option<Listeners>,
    tls: Option<Listeners>,
}

impl Doors {
    /// Takes the addresses.
    pub fn bind(config: &Config, tls: Option<&Tls>) -> anyhow::Result<Self> {
        let bind = |address, protocol| {
            Listeners::bind(address, protocol, config.workers).with_context(|| format!("cannot listen on {address}"))
        };
        let plain = match config.engine {
            Engine::Native | Engine::Fasthttp => Protocol::Http,
            Engine::Sni => Protocol::Passthrough,
        };
        Ok(Self {
            plain: config.listen.map(|address| bind(address, plain)).transpose()?,
            tls: tls.map(|tls| bind(tls.listen, Protocol::Tls(Arc::clone(&tls.terminator)))).transpose()?,
        })
    }

    /// The address for HTTP, or for TLS that is passed through, with the port that was chosen.
    pub fn plain(&self) -> Option<SocketAddr> {
        self.plain.as_ref().map(Listeners::address)
    }

    /// The address for HTTPS, with the port that was chosen.
    pub fn tls(&self) -> Option<SocketAddr> {
        self.tls.as_ref().map(Listeners::address)
    }

    /// Lets clients connect. Each worker gets one door of each kind.
    pub fn open(self) -> anyhow::Result<Vec<Vec<Door>>> {
        let mut by_worker: Vec<Vec<Door>> = Vec::new();
        for listeners in [self.plain, self.tls].into_iter().flatten() {
            let address = listeners.address();
            let doors = listeners.listen().with_context(|| format!("cannot listen on {address}"))?;
            by_worker.resize_with(doors.len(), Vec::new);
            by_worker.iter_mut().zip(doors).for_each(|(doors, door)| doors.push(door));
        }
        Ok(by_worker)
    }
}
