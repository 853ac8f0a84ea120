//! One session with the read Redis, from connecting to the first doubt.

use std::time::Duration;

use super::{
    Doubt, Identity, Notifications, Server, StoreError, Vitals,
    client::{Connection, NO_SUBSCRIPTION},
    inbox::{Inbox, Missed, Reading, SUBSCRIPTION},
    schema::{
        self, CERTIFICATE_FIELDS, CERTIFICATE_PREFIX, CertificateHash, CertificateRecord, Change, DEAD_CHANNEL,
        DEAD_PREFIX, DeadNotice, DeadSet, FRONTEND_PREFIX, List, Record,
    },
};
use bytes::Bytes;
use fred::{
    clients::{Client, Pipeline},
    interfaces::{
        ClientLike, ConfigInterface, HashesInterface, KeysInterface, ListInterface, PubsubInterface, ServerInterface,
        SetsInterface,
    },
    types::{CustomCommand, InfoKind, KeyspaceEvent, Message, Value},
};

/// A live session: two connections to one server, subscribed to every change since it was opened.
///
/// Its use is strictly: open, load everything with [`Session::scan`] and [`Session::read`], then follow
/// [`Session::change`], asking [`Session::beat`] once a second. After any error it must be dropped.
pub struct Session {
    commands: Connection,
    subscriber: Connection,
    inbox: Inbox<Arrival>,
    vitals: Vitals,
    identity: Identity,
    has_heard: bool,
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
        let subscriber = Connection::open(server, SUBSCRIPTION).await?;
        let inbox = Inbox::new(&subscriber.client, Reading { event: of_event, message: of_message });
        let channel = |pattern: &Pattern| format!("__keyspace@{}__:{}*", server.database, pattern.prefix());
        let patterns: Vec<String> = patterns.iter().map(channel).collect();
        subscriber
            .ask(COMMAND_LIMIT, async {
                subscriber.client.subscribe(DEAD_CHANNEL).await?;
                subscriber.client.psubscribe(patterns).await
            })
            .await?;
        let session = Self { commands, subscriber, inbox, vitals, identity, has_heard: false };
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
    /// and nothing has been announced yet.
    pub fn announces(&self) -> Option<bool> {
        match self.vitals.notifications {
            Notifications::On => Some(true),
            Notifications::Off(_) => Some(false),
            Notifications::Unknown => self.has_heard.then_some(true),
        }
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
            Arrival::Event(change) => {
                self.has_heard = true;
                change
            }
            Arrival::Message(change) => Some(change),
        }
    }

    /// Waits until every message that the server sent before this call has arrived: PING is answered on the subscriber's
    /// connection in its turn. Also the proof that the subscriptions are in force, which the client library does not give.
    pub async fn barrier(&self) -> Result<(), StoreError> {
        self.subscriber.ask(HEARTBEAT_LIMIT, self.subscriber.client.ping::<Value>(None)).await?;
        self.inbox.flush().await;
        Ok(())
    }

    /// One heartbeat: proves that both connections are answered, and compares the server's vitals with the last.
    pub async fn beat(&mut self) -> Result<Option<Doubt>, StoreError> {
        let (vitals, ()) = tokio::try_join!(examine(&self.commands), self.barrier())?;
        let doubt = vitals.doubt_since(&self.vitals);
        self.vitals = vitals;
        Ok(doubt)
    }

    /// One page of the keys that match, beginning at `cursor` ("0" for the first). Redis looks at about `effort` keys for it.
    pub async fn scan(&self, pattern: Pattern, cursor: &str, effort: u32) -> Result<Page, StoreError> {
        let prefix = pattern.prefix();
        let scan =
            self.commands.client.scan_page::<Value, _, _>(cursor.to_owned(), format!("{prefix}*"), Some(effort), None);
        let answer = self.commands.ask(COMMAND_LIMIT, scan).await?;
        let malformed = || self.commands.protocol("SCAN");
        let [cursor, keys] = <[Value; 2]>::try_from(answer.into_array()).map_err(|_| malformed())?;
        let cursor = cursor.into_string().ok_or_else(malformed)?;
        // A name that is not UTF-8 can be asked for by no client.
        let keys = keys.into_array().into_iter().filter_map(Value::into_string);
        Ok(Page {
            names: keys.filter_map(|key| Some(key.strip_prefix(prefix)?.to_owned())).collect(),
            next: Some(cursor).filter(|cursor| cursor != "0"),
        })
    }

    /// Reads the lists of these hosts, in their order.
    pub async fn lists(&self, hosts: &[String]) -> Result<Vec<List>, StoreError> {
        let answers = self.values(Subject::Lists, hosts).await?;
        Ok(answers.into_iter().map(|answer| answer.map_or(List::WrongType, list_of)).collect())
    }

    /// Reads the dead sets of these hosts, in their order.
    pub async fn dead_sets(&self, hosts: &[String]) -> Result<Vec<DeadSet>, StoreError> {
        let answers = self.values(Subject::DeadSets, hosts).await?;
        answers.into_iter().map(|answer| self.dead_set(answer)).collect()
    }

    /// Whether these backends, by host and URL, are being checked by anybody, in their order.
    pub async fn leases(&self, backends: &[(String, String)]) -> Result<Vec<bool>, StoreError> {
        let pipeline = self.commands.client.pipeline();
        let queued = async {
            for (host, url) in backends {
                pipeline.pttl::<(), _>(schema::lease_key(host, url)).await?;
            }
            Ok(())
        };
        queued.await.map_err(|error| StoreError::from_fred(&self.commands.server, error))?;
        let answers = self.answers(&pipeline, backends.len()).await?;
        answers
            .into_iter()
            .map(|pttl| match pttl.map(|pttl| pttl.as_i64()) {
                Ok(Some(pttl)) => Ok(pttl != NO_KEY),
                Ok(None) => Err(self.commands.protocol("PTTL")),
                Err(error) => Err(StoreError::from_fred(&self.commands.server, error)),
            })
            .collect()
    }

    /// Reads the certificates of these names, in their order.
    pub async fn certificates(&self, names: &[String]) -> Result<Vec<CertificateRecord>, StoreError> {
        let answers = self.values(Subject::Certificates, names).await?;
        let records = names.iter().zip(answers);
        Ok(records.map(|(name, answers)| CertificateRecord { name: name.clone(), hash: hash_of(answers) }).collect())
    }

    /// Reads everything about these hosts, in one round trip.
    pub async fn read(&self, hosts: Vec<String>) -> Result<Vec<Record>, StoreError> {
        let (lists, dead) = tokio::try_join!(self.lists(&hosts), self.dead_sets(&hosts))?;
        let records = hosts.into_iter().zip(lists).zip(dead);
        Ok(records.map(|((host, list), dead)| Record { host, list: Some(list), dead: Some(dead) }).collect())
    }

    /// The answers for each name; `None` where its key is of another type. The library gives one such key's error for
    /// the whole of a transaction, so that then each name gets a transaction of its own.
    async fn values(&self, subject: Subject, hosts: &[String]) -> Result<Vec<Option<Answers>>, StoreError> {
        if hosts.is_empty() {
            return Ok(Vec::new());
        }
        let together = self.transactions(subject, hosts, hosts.len()).await?;
        match together.into_iter().next().flatten() {
            Some(answers) => {
                let mut answers = answers.into_iter();
                let per_host = |_| answers.by_ref().take(subject.commands()).collect();
                Ok(hosts.iter().map(per_host).map(Some).collect())
            }
            None => self.transactions(subject, hosts, 1).await,
        }
    }

    /// Reads in transactions of `size` hosts each, all in one pipeline; `None` for one that met a key of another type.
    ///
    /// Not for the sake of atomicity: the library takes any array that begins with "message", "subscribe" or the like for
    /// a message, even in answer to a command, which then waits in vain. Nested in EXEC's answer it escapes that.
    async fn transactions(
        &self,
        subject: Subject,
        hosts: &[String],
        size: usize,
    ) -> Result<Vec<Option<Answers>>, StoreError> {
        let pipeline = self.commands.client.pipeline();
        let queued = async {
            for hosts in hosts.chunks(size) {
                pipeline.custom::<(), Value>(command("MULTI"), Vec::new()).await?;
                for host in hosts {
                    subject.queue(&pipeline, host).await?;
                }
                pipeline.custom::<(), Value>(command("EXEC"), Vec::new()).await?;
            }
            Ok(())
        };
        queued.await.map_err(|error| StoreError::from_fred(&self.commands.server, error))?;
        let sizes = hosts.chunks(size).map(|hosts| hosts.len() * subject.commands());
        let mut replies = self.answers(&pipeline, sizes.clone().map(|commands| commands + 2).sum()).await?.into_iter();
        sizes.map(|commands| self.outcome(replies.by_ref().take(commands + 2), commands)).collect()
    }

    /// What a transaction of so many commands came to.
    fn outcome(
        &self,
        replies: impl Iterator<Item = Result<Value, fred::error::Error>>,
        commands: usize,
    ) -> Result<Option<Answers>, StoreError> {
        // If EXEC is refused, then for an error that came before it.
        let mut first_error = None;
        let mut last = Value::Null;
        for reply in replies {
            match reply {
                Ok(value) => last = value,
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        match (first_error, last) {
            (Some(error), _) if error.details().starts_with("WRONGTYPE") => Ok(None),
            (Some(error), _) => Err(StoreError::from_fred(&self.commands.server, error)),
            (None, Value::Array(answers)) if answers.len() == commands => Ok(Some(answers)),
            (None, _) => Err(self.commands.protocol("EXEC")),
        }
    }

    async fn answers(
        &self,
        pipeline: &Pipeline<Client>,
        expected: usize,
    ) -> Result<Vec<Result<Value, fred::error::Error>>, StoreError> {
        let answers = tokio::time::timeout(COMMAND_LIMIT, pipeline.try_all::<Value>())
            .await
            .map_err(|_| self.commands.silent(COMMAND_LIMIT))?;
        if answers.len() == expected {
            return Ok(answers);
        }
        // A pipeline that was cut off answers with its one error alone.
        match answers.into_iter().find_map(Result::err) {
            Some(error) => Err(StoreError::from_fred(&self.commands.server, error)),
            None => Err(self.commands.protocol("a pipeline")),
        }
    }

    fn dead_set(&self, answers: Option<Answers>) -> Result<DeadSet, StoreError> {
        // Leases of the active health check are strings; anything else here is junk. Neither marks a backend.
        let Some(answers) = answers else { return Ok(DeadSet::default()) };
        let mut answers = answers.into_iter();
        let members = answers.next().map(bytes_of).unwrap_or_default();
        let pttl = answers.next().and_then(|pttl| pttl.as_i64()).ok_or_else(|| self.commands.protocol("PTTL"))?;
        Ok(DeadSet::from_members(&members, pttl))
    }

    fn lost(&self, &Missed(missed): &Missed) -> StoreError {
        StoreError::Overrun { server: self.subscriber.server.to_string(), missed }
    }
}

/// What to read of each name.
#[derive(Clone, Copy)]
enum Subject {
    Lists,
    DeadSets,
    Certificates,
}

/// The answers to one host's commands, or to a whole transaction's.
type Answers = Vec<Value>;

impl Subject {
    /// How many commands a host takes.
    fn commands(self) -> usize {
        match self {
            Self::Lists | Self::Certificates => 1,
            Self::DeadSets => 2,
        }
    }

    async fn queue(self, pipeline: &Pipeline<Client>, name: &str) -> Result<(), fred::error::Error> {
        match self {
            Self::Lists => pipeline.lrange(format!("{FRONTEND_PREFIX}{name}"), 0, -1).await,
            Self::Certificates => {
                pipeline.hmget(format!("{CERTIFICATE_PREFIX}{name}"), CERTIFICATE_FIELDS.to_vec()).await
            }
            Self::DeadSets => {
                let key = format!("{DEAD_PREFIX}{name}");
                pipeline.smembers::<(), _>(key.as_str()).await?;
                pipeline.pttl(key).await
            }
        }
    }
}

fn command(name: &'static str) -> CustomCommand {
    CustomCommand::new_static(name, None, false)
}

fn hash_of(answers: Option<Answers>) -> CertificateHash {
    let Some(answers) = answers else { return CertificateHash::WrongType };
    let mut fields = answers.into_iter().next().map(Value::into_array).unwrap_or_default().into_iter();
    let mut field = || fields.next().and_then(Value::into_bytes);
    match (field(), field()) {
        (None, None) => CertificateHash::Absent,
        (certificate, key) => {
            CertificateHash::Fields { certificate: certificate.unwrap_or_default(), key: key.unwrap_or_default() }
        }
    }
}

fn list_of(answers: Answers) -> List {
    List::Elements(answers.into_iter().next().map(bytes_of).unwrap_or_default())
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
    /// A keyspace event, and what it means for the table.
    Event(Option<Change>),
    /// A message on the channel.
    Message(Change),
}

fn of_event(event: &KeyspaceEvent) -> Arrival {
    Arrival::Event(event.key.as_str().and_then(schema::subject_of_key))
}

fn of_message(message: &Message) -> Arrival {
    let notice = message.value.as_str().and_then(|payload| DeadNotice::decode(&payload));
    Arrival::Message(notice.map_or(Change::Junk, Change::Notice))
}

fn bytes_of(value: Value) -> Vec<Bytes> {
    value.into_array().into_iter().filter_map(Value::into_bytes).collect()
}

/// How long a heartbeat may take before the server counts as frozen.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(2);

/// PTTL's answer where there is no key.
const NO_KEY: i64 = -2;

/// How long one pipeline may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);
