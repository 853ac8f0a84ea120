//! One client's attempts at a frontend's backends, until one works or none may be tried any more.

use std::sync::Arc;

use super::{config::LoadBalancing, error::ProxyError, exchange::Exchange, upstream::Progress, worker::Worker};
use crate::clock::Moment;
use crate::routing::{Choice, DeadMark, Frontend, InFlight, Tried};

/// What may become of a request that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is over.
    Stop,
    /// It goes to another backend.
    Another,
    /// It goes to another backend, or to the same over a new connection if there is no other.
    AnotherOrSame,
}

/// Whether to send a request twice does no more than to send it once (RFC 9110 section 9.2), and can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeatability {
    /// It asks for something, and changes nothing.
    Safe,
    /// It leaves the same behind however often it is sent.
    Idempotent,
    /// It must reach a backend once, or has a body that is gone.
    Once,
}

impl Repeatability {
    /// Of a request with this method.
    pub fn of(method: &str, has_no_body: bool) -> Self {
        match method {
            "GET" | "HEAD" | "OPTIONS" | "TRACE" if has_no_body => Self::Safe,
            "PUT" | "DELETE" if has_no_body => Self::Idempotent,
            _ => Self::Once,
        }
    }

    /// Whether another backend may be asked what one has answered already.
    pub fn is_safe(self) -> bool {
        self == Self::Safe
    }

    /// What may become of a request that failed so far on its way. What has been repeated is not repeated again.
    pub fn next(self, progress: Progress, has_repeated: bool) -> Next {
        match (progress, self) {
            (Progress::NothingSent, _) => Next::AnotherOrSame,
            (Progress::Begun, _) | (Progress::Unanswered { .. }, Self::Once) => Next::Stop,
            _ if has_repeated => Next::Stop,
            // The backend has closed a connection that it had no use for, most likely.
            (Progress::Unanswered { was_kept: true }, Self::Safe | Self::Idempotent) => Next::AnotherOrSame,
            // It may be on its way out; but it may also have been this request that took it down.
            (Progress::Unanswered { was_kept: false }, Self::Safe) => Next::Another,
            (Progress::Unanswered { was_kept: false }, Self::Idempotent) => Next::Stop,
        }
    }
}

/// The attempts so far. Every failure is logged here, and held against the backend where it is the backend's.
pub struct Attempts<'a> {
    worker: &'a Worker,
    frontend: &'a Arc<Frontend>,
    wanted: Option<&'a Choice>,
    tried: Tried,
    /// One whose connection broke, for when no other is left.
    spare: Option<Choice>,
    retries_left: usize,
    last: Option<(Choice, ProxyError)>,
    /// Whether the last backend has left rotation without having seen the request.
    is_unseen: bool,
}

impl<'a> Attempts<'a> {
    /// At a frontend's backends.
    pub fn at(worker: &'a Worker, frontend: &'a Arc<Frontend>) -> Self {
        Self {
            worker,
            frontend,
            wanted: None,
            tried: Tried::default(),
            spare: None,
            retries_left: MOST_RETRIES,
            last: None,
            is_unseen: false,
        }
    }

    /// The same, beginning with this backend if it is alive.
    pub fn wanting(self, wanted: Option<&'a Choice>) -> Self {
        Self { wanted, ..self }
    }

    /// The backend to try next; `None` when there is none left, or enough have been tried.
    pub fn next(&mut self, exchange: &mut Exchange) -> Option<Choice> {
        let is_first = self.last.is_none();
        let now = self.worker.shared.clock.at(exchange.latest());
        if is_first {
            self.frontend.retry_budget().count_request(now);
        }
        let choice = self.choose(now)?;
        if !is_first && !self.may_retry(now) {
            return None;
        }
        self.turn_to(&choice, exchange);
        Some(choice)
    }

    /// What happens to the request from here on is this choice's doing.
    pub fn turn_to(&self, choice: &Choice, exchange: &mut Exchange) {
        exchange.attempting(&choice.backend);
        if self.goes_by_load() {
            exchange.occupy(InFlight::at(&choice.backend));
        }
    }

    /// Whether the request may be sent once more; counted if it may. One that a backend has not seen which is asked no more
    /// adds to nobody's load by going on: a budget would only turn away those who waited there together.
    fn may_retry(&mut self, now: Moment) -> bool {
        let metrics = &self.worker.shared.metrics;
        if self.retries_left == 0 {
            return false;
        }
        if !self.is_unseen && !self.frontend.retry_budget().allows_retry(now) {
            metrics.retries_refused.inc();
            return false;
        }
        self.retries_left -= 1;
        metrics.retries.inc();
        true
    }

