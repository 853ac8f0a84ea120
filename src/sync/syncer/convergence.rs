//! Bringing the table into line with what walks through Redis find, and with what they do not.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use tracing::{debug, warn};

use super::{Ended, Syncer, apart, is_evident};
use crate::{
    routing::Seen,
    store::{CertificateRecord, List, Record, Role, Session, StoreError},
    sync::{
        Stock,
        dirty::Dirty,
        reconcile::excerpt,
        sweep::{Missing, Step, Sweep},
        trust::{Evidence, Judgement},
    },
};

impl Syncer {
    /// One step of a proof of convergence; returns whether that was the last. Differences that no event announces are
    /// mended, and counted where events should have announced them.
    pub(super) async fn sweep(
        &mut self,
        session: &mut Session,
        sweep: &mut Sweep,
        dirty: &mut Dirty,
    ) -> Result<bool, Ended> {
        let Some(step) = sweep.step(session).await? else {
            let held = self.held();
            // What was held is known to be missing; letting go of it now is no drift.
            let dirty = Some(dirty).filter(|_| self.trust.holds_until().is_none());
            Box::pin(self.settle(session, sweep, held, dirty)).await?;
            self.publish();
            self.judge_vanished(session);
            self.belief.end_walk();
            self.tell_polling(session);
            return Ok(true);
        };
        self.count_drift(session, &step, dirty).await?;
        if let Step::Hosts(records) = &step {
            self.table.begin(Seen::of(records.len()));
        }
        if self.take(session, step, true).await? {
            self.publish();
            self.has_changed();
        }
        Ok(false)
    }

    /// Decides about what a walk, which is over, has not met; there were so many frontends and certificates before it.
    pub(super) async fn settle(
        &mut self,
        session: &mut Session,
        sweep: &Sweep,
        held: [usize; 2],
        dirty: Option<&mut Dirty>,
    ) -> Result<(), Ended> {
        let missing = sweep.missing(&self.table, self.stock.as_ref());
        let [frontends, certificates] = held;
        let evidence = [
            Evidence { held: frontends, lost: missing.frontends.len(), found: sweep.frontends_met() },
            Evidence { held: certificates, lost: missing.certificates.len(), found: sweep.certificates_met() },
        ];
        // A walk that leaves certificates out says nothing of them.
        let evidence = if sweep.has_certificates() { &evidence[..] } else { &evidence[..1] };
        match self.trust.judge(session.identity(), evidence, self.clock.now()) {
            Judgement::Believe => {
                self.kept = 0;
                self.take_missing(session, missing, dirty).await
            }
            Judgement::Hold { until, is_new } => {
                self.kept = missing.frontends.len() + missing.certificates.len();
                if is_new {
                    warn!(
                        server = %session.server(),
                        "this is not the Redis that was loaded from, or it has restarted, and {} of {frontends} frontends \
                         are missing there; keeping them for {:?} (--shrink-grace)",
                        missing.frontends.len(),
                        self.clock.now().until(until),
                    );
                }
                Ok(())
            }
        }
    }

    /// Applies one step of a walk, which may remove something unless nothing was held before; returns whether the routes have
    /// changed.
    pub(super) async fn take(&mut self, session: &mut Session, step: Step, may_remove: bool) -> Result<bool, Ended> {
        match step {
            Step::Hosts(records) => {
                let removes = may_remove && records.iter().any(|record| self.table.would_remove(record));
                self.verify(session, removes).await?;
                let changed =
                    apart(records.len(), || records.iter().fold(false, |changed, record| self.apply(record) | changed));
                let dead_keys = records.iter().filter(|record| record.list.is_none());
                let leases: Vec<_> = dead_keys.filter_map(|record| self.table.lease(&record.host)).collect();
                self.heed_leases(session, &leases).await?;
                Ok(changed)
            }
            Step::Certificates(records) => {
                self.take_certificates(session, records).await?;
                Ok(false)
            }
        }
    }

    /// Reads the sets of backends whose leases have changed, or were met, and makes the most of both.
    pub(super) async fn heed_leases(
        &mut self,
        session: &mut Session,
        leases: &[(String, String)],
    ) -> Result<(), Ended> {
        for leases in leases.chunks(PAGE) {
            // However many backends of a host are dead, its set is read once.
            let hosts: HashSet<&String> = leases.iter().map(|(host, _)| host).collect();
            let hosts: Vec<String> = hosts.into_iter().cloned().collect();
            let sets = session.dead_sets(&hosts).await?;
            let are_held = self.are_held(session, leases).await?;
            let mut records = HashMap::with_capacity(hosts.len());
            for (host, dead) in hosts.into_iter().zip(sets) {
                let record = Record { host: host.clone(), list: None, dead: Some(dead) };
                self.apply(&record);
                records.insert(host, record);
            }
            for ((host, url), is_held) in leases.iter().zip(are_held) {
                if let Some(dead) = records.get(host).and_then(|record| record.dead.as_ref()) {
                    self.table.heed_lease(host, url, dead, is_held, self.clock.now());
                }
            }
        }
        Ok(())
    }

    /// Whether these leases are held, under the spelling that has changed or under the list's own.
    async fn are_held(&self, session: &mut Session, leases: &[(String, String)]) -> Result<Vec<bool>, StoreError> {
        let mut are_held = session.leases(leases).await?;
        let listed = |(host, url): &(String, String)| (host.clone(), self.table.spelling(host, url));
        let own: Vec<_> = leases.iter().map(listed).collect();
        if own != leases {
            let are_held_too = session.leases(&own).await?;
            are_held.iter_mut().zip(are_held_too).for_each(|(is_held, is_held_too)| *is_held |= is_held_too);
        }
        Ok(are_held)
    }

