//! A walk through everything that Redis and the table hold, page by page.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
};

use crate::store::{CertificateRecord, Pattern, Record, Session, StoreError};

use super::{Stock, Table};

/// One walk: all lists, then all dead sets, then whatever the table holds that Redis did not mention; then the same with
/// certificates, where Redis is their source. Between two steps
/// its owner is free to do other things; each step reads afresh, so nothing it yields is older than what was applied
/// before.
pub struct Sweep {
    stage: Stage,
    page: usize,
    certificates: bool,
    /// Hashes of the hosts met, because a million names would weigh more than the table's own pages.
    lists_met: HashSet<u64>,
    sets_met: HashSet<u64>,
    certificates_met: HashSet<u64>,
    hasher: RandomState,
}

enum Stage {
    Lists(String),
    DeadSets(String),
    Unmentioned(Vec<String>),
    Certificates(String),
    UnmentionedCertificates(Vec<String>),
}

/// What one step has read.
pub enum Step {
    /// Of hosts.
    Hosts(Vec<Record>),
    /// Of certificates.
    Certificates(Vec<CertificateRecord>),
}

impl Sweep {
    /// A walk in large steps, for when nothing can be served before its end.
    pub fn in_haste() -> Self {
        Self::new(1_000, true)
    }

    /// A walk in steps of a millisecond or so, between which edits are followed; past the certificates or not.
    pub fn at_leisure(certificates: bool) -> Self {
        Self::new(100, certificates)
    }

    fn new(page: usize, certificates: bool) -> Self {
        Self {
            page,
            certificates,
            stage: Stage::Lists(FIRST.to_owned()),
            lists_met: HashSet::new(),
            sets_met: HashSet::new(),
            certificates_met: HashSet::new(),
            hasher: RandomState::new(),
        }
    }

    /// Reads the next page; `None` after the last. Certificates are left out where there is no stock of them.
    ///
    /// # Errors
    /// When the session is lost; the sweep is then void.
    pub async fn step(
        &mut self,
        session: &Session,
        table: &Table,
        stock: Option<&Stock>,
    ) -> Result<Option<Step>, StoreError> {
        let effort = u32::try_from(self.page).unwrap_or(u32::MAX);
        match &mut self.stage {
            Stage::Lists(cursor) => {
                let page = session.scan(Pattern::Frontends, cursor, effort).await?;
                let lists = session.lists(&page.names).await?;
                self.lists_met.extend(page.names.iter().map(|host| self.hasher.hash_one(host)));
                self.stage = match page.next {
                    Some(next) => Stage::Lists(next),
                    None => Stage::DeadSets(FIRST.to_owned()),
                };
                let records = page.names.into_iter().zip(lists);
                let record = |(host, list)| Record { host, list: Some(list), dead: None };
                Ok(Some(Step::Hosts(records.map(record).collect())))
            }
            Stage::DeadSets(cursor) => {
                let page = session.scan(Pattern::DeadSets, cursor, effort).await?;
                let sets = session.dead_sets(&page.names).await?;
                self.sets_met.extend(page.names.iter().map(|host| self.hasher.hash_one(host)));
                self.stage = match page.next {
                    Some(next) => Stage::DeadSets(next),
                    None => Stage::Unmentioned(self.unmentioned(table)),
                };
                let records = page.names.into_iter().zip(sets);
                let record = |(host, dead)| Record { host, list: None, dead: Some(dead) };
                Ok(Some(Step::Hosts(records.map(record).collect())))
            }
            Stage::Unmentioned(hosts) => {
                let page = take_page(hosts, self.page);
                if hosts.is_empty() {
                    self.stage = match stock {
                        Some(_) if self.certificates => Stage::Certificates(FIRST.to_owned()),
                        _ => Stage::UnmentionedCertificates(Vec::new()),
                    };
                }
                Ok(Some(Step::Hosts(session.read(page).await?)))
            }
            Stage::Certificates(cursor) => {
                let page = session.scan(Pattern::Certificates, cursor, effort).await?;
                let records = session.certificates(&page.names).await?;
                self.certificates_met.extend(page.names.iter().map(|name| self.hasher.hash_one(name)));
                let unmentioned = || {
                    let held = stock.into_iter().flat_map(Stock::names);
                    let unmet = held.filter(|name| !self.certificates_met.contains(&self.hasher.hash_one(name)));
                    Stage::UnmentionedCertificates(unmet.map(str::to_owned).collect())
                };
                self.stage = page.next.map_or_else(unmentioned, Stage::Certificates);
                Ok(Some(Step::Certificates(records)))
            }
            Stage::UnmentionedCertificates(names) if names.is_empty() => Ok(None),
            Stage::UnmentionedCertificates(names) => {
                let page = take_page(names, self.page);
                Ok(Some(Step::Certificates(session.certificates(&page).await?)))
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

fn take_page(names: &mut Vec<String>, size: usize) -> Vec<String> {
    let rest = names.split_off(names.len().min(size));
    std::mem::replace(names, rest)
}

/// The cursor that begins a scan.
const FIRST: &str = "0";
