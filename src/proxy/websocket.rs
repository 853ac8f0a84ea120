//! How a request asks to become a WebSocket, and how it is told that it did.
//!
//! A backend is always asked in the way of HTTP/1.1 (RFC 6455). A client on HTTP/2 asks by an extended CONNECT (RFC 8441),
//! which has no key of its own, so that we make one and check the backend's answer to it.

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION},
};
use hyper::{
    body::Incoming,
    ext::Protocol,
    upgrade::{self, OnUpgrade},
};
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};

use super::{error::ProxyError, headers};

/// A request to open a WebSocket.
pub struct Opening {
    /// The client's side, once it is open.
    pub from_client: OnUpgrade,
    /// The key that we made for a client on HTTP/2.
    key: Option<String>,
}

impl Opening {
    /// What of this request asks for it, if anything does.
    pub fn of(request: &mut Request<Incoming>) -> Option<Self> {
        if headers::wants_websocket(request) {
            return Some(Self { from_client: upgrade::on(request), key: None });
        }
        let protocol = request.extensions().get::<Protocol>()?;
        (request.method() == Method::CONNECT && protocol.as_str().eq_ignore_ascii_case("websocket"))
            .then(|| Self { from_client: upgrade::on(request), key: Some(generate_key()) })
    }

    /// Whether the client asked by an extended CONNECT.
    pub fn is_connect(&self) -> bool {
        self.key.is_some()
    }

    /// Puts what a backend expects into the request's headers.
    pub fn ask(&self, headers: &mut HeaderMap) {
        if let Some(key) = &self.key {
            let key = HeaderValue::from_str(key).expect("base64 is visible ASCII");
            headers.insert(SEC_WEBSOCKET_KEY, key);
            headers.entry(SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
        }
    }

    /// Whether the backend's answer can be given to the client.
    ///
    /// # Errors
    /// When a client on HTTP/2 would take it for an open WebSocket and it is none.
    pub fn check<B>(&self, response: &Response<B>) -> Result<(), ProxyError> {
        let Some(key) = &self.key else { return Ok(()) };
        let status = response.status();
        let is_kept = || {
            let accept = response.headers().get(SEC_WEBSOCKET_ACCEPT);
            accept.is_some_and(|accept| accept.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes())
        };
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS && !is_kept() {
            return Err(ProxyError::NoWebSocket(status));
        }
        Ok(())
    }

    /// Turns a backend's 101 into what an extended CONNECT is answered with.
    pub fn accept<B>(&self, response: &mut Response<B>) {
        if self.is_connect() {
            *response.status_mut() = StatusCode::OK;
            response.headers_mut().remove(SEC_WEBSOCKET_ACCEPT);
            headers::remove_upgrade(response.headers_mut());
        }
    }
}
