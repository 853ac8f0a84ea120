//! One session with the read Redis, from connecting to the first doubt.

use std::time::Duration;

use super::{
    Doubt, Identity, Notifications, Server, StoreError, Vitals,
    bulk::{Bulk, Commands},
    client::{CONNECT_LIMIT, Connection, NO_SUBSCRIPTION},
    heard::{Class, Hearing},
    inbox::{Inbox, Missed, Reading, SUBSCRIPTION},
    schema::{
        self, CERTIFICATE_FIELDS, CERTIFICATE_PREFIX, CertificateHash, CertificateRecord, Change, DEAD_CHANNEL,
        DEAD_PREFIX, DeadNotice, DeadSet, FRONTEND_PREFIX, List, Record,
    },
};
use bytes::Bytes;
use fred::{
    interfaces::{ClientLike, ConfigInterface, PubsubInterface, ServerInterface},
    types::{InfoKind, KeyspaceEvent, Message, Value},
};
use redis_protocol::resp2::types::BytesFrame;

/// A live session: three connections to one server, subscribed to every change since it was opened.
///
/// Its use is strictly: open, load everything with [`Session::scan`] and [`Session::read`], then follow
/// [`Session::change`], asking [`Session::beat`] once a second. After any error it must be dropped.
pub struct Session {
    /// For what the server says of itself.
    commands: Connection,
    subscriber: Connection,
    /// For what it holds.
    bulk: Bulk,
    inbox: Inbox<Arrival>,
    vitals: Vitals,
    identity: Identity,
    hearing: Hearing,
}

/// Which keys to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// `frontend:*`
    Frontends,
    /// `dead:*`
    DeadSets,
    /// `tls:*`
    Certificates,
}

impl Pattern {
    fn prefix(self) -> &'static str {
        match self {
            Self::Frontends => FRONTEND_PREFIX,
            Self::DeadSets => DEAD_PREFIX,
            Self::Certificates => CERTIFICATE_PREFIX,
        }
    }
}

/// One page of a scan.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// What follows the prefix in the keys found. The same name may come twice in one scan.
    pub names: Vec<String>,
    /// Where to go on; `None` at the end.
    pub next: Option<String>,
}

impl Session {
    /// Connects, checks that the server has data to give, subscribes to the keys that match, and to the channel `dead`, and
    /// waits until the subscriptions are in force.
    pub async fn open(server: &Server, patterns: &[Pattern]) -> Result<Self, StoreError> {
        let commands = Connection::open(server, NO_SUBSCRIPTION).await?;
        let vitals = examine(&commands).await?;
        // An access list may forbid it.
        let server_info =
            commands.ask(HEARTBEAT_LIMIT, commands.client.info::<String>(Some(InfoKind::Server))).await.ok();
        let identity = vitals.identity(server_info.as_deref());
        if vitals.stale().is_some() && (vitals.keys == 0 || vitals.role_is_copying()) {
            return Err(StoreError::NotReady {
                server: server.to_string(),
                reason: "it is a replica that has not received its master's data yet",
            });
        }
        let bulk = Bulk::open(server, CONNECT_LIMIT).await?;
        let subscriber = Connection::open(server, SUBSCRIPTION).await?;
        let inbox = Inbox::new(&subscriber.client, Reading { event: of_event, message: of_message });
        let channel = |pattern: &Pattern| format!("__keyspace@{}__:{}*", server.database, pattern.prefix());
        let channels: Vec<String> = patterns.iter().map(channel).collect();
        subscriber
            .ask(COMMAND_LIMIT, async {
                subscriber.client.subscribe(DEAD_CHANNEL).await?;
                // The library takes a reply too early here, so that a refusal becomes the answer to the next command, or is
                // lost where none waits.
                let (subscribed, ping) =
                    tokio::join!(subscriber.client.psubscribe(channels), subscriber.client.ping::<Value>(None));
                subscribed.and(ping.map(drop))
            })
            .await?;
        let hearing = Hearing::new(Class::needed(patterns, vitals.role));
        let session = Self { commands, subscriber, bulk, inbox, vitals, identity, hearing };
        session.barrier().await?;
        Ok(session)
    }

    /// The server.
    pub fn server(&self) -> &Server {
        &self.commands.server
    }

