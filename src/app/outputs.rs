//! Where lines go that are for the operator's files and pipes.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::telemetry::{Lines, LinesGuard, LogTarget, Telemetry};

/// The access log and the standard output, which may be one and the same.
pub struct Outputs {
    /// The access log.
    pub access_log: Lines,
    /// The standard output.
    pub standard: Lines,
    /// What keeps them open.
    _guards: [Option<LinesGuard>; 2],
}

impl Outputs {
    /// Opens both.
    ///
    /// # Errors
    /// When the access log cannot be written to.
    pub fn open(target: &LogTarget, telemetry: &Telemetry) -> anyhow::Result<Self> {
        // A write beyond the process's limit of a file's size ends the process, unless this signal is handled: then it is an
        // error.
        drop(signal(SignalKind::from_raw(libc::SIGXFSZ))?);
        let metrics = &telemetry.metrics;
        let (access_log, guard) = Lines::open(target, &metrics.access_lines).with_context(|| match target {
            LogTarget::File(path) => format!("cannot open the access log {}", path.display()),
            _ => "cannot open the access log".to_owned(),
        })?;
        let (standard, standard_guard) = match target {
            // With two writers, lines would be torn.
            LogTarget::Stdout => (access_log.clone(), None),
            _ => Lines::open(&LogTarget::Stdout, &metrics.dump_lines)?,
        };
        Ok(Self { access_log, standard, _guards: [guard, standard_guard] })
    }
}
