//! Clients that ask at a steady rate, whether they are answered or not.

use std::{
    collections::HashSet,
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, runtime::Handle, time};
use tokio_util::task::TaskTracker;

use super::{
    backend::{ID_HEADER, digest},
    book::{PROXIES, proxy_of},
    dice::Dice,
    fleet::BACKENDS,
    http::{Answer, ask},
    stop::Stop,
};

/// What the clients ask, and have seen.
pub struct Load {
    proxies: [SocketAddr; PROXIES],
    idle: [Mutex<Vec<TcpStream>>; PROXIES],
    began: Instant,
    is_outage: AtomicBool,
    scene: Mutex<String>,
    tasks: TaskTracker,
    posts: Mutex<HashSet<u64>>,
    failures: Mutex<Vec<Failure>>,
    latencies: Mutex<Vec<Duration>>,
    /// Figures for the report.
    pub tally: Tally,
}

/// Counts of requests.
#[derive(Default)]
pub struct Tally {
    /// Sent.
    pub sent: AtomicU64,
    /// Of these, over a connection of their own.
    pub alone: AtomicU64,
    /// Answered by each backend.
    pub answered: [AtomicU64; BACKENDS],
    /// Answered 503 while no backend lived, by order of the campaign.
    pub outage: AtomicU64,
}

/// One request that was not answered as it should be.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which.
    pub id: u64,
    /// Whether it was a POST.
    pub is_post: bool,
    /// Since the load began.
    pub at: Duration,
    /// When it was sent.
    pub from: Instant,
    /// When it had failed.
    pub to: Instant,
    /// What was in force.
    pub scene: String,
    /// What came back; nothing, if the connection to the proxy failed.
    pub status: Option<u16>,
    /// The same, with particulars.
    pub answer: String,
    /// The URL of the backend that was tried last.
    pub backend: Option<String>,
}

/// What is asked.
struct Question {
    id: u64,
    body: Option<String>,
    is_alone: bool,
}

