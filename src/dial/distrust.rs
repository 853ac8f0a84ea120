//! Why a backend's certificate does not convince, in words that say what to do about it.

use std::fmt::Write;

use jiff::Timestamp;
use rustls::{
    CertificateError,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension, X509Extension},
    prelude::FromDer,
    public_key::PublicKey,
    x509::X509Version,
};

/// Why a certificate is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// Its validity, or that of another in its chain, is over.
    #[error("it expired on {0}")]
    Expired(Timestamp),
    /// Its validity, or that of another in its chain, has not begun.
    #[error("it is not valid before {0}")]
    NotYetValid(Timestamp),
    /// It is for other names than the backend's.
    #[error("it is not for {wanted} but for {names}")]
    OtherName {
        /// The host of the backend's URL.
        wanted: String,
        /// The names that it is for.
        names: String,
    },
    /// It is its own issuer.
    #[error("it is self-signed")]
    SelfSigned,
    /// No authority that is known here has signed it.
    #[error("its issuer is unknown")]
    UnknownIssuer,
    /// It is of a version without extensions, and names are in an extension.
    #[error("it is X.509 of version {0}, which has no names to verify")]
    Version(u32),
    /// Its RSA key is too short to be believed.
    #[error("its RSA key has {0} bits, where fewer than 2048 are not trusted")]
    ShortKey(usize),
    /// It is not for servers.
    #[error("it is not for servers")]
    Purpose,
    /// Something is not signed by the key that it should be, or that key is too short.
    #[error("a signature in its chain or in the handshake does not verify")]
    Signature,
    /// A signature in its chain is of a kind that is not believed.
    #[error("it is signed with an algorithm that is not trusted, such as SHA-1")]
    Algorithm,
    /// It is not X.509.
    #[error("it is damaged")]
    Damaged,
    /// Anything else, as the library puts it.
    #[error("{0}")]
    Other(String),
}

impl Distrust {
    /// Reads in a refused certificate what the library's reason leaves open.
    pub(super) fn of(
        certificate: &CertificateDer<'_>,
        reason: &CertificateError,
        wanted: Option<&ServerName<'_>>,
    ) -> Option<Self> {
        let (_, x509) = X509Certificate::from_der(certificate).ok()?;
        match reason {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Some(Self::OtherName { wanted: wanted?.to_str().into_owned(), names: names(&x509) })
            }
            CertificateError::Expired => {
                let not_after = Timestamp::from_second(x509.validity().not_after.timestamp()).ok()?;
                Some(Self::Expired(not_after))
            }
            CertificateError::BadSignature => match x509.public_key().parsed() {
                Ok(PublicKey::RSA(key)) if key.key_size() < SHORTEST_RSA => Some(Self::ShortKey(key.key_size())),
                _ => None,
            },
            CertificateError::UnknownIssuer | CertificateError::BadEncoding | CertificateError::Other(_) => {
                if x509.version() != X509Version::V3 {
                    Some(Self::Version(x509.version().0.saturating_add(1)))
                } else if x509.issuer().as_raw() == x509.subject().as_raw() {
                    Some(Self::SelfSigned)
                } else {
                    None
                }
            }
            _ => None,
        }
    }
}

impl From<&CertificateError> for Distrust {
    fn from(reason: &CertificateError) -> Self {
        match reason {
            CertificateError::ExpiredContext { not_after, .. } => Self::Expired(timestamp(*not_after)),
            CertificateError::NotValidYetContext { not_before, .. } => Self::NotYetValid(timestamp(*not_before)),
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Self::Purpose,
            CertificateError::BadSignature => Self::Signature,
            CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => Self::Algorithm,
            CertificateError::BadEncoding => Self::Damaged,
            CertificateError::Other(error) => match error.0.downcast_ref::<Self>() {
                Some(distrust) => distrust.clone(),
                None => Self::Other(error.0.to_string()),
            },
            other => Self::Other(other.to_string()),
        }
    }
}

/// The names that a certificate is for; the first few, since there may be thousands.
fn names(x509: &X509Certificate<'_>) -> String {
    let extensions = x509.extensions().iter().map(X509Extension::parsed_extension);
    let names = extensions.filter_map(|extension| match extension {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let names: Vec<String> = names.flatten().filter_map(name).collect();
    if names.is_empty() {
        return "no name at all (names are in its extension subjectAltName)".to_owned();
    }
    let mut text = names[..names.len().min(MOST_NAMES)].join(", ");
    if names.len() > MOST_NAMES {
        // Writing to a string cannot fail.
        let _ = write!(text, " and {} more", names.len() - MOST_NAMES);
    }
    text
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => {
            Some(name.chars().take(LONGEST_NAME).collect::<String>().escape_debug().to_string())
        }
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(|bytes| std::net::IpAddr::from(bytes).to_string());
            v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(|bytes| std::net::IpAddr::from(bytes).to_string())).ok()
        }
        _ => None,
    }
}

fn timestamp(time: UnixTime) -> Timestamp {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or(Timestamp::MAX)
}

/// Bits of an RSA key that the TLS library verifies signatures of.
const SHORTEST_RSA: usize = 2048;

const MOST_NAMES: usize = 5;

/// Characters of a DNS name (RFC 1035 section 2.3.4).
const LONGEST_NAME: usize = 253;
