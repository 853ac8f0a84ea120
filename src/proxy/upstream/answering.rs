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
    reuse: Reuse,
    pool: Rc<Pool>,
}

/// Whether a connection can serve another request after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reuse {
    /// It is closed.
    Never,
    /// It can at once.
    AtOnce,
    /// The response's head has told of a body that such a response does not have. Backends that send one all the same do so
    /// right behind the head, and it must not become another client's answer.
    AfterAMoment,
}

impl Answering {
    pub(super) fn new(
        connection: Connection,
        body: BodyReading,
        sending: Option<Sending>,
        reuse: Reuse,
        pool: &Rc<Pool>,
    ) -> Self {
        Self { connection: Some(connection), body, sending, reuse, pool: Rc::clone(pool) }
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
                    self.reuse = Reuse::Never;
                }
            }
        }
        let piece = match self.body.poll(connection, cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(piece) => piece,
        };
        if piece.is_err() {
            self.reuse = Reuse::Never;
            self.connection = None;
        } else if self.body.has_ended() {
            self.give_back();
        }
        Poll::Ready(Some(piece))
    }

    /// Lets go of the connection, once the body has ended.
    pub fn give_back(&mut self) {
        let Some(mut connection) = self.connection.take().filter(|_| self.reuse != Reuse::Never) else { return };
        let (pool, waits) = (Rc::clone(&self.pool), self.reuse == Reuse::AfterAMoment);
        match self.sending.take() {
            None if !waits => pool.put(connection),
            // The backend did not wait for the rest, but it may well read it.
            sending => drop(tokio::task::spawn_local(async move {
                if let Some(mut sending) = sending
                    && !send_rest(&mut sending, &mut connection).await
                {
                    return;
                }
                if waits {
                    tokio::time::sleep(MOMENT).await;
                }
                pool.put(connection);
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

/// How long a body is waited for that must not come.
const MOMENT: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::Arc};

    use prometheus::{IntCounter, IntGauge};
    use tokio::task::LocalSet;

    use super::{
        super::{Traffic, connection::tests::connected},
        *,
    };
    use crate::message::Framing;

    fn counter() -> IntCounter {
        IntCounter::new("name", "help").unwrap()
    }

    /// Whether a connection can be had right after a response without a body, and a while later. `surplus` comes meanwhile.
    async fn is_kept(reuse: Reuse, surplus: &[u8]) -> [bool; 2] {
        let idle = IntGauge::new("name", "help").unwrap();
        let pool = Pool::new(Traffic { dials: counter(), reuses: counter(), idle });
        let (connection, mut far) = connected().await;
        let origin = Arc::clone(connection.backend().origin());
        Answering::new(connection, BodyReading::new(Framing::None), None, reuse, &pool).give_back();
        let at_once = pool.take(&origin);
        far.write_all(surplus).unwrap();
        tokio::time::sleep(2 * MOMENT).await;
        [at_once.is_some(), pool.take(&origin).is_some()]
    }

    #[tokio::test]
    async fn a_body_that_must_not_come_is_nobodys_answer() {
        let asking = async {
            assert_eq!(is_kept(Reuse::AtOnce, b"").await, [true, false]);
            assert_eq!(is_kept(Reuse::AfterAMoment, b"").await, [false, true]);
            assert_eq!(is_kept(Reuse::AfterAMoment, b"surplus").await, [false, false]);
            assert_eq!(is_kept(Reuse::Never, b"").await, [false, false]);
        };
        LocalSet::new().run_until(asking).await;
    }
}
