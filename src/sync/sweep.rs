//! A walk through everything that Redis holds, page by page.

use std::{collections::HashSet, hash::BuildHasher};

use foldhash::quality::RandomState;

use crate::store::{CertificateRecord, FIRST, List, Listed, Page, Record, Session, StoreError};

use super::{Stock, Table, progress::Estimate};

/// One walk: all lists, then all dead sets, then, where Redis is their source, all certificates. Between two steps its
/// owner is free to do other things. What Redis did not mention is for the owner to judge.
pub struct Sweep {
    stage: Stage,
    page: usize,
    /// Whether nothing was held before, so that nothing can be missing afterwards.
    is_first: bool,
    has_certificates: bool,
    /// How many pages of the keys were met.
    pages: usize,
    /// How many lists were met.
    lists: usize,
    /// Found with the lists, and still to be read.
    dead_keys: Vec<String>,
    certificates: Vec<String>,
    /// Hashes of the names met, because a million names would weigh more than the table's own pages.
    lists_met: Hashes,
    sets_met: Hashes,
    certificates_met: Hashes,
    hasher: RandomState,
}

type Hashes = HashSet<u64, foldhash::fast::RandomState>;

enum Stage {
    /// Before the session's own walk.
    Ready,
    /// At a cursor of SCAN.
    At(String),
    /// In the midst of the session's own walk.
    Walking,
    /// All lists have been read.
    Rest,
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
    /// A walk in large steps, for when nothing can be served before its end; past the certificates or not. It reads ahead, so
    /// that what a step yields may be older than the step. What has changed since must be read again afterwards.
    /// If it `is_first`, nothing is held that it might not meet.
    pub fn in_haste(certificates: bool, is_first: bool) -> Self {
        Self { stage: Stage::Ready, is_first, ..Self::new(1_000, certificates) }
    }

    /// A walk in steps of a millisecond or so, between which edits are followed; past the certificates or not. Each step reads
    /// afresh, so that nothing it yields is older than what was applied before.
    pub fn at_leisure(certificates: bool) -> Self {
        Self::new(100, certificates)
    }

    fn new(page: usize, has_certificates: bool) -> Self {
        Self {
            page,
            is_first: false,
            has_certificates,
            pages: 0,
            lists: 0,
            stage: Stage::At(FIRST.to_owned()),
            dead_keys: Vec::new(),
            certificates: Vec::new(),
            lists_met: Hashes::default(),
            sets_met: Hashes::default(),
            certificates_met: Hashes::default(),
            hasher: RandomState::default(),
        }
    }

    /// Reads the next page; `None` after the last.
    ///
    /// # Errors
    /// When the session is lost; the sweep is then void.
    pub async fn step(&mut self, session: &mut Session) -> Result<Option<Step>, StoreError> {
        if matches!(self.stage, Stage::Ready) {
            session.walk(self.effort())?;
            self.stage = Stage::Walking;
        }
        if matches!(self.stage, Stage::Walking) {
            if let Some(Listed { page, lists }) = session.listed().await? {
                let (hosts, _) = self.note(page);
                return Ok(Some(listed(hosts, lists)));
            }
            self.stage = Stage::Rest;
        }
        match &self.stage {
            Stage::At(cursor) => {
                let page = session.scan(cursor, self.effort()).await?;
                let (hosts, next) = self.note(page);
                let lists = session.lists(&hosts).await?;
                self.stage = next.map_or(Stage::Rest, Stage::At);
                Ok(Some(listed(hosts, lists)))
            }
            Stage::Rest if !self.dead_keys.is_empty() => {
                let names = self.dead_keys.split_off(self.dead_keys.len().saturating_sub(self.page));
                let sets = session.dead_sets(&names).await?;
                self.sets_met.extend(names.iter().map(|name| self.hasher.hash_one(name)));
                let records = names.into_iter().zip(sets);
                let record = |(host, dead)| Record { host, list: None, dead: Some(dead) };
                Ok(Some(Step::Hosts(records.map(record).collect())))
            }
            Stage::Rest if !self.certificates.is_empty() => {
                let names = self.certificates.split_off(self.certificates.len().saturating_sub(self.page));
                let records = session.certificates(&names).await?;
                self.certificates_met.extend(names.iter().map(|name| self.hasher.hash_one(name)));
                Ok(Some(Step::Certificates(records)))
            }
            _ => Ok(None),
        }
    }

    /// Takes note of what is on a page; returns the hosts on it, and the cursor of the next.
    fn note(&mut self, page: Page) -> (Vec<String>, Option<String>) {
        self.pages += 1;
        self.lists += page.hosts.len();
        if !self.is_first {
            self.lists_met.extend(page.hosts.iter().map(|host| self.hasher.hash_one(host)));
        }
        self.dead_keys.extend(page.dead_keys);
        if self.has_certificates {
            self.certificates.extend(page.certificates);
        }
        (page.hosts, page.next)
    }

    fn effort(&self) -> u32 {
        u32::try_from(self.page).unwrap_or(u32::MAX)
    }

    /// How far it has come in a database of so many keys.
    pub fn estimate(&self, keys: u64) -> Estimate {
        let read = self.lists + self.sets_met.len() + self.certificates_met.len();
        let found = read + self.dead_keys.len() + self.certificates.len();
        let passed = if matches!(self.stage, Stage::Rest) { usize::MAX } else { self.pages * self.page };
        Estimate::new(passed, keys, found, read)
    }

    /// Whether nothing was held before.
    pub fn is_first(&self) -> bool {
        self.is_first
    }

    /// Whether it goes past the certificates.
    pub fn has_certificates(&self) -> bool {
        self.has_certificates
    }

    /// How many lists were met, some of them twice.
    pub fn frontends_met(&self) -> usize {
        self.lists
    }

    /// How many certificates were met.
    pub fn certificates_met(&self) -> usize {
        self.certificates_met.len()
    }

    /// What is held that the walk, which is over, has not met.
    pub fn missing(&self, table: &Table, stock: Option<&Stock>) -> Missing {
        if self.is_first {
            return Missing::default();
        }
        let unmet = |met: &Hashes, name: &str| !met.contains(&self.hasher.hash_one(name));
        let owned = str::to_owned;
        let frontends = table.frontends();
        let stock = stock.filter(|_| self.has_certificates);
        let certificates = stock.into_iter().flat_map(Stock::names);
        Missing {
            frontends: frontends
                .filter(|frontend| unmet(&self.lists_met, frontend.key()))
                .map(|frontend| frontend.key().to_owned())
                .collect(),
            dead_sets: table.dead_hosts().filter(|host| unmet(&self.sets_met, host)).map(owned).collect(),
            certificates: certificates.filter(|name| unmet(&self.certificates_met, name)).map(owned).collect(),
        }
    }
}

fn listed(hosts: Vec<String>, lists: Vec<List>) -> Step {
    let record = |(host, list)| Record { host, list: Some(list), dead: None };
    Step::Hosts(hosts.into_iter().zip(lists).map(record).collect())
}
