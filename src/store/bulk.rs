//! Reading in bulk: thousands of keys in few writes, and their replies parsed where they lie.
//!
//! The client library writes each command by itself and makes values of its own out of each reply, which at a million keys is
//! most of a load. It also takes any array that begins with "message", "subscribe" or the like for a message. Here nothing
//! is subscribed to, and a reply is what was asked for.

use std::{io, time::Duration};

use bytes::BytesMut;
use redis_protocol::resp2::{decode::decode_bytes, types::BytesFrame};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Listed, Server, StoreError,
    answers::{protocol, unless_error},
    dial::{BoxedStream, connect},
    replies::{Bounds, Replies},
    walk::Walk,
};

/// A connection for reading alone, in RESP 2.
pub(super) struct Bulk {
    server: Server,
    /// `None` while there is an exchange, and after one that was given up: what is left of its replies would be taken for
    /// the next one's.
    wire: Option<Wire>,
    /// While it is walked with, which takes the wire.
    walk: Option<Walk>,
    /// What was asked for ahead, which takes the wire until it has arrived.
    ahead: Option<Ahead>,
}

enum Ahead {
    /// To a task of its own, so that replies are parsed while others are applied.
    Coming(AbortOnDropHandle<Result<(Wire, Vec<BytesFrame>), StoreError>>),
    Arrived(Vec<BytesFrame>),
}

/// The connection itself.
pub(super) struct Wire {
    pub server: Server,
    stream: BoxedStream,
    input: BytesMut,
}

/// Commands that are sent together.
#[derive(Default)]
pub(super) struct Commands {
    text: Vec<u8>,
    count: usize,
}

impl Commands {
    /// Adds one, with its arguments. A key is told in two parts, its prefix and its name.
    pub fn add(&mut self, name: &str, [prefix, key]: [&str; 2], arguments: &[&str]) {
        self.count += 1;
        self.put_number(b'*', 2 + arguments.len());
        self.put(name);
        self.put_number(b'$', prefix.len() + key.len());
        for part in [prefix, key, "\r\n"] {
            self.text.extend_from_slice(part.as_bytes());
        }
        for argument in arguments {
            self.put(argument);
        }
    }

    /// Adds one that has no key.
    pub fn add_plain(&mut self, words: &[&str]) {
        self.count += 1;
        self.put_number(b'*', words.len());
        for word in words {
            self.put(word);
        }
    }

    fn put(&mut self, word: &str) {
        self.put_number(b'$', word.len());
        self.text.extend_from_slice(word.as_bytes());
        self.text.extend_from_slice(b"\r\n");
    }

    fn put_number(&mut self, kind: u8, number: usize) {
        self.text.push(kind);
        self.text.extend_from_slice(number.to_string().as_bytes());
        self.text.extend_from_slice(b"\r\n");
    }
}

impl Bulk {
    /// Connects, authenticates and selects the database.
    pub async fn open(server: &Server, limit: Duration) -> Result<Self, StoreError> {
        let password = server.login.password().await;
        let password = password.map_err(|cause| StoreError::PasswordFile { server: server.to_string(), cause })?;
        let stream = connect(server, limit).await?;
        let wire = Wire { server: server.clone(), stream, input: BytesMut::new() };
        let mut bulk = Self { server: server.clone(), wire: Some(wire), walk: None, ahead: None };
        let mut commands = Commands::default();
        if let Some(password) = password {
            let user = server.login.user.as_deref();
            let words = ["AUTH"].into_iter().chain(user).chain([&*password.0]);
            commands.add_plain(&words.collect::<Vec<_>>());
        }
        if server.database != 0 {
            commands.add_plain(&["SELECT", &server.database.to_string()]);
        }
        for reply in bulk.ask(&commands, limit).await? {
            unless_error(server, reply)?;
        }
        Ok(bulk)
    }

    /// Sends commands, and waits for as many replies. The limit is for each silence of the server's.
    pub async fn ask(&mut self, commands: &Commands, limit: Duration) -> Result<Vec<BytesFrame>, StoreError> {
        if let Some(ahead) = self.ahead.take() {
            self.ahead = Some(Ahead::Arrived(self.arrive(ahead).await?));
        }
        let mut wire = self.wire.take().ok_or_else(|| given_up(&self.server))?;
        wire.send(commands, limit).await?;
        let replies = wire.replies(commands.count, limit).await?;
        self.wire = Some(wire);
        Ok(replies)
    }

    /// Sends commands whose replies are taken later, so that server and parser have something to do meanwhile.
    pub async fn ask_ahead(&mut self, commands: &Commands, limit: Duration) -> Result<(), StoreError> {
        let mut wire = self.wire.take().ok_or_else(|| given_up(&self.server))?;
        wire.send(commands, limit).await?;
        let count = commands.count;
        let coming = tokio::spawn(async move {
            let replies = wire.replies(count, limit).await?;
            Ok((wire, replies))
        });
        self.ahead = Some(Ahead::Coming(AbortOnDropHandle::new(coming)));
        Ok(())
    }

