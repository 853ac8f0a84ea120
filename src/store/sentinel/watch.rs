//! Noticing that a server is no longer the one to use.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::task::AbortOnDropHandle;

use super::{super::Server, Finding, Purpose, Sentinels, link::Tap, view::View};

/// The look-out for a better server than the one that was found. Its task ends with it.
pub struct Watch(Option<Guard>);

struct Guard {
    task: AbortOnDropHandle<Moved>,
    doubted: Arc<Notify>,
}

/// Why another server is to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Moved {
    /// The sentinels have agreed on a fail-over.
    #[error("the sentinels name another master")]
    FailedOver,
    /// A replica of the master has become one, in a fail-over that the sentinels have yet to announce.
    #[error("a replica has been promoted")]
    Promoted,
    /// The replica is down, or has lost its master, or is none any more.
    #[error("it is no healthy replica any more")]
    Unhealthy,
    /// The master stood in for replicas.
    #[error("a replica can be read from again")]
    Replica,
}

impl Watch {
    /// Nothing to look out for.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Looks out on behalf of one who uses what was found.
    pub(super) fn over(sentinels: Sentinels, found: Finding) -> Self {
        let doubted = Arc::new(Notify::new());
        let watched = Watched { sentinels, server: found.server, epoch: found.epoch, contradicted: None };
        let task = AbortOnDropHandle::new(tokio::spawn(watched.run(Arc::clone(&doubted))));
        Self(Some(Guard { task, doubted }))
    }

