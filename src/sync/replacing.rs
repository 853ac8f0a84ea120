//! A file that is replaced as a whole. What is being written has no name, so that nothing is left of it if the process is killed; or,
//! where file systems cannot do that, a name that the next to write takes over.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, linkat};

/// Replaces the file at `path`, for its owner alone. Blocks the thread until the disk has it.
///
/// # Errors
/// When the folder cannot be written to, or the disk is full; the old file is then still there.
pub(super) fn replace(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let folder = folder_of(path);
    let write = |mut file: File| -> io::Result<File> {
        // The process may take more rights from its files than it should.
        file.set_permissions(Permissions::from_mode(PRIVATE))?;
        parts.iter().try_for_each(|part| file.write_all(part))?;
        file.sync_all()?;
        Ok(file)
    };
    let temporary = temporary(path)?;
    if let Ok(file) = nameless(folder) {
        let file = write(file)?;
        give_way(&temporary)?;
        let it = format!("/proc/self/fd/{}", file.as_raw_fd());
        linkat(CWD, &it, CWD, &temporary, AtFlags::SYMLINK_FOLLOW)?;
    } else {
        give_way(&temporary)?;
        write(named(&temporary)?).inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    }
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

/// Makes sure that a file can be put there, and takes away what an earlier process has left of one.
///
/// # Errors
/// When the folder is not there, or cannot be written to.
pub fn check_writable(path: &Path) -> io::Result<()> {
    give_way(&temporary(path)?)?;
    tempfile::tempfile_in(folder_of(path)).map(drop)
}

/// A file in this folder that has no name, where there can be one.
fn nameless(folder: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).mode(PRIVATE).custom_flags(libc::O_TMPFILE).open(folder)
}

fn named(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path)
}

/// Makes room under a name.
fn give_way(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The name that a file has before it has its own.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    Ok(folder_of(path).join(hidden))
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// For its owner alone.
const PRIVATE: u32 = 0o600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let left = temporary(&path).unwrap();
        for content in ["first", "second", "third"] {
            // As if a process had been killed.
            fs::write(&left, "left").unwrap();
            replace(&path, &[content.as_bytes(), b"!"]).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{content}!"));
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something was left behind");
        }
        fs::write(&left, "left").unwrap();
        check_writable(&path).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn a_name_is_taken_by_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &path).unwrap();
        assert_eq!(named(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        give_way(&path).unwrap();
        assert!(named(&path).is_ok() && nameless(folder.path()).is_ok());
    }

    #[test]
    fn a_failure_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(replace(&folder.path().join("none").join("file"), &[b"new"]).is_err());
        assert!(replace(folder.path(), &[b"new"]).is_err() && folder.path().is_dir());
        assert_eq!(folder_of(Path::new("file")), Path::new("."));
    }
}
