//! A response on its way from a backend, and what becomes of the connection after it.

use std::{
    cell::RefCell,
    future::poll_fn,
    mem,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{
    connection::Connection,
    pool::Pool,
    receiving::{BodyReading, Broken, Piece},
    sending::Sending,
};
use crate::{proxy::reading::BODY_ROOM, transport::Transport};

/// A response whose head has arrived, and whose body is read here. The connection is kept for others once it has come to its
/// end, and so has the request; it is closed if this is dropped before.
pub struct Answering {
    connection: Held,
    body: BodyReading,
    /// Whether the connection can serve another request afterwards.
    reuse: Reuse,
    pool: Rc<Pool>,
    room: usize,
}

/// The connection that a response comes over.
enum Held {
    /// The request has been sent.
    Alone(Box<Connection>),
    /// The rest of the request is being sent meanwhile, by a task of its own: a client may well send all of it before it reads
    /// the first byte of its answer.
    Shared(Rc<RefCell<Uploading>>, AbortOnDropHandle<()>),
    /// It has gone elsewhere.
    Gone,
}

/// A connection over which a request is still being sent.
struct Uploading {
    /// `None` once it has gone elsewhere.
    connection: Option<Box<Connection>>,
    /// `None` once all is sent, or the backend takes no more.
    sending: Option<Sending>,
    /// Whether the backend takes no more.
    has_failed: bool,
    /// What becomes of the connection once all is sent, when the response has ended.
    then: Option<(Rc<Pool>, Reuse)>,
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
        connection: Box<Connection>,
        body: BodyReading,
        sending: Option<Sending>,
        reuse: Reuse,
        pool: &Rc<Pool>,
    ) -> Self {
        let connection = match sending {
            None => Held::Alone(connection),
            sending => {
                let (connection, has_failed, then) = (Some(connection), false, None);
                let uploading = Rc::new(RefCell::new(Uploading { connection, sending, has_failed, then }));
                let task = tokio::task::spawn_local(send_rest(Rc::clone(&uploading)));
                Held::Shared(uploading, AbortOnDropHandle::new(task))
            }
        };
        Self { connection, body, reuse, pool: Rc::clone(pool), room: BODY_ROOM }
    }

    /// Whether nothing more of the body is to come.
    pub fn has_ended(&self) -> bool {
        self.body.has_ended()
    }

    /// Bytes that are to come of the body, where that is known.
    pub fn left(&self) -> Option<u64> {
        self.body.left()
    }

    /// From now on, about so many bytes are read at once, which is more than a piece has.
    pub fn read_at_most(&mut self, room: usize) {
        self.room = room;
    }

    /// The next piece of the body; `None` after its end.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, Broken>>> {
        let piece = match &mut self.connection {
            Held::Alone(connection) => ready!(self.body.poll(connection, self.room, cx)),
            Held::Shared(uploading, _) => match &mut uploading.borrow_mut().connection {
                Some(connection) => ready!(self.body.poll(connection, self.room, cx)),
                None => return Poll::Ready(None),
            },
            Held::Gone => return Poll::Ready(None),
        };
        if piece.is_err() {
            self.connection = Held::Gone;
        } else if self.body.has_ended() {
            self.give_back();
        }
        Poll::Ready(Some(piece))
    }

    /// Lets go of the connection, once the body has ended.
    pub fn give_back(&mut self) {
        match mem::replace(&mut self.connection, Held::Gone) {
            _ if self.reuse == Reuse::Never => {}
            Held::Alone(connection) => keep(connection, &self.pool, self.reuse),
            // The backend did not wait for the rest, but it may well read it.
            Held::Shared(uploading, task) => {
                drop(task.detach());
                let mut uploading = uploading.borrow_mut();
                match (&uploading.sending, uploading.has_failed) {
                    (Some(_), _) => uploading.then = Some((Rc::clone(&self.pool), self.reuse)),
                    (None, true) => {}
                    (None, false) => {
                        if let Some(connection) = uploading.connection.take() {
                            keep(connection, &self.pool, self.reuse);
                        }
                    }
                }
            }
            Held::Gone => {}
        }
    }

    /// The socket of a connection that is HTTP no more, and what has arrived on it; `None` if it is gone.
    pub fn into_socket(self) -> Option<(Transport, Bytes)> {
        let connection = match self.connection {
            Held::Alone(connection) => Some(connection),
            Held::Shared(uploading, _) => uploading.borrow_mut().connection.take(),
            Held::Gone => None,
        };
        connection.map(|connection| connection.into_parts())
    }
}

/// Keeps a connection for other requests.
fn keep(connection: Box<Connection>, pool: &Rc<Pool>, reuse: Reuse) {
    match reuse {
        Reuse::Never => {}
        Reuse::AtOnce => pool.put(connection),
        Reuse::AfterAMoment => {
            let pool = Rc::clone(pool);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(MOMENT).await;
                pool.put(connection);
            });
        }
    }
}

/// Sends the rest of a request while its response comes; after the response, for as long as there is progress.
async fn send_rest(uploading: Rc<RefCell<Uploading>>) {
    let mut before = None;
    let is_sent = loop {
        let sent = poll_fn(|cx| {
            let Uploading { connection, sending, .. } = &mut *uploading.borrow_mut();
            match (connection, sending) {
                (Some(connection), Some(sending)) => sending.poll(connection, cx).map(|outcome| outcome.is_ok()),
                _ => Poll::Ready(false),
            }
        });
        if let Ok(is_sent) = timeout(PATIENCE, sent).await {
            break is_sent;
        }
        let uploading = uploading.borrow();
        let sent = uploading.connection.as_ref().map(|connection| connection.sent());
        if uploading.then.is_some() && sent == before {
            break false;
        }
        before = sent;
    };
    let mut uploading = uploading.borrow_mut();
    uploading.sending = None;
    uploading.has_failed = !is_sent;
    if let Some((pool, reuse)) = uploading.then.take()
        && let Some(connection) = uploading.connection.take()
        && is_sent
    {
        keep(connection, &pool, reuse);
    }
}

/// How long the rest of a request may make no progress after a complete response.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a body is waited for that must not come.
const MOMENT: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::io::Write;

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
        let origin = connection.backend().origin().clone();
        Answering::new(Box::new(connection), BodyReading::new(Framing::None), None, reuse, &pool).give_back();
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
