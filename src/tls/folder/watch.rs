//! Events of the folders that matter, as one signal.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{hops::Hops, is_half};

/// The watched folders.
pub(super) struct Watches {
    /// The folder of certificates as it was named, for the log.
    folder: PathBuf,
    shared: Arc<Shared>,
    events: watch::Receiver<()>,
    watcher: Option<RecommendedWatcher>,
    /// By path: the folder that the watch is on.
    held: HashMap<PathBuf, Inode>,
    /// Whether some folder could not be watched.
    incomplete: bool,
    most: usize,
}

/// What the watcher's thread shares.
struct Shared {
    interest: ArcSwap<Interest>,
    signal: watch::Sender<()>,
    /// Whether watches may have ended without our doing: the library drops that of a path that was removed or renamed.
    doubtful: AtomicBool,
}

/// Which events matter.
#[derive(Default)]
struct Interest {
    /// The folder of certificates, by its real path.
    root: Option<PathBuf>,
    hops: Hops,
}

/// Device and inode.
type Inode = (u64, u64);

impl Watches {
    /// Watches nothing yet.
    pub(super) fn new(folder: PathBuf) -> Self {
        let (signal, events) = watch::channel(());
        let shared = Arc::new(Shared { interest: ArcSwap::default(), signal, doubtful: AtomicBool::new(false) });
        Self { folder, shared, events, watcher: None, held: HashMap::new(), incomplete: false, most: MOST_WATCHES }
    }

