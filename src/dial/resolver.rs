//! What addresses a name has, as /etc/hosts and DNS say at this moment. It remembers no answer: see [`super::names`].
//!
//! The order of things is the C library's: the hosts file first, then DNS with the search list and `ndots` of
//! /etc/resolv.conf, the servers in their order. Both files are read again when they change.

use std::{
    cmp::min,
    fs,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::Query,
        rr::{Name, RecordType},
    },
    system_conf::read_system_conf,
};
use tokio::time::timeout;
use tracing::warn;

use super::race::race;

/// What is known of a name.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its addresses; none if there is no such name, or it has none.
    pub addresses: Vec<IpAddr>,
    /// How long that may be believed: [`SHORTEST`] to [`LONGEST`], or to [`LONGEST_NONE`] where there are no addresses.
    pub ttl: Duration,
}

/// Asks the files and servers.
pub struct Resolver {
    servers: Vec<SocketAddr>,
    sources: ArcSwap<Sources>,
}

/// What the files said when they were last read.
struct Sources {
    stamps: [Option<(SystemTime, u64)>; 2],
    hosts: Hosts,
    search: Vec<Name>,
    ndots: usize,
    /// One for each server, so that their order is kept.
    servers: Vec<TokioResolver>,
}

impl Resolver {
    /// One that asks these servers, or those of /etc/resolv.conf if there are none.
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        let sources = ArcSwap::from_pointee(Sources::read(&servers));
        Self { servers, sources }
    }

    /// Looks a name up. An error says that there is no answer, which is not the same as an answer without addresses.
    pub async fn resolve(&self, text: &str) -> Result<Answer, NetError> {
        // The authority of a URL may hold more than a name of DNS.
        let Ok(name) = Name::from_ascii(text) else {
            return Ok(Answer::none(LONGEST_NONE));
        };
        let sources = self.sources();
        if let Some(answer) = sources.in_hosts(&name) {
            return Ok(answer);
        }
        timeout(LIMIT, sources.in_dns(&name)).await.unwrap_or(Err(NetError::Timeout))
    }

    fn sources(&self) -> Arc<Sources> {
        let sources = self.sources.load();
        if sources.stamps == stamps() {
            return Arc::clone(&sources);
        }
        // Whoever also comes here reads the same.
        let fresh = Arc::new(Sources::read(&self.servers));
        self.sources.store(Arc::clone(&fresh));
        fresh
    }
}

impl Sources {
    fn read(servers: &[SocketAddr]) -> Self {
        let stamps = stamps();
        let (config, mut options) = read_system_conf().unwrap_or_else(|error| {
            if servers.is_empty() {
                warn!(%error, "there is no usable {RESOLV_CONF}: names are asked of 127.0.0.1");
            }
            let local = NameServerConfig::udp_and_tcp([127, 0, 0, 1].into());
            (ResolverConfig::from_name_servers(vec![local]), ResolverOpts::default())
        });
        options.use_hosts_file = ResolveHosts::Never;
        // Answers are kept elsewhere, with the last good ones for when there is none.
        options.cache_size = 0;
        let (domain, mut search, mut name_servers) = config.into_parts();
        if search.is_empty() {
            search.extend(domain);
        }
        if !servers.is_empty() {
            name_servers = servers.iter().map(name_server).collect();
        }
        let servers = name_servers.into_iter().filter_map(|server| {
            let config = ResolverConfig::from_name_servers(vec![server]);
            let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.with_options(options.clone()).build().inspect_err(|error| warn!(%error, "a DNS server")).ok()
        });
        let servers = servers.collect();
        Self { stamps, hosts: Hosts::from_system().unwrap_or_default(), search, ndots: options.ndots, servers }
    }

    fn in_hosts(&self, name: &Name) -> Option<Answer> {
        let families = [RecordType::A, RecordType::AAAA];
        let lookups = families.map(|family| self.hosts.lookup_static_host(&Query::query(name.clone(), family)));
        let addresses: Vec<_> = lookups.iter().flatten().flat_map(addresses).collect();
        (!addresses.is_empty()).then_some(Answer { addresses, ttl: SHORTEST })
    }

    async fn in_dns(&self, name: &Name) -> Result<Answer, NetError> {
        let (mut ttl, mut failure) = (LONGEST_NONE, None);
        for candidate in candidates(name, &self.search, self.ndots) {
            match self.ask(&candidate).await {
                Ok(answer) if answer.addresses.is_empty() => ttl = min(ttl, answer.ttl),
                Ok(answer) => return Ok(answer),
                Err(error) => failure = Some(error),
            }
        }
        // A name without an answer might have been the one meant.
        failure.map_or(Ok(Answer::none(ttl)), Err)
    }

