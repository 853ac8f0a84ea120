//! Taking turns.

use std::sync::atomic::Ordering;

use crate::{
    clock::Moment,
    routing::{Choice, Frontend, Tried},
};

impl Frontend {
    /// Round robin over the backends that are alive at `now` and not in `tried`; exactly even while these stay the same, and
    /// nearly so for the retries of a long list. `None` if there is none.
    pub fn choose(&self, now: Moment, tried: &Tried) -> Option<Choice> {
        let cursor = if tried.is_empty() { &self.cursor } else { self.retry_cursor() };
        let turn = |count| cursor.fetch_add(1, Ordering::Relaxed) % count;
        self.pick(now, |backend| tried.contains(backend), turn).map(Choice::of)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use proptest::prelude::*;

    use super::*;
    use crate::routing::{Backend, Slot};

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

    /// What happens to a long list between its requests.
    #[derive(Clone, Debug)]
    enum Event {
        Dies(usize, u64),
        IsRevived(usize),
        Passes(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0..40usize, 1..50u64).prop_map(|(index, length)| Event::Dies(index, length)),
            (0..40usize).prop_map(Event::IsRevived),
            (1..30u64).prop_map(Event::Passes),
        ]
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

        /// A long list is not looked through for each request, but nobody can tell.
        #[test]
        fn turns_of_a_long_list_are_even_among_those_that_are_alive(events in proptest::collection::vec(event(), 1..30)) {
            let urls: Vec<String> = (0..40).map(|index| format!("http://b{index}")).collect();
            let frontend = frontend(&urls.iter().map(String::as_str).collect::<Vec<_>>());
            let mut now = 1_000;
            for event in events {
                match event {
                    Event::Dies(index, length) => {
                        let backend = &frontend.slots()[index].backend;
                        backend.mark_dead(Moment::from_millis(now), Moment::from_millis(now + length));
                    }
                    Event::IsRevived(index) => frontend.slots()[index].backend.revive(),
                    Event::Passes(length) => now += length,
                }
                let now = Moment::from_millis(now);
                let alive: Vec<&str> =
                    frontend.slots().iter().filter(|slot| !slot.backend.is_dead(now)).map(|slot| slot.backend.url()).collect();
                let tally = tally(&frontend, now, 3 * alive.len());
                prop_assert_eq!(tally.len(), alive.len());
                prop_assert!(alive.iter().all(|url| tally[*url] == 3));
            }
        }

        #[test]
        fn a_long_list_has_no_turn_for_what_was_tried(tried in proptest::collection::vec(0..30usize, 0..40), dead in 0..30usize) {
            let urls: Vec<String> = (0..30).map(|index| format!("http://b{index}")).collect();
            let frontend = frontend(&urls.iter().map(String::as_str).collect::<Vec<_>>());
            let now = Moment::from_millis(1);
            frontend.slots()[dead].backend.mark_dead(now, Moment::from_millis(2));
            let mut excluded = Tried::default();
            for &index in &tried {
                excluded.add(Arc::clone(&frontend.slots()[index].backend));
            }
            let left = (0..30).filter(|index| *index != dead && !tried.contains(index)).count();
            for _ in 0..40 {
                let choice = frontend.choose(now, &excluded);
                prop_assert_eq!(choice.is_some(), left > 0);
                prop_assert!(choice.is_none_or(|choice| choice.index != dead && !tried.contains(&choice.index)));
            }
        }
    }
}
