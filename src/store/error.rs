//! What can go wrong with Redis, and whether waiting can help.

use fred::error::{Error as FredError, ErrorKind};

use super::login::PasswordFileError;

/// A failed conversation with one Redis server. Every message names the server.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection could be made, or it broke.
    #[error("Redis at {server} is unreachable: {source}")]
    Connection {
        /// The server.
        server: String,
        /// What the client library said.
        source: FredError,
    },
    /// The server's answer is none, or is larger or deeper than any can be.
    #[error("Redis at {server} answers with what is no reply, or beyond all bounds")]
    Unbounded {
        /// The server.
        server: String,
    },
    /// The server is to speak TLS, but does not.
    #[error("Redis at {server} completes no TLS handshake, perhaps because it speaks none on this port: {cause}")]
    NotTls {
        /// The server.
        server: String,
        /// What the client library said.
        cause: FredError,
    },
    /// The server's certificate is signed by a stranger, for another name, or too old.
    #[error("Redis at {server} shows a certificate that cannot be verified: {cause}")]
    Certificate {
        /// The server.
        server: String,
        /// What the client library said.
        cause: FredError,
    },
    /// The password cannot be known.
    #[error("Redis at {server} cannot be logged in to: {cause}")]
    PasswordFile {
        /// The server.
        server: String,
        /// What is wrong with its file.
        cause: PasswordFileError,
    },
    /// The server refused the user or the password, or wants one.
    #[error("Redis at {server} refuses {}: {cause}", login_of(.user.as_ref()))]
    Credentials {
        /// The server.
        server: String,
        /// The user that it does not let in, where that is not its default user.
        user: Option<String>,
        /// The server's words.
        cause: FredError,
    },
    /// There is no such database.
    #[error("Redis at {server} has no database {database}: {source}")]
    Database {
        /// The server.
        server: String,
        /// The number asked for.
        database: u8,
        /// The server's words.
        source: FredError,
    },
    /// The server answered, but with an error.
    #[error("Redis at {server} refused a command: {source}")]
    Refused {
        /// The server.
        server: String,
        /// The server's words.
        source: FredError,
    },
    /// The server did not answer in time.
    #[error("Redis at {server} did not answer within {limit:?}")]
    Silent {
        /// The server.
        server: String,
        /// The deadline that passed.
        limit: std::time::Duration,
    },
    /// The server is up but has nothing to say yet.
    #[error("Redis at {server} is not ready: {reason}")]
    NotReady {
        /// The server.
        server: String,
        /// What it is waiting for.
        reason: &'static str,
    },
    /// The write Redis is not a master.
    #[error("Redis at {server} is a replica, so dead backends cannot be recorded there")]
    NotMaster {
        /// The server.
        server: String,
    },
    /// More messages arrived than the subscription could hold.
    #[error("the subscription to Redis at {server} was overrun by {missed} messages")]
    Overrun {
        /// The server.
        server: String,
        /// How many were lost.
        missed: u64,
    },
    /// No sentinel can say where the server is.
    #[error("no sentinel can be asked for {name}: {source}")]
    Sentinels {
        /// The master's name.
        name: String,
        /// What went wrong with one of them.
        source: Box<StoreError>,
    },
    /// The sentinels watch over no master of this name.
    #[error("the sentinels know no master by the name of {name}")]
    UnknownMaster {
        /// The name.
        name: String,
    },
    /// The sentinels that answer are behind those that answered before.
    #[error("only sentinels that missed the last fail-over of {name} answer")]
    Outdated {
        /// The master's name.
        name: String,
    },
    /// An answer that is not of the command's form.
    #[error("Redis at {server} gave an unintelligible answer to {command}")]
    Protocol {
        /// The server.
        server: String,
        /// The command.
        command: &'static str,
    },
}

impl StoreError {
    /// Sorts an error of the client library.
    pub(super) fn from_fred(server: &super::Server, source: FredError) -> Self {
        let name = server.to_string();
        let details = source.details();
        match source.kind() {
            ErrorKind::Auth => Self::Credentials { server: name, user: server.login.user.clone(), cause: source },
            // How Redis before 6 refuses a wrong password.
            _ if details.starts_with("ERR invalid password") => {
                Self::Credentials { server: name, user: server.login.user.clone(), cause: source }
            }
            // These come as the text of an error of the socket's.
            _ if server.tls.is_some() && details.contains("InvalidCertificate(") => {
                Self::Certificate { server: name, cause: source }
            }
            // A server that speaks plainly waits for the end of what it takes for a line, or answers it.
            kind if server.tls.is_some() && (*kind == ErrorKind::Timeout || details.contains("InvalidMessage(")) => {
                Self::NotTls { server: name, cause: source }
            }
            _ if details.contains("DB index") => Self::Database { server: name, database: server.database, source },
            _ if details.starts_with("LOADING") => {
                Self::NotReady { server: name, reason: "it is loading its data set into memory" }
            }
            _ if details.starts_with("MASTERDOWN") => {
                Self::NotReady { server: name, reason: "it has lost its master and may not serve stale data" }
            }
            _ if details.starts_with("READONLY") => Self::NotMaster { server: name },
            ErrorKind::IO
            | ErrorKind::Tls
            | ErrorKind::Canceled
            | ErrorKind::Timeout
            | ErrorKind::Routing
            | ErrorKind::Protocol => Self::Connection { server: name, source },
            _ => Self::Refused { server: name, source },
        }
    }

    /// Whether the configuration is at fault, so that trying again cannot help.
    pub fn is_misconfiguration(&self) -> bool {
        match self {
            Self::Credentials { .. } | Self::PasswordFile { .. } | Self::Database { .. } => true,
            Self::Sentinels { source, .. } => source.is_misconfiguration(),
            _ => false,
        }
    }
}

fn login_of(user: Option<&String>) -> String {
    user.map_or_else(|| "the password".to_owned(), |user| format!("the user {user:?} or the password"))
}
