//! Choosing by load.

use std::sync::{Arc, atomic::Ordering};

use crate::{
    clock::Moment,
    routing::{Backend, Choice, Frontend, Tried},
};

/// One request that a backend was given and is not done with. It counts as in flight there while this lives.
#[derive(Debug)]
pub struct InFlight(Arc<Backend>);

impl InFlight {
    /// Counts one more.
    pub fn at(backend: &Arc<Backend>) -> Self {
        backend.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(backend))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Frontend {
    /// Two backends at random among those that are alive at `now` and not in `tried`, and of these the one with fewer
    /// requests in flight; `None` if there is none. `random` gives a number below the one that it is given. A URL that is
    /// listed twice is drawn twice as often.
    ///
    /// Looking at two and not at all keeps several instances, none of which knows what the others do, from sending
    /// everything to the same idle backend.
    pub fn choose_less_busy(
        &self,
        now: Moment,
        tried: &Tried,
        mut random: impl FnMut(usize) -> usize,
    ) -> Option<Choice> {
        let first = self.pick(now, |backend| tried.contains(backend), &mut random)?;
        let is_another = |backend: &Arc<Backend>| !Arc::ptr_eq(backend, &first.backend);
        let second = self.pick(now, |backend| !is_another(backend) || tried.contains(backend), &mut random);
        // Of two that are equally busy, the first was drawn by chance as well.
        let less_busy = second.filter(|second| second.backend.in_flight() < first.backend.in_flight());
        Some(Choice::of(less_busy.unwrap_or(first)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::routing::Slot;

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

    fn choose(frontend: &Frontend, tried: &Tried) -> Option<usize> {
        frontend.choose_less_busy(NOW, tried, |count| fastrand::usize(..count)).map(|choice| choice.index)
    }

    #[test]
    fn a_request_counts_while_its_guard_lives() {
        let frontend = frontend(1);
        let backend = backend(&frontend, 0);
        let (one, other) = (InFlight::at(backend), InFlight::at(backend));
        assert_eq!(backend.in_flight(), 2);
        drop(one);
        assert_eq!(backend.in_flight(), 1);
        drop(other);
        assert_eq!(backend.in_flight(), 0);
    }

    #[test]
    fn a_tie_is_settled_by_chance() {
        let frontend = frontend(2);
        let _both = [0, 1].map(|index| InFlight::at(backend(&frontend, index)));
        let first = (0..1_000).filter(|_| choose(&frontend, &Tried::default()) == Some(0)).count();
        assert!((300..700).contains(&first), "{first} of 1000");
    }

    #[test]
    fn the_busiest_is_never_chosen_and_all_others_are() {
        let frontend = frontend(5);
        let _one = InFlight::at(backend(&frontend, 3));
        let chosen: BTreeSet<_> = (0..1_000).filter_map(|_| choose(&frontend, &Tried::default())).collect();
        assert_eq!(Vec::from_iter(chosen), [0, 1, 2, 4]);
    }

    #[test]
    fn a_url_that_is_listed_twice_is_one_backend_drawn_twice_as_often() {
        let (twice, once) = ["http://twice", "http://once"].map(|url| Arc::new(Backend::parse(url).unwrap())).into();
        let slots = [&twice, &once, &twice].into_iter().enumerate();
        let slots = slots.map(|(index, backend)| Slot { index, backend: Arc::clone(backend) }).collect();
        let frontend = Frontend::new("host", "id", slots, 3).unwrap();
        let others = (0..3_000).filter(|_| choose(&frontend, &Tried::default()) == Some(1)).count();
        assert!((700..1_300).contains(&others), "{others} of 3000");
        let _busy = InFlight::at(&twice);
        assert!((0..100).all(|_| choose(&frontend, &Tried::default()) == Some(1)));
    }

    proptest! {
        #[test]
        fn a_choice_may_be_tried_and_exists_whenever_one_may(
            states in proptest::collection::vec((any::<bool>(), any::<bool>(), 0..4usize), 1..40),
            turns in 1..40usize,
        ) {
            let frontend = frontend(states.len());
            let (mut tried, mut busy) = (Tried::default(), Vec::new());
            for (index, &(is_dead, is_tried, in_flight)) in states.iter().enumerate() {
                let backend = backend(&frontend, index);
                if is_dead {
                    backend.mark_dead(NOW, LATER);
                }
                if is_tried {
                    tried.add(Arc::clone(backend));
                }
                busy.extend((0..in_flight).map(|_| InFlight::at(backend)));
            }
            let eligible: Vec<_> = (0..states.len()).filter(|&index| !states[index].0 && !states[index].1).collect();
            for _ in 0..turns {
                let choice = choose(&frontend, &tried);
                prop_assert_eq!(choice.is_some(), !eligible.is_empty());
                prop_assert!(choice.is_none_or(|index| eligible.contains(&index)));
                if let [one, other] = eligible[..] {
                    let (less, more) = if states[one].2 < states[other].2 { (one, other) } else { (other, one) };
                    prop_assert!(choice == Some(less) || states[less].2 == states[more].2);
                }
            }
        }
    }
}
