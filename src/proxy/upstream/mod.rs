//! Sending requests to backends.
//!
//! Each worker thread has its own pool, so nothing here is shared between threads. What may be sent twice is decided here
//! and nowhere else: a request of which no byte was written comes back to the caller for another backend, and one that a
//! kept connection lost is repeated only if that cannot do harm.

mod io;
mod pool;

use std::{
    rc::Rc,
    sync::{Arc, atomic::AtomicU64},
};

use http::{Method, Request, Response, request};
use hyper::{
    body::{Body, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tracing::debug;

use super::{body::RequestBody, error::ProxyError};
use crate::{
    dial::Dialer,
    routing::{Backend, Origin},
};

use io::UpstreamIo;
use pool::Connection;
pub use pool::{Lease, Pool, Traffic};

/// One worker's way to the backends.
pub struct Upstream {
    dialer: Dialer,
    http: http1::Builder,
    pool: Rc<Pool>,
    traffic: Traffic,
}

/// A request that failed.
pub struct Failure {
    /// Why.
    pub error: ProxyError,
    /// The request, if no byte of it can have reached a backend.
    pub unsent: Option<Request<RequestBody>>,
}

impl Upstream {
    /// With an empty pool.
    pub fn new(dialer: Dialer, http: http1::Builder, pool: Rc<Pool>, traffic: Traffic) -> Self {
        Self { dialer, http, pool, traffic }
    }

    /// A connection of its own to a backend, for bytes that are not looked into.
    ///
    /// # Errors
    /// As for a request's dial.
    pub async fn reach(&self, origin: &Origin) -> Result<TcpStream, ProxyError> {
        self.traffic.dials.inc();
        Ok(self.dialer.reach(origin).await?)
    }

    /// Sends `request` over a kept connection if there is one, else over a new one, and waits for the response's head.
    pub async fn send(
        &self,
        backend: &Arc<Backend>,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        while let Some(mut connection) = self.pool.take(backend.origin()) {
            let repeat = is_repeatable(&request).then(|| head_of(&request));
            let received = connection.received();
            let mut error = match connection.send(request).await {
                Ok(response) => return Ok((response, Lease::new(connection, &self.pool))),
                Err(error) => error,
            };
            debug!(backend = backend.url(), error = %error.error(), "a kept connection turned out to be closed");
            request = match (error.take_message(), repeat) {
                (Some(unsent), _) => unsent,
                (None, Some(head)) if connection.received() == received => {
                    self.pool.count_repeat();
                    Request::from_parts(head, RequestBody::empty())
                }
                (None, _) => {
                    return Err(Failure { error: ProxyError::from_exchange(error.into_error()), unsent: None });
                }
            };
        }
        // In a box, because the future that dials is large, and every request's would otherwise be as large.
        Box::pin(self.send_afresh(backend, request)).await
    }

    /// Sends `request` over a new connection.
    pub async fn send_afresh(
        &self,
        backend: &Arc<Backend>,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        let mut connection = match self.dial(backend).await {
            Ok(connection) => connection,
            Err(error) => {
                return Err(Failure { error, unsent: Some(request) });
            }
        };
        match connection.send(request).await {
            Ok(response) => Ok((response, Lease::new(connection, &self.pool))),
            Err(mut error) => {
                let unsent = error.take_message();
                Err(Failure { error: ProxyError::from_exchange(error.into_error()), unsent })
            }
        }
    }
}

impl Upstream {
    /// Connects to a backend and readies the connection for requests.
    async fn dial(&self, backend: &Arc<Backend>) -> Result<Connection, ProxyError> {
        self.traffic.dials.inc();
        let io = UpstreamIo::new(self.dialer.connect(backend.origin()).await?);
        let received: Arc<AtomicU64> = io.received();
        let (sender, connection) = self.http.handshake(TokioIo::new(io)).await.map_err(ProxyError::Broken)?;
        // The connection's task needs no tracking: it ends when its sender is dropped, by the pool or by the request that
        // holds it, and with the worker at the latest.
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(%error, "a connection to a backend ended with an error");
            }
        });
        Ok(Connection::new(sender, received, Arc::clone(backend)))
    }
}

/// Whether sending a request twice does no more than sending it once (RFC 9110 section 9.2.2), and can be done.
fn is_repeatable(request: &Request<RequestBody>) -> bool {
    let idempotent = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    );
    idempotent && request.body().is_end_stream()
}

fn head_of(request: &Request<RequestBody>) -> request::Parts {
    let (mut head, ()) = Request::new(()).into_parts();
    head.method = request.method().clone();
    head.uri = request.uri().clone();
    head.headers = request.headers().clone();
    head
}
