//! Hosts and certificates whose keys may have changed since they were read, each once however many events named it.

use std::time::Instant;

use foldhash::quality::RandomState;

use crate::store::{Change, Session, StoreError};

type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;
type HashSet<K> = std::collections::HashSet<K, RandomState>;

/// The keys still to be read again.
#[derive(Default)]
pub struct Dirty {
    /// By host: the backends that notices named.
    hosts: HashMap<String, Vec<String>>,
    /// The same for those that a batch has already passed over, and for those that are gone, which nobody waits for. The
    /// others come first, so that a single edit does not wait for the end of a burst.
    backlog: HashMap<String, Vec<String>>,
    /// The same for those whose lists are so long that each is read by itself, so that what is edited meanwhile waits for no
    /// more than one.
    long: HashMap<String, Vec<String>>,
    is_turn_of_long: bool,
    /// What follows the prefix in dead keys: hosts, or leases.
    dead_keys: HashSet<String>,
    certificates: HashSet<String>,
    events: u64,
    junk: u64,
    since: Option<Instant>,
}

/// Some dirty keys, about to be read.
pub struct Batch {
    /// The hosts to read.
    pub hosts: Vec<String>,
    /// The backends that were announced dead, for each of the hosts.
    pub notices: Vec<Vec<String>>,
    /// The backends whose leases have changed, by host and URL.
    pub leases: Vec<(String, String)>,
    /// The names of the certificates to read.
    pub certificates: Vec<String>,
    /// Events that arrived since the previous batch.
    pub events: u64,
    /// Messages among them that were junk.
    pub junk: u64,
    /// When the first of them arrived.
    pub since: Instant,
}

impl Dirty {
    /// Notes one change.
    pub fn add(&mut self, change: Change) {
        self.since.get_or_insert_with(Instant::now);
        self.events += 1;
        match change {
            Change::Host(host) => {
                self.named(host);
            }
            Change::Removal(host) => {
                if !self.hosts.contains_key(&host) && !self.long.contains_key(&host) {
                    self.backlog.entry(host).or_default();
                }
            }
            Change::DeadKey(name) => {
                self.dead_keys.insert(name);
            }
            Change::Certificate(name) => {
                self.certificates.insert(name);
            }
            Change::Notice(notice) => {
                let urls = self.named(notice.host);
                if !urls.contains(&notice.url) {
                    urls.push(notice.url);
                }
            }
            Change::Junk => self.junk += 1,
        }
    }

    /// The backends that notices named, of a host that comes first from now on.
    fn named(&mut self, host: String) -> &mut Vec<String> {
        if !self.long.is_empty() && self.long.contains_key(&host) {
            return self.long.entry(host).or_default();
        }
        let urls = if self.backlog.is_empty() { None } else { self.backlog.remove(&host) };
        self.hosts.entry(host).or_insert_with(|| urls.unwrap_or_default())
    }

    /// Notes every change that has already arrived.
    ///
    /// # Errors
    /// When the session is lost.
    pub fn collect(&mut self, session: &mut Session) -> Result<(), StoreError> {
        while let Some(change) = session.arrived()? {
            self.add(change);
        }
        Ok(())
    }

    /// Whether the host is to be read again.
    pub fn contains(&self, host: &str) -> bool {
        [&self.hosts, &self.backlog, &self.long].iter().any(|hosts| hosts.contains_key(host))
            || self.dead_keys.contains(host)
    }

    /// Whether the certificate is to be read again.
    pub fn contains_certificate(&self, name: &str) -> bool {
        self.certificates.contains(name)
    }

    /// Whether a batch has passed over hosts, and hosts alone, so that the next may be read before that one is applied.
    pub fn is_burst(&self) -> bool {
        !self.backlog.is_empty() && self.dead_keys.is_empty() && self.certificates.is_empty()
    }

