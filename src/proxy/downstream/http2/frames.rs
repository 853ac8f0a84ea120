//! A client's HTTP/2 connection, watched for floods of frames that carry nothing.
//!
//! The library answers or ignores such frames one by one, and does so for ever: PINGs and acknowledgements that nobody asked
//! for, settings, priorities, frames of unknown types. None of them is wrong by itself (RFC 9113 section 10.5). Nor is a request that its
//! client gives up at once; but each has cost its backend an answer.
//!
//! Nor does the library mind how long a head takes, which is in HEADERS and CONTINUATION frames.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{proxy::client_timeouts::Deadlines, transport::Transport};

/// A connection whose frames are counted as they are read. Reading fails once they are a flood.
pub struct Watched<O> {
    stream: Transport,
    frames: Frames,
    is_busy: O,
    floods: IntCounter,
    heads: Rc<Deadlines>,
}

impl<O: Fn() -> bool> Watched<O> {
    /// Watches a connection; `is_busy` tells whether it has a stream, and `floods` counts the connections that fail. `heads` is
    /// told when a head begins and ends.
    pub fn new(stream: Transport, is_busy: O, floods: IntCounter, heads: Rc<Deadlines>) -> Self {
        Self { stream, frames: Frames::default(), is_busy, floods, heads }
    }
}

/// Follows the frames of a connection (RFC 9113 section 4.1), after the client's preface.
#[derive(Debug)]
struct Frames {
    /// Bytes that belong to what was seen last.
    skip: usize,
    /// The beginning of a frame's header.
    header: [u8; HEADER],
    length: usize,
    head: Head,
    /// Those that have carried nothing since one did.
    idle: Burst,
    resets: Burst,
}

/// How much of a head has arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Head {
    #[default]
    None,
    /// A part, and more frames are to come.
    Part,
    /// The header of its last frame.
    Last,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            skip: PREFACE,
            header: [0; HEADER],
            length: 0,
            head: Head::None,
            idle: Burst::default(),
            resets: Burst::default(),
        }
    }
}

impl Frames {
    /// Looks over the next bytes. Returns whether they end in a flood.
    fn read(&mut self, mut bytes: &[u8], is_busy: &impl Fn() -> bool) -> bool {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if self.skip == 0 && self.head == Head::Last {
                self.head = Head::None;
            }
            if bytes.is_empty() {
                return false;
            }
            let taken = (HEADER - self.length).min(bytes.len());
            self.header[self.length..self.length + taken].copy_from_slice(&bytes[..taken]);
            self.length += taken;
            bytes = &bytes[taken..];
            if self.length == HEADER {
                self.length = 0;
                let [high, middle, low, kind, flags, ..] = self.header;
                self.skip = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                if matches!(kind, HEADERS | CONTINUATION) {
                    self.head = if flags & END_HEADERS == 0 { Head::Part } else { Head::Last };
                }
                if self.carries(kind, flags, is_busy) {
                    self.idle = Burst::default();
                } else if self.idle.is_flood_after_one_more(WITHIN) {
                    return true;
                }
                if kind == RST_STREAM && self.resets.is_flood_after_one_more(RESETS_WITHIN) {
                    return true;
                }
            }
        }
    }

    /// Whether more of a head is still to come.
    fn has_part_of_head(&self) -> bool {
        self.head != Head::None
    }

    /// Whether a frame is a part of a request, or has to do with one.
    fn carries(&self, kind: u8, flags: u8, is_busy: &impl Fn() -> bool) -> bool {
        match kind {
            DATA => self.skip > 0 || flags & END_STREAM != 0,
            HEADERS | CONTINUATION => true,
            RST_STREAM | WINDOW_UPDATE => is_busy(),
            _ => false,
        }
    }
}

/// How many frames of a kind there were, and since when.
#[derive(Debug, Default)]
struct Burst {
    count: usize,
    since: Option<Instant>,
}

impl Burst {
    fn is_flood_after_one_more(&mut self, within: Duration) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.count += 1;
        if self.count <= MOST {
            return false;
        }
        let is_flood = since.elapsed() < within;
        *self = Self::default();
        is_flood
    }
}

