//! The operators' listener: `/metrics`.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::JoinSet};
use tracing::{debug, warn};

use super::{Metrics, StoreHealth};
use crate::clock::Clock;

/// Serves metrics to Prometheus.
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    page: Arc<Page>,
}

struct Page {
    metrics: Arc<Metrics>,
    health: Arc<StoreHealth>,
    clock: Clock,
}

impl Admin {
    /// Takes the address.
    ///
    /// # Errors
    /// When the address is in use, or is not this machine's.
    pub async fn bind(
        address: SocketAddr,
        metrics: Arc<Metrics>,
        health: Arc<StoreHealth>,
        clock: Clock,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { address: listener.local_addr()?, listener, page: Arc::new(Page { metrics, health, clock }) })
    }

    /// The address, with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers for ever.
    pub async fn run(self) {
        let mut connections = JoinSet::new();
        let mut is_failing = false;
        loop {
            while connections.len() >= MOST_CONNECTIONS {
                connections.join_next().await;
            }
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        is_failing = false;
                        stream
                    }
                    Err(error) => {
                        if !is_failing {
                            warn!(%error, "no connection can be accepted on the metrics address");
                        }
                        is_failing = true;
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                },
                Some(_) = connections.join_next() => continue,
            };
            let page = Arc::clone(&self.page);
            connections.spawn(async move {
                let handler = service_fn(|request: Request<Incoming>| {
                    let response = page.answer(&request);
                    async { Ok::<_, Infallible>(response) }
                });
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(IDLE_LIMIT);
                if let Err(error) = builder.serve_connection(TokioIo::new(stream), handler).await {
                    debug!(%error, "a connection to the metrics address ended with an error");
                }
            });
        }
    }
}

impl Page {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let (status, text) = match (is_read, request.uri().path()) {
            (true, "/metrics") => {
                self.metrics.snapshot_age.set(self.health.age(self.clock.now()).as_secs_f64());
                match self.metrics.encode() {
                    Ok(text) => (StatusCode::OK, Bytes::from(text)),
                    Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string().into()),
                }
            }
            (false, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, Bytes::new()),
            _ => (StatusCode::NOT_FOUND, Bytes::from_static(b"try /metrics\n")),
        };
        let mut response = Response::new(Full::new(text));
        *response.status_mut() = status;
        let form = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, form);
        response
    }
}

/// Connections served at the same time.
const MOST_CONNECTIONS: usize = 64;

/// How long a client may take over a request, or stay without one.
const IDLE_LIMIT: Duration = Duration::from_mins(2);

/// After a failure to accept.
const PAUSE: Duration = Duration::from_millis(100);
