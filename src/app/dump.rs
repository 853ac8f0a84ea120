//! What the process is doing, in words for an operator who asks by a signal.

use std::{
    fmt::Write,
    process,
    time::{Duration, Instant},
};

use super::State;
use crate::telemetry::{Lines, Tasks};

/// What a dump is made of. Cloning is cheap.
#[derive(Clone)]
pub struct Dump {
    /// Where it goes.
    pub output: Lines,
    /// When the process began.
    pub began: Instant,
    /// The table, links, connections, pools and requests.
    pub state: State,
    /// What runs in the background.
    pub tasks: Tasks,
}

impl Dump {
    /// Queues the dump.
    pub fn write(&self) {
        self.output.write(self.text().into_bytes());
    }

    fn text(&self) -> String {
        let State { routes, clock, health, metrics, activities } = &self.state;
        let mut text = String::new();
        let mut line = |what: &str, says: String| writeln!(text, "{what}: {says}").expect("a string takes everything");
        let version = env!("CARGO_PKG_VERSION");
        line("planb", format!("version {version}, process {}, up {:?}", process::id(), whole(self.began.elapsed())));
        let (frontends, held) = (routes.load().len(), metrics.held.get());
        let freshness = if health.is_loaded() {
            format!("agreed with it {:.1?} ago", health.age(clock.now()))
        } else {
            "not loaded yet".to_owned()
        };
        line("table", format!("{frontends} frontends, {held} kept without Redis, {freshness}"));
        line("read Redis", health.problem().map_or_else(|| "usable".to_owned(), |problem| problem.to_string()));
        line("write Redis", format!("{} dead marks not recorded yet", metrics.marks_pending.get()));
        let connections = [metrics.connections_open.get(), metrics.tunnels_open.get()];
        line("connections", format!("{} open, {} tunnels", connections[0], connections[1]));
        let phases = activities.totals().map(|(phase, count)| format!("{count} {phase}"));
        line("requests", phases.join(", "));
        line(
            "connections to backends",
            format!(
                "{} idle, {} made, {} times used again",
                metrics.pool.idle.get(),
                metrics.pool.dials.get(),
                metrics.pool.reuses.get(),
            ),
        );
        write!(text, "tasks:\n{}", self.tasks).expect("a string takes everything");
        text.truncate(text.trim_end().len());
        text
    }
}

fn whole(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs())
}
