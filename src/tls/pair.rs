//! A certificate and its private key, from text that anybody may have written.

use std::{hash::BuildHasher, path::PathBuf, sync::Arc, thread};

use bytes::Bytes;
use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

/// A certificate chain whose key fits, ready for handshakes.
#[derive(Debug)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    not_after: i64,
}

/// Why a pair cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// No PEM section of a certificate.
    #[error("there is no certificate")]
    NoCertificate,
    /// No PEM section of a private key.
    #[error("there is no private key")]
    NoKey,
    /// The text of the certificate is not PEM. The library's own words would quote it, and so they do for a key.
    #[error("the certificate is not PEM")]
    CertificatePem,
    /// The text of the key is not PEM.
    #[error("the private key is not PEM")]
    KeyPem,
    /// The text is longer than a handshake could carry.
    #[error("the certificate or the private key is longer than a megabyte")]
    TooLong,
    /// The PEM section does not hold an X.509 certificate.
    #[error("the certificate is not X.509")]
    Certificate,
    /// The key is damaged, or of a kind that is not supported.
    #[error("the private key is damaged, or neither RSA of 2048 bits or more, ECDSA nor Ed25519")]
    Key,
    /// The key belongs to another certificate.
    #[error("the private key is not the certificate's")]
    Mismatch,
    /// The pair cannot even be read.
    #[error("{0}")]
    Unreadable(String),
}

impl Certificate {
    /// Parses a PEM chain, the server's own certificate first, and a PEM key (PKCS#8, PKCS#1 or SEC1; RSA, ECDSA or
    /// Ed25519), and checks that they belong together. Takes up to a millisecond for large RSA keys.
    pub fn parse(certificate: &[u8], key: &[u8]) -> Result<Self, PairError> {
        if certificate.len().max(key.len()) > LONGEST {
            return Err(PairError::TooLong);
        }
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .map_err(|_| PairError::CertificatePem)?;
        // Where files were joined without a line end between them, the library leaves out what follows.
        if memchr::memmem::find_iter(certificate, BEGIN_CERTIFICATE).count() != chain.len() {
            return Err(PairError::CertificatePem);
        }
        let leaf = chain.first().ok_or(PairError::NoCertificate)?;
        let (_, x509) = X509Certificate::from_der(leaf).map_err(|_| PairError::Certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            pem::Error::NoItemsFound => PairError::NoKey,
            _ => PairError::KeyPem,
        })?;
        let key = any_supported_type(&key).map_err(|_| PairError::Key)?;
        if key.public_key().is_none_or(|public| public.as_ref() != x509.public_key().raw) {
            return Err(PairError::Mismatch);
        }
        let not_after = x509.validity().not_after.timestamp();
        Ok(Self { not_after, key: Arc::new(CertifiedKey::new(chain, key)) })
    }

    /// What the handshake needs.
    pub fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// The last moment of the certificate's validity, in seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }
}

/// Where certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateSource {
    /// The read Redis.
    Redis,
    /// A folder.
    Folder(PathBuf),
}

/// A pair as its source has it.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The name that it is for: a host name, `*.<domain>` or `*`, in any case.
    pub name: String,
    /// What there is under that name.
    pub content: Content,
}

/// What a source has under a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// The two PEM texts; a missing one is empty.
    Pair {
        /// The chain.
        certificate: Bytes,
        /// The private key.
        key: Bytes,
    },
    /// Something that is no pair, and why.
    Unreadable(String),
}

/// An offer that has been looked into.
#[derive(Debug)]
pub struct Parsed {
    /// See [`Offer::name`].
    pub name: String,
    /// A hash of the offer's content.
    pub(super) fingerprint: u64,
    /// The certificate, if it can be served.
    pub(super) result: Result<Certificate, PairError>,
    /// What was offered.
    pub(super) content: Content,
}

impl Offer {
    pub(super) fn fingerprint(&self, hasher: &impl BuildHasher) -> u64 {
        hasher.hash_one(&self.content)
    }

    fn parse(self, fingerprint: u64) -> Parsed {
        let result = match &self.content {
            Content::Pair { certificate, key } => Certificate::parse(certificate, key),
            Content::Unreadable(why) => Err(PairError::Unreadable(why.clone())),
        };
        Parsed { name: self.name, fingerprint, result, content: self.content }
    }
}