    /// Takes up to [`BATCH`] hosts, as many certificates, and all leases; `None` when nothing has changed. `lease` takes what
    /// follows the prefix in a dead key apart into host and URL, where that is a lease; `is_long` says which hosts have such
    /// lists that one is a batch.
    pub fn take_batch(
        &mut self,
        lease: impl Fn(&str) -> Option<(String, String)>,
        is_long: impl Fn(&str) -> bool,
    ) -> Option<Batch> {
        let since = self.since?;
        let mut leases = Vec::new();
        for name in std::mem::take(&mut self.dead_keys) {
            let found = lease(&name);
            // It may be a host's all the same, but no client can ask for a host with a slash.
            if found.is_none() || !name.contains('/') {
                self.named(name);
            }
            leases.extend(found);
        }
        let certificates: Vec<String> = if self.certificates.len() <= BATCH {
            self.certificates.drain().collect()
        } else {
            let names: Vec<String> = self.certificates.iter().take(BATCH).cloned().collect();
            names.into_iter().filter_map(|name| self.certificates.take(&name)).collect()
        };
        let mut taken = Vec::new();
        if !std::mem::take(&mut self.is_turn_of_long) || self.long.is_empty() {
            let newest = BATCH - self.backlog.len().min(BATCH / 2);
            taken.extend(self.hosts.extract_if(|_, _| true).take(newest));
            taken.extend(self.backlog.extract_if(|_, _| true).take(BATCH - taken.len()));
            self.backlog.extend(self.hosts.drain());
            if self.backlog.is_empty() {
                // The memory of a burst is given back.
                (self.hosts, self.backlog) = Default::default();
            }
            self.long.extend(taken.extract_if(.., |(host, _)| is_long(host)));
            self.is_turn_of_long = !taken.is_empty();
        }
        if taken.is_empty() {
            taken.extend(self.long.extract_if(|_, _| true).next());
        }
        let (hosts, notices) = taken.into_iter().unzip();
        if [&self.hosts, &self.backlog, &self.long].iter().all(|hosts| hosts.is_empty()) && self.certificates.is_empty()
        {
            self.since = None;
        }
        let (events, junk) = (std::mem::take(&mut self.events), std::mem::take(&mut self.junk));
        Some(Batch { hosts, notices, leases, certificates, events, junk, since })
    }
}

