//! A host's backends and the choice among them.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use smallvec::SmallVec;

use super::{Backend, Origin, RetryBudget};
use crate::clock::Moment;

/// A frontend with at least one backend. Immutable but for its cursor and its backends' dead marks.
#[derive(Debug)]
pub struct Frontend {
    key: Box<str>,
    id: Box<str>,
    slots: Box<[Slot]>,
    listed: usize,
    cursor: AtomicUsize,
    /// Where retries are in turns of their own: they must not shift the others', or a request after a failed one would begin
    /// where that did.
    retry_cursor: AtomicUsize,
    /// Made by the first request: most frontends of a large table have none for long.
    budget: OnceLock<Arc<RetryBudget>>,
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

/// The backends that one request has already failed on.
#[derive(Debug, Default)]
pub struct Tried(SmallVec<[Arc<Backend>; 4]>);

impl Tried {
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
        Some(Self {
            key: key.into(),
            id: id.into(),
            slots: slots.into(),
            listed,
            cursor: AtomicUsize::new(0),
            retry_cursor: AtomicUsize::new(0),
            budget: OnceLock::new(),
        })
    }

    /// Continues the rotation, and the retry budget, where `previous`, an older state of the same frontend, is now.
    #[must_use]
    pub fn continuing(mut self, previous: &Frontend) -> Self {
        self.cursor = previous.cursor.load(Ordering::Relaxed).into();
        self.budget = previous.budget.clone();
        self
    }

    /// The name of the key in Redis, without `frontend:`, in its original case.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Element 0 of the list.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The usable backends, in the list's order. Never empty.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// How many backends the list has, malformed ones included.
    pub fn listed(&self) -> usize {
        self.listed
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
        self.slots.iter().find(|slot| **slot.backend.origin() == *origin)
    }

    /// The first slot of the backend that this URL means, however it is spelled.
    pub fn slot_of(&self, url: &str) -> Option<&Slot> {
        self.slot_at(&Origin::parse(url).ok()?)
    }

    /// What its requests' retries are counted by.
    pub fn retry_budget(&self) -> &RetryBudget {
        self.budget.get_or_init(Arc::default)
    }

    /// Round robin over the backends that are alive at `now` and not in `tried`; exactly even while these stay the same.
    /// `None` if there is none.
    pub fn choose(&self, now: Moment, tried: &Tried) -> Option<Choice> {
        let eligible = |slot: &&Slot| !slot.backend.is_dead(now) && !tried.contains(&slot.backend);
        let count = self.slots.iter().filter(eligible).count();
        if count == 0 {
            return None;
        }
        let cursor = if tried.0.is_empty() { &self.cursor } else { &self.retry_cursor };
        let turn = cursor.fetch_add(1, Ordering::Relaxed) % count;
        // A mark that lands between the two passes shortens the second; its first slot then stands in.
        let mut candidates = self.slots.iter().filter(eligible);
        let slot = match candidates.nth(turn) {
            Some(slot) => slot,
            None => self.slots.iter().find(eligible)?,
        };
        Some(Choice { index: slot.index, backend: Arc::clone(&slot.backend) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn frontend(urls: &[&str]) -> Frontend {
        let slots = urls
            .iter()
            .enumerate()
            .map(|(index, url)| Slot { index, backend: Arc::new(Backend::parse(url).unwrap()) })
            .collect();
        Frontend::new("host", "id", slots, urls.len()).unwrap()
    }

    fn tally(frontend: &Frontend, now: Moment, turns: usize) -> HashMap<String, usize> {
        let mut tally = HashMap::new();
        for _ in 0..turns {
            let choice = frontend.choose(now, &Tried::default()).unwrap();
            *tally.entry(choice.backend.url().to_owned()).or_default() += 1;
        }
        tally
    }

    #[test]
    fn rotation_is_exactly_even() {
        let frontend = frontend(&["http://a", "http://b", "http://c"]);
        let tally = tally(&frontend, Moment::PAST, 300);
        assert!(tally.values().all(|&count| count == 100), "{tally:?}");
    }

    #[test]
    fn the_share_of_a_dead_backend_is_spread_evenly() {
        let frontend = frontend(&["http://a", "http://b", "http://c"]);
        let now = Moment::from_millis(1);
        frontend.slots()[0].backend.mark_dead(now, Moment::from_millis(100));
        let tally = tally(&frontend, now, 300);
        assert_eq!(tally.len(), 2);
        assert!(tally.values().all(|&count| count == 150), "{tally:?}");
    }

    #[test]
    fn an_expired_mark_returns_the_backend() {
        let frontend = frontend(&["http://a"]);
        let now = Moment::from_millis(1);
        frontend.slots()[0].backend.mark_dead(now, Moment::from_millis(100));
        assert!(frontend.choose(Moment::from_millis(99), &Tried::default()).is_none());
        assert!(frontend.choose(Moment::from_millis(100), &Tried::default()).is_some());
    }

    #[test]
    fn a_retry_never_returns_to_a_tried_backend() {
        let frontend = frontend(&["http://a", "http://b"]);
        let mut tried = Tried::default();
        let first = frontend.choose(Moment::PAST, &tried).unwrap();
        tried.add(Arc::clone(&first.backend));
        let second = frontend.choose(Moment::PAST, &tried).unwrap();
        assert_ne!(first.backend.url(), second.backend.url());
        tried.add(second.backend);
        assert!(frontend.choose(Moment::PAST, &tried).is_none());
    }

    #[test]
    fn retries_do_not_shift_the_turns_and_are_even_too() {
        let frontend = frontend(&["http://failing", "http://b", "http://c"]);
        let mut tally = HashMap::<String, usize>::new();
        for _ in 0..300 {
            let mut tried = Tried::default();
            let mut choice = frontend.choose(Moment::PAST, &tried).unwrap();
            *tally.entry(choice.backend.url().to_owned()).or_default() += 1;
            if choice.backend.url() == "http://failing" {
                tried.add(choice.backend);
                choice = frontend.choose(Moment::PAST, &tried).unwrap();
                *tally.entry(choice.backend.url().to_owned()).or_default() += 1;
            }
        }
        assert_eq!((tally["http://failing"], tally["http://b"], tally["http://c"]), (100, 150, 150));
    }

    #[test]
    fn one_backend_is_one_however_often_it_is_listed() {
        assert!(frontend(&["http://a"]).has_one_backend());
        assert!(!frontend(&["http://a", "http://b"]).has_one_backend());
        let backend = Arc::new(Backend::parse("http://a").unwrap());
        let slots = [1, 3].map(|index| Slot { index, backend: Arc::clone(&backend) });
        assert!(Frontend::new("host", "id", slots.into(), 4).unwrap().has_one_backend());
    }

    proptest! {
        #[test]
        fn a_choice_is_alive_and_exists_whenever_one_is(dead in proptest::collection::vec(any::<bool>(), 1..12), turns in 1..40usize) {
            let urls: Vec<String> = (0..dead.len()).map(|i| format!("http://b{i}")).collect();
            let frontend = frontend(&urls.iter().map(String::as_str).collect::<Vec<_>>());
            let now = Moment::from_millis(1);
            for (slot, &dead) in frontend.slots().iter().zip(&dead) {
                if dead {
                    slot.backend.mark_dead(now, Moment::from_millis(2));
                }
            }
            for _ in 0..turns {
                let choice = frontend.choose(now, &Tried::default());
                prop_assert_eq!(choice.is_none(), dead.iter().all(|&dead| dead));
                if let Some(choice) = choice {
                    prop_assert!(!dead[choice.index]);
                }
            }
        }
    }
}
