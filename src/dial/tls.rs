//! How backends with an `https` URL are spoken to.

use std::{io, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    roots,
    routing::{Origin, OriginHost},
};

/// What TLS connections to backends begin with. Cloning is cheap.
#[derive(Clone)]
pub struct BackendTls(TlsConnector);

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

    /// Shakes hands with the backend over a connection to it.
    pub(super) async fn secure(&self, origin: &Origin, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = match &origin.host {
            OriginHost::Ip(address) => Ok(ServerName::IpAddress((*address).into())),
            host @ OriginHost::Name(_) => ServerName::try_from(host.name().unwrap_or_default().to_owned()),
        };
        let name = name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.0.connect(name, stream).await
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
