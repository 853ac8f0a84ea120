//! Which certificate answers which name.

use std::{
    collections::{BTreeMap, HashMap},
    hash::RandomState,
    sync::Arc,
};

use arc_swap::{ArcSwap, Guard};
use foldhash::quality::RandomState as MapHasher;
use imbl::{GenericHashMap, OrdSet, shared_ptr::DefaultSharedPtr};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::pair::{self, Certificate, Content, Offer, PairError, Parsed};

/// The handle through which handshakes read the certificates and one [`Keeper`] replaces them. Cloning shares them; reading
/// is wait-free.
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    current: Arc<ArcSwap<Shelf>>,
}

/// Every certificate in service at one instant. Cloning is cheap and shares what is not changed afterwards.
#[derive(Clone, Default)]
pub struct Shelf {
    exact: Map,
    wildcards: Map,
    catch_all: Option<Arc<Certificate>>,
    by_expiry: OrdSet<(i64, Arc<str>)>,
}

type Map = GenericHashMap<Arc<str>, Arc<Certificate>, MapHasher, DefaultSharedPtr>;

impl Certificates {
    /// The certificates in service now.
    pub fn load(&self) -> Guard<Arc<Shelf>> {
        self.current.load()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.load().find(hello.server_name()).map(|certificate| Arc::clone(certificate.key()))
    }
}

impl Shelf {
    /// The certificate for a name: of exactly this name, else of `*.<parent>`, else of `*`. A client that names nobody gets
    /// the last.
    pub fn find(&self, server_name: Option<&str>) -> Option<&Arc<Certificate>> {
        let lower;
        let name = match server_name {
            None => return self.catch_all.as_ref(),
            Some(name) if name.bytes().any(|byte| byte.is_ascii_uppercase()) => {
                lower = name.to_ascii_lowercase();
                &lower
            }
            Some(name) => name,
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        let of_parent = || self.wildcards.get(name.split_once('.')?.1);
        self.exact.get(name).or_else(of_parent).or(self.catch_all.as_ref())
    }

    /// How many certificates there are.
    pub fn len(&self) -> usize {
        self.by_expiry.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_expiry.is_empty()
    }

    /// Names and the ends of their certificates' validity, in seconds since 1970, the soonest first.
    pub fn by_expiry(&self) -> impl Iterator<Item = &(i64, Arc<str>)> {
        self.by_expiry.iter()
    }

    /// Sets what answers `name`, in lower case.
    fn put(&mut self, name: &str, certificate: Option<Arc<Certificate>>) {
        let expiry = certificate.as_ref().map(|certificate| certificate.not_after());
        let before = match name.strip_prefix('*') {
            Some("") => std::mem::replace(&mut self.catch_all, certificate),
            Some(rest) if rest.starts_with('.') => replace(&mut self.wildcards, &rest[1..], certificate),
            _ => replace(&mut self.exact, name, certificate),
        };
        if let Some(before) = before {
            self.by_expiry.remove(&(before.not_after(), name.into()));
        }
        if let Some(expiry) = expiry {
            self.by_expiry.insert((expiry, name.into()));
        }
    }
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} certificates", self.len())
    }
}

fn replace(map: &mut Map, name: &str, certificate: Option<Arc<Certificate>>) -> Option<Arc<Certificate>> {
    match certificate {
        Some(certificate) => map.insert(name.into(), certificate),
        None => map.remove(name),
    }
}

/// The single writer of [`Certificates`]. A pair that cannot be served changes nothing: what was in service stays so.
#[derive(Default)]
pub struct Keeper {
    certificates: Certificates,
    shelf: Shelf,
    /// By name in lower case, then by name as its source spells it. Of several spellings the last counts, which is the one
    /// in lower case if there is one.
    held: HashMap<Box<str>, BTreeMap<Box<str>, Held>>,
    hasher: RandomState,
    keeps_texts: bool,
}

/// What is known of one spelling of a name.
#[derive(Default)]
struct Held {
    /// Of the content that was looked at last, whether it could be served or not.
    seen: u64,
    certificate: Option<Arc<Certificate>>,
    /// What the certificate was parsed from, where that is kept.
    text: Option<Content>,
}

/// What became of an offer.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in service.
    Taken,
    /// It cannot be served.
    Refused {
        /// Why.
        error: PairError,
        /// Whether an earlier pair goes on being served under this name.
        has_previous: bool,
    },
}

