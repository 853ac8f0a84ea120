//! What the backends say that they received, and how each of their lives ended.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::sockets::Waiting;

/// The record of all backends' lives. A life lasts from one start of the process to its end.
#[derive(Default)]
pub struct Book(Mutex<Pages>);

/// Its content.
#[derive(Default)]
pub struct Pages {
    /// By request.
    pub receipts: HashMap<u64, Vec<Receipt>>,
    /// All lives, in the order of their beginnings.
    pub lives: Vec<Life>,
    /// When each backend last received something by way of each proxy.
    /// What waited for frozen backends when they were killed.
    pub waiting: Waiting,
    seen: HashMap<(usize, usize), Instant>,
}

/// A backend has received a request.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    /// Which of [`Pages::lives`].
    pub life: usize,
    /// Whether it was the connection's first.
    pub is_fresh: bool,
}

/// One life of a backend.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Whose.
    pub backend: usize,
    /// How it ended, and when that began.
    pub end: Option<(Instant, End)>,
    /// When its process was gone.
    pub gone: Option<Instant>,
}

/// How a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// SIGKILL while it ran.
    Killed,
    /// SIGKILL while it was frozen.
    KilledFrozen,
    /// SIGTERM, after which everything is served that was received.
    Asked,
}

impl Book {
    /// Begins a life.
    pub fn begin(&self, backend: usize) -> usize {
        let mut pages = self.pages();
        pages.lives.push(Life { backend, end: None, gone: None });
        pages.lives.len() - 1
    }

    /// Ends a life. To be called before its process gets to know.
    pub fn end(&self, life: usize, how: End) {
        self.pages().lives[life].end = Some((Instant::now(), how));
    }

    /// The process of a life is gone.
    pub fn gone(&self, life: usize) {
        self.pages().lives[life].gone = Some(Instant::now());
    }

    /// Takes note of a request.
    pub fn received(&self, id: u64, receipt: Receipt) {
        let mut pages = self.pages();
        pages.receipts.entry(id).or_default().push(receipt);
        let backend = pages.lives[receipt.life].backend;
        pages.seen.insert((proxy_of(id), backend), Instant::now());
    }

    /// Whether a backend has received something by way of a proxy since then.
    pub fn has_seen(&self, proxy: usize, backend: usize, since: Instant) -> bool {
        self.pages().seen.get(&(proxy, backend)).is_some_and(|&seen| seen > since)
    }

    /// All of it.
    pub fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The proxy that a request goes to.
pub fn proxy_of(id: u64) -> usize {
    usize::from(id % 2 == 1)
}

/// How many proxies there are.
pub const PROXIES: usize = 2;