    /// What the server last said of itself.
    pub fn vitals(&self) -> &Vitals {
        &self.vitals
    }

    /// Which data the server had when the session was opened.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether changed keys surely are, or are not, announced; `None` while that is not known, because asking is forbidden
    /// and some class of events that is needed has not been heard.
    pub fn announces(&self) -> Option<bool> {
        match self.vitals.notifications {
            Notifications::On => Some(true),
            Notifications::Off(_) => Some(false),
            Notifications::Unknown => self.unheard().is_empty().then_some(true),
        }
    }

    /// The classes of events that are needed and have not been heard.
    pub fn unheard(&self) -> &[Class] {
        self.hearing.missing()
    }

    /// What was heard until now proves nothing any more.
    pub fn listen_anew(&mut self) {
        self.hearing.begin_anew();
    }

    /// Waits for the next change, or for the session's end. Cancel-safe.
    pub async fn change(&mut self) -> Result<Change, StoreError> {
        loop {
            let arrival = tokio::select! {
                biased;
                arrival = self.inbox.next() => arrival.map_err(|missed| self.lost(&missed))?,
                error = self.commands.broken() => return Err(error),
                error = self.subscriber.broken() => return Err(error),
            };
            if let Some(change) = self.take(arrival) {
                return Ok(change);
            }
        }
    }

    /// The next change that has already arrived.
    pub fn arrived(&mut self) -> Result<Option<Change>, StoreError> {
        while let Some(arrival) = self.inbox.arrived().map_err(|missed| self.lost(&missed))? {
            let change = self.take(arrival);
            if change.is_some() {
                return Ok(change);
            }
        }
        Ok(None)
    }

    fn take(&mut self, arrival: Arrival) -> Option<Change> {
        match arrival {
            Arrival::Event(class, change) => {
                if let Some(class) = class {
                    self.hearing.hear(class);
                }
                change
            }
            Arrival::Message(change) => Some(change),
        }
    }

    /// Waits until every message that the server sent before this call has arrived: PING is answered on the subscriber's
    /// connection in its turn. Also the proof that the subscriptions are in force, which the client library does not give.
    pub async fn barrier(&self) -> Result<(), StoreError> {
        barrier(&self.subscriber, &self.inbox).await
    }

    /// One heartbeat: proves that all connections are answered, and compares the server's vitals with the last.
    pub async fn beat(&mut self) -> Result<Option<Doubt>, StoreError> {
        let Self { commands, subscriber, bulk, inbox, .. } = self;
        let (vitals, (), ()) =
            tokio::try_join!(examine(commands), barrier(subscriber, inbox), bulk.ping(HEARTBEAT_LIMIT))?;
        let doubt = vitals.doubt_since(&self.vitals);
        self.vitals = vitals;
        Ok(doubt)
    }

    /// One page of the keys that match, beginning at `cursor` ("0" for the first). Redis looks at about `effort` keys for it.
    pub async fn scan(&mut self, pattern: Pattern, cursor: &str, effort: u32) -> Result<Page, StoreError> {
        let prefix = pattern.prefix();
        let mut commands = Commands::default();
        commands.add_plain(&["SCAN", cursor, "MATCH", &format!("{prefix}*"), "COUNT", &effort.to_string()]);
        let reply = self.ask(&commands).await?.next().ok_or_else(|| self.bulk.protocol("SCAN"))?;
        let page = page_of(self.bulk.unless_error(reply)?, prefix);
        page.ok_or_else(|| self.bulk.protocol("SCAN"))
    }

    /// Reads the lists of these hosts, in their order.
    pub async fn lists(&mut self, hosts: &[String]) -> Result<Vec<List>, StoreError> {
        let mut commands = Commands::default();
        for host in hosts {
            ask_for_list(&mut commands, host);
        }
        let replies = self.ask(&commands).await?;
        replies.map(|reply| self.list(reply)).collect()
    }

    /// Reads the dead sets of these hosts, in their order.
    pub async fn dead_sets(&mut self, hosts: &[String]) -> Result<Vec<DeadSet>, StoreError> {
        let mut commands = Commands::default();
        for host in hosts {
            ask_for_dead_set(&mut commands, host);
        }
        let mut replies = self.ask(&commands).await?;
        hosts.iter().map(|_| self.dead_set(&mut replies)).collect()
    }

