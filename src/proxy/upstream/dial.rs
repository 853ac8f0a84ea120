//! Making connections to backends.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};
use tracing::debug;

use super::{
    io::UpstreamIo,
    pool::{Connection, Traffic},
};
use crate::{
    proxy::{error::ProxyError, transport::Transport},
    roots,
    routing::{Origin, OriginHost},
};

/// Makes connections within the dial timeout. Cloning is cheap.
#[derive(Clone)]
pub struct Dialer {
    timeout: Option<Duration>,
    http: http1::Builder,
    tls: BackendTls,
    traffic: Traffic,
}

/// How backends with an `https` URL are spoken to.
#[derive(Clone)]
pub struct BackendTls(TlsConnector);

impl Dialer {
    /// `timeout` covers the look-up of the name, the connection and the TLS handshake together; `None` means no limit but
    /// the system's.
    pub fn new(timeout: Option<Duration>, http: http1::Builder, tls: BackendTls, traffic: Traffic) -> Self {
        Self { timeout, http, tls, traffic }
    }

    /// Connects to a backend and readies the connection for requests.
    pub async fn dial(&self, origin: &Arc<Origin>) -> Result<Connection, ProxyError> {
        self.traffic.dials.inc();
        let io = UpstreamIo::new(self.within(self.connect(origin)).await?);
        let received: Arc<AtomicU64> = io.received();
        let (sender, connection) = self.http.handshake(TokioIo::new(io)).await.map_err(ProxyError::Broken)?;
        // The connection's task needs no tracking: it ends when its sender is dropped, by the pool or by the request that
        // holds it, and with the worker at the latest.
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(%error, "a connection to a backend ended with an error");
            }
        });
        Ok(Connection::new(sender, received, Arc::clone(origin)))
    }

    /// Connects to a backend and leaves the bytes to the caller, whatever its URL's scheme.
    pub async fn reach(&self, origin: &Origin) -> Result<TcpStream, ProxyError> {
        self.traffic.dials.inc();
        self.within(connect_to_origin(origin)).await
    }

    async fn within<T>(&self, connecting: impl Future<Output = Result<T, ProxyError>>) -> Result<T, ProxyError> {
        match self.timeout {
            None => connecting.await,
            Some(timeout) => {
                tokio::time::timeout(timeout, connecting).await.map_err(|_| ProxyError::DialTimeout(timeout))?
            }
        }
    }

    async fn connect(&self, origin: &Origin) -> Result<Transport, ProxyError> {
        let stream = connect_to_origin(origin).await?;
        if !origin.tls {
            return Ok(stream.into());
        }
        let name = match &origin.host {
            OriginHost::Ip(address) => Ok(ServerName::IpAddress((*address).into())),
            host @ OriginHost::Name(_) => ServerName::try_from(host.name().unwrap_or_default().to_owned()),
        };
        let name = name.map_err(|error| ProxyError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let stream = self.tls.0.connect(name, stream).await.map_err(ProxyError::Tls)?;
        Ok(TlsStream::from(stream).into())
    }
}

async fn connect_to_origin(origin: &Origin) -> Result<TcpStream, ProxyError> {
    let stream = match &origin.host {
        OriginHost::Ip(address) => connect_to(SocketAddr::new(*address, origin.port)).await,
        OriginHost::Name(_) => connect_to_any(origin).await?,
    };
    stream.map_err(ProxyError::from_dial)
}

/// Looks a name up and tries all of its addresses.
async fn connect_to_any(origin: &Origin) -> Result<io::Result<TcpStream>, ProxyError> {
    let name = origin.host.name().unwrap_or_default();
    let addresses = tokio::net::lookup_host((name, origin.port)).await.map_err(ProxyError::Resolve)?;
    let mut last = None;
    for address in addresses {
        match connect_to(address).await {
            Ok(stream) => return Ok(Ok(stream)),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Ok(Err(error)),
        None => Err(ProxyError::Resolve(io::Error::new(io::ErrorKind::NotFound, "the name has no addresses"))),
    }
}

async fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    // Finds out about a backend that vanished while a request, or a tunnel, waits for it.
    SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    Ok(stream)
}

impl BackendTls {
    /// Trusts webpki's roots and the system's; or, if `verify` is false, anybody.
    ///
    /// # Errors
    /// When the cryptography library supports none of TLS 1.2 and 1.3, which a build of it always does.
    pub fn new(verify: bool) -> Result<Self, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let mut config = if verify {
            builder.with_root_certificates(roots::public()).with_no_client_auth()
        } else {
            let verifier = Arc::new(NoVerification(provider.signature_verification_algorithms));
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }
}

/// Accepts any certificate, for backends that sign their own. Signatures are still checked, so that the connection is at
/// least with whoever holds the certificate's key.
#[derive(Debug)]
struct NoVerification(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// After how long without traffic a backend is asked whether it is still there, and how often again.
const KEEPALIVE: Duration = Duration::from_secs(15);
