//! From a connection on the TLS address to one that HTTP can be spoken over.

use std::io;

use http::HeaderValue;
use rustls::{AlertDescription, HandshakeKind, ProtocolVersion, server::Acceptor};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{LazyConfigAcceptor, TlsStream, server};

use super::{alert, lifetime::fresh_grace};
use crate::{
    drain::Drain,
    proxy::worker::Worker,
    tls::{self, ALPN_HTTP2, Terminator},
    transport::Transport,
};

/// A client's connection after its handshake.
pub struct Secured {
    /// The connection.
    pub transport: Transport,
    /// Whether HTTP/2 was agreed on.
    pub is_http2: bool,
    /// What the client's certificate says of it, if it showed one that could be verified.
    pub certificate: Option<HeaderValue>,
}

/// How a handshake failed.
enum Failure {
    /// Nothing was said before the client closed the connection, as load balancers do to see whether we are there, or before
    /// the drain.
    Silent,
    /// What the client said is not TLS.
    NotTls,
    /// There is no certificate for the name.
    NoCertificate,
    /// The client did not get on with it.
    Timeout,
    /// Anything else.
    Broken(io::Error),
}

/// Does the handshake, within its deadline. `None` if it failed, which has then been counted and told to the client.
pub async fn secure(worker: &Worker, terminator: &Terminator, stream: TcpStream) -> Option<Secured> {
    let shared = &worker.shared;
    let handshake = timeout(shared.config.handshake_timeout, negotiate(terminator, stream, &worker.drain)).await;
    match handshake.unwrap_or(Err(Failure::Timeout)) {
        Ok(stream) => {
            let (_, session) = stream.get_ref();
            let version = version_label(session.protocol_version());
            shared.metrics.tls.count_handshake("ok", version);
            if session.handshake_kind() == Some(HandshakeKind::Resumed) {
                shared.metrics.tls.resumptions.inc();
            }
            let certificate = session.peer_certificates().and_then(|chain| tls::subject_of(chain.first()?));
            let is_http2 = session.alpn_protocol() == Some(ALPN_HTTP2);
            Some(Secured { transport: TlsStream::from(stream).into(), is_http2, certificate })
        }
        Err(failure) => {
            shared.metrics.tls.count_handshake(failure.label(), NO_VERSION);
            failure.log();
            None
        }
    }
}

async fn negotiate(
    terminator: &Terminator,
    stream: TcpStream,
    drain: &Drain,
) -> Result<server::TlsStream<TcpStream>, Failure> {
    let mut first = [0];
    let peeked = tokio::select! {
        peeked = stream.peek(&mut first) => peeked,
        () = fresh_grace(drain) => return Err(Failure::Silent),
    };
    match peeked {
        Ok(0) => return Err(Failure::Silent),
        Ok(_) if first[0] != HANDSHAKE_RECORD => {
            alert::explain(stream, first[0]).await;
            return Err(Failure::NotTls);
        }
        Ok(_) => {}
        Err(error) => return Err(Failure::Broken(error)),
    }
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(Failure::Broken)?;
    // The library's own alert for this is access_denied.
    if terminator.certificates().load().find(start.client_hello().server_name()).is_none() {
        let mut stream = start.io;
        alert::refuse(&mut stream, AlertDescription::UnrecognisedName).await;
        return Err(Failure::NoCertificate);
    }
    start.into_stream(terminator.settings()).await.map_err(Failure::Broken)
}

impl Failure {
    fn label(&self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::NotTls => "not_tls",
            Self::NoCertificate => "no_certificate",
            Self::Timeout => "timeout",
            Self::Broken(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                None => "closed",
                Some(rustls::Error::AlertReceived(_)) => "refused_by_client",
                Some(rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_)) => {
                    "client_certificate"
                }
                Some(rustls::Error::PeerIncompatible(_)) => "incompatible",
                Some(_) => "malformed",
            },
        }
    }

    fn log(&self) {
        match self {
            Self::Broken(error) => tracing::debug!(%error, "a TLS handshake failed"),
            other => tracing::debug!(reason = other.label(), "a TLS handshake failed"),
        }
    }
}

fn version_label(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_3) => "1.3",
        Some(ProtocolVersion::TLSv1_2) => "1.2",
        _ => NO_VERSION,
    }
}

/// The label of handshakes that failed before a version was agreed on, or that may have.
const NO_VERSION: &str = "none";

/// The content type of the record that a TLS connection begins with (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: u8 = 22;
