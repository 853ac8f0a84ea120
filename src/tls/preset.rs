//! Named choices of protocol versions.

use std::sync::Arc;

use rustls::{
    SupportedProtocolVersion,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, kx_group},
    },
    version::{TLS12, TLS13},
};

/// What clients may speak. The library implements nothing below TLS 1.2, and in that only ECDHE with AEAD, so that
/// `modern`, `intermediate` and `old` come to the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// TLS 1.3 only
    Strict,
    /// TLS 1.2 and 1.3, ECDHE with AEAD ciphers only
    #[default]
    Modern,
    /// The same as modern
    Intermediate,
    /// The same as modern
    Old,
}

impl Preset {
    /// The protocol versions.
    pub fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static ALL: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Self::Strict => &ALL[..1],
            Self::Modern | Self::Intermediate | Self::Old => &ALL,
        }
    }
}

/// The cryptography for clients' connections: the library's cipher suites, and key exchange that resists quantum computers
/// first.
pub fn provider() -> Arc<CryptoProvider> {
    let kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
    Arc::new(CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() })
}
