//! Sending requests to backends.
//!
//! Each worker thread has its own pool, so nothing here is shared between threads. What may be sent twice is decided here
//! and nowhere else: a request comes back to the caller for another backend if no byte of it was written, or if a kept
//! connection lost it and to repeat it once cannot do harm.

mod io;
mod pool;

use std::{rc::Rc, sync::Arc};

use http::{Method, Request, Response, request};
use hyper::{
    body::{Body, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tracing::debug;

use super::{error::ProxyError, upload::RequestBody};
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
    /// The request, if it may be sent once more: no byte of it can have reached a backend, or to repeat it can do no harm.
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

    /// Sends `request` over a kept connection if there is one, else over a new one, and waits for the response's head. One
    /// that a kept connection has lost comes back, if to repeat it can do no harm, and is then sent over new ones alone.
    pub async fn send(
        &self,
        backend: &Arc<Backend>,
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        while !is_repeat(&request)
            && let Some(mut connection) = self.pool.take(backend.origin())
        {
            let is_repeatable = is_repeatable(&request);
            let received = connection.meter().received();
            let (error, unsent) = match exchange(&mut connection, request).await {
                Ok(response) => return Ok((response, Lease::new(connection, &self.pool))),
                Err(failed) => failed,
            };
            debug!(backend = backend.url(), %error, "a kept connection turned out to be closed");
            request = match unsent {
                Unsent::Whole(unsent) => unsent,
                Unsent::Head(head) => {
                    let may_repeat = is_repeatable && connection.meter().received() == received;
                    let unsent = may_repeat.then(|| repeat(head));
                    return Err(Failure { error: ProxyError::from_exchange(error), unsent });
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
        match exchange(&mut connection, request).await {
            Ok(response) => Ok((response, Lease::new(connection, &self.pool))),
            Err((error, unsent)) => {
                let unsent = match unsent {
                    Unsent::Whole(unsent) => Some(unsent),
                    Unsent::Head(_) => None,
                };
                Err(Failure { error: ProxyError::from_exchange(error), unsent })
            }
        }
    }

    /// Connects to a backend and readies the connection for requests.
    async fn dial(&self, backend: &Arc<Backend>) -> Result<Connection, ProxyError> {
        self.traffic.dials.inc();
        let io = UpstreamIo::new(self.dialer.connect(backend.origin()).await?);
        let meter = io.meter();
        let (sender, connection) = self.http.handshake(TokioIo::new(io)).await.map_err(ProxyError::Broken)?;
        // The connection's task needs no tracking: it ends when its sender is dropped, by the pool or by the request that
        // holds it, and with the worker at the latest.
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(%error, "a connection to a backend ended with an error");
            }
        });
        Ok(Connection::new(sender, meter, Arc::clone(backend)))
    }
}

/// The same request for another backend, if nobody is harmed when that does again what one has done and answered: it is safe
/// (RFC 9110 section 9.2.1), and has no body.
pub fn copy_safe(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let can_repeat = request.method().is_safe() && request.body().is_end_stream();
    can_repeat.then(|| {
        let mut head = head_of(request);
        head.extensions = request.extensions().clone();
        Request::from_parts(head, RequestBody::default())
    })
}

/// What is left of a request that failed.
enum Unsent {
    /// All of it, since no byte of it can have reached the backend.
    Whole(Request<RequestBody>),
    /// Its head alone.
    Head(request::Parts),
}

/// Sends a request over a connection, and waits for the response's head.
async fn exchange(
    connection: &mut Connection,
    request: Request<RequestBody>,
) -> Result<Response<Incoming>, (hyper::Error, Unsent)> {
    let (head, body) = (head_of(&request), request.body().share());
    let sent = connection.meter().sent();
    let mut error = match connection.send(request).await {
        Ok(response) => return Ok(response),
        Err(error) => error,
    };
    let unsent = match error.take_message() {
        Some(unsent) => Unsent::Whole(unsent),
        // The library had begun with it, but the socket took nothing.
        None if connection.meter().sent() == sent && body.rewind() => Unsent::Whole(Request::from_parts(head, body)),
        None => Unsent::Head(head),
    };
    Err((error.into_error(), unsent))
}

/// Whether sending a request twice does no more than sending it once (RFC 9110 section 9.2.2), and can be done.
fn is_repeatable(request: &Request<RequestBody>) -> bool {
    let idempotent = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    );
    idempotent && request.body().is_end_stream()
}

/// Marks a request that has been sent before.
#[derive(Clone)]
struct Repeat;

/// A repeatable request once more.
fn repeat(mut head: request::Parts) -> Request<RequestBody> {
    head.extensions.insert(Repeat);
    Request::from_parts(head, RequestBody::default())
}

