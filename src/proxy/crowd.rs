//! Client connections, and which of them goes where there is no room for another, or too little memory.
//!
//! Where there is no room, it is the one that has waited for its next request for the longest (RFC 9112 section 9.5): without
//! that, clients that connect and say nothing would keep out all others. Where there is too little memory, those that hold up
//! something go as well.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use foldhash::fast::RandomState;
use prometheus::IntCounter;
use tokio::sync::{Notify, futures::Notified, watch};

use crate::{
    clock::{Clock, Moment},
    telemetry::ClientMetrics,
};

/// What all workers know of the room for client connections.
pub struct Room {
    /// Connections that there was no room for, and for which none has gone yet.
    wanted: AtomicUsize,
    call: Notify,
    dismissed: IntCounter,
    shortage: watch::Sender<Shortage>,
    shed: IntCounter,
}

/// That there is too little memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shortage {
    /// Bytes that each worker's clients are to give back.
    pub excess: u64,
    /// Bytes that they may hold all the same: it may be others that take too much.
    pub allowance: u64,
    /// When.
    pub now: Moment,
}

impl Room {
    /// While there is room; connections that have to go for others, and for their memory, are counted.
    pub fn new(counted: &ClientMetrics) -> Self {
        Self {
            wanted: AtomicUsize::new(0),
            call: Notify::new(),
            dismissed: counted.dismissed.clone(),
            shortage: watch::Sender::default(),
            shed: counted.shed.clone(),
        }
    }

    /// Lets the workers know of a shortage of memory.
    pub fn run_short(&self, shortage: Shortage) {
        self.shortage.send_replace(shortage);
    }

    /// Changes with each shortage of memory.
    pub fn shortages(&self) -> watch::Receiver<Shortage> {
        self.shortage.subscribe()
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
    /// The same when memory was short last.
    shed_at: Cell<u64>,
    clock: Clock,
}

/// Where a connection stands.
#[derive(Default)]
struct Place {
    /// Since which turn it has been waiting.
    waits_since: Cell<Option<u64>>,
    leaving: Cell<Leaving>,
    waker: RefCell<Option<Waker>>,
    /// Bytes that wait for the client to take them, or to send the rest of them; 0 if it holds up nothing.
    held_up: Cell<u32>,
    /// Since when nothing of it has moved.
    stalled_since: Cell<Moment>,
}

/// Whether a connection is to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Leaving {
    #[default]
    No,
    /// As soon as it waits for a request, which is now unless one has just come.
    WhenItWaits,
    /// Whatever it is doing.
    Now,
}

/// One connection's place, which it leaves when this is dropped.
pub struct Member {
    crowd: Rc<Crowd>,
    number: u64,
    place: Rc<Place>,
}

/// Through which a connection's parts tell how its client is doing.
#[derive(Clone)]
pub struct Pace {
    place: Rc<Place>,
    clock: Clock,
}

impl Pace {
    /// So many bytes wait for the client.
    pub fn is_held_up(&self, bytes: usize) {
        let before = self.place.held_up.replace(u32::try_from(bytes + HELD_UP).unwrap_or(u32::MAX));
        if before == 0 {
            self.place.stalled_since.set(self.clock.now());
        }
    }

    /// Something has moved.
    pub fn moves(&self) {
        self.place.held_up.set(0);
    }
}

/// Why a connection may go when memory is short, the least harm first; among equals, that which has lasted the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    /// Its client has not moved anything for [`STALLED`].
    Stalled(Moment),
    /// It has waited for a request since this turn, and did so when memory was short before.
    Waits(u64),
    /// Its client holds something up.
    HoldsUp(Moment),
    /// It waits for a request, and had one just now.
    Rests(u64),
}

impl Place {
    /// About how many bytes the connection takes.
    fn weight(&self) -> u64 {
        match self.held_up.get() {
            0 if self.waits_since.get().is_some() => WAITING,
            0 => SERVED,
            held_up => held_up.into(),
        }
    }

    /// Why it may go; `None` if it may not. Memory was short before at this turn.
    fn reason(&self, now: Moment, before: u64) -> Option<Reason> {
        let stalled_since = self.stalled_since.get();
        match self.waits_since.get() {
            Some(since) if since < before => Some(Reason::Waits(since)),
            Some(since) => Some(Reason::Rests(since)),
            None if self.held_up.get() == 0 => None,
            None if stalled_since.until(now) >= STALLED => Some(Reason::Stalled(stalled_since)),
            None => Some(Reason::HoldsUp(stalled_since)),
        }
    }

    fn stays(&self) -> bool {
        self.leaving.get() == Leaving::No
    }

