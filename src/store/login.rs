//! Who we are to a Redis server.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{files, secret::Secret};

/// What AUTH is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Login {
    /// A user of the server's access list; the server's default user without one.
    pub user: Option<String>,
    /// Their password.
    pub password: Option<Password>,
}

/// Where a password comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Password {
    /// It is this.
    Text(Secret),
    /// It is in this file, which is read for each connection, so that a new password needs no restart.
    File(PathBuf),
}

/// A password's file is of no use.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the password in {path}: {reason}")]
pub struct PasswordFileError {
    path: PathBuf,
    reason: io::Error,
}

impl Login {
    /// The password as it is now. A user without one has the empty password: the server lets that in if the user is one of
    /// those who need none.
    pub(super) async fn password(&self) -> Result<Option<Secret>, PasswordFileError> {
        match &self.password {
            None => Ok(self.user.as_ref().map(|_| Secret(String::new()))),
            Some(Password::Text(text)) => Ok(Some(text.clone())),
            Some(Password::File(path)) => {
                let own = path.clone();
                // A file's system may take its time.
                let read = tokio::task::spawn_blocking(move || read(&own)).await;
                let read = read.unwrap_or_else(|lost| Err(io::Error::other(lost)));
                read.map(Some).map_err(|reason| PasswordFileError { path: path.clone(), reason })
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Secret> {
    // A pipe would give its password once, but each connection needs it.
    let text = files::read(path, LONGEST)?;
    let text =
        String::from_utf8(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))?;
    let password = text.strip_suffix('\n').map_or(&*text, |line| line.strip_suffix('\r').unwrap_or(line));
    if password.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"));
    }
    Ok(Secret(password.to_owned()))
}

/// Bytes of a password's file.
const LONGEST: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn one_line_end_is_not_part_of_a_password() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, password) in
            [("a b", "a b"), ("a b\n", "a b"), ("a b\r\n", "a b"), ("a b \n\n", "a b \n"), ("a\r", "a\r")]
        {
            fs::write(file.path(), text).unwrap();
            assert_eq!(read(file.path()).unwrap(), Secret(password.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn a_file_without_a_password_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in [&b""[..], b"\n", b"\r\n", b"\xff\n"] {
            fs::write(file.path(), text).unwrap();
            assert!(read(file.path()).is_err(), "{text:?}");
        }
        assert!(read(Path::new("/nonexistent")).is_err());
        assert!(read(Path::new("/dev/null")).unwrap_err().to_string().contains("regular file"));
    }

    #[test]
    fn no_password_is_shown() {
        let login = Login { user: Some("me".to_owned()), password: Some(Password::Text(Secret("sesame".to_owned()))) };
        assert!(!format!("{login:?}").contains("sesame"));
    }
}
