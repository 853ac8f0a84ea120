//! Rounds of faults, each with a calm after it in which everything must come to agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use planb::demo::PrivateRedis;
use tokio::{net::TcpStream, runtime::Handle, time};

use super::{
    backends::Backends,
    dice::Dice,
    faults::Fault,
    http::get,
    load::Load,
    model::{Expected, Model, may_expire},
    proxy::Proxy,
    redis::{Command, Redis, Reply, command},
    relay::Relay,
    report::Report,
    stop::Stop,
    world::{MASTER, REPLICA, Target, World},
    writer::{Editing, Writer},
};

/// One seed's worth of faults.
pub struct Campaign {
    /// What everything is drawn from.
    pub seed: u64,
    /// How long to inflict faults.
    pub time: Duration,
    /// Hosts that are edited.
    pub hosts: usize,
    /// Where the proxy's log is kept.
    pub log: Option<PathBuf>,
    /// The proxy's executable.
    pub planb: PathBuf,
}

impl Campaign {
    /// Sets everything up, runs, and takes everything down.
    ///
    /// # Errors
    /// When the harness itself fails, or is asked to end. What the proxy does wrong stands in the report.
    pub fn run(self, runtime: &Handle, stop: &Arc<Stop>) -> anyhow::Result<Report> {
        let result = self.rounds(runtime, stop);
        // The clients and the writer end with it.
        stop.request();
        result
    }

    fn rounds(&self, runtime: &Handle, stop: &Arc<Stop>) -> anyhow::Result<Report> {
        let backends = Arc::new(Backends::start(runtime)?);
        let master = PrivateRedis::start(MASTER)?;
        let port = master.port().to_string();
        let replica = PrivateRedis::start(&[REPLICA, &["--replicaof", "127.0.0.1", &port]].concat())?;
        let model = Model::new(&backends, self.hosts);
        let steady = model.steady().into_iter().map(|(host, expected)| match expected {
            Expected::Answers(names) => (host, names),
            Expected::NoRoute | Expected::Unavailable => (host, BTreeSet::new()),
        });
        let steady = steady.collect();
        let others = model.edited().into_iter().map(|(host, _)| host).collect();
        let mut writer = Writer::new(model, Dice::new(self.seed, 1), master.port(), stop);
        writer.write_all(&[])?;
        master.wait_for_replica(&replica)?;
        let relay = Relay::start(runtime, replica.port())?;
        let arguments = [
            "--shrink-grace=30s".to_owned(),
            "--reconcile-interval=10s".to_owned(),
            "--dead-backend-time=2".to_owned(),
            format!("--read-redis-port={}", relay.address.port()),
            format!("--write-redis-port={}", master.port()),
        ];
        let proxy = Proxy::start(&self.planb, &arguments, self.log.clone())?;
        writer.edit(2 * self.hosts);
        let editing = Editing::start(writer, Dice::new(self.seed, 2));
        let load = Load::start(runtime, proxy.address, steady, others, self.seed, stop);
        let world = World { master, replica, relay, editing, load, stop: Arc::clone(stop) };
        let report = Report::new(self.seed);
        let mut course = Course { world, proxy, runtime: runtime.clone(), report, faults: BTreeMap::new() };
        course.run(self)?;
        course.finish()
    }
}

/// A campaign under way.
struct Course {
    world: World,
    proxy: Proxy,
    runtime: Handle,
    report: Report,
    faults: BTreeMap<String, usize>,
}