impl Keeper {
    /// The handle to what this keeps.
    pub fn certificates(&self) -> Certificates {
        self.certificates.clone()
    }

    /// Keeps the texts too, from which certificates were parsed.
    #[must_use]
    pub fn keeping_texts(mut self) -> Self {
        self.keeps_texts = true;
        self
    }

    /// The texts of what is in service, by name as its source spells it; nothing unless they are kept.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &Content)> {
        let held = self.held.values().flatten();
        held.filter_map(|(name, held)| Some((&**name, held.text.as_ref()?)))
    }

    /// Drops the offers whose content was seen already.
    pub fn news(&self, offers: Vec<Offer>) -> News {
        let known = |name: &str| Some(self.held.get(&normal(name))?.get(name)?.seen);
        let fingerprints = offers.into_iter().map(|offer| {
            let fingerprint = offer.fingerprint(&self.hasher);
            (offer, fingerprint)
        });
        News(fingerprints.filter(|(offer, fingerprint)| known(&offer.name) != Some(*fingerprint)).collect())
    }

    /// Puts a parsed offer into service, or keeps what was there. Takes effect with [`Keeper::publish`].
    pub fn take(&mut self, parsed: Parsed) -> Outcome {
        let lower = normal(&parsed.name);
        let spellings = self.held.entry(lower.clone()).or_default();
        let held = spellings.entry(parsed.name.into()).or_default();
        held.seen = parsed.fingerprint;
        match parsed.result {
            Ok(certificate) => {
                held.certificate = Some(Arc::new(certificate));
                held.text = Some(parsed.content).filter(|_| self.keeps_texts);
                self.file(&lower);
                Outcome::Taken
            }
            Err(error) => Outcome::Refused { error, has_previous: held.certificate.is_some() },
        }
    }

    /// Takes a name, as its source spelt it, out of service. Returns whether there was anything under it.
    pub fn remove(&mut self, name: &str) -> bool {
        let lower = normal(name);
        let Some(spellings) = self.held.get_mut(&lower) else { return false };
        if spellings.remove(name).is_none() {
            return false;
        }
        if spellings.is_empty() {
            self.held.remove(&lower);
        }
        self.file(&lower);
        true
    }

    /// Whether anything is known under a name, as its source spells it.
    pub fn knows(&self, name: &str) -> bool {
        self.held.get(&normal(name)).is_some_and(|spellings| spellings.contains_key(name))
    }

    /// Every name that something is known of, as its source spells it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.held.values().flat_map(BTreeMap::keys).map(AsRef::as_ref)
    }

    /// How many names have a certificate.
    pub fn len(&self) -> usize {
        self.shelf.len()
    }

    /// Whether no name has a certificate.
    pub fn is_empty(&self) -> bool {
        self.shelf.is_empty()
    }

    /// Makes everything taken and removed so far what handshakes that begin from now on will see.
    pub fn publish(&self) {
        self.certificates.current.store(Arc::new(self.shelf.clone()));
    }

    fn file(&mut self, lower: &str) {
        let spellings = self.held.get(lower).into_iter().flat_map(BTreeMap::values);
        let certificate = spellings.filter_map(|held| held.certificate.clone()).next_back();
        self.shelf.put(lower, certificate);
    }
}

/// Offers that are worth parsing.
pub struct News(Vec<(Offer, u64)>);

impl News {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names that they are for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(offer, _)| offer.name.as_str())
    }

    /// Parses them, on all cores when they are many. Blocks the thread: up to a millisecond for each.
    pub fn parse(self) -> Vec<Parsed> {
        pair::parse_all(self.0)
    }
}

