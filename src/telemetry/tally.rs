//! What one worker has counted and not yet told.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use prometheus::local::LocalHistogram;

use super::Metrics;

/// One worker's requests since the last time that they were added to the process's metrics. An atomic that all threads change
/// costs each of them a wait for the others; this is added up when the worker has nothing else to do, and at least once a
/// second.
pub struct Tally {
    metrics: Arc<Metrics>,
    request_duration: LocalHistogram,
    exchange_duration: LocalHistogram,
    backend_duration: LocalHistogram,
    /// Responses by status.
    responses: RefCell<Vec<(u16, u64)>>,
    has_any: Cell<bool>,
}

thread_local! {
    static TALLY: RefCell<Option<Rc<Tally>>> = const { RefCell::new(None) };
}

impl Tally {
    /// This thread's, of which there is one.
    pub fn new(metrics: &Arc<Metrics>) -> Rc<Self> {
        let tally = Rc::new(Self {
            request_duration: metrics.request_duration.local(),
            exchange_duration: metrics.exchange_duration.local(),
            backend_duration: metrics.backend_duration.local(),
            responses: RefCell::default(),
            has_any: Cell::default(),
            metrics: Arc::clone(metrics),
        });
        TALLY.set(Some(Rc::clone(&tally)));
        tally
    }

    /// A response's head was there after so long.
    pub fn head(&self, took: Duration) {
        self.request_duration.observe(took.as_secs_f64());
        self.has_any.set(true);
    }

    /// An exchange has ended after so long, tunnels aside; its backend has taken so long.
    pub fn exchange(&self, status: u16, took: Option<Duration>, backend: Duration) {
        if let Some(took) = took {
            self.exchange_duration.observe(took.as_secs_f64());
        }
        self.backend_duration.observe(backend.as_secs_f64());
        let mut responses = self.responses.borrow_mut();
        match responses.iter_mut().find(|(known, _)| *known == status) {
            Some((_, count)) => *count += 1,
            None => responses.push((status, 1)),
        }
        self.has_any.set(true);
    }

    /// Adds everything to the process's metrics.
    pub fn settle(&self) {
        if self.has_any.replace(false) {
            self.request_duration.flush();
            self.exchange_duration.flush();
            self.backend_duration.flush();
            for (status, count) in self.responses.borrow_mut().drain(..) {
                self.metrics.count_responses(status, count);
            }
        }
    }
}

/// Settles this thread's tally, if it has one.
pub fn settle_tally() {
    TALLY.with_borrow(|tally| tally.iter().for_each(|tally| tally.settle()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told_once() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let tally = Tally::new(&metrics);
        tally.head(Duration::from_millis(3));
        for status in [200, 503, 200] {
            tally.exchange(status, Some(Duration::from_millis(5)), Duration::ZERO);
        }
        tally.exchange(101, None, Duration::ZERO);
        settle_tally();
        settle_tally();
        let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
        for line in [
            "planb_reverseproxy_http_request_duration_seconds_count 1",
            "planb_reverseproxy_http_exchange_duration_seconds_count 3",
            "planb_reverseproxy_backend_request_duration_seconds_count 4",
            "planb_reverseproxy_backends_responses_total{status_code=\"200\"} 2",
            "planb_reverseproxy_backends_responses_total{status_code=\"101\"} 1",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is not in {text}");
        }
    }
}