    /// Asks one server after the other.
    async fn ask(&self, name: &Name) -> Result<Answer, NetError> {
        let attempts: Vec<_> = self.servers.iter().map(|server| ask(server.clone(), name.clone())).collect();
        let mut finish = race(attempts, SERVER_HEAD_START).await;
        match finish.won {
            Some((_, answer)) => Ok(answer),
            None => Err(finish.failed.pop().map_or(NetError::NoConnections, |(_, error)| error)),
        }
    }
}

impl Answer {
    fn none(ttl: Duration) -> Self {
        Self { addresses: Vec::new(), ttl }
    }
}

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

/// The names to ask for, in order, as resolv.conf(5) has it.
fn candidates(name: &Name, search: &[Name], ndots: usize) -> Vec<Name> {
    let mut whole = name.clone();
    whole.set_fqdn(true);
    if name.is_fqdn() || name.is_localhost() {
        return vec![whole];
    }
    let mut candidates: Vec<Name> =
        search.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect();
    let dots = usize::from(name.num_labels()).saturating_sub(1);
    candidates.insert(if dots >= ndots { 0 } else { candidates.len() }, whole);
    candidates
}

/// Asks a server for the addresses of both families.
async fn ask(server: TokioResolver, name: Name) -> Result<Answer, NetError> {
    let mut v4 = pin!(server.lookup(name.clone(), RecordType::A));
    let mut v6 = pin!(server.lookup(name, RecordType::AAAA));
    let both = tokio::select! {
        first = &mut v4 => { let second = other(&first, v6).await; [first, second] }
        first = &mut v6 => { let second = other(&first, v4).await; [first, second] }
    };
    combine(both)
}

/// Waits for the other family, but not for long once there are addresses: some servers never answer for IPv6.
async fn other(
    first: &Result<Lookup, NetError>,
    second: impl Future<Output = Result<Lookup, NetError>>,
) -> Result<Lookup, NetError> {
    let limit = if first.is_ok() { FAMILY_DELAY } else { LIMIT };
    timeout(limit, second).await.unwrap_or(Err(NetError::Timeout))
}

fn combine(answers: [Result<Lookup, NetError>; 2]) -> Result<Answer, NetError> {
    let (mut found, mut ttl, mut ttl_of_none, mut failure) = (Vec::new(), LONGEST, LONGEST_NONE, None);
    for answer in answers {
        match answer {
            Ok(lookup) => {
                let records = lookup.answers().iter().map(|record| Duration::from_secs(record.ttl.into()));
                ttl = records.fold(ttl, min);
                found.extend(addresses(&lookup));
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                ttl_of_none =
                    none.negative_ttl.map_or(ttl_of_none, |ttl| min(ttl_of_none, Duration::from_secs(ttl.into())));
            }
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if found.is_empty() => Err(error),
        // The other family is asked for again soon.
        Some(_) => Ok(Answer { addresses: found, ttl: ttl.clamp(SHORTEST, LONGEST_NONE) }),
        None if found.is_empty() => Ok(Answer::none(ttl_of_none.max(SHORTEST))),
        None => Ok(Answer { addresses: found, ttl: ttl.max(SHORTEST) }),
    }
}

fn addresses(lookup: &Lookup) -> impl Iterator<Item = IpAddr> {
    lookup.answers().iter().filter_map(|record| record.data.ip_addr())
}

/// What shows that one of the files has changed. They are small, local and rarely read, so that reading them here does not
/// hold up anything.
fn stamps() -> [Option<(SystemTime, u64)>; 2] {
    ["/etc/hosts", RESOLV_CONF].map(|path| {
        let file = fs::metadata(path).ok()?;
        Some((file.modified().ok()?, file.len()))
    })
}

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The shortest that an answer is believed, whatever its TTL.
pub const SHORTEST: Duration = Duration::from_secs(1);

/// The longest. Docker's server says 10 minutes, and moves containers much more often than that.
pub const LONGEST: Duration = Duration::from_secs(30);

/// The longest that a name is believed to have no addresses.
pub const LONGEST_NONE: Duration = Duration::from_secs(5);

/// How long a server has to answer before the next is asked as well.
const SERVER_HEAD_START: Duration = Duration::from_secs(1);

/// How long the second family may come after the first.
const FAMILY_DELAY: Duration = Duration::from_millis(500);

/// How long a look-up may take in all.
const LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<Name> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_search_list_comes_before_short_names_and_after_long_ones() {
        let (search, name) = (names(&["a.test", "b.test."]), |text| Name::from_ascii(text).unwrap());
        assert_eq!(candidates(&name("db"), &search, 1), names(&["db.a.test.", "db.b.test.", "db."]));
        assert_eq!(candidates(&name("db.x"), &search, 1), names(&["db.x.", "db.x.a.test.", "db.x.b.test."]));
        assert_eq!(candidates(&name("db.x"), &search, 5).last(), names(&["db.x."]).last());
        assert_eq!(candidates(&name("db."), &search, 5), names(&["db."]));
        assert_eq!(candidates(&name("localhost"), &search, 5), names(&["localhost."]));
    }
}
