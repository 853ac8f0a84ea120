//! A certificate and its private key, from text that anybody may have written.

use std::{hash::BuildHasher, path::PathBuf, sync::Arc, thread};

use bytes::Bytes;
use rustls::sign::CertifiedKey;

use super::{
    chain::{Chain, Links},
    key::PrivateKey,
    pem::{self, Kind, Section},
};

/// A certificate chain whose key fits, ready for handshakes.
#[derive(Debug)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    not_after: i64,
    remarks: Vec<Remark>,
}

/// What the operator should know of a pair that is served all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Remark {
    /// Each of the two texts is where the other belongs.
    #[error("the certificate and the private key are swapped")]
    Swapped,
    /// An RSA key that many clients refuse.
    #[error("its RSA key has {0} bits, and many clients refuse fewer than 2048")]
    ShortKey(usize),
    /// Certificates that are left out.
    #[error("without what is in its text but not of its chain (certificates: {0})")]
    Unrelated(usize),
}

/// Why a pair cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// The certificate's text is empty.
    #[error("there is no certificate")]
    NoCertificate,
    /// The key's text is empty.
    #[error("there is no private key")]
    NoKey,
    /// The certificate's text has no PEM section of a certificate, or a damaged one. No text is ever quoted, since it may be
    /// that of a key.
    #[error("the certificate is not PEM, or it is damaged")]
    CertificatePem,
    /// The key's text has no PEM section of a key, or a damaged one.
    #[error("the private key is not PEM, or it is damaged")]
    KeyPem,
    /// The certificate's text is what PEM would contain.
    #[error("the certificate is DER, and PEM is wanted")]
    CertificateDer,
    /// The key's text is what PEM would contain.
    #[error("the private key is DER, and PEM is wanted")]
    KeyDer,
    /// A key in both places.
    #[error("there is a private key where the certificate belongs")]
    KeyForCertificate,
    /// A certificate in both places.
    #[error("there is a certificate where the private key belongs")]
    CertificateForKey,
    /// What an authority makes a certificate from.
    #[error("this is a certificate request, not the certificate that an authority makes from it")]
    Request,
    /// Certificates in another form.
    #[error("this is a PKCS#7 bundle, and PEM certificates are wanted")]
    Bundle,
    /// The other half of a private key.
    #[error("this is a public key, and the private key is wanted")]
    PublicKey,
    /// A text is longer than a handshake could carry.
    #[error("the certificate or the private key is longer than a megabyte")]
    TooLong,
    /// A PEM section does not hold an X.509 certificate.
    #[error("the certificate is not X.509")]
    Certificate,
    /// The key needs a passphrase.
    #[error("the private key is encrypted")]
    Encrypted,
    /// The key is of a kind that is not supported.
    #[error("{0} keys are not supported; RSA, ECDSA on P-256, P-384 and P-521, and Ed25519 are")]
    Unsupported(&'static str),
    /// The key could be guessed, or takes too long to use.
    #[error("the private key is RSA of {0} bits; 1024 to 8192 are supported")]
    KeySize(usize),
    /// The key is damaged.
    #[error("the private key is damaged")]
    Key,
    /// The key belongs to another certificate.
    #[error("the private key is not the certificate's")]
    Mismatch,
    /// The pair cannot even be read.
    #[error("{0}")]
    Unreadable(String),
}

impl Certificate {
    /// Reads a certificate with its chain and a private key (PKCS#8, PKCS#1 or SEC1; RSA, ECDSA or Ed25519) from PEM, and
    /// finds what belongs together: the certificate is the one that fits the key, and the others follow in the order of the
    /// chain. Where one text has everything, or the two are swapped, that will do. Takes up to a millisecond for large RSA
    /// keys.
    pub fn parse(certificate: &[u8], key: &[u8]) -> Result<Self, PairError> {
        if certificate.len().max(key.len()) > LONGEST {
            return Err(PairError::TooLong);
        }
        let [certificate, key] = [certificate, key].map(Text::read);
        let certificates =
            certificate.or(&key, Text::certificates).unwrap_or_else(|| Err(certificate.no_certificate()))?;
        let keys = key.or(&certificate, Text::keys).unwrap_or_else(|| Err(key.no_key()))?;
        let links = Links::read(certificates).ok_or(PairError::Certificate)?;
        let (key_pair, chain) = fitting(&links, &keys)?;

        let mut remarks = Vec::new();
        if certificate.certificates().is_none() && key.keys().is_none() {
            remarks.push(Remark::Swapped);
        }
        remarks.extend(key_pair.short.map(Remark::ShortKey));
        if chain.unrelated > 0 {
            remarks.push(Remark::Unrelated(chain.unrelated));
        }
        let certified = CertifiedKey::new(chain.certificates, key_pair.signing);
        Ok(Self { key: Arc::new(certified), not_after: chain.not_after, remarks })
    }

