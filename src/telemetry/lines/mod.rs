//! Lines of text on their way to a file, a stream or syslog, without ever delaying who writes them.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
    str::FromStr,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    thread,
    time::{Duration, Instant},
};

use prometheus::IntCounter;
use syslog::{Facility, Formatter3164, LoggerBackend};
use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Appended to a file, which is created if need be and reopened on demand.
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
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "syslog" => Self::Syslog,
            "stdout" => Self::Stdout,
            "none" => Self::None,
            path => Self::File(path.into()),
        })
    }
}

/// A queue of lines with a thread behind it. When the target is slower than its writers and [`CAPACITY`] lines wait,
/// further ones are dropped and counted. Cloning shares the queue.
#[derive(Clone)]
pub struct Lines {
    queue: Option<SyncSender<Message>>,
    dropped: IntCounter,
}

/// Ends the thread when dropped, after what is queued has been written or two seconds have passed.
pub struct LinesGuard {
    queue: SyncSender<Message>,
    finished: Receiver<()>,
}

enum Message {
    Line(Vec<u8>),
    Reopen,
    Finish,
}

impl Lines {
    /// Opens `target` and starts writing to it; `dropped` counts the lines that found the queue full.
    pub fn open(target: &LogTarget, dropped: IntCounter) -> io::Result<(Self, Option<LinesGuard>)> {
        let Some(sink) = Sink::open(target)? else {
            return Ok((Self { queue: None, dropped }, None));
        };
        let (queue, messages) = sync_channel(CAPACITY);
        let (finish, finished) = sync_channel(1);
        let reporter = Reporter { dropped: dropped.clone(), reported: dropped.get(), next: Instant::now() };
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            pump(sink, &messages, reporter);
            // Nobody waits any more if the process is past caring.
            let _ = finish.send(());
        })?;
        let guard = LinesGuard { queue: queue.clone(), finished };
        Ok((Self { queue: Some(queue), dropped }, Some(guard)))
    }

    /// Whether lines go anywhere, so that callers can spare themselves the formatting.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Queues a line, without its newline.
    pub fn write(&self, mut line: Vec<u8>) {
        line.push(b'\n');
        self.send(Message::Line(line));
    }

    /// Closes a file and opens its path again, as log rotation needs.
    pub fn reopen(&self) {
        self.send(Message::Reopen);
    }

    fn send(&self, message: Message) {
        let Some(queue) = &self.queue else { return };
        match queue.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.dropped.inc(),
        }
    }
}

impl Drop for LinesGuard {
    fn drop(&mut self) {
        let deadline = Instant::now() + FINISH_LIMIT;
        let mut message = Message::Finish;
        while let Err(TrySendError::Full(back)) = self.queue.try_send(message) {
            if Instant::now() >= deadline {
                return;
            }
            message = back;
            thread::sleep(PAUSE);
        }
        // Either it finished, or it hangs in a write that nothing can interrupt.
        let _ = self.finished.recv_timeout(FINISH_LIMIT);
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter { lines: self, buffer: Vec::new() }
    }
}

/// Collects one event of `tracing` and queues it when dropped.
pub struct LineWriter<'a> {
    lines: &'a Lines,
    buffer: Vec<u8>,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter<'_> {
    fn drop(&mut self) {
        if self.buffer.last() == Some(&b'\n') {
            self.buffer.pop();
        }
        if !self.buffer.is_empty() {
            self.lines.write(std::mem::take(&mut self.buffer));
        }
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("is_on", &self.is_on()).finish()
    }
}

/// Writes until told to finish. Between batches it looks away for [`PAUSE`], so that at high rates a writer does not have
/// to wake this thread for each line.
fn pump(mut sink: Sink, messages: &Receiver<Message>, mut reporter: Reporter) {
    loop {
        let mut next = match messages.recv_timeout(REPORT_EVERY) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        while let Some(message) = next {
            let written = match message {
                Message::Line(line) => sink.write(&line),
                Message::Reopen => sink.reopen(),
                Message::Finish => {
                    sink.flush_or_drop(&mut reporter);
                    return;
                }
            };
            if written.is_err() {
                reporter.dropped.inc();
            }
            next = messages.try_recv().ok();
        }
        sink.flush_or_drop(&mut reporter);
        reporter.report();
        thread::sleep(PAUSE);
    }
}

enum Sink {
    File { path: PathBuf, file: io::BufWriter<File> },
    Stdout(io::BufWriter<io::Stdout>),
    Stderr(io::BufWriter<io::Stderr>),
    Syslog(syslog::Logger<LoggerBackend, Formatter3164>),
}

