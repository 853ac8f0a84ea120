//! What a subscription has brought and nobody has asked for yet.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::RecvTimeoutError},
    time::Duration,
};

use fred::{
    clients::Client,
    interfaces::EventInterface,
    types::{KeyspaceEvent, Message},
};
use tokio::{
    runtime::Handle,
    sync::{
        Notify,
        broadcast::{
            Receiver,
            error::{RecvError, TryRecvError},
        },
        mpsc, oneshot,
    },
    task,
};

/// Events and messages, in the form that their receiver wants.
///
/// The library has memory for a fixed number of them, nine times over, whether any come or not. So that it need not have much, a
/// thread takes them over at once; here, memory is taken as they come.
pub(super) struct Inbox<T> {
    /// Those of the shelf's that have been taken from it, so that it is not locked for each.
    taken: VecDeque<T>,
    shelf: Arc<Shelf<T>>,
    flushes: mpsc::Sender<oneshot::Sender<()>>,
}

/// Where arrivals wait.
struct Shelf<T> {
    waiting: Mutex<Waiting<T>>,
    has_more: Notify,
}

struct Waiting<T> {
    arrivals: VecDeque<T>,
    /// What comes after the last arrival, and will not come.
    missed: Option<Missed>,
}

impl<T> Shelf<T> {
    fn waiting(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what has arrived; returns whether there can be more.
    fn put(&self, arrived: impl Iterator<Item = Result<T, Missed>>) -> bool {
        let mut waiting = self.waiting();
        for arrival in arrived {
            match arrival {
                Ok(arrival) if waiting.arrivals.len() < MOST => waiting.arrivals.push_back(arrival),
                Ok(_) => waiting.missed = Some(Missed(0)),
                Err(missed) => waiting.missed = Some(missed),
            }
            if waiting.missed.is_some() {
                break;
            }
        }
        let is_over = waiting.missed.is_some();
        drop(waiting);
        self.has_more.notify_one();
        !is_over
    }
}

/// How events and messages are understood.
pub(super) struct Reading<T> {
    pub event: fn(&KeyspaceEvent) -> T,
    pub message: fn(&Message) -> T,
}

/// So many have been lost; or all from here on, if that is 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Missed(pub u64);

impl<T: Send + 'static> Inbox<T> {
    /// Of a client that is about to subscribe.
    pub fn new(client: &Client, reading: Reading<T>) -> Self {
        let waiting = Mutex::new(Waiting { arrivals: VecDeque::new(), missed: None });
        let shelf = Arc::new(Shelf { waiting, has_more: Notify::new() });
        let (flushes, flushes_in) = mpsc::channel(1);
        let source = Source { events: client.keyspace_event_rx(), messages: client.message_rx(), reading };
        let (taking_over, runtime) = (source.take_over(Arc::clone(&shelf), flushes_in), Handle::current());
        // On a thread of its own, which ends with the inbox: the library goes on for as long as there is anything to read, and
        // in a burst that may be more than it has memory for.
        task::spawn_blocking(move || runtime.block_on(taking_over));
        Self { taken: VecDeque::new(), shelf, flushes }
    }

    /// Waits for the next. Cancel-safe.
    pub async fn next(&mut self) -> Result<T, Missed> {
        loop {
            if let Some(arrival) = self.arrived()? {
                return Ok(arrival);
            }
            self.shelf.has_more.notified().await;
        }
    }

    /// The next one that is here.
    pub fn arrived(&mut self) -> Result<Option<T>, Missed> {
        if self.taken.is_empty() {
            // The memory of a burst is given back.
            self.taken = VecDeque::new();
            let mut waiting = self.shelf.waiting();
            mem::swap(&mut self.taken, &mut waiting.arrivals);
            if let Some(missed) = waiting.missed.filter(|_| self.taken.is_empty()) {
                return Err(missed);
            }
        }
        Ok(self.taken.pop_front())
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
    async fn take_over(mut self, shelf: Arc<Shelf<T>>, mut flushes: mpsc::Receiver<oneshot::Sender<()>>) {
        loop {
            let mut arrived = Vec::new();
            let flush = tokio::select! {
                arrival = self.next() => {
                    arrived.push(arrival);
                    None
                }
                asked = flushes.recv() => {
                    let Some(asked) = asked else { return };
                    Some(asked)
                }
            };
            if flush.is_none() {
                self.wait_for_pause(&mut arrived);
            }
            let can_be_more = shelf.put(arrived.into_iter().chain(std::iter::from_fn(|| self.arrived())));
            if !can_be_more {
                return;
            }
            if let Some(flush) = flush {
                // Whoever asked may have given up.
                let _ = flush.send(());
            }
        }
    }

    /// What a transaction has changed is announced together, and must be seen together: the library has handed on all that it
    /// has read when its thread gets to something else. Blocks this thread, which the library then need not wake for each
    /// message, and takes over what has come meanwhile before it is too much.
    fn wait_for_pause(&mut self, arrived: &mut Vec<Result<T, Missed>>) {
        let (pause, paused) = std::sync::mpsc::sync_channel(1);
        task::spawn(async move {
            // Who waits for it may be gone.
            let _ = pause.send(());
        });
        while arrived.last().is_some_and(Result::is_ok) && paused.recv_timeout(OFTEN) == Err(RecvTimeoutError::Timeout)
        {
            arrived.extend(std::iter::from_fn(|| self.arrived()));
        }
    }

    async fn next(&mut self) -> Result<T, Missed> {
        Ok(tokio::select! {
            event = self.events.recv() => (self.reading.event)(&event?),
            message = self.messages.recv() => (self.reading.message)(&message?),
        })
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

/// How often messages are taken over while the library goes on reading.
const OFTEN: Duration = Duration::from_millis(1);

/// Messages that the library may have received before they are taken over. It has been seen to read 18,000 before it lets
/// others of its thread run; its default of 32 loses nearly all of any burst.
pub(super) const SUBSCRIPTION: usize = 16_384;

/// Messages that may wait to be asked for; with more, the subscription is lost.
const MOST: usize = 1 << 20;
