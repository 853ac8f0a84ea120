//! Every metric, by name. No label takes a value that a client can choose.

use std::sync::OnceLock;

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
    core::Collector,
};

/// The process's metrics. Handles are looked up once, here, so that a request only touches atomics.
pub struct Metrics {
    registry: Registry,
    /// `planb_reverseproxy_connections_current_open`
    pub connections_open: IntGauge,
    /// `planb_reverseproxy_tunnels_current_open`
    pub tunnels_open: IntGauge,
    /// `planb_memory_limit_bytes`
    pub memory_limit: IntGauge,
    /// `planb_reverseproxy_http_request_duration_seconds`
    pub request_duration: Histogram,
    /// `planb_reverseproxy_http_exchange_duration_seconds`
    pub exchange_duration: Histogram,
    /// `planb_reverseproxy_backend_request_duration_seconds`
    pub backend_duration: Histogram,
    responses: IntCounterVec,
    responses_by_status: Box<[OnceLock<IntCounter>]>,
    /// `planb_reverseproxy_retries_total`
    pub retries: IntCounter,
    /// `planb_reverseproxy_retries_refused_total`
    pub retries_refused: IntCounter,
    /// `planb_reverseproxy_malformed_requests_total`
    pub malformed_requests: IntCounter,
    /// What becomes of client connections that are no use to anybody.
    pub clients: ClientMetrics,
    /// `planb_reverseproxy_pool_*`
    pub pool: PoolMetrics,
    /// `planb_dns_*`
    pub dns: DnsMetrics,
    /// `planb_tls_*`
    pub tls: TlsMetrics,
    /// `planb_health_*`
    pub health: HealthMetrics,
    /// `planb_router_backend_markdead_total`
    pub marked_dead: IntCounter,
    /// `planb_router_dead_marks_pending`
    pub marks_pending: IntGauge,
    /// `planb_router_dead_marks_dropped_total`
    pub marks_dropped: IntCounter,
    /// `planb_router_frontends`
    pub frontends: IntGauge,
    /// `planb_sync_snapshot_age_seconds`
    pub snapshot_age: Gauge,
    /// `planb_sync_connected`
    pub connected: IntGauge,
    /// `planb_sync_load_progress`
    pub load_progress: Gauge,
    /// `planb_sync_polling`
    pub polling: IntGauge,
    /// `planb_sync_held`
    pub held: IntGauge,
    /// `planb_sync_events_total`
    pub events: IntCounter,
    /// `planb_sync_resyncs_total`
    pub resyncs: IntCounter,
    /// `planb_sync_drift_total`
    pub drift: IntCounter,
    /// `planb_sync_malformed_total`
    pub malformed_records: IntCounter,
    /// `planb_sync_publish_duration_seconds`
    pub publish_duration: Histogram,
    /// Of the access log.
    pub access_lines: LogMetrics,
    /// Of standard error.
    pub error_lines: LogMetrics,
    /// Of what is written to standard output when an operator asks for it.
    pub dump_lines: LogMetrics,
    /// `planb_log_error_lines_suppressed_total`
    pub error_lines_suppressed: IntCounter,
}

