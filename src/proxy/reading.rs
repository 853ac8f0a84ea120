//! Where heads are read into, and what goes through tunnels.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; ROOM].into());
}

/// Reads what has arrived, and has it used at once; nothing is left at the end. Each thread reads into the same memory, which
/// therefore stays in its cache, and a connection keeps only what it must: a thousand requests in flight would otherwise have a
/// thousand buffers, of which each uses a few hundred bytes.
pub fn poll_read_with<T>(
    from: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8], &mut Context<'_>) -> T,
) -> Poll<io::Result<T>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut read = ReadBuf::new(scratch);
        ready!(Pin::new(from).poll_read(cx, &mut read))?;
        Poll::Ready(Ok(take(read.filled(), cx)))
    })
}

/// Reads what has arrived and appends it to `input`; returns how many bytes, 0 at the end.
pub fn poll_read(
    from: &mut (impl AsyncRead + Unpin),
    input: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    poll_read_with(from, cx, |bytes, _| {
        input.extend_from_slice(bytes);
        bytes.len()
    })
}

/// Bytes that are read at once.
const ROOM: usize = 16 * 1024;
