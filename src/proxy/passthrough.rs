//! The SNI engine: TLS connections that are routed by the name in their ClientHello, and never decrypted.

use std::{net::IpAddr, rc::Rc, sync::Arc, time::Instant};

use http::StatusCode;
use rustls::AlertDescription;
use tokio::{
    io::{self, AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::timeout,
};
use tokio_util::io::InspectWriter;
use tracing::debug;

use super::{Shared, Worker, attempts::Attempts, error::ProxyError, exchange::Exchange, handshake};
use crate::{
    routing::{Frontend, Host},
    tls::{ClientHello, HelloError, HelloReader},
};

/// Serves a connection to its end. The permit is held as long.
pub async fn serve(worker: Rc<Worker>, mut stream: TcpStream, address: IpAddr, _permit: OwnedSemaphorePermit) {
    let arrived = Instant::now();
    let limit = worker.shared.config.handshake_timeout;
    let mut received = Vec::new();
    let hello = match timeout(limit, read_hello(&mut stream, &mut received)).await {
        Ok(hello) => hello,
        Err(_) => Err(ProxyError::HelloTimeout(limit)),
    };
    if received.is_empty() && matches!(hello, Err(ProxyError::ClientGone)) {
        // As load balancers do to see whether we are there.
        return;
    }
    let name = hello.as_ref().ok().and_then(|hello| hello.server_name.as_deref());
    let mut exchange = Exchange::begin_passthrough(&worker.shared, address, name, arrived);
    match connect(&worker, hello, &mut exchange).await {
        Ok(backend) => {
            exchange.answered(StatusCode::OK);
            if let Err(error) = join(stream, backend, &received, &mut exchange).await {
                debug!(client = %address, %error, "a connection that is passed through broke");
            }
        }
        Err(error) => {
            exchange.answered(error.verdict().status);
            if let Some(alert) = alert_for(&error) {
                handshake::refuse(&mut stream, alert).await;
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
    let frontend = routed.inspect_err(|error| exchange.log_error(error))?;
    exchange.routed(&frontend);
    let mut attempts = Attempts::at(worker, &frontend);
    while let Some(choice) = attempts.next(exchange) {
        let began = Instant::now();
        let reached = worker.upstream.reach(choice.backend.origin()).await;
        exchange.attempted(began.elapsed());
        match reached {
            Ok(stream) => return Ok(stream),
            Err(error) => attempts.failed(choice, error, exchange),
        }
    }
    Err(attempts.end(exchange).1)
}

/// The frontend of the name; the catch-all for a client that names nobody.
fn route(shared: &Shared, hello: &ClientHello) -> Option<Arc<Frontend>> {
    let host = Host::parse(hello.server_name.as_deref().unwrap_or_default()).ok()?;
    shared.routes.load().find(&host).cloned()
}

/// Sends the backend what the client has said so far, then joins the two until both have closed, or one breaks.
async fn join(
    downstream: TcpStream,
    mut backend: TcpStream,
    received: &[u8],
    exchange: &mut Exchange,
) -> io::Result<()> {
    backend.write_all(received).await?;
    let mut downstream = InspectWriter::new(downstream, |bytes| exchange.sent(bytes.len() as u64));
    copy_bidirectional_with_sizes(&mut downstream, &mut backend, BUFFER, BUFFER).await.map(drop)
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

/// Bytes that are read at once in each direction.
const BUFFER: usize = 16 * 1024;
