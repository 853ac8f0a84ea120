//! Sending requests to backends.
//!
//! Each worker thread has its own pool, so nothing here is shared between threads. What may be sent twice is decided here
//! and nowhere else: a request of which no byte was written comes back to the caller for another backend, and one that a
//! kept connection lost is repeated only if that cannot do harm.

mod dial;
mod io;
mod pool;

use std::rc::Rc;

use http::{Method, Request, Response, request};
use hyper::body::{Body, Incoming};
use tokio::net::TcpStream;
use tracing::debug;

use super::{body::RequestBody, error::ProxyError};
use crate::routing::Origin;

pub use dial::{BackendTls, Dialer};
pub use pool::{Lease, Pool, Traffic};

/// One worker's way to the backends.
pub struct Upstream {
    dialer: Dialer,
    pool: Rc<Pool>,
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
    pub fn new(dialer: Dialer, pool: Rc<Pool>) -> Self {
        Self { dialer, pool }
    }

    /// A connection of its own to a backend, for bytes that are not looked into.
    ///
    /// # Errors
    /// As for a request's dial.
    pub async fn reach(&self, origin: &Origin) -> Result<TcpStream, ProxyError> {
        self.dialer.reach(origin).await
    }

    /// Sends `request` over a kept connection if there is one, else over a new one, and waits for the response's head.
    pub async fn send(
        &self,
        origin: &std::sync::Arc<Origin>,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        while let Some(mut connection) = self.pool.take(origin) {
            let repeat = is_repeatable(&request).then(|| head_of(&request));
            let received = connection.received();
            let mut error = match connection.send(request).await {
                Ok(response) => return Ok((response, Lease::new(connection, &self.pool))),
                Err(error) => error,
            };
            debug!(%origin, error = %error.error(), "a kept connection turned out to be closed");
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
        Box::pin(self.send_afresh(origin, request)).await
    }

    /// Sends `request` over a new connection.
    pub async fn send_afresh(
        &self,
        origin: &std::sync::Arc<Origin>,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        let mut connection = match self.dialer.dial(origin).await {
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
