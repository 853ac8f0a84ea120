//! A response on its way from a backend, and what becomes of the connection after it.

use std::{
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

use super::{
    connection::Connection,
    pool::Pool,
    receiving::{BodyReading, Broken, Piece},
    sending::Sending,
};
use crate::transport::Transport;

/// A response whose head has arrived. Its body is read here, while the rest of the request is still being sent. The connection
/// is kept for others once both have come to their end, and closed if this is dropped before.
pub struct Answering {
    /// `None` once the connection has gone elsewhere.
    connection: Option<Connection>,
    body: BodyReading,
    /// The rest of the request.
    sending: Option<Sending>,
    /// Whether the connection can serve another request afterwards.
    is_kept_alive: bool,
    pool: Rc<Pool>,
}

impl Answering {
    pub(super) fn new(
        connection: Connection,
        body: BodyReading,
        sending: Option<Sending>,
        is_kept_alive: bool,
        pool: &Rc<Pool>,
    ) -> Self {
        Self { connection: Some(connection), body, sending, is_kept_alive, pool: Rc::clone(pool) }
    }

    /// Whether nothing more of the body is to come.
    pub fn has_ended(&self) -> bool {
        self.body.has_ended()
    }

    /// Bytes that are to come of the body, where that is known.
    pub fn left(&self) -> Option<u64> {
        self.body.left()
    }

    /// The next piece of the body; `None` after its end.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, Broken>>> {
        let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
        if let Some(sending) = &mut self.sending {
            match sending.poll(connection, cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.sending = None,
                // Its answer counts all the same.
                Poll::Ready(Err(_)) => {
                    self.sending = None;
                    self.is_kept_alive = false;
                }
            }
        }
        let piece = match self.body.poll(connection, cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(piece) => piece,
        };
        if piece.is_err() {
            self.is_kept_alive = false;
            self.connection = None;
        } else if self.body.has_ended() {
            self.give_back();
        }
        Poll::Ready(Some(piece))
    }

    /// Lets go of the connection, once the body has ended.
    pub fn give_back(&mut self) {
        let Some(mut connection) = self.connection.take().filter(|_| self.is_kept_alive) else { return };
        let pool = Rc::clone(&self.pool);
        match self.sending.take() {
            None => pool.put(connection),
            // The backend did not wait for the rest, but it may well read it.
            Some(mut sending) => drop(tokio::task::spawn_local(async move {
                if send_rest(&mut sending, &mut connection).await {
                    pool.put(connection);
                }
            })),
        }
    }

    /// The socket of a connection that is HTTP no more, and what has arrived on it; `None` if it is gone.
    pub fn into_socket(self) -> Option<(Transport, Bytes)> {
        self.connection.map(Connection::into_parts)
    }
}

/// Sends the rest of a request after its response, for as long as there is progress. Returns whether all of it was sent.
async fn send_rest(sending: &mut Sending, connection: &mut Connection) -> bool {
    loop {
        let before = connection.sent();
        match tokio::time::timeout(PATIENCE, poll_fn(|cx| sending.poll(connection, cx))).await {
            Ok(outcome) => return outcome.is_ok(),
            Err(_) if connection.sent() == before => return false,
            Err(_) => {}
        }
    }
}

/// How long the rest of a request may make no progress after a complete response.
const PATIENCE: Duration = Duration::from_secs(2);
