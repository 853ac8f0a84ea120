//! Two byte streams, joined until both have ended.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::reading;

/// How it came to an end.
#[derive(Debug)]
pub struct End {
    /// Who ended it, or began to.
    pub by: Side,
    /// How the stream broke, if it did not just end.
    pub error: Option<io::Error>,
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Downstream,
    /// The backend.
    Upstream,
}

/// Copies both ways until both directions have ended; the end of one is passed on while the other goes on. When one breaks,
/// or `reset` tells that a stream is gone though nothing that is copied shows it, there is a moment left for the rest: what
/// was said last before a stream broke is often why.
pub async fn join(
    downstream: (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    upstream: (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    reset: impl Future<Output = Side>,
) -> End {
    let mut there = pin!(pump(downstream.0, Side::Downstream, upstream.1, Side::Upstream));
    let mut back = pin!(pump(upstream.0, Side::Upstream, downstream.1, Side::Downstream));
    let mut reset = pin!(reset);
    let (mut there_is_done, mut back_is_done) = (false, false);
    let mut first = None;
    loop {
        let end = tokio::select! {
            biased;
            end = &mut there, if !there_is_done => {
                there_is_done = true;
                end
            }
            end = &mut back, if !back_is_done => {
                back_is_done = true;
                end
            }
            by = &mut reset => End { by, error: Some(io::ErrorKind::ConnectionReset.into()) },
        };
        if end.error.is_some() {
            let rest = async {
                let there = async { if there_is_done { None } else { Some(there.await) } };
                let back = async { if back_is_done { None } else { Some(back.await) } };
                tokio::join!(there, back)
            };
            // Whatever becomes of it, the first to break is the reason.
            let _ = timeout(LAST_WORDS, rest).await;
            return end;
        }
        let first = first.get_or_insert(end.by);
        if there_is_done && back_is_done {
            return End { by: *first, error: None };
        }
    }
}

async fn pump(mut from: impl AsyncRead + Unpin, reading: Side, mut to: impl AsyncWrite + Unpin, writing: Side) -> End {
    let broken = |by, error| End { by, error: Some(error) };
    loop {
        let passed = match poll_fn(|cx| poll_pass(&mut from, &mut to, cx)).await {
            Ok(passed) => passed,
            Err(error) => return broken(reading, error),
        };
        let written = match passed {
            Passed::All => to.flush().await,
            Passed::Some(rest) => match to.write_all(&rest).await {
                Ok(()) => to.flush().await,
                Err(error) => Err(error),
            },
            Passed::Broken(error) => Err(error),
            Passed::Nothing => {
                let shut = to.shutdown().await;
                return End { by: if shut.is_err() { writing } else { reading }, error: shut.err() };
            }
        };
        if let Err(error) = written {
            return broken(writing, error);
        }
    }
}

/// What has become of what was read.
enum Passed {
    /// It was written.
    All,
    /// This is still to be written.
    Some(Vec<u8>),
    /// It cannot be written.
    Broken(io::Error),
    /// There was nothing, because the stream has ended.
    Nothing,
}

/// Reads what there is, and writes of it what is taken at once, so that a tunnel has no memory while it waits.
fn poll_pass(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    cx: &mut Context<'_>,
) -> Poll<io::Result<Passed>> {
    reading::poll_read_with(from, cx, |bytes, cx| {
        if bytes.is_empty() {
            return Passed::Nothing;
        }
        let written = match Pin::new(to).poll_write(cx, bytes) {
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(error)) => return Passed::Broken(error),
            Poll::Pending => 0,
        };
        if written == bytes.len() { Passed::All } else { Passed::Some(bytes[written..].to_vec()) }
    })
}

/// How long the rest goes on after something broke.
const LAST_WORDS: Duration = Duration::from_millis(500);
