//! One session with the write Redis.

use std::time::Duration;

use bytes::Bytes;
use fred::{
    interfaces::{ClientLike, HashesInterface, KeysInterface, ListInterface, PubsubInterface, SetsInterface},
    types::{InfoKind, Value},
};

use super::{
    Role, Server, StoreError, Vitals,
    client::{Connection, NO_SUBSCRIPTION},
    schema::{DEAD_CHANNEL, DEAD_PREFIX, DeadNotice, PROBE_KEYS, TICKETS_KEY},
};

/// A connection to a Redis master. After an error it must be dropped.
pub struct WriteSession {
    connection: Connection,
    replication_id: String,
}

impl WriteSession {
    /// Connects and checks that the server is a master, where its access list lets us ask.
    pub async fn open(server: &Server) -> Result<Self, StoreError> {
        let connection = Connection::open(server, NO_SUBSCRIPTION).await?;
        let vitals = require_master(&connection).await?;
        let replication_id = vitals.map(|vitals| vitals.replication_id).unwrap_or_default();
        Ok(Self { connection, replication_id })
    }

    /// The server.
    pub fn server(&self) -> &Server {
        &self.connection.server
    }

    /// The id of the data's history; empty where the server does not tell.
    pub fn replication_id(&self) -> &str {
        &self.replication_id
    }

    /// Takes a backend out of rotation for every instance: SADD and EXPIRE on the dead set, then PUBLISH. `ttl` is rounded
    /// up to whole seconds.
    pub async fn mark_dead(&self, notice: &DeadNotice, ttl: Duration) -> Result<(), StoreError> {
        let key = format!("{DEAD_PREFIX}{}", notice.host);
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1_000)).unwrap_or(i64::MAX);
        let written = async {
            let pipeline = self.connection.client.pipeline();
            pipeline.sadd::<(), _, _>(key.as_str(), notice.index.to_string()).await?;
            pipeline.expire::<(), _>(key.as_str(), seconds, None).await?;
            pipeline.publish::<(), _, _>(DEAD_CHANNEL, notice.encode()).await?;
            pipeline.all::<Value>().await
        };
        self.connection.ask(WRITE_LIMIT, written).await.map(drop)
    }

    /// What the server has of a mark (SISMEMBER), and how long the frontend's marks still last (PTTL), where that has an end.
    pub async fn look_up(&self, notice: &DeadNotice) -> Result<(bool, Option<Duration>), StoreError> {
        let key = format!("{DEAD_PREFIX}{}", notice.host);
        let asked = async {
            let pipeline = self.connection.client.pipeline();
            pipeline.sismember::<(), _, _>(key.as_str(), notice.index.to_string()).await?;
            pipeline.pttl::<(), _>(key.as_str()).await?;
            pipeline.all::<(bool, i64)>().await
        };
        let (is_member, pttl) = self.connection.ask(WRITE_LIMIT, asked).await?;
        Ok((is_member, u64::try_from(pttl).ok().map(Duration::from_millis)))
    }

    /// The sealed keys of session tickets, by the names under which they were offered (HGETALL).
    pub async fn ticket_keys(&self) -> Result<Vec<(String, Bytes)>, StoreError> {
        let asked = self.connection.client.hgetall::<Value, _>(TICKETS_KEY);
        let answer = self.connection.ask(WRITE_LIMIT, asked).await?;
        let fields = answer.into_map().map_err(|_| self.connection.protocol("HGETALL"))?.inner();
        Ok(fields.into_iter().filter_map(|(name, key)| Some((name.as_str()?.to_owned(), key.into_bytes()?))).collect())
    }

    /// Offers a sealed key, which is taken if there is none yet of this name (HSETNX), and lets all keys go if nobody
    /// offers another for `keep`.
    pub async fn offer_ticket_key(&self, name: &str, sealed: Vec<u8>, keep: Duration) -> Result<(), StoreError> {
        let seconds = i64::try_from(keep.as_secs()).unwrap_or(i64::MAX);
        let written = async {
            let pipeline = self.connection.client.pipeline();
            pipeline.hsetnx::<(), _, _, _>(TICKETS_KEY, name, Bytes::from(sealed)).await?;
            pipeline.expire::<(), _>(TICKETS_KEY, seconds, None).await?;
            pipeline.all::<Value>().await
        };
        self.connection.ask(WRITE_LIMIT, written).await.map(drop)
    }

    /// Deletes keys of these names (HDEL).
    pub async fn forget_ticket_keys(&self, names: Vec<String>) -> Result<(), StoreError> {
        self.connection.ask(WRITE_LIMIT, self.connection.client.hdel::<Value, _, _>(TICKETS_KEY, names)).await.map(drop)
    }

    /// Changes a list, a set and a hash that mean nothing, and lets them go after a second, so that whoever follows dead sets
    /// hears an event of each class that may be needed. What an access list forbids is left out.
    ///
    /// # Errors
    /// When anything was left out, or the session is lost.
    pub async fn stir(&self) -> Result<(), StoreError> {
        // Another instance may have left the same keys a moment ago; what is there already is announced to nobody.
        let (fresh, ..) = uuid::Uuid::new_v4().as_fields();
        let [list, set, hash] = PROBE_KEYS;
        let changed = async {
            let pipeline = self.connection.client.pipeline();
            pipeline.hsetnx::<(), _, _, _>(hash, fresh.to_string(), "").await?;
            pipeline.rpush::<(), _, _>(list, "").await?;
            pipeline.sadd::<(), _, _>(set, fresh.to_string()).await?;
            for key in PROBE_KEYS {
                pipeline.expire::<(), _>(key, 1, None).await?;
            }
            pipeline.try_all::<Value>().await.into_iter().collect::<Result<Vec<_>, _>>()
        };
        self.connection.ask(WRITE_LIMIT, changed).await.map(drop)
    }

    /// Waits until the connection breaks. Cancel-safe.
    pub async fn broken(&mut self) -> StoreError {
        self.connection.broken().await
    }
}

/// Makes sure that the server is a master, where its access list lets us ask.
pub(super) async fn require_master(connection: &Connection) -> Result<Option<Vitals>, StoreError> {
    let replication = connection.ask(WRITE_LIMIT, connection.client.info::<String>(Some(InfoKind::Replication))).await;
    let vitals = match replication {
        Err(StoreError::Refused { .. }) => return Ok(None),
        info => Vitals::parse(&info?, None, 0, None),
    };
    if vitals.role != Role::Master {
        return Err(StoreError::NotMaster { server: connection.server.to_string() });
    }
    Ok(Some(vitals))
}

/// How long the master may take to answer.
pub(super) const WRITE_LIMIT: Duration = Duration::from_secs(1);
