//! When the routing table is written to its file, and what becomes of it at start.

use std::{
    io,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{task::JoinHandle, time::Instant};
use tracing::{info, warn};

use super::saved::{Saved, SavedError};
use crate::clock::Clock;
use crate::routing::Snapshot;

/// The file of a routing table that changes. Saving never holds up who changes it.
pub struct SnapshotFile {
    path: PathBuf,
    clock: Clock,
    is_stale: bool,
    not_before: Instant,
    saving: Option<JoinHandle<(io::Result<()>, Duration)>>,
    has_failed: bool,
}

impl SnapshotFile {
    /// The file at `path`, which need not exist yet.
    pub fn new(path: PathBuf, clock: Clock) -> Self {
        Self { path, clock, is_stale: false, not_before: Instant::now(), saving: None, has_failed: false }
    }

    /// What was saved by an earlier process, and how long ago.
    ///
    /// # Errors
    /// When the file is not usable.
    pub async fn restore(&self) -> Result<Option<(Saved, Duration)>, SavedError> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || Saved::read(&path)).await.expect("reading does not panic")?;
        Ok(read.map(|saved| {
            let age = Duration::from_millis(wall_millis().saturating_sub(saved.saved_at));
            info!(file = %self.path.display(), routes = saved.routes.len(), ?age, "a snapshot file was found");
            (saved, age)
        }))
    }

    /// The table has changed.
    pub fn is_due(&mut self) {
        self.is_stale = true;
    }

    /// Waits until there is something to do: to save, or to take note that it is done. Cancel-safe.
    pub async fn ready(&mut self) -> Turn {
        if let Some(saving) = &mut self.saving {
            let ended = saving.await;
            self.saving = None;
            self.take_note(ended.unwrap_or_else(|error| (Err(io::Error::other(error)), Duration::ZERO)));
            return Turn::Noted;
        }
        if !self.is_stale {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep_until(self.not_before).await;
        Turn::Save
    }

    /// Begins to save; `saved` lacks only the routes, which are taken from the snapshot.
    pub fn save(&mut self, mut saved: Saved, snapshot: Snapshot) {
        self.is_stale = false;
        saved.saved_at = wall_millis();
        let (path, clock) = (self.path.clone(), self.clock);
        self.saving = Some(tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            saved.add_routes(&snapshot, clock, wall_millis());
            (saved.write(&path), began.elapsed())
        }));
    }

    fn take_note(&mut self, (result, took): (io::Result<()>, Duration)) {
        self.not_before = Instant::now() + INTERVAL.max(took * REST);
        match result {
            Ok(()) => self.has_failed = false,
            Err(error) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    warn!(file = %self.path.display(), %error, "the snapshot file cannot be written");
                }
                self.is_stale = true;
            }
        }
    }
}

/// What a snapshot file wants.
pub enum Turn {
    /// [`SnapshotFile::save`] is to be called.
    Save,
    /// Nothing.
    Noted,
}

pub(super) fn wall_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The shortest time between the end of one saving and the beginning of the next, at the least and as a multiple of what
/// the last one took.
const INTERVAL: Duration = Duration::from_secs(2);
const REST: u32 = 10;
