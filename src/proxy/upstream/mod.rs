//! Sending requests to backends, in HTTP/1.1.
//!
//! Each worker thread has its own pool, so nothing here is shared between threads. A request that fails comes with how far
//! it got; whether it may be sent once more is decided elsewhere, but for this: what a kept connection has taken no byte of goes
//! on over the next one.

mod answering;
mod connection;
mod pool;
mod receiving;
mod sending;

use std::{future::poll_fn, rc::Rc, sync::Arc, task::Poll};

use bytes::BytesMut;
use tokio::net::TcpStream;
use tracing::debug;

use super::upload::{RequestBody, UploadError};
use crate::{
    dial::{DialError, Dialer},
    message::{Framing, Known, Limits, ResponseHead, framing::content_length, headers::keeps_alive},
    routing::{Backend, Origin},
};

use answering::Reuse;
use connection::Connection;
use receiving::{BodyReading, HeadReading};
use sending::{SendError, Sending};

pub use answering::Answering;
pub use pool::{Pool, Traffic};
pub use receiving::{Broken, Informational, Piece};

/// One worker's way to the backends.
pub struct Upstream {
    dialer: Dialer,
    limits: Limits,
    pool: Rc<Pool>,
    traffic: Traffic,
}

/// A request as it is written for one backend.
pub struct Outgoing<'a> {
    /// Writes its head, to the empty line.
    pub write_head: &'a dyn Fn(&mut BytesMut),
    /// Its body. Each attempt reads it from its beginning.
    pub body: RequestBody,
    /// How the body's end is told.
    pub framing: Framing,
    /// Whether the response has no body because the request is a HEAD.
    pub is_head: bool,
    /// Who wants to know of informational responses.
    pub informational: Option<Informational>,
}

/// Why there is no head of a response.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// There is no connection to the backend.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection broke, or what came over it was not HTTP.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The request's body broke off.
    #[error(transparent)]
    Upload(#[from] UploadError),
}

/// A request that failed.
pub struct Failure {
    /// Why.
    pub error: UpstreamError,
    /// How far it got.
    pub progress: Progress,
}

/// How far a request got that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No byte of it can have reached the backend, and all of it is there to be sent once more.
    NothingSent,
    /// Bytes of it may have reached the backend, and no byte of an answer has come.
    Unanswered {
        /// Whether the connection had served others before.
        was_kept: bool,
    },
    /// More than that.
    Begun,
}

/// Whether a head says that bytes follow.
fn tells_of_body(head: &ResponseHead) -> bool {
    head.has(Known::TransferEncoding) || !matches!(content_length(head), Ok(None | Some(0)))
}

impl Upstream {
    /// With an empty pool; `limits` are those of a response's head.
    pub fn new(dialer: Dialer, limits: Limits, pool: Rc<Pool>, traffic: Traffic) -> Self {
        Self { dialer, limits, pool, traffic }
    }

    /// A connection of its own to a backend, for bytes that are not looked into.
    ///
    /// # Errors
    /// As for a request's dial.
    pub async fn reach(&self, origin: &Origin) -> Result<TcpStream, DialError> {
        self.traffic.dials.inc();
        self.dialer.reach(origin).await
    }

    /// Sends a request over a kept connection if there is one, else over a new one, and waits for the response's head.
    pub async fn send(
        &self,
        backend: &Arc<Backend>,
        request: &Outgoing<'_>,
    ) -> Result<(ResponseHead, Answering), Failure> {
        while let Some(connection) = self.pool.take(backend.origin()) {
            match self.exchange(connection, request, true).await {
                Err(Failure { error, progress: Progress::NothingSent }) => {
                    debug!(backend = backend.url(), %error, "a kept connection turned out to be closed");
                }
                outcome => return outcome,
            }
        }
        // In a box, because the future that dials is large, and every request's would otherwise be as large.
        Box::pin(self.send_afresh(backend, request)).await
    }

    /// Sends a request over a new connection.
    pub async fn send_afresh(
        &self,
        backend: &Arc<Backend>,
        request: &Outgoing<'_>,
    ) -> Result<(ResponseHead, Answering), Failure> {
        self.traffic.dials.inc();
        match self.dialer.connect(backend.origin()).await {
            Ok(transport) => {
                self.exchange(Box::new(Connection::new(transport, Arc::clone(backend))), request, false).await
            }
            Err(error) => Err(Failure { error: error.into(), progress: Progress::NothingSent }),
        }
    }

    /// Sends a request over a connection, and waits for the response's head.
    async fn exchange(
        &self,
        mut connection: Box<Connection>,
        request: &Outgoing<'_>,
        was_kept: bool,
    ) -> Result<(ResponseHead, Answering), Failure> {
        let (sent, received) = (connection.sent(), connection.received());
        (request.write_head)(connection.output().text());
        let mut sending = Some(Sending::new(request.body.share(), request.framing));
        let mut reading = HeadReading::new(self.limits, request.informational.clone());
        let mut refusal = None;
        let outcome = poll_fn(|cx| {
            if let Some(rest) = &mut sending {
                match rest.poll(&mut connection, cx) {
                    Poll::Pending => {}
                    Poll::Ready(Ok(())) => sending = None,
                    Poll::Ready(Err(SendError::Client(error))) => return Poll::Ready(Err(error.into())),
                    // The backend may have said why.
                    Poll::Ready(Err(SendError::Socket(error))) => {
                        refusal = Some(error);
                        sending = None;
                    }
                }
            }
            reading.poll(&mut connection, cx).map_err(UpstreamError::Broken)
        });
        let framed = outcome.await.and_then(|head| {
            let framing = Framing::of_response(request.is_head, &head).map_err(Broken::Framing);
            framing.map(|framing| (head, framing)).map_err(UpstreamError::Broken)
        });
        match framed {
            Ok((head, framing)) => {
                let reuse = match framing {
                    _ if refusal.is_some() || !keeps_alive(head.version(), &head) => Reuse::Never,
                    Framing::None if tells_of_body(&head) => Reuse::AfterAMoment,
                    _ => Reuse::AtOnce,
                };
                let body = BodyReading::new(framing);
                Ok((head, Answering::new(connection, body, sending, reuse, &self.pool)))
            }
            Err(error) => {
                let progress = if connection.received() != received {
                    Progress::Begun
                } else if connection.sent() == sent && request.body.rewind() {
                    Progress::NothingSent
                } else {
                    Progress::Unanswered { was_kept }
                };
                let error = match (error, refusal) {
                    (UpstreamError::Broken(_), Some(refusal)) => Broken::Io(refusal).into(),
                    (error, _) => error,
                };
                Err(Failure { error, progress })
            }
        }
    }
}
