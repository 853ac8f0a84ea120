//! Lines on their last step, into a target that may be full, gone, or not reading.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};
use tracing::{info, warn};

use super::{
    losses::{Loss, Losses, explain},
    target::{LogTarget, Sink},
};

/// Writes lines in batches. A line is written once, or lost and counted, and what comes after one that was cut off begins on
/// a line of its own. What cannot be opened is tried again without being asked.
pub struct Writer<'a> {
    target: LogTarget,
    /// What is open, or why nothing is.
    sink: io::Result<Sink>,
    /// Lines that are not written yet. The first may lack its beginning, which the sink has.
    pending: BytesMut,
    last: LastLine,
    /// Whether the sink takes nothing at the moment.
    is_stalled: bool,
    /// When the target is to be opened again without being asked.
    reopen_at: Option<Instant>,
    /// Whether the last attempt to open it failed.
    is_missing: bool,
    losses: &'a Losses,
}

/// The line that the sink has the last byte of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastLine {
    /// The sink has it whole, or has none.
    Whole,
    /// Its rest is pending.
    Begun,
    /// Its rest is lost.
    Torn,
}

impl<'a> Writer<'a> {
    /// For a target and what was opened for it, or why nothing could be.
    pub fn new(target: LogTarget, sink: io::Result<Sink>, losses: &'a Losses) -> Self {
        let is_missing = sink.is_err();
        Self {
            target,
            sink,
            pending: BytesMut::with_capacity(2 * BATCH),
            last: LastLine::Whole,
            is_stalled: false,
            reopen_at: is_missing.then(|| Instant::now() + REOPEN_EVERY),
            is_missing,
            losses,
        }
    }

    /// How long this may be left alone while no lines come.
    pub fn patience(&self) -> Duration {
        if self.is_stalled {
            RETRY_EVERY
        } else if self.reopen_at.is_some() {
            REOPEN_EVERY
        } else {
            LONGEST_REST
        }
    }

    /// Takes a line, with its newline, to be written with others.
    pub fn push(&mut self, line: &[u8]) {
        if self.pending.len() >= MOST_PENDING {
            self.losses.count_slow(count_lines(line));
            return;
        }
        self.pending.extend_from_slice(line);
        if self.pending.len() >= BATCH && !self.is_stalled {
            self.flush();
        }
    }

    /// Writes what can be written now, and tells of what was lost.
    pub fn flush(&mut self) {
        if self.reopen_at.is_some_and(|at| at <= Instant::now()) {
            self.reopen_unasked();
        }
        self.write();
        self.losses.tell();
    }

    /// Opens the target again, as log rotation wants, whatever becomes of the lines that are still pending. Where that fails,
    /// lines go on going where they went until it succeeds.
    pub fn reopen(&mut self) {
        if !self.target.can_be_reopened() {
            return;
        }
        self.write();
        match Sink::open(&self.target) {
            Ok(sink) => self.replace(sink),
            Err(error) => {
                warn!(
                    target = %self.target,
                    "the log cannot be opened again, which is tried every {REOPEN_EVERY:?}: {}",
                    explain(&error)
                );
                self.miss(error);
            }
        }
    }

    /// Writes what is pending, or gives it up at the deadline.
    pub fn finish(&mut self, deadline: Instant) {
        self.flush();
        while self.is_stalled && Instant::now() < deadline {
            thread::sleep(RETRY_EVERY);
            self.flush();
        }
    }

    fn reopen_unasked(&mut self) {
        match Sink::open(&self.target) {
            Ok(sink) => {
                if self.is_missing {
                    info!(target = %self.target, "the log is open again");
                }
                self.replace(sink);
            }
            Err(error) => self.miss(error),
        }
    }

    fn miss(&mut self, error: io::Error) {
        self.is_missing = true;
        self.reopen_at = Some(Instant::now() + REOPEN_EVERY);
        if self.sink.is_err() {
            self.sink = Err(error);
        }
    }

