//! Certificates as files in a folder: `NAME.crt` beside `NAME.key`.
//!
//! NAME is a host, `*.domain`, or `*`. This module says which pairs are there, which have other bytes than before, and when
//! to look again; what the bytes and the names mean is for its owner.
//!
//! Whatever replaces a file is to be seen at once, also where the file is a symbolic link: Kubernetes swaps a link within the
//! folder, certbot one in a folder elsewhere. So each folder through which a link leads is watched too, and a scan looks at
//! the files only after the watches that it needs are set: what changes later leaves an event.

mod file;
mod hops;
mod watch;

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    mem::{self, Discriminant},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::time::{self, Instant};

pub use file::Refusal;
use file::Stamp;
use hops::Walk;
use watch::Watches;

/// A folder of certificates, and what was in it at the last scan.
pub struct Folder {
    path: PathBuf,
    wake_every: Duration,
    pairs: HashMap<String, Known>,
    problems: HashMap<PathBuf, Gist>,
    watches: Watches,
    /// When the first event since the last scan was seen.
    dirty: Option<Instant>,
    /// When to scan even though nothing seems to have changed.
    wake_at: Instant,
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// The names of all pairs of which at least one half is there, sorted.
    pub names: Vec<String>,
    /// The pairs that are whole and new, or have other bytes than when they were last given, sorted by name.
    pub changed: Vec<PairFiles>,
    /// All files that should be half of a pair and are not, sorted by path.
    pub problems: Vec<Problem>,
}

/// The bytes of one pair.
#[derive(Debug)]
pub struct PairFiles {
    /// The files' name without its ending, in the case that it has on disk.
    pub name: String,
    /// What `NAME.crt` holds.
    pub certificate: Vec<u8>,
    /// What `NAME.key` holds.
    pub key: Vec<u8>,
}

/// A file that cannot be half of a pair.
#[derive(Debug)]
pub struct Problem {
    /// The file, whether or not it exists.
    pub path: PathBuf,
    /// Why it was refused.
    pub refusal: Refusal,
    /// Whether the previous scan did not find the same, so that it is worth a line of the log.
    pub is_new: bool,
}