    /// The replies to what was asked for ahead; none if nothing was.
    pub async fn take_ahead(&mut self) -> Result<Vec<BytesFrame>, StoreError> {
        match self.ahead.take() {
            Some(ahead) => self.arrive(ahead).await,
            None => Ok(Vec::new()),
        }
    }

    async fn arrive(&mut self, ahead: Ahead) -> Result<Vec<BytesFrame>, StoreError> {
        match ahead {
            Ahead::Arrived(replies) => Ok(replies),
            Ahead::Coming(coming) => {
                let (wire, replies) = coming.await.map_err(|_| given_up(&self.server))??;
                self.wire = Some(wire);
                Ok(replies)
            }
        }
    }

    /// Begins a walk.
    pub fn walk(&mut self, effort: u32, limit: Duration) -> Result<(), StoreError> {
        let wire = self.wire.take().ok_or_else(|| given_up(&self.server))?;
        self.walk = Some(Walk::begin(wire, effort, limit));
        Ok(())
    }

    /// The next page of the walk; `None` at its end.
    pub async fn listed(&mut self) -> Result<Option<Listed>, StoreError> {
        let Some(walk) = &mut self.walk else { return Ok(None) };
        if let Some(listed) = walk.next().await {
            return Ok(Some(listed));
        }
        if let Some(walk) = self.walk.take() {
            self.wire = Some(walk.end(&self.server).await?);
        }
        Ok(None)
    }

    /// Proves that the connection is answered, and keeps it from being idle, which servers may not suffer for long. A walk
    /// does so itself.
    pub async fn ping(&mut self, limit: Duration) -> Result<(), StoreError> {
        if self.walk.is_some() {
            return Ok(());
        }
        let mut commands = Commands::default();
        commands.add_plain(&["PING"]);
        // What the answer is does not matter.
        self.ask(&commands, limit).await.map(drop)
    }
}

impl Wire {
    /// Sends commands. The limit is for each silence of the server's.
    pub async fn send(&mut self, commands: &Commands, limit: Duration) -> Result<(), StoreError> {
        let writing = timeout(limit, self.stream.write_all(&commands.text)).await;
        writing.map_err(|_| silent(&self.server, limit))?.map_err(|error| broken(&self.server, error))
    }

    /// Waits for the next so many replies.
    pub async fn replies(&mut self, count: usize, limit: Duration) -> Result<Vec<BytesFrame>, StoreError> {
        let Self { server, stream, input } = self;
        let mut replies = Vec::with_capacity(count);
        let mut reading = Replies::within(BOUNDS);
        let mut taken = 0usize;
        loop {
            while replies.len() < count {
                let length = reading.next(input).map_err(|_| protocol(server, "a pipeline"))?;
                let Some(length) = length else { break };
                taken = taken.saturating_add(length);
                if taken > BOUNDS.bytes {
                    return Err(protocol(server, "a pipeline"));
                }
                let reply = decode_bytes(&input.split_to(length).freeze()).ok().flatten();
                let (reply, _) = reply.ok_or_else(|| protocol(server, "a pipeline"))?;
                replies.push(reply);
            }
            if replies.len() == count {
                break;
            }
            input.reserve(reading.wanted().clamp(LEAST_ROOM, MOST_ROOM));
            let reading = timeout(limit, stream.read_buf(input)).await;
            match reading.map_err(|_| silent(server, limit))? {
                Ok(0) => return Err(broken(server, io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(broken(server, error)),
            }
        }
        // The memory of a large reply is not kept.
        if input.is_empty() {
            *input = BytesMut::new();
        }
        Ok(replies)
    }
}

fn broken(server: &Server, error: io::Error) -> StoreError {
    StoreError::from_fred(server, error.into())
}

/// An exchange was given up before, so that the connection cannot be used.
pub(super) fn given_up(server: &Server) -> StoreError {
    broken(server, io::ErrorKind::BrokenPipe.into())
}

fn silent(server: &Server, limit: Duration) -> StoreError {
    StoreError::Silent { server: server.to_string(), limit }
}

/// What a reply may come to, and all that are waited for at once. Redis itself lets no value grow beyond 512 MiB.
const BOUNDS: Bounds = Bounds { bytes: 1 << 30, elements: 1 << 26 };

/// Bytes to make room for at least and at most, before a read.
const LEAST_ROOM: usize = 64 * 1024;
const MOST_ROOM: usize = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_arrays_of_words() {
        let mut commands = Commands::default();
        commands.add("LRANGE", ["frontend:", "\u{e9}"], &["0", "-1"]);
        commands.add_plain(&["PING"]);
        let text = "*4\r\n$6\r\nLRANGE\r\n$11\r\nfrontend:\u{e9}\r\n$1\r\n0\r\n$2\r\n-1\r\n*1\r\n$4\r\nPING\r\n";
        assert_eq!((str::from_utf8(&commands.text), commands.count), (Ok(text), 2));
    }
}