fn is_repeat(request: &Request<RequestBody>) -> bool {
    request.extensions().get::<Repeat>().is_some()
}

fn head_of(request: &Request<RequestBody>) -> request::Parts {
    let (mut head, ()) = Request::new(()).into_parts();
    head.method = request.method().clone();
    head.uri = request.uri().clone();
    head.headers = request.headers().clone();
    head
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending, net::Shutdown, pin::pin, time::Duration};

    use http_body_util::BodyExt;
    use hyper::{server, service::service_fn};
    use socket2::SockRef;
    use tokio::{
        io::{AsyncWriteExt, DuplexStream, Interest, duplex},
        net::TcpListener,
        sync::mpsc,
        task::{LocalSet, spawn_local},
    };

    use super::*;

    /// A request as it comes from a client; only a server of the library's makes one. The client is still there.
    async fn request(bytes: &str) -> (Request<RequestBody>, DuplexStream) {
        let (mut client, server) = duplex(1024);
        let (requests, mut received) = mpsc::channel(1);
        spawn_local(async move {
            let handler = service_fn(|request: Request<Incoming>| {
                requests.try_send(request).unwrap();
                pending::<Result<Response<String>, Infallible>>()
            });
            let _ = server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), handler).await;
        });
        client.write_all(bytes.as_bytes()).await.unwrap();
        let request: Request<Incoming> = received.recv().await.unwrap();
        (request.map(|body| RequestBody::new(body, None)), client)
    }

    /// A connection whose socket takes no byte, because the backend has reset it, or for another reason that shows only when
    /// it is written to.
    async fn lost_connection(by_reset: bool) -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        if by_reset {
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            stream.ready(Interest::READABLE).await.unwrap();
        } else {
            SockRef::from(&stream).shutdown(Shutdown::Write).unwrap();
        }
        let io = UpstreamIo::new(stream.into());
        let meter = io.meter();
        let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(io)).await.unwrap();
        spawn_local(connection);
        (Connection::new(sender, meter, Arc::new(Backend::parse("http://a").unwrap())), peer)
    }

    #[test]
    fn a_request_of_which_no_byte_was_sent_comes_back_whole() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let requests = [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", ""),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\na body", "a body"),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\na \r\n4\r\nbody\r\n0\r\n\r\n",
                "a body",
            ),
        ];
        for by_reset in [true, false] {
            for (bytes, body) in requests {
                LocalSet::new().block_on(&runtime, async {
                    let (mut connection, _peer) = lost_connection(by_reset).await;
                    let (request, _client) = request(bytes).await;
                    let method = request.method().clone();
                    let Err((error, Unsent::Whole(unsent))) = exchange(&mut connection, request).await else {
                        panic!("{bytes:?} is taken for sent");
                    };
                    assert!(unsent.method() == method && unsent.headers()["host"] == "a", "{error}");
                    let collected = pin!(unsent.into_body()).collect().await.unwrap();
                    assert_eq!(collected.to_bytes(), body, "{error}");
                });
            }
        }
    }

    #[test]
    fn a_request_of_which_a_byte_was_sent_does_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (peer, _) = listener.accept().await.unwrap();
            let io = UpstreamIo::new(stream.into());
            let meter = io.meter();
            let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(io)).await.unwrap();
            spawn_local(connection);
            let mut connection = Connection::new(sender, meter, Arc::new(Backend::parse("http://a").unwrap()));
            let (request, _client) = request("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            spawn_local(async move {
                peer.readable().await.unwrap();
                drop(peer);
            });
            assert!(matches!(exchange(&mut connection, request).await, Err((_, Unsent::Head(_)))));
        });
    }

    #[test]
    fn a_body_can_begin_again_while_little_of_it_is_gone() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunks = |size: usize, count| format!("{size:x}\r\n{}\r\n", "x".repeat(size)).repeat(count);
        for (chunks, can) in [(chunks(1, 64), true), (chunks(1, 65), false), (chunks(8_000, 9), false)] {
            LocalSet::new().block_on(&runtime, async {
                let (request, mut client) = request(head).await;
                spawn_local(async move { client.write_all(format!("{chunks}0\r\n\r\n").as_bytes()).await });
                let mut body = pin!(request.into_body());
                let lost = body.share();
                let first = pin!(lost).collect().await.unwrap().to_bytes();
                assert_eq!(body.rewind(), can, "{} bytes", first.len());
                if can {
                    assert_eq!(body.as_mut().collect().await.unwrap().to_bytes(), first);
                }
            });
        }
    }
}
