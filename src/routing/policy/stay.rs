//! Coming back to the backend that a client had before.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
};

use crate::{
    clock::Moment,
    routing::{Backend, Choice, Frontend, Slot, Tried},
};

impl Frontend {
    /// `wanted`, one of this frontend's backends, if it is alive at `now` and not in `tried`; else as
    /// [`Frontend::choose`].
    pub fn choose_again(&self, wanted: Option<&Choice>, now: Moment, tried: &Tried) -> Option<Choice> {
        let may_be_tried = |wanted: &&Choice| !wanted.backend.is_dead(now) && !tried.contains(&wanted.backend);
        wanted.filter(may_be_tried).cloned().or_else(|| self.choose(now, tried))
    }

    /// The first slot that may have this tag, which is for the caller to compare: slots are found by a hash, so that how long
    /// this takes tells nothing of the tags. `tag_of` must always tell the same.
    pub fn slot_by_tag<'a>(&'a self, tag: &[u8], tag_of: impl Fn(&'a Backend) -> &'a str) -> Option<&'a Slot> {
        let tags = self.tags(|| Tags::of(self.slots(), tag_of));
        Some(&self.slots()[tags.find(tag)?])
    }
}

/// Where the slots of a frontend are, by their backends' tags.
#[derive(Debug)]
pub struct Tags {
    hasher: RandomState,
    slots: HashMap<u64, u32>,
}

impl Tags {
    fn of<'a>(slots: &'a [Slot], tag_of: impl Fn(&'a Backend) -> &'a str) -> Self {
        let (hasher, mut found) = (RandomState::new(), HashMap::with_capacity(slots.len()));
        for (position, slot) in (0..).zip(slots) {
            found.entry(hasher.hash_one(tag_of(&slot.backend).as_bytes())).or_insert(position);
        }
        Self { hasher, slots: found }
    }

    fn find(&self, tag: &[u8]) -> Option<usize> {
        self.slots.get(&self.hasher.hash_one(tag)).map(|&position| position as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use super::*;

    const NOW: Moment = Moment::from_millis(1);
    const LATER: Moment = Moment::from_millis(2);

    fn frontend(count: usize) -> Frontend {
        let backend = |index| Arc::new(Backend::parse(&format!("http://b{index}")).unwrap());
        let slots = (0..count).map(|index| Slot { index, backend: backend(index) }).collect();
        Frontend::new("host", "id", slots, count).unwrap()
    }

    fn backend(frontend: &Frontend, index: usize) -> &Arc<Backend> {
        &frontend.slots()[index].backend
    }

    #[test]
    fn what_was_there_before_is_chosen_while_it_may_be() {
        let frontend = frontend(3);
        let wanted = Choice { index: 1, backend: Arc::clone(backend(&frontend, 1)) };
        let again = |now, tried: &Tried| frontend.choose_again(Some(&wanted), now, tried).map(|choice| choice.index);
        assert!((0..9).all(|_| again(NOW, &Tried::default()) == Some(1)));
        let mut tried = Tried::default();
        tried.add(Arc::clone(&wanted.backend));
        assert_eq!([again(NOW, &tried), again(NOW, &tried), again(NOW, &tried)], [Some(0), Some(2), Some(0)]);
        wanted.backend.mark_dead(NOW, LATER);
        assert_ne!(again(NOW, &Tried::default()), Some(1));
        assert_eq!(again(LATER, &Tried::default()), Some(1));
        let turn = |_| frontend.choose_again(None, LATER, &Tried::default()).unwrap().index;
        assert_eq!((0..3).map(turn).collect::<BTreeSet<_>>().len(), 3);
    }

    #[test]
    fn a_slot_is_found_by_its_tag() {
        let frontend = frontend(1_000);
        let tagged = |tag: &str| frontend.slot_by_tag(tag.as_bytes(), |backend| backend.url()).map(|slot| slot.index);
        assert_eq!((tagged("http://b7"), tagged("http://b999"), tagged("http://b1000")), (Some(7), Some(999), None));
    }
}