impl<O: Fn() -> bool + Unpin> AsyncRead for Watched<O> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let had_part = this.frames.has_part_of_head();
        let is_flood = this.frames.read(&buf.filled()[before..], &this.is_busy);
        match (had_part, this.frames.has_part_of_head()) {
            (false, true) => this.heads.head_began(),
            (true, false) => this.heads.became_idle(),
            _ => {}
        }
        if is_flood {
            this.floods.inc();
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a flood of frames that carry nothing",
            )));
        }
        Poll::Ready(Ok(()))
    }
}

impl<O: Fn() -> bool + Unpin> AsyncWrite for Watched<O> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The client's preface (RFC 9113 section 3.4), and a frame's header.
const PREFACE: usize = 24;
const HEADER: usize = 9;

/// Types of frames, and a flag (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// More frames than this that carry nothing, one after the other and within so much time, are a flood; or more resets, within less.
/// Clients ask by PING whether we are still there, some once a second. A reader of a map may give up dozens of its tiles a
/// second.
const MOST: usize = 1_000;
const WITHIN: Duration = Duration::from_secs(20);
const RESETS_WITHIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PING: u8 = 6;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.resize(HEADER + usize::from(length), 0xFF);
        frame
    }

    fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
        [vec![0; PREFACE], frames.concat()].concat()
    }

    fn is_flood(bytes: &[u8], step: usize, is_busy: bool) -> bool {
        let mut frames = Frames::default();
        bytes.chunks(step).any(|piece| frames.read(piece, &|| is_busy))
    }

    #[test]
    fn a_thousand_frames_that_carry_nothing_are_enough() {
        for empty in [frame(PING, 1, 8), frame(4, 0, 0), frame(2, 0, 5), frame(0xFA, 0, 200), frame(DATA, 0, 0)] {
            for step in [1, 7, usize::MAX] {
                let flood = |count| is_flood(&connection(&vec![empty.clone(); count]), step, true);
                assert!(!flood(MOST) && flood(MOST + 1), "{empty:?} in pieces of {step}");
            }
        }
    }

    #[test]
    fn what_belongs_to_requests_is_no_flood() {
        for useful in [frame(HEADERS, 4, 9), frame(DATA, 0, 9), frame(DATA, END_STREAM, 0), frame(WINDOW_UPDATE, 0, 4)]
        {
            let mut frames = vec![useful.clone(); 2 * MOST];
            assert!(!is_flood(&connection(&frames), usize::MAX, true), "{useful:?}");
            frames.iter_mut().step_by(2).for_each(|every_other| *every_other = frame(PING, 0, 8));
            assert!(!is_flood(&connection(&frames), usize::MAX, true), "{useful:?}");
        }
        assert!(is_flood(&connection(&vec![frame(WINDOW_UPDATE, 0, 4); 1_001]), usize::MAX, false), "nobody asks");
    }

    #[test]
    fn a_thousand_requests_that_are_given_up_are_enough() {
        let given_up = [frame(HEADERS, 5, 9), frame(PING, 0, 8), frame(RST_STREAM, 0, 4)].concat();
        let flood = |count| is_flood(&connection(&vec![given_up.clone(); count]), 1_000, true);
        assert!(!flood(MOST) && flood(MOST + 1));
    }

    #[test]
    fn a_head_is_whole_with_the_last_byte_of_its_last_frame() {
        let bytes = connection(&[
            frame(PING, 0, 8),
            frame(HEADERS, 1, 3),
            frame(CONTINUATION, 0, 0),
            frame(CONTINUATION, 4, 2),
        ]);
        let mut frames = Frames::default();
        let (first, last) = (PREFACE + 17 + HEADER, bytes.len());
        for (read, byte) in (1..).zip(&bytes) {
            frames.read(&[*byte], &|| true);
            assert_eq!(frames.has_part_of_head(), (first..last).contains(&read), "after {read} bytes");
        }
        frames.read(&frame(HEADERS, 4, 0), &|| true);
        assert!(!frames.has_part_of_head());
    }

    proptest! {
        #[test]
        fn junk_is_followed_whatever_its_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..600), step in 1..40usize) {
            let shape = |step: usize| {
                let mut frames = Frames::default();
                let is_flood = bytes.chunks(step).any(|piece| frames.read(piece, &|| true));
                (is_flood, frames.skip, frames.length, frames.head, frames.idle.count)
            };
            prop_assert_eq!(shape(step), shape(bytes.len().max(1)));
        }
    }
}
