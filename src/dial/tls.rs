//! How backends with an `https` URL are spoken to.

use std::{io, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{DialError, distrust::Distrust, p521::Secp521r1};
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
        let provider = Arc::new(provider());
        let verifier: Arc<dyn ServerCertVerifier> =
            if verify { Arc::new(Verification::by(roots::public(), &provider)?) } else { Arc::new(NoVerification) };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Shakes hands with the backend over a connection to it.
    pub(super) async fn secure(&self, origin: &Origin, stream: TcpStream) -> Result<TlsStream<TcpStream>, DialError> {
        let name = match &origin.host {
            OriginHost::Ip(address) => Ok(ServerName::IpAddress((*address).into())),
            host @ OriginHost::Name(_) => ServerName::try_from(host.name().unwrap_or_default().to_owned()),
        };
        let name = name.map_err(|error| DialError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        self.0.connect(name, stream).await.map_err(sorted)
    }
}

fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups.push(&Secp521r1);
    provider
}

/// Tells a certificate that does not convince from a handshake that failed otherwise.
fn sorted(error: io::Error) -> DialError {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(reason)) => DialError::Certificate(Distrust::from(reason)),
        _ => DialError::Tls(error),
    }
}

/// Believes what the authorities have signed. Where the library has no word for what is wrong with a certificate, its
/// error gets ours.
#[derive(Debug)]
struct Verification(Arc<WebPkiServerVerifier>);

impl Verification {
    fn by(roots: RootCertStore, provider: &Arc<CryptoProvider>) -> Result<Self, rustls::Error> {
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        builder.build().map(Self).map_err(|error| rustls::Error::General(error.to_string()))
    }
}

impl ServerCertVerifier for Verification {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.0.verify_server_cert(certificate, chain, name, ocsp, now);
        verified.map_err(|error| explained(error, certificate, Some(name)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let verified = self.0.verify_tls12_signature(message, certificate, signature);
        verified.map_err(|error| explained(error, certificate, None))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let verified = self.0.verify_tls13_signature(message, certificate, signature);
        verified.map_err(|error| explained(error, certificate, None))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn explained(error: rustls::Error, certificate: &CertificateDer<'_>, wanted: Option<&ServerName<'_>>) -> rustls::Error {
    let rustls::Error::InvalidCertificate(reason) = &error else { return error };
    match Distrust::of(certificate, reason, wanted) {
        Some(distrust) => CertificateError::Other(OtherError(Arc::new(distrust))).into(),
        None => error,
    }
}

/// Believes anybody, for backends that sign their own certificates, with whatever they made them. Nothing of a certificate
/// is looked at, the handshake's signature by its key included: whoever gets between can show a certificate and a key of
/// their own, so that to check that the two belong together would keep nobody out, and would turn away the certificates
/// that the library cannot read. What is left is a connection that nobody can read who only listens.
#[derive(Debug)]
struct NoVerification;

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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ANY_SCHEME.to_vec()
    }
}

/// Every way to sign a handshake that a backend's key may know, the usual ones first. A server that finds none of its own
/// among them gives up.
const ANY_SCHEME: &[SignatureScheme] = &[
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ED25519,
    SignatureScheme::ED448,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
    // Those of keys that are for PSS alone (RFC 8446 section 4.2.3), which the library has no names for.
    SignatureScheme::Unknown(0x0809),
    SignatureScheme::Unknown(0x080A),
    SignatureScheme::Unknown(0x080B),
    SignatureScheme::ML_DSA_44,
    SignatureScheme::ML_DSA_65,
    SignatureScheme::ML_DSA_87,
    SignatureScheme::ECDSA_SHA1_Legacy,
    SignatureScheme::RSA_PKCS1_SHA1,
];
