//! The way from a path to the file that it means, through its symbolic links.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::{OsStr, OsString},
    fs::{self, Metadata},
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// Entries of folders on which it depends what some paths mean: those that are links, those at the ends, and those that are
/// missing. Folders on the way count only where they hold one, so if one further up is renamed, no entry here is another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hops {
    /// By the real path of a folder: names in it.
    folders: BTreeMap<PathBuf, BTreeSet<OsString>>,
}

impl Hops {
    /// Adds a folder for its own sake.
    fn add_folder(&mut self, folder: &Path) {
        if !self.folders.contains_key(folder) {
            self.folders.insert(folder.to_owned(), BTreeSet::new());
        }
    }

    fn add(&mut self, folder: &Path, name: &OsStr) {
        match self.folders.get_mut(folder) {
            Some(names) if names.contains(name) => {}
            Some(names) => {
                names.insert(name.to_owned());
            }
            None => {
                self.folders.insert(folder.to_owned(), BTreeSet::from([name.to_owned()]));
            }
        }
    }

    /// The folders.
    pub(super) fn folders(&self) -> impl Iterator<Item = &PathBuf> {
        self.folders.keys()
    }

    /// Whether the folder is one of them.
    pub(super) fn has_folder(&self, folder: &Path) -> bool {
        self.folders.contains_key(folder)
    }

    /// Whether this entry of the folder is one of them.
    pub(super) fn has(&self, folder: &Path, name: &OsStr) -> bool {
        self.folders.get(folder).is_some_and(|names| names.contains(name))
    }

    /// Whether all of `others` are among these.
    pub(super) fn cover(&self, others: &Self) -> bool {
        others.folders.iter().all(|(folder, names)| self.folders.get(folder).is_some_and(|own| names.is_subset(own)))
    }

    /// Lets `folder` stand for `alias`, which is the same folder by another path.
    pub(super) fn merge(&mut self, folder: &Path, alias: &Path) {
        let names = self.folders.remove(alias).unwrap_or_default();
        self.folders.entry(folder.to_owned()).or_default().extend(names);
    }
}

/// A look at some paths, which notes the hops on their ways.
#[derive(Default)]
pub(super) struct Walk {
    hops: Hops,
    /// What was between the ends of the paths so far: most of them share it.
    between: HashMap<PathBuf, Entry>,
}

/// Where a path leads.
pub(super) struct End {
    /// The real path.
    pub(super) path: PathBuf,
    /// What is there; no link.
    pub(super) metadata: Metadata,
}

impl Walk {
    /// Follows `path` from the folder `from`, whose path is real, as the kernel would; notes the entries on which the result
    /// depends.
    ///
    /// # Errors
    /// When the path leads nowhere. Where it breaks off is noted.
    pub(super) fn follow(&mut self, from: &Path, path: &Path) -> io::Result<End> {
        let mut real = from.to_owned();
        let mut metadata = None;
        let mut steps: Vec<Step> = Vec::new();
        push(&mut steps, path);
        let mut links = 0;
        while let Some(step) = steps.pop() {
            let name = match step {
                Step::Root => {
                    (real, metadata) = (PathBuf::from("/"), None);
                    continue;
                }
                Step::Up => {
                    real.pop();
                    metadata = None;
                    continue;
                }
                Step::Down(name) => name,
            };
            let next = real.join(&name);
            let entry = self.look(&next, steps.is_empty()).inspect_err(|_| self.hops.add(&real, &name))?;
            if !matches!(entry, Entry::Folder) {
                self.hops.add(&real, &name);
            }
            match entry {
                Entry::Folder => (real, metadata) = (next, None),
                Entry::End(found) => (real, metadata) = (next, Some(found)),
                Entry::Link(_) if links == MOST_LINKS => return Err(io::Error::from_raw_os_error(libc::ELOOP)),
                Entry::Link(target) => {
                    push(&mut steps, &target);
                    links += 1;
                }
            }
        }
        let metadata = metadata.map_or_else(|| fs::symlink_metadata(&real), Ok)?;
        Ok(End { path: real, metadata })
    }

