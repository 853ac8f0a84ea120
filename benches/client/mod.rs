//! The TLS client of the benchmarks: accepts any certificate, and leaves servers one key exchange and one cipher, so that all do
//! the same work.

use std::{
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use rustls::{
    CipherSuite, ClientConfig, ClientConnection, DigitallySignedStruct, ProtocolVersion, SignatureScheme, StreamOwned,
    SupportedProtocolVersion,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// X25519 and AES-128-GCM, with HTTP/1.1 on top. With TLS 1.2, OpenSSL refuses its P-256 certificate to clients that do not name
/// that curve too; they name it last, and whoever compares servers sees to it that none chose it.
pub fn config(
    version: &'static SupportedProtocolVersion,
    resumption: Resumption,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let all = aws_lc_rs::default_provider();
    let verifier = Arc::new(Anybody(all.signature_verification_algorithms));
    let provider = CryptoProvider {
        cipher_suites: all.cipher_suites.into_iter().filter(|suite| CIPHERS.contains(&suite.suite())).collect(),
        kx_groups: match version.version {
            ProtocolVersion::TLSv1_2 => vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1],
            _ => vec![aws_lc_rs::kx_group::X25519],
        },
        ..all
    };
    let mut config = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[version])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = resumption;
    Ok(Arc::new(config))
}

/// Connects and completes the handshake.
pub fn connect(
    address: SocketAddr,
    name: &ServerName<'static>,
    config: &Arc<ClientConfig>,
) -> anyhow::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut connection = ClientConnection::new(Arc::clone(config), name.clone())?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// Accepts any certificate, but checks that the server has its key.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
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

/// The one of TLS 1.3, and those of TLS 1.2 for either kind of certificate.
const CIPHERS: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
];

/// How long a server may take for anything.
const PATIENCE: Duration = Duration::from_secs(10);
