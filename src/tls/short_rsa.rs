//! RSA keys of fewer than 2048 bits, which the TLS library's cryptography does not sign with. Appliances and forgotten
//! certificates still have them, and clients that do not mind.

use std::{fmt, sync::Arc};

use rsa::{
    BoxedUint, PrivateKey,
    sha2::{Sha256, Sha384, Sha512},
};
use rustls::{
    Error, SignatureAlgorithm, SignatureScheme,
    pki_types::{SubjectPublicKeyInfoDer, alg_id},
    sign::{Signer, SigningKey, public_key_to_spki},
};

/// A key that signs as RSA keys do in TLS 1.2 and 1.3.
pub(super) struct ShortRsaKey {
    key: Arc<PrivateKey>,
    public: Vec<u8>,
}

struct ShortRsaSigner {
    key: Arc<PrivateKey>,
    scheme: SignatureScheme,
}

impl ShortRsaKey {
    /// From the numbers of a PKCS#1 key (RFC 8017 appendix A.1.2), whose modulus has so many bits. `None` if they do not fit
    /// one another.
    pub(super) fn new(numbers: &[&[u8]], bits: usize) -> Option<Self> {
        let &[_, modulus, exponent, private, p, q, ..] = numbers else { return None };
        let bits = u32::try_from(bits).ok()?;
        let number = |digits: &[u8], bits| {
            let zeros = digits.iter().take_while(|&&digit| digit == 0).count();
            BoxedUint::from_be_slice(&digits[zeros..], bits).ok()
        };
        let primes = vec![number(p, bits.div_ceil(2))?, number(q, bits.div_ceil(2))?];
        let exponent_number = number(exponent, bits)?;
        let key = PrivateKey::from_components(number(modulus, bits)?, exponent_number, number(private, bits)?, primes)
            .ok()?;
        let public = der(SEQUENCE, &[der(INTEGER, modulus), der(INTEGER, exponent)].concat());
        Some(Self { key: Arc::new(key), public })
    }
}

impl SigningKey for ShortRsaKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = *SCHEMES.iter().find(|scheme| offered.contains(scheme))?;
        Some(Box::new(ShortRsaSigner { key: Arc::clone(&self.key), scheme }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(public_key_to_spki(&alg_id::RSA_ENCRYPTION, &self.public))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::RSA
    }
}

impl fmt::Debug for ShortRsaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShortRsaKey")
    }
}

impl Signer for ShortRsaSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signature = match self.scheme {
            SignatureScheme::RSA_PSS_SHA256 => self.key.pss_sign::<Sha256>(message),
            SignatureScheme::RSA_PSS_SHA384 => self.key.pss_sign::<Sha384>(message),
            SignatureScheme::RSA_PKCS1_SHA384 => self.key.pkcs1v15_sign::<Sha384>(message),
            SignatureScheme::RSA_PKCS1_SHA512 => self.key.pkcs1v15_sign::<Sha512>(message),
            _ => self.key.pkcs1v15_sign::<Sha256>(message),
        };
        signature.map_err(|error| Error::General(format!("signing failed: {error}")))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

impl fmt::Debug for ShortRsaSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShortRsaSigner").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

/// A value of DER with so short a content as the numbers of such a key have.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    let head = match (high, low) {
        (0, 0..0x80) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [&head, content].concat()
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;

/// PSS with SHA-512 is longer than 1024 bits.
const SCHEMES: &[SignatureScheme] = &[
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use aws_lc_rs::signature::{RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY, UnparsedPublicKey};
    use proptest::prelude::*;
    use rsa::{
        rand_core::{TryCryptoRng, TryRng},
        traits::{PrivateKeyParts, PublicKeyParts},
    };

    use super::*;

    struct Random;

    impl TryRng for Random {
        type Error = std::convert::Infallible;

        fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
            Ok(fastrand::u32(..))
        }

        fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
            Ok(fastrand::u64(..))
        }

        fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
            fastrand::fill(bytes);
            Ok(())
        }
    }

    impl TryCryptoRng for Random {}

    /// The numbers of a key of 1024 bits, each with the zero byte that its sign takes.
    static NUMBERS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        let key = PrivateKey::new(&mut Random, 1024).unwrap();
        let [p, q] = key.primes() else { unreachable!() };
        let exponent = BoxedUint::from(65_537_u64);
        let numbers = [key.n().as_ref(), &exponent, key.d(), p, q];
        let digits = numbers.map(|number| {
            let digits = number.to_be_bytes();
            let zeros = digits.iter().take_while(|&&digit| digit == 0).count();
            [&[0][..usize::from(digits[zeros] >> 7)], &digits[zeros..]].concat()
        });
        [vec![vec![0]], digits.to_vec()].concat()
    });

    fn key(numbers: &[Vec<u8>]) -> Option<ShortRsaKey> {
        ShortRsaKey::new(&numbers.iter().map(Vec::as_slice).collect::<Vec<_>>(), 1024)
    }

    #[test]
    fn other_cryptography_believes_the_signature() {
        let key = key(&NUMBERS).unwrap();
        let signer = key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256]).unwrap();
        let public = UnparsedPublicKey::new(&RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY, &key.public);
        assert!(public.verify(b"message", &signer.sign(b"message").unwrap()).is_ok());
        assert!(public.verify(b"message", &signer.sign(b"another").unwrap()).is_err());
    }

    #[test]
    fn every_scheme_fits_a_key_of_1024_bits() {
        for scheme in SCHEMES {
            let signer = key(&NUMBERS).unwrap().choose_scheme(&[*scheme]).unwrap();
            assert_eq!((signer.scheme(), signer.sign(b"message").unwrap().len()), (*scheme, 128));
        }
        assert!(key(&NUMBERS).unwrap().choose_scheme(&[SignatureScheme::ED25519]).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn numbers_that_do_not_fit_are_refused(which in 1..6usize, position in any::<usize>(), byte in any::<u8>()) {
            let mut numbers = NUMBERS.clone();
            let number = &mut numbers[which];
            let position = position % number.len();
            let same = number[position] == byte;
            number[position] = byte;
            // Another exponent may fit, if it is an odd one out of luck.
            prop_assert!(which == 2 || key(&numbers).is_none() != same);
            prop_assert!(key(&numbers[..which]).is_none());
        }
    }
}
