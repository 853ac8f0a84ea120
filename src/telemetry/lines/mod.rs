//! Lines of text on their way to a file, a stream or syslog, without ever delaying who writes them.

mod losses;
mod target;
mod writer;

use std::{
    fmt,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use tracing::warn;
use tracing_subscriber::fmt::MakeWriter;

use super::metrics::LogMetrics;
use losses::{Losses, explain};
pub use target::LogTarget;
use target::Sink;
use writer::Writer;

/// A queue of lines with a thread behind it. When the target is slower than its writers and 10,000 lines or 4 MiB wait,
/// further ones are dropped and counted. Cloning shares the queue.
#[derive(Clone)]
pub struct Lines {
    queue: Option<SyncSender<Message>>,
    shared: Arc<Shared>,
}

/// What the queue's two ends share besides it.
struct Shared {
    losses: Losses,
    /// Whether this is the log that losses are told in, so that to tell of them needs room in this very queue.
    is_told_here: bool,
    /// Whether the target is to be opened again, which found no room in the queue.
    reopens: AtomicBool,
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
    /// Opens `target` and starts writing to it. A pipe that nobody reads yet, and a syslog daemon that is not there yet, are
    /// waited for, while lines are lost and counted.
    ///
    /// # Errors
    /// When the target cannot be opened otherwise, or the thread cannot be started.
    pub fn open(target: &LogTarget, metrics: &LogMetrics) -> io::Result<(Self, Option<LinesGuard>)> {
        let shared = Arc::new(Shared {
            losses: Losses::new(metrics),
            is_told_here: *target == LogTarget::Stderr,
            reopens: AtomicBool::new(false),
        });
        if *target == LogTarget::None {
            return Ok((Self { queue: None, shared }, None));
        }
        let sink = match Sink::open(target) {
            Err(error) if target.may_come_later(&error) => {
                warn!(%target, "the log is written as soon as it can be: {}", explain(&error));
                Err(error)
            }
            opened => Ok(opened?),
        };
        let (queue, messages) = sync_channel(CAPACITY);
        let (finish, finished) = sync_channel(1);
        let (target, known) = (target.clone(), Arc::clone(&shared));
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            pump(Writer::new(target, sink, &known.losses), &messages, &known.reopens);
            // Nobody waits any more if the process is past caring.
            let _ = finish.send(());
        })?;
        let guard = LinesGuard { queue: queue.clone(), finished };
        Ok((Self { queue: Some(queue), shared }, Some(guard)))
    }

    /// Whether lines go anywhere, so that callers can spare themselves the formatting.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Queues a line, without its newline.
    pub fn write(&self, mut line: Vec<u8>) {
        let Some(queue) = &self.queue else { return };
        line.push(b'\n');
        if queue.try_send(Message::Line(line)).is_err() {
            self.shared.losses.count_slow(1);
            if !self.shared.is_told_here {
                self.shared.losses.tell();
            }
        }
    }

    /// Closes a file and opens its path again, as log rotation needs.
    pub fn reopen(&self) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(Message::Reopen).is_err() {
            self.shared.reopens.store(true, Ordering::Relaxed);
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
fn pump(mut writer: Writer<'_>, messages: &Receiver<Message>, reopens: &AtomicBool) {
    loop {
        let first = match messages.recv_timeout(writer.patience()) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        for message in first.into_iter().chain(messages.try_iter()).take(CAPACITY) {
            match message {
                Message::Line(line) => writer.push(&line),
                Message::Reopen => writer.reopen(),
                Message::Finish => {
                    writer.finish(Instant::now() + WRITE_LIMIT);
                    return;
                }
            }
        }
        if reopens.swap(false, Ordering::Relaxed) {
            writer.reopen();
        }
        writer.flush();
        thread::sleep(PAUSE);
    }
}

/// Lines that may wait.
const CAPACITY: usize = 10_000;

/// How long the writing thread looks away after a batch, and so how late a line may be.
const PAUSE: Duration = Duration::from_millis(5);

/// How long the end of the process may be held up for unwritten lines.
const FINISH_LIMIT: Duration = Duration::from_secs(2);

/// How much of it a target has that takes nothing.
const WRITE_LIMIT: Duration = Duration::from_millis(1_500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    fn open(target: &LogTarget) -> io::Result<(Lines, Option<LinesGuard>)> {
        Lines::open(target, &Metrics::new().unwrap().access_lines)
    }

    #[test]
    fn what_is_queued_is_written_before_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (lines, guard) = open(&LogTarget::File(path.clone())).unwrap();
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
        let (lines, guard) = open(&LogTarget::File(path.clone())).unwrap();
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
        let metrics = Metrics::new().unwrap();
        let (queue, _unread) = sync_channel(1);
        let (lines, _guard) = Lines::open(&LogTarget::None, &metrics.access_lines).unwrap();
        let lines = Lines { queue: Some(queue), ..lines };
        for _ in 0..10 {
            lines.write(Vec::new());
        }
        assert_eq!(metrics.access_lines.dropped.get(), 9);
    }

    #[test]
    fn a_full_queue_loses_no_wish_to_reopen() {
        let (queue, unread) = sync_channel(1);
        let (lines, _guard) = open(&LogTarget::None).unwrap();
        let lines = Lines { queue: Some(queue), ..lines };
        lines.write(Vec::new());
        lines.reopen();
        assert!(lines.shared.reopens.load(Ordering::Relaxed));
        drop(unread);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        assert!(open(&LogTarget::File("/nonexistent/folder/log".into())).is_err());
    }
}
