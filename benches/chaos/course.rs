//! A campaign from its start to the exit code of its process.

use std::{fmt::Display, process::ExitCode, sync::Arc};

use anyhow::Context;
use tokio::{
    runtime::{Builder, Handle},
    signal::unix::{SignalKind, signal},
};

use super::stop::Stop;

/// Runs a campaign, which an interrupt or a termination asks to stop, and prints its report. Whether that is clean decides
/// about the exit code.
pub fn run<R: Display + Send + 'static>(
    campaign: impl FnOnce(&Handle, &Arc<Stop>) -> anyhow::Result<R> + Send + 'static,
    is_clean: impl FnOnce(&R) -> bool,
) -> anyhow::Result<ExitCode> {
    let stop = Arc::new(Stop::default());
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report: anyhow::Result<R> = runtime.block_on(async {
        let (mut interrupted, mut terminated) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let (handle, stopping) = (Handle::current(), Arc::clone(&stop));
        let mut work = tokio::task::spawn_blocking(move || campaign(&handle, &stopping));
        let ended = tokio::select! {
            ended = &mut work => ended,
            // The servers are out of reach of the terminal's Ctrl-C; whoever started them stops them on the way out.
            _ = interrupted.recv() => { stop.request(); work.await }
            _ = terminated.recv() => { stop.request(); work.await }
        };
        ended.context("the campaign panicked")?
    });
    runtime.shutdown_background();
    match report {
        Ok(report) => {
            println!("{report}");
            Ok(if is_clean(&report) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        // Without the backtrace, which shows only where the campaign waited.
        Err(error) => {
            eprintln!("{error:#}");
            Ok(ExitCode::FAILURE)
        }
    }
}
