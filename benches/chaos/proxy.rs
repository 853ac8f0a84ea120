//! The proxy as a process.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use tempfile::TempDir;
use tokio::{net::TcpStream, runtime::Handle};

use super::http::get;

/// The proxy under test. Killed when dropped.
pub struct Proxy {
    /// Where clients connect.
    pub address: SocketAddr,
    metrics: SocketAddr,
    process: Child,
    log: PathBuf,
    _folder: TempDir,
}

impl Proxy {
    /// Starts it with these arguments, and waits until it serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(executable: &Path, arguments: &[String], log: Option<PathBuf>) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let log = log.unwrap_or_else(|| folder.path().join("log"));
        let process = Command::new(executable)
            .env_clear()
            // It names each drift, not just the first of several.
            .env("RUST_LOG", "error,planb=info,planb::sync::syncer::convergence=debug")
            .current_dir(folder.path())
            .args(["--listen=127.0.0.1:0", "--metrics-address=127.0.0.1:0", "--access-log=none"])
            .args(arguments)
            .stdin(Stdio::null())
            // Not a pipe, which somebody would have to empty.
            .stderr(File::create(&log)?)
            // Out of reach of the terminal's Ctrl-C: what it says while others end is no finding.
            .process_group(0)
            .spawn()?;
        let nowhere = (Ipv4Addr::LOCALHOST, 0).into();
        let mut proxy = Self { address: nowhere, metrics: nowhere, process, log, _folder: folder };
        let began = Instant::now();
        loop {
            let text = proxy.log();
            if let Some(line) = text.lines().find(|line| line.contains("listening "))
                && text.ends_with('\n')
            {
                let address = |name| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse().ok());
                proxy.address = address("address=").context("no address")?;
                proxy.metrics = address("metrics=").context("no address for metrics")?;
                return Ok(proxy);
            }
            ensure!(began.elapsed() < Duration::from_secs(20), "the proxy does not listen: {text}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// The value of a metric without labels.
    ///
    /// # Errors
    /// When it does not tell.
    pub fn metric(&self, runtime: &Handle, name: &str) -> anyhow::Result<f64> {
        let page = runtime.block_on(async {
            let mut stream = TcpStream::connect(self.metrics).await?;
            tokio::time::timeout(Duration::from_secs(10), get(&mut stream, "metrics", "/metrics"))
                .await?
                .context("metrics")
        })?;
        let value = page.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("there is no metric {name}"))?.parse()?)
    }

    /// The most memory that it has had, in megabytes.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap_or_default();
        let peak =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
        peak.unwrap_or(0) / 1024
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
