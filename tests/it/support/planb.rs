//! The proxy under test, as a process.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use super::{Client, PrivateRedis, get, signal, wait_until};

/// A running proxy. Killed when dropped; its log is printed if the test fails.
pub struct Planb {
    process: Child,
    log: Collected,
    stdout: Collected,
    unread: Option<ChildStdout>,
    address: Option<SocketAddr>,
    tls: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
}

/// How to start a proxy.
pub struct PlanbBuilder {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    shell: Option<String>,
    folder: Option<PathBuf>,
    reads_stdout: bool,
}

/// What one of the proxy's streams has said so far.
#[derive(Default)]
struct Collected {
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Planb {
    /// A proxy that reads from one Redis and writes to another, without an access log.
    pub fn builder(read: &PrivateRedis, write: &PrivateRedis) -> PlanbBuilder {
        Self::with(&[
            &format!("--read-redis-port={}", read.port()),
            &format!("--write-redis-port={}", write.port()),
            "--listen=127.0.0.1:0",
            "--metrics-address=127.0.0.1:0",
            "--access-log=none",
        ])
    }

    /// A proxy with exactly these flags.
    pub fn with(arguments: &[&str]) -> PlanbBuilder {
        PlanbBuilder {
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            environment: Vec::new(),
            shell: None,
            folder: None,
            reads_stdout: true,
        }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address.expect("the proxy has logged where it listens")
    }

    /// Where clients connect with TLS.
    pub fn tls_address(&self) -> SocketAddr {
        self.tls.expect("the proxy has an address for TLS")
    }

    /// Where operators connect.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics.expect("the proxy has a metrics address")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A fresh connection.
    pub fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    /// Which backend answers this host, as the body of its response.
    pub fn ask(&self, host: &str) -> String {
        get(self.address(), host, "/").text()
    }

    /// Waits until requests for the host have a route, whatever its backends answer.
    pub fn wait_for_route(&self, host: &str) {
        wait_until(&format!("{host} is routed"), || get(self.address(), host, "/").text() != "no such route");
    }

    /// Waits until requests for the host have no route.
    pub fn wait_for_no_route(&self, host: &str) {
        wait_until(&format!("{host} is not routed"), || get(self.address(), host, "/").text() == "no such route");
    }

    /// The value of a metric without labels, or with exactly these as written after its name.
    pub fn metric(&self, name: &str) -> f64 {
        self.metric_text(name).unwrap_or_else(|| panic!("there is no metric {name}")).parse().unwrap()
    }

    /// The value of a metric that is a whole number; 0 while it is not on the page.
    pub fn count(&self, name: &str) -> u64 {
        self.metric_text(name).map_or(0, |value| value.parse().unwrap())
    }

    fn metric_text(&self, name: &str) -> Option<String> {
        let page = self.metrics_page();
        page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned)
    }

    /// The whole page of metrics.
    pub fn metrics_page(&self) -> String {
        get(self.metrics_address(), "metrics", "/metrics").text()
    }

    /// Lines of standard error so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lines()
    }

    /// Lines of standard output so far.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.lines()
    }

    /// Waits until a line of standard error contains `text`, and returns it.
    pub fn wait_for_log(&self, text: &str) -> String {
        let find = || self.log().into_iter().find(|line| line.contains(text));
        wait_until(&format!("the log says {text:?}"), || find().is_some());
        find().unwrap()
    }

    /// Waits until a line of standard output contains `text`, and returns it.
    pub fn wait_for_stdout(&self, text: &str) -> String {
        let find = || self.stdout().into_iter().find(|line| line.contains(text));
        wait_until(&format!("standard output says {text:?}"), || find().is_some());
        find().unwrap()
    }

    /// Begins to read a standard output that was left unread.
    pub fn read_stdout(&mut self) {
        self.stdout = Collected::from(self.unread.take().expect("standard output is unread"));
    }

    /// Closes the other end of a standard output that was left unread.
    pub fn close_stdout(&mut self) {
        self.unread = None;
    }

    /// Sends a signal, by its name without SIG.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Waits for the process to end, and for what it said to be collected.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the proxy has ended", || {
            status = self.process.try_wait().unwrap();
            status.is_some() && self.log.is_complete() && self.stdout.is_complete()
        });
        status.unwrap()
    }

    /// Whether the process has ended.
    pub fn has_exited(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }
}

impl PlanbBuilder {
    /// Further flags; a later one overrides an earlier one only where the builder's own are not concerned.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        for argument in arguments {
            let name = argument.split('=').next().unwrap_or(argument);
            self.arguments.retain(|own| own.split('=').next() != Some(name));
            self.arguments.push((*argument).to_owned());
        }
        self
    }

    /// An environment variable.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The most file descriptors that it may have.
    pub fn descriptors(self, most: u32) -> Self {
        self.after(&format!("ulimit -n {most}"))
    }

    /// What a shell does before it becomes the proxy.
    pub fn after(mut self, command: &str) -> Self {
        self.shell = Some(command.to_owned());
        self
    }

    /// The folder it runs in.
    pub fn folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// Leaves its standard output unread.
    pub fn unread_stdout(mut self) -> Self {
        self.reads_stdout = false;
        self
    }

    /// Starts it and waits until it serves clients.
    pub fn start(self) -> Planb {
        let mut planb = self.spawn();
        planb.wait_until_listening();
        planb
    }

    /// Starts it and does not wait.
    pub fn spawn(self) -> Planb {
        let executable = env!("CARGO_BIN_EXE_planb");
        let mut command = match self.shell {
            None => Command::new(executable),
            Some(first) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("{first}; exec \"$0\" \"$@\""), executable]);
                shell
            }
        };
        if let Some(folder) = self.folder {
            command.current_dir(folder);
        }
        let mut process = command
            .args(self.arguments)
            .envs(self.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Collected::from(process.stderr.take().unwrap());
        let mut unread = process.stdout.take();
        let stdout = unread.take_if(|_| self.reads_stdout).map(Collected::from).unwrap_or_default();
        Planb { process, log, stdout, unread, address: None, tls: None, metrics: None }
    }
}

impl Planb {
    /// Waits until it serves clients.
    pub fn wait_until_listening(&mut self) {
        let line = self.wait_for_log("listening ");
        self.address = address_in(&line, "address=");
        self.tls = address_in(&line, "tls=");
        self.metrics = address_in(&line, "metrics=");
    }
}

impl Drop for Planb {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("--- the proxy's log:\n{}", self.log().join("\n"));
        }
    }
}

impl Collected {
    fn from(stream: impl std::io::Read + Send + 'static) -> Self {
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let collected = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                collected.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
            }
        });
        Self { lines, reader: Some(reader) }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Whether the stream has ended.
    fn is_complete(&self) -> bool {
        self.reader.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

fn address_in(line: &str, name: &str) -> Option<SocketAddr> {
    line.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse().ok())
}