impl Metrics {
    /// Registers everything, the standard `process_*` metrics included.
    ///
    /// # Errors
    /// When two metrics share a name, which the tests rule out.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let new = Register(&registry);
        let responses = new.add(IntCounterVec::new(
            Opts::new("planb_reverseproxy_backends_responses_total", "Responses by status code, PlanB's own included."),
            &["status_code"],
        )?)?;
        let [access_lines, error_lines, dump_lines] = LogMetrics::of_each(&new)?;
        Ok(Self {
            connections_open: new
                .gauge("planb_reverseproxy_connections_current_open", "Client connections open, tunnels excluded.")?,
            tunnels_open: new.gauge("planb_reverseproxy_tunnels_current_open", "WebSocket tunnels open.")?,
            memory_limit: new
                .gauge("planb_memory_limit_bytes", "Memory of the process beyond which client connections are closed.")?,
            request_duration: new.histogram(
                "planb_reverseproxy_http_request_duration_seconds",
                "From a request's head to the end of its response's head.",
                REQUEST_BUCKETS,
            )?,
            exchange_duration: new.histogram(
                "planb_reverseproxy_http_exchange_duration_seconds",
                "From a request's head to its response's last byte. What becomes a tunnel is left out.",
                REQUEST_BUCKETS,
            )?,
            backend_duration: new.histogram(
                "planb_reverseproxy_backend_request_duration_seconds",
                "From choosing a backend to its response head.",
                REQUEST_BUCKETS,
            )?,
            responses,
            responses_by_status: (0..1000).map(|_| OnceLock::new()).collect(),
            retries: new.counter(
                "planb_reverseproxy_retries_total",
                "Attempts after the first that a request needed to find a working backend.",
            )?,
            retries_refused: new.counter(
                "planb_reverseproxy_retries_refused_total",
                "Attempts that were not made because too many of the frontend's requests were retries already.",
            )?,
            malformed_requests: new
                .counter("planb_reverseproxy_malformed_requests_total", "Requests refused as malformed.")?,
            clients: ClientMetrics::new(&new)?,
            pool: PoolMetrics::new(&new)?,
            dns: DnsMetrics::new(&new)?,
            tls: TlsMetrics::new(&new)?,
            health: HealthMetrics::new(&new)?,
            marked_dead: new
                .counter("planb_router_backend_markdead_total", "Backends that this instance marked dead.")?,
            marks_pending: new
                .gauge("planb_router_dead_marks_pending", "Dead marks not yet recorded on the write Redis.")?,
            marks_dropped: new.counter(
                "planb_router_dead_marks_dropped_total",
                "Dead marks that were never recorded on the write Redis, because too many waited.",
            )?,
            frontends: new.gauge("planb_router_frontends", "Frontends in the routing table.")?,
            snapshot_age: new.add(Gauge::new(
                "planb_sync_snapshot_age_seconds",
                "Seconds since the routing table was last known to agree with the read Redis.",
            )?)?,
            connected: new
                .gauge("planb_sync_connected", "1 while the routing table follows the read Redis, else 0.")?,
            load_progress: new.add(Gauge::new(
                "planb_sync_load_progress",
                "How much of the routing table a load has read, from 0 to 1; 1 while there is no load.",
            )?)?,
            polling: new.gauge(
                "planb_sync_polling",
                "1 while the table is re-read every second because keyspace notifications are off, unproven or have failed, else 0.",
            )?,
            held: new.gauge(
                "planb_sync_held",
                "Frontends and certificates that are kept although a Redis that has lost its data does not mention them.",
            )?,
            events: new.counter("planb_sync_events_total", "Events and messages received from the read Redis.")?,
            resyncs: new.counter("planb_sync_resyncs_total", "Times the whole table was loaded after the first.")?,
            drift: new.counter(
                "planb_sync_drift_total",
                "Differences between table and Redis that no event had announced; must stay 0.",
            )?,
            malformed_records: new
                .counter("planb_sync_malformed_total", "Values in Redis that had to be skipped as malformed.")?,
            publish_duration: new.histogram(
                "planb_sync_publish_duration_seconds",
                "From receiving an event to the snapshot with its change being in force.",
                PUBLISH_BUCKETS,
            )?,
            access_lines,
            error_lines,
            dump_lines,
            error_lines_suppressed: new.counter(
                "planb_log_error_lines_suppressed_total",
                "Lines left out of standard error because too many of their kind came within a second.",
            )?,
            registry,
        })
    }

    /// Counts responses by their status, which is at most 999.
    pub fn count_responses(&self, status: u16, count: u64) {
        let counter = self
            .responses_by_status
            .get(usize::from(status))
            .map(|cached| cached.get_or_init(|| self.responses.with_label_values(&[status.to_string()])));
        if let Some(counter) = counter {
            counter.inc_by(count);
        }
    }

    /// The text exposition format.
    ///
    /// # Errors
    /// When a metric cannot be encoded, which the tests rule out.
    pub fn encode(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// What concerns the lines of one log.
#[derive(Clone)]
pub struct LogMetrics {
    /// `access`, `error` or `dump`.
    pub name: &'static str,
    /// `planb_log_..._lines_dropped_total`: all that were lost.
    pub dropped: IntCounter,
    lost: IntCounterVec,
}

impl LogMetrics {
    fn of_each(new: &Register<'_>) -> prometheus::Result<[Self; 3]> {
        let lost = new.add(IntCounterVec::new(
            Opts::new("planb_log_lines_lost_total", "Log lines that were not written, by log and reason."),
            &["log", "reason"],
        )?)?;
        let access =
            new.counter("planb_log_access_lines_dropped_total", "Access log lines not written, for any reason.")?;
        let error =
            new.counter("planb_log_error_lines_dropped_total", "Lines not written to standard error, for any reason.")?;
        let dump = new.counter("planb_log_dump_lines_dropped_total", "Lines of dumps not written, for any reason.")?;
        let log = |name, dropped| Self { name, dropped, lost: lost.clone() };
        Ok([log("access", access), log("error", error), log("dump", dump)])
    }

    /// The counter of the lines that were lost for a reason, which is of our own wording.
    pub fn lost(&self, reason: &'static str) -> IntCounter {
        self.lost.with_label_values(&[self.name, reason])
    }
}

/// What concerns client connections that are no use to anybody.
pub struct ClientMetrics {
    /// `planb_reverseproxy_http2_floods_total`
    pub http2_floods: IntCounter,
    /// `planb_reverseproxy_clients_dismissed_total`
    pub dismissed: IntCounter,
    /// `planb_reverseproxy_clients_shed_total`
    pub shed: IntCounter,
    /// `planb_reverseproxy_client_timeouts_total`
    pub timeouts: IntCounter,
    /// `planb_reverseproxy_accept_errors_total`
    pub accept_errors: IntCounter,
}

impl ClientMetrics {
    fn new(new: &Register<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            http2_floods: new.counter(
                "planb_reverseproxy_http2_floods_total",
                "HTTP/2 connections closed as floods of empty frames, or of requests given up.",
            )?,
            dismissed: new.counter(
                "planb_reverseproxy_clients_dismissed_total",
                "Client connections closed while they waited for a request, for others that there was no room for.",
            )?,
            shed: new.counter(
                "planb_reverseproxy_clients_shed_total",
                "Client connections closed because memory was short.",
            )?,
            timeouts: new.counter(
                "planb_reverseproxy_client_timeouts_total",
                "Client connections closed by one of the client timeouts.",
            )?,
            accept_errors: new
                .counter("planb_reverseproxy_accept_errors_total", "Failures to accept a client connection.")?,
        })
    }
}