impl Folder {
    /// The folder at `path`, which is scanned at least once in `wake_every`, in case events are lost or do not exist, as on
    /// network file systems. Until the first scan, it counts as changed.
    ///
    /// # Errors
    /// When the path is not a folder that can be listed.
    pub fn open(path: &Path, wake_every: Duration) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        fs::read_dir(&path)?;
        let (watches, wake_at) = (Watches::new(path.clone()), Instant::now());
        let (pairs, problems) = (HashMap::new(), HashMap::new());
        Ok(Self { path, wake_every, pairs, problems, watches, dirty: None, wake_at })
    }

    /// Reads what has changed since the previous scan. Blocks, so it is for a blocking thread; it never waits for whoever
    /// may hold the other end of a pipe or device.
    ///
    /// A file is read again when its inode, size or times are others than when it was read, or were then so recent that a
    /// later write may not have moved them. A pair is given again only if its bytes differ.
    ///
    /// # Errors
    /// When the folder cannot be listed, say because it is gone for the moment. What earlier scans gave still stands then,
    /// and [`changed`](Self::changed) also tells when the folder is back.
    pub fn scan(&mut self) -> io::Result<Scan> {
        let began = Instant::now();
        self.watches.forget_events();
        self.dirty = None;
        let found = self.survey();
        let scan = found.map(|found| self.read(found));
        self.wake_at = Instant::now()
            + if self.watches.are_complete() {
                self.wake_every
            } else {
                self.wake_every.min(POLL_EVERY.max(began.elapsed() * POLL_SHARE))
            };
        scan
    }

    /// Waits until something may have changed since the last scan, and then for a moment in which nothing else happens, or
    /// for a second in all. Dropping the future loses nothing.
    pub async fn changed(&mut self) {
        let since = match self.dirty {
            Some(since) => since,
            None => {
                tokio::select! {
                    () = self.watches.event() => *self.dirty.insert(Instant::now()),
                    () = time::sleep_until(self.wake_at) => return,
                }
            }
        };
        let latest = since + LONGEST_SETTLING;
        loop {
            let quiet = (Instant::now() + QUIET).min(latest);
            if time::timeout_at(quiet, self.watches.event()).await.is_err() || Instant::now() >= latest {
                return;
            }
        }
    }

    /// Looks at all files, without opening any, until the watches that stood beforehand were all that it takes.
    fn survey(&mut self) -> io::Result<Found> {
        let mut walk = Walk::default();
        // The folder comes first, so that one pass is enough where there are no links.
        self.watches.start_with(&root(&self.path, &mut walk), walk.into_hops());
        for _ in 0..MOST_PASSES {
            let mut walk = Walk::default();
            let root = root(&self.path, &mut walk);
            let found = Found::list(&root, &mut walk);
            if self.watches.follow(&root, walk.into_hops()) {
                return found;
            }
        }
        // The links change faster than they can be followed.
        self.watches.wake();
        let mut walk = Walk::default();
        Found::list(&root(&self.path, &mut walk), &mut walk)
    }

    fn read(&mut self, found: Found) -> Scan {
        let mut scan = Scan::default();
        let mut problems: Vec<_> = found.misnamed.into_iter().map(|path| (path, Refusal::NotUnicode)).collect();
        let mut before = mem::take(&mut self.pairs);
        for (name, halves) in found.pairs {
            let mut known = before.remove(&name).unwrap_or_default();
            let path = |ending: &str| found.root.join(format!("{name}{ending}"));
            match (halves.certificate, halves.key) {
                (Half::File(certificate), Half::File(key)) => {
                    if known.settled != Some((certificate, key)) {
                        match known.read(&name, path(CERTIFICATE), path(KEY)) {
                            Ok(pair) => scan.changed.extend(pair),
                            Err(problem) => problems.push(problem),
                        }
                    }
                }
                (certificate, key) => {
                    let halves = [(CERTIFICATE, certificate), (KEY, key)];
                    problems.extend(halves.into_iter().filter_map(|(end, half)| Some((path(end), half.refusal()?))));
                }
            }
            scan.names.push(name.clone());
            self.pairs.insert(name, known);
        }
        scan.problems = self.compare(problems);
        scan
    }

    /// Finds which problems are new.
    fn compare(&mut self, problems: Vec<(PathBuf, Refusal)>) -> Vec<Problem> {
        let before = mem::take(&mut self.problems);
        let mut compared = Vec::with_capacity(problems.len());
        for (path, refusal) in problems {
            // The folder may have moved, its problem has not.
            let path = path.file_name().map_or_else(|| self.path.clone(), |name| self.path.join(name));
            let gist = gist(&refusal);
            let is_new = before.get(&path) != Some(&gist);
            self.problems.insert(path.clone(), gist);
            compared.push(Problem { path, refusal, is_new });
        }
        compared.sort_by(|a, b| a.path.cmp(&b.path));
        compared
    }
}

/// What is remembered of a pair.
#[derive(Default)]
struct Known {
    /// What the files were when read, if that was long enough after their last change.
    settled: Option<(Stamp, Stamp)>,
    /// The digest of the bytes given last.
    given: Option<Digest>,
}

impl Known {
    /// Reads the pair, which is returned if its bytes are others than those given last.
    fn read(
        &mut self,
        name: &str,
        certificate: PathBuf,
        key: PathBuf,
    ) -> Result<Option<PairFiles>, (PathBuf, Refusal)> {
        self.settled = None;
        let certificate = file::read(&certificate, SystemTime::now()).map_err(|refusal| (certificate, refusal))?;
        let key = file::read(&key, SystemTime::now()).map_err(|refusal| (key, refusal))?;
        self.settled = certificate.settled.zip(key.settled);
        let digest = digest(&certificate.bytes, &key.bytes);
        if self.given.replace(digest) == Some(digest) {
            return Ok(None);
        }
        Ok(Some(PairFiles { name: name.to_owned(), certificate: certificate.bytes, key: key.bytes }))
    }
}

