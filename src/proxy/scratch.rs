//! Where heads are read into.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

use crate::transport::Transport;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; ROOM].into());
}

/// Reads what has arrived and appends it to `input`; returns how many bytes, 0 at the end. Each thread reads into the same
/// memory, which therefore stays in its cache, and a connection keeps only as much as has arrived: a thousand requests in
/// flight would otherwise have a thousand buffers, of which each uses a few hundred bytes.
pub fn poll_read(transport: &mut Transport, input: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut read = ReadBuf::new(scratch);
        ready!(Pin::new(transport).poll_read(cx, &mut read))?;
        input.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
}

/// Bytes that are read at once.
const ROOM: usize = 16 * 1024;
