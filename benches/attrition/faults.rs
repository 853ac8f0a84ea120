//! What is done to backends, and what undoes it.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use planb::demo::PrivateRedis;

use super::{
    dice::Dice,
    fleet::{BACKENDS, Fleet, State},
    load::HOST,
};

/// One fault, which strikes a backend that can be spared.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// SIGKILL, and a start after a while.
    Killed { away: Duration },
    /// SIGSTOP and SIGCONT.
    Frozen { time: Duration },
    /// SIGSTOP, SIGKILL and a start.
    KilledFrozen { time: Duration, away: Duration },
    /// SIGTERM, and a start after it has ended.
    Ended { away: Duration },
    /// LREM and RPUSH of a backend that goes on serving.
    Unlisted { time: Duration },
}

/// All that a fault can touch, and what is still to be undone.
pub struct World {
    /// The backends.
    pub fleet: Fleet,
    /// The Redis that is written to.
    pub master: PrivateRedis,
    pending: Vec<(Instant, Step)>,
}

/// What happens to a backend later.
#[derive(Clone, Copy, Debug)]
enum Step {
    Thaw(usize),
    Kill(usize, Duration),
    Revive(usize),
    /// Looks whether it has ended, to revive it so long afterwards.
    Await(usize, Duration),
    List(usize),
}

impl Fault {
    /// Some of each kind, in random order, with random particulars.
    pub fn deck(dice: &mut Dice) -> Vec<Self> {
        let mut deck = Vec::new();
        for _ in 0..3 {
            deck.push(Self::Killed { away: dice.millis(500, 8_000) });
            deck.push(Self::Frozen { time: dice.millis(200, 6_000) });
        }
        for _ in 0..2 {
            // After a longer time, more requests would wait for it than the retry budget lets the proxy repeat.
            deck.push(Self::KilledFrozen { time: dice.millis(200, 1_500), away: dice.millis(500, 8_000) });
            deck.push(Self::Ended { away: dice.millis(500, 8_000) });
            deck.push(Self::Unlisted { time: dice.millis(200, 5_000) });
        }
        dice.shuffle(&mut deck);
        deck
    }

    /// Begins it. Returns the backend that it strikes; none if none can be spared.
    ///
    /// # Errors
    /// When the harness cannot do its part.
    pub fn inflict(self, world: &mut World, dice: &mut Dice) -> anyhow::Result<Option<usize>> {
        let candidates = match self {
            Self::Unlisted { .. } => world.fleet.expendable(|backend| backend.is_listed),
            _ => world.fleet.expendable(|backend| backend.state == State::Up),
        };
        if candidates.is_empty() {
            return Ok(None);
        }
        let struck = *dice.pick(&candidates);
        match self {
            Self::Killed { away } => {
                world.fleet.kill(struck)?;
                world.later(away, Step::Revive(struck));
            }
            Self::Frozen { time } => {
                world.fleet.freeze(struck)?;
                world.later(time, Step::Thaw(struck));
            }
            Self::KilledFrozen { time, away } => {
                world.fleet.freeze(struck)?;
                world.later(time, Step::Kill(struck, away));
            }
            Self::Ended { away } => {
                world.fleet.ask_to_end(struck)?;
                world.later(LOOK_AGAIN, Step::Await(struck, away));
            }
            Self::Unlisted { time } => {
                world.unlist(struck)?;
                world.later(time, Step::List(struck));
            }
        }
        Ok(Some(struck))
    }

    /// Its name, for counting.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Killed { .. } => "killed (SIGKILL)",
            Self::Frozen { .. } => "frozen (SIGSTOP), and let go on",
            Self::KilledFrozen { .. } => "frozen, and killed while it was, unless the calm came first",
            Self::Ended { .. } => "asked to end (SIGTERM)",
            Self::Unlisted { .. } => "taken off the list, and put on it again",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed { away } => write!(out, "killed, away for {away:?}"),
            Self::Frozen { time } => write!(out, "frozen for {time:?}"),
            Self::KilledFrozen { time, away } => write!(out, "frozen for {time:?}, then killed, away for {away:?}"),
            Self::Ended { away } => write!(out, "asked to end, away for {away:?}"),
            Self::Unlisted { time } => write!(out, "not listed for {time:?}"),
        }
    }
}

