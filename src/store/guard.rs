//! What stands between a server and the client library, whose parser trusts the server: it follows arrays in arrays until its stack
//! overflows, which ends the process, and takes memory for whatever is announced to it.
//!
//! The library connects to a socket of ours, whose other end hands on what the server says, reply by reply, once a reply is
//! whole and within bounds.

use std::{
    io,
    path::PathBuf,
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    dial::BoxedStream,
    replies::{Bounds, Replies},
};

/// Hands on what a server says for as long as this lives.
pub(super) struct Guard {
    path: PathBuf,
    has_objected: Arc<AtomicBool>,
    _relay: AbortOnDropHandle<()>,
}

impl Guard {
    /// Before this connection.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn before(server: BoxedStream) -> io::Result<Self> {
        // An abstract name, which leaves nothing behind.
        let path = PathBuf::from(format!("\0planb-{}", uuid::Uuid::new_v4()));
        let listener = UnixListener::bind(&path)?;
        let has_objected = Arc::new(AtomicBool::new(false));
        let objected = Arc::clone(&has_objected);
        let relay = tokio::spawn(async move {
            let Ok(library) = accept_own(listener).await else { return };
            // That it has ended is told by the connection's end.
            let _ = relay(server, library, &objected).await;
        });
        Ok(Self { path, has_objected, _relay: AbortOnDropHandle::new(relay) })
    }

    /// Where the library is to connect, once.
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Whether the connection was closed because the server answered with what is no reply, or is beyond all bounds.
    pub fn has_objected(&self) -> bool {
        self.has_objected.load(Ordering::Relaxed)
    }
}

/// The connection of this process. Others see the name as well.
async fn accept_own(listener: UnixListener) -> io::Result<UnixStream> {
    loop {
        let (stream, _) = listener.accept().await?;
        if stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok()) == Some(process::id()) {
            return Ok(stream);
        }
    }
}

async fn relay(server: BoxedStream, library: UnixStream, has_objected: &AtomicBool) -> io::Result<()> {
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let (mut from_library, mut to_library) = library.into_split();
    let replies = async {
        let (mut replies, mut input) = (Replies::within(BOUNDS), BytesMut::new());
        loop {
            let mut whole = 0;
            while let Some(length) = replies.next(&input[whole..]).map_err(|_| object(has_objected))? {
                whole += length;
            }
            if whole > 0 {
                to_library.write_all(&input.split_to(whole)).await?;
            }
            if input.is_empty() {
                input = BytesMut::new();
            }
            input.reserve(replies.wanted().clamp(LEAST_ROOM, MOST_ROOM));
            if from_server.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
        }
    };
    tokio::select! {
        ended = replies => ended,
        ended = tokio::io::copy(&mut from_library, &mut to_server) => ended.map(drop),
    }
}

fn object(has_objected: &AtomicBool) -> io::Error {
    has_objected.store(true, Ordering::Relaxed);
    io::ErrorKind::InvalidData.into()
}

/// What a reply may come to: what the server says of itself, or a message with a key's name or a notice.
const BOUNDS: Bounds = Bounds { bytes: 64 << 20, elements: 1 << 20 };

/// Bytes to make room for at least and at most, before a read.
const LEAST_ROOM: usize = 8 * 1024;
const MOST_ROOM: usize = 1024 * 1024;