    /// The last choice failed.
    pub fn failed(&mut self, choice: Choice, error: ProxyError, next: Next, exchange: &Exchange) {
        if let ProxyError::Dial(error) = &error {
            self.worker.shared.metrics.pool.count_dial_failure(error.label());
        }
        let has_marked = self.mark_dead(&choice, &error);
        self.is_unseen = has_marked && !matches!(error, ProxyError::Answered(_));
        if has_marked {
            exchange.log_error(error.subject(), &format_args!("{error} *DEAD*"));
        } else if !matches!(error, ProxyError::ClientGone) {
            exchange.log_error(error.subject(), &error);
        }
        // A process that ends closes its listening socket last, so that it may take the next connection too, and lose it.
        if next == Next::AnotherOrSame
            && matches!(error, ProxyError::Broken(_))
            && !self.tried.contains(&choice.backend)
        {
            self.spare = Some(choice.clone());
        }
        self.tried.add(Arc::clone(&choice.backend));
        if matches!(&error, ProxyError::Dial(error) if error.is_everywhere()) {
            self.retries_left = 0;
        }
        self.last = Some((choice, error));
    }

    /// How it ended, when it did not end well.
    pub fn end(self, exchange: &Exchange) -> (Option<Choice>, ProxyError) {
        if let Some((choice, error)) = self.last {
            return (Some(choice), error);
        }
        exchange.log_error(ProxyError::AllDead.subject(), &ProxyError::AllDead);
        (None, ProxyError::AllDead)
    }

    fn choose(&mut self, now: Moment) -> Option<Choice> {
        // A client that is to stay with a backend does so for as long as there may be hope.
        if self.wanted.is_some() && self.spare.is_some() {
            return self.spare.take();
        }
        let other = if self.goes_by_load() {
            self.frontend.choose_less_busy(now, &self.tried, |count| fastrand::usize(..count))
        } else {
            self.frontend.choose_again(self.wanted, now, &self.tried)
        };
        other.or_else(|| self.spare.take())
    }

    /// Whether the frontend's backend stays in rotation because there is no other.
    fn is_spared(&self) -> bool {
        self.worker.shared.config.spare_only_backend && self.frontend.has_one_backend()
    }

    fn goes_by_load(&self) -> bool {
        self.worker.shared.config.load_balancing == LoadBalancing::LeastRequests
    }

    /// Takes the backend out of rotation, here at once and everywhere by way of Redis, if the error says that it should be.
    /// Returns whether it says so.
    fn mark_dead(&self, choice: &Choice, error: &ProxyError) -> bool {
        let shared = &self.worker.shared;
        if !error.verdict().marks_dead || shared.config.dead_backend_time.is_zero() || self.is_spared() {
            return false;
        }
        let now = shared.clock.now();
        let until = now.after(shared.config.dead_backend_time);
        if choice.backend.fail(now, until) {
            shared.metrics.marked_dead.inc();
            let mark = DeadMark { frontend: self.frontend.key().into(), url: choice.backend.url().into(), until };
            if shared.marks.try_send(mark).is_err() {
                shared.metrics.marks_dropped.inc();
            }
        }
        true
    }
}

/// How often a request may be sent again.
const MOST_RETRIES: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the README, row by row.
    #[test]
    fn a_request_is_never_sent_twice_where_it_may_do_harm() {
        let unanswered = |was_kept| Progress::Unanswered { was_kept };
        for (progress, method, has_no_body, next) in [
            (Progress::NothingSent, "POST", false, Next::AnotherOrSame),
            (Progress::NothingSent, "GET", true, Next::AnotherOrSame),
            (unanswered(true), "GET", true, Next::AnotherOrSame),
            (unanswered(true), "DELETE", true, Next::AnotherOrSame),
            (unanswered(true), "PUT", false, Next::Stop),
            (unanswered(true), "POST", true, Next::Stop),
            (unanswered(true), "PROPFIND", true, Next::Stop),
            (unanswered(false), "GET", true, Next::Another),
            (unanswered(false), "HEAD", true, Next::Another),
            (unanswered(false), "OPTIONS", true, Next::Another),
            (unanswered(false), "TRACE", true, Next::Another),
            (unanswered(false), "GET", false, Next::Stop),
            (unanswered(false), "DELETE", true, Next::Stop),
            (unanswered(false), "PUT", true, Next::Stop),
            (unanswered(false), "POST", true, Next::Stop),
            (Progress::Begun, "GET", true, Next::Stop),
        ] {
            let repeatability = Repeatability::of(method, has_no_body);
            assert_eq!(repeatability.next(progress, false), next, "{progress:?} {method} {has_no_body}");
            let again = if progress == Progress::NothingSent { next } else { Next::Stop };
            assert_eq!(repeatability.next(progress, true), again, "{progress:?} {method} {has_no_body}, repeated");
        }
    }
}
