//! How long a client may take, by what its connection is doing.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use crate::clock::{Clock, Moment};

/// The four client timeouts; `None` means no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientTimeouts {
    /// A whole request with its body, from its first byte.
    pub read: Option<Duration>,
    /// A request's head, from its first byte; for a connection's first request, from the connection's beginning. Without it, a
    /// head has a minute from its first byte.
    pub read_header: Option<Duration>,
    /// A response, from the end of the request's head to its own last byte.
    pub write: Option<Duration>,
    /// Between a response and the next request's first byte.
    pub idle: Option<Duration>,
}

impl ClientTimeouts {
    fn any(&self) -> bool {
        self.read.or(self.read_header).or(self.write).or(self.idle).is_some()
    }
}

/// One connection's progress. The connection's reader and its requests report to it, and the connection itself asks it when
/// to give up.
pub struct Deadlines {
    timeouts: ClientTimeouts,
    clock: Clock,
    phase: Cell<u8>,
    /// When the present request began, or the connection became idle.
    began: Cell<u64>,
    /// When the present head was first waited for, which is as soon as a part of it has arrived.
    head_awaited: Cell<Option<Moment>>,
    head_ended: Cell<u64>,
    reading_body: Cell<bool>,
    /// The next request's head began while this one's response was still under way.
    pipelined: Cell<bool>,
}

const FRESH: u8 = 0;
const IDLE: u8 = 1;
const HEAD: u8 = 2;
const EXCHANGE: u8 = 3;
const BUSY: u8 = 4;

impl Deadlines {
    /// For a connection that begins now.
    pub fn begin(timeouts: ClientTimeouts, clock: Clock) -> Rc<Self> {
        let deadlines = Self {
            timeouts,
            clock,
            phase: Cell::new(FRESH),
            began: Cell::default(),
            head_awaited: Cell::default(),
            head_ended: Cell::default(),
            reading_body: Cell::default(),
            pipelined: Cell::default(),
        };
        deadlines.began.set(deadlines.now());
        Rc::new(deadlines)
    }

    /// For what begins with a whole head; `None` when nothing is limited.
    pub fn after_head(timeouts: ClientTimeouts, clock: Clock) -> Option<Rc<Self>> {
        timeouts.any().then(|| Self::begin(timeouts, clock))
    }

    /// Where nothing depends on it, the clock is not asked.
    fn now(&self) -> u64 {
        if self.timeouts.any() { self.clock.now().as_millis() } else { 0 }
    }

    /// The first byte of a head has arrived.
    pub fn head_began(&self) {
        self.head_awaited.set(None);
        match self.phase.get() {
            EXCHANGE => self.pipelined.set(true),
            FRESH => self.phase.set(HEAD),
            _ => self.enter(HEAD),
        }
    }

    /// The head is complete, and a body follows or not.
    pub fn head_ended(&self, body_follows: bool) {
        self.head_ended.set(self.now());
        self.reading_body.set(body_follows);
        self.phase.set(EXCHANGE);
    }

    /// The request's last byte has arrived.
    pub fn body_ended(&self) {
        self.reading_body.set(false);
    }

    /// The response's last byte has been handed to the connection.
    pub fn response_ended(&self) {
        if self.phase.get() == EXCHANGE {
            self.enter(if self.pipelined.replace(false) { HEAD } else { IDLE });
        }
    }

    /// The connection has become a tunnel, which has no deadline; or it has streams, whose deadlines are their own.
    pub fn became_busy(&self) {
        self.phase.set(BUSY);
    }

    /// The connection's last stream has ended.
    pub fn became_idle(&self) {
        self.enter(IDLE);
    }

    fn enter(&self, phase: u8) {
        self.began.set(self.now());
        self.phase.set(phase);
    }

    /// When the connection must be given up unless it makes progress.
    pub fn next(&self) -> Option<Moment> {
        let began = Moment::from_millis(self.began.get());
        let limit = |limit: Option<Duration>, from: Moment| limit.map(|limit| from.after(limit));
        let earliest = |one: Option<Moment>, other: Option<Moment>| one.into_iter().chain(other).min();
        let ClientTimeouts { read, read_header, write, idle } = self.timeouts;
        match self.phase.get() {
            FRESH => earliest(limit(read_header, began), limit(read, began)).or(limit(idle, began)),
            IDLE => limit(idle, began),
            HEAD => {
                let own = read_header.is_none().then(|| self.head_awaited().after(HEAD_LIMIT));
                earliest(limit(read_header, began).or(own), limit(read, began))
            }
            EXCHANGE => {
                let ended = Moment::from_millis(self.head_ended.get());
                let reading = self.reading_body.get();
                earliest(limit(read.filter(|_| reading), began), limit(write, ended))
            }
            _ => None,
        }
    }

    fn head_awaited(&self) -> Moment {
        let since = self.head_awaited.get().unwrap_or_else(|| self.clock.now());
        self.head_awaited.set(Some(since));
        since
    }
}

/// How long a head may take that nothing else limits. No client of good will takes so long, and a part of a head is as much
/// memory as it is long.
pub const HEAD_LIMIT: Duration = Duration::from_mins(1);

