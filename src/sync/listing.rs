//! From a list's elements to a frontend's slots. Pure.
//!
//! A backend that is known already goes on as the object that it is, under whatever spelling, since its marks and the requests on
//! their way to it are that object's. Of a long list only what an edit has changed is looked up, because a lookup for each of
//! a million elements would hold up other hosts' edits for more than a second.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use foldhash::quality::RandomState;

use super::reconcile::{Malformed, excerpt};
use crate::routing::{Backend, BackendError, Endpoint, Frontend, Origin, Slot};

/// The slots that a list makes which has these elements behind its identifier. `held` is what the list made before, and `dead`
/// are the backends that the host's dead set means.
pub(super) fn slots<'a>(
    urls: &[Bytes],
    held: Option<&'a Frontend>,
    dead: impl Iterator<Item = &'a Arc<Backend>> + Clone,
    mut endpoint: impl FnMut(&str) -> Result<Endpoint, BackendError>,
    malformed: &mut Vec<Malformed>,
) -> Vec<Slot> {
    let unchanged = held.map_or(0, |held| unchanged(held, urls));
    let (before, rest) = held.map_or((&[][..], &[][..]), |held| held.slots().split_at(unchanged));
    // Bytes that are no text are no harm in a path, and in a host they are refused.
    let mut endpoint = |url: &Bytes| endpoint(&String::from_utf8_lossy(url));
    let (slots, errors) = if urls.len().max(before.len() + rest.len()) <= SHORT {
        short(urls, before, rest, dead, endpoint)
    } else {
        let behind = held.map_or(0, |held| unchanged_behind(held, rest, &urls[unchanged..]));
        let (changed, behind) = rest.split_at(rest.len() - behind);
        let made = long(urls, [before, changed, behind], dead.clone(), &mut endpoint);
        made.or_else(|| long(urls, [before, rest, &[]], dead, &mut endpoint)).unwrap_or_default()
    };
    malformed.extend(errors.into_iter().map(|(index, error)| {
        let url = excerpt(&String::from_utf8_lossy(&urls[index])).into_owned();
        Malformed::Backend { index, url, error }
    }));
    slots
}

/// Slots, and what is wrong with the other elements.
type Made = (Vec<Slot>, Vec<(usize, BackendError)>);

/// Few are looked through as fast as they are found by a hash.
fn short<'a>(
    urls: &[Bytes],
    before: &[Slot],
    rest: &'a [Slot],
    dead: impl Iterator<Item = &'a Arc<Backend>> + Clone,
    mut endpoint: impl FnMut(&Bytes) -> Result<Endpoint, BackendError>,
) -> Made {
    // Where there are two objects for one backend, the list's counts.
    let known = rest.iter().map(|slot| &slot.backend).chain(dead);
    let mut slots = Vec::with_capacity(urls.len());
    slots.extend_from_slice(before);
    let mut errors = Vec::new();
    for (index, url) in urls.iter().enumerate().skip(before.len()) {
        match endpoint(url) {
            Ok(endpoint) => {
                let is_meant = |backend: &&Arc<Backend>| backend.origin() == endpoint.origin();
                let listed = slots.iter().map(|slot: &Slot| &slot.backend).find(is_meant);
                let backend = match (listed, known.clone().find(is_meant)) {
                    (Some(backend), _) => Arc::clone(backend),
                    (None, Some(backend)) => spelled(backend, endpoint),
                    (None, None) => Arc::new(Backend::new(endpoint)),
                };
                slots.push(Slot { index, backend });
            }
            Err(error) => errors.push((index, error)),
        }
    }
    (slots, errors)
}

/// What is known of a backend that the changed part of a list names.
struct Named {
    first: Endpoint,
    backend: Option<Arc<Backend>>,
    is_listed: bool,
}

