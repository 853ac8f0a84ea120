//! TLS towards clients, put together.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::sync::{Notify, oneshot};
use tracing::warn;

use super::Essential;
use crate::{
    config,
    secret::Secret,
    store::Place,
    sync::{self, FolderSyncer, Stock, TicketSyncer},
    telemetry::Metrics,
    tls::{CertificateSource, Folder, Keeper, KeyRing, Preset, Seal, Terminator},
};

/// TLS towards clients, before its tasks run.
pub struct Tls {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The settings of handshakes.
    pub terminator: Arc<Terminator>,
    keeper: Keeper,
    ring: Arc<KeyRing>,
    ticket_secret: Option<Secret>,
    source: CertificateSource,
    folder: Option<(PathBuf, Folder)>,
}

impl Tls {
    /// Reads everything that is given by file, so that a mistake ends the start. `keeps_texts` is for who saves certificates.
    pub fn set_up(config: config::Tls, keeps_texts: bool) -> anyhow::Result<Self> {
        if config.handshake.preset == Preset::Old {
            warn!(
                "--tls-preset old is the same as modern: TLS 1.0 and 1.1 and weaker ciphers are not offered (RFC 8996)"
            );
        }
        let folder = match &config.source {
            CertificateSource::Redis => None,
            CertificateSource::Folder(path) => {
                let opened = Folder::open(path, FOLDER_RESCAN);
                let folder =
                    opened.with_context(|| format!("cannot read the certificates' folder {}", path.display()))?;
                Some((path.clone(), folder))
            }
        };
        let keeper = if keeps_texts { Keeper::default().keeping_texts() } else { Keeper::default() };
        let ring = Arc::new(KeyRing::new(config.ticket_rotation, sync::seconds_since_1970().cast_unsigned()));
        let terminator = Arc::new(Terminator::new(config.handshake, keeper.certificates(), Arc::clone(&ring))?);
        let config::Tls { listen, source, ticket_secret, .. } = config;
        Ok(Self { listen, terminator, keeper, ring, ticket_secret, source, folder })
    }

    /// Starts the tasks that keep TLS going; `write` is where ticket keys may be shared, and `again` has a folder read at
    /// once. Returns what tells that a folder's certificates are in service; or the stock that is to be filled from Redis.
    pub fn start(
        self,
        write: &Place,
        metrics: &Arc<Metrics>,
        again: Arc<Notify>,
        essential: &mut Essential,
    ) -> (Option<oneshot::Receiver<()>>, Option<Stock>) {
        let expiry = sync::watch_expiry(self.keeper.certificates(), Arc::clone(metrics));
        essential.spawn_endless("expiry of certificates", expiry);
        let shared = self.ticket_secret.map(|secret| (write.clone(), Seal::new(&secret.0)));
        essential.spawn_endless("ticket keys", TicketSyncer::new(self.ring, shared, Arc::clone(metrics)).run());
        let stock = Stock::new(self.keeper, self.source, Arc::clone(metrics));
        let Some((path, folder)) = self.folder else { return (None, Some(stock)) };
        let (loaded, is_loaded) = oneshot::channel();
        essential.spawn_endless("folder of certificates", FolderSyncer::new(path, folder, stock, loaded).run(again));
        (Some(is_loaded), None)
    }
}

/// How often a folder of certificates is looked over although nothing announced a change.
const FOLDER_RESCAN: Duration = Duration::from_mins(1);