    /// Waits for an event since the last one that was waited for or forgotten. Cancel-safe.
    pub(super) async fn event(&mut self) {
        // The other end is in `shared`, so there is no error.
        if self.events.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Forgets the events until now.
    pub(super) fn forget_events(&mut self) {
        self.events.mark_unchanged();
    }

    /// Acts as if there had been an event.
    pub(super) fn wake(&self) {
        self.shared.signal.send_replace(());
    }

    /// Whether each folder that matters is watched.
    pub(super) fn are_complete(&self) -> bool {
        !self.incomplete
    }

    /// Makes sure that the folder of certificates is watched, before it is looked at.
    pub(super) fn start_with(&mut self, root: &io::Result<PathBuf>, hops: Hops) {
        if self.shared.doubtful.swap(false, Ordering::AcqRel) {
            self.drop_watches(|_, _| false);
        }
        let interest = self.shared.interest.load();
        let is_watched = root
            .as_ref()
            .is_ok_and(|root| interest.root.as_ref() == Some(root) && inode(root).ok().as_ref() == self.held.get(root));
        if !is_watched || !interest.hops.cover(&hops) {
            self.follow(root, hops);
        }
    }

    /// Watches these folders and no others; returns whether that changes nothing, so that all that happened since the hops
    /// were found has left an event.
    pub(super) fn follow(&mut self, root: &io::Result<PathBuf>, mut hops: Hops) -> bool {
        let mut wanted: HashMap<Inode, PathBuf> = HashMap::new();
        let mut root = root.as_ref().ok().cloned();
        let mut is_steady = true;
        let folders: Vec<PathBuf> = hops.folders().cloned().collect();
        for folder in folders {
            // Otherwise it has just gone.
            let Ok(inode) = inode(&folder) else {
                is_steady = false;
                continue;
            };
            // A folder mounted twice has one watch, whose events name one path.
            if let Some(first) = wanted.get(&inode) {
                hops.merge(first, &folder);
                root = root.map(|root| if root == folder { first.clone() } else { root });
            } else {
                wanted.insert(inode, folder);
            }
        }
        // A watch goes by its path and holds an inode: both must be the same still. All go before any comes, as two paths
        // may have been one folder.
        self.drop_watches(|path, inode| wanted.get(&inode).is_some_and(|wanted| wanted == path));
        let interest = self.shared.interest.load();
        is_steady &= interest.root == root && interest.hops.cover(&hops);
        // Published before the watches are set, so that no event of theirs is taken for irrelevant.
        self.shared.interest.store(Arc::new(Interest { root, hops }));
        let (added, failure) = self.add_watches(wanted);
        self.report(failure);
        is_steady && !added
    }

    fn drop_watches(&mut self, keep: impl Fn(&Path, Inode) -> bool) {
        let Self { held, watcher, .. } = self;
        held.retain(|path, inode| {
            let keep = keep(path, *inode);
            if !keep && let Some(watcher) = watcher {
                // The library knows it no more if the folder was removed, which is as well.
                let _ = watcher.unwatch(path);
            }
            keep
        });
    }

    /// Returns whether there are new watches, and why there are not more.
    fn add_watches(&mut self, wanted: HashMap<Inode, PathBuf>) -> (bool, Option<Failure>) {
        let mut added = false;
        let mut failure = None;
        for (inode, path) in wanted {
            if self.held.contains_key(&path) {
                continue;
            }
            if self.held.len() >= self.most {
                return (added, Some(Failure::TooMany(self.most)));
            }
            let watched = self.watcher().and_then(|watcher| watcher.watch(&path, RecursiveMode::NonRecursive));
            match watched {
                Ok(()) => {
                    self.held.insert(path, inode);
                    added = true;
                }
                // Another look will find what is there instead.
                Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => added = true,
                Err(error) => {
                    let is_exhausted = self.watcher.is_none() || matches!(error.kind, notify::ErrorKind::MaxFilesWatch);
                    failure = Some(error.into());
                    if is_exhausted {
                        break;
                    }
                }
            }
        }
        (added, failure)
    }

    fn watcher(&mut self) -> notify::Result<&mut RecommendedWatcher> {
        match &mut self.watcher {
            Some(watcher) => Ok(watcher),
            none => {
                let shared = Arc::clone(&self.shared);
                let handler = move |event: notify::Result<Event>| shared.take(event.as_ref().ok());
                Ok(none.insert(RecommendedWatcher::new(handler, notify::Config::default())?))
            }
        }
    }

    fn report(&mut self, failure: Option<Failure>) {
        match failure {
            Some(failure) if !self.incomplete => {
                warn!(folder = %self.folder.display(), "changes cannot be watched, so they are looked for: {failure}");
                self.incomplete = true;
            }
            None if self.incomplete => {
                info!(folder = %self.folder.display(), "changes are watched again");
                self.incomplete = false;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
impl Watches {
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    pub(super) fn allow(&mut self, most: usize) {
        self.most = most;
    }

    pub(super) fn lose_events(&self) {
        self.shared.take(Some(&Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan)));
    }
}

impl Shared {
    /// Takes one event; none stands for an error.
    fn take(&self, event: Option<&Event>) {
        let Some(event) = event.filter(|event| !event.need_rescan()) else {
            // Events were lost, maybe also that a watched folder was removed.
            self.doubtful.store(true, Ordering::Release);
            self.signal.send_replace(());
            return;
        };
        // Reading the files makes events of this kind.
        if matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write)) {
            return;
        }
        let interest = self.interest.load();
        if matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)))
            && event.paths.iter().any(|path| interest.hops.has_folder(path))
        {
            self.doubtful.store(true, Ordering::Release);
        }
        if event.paths.iter().any(|path| interest.covers(path)) {
            self.signal.send_replace(());
        }
    }
}

impl Interest {
    fn covers(&self, path: &Path) -> bool {
        if self.hops.has_folder(path) {
            return true;
        }
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return false };
        self.hops.has(folder, name) || (self.root.as_deref() == Some(folder) && is_half(name.as_encoded_bytes()))
    }
}

/// Why changes cannot be watched.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Watch(#[from] notify::Error),
    #[error("its links lead through more than {0} folders")]
    TooMany(usize),
}

fn inode(folder: &Path) -> io::Result<Inode> {
    fs::metadata(folder).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Folders watched at most; each takes about 1 KiB of the kernel's memory.
const MOST_WATCHES: usize = 16_384;