fn normal(name: &str) -> Box<str> {
    name.to_ascii_lowercase().into()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn content(seed: &str) -> Content {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![seed.to_owned()]).unwrap().self_signed(&key).unwrap();
        Content::Pair { certificate: certificate.pem().into(), key: key.serialize_pem().into() }
    }

    fn offer(keeper: &mut Keeper, name: &str, content: Content) -> Vec<Outcome> {
        let news = keeper.news(vec![Offer { name: name.to_owned(), content }]);
        let outcomes = news.parse().into_iter().map(|parsed| keeper.take(parsed)).collect();
        keeper.publish();
        outcomes
    }

    fn found(keeper: &Keeper, name: Option<&str>) -> Option<*const Certificate> {
        keeper.certificates().load().find(name).map(Arc::as_ptr)
    }

    #[test]
    fn the_most_specific_name_wins() {
        let mut keeper = Keeper::default();
        for name in ["*", "*.example.com", "a.example.com"] {
            assert_eq!(offer(&mut keeper, name, content(name)), [Outcome::Taken]);
        }
        let [any, parent, exact] =
            [Some("else.test"), Some("b.example.com"), Some("A.Example.com")].map(|name| found(&keeper, name).unwrap());
        assert!(any != parent && parent != exact);
        assert_eq!(found(&keeper, None), Some(any));
        assert_eq!(found(&keeper, Some("x.a.example.com")), Some(any), "a wildcard stands for one label");
        assert_eq!(found(&keeper, Some("example.com")), Some(any));
        assert_eq!(found(&keeper, Some("a.example.com.")), Some(exact));
        keeper.remove("*");
        keeper.remove("a.example.com");
        keeper.publish();
        assert_eq!(found(&keeper, Some("a.example.com")), Some(parent));
        assert_eq!((found(&keeper, None), found(&keeper, Some("else.test"))), (None, None));
    }

    #[test]
    fn a_bad_pair_leaves_the_previous_in_service_and_is_looked_at_once() {
        let mut keeper = Keeper::default();
        offer(&mut keeper, "a", content("a"));
        let before = found(&keeper, Some("a"));
        let (Content::Pair { certificate, .. }, Content::Pair { key, .. }) = (content("a"), content("a")) else {
            unreachable!()
        };
        let mismatch = Content::Pair { certificate, key };
        let refused = Outcome::Refused { error: PairError::Mismatch, has_previous: true };
        assert_eq!(offer(&mut keeper, "a", mismatch.clone()), [refused]);
        assert_eq!(offer(&mut keeper, "a", mismatch), []);
        assert_eq!(found(&keeper, Some("a")), before);
        let unreadable = Content::Unreadable("it is a string".to_owned());
        let refused =
            Outcome::Refused { error: PairError::Unreadable("it is a string".to_owned()), has_previous: false };
        assert_eq!(offer(&mut keeper, "b", unreadable), [refused]);
        assert_eq!(keeper.certificates().load().len(), 1);
        assert!(keeper.remove("b") && !keeper.remove("b") && keeper.remove("a"));
        keeper.publish();
        assert_eq!(found(&keeper, Some("a")), None);
    }

    #[test]
    fn the_same_content_is_no_news() {
        let mut keeper = Keeper::default();
        let same = content("a");
        assert_eq!(offer(&mut keeper, "a", same.clone()), [Outcome::Taken]);
        assert_eq!(offer(&mut keeper, "a", same.clone()), []);
        assert_eq!(offer(&mut keeper, "b", same), [Outcome::Taken]);
    }

    #[test]
    fn of_two_spellings_the_lower_case_one_counts() {
        let mut keeper = Keeper::default();
        offer(&mut keeper, "a.test", content("lower"));
        let lower = found(&keeper, Some("a.test"));
        offer(&mut keeper, "A.test", content("upper"));
        assert_eq!(found(&keeper, Some("a.test")), lower);
        keeper.remove("a.test");
        keeper.publish();
        assert!(found(&keeper, Some("a.test")).is_some_and(|certificate| Some(certificate) != lower));
        assert_eq!(keeper.names().collect::<Vec<_>>(), ["A.test"]);
        assert_eq!(keeper.certificates().load().len(), 1);
    }

    #[test]
    fn the_soonest_to_expire_comes_first() {
        let mut keeper = Keeper::default();
        for (name, year) in [("a", 2050), ("b", 2030), ("c", 2040)] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let certificate = params.self_signed(&key).unwrap();
            let content = Content::Pair { certificate: certificate.pem().into(), key: key.serialize_pem().into() };
            offer(&mut keeper, name, content);
        }
        let names = |keeper: &Keeper| {
            let shelf = keeper.certificates();
            let shelf = shelf.load();
            shelf.by_expiry().map(|(_, name)| name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&keeper), ["b", "c", "a"]);
        offer(&mut keeper, "b", content("b"));
        assert_eq!(names(&keeper), ["c", "a", "b"]);
        keeper.remove("c");
        keeper.publish();
        assert_eq!(names(&keeper), ["a", "b"]);
    }
}
