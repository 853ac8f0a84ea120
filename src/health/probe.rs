//! One check: a request of its own connection, and what its answer says of the backend.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::{Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use memchr::memmem;
use tracing::debug;

use crate::{
    dial::{BackendTls, DialError, Dialer, Names},
    routing::Backend,
    store::Criteria,
};

/// What a check has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A response, with all that is wanted of it.
    Healthy,
    /// No connection.
    Unreachable,
    /// A connection that broke, or bytes that are no response.
    Broken,
    /// No whole answer in time.
    Timeout,
    /// A response of another status.
    Status,
    /// A response without the wanted text.
    Body,
}

impl Finding {
    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unreachable => "unreachable",
            Self::Broken => "broken",
            Self::Timeout => "timeout",
            Self::Status => "status",
            Self::Body => "body",
        }
    }
}

/// How backends are asked. Cloning is cheap.
#[derive(Clone)]
pub struct Prober {
    dialer: Dialer,
    http: http1::Builder,
}

impl Prober {
    /// With these connections, and so many header lines in a response at most.
    pub fn new(tls: BackendTls, names: Names, max_headers: usize) -> Self {
        let mut http = http1::Builder::new();
        http.title_case_headers(true).max_headers(max_headers);
        Self { dialer: Dialer::new(Some(DIAL_LIMIT), tls, names), http }
    }

    /// Asks a backend once, within [`PROBE_LIMIT`].
    pub async fn probe(&self, backend: &Backend, criteria: &Criteria) -> Finding {
        let asked = tokio::time::timeout(PROBE_LIMIT, ask(self, backend, criteria)).await;
        let finding = asked.unwrap_or(Finding::Timeout);
        debug!(backend = backend.url(), ?finding, "checked");
        finding
    }
}

async fn ask(prober: &Prober, backend: &Backend, criteria: &Criteria) -> Finding {
    let Ok(request) = request(backend, &criteria.path) else { return Finding::Broken };
    let transport = match prober.dialer.connect(backend.origin()).await {
        Ok(transport) => transport,
        Err(DialError::Timeout(_)) => return Finding::Timeout,
        Err(_) => return Finding::Unreachable,
    };
    let Ok((mut sender, connection)) = prober.http.handshake(TokioIo::new(transport)).await else {
        return Finding::Broken;
    };
    let exchange = async {
        match sender.send_request(request).await {
            Ok(response) => judge(response, criteria).await,
            Err(_) => Finding::Broken,
        }
    };
    // What the connection ends with, the exchange learns too, perhaps after it has read all that came before.
    let driving = async {
        let _ = connection.await;
        std::future::pending().await
    };
    let (mut exchange, mut driving) = (pin!(exchange), pin!(driving));
    tokio::select! {
        finding = &mut exchange => finding,
        never = &mut driving => never,
    }
}

async fn judge(response: Response<Incoming>, criteria: &Criteria) -> Finding {
    if criteria.status.is_some_and(|wanted| response.status() != wanted) {
        return Finding::Status;
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !criteria.body.is_empty() {
        return Finding::Body;
    }
    let mut search = Search::new(&criteria.body);
    let mut body = response.into_body();
    while !search.is_over() {
        match body.frame().await {
            Some(Ok(frame)) => search.read(frame.data_ref().map_or(&[], |data| data)),
            Some(Err(_)) => return Finding::Broken,
            None => return Finding::Body,
        }
    }
    Finding::Healthy
}

fn request(backend: &Backend, path: &[u8]) -> Result<Request<Empty<Bytes>>, http::Error> {
    Request::get(target(path)?)
        .header(header::HOST, authority(backend.url()))
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
}

/// A path as a request can have it: with a slash at its beginning, without a fragment, and what is no character of a path
/// as its percent code.
fn target(path: &[u8]) -> Result<Uri, http::Error> {
    let path = path.split(|&byte| byte == b'#').next().unwrap_or_default();
    let mut text = String::with_capacity(path.len() + 1);
    if path.first() != Some(&b'/') {
        text.push('/');
    }
    for &byte in path {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push('%');
            text.extend([byte >> 4, byte & 0xF].map(|digit| char::from(b"0123456789ABCDEF"[usize::from(digit)])));
        }
    }
    Uri::builder().path_and_query(text).build()
}