impl World {
    /// Lists all backends.
    ///
    /// # Errors
    /// When the master refuses.
    pub fn new(fleet: Fleet, master: PrivateRedis) -> anyhow::Result<Self> {
        let urls: Vec<&str> = fleet.backends().iter().map(|backend| &*backend.url).collect();
        order(&master, &[&["RPUSH", &key(), HOST], &*urls].concat())?;
        Ok(Self { fleet, master, pending: Vec::new() })
    }

    /// Does what is due.
    ///
    /// # Errors
    /// When the harness cannot do its part.
    pub fn go_on(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        while let Some(next) = self.pending.iter().position(|&(due, _)| due <= now) {
            let (_, step) = self.pending.swap_remove(next);
            self.take(step)?;
        }
        Ok(())
    }

    /// Does all that there is to do, now or as soon as it can be. Returns whether there is nothing more.
    ///
    /// # Errors
    /// When the harness cannot do its part.
    pub fn restore(&mut self) -> anyhow::Result<bool> {
        for (_, step) in std::mem::take(&mut self.pending) {
            match step {
                // What is killed now would be away in the calm.
                Step::Kill(struck, _) => self.take(Step::Thaw(struck))?,
                Step::Await(struck, _) => self.take(Step::Await(struck, Duration::ZERO))?,
                step => self.take(step)?,
            }
        }
        Ok(self.pending.is_empty())
    }

    /// Kills all at once. The calm must have begun.
    ///
    /// # Errors
    /// When the harness cannot do its part.
    pub fn kill_all(&mut self, away: Duration) -> anyhow::Result<()> {
        for number in 0..BACKENDS {
            self.fleet.kill(number)?;
            self.later(away, Step::Revive(number));
        }
        Ok(())
    }

    fn take(&mut self, step: Step) -> anyhow::Result<()> {
        match step {
            Step::Thaw(struck) => self.fleet.thaw(struck),
            Step::Kill(struck, away) => {
                self.fleet.kill(struck)?;
                self.later(away, Step::Revive(struck));
                Ok(())
            }
            Step::Revive(struck) => self.fleet.revive(struck),
            Step::Await(struck, away) => {
                let (time, next) = if self.fleet.has_ended(struck)? {
                    (away, Step::Revive(struck))
                } else {
                    (LOOK_AGAIN, Step::Await(struck, away))
                };
                self.later(time, next);
                Ok(())
            }
            Step::List(struck) => {
                order(&self.master, &["RPUSH", &key(), &self.url(struck)])?;
                self.fleet.set_listed(struck, true);
                Ok(())
            }
        }
    }

    fn unlist(&mut self, struck: usize) -> anyhow::Result<()> {
        self.fleet.set_listed(struck, false);
        order(&self.master, &["LREM", &key(), "0", &self.url(struck)])
    }

    fn url(&self, number: usize) -> String {
        self.fleet.backends()[number].url.clone()
    }

    fn later(&mut self, time: Duration, step: Step) {
        self.pending.push((Instant::now() + time, step));
    }
}

/// Gives an order to Redis, which answers with a number.
fn order(redis: &PrivateRedis, words: &[&str]) -> anyhow::Result<()> {
    let reply = redis.command(words).with_context(|| words.join(" "))?;
    ensure!(reply.starts_with(':') && reply != ":0", "{}: {reply}", words.join(" "));
    Ok(())
}

fn key() -> String {
    format!("frontend:{HOST}")
}

/// How soon to look again whether a backend has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
