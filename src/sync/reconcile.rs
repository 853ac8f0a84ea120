//! From what Redis says to the next snapshot. Pure: no Redis, no sockets, no clock.
//!
//! The table remembers just enough beside the snapshot to get two things right that a single key cannot tell: which of
//! several spellings of a host is in force, and which backend each index of a dead set meant when it was learnt.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use foldhash::quality::RandomState;

use super::listing::{slots, unchanged};
use crate::{
    clock::Moment,
    routing::{Backend, BackendError, Endpoint, Endpoints, Frontend, Origin, Seen, Slot, Snapshot},
    store::{DeadSet, List, Record},
};

/// The syncer's working copy of the routing table.
#[derive(Default)]
pub struct Table {
    snapshot: Snapshot,
    /// Frontends whose key has capitals, by lower-cased host and then by spelling. They answer only while the lower-case
    /// key has no route.
    variants: HashMap<Box<str>, BTreeMap<Box<str>, Arc<Frontend>>>,
    /// For each key with a dead set: the backend that each of its indexes meant when it appeared.
    dead: HashMap<Box<str>, BTreeMap<usize, Arc<Backend>>>,
    endpoints: Endpoints,
    spares_marks: bool,
    has_retired: bool,
    /// About how much memory the backends had that have been retired since endpoints without one were looked for, in units of
    /// what one takes.
    retired: usize,
}

/// What applying one record did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Whether the snapshot differs from before. Dead marks are not part of the snapshot.
    pub changed: bool,
    /// What was wrong with the record, in words for the log; empty when nothing was.
    pub malformed: Vec<Malformed>,
}

/// A part of a record that had to be skipped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The frontend key is not a list; the last good list stays in force.
    #[error("the key is not a list")]
    NotAList,
    /// A list element is no backend.
    #[error("backend {index} ({url:?}): {error}")]
    Backend {
        /// Its zero-based position among the backends.
        index: usize,
        /// The element's beginning, made printable.
        url: String,
        /// What is wrong with it.
        error: BackendError,
    },
    /// Members of the dead set that are no index.
    #[error("{0} members of the dead set are not indexes")]
    DeadMembers(usize),
}

