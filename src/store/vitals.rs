//! What a Redis server says of itself, and what a change in that means for the data learnt from it.
//!
//! FLUSHDB, FLUSHALL, SWAPDB and a replica's full resynchronisation change every key without a single event, while
//! subscribers stay connected. Comparing two heartbeats is the only way to notice. Measured on Redis 7.0: a replica counts
//! the wiping commands it replays in `INFO commandstats`, and a full resynchronisation, even one that completes between
//! two heartbeats under the same replication id, starts its replication backlog anew.

/// One heartbeat's findings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vitals {
    /// Whether it is a master or a replica, and how the replica is doing.
    pub role: Role,
    /// The id of the data's history (`master_replid`); empty before Redis 4.
    pub replication_id: String,
    /// How far in that history the server has come, in bytes.
    pub offset: u64,
    /// What the server remembers of that history.
    pub backlog: Backlog,
    /// How often FLUSHDB, FLUSHALL and SWAPDB have run; `None` where INFO commandstats is not available.
    pub wipes: Option<u64>,
    /// Keys in the database (DBSIZE).
    pub keys: u64,
    /// What CONFIG GET says of keyspace notifications.
    pub notifications: Notifications,
}

/// Which data a server has: two servers, or one before and after a restart, agree in this only if one got its data from
/// the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The process (`run_id` of INFO server).
    pub run: String,
    /// The data's history (`master_replid` of INFO replication).
    pub history: String,
}

/// The replication backlog, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// The offset of its first byte (`repl_backlog_first_byte_offset`).
    pub start: u64,
    /// How long it is (`repl_backlog_histlen`).
    pub length: u64,
    /// How long it may be (`repl_backlog_size`).
    pub size: u64,
}

/// A server's place in replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It takes writes.
    Master,
    /// It follows a master.
    Replica {
        /// Whether it is connected to its master and in step.
        link_up: bool,
        /// Whether a full copy of the data is on its way.
        copying: bool,
    },
}

/// Whether the server announces changed keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notifications {
    /// Every event that we need is on.
    On,
    /// Some or all are off; the present value of `notify-keyspace-events`.
    Off(String),
    /// CONFIG is forbidden or renamed, as on managed services.
    Unknown,
}

/// A reason to believe that keys changed without events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// A command that empties or swaps databases has run.
    #[error("FLUSHDB, FLUSHALL or SWAPDB has run")]
    Wiped,
    /// The data now descends from another history.
    #[error("the replication id has changed")]
    History,
    /// A replica received a full copy from its master.
    #[error("the replica was resynchronised with its master")]
    Resynchronised,
    /// A replica that was cut off is in step again.
    #[error("the replica's link to its master is restored")]
    LinkRestored,
    /// The server changed between master and replica.
    #[error("the server's role has changed")]
    Role,
    /// Far fewer keys than a heartbeat ago, on a server that does not count wipes.
    #[error("more than half of the keys are gone")]
    KeysFell,
    /// Notifications were switched on, so that what happened before went unannounced.
    #[error("keyspace notifications have been switched on")]
    NotificationsOn,
}

impl Vitals {
    /// Reads INFO replication, INFO commandstats (where allowed), DBSIZE and CONFIG GET notify-keyspace-events (where
    /// allowed).
    pub fn parse(replication: &str, commands: Option<&str>, keys: u64, flags: Option<&str>) -> Self {
        let number = |name| field(replication, name).and_then(|value| value.parse().ok()).unwrap_or(0);
        let role = match field(replication, "role") {
            Some("slave") => Role::Replica {
                link_up: field(replication, "master_link_status") == Some("up"),
                copying: field(replication, "master_sync_in_progress") == Some("1"),
            },
            _ => Role::Master,
        };
        Self {
            role,
            replication_id: field(replication, "master_replid").unwrap_or_default().to_owned(),
            // A replica tells how much it has applied, and repeats as its own what it passes on to others.
            offset: number("slave_repl_offset").max(number("master_repl_offset")),
            backlog: Backlog {
                start: number("repl_backlog_first_byte_offset"),
                length: number("repl_backlog_histlen"),
                size: number("repl_backlog_size"),
            },
            wipes: commands.map(|stats| {
                ["cmdstat_flushdb", "cmdstat_flushall", "cmdstat_swapdb"].iter().map(|name| calls(stats, name)).sum()
            }),
            keys,
            notifications: match flags {
                None => Notifications::Unknown,
                Some(flags) if covers_all_we_need(flags) => Notifications::On,
                Some(flags) => Notifications::Off(flags.to_owned()),
            },
        }
    }

    /// Which data this is, given INFO server where that is allowed.
    pub fn identity(&self, server: Option<&str>) -> Identity {
        let run = server.and_then(|info| field(info, "run_id")).unwrap_or_default();
        Identity { run: run.to_owned(), history: self.replication_id.clone() }
    }

    /// Why data learnt at `before` may no longer be right, if it may not.
    pub fn doubt_since(&self, before: &Vitals) -> Option<Doubt> {
        if self.wipes != before.wipes {
            return Some(Doubt::Wiped);
        }
        if self.wipes.is_none() && before.keys >= 10 && self.keys < before.keys / 2 {
            return Some(Doubt::KeysFell);
        }
        if self.replication_id != before.replication_id {
            return Some(Doubt::History);
        }
        if self.notifications == Notifications::On && before.notifications != Notifications::On {
            return Some(Doubt::NotificationsOn);
        }
        match (before.role, self.role) {
            (Role::Replica { link_up: false, .. }, Role::Replica { link_up: true, .. }) => Some(Doubt::LinkRestored),
            (Role::Replica { .. }, Role::Replica { .. }) => {
                // A backlog gives up its first bytes only when it is full; below that, another beginning is a new one.
                let Backlog { start, length, size } = self.backlog;
                (start != before.backlog.start && length < size).then_some(Doubt::Resynchronised)
            }
            (Role::Master, Role::Master) => None,
            _ => Some(Doubt::Role),
        }
    }

