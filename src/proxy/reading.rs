//! How bytes are read from connections: heads, bodies, and what goes through tunnels.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::transport::Transport;

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

/// Reads more of a body, which may be large, straight into `input`, about `room` bytes at most; returns how many, 0 at the end.
pub fn poll_read_body(
    transport: &mut Transport,
    input: &mut BytesMut,
    room: usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if input.capacity() - input.len() < LEAST_ROOM.min(room) {
        ready!(transport.poll_readable(cx))?;
        input.reserve(room);
    }
    poll_read_buf(Pin::new(transport), cx, input)
}

/// Bytes that are read at once into the thread's memory, and of a body.
const ROOM: usize = 16 * 1024;
pub const BODY_ROOM: usize = 64 * 1024;

/// With less room than this, a read is not worth its system call.
const LEAST_ROOM: usize = 4 * 1024;
