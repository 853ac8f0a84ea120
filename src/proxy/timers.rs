//! Timers for limits that are nearly never reached.

use std::{
    cell::RefCell,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep};

/// One worker's timers. To set a timer and to take it back costs more than all else that a limit does, so that a timer which
/// was not needed stays set, and serves whoever comes next: it runs out too early for that one, and is only then set anew.
#[derive(Default)]
pub struct Timers(RefCell<Vec<Timer>>);

struct Timer {
    set_for: Instant,
    sleep: Pin<Box<Sleep>>,
}

/// A timer, for as long as it is needed.
pub struct Lent<'a> {
    timers: &'a Timers,
    timer: Option<Timer>,
}

impl Timers {
    /// One of them, or a new one.
    pub fn lend(&self) -> Lent<'_> {
        Lent { timers: self, timer: None }
    }
}

impl Lent<'_> {
    /// Ready when the deadline has passed, which may be another each time.
    pub fn poll(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let kept = || self.timers.0.borrow_mut().pop();
        let new = || Timer { set_for: deadline, sleep: Box::pin(tokio::time::sleep_until(deadline)) };
        let timer = self.timer.get_or_insert_with(|| kept().unwrap_or_else(new));
        if deadline < timer.set_for {
            timer.set(deadline);
        }
        loop {
            ready!(timer.sleep.as_mut().poll(cx));
            if deadline <= timer.set_for {
                return Poll::Ready(());
            }
            timer.set(deadline);
        }
    }
}

impl Timer {
    fn set(&mut self, deadline: Instant) {
        self.set_for = deadline;
        self.sleep.as_mut().reset(deadline);
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut timers = self.timers.0.borrow_mut();
        if timers.len() < MOST_KEPT {
            timers.extend(self.timer.take());
        }
    }
}

/// Timers that are kept.
const MOST_KEPT: usize = 256;

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    async fn wait(timers: &Timers, length: Duration) -> Duration {
        let (began, mut timer) = (Instant::now(), timers.lend());
        poll_fn(|cx| timer.poll(began + length, cx)).await;
        began.elapsed()
    }

    #[tokio::test]
    async fn a_timer_that_was_set_for_another_runs_out_in_time() {
        let timers = Timers::default();
        let lengths = [200, 10, 50, 0, 30].map(Duration::from_millis);
        for length in lengths {
            let mut unused = timers.lend();
            let polled = poll_fn(|cx| Poll::Ready(unused.poll(Instant::now() + length, cx)));
            assert!(polled.await.is_pending() || length.is_zero());
            drop(unused);
            assert!(timers.0.borrow().len() == 1);
            for length in lengths {
                assert!(wait(&timers, length).await >= length);
            }
        }
    }
}
