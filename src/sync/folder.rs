//! Certificates from a folder.

use std::{collections::HashSet, io, path::PathBuf};

use tokio::sync::{Notify, oneshot};
use tracing::{info, warn};

use crate::tls::{Content, Folder, Offer, Scan};

use super::Stock;

/// The task that keeps the certificates in step with a folder.
pub struct FolderSyncer {
    path: PathBuf,
    folder: Folder,
    stock: Stock,
    loaded: Option<oneshot::Sender<()>>,
    was_gone: bool,
}

impl FolderSyncer {
    /// A syncer that tells `loaded` when the first certificates are in service.
    pub fn new(path: PathBuf, folder: Folder, stock: Stock, loaded: oneshot::Sender<()>) -> Self {
        Self { path, folder, stock, loaded: Some(loaded), was_gone: false }
    }

    /// Follows the folder for ever; `again` is the operator's word that something has changed.
    pub async fn run(mut self, again: std::sync::Arc<Notify>) {
        loop {
            let mut folder = self.folder;
            let scanning = tokio::task::spawn_blocking(move || {
                let scan = folder.scan();
                (folder, scan)
            });
            let (folder, scan) = scanning.await.expect("scanning does not panic");
            self.folder = folder;
            self.take(scan).await;
            if let Some(loaded) = self.loaded.take() {
                // The receiver is gone only when the process is ending.
                let _ = loaded.send(());
            }
            tokio::select! {
                () = self.folder.changed() => {}
                () = again.notified() => info!(folder = %self.path.display(), "reading the certificates again"),
            }
        }
    }

    async fn take(&mut self, scan: io::Result<Scan>) {
        let folder = self.path.display();
        let scan = match scan {
            Ok(scan) => scan,
            Err(error) => {
                if !self.was_gone {
                    warn!(%folder, %error, "the certificates' folder cannot be read; those in service stay so");
                }
                self.was_gone = true;
                return;
            }
        };
        self.was_gone = false;
        for problem in scan.problems.iter().filter(|problem| problem.is_new).take(MOST_LINES) {
            warn!(file = %problem.path.display(), "a certificate's file cannot be used: {}", problem.refusal);
        }
        let present: HashSet<&str> = scan.names.iter().map(String::as_str).collect();
        let gone: Vec<String> = self.stock.names().filter(|name| !present.contains(name)).map(str::to_owned).collect();
        let offers = scan.changed.into_iter().map(|pair| Offer {
            name: pair.name,
            content: Content::Pair { certificate: pair.certificate.into(), key: pair.key.into() },
        });
        self.stock.exchange(gone, offers.collect()).await;
    }
}

/// Lines of the log that one scan's problems may fill.
const MOST_LINES: usize = 20;
