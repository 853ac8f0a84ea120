//! Which failures are excused, and by what evidence.
//!
//! The contract forbids to send a request twice that may have had an effect: a POST of which a byte was sent, and for
//! caution a GET that a *fresh* connection lost. When a backend is killed, these are lost with it. So a failure is excused
//! if all of this holds:
//!
//! - It was answered 503, and the proxy's log says that its connection to a backend broke, not that none could be made.
//! - That backend was killed, or had stopped listening, while the request waited.
//! - If the backend had received the request, it was a POST, or the connection's first request.
//!
//! What a backend had in its socket but had not read, it does not tell of. Of these, a frozen one may have many, and whether
//! a GET of them came over a fresh connection is not known one by one. The report has the sum: as many must be lost as waited
//! over connections that were never accepted, and the POSTs among those that waited over others.

use std::collections::{BTreeMap, HashMap};

use super::{
    book::{End, Pages},
    fleet::Backend,
    load::{Failure, HOST},
};

/// What became of all failures.
#[derive(Default)]
pub struct Verdict {
    /// How many were excused, by kind.
    pub excused: BTreeMap<&'static str, usize>,
    /// The others, and why they are not.
    pub failed: Vec<(Failure, String)>,
}

/// What a proxy's log says of the last attempt at a request: the backend, and the error.
pub type Errors = HashMap<u64, (String, String)>;

/// Reads a proxy's log.
pub fn errors_in(log: &str) -> Errors {
    let entry = |line: &str| {
        let rest = line.strip_prefix("ERROR in ")?.strip_prefix(HOST)?.strip_prefix(" -> ")?;
        let (backend, rest) = rest.split_once(" - ")?;
        let (_path, rest) = rest.split_once(" - ")?;
        let (id, error) = rest.split_once(" - ")?;
        let (_header, id) = id.split_once(':')?;
        Some((id.parse().ok()?, (backend.to_owned(), error.to_owned())))
    };
    log.lines().filter_map(entry).collect()
}

/// Judges all failures.
pub fn judge(failures: Vec<Failure>, pages: &Pages, backends: &[Backend], errors: &Errors) -> Verdict {
    let mut verdict = Verdict::default();
    for failure in failures {
        match excuse(&failure, pages, backends, errors) {
            Ok(kind) => *verdict.excused.entry(kind).or_default() += 1,
            Err(reason) => verdict.failed.push((failure, reason)),
        }
    }
    verdict
}

fn excuse(failure: &Failure, pages: &Pages, backends: &[Backend], errors: &Errors) -> Result<&'static str, String> {
    if failure.status != Some(503) {
        return Err("it is not what the proxy answers for a backend that is lost".to_owned());
    }
    let url = failure.backend.as_deref().ok_or("the answer names no backend")?;
    let number = backends.iter().position(|backend| backend.url == url).ok_or("there is no such backend")?;
    let (logged, error) = errors.get(&failure.id).ok_or("the proxy logged nothing")?;
    if logged != url || !error.starts_with(BROKEN) {
        return Err(format!("the proxy logged of {logged}: {error}"));
    }
    let ended = pages.lives.iter().enumerate().rev().find_map(|(life, of)| {
        let (at, how) = of.end.filter(|_| of.backend == number)?;
        (at <= failure.to && of.gone.is_none_or(|gone| gone >= failure.from)).then_some((life, how))
    });
    let (life, how) = ended.ok_or("the backend did not end meanwhile")?;
    let receipts = pages.receipts.get(&failure.id).into_iter().flatten().filter(|receipt| receipt.life == life);
    let receipts: Vec<bool> = receipts.map(|receipt| receipt.is_fresh).collect();
    match (failure.is_post, &*receipts, how) {
        (_, [_, ..], End::Asked) => Err("the backend had received it, and should have answered".to_owned()),
        (true, [_], _) => Ok(POST_RECEIVED),
        (false, received, _) if received.contains(&true) => Ok(GET_RECEIVED),
        (_, [_, ..], _) => Err("a kept connection lost a GET, and it was not repeated".to_owned()),
        (_, [], End::Asked) => Ok(NOT_ACCEPTED),
        (true, [], _) => Ok(POST_UNREAD),
        (false, [], _) => Ok(GET_UNREAD),
    }
}

const POST_RECEIVED: &str = "POST that a killed backend had received";
const GET_RECEIVED: &str = "GET that a killed backend had received, over a fresh connection";
const POST_UNREAD: &str = "POST sent to a killed backend that had not read it";
const GET_UNREAD: &str = "GET sent to a killed backend that had not read it";
const NOT_ACCEPTED: &str = "sent over a connection that an ending backend had not accepted";

/// How the log speaks of a connection that was made, and broke.
const BROKEN: &str = "error in backend request: ";
