//! One session with the write Redis for checking dead backends: the channel `dead`, leases, and dead sets.
//!
//! Each step is a script, so that the list, the lease and the set that it decides by are those that it changes. Scripts are
//! loaded by each session; a server that has lost them refuses the step, which ends the session.

use std::time::Duration;

use super::{
    Server, StoreError,
    client::{Connection, NO_SUBSCRIPTION},
    inbox::{Inbox, Missed, Reading, SUBSCRIPTION},
    schema::{self, DEAD_CHANNEL, DEAD_PREFIX, DeadNotice, FRONTEND_PREFIX, HEALTHCHECK_PREFIX},
    writer::{WRITE_LIMIT, require_master},
};
use bytes::Bytes;
use fred::{
    clients::{Client, Pipeline},
    interfaces::{ClientLike, PubsubInterface},
    types::{CustomCommand, Message, Value},
};

/// Two connections to a Redis master, subscribed to the channel `dead`. After an error it must be dropped.
pub struct HealthSession {
    commands: Connection,
    subscriber: Connection,
    inbox: Inbox<Option<DeadNotice>>,
    holder: String,
    lease: String,
    release: String,
    criteria: String,
}

/// One look at a backend that is, or was, dead.
#[derive(Debug, PartialEq, Eq)]
pub struct Visit {
    /// The frontend's host, as its key spells it.
    pub host: String,
    /// The spellings of the backend's URL that are known, at least one. Whichever the list has, it is the same backend; and a
    /// lease under any of them is another's to respect.
    pub urls: Vec<String>,
    /// The spelling under which the lease was last held.
    pub leased: Option<String>,
    /// What is wanted.
    pub intent: Intent,
    /// The indexes that it was last seen to have.
    pub seen: Vec<usize>,
    /// The indexes under which it was announced since. Where the list does not have the backend, they are somebody else's.
    pub announced: Vec<usize>,
}

/// What a visit is for. None of them touches another's lease, and whatever else is found, indexes that mean the backend no more
/// are taken out of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// To take the lease, or to renew it before anything is known of the backend, which stays as dead as it is: a mark is
    /// renewed, and none is made.
    Claim,
    /// To renew the lease and the mark of a backend that is known to be sick. Where the lease is gone, it is as for [`Intent::Claim`].
    Keep,
    /// To take over a lease that may have run out, and the mark with it.
    Follow,
    /// As [`Intent::Follow`] before the lease can have run out: without lease and mark, the backend is alive.
    FollowEarly,
    /// To put the backend back into rotation.
    Revive,
}

/// What a visit has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The lease is ours for the next [`LEASE`], and the backend is recorded under these indexes, if at all.
    Held {
        /// The backend's URL as the list spells it first, which is how the lease is named.
        url: String,
        /// The indexes.
        recorded: Vec<usize>,
    },
    /// The lease is another's, for so long; `None` if it does not end.
    AnothersFor(Option<Duration>),
    /// The backend is in rotation, and nobody's business.
    Alive,
    /// The list has it no more.
    Unlisted,
}

/// What a healthy response is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Criteria {
    /// The path to ask for, as it was written; may be empty.
    pub path: Bytes,
    /// The status that it must have.
    pub status: Option<u16>,
    /// What its body must contain; may be empty.
    pub body: Bytes,
}

impl HealthSession {
    /// Connects, checks that the server is a master, loads the scripts, and waits until the subscription is in force. Leases
    /// are held in the name of `holder`.
    pub async fn open(server: &Server, holder: &str) -> Result<Self, StoreError> {
        let commands = Connection::open(server, NO_SUBSCRIPTION).await?;
        require_master(&commands).await?;
        let load = async |script: &str| {
            let hash = commands.client.custom::<String, _>(command("SCRIPT"), vec!["LOAD", script]);
            commands.ask(WRITE_LIMIT, hash).await
        };
        let (lease, release, criteria) = (
            load(concat!(include_str!("scripts/identity.lua"), include_str!("scripts/lease.lua"))).await?,
            load(concat!(include_str!("scripts/identity.lua"), include_str!("scripts/release.lua"))).await?,
            load(include_str!("scripts/criteria.lua")).await?,
        );
        let subscriber = Connection::open(server, SUBSCRIPTION).await?;
        let inbox = Inbox::new(&subscriber.client, Reading { event: |_| None, message: of_message });
        subscriber.ask(WRITE_LIMIT, subscriber.client.subscribe(DEAD_CHANNEL)).await?;
        let session = Self { commands, subscriber, inbox, holder: holder.to_owned(), lease, release, criteria };
        session.beat().await?;
        Ok(session)
    }

