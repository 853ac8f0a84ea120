//! Where a Redis server is: at a fixed address, or wherever the sentinels say.
//!
//! Sentinels disagree during every fail-over, and one that was cut off goes on naming a master of the past, which may well
//! still be up and take writes. So answers are weighed by the fail-over they follow from, an older one than is known
//! already counts only where most sentinels give one, and whoever is named is asked whether it agrees.

mod link;
mod view;
mod watch;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use fred::{interfaces::ClientLike, types::InfoKind};
use tokio::{task::JoinSet, time};

use super::{
    Access, Address, Role, Server, StoreError, Vitals,
    client::{Connection, NO_SUBSCRIPTION},
};

use link::Link;
use view::View;
pub use watch::{Moved, Watch};

/// How to find a Redis server.
#[derive(Clone, Debug)]
pub enum Place {
    /// It is this one.
    At(Server),
    /// The sentinels know.
    Sentinel(Sentinels),
}

/// What a server is looked for for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To write: the master.
    Write,
    /// To read from the master.
    ReadMaster,
    /// To read from a healthy replica, or from the master while there is none.
    ReadReplica,
}

/// A server to use now.
pub struct Found {
    /// The server.
    pub server: Server,
    /// What tells when to use another.
    pub watch: Watch,
}

impl Place {
    /// Finds the server.
    ///
    /// # Errors
    /// When no sentinel can say, or the server that they name cannot be used yet.
    pub async fn find(&self) -> Result<Found, StoreError> {
        match self {
            Self::At(server) => Ok(Found { server: server.clone(), watch: Watch::none() }),
            Self::Sentinel(sentinels) => {
                let found = sentinels.find().await?;
                Ok(Found { server: found.server.clone(), watch: Watch::over(sentinels.clone(), found) })
            }
        }
    }

    /// As [`Place::find`], for those who leave before the server could change.
    ///
    /// # Errors
    /// As [`Place::find`].
    pub async fn find_briefly(&self) -> Result<Server, StoreError> {
        match self {
            Self::At(server) => Ok(server.clone()),
            Self::Sentinel(sentinels) => sentinels.find().await.map(|found| found.server),
        }
    }

    /// Whether the server may change.
    pub fn is_movable(&self) -> bool {
        matches!(self, Self::Sentinel(_))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(server) => server.fmt(f),
            Self::Sentinel(sentinels) => f.write_str(&sentinels.name),
        }
    }
}

/// The sentinels that watch over a master. Clones share what they have learnt.
#[derive(Clone)]
pub struct Sentinels {
    addresses: Arc<[Server]>,
    name: String,
    purpose: Purpose,
    access: Access,
    memory: Arc<Memory>,
}

/// What one server was found by.
struct Finding {
    server: Server,
    epoch: u64,
}

impl Sentinels {
    /// The sentinels at these addresses, which know the master by `name`. There must be at least one.
    pub fn new(addresses: Vec<Server>, name: String, purpose: Purpose, access: Access) -> Self {
        let [first, ..] = *uuid::Uuid::new_v4().as_bytes();
        let memory = Memory { preference: first.into(), learnt: Mutex::default() };
        Self { addresses: addresses.into(), name, purpose, access, memory: Arc::new(memory) }
    }

    async fn find(&self) -> Result<Finding, StoreError> {
        let view = self.ask().await?;
        let server = self.choose(&view).await?;
        Ok(Finding { server, epoch: view.epoch })
    }

    /// Asks all sentinels at once, so that one that is frozen delays nothing while another answers.
    async fn ask(&self) -> Result<View, StoreError> {
        let mut asked = JoinSet::new();
        for (index, sentinel) in self.addresses.iter().cloned().enumerate() {
            let name = self.name.clone();
            asked.spawn(async move {
                let link = Link::open(&sentinel).await.map_err(|error| (index, error))?;
                link.look(&name).await.map_err(|error| (index, error))
            });
        }
        let known = self.memory.epoch();
        let (mut outdated, mut failures) = (Vec::new(), Vec::new());
        while let Some(answer) = asked.join_next().await {
            match answer.expect("asking a sentinel does not panic") {
                Ok(view) if view.epoch >= known => {
                    self.memory.learn(view.epoch);
                    return Ok(view);
                }
                Ok(view) => outdated.push(view),
                Err(failure) => failures.push(failure),
            }
        }
        // Epochs begin anew when sentinels are set up anew; one that is merely behind is alone with that.
        if outdated.len() * 2 > self.addresses.len()
            && let Some(view) = outdated.into_iter().max_by_key(|view| view.epoch)
        {
            self.memory.forget();
            self.memory.learn(view.epoch);
            return Ok(view);
        }
        // The same one each time, so that it is logged once: a wrong password or name before a sentinel that is down.
        failures.sort_by_key(|(index, error)| {
            (!error.is_misconfiguration(), !matches!(error, StoreError::UnknownMaster { .. }), *index)
        });
        let name = self.name.clone();
        Err(match failures.into_iter().next() {
            Some((_, error @ StoreError::UnknownMaster { .. })) => error,
            Some((_, source)) => StoreError::Sentinels { name, source: Box::new(source) },
            None => StoreError::Outdated { name },
        })
    }

