//! Files that an operator names, read without ever waiting for anybody: a named pipe would wait for whoever writes to it, at a
//! start without a word, and at a hang-up with nobody left to answer signals.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Reads a regular file of up to `most` bytes.
///
/// # Errors
/// When it cannot be read, is something else, or is larger.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut content = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 > most {
        let reason = format!("it is larger than {} KiB", most / 1024);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(content)
}

/// Opens for reading what may be anything, without waiting for whoever writes to it.
///
/// # Errors
/// When it cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// Bytes of a file with certificates of authorities: all that browsers know are a quarter of a megabyte.
pub const AUTHORITIES: u64 = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    #[test]
    fn nothing_but_a_file_of_a_bearable_size_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let [file, pipe] = ["file", "pipe"].map(|name| folder.path().join(name));
        fs::write(&file, [7; 2_048]).unwrap();
        assert_eq!(read(&file, 2_048).unwrap(), [7; 2_048]);
        assert_eq!(read(&file, 2_047).unwrap_err().to_string(), "it is larger than 1 KiB");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for other in [&pipe, folder.path(), Path::new("/dev/null")] {
            assert_eq!(read(other, 1).unwrap_err().to_string(), "it is not a regular file", "{other:?}");
        }
    }
}
