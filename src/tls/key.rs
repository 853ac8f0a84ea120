//! Private keys: which can be used, and what the others are.

use std::sync::Arc;

use rustls::{crypto::aws_lc_rs::sign::any_supported_type, pki_types::PrivateKeyDer, sign::SigningKey};
use x509_parser::{
    asn1_rs::{Any, FromDer, Oid, Sequence, Tag, oid},
    x509::AlgorithmIdentifier,
};

use super::{PairError, short_rsa::ShortRsaKey};

/// A key that handshakes can be signed with.
pub(super) struct PrivateKey {
    pub(super) signing: Arc<dyn SigningKey>,
    /// Its bits, if they are fewer than they should be.
    pub(super) short: Option<usize>,
}

impl PrivateKey {
    /// Reads a key in any of the forms that PEM sections of keys hold.
    pub(super) fn read(der: &[u8]) -> Result<Self, PairError> {
        let form = PrivateKeyDer::try_from(der).map_err(|_| PairError::Key)?;
        if let Ok(signing) = any_supported_type(&form) {
            return Ok(Self { signing, short: None });
        }
        match form {
            PrivateKeyDer::Pkcs1(_) => Self::of_rsa(der),
            PrivateKeyDer::Sec1(_) => Err(of_curve(curve_of_sec1(der))),
            _ => Self::of_pkcs8(der),
        }
    }

    /// A PKCS#8 key that the TLS library does not take (RFC 5208 section 5).
    fn of_pkcs8(der: &[u8]) -> Result<Self, PairError> {
        let fields = fields(der).ok_or(PairError::Key)?;
        let [_, algorithm, key, ..] = &fields[..] else { return Err(PairError::Key) };
        let (_, algorithm) = AlgorithmIdentifier::from_der(algorithm.der).map_err(|_| PairError::Key)?;
        let curve = || algorithm.parameters.as_ref().and_then(|parameters| parameters.clone().oid().ok());
        let kind = algorithm.algorithm;
        if kind == RSA {
            return Self::of_rsa(key.content);
        }
        Err(match () {
            () if kind == EC => of_curve(curve()),
            () if kind == ED25519 => PairError::Key,
            () if kind == RSA_PSS => PairError::Unsupported("RSASSA-PSS"),
            () if kind == DSA => PairError::Unsupported("DSA"),
            () if kind == ED448 => PairError::Unsupported("Ed448"),
            () if kind == X25519 || kind == X448 || kind == DH => PairError::Unsupported("key exchange"),
            () => PairError::Unsupported("such"),
        })
    }

    /// An RSA key that the TLS library does not take, for its length or because it is damaged.
    fn of_rsa(der: &[u8]) -> Result<Self, PairError> {
        let fields = fields(der).ok_or(PairError::Key)?;
        let numbers: Vec<&[u8]> = fields.iter().map(|field| field.content).collect();
        let [_, modulus, ..] = numbers[..] else { return Err(PairError::Key) };
        match bits(modulus) {
            bits @ 1024..2048 => {
                let signing = Arc::new(ShortRsaKey::new(&numbers, bits).ok_or(PairError::Key)?);
                Ok(Self { signing, short: Some(bits) })
            }
            2048..=8192 => Err(PairError::Key),
            bits => Err(PairError::KeySize(bits)),
        }
    }
}

/// Why an elliptic curve's key is not taken.
fn of_curve(curve: Option<Oid<'_>>) -> PairError {
    match curve {
        Some(curve) if [P256, P384, P521].contains(&curve) => PairError::Key,
        Some(_) => PairError::Unsupported("ECDSA (of this curve)"),
        None => PairError::Unsupported("ECDSA (of a curve without a name)"),
    }
}

/// The curve that a SEC1 key names (RFC 5915 section 3).
fn curve_of_sec1(der: &[u8]) -> Option<Oid<'static>> {
    let fields = fields(der)?;
    let parameters = fields.iter().find(|field| field.tag == Tag(0))?;
    Oid::from_der(parameters.content).ok().map(|(_, curve)| curve.to_owned())
}

/// Bits of a number without a sign.
fn bits(number: &[u8]) -> usize {
    let digits = &number[number.iter().take_while(|&&digit| digit == 0).count()..];
    let unused = digits.first().map_or(0, |digit| digit.leading_zeros());
    digits.len() * 8 - unused as usize
}

struct Field<'a> {
    tag: Tag,
    der: &'a [u8],
    content: &'a [u8],
}

/// What a sequence consists of.
fn fields(der: &[u8]) -> Option<Vec<Field<'_>>> {
    let (_, sequence) = Sequence::from_der(der).ok()?;
    // The sequence's own slice would not outlive it.
    let mut rest = &der[der.len().checked_sub(sequence.content.len())?..];
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let (after, any) = Any::from_der(rest).ok()?;
        let der = &rest[..rest.len() - after.len()];
        fields.push(Field { tag: any.tag(), der, content: any.data });
        rest = after;
    }
    Some(fields)
}

const RSA: Oid<'static> = oid!(1.2.840.113549.1.1.1);
const RSA_PSS: Oid<'static> = oid!(1.2.840.113549.1.1.10);
const DSA: Oid<'static> = oid!(1.2.840.10040.4.1);
const DH: Oid<'static> = oid!(1.2.840.113549.1.3.1);
const EC: Oid<'static> = oid!(1.2.840.10045.2.1);
const P256: Oid<'static> = oid!(1.2.840.10045.3.1.7);
const P384: Oid<'static> = oid!(1.3.132.0.34);
const P521: Oid<'static> = oid!(1.3.132.0.35);
const X25519: Oid<'static> = oid!(1.3.101.110);
const X448: Oid<'static> = oid!(1.3.101.111);
const ED25519: Oid<'static> = oid!(1.3.101.112);
const ED448: Oid<'static> = oid!(1.3.101.113);
