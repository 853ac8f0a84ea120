//! Keeping the routing table in step with Redis.
//!
//! The [`Syncer`] is the table's single writer. It opens a session with the read Redis, loads everything, and then re-reads
//! just the keys that Redis says may have changed. Any doubt about the session ends it and begins another, perhaps on
//! another server; meanwhile the last snapshot stays in force. The [`Reporter`] carries dead marks the other way, to the write Redis.
//!
//! Certificates come the same way, with the same session, or from a folder, by way of the [`FolderSyncer`]; either puts them
//! into service through a [`Stock`]. The [`TicketSyncer`] renews the keys of session tickets.

mod belief;
mod dirty;
mod expiry;
mod folder;
mod ledger;
mod listing;
mod progress;
mod reconcile;
mod replacing;
mod report;
mod saved;
mod snapshot_file;
mod stock;
mod sweep;
mod syncer;
mod tickets;
mod trust;
mod whereabouts;

use std::{path::PathBuf, time::Duration};

use crate::store::Place;

pub use expiry::{seconds_since_1970, watch_expiry};
pub use folder::FolderSyncer;
pub use reconcile::{Applied, Malformed, Table};
pub use replacing::check_writable;
pub use report::{MARK_QUEUE, Reporter};
pub use saved::Saved;
pub use stock::Stock;
pub use syncer::Syncer;
pub use tickets::TicketSyncer;

/// How the table is kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// The read Redis.
    pub place: Place,
    /// The write Redis, for changes that show which events are announced.
    pub write: Place,
    /// Where the table is kept for a start without Redis.
    pub snapshot_file: Option<PathBuf>,
    /// How long to wait for Redis before a table from the file is served.
    pub startup_wait: Duration,
    /// How long a Redis that seems to have lost its data is not believed.
    pub shrink_grace: Duration,
    /// How long to wait, on average, between the end of one proof of convergence and the beginning of the next: from half of
    /// it to half as much again.
    pub reconcile_every: Duration,
}
