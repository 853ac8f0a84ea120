//! What can go wrong with a request, and the one table that turns it into an answer.

use std::time::Duration;

use http::StatusCode;

use crate::{dial::DialError, tls::HelloError};

/// Why a request was not answered by a backend.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The client's fault (RFC 9112 section 3.2).
    #[error("malformed request: {0}")]
    Malformed(&'static str),
    /// No frontend has the host, or none with a backend.
    #[error("no such route")]
    NoRoute,
    /// More header lines than the operator allows, or more bytes of them on one connection than there is memory for.
    #[error("too many header lines")]
    TooManyHeaders,
    /// The frontend's backends are all out of rotation.
    #[error("all backends are dead")]
    AllDead,
    /// There is no connection to the backend.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection to the backend broke, or what came over it was not HTTP.
    #[error("error in backend request: {0}")]
    Broken(#[source] hyper::Error),
    /// No response head within the request timeout.
    #[error("request timeout after {0:?}")]
    RequestTimeout(Duration),
    /// The backend answered something to a client on HTTP/2 that wants a WebSocket which it would take for one.
    #[error("the backend opened no WebSocket, but answered {0}")]
    NoWebSocket(StatusCode),
    /// A connection that is to be passed through does not begin with a usable ClientHello.
    #[error("cannot be passed through: {0}")]
    Hello(#[source] HelloError),
    /// No ClientHello within the time that a request's head may take.
    #[error("no client hello within {0:?}")]
    HelloTimeout(Duration),
    /// The backend closed a connection before anything came over it that could be passed through.
    #[error("the backend closed the connection without an answer")]
    NoAnswer,
    /// The client closed the connection before it had said what it wants.
    #[error("the client is gone")]
    ClientGone,
    /// The backend switched protocols without being asked to.
    #[error("the backend sent an unexpected 101 response")]
    UnexpectedUpgrade,
}

/// How an error is answered and what it means for the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The response's status.
    pub status: StatusCode,
    /// The response's body.
    pub body: &'static str,
    /// Whether the backend is taken out of rotation: only when it could not be reached, never for what a client could
    /// provoke on a healthy backend.
    pub marks_dead: bool,
}

impl ProxyError {
    /// Sorts a failure after the connection was made. A request's body that ends before its end is the client's doing.
    pub fn from_exchange(error: hyper::Error) -> Self {
        if error.is_user() { Self::ClientGone } else { Self::Broken(error) }
    }

    /// The table of contract section 4.
    pub fn verdict(&self) -> Verdict {
        let unavailable = Verdict { status: StatusCode::SERVICE_UNAVAILABLE, body: "", marks_dead: false };
        let bad_request = Verdict { status: StatusCode::BAD_REQUEST, ..unavailable };
        match self {
            Self::Malformed(_) | Self::Hello(_) => bad_request,
            Self::NoRoute => Verdict { body: "no such route", ..bad_request },
            Self::TooManyHeaders => Verdict { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, ..unavailable },
            Self::AllDead => Verdict { body: "all backends are dead", ..unavailable },
            Self::Dial(error) => Verdict { marks_dead: error.is_the_backends(), ..unavailable },
            Self::Broken(_)
            | Self::RequestTimeout(_)
            | Self::UnexpectedUpgrade
            | Self::NoWebSocket(_)
            | Self::NoAnswer => unavailable,
            Self::HelloTimeout(_) => Verdict { status: StatusCode::REQUEST_TIMEOUT, ..unavailable },
            Self::ClientGone => Verdict { status: client_gone(), ..unavailable },
        }
    }
}

/// Logged when the client went away before there was an answer; nginx's code for it.
pub fn client_gone() -> StatusCode {
    StatusCode::from_u16(499).expect("499 is a status code")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_backend_is_not_dead() {
        assert!(!ProxyError::RequestTimeout(Duration::from_secs(30)).verdict().marks_dead);
        assert!(ProxyError::Dial(DialError::Timeout(Duration::from_secs(10))).verdict().marks_dead);
    }
}
