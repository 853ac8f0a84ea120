//! The addresses of backends that are known by name, shared by all threads.
//!
//! An answer is believed for its TTL. While a name is in use it is asked for again before that has passed, so that no
//! connection waits for DNS but the first to a name, and the first after a pause. When DNS has no answer, the last
//! addresses go on being used; when its answer is that there are none, they do not. Look-ups run on the control runtime,
//! one at a time for each name.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use hickory_resolver::net::NetError;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    time::{Instant, timeout, timeout_at},
};
use tracing::{info, warn};

use super::{
    order::{Order, alternate},
    resolver::{Answer, Resolver, SHORTEST},
};
use crate::telemetry::Metrics;

/// The names and their addresses. Cloning is cheap and shares them.
#[derive(Clone)]
pub struct Names(Arc<Shared>);

struct Shared {
    table: DashMap<Box<str>, Arc<Name>, foldhash::fast::RandomState>,
    resolver: Resolver,
    control: Handle,
    permits: Semaphore,
    slow_permits: Semaphore,
    metrics: Arc<Metrics>,
    began: Instant,
    /// Seconds after `began` from which on the next failure is worth a line.
    next_line: AtomicU64,
}

/// One name.
pub struct Name {
    text: Box<str>,
    known: watch::Sender<Known>,
    /// The turns of its addresses.
    pub order: Order,
    /// Seconds after [`Shared::began`].
    used: AtomicU64,
}

/// What is known of a name's addresses.
#[derive(Clone, Debug)]
struct Known {
    addresses: Arc<[IpAddr]>,
    /// When DNS last had an answer.
    answered: Option<Instant>,
    /// Why it had none the last time.
    failure: Option<Arc<str>>,
    /// From when on a look-up is made while the old answer is still believed.
    ahead: Instant,
    /// Until when nobody has to ask again.
    until: Instant,
    /// When the look-up under way has begun.
    asking: Option<Instant>,
}

/// What somebody who wants to connect shall do.
#[derive(Debug, PartialEq, Eq)]
enum Advice {
    /// Use what is known, which may be that there are no addresses.
    Use,
    /// Use it, and have it looked up for those who come after.
    UseAndAsk,
    /// Wait for the look-up, at most until the given moment if there is one.
    Wait(Option<Instant>),
}

