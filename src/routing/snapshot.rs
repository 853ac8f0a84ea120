//! The routing table at one instant.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    sync::Arc,
};

use foldhash::quality::RandomState;
use imbl::{GenericHashMap, shared_ptr::DefaultSharedPtr};

use super::{Frontend, Host};

/// Every route, by host. Cloning is cheap and shares all that is not changed afterwards, so that one edit of a table of a
/// million hosts costs microseconds.
///
/// Hosts are chosen by strangers, so the hasher is seeded anew in each process.
#[derive(Clone, Default)]
pub struct Snapshot {
    exact: Map<0>,
    wildcards: Map<WILDCARD>,
    catch_all: Option<Arc<Frontend>>,
}

impl Snapshot {
    /// The frontend for a request: the host as sent, then without its port, then the wildcards, then the catch-all.
    pub fn find(&self, host: &Host<'_>) -> Option<&Arc<Frontend>> {
        if let Some(frontend) = self.get(host.full()) {
            return Some(frontend);
        }
        if host.name().len() != host.full().len()
            && let Some(frontend) = self.get(host.name())
        {
            return Some(frontend);
        }
        if !self.wildcards.is_empty() {
            for suffix in host.wildcard_suffixes() {
                if let Some((Filed(frontend), ())) = self.wildcards.get_key_value(suffix) {
                    return Some(frontend);
                }
            }
        }
        self.catch_all.as_ref()
    }

    /// The frontend of exactly this key, lower-cased and without `frontend:`.
    pub fn get(&self, key: &str) -> Option<&Arc<Frontend>> {
        match Place::of(key) {
            Place::CatchAll => self.catch_all.as_ref(),
            Place::Wildcard(suffix) => self.wildcards.get_key_value(suffix).map(|(Filed(frontend), ())| frontend),
            Place::Exact => self.exact.get_key_value(key).map(|(Filed(frontend), ())| frontend),
        }
    }

    /// Lets a frontend answer for its key, in whatever case, instead of the one that did.
    pub fn insert(&mut self, frontend: Arc<Frontend>) {
        match Place::of(frontend.lower_key()) {
            Place::CatchAll => self.catch_all = Some(frontend),
            Place::Wildcard(_) => {
                self.wildcards.insert(Filed(frontend), ());
            }
            Place::Exact => {
                self.exact.insert(Filed(frontend), ());
            }
        }
    }

    /// Removes the route for `key`, lower-cased and without `frontend:`.
    pub fn remove(&mut self, key: &str) {
        match Place::of(key) {
            Place::CatchAll => self.catch_all = None,
            Place::Wildcard(suffix) => {
                self.wildcards.remove(suffix);
            }
            Place::Exact => {
                self.exact.remove(key);
            }
        }
    }

    /// How many frontends there are.
    pub fn len(&self) -> usize {
        self.exact.len() + self.wildcards.len() + usize::from(self.catch_all.is_some())
    }

    /// Whether there is no route at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every frontend, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Frontend>> {
        let exact = self.exact.keys().map(|Filed(frontend)| frontend);
        exact.chain(self.wildcards.keys().map(|Filed(frontend)| frontend)).chain(&self.catch_all)
    }
}

/// Where a key lives. Wildcards are filed under what follows `*.`, so that a request tries them with slices of its host.
enum Place<'a> {
    Exact,
    Wildcard(&'a str),
    CatchAll,
}

impl<'a> Place<'a> {
    fn of(key: &'a str) -> Self {
        match key.strip_prefix('*') {
            Some("") => Self::CatchAll,
            Some(rest) => rest.strip_prefix('.').map_or(Self::Exact, Self::Wildcard),
            None => Self::Exact,
        }
    }
}

type Map<const SKIPPED: usize> = GenericHashMap<Filed<SKIPPED>, (), RandomState, DefaultSharedPtr>;

/// A frontend under its own lower-cased key, of which so many bytes are skipped. A key beside it would weigh half as much as
/// the frontend itself.
#[derive(Clone)]
struct Filed<const SKIPPED: usize>(Arc<Frontend>);

/// Bytes of `*.`.
const WILDCARD: usize = 2;

impl<const SKIPPED: usize> Borrow<str> for Filed<SKIPPED> {
    fn borrow(&self) -> &str {
        &self.0.lower_key()[SKIPPED..]
    }
}

impl<const SKIPPED: usize> Hash for Filed<SKIPPED> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Borrow::<str>::borrow(self).hash(state);
    }
}

impl<const SKIPPED: usize> PartialEq for Filed<SKIPPED> {
    fn eq(&self, other: &Self) -> bool {
        self.0.lower_key() == other.0.lower_key()
    }
}

impl<const SKIPPED: usize> Eq for Filed<SKIPPED> {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::routing::{Backend, Slot};

    fn snapshot(keys: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for key in keys {
            let slot = Slot { index: 0, backend: Arc::new(Backend::parse("http://b").unwrap()) };
            snapshot.insert(Arc::new(Frontend::new(key, "", vec![slot], 1).unwrap()));
        }
        snapshot
    }

    fn found(snapshot: &Snapshot, host: &str) -> Option<String> {
        snapshot.find(&Host::parse(host).unwrap()).map(|frontend| frontend.key().to_owned())
    }

    #[test]
    fn the_most_specific_key_wins() {
        let keys = ["a.example.com:8080", "a.example.com", "*.example.com", "*.com", "*"];
        let mut table = snapshot(&keys);
        for key in keys {
            assert_eq!(found(&table, "A.example.com:8080").as_deref(), Some(key));
            table.remove(key);
        }
        assert!(table.is_empty());
        assert_eq!(found(&table, "a.example.com"), None);
    }

    #[test]
    fn a_wildcard_does_not_match_its_own_parent() {
        let table = snapshot(&["*.foo.bar"]);
        assert_eq!(found(&table, "foo.bar"), None);
        assert_eq!(found(&table, "x.foo.bar:99").as_deref(), Some("*.foo.bar"));
        assert_eq!(found(&table, "deep.er.foo.bar").as_deref(), Some("*.foo.bar"));
    }

    #[test]
    fn another_port_does_not_match() {
        let table = snapshot(&["a.example.com:8080"]);
        assert_eq!(found(&table, "a.example.com:8081"), None);
        assert_eq!(found(&table, "a.example.com"), None);
    }

    #[test]
    fn an_older_snapshot_is_not_changed_by_a_newer() {
        let old = snapshot(&["a", "b"]);
        let mut new = old.clone();
        new.remove("a");
        assert_eq!((old.len(), new.len()), (2, 1));
        assert!(old.get("a").is_some() && new.get("a").is_none());
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(edits in proptest::collection::vec(("(\\*|\\*\\.)?[a-c]{0,2}", any::<bool>()), 0..60)) {
            let mut table = Snapshot::default();
            let mut model = std::collections::BTreeSet::new();
            for (key, add) in &edits {
                if *add {
                    let slot = Slot { index: 0, backend: Arc::new(Backend::parse("http://b").unwrap()) };
                    table.insert(Arc::new(Frontend::new(key, "", vec![slot], 1).unwrap()));
                    model.insert(key.clone());
                } else {
                    table.remove(key);
                    model.remove(key);
                }
            }
            let held: std::collections::BTreeSet<String> = table.iter().map(|frontend| frontend.key().to_owned()).collect();
            prop_assert_eq!(table.len(), model.len());
            prop_assert_eq!(held, model);
        }
    }
}
