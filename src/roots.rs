//! The authorities whose certificates are believed, whoever shows one: a backend, a Redis server or a client.

use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer,
        pem::{self, PemObject},
    },
};
use tracing::warn;

/// Why a text holds no authorities.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// It is not PEM.
    #[error("{0}")]
    Pem(#[from] pem::Error),
    /// A certificate in it cannot be used.
    #[error("{0}")]
    Certificate(#[from] rustls::Error),
    /// It has no certificate.
    #[error("there is no certificate")]
    Empty,
}

/// The authorities that servers on the Internet have: webpki's and the system's.
pub fn public() -> RootCertStore {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        warn!(%error, "some of the system's certificates cannot be read; servers are verified without them");
    }
    roots.add_parsable_certificates(system.certs);
    roots
}

/// The authorities in a PEM text, and no others.
pub fn from_pem(text: &[u8]) -> Result<RootCertStore, RootsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text) {
        roots.add(certificate?)?;
    }
    if roots.is_empty() { Err(RootsError::Empty) } else { Ok(roots) }
}