impl Course {
    fn run(&mut self, campaign: &Campaign) -> anyhow::Result<()> {
        let mut dice = Dice::new(campaign.seed, 3);
        let mut deck = Vec::new();
        self.calm("the beginning")?;
        while self.world.load.elapsed() < campaign.time && self.report.violations.is_empty() {
            self.world.editing.pause(false);
            let mut scenes = Vec::new();
            for _ in 0..=dice.below(3) {
                if deck.is_empty() {
                    deck = Fault::deck(&mut dice);
                }
                let gap = dice.millis(0, 600);
                let Some(fault) = deck.pop() else { break };
                scenes.push(fault.to_string());
                let scene = scenes.join(", then ");
                eprintln!("[{:7.2?}] {fault}", self.world.load.elapsed());
                self.world.load.set_scene(scene.clone());
                *self.faults.entry(fault.kind()).or_default() += 1;
                fault.inflict(&mut self.world).with_context(|| format!("the harness failed: {scene}"))?;
                self.world.stop.pause(gap)?;
            }
            self.calm(&scenes.join(", then "))?;
        }
        Ok(())
    }

    /// Waits until Redis agrees with the model, and then until the proxy does.
    fn calm(&mut self, scene: &str) -> anyhow::Result<()> {
        self.world.editing.pause(true);
        self.world.load.set_scene(format!("the calm after: {scene}"));
        self.settle().with_context(|| format!("the harness failed in the calm after: {scene}"))?;
        let began = Instant::now();
        let mut stream = None;
        loop {
            match self.disagreement(&mut stream) {
                Ok(None) => break,
                _ if !self.proxy.is_running() => {
                    self.violation(format!("the proxy has ended; {scene}"));
                    return Ok(());
                }
                difference if began.elapsed() > BOUND => {
                    let what = difference.map_or_else(|error| error.to_string(), Option::unwrap_or_default);
                    self.violation(format!("no convergence within {BOUND:?}: {what}; {scene}"));
                    return Ok(());
                }
                _ => self.world.stop.pause(Duration::from_millis(20))?,
            }
        }
        let took = began.elapsed();
        eprintln!("[{:7.2?}]     agreed after {took:.2?}", self.world.load.elapsed());
        self.report.convergence.push((took, scene.to_owned()));
        self.world.load.pardon(false);
        Ok(())
    }

    fn violation(&mut self, what: String) {
        let log = self.proxy.log();
        // Lines about single requests are left out.
        let lines: Vec<&str> = log.lines().filter(|line| !line.starts_with("ERROR in ")).collect();
        eprintln!("{what}; the proxy's last words:");
        lines[lines.len().saturating_sub(LOG_LINES)..].iter().for_each(|line| eprintln!("    {line}"));
        self.report.violations.push(what);
    }

