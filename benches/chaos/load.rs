//! Clients that never rest, and what they have to say of the answers.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, runtime::Handle, time};

use super::{
    dice::Dice,
    http::{Answer, get},
    stop::Stop,
};

/// What the clients ask for and have seen.
pub struct Load {
    proxy: SocketAddr,
    steady: Vec<(String, BTreeSet<String>)>,
    others: Vec<String>,
    began: Instant,
    stop: Arc<Stop>,
    pardons: AtomicBool,
    scene: Mutex<String>,
    failures: Mutex<Vec<Failure>>,
    /// Figures for the report.
    pub tally: Tally,
}

/// Counts of requests.
#[derive(Default)]
pub struct Tally {
    /// To never-edited hosts.
    pub steady: AtomicU64,
    /// Of these, failed.
    pub steady_failed: AtomicU64,
    /// Of these, failed while a bare FLUSHDB was in force.
    pub pardoned: AtomicU64,
    /// To edited hosts.
    pub others: AtomicU64,
    /// Of these, not answered by a backend, but legally.
    pub others_unrouted: AtomicU64,
    /// Of these, not answered legally.
    pub others_failed: AtomicU64,
}

/// One request that went wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Since the campaign began.
    pub at: Duration,
    /// Whom it was for.
    pub host: String,
    /// What was in force.
    pub scene: String,
    /// What came back.
    pub answer: String,
}

impl Load {
    /// Starts so many clients.
    pub fn start(
        runtime: &Handle,
        proxy: SocketAddr,
        steady: Vec<(String, BTreeSet<String>)>,
        others: Vec<String>,
        seed: u64,
        stop: &Arc<Stop>,
    ) -> Arc<Self> {
        let load = Arc::new(Self {
            proxy,
            steady,
            others,
            began: Instant::now(),
            stop: Arc::clone(stop),
            pardons: AtomicBool::new(false),
            scene: Mutex::default(),
            failures: Mutex::default(),
            tally: Tally::default(),
        });
        for number in 0..CLIENTS {
            runtime.spawn(Arc::clone(&load).ask_on_and_on(Dice::new(seed, 100 + number)));
        }
        load
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Says what is in force from now on.
    pub fn set_scene(&self, scene: String) {
        *self.scene.lock().unwrap_or_else(PoisonError::into_inner) = scene;
    }

    /// Whether never-edited hosts may fail, by order of the operator.
    pub fn pardon(&self, pardons: bool) {
        self.pardons.store(pardons, Ordering::SeqCst);
    }

    /// The first failures, all of which are violations.
    pub fn failures(&self) -> Vec<Failure> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn ask_on_and_on(self: Arc<Self>, mut dice: Dice) {
        let mut connection = None;
        while !self.stop.is_requested() {
            if dice.one_in(4) {
                let host = dice.pick(&self.others);
                let answer = self.ask(&mut connection, host).await;
                self.tally.others.fetch_add(1, Ordering::Relaxed);
                match answer.as_ref().map(|answer| answer.status) {
                    Ok(200) => {}
                    Ok(400 | 503) => {
                        self.tally.others_unrouted.fetch_add(1, Ordering::Relaxed);
                    }
                    _ => self.fail(&self.tally.others_failed, host, &answer),
                }
            } else {
                let (host, backends) = dice.pick(&self.steady);
                let pardons = self.pardons.load(Ordering::SeqCst);
                let answer = self.ask(&mut connection, host).await;
                self.tally.steady.fetch_add(1, Ordering::Relaxed);
                if !answer.as_ref().is_ok_and(|answer| answer.status == 200 && backends.contains(&answer.body)) {
                    if pardons || self.pardons.load(Ordering::SeqCst) {
                        self.tally.pardoned.fetch_add(1, Ordering::Relaxed);
                    } else {
                        self.fail(&self.tally.steady_failed, host, &answer);
                    }
                }
            }
            time::sleep(PACE).await;
        }
    }

    async fn ask(&self, connection: &mut Option<TcpStream>, host: &str) -> io::Result<Answer> {
        let asked = async {
            let mut stream = match connection.take() {
                Some(stream) => stream,
                None => TcpStream::connect(self.proxy).await?,
            };
            let answer = get(&mut stream, host, "/").await?;
            if !answer.closes() {
                *connection = Some(stream);
            }
            Ok(answer)
        };
        time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
    }

    fn fail(&self, count: &AtomicU64, host: &str, answer: &io::Result<Answer>) {
        count.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < FAILURES_KEPT {
            failures.push(Failure {
                at: self.began.elapsed(),
                host: host.to_owned(),
                scene: self.scene.lock().unwrap_or_else(PoisonError::into_inner).clone(),
                answer: match answer {
                    Ok(answer) => format!("{} {:?}", answer.status, answer.body),
                    Err(error) => error.to_string(),
                },
            });
        }
    }
}

const CLIENTS: u64 = 8;

/// Between an answer and the next question, so that the machine is not busy with the load alone.
const PACE: Duration = Duration::from_millis(4);

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

const FAILURES_KEPT: usize = 20;