    /// Why the server's data should not be trusted to be current, if it should not.
    pub fn stale(&self) -> Option<&'static str> {
        match self.role {
            Role::Replica { link_up: false, copying: true } => Some("the replica is being resynchronised"),
            Role::Replica { link_up: false, .. } => Some("the replica has lost its master"),
            _ => None,
        }
    }
}

/// The value of `name:value` in an INFO section.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim_end)
}

/// N of `name:calls=N,usec=…`.
fn calls(stats: &str, name: &str) -> u64 {
    let count = || field(stats, name)?.strip_prefix("calls=")?.split(',').next()?.parse().ok();
    count().unwrap_or(0)
}

/// Whether a value of `notify-keyspace-events` announces every change of a list or a set: K, and either A or generic,
/// string (SET over a list), list, set, hash and sorted set (stores over a list), expired and evicted events.
fn covers_all_we_need(flags: &str) -> bool {
    flags.contains('K') && (flags.contains('A') || "g$lshzxe".chars().all(|flag| flags.contains(flag)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(start: u64, length: u64) -> Vitals {
        let info = format!(
            "# Replication\r\nrole:slave\r\nmaster_link_status:up\r\nmaster_sync_in_progress:0\r\nmaster_replid:abc\r\n\
             repl_backlog_size:1048576\r\nrepl_backlog_first_byte_offset:{start}\r\nrepl_backlog_histlen:{length}\r\nslave_repl_offset:77\r\n"
        );
        let stats = "# Commandstats\r\ncmdstat_flushdb:calls=2,usec=17\r\ncmdstat_swapdb:calls=1,usec=2\r\n";
        Vitals::parse(&info, Some(stats), 7, Some("AK"))
    }

    #[test]
    fn reads_what_redis_prints() {
        let vitals = replica(1, 188);
        assert_eq!(vitals.role, Role::Replica { link_up: true, copying: false });
        assert_eq!(vitals.replication_id, "abc");
        assert_eq!(vitals.backlog, Backlog { start: 1, length: 188, size: 1_048_576 });
        assert_eq!(vitals.offset, 77);
        assert_eq!((vitals.wipes, vitals.keys), (Some(3), 7));
        assert_eq!(vitals.notifications, Notifications::On);
    }

    #[test]
    fn an_uneventful_second_raises_no_doubt() {
        assert_eq!(replica(1, 188).doubt_since(&replica(1, 188)), None);
        assert_eq!(replica(1, 999).doubt_since(&replica(1, 188)), None);
    }

    #[test]
    fn a_backlog_that_begins_elsewhere_is_a_new_one_unless_it_is_full() {
        assert_eq!(replica(189, 0).doubt_since(&replica(1, 188)), Some(Doubt::Resynchronised));
        assert_eq!(replica(20_000, 999).doubt_since(&replica(1, 188)), Some(Doubt::Resynchronised));
        // At its full size a backlog is trimmed in blocks.
        assert_eq!(replica(30_000, 1_048_600).doubt_since(&replica(1, 1_064_000)), None);
    }

    #[test]
    fn each_silent_change_is_noticed() {
        let before = replica(1, 188);
        let changed = |change: fn(&mut Vitals)| {
            let mut now = before.clone();
            change(&mut now);
            now.doubt_since(&before)
        };
        assert_eq!(changed(|now| now.wipes = Some(4)), Some(Doubt::Wiped));
        assert_eq!(changed(|now| now.wipes = Some(0)), Some(Doubt::Wiped));
        assert_eq!(changed(|now| now.replication_id = "def".into()), Some(Doubt::History));
        assert_eq!(changed(|now| now.role = Role::Master), Some(Doubt::Role));
        assert_eq!(changed(|now| now.keys = 0), None);
        let mut cut_off = before.clone();
        cut_off.role = Role::Replica { link_up: false, copying: false };
        assert_eq!(cut_off.doubt_since(&before), None);
        assert_eq!(before.doubt_since(&cut_off), Some(Doubt::LinkRestored));
        let mut off = before.clone();
        off.notifications = Notifications::Off(String::new());
        assert_eq!(before.doubt_since(&off), Some(Doubt::NotificationsOn));
    }

    #[test]
    fn without_command_statistics_a_fall_of_the_key_count_is_a_doubt() {
        let mut before = replica(1, 1);
        before.wipes = None;
        before.keys = 100;
        let mut now = before.clone();
        now.keys = 49;
        assert_eq!(now.doubt_since(&before), Some(Doubt::KeysFell));
        now.keys = 51;
        assert_eq!(now.doubt_since(&before), None);
    }

    #[test]
    fn partial_notifications_are_not_enough() {
        assert!(covers_all_we_need("KA") && covers_all_we_need("AKE"));
        assert!(covers_all_we_need("g$lshzxeK"));
        assert!(!covers_all_we_need("Klshgx"));
        assert!(!covers_all_we_need("EA"));
        assert!(!covers_all_we_need(""));
    }
}
