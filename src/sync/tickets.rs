//! The keys of session tickets: renewed in time, and shared with other instances by way of the write Redis.

use std::{sync::Arc, time::Duration};

use tokio::time;
use tracing::{info, warn};

use crate::{
    store::{Patience, Place, StoreError, WriteSession},
    telemetry::Metrics,
    tls::{KeyRing, Seal, TicketKey},
};

use super::expiry::seconds_since_1970;

/// The task that renews a ring of ticket keys.
pub struct TicketSyncer {
    ring: Arc<KeyRing>,
    shared: Option<(Place, Seal)>,
    metrics: Arc<Metrics>,
}

/// What a visit to Redis has brought.
#[derive(Default)]
struct Visit {
    keys: Vec<TicketKey>,
    /// Whether there are keys that were sealed with another secret.
    has_strangers: bool,
}

impl TicketSyncer {
    /// A syncer for `ring`. With `shared`, keys are kept on that Redis, under that seal, for all instances; else they are
    /// this process's own.
    pub fn new(ring: Arc<KeyRing>, shared: Option<(Place, Seal)>, metrics: Arc<Metrics>) -> Self {
        Self { ring, shared, metrics }
    }

    /// Renews the keys for ever. While Redis cannot be used, the keys that are known go on, and what is missing is made
    /// here.
    pub async fn run(self) {
        let interval = (self.ring.period() / VISITS_PER_PERIOD).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL);
        let mut patience = Patience::new(interval);
        let mut has_said = false;
        loop {
            let now = seconds_since_1970().cast_unsigned();
            let visit = match &self.shared {
                None => None,
                Some((place, seal)) => Some(self.visit(place, seal, now).await),
            };
            let pause = match visit {
                None => {
                    self.ring.renew(Vec::new(), now);
                    interval
                }
                Some(Ok(visit)) => {
                    patience.renew();
                    let keys = visit.keys.len();
                    self.ring.renew(visit.keys, now);
                    self.metrics.tls.ticket_keys_shared.set(1);
                    if !std::mem::replace(&mut has_said, true) {
                        info!(keys, "the keys of session tickets are shared");
                        if visit.has_strangers {
                            warn!("some instances share ticket keys under another --tls-ticket-secret than this one");
                        }
                    }
                    interval
                }
                Some(Err(error)) => {
                    let problem = error.to_string();
                    if patience.is_news(&problem) {
                        warn!("the keys of session tickets cannot be shared: {problem}");
                    }
                    self.metrics.tls.ticket_keys_shared.set(0);
                    self.ring.renew(Vec::new(), now);
                    patience.pause()
                }
            };
            time::sleep(pause).await;
        }
    }

    /// Makes sure that there are keys for this period and the next, fetches all there are, and clears away what is over.
    async fn visit(&self, place: &Place, seal: &Seal, now: u64) -> Result<Visit, StoreError> {
        let session = WriteSession::open(&place.find_briefly().await?).await?;
        let mut kept = session.ticket_keys().await?;
        let mut is_stale = false;
        for begins in self.ring.periods(now) {
            let name = format!("{begins}:{}", seal.tag());
            if !kept.iter().any(|(held, _)| *held == name) {
                let keep = self.ring.period() * PERIODS_KEPT;
                session.offer_ticket_key(&name, seal.close(&TicketKey::generate(begins)), keep).await?;
                is_stale = true;
            }
        }
        if is_stale {
            kept = session.ticket_keys().await?;
        }
        let (mut visit, mut useless) = (Visit::default(), Vec::new());
        for (name, sealed) in kept {
            let parts = name.split_once(':').and_then(|(begins, tag)| Some((begins.parse().ok()?, tag)));
            match parts {
                Some((begins, tag)) if tag != seal.tag() => {
                    visit.has_strangers = true;
                    // How long another secret's keys are of use is for others to know, but not as long as this.
                    if now.saturating_sub(begins) > LONGEST_LIFE.as_secs() {
                        useless.push(name);
                    }
                }
                Some((begins, _)) if !self.ring.is_over(begins, now) => match seal.open(begins, &sealed) {
                    Ok(key) => visit.keys.push(key),
                    Err(_) => useless.push(name),
                },
                _ => useless.push(name),
            }
        }
        if !useless.is_empty() {
            session.forget_ticket_keys(useless).await?;
        }
        Ok(visit)
    }
}

/// How often in a period Redis is looked at: an instance may be that much late in learning the next key.
const VISITS_PER_PERIOD: u32 = 8;
const SHORTEST_INTERVAL: Duration = Duration::from_millis(250);
const LONGEST_INTERVAL: Duration = Duration::from_secs(30);

/// Periods for which the keys outlive the last instance.
const PERIODS_KEPT: u32 = 4;

/// Longer than the keys of any period that the command line allows.
const LONGEST_LIFE: Duration = Duration::from_hours(7 * 24);
