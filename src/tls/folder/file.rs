//! One file: what tells that it has changed, and reading it without ever waiting.

use std::{
    fs::Metadata,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::files;

/// Why a file cannot be half of a pair.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Only the other half is there.
    #[error("it is missing, though the other file of the pair is there")]
    Missing,
    /// It cannot be looked at or read; a link may lead nowhere.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    /// It is a pipe, a socket or a device, which is never opened.
    #[error("it is not a regular file")]
    NotRegular,
    /// It has more than 1 MiB.
    #[error("it is larger than {} KiB", LARGEST / 1024)]
    TooLarge,
    /// Its name is not UTF-8, so it is no host.
    #[error("its name is not UTF-8")]
    NotUnicode,
}

/// What differs after a file was replaced or written. The time of change is there because, unlike that of modification, no
/// program can set it back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of what may be read.
    pub(super) fn of(metadata: &Metadata) -> Result<Self, Refusal> {
        if !metadata.is_file() {
            return Err(Refusal::NotRegular);
        }
        if metadata.len() > LARGEST {
            return Err(Refusal::TooLarge);
        }
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Whether a write after `now` surely changes the stamp: times have a granularity, of 2 s at worst.
    fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).as_ref().map_or(0, Duration::as_secs);
        // One second more, since fractions are left out.
        let since = self.modified.0.max(self.changed.0).saturating_add(GRANULARITY + 1);
        i64::try_from(now).is_ok_and(|now| now >= since)
    }
}

/// What a file held.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) bytes: Vec<u8>,
    /// While the file has this stamp it has these bytes; `None` if it changed too shortly before `now` to tell.
    pub(super) settled: Option<Stamp>,
}

/// Reads a file; `now` is a moment before that.
pub(super) fn read(path: &Path, now: SystemTime) -> Result<Contents, Refusal> {
    // It may have become a pipe after it was looked at.
    let mut file = files::open(path)?;
    let stamp = Stamp::of(&file.metadata()?)?;
    let mut bytes = Vec::with_capacity(usize::try_from(stamp.size).unwrap_or(0) + 1);
    file.by_ref().take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(Refusal::TooLarge);
    }
    Ok(Contents { bytes, settled: stamp.is_settled(now).then_some(stamp) })
}

/// The most bytes of a file; a chain of certificates has some thousands.
const LARGEST: u64 = 1024 * 1024;

/// The coarsest granularity of a file system's times, in seconds: that of FAT.
const GRANULARITY: i64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stamp_that_a_write_would_change_is_relied_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.crt");
        std::fs::write(&path, "a").unwrap();
        let now = SystemTime::now();
        assert_eq!(read(&path, now).unwrap().settled, None);
        assert_eq!(read(&path, now + Duration::from_millis(1_900)).unwrap().settled, None);
        assert_eq!(read(&path, UNIX_EPOCH).unwrap().settled, None, "times ahead of the clock");
        let stamp = Stamp::of(&path.metadata().unwrap()).unwrap();
        assert_eq!(read(&path, now + Duration::from_millis(3_100)).unwrap().settled, Some(stamp));
    }

    #[test]
    fn the_stamp_tells_a_write_whose_time_was_set_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.crt");
        std::fs::write(&path, "a").unwrap();
        let before = path.metadata().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while Stamp::of(&path.metadata().unwrap()).unwrap() == Stamp::of(&before).unwrap() {
            assert!(std::time::Instant::now() < deadline);
            std::fs::write(&path, "b").unwrap();
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(before.modified().unwrap()).unwrap();
        }
        assert_eq!(path.metadata().unwrap().modified().unwrap(), before.modified().unwrap());
    }
}