impl Table {
    /// The present state, for publishing. Cheap.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.clone()
    }

    /// Whether backends have been retired since this was last asked.
    pub fn has_retired(&mut self) -> bool {
        std::mem::take(&mut self.has_retired)
    }

    /// Gives back what is left of backends that are gone, and puts away edits, once they are many. To be called when all that
    /// was applied has been published, and the snapshots before that are no longer in use.
    pub fn tidy(&mut self) {
        self.snapshot.tidy();
        if self.retired > (self.endpoints.count() / 4).max(FEW) {
            self.endpoints.forget_unused();
            self.retired = 0;
        }
    }

    /// A table that was empty holds `read` of about `of` frontends.
    pub fn expect(&mut self, read: usize, of: usize) {
        self.endpoints.expect(read, of);
    }

    /// Says when the records from now on are in force.
    pub fn begin(&mut self, seen: Seen) {
        self.snapshot.begin(seen);
    }

    /// Brings the table into agreement with one host's record, read at `now`.
    pub fn apply(&mut self, record: &Record, now: Moment) -> Applied {
        let mut applied = Applied::default();
        match &record.list {
            Some(List::Elements(elements)) => {
                let held = self.frontend(&record.host);
                if !is_unchanged(held.as_deref(), elements) {
                    let mut endpoints = std::mem::take(&mut self.endpoints);
                    let known = |url: &str| endpoints.get(url);
                    let frontend = self.build(&record.host, elements, held.as_deref(), known, &mut applied.malformed);
                    self.endpoints = endpoints;
                    applied.changed = self.put(&record.host, held.as_deref(), frontend);
                }
                if applied.changed {
                    self.respell_dead(&record.host);
                }
            }
            Some(List::WrongType) => applied.malformed.push(Malformed::NotAList),
            None => {}
        }
        if let Some(dead) = &record.dead {
            if dead.malformed > 0 {
                applied.malformed.push(Malformed::DeadMembers(dead.malformed));
            }
            self.apply_dead(&record.host, dead, now);
        }
        applied
    }

    /// Whether marks that are missing from a dead set stay for now, because its server may never have been told of them; the
    /// first record after that which still misses them revives.
    pub fn spare_marks(&mut self, yes: bool) {
        self.spares_marks = yes;
    }

    /// Another instance has just marked `url` dead: takes it out of rotation for the set's whole `ttl`, even if the set
    /// already held its index and an earlier mark of it has run out. The set must have been applied already. Returns whether
    /// it has the backend.
    pub fn remark(&self, host: &str, url: &str, dead: &DeadSet, now: Moment) -> bool {
        let Ok(origin) = Origin::parse(url) else { return false };
        let is_meant = |backend: &Arc<Backend>| *backend.origin() == origin;
        let known = self.dead.get(host).into_iter().flat_map(BTreeMap::values).find(|backend| is_meant(backend));
        let listed = || {
            let frontend = self.frontend(host)?;
            let mut slots = frontend.slots().iter().filter(|slot| is_meant(&slot.backend));
            slots.find(|slot| dead.indexes.contains(&slot.index)).map(|slot| Arc::clone(&slot.backend))
        };
        let marked = known.cloned().or_else(listed);
        if let Some(backend) = &marked {
            backend.mark_dead(now, deadline(dead, now));
        }
        marked.is_some()
    }

    /// What is left of a dead key after its prefix, taken apart into host and URL, if it is the lease of a backend in the table,
    /// under whatever spelling.
    pub fn lease(&self, name: &str) -> Option<(String, String)> {
        let mut colons = name.match_indices(':').map(|(at, _)| (&name[..at], &name[at + 1..]));
        let (host, url) =
            colons.find(|(host, url)| self.frontend(host).is_some_and(|held| held.slot_of(url).is_some()))?;
        Some((host.to_owned(), url.to_owned()))
    }

    /// How the list spells this backend's URL, as far as it has it.
    pub fn spelling(&self, host: &str, url: &str) -> String {
        let frontend = self.frontend(host);
        let slot = frontend.as_ref().and_then(|frontend| frontend.slot_of(url));
        slot.map_or(url, |slot| slot.backend.url()).to_owned()
    }

    /// The lease of a backend has changed, so somebody checks it, or has just ended to. As long as that goes on, a set that has the
    /// backend prolongs its mark; and where there is neither lease nor mark, it is known to be alive, even if the mark
    /// came and went unseen.
    pub fn heed_lease(&self, host: &str, url: &str, dead: &DeadSet, is_held: bool, now: Moment) {
        if self.remark(host, url, dead, now) || is_held {
            return;
        }
        if let Some(slot) = self.frontend(host).as_ref().and_then(|frontend| frontend.slot_of(url)) {
            slot.backend.revive();
        }
    }

    /// Whether a record says something else than the table holds, dead marks aside.
    pub fn differs(&self, record: &Record) -> bool {
        let Some(List::Elements(elements)) = &record.list else {
            return false;
        };
        let held = self.frontend(&record.host);
        let held = held.as_deref();
        if is_unchanged(held, elements) {
            return false;
        }
        match (held, &self.build(&record.host, elements, held, Endpoint::parse, &mut Vec::new())) {
            (None, None) => false,
            (Some(held), Some(built)) => !same(held, built),
            _ => true,
        }
    }

    /// Whether a record would take a frontend out of the table.
    pub fn would_remove(&self, record: &Record) -> bool {
        let Some(List::Elements(elements)) = &record.list else {
            return false;
        };
        let Some(held) = self.frontend(&record.host) else { return false };
        let is_backend = |element: &Bytes| Origin::parse(&String::from_utf8_lossy(element)).is_ok();
        !is_unchanged(Some(&held), elements) && !elements.iter().skip(1).any(is_backend)
    }

    /// Each index of a dead set that is known, with its key and the backend that it meant.
    pub fn dead_marks(&self) -> impl Iterator<Item = (&str, usize, &Arc<Backend>)> {
        self.dead.iter().flat_map(|(host, marks)| marks.iter().map(move |(index, backend)| (&**host, *index, backend)))
    }

    /// Restores a mark, as an index of a dead set or as this process's own.
    pub fn restore_mark(&mut self, host: &str, url: &str, index: Option<usize>, now: Moment, until: Moment) {
        let Some(frontend) = self.frontend(host) else { return };
        let Some(slot) = frontend.slot_of(url) else { return };
        let backend = Arc::clone(&slot.backend);
        backend.mark_dead(now, until);
        if let Some(index) = index {
            self.dead.entry(host.into()).or_default().insert(index, backend);
        }
    }

    /// How many frontends the table holds, with those that others shadow. Some count twice.
    pub fn count(&self) -> usize {
        self.snapshot.len() + self.variants.values().map(BTreeMap::len).sum::<usize>()
    }

    /// Every frontend that the table holds, those that others shadow included. Some come twice.
    pub fn frontends(&self) -> impl Iterator<Item = Arc<Frontend>> {
        self.snapshot.iter().chain(self.variants.values().flat_map(BTreeMap::values).cloned())
    }

    /// Every key whose dead set the table knows, as Redis spells it.
    pub fn dead_hosts(&self) -> impl Iterator<Item = &str> {
        self.dead.keys().map(AsRef::as_ref)
    }

    /// The frontend of this very spelling, in force or not.
    fn frontend(&self, host: &str) -> Option<Arc<Frontend>> {
        let lower = lower_case(host);
        self.snapshot.get(&lower).filter(|frontend| frontend.key() == host).or_else(|| {
            let spellings = if self.variants.is_empty() { None } else { self.variants.get(&*lower) };
            spellings?.get(host).cloned()
        })
    }

    /// The frontend that a list makes. The backend objects that already stand for backends of this host go on, so that marks
    /// survive any edit of the list, even one that removes the whole list and writes it anew while the dead set stands.
    fn build(
        &self,
        host: &str,
        elements: &[Bytes],
        held: Option<&Frontend>,
        endpoint: impl FnMut(&str) -> Result<Endpoint, BackendError>,
        malformed: &mut Vec<Malformed>,
    ) -> Option<Frontend> {
        let (id, urls) = elements.split_first()?;
        let dead = self.dead.get(host).into_iter().flat_map(BTreeMap::values);
        let slots = slots(urls, held, dead, endpoint, malformed);
        let frontend = Frontend::new(host, &String::from_utf8_lossy(id), slots, urls.len())?;
        Some(match held {
            Some(held) => frontend.continuing(held),
            None => frontend,
        })
    }

    /// Files a frontend under its host, where `held` was; returns whether the snapshot changed.
    fn put(&mut self, host: &str, held: Option<&Frontend>, frontend: Option<Frontend>) -> bool {
        match (held, &frontend) {
            (None, None) => return false,
            (Some(held), Some(new)) if same(held, new) => return false,
            _ => {}
        }
        self.retire(held, frontend.as_ref());
        let frontend = frontend.map(Arc::new);
        let lower = lower_case(host);
        if lower != host {
            let spellings = self.variants.entry((*lower).into()).or_default();
            match frontend {
                Some(frontend) => spellings.insert(host.into(), frontend),
                None => spellings.remove(host),
            };
            if spellings.is_empty() {
                self.variants.remove(&*lower);
            }
            if self.snapshot.get(&lower).is_some_and(|held| held.key() == lower) {
                return false;
            }
            self.fall_back(&lower);
        } else if let Some(frontend) = frontend {
            self.snapshot.insert(frontend);
        } else {
            self.fall_back(&lower);
        }
        true
    }

    /// Retires the backends that one state of a frontend has and the next has not. One that died before it was taken from
    /// the list may come back with it.
    fn retire(&mut self, held: Option<&Frontend>, new: Option<&Frontend>) {
        let [held, new] = [held, new].map(|frontend| frontend.map_or(&[][..], Frontend::slots));
        let is_same = |(held, new): &(&Slot, &Slot)| Arc::ptr_eq(&held.backend, &new.backend);
        let before = held.iter().zip(new).take_while(is_same).count();
        let behind = held[before..].iter().rev().zip(new[before..].iter().rev()).take_while(is_same).count();
        for slot in &new[before..new.len() - behind] {
            slot.backend.set_retired(false);
        }
        let changed = &held[before..held.len() - behind];
        let many: HashSet<_, RandomState> = if changed.len() <= FEW_BACKENDS {
            HashSet::default()
        } else {
            new.iter().map(|slot| Arc::as_ptr(&slot.backend)).collect()
        };
        for Slot { backend, .. } in changed {
            let is_listed = if changed.len() <= FEW_BACKENDS {
                new.iter().any(|slot| Arc::ptr_eq(&slot.backend, backend))
            } else {
                many.contains(&Arc::as_ptr(backend))
            };
            if !is_listed {
                backend.set_retired(true);
                self.has_retired = true;
                self.retired += 1 + backend.url().len() / USUAL_URL;
            }
        }
    }

    /// Lets the indexes of a dead set mean the objects that the list has now, where it spells a URL differently than before.
    fn respell_dead(&mut self, host: &str) {
        if !self.dead.contains_key(host) {
            return;
        }
        let Some(frontend) = self.frontend(host) else { return };
        let listed: HashMap<_, _> =
            frontend.slots().iter().map(|slot| (slot.backend.origin(), &slot.backend)).collect();
        for backend in self.dead.get_mut(host).into_iter().flat_map(BTreeMap::values_mut) {
            if let Some(&respelled) = listed.get(backend.origin()) {
                *backend = Arc::clone(respelled);
            }
        }
    }

    /// Lets the first of the other spellings answer for a host whose lower-case key has no route.
    fn fall_back(&mut self, lower: &str) {
        match self.variants.get(lower).and_then(|spellings| spellings.values().next()) {
            Some(frontend) => self.snapshot.insert(Arc::clone(frontend)),
            None => self.snapshot.remove(lower),
        }
    }

    /// Compares a dead set with what it held before. Only an index that appears marks, and only one that disappears
    /// revives: what an index means is settled when it is first seen, whatever happens to the list afterwards.
    fn apply_dead(&mut self, host: &str, dead: &DeadSet, now: Moment) {
        if dead.indexes.is_empty() && !self.dead.contains_key(host) {
            return;
        }
        let frontend = self.frontend(host);
        let known = self.dead.remove(host).unwrap_or_default();
        let mut next: BTreeMap<usize, Arc<Backend>> = BTreeMap::new();
        for &index in &dead.indexes {
            if let Some(backend) = known.get(&index) {
                next.insert(index, Arc::clone(backend));
            } else if let Some(backend) = frontend.as_ref().and_then(|frontend| frontend.at_index(index)) {
                backend.mark_dead(now, deadline(dead, now));
                next.insert(index, Arc::clone(backend));
            }
        }
        let still: HashSet<_> = next.values().map(Arc::as_ptr).collect();
        for (index, backend) in known {
            if still.contains(&Arc::as_ptr(&backend)) {
                continue;
            }
            if self.spares_marks {
                next.entry(index).or_insert(backend);
            } else {
                backend.revive();
            }
        }
        if !next.is_empty() {
            self.dead.insert(host.into(), next);
        }
    }
}

