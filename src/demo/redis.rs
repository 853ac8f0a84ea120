//! A `redis-server` of one's own, for as long as it is needed.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tempfile::TempDir;

/// A running `redis-server` on a loopback port, with its files in a folder of its own. Killed when dropped.
#[derive(Debug)]
pub struct PrivateRedis {
    process: Child,
    port: u16,
    folder: TempDir,
}

impl PrivateRedis {
    /// Starts a server with further `redis-server` arguments, and waits until it answers. Its port is chosen at random:
    /// where that is taken, the server says so by ending, and another is tried.
    ///
    /// # Errors
    /// When there is no `redis-server` in the PATH, or it does not come up.
    pub fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        for _ in 0..PORT_ATTEMPTS {
            let random = u16::from_le_bytes([uuid::Uuid::new_v4().as_bytes()[0], uuid::Uuid::new_v4().as_bytes()[1]]);
            let port = FIRST_PORT + random % PORTS;
            if let Some(server) = Self::start_on(port, arguments)? {
                return Ok(server);
            }
        }
        bail!("no free port for redis-server was found")
    }

    /// Starts a server on this port; `None` if the port is taken.
    ///
    /// # Errors
    /// As [`PrivateRedis::start`].
    pub fn start_on(port: u16, arguments: &[&str]) -> anyhow::Result<Option<Self>> {
        let folder = tempfile::tempdir().context("cannot make a folder for Redis")?;
        let process = spawn(port, folder.path(), arguments)?;
        let mut server = Self { process, port, folder };
        Ok(server.wait_until_ready()?.then_some(server))
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Kills the server (SIGKILL) and starts it again on the same port, with whatever data it had saved.
    ///
    /// # Errors
    /// As [`PrivateRedis::start`].
    pub fn restart(&mut self, arguments: &[&str]) -> anyhow::Result<()> {
        self.kill();
        self.process = spawn(self.port, self.folder.path(), arguments)?;
        self.wait_until_ready()?.then_some(()).context("redis-server did not come back")
    }

    /// Kills the server (SIGKILL).
    pub fn kill(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Sends one command, whose arguments must not contain white space, and returns the first line of the reply.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub fn command(&self, words: &[&str]) -> io::Result<String> {
        let mut connection = TcpStream::connect(("127.0.0.1", self.port))?;
        connection.set_read_timeout(Some(START_LIMIT))?;
        connection.write_all(format!("{}\r\n", words.join(" ")).as_bytes())?;
        let mut reply = String::new();
        BufReader::new(connection).read_line(&mut reply)?;
        Ok(reply.trim_end().to_owned())
    }

    /// Waits until what is written here arrives at `replica` at once. A master holds commands back until a new replica's first
    /// acknowledgement, for up to a second.
    ///
    /// # Errors
    /// When either cannot be reached, or nothing arrives.
    pub fn wait_for_replica(&self, replica: &Self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        // The first may come with the replica's copy of the data.
        for _ in 0..2 {
            let probe = format!("planb:probe:{}", uuid::Uuid::new_v4());
            self.command(&["SET", &probe, "1", "EX", "60"])?;
            while replica.command(&["EXISTS", &probe])? != ":1" {
                anyhow::ensure!(
                    Instant::now() < deadline,
                    "the replica did not follow within {START_LIMIT:?}; the master said:\n{}\nand the replica:\n{}",
                    self.log(),
                    replica.log()
                );
                std::thread::sleep(LOOK_EVERY);
            }
        }
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join(LOG)).unwrap_or_default()
    }

    /// Waits until the server says in its log that it is ready; `false` if it ended instead. Answers on the port prove nothing:
    /// they may come from whoever has taken it.
    fn wait_until_ready(&mut self) -> anyhow::Result<bool> {
        let log = self.folder.path().join(LOG);
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            // There is no log until the server has begun.
            if fs::read_to_string(&log).is_ok_and(|text| text.contains("Ready to accept connections")) {
                return Ok(true);
            }
            if self.process.try_wait()?.is_some() {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        bail!("redis-server was not ready within {START_LIMIT:?}")
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(port: u16, folder: &Path, arguments: &[&str]) -> anyhow::Result<Child> {
    use std::os::unix::process::CommandExt;

    // What an earlier run said there must not be taken for this one's.
    match fs::remove_file(folder.join(LOG)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0"])
        .arg("--dir")
        .arg(folder)
        .arg("--logfile")
        .arg(folder.join(LOG))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Out of reach of the terminal's Ctrl-C, so that the proxy can drain first.
        .process_group(0)
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                anyhow::anyhow!(
                    "redis-server is not in the PATH; install it, for example with: apt-get install redis-server"
                )
            }
            _ => anyhow::Error::new(error).context("cannot start redis-server"),
        })
}

/// Below the range that the kernel gives to clients, so that no outgoing connection takes a port in between.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 12_000;
const PORT_ATTEMPTS: usize = 20;

/// The server's log, in its folder.
const LOG: &str = "redis.log";

/// How often a replica is looked at: each look is a connection.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long a server may take to come up, or a replica to follow.
const START_LIMIT: Duration = Duration::from_mins(1);