/// Parses many offers on all cores. Blocks the thread.
pub(super) fn parse_all(offers: Vec<(Offer, u64)>) -> Vec<Parsed> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    if offers.len() < WORTH_A_THREAD || threads == 1 {
        return offers.into_iter().map(|(offer, fingerprint)| offer.parse(fingerprint)).collect();
    }
    let share = offers.len().div_ceil(threads);
    let mut rest = offers;
    thread::scope(|scope| {
        let mut workers = Vec::new();
        while !rest.is_empty() {
            let left = rest.split_off(share.min(rest.len()));
            let mine = std::mem::replace(&mut rest, left);
            workers.push(
                scope.spawn(|| {
                    mine.into_iter().map(|(offer, fingerprint)| offer.parse(fingerprint)).collect::<Vec<_>>()
                }),
            );
        }
        workers.into_iter().flat_map(|worker| worker.join().expect("parsing does not panic")).collect()
    })
}

/// What every certificate in a PEM text begins with (RFC 7468 section 5.1).
const BEGIN_CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// Bytes of a PEM text. The lengths in a handshake end at 16 MiB, and nobody's patience reaches that far.
const LONGEST: usize = 1024 * 1024;

/// From how many offers on a second thread pays.
const WORTH_A_THREAD: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    fn pair(algorithm: &'static rcgen::SignatureAlgorithm) -> (String, String) {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = CertificateParams::new(vec!["a.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn parse(certificate: &str, key: &str) -> Result<Certificate, PairError> {
        Certificate::parse(certificate.as_bytes(), key.as_bytes())
    }

    #[test]
    fn the_usual_kinds_of_keys_are_understood() {
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let (certificate, key) = pair(algorithm);
            let parsed = parse(&certificate, &key).unwrap();
            assert_eq!(parsed.key().cert.len(), 1);
            assert!(parsed.not_after() > 1_800_000_000);
        }
    }

    #[test]
    fn a_chain_keeps_its_order() {
        let (leaf, key) = pair(&PKCS_ECDSA_P256_SHA256);
        let (issuer, _) = pair(&PKCS_ECDSA_P256_SHA256);
        assert_eq!(parse(&format!("{leaf}\n{issuer}"), &key).unwrap().key().cert.len(), 2);
        assert_eq!(parse(&format!("{issuer}\n{leaf}"), &key).unwrap_err(), PairError::Mismatch);
    }

    #[test]
    fn what_cannot_be_served_is_told_apart() {
        let (certificate, key) = pair(&PKCS_ECDSA_P256_SHA256);
        let (_, other) = pair(&PKCS_ECDSA_P256_SHA256);
        assert_eq!(parse(&certificate, &other).unwrap_err(), PairError::Mismatch);
        assert_eq!(parse("", &key).unwrap_err(), PairError::NoCertificate);
        assert_eq!(parse(&certificate, "").unwrap_err(), PairError::NoKey);
        assert_eq!(parse(&key, &certificate).unwrap_err(), PairError::NoCertificate);
        let cut = &certificate[..certificate.len() / 2];
        assert_eq!(parse(cut, &key).unwrap_err(), PairError::CertificatePem);
        let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(parse(junk, &key).unwrap_err(), PairError::Certificate);
        let junk = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert_eq!(parse(&certificate, junk).unwrap_err(), PairError::Key);
    }

    #[test]
    fn many_are_parsed_in_their_order() {
        let (certificate, key) = pair(&PKCS_ED25519);
        let content = Content::Pair { certificate: certificate.into(), key: key.into() };
        let offers = (0..100).map(|number| (Offer { name: number.to_string(), content: content.clone() }, number));
        let parsed = parse_all(offers.collect());
        assert_eq!(parsed.len(), 100);
        for (number, parsed) in parsed.iter().enumerate() {
            assert_eq!((parsed.name.as_str(), parsed.fingerprint), (number.to_string().as_str(), number as u64));
            assert!(parsed.result.is_ok());
        }
    }

    proptest! {
        #[test]
        fn damage_is_refused_and_never_panics(position in 0..10_000usize, byte in any::<u8>(), in_key in any::<bool>()) {
            let (certificate, key) = pair(&PKCS_ED25519);
            let (mut certificate, mut key) = (certificate.into_bytes(), key.into_bytes());
            let text = if in_key { &mut key } else { &mut certificate };
            let position = position % text.len();
            text[position] = byte;
            // Whether it is still served depends on what was hit: a signature that is ours alone to show, for one.
            let _ = Certificate::parse(&certificate, &key);
        }
    }
}