impl Load {
    /// Starts asking.
    pub fn start(runtime: &Handle, proxies: [SocketAddr; PROXIES], dice: Dice, stop: &Arc<Stop>) -> Arc<Self> {
        let load = Arc::new(Self {
            proxies,
            idle: Default::default(),
            began: Instant::now(),
            is_outage: AtomicBool::new(false),
            scene: Mutex::default(),
            tasks: TaskTracker::new(),
            posts: Mutex::default(),
            failures: Mutex::default(),
            latencies: Mutex::default(),
            tally: Tally::default(),
        });
        load.tasks.spawn_on(Arc::clone(&load).ask_on_and_on(dice, Arc::clone(stop)), runtime);
        load
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Says what is in force from now on.
    pub fn set_scene(&self, scene: String) {
        *lock(&self.scene) = scene;
    }

    /// Whether 503 is the right answer, because no backend lives.
    pub fn set_outage(&self, is_outage: bool) {
        self.is_outage.store(is_outage, Ordering::SeqCst);
    }

    /// Waits for the last answers. The load must have been stopped.
    pub fn finish(&self, runtime: &Handle) {
        self.tasks.close();
        runtime.block_on(self.tasks.wait());
    }

    /// The requests that were POSTs.
    pub fn posts(&self) -> HashSet<u64> {
        lock(&self.posts).clone()
    }

    /// All that went wrong.
    pub fn failures(&self) -> Vec<Failure> {
        lock(&self.failures).clone()
    }

    /// How long each good answer took, from when its request was due.
    pub fn latencies(&self) -> Vec<Duration> {
        lock(&self.latencies).clone()
    }

    /// A request is due at its time, however late the earlier ones are.
    async fn ask_on_and_on(self: Arc<Self>, mut dice: Dice, stop: Arc<Stop>) {
        for id in 0.. {
            let due = self.began + PACE * u32::try_from(id).unwrap_or(u32::MAX);
            time::sleep_until(due.into()).await;
            if stop.is_requested() {
                return;
            }
            let body = dice.one_in(POSTS).then(|| "x".repeat(dice.below(LONGEST_BODY)));
            let question = Question { id, body, is_alone: dice.one_in(ALONE) };
            self.tasks.spawn(Arc::clone(&self).put(question, due));
        }
    }

    async fn put(self: Arc<Self>, question: Question, due: Instant) {
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let from = Instant::now();
        let was_outage = self.is_outage.load(Ordering::SeqCst);
        count(&self.tally.sent);
        if question.body.is_some() {
            lock(&self.posts).insert(question.id);
        }
        if question.is_alone {
            count(&self.tally.alone);
        }
        let answer = time::timeout(PATIENCE, self.ask(&question)).await;
        let answer = answer.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
        let is_outage = was_outage || self.is_outage.load(Ordering::SeqCst);
        match &answer {
            Ok(answer) if let Some(backend) = question.answered_by(answer) => {
                count(&self.tally.answered[backend]);
                lock(&self.latencies).push(due.elapsed());
            }
            Ok(answer) if answer.status == 503 && is_outage => {
                count(&self.tally.outage);
            }
            _ => self.fail(&question, from, &answer),
        }
    }

    async fn ask(&self, question: &Question) -> io::Result<Answer> {
        let proxy = proxy_of(question.id);
        let kept = if question.is_alone { None } else { lock(&self.idle[proxy]).pop() };
        let mut stream = match kept {
            Some(stream) => stream,
            None => TcpStream::connect(self.proxies[proxy]).await?,
        };
        let answer = ask(&mut stream, question.text().as_bytes()).await?;
        let mut idle = lock(&self.idle[proxy]);
        if !question.is_alone && !answer.closes() && idle.len() < MOST_IDLE {
            idle.push(stream);
        }
        Ok(answer)
    }

    fn fail(&self, question: &Question, from: Instant, answer: &io::Result<Answer>) {
        lock(&self.failures).push(Failure {
            id: question.id,
            is_post: question.body.is_some(),
            at: from - self.began,
            from,
            to: Instant::now(),
            scene: lock(&self.scene).clone(),
            status: answer.as_ref().ok().map(|answer| answer.status),
            answer: match answer {
                Ok(answer) => format!("{} {:?}", answer.status, answer.body),
                Err(error) => error.to_string(),
            },
            backend: answer.as_ref().ok().and_then(|answer| answer.header("x-debug-backend-url")).map(str::to_owned),
        });
    }
}

impl Question {
    fn text(&self) -> String {
        let Self { id, .. } = self;
        let rest = format!("/{id} HTTP/1.1\r\nHost: {HOST}\r\n{ID_HEADER}: {id}\r\nX-Debug-Router: 1\r\n");
        match &self.body {
            None => format!("GET {rest}\r\n"),
            Some(body) => format!("POST {rest}Content-Length: {}\r\n\r\n{body}", body.len()),
        }
    }

    /// The backend whose answer this is; none if it is not the right one.
    fn answered_by(&self, answer: &Answer) -> Option<usize> {
        let right = format!(" {} {}", self.id, digest(self.body.as_deref().unwrap_or_default().as_bytes()));
        let name = answer.body.strip_suffix(&right).filter(|_| answer.status == 200)?;
        name.strip_prefix("backend-")?.parse().ok().filter(|&number| number < BACKENDS)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whom all requests are for.
pub const HOST: &str = "attrition.test";

/// From one request to the next: 500 a second.
const PACE: Duration = Duration::from_millis(2);

/// One request in so many is a POST.
const POSTS: usize = 5;

/// The bytes of a body stay below this.
const LONGEST_BODY: usize = 2_000;

/// One request in so many has a connection of its own.
const ALONE: usize = 10;

/// Idle connections that are kept to each proxy.
const MOST_IDLE: usize = 64;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(35);