    /// Waits until both servers hold what the model says.
    fn settle(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let mut writer = self.world.editing.writer();
            let settled = writer.repair().map_err(anyhow::Error::from).and_then(|()| {
                check(&mut self.world.connect(Target::Master)?, &writer.model).context("on the master")?;
                let mut replica = self.world.connect(Target::Replica)?;
                check(&mut replica, &writer.model).context("on the replica")?;
                match replica.ask(&["INFO", "replication"])? {
                    Reply::Text(info) if info.contains("master_link_status:up") => Ok(()),
                    _ => bail!("the replica is not connected to its master"),
                }
            });
            drop(writer);
            match settled {
                Ok(()) => return Ok(()),
                Err(error) if began.elapsed() > SETTLED => return Err(error),
                Err(_) => self.world.stop.pause(Duration::from_millis(10))?,
            }
        }
    }

    /// In what the proxy differs from the model, if in anything.
    fn disagreement(&self, stream: &mut Option<TcpStream>) -> anyhow::Result<Option<String>> {
        let (wanted, hosts) = {
            let writer = self.world.editing.writer();
            (writer.model.frontends(), [writer.model.steady(), writer.model.edited()].concat())
        };
        let frontends = self.proxy.metric(&self.runtime, "planb_router_frontends")?;
        #[expect(clippy::cast_precision_loss, reason = "it is small")]
        if (frontends - wanted as f64).abs() > 0.5 {
            return Ok(Some(format!("{frontends} frontends instead of {wanted}")));
        }
        self.runtime.block_on(async {
            for (host, expected) in hosts {
                let checked = time::timeout(PATIENCE, self.differs(stream, &host, &expected)).await;
                if let Some(answer) = checked.context("no answer")?? {
                    return Ok(Some(format!("{host} answers {answer} instead of {expected:?}")));
                }
            }
            Ok(None)
        })
    }

    async fn differs(
        &self,
        stream: &mut Option<TcpStream>,
        host: &str,
        expected: &Expected,
    ) -> anyhow::Result<Option<String>> {
        let mut connection = match stream.take() {
            Some(connection) => connection,
            None => TcpStream::connect(self.proxy.address).await?,
        };
        let mut met = BTreeSet::new();
        // The clients take turns too, so it may need more requests than there are backends.
        for _ in 0..REQUESTS {
            let answer = get(&mut connection, host, "/").await?;
            let is_expected = match expected {
                Expected::NoRoute => answer.status == 400 && answer.body == "no such route",
                Expected::Unavailable => answer.status == 503,
                Expected::Answers(names) => answer.status == 200 && names.contains(&answer.body),
            };
            if !is_expected {
                *stream = Some(connection);
                return Ok(Some(format!("{} {:?}", answer.status, answer.body)));
            }
            met.insert(answer.body);
            if !matches!(expected, Expected::Answers(names) if *names != met) {
                *stream = Some(connection);
                return Ok(None);
            }
        }
        *stream = Some(connection);
        Ok(Some(format!("by {met:?} alone")))
    }

    /// Sums up.
    fn finish(mut self) -> anyhow::Result<Report> {
        self.report.time = self.world.load.elapsed();
        self.report.faults = self.faults;
        self.report.edits = self.world.editing.writer().edits;
        self.report.take(&self.world.load);
        if self.proxy.is_running() {
            let metric = |name| self.proxy.metric(&self.runtime, name);
            self.report.drift = metric("planb_sync_drift_total")?;
            self.report.resyncs = metric("planb_sync_resyncs_total")?;
            self.report.cpu = metric("process_cpu_seconds_total")?;
            self.report.memory = self.proxy.peak_memory();
            let log = self.proxy.log();
            let drifts = log.lines().filter(|line| line.contains("had drifted"));
            let (excused, drifts): (Vec<&str>, Vec<&str>) = drifts.partition(|line| may_expire(line));
            self.report.drift_excused = excused.len();
            if let Some(first) = drifts.first() {
                self.report.violations.push(format!("{} drifts, of which the first: {first}", drifts.len()));
            }
        }
        Ok(self.report)
    }
}

/// Whether a server holds what the model says.
fn check(redis: &mut Redis, model: &Model) -> anyhow::Result<()> {
    let (keys, lists): (Vec<String>, Vec<&[String]>) = model.lists().unzip();
    let commands: Vec<Command> = keys.iter().map(|key| command(&["LRANGE", key, "0", "-1"])).collect();
    for ((key, list), reply) in keys.iter().zip(lists).zip(redis.send(&commands)?) {
        let held = Reply::Array(list.iter().cloned().map(Reply::Text).collect());
        ensure!(reply == held, "{key} holds {reply:?} instead of {held:?}");
    }
    let (commands, numbers): (Vec<Command>, Vec<i64>) = model.counts().into_iter().unzip();
    for (number, reply) in numbers.into_iter().zip(redis.send(&commands)?) {
        ensure!(reply == Reply::Number(number), "{reply:?} keys instead of {number}");
    }
    Ok(())
}

/// How long the proxy may take to agree once Redis is well: the 30 seconds for which it keeps what seems lost, and a
/// reload.
const BOUND: Duration = Duration::from_secs(40);

/// How long Redis may take.
const SETTLED: Duration = Duration::from_mins(1);

/// How long one host may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Requests to a host within which each of its backends must have answered one.
const REQUESTS: usize = 60;

/// Lines of the proxy's log that are shown with a violation.
const LOG_LINES: usize = 60;
