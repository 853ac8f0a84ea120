//! Two byte streams, joined until both have ended.

use std::{io, pin::pin, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

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
/// the other has a moment left, for what was said last before a stream broke is often why.
pub async fn join(
    downstream: (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    upstream: (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
) -> End {
    let mut there = pin!(pump(downstream.0, Side::Downstream, upstream.1, Side::Upstream));
    let mut back = pin!(pump(upstream.0, Side::Upstream, downstream.1, Side::Downstream));
    let (first, is_there) = tokio::select! {
        end = &mut there => (end, true),
        end = &mut back => (end, false),
    };
    let mut rest = pin!(async { if is_there { back.await } else { there.await } });
    if first.error.is_some() {
        // Whatever becomes of it, the first to break is the reason.
        let _ = timeout(LAST_WORDS, rest).await;
        return first;
    }
    match (&mut rest).await {
        broken @ End { error: Some(_), .. } => broken,
        _ => first,
    }
}

async fn pump(mut from: impl AsyncRead + Unpin, reading: Side, mut to: impl AsyncWrite + Unpin, writing: Side) -> End {
    let mut buffer = vec![0; BUFFER];
    let broken = |by, error| End { by, error: Some(error) };
    loop {
        let read = match from.read(&mut buffer).await {
            Ok(read) => read,
            Err(error) => return broken(reading, error),
        };
        let written = async {
            if read == 0 {
                return to.shutdown().await;
            }
            to.write_all(&buffer[..read]).await?;
            to.flush().await
        };
        match written.await {
            Err(error) => return broken(writing, error),
            Ok(()) if read == 0 => return End { by: reading, error: None },
            Ok(()) => {}
        }
    }
}

/// Bytes that are read at once in each direction.
const BUFFER: usize = 16 * 1024;

/// How long one direction goes on after the other broke.
pub const LAST_WORDS: Duration = Duration::from_millis(500);
