//! Which backends of a long list are alive: found once, and not for each request.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::{ArcSwapOption, Guard};

use super::Slot;
use crate::clock::Moment;

/// How often the marks of any backend have changed in this process. One number for all: marks are rare beside requests, and
/// to look through a list once for each costs less than to remember for each backend where it is listed.
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// A mark has changed.
pub(super) fn note_change() {
    CHANGES.fetch_add(1, Ordering::Release);
}

/// The positions of a frontend's slots whose backends are alive, as they were found last.
#[derive(Debug, Default)]
pub(super) struct AliveSlots(ArcSwapOption<Found>);

#[derive(Debug)]
struct Found {
    positions: Box<[u32]>,
    /// How many changes there had been.
    changes: u64,
    /// When the first of the dead comes back by itself.
    until: Option<Moment>,
}

impl AliveSlots {
    /// The positions at `now`, in order. A mark that lands meanwhile may be missed, and is for the caller to see.
    pub(super) fn at(&self, now: Moment, slots: &[Slot]) -> impl Deref<Target = [u32]> {
        let changes = CHANGES.load(Ordering::Acquire);
        let is_current = |found: &Found| found.changes == changes && found.until.is_none_or(|until| now < until);
        let found = self.0.load();
        if found.as_deref().is_some_and(is_current) {
            return Alive(found);
        }
        let found = Arc::new(Found::at(now, slots, changes));
        self.0.store(Some(Arc::clone(&found)));
        Alive(Guard::from_inner(Some(found)))
    }
}

impl Found {
    fn at(now: Moment, slots: &[Slot], changes: u64) -> Self {
        let mut until: Option<Moment> = None;
        let mut is_alive = |slot: &Slot| {
            let back = slot.backend.dead_until();
            if back > now {
                until = Some(until.map_or(back, |until| until.min(back)));
            }
            back <= now
        };
        let alive = (0..).zip(slots).filter(|(_, slot)| is_alive(slot));
        Self { positions: alive.map(|(position, _)| position).collect(), changes, until }
    }
}

struct Alive(Guard<Option<Arc<Found>>>);

impl Deref for Alive {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        self.0.as_deref().map_or(&[], |found| &found.positions)
    }
}
