//! What can go wrong with Redis and on the way to it.

use std::{fmt, time::Duration};

use anyhow::ensure;

use super::{
    dice::Dice,
    redis::command,
    signal::signal,
    world::{Target, World, forget},
};

/// One fault with all its particulars, from its beginning to its end.
#[derive(Clone, Debug)]
pub enum Fault {
    /// SIGKILL, and a restart with or without what was on disk, which may take its time to load.
    Killed { target: Target, away: Duration, keeps_data: bool, loads_slowly: bool },
    /// SIGSTOP and SIGCONT.
    Frozen { target: Target, time: Duration },
    /// CLIENT KILL.
    ClientsKilled { target: Target, kind: &'static str },
    /// REPLICAOF NO ONE for a while.
    Detached { time: Duration },
    /// The link between the two breaks and more is written than the master remembers.
    BacklogExceeded,
    /// SWAPDB with a database that holds the same.
    Swapped,
    /// FLUSHDB, with the never-edited hosts in the same transaction or not; then everything is written again.
    Flushed { spares_steady: bool, empty: Duration },
    /// Keyspace notifications off. Shorter than two heartbeats could go unnoticed by anyone.
    Muted { time: Duration },
    /// Many edits at once.
    Burst,
    /// Latency between proxy and replica.
    Slow { latency: Duration, time: Duration },
    /// Nothing gets through between proxy and replica, though no connection is closed.
    Partitioned { both_ways: bool, time: Duration },
    /// No connections between proxy and replica.
    Refused { time: Duration },
    /// Connections between proxy and replica reset.
    Reset,
    /// Connections between proxy and replica forgotten without a word.
    HalfOpen,
}

impl Fault {
    /// One of each kind, in random order, with random particulars.
    pub fn deck(dice: &mut Dice) -> Vec<Self> {
        use Target::{Master, Replica};
        let mut deck = vec![
            Self::Killed { target: Replica, away: dice.millis(0, 3_000), keeps_data: true, loads_slowly: false },
            Self::Killed { target: Replica, away: dice.millis(0, 3_000), keeps_data: true, loads_slowly: true },
            Self::Killed { target: Replica, away: dice.millis(0, 3_000), keeps_data: false, loads_slowly: false },
            Self::Killed {
                target: Master,
                away: dice.millis(0, 3_000),
                keeps_data: true,
                loads_slowly: dice.one_in(2),
            },
            Self::Killed { target: Master, away: dice.millis(0, 3_000), keeps_data: false, loads_slowly: false },
            Self::Frozen { target: Master, time: dice.millis(100, 8_000) },
            Self::Frozen { target: Replica, time: dice.millis(100, 2_500) },
            Self::Frozen { target: Replica, time: dice.millis(100, 8_000) },
            Self::ClientsKilled { target: Replica, kind: "normal" },
            Self::ClientsKilled { target: Replica, kind: "pubsub" },
            Self::ClientsKilled { target: Replica, kind: "master" },
            Self::ClientsKilled { target: Master, kind: "normal" },
            Self::ClientsKilled { target: Master, kind: "replica" },
            Self::Detached { time: dice.millis(0, 4_000) },
            Self::BacklogExceeded,
            Self::Swapped,
            Self::Flushed { spares_steady: true, empty: dice.millis(0, 2_000) },
            Self::Flushed { spares_steady: false, empty: dice.millis(0, 4_000) },
            Self::Muted { time: dice.millis(3_000, 6_000) },
            Self::Burst,
            Self::Slow { latency: dice.millis(5, 150), time: dice.millis(1_000, 5_000) },
            Self::Partitioned { both_ways: true, time: dice.millis(300, 6_000) },
            Self::Partitioned { both_ways: false, time: dice.millis(300, 6_000) },
            Self::Refused { time: dice.millis(300, 4_000) },
            Self::Reset,
            Self::HalfOpen,
        ];
        dice.shuffle(&mut deck);
        deck
    }