    /// Waits until another server is to be used, and says why. Cancel-safe. To be called no more after that.
    pub async fn moved(&mut self) -> Moved {
        match &mut self.0 {
            None => std::future::pending().await,
            Some(guard) => match (&mut guard.task).await {
                Ok(moved) => moved,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // The process is ending.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Has a better server looked for at once, since this one has been found to be in trouble.
    pub fn doubt(&self) {
        if let Some(guard) = &self.0 {
            guard.doubted.notify_one();
        }
    }
}

/// What a look-out is kept over.
struct Watched {
    sentinels: Sentinels,
    server: Server,
    /// Of the fail-over that the server was found by.
    epoch: u64,
    /// Since when most sentinels name another master, although of no newer fail-over.
    contradicted: Option<Instant>,
}

impl Watched {
    async fn run(mut self, doubted: Arc<Notify>) -> Moved {
        let addresses = Arc::clone(&self.sentinels.addresses);
        let (report, mut views) = mpsc::channel(addresses.len());
        let mut lookouts = JoinSet::new();
        for (index, sentinel) in addresses.iter().enumerate() {
            let name = self.sentinels.name.clone();
            lookouts.spawn(look_out(index, sentinel.clone(), name, report.clone()));
        }
        let mut latest: Vec<Option<(View, Instant)>> = vec![None; addresses.len()];
        loop {
            let moved = tokio::select! {
                Some((index, view)) = views.recv() => {
                    latest[index] = Some((view.clone(), Instant::now()));
                    match self.sentinels.purpose {
                        Purpose::ReadReplica => self.better_replica(&view).await,
                        purpose => match self.other_master(&view, &latest) {
                            None if purpose == Purpose::Write && view.in_trouble => self.promoted(&view).await,
                            moved => moved,
                        },
                    }
                }
                () = doubted.notified() => {
                    let found = self.sentinels.find().await;
                    found.is_ok_and(|found| found.server.address != self.server.address).then_some(Moved::Unhealthy)
                }
            };
            if let Some(moved) = moved {
                return moved;
            }
        }
    }

    /// Whether the sentinels are to be followed to another master: one that is behind the others must not bring us back.
    fn other_master(&mut self, view: &View, latest: &[Option<(View, Instant)>]) -> Option<Moved> {
        let contradicts = |view: &View| view.master != self.server.address;
        if view.epoch > self.epoch {
            self.sentinels.memory.learn(view.epoch);
            if contradicts(view) {
                return Some(Moved::FailedOver);
            }
            self.epoch = view.epoch;
        }
        // Epochs begin anew when sentinels are set up anew.
        let fresh = latest.iter().flatten().filter(|(_, when)| when.elapsed() < FRESH);
        let contradicting = fresh.filter(|(view, _)| contradicts(view)).count();
        if contradicting * 2 <= latest.len() {
            self.contradicted = None;
            return None;
        }
        let since = *self.contradicted.get_or_insert_with(Instant::now);
        if since.elapsed() < CONTRADICTION_LIMIT {
            return None;
        }
        self.sentinels.memory.forget();
        Some(Moved::FailedOver)
    }

    /// Whether a replica has become the master. Sentinels learn that from the next INFO that they ask of it, up to a
    /// second later.
    async fn promoted(&self, view: &View) -> Option<Moved> {
        let promoted = self.sentinels.promoted(view).await?;
        if promoted.address == self.server.address {
            return None;
        }
        self.sentinels.memory.expect(promoted.address);
        Some(Moved::Promoted)
    }

    /// Whether there is a replica to prefer to the server. That one sentinel thinks ill of a replica is not enough.
    async fn better_replica(&mut self, view: &View) -> Option<Moved> {
        if view.epoch < self.epoch || view.has_healthy(&self.server.address) {
            return None;
        }
        self.epoch = view.epoch;
        self.sentinels.memory.learn(view.epoch);
        let stands_in = view.master == self.server.address;
        let is_good_enough =
            if stands_in { view.healthy(0).next().is_none() } else { self.sentinels.reaches(&self.server, None).await };
        if is_good_enough {
            return None;
        }
        let found = self.sentinels.choose(view).await.ok()?;
        let moved = if stands_in { Moved::Replica } else { Moved::Unhealthy };
        (found.address != self.server.address).then_some(moved)
    }
}

/// Reports what one sentinel says, for as long as there is anyone to report to.
async fn look_out(index: usize, sentinel: Server, name: String, report: mpsc::Sender<(usize, View)>) {
    let mut in_trouble_since: Option<Instant> = None;
    loop {
        if let Ok(mut tap) = Tap::open(&sentinel).await {
            while let Ok(view) = tap.look(&name).await {
                in_trouble_since = view.in_trouble.then(|| in_trouble_since.unwrap_or_else(Instant::now));
                let is_urgent = in_trouble_since.is_some_and(|since| since.elapsed() < URGENCY);
                let pause = if is_urgent { HASTE } else { POLL };
                if report.send((index, view)).await.is_err() {
                    return;
                }
                if tap.wait(pause).await.is_err() {
                    break;
                }
            }
        }
        time::sleep(POLL).await;
    }
}

/// How often a sentinel is asked although it has announced nothing.
const POLL: Duration = Duration::from_secs(1);

/// How often while a fail-over is about to happen, and how long after the first sign of it.
const HASTE: Duration = Duration::from_millis(100);
const URGENCY: Duration = Duration::from_secs(10);

/// How long what a sentinel said counts.
const FRESH: Duration = Duration::from_secs(3);

/// How long most sentinels must name another master before that is not taken for a fail-over on its way. The news of one
/// travels between sentinels within two seconds.
const CONTRADICTION_LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::{
        super::{Access, Address},
        *,
    };

    fn server(port: u16) -> Server {
        Access::default().to(&Address::Tcp("10.0.0.1".to_owned(), port))
    }

    /// A writer that found the server with port 1 by the second fail-over.
    fn watched() -> Watched {
        let access = Access::default();
        let sentinels =
            Sentinels::new(vec![server(91), server(92), server(93)], "m".to_owned(), Purpose::Write, access);
        Watched { sentinels, server: server(1), epoch: 2, contradicted: None }
    }

    fn view(epoch: u64, port: u16) -> View {
        View { epoch, master: server(port).address, in_trouble: false, replicas: Vec::new() }
    }

    fn judge(watched: &mut Watched, views: &[View]) -> Option<Moved> {
        let mut latest: Vec<_> = views.iter().map(|view| Some((view.clone(), Instant::now()))).collect();
        latest.resize(3, None);
        watched.other_master(views.last().unwrap(), &latest)
    }

    #[test]
    fn a_newer_fail_over_is_followed() {
        let mut watched = watched();
        assert_eq!(judge(&mut watched, &[view(2, 1)]), None);
        assert_eq!(judge(&mut watched, &[view(3, 2)]), Some(Moved::FailedOver));
        assert_eq!(watched.sentinels.memory.epoch(), 3);
    }

    #[test]
    fn a_sentinel_that_is_behind_is_not_followed() {
        let mut watched = watched();
        assert_eq!(judge(&mut watched, &[view(2, 1), view(2, 1), view(1, 2)]), None);
        assert_eq!(watched.contradicted, None);
        // A fail-over back, by sentinels that did not know of the last, has an epoch of its own.
        assert_eq!(judge(&mut watched, &[view(4, 1)]), None);
        assert_eq!(judge(&mut watched, &[view(3, 2)]), None);
    }

    #[test]
    fn most_sentinels_are_followed_in_the_end() {
        let mut watched = watched();
        let views = [view(2, 1), view(0, 2), view(0, 2)];
        assert_eq!(judge(&mut watched, &views), None);
        assert!(watched.contradicted.is_some());
        watched.contradicted = Instant::now().checked_sub(CONTRADICTION_LIMIT);
        assert_eq!(judge(&mut watched, &views), Some(Moved::FailedOver));
        assert_eq!(judge(&mut watched, &[view(2, 1), view(2, 1), view(0, 2)]), None);
        assert_eq!(watched.contradicted, None);
    }
}
