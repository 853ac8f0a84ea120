//! TLS towards Redis.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{ClientConfig, crypto::aws_lc_rs};

use crate::{
    files,
    roots::{self, RootsError},
};

/// How a Redis server's certificate is verified: against the name, or the address, by which the server is configured.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

/// Why TLS towards Redis cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The authorities' file cannot be read.
    #[error("cannot read the authorities of Redis in {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The authorities' file is not a list of certificates.
    #[error("{path} is not a PEM file of authorities")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: RootsError,
    },
    /// The cryptography library refuses the settings.
    #[error("TLS towards Redis cannot be set up")]
    Library(#[from] rustls::Error),
}

impl Tls {
    /// Trusts the authorities in this PEM file; without one, those that servers on the Internet have.
    ///
    /// # Errors
    /// When the file is not usable.
    pub fn new(authorities: Option<&Path>) -> Result<Self, TlsError> {
        let roots = match authorities {
            None => roots::public(),
            Some(path) => {
                let text = files::read(path, files::AUTHORITIES)
                    .map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })?;
                roots::from_pem(&text).map_err(|source| TlsError::Authorities { path: path.to_owned(), source })?
            }
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// What connections are made with.
    pub(super) fn connector(&self) -> tokio_rustls::TlsConnector {
        Arc::clone(&self.0).into()
    }
}
