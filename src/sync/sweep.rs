//! A walk through everything that Redis holds, page by page.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
};

use crate::store::{CertificateRecord, Pattern, Record, Session, StoreError};

use super::{Stock, Table};

/// One walk: all lists, then all dead sets, then, where Redis is their source, all certificates. Between two steps its
/// owner is free to do other things; each step reads afresh, so nothing it yields is older than what was applied before.
/// What Redis did not mention is for the owner to judge.
pub struct Sweep {
    stage: Stage,
    page: usize,
    certificates: bool,
    /// Hashes of the names met, because a million names would weigh more than the table's own pages.
    lists_met: HashSet<u64>,
    sets_met: HashSet<u64>,
    certificates_met: HashSet<u64>,
    hasher: RandomState,
}

enum Stage {
    Lists(String),
    DeadSets(String),
    Certificates(String),
    Done,
}

/// What is held and was not met in a walk.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Hosts without a list.
    pub frontends: Vec<String>,
    /// Hosts without a dead set.
    pub dead_sets: Vec<String>,
    /// Names without a certificate; none if the walk left them out.
    pub certificates: Vec<String>,
}

/// What one step has read.
pub enum Step {
    /// Of hosts.
    Hosts(Vec<Record>),
    /// Of certificates.
    Certificates(Vec<CertificateRecord>),
}

impl Sweep {
    /// A walk in large steps, for when nothing can be served before its end; past the certificates or not.
    pub fn in_haste(certificates: bool) -> Self {
        Self::new(1_000, certificates)
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

    /// Reads the next page; `None` after the last.
    ///
    /// # Errors
    /// When the session is lost; the sweep is then void.
    pub async fn step(&mut self, session: &mut Session) -> Result<Option<Step>, StoreError> {
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
                    None if self.certificates => Stage::Certificates(FIRST.to_owned()),
                    None => Stage::Done,
                };
                let records = page.names.into_iter().zip(sets);
                let record = |(host, dead)| Record { host, list: None, dead: Some(dead) };
                Ok(Some(Step::Hosts(records.map(record).collect())))
            }
            Stage::Certificates(cursor) => {
                let page = session.scan(Pattern::Certificates, cursor, effort).await?;
                let records = session.certificates(&page.names).await?;
                self.certificates_met.extend(page.names.iter().map(|name| self.hasher.hash_one(name)));
                self.stage = page.next.map_or(Stage::Done, Stage::Certificates);
                Ok(Some(Step::Certificates(records)))
            }
            Stage::Done => Ok(None),
        }
    }

    /// Whether it goes past the certificates.
    pub fn has_certificates(&self) -> bool {
        self.certificates
    }

    /// How many lists were met.
    pub fn frontends_met(&self) -> usize {
        self.lists_met.len()
    }

    /// How many certificates were met.
    pub fn certificates_met(&self) -> usize {
        self.certificates_met.len()
    }

    /// What is held that the walk, which is over, has not met.
    pub fn missing(&self, table: &Table, stock: Option<&Stock>) -> Missing {
        let unmet = |met: &HashSet<u64>, name: &str| !met.contains(&self.hasher.hash_one(name));
        let owned = str::to_owned;
        let stock = stock.filter(|_| self.certificates);
        let certificates = stock.into_iter().flat_map(Stock::names);
        Missing {
            frontends: table.frontend_hosts().filter(|host| unmet(&self.lists_met, host)).map(owned).collect(),
            dead_sets: table.dead_hosts().filter(|host| unmet(&self.sets_met, host)).map(owned).collect(),
            certificates: certificates.filter(|name| unmet(&self.certificates_met, name)).map(owned).collect(),
        }
    }
}

/// The cursor that begins a scan.
const FIRST: &str = "0";