/// What concerns connections to backends.
pub struct PoolMetrics {
    /// `planb_reverseproxy_pool_idle_connections`
    pub idle: IntGauge,
    /// `planb_reverseproxy_pool_dials_total`
    pub dials: IntCounter,
    /// `planb_reverseproxy_pool_reuses_total`
    pub reuses: IntCounter,
    dial_failures: IntCounterVec,
}

impl PoolMetrics {
    fn new(new: &Register<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            idle: new
                .gauge("planb_reverseproxy_pool_idle_connections", "Idle connections to backends, kept for reuse.")?,
            dials: new.counter("planb_reverseproxy_pool_dials_total", "Connections made to backends.")?,
            reuses: new
                .counter("planb_reverseproxy_pool_reuses_total", "Requests sent on a kept connection to a backend.")?,
            dial_failures: new.add(IntCounterVec::new(
                Opts::new(
                    "planb_reverseproxy_dial_failures_total",
                    "Backends that a request got no connection to, by why.",
                ),
                &["reason"],
            )?)?,
        })
    }

    /// Counts a failure to connect to a backend. The label is of our own wording.
    pub fn count_dial_failure(&self, reason: &'static str) {
        self.dial_failures.with_label_values(&[reason]).inc();
    }
}

/// What concerns TLS with clients.
pub struct TlsMetrics {
    handshakes: IntCounterVec,
    /// `planb_tls_resumptions_total`
    pub resumptions: IntCounter,
    /// `planb_tls_certificates`
    pub certificates: IntGauge,
    /// `planb_tls_certificates_loaded_total`
    pub certificates_loaded: IntCounter,
    /// `planb_tls_certificates_refused_total`
    pub certificates_refused: IntCounter,
    /// `planb_tls_soonest_expiry_seconds`
    pub soonest_expiry: Gauge,
    /// `planb_tls_ticket_keys_shared`
    pub ticket_keys_shared: IntGauge,
}