    fn replace(&mut self, sink: Sink) {
        if self.last == LastLine::Begun {
            // The old sink keeps its beginning, and the new one must not get its end.
            self.losses.count_slow(1);
            self.drop_first_line();
            self.last = LastLine::Torn;
        }
        if !self.sink.as_ref().is_ok_and(|old| old.is_same_file(&sink)) {
            self.last = LastLine::Whole;
        }
        self.sink = Ok(sink);
        self.is_missing = false;
        self.reopen_at = None;
    }

    fn write(&mut self) {
        self.is_stalled = false;
        while !self.pending.is_empty() {
            match self.write_some() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_stalled = true;
                    return;
                }
                Err(error) => self.lose(&error),
            }
        }
    }

    fn write_some(&mut self) -> io::Result<()> {
        let sink = match &mut self.sink {
            Ok(sink) => sink,
            // An error cannot be cloned whole, and what is lost of it is said nowhere.
            Err(error) => {
                return Err(error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error));
            }
        };
        if self.last == LastLine::Torn {
            if !sink.is_empty_file() {
                require_progress(sink.write(b"\n")?)?;
            }
            self.last = LastLine::Whole;
        }
        let length = require_progress(sink.write(&self.pending)?)?;
        self.last = if self.pending[length - 1] == b'\n' { LastLine::Whole } else { LastLine::Begun };
        self.pending.advance(length);
        Ok(())
    }

    /// Loses what an error is about: one line, or all that is pending.
    fn lose(&mut self, error: &io::Error) {
        if self.sink.as_ref().is_ok_and(|sink| sink.refuses_one_line(error)) {
            self.losses.count_failed(1, error);
            self.drop_first_line();
            return;
        }
        self.losses.count_failed(count_lines(&self.pending), error);
        self.pending.clear();
        if self.last == LastLine::Begun {
            self.last = LastLine::Torn;
        }
        // Space may come back where the file is, and another file's place is the operator's to choose.
        if self.reopen_at.is_none() && self.target.can_be_reopened() && Loss::of(error) != Loss::NoSpace {
            self.reopen_at = Some(Instant::now() + REOPEN_EVERY);
        }
    }

    fn drop_first_line(&mut self) {
        let end = memchr::memchr(b'\n', &self.pending).map_or(self.pending.len(), |newline| newline + 1);
        self.pending.advance(end);
    }
}

fn require_progress(length: usize) -> io::Result<usize> {
    if length == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(length) }
}

fn count_lines(text: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', text).count() as u64
}

/// Bytes that are written at once.
const BATCH: usize = 64 * 1024;

/// Bytes that may wait for a sink that takes nothing.
const MOST_PENDING: usize = 4 * 1024 * 1024;

/// How often a sink that takes nothing is tried.
const RETRY_EVERY: Duration = Duration::from_millis(20);

/// How often a target that cannot be opened, or has failed, is tried.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

