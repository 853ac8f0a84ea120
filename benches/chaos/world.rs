//! The servers under attack, and what an operator can do to them.

use std::{
    fs, io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use planb::demo::PrivateRedis;

use super::{
    load::Load,
    redis::{Command, Redis},
    relay::Relay,
    stop::Stop,
    writer::Editing,
};

/// All that a fault can touch.
pub struct World {
    /// The Redis that is written to.
    pub master: PrivateRedis,
    /// The Redis that the proxy reads from.
    pub replica: PrivateRedis,
    /// The way from the proxy to the replica.
    pub relay: Relay,
    /// The edits that go on meanwhile.
    pub editing: Editing,
    /// The clients.
    pub load: Arc<Load>,
    /// The wish to end.
    pub stop: Arc<Stop>,
}

/// One of the two Redis servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one that is written to.
    Master,
    /// The one that is read from.
    Replica,
}

impl World {
    /// Opens a connection for commands of the operator.
    ///
    /// # Errors
    /// When the server does not listen.
    pub fn connect(&self, target: Target) -> io::Result<Redis> {
        let server = if target == Target::Master { &self.master } else { &self.replica };
        Redis::connect(server.port(), &self.stop)
    }

    /// Gives a command of the operator, who tries again while the server cannot take it.
    ///
    /// # Errors
    /// When it never can.
    pub fn order(&self, target: Target, words: &[&str]) -> anyhow::Result<()> {
        let deadline = Instant::now() + ORDER_LIMIT;
        loop {
            match self.connect(target).and_then(|mut redis| redis.ask(words)) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => self.stop.pause(Duration::from_millis(50))?,
            }
        }
    }

    /// One of the servers.
    pub fn server(&mut self, target: Target) -> &mut PrivateRedis {
        if target == Target::Master { &mut self.master } else { &mut self.replica }
    }

    /// Kills a server, if it is not dead yet, and starts it on what it has on disk.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self, target: Target, loads_slowly: bool) -> anyhow::Result<()> {
        let port = self.master.port().to_string();
        let mut arguments = match target {
            Target::Master => MASTER.to_vec(),
            Target::Replica => [REPLICA, &["--replicaof", "127.0.0.1", &port]].concat(),
        };
        if loads_slowly {
            // A microsecond's sleep for each key, which is fifty in truth.
            arguments.extend(["--key-load-delay", "1", "--loading-process-events-interval-bytes", "1024"]);
        }
        self.server(target).restart(&arguments)?;
        if loads_slowly {
            self.order(target, &["CONFIG", "SET", "key-load-delay", "0"])?;
        }
        Ok(())
    }

    /// Writes the whole model. A client that is killed meanwhile tries again.
    ///
    /// # Errors
    /// When the master refuses.
    pub fn write_all(&self, before: &[Command]) -> anyhow::Result<()> {
        let mut writer = self.editing.writer();
        for _ in 0..3 {
            if writer.write_all(before).is_ok() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(writer.write_all(before)?)
    }
}

/// Removes what a server has on disk.
pub fn forget(server: &PrivateRedis) -> io::Result<()> {
    for entry in fs::read_dir(server.folder())? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(path)?;
        } else {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Arguments of a master. What it has acknowledged survives SIGKILL: it is written at once, though never synced. With the
/// usual everysec, a slow disk puts off even the writing, for up to two seconds.
pub const MASTER: &[&str] = REPLICA;

/// Arguments of a replica, but for its master.
pub const REPLICA: &[&str] = &[
    "--appendonly",
    "yes",
    "--appendfsync",
    "no",
    // What a burst leaves behind would otherwise take longer to load than a server may take to come up.
    "--auto-aof-rewrite-min-size",
    "4mb",
    "--notify-keyspace-events",
    "KA",
];

/// How long a server may take until it takes an operator's command.
const ORDER_LIMIT: Duration = Duration::from_secs(20);
