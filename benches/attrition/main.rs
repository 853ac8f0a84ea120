//! A campaign against backends: six of them, which are killed, frozen, asked to end, started again and taken off the list at
//! random, while clients ask two proxies 500 times a second. The proxies read from a replica of the Redis that they write to.
//!
//! What must hold as long as one backend lives that no proxy has found dead within `--dead-backend-time`:
//!
//! - Each request is answered by a backend, rightly, within 35 seconds. The one excuse is that a request was lost with the
//!   backend that had it, and must not be sent twice; [`verdict`] says what counts as evidence for that.
//! - No POST is received twice, whether by one backend or by two. The backends tell what they receive, at once.
//! - After each round of faults, each proxy soon asks each backend again.
//!
//! Now and then all backends are away for two seconds. Meanwhile, and until the proxies ask them again, 503 is right.
//!
//! Faults and requests each come from a stream of their own, which depends on the seed alone; which backend a fault strikes
//! depends on which can be spared at the time.

#![expect(clippy::print_stdout, reason = "the report is the point")]

mod backend;
mod book;
mod campaign;
#[path = "../chaos/course.rs"]
mod course;
#[path = "../chaos/dice.rs"]
mod dice;
mod faults;
mod fleet;
#[path = "../chaos/http.rs"]
mod http;
mod load;
#[path = "../chaos/proxy.rs"]
mod proxy;
mod report;
#[path = "../chaos/signal.rs"]
mod signal;
mod sockets;
#[path = "../chaos/stop.rs"]
mod stop;
mod verdict;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};

use campaign::Campaign;
use report::Report;

/// A campaign of random faults of backends against two proxies.
#[derive(Parser)]
struct Arguments {
    /// What the faults and the requests are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long to inflict faults; the calm after the last one comes on top
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// The folder in which the proxies' logs are kept [default: nowhere]
    #[arg(long)]
    logs: Option<PathBuf>,
    /// The proxy's executable
    #[arg(long, default_value = env!("CARGO_BIN_EXE_planb"))]
    planb: PathBuf,
    /// A further flag for both proxies; may be given several times
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    planb_flag: Vec<String>,
    /// What cargo bench adds
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this executable is, if not the campaign.
#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    Backend { name: String, port: u16 },
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(Role::Backend { name, port }) = arguments.role {
        return backend::serve(name, port).map(|()| ExitCode::SUCCESS);
    }
    // A frozen backend has every request that came for it waiting, each on a connection of its own.
    rlimit::increase_nofile_limit(u64::MAX)?;
    let campaign = Campaign {
        seed: arguments.seed,
        time: Duration::from_secs(arguments.seconds),
        logs: arguments.logs,
        planb: arguments.planb,
        planb_flags: arguments.planb_flag,
    };
    course::run(move |runtime, stop| campaign.run(runtime, stop), Report::is_clean)
}