fn lower_case(host: &str) -> Cow<'_, str> {
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

fn deadline(dead: &DeadSet, now: Moment) -> Moment {
    dead.ttl.map_or(Moment::from_millis(u64::MAX), |ttl| now.after(ttl))
}

/// As much of a value as a log line can bear: Redis allows 512 megabytes.
pub(super) fn excerpt(value: &str) -> Cow<'_, str> {
    match value.char_indices().nth(EXCERPT) {
        None => Cow::Borrowed(value),
        Some((end, _)) => Cow::Owned(format!("{}…", &value[..end])),
    }
}

/// Whether a list surely says what is held already, which is so for nearly all of what a resync reads. Compares texts alone,
/// so that a list with junk, or with two spellings of a backend, never is.
fn is_unchanged(held: Option<&Frontend>, elements: &[Bytes]) -> bool {
    let Some((held, (id, urls))) = held.zip(elements.split_first()) else {
        return held.is_none() && elements.is_empty();
    };
    held.id().as_bytes() == &**id
        && [held.listed(), held.slots().len()] == [urls.len(); 2]
        && unchanged(held, urls) == urls.len()
}

fn same(held: &Frontend, new: &Frontend) -> bool {
    let shape = |frontend: &Frontend| (frontend.listed(), frontend.slots().len());
    held.id() == new.id()
        && shape(held) == shape(new)
        && held.slots().iter().zip(new.slots()).all(|(a, b)| a.index == b.index && Arc::ptr_eq(&a.backend, &b.backend))
}