/// Host and port as the URL has them.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    rest[..end].rsplit_once('@').map_or(&rest[..end], |(_, host)| host)
}

/// Looks for a text in a body that comes in pieces, and keeps no more of it than the text is long.
struct Search<'a> {
    wanted: memmem::Finder<'a>,
    /// The end of what was read, which may be the beginning of the text.
    tail: Vec<u8>,
    is_over: bool,
}

impl<'a> Search<'a> {
    fn new(wanted: &'a [u8]) -> Self {
        Self { wanted: memmem::Finder::new(wanted), tail: Vec::new(), is_over: wanted.is_empty() }
    }

    fn is_over(&self) -> bool {
        self.is_over
    }

    fn read(&mut self, piece: &[u8]) {
        let keep = self.wanted.needle().len().saturating_sub(1);
        // Where the pieces join; what lies within this one needs no copy.
        self.tail.extend_from_slice(&piece[..piece.len().min(keep)]);
        self.is_over |= self.wanted.find(&self.tail).is_some() || self.wanted.find(piece).is_some();
        if piece.len() >= keep {
            self.tail.clear();
            self.tail.extend_from_slice(&piece[piece.len() - keep..]);
        } else {
            let surplus = self.tail.len().saturating_sub(keep);
            self.tail.drain(..surplus);
        }
    }
}

const USER_AGENT: &str = concat!("planb-healthcheck/", env!("CARGO_PKG_VERSION"));

/// How long a connection may take.
const DIAL_LIMIT: Duration = Duration::from_secs(10);

/// How long a check may take in all.
const PROBE_LIMIT: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> String {
        target(text.as_bytes()).unwrap().to_string()
    }

    #[test]
    fn a_path_begins_with_a_slash() {
        assert_eq!(path(""), "/");
        assert_eq!(path("health"), "/health");
        assert_eq!(path("/health?deep=1"), "/health?deep=1");
        assert_eq!(path("http://other/"), "/http://other/");
    }

    #[test]
    fn what_is_no_character_of_a_path_is_encoded() {
        assert_eq!(path("/a b\r\nX: y"), "/a%20b%0D%0AX:%20y");
        assert_eq!(path("/ä#top"), "/%C3%A4");
        assert_eq!(path("/100%25"), "/100%25");
    }

    #[test]
    fn the_host_is_as_the_url_has_it() {
        assert_eq!(authority("http://10.0.0.1:8080"), "10.0.0.1:8080");
        assert_eq!(authority("https://name"), "name");
        assert_eq!(authority("name:81/base"), "name:81");
        assert_eq!(authority("http://user:secret@[::1]:80/?q"), "[::1]:80");
    }

    #[test]
    fn a_text_is_found_across_pieces() {
        let found = |wanted: &str, pieces: &[&str]| {
            let mut search = Search::new(wanted.as_bytes());
            for piece in pieces {
                search.read(piece.as_bytes());
            }
            search.is_over()
        };
        assert!(found("ready", &["not yet rea", "dy"]));
        assert!(found("ready", &["r", "e", "a", "d", "y"]));
        assert!(!found("ready", &["rea", "_dy", "read"]));
        assert!(found("", &[]));
    }

    proptest! {
        #[test]
        fn a_search_in_pieces_finds_what_a_search_in_one_does(
            wanted in "[ab]{1,5}",
            pieces in proptest::collection::vec("[ab]{0,6}", 0..8),
        ) {
            let mut search = Search::new(wanted.as_bytes());
            for piece in &pieces {
                search.read(piece.as_bytes());
                prop_assert!(search.tail.len() < wanted.len().max(1));
            }
            prop_assert_eq!(search.is_over(), pieces.concat().contains(&wanted));
        }

        #[test]
        fn any_path_can_be_asked_for(path in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert!(target(&path).unwrap().path().starts_with('/'));
        }
    }
}