/// How long nothing needs to be looked at.
const LONGEST_REST: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File, OpenOptions},
        os::unix::fs::OpenOptionsExt,
        path::{Path, PathBuf},
        process::Command,
    };

    use super::*;
    use crate::telemetry::Metrics;

    struct Bench {
        folder: tempfile::TempDir,
        metrics: Metrics,
        losses: Losses,
    }

    impl Bench {
        fn new() -> Self {
            let metrics = Metrics::new().unwrap();
            let losses = Losses::new(&metrics.access_lines);
            Self { folder: tempfile::tempdir().unwrap(), metrics, losses }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("log")
        }

        fn pipe(&self) -> PathBuf {
            let path = self.path();
            assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
            path
        }

        fn writer(&self, path: &Path) -> Writer<'_> {
            let target = LogTarget::File(path.to_owned());
            let sink = Sink::open(&target);
            Writer::new(target, sink, &self.losses)
        }

        fn lost(&self, reason: &'static str) -> u64 {
            self.metrics.access_lines.lost(reason).get()
        }
    }

    fn open_unblocked(pipe: &Path) -> File {
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(pipe).unwrap()
    }

    #[test]
    fn a_full_disk_costs_lines_and_not_flushes() {
        let bench = Bench::new();
        let mut writer = bench.writer(Path::new("/dev/full"));
        for _ in 0..100 {
            writer.push(b"line\n");
        }
        writer.flush();
        assert_eq!(bench.lost("no_space"), 100);
        assert_eq!(bench.metrics.access_lines.dropped.get(), 100);
    }

    #[test]
    fn a_full_disk_can_be_rotated_away() {
        let bench = Bench::new();
        let path = bench.path();
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let mut writer = bench.writer(&path);
        writer.push(b"lost\n");
        fs::remove_file(&path).unwrap();
        writer.reopen();
        writer.push(b"kept\n");
        writer.flush();
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept\n");
        assert_eq!(bench.lost("no_space"), 1);
    }

    #[test]
    fn a_torn_line_is_ended_where_it_was_torn_and_nowhere_else() {
        let bench = Bench::new();
        let path = bench.path();
        fs::write(&path, "torn her").unwrap();
        let mut writer = bench.writer(&path);
        writer.last = LastLine::Torn;
        writer.reopen();
        writer.push(b"whole\n");
        writer.flush();
        assert_eq!(fs::read_to_string(&path).unwrap(), "torn her\nwhole\n");

        writer.last = LastLine::Torn;
        File::create(&path).unwrap();
        writer.push(b"after it was truncated\n");
        writer.flush();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after it was truncated\n");

        writer.last = LastLine::Torn;
        fs::rename(&path, bench.folder.path().join("log.1")).unwrap();
        writer.reopen();
        writer.push(b"in another file\n");
        writer.flush();
        assert_eq!(fs::read_to_string(&path).unwrap(), "in another file\n");
    }

    #[test]
    fn the_end_of_a_line_stays_with_its_beginning() {
        let bench = Bench::new();
        let pipe = bench.pipe();
        let _reader = open_unblocked(&pipe);
        let mut writer = bench.writer(&pipe);
        let line = [vec![b'a'; 50_000], b"\n".to_vec()].concat();
        while !writer.is_stalled {
            writer.push(&line);
            writer.flush();
        }
        assert!(writer.last == LastLine::Begun, "a pipe takes a part of what is longer than a page");
        let behind = count_lines(&writer.pending);
        fs::remove_file(&pipe).unwrap();
        writer.reopen();
        writer.push(b"last\n");
        writer.flush();
        assert_eq!(bench.lost("slow"), 1);
        let text = fs::read_to_string(&pipe).unwrap();
        assert_eq!(text.lines().count() as u64, behind - 1 + 1);
        assert!(text.lines().all(|line| line.len() == 50_000 || line == "last"));
    }

    #[test]
    fn a_pipe_that_nobody_drains_holds_up_a_bounded_amount() {
        let bench = Bench::new();
        let pipe = bench.pipe();
        let reader = open_unblocked(&pipe);
        let mut writer = bench.writer(&pipe);
        let line = [vec![b'a'; 999], b"\n".to_vec()].concat();
        for _ in 0..10_000 {
            writer.push(&line);
        }
        writer.flush();
        assert!(writer.pending.len() <= MOST_PENDING + line.len());
        let lost = bench.lost("slow");
        assert!(lost > 5_000, "{lost}");
        drop(reader);
        // Another test's child may have the reader's descriptor for a moment.
        let deadline = Instant::now() + Duration::from_secs(10);
        while bench.lost("no_reader") == 0 && Instant::now() < deadline {
            writer.flush();
            thread::yield_now();
        }
        // What the pipe holds is not lost to us.
        let dropped = bench.metrics.access_lines.dropped.get();
        assert!((9_800..=10_000).contains(&dropped), "{dropped}");
        assert!(bench.lost("no_reader") > 4_000);
    }
}