    /// The server to use by what a sentinel says.
    async fn choose(&self, view: &View) -> Result<Server, StoreError> {
        match self.purpose {
            Purpose::ReadReplica => {
                let asked = probe(&self.server(&view.master)).await.ok().flatten();
                let mark = asked.filter(|vitals| vitals.role == Role::Master);
                for address in view.healthy(self.memory.preference) {
                    let server = self.server(address);
                    if self.reaches(&server, mark.as_ref()).await {
                        return Ok(server);
                    }
                }
            }
            Purpose::Write => {
                if let Some(server) = self.expected().await {
                    return Ok(server);
                }
                if view.in_trouble
                    && let Some(server) = self.promoted(view).await
                {
                    return Ok(server);
                }
            }
            Purpose::ReadMaster => {}
        }
        match self.named(view).await {
            // Not every sentinel knows at once that a master is down.
            Err(error) if self.purpose == Purpose::Write && !view.in_trouble => self.promoted(view).await.ok_or(error),
            named => named,
        }
    }

    /// The server that is named as the master, if it agrees.
    async fn named(&self, view: &View) -> Result<Server, StoreError> {
        let server = self.server(&view.master);
        match probe(&server).await? {
            Some(Vitals { role: Role::Replica { .. }, .. }) => Err(StoreError::NotReady {
                server: server.to_string(),
                reason: "the sentinels name it as the master, but it is a replica",
            }),
            _ => Ok(server),
        }
    }

    /// The replica that was seen to be promoted a moment ago.
    async fn expected(&self) -> Option<Server> {
        let server = self.server(&self.memory.expected()?);
        self.leads(&server).await.then_some(server)
    }

    /// The replica that says it is a master now. Only writers may take its word for it: what they write to a server that
    /// the sentinels then do not name is written again, while a routing table from such a server would be believed.
    async fn promoted(&self, view: &View) -> Option<Server> {
        let mut asked = JoinSet::new();
        for replica in view.replicas.iter().filter(|replica| replica.is_up && replica.address != view.master) {
            let (sentinels, server) = (self.clone(), self.server(&replica.address));
            asked.spawn(async move { sentinels.leads(&server).await.then_some(server) });
        }
        while let Some(answer) = asked.join_next().await {
            if let Some(server) = answer.expect("asking a server does not panic") {
                return Some(server);
            }
        }
        None
    }

    async fn leads(&self, server: &Server) -> bool {
        matches!(probe(server).await, Ok(Some(Vitals { role: Role::Master, .. })))
    }

    /// Whether a replica is connected to its master and has got, or soon gets, as far as the master is. One that has only
    /// just received its copy of the data says that it is connected, but its master holds back all that came after, for
    /// up to a second; one that still follows a master of the past has another history.
    async fn reaches(&self, server: &Server, master: Option<&Vitals>) -> bool {
        let is_behind = |vitals: &Vitals| {
            master.is_some_and(|master| vitals.replication_id != master.replication_id || vitals.offset < master.offset)
        };
        let deadline = Instant::now() + IN_STEP_LIMIT;
        loop {
            match probe(server).await {
                Ok(None) => return true,
                Ok(Some(vitals)) if vitals.role != (Role::Replica { link_up: true, copying: false }) => return false,
                Ok(Some(vitals)) if is_behind(&vitals) && Instant::now() < deadline => {
                    time::sleep(IN_STEP_LIMIT / 20).await;
                }
                Ok(Some(vitals)) => return !is_behind(&vitals),
                Err(_) => return false,
            }
        }
    }

    fn server(&self, address: &Address) -> Server {
        self.access.to(address)
    }
}

impl fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} by {:?}", self.purpose, self.name, self.addresses)
    }
}

/// Asks a server about its place in replication; `None` if its access list forbids that.
async fn probe(server: &Server) -> Result<Option<Vitals>, StoreError> {
    let connection = Connection::open_within(PROBE_LIMIT, server, NO_SUBSCRIPTION).await?;
    match connection.ask(PROBE_LIMIT, connection.client.info::<String>(Some(InfoKind::Replication))).await {
        Ok(info) => Ok(Some(Vitals::parse(&info, None, 0, None))),
        Err(StoreError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What finding has taught.
struct Memory {
    /// Which of several replicas to begin with.
    preference: usize,
    learnt: Mutex<Learnt>,
}

#[derive(Default)]
struct Learnt {
    epoch: u64,
    promoted: Option<(Address, Instant)>,
}

impl Memory {
    /// The newest fail-over that a sentinel has told of.
    fn epoch(&self) -> u64 {
        self.with(|learnt| learnt.epoch)
    }

    fn learn(&self, epoch: u64) {
        self.with(|learnt| learnt.epoch = learnt.epoch.max(epoch));
    }

    fn forget(&self) {
        self.with(|learnt| *learnt = Learnt::default());
    }

    /// A replica that has become the master, which most sentinels do not know yet.
    fn expect(&self, promoted: Address) {
        self.with(|learnt| learnt.promoted = Some((promoted, Instant::now())));
    }

    fn expected(&self) -> Option<Address> {
        self.with(|learnt| learnt.promoted.clone()).filter(|(_, when)| when.elapsed() < EXPECTATION).map(|(at, _)| at)
    }

    fn with<T>(&self, action: impl FnOnce(&mut Learnt) -> T) -> T {
        action(&mut self.learnt.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How long a server may take to be connected to, and to say what it is.
const PROBE_LIMIT: Duration = Duration::from_millis(500);

/// How long a replica may take to be as current as its master was.
const IN_STEP_LIMIT: Duration = Duration::from_millis(1_200);

/// How long a promotion may take to be known to all sentinels.
const EXPECTATION: Duration = Duration::from_secs(3);
