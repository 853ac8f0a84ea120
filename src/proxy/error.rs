//! What can go wrong with a request, and the one table that turns it into an answer.

use std::time::Duration;

use http::StatusCode;

use super::{
    upload::UploadError,
    upstream::{Broken, UpstreamError},
};
use crate::{
    dial::DialError,
    message::{ChunkError, FramingError, ParseError, ResponseHead, TargetError, websocket::NoWebSocket},
    telemetry::Subject,
    tls::HelloError,
};

/// Why a request was not answered by a backend.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The client's fault.
    #[error("malformed request: {0}")]
    Malformed(#[source] Malformed),
    /// No frontend has the host, or none with a backend.
    #[error("no such route")]
    NoRoute,
    /// More header lines than the operator allows, or more bytes of them on one connection than there is memory for.
    #[error("too many header lines")]
    TooManyHeaders,
    /// The frontend's backends are all out of rotation.
    #[error("all backends are dead")]
    AllDead,
    /// The request has come through here before.
    #[error("a backend leads back to this proxy")]
    Loop,
    /// There is no connection to the backend.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection to the backend broke, or what came over it was not HTTP.
    #[error("error in backend request: {0}")]
    Broken(#[source] Broken),
    /// No response head within the request timeout.
    #[error("request timeout after {0:?}")]
    RequestTimeout(Duration),
    /// The backend answered something to a client on HTTP/2 that wants a WebSocket which it would take for one.
    #[error(transparent)]
    NoWebSocket(#[from] NoWebSocket),
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
    /// The backend's answer says that it is not well, where such answers are held against it. The client gets a backend's
    /// answer all the same.
    #[error("the backend answered {0}")]
    Answered(StatusCode),
    /// The backend switched protocols without being asked to.
    #[error("the backend sent an unexpected 101 response")]
    UnexpectedUpgrade,
}

/// How an error is answered and what it means for the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The response's status.
    pub status: u16,
    /// The response's body.
    pub body: &'static str,
    /// Whether the backend is taken out of rotation: only when it could not be reached, or answered what the operator wants
    /// held against it; never for anything else that a client could provoke on a healthy backend.
    pub marks_dead: bool,
}

impl ProxyError {
    /// What an answer says against the backend itself, by Hipache's rule: a status of 501 or more. A 500 is one request's
    /// trouble, and a 503 that says when to come back is maintenance. Every server knows GET and HEAD (RFC 9110 section
    /// 9.1), so that only there a 501 is about more than the method, which any client can make up.
    pub fn from_answer(method: &str, head: &ResponseHead) -> Option<Self> {
        let is_unwell = match head.status() {
            501 => matches!(method, "GET" | "HEAD"),
            503 => head.named(b"Retry-After").next().is_none(),
            502 | 504..=599 => true,
            _ => false,
        };
        let status = StatusCode::from_u16(head.status()).ok().filter(|_| is_unwell)?;
        Some(Self::Answered(status))
    }

    /// What a line of the error log about this is about.
    pub fn subject(&self) -> Subject {
        match self {
            Self::Malformed(_)
            | Self::NoRoute
            | Self::TooManyHeaders
            | Self::Hello(_)
            | Self::HelloTimeout(_)
            | Self::ClientGone => Subject::Client,
            Self::AllDead | Self::Loop => Subject::Frontend,
            Self::Dial(_)
            | Self::Broken(_)
            | Self::RequestTimeout(_)
            | Self::NoWebSocket(_)
            | Self::NoAnswer
            | Self::Answered(_)
            | Self::UnexpectedUpgrade => Subject::Backend,
        }
    }

    /// The table of contract section 4.
    pub fn verdict(&self) -> Verdict {
        let unavailable = Verdict { status: 503, body: "", marks_dead: false };
        let bad_request = Verdict { status: 400, ..unavailable };
        match self {
            Self::Malformed(_) | Self::Hello(_) => bad_request,
            Self::NoRoute => Verdict { body: "no such route", ..bad_request },
            Self::TooManyHeaders => Verdict { status: 431, ..unavailable },
            Self::AllDead => Verdict { body: "all backends are dead", ..unavailable },
            Self::Loop => Verdict { status: 508, body: "a backend leads back to this proxy", ..unavailable },
            Self::Dial(error) => Verdict { marks_dead: error.is_the_backends(), ..unavailable },
            Self::Answered(status) => Verdict { status: status.as_u16(), marks_dead: true, ..unavailable },
            Self::Broken(_)
            | Self::RequestTimeout(_)
            | Self::UnexpectedUpgrade
            | Self::NoWebSocket(_)
            | Self::NoAnswer => unavailable,
            Self::HelloTimeout(_) => Verdict { status: 408, ..unavailable },
            Self::ClientGone => Verdict { status: CLIENT_GONE, ..unavailable },
        }
    }
}

impl From<UpstreamError> for ProxyError {
    fn from(error: UpstreamError) -> Self {
        match error {
            UpstreamError::Dial(error) => Self::Dial(error),
            UpstreamError::Broken(error) => Self::Broken(error),
            UpstreamError::Upload(UploadError::Gone) => Self::ClientGone,
            UpstreamError::Upload(UploadError::Chunks(error)) => Self::Malformed(error.into()),
        }
    }
}

/// Why a request is not understood.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum Malformed {
    /// What came over HTTP/2 cannot be said in HTTP/1.1.
    #[error("{0}")]
    Head(#[from] ParseError),
    /// It is for nobody.
    #[error("{0}")]
    Target(#[from] TargetError),
    /// Where its body ends cannot be told.
    #[error("{0}")]
    Framing(#[from] FramingError),
    /// Its host is no name.
    #[error("the host is malformed")]
    Host,
    /// Its body's chunks are none.
    #[error("{0}")]
    Chunks(#[from] ChunkError),
}

/// Logged when the client went away before there was an answer; nginx's code for it.
pub const CLIENT_GONE: u16 = 499;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{ResponseHeadBuilder, Version};

    #[test]
    fn a_slow_backend_is_not_dead() {
        assert!(!ProxyError::RequestTimeout(Duration::from_secs(30)).verdict().marks_dead);
        assert!(ProxyError::Dial(DialError::Timeout(Duration::from_secs(10))).verdict().marks_dead);
    }

    #[test]
    fn an_answer_of_501_or_more_says_that_the_backend_is_not_well() {
        let is_unwell = |method: &str, status: u16, headers: &[&str]| {
            let mut head = ResponseHeadBuilder::new(Version::Http11, status);
            for name in headers {
                head.push(name.as_bytes(), b"120");
            }
            ProxyError::from_answer(method, &head.build().unwrap()).is_some()
        };
        let held_against: Vec<u16> = (100..=999).filter(|&status| is_unwell("GET", status, &[])).collect();
        assert_eq!(held_against, (501..=599).collect::<Vec<_>>());
        assert!(!is_unwell("GET", 503, &["retry-after"]) && is_unwell("GET", 502, &["retry-after"]));
        assert!(is_unwell("POST", 503, &["date"]) && is_unwell("HEAD", 501, &[]));
        assert!(!is_unwell("MADE-UP", 501, &[]) && !is_unwell("PUT", 501, &[]));
    }
}
