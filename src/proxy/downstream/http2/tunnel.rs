//! A WebSocket over a stream (RFC 8441), as a pair of byte streams.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{sending::poll_room, streams::OpenStream};
use crate::{
    proxy::{client::Client, downstream::upgrade, forward::Opened, tunnel::Side, worker::Worker},
    telemetry::Counted,
};

/// Opens the tunnel, once the client has been told.
pub fn open(
    worker: &Worker,
    client: &Rc<Client>,
    from_client: RecvStream,
    to_client: SendStream<Bytes>,
    opened: Opened,
    stream: OpenStream,
) {
    let open = Counted::one(&worker.shared.metrics.tunnels_open);
    let to_client = Rc::new(RefCell::new(to_client));
    let client = Rc::clone(client);
    worker.tasks.spawn_local(async move {
        // What the client sends may have come to its end before, so that reading does not show it.
        let reset = async {
            // That is all there is to know: why does not matter.
            let _ = poll_fn(|cx| to_client.borrow_mut().poll_reset(cx)).await;
            Side::Downstream
        };
        let from_client = FromClient { stream: from_client, arrived: Bytes::new() };
        upgrade::join(&client, (from_client, ToClient(Rc::clone(&to_client))), opened, reset).await;
        drop((open, stream));
    });
}

/// What the client sends.
struct FromClient {
    stream: RecvStream,
    /// Arrived, but not yet read.
    arrived: Bytes,
}

impl AsyncRead for FromClient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.arrived.is_empty() {
            match ready!(this.stream.poll_data(cx)) {
                Some(data) => this.arrived = data.map_err(io::Error::other)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = this.arrived.len().min(buf.remaining());
        buf.put_slice(&this.arrived[..length]);
        this.arrived.advance(length);
        this.stream.flow_control().release_capacity(length).map_err(io::Error::other)?;
        Poll::Ready(Ok(()))
    }
}

/// What the client is sent.
struct ToClient(Rc<RefCell<SendStream<Bytes>>>);

impl AsyncWrite for ToClient {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut stream = self.0.borrow_mut();
        // Room that is asked for is taken from other streams, so that nobody asks without something to say.
        stream.reserve_capacity(1);
        ready!(poll_room(&mut stream, cx)).map_err(io::Error::other)?;
        stream.send_data(Bytes::copy_from_slice(buf), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.borrow_mut().send_data(Bytes::new(), true).map_err(io::Error::other))
    }
}
