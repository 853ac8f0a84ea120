//! What happens when there is too little memory: clients go, those first who are missed the least.

use std::{sync::Arc, time::Duration};

use tracing::warn;

use super::crowd::{Room, Shortage};
use crate::{
    clock::Clock,
    memory,
    telemetry::{ErrorLog, Metrics, Subject},
};

/// Watches this process's memory, and has the workers let clients go while it is beyond the limit.
pub struct Shedding {
    /// Bytes.
    pub limit: u64,
    /// How many workers there are.
    pub workers: usize,
    /// What they know of it.
    pub room: Arc<Room>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
    /// Where it is told.
    pub errors: ErrorLog,
    /// The workers' clock.
    pub clock: Clock,
}

impl Shedding {
    /// Goes on for as long as the process.
    pub async fn run(self) {
        let Self { limit, room, metrics, errors, clock, .. } = self;
        let workers = self.workers.max(1) as u64;
        metrics.memory_limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
        loop {
            tokio::time::sleep(EVERY).await;
            let Some(resident) = memory::resident().filter(|&resident| resident > limit) else { continue };
            let (before, excess) = (metrics.clients.shed.get(), resident - limit + limit / MARGIN);
            room.run_short(Shortage {
                excess: excess / workers,
                allowance: limit / ALLOWANCE / workers,
                now: clock.now(),
            });
            // What is given back is not to be seen at once.
            tokio::time::sleep(PAUSE).await;
            let clients = metrics.clients.shed.get() - before;
            if clients > 0 && errors.spend(Subject::Memory) {
                warn!(resident, limit, clients, "there is too little memory: client connections are closed");
            }
        }
    }
}

/// Memory is brought below the limit by this part of it.
const MARGIN: u64 = 16;

/// Connections may have this part of the limit even where it is the table that takes too much.
const ALLOWANCE: u64 = 8;

/// How often memory is looked at.
const EVERY: Duration = Duration::from_millis(250);

/// How long what has been done about it takes to have an effect.
const PAUSE: Duration = Duration::from_secs(1);
