//! The SNI engine: TLS connections that are routed by the name in their ClientHello, and never decrypted.

use std::{
    net::{IpAddr, Shutdown},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use rustls::AlertDescription;
use socket2::SockRef;
use tokio::{
    io::{self, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::timeout,
};
use tokio_util::io::InspectWriter;
use tracing::debug;

use super::{alert, lifetime};
use crate::{
    proxy::{
        error::ProxyError,
        exchange::Exchange,
        retry::{Attempts, Next},
        tunnel::{self, End, Side},
        worker::{Shared, Worker},
    },
    routing::{Frontend, Host},
    tls::{ClientHello, HelloError, HelloReader},
};

/// Serves a connection to its end. The permit is held as long.
pub async fn serve(worker: Rc<Worker>, mut stream: TcpStream, address: IpAddr, _permit: OwnedSemaphorePermit) {
    let metrics = &worker.shared.metrics;
    let arrived = Instant::now();
    let limit = worker.shared.config.handshake_timeout;
    let mut received = Vec::new();
    let hello = tokio::select! {
        hello = timeout(limit, read_hello(&mut stream, &mut received)) => {
            hello.unwrap_or(Err(ProxyError::HelloTimeout(limit)))
        }
        () = lifetime::fresh_grace(&worker.drain) => Err(ProxyError::ClientGone),
    };
    if received.is_empty() && matches!(hello, Err(ProxyError::ClientGone)) {
        // As load balancers do to see whether we are there.
        return;
    }
    match &hello {
        Err(ProxyError::HelloTimeout(_)) => metrics.clients.timeouts.inc(),
        Err(ProxyError::Hello(_)) => metrics.malformed_requests.inc(),
        _ => {}
    }
    let name = hello.as_ref().ok().and_then(|hello| hello.server_name.as_deref());
    let mut exchange = Exchange::begin_passthrough(&worker, address, name, arrived);
    match connect(&worker, hello, &mut exchange).await {
        Ok(backend) => {
            exchange.answered(200);
            exchange.became_tunnel();
            let end = join(stream, backend, received, &mut exchange).await;
            if let Some(error) = &end.error {
                debug!(client = %address, by = ?end.by, %error, "a connection that is passed through broke");
            }
            if exchange.is_unanswered() {
                let error = match end.by {
                    Side::Upstream => ProxyError::NoAnswer,
                    Side::Downstream => ProxyError::ClientGone,
                };
                exchange.answered(error.verdict().status);
                exchange.log_error(error.subject(), &error);
            }
        }
        Err(error) => {
            exchange.answered(error.verdict().status);
            drop(exchange);
            if let Some(alert) = alert_for(&error) {
                alert::refuse(&mut stream, alert).await;
            }
        }
    }
}

/// Reads to the end of the ClientHello; `received` has all bytes that came, which may be more.
async fn read_hello(stream: &mut TcpStream, received: &mut Vec<u8>) -> Result<ClientHello, ProxyError> {
    let mut reader = HelloReader::default();
    loop {
        let before = received.len();
        let read = stream.read_buf(received).await;
        if !matches!(read, Ok(1..)) {
            return Err(ProxyError::ClientGone);
        }
        if let Some(hello) = reader.read(&received[before..]).map_err(ProxyError::Hello)? {
            return Ok(hello);
        }
    }
}

/// Finds a backend that can be reached.
async fn connect(
    worker: &Worker,
    hello: Result<ClientHello, ProxyError>,
    exchange: &mut Exchange,
) -> Result<TcpStream, ProxyError> {
    let routed = hello.and_then(|hello| route(&worker.shared, &hello).ok_or(ProxyError::NoRoute));
    let frontend = routed.inspect_err(|error| exchange.log_error(error.subject(), error))?;
    exchange.routed(&frontend);
    let mut attempts = Attempts::at(worker, &frontend);
    while let Some(choice) = attempts.next(exchange) {
        let began = Instant::now();
        let reached = worker.upstream.reach(choice.backend.origin()).await;
        exchange.attempted(began);
        match reached {
            Ok(stream) => return Ok(stream),
            Err(error) => attempts.failed(choice, error.into(), Next::Another, exchange),
        }
    }
    Err(attempts.end(exchange).1)
}

/// The frontend of the name; the catch-all for a client that names nobody.
fn route(shared: &Shared, hello: &ClientHello) -> Option<Arc<Frontend>> {
    let host = Host::parse(hello.server_name.as_deref().unwrap_or_default()).ok()?;
    shared.routes.load().find(&host)
}

/// Sends the backend what the client has said so far, then joins the two until both have closed, or one breaks.
async fn join(downstream: TcpStream, mut upstream: TcpStream, received: Vec<u8>, exchange: &mut Exchange) -> End {
    if let Err(error) = upstream.write_all(&received).await {
        return End { by: Side::Upstream, error: Some(error) };
    }
    drop(received);
    let (client, backend) = (Watched(&downstream), Watched(&upstream));
    // Reading tells of a reset only while there is something to read into, which is not so for one side while the other
    // does not take what it has.
    let reset = async {
        tokio::select! {
            _ = downstream.ready(Interest::ERROR) => Side::Downstream,
            _ = upstream.ready(Interest::ERROR) => Side::Upstream,
        }
    };
    let to_client = InspectWriter::new(client, |bytes| exchange.sent(bytes.len() as u64));
    tunnel::join((client, to_client), (backend, backend), reset).await
}

/// What tells a TLS client why it is turned away; nothing for one that does not speak TLS, or no more.
fn alert_for(error: &ProxyError) -> Option<AlertDescription> {
    match error {
        ProxyError::NoRoute => Some(AlertDescription::UnrecognisedName),
        ProxyError::Hello(error) if *error != HelloError::NotTls => Some(AlertDescription::DecodeError),
        ProxyError::Hello(_) | ProxyError::HelloTimeout(_) | ProxyError::ClientGone => None,
        _ => Some(AlertDescription::InternalError),
    }
}

/// A socket that is read, written and watched at the same time.
#[derive(Clone, Copy)]
struct Watched<'a>(&'a TcpStream);

impl AsyncRead for Watched<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buf.initialize_unfilled()) {
                Ok(read) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Watched<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(self.0).shutdown(Shutdown::Write))
    }
}
