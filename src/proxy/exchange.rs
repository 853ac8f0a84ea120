//! The record of one request, from its head to its response's last byte.

use std::{
    fmt::Display,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    client_timeouts::Deadlines,
    error::CLIENT_GONE,
    worker::{Shared, Worker},
};
use crate::{
    message::{Known, RequestHead, Target, headers::forwarded_for},
    routing::{Backend, Frontend, InFlight},
    telemetry::{self, Entry, InPhase, Phase, Subject, Tally},
};

/// Everything that must be remembered of a request for the logs and metrics. It is written when dropped, so that every way
/// out of a request, a client's disappearance included, leaves exactly one record.
pub struct Exchange {
    shared: Arc<Shared>,
    tally: Rc<Tally>,
    deadlines: Option<Rc<Deadlines>>,
    began: Instant,
    /// When the clock was last looked at.
    latest: Instant,
    client: IpAddr,
    recorded: Recorded,
    request_id: Bytes,
    frontend: Option<Arc<Frontend>>,
    backend: Option<Arc<Backend>>,
    /// Where a backend's requests in flight are counted.
    in_flight: Option<InFlight>,
    /// Where those of this worker are.
    phase: InPhase,
    /// `None` while there is no response head.
    status: Option<u16>,
    body_bytes: u64,
    backend_time: Duration,
    is_recorded: bool,
}

impl Exchange {
    /// For a request whose head has just arrived.
    pub fn begin(
        worker: &Worker,
        deadlines: Option<Rc<Deadlines>>,
        client: IpAddr,
        request: &RequestHead,
    ) -> Box<Self> {
        let now = Instant::now();
        Self::begin_with(worker, deadlines, client, (now, now), Recorded::Request(request.clone()))
    }

    /// For a connection that arrived then and is passed through. It is recorded as a CONNECT to the server name.
    pub fn begin_passthrough(worker: &Worker, client: IpAddr, name: Option<&str>, arrived: Instant) -> Box<Self> {
        let recorded = Recorded::Connection(name.unwrap_or_default().into());
        Self::begin_with(worker, None, client, (arrived, Instant::now()), recorded)
    }

    fn begin_with(
        worker: &Worker,
        deadlines: Option<Rc<Deadlines>>,
        client: IpAddr,
        (began, latest): (Instant, Instant),
        recorded: Recorded,
    ) -> Box<Self> {
        Box::new(Self {
            shared: Arc::clone(&worker.shared),
            tally: Rc::clone(&worker.tally),
            deadlines,
            began,
            latest,
            client,
            recorded,
            request_id: Bytes::new(),
            frontend: None,
            backend: None,
            in_flight: None,
            phase: worker.activity.begin(),
            status: None,
            body_bytes: 0,
            backend_time: Duration::ZERO,
            is_recorded: true,
        })
    }

    /// Takes note of the request's id, once it surely has one.
    pub fn identify(&mut self, id: Bytes) {
        self.request_id = id;
    }

    /// The request is for this frontend.
    pub fn routed(&mut self, frontend: &Arc<Frontend>) {
        self.frontend = Some(Arc::clone(frontend));
    }

    /// An attempt begins with this backend.
    pub fn attempting(&mut self, backend: &Arc<Backend>) {
        self.backend = Some(Arc::clone(backend));
        self.phase.enter(Phase::Backend);
    }

    /// The attempt's backend is busy with it from here to the next attempt or the exchange's end.
    pub fn occupy(&mut self, in_flight: InFlight) {
        self.in_flight = Some(in_flight);
    }

    /// When the clock was last looked at: as an attempt ended, or as all began.
    pub fn latest(&self) -> Instant {
        self.latest
    }

    /// An attempt that began then has ended; returns how long it took.
    pub fn attempted(&mut self, began: Instant) -> Duration {
        self.latest = Instant::now();
        self.backend_time = self.latest.saturating_duration_since(began);
        self.backend_time
    }

    /// The answer of an earlier attempt is taken, which took this long.
    pub fn took_back(&mut self, took: Duration) {
        self.backend_time = took;
    }

    /// The response has this status.
    pub fn answered(&mut self, status: u16) {
        if self.status.is_none() {
            self.observe_head(self.latest);
            self.phase.enter(Phase::Response);
        }
        self.status = Some(status);
    }

    /// What follows the response's head is a tunnel.
    pub fn became_tunnel(&mut self) {
        self.phase.enter(Phase::Tunnel);
    }

