//! Signals to processes of one's own.

use std::process;

use anyhow::ensure;

/// Sends a signal, by its name without SIG.
///
/// # Errors
/// When there is no such process.
pub fn signal(pid: u32, name: &str) -> anyhow::Result<()> {
    let status = process::Command::new("kill").args([format!("-{name}"), pid.to_string()]).status()?;
    ensure!(status.success(), "cannot send SIG{name} to {pid}");
    Ok(())
}
