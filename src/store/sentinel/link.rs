//! Connections to one sentinel.

use std::time::Duration;

use fred::{
    interfaces::{ClientLike, EventInterface, PubsubInterface},
    types::{CustomCommand, Message, Value},
};
use tokio::{sync::broadcast::Receiver, time};

use super::{
    super::{
        Server, StoreError,
        client::{Connection, NO_SUBSCRIPTION},
    },
    view::{Fields, View},
};

/// A sentinel that can be asked.
pub struct Link(Connection);

/// A sentinel that can be asked, and that says when it is time to.
pub struct Tap {
    link: Link,
    subscriber: Connection,
    events: Receiver<Message>,
}

impl Link {
    /// Connects and authenticates.
    pub async fn open(sentinel: &Server) -> Result<Self, StoreError> {
        Connection::open_within(SENTINEL_LIMIT, sentinel, NO_SUBSCRIPTION).await.map(Self)
    }

    /// What the sentinel says of the master of this name.
    pub async fn look(&self, name: &str) -> Result<View, StoreError> {
        let client = &self.0.client;
        let ask = |subcommand: &'static str| {
            client.custom::<Value, _>(CustomCommand::new_static("SENTINEL", None, false), vec![subcommand, name])
        };
        // The epoch is asked for before the address: an epoch that is newer than the address would bring us back.
        let replies = async { tokio::try_join!(ask("MASTER"), ask("GET-MASTER-ADDR-BY-NAME"), ask("REPLICAS")) };
        let (master, address, replicas) = match self.0.ask(SENTINEL_LIMIT, replies).await {
            Err(StoreError::Refused { source, .. }) if source.details().contains("No such master") => {
                return Err(StoreError::UnknownMaster { name: name.to_owned() });
            }
            replies => replies?,
        };
        let replicas: Vec<Fields> = replicas.into_array().into_iter().map(fields).collect();
        let view = View::parse(&fields(master), &strings(address), &replicas);
        view.ok_or_else(|| self.0.protocol("SENTINEL"))
    }
}

impl Tap {
    /// Connects, and subscribes to all that the sentinel announces. Which event means what differs between versions, and
    /// between the sentinel that leads a fail-over and the others; that there was one says enough to look again.
    pub async fn open(sentinel: &Server) -> Result<Self, StoreError> {
        let link = Link::open(sentinel).await?;
        let subscriber = Connection::open_within(SENTINEL_LIMIT, sentinel, EVENTS).await?;
        let events = subscriber.client.message_rx();
        subscriber.ask(SENTINEL_LIMIT, subscriber.client.psubscribe("*")).await?;
        Ok(Self { link, subscriber, events })
    }

    /// As [`Link::look`].
    pub async fn look(&self, name: &str) -> Result<View, StoreError> {
        self.link.look(name).await
    }

    /// Waits until it is time to look again: after the next event, or after `longest`.
    pub async fn wait(&mut self, longest: Duration) -> Result<(), StoreError> {
        tokio::select! {
            // Being told too much at once is as good as being told.
            _ = self.events.recv() => self.events = self.events.resubscribe(),
            () = time::sleep(longest) => {}
            error = self.subscriber.broken() => return Err(error),
        }
        Ok(())
    }
}

fn fields(reply: Value) -> Fields {
    let mut words = strings(reply).into_iter();
    let pairs = std::iter::from_fn(|| Some((words.next()?, words.next()?)));
    pairs.collect()
}

fn strings(reply: Value) -> Vec<String> {
    reply.into_array().into_iter().filter_map(Value::into_string).collect()
}

/// How long a sentinel may take to be connected to, and to answer.
const SENTINEL_LIMIT: Duration = Duration::from_millis(500);

/// Events that may wait to be noticed; none is read.
const EVENTS: usize = 64;