impl Sink {
    fn open(target: &LogTarget) -> io::Result<Option<Self>> {
        Ok(Some(match target {
            LogTarget::None => return Ok(None),
            LogTarget::Stdout => Self::Stdout(io::BufWriter::new(io::stdout())),
            LogTarget::Stderr => Self::Stderr(io::BufWriter::new(io::stderr())),
            LogTarget::File(path) => Self::File { path: path.clone(), file: append_to(path)? },
            LogTarget::Syslog => Self::Syslog(connect_syslog()?),
        }))
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::File { file, .. } => file.write_all(line),
            Self::Stdout(stream) => stream.write_all(line),
            Self::Stderr(stream) => stream.write_all(line),
            Self::Syslog(logger) => {
                let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
                if logger.info(&text).is_err() {
                    // The daemon was restarted, and its socket with it.
                    *logger = connect_syslog()?;
                    logger.info(&text).map_err(io::Error::other)?;
                }
                Ok(())
            }
        }
    }

    fn flush_or_drop(&mut self, reporter: &mut Reporter) {
        let flushed = match self {
            Self::File { file, .. } => file.flush(),
            Self::Stdout(stream) => stream.flush(),
            Self::Stderr(stream) => stream.flush(),
            Self::Syslog(_) => Ok(()),
        };
        if flushed.is_err() {
            reporter.dropped.inc();
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Self::File { path, file } = self {
            file.flush()?;
            *file = append_to(path)?;
        }
        Ok(())
    }
}

fn append_to(path: &PathBuf) -> io::Result<io::BufWriter<File>> {
    Ok(io::BufWriter::new(OpenOptions::new().create(true).append(true).open(path)?))
}

fn connect_syslog() -> io::Result<syslog::Logger<LoggerBackend, Formatter3164>> {
    let formatter = Formatter3164 {
        facility: Facility::LOG_LOCAL0,
        hostname: None,
        process: "hipache".to_owned(),
        pid: std::process::id(),
    };
    syslog::unix(formatter).map_err(io::Error::other)
}

/// Says, at most once a minute, how many lines were dropped.
struct Reporter {
    dropped: IntCounter,
    reported: u64,
    next: Instant,
}

impl Reporter {
    fn report(&mut self) {
        let total = self.dropped.get();
        if total > self.reported && Instant::now() >= self.next {
            warn!(
                lines = total - self.reported,
                "log lines were dropped: the log is written faster than its target takes it"
            );
            self.reported = total;
            self.next = Instant::now() + REPORT_EVERY;
        }
    }
}

/// Lines that may wait.
const CAPACITY: usize = 10_000;

/// How long the writing thread looks away after a batch, and so how late a line may be.
const PAUSE: Duration = Duration::from_millis(5);

/// How often dropped lines are reported.
const REPORT_EVERY: Duration = Duration::from_mins(1);

/// How long the end of the process may be held up for unwritten lines.
const FINISH_LIMIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn counter() -> IntCounter {
        IntCounter::new("dropped", "test").unwrap()
    }

    #[test]
    fn what_is_queued_is_written_before_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (lines, guard) = Lines::open(&LogTarget::File(path.clone()), counter()).unwrap();
        for number in 0..1_000 {
            lines.write(format!("line {number}").into_bytes());
        }
        drop(guard);
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 1_000);
        assert_eq!(text.lines().last(), Some("line 999"));
    }

    #[test]
    fn reopening_follows_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (lines, guard) = Lines::open(&LogTarget::File(path.clone()), counter()).unwrap();
        lines.write(b"before".to_vec());
        lines.reopen();
        std::fs::rename(&path, folder.path().join("log.1")).unwrap();
        lines.reopen();
        lines.write(b"after".to_vec());
        drop(guard);
        assert_eq!(std::fs::read_to_string(folder.path().join("log")).unwrap(), "after\n");
    }

    #[test]
    fn a_full_queue_drops_and_counts_instead_of_blocking() {
        let (queue, _unread) = sync_channel(1);
        let dropped = counter();
        let lines = Lines { queue: Some(queue), dropped: dropped.clone() };
        for _ in 0..10 {
            lines.write(Vec::new());
        }
        assert_eq!(dropped.get(), 9);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        assert!(Lines::open(&LogTarget::File("/nonexistent/folder/log".into()), counter()).is_err());
    }
}
