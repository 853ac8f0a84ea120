//! A host's backends and the choice among them.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use once_cell::race::OnceBox;
use smallvec::SmallVec;

use super::{Backend, Origin, RetryBudget, alive::AliveSlots, policy::Tags};
use crate::clock::Moment;

/// A frontend with at least one backend. Immutable but for its cursor and its backends' dead marks.
#[derive(Debug)]
pub struct Frontend {
    /// The key's name in lower case, the same as Redis spells it where that is otherwise, and the identifier.
    text: Box<str>,
    key_len: u32,
    id_at: u32,
    listed: u32,
    slots: Box<[Slot]>,
    pub(super) cursor: AtomicUsize,
    /// Made when it is first needed: most frontends of a large table have none for long.
    rest: OnceBox<Rest>,
}

/// What only busy frontends need.
#[derive(Debug, Default)]
struct Rest {
    /// Where retries are in turns of their own: they must not shift the others', or a request after a failed one would begin
    /// where that did.
    retry_cursor: AtomicUsize,
    budget: OnceLock<Arc<RetryBudget>>,
    alive: AliveSlots,
    tags: OnceLock<Tags>,
}

/// One element of the frontend's list. A backend that is listed twice, whatever the spellings, fills two slots, which share one
/// [`Backend`].
#[derive(Clone, Debug)]
pub struct Slot {
    /// Zero-based position among the list's backends, which is what `dead:` sets hold. Malformed elements count, so slots
    /// may skip numbers.
    pub index: usize,
    /// The backend.
    pub backend: Arc<Backend>,
}

/// A backend picked for one attempt of one request.
#[derive(Clone, Debug)]
pub struct Choice {
    /// See [`Slot::index`].
    pub index: usize,
    /// The backend.
    pub backend: Arc<Backend>,
}

impl Choice {
    /// The backend of this slot.
    pub fn of(slot: &Slot) -> Self {
        Self { index: slot.index, backend: Arc::clone(&slot.backend) }
    }
}

/// The backends that one request has already failed on.
#[derive(Debug, Default)]
pub struct Tried(SmallVec<[Arc<Backend>; 4]>);

impl Tried {
    /// Whether nothing is excluded.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Excludes `backend` from the request's further choices.
    pub fn add(&mut self, backend: Arc<Backend>) {
        self.0.push(backend);
    }

    /// Whether `backend` is excluded.
    pub fn contains(&self, backend: &Arc<Backend>) -> bool {
        self.0.iter().any(|tried| Arc::ptr_eq(tried, backend))
    }
}

impl Frontend {
    /// A frontend for the Redis key `frontend:<key>`, whose list has the identifier `id` and `listed` further elements, of
    /// which `slots`, in order, are usable. `None` without a usable backend: such a host has no route.
    pub fn new(key: &str, id: &str, slots: Vec<Slot>, listed: usize) -> Option<Self> {
        if slots.is_empty() {
            return None;
        }
        let has_capitals = key.bytes().any(|byte| byte.is_ascii_uppercase());
        let id_at = key.len() * if has_capitals { 2 } else { 1 };
        let mut text = String::with_capacity(id_at + id.len());
        text.push_str(key);
        if has_capitals {
            text.make_ascii_lowercase();
            text.push_str(key);
        }
        text.push_str(id);
        let [key_len, id_at, listed] = [key.len(), id_at, listed].map(u32::try_from);
        let (key_len, id_at, listed) = (key_len.ok()?, id_at.ok()?, listed.ok()?);
        Some(Self {
            text: text.into(),
            key_len,
            id_at,
            listed,
            slots: slots.into(),
            cursor: AtomicUsize::new(0),
            rest: OnceBox::new(),
        })
    }

    /// Continues the rotation, and the retry budget, where `previous`, an older state of the same frontend, is now.
    #[must_use]
    pub fn continuing(mut self, previous: &Frontend) -> Self {
        self.cursor = previous.cursor.load(Ordering::Relaxed).into();
        if let Some(budget) =
            previous.rest.get().map(|rest| rest.budget.clone()).filter(|budget| budget.get().is_some())
        {
            self.rest = OnceBox::with_value(Box::new(Rest { budget, ..Rest::default() }));
        }
        self
    }

    fn rest(&self) -> &Rest {
        self.rest.get_or_init(Box::default)
    }