    /// Inflicts the fault, waits it out and lifts it.
    ///
    /// # Errors
    /// When the harness cannot do its part, or is to end.
    pub fn inflict(&self, world: &mut World) -> anyhow::Result<()> {
        match *self {
            Self::Killed { target, away, keeps_data, loads_slowly } => {
                world.server(target).kill();
                if !keeps_data {
                    forget(world.server(target))?;
                }
                world.stop.pause(away)?;
                world.restart(target, loads_slowly)?;
                if target == Target::Master && !keeps_data {
                    // The edits go on meanwhile, and leave on the new master what they can. It is empty for long enough
                    // that the replica is too, and the proxy sees it.
                    world.stop.pause(away + Duration::from_secs(3))?;
                    world.write_all(&[])?;
                }
            }
            Self::Frozen { target, time } => {
                let pid = world.server(target).pid();
                signal(pid, "STOP")?;
                let waited = world.stop.pause(time);
                signal(pid, "CONT")?;
                waited?;
            }
            Self::ClientsKilled { target, kind } => {
                world.order(target, &["CLIENT", "KILL", "TYPE", kind])?;
            }
            Self::Detached { time } => {
                world.order(Target::Replica, &["REPLICAOF", "NO", "ONE"])?;
                let waited = world.stop.pause(time);
                let port = world.master.port().to_string();
                world.order(Target::Replica, &["REPLICAOF", "127.0.0.1", &port])?;
                waited?;
            }
            Self::BacklogExceeded => {
                let mut redis = world.connect(Target::Master)?;
                redis.ask(&["CONFIG", "SET", "repl-backlog-size", "16384"])?;
                // In one pipeline, so that the replica cannot come back before it is too late.
                let filler = "x".repeat(1_024);
                let mut commands = vec![command(&["CLIENT", "KILL", "TYPE", "replica"])];
                commands.extend((0..64).map(|_| command(&["SET", "backlog:filler", &filler])));
                redis.send(&commands)?;
                world.editing.writer().edit(500);
                world.stop.pause(Duration::from_secs(2))?;
                redis.ask(&["CONFIG", "SET", "repl-backlog-size", "1048576"])?;
            }
            Self::Swapped => {
                let mut writer = world.editing.writer();
                writer.repair()?;
                writer.send_all(&[command(&["SELECT", "1"])])?;
                writer.write_all(&[command(&["FLUSHDB"])])?;
                writer.send_all(&[command(&["SELECT", "0"]), command(&["SWAPDB", "0", "1"])])?;
            }
            Self::Flushed { spares_steady: true, empty } => {
                let flush = [command(&["FLUSHDB"])];
                let mut writer = world.editing.writer();
                let commands = writer.model.write_steady(&flush);
                writer.send_all(&commands)?;
                world.stop.pause(empty)?;
                writer.write_all(&[])?;
            }
            Self::Flushed { spares_steady: false, empty } => {
                world.load.pardon(true);
                world.order(Target::Master, &["FLUSHDB"])?;
                world.stop.pause(empty)?;
                world.write_all(&[])?;
            }
            Self::Muted { time } => {
                world.order(Target::Replica, &["CONFIG", "SET", "notify-keyspace-events", ""])?;
                world.stop.pause(time)?;
                world.order(Target::Replica, &["CONFIG", "SET", "notify-keyspace-events", "KA"])?;
            }
            Self::Burst => {
                for _ in 0..BURST / BURST_PAGE {
                    ensure!(!world.stop.is_requested(), "interrupted");
                    world.editing.writer().edit(BURST_PAGE);
                }
            }
            Self::Slow { latency, time } => {
                world.relay.delay(latency);
                world.stop.pause(time)?;
                world.relay.heal();
            }
            Self::Partitioned { both_ways, time } => {
                world.relay.stall(both_ways);
                world.stop.pause(time)?;
                world.relay.heal();
            }
            Self::Refused { time } => {
                world.relay.refuse();
                world.stop.pause(time)?;
                world.relay.heal();
            }
            Self::Reset => world.relay.reset(),
            Self::HalfOpen => world.relay.forget(),
        }
        Ok(())
    }

    /// The kind, for counting.
    pub fn kind(&self) -> String {
        let server = |target: &Target| if *target == Target::Master { "master" } else { "replica" };
        match self {
            Self::Killed { target, keeps_data, loads_slowly, .. } => {
                let data = if *keeps_data { "with its data" } else { "without data" };
                let pace = if *loads_slowly { ", loading slowly" } else { "" };
                format!("{} killed, back {data}{pace}", server(target))
            }
            Self::Frozen { target, .. } => format!("{} frozen", server(target)),
            Self::ClientsKilled { target, kind } => format!("CLIENT KILL TYPE {kind} on the {}", server(target)),
            Self::Detached { .. } => "replica detached and attached".to_owned(),
            Self::BacklogExceeded => "replica cut off beyond the backlog".to_owned(),
            Self::Swapped => "SWAPDB".to_owned(),
            Self::Flushed { spares_steady: true, .. } => "FLUSHDB that spares the never-edited".to_owned(),
            Self::Flushed { spares_steady: false, .. } => "FLUSHDB".to_owned(),
            Self::Muted { .. } => "notifications off".to_owned(),
            Self::Burst => format!("burst of {BURST} edits"),
            Self::Slow { .. } => "latency".to_owned(),
            Self::Partitioned { both_ways: true, .. } => "partition".to_owned(),
            Self::Partitioned { both_ways: false, .. } => "partition of the replies".to_owned(),
            Self::Refused { .. } => "connections refused".to_owned(),
            Self::Reset => "connections reset".to_owned(),
            Self::HalfOpen => "connections half-open".to_owned(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.kind())?;
        match self {
            Self::Killed { away: time, .. }
            | Self::Frozen { time, .. }
            | Self::Detached { time }
            | Self::Flushed { empty: time, .. }
            | Self::Muted { time }
            | Self::Partitioned { time, .. }
            | Self::Refused { time } => write!(formatter, " for {time:?}"),
            Self::Slow { latency, time } => write!(formatter, " of {latency:?} for {time:?}"),
            _ => Ok(()),
        }
    }
}

/// Enough that nobody can follow each of them.
const BURST: usize = 50_000;
const BURST_PAGE: usize = 500;
