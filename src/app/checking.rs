//! The active health check as a part of the process.

use anyhow::{Context, bail};
use tokio::task::JoinHandle;

use crate::{
    drain::Drain,
    health::{Checker, RELEASE_LIMIT},
    telemetry::Tasks,
};

/// The task that checks dead backends, if there is one.
pub struct Checking(Option<JoinHandle<()>>);

impl Checking {
    /// Starts the task, which ends with the drain.
    pub fn start(checker: Option<Checker>, drain: Drain, tasks: Tasks) -> Self {
        Self(checker.map(|checker| tokio::spawn(tasks.named("health check", checker.run(drain)))))
    }

    /// Waits for the task's end, which must not come before the drain; for ever if there is no task.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        match &mut self.0 {
            None => std::future::pending().await,
            Some(task) => {
                task.await.context("the active health check panicked")?;
                bail!("the active health check ended")
            }
        }
    }

    /// Waits, in the drain, until the task has given up its leases.
    pub async fn finish(self) {
        if let Some(task) = self.0.filter(|task| !task.is_finished()) {
            // It began with the drain, and says itself what went wrong.
            let _ = tokio::time::timeout(RELEASE_LIMIT, task).await;
        }
    }
}
