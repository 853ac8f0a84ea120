//! A connection to a backend: its socket, and what has arrived on it.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::unconstrained,
};

use crate::{
    proxy::{outbox::Outbox, reading},
    routing::Backend,
    transport::Transport,
};

/// A connection to a backend, over which one request at a time can be sent.
pub struct Connection {
    transport: Transport,
    input: BytesMut,
    output: Outbox,
    backend: Arc<Backend>,
    sent: u64,
    received: u64,
}

impl Connection {
    /// A connection that nothing went over yet.
    pub fn new(transport: Transport, backend: Arc<Backend>) -> Self {
        Self { transport, input: BytesMut::new(), output: Outbox::default(), backend, sent: 0, received: 0 }
    }

    /// Whom it leads to.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Bytes that the socket has, or may have, taken so far, and that may therefore have reached the backend.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes that have come from the backend so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// What has arrived and was not taken yet.
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.input
    }

    /// Reads what has come of a head into the input; returns how many bytes, 0 at the end.
    pub fn poll_fill_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = ready!(reading::poll_read(&mut self.transport, &mut self.input, cx))?;
        self.received += read as u64;
        Poll::Ready(Ok(read))
    }

    /// Reads more of a body into the input, about `room` bytes at most; returns how many, 0 at the end.
    pub fn poll_fill(&mut self, room: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = ready!(reading::poll_read_body(&mut self.transport, &mut self.input, room, cx))?;
        self.received += read as u64;
        Poll::Ready(Ok(read))
    }

    /// What waits to be written.
    pub fn output(&mut self) -> &mut Outbox {
        &mut self.output
    }

    /// Writes of what waits what the socket takes at once.
    pub fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = ready!(self.output.poll_write(&mut self.transport, cx));
        // Under TLS, a part of what was to be written may be on its way although the rest has failed.
        let sent = written.as_ref().map_or_else(|_| u64::from(self.transport.is_tls()), |&written| written as u64);
        self.sent += sent;
        Poll::Ready(written.map(drop))
    }

    /// Sees to it that nothing that was written is held back.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    /// Whether an idle connection can be used, as far as can be told: nothing has arrived on it, its end least of all. The
    /// system is asked only if it has announced something since the last read.
    pub fn is_usable(&mut self) -> bool {
        let mut byte = [0];
        let mut read = ReadBuf::new(&mut byte);
        // A task that has done enough for once is told that nothing has arrived, whatever has.
        let read = unconstrained(poll_fn(|cx| Pin::new(&mut self.transport).poll_read(cx, &mut read)));
        self.input.is_empty() && pin!(read).poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Whether nothing is there to be read. The system is asked, which knows more than it has announced, for the price of a
    /// call.
    pub fn is_silent(&self) -> bool {
        let peeked = SockRef::from(self.transport.socket()).peek(&mut [MaybeUninit::uninit()]);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Gives the memory back that an idle connection has no use for.
    pub fn rest(&mut self) {
        self.input = BytesMut::new();
        self.output.rest();
    }

    /// The socket, and what has arrived on it that was not taken yet.
    pub fn into_parts(self) -> (Transport, Bytes) {
        (self.transport, self.input.freeze())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{io::Write, net};

    use tokio::{
        net::{TcpListener, TcpStream},
        task::coop::{consume_budget, has_budget_remaining},
    };

    use super::*;

    /// A connection, and its other end.
    pub async fn connected() -> (Connection, net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        let far = far.unwrap().0.into_std().unwrap();
        let backend = Arc::new(Backend::parse(&address.to_string()).unwrap());
        (Connection::new(near.unwrap().into(), backend), far)
    }

    #[tokio::test]
    async fn a_task_that_has_done_much_does_not_take_a_used_connection_for_an_idle_one() {
        let (mut connection, mut far) = connected().await;
        assert!(connection.is_usable());
        far.write_all(b"x").unwrap();
        connection.transport.socket().readable().await.unwrap();
        while has_budget_remaining() {
            consume_budget().await;
        }
        assert!(!connection.is_usable());
    }

    #[tokio::test]
    async fn what_has_not_been_announced_yet_is_seen() {
        for says in [&b"x"[..], b""] {
            let (mut connection, mut far) = connected().await;
            assert!(connection.is_usable() && connection.is_silent());
            far.write_all(says).unwrap();
            if says.is_empty() {
                far.shutdown(net::Shutdown::Write).unwrap();
            }
            assert!(!connection.is_silent(), "{says:?}");
        }
    }
}