    fn dismiss(&self) {
        let waits = self.waits_since.get().is_some();
        self.leaving.set(if waits { Leaving::WhenItWaits } else { Leaving::Now });
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Crowd {
    /// With no connection yet.
    pub fn new(room: Arc<Room>, clock: Clock) -> Rc<Self> {
        let (places, [turns, shed_at]) = (RefCell::default(), [const { Cell::new(0) }; 2]);
        Rc::new(Self { room, places, turns, shed_at, clock })
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
        let waiting = places.values().filter(|place| place.stays());
        let since = waiting.filter_map(|place| Some((place.waits_since.get()?, place)));
        let Some((_, longest)) = since.min_by_key(|(since, _)| *since) else { return false };
        if !self.room.take() {
            return false;
        }
        longest.dismiss();
        true
    }

    /// Lets connections go whose memory is needed.
    pub fn shed(&self, Shortage { mut excess, allowance, now }: Shortage) {
        let (places, before) = (self.places.borrow(), self.shed_at.replace(self.turns.get()));
        let staying = || places.values().filter(|place| place.stays());
        excess = excess.min(staying().map(|place| place.weight()).sum::<u64>().saturating_sub(allowance));
        let mut reasons: Vec<_> = staying().filter_map(|place| Some((place.reason(now, before)?, place))).collect();
        reasons.sort_unstable_by_key(|(reason, _)| *reason);
        for (_, place) in reasons {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(place.weight());
            place.dismiss();
            self.room.shed.inc();
        }
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
        if !self.place.stays() {
            return Poll::Ready(());
        }
        if self.place.waits_since.get().is_none() {
            if self.crowd.room.take() {
                self.place.leaving.set(Leaving::WhenItWaits);
                return Poll::Ready(());
            }
            self.place.waits_since.set(Some(self.crowd.next_turn()));
            self.place.held_up.set(0);
        }
        self.poll_leaving(Leaving::WhenItWaits, cx)
    }

    /// Ready when the connection is to go, so soon or sooner.
    fn poll_leaving(&self, when: Leaving, cx: &mut Context<'_>) -> Poll<()> {
        if self.place.leaving.get() >= when {
            return Poll::Ready(());
        }
        let mut waker = self.place.waker.borrow_mut();
        if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Runs to its end what serves the connection, unless that is to go at once; returns whether it is. What waits for a request
    /// sees by itself that it is to go.
    pub async fn is_shed<T>(&self, mut serving: Pin<&mut impl Future<Output = T>>) -> bool {
        poll_fn(|cx| match serving.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(false),
            Poll::Pending => self.poll_leaving(Leaving::Now, cx).map(|()| true),
        })
        .await
    }

    /// What tells how the connection's client is doing.
    pub fn pace(&self) -> Pace {
        Pace { place: Rc::clone(&self.place), clock: self.crowd.clock }
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

/// Without any movement for so long, while memory is short, a client is not waited for.
const STALLED: Duration = Duration::from_secs(5);

/// About what a connection takes (`make bench-hoards`), in bytes: while it waits for a request, while one is answered, and
/// beside what waits for its client.
const WAITING: u64 = 2 * 1024;
const SERVED: u64 = 32 * 1024;
const HELD_UP: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use crate::telemetry::Metrics;

    fn crowd() -> Rc<Crowd> {
        Crowd::new(Arc::new(Room::new(&Metrics::new().unwrap().clients)), Clock::start())
    }

    #[test]
    fn when_memory_is_short_those_go_who_are_missed_the_least() {
        let crowd = crowd();
        let mut cx = Context::from_waker(Waker::noop());
        let [first, second, served, slow, stalled, resting]: [Member; 6] = std::array::from_fn(|_| crowd.join());
        for member in [&second, &first] {
            assert!(member.poll_waiting(&mut cx).is_pending());
        }
        for member in [&slow, &stalled] {
            member.pace().is_held_up(100_000);
        }
        let later = crowd.clock.now().after(STALLED);
        slow.place.stalled_since.set(later);
        let gone = || [&stalled, &second, &first, &slow, &resting, &served].map(|member| !member.place.stays());
        let shed = |excess, allowance| crowd.shed(Shortage { excess, allowance, now: later });
        shed(1_000_000, 1_000_000);
        assert_eq!(gone(), [false; 6], "they hold less than they may");
        assert!(resting.poll_waiting(&mut cx).is_pending());
        for (excess, expected) in [(1, 1), (1, 2), (WAITING + 1, 4), (1, 5), (u64::MAX, 5)] {
            shed(excess, 0);
            assert_eq!(gone(), std::array::from_fn(|place| place < expected));
            resting.is_served();
            assert_eq!(resting.poll_waiting(&mut cx).is_ready(), expected == 5);
        }
        assert_eq!((crowd.room.shed.get(), crowd.room.dismissed.get()), (5, 0), "nobody is cut off who is served");
    }

    #[test]
    fn a_request_that_comes_just_before_its_connection_goes_is_answered() {
        let crowd = crowd();
        let mut cx = Context::from_waker(Waker::noop());
        let member = crowd.join();
        assert!(member.poll_waiting(&mut cx).is_pending());
        crowd.shed(Shortage { excess: 1, allowance: 0, now: crowd.clock.now() });
        member.is_served();
        let serving = pin!(std::future::pending::<()>());
        assert!(pin!(member.is_shed(serving)).poll(&mut cx).is_pending());
        assert!(member.poll_waiting(&mut cx).is_ready(), "it goes when that is done");
    }

    #[test]
    fn what_moves_now_and_then_is_not_stalled() {
        let crowd = crowd();
        let member = crowd.join();
        let pace = member.pace();
        pace.is_held_up(1);
        member.place.stalled_since.set(Moment::PAST);
        pace.is_held_up(2);
        let stalled = |now: Moment| matches!(member.place.reason(now, 0), Some(Reason::Stalled(_)));
        assert!(stalled(Moment::PAST.after(STALLED)));
        pace.moves();
        assert_eq!(member.place.reason(crowd.clock.now(), 0), None);
        pace.is_held_up(1);
        assert!(!stalled(crowd.clock.now()));
    }

    #[test]
    fn the_one_that_has_waited_for_the_longest_goes() {
        let crowd = crowd();
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
