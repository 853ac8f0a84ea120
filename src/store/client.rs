//! One connection to one Redis server.

use std::{fmt, path::PathBuf, pin::pin, time::Duration};

use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    interfaces::ClientLike,
    types::{
        Builder, ConnectHandle,
        config::{Config, ServerConfig},
    },
};
use tokio::time::timeout;

use super::{StoreError, dial, guard::Guard, login::Login, tls::Tls};

/// A Redis server and how to log in to it.
#[derive(Clone)]
pub struct Server {
    /// Where it is.
    pub address: Address,
    /// Whom it knows us as.
    pub login: Login,
    /// How it is spoken to over TLS; only one with a host and a port is.
    pub tls: Option<Tls>,
    /// The database for SELECT.
    pub database: u8,
}

/// How any of several servers that are alike is logged in to.
#[derive(Clone, Default)]
pub struct Access {
    /// See [`Server::login`].
    pub login: Login,
    /// See [`Server::tls`].
    pub tls: Option<Tls>,
    /// See [`Server::database`].
    pub database: u8,
}

impl Access {
    /// To the server there.
    pub fn to(&self, address: &Address) -> Server {
        let Self { login, tls, database } = self.clone();
        Server { address: address.clone(), login, tls, database }
    }
}

/// Where a Redis server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host name or address, and a port.
    Tcp(String, u16),
    /// A socket's path.
    Unix(PathBuf),
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}/{}", self.database)
    }
}

/// A connection that is closed for good when this is dropped, or when it breaks.
pub(super) struct Connection {
    pub client: Client,
    pub server: Server,
    task: ConnectHandle,
    guard: Guard,
}

impl Connection {
    /// Connects, authenticates and selects the database. `messages` may wait for their receiver before the oldest are lost;
    /// the library sets aside memory for all of them.
    pub async fn open(server: &Server, messages: usize) -> Result<Self, StoreError> {
        Self::open_within(CONNECT_LIMIT, server, messages).await
    }

    /// As [`Connection::open`], with another limit for connecting and for logging in.
    pub async fn open_within(limit: Duration, server: &Server, messages: usize) -> Result<Self, StoreError> {
        let password = server.login.password().await;
        let password = password.map_err(|cause| StoreError::PasswordFile { server: server.to_string(), cause })?;
        let failed = |error| StoreError::from_fred(server, error);
        let stream = dial::connect(server, limit).await?;
        let guard = Guard::before(stream).map_err(|error| failed(error.into()))?;
        let config = Config {
            server: ServerConfig::Unix { path: guard.path() },
            username: server.login.user.clone(),
            password: password.map(|password| password.0),
            database: Some(server.database).filter(|&database| database != 0),
            fail_fast: true,
            ..Config::default()
        };
        let client = Builder::from_config(config)
            .with_connection_config(|connection| {
                connection.connection_timeout = limit;
                connection.internal_command_timeout = limit;
                connection.max_command_attempts = 1;
            })
            .with_performance_config(|performance| performance.broadcast_channel_capacity = messages)
            .build()
            .map_err(failed)?;
        let mut connected = pin!(client.wait_for_connect());
        // It hears of nothing that happens before its first poll.
        tokio::select! {
            biased;
            _ = &mut connected => unreachable!("nobody has begun to connect"),
            () = std::future::ready(()) => {}
        }
        let connection = Self { client: client.clone(), server: server.clone(), task: client.connect(), guard };
        // The deadline here only guards against the library's own deadlines failing to cover a step.
        match timeout(limit * 3, connected).await {
            Ok(Ok(())) => Ok(connection),
            Ok(Err(error)) => Err(connection.failed(error)),
            Err(_) => Err(connection.silent(limit * 3)),
        }
    }

    /// Waits until the connection breaks.
    pub async fn broken(&mut self) -> StoreError {
        let source = match (&mut self.task).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => Error::new(ErrorKind::IO, "the connection was closed"),
        };
        if self.guard.has_objected() {
            return self.failed(source);
        }
        StoreError::Connection { server: self.server.to_string(), source }
    }

    /// What an error of the library's means.
    pub fn failed(&self, error: Error) -> StoreError {
        if self.guard.has_objected() {
            return StoreError::Unbounded { server: self.server.to_string() };
        }
        StoreError::from_fred(&self.server, error)
    }

    /// Runs one exchange with the server under a deadline.
    pub async fn ask<T>(
        &self,
        limit: Duration,
        exchange: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        match timeout(limit, exchange).await {
            Ok(result) => result.map_err(|error| self.failed(error)),
            Err(_) => Err(self.silent(limit)),
        }
    }

    /// The server let a deadline pass.
    pub fn silent(&self, limit: Duration) -> StoreError {
        StoreError::Silent { server: self.server.to_string(), limit }
    }

    /// The server gave an answer of the wrong form.
    pub fn protocol(&self, command: &'static str) -> StoreError {
        StoreError::Protocol { server: self.server.to_string(), command }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Dropping the client alone leaves its task, and with it the socket, alive.
        self.task.abort();
    }
}

/// How long connecting, and each command of logging in, may take.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// Enough messages for a connection that subscribes to nothing: the library announces its own connecting and failing.
pub(super) const NO_SUBSCRIPTION: usize = 16;