    /// The name of the key in Redis, without `frontend:`, in its original case.
    pub fn key(&self) -> &str {
        let length = self.key_len as usize;
        &self.text[self.id_at as usize - length..][..length]
    }

    /// The same in lower case.
    pub fn lower_key(&self) -> &str {
        &self.text[..self.key_len as usize]
    }

    /// Element 0 of the list.
    pub fn id(&self) -> &str {
        &self.text[self.id_at as usize..]
    }

    /// The usable backends, in the list's order. Never empty.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// How many backends the list has, malformed ones included.
    pub fn listed(&self) -> usize {
        self.listed as usize
    }

    /// Whether there is no backend but one, however often that is listed.
    pub fn has_one_backend(&self) -> bool {
        let mut others = self.slots.iter().skip(1);
        others.all(|slot| Arc::ptr_eq(&slot.backend, &self.slots[0].backend))
    }

    /// The backend that an index of a `dead:` set means at present.
    pub fn at_index(&self, index: usize) -> Option<&Arc<Backend>> {
        let position = self.slots.binary_search_by_key(&index, |slot| slot.index).ok()?;
        Some(&self.slots[position].backend)
    }

    /// The first slot of this backend.
    pub fn slot_at(&self, origin: &Origin) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.backend.origin() == origin)
    }

    /// The first slot of the backend that this URL means, however it is spelled.
    pub fn slot_of(&self, url: &str) -> Option<&Slot> {
        self.slot_at(&Origin::parse(url).ok()?)
    }

    /// Finds its slots by their backends' tags. Made at the first call, with what tells the tags.
    pub(super) fn tags(&self, make: impl FnOnce() -> Tags) -> &Tags {
        self.rest().tags.get_or_init(make)
    }

    /// Where retries are in their turns.
    pub(super) fn retry_cursor(&self) -> &AtomicUsize {
        &self.rest().retry_cursor
    }

    /// What its requests' retries are counted by.
    pub fn retry_budget(&self) -> &RetryBudget {
        self.rest().budget.get_or_init(Arc::default)
    }

    /// A slot whose backend is alive at `now` and not `excluded`; `None` if there is none. `place` is given the number of those
    /// that are alive, and says which it shall be; where that one is excluded, it is the next that is not.
    ///
    /// In a short list, the excluded do not count, so that places are shared out among the others evenly. A long one is not
    /// looked through: nothing is asked of more slots than are dead, excluded or chosen.
    pub(super) fn pick(
        &self,
        now: Moment,
        excluded: impl Fn(&Arc<Backend>) -> bool,
        place: impl FnOnce(usize) -> usize,
    ) -> Option<&Slot> {
        let is_eligible = |slot: &&Slot| !slot.backend.is_dead(now) && !excluded(&slot.backend);
        if self.slots.len() <= SHORT {
            let eligible = || self.slots.iter().filter(is_eligible);
            let count = eligible().count();
            // A mark that lands between the two passes shortens the second; its first slot then stands in.
            return if count == 0 { None } else { eligible().nth(place(count)).or_else(|| eligible().next()) };
        }
        let alive = self.rest().alive.at(now, &self.slots);
        if alive.is_empty() {
            return None;
        }
        let (before, from) = alive.split_at(place(alive.len()));
        from.iter().chain(before).map(|&position| &self.slots[position as usize]).find(is_eligible)
    }
}

/// Lists up to this length are looked through for each choice, which is as quick as not to.
const SHORT: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_backend_is_one_however_often_it_is_listed() {
        let frontend = |urls: &[&str]| {
            let backend = |url: &&str| Arc::new(Backend::parse(url).unwrap());
            let slots = urls.iter().map(backend).enumerate().map(|(index, backend)| Slot { index, backend });
            Frontend::new("host", "id", slots.collect(), urls.len()).unwrap()
        };
        assert!(frontend(&["http://a"]).has_one_backend());
        assert!(!frontend(&["http://a", "http://b"]).has_one_backend());
        let backend = Arc::new(Backend::parse("http://a").unwrap());
        let slots = [1, 3].map(|index| Slot { index, backend: Arc::clone(&backend) });
        assert!(Frontend::new("host", "id", slots.into(), 4).unwrap().has_one_backend());
    }
}