    /// Adds a folder for its own sake.
    pub(super) fn add_folder(&mut self, folder: &Path) {
        self.hops.add_folder(folder);
    }

    /// What was noted.
    pub(super) fn into_hops(self) -> Hops {
        self.hops
    }

    fn look(&mut self, path: &Path, is_last: bool) -> io::Result<Entry> {
        if !is_last && let Some(entry) = self.between.get(path) {
            return Ok(entry.clone());
        }
        let metadata = fs::symlink_metadata(path)?;
        let entry = if metadata.is_symlink() {
            Entry::Link(fs::read_link(path)?.into())
        } else if is_last {
            Entry::End(metadata)
        } else if metadata.is_dir() {
            Entry::Folder
        } else {
            return Err(io::ErrorKind::NotADirectory.into());
        };
        if !is_last {
            self.between.insert(path.to_owned(), entry.clone());
        }
        Ok(entry)
    }
}

/// What an entry on the way is.
#[derive(Clone)]
enum Entry {
    Link(Arc<Path>),
    Folder,
    End(Metadata),
}

/// A part of a path still to be followed.
enum Step {
    Root,
    Up,
    Down(OsString),
}

/// Puts a path on the stack, its first part on top.
fn push(steps: &mut Vec<Step>, path: &Path) {
    steps.extend(path.components().rev().filter_map(|part| match part {
        Component::RootDir => Some(Step::Root),
        Component::ParentDir => Some(Step::Up),
        Component::Normal(name) => Some(Step::Down(name.to_owned())),
        Component::CurDir | Component::Prefix(_) => None,
    }));
}

/// As many as the kernel follows.
const MOST_LINKS: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        (folder, path)
    }

    fn noted(hops: &Hops, root: &Path) -> Vec<String> {
        let entries = hops.folders.iter().flat_map(|(folder, names)| names.iter().map(|name| folder.join(name)));
        entries.map(|path| path.strip_prefix(root).unwrap().display().to_string()).collect()
    }

    #[test]
    fn each_link_and_the_end_are_noted() {
        let (_scratch, root) = scratch();
        for folder in ["certs", "live/a", "archive/a"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("archive/a/chain1.pem"), "").unwrap();
        symlink(root.join("live/a/chain.pem"), root.join("certs/a.crt")).unwrap();
        symlink("../../archive/a/chain1.pem", root.join("live/a/chain.pem")).unwrap();
        let mut walk = Walk::default();
        let end = walk.follow(&root.join("certs"), Path::new("a.crt")).unwrap();
        assert_eq!(end.path, root.join("archive/a/chain1.pem"));
        assert_eq!(noted(&walk.hops, &root), ["archive/a/chain1.pem", "certs/a.crt", "live/a/chain.pem"]);
    }

    #[test]
    fn where_the_way_breaks_off_is_noted() {
        let (_scratch, root) = scratch();
        fs::write(root.join("file"), "").unwrap();
        for (target, end) in [("gone/away/x", "gone"), ("file/x", "file"), ("a.crt", "a.crt")] {
            symlink(target, root.join("a.crt")).unwrap();
            let mut walk = Walk::default();
            assert!(walk.follow(&root, Path::new("a.crt")).is_err());
            assert!(noted(&walk.hops, &root).contains(&end.to_owned()), "{target}");
            fs::remove_file(root.join("a.crt")).unwrap();
        }
    }

    #[test]
    fn a_step_up_leaves_the_folder_that_a_link_led_to() {
        let (_scratch, root) = scratch();
        fs::create_dir_all(root.join("far/away")).unwrap();
        fs::write(root.join("far/file"), "").unwrap();
        symlink("far/away", root.join("near")).unwrap();
        let end = Walk::default().follow(&root, Path::new("./near/../file")).unwrap();
        assert_eq!(end.path, root.join("far/file"));
    }
}