    /// Whether these backends, by host and URL, are being checked by anybody, in their order.
    pub async fn leases(&mut self, backends: &[(String, String)]) -> Result<Vec<bool>, StoreError> {
        let mut commands = Commands::default();
        for (host, url) in backends {
            commands.add("PTTL", ["", &schema::lease_key(host, url)], &[]);
        }
        let replies = self.ask(&commands).await?;
        replies.map(|reply| Ok(self.pttl(reply)? != NO_KEY)).collect()
    }

    /// Reads the certificates of these names, in their order.
    pub async fn certificates(&mut self, names: &[String]) -> Result<Vec<CertificateRecord>, StoreError> {
        let mut commands = Commands::default();
        for name in names {
            commands.add("HMGET", [CERTIFICATE_PREFIX, name], &CERTIFICATE_FIELDS);
        }
        let replies = self.ask(&commands).await?;
        let record =
            |(name, reply): (&String, _)| Ok(CertificateRecord { name: name.clone(), hash: self.hash(reply)? });
        names.iter().zip(replies).map(record).collect()
    }

    /// Reads everything about these hosts, in one round trip.
    pub async fn read(&mut self, hosts: Vec<String>) -> Result<Vec<Record>, StoreError> {
        let mut commands = Commands::default();
        for host in &hosts {
            ask_for_list(&mut commands, host);
            ask_for_dead_set(&mut commands, host);
        }
        let mut replies = self.ask(&commands).await?;
        let record = |host| {
            let list = replies.next().ok_or_else(|| self.bulk.protocol("LRANGE"))?;
            Ok(Record { host, list: Some(self.list(list)?), dead: Some(self.dead_set(&mut replies)?) })
        };
        hosts.into_iter().map(record).collect()
    }

    async fn ask(&mut self, commands: &Commands) -> Result<impl Iterator<Item = BytesFrame> + use<>, StoreError> {
        Ok(self.bulk.ask(commands, COMMAND_LIMIT).await?.into_iter())
    }

    fn list(&self, reply: BytesFrame) -> Result<List, StoreError> {
        Ok(self.elements(reply)?.map_or(List::WrongType, List::Elements))
    }

    fn dead_set(&self, replies: &mut impl Iterator<Item = BytesFrame>) -> Result<DeadSet, StoreError> {
        let (Some(members), Some(pttl)) = (replies.next(), replies.next()) else {
            return Err(self.bulk.protocol("SMEMBERS"));
        };
        let pttl = self.pttl(pttl)?;
        // Leases of the active health check are strings; anything else here is junk. Neither marks a backend.
        Ok(self.elements(members)?.map(|members| DeadSet::from_members(&members, pttl)).unwrap_or_default())
    }

    fn hash(&self, reply: BytesFrame) -> Result<CertificateHash, StoreError> {
        let fields = match reply {
            BytesFrame::Array(fields) => fields,
            reply if is_of_another_type(&reply) => return Ok(CertificateHash::WrongType),
            reply => return self.bulk.unless_error(reply).and_then(|_| Err(self.bulk.protocol("HMGET"))),
        };
        // A copy, because they are kept, and what they lie in is not.
        let mut fields = fields.into_iter().map(|field| text_of(field).map(|text| Bytes::copy_from_slice(&text)));
        Ok(match (fields.next().flatten(), fields.next().flatten()) {
            (None, None) => CertificateHash::Absent,
            (certificate, key) => {
                CertificateHash::Fields { certificate: certificate.unwrap_or_default(), key: key.unwrap_or_default() }
            }
        })
    }

    /// What is in a list or a set; `None` where the key is of another type.
    fn elements(&self, reply: BytesFrame) -> Result<Option<Vec<Bytes>>, StoreError> {
        match reply {
            BytesFrame::Array(elements) => Ok(Some(elements.into_iter().filter_map(text_of).collect())),
            reply if is_of_another_type(&reply) => Ok(None),
            reply => self.bulk.unless_error(reply).and_then(|_| Err(self.bulk.protocol("LRANGE"))),
        }
    }

