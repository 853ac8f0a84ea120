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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{RequestHeadBuilder, ResponseHeadBuilder};

    fn extended_connect(protocol: &[u8]) -> RequestHead {
        let builder = RequestHeadBuilder::from_parts(Version::Http2, b"CONNECT", b"https", b"a.test", b"/chat");
        builder.protocol(protocol).build().unwrap()
    }

    #[test]
    fn a_websocket_is_recognised_in_any_case_and_list() {
        let wants = |version, value: &str| {
            let builder = RequestHeadBuilder::new(version, b"GET", b"/").line(b"Upgrade", value.as_bytes());
            Opening::of(&builder.build().unwrap()).is_some_and(|opening| !opening.is_connect())
        };
        assert!(wants(Version::Http11, "WebSocket"));
        assert!(wants(Version::Http11, "h2c, websocket"));
        assert!(!wants(Version::Http11, "h2c"));
        assert!(!wants(Version::Http11, "websockets"));
        assert!(!wants(Version::Http10, "websocket"));
        assert!(!wants(Version::Http2, "websocket"));
        assert!(Opening::of(&extended_connect(b"WebSocket")).is_some_and(|opening| opening.is_connect()));
        assert!(Opening::of(&extended_connect(b"connect-udp")).is_none());
    }

    /// RFC 8441 section 5.1, RFC 6455 section 4.1.
    #[test]
    fn a_client_on_http_2_is_told_of_no_websocket_that_is_none() {
        let opening = Opening::of(&extended_connect(b"websocket")).unwrap();
        let accept = derive_accept_key(opening.key().unwrap().as_bytes());
        let check = |opening: &Opening, status, accept: &str| {
            let head =
                ResponseHeadBuilder::new(Version::Http11, status).line(b"Sec-WebSocket-Accept", accept.as_bytes());
            opening.check(status, &head.build().unwrap()).is_ok()
        };
        assert!(check(&opening, 101, &accept));
        assert!(!check(&opening, 101, "another"));
        assert!(!check(&opening, 200, &accept));
        assert!(check(&opening, 403, ""));
        let request =
            RequestHeadBuilder::new(Version::Http11, b"GET", b"/").line(b"Upgrade", b"websocket").build().unwrap();
        let opening = Opening::of(&request).unwrap();
        assert!(check(&opening, 101, "whatever") && check(&opening, 200, ""), "its client checks this itself");
    }
}
