//! A walk through everything that Redis and the table hold, page by page.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
};

use crate::store::{Pattern, Record, Session, StoreError};

use super::Table;

/// One walk: all lists, then all dead sets, then whatever the table holds that Redis did not mention. Between two steps
/// its owner is free to do other things; each step reads afresh, so nothing it yields is older than what was applied
/// before.
pub struct Sweep {
    stage: Stage,
    page: usize,
    /// Hashes of the hosts met, because a million names would weigh more than the table's own pages.
    lists_met: HashSet<u64>,
    sets_met: HashSet<u64>,
    hasher: RandomState,
}

enum Stage {
    Lists(String),
    DeadSets(String),
    Unmentioned(Vec<String>),
}

impl Sweep {
    /// A walk in large steps, for when nothing can be served before its end.
    pub fn in_haste() -> Self {
        Self::new(1_000)
    }

    /// A walk in steps of a millisecond or so, between which edits are followed.
    pub fn at_leisure() -> Self {
        Self::new(100)
    }

    fn new(page: usize) -> Self {
        Self {
            page,
            stage: Stage::Lists(FIRST.to_owned()),
            lists_met: HashSet::new(),
            sets_met: HashSet::new(),
            hasher: RandomState::new(),
        }
    }

    /// Reads the next page; `None` after the last.
    ///
    /// # Errors
    /// When the session is lost; the sweep is then void.
    pub async fn step(&mut self, session: &Session, table: &Table) -> Result<Option<Vec<Record>>, StoreError> {
        let effort = u32::try_from(self.page).unwrap_or(u32::MAX);
        match &mut self.stage {
            Stage::Lists(cursor) => {
                let page = session.scan(Pattern::Frontends, cursor, effort).await?;
                let lists = session.lists(&page.hosts).await?;
                self.lists_met.extend(page.hosts.iter().map(|host| self.hasher.hash_one(host)));
                self.stage = match page.next {
                    Some(next) => Stage::Lists(next),
                    None => Stage::DeadSets(FIRST.to_owned()),
                };
                let records = page.hosts.into_iter().zip(lists);
                Ok(Some(records.map(|(host, list)| Record { host, list: Some(list), dead: None }).collect()))
            }
            Stage::DeadSets(cursor) => {
                let page = session.scan(Pattern::DeadSets, cursor, effort).await?;
                let sets = session.dead_sets(&page.hosts).await?;
                self.sets_met.extend(page.hosts.iter().map(|host| self.hasher.hash_one(host)));
                self.stage = match page.next {
                    Some(next) => Stage::DeadSets(next),
                    None => Stage::Unmentioned(self.unmentioned(table)),
                };
                let records = page.hosts.into_iter().zip(sets);
                Ok(Some(records.map(|(host, dead)| Record { host, list: None, dead: Some(dead) }).collect()))
            }
            Stage::Unmentioned(hosts) if hosts.is_empty() => Ok(None),
            Stage::Unmentioned(hosts) => {
                let rest = hosts.split_off(hosts.len().min(self.page));
                let page = std::mem::replace(hosts, rest);
                session.read(page).await.map(Some)
            }
        }
    }

    fn unmentioned(&self, table: &Table) -> Vec<String> {
        let unmet = |met: &HashSet<u64>, host: &str| !met.contains(&self.hasher.hash_one(host));
        let lists = table.frontend_hosts().filter(|host| unmet(&self.lists_met, host));
        let sets = table.dead_hosts().filter(|host| unmet(&self.sets_met, host));
        lists.chain(sets).map(str::to_owned).collect()
    }
}

/// The cursor that begins a scan.
const FIRST: &str = "0";
