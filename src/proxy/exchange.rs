//! The record of one request, from its head to its response's last byte.

use std::{
    fmt::Display,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header};

use super::{
    client_timeouts::Deadlines,
    error::client_gone,
    headers,
    worker::{Shared, Worker},
};
use crate::{
    routing::{Frontend, InFlight},
    telemetry::{self, Entry, InPhase, Phase, Subject},
};

/// Everything that must be remembered of a request for the logs and metrics. It is written when dropped, so that every way
/// out of a request, a client's disappearance included, leaves exactly one record.
pub struct Exchange {
    shared: Arc<Shared>,
    deadlines: Option<Arc<Deadlines>>,
    began: Instant,
    client: IpAddr,
    method: Method,
    uri: Uri,
    protocol: &'static str,
    host: Option<HeaderValue>,
    referer: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    forwarded_for: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    frontend: Option<Arc<Frontend>>,
    backend: Option<Box<str>>,
    /// Where a backend's requests in flight are counted.
    in_flight: Option<InFlight>,
    /// Where those of this worker are.
    phase: InPhase,
    /// `None` while there is no response head.
    status: Option<StatusCode>,
    body_bytes: u64,
    backend_time: Duration,
    is_recorded: bool,
}

impl Exchange {
    /// For a request whose head has just arrived, with its headers as the client sent them.
    pub fn begin(
        worker: &Worker,
        deadlines: Option<Arc<Deadlines>>,
        client: IpAddr,
        request: &http::request::Parts,
    ) -> Box<Self> {
        let header = |name| request.headers.get(name).cloned();
        // HTTP/2 knows the host as a part of the target.
        let host = header(header::HOST).or_else(|| HeaderValue::from_str(request.uri.authority()?.as_str()).ok());
        Box::new(Self {
            shared: Arc::clone(&worker.shared),
            deadlines,
            began: Instant::now(),
            client,
            method: request.method.clone(),
            uri: request.uri.clone(),
            host,
            protocol: match request.version {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_2 => "HTTP/2.0",
                _ => "HTTP/1.1",
            },
            referer: header(header::REFERER),
            user_agent: header(header::USER_AGENT),
            forwarded_for: headers::forwarded_for(&request.headers),
            request_id: None,
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

    /// For a connection that arrived then and is passed through. It is recorded as a CONNECT to the server name.
    pub fn begin_passthrough(worker: &Worker, client: IpAddr, name: Option<&str>, arrived: Instant) -> Box<Self> {
        Box::new(Self {
            shared: Arc::clone(&worker.shared),
            deadlines: None,
            began: arrived,
            client,
            method: Method::CONNECT,
            uri: name.and_then(|name| name.parse().ok()).unwrap_or_default(),
            protocol: "TLS",
            host: name.and_then(|name| HeaderValue::from_str(name).ok()),
            referer: None,
            user_agent: None,
            forwarded_for: None,
            request_id: None,
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
    pub fn identify(&mut self, headers: &HeaderMap) {
        let header = self.shared.config.request_id_header.as_ref();
        self.request_id = header.and_then(|header| headers.get(header.name()).cloned());
    }

    /// The request is for this frontend.
    pub fn routed(&mut self, frontend: &Arc<Frontend>) {
        self.frontend = Some(Arc::clone(frontend));
    }

    /// An attempt begins with this backend.
    pub fn attempting(&mut self, url: &str) {
        self.backend = Some(url.into());
        self.phase.enter(Phase::Backend);
    }

    /// The attempt's backend is busy with it from here to the next attempt or the exchange's end.
    pub fn occupy(&mut self, in_flight: InFlight) {
        self.in_flight = Some(in_flight);
    }

    /// The last attempt took this long.
    pub fn attempted(&mut self, took: Duration) {
        self.backend_time = took;
    }

    /// The method that the client used.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The response has this status.
    pub fn answered(&mut self, status: StatusCode) {
        if self.status.is_none() {
            self.observe_head();
            self.phase.enter(Phase::Response);
        }
        self.status = Some(status);
    }

    /// What follows the response's head is a tunnel.
    pub fn became_tunnel(&mut self) {
        self.phase.enter(Phase::Tunnel);
    }

    fn observe_head(&self) {
        if self.is_recorded {
            self.shared.metrics.request_duration.observe(self.began.elapsed().as_secs_f64());
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

    /// The target without its query; for a CONNECT, the host.
    fn path(&self) -> &str {
        match self.uri.authority() {
            Some(authority) if self.uri.scheme().is_none() => authority.as_str(),
            _ => self.uri.path(),
        }
    }

    /// The frontend key that matched; else the host as sent.
    fn host_or_key(&self) -> &[u8] {
        match (&self.frontend, &self.host) {
            (Some(frontend), _) => frontend.key().as_bytes(),
            (None, Some(host)) => host.as_bytes(),
            (None, None) => b"",
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
        telemetry::put_escaped(&mut line, self.backend.as_deref().unwrap_or("?").as_bytes());
        line.extend_from_slice(b" - ");
        telemetry::put_escaped(&mut line, self.path().as_bytes());
        line.extend_from_slice(b" - ");
        line.extend_from_slice(self.request_id_header().as_bytes());
        line.push(b':');
        telemetry::put_escaped(&mut line, bytes_of(self.request_id.as_ref()));
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
        let total = self.began.elapsed();
        if let Some(deadlines) = &self.deadlines {
            deadlines.response_ended();
        }
        if !self.is_recorded {
            return;
        }
        let metrics = &self.shared.metrics;
        if self.status.is_none() {
            self.observe_head();
        }
        let status = self.status.unwrap_or_else(client_gone).as_u16();
        metrics.count_response(status);
        if self.phase.phase() != Phase::Tunnel {
            metrics.exchange_duration.observe(total.as_secs_f64());
        }
        metrics.backend_duration.observe(self.backend_time.as_secs_f64());
        self.shared.access_log.write(&Entry {
            client: self.client,
            method: self.method.as_str().as_bytes(),
            path: self.path().as_bytes(),
            protocol: self.protocol.as_bytes(),
            status,
            body_bytes: self.body_bytes,
            referer: bytes_of(self.referer.as_ref()),
            user_agent: bytes_of(self.user_agent.as_ref()),
            request_id_header: self.request_id_header(),
            request_id: bytes_of(self.request_id.as_ref()),
            frontend: self.frontend.as_ref().map_or("", |frontend| frontend.key()),
            forwarded_for: bytes_of(self.forwarded_for.as_ref()),
            total,
            backend: self.backend_time,
        });
    }
}

fn bytes_of(value: Option<&HeaderValue>) -> &[u8] {
    value.map_or(&[], HeaderValue::as_bytes)
}
