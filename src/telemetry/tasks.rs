//! The tasks that a process has in the background, by name.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The names of tasks, and what has become of each. Cloning shares them.
#[derive(Clone, Default)]
pub struct Tasks(Arc<Mutex<Vec<Task>>>);

struct Task {
    name: &'static str,
    since: Instant,
    is_running: Arc<AtomicBool>,
}

impl Tasks {
    /// The same task, known by this name from when it is first polled until it ends, is dropped or panics.
    pub async fn named<F: Future>(self, name: &'static str, task: F) -> F::Output {
        let _running = self.begin(name);
        task.await
    }

    fn begin(&self, name: &'static str) -> Running {
        let is_running = Arc::new(AtomicBool::new(true));
        let task = Task { name, since: Instant::now(), is_running: Arc::clone(&is_running) };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        Running(is_running)
    }
}

impl fmt::Display for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for task in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let state = if task.is_running.load(Ordering::Relaxed) { "running" } else { "ended" };
            let age = Duration::from_secs(task.since.elapsed().as_secs());
            writeln!(f, "  {}: {state}, begun {age:?} ago", task.name)?;
        }
        Ok(())
    }
}

struct Running(Arc<AtomicBool>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_running_until_it_ends() {
        let tasks = Tasks::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(tasks.clone().named("inner", async {
            assert_eq!(tasks.to_string(), "  inner: running, begun 0ns ago\n");
        }));
        assert_eq!(tasks.to_string(), "  inner: ended, begun 0ns ago\n");
    }
}
