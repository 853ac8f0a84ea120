//! Which keyspace notifications are on, where Redis does not say so; and what becomes of those that are believed and fail.

use super::support::{
    Authority, Backend, Planb, PrivateRedis, redis, redis_cli, redis_pipe, replica_of, shown, wait_until,
};

/// A master whose CONFIG has another name, with these notifications.
fn reserved(notifications: &str) -> PrivateRedis {
    PrivateRedis::start(&["--rename-command", "CONFIG", RENAMED, "--notify-keyspace-events", notifications]).unwrap()
}

/// A proxy of certificates too, which does not read everything again in the life of a test unless it polls.
fn following(read: &PrivateRedis, write: &PrivateRedis) -> Planb {
    Planb::builder(read, write).arguments(&["--tls-listen=127.0.0.1:0", "--reconcile-interval=1h"]).start()
}

/// Waits for an edit of each kind to take effect.
fn edits_are_live(planb: &Planb, server: &PrivateRedis) {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let key = "frontend:edit.test";
    let edit = |words: &[&str]| redis(server, words);
    let answers = |wanted: &str| {
        wait_until(&format!("{wanted} answers"), || (0..3).all(|_| planb.ask("edit.test") == wanted));
    };
    edit(&["RPUSH", key, "id", &a.url()]);
    answers("a");
    edit(&["LSET", key, "1", &b.url()]);
    answers("b");
    edit(&["SADD", "dead:edit.test", "0"]);
    answers("all backends are dead");
    edit(&["SREM", "dead:edit.test", "0"]);
    answers("b");
    edit(&["RENAME", key, "frontend:moved.test"]);
    answers("no such route");
    assert_eq!(planb.ask("moved.test"), "b");
    edit(&["PEXPIRE", "frontend:moved.test", "20"]);
    planb.wait_for_no_route("moved.test");
    edit(&["RPUSH", key, "id", &a.url()]);
    answers("a");
    edit(&["DEL", key]);
    answers("no such route");

    let authority = Authority::new();
    let shows = || shown(&authority, planb.tls_address(), "edit.test").is_some();
    authority.issue(&["edit.test"]).install(server, "edit.test");
    wait_until("the certificate is shown", shows);
    edit(&["DEL", "tls:edit.test"]);
    wait_until("the certificate is gone", || !shows());
}

fn polls(planb: &Planb) -> bool {
    planb.count("planb_sync_polling") == 1
}

fn drift(planb: &Planb) -> u64 {
    planb.count("planb_sync_drift_total")
}

fn times_said(planb: &Planb, text: &str) -> usize {
    planb.log().iter().filter(|line| line.contains(text)).count()
}

#[test]
fn notifications_of_some_kinds_are_not_taken_for_all() {
    let is_taken_for_all = |notifications: &str| {
        let server = reserved(notifications);
        let planb = following(&server, &server);
        edits_are_live(&planb, &server);
        assert!(polls(&planb), "{notifications}");
        assert_eq!((times_said(&planb, "may not run CONFIG GET"), drift(&planb)), (1, 0), "{notifications}");
        assert_eq!(times_said(&planb, "following events"), 0, "{notifications}");
    };
    std::thread::scope(|scope| {
        for notifications in ["KEx", "KE$", "Kl", "Kglshz", "EA"] {
            scope.spawn(move || is_taken_for_all(notifications));
        }
    });
}

#[test]
fn the_proxy_has_each_kind_happen_so_as_to_hear_it() {
    let master = reserved("KA");
    let port = master.port().to_string();
    let replica = ["--replicaof", "127.0.0.1", &port, "--rename-command", "CONFIG", RENAMED];
    let replica = PrivateRedis::start(&[&replica[..], &["--notify-keyspace-events", "KA"]].concat()).unwrap();
    master.wait_for_replica(&replica).unwrap();
    for read in [&master, &replica] {
        let planb = following(read, &master);
        wait_until("events are followed", || !polls(&planb));
        edits_are_live(&planb, &master);
        assert_eq!((polls(&planb), drift(&planb), planb.count("planb_sync_malformed_total")), (false, 0, 0));
    }
    wait_until("nothing is left of it", || redis_cli(&master, &["KEYS", "dead:*"]).is_empty());
}

#[test]
fn notifications_are_believed_when_each_kind_has_come() {
    // Nothing but the test writes to the Redis that is read.
    let (server, elsewhere) = (reserved("KA"), PrivateRedis::start(&[]).unwrap());
    let planb = following(&server, &elsewhere);
    assert!(polls(&planb));
    let line = planb.wait_for_log("may not run CONFIG GET");
    assert!(line.contains("still missing are: list, generic, set, hash, expired"), "{line}");
    edits_are_live(&planb, &server);
    planb.wait_for_log("following events");
    assert!(!polls(&planb));
    edits_are_live(&planb, &server);
    assert_eq!((polls(&planb), drift(&planb)), (false, 0));
}

#[test]
fn a_replica_that_never_announces_an_expiry_is_believed_without() {
    let (master, elsewhere) = (reserved("KA"), PrivateRedis::start(&[]).unwrap());
    let port = master.port().to_string();
    let replica = ["--replicaof", "127.0.0.1", &port, "--rename-command", "CONFIG", RENAMED];
    let replica = PrivateRedis::start(&[&replica[..], &["--notify-keyspace-events", "KA"]].concat()).unwrap();
    master.wait_for_replica(&replica).unwrap();
    let planb = following(&replica, &elsewhere);
    let line = planb.wait_for_log("may not run CONFIG GET");
    assert!(line.contains("still missing are: list, generic, set, hash") && !line.contains("expired"), "{line}");
    edits_are_live(&planb, &master);
    planb.wait_for_log("following events");
    assert_eq!((polls(&planb), drift(&planb)), (false, 0));
}