impl Names {
    /// Knows no name yet. Asks these servers, or those of /etc/resolv.conf if there are none, on the runtime that it is
    /// called on.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new(servers: Vec<SocketAddr>, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Shared {
            table: DashMap::default(),
            resolver: Resolver::new(servers),
            control: Handle::current(),
            permits: Semaphore::new(MOST_AT_ONCE),
            slow_permits: Semaphore::new(MOST_SLOW),
            metrics,
            began: Instant::now(),
            next_line: AtomicU64::new(0),
        }))
    }

    /// Forgets names that are no longer used, for ever.
    pub async fn tidy(self) {
        let mut ticks = tokio::time::interval(TIDY_EVERY);
        loop {
            ticks.tick().await;
            let seconds = self.seconds();
            self.0
                .table
                .retain(|_, name| seconds.saturating_sub(name.used.load(Ordering::Relaxed)) < KEPT_FOR.as_secs());
            self.count();
        }
    }

    /// A name and its addresses, of which there is at least one.
    ///
    /// # Errors
    /// When it has none, or nobody knows.
    pub async fn find(&self, text: &str) -> io::Result<(Arc<Name>, Arc<[IpAddr]>)> {
        self.addresses(self.name(text)).await
    }

    /// As [`Names::find`], without remembering a name that is not known yet: strangers chose it, and may choose another each
    /// time.
    pub async fn find_once(&self, text: &str) -> io::Result<(Arc<Name>, Arc<[IpAddr]>)> {
        let known = self.0.table.get(text).map(|name| Arc::clone(&name));
        self.addresses(known.unwrap_or_else(|| Arc::new(Name::new(text)))).await
    }

    async fn addresses(&self, name: Arc<Name>) -> io::Result<(Arc<Name>, Arc<[IpAddr]>)> {
        name.used.store(self.seconds(), Ordering::Relaxed);
        // Before anything is looked at, so that no end of a look-up is missed.
        let mut changes = name.known.subscribe();
        loop {
            let now = Instant::now();
            let known = changes.borrow_and_update().clone();
            let advice = known.advice(now);
            if advice != Advice::Use {
                self.ask(&name, now);
            }
            match advice {
                Advice::Use | Advice::UseAndAsk => return known.result().map(|addresses| (name, addresses)),
                // That the time is over, or that there is an answer, is seen above. The sender is this name's own.
                Advice::Wait(Some(until)) => drop(timeout_at(until, changes.changed()).await),
                Advice::Wait(None) => drop(changes.changed().await),
            }
        }
    }

    /// None of a name's addresses could be connected to, so that it may have others by now.
    pub fn doubt(&self, name: &Arc<Name>) {
        let now = Instant::now();
        let is_recent = name.known.borrow().answered.is_some_and(|at| now.duration_since(at) < SHORTEST);
        if !is_recent && name.known.borrow().failure.is_none() {
            self.ask(name, now);
        }
    }

    fn name(&self, text: &str) -> Arc<Name> {
        if let Some(name) = self.0.table.get(text) {
            return Arc::clone(&name);
        }
        let name = Arc::clone(&self.0.table.entry(text.into()).or_insert_with(|| Arc::new(Name::new(text))));
        // Counting locks all of the table, so that nothing of it may be held here.
        self.count();
        name
    }

    /// Begins a look-up unless one is under way.
    fn ask(&self, name: &Arc<Name>, now: Instant) {
        let mut begun = false;
        name.known.send_if_modified(|known| {
            begun = known.asking.is_none();
            known.asking.get_or_insert(now);
            // Only the end is of interest to those who wait.
            false
        });
        if begun {
            let asking = Asking(Arc::clone(name));
            let names = self.clone();
            // It ends by itself: the resolver has a time limit.
            self.0.control.spawn(async move { names.look_up(asking).await });
        }
    }

    async fn look_up(&self, asking: Asking) {
        let shared = &*self.0;
        let name = &*asking.0;
        let answer = self.resolve(&name.text).await;
        let now = Instant::now();
        shared.metrics.dns.count_lookup(answer.as_ref().map(|answer| !answer.addresses.is_empty()).ok());
        let mut known = name.known.borrow().clone();
        match answer {
            Ok(answer) => {
                if known.failure.is_some() && !known.addresses.is_empty() {
                    info!(name = %name.text, "the name is resolved again");
                }
                known.learn(answer, now);
            }
            Err(error) => {
                let is_news = known.failure.is_none();
                known.bear(&error, now);
                if is_news && !known.addresses.is_empty() && self.is_time_for_a_line() {
                    warn!(name = %name.text, %error, "DNS has no answer: the last addresses go on being used");
                }
            }
        }
        known.asking = None;
        name.known.send_replace(known);
    }

    /// Asks when it is its turn.
    async fn resolve(&self, text: &str) -> Result<Answer, NetError> {
        let shared = &*self.0;
        let turn = shared.permits.acquire().await;
        let mut resolving = pin!(shared.resolver.resolve(text));
        if let Ok(answer) = timeout(SLOW, &mut resolving).await {
            return answer;
        }
        // It has probably no answer, and others that have one must not wait for that.
        let aside = shared.slow_permits.try_acquire();
        let _turn = turn.ok().filter(|_| aside.is_err());
        resolving.await
    }

    /// Whether another line may be written about DNS failing, which it often does for many names at once.
    fn is_time_for_a_line(&self) -> bool {
        let (now, next) = (self.seconds(), self.0.next_line.load(Ordering::Relaxed));
        let later = now + LINE_EVERY.as_secs();
        now >= next && self.0.next_line.compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn count(&self) {
        self.0.metrics.dns.names.set(i64::try_from(self.0.table.len()).unwrap_or(i64::MAX));
    }

    fn seconds(&self) -> u64 {
        self.0.began.elapsed().as_secs()
    }
}

impl Name {
    fn new(text: &str) -> Self {
        Self {
            text: text.into(),
            known: watch::Sender::new(Known::nothing(Instant::now())),
            order: Order::default(),
            used: AtomicU64::new(0),
        }
    }
}

/// A look-up that is under way. If it does not reach its end, the next can begin.
struct Asking(Arc<Name>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.known.send_if_modified(|known| known.asking.take().is_some());
    }
}

impl Known {
    fn nothing(now: Instant) -> Self {
        let addresses = Arc::default();
        Self { addresses, answered: None, failure: None, ahead: now, until: now, asking: None }
    }

