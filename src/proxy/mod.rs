//! From an accepted connection to a finished response.
//!
//! Each core has one [`run_worker`]: a single-threaded runtime with a listening socket and a pool of backend connections of
//! its own, so that no request ever crosses a thread. What the workers share is read-only or atomic. This module knows
//! nothing of Redis: it reads [`Routes`](crate::routing::Routes), and says what died into a channel.

mod client;
mod client_timeouts;
mod config;
mod crowd;
mod downstream;
mod error;
mod error_pages;
mod exchange;
mod forward;
mod outbox;
mod reading;
mod request_id;
mod response_body;
mod retry;
mod shedding;
mod sticky;
mod timers;
mod trailers;
mod tunnel;
mod upload;
mod upstream;
mod via;
mod worker;

use std::{io, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet, LocalSet},
};

use crate::{drain::Drain, telemetry::settle_tally};

pub use client_timeouts::ClientTimeouts;
pub use config::{Config, LoadBalancing};
pub use crowd::Room;
pub use downstream::{Door, Listeners, Protocol};
pub use error_pages::ErrorPages;
pub use request_id::RequestIdHeader;
pub use shedding::Shedding;
pub use sticky::Sticky;
use upstream::Pool;
pub use upstream::Traffic;
pub use via::Via;
pub use worker::Shared;
use worker::Worker;

/// Serves the connections of its listening sockets until the drain is over. Blocks the thread.
///
/// # Errors
/// When the runtime cannot be made, or a socket cannot be used.
pub fn run_worker(shared: Arc<Shared>, doors: Vec<Door>, drain: &Drain) -> io::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().on_thread_park(settle_tally).build()?;
    let local = LocalSet::new();
    let result = local.block_on(&runtime, async {
        let worker = Rc::new(Worker::new(shared, drain.clone()));
        let crowd = [
            tokio::task::spawn_local(make_room(Rc::clone(&worker))),
            tokio::task::spawn_local(shed(Rc::clone(&worker))),
        ];
        let reaper = tokio::task::spawn_local(reap(Rc::clone(&worker.pool), worker.shared.routes.retirements()));
        let mut accepting = JoinSet::new();
        for door in doors {
            accepting.spawn_local(downstream::accept(Rc::clone(&worker), door));
        }
        while let Some(ended) = accepting.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        worker.tasks.close();
        tokio::select! {
            () = worker.tasks.wait() => {}
            () = drain.expired() => {}
        }
        reaper.abort();
        crowd.iter().for_each(JoinHandle::abort);
        Ok(())
    });
    drop(local);
    settle_tally();
    runtime.shutdown_background();
    result
}

/// Lets waiting connections go for new ones that another worker has no room for.
async fn make_room(worker: Rc<Worker>) {
    loop {
        // It hears what is called while others go.
        let wanted = worker.shared.room.wanted();
        while worker.crowd.make_room() {}
        wanted.await;
    }
}

/// Lets connections go when memory is short.
async fn shed(worker: Rc<Worker>) {
    let mut shortages = worker.shared.room.shortages();
    while shortages.changed().await.is_ok() {
        let shortage = *shortages.borrow_and_update();
        worker.crowd.shed(shortage);
    }
}

async fn reap(pool: Rc<Pool>, mut retirements: watch::Receiver<()>) {
    let mut ticks = tokio::time::interval(REAP_EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            // The sender is as old as the routing table, and that outlives the worker.
            _ = retirements.changed() => {}
        }
        pool.reap();
        settle_tally();
        tokio::time::sleep(REAP_PAUSE).await;
    }
}

/// How often idle connections to backends are looked over, retirements aside.
const REAP_EVERY: Duration = Duration::from_secs(1);

/// The least time between two such looks: backends may be retired hundreds of times a second, and there may be thousands of
/// connections to look at.
const REAP_PAUSE: Duration = Duration::from_millis(20);
