//! Frontends by name, for many readers and one writer.
//!
//! Nearly all of them are in one table that every state of the directory shares, and that the writer changes in place. To copy
//! just those parts of a table of a million that an edit touches would cost more than the edit: they are far apart in memory.
//! The last edits lie beside it, in a table that belongs to one state, so that what is edited at once is seen at once.

use std::{
    hash::BuildHasher,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use foldhash::quality::RandomState;
use hashbrown::{HashTable, hash_table::Entry};

use super::Frontend;

/// Frontends under their lower-cased keys, of which so many bytes are skipped. A clone is a state of its own, but for what is
/// edited for all.
#[derive(Clone, Default)]
pub(super) struct Directory<const SKIPPED: usize> {
    shared: Arc<Shared<SKIPPED>>,
    edits: Arc<HashTable<Edit>>,
    len: usize,
}

/// The large table, in parts, of which a writer locks one for as long as it takes to exchange a pointer or to move a part.
struct Shared<const SKIPPED: usize> {
    parts: Box<[Part]>,
    /// Seeded anew in each process, because hosts are chosen by strangers.
    hasher: RandomState,
}

/// Parts that workers on several cores read share no cache line.
#[derive(Default)]
#[repr(align(64))]
struct Part(RwLock<HashTable<Arc<Frontend>>>);

/// A name that is not, or not only, in the large table.
#[derive(Clone)]
enum Edit {
    Held(Arc<Frontend>),
    Gone(Arc<str>),
}

impl<const SKIPPED: usize> Directory<SKIPPED> {
    /// The frontend of exactly this name.
    pub(super) fn get(&self, name: &str) -> Option<Arc<Frontend>> {
        let hash = self.hash(name);
        match self.edit(hash, name) {
            Some(Edit::Held(frontend)) => Some(Arc::clone(frontend)),
            Some(Edit::Gone(_)) => None,
            None => self.shared.get(hash, name),
        }
    }

    /// Files a frontend under its name, instead of the one that is there.
    pub(super) fn insert(&mut self, frontend: Arc<Frontend>) {
        let hash = self.hash(name_of::<SKIPPED>(&frontend));
        let is_held = self.holds(hash, name_of::<SKIPPED>(&frontend));
        self.note(hash, Edit::Held(frontend));
        self.len += usize::from(!is_held);
    }

    /// Takes away the frontend of this name.
    pub(super) fn remove(&mut self, name: &str) {
        let hash = self.hash(name);
        if self.holds(hash, name) {
            self.note(hash, Edit::Gone(name.into()));
            self.len -= 1;
        }
    }

    /// As [`Directory::insert`], for other states as well. There must be no edits that are not merged.
    pub(super) fn insert_for_all(&mut self, frontend: Arc<Frontend>) {
        let hash = self.hash(name_of::<SKIPPED>(&frontend));
        self.len += usize::from(self.shared.insert(hash, frontend).is_none());
    }

    /// As [`Directory::remove`], for other states as well. There must be no edits that are not merged.
    pub(super) fn remove_for_all(&mut self, name: &str) {
        let hash = self.hash(name);
        self.len -= usize::from(self.shared.remove(hash, name).is_some());
    }

    /// How many edits lie beside the large table.
    pub(super) fn edits(&self) -> usize {
        self.edits.len()
    }

    /// Moves the edits to the large table. Other states, which may still lack them, see them earlier.
    pub(super) fn merge(&mut self) {
        for edit in &*std::mem::take(&mut self.edits) {
            let hash = self.hash(edit.name::<SKIPPED>());
            match edit {
                Edit::Held(frontend) => self.shared.insert(hash, Arc::clone(frontend)),
                Edit::Gone(name) => self.shared.remove(hash, name),
            };
        }
    }

    /// How many frontends there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Every frontend, in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Arc<Frontend>> {
        let is_edited = |frontend: &Arc<Frontend>| {
            let name = name_of::<SKIPPED>(frontend);
            !self.edits.is_empty() && self.edit(self.hash(name), name).is_some()
        };
        let part = move |part: &Part| {
            let held = part.read();
            held.iter().filter(|frontend| !is_edited(frontend)).cloned().collect::<Vec<_>>()
        };
        let edits = self.edits.iter().filter_map(|edit| match edit {
            Edit::Held(frontend) => Some(Arc::clone(frontend)),
            Edit::Gone(_) => None,
        });
        self.shared.parts.iter().flat_map(part).chain(edits)
    }

    fn hash(&self, name: &str) -> u64 {
        self.shared.hasher.hash_one(name)
    }

    fn edit(&self, hash: u64, name: &str) -> Option<&Edit> {
        self.edits.find(hash, |edit| edit.name::<SKIPPED>() == name)
    }

    fn holds(&self, hash: u64, name: &str) -> bool {
        match self.edit(hash, name) {
            Some(edit) => matches!(edit, Edit::Held(_)),
            None => self.shared.get(hash, name).is_some(),
        }
    }

    fn note(&mut self, hash: u64, edit: Edit) {
        let hasher = &self.shared.hasher;
        let edits = Arc::make_mut(&mut self.edits);
        let is_same = |other: &Edit| other.name::<SKIPPED>() == edit.name::<SKIPPED>();
        match edits.entry(hash, is_same, |edit| hasher.hash_one(edit.name::<SKIPPED>())) {
            Entry::Occupied(mut entry) => *entry.get_mut() = edit,
            Entry::Vacant(entry) => {
                entry.insert(edit);
            }
        }
    }
}