    /// Reads what a walk has not met once more, and applies it; with `dirty`, what no event announces is counted.
    async fn take_missing(
        &mut self,
        session: &mut Session,
        missing: Missing,
        mut dirty: Option<&mut Dirty>,
    ) -> Result<(), Ended> {
        let hosts: HashSet<String> = missing.frontends.into_iter().chain(missing.dead_sets).collect();
        let hosts: Vec<String> = hosts.into_iter().collect();
        let hosts = hosts.chunks(PAGE).map(|page| (page, true));
        for (page, is_hosts) in hosts.chain(missing.certificates.chunks(PAGE).map(|page| (page, false))) {
            let step = if is_hosts {
                Step::Hosts(session.read(page.to_vec()).await?)
            } else {
                Step::Certificates(session.certificates(page).await?)
            };
            if let Some(dirty) = &mut dirty {
                self.count_drift(session, &step, dirty).await?;
            }
            self.take(session, step, true).await?;
        }
        Ok(())
    }

    pub(super) async fn take_certificates(
        &mut self,
        session: &mut Session,
        records: Vec<CertificateRecord>,
    ) -> Result<(), Ended> {
        let removes = |stock: &Stock| records.iter().any(|record| stock.would_remove(record));
        self.verify(session, self.stock.as_ref().is_some_and(removes)).await?;
        if let Some(stock) = &mut self.stock {
            stock.apply(records).await;
        }
        Ok(())
    }

    /// Before anything is removed: makes sure that the server has not just become another one. A replica that copies a new
    /// master is empty without an event, and for less than a heartbeat.
    pub(super) async fn verify(&self, session: &mut Session, is_removal: bool) -> Result<(), Ended> {
        if is_removal && let Some(doubt) = Box::pin(session.beat()).await? {
            return Err(Ended::Doubted(doubt));
        }
        Ok(())
    }

    /// Counts what differs from Redis although nothing has announced, or is about to announce, a change; from then on, events
    /// are not believed.
    async fn count_drift(&mut self, session: &mut Session, step: &Step, dirty: &mut Dirty) -> Result<(), Ended> {
        let suspects: Vec<String> = match step {
            Step::Hosts(records) => {
                let differing = records.iter().filter(|record| self.table.differs(record));
                differing.map(|record| record.host.clone()).collect()
            }
            Step::Certificates(records) => {
                self.stock.as_ref().map(|stock| stock.differing(records)).unwrap_or_default()
            }
        };
        if suspects.is_empty() {
            return Ok(());
        }
        // What changes everything in silence is the heartbeat's to find, and no drift.
        self.verify(session, true).await?;
        // Events that are known to be off are no disappointment.
        let is_off = session.announces() == Some(false);
        if is_off || !(is_evident(session) || self.belief.counts()) {
            return Ok(());
        }
        session.barrier().await?;
        dirty.collect(session)?;
        let is_replica = matches!(session.vitals().role, Role::Replica { .. });
        for name in suspects {
            let (what, is_announced) = match step {
                Step::Hosts(_) => ("routing table", dirty.contains(&name)),
                Step::Certificates(_) => ("certificates", dirty.contains_certificate(&name)),
            };
            if is_announced {
                continue;
            }
            if is_replica && matches!(step, Step::Hosts(records) if is_gone(records, &name)) {
                self.vanished.entry(name).or_insert_with(Instant::now);
            } else {
                self.note_unannounced(session, what, &name);
            }
        }
        Ok(())
    }

    /// Counts the lists that have vanished from a replica for so long that their end should have been announced.
    fn judge_vanished(&mut self, session: &mut Session) {
        let due: Vec<_> = self.vanished.extract_if(|_, since| since.elapsed() > LONGEST_SILENCE).collect();
        for (host, _) in due {
            self.note_unannounced(session, "routing table", &host);
        }
    }

    /// A walk has found a difference that no event has announced.
    fn note_unannounced(&mut self, session: &mut Session, what: &str, name: &str) {
        let (server, name) = (session.server().to_string(), &*excerpt(name));
        let counts = self.belief.counts();
        if counts {
            self.metrics.drift.inc();
        }
        if self.belief.fail() {
            session.listen_anew();
            self.metrics.polling.set(1);
            warn!(
                server,
                name,
                "the {what} had drifted from Redis without an event: reading everything once a second until events can be \
                 believed again"
            );
        } else if counts {
            debug!(server, name, "the {what} had drifted from Redis without an event");
        }
    }

    /// How many frontends and certificates there are.
    pub(super) fn held(&self) -> [usize; 2] {
        [self.table.count(), self.stock.as_ref().map_or(0, |stock| stock.names().count())]
    }
}

/// Whether the list of this host is not there any more.
fn is_gone(records: &[Record], host: &str) -> bool {
    let record = records.iter().find(|record| record.host == host);
    record.is_some_and(|record| matches!(&record.list, Some(List::Elements(elements)) if elements.is_empty()))
}

/// How long a master may take to notice that the time of a key is over, which its replicas hide at once.
const LONGEST_SILENCE: Duration = Duration::from_mins(1);

/// Keys that are read in one round trip because a walk has not met them.
const PAGE: usize = 1_000;