impl TlsMetrics {
    fn new(new: &Register<'_>) -> prometheus::Result<Self> {
        let soonest_expiry = new.add(Gauge::new(
            "planb_tls_soonest_expiry_seconds",
            "Seconds until the first of the certificates in service expires; negative once one has.",
        )?)?;
        soonest_expiry.set(f64::INFINITY);
        Ok(Self {
            handshakes: new.add(IntCounterVec::new(
                Opts::new("planb_tls_handshakes_total", "TLS handshakes with clients, by result and protocol version."),
                &["result", "version"],
            )?)?,
            resumptions: new.counter("planb_tls_resumptions_total", "Handshakes that resumed an earlier session.")?,
            certificates: new.gauge("planb_tls_certificates", "Certificates in service.")?,
            certificates_loaded: new
                .counter("planb_tls_certificates_loaded_total", "Certificates put into service, renewals included.")?,
            certificates_refused: new.counter(
                "planb_tls_certificates_refused_total",
                "Certificates that could not be served, which left the previous ones in service.",
            )?,
            soonest_expiry,
            ticket_keys_shared: new.gauge(
                "planb_tls_ticket_keys_shared",
                "1 while session tickets are made with a key that all instances share, else 0.",
            )?,
        })
    }

    /// Counts a TLS handshake. Both labels are of our own wording.
    pub fn count_handshake(&self, result: &'static str, version: &'static str) {
        self.handshakes.with_label_values(&[result, version]).inc();
    }
}

/// What concerns the active health check.
pub struct HealthMetrics {
    checks: IntCounterVec,
    /// `planb_health_watched`
    pub watched: IntGauge,
    /// `planb_health_leases_held`
    pub leases_held: IntGauge,
    /// `planb_health_watches_dropped_total`
    pub dropped: IntCounter,
}

impl HealthMetrics {
    fn new(new: &Register<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            checks: new.add(IntCounterVec::new(
                Opts::new("planb_health_checks_total", "Checks of dead backends, by what they found."),
                &["result"],
            )?)?,
            watched: new.gauge(
                "planb_health_watched",
                "Dead backends that the active health check knows of, whichever instance checks them.",
            )?,
            leases_held: new.gauge("planb_health_leases_held", "Dead backends that this instance checks.")?,
            dropped: new.counter(
                "planb_health_watches_dropped_total",
                "Dead backends that are not checked because too many are already.",
            )?,
        })
    }

    /// Counts a check. The label is of our own wording.
    pub fn count_check(&self, result: &'static str) {
        self.checks.with_label_values(&[result]).inc();
    }
}

/// What concerns the names of backends.
pub struct DnsMetrics {
    found: IntCounter,
    none: IntCounter,
    failed: IntCounter,
    /// `planb_dns_names`
    pub names: IntGauge,
}

impl DnsMetrics {
    fn new(new: &Register<'_>) -> prometheus::Result<Self> {
        let lookups = new.add(IntCounterVec::new(
            Opts::new(
                "planb_dns_lookups_total",
                "Look-ups of backends' names: ok, none (the name has no addresses), failed (no answer).",
            ),
            &["result"],
        )?)?;
        Ok(Self {
            found: lookups.with_label_values(&["ok"]),
            none: lookups.with_label_values(&["none"]),
            failed: lookups.with_label_values(&["failed"]),
            names: new.gauge("planb_dns_names", "Names of backends whose addresses are remembered.")?,
        })
    }

    /// Counts a look-up, by whether addresses were found; `None` means that there was no answer.
    pub fn count_lookup(&self, found: Option<bool>) {
        match found {
            Some(true) => self.found.inc(),
            Some(false) => self.none.inc(),
            None => self.failed.inc(),
        }
    }
}

struct Register<'a>(&'a Registry);

impl Register<'_> {
    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> prometheus::Result<C> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.add(IntCounter::new(name, help)?)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.add(IntGauge::new(name, help)?)
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?)
    }
}

/// The original's buckets, and two finer ones below them.
const REQUEST_BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

const PUBLISH_BUCKETS: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_registered_and_encoded() {
        let metrics = Metrics::new().unwrap();
        metrics.count_responses(200, 2);
        let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
        assert!(text.contains("planb_reverseproxy_backends_responses_total{status_code=\"200\"} 2"), "{text}");
        for name in ["planb_sync_drift_total", "planb_router_backend_markdead_total", "process_open_fds"] {
            assert!(text.contains(name), "{name} is missing");
        }
    }
}
