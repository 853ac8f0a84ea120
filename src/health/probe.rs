//! One check: a request on a connection of its own, as many more as the backend redirects it, and what the last answer says of
//! the backend.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::{Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use memchr::memmem;
use tracing::debug;

use super::target::Target;
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
    /// A certificate that does not convince.
    Certificate,
    /// A connection that broke, bytes that are no response, or redirects that lead nowhere or do not end.
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
            Self::Certificate => "certificate",
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
    /// For where redirects lead, which the backend decides.
    stranger: Dialer,
    http: http1::Builder,
}

/// One step of a check.
enum Step {
    Found(Finding),
    Redirected(Target),
}

impl Prober {
    /// With these connections. `max_headers` is how many header lines a response may have, if that is more than
    /// [`MOST_HEADERS`].
    pub fn new(tls: BackendTls, names: Names, max_headers: usize) -> Self {
        let mut http = http1::Builder::new();
        http.title_case_headers(true).max_headers(max_headers.max(MOST_HEADERS));
        let dialer = Dialer::new(Some(DIAL_LIMIT), tls, names);
        Self { stranger: dialer.forgetful(), dialer, http }
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
    let Some(mut target) = Target::below(backend, &criteria.path) else { return Finding::Broken };
    let mut dialer = &prober.dialer;
    for _ in 0..=MOST_REDIRECTS {
        match step(dialer, &prober.http, &target, criteria).await {
            Step::Found(finding) => return finding,
            Step::Redirected(next) => (target, dialer) = (next, &prober.stranger),
        }
    }
    Finding::Broken
}

/// One request and its answer, on a connection of their own, which ends with them.
async fn step(dialer: &Dialer, http: &http1::Builder, target: &Target, criteria: &Criteria) -> Step {
    let Ok(request) = request(target) else { return Step::Found(Finding::Broken) };
    let transport = match dialer.connect(&target.origin).await {
        Ok(transport) => transport,
        Err(DialError::Timeout(_)) => return Step::Found(Finding::Timeout),
        Err(DialError::Certificate(_)) => return Step::Found(Finding::Certificate),
        Err(_) => return Step::Found(Finding::Unreachable),
    };
    let Ok((mut sender, connection)) = http.handshake(TokioIo::new(transport)).await else {
        return Step::Found(Finding::Broken);
    };
    let exchange = async {
        match sender.send_request(request).await {
            Ok(response) => read(response, target, criteria).await,
            Err(_) => Step::Found(Finding::Broken),
        }
    };
    // What the connection ends with, the exchange learns too, perhaps after it has read all that came before.
    let driving = async {
        let _ = connection.await;
        std::future::pending().await
    };
    let (mut exchange, mut driving) = (pin!(exchange), pin!(driving));
    tokio::select! {
        step = &mut exchange => step,
        never = &mut driving => never,
    }
}

async fn read(response: Response<Incoming>, target: &Target, criteria: &Criteria) -> Step {
    let status = response.status();
    // Who wants a redirect does not want to see where it leads.
    if is_redirect(status) && criteria.status != Some(status.as_u16()) {
        match target.redirected(response.headers()) {
            Ok(None) => {}
            Ok(Some(next)) => return Step::Redirected(next),
            Err(_) => return Step::Found(Finding::Broken),
        }
    }
    Step::Found(judge(response, criteria).await)
}

/// Whether a GET goes on elsewhere (RFC 9110 section 15.4). One that does not say where is an answer like any other.
fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301..=303 | 307 | 308)
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

fn request(target: &Target) -> Result<Request<Empty<Bytes>>, http::Error> {
    Request::get(target.uri.clone())
        .header(header::HOST, &target.authority)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
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

/// How many redirects are followed.
const MOST_REDIRECTS: usize = 10;

/// Header lines of a response that are read at least, however many requests' responses may have.
const MOST_HEADERS: usize = 1_000;

/// How long a connection may take.
const DIAL_LIMIT: Duration = Duration::from_secs(10);

/// How long a check may take in all, redirects included.
const PROBE_LIMIT: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
    }
}