    fn observe_head(&self, at: Instant) {
        if self.is_recorded {
            self.tally.head(at.saturating_duration_since(self.began));
        }
    }

    /// Whether no byte of an answer has been handed over yet.
    pub fn is_unanswered(&self) -> bool {
        self.body_bytes == 0
    }

    /// This is no exchange to record.
    pub fn forget(&mut self) {
        self.is_recorded = false;
    }

    /// Bytes of the response's body were handed to the client's connection.
    pub fn sent(&mut self, bytes: u64) {
        self.body_bytes += bytes;
    }

    /// The frontend key that matched; else the host as sent.
    fn host_or_key(&self) -> &[u8] {
        match &self.frontend {
            Some(frontend) => frontend.key().as_bytes(),
            None => self.recorded.host(),
        }
    }

    /// Writes a line of the error log, unless there are too many about its subject.
    pub fn log_error(&self, subject: Subject, error: &dyn Display) {
        if !self.shared.errors.spend(subject) {
            return;
        }
        let mut line = b"ERROR in ".to_vec();
        telemetry::put_escaped(&mut line, self.host_or_key());
        line.extend_from_slice(b" -> ");
        telemetry::put_escaped(&mut line, self.backend.as_ref().map_or("?", |backend| backend.url()).as_bytes());
        line.extend_from_slice(b" - ");
        telemetry::put_escaped(&mut line, self.recorded.path());
        line.extend_from_slice(b" - ");
        line.extend_from_slice(self.request_id_header().as_bytes());
        line.push(b':');
        telemetry::put_escaped(&mut line, &self.request_id);
        line.extend_from_slice(b" - ");
        telemetry::put_escaped(&mut line, error.to_string().as_bytes());
        self.shared.errors.write(line);
    }

    fn request_id_header(&self) -> &str {
        self.shared.config.request_id_header.as_ref().map_or("", |header| header.canonical())
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let now = Instant::now();
        let total = now.saturating_duration_since(self.began);
        if let Some(deadlines) = &self.deadlines {
            deadlines.response_ended();
        }
        if !self.is_recorded {
            return;
        }
        if self.status.is_none() {
            self.observe_head(now);
        }
        let status = self.status.unwrap_or(CLIENT_GONE);
        let took = (self.phase.phase() != Phase::Tunnel).then_some(total);
        self.tally.exchange(status, took, self.backend_time);
        if !self.shared.access_log.is_on() {
            return;
        }
        let forwarded_for = self.recorded.head().and_then(forwarded_for).unwrap_or_default();
        self.shared.access_log.write(&Entry {
            client: self.client,
            method: self.recorded.method(),
            path: self.recorded.path(),
            protocol: self.recorded.protocol(),
            status,
            body_bytes: self.body_bytes,
            referer: self.recorded.header(Known::Referer),
            user_agent: self.recorded.header(Known::UserAgent),
            request_id_header: self.request_id_header(),
            request_id: &self.request_id,
            frontend: self.frontend.as_ref().map_or("", |frontend| frontend.key()),
            forwarded_for: &forwarded_for,
            total,
            backend: self.backend_time,
        });
    }
}

/// What is recorded.
enum Recorded {
    /// A request, by its head as the client sent it.
    Request(RequestHead),
    /// A connection that is passed through, by the server's name.
    Connection(Box<str>),
}

impl Recorded {
    fn head(&self) -> Option<&RequestHead> {
        match self {
            Self::Request(head) => Some(head),
            Self::Connection(_) => None,
        }
    }

    fn method(&self) -> &[u8] {
        self.head().map_or(b"CONNECT", |head| head.method().as_bytes())
    }

    fn protocol(&self) -> &[u8] {
        self.head().map_or(b"TLS", |head| head.version().as_str().as_bytes())
    }

    fn header(&self, known: Known) -> &[u8] {
        self.head().and_then(|head| head.first(known)).unwrap_or_default()
    }

    /// The target without its query; for a CONNECT, the host.
    fn path(&self) -> &[u8] {
        match self {
            Self::Request(head) => Target::path_of(head),
            Self::Connection(name) if name.is_empty() => b"/",
            Self::Connection(name) => name.as_bytes(),
        }
    }

    /// The host as sent. HTTP/2 knows it as a part of the target.
    fn host(&self) -> &[u8] {
        match self {
            Self::Request(head) => head.first(Known::Host).unwrap_or_else(|| Target::authority_of(head)),
            Self::Connection(name) => name.as_bytes(),
        }
    }
}
