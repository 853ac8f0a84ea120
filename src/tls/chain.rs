//! The order of the certificates in a chain, whatever order they come in.

use std::cmp::Reverse;

use rustls::pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{KeyIdentifier, ParsedExtension},
    prelude::FromDer,
    x509::{AttributeTypeAndValue, X509Name},
};

/// The certificates of one text, each once.
pub(super) struct Links<'a>(Vec<Link<'a>>);

struct Link<'a> {
    der: &'a [u8],
    x509: X509Certificate<'a>,
}

/// A chain as handshakes send it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// The server's own certificate, then its issuer's, and so on.
    pub(super) certificates: Vec<CertificateDer<'static>>,
    /// The last second of the first one's validity, since 1970.
    pub(super) not_after: i64,
    /// How many of the certificates have nothing to do with it.
    pub(super) unrelated: usize,
}

impl<'a> Links<'a> {
    /// `None` if one is not X.509.
    pub(super) fn read(ders: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut links: Vec<Link<'a>> = Vec::new();
        for der in ders {
            let (rest, x509) = X509Certificate::from_der(der).ok()?;
            // What openssl appends to a certificate that it calls trusted is for nobody else.
            let der = &der[..der.len() - rest.len()];
            if links.iter().all(|link| link.der != der) {
                links.push(Link { der, x509 });
            }
        }
        Some(Self(links))
    }

    /// The chain of the certificate for this public key; `None` if there is none. Of several, that counts which is valid
    /// longest, so that a renewal that was appended to its predecessor does; but one that somebody else has signed first.
    pub(super) fn chain(&self, public_key: &[u8]) -> Option<Chain> {
        let fitting = (0..self.0.len()).rev().filter(|&index| self.0[index].x509.public_key().raw == public_key);
        let leaf = fitting.max_by_key(|&index| (!self.0[index].is_self_issued(), self.0[index].not_after()))?;
        let mut order = vec![leaf];
        let mut others: Vec<usize> = (0..self.0.len()).filter(|&index| index != leaf).collect();
        // Issuers are appended behind what is being looked at, so that those of several ways to a root all get in.
        let mut position = 0;
        while let Some(&subject) = order.get(position) {
            order.extend(self.take_issuers(subject, &mut others));
            position += 1;
        }
        let certificates = order.iter().map(|&index| CertificateDer::from(self.0[index].der.to_vec())).collect();
        Some(Chain { certificates, not_after: self.0[leaf].not_after(), unrelated: others.len() })
    }

    /// Takes those who may have issued a certificate out of the others, the likeliest first.
    fn take_issuers(&self, subject: usize, others: &mut Vec<usize>) -> Vec<usize> {
        let mut issuers = Vec::new();
        others.retain(|&index| match self.0[subject].trust_in(&self.0[index]) {
            Some(trust) => {
                issuers.push((trust, index));
                false
            }
            None => true,
        });
        issuers.sort_by_key(|&(trust, index)| {
            let issuer = &self.0[index];
            Reverse((trust, !issuer.is_self_issued(), issuer.not_after()))
        });
        issuers.into_iter().map(|(_, index)| index).collect()
    }
}

impl Link<'_> {
    /// How likely it is that `issuer` has issued this; `None` if it has not.
    fn trust_in(&self, issuer: &Link<'_>) -> Option<Trust> {
        let has_name = is_same_name(self.x509.issuer(), issuer.x509.subject());
        match (self.issuers_key(), issuer.own_key()) {
            (Some(wanted), Some(is)) if wanted == is => Some(Trust::Key),
            (Some(_), Some(_)) => has_name.then_some(Trust::NameOfAnotherKey),
            _ => has_name.then_some(Trust::Name),
        }
    }

    /// The identifier of the key that it is signed with, if it says so (RFC 5280 section 4.2.1.1).
    fn issuers_key(&self) -> Option<&KeyIdentifier<'_>> {
        self.x509.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(authority) => authority.key_identifier.as_ref(),
            _ => None,
        })
    }

    /// The identifier of its key, if it says so (RFC 5280 section 4.2.1.2).
    fn own_key(&self) -> Option<&KeyIdentifier<'_>> {
        self.x509.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(key) => Some(key),
            _ => None,
        })
    }

    fn is_self_issued(&self) -> bool {
        self.x509.issuer().as_raw() == self.x509.subject().as_raw()
    }

    fn not_after(&self) -> i64 {
        self.x509.validity().not_after.timestamp()
    }
}

/// What speaks for an issuer, the least first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trust {
    NameOfAnotherKey,
    Name,
    Key,
}

/// Whether two names are the same to clients, of which some compare their bytes, and others what is written (RFC 5280
/// section 7.1). No name is the same as none.
fn is_same_name(a: &X509Name<'_>, b: &X509Name<'_>) -> bool {
    let mut attributes = a.iter_attributes().peekable();
    attributes.peek().is_some()
        && (a.as_raw() == b.as_raw() || attributes.map(attribute).eq(b.iter_attributes().map(attribute)))
}

