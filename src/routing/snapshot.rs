//! The routing table at one instant.

use std::sync::Arc;

use super::{Frontend, Host, directory::Directory};

/// Every route, by host. Cloning is cheap: what is not edited is shared.
///
/// Edits are seen together or not at all, and an older snapshot is not changed by them, unless they come by the hundred (see
/// [`Seen`]): each of those is seen by itself, in older snapshots as well. A request looks for its own host alone.
#[derive(Clone, Default)]
pub struct Snapshot {
    exact: Directory<0>,
    wildcards: Directory<WILDCARD>,
    catch_all: Option<Arc<Frontend>>,
    seen: Seen,
}

/// When edits are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seen {
    /// Once the snapshot that has them is published.
    #[default]
    Together,
    /// Each as soon as it is made.
    OneByOne,
}

impl Seen {
    /// How so many edits are best seen that all go into the next snapshot.
    pub fn of(edits: usize) -> Self {
        if edits <= FEW { Self::Together } else { Self::OneByOne }
    }
}

impl Snapshot {
    /// The frontend for a request: the host as sent, then without its port, then the wildcards, then the catch-all.
    pub fn find(&self, host: &Host<'_>) -> Option<Arc<Frontend>> {
        if let Some(frontend) = self.get(host.full()) {
            return Some(frontend);
        }
        if host.name().len() != host.full().len()
            && let Some(frontend) = self.get(host.name())
        {
            return Some(frontend);
        }
        if self.wildcards.len() > 0
            && let Some(frontend) = host.wildcard_suffixes().find_map(|suffix| self.wildcards.get(suffix))
        {
            return Some(frontend);
        }
        self.catch_all.clone()
    }

    /// The frontend of exactly this key, lower-cased and without `frontend:`.
    pub fn get(&self, key: &str) -> Option<Arc<Frontend>> {
        match Place::of(key) {
            Place::CatchAll => self.catch_all.clone(),
            Place::Wildcard(suffix) => self.wildcards.get(suffix),
            Place::Exact => self.exact.get(key),
        }
    }

    /// Says when the edits from now on are seen. Those before are, from now on at the latest, where that is one by one.
    pub fn begin(&mut self, seen: Seen) {
        self.seen = seen;
        if seen == Seen::OneByOne {
            self.merge();
        }
    }

    /// All edits so far have been published: where they are many, the next snapshots share them instead of copying them.
    pub fn tidy(&mut self) {
        if self.exact.edits() + self.wildcards.edits() >= FEW {
            self.merge();
        }
    }

    fn merge(&mut self) {
        self.exact.merge();
        self.wildcards.merge();
    }

    /// Lets a frontend answer for its key, in whatever case, instead of the one that did.
    pub fn insert(&mut self, frontend: Arc<Frontend>) {
        match (Place::of(frontend.lower_key()), self.seen) {
            (Place::CatchAll, _) => self.catch_all = Some(frontend),
            (Place::Wildcard(_), Seen::Together) => self.wildcards.insert(frontend),
            (Place::Wildcard(_), Seen::OneByOne) => self.wildcards.insert_for_all(frontend),
            (Place::Exact, Seen::Together) => self.exact.insert(frontend),
            (Place::Exact, Seen::OneByOne) => self.exact.insert_for_all(frontend),
        }
    }

    /// Removes the route for `key`, lower-cased and without `frontend:`.
    pub fn remove(&mut self, key: &str) {
        match (Place::of(key), self.seen) {
            (Place::CatchAll, _) => self.catch_all = None,
            (Place::Wildcard(suffix), Seen::Together) => self.wildcards.remove(suffix),
            (Place::Wildcard(suffix), Seen::OneByOne) => self.wildcards.remove_for_all(suffix),
            (Place::Exact, Seen::Together) => self.exact.remove(key),
            (Place::Exact, Seen::OneByOne) => self.exact.remove_for_all(key),
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
    pub fn iter(&self) -> impl Iterator<Item = Arc<Frontend>> {
        self.exact.iter().chain(self.wildcards.iter()).chain(self.catch_all.clone())
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

/// Bytes of `*.`.
const WILDCARD: usize = 2;

/// So many edits are copied with each snapshot in no time, and more are nobody's one transaction.
const FEW: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::routing::{Backend, Slot};

    fn snapshot(keys: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for key in keys {
            snapshot.insert(frontend(key));
        }
        snapshot
    }

    fn frontend(key: &str) -> Arc<Frontend> {
        let slot = Slot { index: 0, backend: Arc::new(Backend::parse("http://b").unwrap()) };
        Arc::new(Frontend::new(key, "", vec![slot], 1).unwrap())
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
        let old = snapshot(&["a", "b", "*.c"]);
        let mut new = old.clone();
        new.begin(Seen::Together);
        for key in ["a", "*.c"] {
            new.remove(key);
        }
        new.insert(frontend("d"));
        assert_eq!((old.len(), new.len()), (3, 2));
        assert!(old.get("a").is_some() && old.get("*.c").is_some() && old.get("d").is_none());
        assert!(new.get("a").is_none() && new.get("*.c").is_none() && new.get("d").is_some());
    }

    #[test]
    fn what_is_to_be_seen_one_by_one_is_seen_at_once() {
        let mut new = snapshot(&["a", "b"]);
        new.begin(Seen::OneByOne);
        let old = new.clone();
        let again = frontend("a");
        new.insert(Arc::clone(&again));
        assert!(Arc::ptr_eq(&old.get("a").unwrap(), &again));
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(
            batches in proptest::collection::vec((prop_oneof![Just(Seen::Together), Just(Seen::OneByOne)], proptest::collection::vec(("(\\*|\\*\\.)?[a-c]{0,3}", any::<bool>()), 0..200)), 0..6),
        ) {
            let mut table = Snapshot::default();
            let mut model = std::collections::BTreeMap::new();
            for (seen, edits) in &batches {
                table.begin(*seen);
                let (before, held_before) = (table.clone(), model.clone());
                for (key, add) in edits {
                    if *add {
                        let frontend = frontend(key);
                        table.insert(Arc::clone(&frontend));
                        model.insert(key.clone(), frontend);
                    } else {
                        table.remove(key);
                        model.remove(key);
                    }
                }
                let is_held = |table: &Snapshot, model: &std::collections::BTreeMap<String, Arc<Frontend>>| {
                    let mut held: Vec<_> = table.iter().collect();
                    held.sort_by(|one, other| one.key().cmp(other.key()));
                    let is_same = |(held, meant): (&Arc<Frontend>, &Arc<Frontend>)| {
                        Arc::ptr_eq(held, meant) && Arc::ptr_eq(held, &table.get(held.lower_key()).unwrap())
                    };
                    table.len() == model.len() && held.len() == model.len() && held.iter().zip(model.values()).all(is_same)
                };
                prop_assert!(is_held(&table, &model));
                prop_assert!(*seen == Seen::OneByOne || is_held(&before, &held_before), "an older state has changed");
            }
        }
    }
}
