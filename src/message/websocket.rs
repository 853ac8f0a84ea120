//! What opens a WebSocket, as far as heads tell.
//!
//! A backend is always asked in the way of HTTP/1.1 (RFC 6455). A client on HTTP/2 asks by an extended CONNECT (RFC 8441),
//! which has no key of its own, so that we make one and check the backend's answer to it.

use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};

use super::{
    head::{Fields, RequestHead, Version},
    known::Known,
};

/// A request to open a WebSocket.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The key that we made for a client on HTTP/2.
    key: Option<Box<str>>,
}

/// Why a backend's answer cannot be given to a client on HTTP/2, who would take it for an open WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the backend opened no WebSocket, but answered {status}")]
pub struct NoWebSocket {
    /// What it answered.
    pub status: u16,
}

impl Opening {
    /// What of this request asks for it, if anything does. HTTP/1.0 cannot (RFC 9110 section 7.8).
    pub fn of(head: &RequestHead) -> Option<Self> {
        match head.version() {
            Version::Http10 => None,
            Version::Http11 => head.lists(Known::Upgrade, b"websocket").then_some(Self { key: None }),
            Version::Http2 => {
                let is_asked = head.protocol().is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"));
                (is_asked && head.method() == "CONNECT").then(|| Self { key: Some(generate_key().into()) })
            }
        }
    }

    /// Whether the client asked by an extended CONNECT.
    pub fn is_connect(&self) -> bool {
        self.key.is_some()
    }

    /// The key to ask a backend with, where the client has sent none.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Whether the backend's answer can be given to the client.
    pub fn check(&self, status: u16, answer: &Fields) -> Result<(), NoWebSocket> {
        let Some(key) = &self.key else { return Ok(()) };
        let is_kept = || answer.first(Known::SecWebSocketAccept) == Some(derive_accept_key(key.as_bytes()).as_bytes());
        if matches!(status, 200..=299) || status == 101 && !is_kept() { Err(NoWebSocket { status }) } else { Ok(()) }
    }
}