/// From the slots before the changed part of a list, those that were in it, and those behind it; `None` if one of the latter must
/// be another object, because the changed part spells its URL otherwise.
fn long<'a>(
    urls: &[Bytes],
    [before, changed, behind]: [&'a [Slot]; 3],
    dead: impl Iterator<Item = &'a Arc<Backend>>,
    endpoint: impl FnMut(&Bytes) -> Result<Endpoint, BackendError>,
) -> Option<Made> {
    let end = urls.len() - behind.len();
    let endpoints: Vec<_> = urls[before.len()..end].iter().map(endpoint).collect();
    let mut named: HashMap<Origin, Named, RandomState> = HashMap::default();
    for first in endpoints.iter().flatten() {
        let unknown = || Named { first: first.clone(), backend: None, is_listed: false };
        named.entry(first.origin().clone()).or_insert_with(unknown);
    }
    // The first spelling in the list counts; and where there are two objects for one backend, the list's.
    for (slots, is_behind) in [(before, false), (behind, true)] {
        for Slot { backend, .. } in slots {
            let Some(named) = named.get_mut(backend.origin()).filter(|named| !named.is_listed) else { continue };
            if is_behind && named.first.url_bytes() != backend.url_bytes() {
                return None;
            }
            (named.backend, named.is_listed) = (Some(Arc::clone(backend)), true);
        }
    }
    for backend in changed.iter().map(|slot| &slot.backend).chain(dead) {
        if let Some(named) = named.get_mut(backend.origin()) {
            named.backend.get_or_insert_with(|| spelled(backend, named.first.clone()));
        }
    }
    let mut slots = Vec::with_capacity(urls.len());
    slots.extend_from_slice(before);
    let mut errors = Vec::new();
    for (index, endpoint) in (before.len()..).zip(endpoints) {
        match endpoint {
            Ok(endpoint) => {
                // Each has been entered above.
                let Some(named) = named.get_mut(endpoint.origin()) else { continue };
                let backend = named.backend.get_or_insert_with(|| Arc::new(Backend::new(endpoint)));
                slots.push(Slot { index, backend: Arc::clone(backend) });
            }
            Err(error) => errors.push((index, error)),
        }
    }
    slots.extend((end..).zip(behind).map(|(index, slot)| Slot { index, backend: Arc::clone(&slot.backend) }));
    Some((slots, errors))
}

/// This backend under this spelling of its URL.
fn spelled(backend: &Arc<Backend>, endpoint: Endpoint) -> Arc<Backend> {
    if backend.url_bytes() == endpoint.url_bytes() {
        Arc::clone(backend)
    } else {
        Arc::new(backend.respelled(endpoint))
    }
}

/// How many of a list's elements, from its beginning, surely are what is held already.
pub(super) fn unchanged(held: &Frontend, urls: &[Bytes]) -> usize {
    let pairs = held.slots().iter().zip(urls).enumerate();
    pairs.take_while(|(position, (slot, url))| slot.index == *position && is_same(slot, url)).count()
}

/// The same from its end, of what is left of both.
fn unchanged_behind(held: &Frontend, rest: &[Slot], urls: &[Bytes]) -> usize {
    let pairs = rest.iter().rev().zip(urls.iter().rev()).zip((0..held.listed()).rev());
    pairs.take_while(|((slot, url), position)| slot.index == *position && is_same(slot, url)).count()
}

fn is_same(slot: &Slot, url: &Bytes) -> bool {
    slot.backend.url_bytes() == url.trim_ascii()
}

/// A list up to this length is looked through.
const SHORT: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn made(urls: &[Bytes], held: Option<&Frontend>) -> Vec<Slot> {
        slots(urls, held, std::iter::empty(), Endpoint::parse, &mut Vec::new())
    }

    fn shape(slots: &[Slot]) -> Vec<(usize, &str)> {
        slots.iter().map(|slot| (slot.index, slot.backend.url())).collect()
    }

    proptest! {
        #[test]
        fn an_edited_list_is_what_it_would_be_anew_and_its_backends_go_on(
            list in proptest::collection::vec("http://[a-z]|http://[a-e]/|[a-e]:80|junk url", 0..30),
            edits in proptest::collection::vec((any::<prop::sample::Index>(), 0..3usize, proptest::collection::vec("http://[a-z]|[a-z]:80|junk url", 0..3)), 1..6),
        ) {
            let bytes = |list: &[String]| list.iter().map(|url| Bytes::from(url.clone())).collect::<Vec<_>>();
            let mut list = list;
            let frontend = |list: &[String], slots| Frontend::new("host", "id", slots, list.len());
            let mut held = frontend(&list, made(&bytes(&list), None));
            for (at, removed, added) in edits {
                let at = at.index(list.len() + 1);
                list.splice(at..(at + removed).min(list.len()), added);
                let (slots, anew) = (made(&bytes(&list), held.as_ref()), made(&bytes(&list), None));
                prop_assert_eq!(shape(&slots), shape(&anew));
                let before = held.iter().flat_map(Frontend::slots);
                for slot in &slots {
                    let is_meant = |other: &&Slot| other.backend.origin() == slot.backend.origin();
                    let is_it = |other: &Slot| Arc::ptr_eq(&other.backend, &slot.backend);
                    prop_assert!(slots.iter().filter(is_meant).all(is_it), "there are two objects for one backend");
                    let same = |other: &&Slot| is_meant(other) && other.backend.url() == slot.backend.url();
                    prop_assert!(before.clone().filter(same).all(is_it), "the object does not go on");
                }
                held = frontend(&list, slots);
            }
        }
    }
}
