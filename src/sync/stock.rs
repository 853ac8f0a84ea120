//! Certificates on their way from a source into service: what is worth parsing, saying and counting.

use std::sync::Arc;

use tracing::{info, warn};

use crate::{
    store::{CertificateHash, CertificateRecord},
    telemetry::Metrics,
    tls::{CertificateSource, Content, Keeper, Offer, Outcome, Remark},
};

use super::{expiry, reconcile::excerpt};

/// The certificates in service, as their one source replaces them.
pub struct Stock {
    keeper: Keeper,
    source: CertificateSource,
    metrics: Arc<Metrics>,
}

/// What has become of one offer.
struct Exchanged {
    name: String,
    remarks: Vec<Remark>,
    outcome: Outcome,
}

impl Stock {
    /// Nothing yet.
    pub fn new(keeper: Keeper, source: CertificateSource, metrics: Arc<Metrics>) -> Self {
        Self { keeper, source, metrics }
    }

    /// Takes names out of service, and puts into service what of the offers is new and can be served, both at once. Parsing
    /// happens on other threads.
    pub async fn exchange(&mut self, gone: Vec<String>, offers: Vec<Offer>) {
        let news = self.keeper.news(offers);
        let withdrawn: Vec<String> = gone.into_iter().filter(|name| self.keeper.remove(name)).collect();
        let parsed = if news.is_empty() {
            Vec::new()
        } else {
            tokio::task::spawn_blocking(|| news.parse()).await.expect("parsing does not panic")
        };
        if withdrawn.is_empty() && parsed.is_empty() {
            return;
        }
        let exchanged: Vec<Exchanged> = parsed
            .into_iter()
            .map(|parsed| {
                let (name, remarks) = (parsed.name.clone(), parsed.remarks().to_vec());
                Exchanged { name, remarks, outcome: self.keeper.take(parsed) }
            })
            .collect();
        self.keeper.publish();
        expiry::measure(&self.keeper.certificates().load(), &self.metrics);
        // What is said is in force by now.
        self.tell_withdrawn(&withdrawn);
        self.tell_exchanged(&exchanged);
    }

    fn tell_withdrawn(&self, names: &[String]) {
        for name in names.iter().take(MOST_LINES) {
            info!(certificate = self.place(name), "a certificate is taken out of service");
        }
        if names.len() > MOST_LINES {
            info!("{} more certificates are taken out of service", names.len() - MOST_LINES);
        }
    }

    fn tell_exchanged(&self, exchanged: &[Exchanged]) {
        let is_bulk = exchanged.len() > MOST_LINES;
        let (mut taken, mut refused, mut remarked): (usize, usize, usize) = (0, 0, 0);
        for Exchanged { name, remarks, outcome } in exchanged {
            let certificate = self.place(name);
            match outcome {
                Outcome::Taken => {
                    taken += 1;
                    if !is_bulk {
                        info!(certificate, "a certificate is put into service");
                    }
                    for remark in remarks {
                        remarked += 1;
                        if remarked <= MOST_LINES {
                            warn!(certificate, "a certificate is served, but {remark}");
                        }
                    }
                }
                Outcome::Refused { error, has_previous } => {
                    refused += 1;
                    if refused <= MOST_LINES {
                        let instead = if *has_previous { "; the previous one stays in service" } else { "" };
                        warn!(certificate, "a certificate cannot be served: {error}{instead}");
                    }
                }
            }
        }
        if refused > MOST_LINES {
            warn!("{} more certificates cannot be served", refused - MOST_LINES);
        }
        if remarked > MOST_LINES {
            warn!("{} more remarks on certificates", remarked - MOST_LINES);
        }
        self.metrics.tls.certificates_loaded.inc_by(taken as u64);
        self.metrics.tls.certificates_refused.inc_by(refused as u64);
    }

    /// Brings what is in service into line with what Redis has.
    pub async fn apply(&mut self, records: Vec<CertificateRecord>) {
        let (gone, offers) = sorted(records);
        self.exchange(gone, offers).await;
    }

    /// The names whose records would change something.
    pub fn differing(&self, records: &[CertificateRecord]) -> Vec<String> {
        let (mut gone, offers) = sorted(records.to_vec());
        gone.retain(|name| self.keeper.knows(name));
        gone.extend(self.keeper.news(offers).names().map(str::to_owned));
        gone
    }

    /// Where the operator finds a certificate.
    fn place(&self, name: &str) -> String {
        match &self.source {
            CertificateSource::Redis => format!("tls:{}", excerpt(name)),
            CertificateSource::Folder(path) => path.join(format!("{name}.crt")).display().to_string(),
        }
    }

    /// How many certificates are in service.
    pub fn in_service(&self) -> usize {
        self.keeper.len()
    }

    /// The texts of what is in service, if the keeper keeps them.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &Content)> {
        self.keeper.texts()
    }

    /// Whether a record would take a certificate out of service.
    pub fn would_remove(&self, record: &CertificateRecord) -> bool {
        record.hash == CertificateHash::Absent && self.keeper.knows(&record.name)
    }

    /// Every name that something is known of.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.keeper.names()
    }
}

fn sorted(records: Vec<CertificateRecord>) -> (Vec<String>, Vec<Offer>) {
    let (mut gone, mut offers) = (Vec::new(), Vec::new());
    for CertificateRecord { name, hash } in records {
        let content = match hash {
            CertificateHash::Absent => {
                gone.push(name);
                continue;
            }
            CertificateHash::WrongType => Content::Unreadable("the key is no hash".to_owned()),
            CertificateHash::Fields { certificate, key } => Content::Pair { certificate, key },
        };
        offers.push(Offer { name, content });
    }
    (gone, offers)
}

/// Lines of the log that one batch may fill.
const MOST_LINES: usize = 20;
