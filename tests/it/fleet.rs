//! Several instances and the dead marks that they share.

use super::support::{Backend, Planb, PrivateRedis, closed_port, redis, redis_cli, redis_pair, replica_of, wait_until};

const HOST: &str = "fleet.test";
const LIST: &str = "frontend:fleet.test";
const SET: &str = "dead:fleet.test";

/// A master that announces its own changes, two replicas, and an instance that reads from each. The first of the host's two
/// backends refuses connections.
struct Fleet {
    master: PrivateRedis,
    replica: PrivateRedis,
    _other: PrivateRedis,
    instances: Vec<Planb>,
    refusing: String,
    good: Backend,
    _guard: socket2::Socket,
}

impl Fleet {
    fn start() -> Self {
        let (master, replica) = redis_pair();
        redis(&master, &["CONFIG", "SET", "notify-keyspace-events", "KA"]);
        let other = replica_of(&master);
        let ((guard, refusing), good) = (closed_port(), Backend::named("good"));
        redis(&master, &["RPUSH", LIST, "id", &refusing, &good.url()]);
        let readers = [&master, &replica, &other];
        for reader in readers {
            wait_until("the list is everywhere", || redis_cli(reader, &["LLEN", LIST]) == "3");
        }
        let instances = readers.map(|reader| Planb::builder(reader, &master).start()).into();
        Self { master, replica, _other: other, instances, refusing, good, _guard: guard }
    }

    /// Waits until every instance has taken in what the master was told so far.
    fn settle(&self) {
        let sign = format!("frontend:sign-{}.test", self.good.requests().len());
        redis(&self.master, &["RPUSH", &sign, "id", &self.good.url()]);
        for planb in &self.instances {
            planb.wait_for_route(sign.trim_start_matches("frontend:"));
        }
    }

    /// An instance is asked for both turns; how many of the requests met the backend that refuses.
    fn retries_of(planb: &Planb) -> u64 {
        let retries = || planb.count("planb_reverseproxy_retries_total");
        let before = retries();
        assert_eq!((planb.ask(HOST).as_str(), planb.ask(HOST).as_str()), ("good", "good"));
        retries() - before
    }

    fn retries(&self) -> Vec<u64> {
        self.instances.iter().map(Self::retries_of).collect()
    }
}

#[test]
fn what_one_instance_finds_dead_no_other_tries() {
    let fleet = Fleet::start();
    assert_eq!(fleet.instances[0].ask(HOST), "good");
    wait_until("the mark is recorded", || redis_cli(&fleet.master, &["SMEMBERS", SET]) == "0");
    fleet.settle();
    assert_eq!(fleet.retries(), [0, 0, 0]);
    let marks: Vec<_> =
        fleet.instances.iter().map(|planb| planb.count("planb_router_backend_markdead_total")).collect();
    assert_eq!(marks, [1, 0, 0]);
}

#[test]
fn an_instance_that_starts_again_knows_the_marks() {
    let mut fleet = Fleet::start();
    fleet.instances[0].ask(HOST);
    wait_until("the replica has the mark", || redis_cli(&fleet.replica, &["SMEMBERS", SET]) == "0");
    fleet.instances = vec![Planb::builder(&fleet.replica, &fleet.master).start()];
    assert_eq!(fleet.retries(), [0]);
}

#[test]
fn every_instance_heeds_a_revival_of_any_kind() {
    let fleet = Fleet::start();
    for revival in
        [&["SREM", SET, "0"][..], &["DEL", SET], &["PEXPIRE", SET, "1"], &["RENAME", SET, "dead:nobody.test"]]
    {
        for planb in &fleet.instances {
            redis(&fleet.master, &["SADD", SET, "0"]);
            fleet.settle();
            assert_eq!(fleet.retries(), [0, 0, 0], "before {revival:?}");
            redis(&fleet.master, revival);
            wait_until("the set is gone", || redis_cli(&fleet.master, &["EXISTS", SET]) == "0");
            fleet.settle();
            // It finds the backend dead again, and says so; hence only one at a time can be asked.
            assert_eq!(Fleet::retries_of(planb), 1, "after {revival:?}");
            wait_until("the mark is recorded", || redis_cli(&fleet.master, &["SMEMBERS", SET]) == "0");
            redis(&fleet.master, &["DEL", SET]);
            fleet.settle();
        }
    }
}

#[test]
fn an_edit_of_the_list_moves_no_mark_on_any_instance() {
    let fleet = Fleet::start();
    fleet.instances[0].ask(HOST);
    wait_until("the mark is recorded", || redis_cli(&fleet.master, &["SMEMBERS", SET]) == "0");
    fleet.settle();
    // Index 0 is the good one's now, and the set still says 0.
    redis(&fleet.master, &["LREM", LIST, "0", &fleet.good.url()]);
    redis(&fleet.master, &["LINSERT", LIST, "BEFORE", &fleet.refusing, &fleet.good.url()]);
    fleet.settle();
    assert_eq!(fleet.retries(), [0, 0, 0]);
    redis(&fleet.master, &["LREM", LIST, "0", &fleet.refusing]);
    fleet.settle();
    assert_eq!(fleet.retries(), [0, 0, 0]);
}
