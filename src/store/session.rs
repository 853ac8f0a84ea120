//! One session with the read Redis, from connecting to the first doubt.

use std::time::Duration;

use super::{
    Doubt, Identity, Listed, Notifications, Page, Server, StoreError, Vitals, answers,
    bulk::{Bulk, Commands},
    client::{CONNECT_LIMIT, Connection, NO_SUBSCRIPTION},
    heard::{Class, Hearing},
    inbox::{Inbox, Missed, Reading, SUBSCRIPTION},
    schema::{
        self, CERTIFICATE_PREFIX, CertificateRecord, Change, DEAD_CHANNEL, DEAD_PREFIX, DeadNotice, DeadSet,
        FRONTEND_PREFIX, List, Record,
    },
};
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
                arrival = self.inbox.next() => arrival.map_err(|missed| self.lost(missed))?,
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
        while let Some(arrival) = self.inbox.arrived().map_err(|missed| self.lost(missed))? {
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

    /// One page of the keys, beginning at `cursor` ("0" for the first). Redis looks at about `effort` keys for it.
    pub async fn scan(&mut self, cursor: &str, effort: u32) -> Result<Page, StoreError> {
        let mut commands = Commands::default();
        answers::ask_for_page(&mut commands, cursor, effort);
        let reply = self.ask(&commands).await?.next();
        answers::page(self.server(), reply)
    }

    /// Begins to read all lists, page by page, as fast as Redis can. The pages are for [`Session::listed`] to take; until that is
    /// through with them, nothing else can be read.
    pub fn walk(&mut self, effort: u32) -> Result<(), StoreError> {
        self.bulk.walk(effort, COMMAND_LIMIT)
    }

    /// The next page of the walk that has been begun; `None` at its end. What is on it may have changed since it was read.
    pub async fn listed(&mut self) -> Result<Option<Listed>, StoreError> {
        self.bulk.listed().await
    }

    /// Reads the lists of these hosts, in their order.
    pub async fn lists(&mut self, hosts: &[String]) -> Result<Vec<List>, StoreError> {
        let mut commands = Commands::default();
        for host in hosts {
            answers::ask_for_list(&mut commands, host);
        }
        let replies = self.ask(&commands).await?;
        replies.map(|reply| answers::list(self.server(), reply)).collect()
    }

    /// Reads the dead sets of these hosts, in their order.
    pub async fn dead_sets(&mut self, hosts: &[String]) -> Result<Vec<DeadSet>, StoreError> {
        let mut commands = Commands::default();
        for host in hosts {
            answers::ask_for_marks(&mut commands, host);
            answers::ask_for_expiry(&mut commands, host);
        }
        let (mut replies, server) = (self.ask(&commands).await?, self.server());
        let set = |_| {
            let mut reply = || replies.next().ok_or_else(|| answers::protocol(server, "SMEMBERS"));
            let mut dead = answers::marks(server, reply()?)?;
            answers::add_expiry(server, &mut dead, reply()?)?;
            Ok(dead)
        };
        hosts.iter().map(set).collect()
    }

    /// Whether these backends, by host and URL, are being checked by anybody, in their order.
    pub async fn leases(&mut self, backends: &[(String, String)]) -> Result<Vec<bool>, StoreError> {
        let mut commands = Commands::default();
        for (host, url) in backends {
            answers::ask_for_lease(&mut commands, host, url);
        }
        let replies = self.ask(&commands).await?;
        replies.map(|reply| answers::is_held(self.server(), reply)).collect()
    }

    /// Reads the certificates of these names, in their order.
    pub async fn certificates(&mut self, names: &[String]) -> Result<Vec<CertificateRecord>, StoreError> {
        let mut commands = Commands::default();
        for name in names {
            answers::ask_for_certificate(&mut commands, name);
        }
        let replies = self.ask(&commands).await?;
        let record = |(name, reply): (&String, _)| {
            Ok(CertificateRecord { name: name.clone(), hash: answers::certificate(self.server(), reply)? })
        };
        names.iter().zip(replies).map(record).collect()
    }

    /// Reads everything about these hosts, in their order.
    pub async fn read(&mut self, hosts: Vec<String>) -> Result<Vec<Record>, StoreError> {
        let replies = self.bulk.ask(&ask_for_records(&hosts), COMMAND_LIMIT).await?;
        self.records(hosts, replies).await
    }

    /// Begins to read everything about these hosts, for [`Session::read_asked`] to go on with. Other reads may come between.
    pub async fn read_ahead(&mut self, hosts: &[String]) -> Result<(), StoreError> {
        self.bulk.ask_ahead(&ask_for_records(hosts), COMMAND_LIMIT).await
    }

    /// Reads everything about these hosts, which has been begun.
    pub async fn read_asked(&mut self, hosts: Vec<String>) -> Result<Vec<Record>, StoreError> {
        let replies = self.bulk.take_ahead().await?;
        self.records(hosts, replies).await
    }

    async fn records(&mut self, hosts: Vec<String>, replies: Vec<BytesFrame>) -> Result<Vec<Record>, StoreError> {
        let mut replies = replies.into_iter();
        let server = self.server();
        let record = |host| {
            let mut reply = || replies.next().ok_or_else(|| answers::protocol(server, "LRANGE"));
            let (list, dead) = (answers::list(server, reply()?)?, answers::marks(server, reply()?)?);
            Ok(Record { host, list: Some(list), dead: Some(dead) })
        };
        let mut records: Vec<Record> = hosts.into_iter().map(record).collect::<Result<_, StoreError>>()?;
        // Few hosts have marks, and only those need be asked how long.
        let marked = records.iter_mut().filter_map(|Record { host, dead, .. }| dead.as_mut().map(|dead| (host, dead)));
        let mut marked: Vec<_> = marked.filter(|(_, dead)| !dead.indexes.is_empty()).collect();
        if !marked.is_empty() {
            let mut commands = Commands::default();
            for (host, _) in &marked {
                answers::ask_for_expiry(&mut commands, host);
            }
            let replies = self.ask(&commands).await?;
            for ((_, dead), reply) in marked.iter_mut().zip(replies) {
                answers::add_expiry(self.server(), dead, reply)?;
            }
        }
        Ok(records)
    }

    async fn ask(&mut self, commands: &Commands) -> Result<impl Iterator<Item = BytesFrame> + use<>, StoreError> {
        Ok(self.bulk.ask(commands, COMMAND_LIMIT).await?.into_iter())
    }

    fn lost(&self, Missed(missed): Missed) -> StoreError {
        StoreError::Overrun { server: self.subscriber.server.to_string(), missed }
    }
}

fn ask_for_records(hosts: &[String]) -> Commands {
    let mut commands = Commands::default();
    for host in hosts {
        answers::ask_for_list(&mut commands, host);
        answers::ask_for_marks(&mut commands, host);
    }
    commands
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
    let keys = keys.map_err(|error| connection.failed(error))?;
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
    let change = match event.key.as_str().and_then(schema::subject_of_key) {
        Some(Change::Host(host)) if matches!(&*event.operation, "del" | "expired") => Some(Change::Removal(host)),
        change => change,
    };
    Arrival::Event(Class::of(&event.operation), change)
}

fn of_message(message: &Message) -> Arrival {
    let notice = message.value.as_str().and_then(|payload| DeadNotice::decode(&payload));
    Arrival::Message(notice.map_or(Change::Junk, Change::Notice))
}

/// How long a heartbeat may take before the server counts as frozen.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(2);

/// How long one pipeline may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);