    /// The server.
    pub fn server(&self) -> &Server {
        &self.commands.server
    }

    /// Waits for the next message on the channel; `None` for one that is junk. Cancel-safe.
    pub async fn notice(&mut self) -> Result<Option<DeadNotice>, StoreError> {
        tokio::select! {
            biased;
            notice = self.inbox.next() => notice.map_err(|missed| self.overrun(missed)),
            error = self.commands.broken() => Err(error),
            error = self.subscriber.broken() => Err(error),
        }
    }

    /// The next message that has already arrived, as [`HealthSession::notice`].
    pub fn arrived(&mut self) -> Result<Option<Option<DeadNotice>>, StoreError> {
        self.inbox.arrived().map_err(|missed| self.overrun(missed))
    }

    /// Proves that both connections are answered.
    pub async fn beat(&self) -> Result<(), StoreError> {
        let ping = async |connection: &Connection| {
            connection.ask(WRITE_LIMIT, connection.client.ping::<Value>(None)).await.map(drop)
        };
        tokio::try_join!(ping(&self.commands), ping(&self.subscriber)).map(drop)
    }

    /// Makes these visits, each in one atomic step, and says what each has come to, in their order.
    pub async fn visit(&self, visits: &[Visit]) -> Result<Vec<Standing>, StoreError> {
        let calls =
            visits.iter().map(|visit| (&self.lease, host_keys(&visit.host), lease_arguments(visit, &self.holder)));
        let answers = self.run(calls).await?;
        answers.into_iter().map(|answer| standing_of(answer).ok_or_else(|| self.commands.protocol("EVALSHA"))).collect()
    }

    /// Gives up leases of ours, by host and URL, and announces what stays dead, so that another instance takes over.
    pub async fn release(&self, backends: &[(String, String)]) -> Result<(), StoreError> {
        let calls = backends.iter().map(|(host, url)| {
            let arguments = vec![self.holder.clone(), DEAD_CHANNEL.to_owned(), host.clone(), url.clone()];
            (&self.release, [host_keys(host), vec![schema::lease_key(host, url)]].concat(), arguments)
        });
        self.run(calls).await.map(drop)
    }

    /// What a healthy response is, for each of these hosts, in their order.
    pub async fn criteria(&self, hosts: &[&str]) -> Result<Vec<Criteria>, StoreError> {
        let calls = hosts.iter().map(|host| (&self.criteria, vec![format!("{HEALTHCHECK_PREFIX}{host}")], Vec::new()));
        Ok(self.run(calls).await?.into_iter().map(criteria_of).collect())
    }

    /// Runs scripts in one pipeline: each its hash, keys and arguments.
    async fn run<'a>(
        &self,
        calls: impl Iterator<Item = (&'a String, Vec<String>, Vec<String>)>,
    ) -> Result<Vec<Value>, StoreError> {
        let pipeline: Pipeline<Client> = self.commands.client.pipeline();
        let answered = async {
            let mut count = 0;
            for (script, keys, arguments) in calls {
                let number = keys.len().to_string();
                let words: Vec<String> = [script.clone(), number].into_iter().chain(keys).chain(arguments).collect();
                pipeline.custom::<(), _>(command("EVALSHA"), words).await?;
                count += 1;
            }
            if count == 0 {
                return Ok(Vec::new());
            }
            pipeline.all::<Vec<Value>>().await
        };
        self.commands.ask(RUN_LIMIT, answered).await
    }

    fn overrun(&self, Missed(missed): Missed) -> StoreError {
        StoreError::Overrun { server: self.subscriber.server.to_string(), missed }
    }
}

