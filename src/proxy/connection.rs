//! One client connection, until it closes, becomes a tunnel or runs out of time.

use std::{
    convert::Infallible,
    future::poll_fn,
    net::IpAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Request,
    body::{Body, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep},
};
use tracing::debug;

use super::{
    Worker,
    deadlines::Deadlines,
    downstream::{Downstream, Follows, Verdict},
    headers, service,
};
use crate::routing::Moment;

/// The client's side of a request.
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// Its progress, where it is limited.
    pub deadlines: Option<Arc<Deadlines>>,
    /// Held for as long as the connection or its tunnel lives.
    _permit: OwnedSemaphorePermit,
}

/// Serves a connection to its end.
pub async fn serve(worker: Rc<Worker>, stream: TcpStream, address: IpAddr, permit: OwnedSemaphorePermit) {
    let _open = Counted::one(&worker.shared.metrics.connections_open);
    let deadlines = Deadlines::begin(worker.shared.config.client_timeouts, worker.shared.clock);
    let verdict = Arc::new(Verdict::default());
    let downstream = Downstream::new(stream, Arc::clone(&verdict), deadlines.clone());
    let client = Rc::new(Client { address, deadlines: deadlines.clone(), _permit: permit });

    let handler = service_fn(|request: Request<Incoming>| {
        // At once, before the connection can read on.
        let follows = what_follows(&request);
        verdict.give(follows);
        if let Some(deadlines) = &client.deadlines {
            deadlines.head_ended(follows != Follows::Length(0));
        }
        let answer = service::answer(Rc::clone(&worker), Rc::clone(&client), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut connection = pin!(worker.http.serve_connection(TokioIo::new(downstream), handler).with_upgrades());
    let mut draining = pin!(async {
        worker.drain.begun().await;
        // Whoever has just connected is about to send a request, which a closed socket would lose.
        if !verdict.has_read() {
            tokio::time::sleep(FRESH_GRACE).await;
        }
    });
    let mut drained = false;
    let mut alarm = deadlines.map(Alarm::new);

    let ended = poll_fn(|cx| {
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(Some(result));
        }
        if !drained && draining.as_mut().poll(cx).is_ready() {
            drained = true;
            connection.as_mut().graceful_shutdown();
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                return Poll::Ready(Some(result));
            }
        }
        match &mut alarm {
            Some(alarm) => alarm.poll(&worker, cx).map(|()| None),
            None => Poll::Pending,
        }
    });
    match ended.await {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            if error.is_parse() {
                worker.shared.metrics.malformed_requests.inc();
            }
            debug!(%address, %error, "a client connection ended with an error");
        }
        None => {
            worker.shared.metrics.client_timeouts.inc();
            debug!(%address, "a client connection was too slow");
        }
    }
}

/// What comes after a request's head, as the HTTP library understood it.
fn what_follows(request: &Request<Incoming>) -> Follows {
    if headers::wants_websocket(request) || request.method() == http::Method::CONNECT {
        return Follows::Opaque;
    }
    match request.body().size_hint().exact() {
        Some(length) => Follows::Length(length),
        None => Follows::Chunked,
    }
}

/// A timer that follows a connection's next deadline. It is moved only when it has run out, not whenever a deadline
/// moves, because nearly all of them only ever move back.
struct Alarm {
    deadlines: Arc<Deadlines>,
    timer: Option<(Moment, Pin<Box<Sleep>>)>,
}

impl Alarm {
    fn new(deadlines: Arc<Deadlines>) -> Self {
        Self { deadlines, timer: None }
    }

    /// Ready when the present deadline has passed.
    fn poll(&mut self, worker: &Worker, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(deadline) = self.deadlines.next() else {
                self.timer = None;
                return Poll::Pending;
            };
            let now = worker.shared.clock.now();
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

/// How long a connection without a request yet is kept open once the drain has begun.
const FRESH_GRACE: Duration = Duration::from_millis(500);

/// Keeps a gauge one higher while it lives.
pub struct Counted(prometheus::IntGauge);

impl Counted {
    /// Counts one more.
    pub fn one(gauge: &prometheus::IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