/// Hosts, or certificates, read in one round trip.
const BATCH: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DeadNotice;

    #[test]
    fn a_burst_on_one_host_is_one_read() {
        let mut dirty = Dirty::default();
        for _ in 0..10_000 {
            dirty.add(Change::Host("a".into()));
        }
        let notice = DeadNotice { host: "a".into(), url: "http://x".into(), index: 0, backends: 1 };
        dirty.add(Change::Notice(notice.clone()));
        dirty.add(Change::Notice(notice));
        let batch = dirty.take_batch(|_| None, |_| false).unwrap();
        assert_eq!((batch.hosts, batch.events), (vec!["a".to_owned()], 10_002));
        assert_eq!(batch.notices, [["http://x"]]);
        assert!(dirty.take_batch(|_| None, |_| false).is_none());
    }

    #[test]
    fn a_burst_on_many_hosts_is_read_in_batches() {
        let mut dirty = Dirty::default();
        for number in 0..2 * BATCH + 500 {
            dirty.add(Change::Host(number.to_string()));
        }
        let mut sizes = Vec::new();
        while let Some(batch) = dirty.take_batch(|_| None, |_| false) {
            sizes.push(batch.hosts.len());
        }
        assert_eq!(sizes, [BATCH, BATCH, 500]);
    }

    #[test]
    fn an_edit_does_not_wait_for_the_end_of_a_burst() {
        let mut dirty = Dirty::default();
        for number in 0..10 * BATCH {
            dirty.add(Change::Host(number.to_string()));
        }
        dirty.take_batch(|_| None, |_| false).unwrap();
        dirty.add(Change::Host("a".into()));
        let passed_over = dirty.backlog.keys().next().unwrap().clone();
        let notice = DeadNotice { host: passed_over.clone(), url: "http://x".into(), index: 0, backends: 1 };
        dirty.add(Change::Notice(notice));
        dirty.add(Change::Host(passed_over.clone()));
        assert!(dirty.contains("a") && dirty.contains(&passed_over));
        let batches: Vec<_> = std::iter::from_fn(|| dirty.take_batch(|_| None, |_| false)).collect();
        assert!(batches[0].hosts.contains(&"a".to_owned()));
        let hosts = batches.iter().flat_map(|batch| &batch.hosts).count();
        let notices = batches.iter().flat_map(|batch| &batch.notices).flatten().count();
        assert_eq!((hosts, notices), (9 * BATCH + 1, 1), "each is read once");
    }

    #[test]
    fn an_edit_does_not_wait_for_those_that_are_gone() {
        let mut dirty = Dirty::default();
        for number in 0..10 * BATCH {
            dirty.add(Change::Removal(number.to_string()));
        }
        dirty.add(Change::Host("a".into()));
        dirty.add(Change::Removal("a".into()));
        dirty.add(Change::Host("0".into()));
        let batch = dirty.take_batch(|_| None, |_| false).unwrap();
        assert!(["a", "0"].iter().all(|host| batch.hosts.iter().any(|taken| taken == host)), "0 is written anew");
        let rest = std::iter::from_fn(|| dirty.take_batch(|_| None, |_| false)).map(|batch| batch.hosts.len());
        assert_eq!(batch.hosts.len() + rest.sum::<usize>(), 10 * BATCH + 1, "each is read once");
    }

    #[test]
    fn a_long_list_is_read_by_itself_and_in_its_turn() {
        let mut dirty = Dirty::default();
        let is_long = |host: &str| host.starts_with("long");
        let mut next = |more: &[&str]| {
            for host in more {
                dirty.add(Change::Host((*host).to_owned()));
            }
            assert!(more.iter().all(|host| dirty.contains(host)));
            let mut hosts = dirty.take_batch(|_| None, is_long)?.hosts;
            hosts.sort();
            Some(hosts.join(" "))
        };
        assert_eq!(next(&["long", "a", "b"]).as_deref(), Some("a b"));
        assert_eq!(next(&["c", "long"]).as_deref(), Some("long"));
        assert_eq!(next(&["d", "long"]).as_deref(), Some("c d"));
        assert_eq!(next(&["long2"]).as_deref(), Some("long"));
        assert_eq!(next(&[]).as_deref(), Some("long2"), "there is nothing shorter");
        assert_eq!(next(&[]), None);
    }

    #[test]
    fn certificates_are_read_in_batches_too() {
        let mut dirty = Dirty::default();
        for number in 0..BATCH + 500 {
            dirty.add(Change::Certificate(number.to_string()));
            dirty.add(Change::Certificate(number.to_string()));
        }
        dirty.add(Change::Host("a".into()));
        assert!(dirty.contains_certificate("7"));
        let batch = dirty.take_batch(|_| None, |_| false).unwrap();
        assert_eq!((batch.certificates.len(), batch.hosts.len(), batch.events), (BATCH, 1, 2 * BATCH as u64 + 1_001));
        assert_eq!(dirty.take_batch(|_| None, |_| false).unwrap().certificates.len(), 500);
        assert!(dirty.take_batch(|_| None, |_| false).is_none());
    }

    #[test]
    fn leases_are_told_from_hosts() {
        let mut dirty = Dirty::default();
        for name in ["a", "a:80", "a:http://x", "b:http://x"] {
            dirty.add(Change::DeadKey(name.into()));
        }
        assert!(dirty.contains("a"));
        let lease = |name: &str| {
            name.strip_prefix("a:")
                .map(|url| ("a".to_owned(), url.to_owned()))
                .filter(|(_, url)| url.contains('x') || url == "80")
        };
        let mut batch = dirty.take_batch(lease, |_| false).unwrap();
        batch.leases.sort();
        assert_eq!(batch.leases, [("a".to_owned(), "80".to_owned()), ("a".to_owned(), "http://x".to_owned())]);
        let mut hosts = batch.hosts;
        hosts.sort();
        assert_eq!(hosts, ["a", "a:80", "b:http://x"]);
    }

    #[test]
    fn junk_is_counted_though_it_concerns_no_host() {
        let mut dirty = Dirty::default();
        dirty.add(Change::Junk);
        let batch = dirty.take_batch(|_| None, |_| false).unwrap();
        assert_eq!((batch.junk, batch.hosts.len()), (1, 0));
    }
}