impl Intent {
    fn word(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Keep => "keep",
            Self::Follow => "follow",
            Self::FollowEarly => "follow-early",
            Self::Revive => "revive",
        }
    }
}

fn host_keys(host: &str) -> Vec<String> {
    vec![format!("{FRONTEND_PREFIX}{host}"), format!("{DEAD_PREFIX}{host}")]
}

fn lease_arguments(visit: &Visit, holder: &str) -> Vec<String> {
    let leased = visit.leased.clone().unwrap_or_default();
    let mut arguments = vec![visit.intent.word().to_owned(), holder.to_owned(), LEASE.as_secs().to_string(), leased];
    arguments.push(visit.urls.len().to_string());
    arguments.extend(visit.urls.iter().cloned());
    arguments.push(visit.seen.len().to_string());
    arguments.extend(visit.seen.iter().chain(&visit.announced).map(ToString::to_string));
    arguments
}

fn command(name: &'static str) -> CustomCommand {
    CustomCommand::new_static(name, None, false)
}

fn of_message(message: &Message) -> Option<DeadNotice> {
    DeadNotice::decode(&message.value.as_str()?)
}

fn standing_of(answer: Value) -> Option<Standing> {
    let mut parts = answer.into_array().into_iter();
    match parts.next()?.as_i64()? {
        0 => Some(Standing::Alive),
        1 => {
            // What is no text in it is in its path, and does not matter to whoever reads it.
            let url = String::from_utf8_lossy(&parts.next()?.into_bytes()?).into_owned();
            let recorded = parts.map(|index| index.as_str()?.parse().ok()).collect::<Option<_>>()?;
            Some(Standing::Held { url, recorded })
        }
        2 => {
            let left = parts.next()?.as_i64()?;
            Some(Standing::AnothersFor(u64::try_from(left).ok().map(Duration::from_millis)))
        }
        3 => Some(Standing::Unlisted),
        _ => None,
    }
}

fn criteria_of(answer: Value) -> Criteria {
    let mut fields = answer.into_array().into_iter().skip(1).map(|field| field.into_bytes().unwrap_or_default());
    let mut field = || fields.next().unwrap_or_default();
    let (path, status, body) = (field(), field(), field());
    let status = std::str::from_utf8(&status).ok().and_then(|text| text.trim().parse().ok());
    Criteria { path, status: status.filter(|&status| status != 0), body }
}

/// How long a lease lasts without being renewed, and a mark at least.
pub const LEASE: Duration = Duration::from_secs(30);

/// How long one pipeline of scripts may take.
const RUN_LIMIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn criteria(path: &str, status: &str, body: &str) -> Criteria {
        let texts = [path, status, body].map(|text| Value::from(text.to_owned()));
        criteria_of(Value::Array([Value::from(1)].into_iter().chain(texts).collect()))
    }

    #[test]
    fn a_status_that_is_none_wants_none() {
        for (text, status) in [("200", Some(200)), (" 204 ", Some(204)), ("0", None), ("", None), ("ok", None)] {
            assert_eq!(criteria("/", text, "").status, status, "{text:?}");
        }
        assert_eq!(criteria("/", "-200", "").status, None);
        assert_eq!(criteria("/", "70000", "").status, None);
    }

    #[test]
    fn an_answer_of_another_form_is_none() {
        assert_eq!(standing_of(Value::Null), None);
        assert_eq!(standing_of(Value::Array(vec![Value::from(7)])), None);
        assert_eq!(standing_of(Value::Array(vec![Value::from(1)])), None);
        let held = Value::Array([1.into(), "http://x".into(), "0".into(), "12".into()].to_vec());
        let url = "http://x".to_owned();
        assert_eq!(standing_of(held), Some(Standing::Held { url, recorded: vec![0, 12] }));
        let anothers = |pttl: i64| standing_of(Value::Array(vec![Value::from(2), Value::from(pttl)]));
        assert_eq!(anothers(1_500), Some(Standing::AnothersFor(Some(Duration::from_millis(1_500)))));
        assert_eq!(anothers(-1), Some(Standing::AnothersFor(None)));
    }
}
