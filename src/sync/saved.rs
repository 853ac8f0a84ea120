//! The routing table in a file, for a start without Redis.
//!
//! A line that says what it is, the SHA-256 of the rest, and the rest. The file is replaced as a whole, after it is surely
//! on the disk, and only its owner may read it, for it holds private keys.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use serde::{Deserialize, Serialize};

use super::replacing::replace;
use crate::{
    clock::{Clock, Moment},
    files,
    routing::Snapshot,
    store::Identity,
};

/// What a file holds.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The server that the table was in step with.
    pub run: String,
    /// Its data's history.
    pub history: String,
    /// When it was saved, in milliseconds since 1970.
    pub saved_at: u64,
    /// Every frontend.
    pub routes: Vec<SavedRoute>,
    /// Every dead mark.
    pub marks: Vec<SavedMark>,
    /// Every certificate, where Redis is their source.
    pub certificates: Vec<SavedPair>,
}

/// One frontend.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRoute {
    /// The host as its key spells it.
    pub host: String,
    /// The list. An element that was no backend is empty.
    pub elements: Vec<String>,
}

/// One dead mark.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMark {
    /// The host as its key spells it.
    pub host: String,
    /// The backend.
    pub url: String,
    /// Its index in the host's dead set; `None` if it was never seen there.
    pub index: Option<usize>,
    /// When it ends, in milliseconds since 1970; `None` for never.
    pub until: Option<u64>,
}

/// One certificate.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPair {
    /// The name as its key spells it.
    pub name: String,
    /// The PEM chain.
    pub certificate: Vec<u8>,
    /// The PEM key.
    pub key: Vec<u8>,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// It cannot be read.
    #[error("the snapshot file {path} cannot be read: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was not written by this program, or by another version of it.
    #[error("{0} is no snapshot file of this version")]
    Foreign(PathBuf),
    /// A part of it is missing, or changed.
    #[error("the snapshot file {0} is damaged")]
    Damaged(PathBuf),
}

/// Why bytes are no snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// They were not written by this program, or by another version of it.
    Foreign,
    /// A part of them is missing, or changed.
    Damaged,
}

impl Saved {
    /// Adds what a snapshot holds, with the marks that were never seen in a dead set.
    pub fn add_routes(&mut self, snapshot: &Snapshot, clock: Clock, wall: u64) {
        let now = clock.now();
        let seen: HashSet<(String, String)> =
            self.marks.iter().map(|mark| (mark.host.clone(), mark.url.clone())).collect();
        for frontend in snapshot.iter() {
            let host = frontend.key().to_owned();
            let mut elements = vec![String::new(); frontend.listed() + 1];
            frontend.id().clone_into(&mut elements[0]);
            for slot in frontend.slots() {
                slot.backend.url().clone_into(&mut elements[slot.index + 1]);
                let key = (host.clone(), slot.backend.url().to_owned());
                if slot.backend.is_dead(now) && !seen.contains(&key) {
                    let until = until_wall(slot.backend.dead_until(), now, wall);
                    self.marks.push(SavedMark { host: key.0, url: key.1, index: None, until });
                }
            }
            self.routes.push(SavedRoute { host, elements });
        }
    }

    /// The server that the table was in step with.
    pub fn identity(&self) -> Identity {
        Identity { run: self.run.clone(), history: self.history.clone() }
    }

    /// Reads a file; `None` if there is none. Blocks the thread.
    ///
    /// # Errors
    /// When it is not usable.
    pub fn read(path: &Path) -> Result<Option<Self>, SavedError> {
        let bytes = match files::read(path, u64::MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SavedError::Unreadable { path: path.to_owned(), source }),
        };
        Self::of(&bytes).map(Some).map_err(|unusable| match unusable {
            Unusable::Foreign => SavedError::Foreign(path.to_owned()),
            Unusable::Damaged => SavedError::Damaged(path.to_owned()),
        })
    }

    /// Reads what a file holds.
    ///
    /// # Errors
    /// When it is not usable.
    pub fn of(bytes: &[u8]) -> Result<Self, Unusable> {
        let rest = bytes.strip_prefix(TITLE).ok_or(Unusable::Foreign)?;
        let (sum, content) = rest.split_first_chunk::<SHA256_OUTPUT_LEN>().ok_or(Unusable::Damaged)?;
        if digest(&SHA256, content).as_ref() != sum {
            return Err(Unusable::Damaged);
        }
        postcard::from_bytes(content).map_err(|_| Unusable::Damaged)
    }

    /// Replaces a file. Blocks the thread until the disk has it.
    ///
    /// # Errors
    /// When the folder cannot be written to, or the disk is full; the old file is then still there.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let content = self.content()?;
        replace(path, &[TITLE, digest(&SHA256, &content).as_ref(), &content])
    }

    /// What a file holds behind its first line and its sum.
    ///
    /// # Errors
    /// None that is known.
    pub fn content(&self) -> io::Result<Vec<u8>> {
        postcard::to_stdvec(self).map_err(io::Error::other)
    }

    /// The whole of a file with this content.
    pub fn sealed(content: &[u8]) -> Vec<u8> {
        [TITLE, digest(&SHA256, content).as_ref(), content].concat()
    }
}

/// A moment as the clock on the wall has it; `None` for the end of time.
pub fn until_wall(until: Moment, now: Moment, wall: u64) -> Option<u64> {
    (until.as_millis() < u64::MAX).then(|| wall + until.as_millis().saturating_sub(now.as_millis()))
}

/// The first line. Another form of the content needs another number.
const TITLE: &[u8] = b"planb snapshot 1\n";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn saved() -> Saved {
        Saved {
            run: "run".to_owned(),
            history: "history".to_owned(),
            saved_at: 1_795_324_626_000,
            routes: vec![SavedRoute {
                host: "a.test".to_owned(),
                elements: vec!["id".to_owned(), "http://x".to_owned()],
            }],
            marks: vec![SavedMark {
                host: "a.test".to_owned(),
                url: "http://x".to_owned(),
                index: Some(0),
                until: None,
            }],
            certificates: vec![SavedPair {
                name: "a.test".to_owned(),
                certificate: vec![1; 300],
                key: vec![2, 255, 0],
            }],
        }
    }

    #[test]
    fn a_file_survives_the_journey() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        assert_eq!(Saved::read(&path).unwrap(), None);
        saved().write(&path).unwrap();
        saved().write(&path).unwrap();
        assert_eq!(Saved::read(&path).unwrap(), Some(saved()));
    }

    #[test]
    fn a_torn_truncated_changed_or_foreign_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        saved().write(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(Saved::read(&path).is_err(), "of {length} bytes");
        }
        for position in 0..whole.len() {
            let mut changed = whole.clone();
            changed[position] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(Saved::read(&path).is_err(), "at {position}");
        }
        fs::write(&path, "{\"version\": 1}").unwrap();
        assert!(matches!(Saved::read(&path), Err(SavedError::Foreign(_))));
        assert!(matches!(Saved::read(folder.path()), Err(SavedError::Unreadable { .. })));
    }
}
