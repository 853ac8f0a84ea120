//! Which backend answers a request.
//!
//! Pure: no sockets, no Redis, and no reading of the clock. Callers pass the [`Moment`] in, so every rule here can be
//! tested without waiting. One task (the syncer) builds [`Snapshot`]s and publishes them through [`Routes`]; every request
//! loads one snapshot and decides from that alone.

mod alive;
mod backend;
mod budget;
mod directory;
mod endpoint;
mod frontend;
mod host;
mod origin;
mod policy;
mod snapshot;

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use crate::clock::Moment;

pub use backend::Backend;
pub use budget::RetryBudget;
pub use endpoint::{Endpoint, Endpoints};
pub use frontend::{Choice, Frontend, Slot, Tried};
pub use host::{Host, HostError};
pub use origin::{BackendError, Origin, OriginHost};
pub use policy::InFlight;
pub use snapshot::{Seen, Snapshot};

/// A backend that failed, on its way to the write Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadMark {
    /// The key of the frontend that it failed for, as Redis spells it.
    pub frontend: Box<str>,
    /// The backend's URL.
    pub url: Box<str>,
    /// When it returns to rotation.
    pub until: Moment,
}

/// The handle through which requests read the routing table and the syncer replaces it.
///
/// Cloning shares the table. Reading waits for nobody, but for one part of the table while a pointer in it is exchanged. There
/// must be a single writer, because [`Routes::publish`] replaces the whole snapshot and would undo a concurrent writer's
/// changes.
#[derive(Clone, Default)]
pub struct Routes {
    current: Arc<ArcSwap<Snapshot>>,
    retirements: watch::Sender<()>,
}

impl Routes {
    /// The snapshot in force now. It stays valid for as long as the guard lives, and unchanged but for edits
    /// that are seen one by one.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Makes `snapshot` the one that requests beginning from now on will see.
    pub fn publish(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
    }

    /// Lets those who keep connections know that backends have been retired.
    pub fn announce_retirements(&self) {
        self.retirements.send_replace(());
    }

    /// Changes whenever backends have been retired.
    pub fn retirements(&self) -> watch::Receiver<()> {
        self.retirements.subscribe()
    }
}
