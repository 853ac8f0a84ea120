//! What Redis is asked for in bulk, and what its answers say.

use std::time::Duration;

use bytes::Bytes;
use fred::error::{Error as FredError, ErrorKind};
use redis_protocol::resp2::types::BytesFrame;

use super::{
    Server, StoreError,
    bulk::Commands,
    schema::{
        self, CERTIFICATE_FIELDS, CERTIFICATE_PREFIX, CertificateHash, Change, DEAD_PREFIX, DeadSet, FRONTEND_PREFIX,
        List,
    },
};

/// One page of a scan. The same name may come twice in one scan.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// What follows `frontend:` in the keys found.
    pub hosts: Vec<String>,
    /// What follows `dead:`.
    pub dead_keys: Vec<String>,
    /// What follows `tls:`.
    pub certificates: Vec<String>,
    /// Where to go on; `None` at the end.
    pub next: Option<String>,
}

pub(super) fn ask_for_page(commands: &mut Commands, cursor: &str, effort: u32) {
    commands.add_plain(&["SCAN", cursor, "MATCH", OUR_KEYS, "COUNT", &effort.to_string()]);
}

pub(super) fn ask_for_list(commands: &mut Commands, host: &str) {
    commands.add("LRANGE", [FRONTEND_PREFIX, host], &["0", "-1"]);
}

pub(super) fn ask_for_marks(commands: &mut Commands, host: &str) {
    commands.add("SMEMBERS", [DEAD_PREFIX, host], &[]);
}

pub(super) fn ask_for_expiry(commands: &mut Commands, host: &str) {
    commands.add("PTTL", [DEAD_PREFIX, host], &[]);
}

pub(super) fn ask_for_lease(commands: &mut Commands, host: &str, url: &str) {
    commands.add("PTTL", ["", &schema::lease_key(host, url)], &[]);
}

pub(super) fn ask_for_certificate(commands: &mut Commands, name: &str) {
    commands.add("HMGET", [CERTIFICATE_PREFIX, name], &CERTIFICATE_FIELDS);
}

/// What SCAN has answered.
pub(super) fn page(server: &Server, reply: Option<BytesFrame>) -> Result<Page, StoreError> {
    let malformed = || protocol(server, "SCAN");
    let reply = unless_error(server, reply.ok_or_else(malformed)?)?;
    page_of(reply).ok_or_else(malformed)
}

fn page_of(reply: BytesFrame) -> Option<Page> {
    let BytesFrame::Array(parts) = reply else { return None };
    let [cursor, BytesFrame::Array(keys)] = <[BytesFrame; 2]>::try_from(parts).ok()? else { return None };
    let cursor = String::from_utf8(text_of(cursor)?.into()).ok()?;
    let mut page = Page { next: Some(cursor).filter(|cursor| cursor != "0"), ..Page::default() };
    for key in keys.into_iter().filter_map(text_of) {
        // A name that is not UTF-8 can be asked for by no client.
        match str::from_utf8(&key).ok().and_then(schema::subject_of_key) {
            Some(Change::Host(host)) => page.hosts.push(host),
            Some(Change::DeadKey(name)) => page.dead_keys.push(name),
            Some(Change::Certificate(name)) => page.certificates.push(name),
            Some(Change::Removal(_) | Change::Notice(_) | Change::Junk) | None => {}
        }
    }
    Some(page)
}

pub(super) fn list(server: &Server, reply: BytesFrame) -> Result<List, StoreError> {
    Ok(elements(server, reply)?.map_or(List::WrongType, List::Elements))
}

/// A dead set, as if it never expired.
pub(super) fn marks(server: &Server, reply: BytesFrame) -> Result<DeadSet, StoreError> {
    // Leases of the active health check are strings; anything else here is junk. Neither marks a backend.
    Ok(elements(server, reply)?.map(|members| DeadSet::from_members(&members, NO_EXPIRY)).unwrap_or_default())
}

/// Adds when a set expires, which may have happened since it was read.
pub(super) fn add_expiry(server: &Server, dead: &mut DeadSet, reply: BytesFrame) -> Result<(), StoreError> {
    match pttl(server, reply)? {
        NO_KEY => *dead = DeadSet::default(),
        remaining => dead.ttl = u64::try_from(remaining).ok().map(Duration::from_millis),
    }
    Ok(())
}

/// Whether there is such a lease.
pub(super) fn is_held(server: &Server, reply: BytesFrame) -> Result<bool, StoreError> {
    Ok(pttl(server, reply)? != NO_KEY)
}

pub(super) fn certificate(server: &Server, reply: BytesFrame) -> Result<CertificateHash, StoreError> {
    let fields = match reply {
        BytesFrame::Array(fields) => fields,
        reply if is_of_another_type(&reply) => return Ok(CertificateHash::WrongType),
        reply => return unless_error(server, reply).and_then(|_| Err(protocol(server, "HMGET"))),
    };
    // A copy, because they are kept, and what they lie in is not.
    let mut fields = fields.into_iter().map(|field| text_of(field).map(|text| Bytes::copy_from_slice(&text)));
    Ok(match (fields.next().flatten(), fields.next().flatten()) {
        (None, None) => CertificateHash::Absent,
        (certificate, key) => {
            CertificateHash::Fields { certificate: certificate.unwrap_or_default(), key: key.unwrap_or_default() }
        }
    })
}

/// What is in a list or a set; `None` where the key is of another type.
fn elements(server: &Server, reply: BytesFrame) -> Result<Option<Vec<Bytes>>, StoreError> {
    match reply {
        BytesFrame::Array(elements) => Ok(Some(elements.into_iter().filter_map(text_of).collect())),
        reply if is_of_another_type(&reply) => Ok(None),
        reply => unless_error(server, reply).and_then(|_| Err(protocol(server, "LRANGE"))),
    }
}

fn pttl(server: &Server, reply: BytesFrame) -> Result<i64, StoreError> {
    match unless_error(server, reply)? {
        BytesFrame::Integer(pttl) => Ok(pttl),
        _ => Err(protocol(server, "PTTL")),
    }
}

fn text_of(reply: BytesFrame) -> Option<Bytes> {
    match reply {
        BytesFrame::BulkString(text) | BytesFrame::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn is_of_another_type(reply: &BytesFrame) -> bool {
    matches!(reply, BytesFrame::Error(text) if text.starts_with("WRONGTYPE"))
}

/// A reply that must not be an error.
pub(super) fn unless_error(server: &Server, reply: BytesFrame) -> Result<BytesFrame, StoreError> {
    let BytesFrame::Error(text) = reply else { return Ok(reply) };
    let is_login = ["NOAUTH", "WRONGPASS"].iter().any(|code| text.starts_with(code));
    let kind = if is_login { ErrorKind::Auth } else { ErrorKind::Unknown };
    Err(StoreError::from_fred(server, FredError::new(kind, text.to_string())))
}

/// The server gave an answer of the wrong form.
pub(super) fn protocol(server: &Server, command: &'static str) -> StoreError {
    StoreError::Protocol { server: server.to_string(), command }
}

/// Matches what all our keys begin with, and little else: what else a database holds need not come over the network.
const OUR_KEYS: &str = "[fdt][rel][oas]*";

/// PTTL's answer where there is no key.
const NO_KEY: i64 = -2;

/// PTTL's answer where the key does not expire.
const NO_EXPIRY: i64 = -1;