    fn advice(&self, now: Instant) -> Advice {
        if now < self.until {
            return if now < self.ahead { Advice::Use } else { Advice::UseAndAsk };
        }
        if self.addresses.is_empty() {
            return Advice::Wait(None);
        }
        // Old addresses may belong to somebody else by now, so that a quick look-up is worth waiting for; but not when
        // the last has failed, and this one may as well.
        let patience = self.asking.unwrap_or(now) + PATIENCE;
        if self.failure.is_some() || now >= patience { Advice::UseAndAsk } else { Advice::Wait(Some(patience)) }
    }

    /// Takes in an answer.
    fn learn(&mut self, answer: Answer, now: Instant) {
        self.until = now + answer.ttl;
        // There is no need to keep asking for a name that does not exist.
        self.ahead = if answer.addresses.is_empty() { self.until } else { now + answer.ttl * 3 / 4 };
        self.addresses = alternate(answer.addresses).into();
        self.answered = Some(now);
        self.failure = None;
    }

    /// Takes in that there is no answer.
    fn bear(&mut self, error: &impl ToString, now: Instant) {
        if self.answered.is_none_or(|at| now.duration_since(at) >= KEPT_FOR) {
            self.addresses = Arc::default();
        }
        self.failure = Some(error.to_string().into());
        self.until = now + if self.addresses.is_empty() { SHORTEST } else { RETRY };
        self.ahead = self.until;
    }

    fn result(&self) -> io::Result<Arc<[IpAddr]>> {
        match &self.failure {
            _ if !self.addresses.is_empty() => Ok(Arc::clone(&self.addresses)),
            Some(failure) => Err(io::Error::other(&**failure)),
            None => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses")),
        }
    }
}

/// How long a connection waits for DNS although there are old addresses.
const PATIENCE: Duration = Duration::from_millis(300);

/// How long after a look-up without an answer the next is made.
const RETRY: Duration = Duration::from_secs(5);

/// How long addresses are used without an answer that confirms them, and a name is remembered that nobody uses.
const KEPT_FOR: Duration = Duration::from_hours(1);

const TIDY_EVERY: Duration = Duration::from_mins(1);

/// Look-ups at the same time; others queue. Each may need a socket for either family.
const MOST_AT_ONCE: usize = 64;

/// Look-ups beside these that have taken longer than [`SLOW`].
const MOST_SLOW: usize = 512;

/// Longer than a look-up usually takes that gets an answer.
const SLOW: Duration = Duration::from_millis(500);

/// How often there may be a line about DNS failing.
const LINE_EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(texts: &[&str], seconds: u64) -> Answer {
        let addresses = texts.iter().map(|text| text.parse().unwrap()).collect();
        Answer { addresses, ttl: Duration::from_secs(seconds) }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_answer_is_believed_for_its_time_and_asked_for_again_before_that() {
        let now = Instant::now();
        let mut known = Known::nothing(now);
        assert_eq!(known.advice(now), Advice::Wait(None));
        known.learn(answer(&["10.0.0.1"], 20), now);
        assert_eq!(known.advice(now + seconds(14)), Advice::Use);
        assert_eq!(known.advice(now + seconds(15)), Advice::UseAndAsk);
        let late = now + seconds(20);
        assert_eq!(known.advice(late), Advice::Wait(Some(late + PATIENCE)));
        known.asking = Some(now + seconds(15));
        assert_eq!(known.advice(late), Advice::UseAndAsk, "the look-up that began ahead takes long");
    }

    #[test]
    fn a_name_without_addresses_loses_its_old_ones_at_once() {
        let now = Instant::now();
        let mut known = Known::nothing(now);
        known.learn(answer(&["10.0.0.1"], 20), now);
        known.learn(answer(&[], 5), now);
        assert_eq!(known.advice(now + seconds(4)), Advice::Use);
        assert_eq!(known.result().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(known.advice(now + seconds(5)), Advice::Wait(None));
    }

    #[test]
    fn without_an_answer_the_last_addresses_are_used_for_an_hour_and_nobody_waits() {
        let now = Instant::now();
        let mut known = Known::nothing(now);
        known.learn(answer(&["10.0.0.1"], 20), now);
        let late = now + KEPT_FOR - seconds(1);
        known.bear(&"timed out", late);
        assert_eq!(known.advice(late), Advice::Use);
        assert_eq!(known.advice(late + RETRY), Advice::UseAndAsk);
        assert!(known.result().is_ok());
        known.bear(&"timed out", now + KEPT_FOR);
        assert!(known.result().unwrap_err().to_string().contains("timed out"));
    }
}