    fn pttl(&self, reply: BytesFrame) -> Result<i64, StoreError> {
        match self.bulk.unless_error(reply)? {
            BytesFrame::Integer(pttl) => Ok(pttl),
            _ => Err(self.bulk.protocol("PTTL")),
        }
    }

    fn lost(&self, &Missed(missed): &Missed) -> StoreError {
        StoreError::Overrun { server: self.subscriber.server.to_string(), missed }
    }
}

fn ask_for_list(commands: &mut Commands, host: &str) {
    commands.add("LRANGE", [FRONTEND_PREFIX, host], &["0", "-1"]);
}

fn ask_for_dead_set(commands: &mut Commands, host: &str) {
    commands.add("SMEMBERS", [DEAD_PREFIX, host], &[]);
    commands.add("PTTL", [DEAD_PREFIX, host], &[]);
}

/// What SCAN has answered; `None` if it is not of SCAN's form.
fn page_of(reply: BytesFrame, prefix: &str) -> Option<Page> {
    let BytesFrame::Array(parts) = reply else { return None };
    let [cursor, BytesFrame::Array(keys)] = <[BytesFrame; 2]>::try_from(parts).ok()? else { return None };
    let cursor = String::from_utf8(text_of(cursor)?.into()).ok()?;
    // A name that is not UTF-8 can be asked for by no client.
    let names = keys.into_iter().filter_map(|key| {
        let key = text_of(key)?;
        Some(str::from_utf8(&key).ok()?.strip_prefix(prefix)?.to_owned())
    });
    Some(Page { names: names.collect(), next: Some(cursor).filter(|cursor| cursor != "0") })
}

fn text_of(reply: BytesFrame) -> Option<Bytes> {
    match reply {
        BytesFrame::BulkString(text) | BytesFrame::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn is_of_another_type(reply: &BytesFrame) -> bool {
    matches!(reply, BytesFrame::Error(text) if text.starts_with("WRONGTYPE"))
}

async fn barrier(subscriber: &Connection, inbox: &Inbox<Arrival>) -> Result<(), StoreError> {
    subscriber.ask(HEARTBEAT_LIMIT, subscriber.client.ping::<Value>(None)).await?;
    inbox.flush().await;
    Ok(())
}

impl Vitals {
    fn role_is_copying(&self) -> bool {
        matches!(self.role, super::Role::Replica { copying: true, .. })
    }
}

/// Asks a server for its vitals. What an access list forbids is left out; what the server does not answer is an error.
async fn examine(connection: &Connection) -> Result<Vitals, StoreError> {
    let client = &connection.client;
    let asked = async {
        tokio::join!(
            client.dbsize::<u64>(),
            client.info::<String>(Some(InfoKind::Replication)),
            client.info::<String>(Some(InfoKind::CommandStats)),
            client.config_get::<Value, _>("notify-keyspace-events"),
        )
    };
    let (keys, replication, commands, flags) =
        tokio::time::timeout(HEARTBEAT_LIMIT, asked).await.map_err(|_| connection.silent(HEARTBEAT_LIMIT))?;
    let keys = keys.map_err(|error| StoreError::from_fred(&connection.server, error))?;
    let flags = flags.ok().and_then(|answer| answer.into_array().into_iter().nth(1)?.into_string());
    Ok(Vitals::parse(replication.as_deref().unwrap_or_default(), commands.ok().as_deref(), keys, flags.as_deref()))
}

/// What the subscriber's connection brings.
enum Arrival {
    /// A keyspace event: its class, and what it means for the table.
    Event(Option<Class>, Option<Change>),
    /// A message on the channel.
    Message(Change),
}

fn of_event(event: &KeyspaceEvent) -> Arrival {
    Arrival::Event(Class::of(&event.operation), event.key.as_str().and_then(schema::subject_of_key))
}

fn of_message(message: &Message) -> Arrival {
    let notice = message.value.as_str().and_then(|payload| DeadNotice::decode(&payload));
    Arrival::Message(notice.map_or(Change::Junk, Change::Notice))
}

/// How long a heartbeat may take before the server counts as frozen.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(2);

/// PTTL's answer where there is no key.
const NO_KEY: i64 = -2;

/// How long one pipeline may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);
