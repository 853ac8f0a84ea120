//! Rounds of faults, each with a calm after it in which every backend must be asked again by every proxy.

use std::{
    path::PathBuf,
    process,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use planb::demo::PrivateRedis;
use tokio::runtime::Handle;

use super::{
    backend::ID_HEADER,
    book::{Book, PROXIES},
    dice::Dice,
    faults::{Fault, World},
    fleet::{BACKENDS, Fleet},
    load::Load,
    proxy::Proxy,
    report::{Report, Spent},
    stop::Stop,
    verdict::{Errors, errors_in, judge},
};

/// One seed's worth of faults.
pub struct Campaign {
    /// What everything is drawn from.
    pub seed: u64,
    /// How long to inflict faults.
    pub time: Duration,
    /// The folder in which the proxies' logs are kept.
    pub logs: Option<PathBuf>,
    /// The proxy's executable.
    pub planb: PathBuf,
    /// Its flags, beside those that the campaign needs.
    pub planb_flags: Vec<String>,
}

impl Campaign {
    /// Sets everything up, runs, and takes everything down.
    ///
    /// # Errors
    /// When the harness itself fails, or is asked to end. What the proxies do wrong stands in the report.
    pub fn run(self, runtime: &Handle, stop: &Arc<Stop>) -> anyhow::Result<Report> {
        let result = self.rounds(runtime, stop);
        // The load ends with it.
        stop.request();
        result
    }

    fn rounds(&self, runtime: &Handle, stop: &Arc<Stop>) -> anyhow::Result<Report> {
        let book = Arc::new(Book::default());
        // The ports are not the seed's: several campaigns may run at the same time.
        let mut ports = Dice::new(self.seed, u64::from(process::id()));
        let fleet = Fleet::start(&book, DEAD_BACKEND_TIME + MARGIN, &mut ports)?;
        let notifications = ["--notify-keyspace-events", "KA"];
        let master = PrivateRedis::start(&notifications)?;
        let port = master.port().to_string();
        let replica = PrivateRedis::start(&[&notifications[..], &["--replicaof", "127.0.0.1", &port]].concat())?;
        master.wait_for_replica(&replica)?;
        let world = World::new(fleet, master)?;
        let mut arguments = vec![
            format!("--dead-backend-time={}", DEAD_BACKEND_TIME.as_secs()),
            format!("--request-id-header={ID_HEADER}"),
            format!("--read-redis-port={}", replica.port()),
            format!("--write-redis-port={port}"),
        ];
        arguments.extend_from_slice(&self.planb_flags);
        let start = |number: usize| {
            let log = self.logs.as_ref().map(|folder| folder.join(format!("proxy-{number}.log")));
            Proxy::start(&self.planb, &arguments, log)
        };
        let proxies: [Proxy; PROXIES] = [start(0)?, start(1)?];
        let load = Load::start(runtime, proxies.each_ref().map(|proxy| proxy.address), Dice::new(self.seed, 1), stop);
        let report = Report::new(self.seed);
        let mut course =
            Course { world, proxies, load, book, report, runtime: runtime.clone(), stop: Arc::clone(stop) };
        course.run(self)?;
        course.finish()
    }
}

/// A campaign under way.
struct Course {
    world: World,
    proxies: [Proxy; PROXIES],
    load: Arc<Load>,
    book: Arc<Book>,
    report: Report,
    runtime: Handle,
    stop: Arc<Stop>,
}

impl Course {
    fn run(&mut self, campaign: &Campaign) -> anyhow::Result<()> {
        let mut dice = Dice::new(campaign.seed, 2);
        let mut deck = Vec::new();
        self.calm("the beginning")?;
        for round in 1.. {
            if self.load.elapsed() >= campaign.time || !self.report.violations.is_empty() {
                break;
            }
            let until = Instant::now() + dice.millis(8_000, 20_000);
            while Instant::now() < until {
                let fault = deck.pop().unwrap_or_else(|| {
                    deck = Fault::deck(&mut dice);
                    deck.pop().expect("a deck is never empty")
                });
                self.inflict(fault, &mut dice)?;
                self.wait(dice.millis(100, 2_000))?;
            }
            self.calm(&format!("round {round}"))?;
            if round % OUTAGE_EVERY == 0 {
                self.outage()?;
            }
        }
        Ok(())
    }

    fn inflict(&mut self, fault: Fault, dice: &mut Dice) -> anyhow::Result<()> {
        let struck = fault.inflict(&mut self.world, dice).with_context(|| format!("the harness failed: {fault}"))?;
        if let Some(struck) = struck {
            let scene = format!("backend-{struck} {fault}");
            eprintln!("[{:7.2?}] {scene}", self.load.elapsed());
            self.load.set_scene(scene);
            *self.report.faults.entry(fault.kind()).or_default() += 1;
        }
        Ok(())
    }

    /// All backends are away for a while, which only a 503 can tell.
    fn outage(&mut self) -> anyhow::Result<()> {
        let scene = format!("all killed, away for {OUTAGE:?}");
        eprintln!("[{:7.2?}] {scene}", self.load.elapsed());
        self.load.set_scene(scene);
        *self.report.faults.entry("all killed at once").or_default() += 1;
        self.load.set_outage(true);
        self.world.kill_all(OUTAGE)?;
        self.wait(OUTAGE + Duration::from_millis(100))?;
        self.calm("all were killed")?;
        self.load.set_outage(false);
        // Those marked dead last are settled only now.
        self.wait(DEAD_BACKEND_TIME + MARGIN)
    }

    /// Waits, and does meanwhile what is due.
    fn wait(&mut self, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.world.go_on().context("the harness failed")?;
            self.stop.pause(STEP)?;
        }
        Ok(())
    }

    /// Restores all backends, and waits until each proxy has asked each.
    fn calm(&mut self, after: &str) -> anyhow::Result<()> {
        while !self.world.restore().context("the harness failed")? {
            self.stop.pause(STEP)?;
        }
        self.load.set_scene(format!("the calm after {after}"));
        let began = Instant::now();
        loop {
            let mut pairs = (0..PROXIES).flat_map(|proxy| (0..BACKENDS).map(move |backend| (proxy, backend)));
            let missing = pairs.find(|&(proxy, backend)| !self.book.has_seen(proxy, backend, began));
            let Some((proxy, backend)) = missing else { break };
            if began.elapsed() > BOUND || self.proxies.iter_mut().any(|proxy| !proxy.is_running()) {
                let what = format!("after {after}, proxy {proxy} sends nothing to backend-{backend} within {BOUND:?}");
                eprintln!("{what}");
                self.report.violations.push(what);
                return Ok(());
            }
            self.stop.pause(STEP)?;
        }
        let took = began.elapsed();
        eprintln!("[{:7.2?}]     all are asked again after {took:.2?}", self.load.elapsed());
        self.report.calms.push(took);
        Ok(())
    }

    /// Sums up.
    fn finish(mut self) -> anyhow::Result<Report> {
        self.report.time = self.load.elapsed();
        self.stop.request();
        self.load.finish(&self.runtime);
        let mut errors = Errors::new();
        for proxy in &mut self.proxies {
            ensure!(proxy.is_running(), "a proxy has ended: {}", proxy.log());
            let metric = |name| proxy.metric(&self.runtime, name);
            self.report.proxies.push(Spent {
                processor: metric("process_cpu_seconds_total")?,
                memory: proxy.peak_memory(),
                retries: metric("planb_reverseproxy_retries_total")?,
                refused: metric("planb_reverseproxy_retries_refused_total")?,
                marks: metric("planb_router_backend_markdead_total")?,
                dials: metric("planb_reverseproxy_pool_dials_total")?,
                reuses: metric("planb_reverseproxy_pool_reuses_total")?,
                lines_lost: metric("planb_log_error_lines_dropped_total")?
                    + metric("planb_log_error_lines_suppressed_total")?,
            });
            errors.extend(errors_in(&proxy.log()));
        }
        let refused: f64 = self.report.proxies.iter().map(|spent| spent.refused).sum();
        if refused > 0.0 {
            let what = format!("{refused} requests were not retried for want of budget, which nothing below excuses");
            self.report.violations.push(what);
        }
        let World { fleet, .. } = self.world;
        let backends = fleet.finish();
        let pages = self.book.pages();
        self.report.take_load(&self.load);
        self.report.take_book(&pages, &self.load.posts());
        self.report.verdict = judge(self.load.failures(), &pages, &backends, &errors);
        Ok(self.report)
    }
}

/// How long the proxies leave a backend alone that they could not reach.
const DEAD_BACKEND_TIME: Duration = Duration::from_secs(5);

/// Within which both proxies know of each other's marks, and of edits.
const MARGIN: Duration = Duration::from_secs(2);

/// How long it may take until all backends are asked again: as long as they are taken for dead, and what a busy machine
/// takes.
const BOUND: Duration = Duration::from_secs(15);

/// Rounds from one time that all backends are away to the next.
const OUTAGE_EVERY: usize = 4;

/// How long they are.
const OUTAGE: Duration = Duration::from_secs(2);

/// How precisely faults are timed.
const STEP: Duration = Duration::from_millis(5);
