//! What a subscription has brought and nobody has asked for yet.

use fred::{
    clients::Client,
    interfaces::EventInterface,
    types::{KeyspaceEvent, Message},
};
use tokio::sync::{
    broadcast::{
        Receiver,
        error::{RecvError, TryRecvError},
    },
    mpsc::{self, error::TryRecvError as Nothing},
    oneshot,
};
use tokio_util::task::AbortOnDropHandle;

/// Events and messages, in the form that their receiver wants.
///
/// The library has memory for a fixed number of them, nine times over, whether any come or not. So that it need not have much, a
/// task takes them over at once; here, memory is taken as they come.
pub(super) struct Inbox<T> {
    arrivals: mpsc::Receiver<Result<T, Missed>>,
    flushes: mpsc::Sender<oneshot::Sender<()>>,
    _task: AbortOnDropHandle<()>,
}

/// How events and messages are understood.
pub(super) struct Reading<T> {
    pub event: fn(&KeyspaceEvent) -> T,
    pub message: fn(&Message) -> T,
}

/// So many have been lost; or all from here on, if that is 0.
#[derive(Debug)]
pub(super) struct Missed(pub u64);

impl<T: Send + 'static> Inbox<T> {
    /// Of a client that is about to subscribe.
    pub fn new(client: &Client, reading: Reading<T>) -> Self {
        let (arrivals_in, arrivals) = mpsc::channel(MOST);
        let (flushes, flushes_in) = mpsc::channel(1);
        let source = Source { events: client.keyspace_event_rx(), messages: client.message_rx(), reading };
        let task = tokio::spawn(source.take_over(arrivals_in, flushes_in));
        Self { arrivals, flushes, _task: AbortOnDropHandle::new(task) }
    }

    /// Waits for the next. Cancel-safe.
    pub async fn next(&mut self) -> Result<T, Missed> {
        self.arrivals.recv().await.unwrap_or(Err(Missed(0)))
    }

    /// The next one that is here.
    pub fn arrived(&mut self) -> Result<Option<T>, Missed> {
        match self.arrivals.try_recv() {
            Ok(arrival) => arrival.map(Some),
            Err(Nothing::Empty) => Ok(None),
            Err(Nothing::Disconnected) => Err(Missed(0)),
        }
    }

    /// Waits until everything is here that the library has received by now.
    pub async fn flush(&self) {
        let (done, is_done) = oneshot::channel();
        // Where nobody takes over any more, whoever asks for the next is told.
        if self.flushes.send(done).await.is_ok() {
            let _ = is_done.await;
        }
    }
}

struct Source<T> {
    events: Receiver<KeyspaceEvent>,
    messages: Receiver<Message>,
    reading: Reading<T>,
}

impl<T> Source<T> {
    /// Hands on whatever comes, until something is lost.
    async fn take_over(
        mut self,
        arrivals: mpsc::Sender<Result<T, Missed>>,
        mut flushes: mpsc::Receiver<oneshot::Sender<()>>,
    ) {
        loop {
            let mut flush = None;
            let first = tokio::select! {
                event = self.events.recv() => Some(event.map(|event| (self.reading.event)(&event)).map_err(Missed::from)),
                message = self.messages.recv() => {
                    Some(message.map(|message| (self.reading.message)(&message)).map_err(Missed::from))
                }
                asked = flushes.recv() => {
                    let Some(asked) = asked else { return };
                    flush = Some(asked);
                    None
                }
            };
            // All that is there, because the library goes on as soon as this waits.
            for arrival in first.into_iter().chain(std::iter::from_fn(|| self.arrived())) {
                let is_lost = arrival.is_err();
                if arrivals.try_send(arrival).is_err() || is_lost {
                    return;
                }
            }
            if let Some(flush) = flush {
                // Whoever asked may have given up.
                let _ = flush.send(());
            }
        }
    }

    fn arrived(&mut self) -> Option<Result<T, Missed>> {
        let event = self.events.try_recv().map(|event| (self.reading.event)(&event));
        let arrived = match event {
            Err(TryRecvError::Empty) => self.messages.try_recv().map(|message| (self.reading.message)(&message)),
            event => event,
        };
        match arrived {
            Ok(arrival) => Some(Ok(arrival)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Lagged(missed)) => Some(Err(Missed(missed))),
            Err(TryRecvError::Closed) => Some(Err(Missed(0))),
        }
    }
}

impl From<RecvError> for Missed {
    fn from(error: RecvError) -> Self {
        Self(match error {
            RecvError::Lagged(missed) => missed,
            RecvError::Closed => 0,
        })
    }
}

/// Messages that the library may have received before they are taken over. It has been seen to read 9,500 before it lets
/// others run; its default of 32 loses nearly all of any burst.
pub(super) const SUBSCRIPTION: usize = 16_384;

/// Messages that may wait to be asked for; with more, the subscription is lost.
const MOST: usize = 1 << 20;