impl<const SKIPPED: usize> Shared<SKIPPED> {
    fn part(&self, hash: u64) -> &Part {
        // The tables of the parts use the other bits.
        let part = usize::try_from(hash >> 32).unwrap_or_default();
        &self.parts[part % PARTS]
    }

    fn get(&self, hash: u64, name: &str) -> Option<Arc<Frontend>> {
        self.part(hash).read().find(hash, |held| name_of::<SKIPPED>(held) == name).cloned()
    }

    /// What it returns is to be dropped by the caller, when others may read again.
    fn insert(&self, hash: u64, frontend: Arc<Frontend>) -> Option<Arc<Frontend>> {
        let mut part = self.part(hash).write();
        let is_same = |held: &Arc<Frontend>| name_of::<SKIPPED>(held) == name_of::<SKIPPED>(&frontend);
        match part.entry(hash, is_same, |held| self.hasher.hash_one(name_of::<SKIPPED>(held))) {
            Entry::Occupied(mut entry) => Some(std::mem::replace(entry.get_mut(), frontend)),
            Entry::Vacant(entry) => {
                entry.insert(frontend);
                None
            }
        }
    }

    fn remove(&self, hash: u64, name: &str) -> Option<Arc<Frontend>> {
        let mut part = self.part(hash).write();
        let (frontend, _) = part.find_entry(hash, |held| name_of::<SKIPPED>(held) == name).ok()?.remove();
        if part.len() < part.capacity() / 4 && part.capacity() > SMALL {
            part.shrink_to_fit(|held| self.hasher.hash_one(name_of::<SKIPPED>(held)));
        }
        Some(frontend)
    }
}

impl<const SKIPPED: usize> Default for Shared<SKIPPED> {
    fn default() -> Self {
        Self { parts: (0..PARTS).map(|_| Part::default()).collect(), hasher: RandomState::default() }
    }
}

impl Part {
    fn read(&self) -> RwLockReadGuard<'_, HashTable<Arc<Frontend>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashTable<Arc<Frontend>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Edit {
    fn name<const SKIPPED: usize>(&self) -> &str {
        match self {
            Self::Held(frontend) => name_of::<SKIPPED>(frontend),
            Self::Gone(name) => name,
        }
    }
}

fn name_of<const SKIPPED: usize>(frontend: &Frontend) -> &str {
    &frontend.lower_key()[SKIPPED..]
}

/// A part of a table of a million is moved to a larger place in a tenth of a millisecond.
const PARTS: usize = 1_024;

/// Room for so many is not worth giving back.
const SMALL: usize = 64;