fn attribute<'a>(attribute: &'a AttributeTypeAndValue<'_>) -> (&'a [u8], Vec<u8>) {
    let value = match attribute.as_str() {
        Ok(text) => text.trim().to_lowercase().into_bytes(),
        Err(_) => attribute.as_slice().to_vec(),
    };
    (attribute.attr_type().as_bytes(), value)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};

    use super::*;

    /// The certificates of a chain in their order, then others; and the public key of the first.
    struct Family {
        chain: Vec<Vec<u8>>,
        noise: Vec<Vec<u8>>,
        public_key: Vec<u8>,
    }

    static WITH_KEY_IDENTIFIERS: LazyLock<Family> = LazyLock::new(|| family(true));
    static WITH_NAMES_ALONE: LazyLock<Family> = LazyLock::new(|| family(false));

    fn params(name: &str, has_identifiers: bool, is_ca: bool) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = has_identifiers;
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params
    }

    fn family(has_identifiers: bool) -> Family {
        let key = || KeyPair::generate().unwrap();
        let ca = |name| params(name, has_identifiers, true);
        let root = CertifiedIssuer::self_signed(ca("root"), key()).unwrap();
        let upper = CertifiedIssuer::signed_by(ca("upper"), key(), &root).unwrap();
        let lower = CertifiedIssuer::signed_by(ca("lower"), key(), &upper).unwrap();
        let own = key();
        let leaf = params("leaf", has_identifiers, false).signed_by(&own, &lower).unwrap();
        let stranger = CertifiedIssuer::self_signed(ca("stranger"), key()).unwrap();
        let its = params("its", has_identifiers, false).signed_by(&key(), &stranger).unwrap();
        let (_, x509) = X509Certificate::from_der(leaf.der()).unwrap();
        Family {
            public_key: x509.public_key().raw.to_vec(),
            chain: [leaf.der(), lower.der(), upper.der(), root.der()].map(|der| der.to_vec()).to_vec(),
            noise: [stranger.der(), its.der()].map(|der| der.to_vec()).to_vec(),
        }
    }

    fn chain(certificates: &[Vec<u8>], public_key: &[u8]) -> Option<Chain> {
        Links::read(certificates.iter().map(Vec::as_slice)).unwrap().chain(public_key)
    }

    fn ders(chain: &Chain) -> Vec<Vec<u8>> {
        chain.certificates.iter().map(|certificate| certificate.to_vec()).collect()
    }

    proptest! {
        #[test]
        fn a_chain_comes_out_in_its_order_whatever_order_it_comes_in(
            order in Just([0, 1, 2, 3, 4, 5, 0, 1, 3, 5].to_vec()).prop_shuffle(),
            has_identifiers in any::<bool>(),
        ) {
            let family = if has_identifiers { &WITH_KEY_IDENTIFIERS } else { &WITH_NAMES_ALONE };
            let all = [&family.chain[..], &family.noise].concat();
            let given: Vec<Vec<u8>> = order.into_iter().map(|index: usize| all[index].clone()).collect();
            let chain = chain(&given, &family.public_key).unwrap();
            prop_assert_eq!(chain.unrelated, 2);
            prop_assert_eq!(ders(&chain), family.chain.clone());
        }
    }

    #[test]
    fn a_missing_link_ends_the_chain() {
        let family = &WITH_KEY_IDENTIFIERS;
        let [leaf, lower, _, root] = &family.chain[..] else { unreachable!() };
        let chain = chain(&[root.clone(), lower.clone(), leaf.clone()], &family.public_key).unwrap();
        assert_eq!((chain.unrelated, ders(&chain)), (1, vec![leaf.clone(), lower.clone()]));
        assert_eq!(super::tests::chain(std::slice::from_ref(root), &family.public_key), None);
    }

    #[test]
    fn of_two_certificates_for_a_key_the_one_that_is_valid_longer_counts() {
        let issuer = CertifiedIssuer::self_signed(params("ca", true, true), KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let until = |year: i32| {
            let mut params = params("leaf", true, false);
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            params
        };
        let old = until(2040).signed_by(&key, &issuer).unwrap().der().to_vec();
        let new = until(2050).signed_by(&key, &issuer).unwrap().der().to_vec();
        let own = until(2060).self_signed(&key).unwrap().der().to_vec();
        let (_, x509) = X509Certificate::from_der(&new).unwrap();
        let given = [old.clone(), new.clone(), own, issuer.der().to_vec()];
        let chain = chain(&given, x509.public_key().raw).unwrap();
        assert_eq!(ders(&chain), [new.clone(), issuer.der().to_vec()]);
    }

    #[test]
    fn both_certificates_of_an_issuer_that_two_roots_have_signed_are_sent() {
        let new_root = CertifiedIssuer::self_signed(params("new", true, true), KeyPair::generate().unwrap()).unwrap();
        let old_root = CertifiedIssuer::self_signed(params("old", true, true), KeyPair::generate().unwrap()).unwrap();
        let crossed = params("new", true, true).signed_by(new_root.key(), &old_root).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = params("leaf", true, false).signed_by(&key, &new_root).unwrap();
        let (_, x509) = X509Certificate::from_der(leaf.der()).unwrap();
        let given = [new_root.der().to_vec(), crossed.der().to_vec(), leaf.der().to_vec()];
        let chain = chain(&given, x509.public_key().raw).unwrap();
        assert_eq!(ders(&chain), [leaf.der().to_vec(), crossed.der().to_vec(), new_root.der().to_vec()]);
    }
}