#[test]
fn certificates_that_are_not_followed_need_no_proof() {
    let (server, elsewhere) = (reserved("KA"), PrivateRedis::start(&[]).unwrap());
    let planb = Planb::builder(&server, &elsewhere).start();
    let line = planb.wait_for_log("may not run CONFIG GET");
    assert!(line.contains("still missing are: list, generic, set, expired"), "{line}");
    redis(&server, &["RPUSH", "frontend:a.test", "id"]);
    redis(&server, &["SADD", "dead:a.test", "0"]);
    redis(&server, &["PEXPIRE", "dead:a.test", "20"]);
    wait_until("events are followed", || !polls(&planb));
}

#[test]
fn an_edit_that_goes_unannounced_ends_the_belief_in_events() {
    let server = PrivateRedis::start(&["--notify-keyspace-events", "KA"]).unwrap();
    let planb = Planb::builder(&server, &server).arguments(&["--reconcile-interval=200ms"]).start();
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    redis(&server, &["RPUSH", "frontend:kept.test", "id", &a.url()]);
    planb.wait_for_route("kept.test");
    assert!(!polls(&planb));

    // No heartbeat can see what has begun and ended within one transaction.
    let hidden = |key: &str, url: &str| {
        let transaction: [&[&str]; 5] = [
            &["MULTI"],
            &["CONFIG", "SET", "notify-keyspace-events", ""],
            &["RPUSH", key, "id", url],
            &["CONFIG", "SET", "notify-keyspace-events", "KA"],
            &["EXEC"],
        ];
        let commands: Vec<Vec<&[u8]>> =
            transaction.iter().map(|words| words.iter().map(|word| word.as_bytes()).collect()).collect();
        redis_pipe(&server, &commands);
    };
    hidden("frontend:hidden.test", &a.url());
    wait_until("it polls", || polls(&planb));
    let line = planb.wait_for_log("had drifted from Redis without an event");
    assert!(line.contains("hidden.test") && line.contains(&server.port().to_string()), "{line}");
    assert_eq!(planb.ask("hidden.test"), "a");
    assert_eq!(drift(&planb), 1);

    // Further ones meanwhile are no news, and those that are announced are none of it.
    hidden("frontend:hidden-too.test", &b.url());
    planb.wait_for_route("hidden-too.test");
    redis(&server, &["DEL", "frontend:kept.test"]);
    planb.wait_for_no_route("kept.test");
    wait_until("events are believed again", || !polls(&planb));
    assert_eq!(drift(&planb), 2);
    assert_eq!(times_said(&planb, "had drifted"), times_said(&planb, "following events"));
    assert_eq!(planb.count("planb_sync_resyncs_total"), 0);

    hidden("frontend:again.test", &a.url());
    wait_until("it polls again", || polls(&planb));
    assert_eq!(drift(&planb), 3);
}

#[test]
fn a_list_whose_time_is_over_is_no_drift_although_its_master_has_not_noticed() {
    let master = PrivateRedis::start(&["--enable-debug-command", "yes"]).unwrap();
    let replica = replica_of(&master);
    let planb = Planb::builder(&replica, &master).arguments(&["--reconcile-interval=20ms"]).start();
    redis(&master, &["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let a = Backend::named("a");
    redis(&master, &["RPUSH", "frontend:over.test", "id", &a.url()]);
    planb.wait_for_route("over.test");
    redis(&master, &["PEXPIRE", "frontend:over.test", "100"]);
    // A walk finds that the replica hides it.
    planb.wait_for_no_route("over.test");
    assert_eq!((drift(&planb), polls(&planb)), (0, false));
    // To look at it tells the master, which tells the replica.
    redis(&master, &["EXISTS", "frontend:over.test"]);
    redis(&master, &["RPUSH", "frontend:over.test", "id", &a.url()]);
    planb.wait_for_route("over.test");
    assert_eq!((drift(&planb), polls(&planb)), (0, false));
}

#[test]
fn notifications_that_change_where_redis_does_not_say_so_are_found_out() {
    let (server, elsewhere) = (reserved("KA"), PrivateRedis::start(&[]).unwrap());
    let planb = Planb::builder(&server, &elsewhere)
        .arguments(&["--tls-listen=127.0.0.1:0", "--reconcile-interval=200ms"])
        .start();
    edits_are_live(&planb, &server);
    wait_until("events are followed", || !polls(&planb));

    redis(&server, &[RENAMED, "SET", "notify-keyspace-events", "Kgshx"]);
    edits_are_live(&planb, &server);
    edits_are_live(&planb, &server);
    assert!(polls(&planb));
    assert_eq!(times_said(&planb, "had drifted"), 1);

    redis(&server, &[RENAMED, "SET", "notify-keyspace-events", "KA"]);
    edits_are_live(&planb, &server);
    wait_until("events are followed again", || !polls(&planb));
    assert_eq!((times_said(&planb, "had drifted"), times_said(&planb, "following events")), (1, 2));
    assert_eq!(redis_cli(&server, &["CONFIG", "GET", "maxmemory"]).lines().next().map(|line| &line[..3]), Some("ERR"));
}

/// What CONFIG is called where it is not called that.
const RENAMED: &str = "CONFIG-OF-THE-OPERATOR";