/// Bytes of a URL that are nothing to wonder at.
const USUAL_URL: usize = 100;

/// So many backends are looked through as fast as they are found by a hash.
const FEW_BACKENDS: usize = 8;

/// Fewer backends than this are not worth giving back what is left of them.
const FEW: usize = 1_000;

/// Characters of a malformed value that are logged.
const EXCERPT: usize = 200;

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use proptest::prelude::*;

    use super::*;
    use crate::routing::{Host, Tried};

    const NOW: Moment = Moment::from_millis(1_000);

    fn list(elements: &[&str]) -> List {
        List::Elements(elements.iter().map(|element| Bytes::copy_from_slice(element.as_bytes())).collect())
    }

    fn record(host: &str, elements: &[&str], dead: &[usize]) -> Record {
        Record {
            host: host.to_owned(),
            list: Some(list(elements)),
            dead: Some(DeadSet { indexes: dead.to_vec(), malformed: 0, ttl: Some(Duration::from_secs(30)) }),
        }
    }

    fn alive(table: &Table, host: &str, now: Moment) -> BTreeSet<String> {
        let snapshot = table.snapshot();
        let Some(frontend) = snapshot.find(&Host::parse(host).unwrap()) else {
            return BTreeSet::new();
        };
        frontend
            .slots()
            .iter()
            .filter(|slot| !slot.backend.is_dead(now))
            .map(|slot| slot.backend.url().to_owned())
            .collect()
    }

    fn urls(urls: &[&str]) -> BTreeSet<String> {
        urls.iter().map(|&url| url.to_owned()).collect()
    }

    #[test]
    fn a_spared_mark_stands_until_it_is_missed_again() {
        let mut table = Table::default();
        table.apply(&record("a", &["id", "http://x", "http://y"], &[0]), NOW);
        let missing = record("a", &["id", "http://x", "http://y"], &[1]);
        table.spare_marks(true);
        table.apply(&missing, NOW);
        assert_eq!(alive(&table, "a", NOW), urls(&[]));
        table.spare_marks(false);
        table.apply(&missing, NOW);
        assert_eq!(alive(&table, "a", NOW), urls(&["http://x"]));
    }

    #[test]
    fn a_host_needs_an_identifier_and_a_backend() {
        let mut table = Table::default();
        assert!(!table.apply(&record("a", &[], &[]), NOW).changed);
        assert!(!table.apply(&record("a", &["id"], &[]), NOW).changed);
        assert!(table.apply(&record("a", &["id", "http://x"], &[]), NOW).changed);
        assert!(!table.apply(&record("a", &["id", "http://x"], &[]), NOW).changed);
        assert!(table.apply(&record("a", &["id"], &[]), NOW).changed);
        assert!(table.snapshot().is_empty());
    }

    #[test]
    fn a_mark_stays_with_its_backend_when_the_list_shifts() {
        let mut table = Table::default();
        table.apply(&record("a", &["id", "http://x", "http://y", "http://z"], &[1]), NOW);
        assert_eq!(alive(&table, "a", NOW), urls(&["http://x", "http://z"]));
        table.apply(&record("a", &["id", "http://y", "http://z"], &[1]), NOW);
        assert_eq!(alive(&table, "a", NOW), urls(&["http://z"]));
        table.apply(&record("a", &[], &[1]), NOW);
        table.apply(&record("a", &["id", "http://z", "http://q", "http://y"], &[1]), NOW);
        assert_eq!(alive(&table, "a", NOW), urls(&["http://q", "http://z"]));
    }

    #[test]
    fn a_removed_index_revives_what_it_marked() {
        let mut table = Table::default();
        table.apply(&record("a", &["id", "http://x", "http://y"], &[0, 1]), NOW);
        table.apply(&record("a", &["id", "http://y", "http://x"], &[1]), NOW);
        assert_eq!(alive(&table, "a", NOW), urls(&["http://x"]));
        table.apply(&record("a", &["id", "http://y", "http://x"], &[]), NOW);
        assert_eq!(alive(&table, "a", NOW).len(), 2);
    }

    #[test]
    fn another_mark_does_not_prolong_the_first() {
        let mut table = Table::default();
        table.apply(&record("a", &["id", "http://x", "http://y"], &[0]), NOW);
        let later = NOW.after(Duration::from_secs(20));
        table.apply(&record("a", &["id", "http://x", "http://y"], &[0, 1]), later);
        assert_eq!(alive(&table, "a", NOW.after(Duration::from_secs(30))), urls(&["http://x"]));
        assert_eq!(alive(&table, "a", later.after(Duration::from_secs(30))).len(), 2);
    }

    #[test]
    fn a_notice_renews_a_mark_that_had_run_out() {
        let mut table = Table::default();
        let elements = ["id", "http://x", "http://y"];
        table.apply(&record("a", &elements, &[0]), NOW);
        let later = NOW.after(Duration::from_secs(31));
        let again = record("a", &elements, &[0]);
        table.apply(&again, later);
        assert_eq!(alive(&table, "a", later).len(), 2);
        table.remark("a", "http://x", again.dead.as_ref().unwrap(), later);
        assert_eq!(alive(&table, "a", later), urls(&["http://y"]));
    }

    #[test]
    fn a_lease_names_a_backend_of_the_table() {
        let mut table = Table::default();
        for host in ["a", "a:80", "*.a"] {
            table.apply(&record(host, &["id", "http://x:1", "x:1"], &[]), NOW);
        }
        let lease = |name: &str| table.lease(name);
        let pair = |host: &str, url: &str| Some((host.to_owned(), url.to_owned()));
        assert_eq!(lease("a:http://x:1"), pair("a", "http://x:1"));
        assert_eq!(lease("a:80:http://x:1"), pair("a:80", "http://x:1"));
        assert_eq!(lease("*.a:x:1"), pair("*.a", "x:1"));
        for name in ["a", "a:80", "a:http://x:2", "b:http://x:1", "a:", ""] {
            assert_eq!(lease(name), None, "{name}");
        }
    }

    #[test]
    fn a_lease_may_be_spelled_in_any_way() {
        let mut table = Table::default();
        table.apply(&record("a", &["id", "http://x:1/\n"], &[0]), NOW);
        for spelling in ["http://x:1", "http://x:1/\n", "X:1"] {
            let (host, url) = table.lease(&format!("a:{spelling}")).unwrap();
            assert_eq!((&*host, &*url, &*table.spelling(&host, &url)), ("a", spelling, "http://x:1/"));
        }
    }

    #[test]
    fn a_notice_may_spell_the_url_in_any_way() {
        let mut table = Table::default();
        let elements = ["id", "http://x:1", "http://y:1"];
        table.apply(&record("a", &elements, &[0]), NOW);
        let later = NOW.after(Duration::from_secs(31));
        let again = record("a", &elements, &[0]);
        assert!(table.remark("a", "HTTP://X:1/", again.dead.as_ref().unwrap(), later));
        assert_eq!(alive(&table, "a", later), urls(&["http://y:1"]));
        assert!(!table.remark("a", "http://y:1/", again.dead.as_ref().unwrap(), later), "the set does not have it");
        assert!(!table.remark("a", "junk url", again.dead.as_ref().unwrap(), later));
    }

    #[test]
    fn a_mark_survives_another_spelling_and_is_lifted_under_it() {
        let mut table = Table::default();
        table.apply(&record("a", &["id", "http://x", "http://y"], &[0]), NOW);
        assert!(table.apply(&record("a", &["id", "http://y", "X:80/\n"], &[0]), NOW).changed);
        assert_eq!(alive(&table, "a", NOW), urls(&["http://y"]));
        assert_eq!(table.snapshot().get("a").unwrap().at_index(1).unwrap().url(), "X:80/");
        assert!(!table.differs(&record("a", &["id", "http://y", "X:80/"], &[0])), "white space is no part of it");
        table.apply(&record("a", &["id", "http://y", "X:80/"], &[]), NOW);
        assert_eq!(alive(&table, "a", NOW), urls(&["X:80/", "http://y"]));
    }

    #[test]
    fn spellings_of_one_backend_share_its_mark() {
        let mut table = Table::default();
        table.apply(&record("a", &["id", "http://x/1", "x:80/2", "http://y"], &[1]), NOW);
        assert_eq!(alive(&table, "a", NOW), urls(&["http://y"]));
        let frontend = table.snapshot().get("a").unwrap();
        let slots = frontend.slots();
        assert!(Arc::ptr_eq(&slots[0].backend, &slots[1].backend));
        assert_eq!(slots[1].backend.url(), "http://x/1", "the first spelling counts");
    }

    #[test]
    fn a_lease_prolongs_the_mark_of_its_backend_alone() {
        let mut table = Table::default();
        let elements = ["id", "http://x", "http://y"];
        table.apply(&record("a", &elements, &[0, 1]), NOW);
        let later = NOW.after(Duration::from_secs(20));
        let again = record("a", &elements, &[0, 1]);
        table.apply(&again, later);
        table.heed_lease("a", "http://x", again.dead.as_ref().unwrap(), true, later);
        assert_eq!(alive(&table, "a", NOW.after(Duration::from_secs(31))), urls(&["http://y"]));
    }

    #[test]
    fn a_lease_prolongs_a_mark_that_is_recorded_under_any_index_of_its_backend() {
        let mut table = Table::default();
        table.apply(&record("a", &["id", "http://x", "http://y", "http://x"], &[2]), NOW);
        let later = NOW.after(Duration::from_secs(20));
        let shifted = record("a", &["id", "http://z", "http://x"], &[2]);
        table.apply(&shifted, later);
        table.heed_lease("a", "http://x", shifted.dead.as_ref().unwrap(), true, later);
        assert_eq!(alive(&table, "a", NOW.after(Duration::from_secs(31))), urls(&["http://z"]));
    }

    #[test]
    fn without_lease_and_mark_a_backend_is_alive() {
        let mut table = Table::default();
        let alone = record("a", &["id", "http://x"], &[]);
        table.apply(&alone, NOW);
        let mark =
            || table.snapshot().get("a").unwrap().slots()[0].backend.mark_dead(NOW, NOW.after(Duration::from_secs(30)));
        mark();
        let dead = alone.dead.as_ref().unwrap();
        table.heed_lease("a", "http://x", dead, true, NOW);
        assert_eq!(alive(&table, "a", NOW), urls(&[]), "the first check is still to come");
        table.heed_lease("a", "http://x", dead, false, NOW);
        assert_eq!(alive(&table, "a", NOW), urls(&["http://x"]));
    }

    #[test]
    fn a_local_mark_survives_a_set_that_does_not_have_it_yet() {
        let mut table = Table::default();
        table.apply(&record("a", &["id", "http://x", "http://y"], &[]), NOW);
        let snapshot = table.snapshot();
        snapshot.get("a").unwrap().slots()[0].backend.mark_dead(NOW, NOW.after(Duration::from_secs(30)));
        table.apply(&record("a", &["id", "http://x", "http://y", "http://z"], &[]), NOW);
        assert_eq!(alive(&table, "a", NOW), urls(&["http://y", "http://z"]));
    }

    #[test]
    fn what_is_no_longer_listed_is_retired_and_may_come_back() {
        let mut table = Table::default();
        table.apply(&record("a", &["id", "http://x", "http://y"], &[0]), NOW);
        assert!(!table.has_retired());
        let x = Arc::clone(table.snapshot().get("a").unwrap().at_index(0).unwrap());
        table.apply(&record("a", &["id", "http://y", "http://z"], &[0]), NOW);
        assert!(x.is_retired() && table.has_retired() && !table.has_retired());
        let are_listed = |frontend: &Frontend| frontend.slots().iter().all(|slot| !slot.backend.is_retired());
        assert!(table.snapshot().iter().all(|frontend| are_listed(&frontend)));
        table.apply(&record("a", &["id", "http://x"], &[0]), NOW);
        assert!(!x.is_retired(), "its mark has kept it");
        table.apply(&record("a", &[], &[0]), NOW);
        assert!(x.is_retired());
    }

    #[test]
    fn a_set_without_expiry_marks_until_it_is_removed() {
        let mut table = Table::default();
        let mut forever = record("a", &["id", "http://x"], &[0]);
        forever.dead.as_mut().unwrap().ttl = None;
        table.apply(&forever, NOW);
        assert!(alive(&table, "a", Moment::from_millis(u64::MAX - 1)).is_empty());
    }

    #[test]
    fn junk_backends_are_skipped_but_keep_their_index() {
        let mut table = Table::default();
        let applied = table.apply(&record("a", &["id", "ftp://x", "http://y"], &[0, 1]), NOW);
        assert_eq!(applied.malformed.len(), 1);
        let snapshot = table.snapshot();
        let frontend = snapshot.get("a").unwrap();
        assert_eq!((frontend.slots()[0].index, frontend.listed()), (1, 2));
        assert!(frontend.choose(NOW, &Tried::default()).is_none());
        assert!(table.apply(&record("a", &["id", "junk url"], &[]), NOW).changed);
        assert!(table.snapshot().is_empty());
    }

    #[test]
    fn a_key_of_the_wrong_type_keeps_the_last_good_list() {
        let mut table = Table::default();
        table.apply(&record("a", &["id", "http://x"], &[]), NOW);
        let wrong = Record { host: "a".into(), list: Some(List::WrongType), dead: None };
        assert_eq!(table.apply(&wrong, NOW), Applied { changed: false, malformed: vec![Malformed::NotAList] });
        assert_eq!(table.snapshot().len(), 1);
    }

    #[test]
    fn the_lower_case_spelling_wins_while_it_has_a_route() {
        let mut table = Table::default();
        assert!(table.apply(&record("Foo", &["id", "http://capital"], &[]), NOW).changed);
        assert_eq!(alive(&table, "foo", NOW), urls(&["http://capital"]));
        assert!(table.apply(&record("foo", &["id", "http://lower"], &[]), NOW).changed);
        assert!(!table.apply(&record("Foo", &["id", "http://other"], &[]), NOW).changed);
        assert_eq!(alive(&table, "foo", NOW), urls(&["http://lower"]));
        assert!(table.apply(&record("foo", &[], &[]), NOW).changed);
        assert_eq!(alive(&table, "foo", NOW), urls(&["http://other"]));
        assert!(table.apply(&record("Foo", &[], &[]), NOW).changed);
        assert!(table.snapshot().is_empty() && table.variants.is_empty());
    }

    #[test]
    fn a_url_listed_twice_is_one_backend() {
        let mut table = Table::default();
        table.apply(&record("a", &["id", "http://x", "http://x", "http://y"], &[0]), NOW);
        assert_eq!(alive(&table, "a", NOW), urls(&["http://y"]));
    }

    proptest! {
        #[test]
        fn the_order_of_edits_does_not_matter_for_where_it_ends(
            edits in proptest::collection::vec(("[aA][bB]?", proptest::collection::vec("http://[t-z]/?|[t-z]:80|junk url", 0..14), proptest::collection::vec(0..4usize, 0..3)), 1..30),
        ) {
            let mut edited = Table::default();
            let mut last = BTreeMap::new();
            for (host, backends, dead) in &edits {
                let mut elements = vec!["id"];
                elements.extend(backends.iter().map(String::as_str));
                let record = record(host, &elements, dead);
                edited.apply(&record, NOW);
                prop_assert!(!edited.differs(&record));
                last.insert(host.clone(), record);
            }
            let mut loaded = Table::default();
            for record in last.values() {
                loaded.apply(record, NOW);
            }
            let shape = |table: &Table| {
                let mut all: Vec<_> = table.snapshot().iter().map(|frontend| {
                    (frontend.key().to_owned(), frontend.slots().iter().map(|slot| (slot.index, slot.backend.url().to_owned())).collect::<Vec<_>>())
                }).collect();
                all.sort();
                all
            };
            prop_assert_eq!(shape(&edited), shape(&loaded));
        }
    }
}