/// A timer that follows the next deadline. It is moved only when it has run out, not whenever a deadline moves, because
/// nearly all of them only ever move back.
pub struct Alarm {
    deadlines: Rc<Deadlines>,
    timer: Option<(Moment, Pin<Box<Sleep>>)>,
}

impl Alarm {
    /// For these deadlines.
    pub fn new(deadlines: Rc<Deadlines>) -> Self {
        Self { deadlines, timer: None }
    }

    /// Ready when the present deadline has passed.
    pub fn poll(&mut self, clock: Clock, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(deadline) = self.deadlines.next() else {
                self.timer = None;
                return Poll::Pending;
            };
            let now = clock.now();
            if deadline <= now {
                return Poll::Ready(());
            }
            let (set_for, sleep) = self.timer.get_or_insert_with(|| {
                (deadline, Box::pin(tokio::time::sleep_until(Instant::now() + now.until(deadline))))
            });
            if deadline < *set_for {
                sleep.as_mut().reset(Instant::now() + now.until(deadline));
                *set_for = deadline;
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.timer = None;
        }
    }
}

/// Runs to its end what has these deadlines, unless it is late; returns whether it is.
pub async fn is_late<T>(
    deadlines: Option<Rc<Deadlines>>,
    clock: Clock,
    mut running: Pin<&mut impl Future<Output = T>>,
) -> bool {
    let mut alarm = deadlines.map(Alarm::new);
    poll_fn(|cx| {
        if running.as_mut().poll(cx).is_ready() {
            return Poll::Ready(false);
        }
        alarm.as_mut().map_or(Poll::Pending, |alarm| alarm.poll(clock, cx)).map(|()| true)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: Option<Duration> = Some(Duration::from_secs(10));
    const TWENTY: Option<Duration> = Some(Duration::from_secs(20));
    const THIRTY: Option<Duration> = Some(Duration::from_secs(30));
    const FORTY: Option<Duration> = Some(Duration::from_secs(40));

    /// Whether what is left is this limit, less the few milliseconds that the test has taken.
    fn is_left(deadlines: &Deadlines, limit: Option<Duration>) -> bool {
        let left = deadlines.next().map(|moment| deadlines.clock.now().until(moment));
        match (left, limit) {
            (Some(left), Some(limit)) => left <= limit && left > limit.saturating_sub(Duration::from_secs(5)),
            (left, limit) => left == limit,
        }
    }

    #[test]
    fn each_phase_has_its_own_limit() {
        let timeouts = ClientTimeouts { read: FORTY, read_header: TEN, write: TWENTY, idle: THIRTY };
        let deadlines = Deadlines::begin(timeouts, Clock::start());
        assert!(is_left(&deadlines, TEN));
        deadlines.head_began();
        assert!(is_left(&deadlines, TEN));
        deadlines.head_ended(true);
        assert!(is_left(&deadlines, TWENTY));
        deadlines.body_ended();
        deadlines.response_ended();
        assert!(is_left(&deadlines, THIRTY));
        deadlines.head_began();
        deadlines.head_ended(false);
        deadlines.became_busy();
        assert!(is_left(&deadlines, None));
    }

    #[test]
    fn a_body_is_limited_only_while_it_arrives() {
        let timeouts = ClientTimeouts { read: TEN, ..ClientTimeouts::default() };
        let deadlines = Deadlines::begin(timeouts, Clock::start());
        deadlines.head_began();
        deadlines.head_ended(true);
        assert!(is_left(&deadlines, TEN));
        deadlines.body_ended();
        assert!(is_left(&deadlines, None));
    }

    #[test]
    fn a_pipelined_head_is_timed_from_its_turn() {
        let timeouts = ClientTimeouts { read_header: TEN, write: TWENTY, ..ClientTimeouts::default() };
        let deadlines = Deadlines::begin(timeouts, Clock::start());
        deadlines.head_began();
        deadlines.head_ended(false);
        deadlines.head_began();
        assert!(is_left(&deadlines, TWENTY));
        deadlines.response_ended();
        assert!(is_left(&deadlines, TEN));
    }

    #[test]
    fn without_limits_a_head_alone_has_one() {
        let deadlines = Deadlines::begin(ClientTimeouts::default(), Clock::start());
        assert!(is_left(&deadlines, None));
        for _ in 0..2 {
            deadlines.head_began();
            assert!(is_left(&deadlines, Some(HEAD_LIMIT)));
            deadlines.head_ended(true);
            assert!(is_left(&deadlines, None));
            deadlines.response_ended();
            assert!(is_left(&deadlines, None));
        }
        deadlines.head_began();
        deadlines.head_ended(false);
        deadlines.head_began();
        assert!(is_left(&deadlines, None));
        deadlines.response_ended();
        assert!(is_left(&deadlines, Some(HEAD_LIMIT)), "a pipelined head has it from its turn");
        assert!(Deadlines::after_head(ClientTimeouts::default(), Clock::start()).is_none());
    }
}
