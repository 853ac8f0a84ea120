//! The table in a file, for a start without Redis.

use std::time::Duration;

use bytes::Bytes;
use tracing::warn;

use super::Syncer;
use crate::{
    clock::Moment,
    routing::Seen,
    store::{List, Record},
    sync::{
        Stock,
        saved::{Saved, SavedMark, SavedPair, until_wall},
        snapshot_file::wall_millis,
    },
    tls::{Content, Offer},
};

impl Syncer {
    /// Takes in what an earlier process has left in the file, without serving it yet; returns whether there was anything.
    pub(super) async fn restore(&mut self) -> bool {
        let Some(file) = &self.file else { return false };
        let (saved, age) = match file.restore().await {
            Ok(Some(found)) => found,
            Ok(None) => return false,
            Err(error) => {
                warn!("{error}; it is ignored");
                return false;
            }
        };
        self.trust.inherit(saved.identity());
        let (now, wall) = (self.clock.now(), wall_millis());
        self.table.begin(Seen::OneByOne);
        for route in saved.routes {
            let elements = route.elements.into_iter().map(Bytes::from).collect();
            self.table.apply(&Record { host: route.host, list: Some(List::Elements(elements)), dead: None }, now);
        }
        for mark in saved.marks {
            let until = match mark.until {
                None => Moment::from_millis(u64::MAX),
                Some(until) if until > wall => now.after(Duration::from_millis(until - wall)),
                Some(_) => continue,
            };
            self.table.restore_mark(&mark.host, &mark.url, mark.index, now, until);
        }
        if let Some(stock) = &mut self.stock {
            let offers = saved.certificates.into_iter().map(|pair| Offer {
                name: pair.name,
                content: Content::Pair { certificate: pair.certificate.into(), key: pair.key.into() },
            });
            stock.exchange(Vec::new(), offers.collect()).await;
        }
        self.health.inherited(age);
        true
    }

    /// Begins to write the table to its file.
    pub(super) fn save(&mut self) {
        let Some(file) = &mut self.file else { return };
        let (now, wall) = (self.clock.now(), wall_millis());
        let identity = self.trust.believed().cloned().unwrap_or_default();
        let marks = self.table.dead_marks().filter(|(_, _, backend)| backend.is_dead(now));
        let pairs = self.stock.iter().flat_map(Stock::texts);
        let saved = Saved {
            run: identity.run,
            history: identity.history,
            marks: marks
                .map(|(host, index, backend)| SavedMark {
                    host: host.to_owned(),
                    url: backend.url().to_owned(),
                    index: Some(index),
                    until: until_wall(backend.dead_until(), now, wall),
                })
                .collect(),
            certificates: pairs
                .filter_map(|(name, text)| match text {
                    Content::Pair { certificate, key } => {
                        Some(SavedPair { name: name.to_owned(), certificate: certificate.to_vec(), key: key.to_vec() })
                    }
                    Content::Unreadable(_) => None,
                })
                .collect(),
            ..Saved::default()
        };
        file.save(saved, self.table.snapshot());
    }

    pub(super) fn has_changed(&mut self) {
        if let Some(file) = &mut self.file {
            file.is_due();
        }
    }
}
