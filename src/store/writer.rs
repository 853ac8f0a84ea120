//! One session with the write Redis.

use std::time::Duration;

use fred::{
    interfaces::{ClientLike, KeysInterface, PubsubInterface, SetsInterface},
    types::{InfoKind, Value},
};

use super::{
    Role, Server, StoreError, Vitals,
    client::{Connection, NO_SUBSCRIPTION},
    schema::{DEAD_CHANNEL, DEAD_PREFIX, DeadNotice},
};

/// A connection to a Redis master. After an error it must be dropped.
pub struct WriteSession {
    connection: Connection,
}

impl WriteSession {
    /// Connects and checks that the server is a master, where its access list lets us ask.
    pub async fn open(server: &Server) -> Result<Self, StoreError> {
        let connection = Connection::open(server, NO_SUBSCRIPTION).await?;
        let replication =
            connection.ask(WRITE_LIMIT, connection.client.info::<String>(Some(InfoKind::Replication))).await;
        match replication {
            Ok(info) if Vitals::parse(&info, None, 0, None).role != Role::Master => {
                Err(StoreError::NotMaster { server: server.to_string() })
            }
            Ok(_) | Err(StoreError::Refused { .. }) => Ok(Self { connection }),
            Err(error) => Err(error),
        }
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

    /// Waits until the connection breaks. Cancel-safe.
    pub async fn broken(&mut self) -> StoreError {
        self.connection.broken().await
    }
}

/// How long the master may take to answer.
const WRITE_LIMIT: Duration = Duration::from_secs(1);
