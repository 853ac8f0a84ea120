//! The tasks that must not end: whichever does ends the process.

use anyhow::{Context, bail};
use tokio::task::{JoinHandle, JoinSet};

use crate::{store::StoreError, telemetry::Tasks};

/// Tasks that run for as long as the process does.
#[derive(Default)]
pub struct Essential {
    running: JoinSet<anyhow::Result<()>>,
    names: Tasks,
}

/// The task that records dead marks. It is the only one that ends well, in a drain.
pub type ReporterTask = JoinHandle<Result<(), StoreError>>;

impl Essential {
    /// What the process's tasks are called.
    pub fn names(&self) -> &Tasks {
        &self.names
    }

    /// Starts a task.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.running.spawn(self.names.clone().named(name, task));
    }

    /// Starts a task that has nothing to say if it ends.
    pub fn spawn_endless(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(name, async {
            task.await;
            Ok(())
        });
    }

    /// Waits for the first of the tasks to end, the reporter among them.
    ///
    /// # Errors
    /// Always, since none may.
    pub async fn first_end(&mut self, reporter: &mut ReporterTask) -> anyhow::Result<()> {
        tokio::select! {
            Some(ended) = self.running.join_next() => {
                ended.context("an essential task panicked")??;
                bail!("an essential task ended")
            }
            ended = reporter => {
                ended.context("the task that records dead backends panicked")??;
                bail!("the task that records dead backends ended")
            }
        }
    }
}