    /// What the handshake needs.
    pub fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// The last moment of the certificate's validity, in seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// What the operator should know.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }
}

/// The first key that a certificate is for, and its chain.
fn fitting(links: &Links<'_>, keys: &[&[u8]]) -> Result<(PrivateKey, Chain), PairError> {
    let mut fault = None;
    for der in keys {
        match PrivateKey::read(der) {
            Err(error) => fault = fault.or(Some(error)),
            Ok(key) => match key.signing.public_key().and_then(|public| links.chain(&public)) {
                Some(chain) => return Ok((key, chain)),
                None => fault = Some(PairError::Mismatch),
            },
        }
    }
    Err(fault.unwrap_or(PairError::Mismatch))
}

/// One of the two texts.
struct Text {
    sections: Vec<Section>,
    is_empty: bool,
    is_der: bool,
}

impl Text {
    fn read(text: &[u8]) -> Self {
        let is_empty = text.trim_ascii().is_empty();
        Self { sections: pem::sections(text), is_empty, is_der: pem::is_der(text) }
    }

    /// What this text has, else what the other has: where this is silent, the other cannot contradict it.
    fn or<'a, T>(&'a self, other: &'a Self, found: impl Fn(&'a Self) -> Option<T>) -> Option<T> {
        found(self).or_else(|| found(other))
    }

    /// `None` if there is no certificate, damaged or not.
    fn certificates(&self) -> Option<Result<Vec<&[u8]>, PairError>> {
        let sections = || self.sections.iter().filter(|section| section.kind == Kind::Certificate);
        sections().next()?;
        let ders = sections().map(|section| section.der.as_deref().ok_or(PairError::CertificatePem));
        Some(ders.collect())
    }

    /// `None` if there is no private key, of use or not.
    fn keys(&self) -> Option<Result<Vec<&[u8]>, PairError>> {
        let sections = || self.sections.iter().filter(|section| section.kind.is_key());
        let first = sections().next()?;
        let usable = sections().filter(|section| section.kind == Kind::Key);
        let ders: Result<Vec<_>, _> = usable.map(|section| section.der.as_deref().ok_or(PairError::KeyPem)).collect();
        Some(ders.and_then(|ders| match first.kind {
            _ if !ders.is_empty() => Ok(ders),
            Kind::EncryptedKey => Err(PairError::Encrypted),
            Kind::DsaKey => Err(PairError::Unsupported("DSA")),
            _ => Err(PairError::Unsupported("OpenSSH")),
        }))
    }

    /// What is there in place of a certificate.
    fn no_certificate(&self) -> PairError {
        match self.sections.first().map(|section| section.kind) {
            Some(Kind::Request) => PairError::Request,
            Some(Kind::Bundle) => PairError::Bundle,
            Some(kind) if kind.is_key() => PairError::KeyForCertificate,
            _ if self.is_empty => PairError::NoCertificate,
            _ if self.is_der => PairError::CertificateDer,
            _ => PairError::CertificatePem,
        }
    }

    /// What is there in place of a private key.
    fn no_key(&self) -> PairError {
        match self.sections.first().map(|section| section.kind) {
            Some(Kind::Certificate) => PairError::CertificateForKey,
            Some(Kind::Request) => PairError::Request,
            Some(Kind::PublicKey) => PairError::PublicKey,
            _ if self.is_empty => PairError::NoKey,
            _ if self.is_der => PairError::KeyDer,
            _ => PairError::KeyPem,
        }
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

impl Parsed {
    /// What the operator should know of a certificate that can be served.
    pub fn remarks(&self) -> &[Remark] {
        self.result.as_ref().map_or(&[], Certificate::remarks)
    }
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
    fn what_does_not_belong_to_the_chain_is_left_out_and_said() {
        let (leaf, key) = pair(&PKCS_ECDSA_P256_SHA256);
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "else");
        let other = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        for text in [format!("{leaf}{other}{leaf}"), format!("{other}{leaf}")] {
            let parsed = parse(&text, &key).unwrap();
            assert_eq!((parsed.key().cert.len(), parsed.remarks()), (1, &[Remark::Unrelated(1)][..]));
        }
    }

    #[test]
    fn one_text_may_have_everything() {
        let (certificate, key) = pair(&PKCS_ECDSA_P256_SHA256);
        let (other, other_key) = pair(&PKCS_ECDSA_P256_SHA256);
        let both = format!("{key}{certificate}");
        for (certificate, key) in [(&both, &both), (&both, &String::new()), (&String::new(), &both), (&both, &key)] {
            assert_eq!(parse(certificate, key).unwrap().remarks(), []);
        }
        assert_eq!(parse(&key, &certificate).unwrap().remarks(), [Remark::Swapped]);
        // What stands in its own place counts, though the other text would fit.
        assert_eq!(parse(&both, &other_key).unwrap_err(), PairError::Mismatch);
        assert_eq!(parse(&other, &both).unwrap_err(), PairError::Mismatch);
    }

    #[test]
    fn of_several_keys_the_one_that_fits_is_taken() {
        let (certificate, key) = pair(&PKCS_ECDSA_P256_SHA256);
        let (_, other) = pair(&PKCS_ED25519);
        let junk = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(parse(&certificate, &format!("{other}{junk}{key}")).is_ok());
        assert_eq!(parse(&certificate, &format!("{other}{junk}")).unwrap_err(), PairError::Mismatch);
    }

    #[test]
    fn what_cannot_be_served_is_told_apart() {
        let (certificate, key) = pair(&PKCS_ECDSA_P256_SHA256);
        let (_, other) = pair(&PKCS_ECDSA_P256_SHA256);
        let section = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
        let cut = &certificate[..certificate.len() / 2];
        for (text, error) in [
            ("", PairError::NoCertificate),
            (" \n", PairError::NoCertificate),
            ("a.crt", PairError::CertificatePem),
            (cut, PairError::CertificatePem),
            (&format!("{certificate}{cut}"), PairError::CertificatePem),
            (&key, PairError::KeyForCertificate),
            (&section("CERTIFICATE"), PairError::Certificate),
            (&section("CERTIFICATE REQUEST"), PairError::Request),
            (&section("PKCS7"), PairError::Bundle),
            ("0 is no length", PairError::CertificatePem),
        ] {
            assert_eq!(parse(text, &key).unwrap_err(), error, "{text}");
        }
        for (text, error) in [
            ("", PairError::NoKey),
            ("message", PairError::KeyPem),
            (&key[..key.len() / 2], PairError::KeyPem),
            (&certificate, PairError::CertificateForKey),
            (&other, PairError::Mismatch),
            (&section("PRIVATE KEY"), PairError::Key),
            (&section("ENCRYPTED PRIVATE KEY"), PairError::Encrypted),
            (&section("OPENSSH PRIVATE KEY"), PairError::Unsupported("OpenSSH")),
            (&section("PUBLIC KEY"), PairError::PublicKey),
            (&section("CERTIFICATE REQUEST"), PairError::Request),
        ] {
            assert_eq!(parse(&certificate, text).unwrap_err(), error, "{text}");
        }
        let der = KeyPair::generate().unwrap().serialize_der();
        assert_eq!(Certificate::parse(certificate.as_bytes(), &der).unwrap_err(), PairError::KeyDer);
        assert_eq!(Certificate::parse(&der, key.as_bytes()).unwrap_err(), PairError::CertificateDer);
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
