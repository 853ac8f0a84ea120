//! What the operator says to the process by signals.

use std::{io, sync::Arc};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use tracing::{info, warn};

use super::dump::Dump;
use crate::{
    clock,
    drain::{DRAIN_LIMIT, Drain},
    proxy::ErrorPages,
    telemetry::Lines,
    tls::Terminator,
};

/// Handles signals until the second one that asks to stop. None that is not handled is left to end the process.
pub fn heed_signals(
    drain: Drain,
    again: Reread,
    dump: Dump,
) -> io::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut user_1 = signal(SignalKind::user_defined1())?;
    let mut user_2 = signal(SignalKind::user_defined2())?;
    Ok(async move {
        let mut deadline = None;
        loop {
            let code = tokio::select! {
                _ = interrupt.recv() => 128 + SignalKind::interrupt().as_raw_value(),
                _ = terminate.recv() => 128 + SignalKind::terminate().as_raw_value(),
                _ = hang_up.recv() => {
                    again.now();
                    continue;
                }
                _ = user_1.recv() => {
                    // Hipache's rotation of logs sends this, the original's users ask for a dump by it.
                    info!("reopening the access log, and writing to standard output what the process is doing");
                    again.access_log.reopen();
                    dump.write();
                    continue;
                }
                _ = user_2.recv() => {
                    warn!("USR2 asks for a profile, which this version cannot take");
                    continue;
                }
                () = clock::reached(deadline) => {
                    warn!("the drain took too long; what is unfinished is given up");
                    drain.expire();
                    deadline = None;
                    continue;
                }
            };
            if drain.has_begun() {
                std::process::exit(code);
            }
            drain.begin();
            info!(limit = ?DRAIN_LIMIT, "draining: no new connections; requests and tunnels in flight may finish");
            deadline = Some(tokio::time::Instant::now() + DRAIN_LIMIT);
        }
    })
}

/// What is read, or opened, again when the operator says so.
#[derive(Clone)]
pub struct Reread {
    /// The access log.
    pub access_log: Lines,
    /// The folder of certificates, if there is one.
    pub folder: Arc<Notify>,
    /// The operator's pages for errors.
    pub error_pages: Option<Arc<ErrorPages>>,
    /// What holds the authorities of client certificates.
    pub terminator: Option<Arc<Terminator>>,
}

impl Reread {
    fn now(&self) {
        info!("reopening the access log, and reading certificate files and error pages again");
        self.access_log.reopen();
        self.folder.notify_one();
        if let Some(pages) = &self.error_pages {
            pages.reread();
        }
        if let Some(Err(error)) = self.terminator.as_ref().map(|terminator| terminator.reload()) {
            warn!("{error}; client certificates are verified as before");
        }
    }
}
