//! The backends as seen from outside: processes that are started, frozen and ended.

use std::{
    env,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpListener},
    os::unix::process::CommandExt,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use super::{
    backend::{FRESH, READY},
    book::{Book, End, Receipt},
    dice::Dice,
    signal::signal,
    sockets::waiting_at,
};

/// All backends. Killed when dropped.
pub struct Fleet {
    backends: Vec<Backend>,
    readers: Vec<JoinHandle<()>>,
    book: Arc<Book>,
    settles: Duration,
}

/// One backend.
pub struct Backend {
    /// What it calls itself.
    pub name: String,
    /// What the list in Redis calls it.
    pub url: String,
    /// What it is doing.
    pub state: State,
    /// Whether the list names it.
    pub is_listed: bool,
    /// Since when it is up, listed and running.
    well_since: Instant,
    port: u16,
    life: usize,
    process: Option<Child>,
}

/// What a backend is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It serves.
    Up,
    /// It exists, but does nothing.
    Frozen,
    /// It serves what it has, and takes on nothing new.
    Ending,
    /// It is not there.
    Down,
}

impl Fleet {
    /// Starts them all. A proxy may take one for dead that is well for less than `settles`.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start(book: &Arc<Book>, settles: Duration, dice: &mut Dice) -> anyhow::Result<Self> {
        let mut fleet = Self { backends: Vec::new(), readers: Vec::new(), book: Arc::clone(book), settles };
        for number in 0..BACKENDS {
            let port = free_port(dice).context("there is no free port for a backend")?;
            fleet.backends.push(Backend {
                name: format!("backend-{number}"),
                url: format!("http://127.0.0.1:{port}"),
                state: State::Down,
                is_listed: true,
                well_since: Instant::now(),
                port,
                life: 0,
                process: None,
            });
            fleet.revive(number)?;
        }
        Ok(fleet)
    }

    /// All of them.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// Those that could be taken away, so that one is left that serves, and that no proxy can take for dead.
    pub fn expendable(&self, is_wanted: impl Fn(&Backend) -> bool) -> Vec<usize> {
        let settled = |backend: &Backend| backend.is_well() && backend.well_since.elapsed() >= self.settles;
        let settled: Vec<usize> = (0..self.backends.len()).filter(|&number| settled(&self.backends[number])).collect();
        let others = |number: usize| settled.iter().any(|&other| other != number);
        (0..self.backends.len()).filter(|&number| is_wanted(&self.backends[number]) && others(number)).collect()
    }

    /// Kills one (SIGKILL).
    ///
    /// # Errors
    /// When it is not there.
    pub fn kill(&mut self, number: usize) -> anyhow::Result<()> {
        let backend = &mut self.backends[number];
        let is_frozen = backend.state == State::Frozen;
        self.book.end(backend.life, if is_frozen { End::KilledFrozen } else { End::Killed });
        if is_frozen {
            self.book.pages().waiting += waiting_at(backend.port)?;
        }
        backend.state = State::Down;
        let mut process = backend.process.take().context("there is nothing to kill")?;
        process.kill()?;
        process.wait()?;
        self.book.gone(backend.life);
        Ok(())
    }

    /// Freezes one (SIGSTOP).
    ///
    /// # Errors
    /// When it is not there.
    pub fn freeze(&mut self, number: usize) -> anyhow::Result<()> {
        self.backends[number].state = State::Frozen;
        signal(self.backends[number].pid()?, "STOP")
    }

    /// Lets one go on (SIGCONT).
    ///
    /// # Errors
    /// When it is not there.
    pub fn thaw(&mut self, number: usize) -> anyhow::Result<()> {
        signal(self.backends[number].pid()?, "CONT")?;
        self.backends[number].state = State::Up;
        self.backends[number].well_since = Instant::now();
        Ok(())
    }

    /// Asks one to end (SIGTERM).
    ///
    /// # Errors
    /// When it is not there.
    pub fn ask_to_end(&mut self, number: usize) -> anyhow::Result<()> {
        self.book.end(self.backends[number].life, End::Asked);
        self.backends[number].state = State::Ending;
        signal(self.backends[number].pid()?, "TERM")
    }

    /// Whether one that was asked to end has ended.
    ///
    /// # Errors
    /// When it did not end well.
    pub fn has_ended(&mut self, number: usize) -> anyhow::Result<bool> {
        let backend = &mut self.backends[number];
        let Some(process) = &mut backend.process else { return Ok(true) };
        let Some(status) = process.try_wait()? else { return Ok(false) };
        ensure!(status.success(), "{} ended with {status}", backend.name);
        self.book.gone(backend.life);
        backend.process = None;
        backend.state = State::Down;
        Ok(true)
    }

    /// Starts one again, and waits until it listens.
    ///
    /// # Errors
    /// When it does not.
    pub fn revive(&mut self, number: usize) -> anyhow::Result<()> {
        let backend = &mut self.backends[number];
        let mut process = Command::new(env::current_exe()?)
            .args(["backend", &backend.name, &backend.port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Out of reach of the terminal's Ctrl-C. Should the campaign end without a word while it is frozen, the system
            // hangs up on the group, because it is orphaned then.
            .process_group(0)
            .spawn()?;
        let said = process.stdout.take().context("there is no pipe")?;
        backend.process = Some(process);
        backend.life = self.book.begin(number);
        let (ready, is_ready) = channel();
        let (book, life) = (Arc::clone(&self.book), backend.life);
        self.readers.push(thread::spawn(move || read(said, &book, life, &ready)));
        is_ready.recv_timeout(START_LIMIT).with_context(|| format!("{} does not start", backend.name))?;
        backend.state = State::Up;
        backend.well_since = Instant::now();
        Ok(())
    }

    /// Takes note of whether the list names one.
    pub fn set_listed(&mut self, number: usize, is_listed: bool) {
        self.backends[number].is_listed = is_listed;
        self.backends[number].well_since = Instant::now();
    }

    /// Ends them all, waits until all that they have said is written down, and returns what is left of them.
    pub fn finish(mut self) -> Vec<Backend> {
        self.end();
        // A reader that panicked has written down less, which shows.
        self.readers.drain(..).for_each(|reader| drop(reader.join()));
        std::mem::take(&mut self.backends)
    }

    fn end(&mut self) {
        for process in self.backends.iter_mut().filter_map(|backend| backend.process.as_mut()) {
            // It may have ended already, which is as good.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.end();
    }
}

impl Backend {
    /// Whether it is up and listed.
    pub fn is_well(&self) -> bool {
        self.state == State::Up && self.is_listed
    }

    fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.process.as_ref().context("there is no process")?.id())
    }
}

/// Writes down what one life of a backend says, to its end.
fn read(said: ChildStdout, book: &Book, life: usize, ready: &Sender<()>) {
    for line in BufReader::new(said).lines().map_while(Result::ok) {
        if line == READY {
            // Whoever waits for it may have given up.
            let _ = ready.send(());
        } else if let Some((id, connection)) = line.split_once(' ')
            && let Ok(id) = id.parse()
        {
            book.received(id, Receipt { life, is_fresh: connection == FRESH });
        }
    }
}

/// A port below the range that the kernel gives to clients, so that nobody takes it while a backend is away.
fn free_port(dice: &mut Dice) -> Option<u16> {
    let mut ports = (0..100).map(|_| FIRST_PORT + u16::try_from(dice.below(PORTS)).unwrap_or_default());
    ports.find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
}

/// How many backends there are.
pub const BACKENDS: usize = 6;

const FIRST_PORT: u16 = 12_000;
const PORTS: usize = 8_000;

/// How long a backend may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);
