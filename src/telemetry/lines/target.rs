//! Where lines go, and what it is opened as.

use std::{
    convert::Infallible,
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Appended to a file, which is created if need be and reopened on demand. It may be a named pipe.
    File(PathBuf),
    /// To the local syslog daemon: facility local0, level info, tag `hipache`.
    Syslog,
    /// To standard output.
    Stdout,
    /// To standard error.
    Stderr,
    /// Nowhere.
    None,
}

impl FromStr for LogTarget {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "syslog" => Self::Syslog,
            "stdout" => Self::Stdout,
            "none" => Self::None,
            path => Self::File(path.into()),
        })
    }
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Syslog => f.write_str("syslog"),
            Self::Stdout => f.write_str("stdout"),
            Self::Stderr => f.write_str("stderr"),
            Self::None => f.write_str("none"),
        }
    }
}

impl LogTarget {
    /// Whether there is something to be opened again.
    pub fn can_be_reopened(&self) -> bool {
        matches!(self, Self::File(_) | Self::Syslog)
    }

    /// Whether a failure to open like this is nobody's mistake: readers of pipes and syslog daemons come later, and go.
    pub fn may_come_later(&self, error: &io::Error) -> bool {
        match self {
            Self::File(path) => error.raw_os_error() == Some(libc::ENXIO) && is_pipe(path),
            Self::Syslog => true,
            Self::Stdout | Self::Stderr | Self::None => false,
        }
    }
}

fn is_pipe(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo())
}

/// What takes bytes for a target.
pub enum Sink {
    /// A file, a pipe or a terminal.
    File(File),
    /// The syslog daemon.
    Syslog(Box<Logger<LoggerBackend, Formatter3164>>),
}

impl Sink {
    /// Opens a target. Of a path that is a pipe, neither this nor a write ever waits for a reader.
    pub fn open(target: &LogTarget) -> io::Result<Self> {
        Ok(match target {
            LogTarget::None => return Err(io::ErrorKind::Unsupported.into()),
            // Descriptors of our own, because the library's streams keep what they could not write, and write it again.
            LogTarget::Stdout => Self::File(io::stdout().as_fd().try_clone_to_owned()?.into()),
            LogTarget::Stderr => Self::File(io::stderr().as_fd().try_clone_to_owned()?.into()),
            LogTarget::File(path) => Self::File(append_to(path)?),
            LogTarget::Syslog => Self::Syslog(Box::new(connect_syslog()?)),
        })
    }

    /// Writes some of these lines, and says how many bytes it has taken. Syslog takes one line at a time.
    pub fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(lines),
            Self::Syslog(logger) => {
                let end = memchr::memchr(b'\n', lines).unwrap_or(lines.len());
                logger.info(String::from_utf8_lossy(&lines[..end])).map_err(|error| match error {
                    syslog::Error::Io(error) | syslog::Error::Write(error) => error,
                    error @ syslog::Error::Initialization(_) => io::Error::other(error),
                })?;
                Ok((end + 1).min(lines.len()))
            }
        }
    }

    /// Whether this error is about the size of one line, so that others may pass.
    pub fn refuses_one_line(&self, error: &io::Error) -> bool {
        matches!(self, Self::Syslog(_)) && error.raw_os_error() == Some(libc::EMSGSIZE)
    }

    /// Whether both are the same file.
    pub fn is_same_file(&self, other: &Self) -> bool {
        let (Self::File(one), Self::File(other)) = (self, other) else { return false };
        match (one.metadata(), other.metadata()) {
            (Ok(one), Ok(other)) => one.dev() == other.dev() && one.ino() == other.ino(),
            _ => false,
        }
    }

    /// Whether this is a regular file without content.
    pub fn is_empty_file(&self) -> bool {
        let Self::File(file) = self else { return false };
        file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0)
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(MODE).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

fn connect_syslog() -> io::Result<Logger<LoggerBackend, Formatter3164>> {
    let formatter = Formatter3164 {
        facility: Facility::LOG_LOCAL0,
        hostname: None,
        process: "hipache".to_owned(),
        pid: std::process::id(),
    };
    let logger = syslog::unix(formatter).map_err(|error| io::Error::new(io::ErrorKind::NotConnected, error))?;
    if let LoggerBackend::Unix(socket) = &logger.backend {
        socket.set_nonblocking(true)?;
    }
    Ok(logger)
}

/// Of a new file: what clients ask for is not everybody's to read.
const MODE: u32 = 0o640;
