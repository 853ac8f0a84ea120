//! The settings of every handshake with a client.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{Context, SHA256};
use rustls::{
    ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};

use crate::{files, roots};

use super::{
    Certificates, KeyRing,
    preset::{self, Preset},
};

/// How clients may connect.
#[derive(Clone, Debug)]
pub struct Config {
    /// The protocol versions.
    pub preset: Preset,
    /// Whose certificates clients may, or must, show.
    pub client_ca: Option<ClientCa>,
    /// Whether HTTP/2 is offered.
    pub offers_http2: bool,
}

/// Client certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCa {
    /// A PEM file of the authorities that may have signed them.
    pub path: PathBuf,
    /// Whether a client without one is turned away.
    pub required: bool,
}

/// Why TLS cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The authorities' file cannot be read.
    #[error("cannot read the client authorities in {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The authorities' file is not a list of certificates.
    #[error("{path} is not a PEM file of client authorities: {reason}")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The cryptography library refuses the settings.
    #[error("TLS cannot be set up: {0}")]
    Library(#[from] rustls::Error),
}

/// Where the settings of a handshake come from.
pub struct Terminator {
    config: Config,
    certificates: Certificates,
    ring: Arc<KeyRing>,
    current: ArcSwap<ServerConfig>,
}

impl Terminator {
    /// Settings by which clients are shown these certificates, and given tickets of this ring.
    ///
    /// # Errors
    /// When the authorities' file is not usable.
    pub fn new(config: Config, certificates: Certificates, ring: Arc<KeyRing>) -> Result<Self, TlsError> {
        let current = ArcSwap::from_pointee(build(&config, &certificates, &ring)?);
        Ok(Self { config, certificates, ring, current })
    }

    /// The certificates.
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// The settings for a handshake that begins now.
    pub fn settings(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Reads the authorities' file again.
    ///
    /// # Errors
    /// When it is not usable; the settings then stay as they were.
    pub fn reload(&self) -> Result<(), TlsError> {
        if self.config.client_ca.is_some() {
            self.current.store(Arc::new(build(&self.config, &self.certificates, &self.ring)?));
        }
        Ok(())
    }
}

fn build(config: &Config, certificates: &Certificates, ring: &Arc<KeyRing>) -> Result<ServerConfig, TlsError> {
    let provider = preset::provider();
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(config.preset.versions())?;
    // A session that one policy for client certificates let in is worth nothing under another.
    let mut policy = Context::new(&SHA256);
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let text = read(&ca.path)?;
            policy.update(&[u8::from(ca.required)]);
            policy.update(&text);
            let roots = roots::from_pem(&text).map_err(|error| unusable(&ca.path, &error))?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if ca.required { verifier } else { verifier.allow_unauthenticated() };
            let verifier = verifier.build().map_err(|error| unusable(&ca.path, &error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut settings = builder.with_cert_resolver(Arc::new(certificates.clone()));
    let protocols = if config.offers_http2 { &ALPN[..] } else { &ALPN[1..] };
    settings.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    settings.ticketer = ring.tickets(policy.finish().as_ref().to_vec());
    settings.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(settings)
}

fn unusable(path: &Path, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::Authorities { path: path.to_owned(), reason: reason.to_string() }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    files::read(path, files::AUTHORITIES).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })
}

/// The name of HTTP/2 in protocol negotiation (RFC 9113 section 3.2).
pub const ALPN_HTTP2: &[u8] = b"h2";

/// The protocols that are spoken under TLS, best first (RFC 7301; `curl --http1.0` offers the last one alone).
const ALPN: [&[u8]; 3] = [ALPN_HTTP2, b"http/1.1", b"http/1.0"];
