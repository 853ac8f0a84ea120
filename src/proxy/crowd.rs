//! Client connections that wait for a request. Where there is no room for another connection, the one that has waited for the longest
//! goes (RFC 9112 section 9.5): without that, clients that connect and say nothing would keep out all others.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use foldhash::fast::RandomState;
use prometheus::IntCounter;
use tokio::sync::{Notify, futures::Notified};

/// What all workers know of the room for client connections.
pub struct Room {
    /// Connections that there was no room for, and for which none has gone yet.
    wanted: AtomicUsize,
    call: Notify,
    dismissed: IntCounter,
}

impl Room {
    /// While there is room; connections that have to go are counted.
    pub fn new(dismissed: IntCounter) -> Self {
        Self { wanted: AtomicUsize::new(0), call: Notify::new(), dismissed }
    }

    /// There is room, so that nobody has to go.
    pub fn suffices(&self) {
        if self.wanted.load(Ordering::Relaxed) > 0 {
            self.wanted.store(0, Ordering::Relaxed);
        }
    }

    /// Waits until a worker has no room, from the time when it is called.
    pub fn wanted(&self) -> Notified<'_> {
        self.call.notified()
    }

    /// Takes it upon the caller to let one go.
    fn take(&self) -> bool {
        if self.wanted.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let fewer = |wanted: usize| wanted.checked_sub(1);
        let taken = self.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok();
        self.dismissed.inc_by(u64::from(taken));
        taken
    }
}

/// One worker's client connections.
pub struct Crowd {
    room: Arc<Room>,
    places: RefCell<HashMap<u64, Rc<Place>, RandomState>>,
    /// Counts whatever happens here, so that it says what was earlier.
    turns: Cell<u64>,
}

/// Where a connection stands.
#[derive(Default)]
struct Place {
    /// Since which turn it has been waiting.
    waits_since: Cell<Option<u64>>,
    is_dismissed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// One connection's place, which it leaves when this is dropped.
pub struct Member {
    crowd: Rc<Crowd>,
    number: u64,
    place: Rc<Place>,
}

impl Crowd {
    /// With no connection yet.
    pub fn new(room: Arc<Room>) -> Rc<Self> {
        Rc::new(Self { room, places: RefCell::default(), turns: Cell::default() })
    }

    /// There is no room for a connection, so that one has to go: the one of this worker that has waited for the longest, or
    /// one of another worker's, or whichever is the next to wait.
    pub fn press(&self) {
        self.room.wanted.fetch_add(1, Ordering::Relaxed);
        if !self.make_room() {
            self.room.call.notify_waiters();
        }
    }

    /// Lets the connection go that has waited for the longest, if there is one and that is wanted; returns whether so. Looks
    /// at all of them, which is only done where nobody can join.
    pub fn make_room(&self) -> bool {
        let places = self.places.borrow();
        let waiting = places.values().filter(|place| !place.is_dismissed.get());
        let since = waiting.filter_map(|place| Some((place.waits_since.get()?, place)));
        let Some((_, longest)) = since.min_by_key(|(since, _)| *since) else { return false };
        if !self.room.take() {
            return false;
        }
        longest.is_dismissed.set(true);
        if let Some(waker) = longest.waker.borrow_mut().take() {
            waker.wake();
        }
        true
    }

    /// A connection joins.
    pub fn join(self: &Rc<Self>) -> Member {
        let (number, place) = (self.next_turn(), Rc::new(Place::default()));
        self.places.borrow_mut().insert(number, Rc::clone(&place));
        Member { crowd: Rc::clone(self), number, place }
    }

    fn next_turn(&self) -> u64 {
        self.turns.replace(self.turns.get() + 1)
    }
}

impl Member {
    /// The connection waits for a request; ready when it is to go. All calls come from one task.
    pub fn poll_waiting(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.place.is_dismissed.get() {
            return Poll::Ready(());
        }
        if self.place.waits_since.get().is_none() {
            if self.crowd.room.take() {
                self.place.is_dismissed.set(true);
                return Poll::Ready(());
            }
            self.place.waits_since.set(Some(self.crowd.next_turn()));
        }
        let mut waker = self.place.waker.borrow_mut();
        if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// A request has begun.
    pub fn is_served(&self) {
        self.place.waits_since.set(None);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.crowd.places.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_has_waited_for_the_longest_goes() {
        let crowd = Crowd::new(Arc::new(Room::new(IntCounter::new("a", "b").unwrap())));
        let members: Vec<Member> = (0..4).map(|_| crowd.join()).collect();
        let mut cx = Context::from_waker(Waker::noop());
        for number in [2, 0, 1] {
            assert!(members[number].poll_waiting(&mut cx).is_pending());
        }
        members[2].is_served();
        assert!(members[2].poll_waiting(&mut cx).is_pending() && members[0].poll_waiting(&mut cx).is_pending());
        assert!(!crowd.make_room(), "nobody wants it");
        for number in [0, 1, 2] {
            crowd.press();
            assert!(members[number].poll_waiting(&mut cx).is_ready(), "{number}");
        }
        crowd.press();
        assert!(!crowd.make_room(), "the last is busy, the others are told");
        assert!(members[3].poll_waiting(&mut cx).is_ready(), "it is the next to wait");
        assert_eq!(crowd.room.dismissed.get(), 4);
        let late = crowd.join();
        crowd.press();
        crowd.room.suffices();
        assert!(late.poll_waiting(&mut cx).is_pending() && !crowd.make_room());
        drop(late);
        drop(members);
        assert!(crowd.places.borrow().is_empty());
    }
}