/// The files of a folder, as they were when it was listed.
#[derive(Default)]
struct Found {
    root: PathBuf,
    pairs: BTreeMap<String, Halves>,
    misnamed: Vec<PathBuf>,
}

impl Found {
    fn list(root: &io::Result<PathBuf>, walk: &mut Walk) -> io::Result<Self> {
        let root = root.as_ref().map_err(copied)?;
        let mut found = Self { root: root.clone(), ..Self::default() };
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            let file_name = entry.file_name();
            if !is_half(file_name.as_encoded_bytes()) {
                continue;
            }
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            let metadata = if is_link {
                fs::read_link(entry.path()).and_then(|target| walk.follow(root, &target)).map(|end| end.metadata)
            } else {
                entry.metadata()
            };
            let half = match metadata {
                // It went after it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !is_link => continue,
                Err(error) => Half::Refused(error.into()),
                Ok(metadata) if metadata.is_dir() => continue,
                Ok(metadata) => Stamp::of(&metadata).map_or_else(Half::Refused, Half::File),
            };
            match file_name.into_string() {
                Ok(file_name) => found.add(&file_name, half),
                Err(_) => found.misnamed.push(entry.path()),
            }
        }
        Ok(found)
    }

    fn add(&mut self, file_name: &str, half: Half) {
        if let Some(name) = file_name.strip_suffix(CERTIFICATE) {
            self.pairs.entry(name.to_owned()).or_default().certificate = half;
        } else if let Some(name) = file_name.strip_suffix(KEY) {
            self.pairs.entry(name.to_owned()).or_default().key = half;
        }
    }
}

#[derive(Default)]
struct Halves {
    certificate: Half,
    key: Half,
}

/// One file of a pair before it is read.
#[derive(Default)]
enum Half {
    #[default]
    Missing,
    Refused(Refusal),
    File(Stamp),
}

impl Half {
    fn refusal(self) -> Option<Refusal> {
        match self {
            Self::Missing => Some(Refusal::Missing),
            Self::Refused(refusal) => Some(refusal),
            Self::File(_) => None,
        }
    }
}

type Digest = [u8; 32];

fn digest(certificate: &[u8], key: &[u8]) -> Digest {
    let mut digest = Context::new(&SHA256);
    digest.update(&certificate.len().to_le_bytes());
    digest.update(certificate);
    digest.update(key);
    let mut bytes = Digest::default();
    bytes.copy_from_slice(digest.finish().as_ref());
    bytes
}

/// What makes two refusals of one file the same.
type Gist = (Discriminant<Refusal>, Option<io::ErrorKind>);

fn gist(refusal: &Refusal) -> Gist {
    let kind = if let Refusal::Unreadable(error) = refusal { Some(error.kind()) } else { None };
    (mem::discriminant(refusal), kind)
}

/// Where the folder really is; the error says that it is nowhere.
fn root(path: &Path, walk: &mut Walk) -> io::Result<PathBuf> {
    let root = walk.follow(Path::new("/"), path)?.path;
    walk.add_folder(&root);
    Ok(root)
}

/// Whether a file of this name is half of a pair. Hidden files are not: editors and copying programs make them on the way.
fn is_half(file_name: &[u8]) -> bool {
    !file_name.starts_with(b".") && (file_name.ends_with(CERTIFICATE.as_bytes()) || file_name.ends_with(KEY.as_bytes()))
}

fn copied(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

const CERTIFICATE: &str = ".crt";
const KEY: &str = ".key";

/// How long nothing must happen before a change counts as over.
const QUIET: Duration = Duration::from_millis(30);

/// How long a change may take before it is looked at half done.
const LONGEST_SETTLING: Duration = Duration::from_secs(1);

/// How often to scan where changes cannot be watched.
const POLL_EVERY: Duration = Duration::from_secs(1);

/// Such scans take at most about this part of one core's time: pauses are so many times as long as a scan.
const POLL_SHARE: u32 = 10;

/// Looks at the folder within one scan: the first may find links, the second what they lead to when watched.
const MOST_PASSES: usize = 4;

#[cfg(test)]
mod tests;
