//! A campaign of random faults against real processes: two Redis servers, the proxy, backends, clients, and a relay between
//! the proxy and the replica that it reads from.
//!
//! What must hold throughout, whatever Redis does:
//!
//! - A request to a host that is never edited is answered by one of that host's backends. There is one exception, because
//!   the operator's word counts: a bare FLUSHDB takes these hosts away by order, so their failures are pardoned from just
//!   before it until the next calm has converged. FLUSHDB in one transaction with their renewal, SWAPDB with a full copy,
//!   and a master that loses everything, are not pardoned. A master that has lost everything gets the never-edited hosts
//!   back first, as one transaction: the proxy believes a server that lacks less than half.
//! - A request to any other host gets a legal answer: a backend's, 400 or 503.
//! - Once the faults are lifted and the replica agrees with the model, so does the proxy, within a bound.
//! - The proxy's own proof of convergence finds no drift. One thing may be counted, and is shown apart: a host that a test
//!   has put an EXPIRE on, since a replica hides an expired key before its master announces the deletion.
//!
//! Faults and edits each come from a stream of their own, which depends on the seed alone; how many of the edits fall within
//! a fault depends on the machine. A further kind of fault is a variant of [`faults::Fault`] with its
//! place in the deck, its course and its name; what it needs of servers, sentinels say, goes into [`world::World`].

#![expect(clippy::print_stdout, reason = "the report is the point")]

mod backends;
mod campaign;
mod course;
mod dice;
mod faults;
mod http;
mod load;
mod model;
mod proxy;
mod redis;
mod relay;
mod report;
mod signal;
mod stop;
mod world;
mod writer;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;

use campaign::Campaign;
use report::Report;

/// A campaign of random faults against the proxy and its Redis.
#[derive(Parser)]
struct Arguments {
    /// What the faults and the edits are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long to inflict faults; the calm after the last one comes on top
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Hosts that are edited
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(16..))]
    hosts: u64,
    /// Where the proxy's log is kept [default: nowhere]
    #[arg(long)]
    log: Option<PathBuf>,
    /// The proxy's executable
    #[arg(long, default_value = env!("CARGO_BIN_EXE_planb"))]
    planb: PathBuf,
    /// What cargo bench adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let campaign = Campaign {
        seed: arguments.seed,
        time: Duration::from_secs(arguments.seconds),
        hosts: usize::try_from(arguments.hosts)?,
        log: arguments.log,
        planb: arguments.planb,
    };
    course::run(move |runtime, stop| campaign.run(runtime, stop), Report::is_clean)
}
