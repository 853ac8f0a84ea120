//! Edits of the routes in Redis, and what the proxy makes of them.

use super::support::{Backend, Stack, redis, redis_cli, redis_pipe, wait_until};

#[test]
fn every_kind_of_edit_is_live() {
    let stack = Stack::start(&[]);
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let (a_url, b_url) = (a.url(), b.url());
    let only = |name: &'static str| {
        wait_until(&format!("only {name} answers"), || (0..4).all(|_| stack.planb.ask("edit.test") == name));
    };
    let both = || {
        wait_until("both answer", || {
            let mut answers: Vec<String> = (0..4).map(|_| stack.planb.ask("edit.test")).collect();
            answers.sort();
            answers == ["a", "a", "b", "b"]
        });
    };
    let none = || stack.planb.wait_for_no_route("edit.test");
    let key = "frontend:edit.test";
    let master = |words: &[&str]| redis(&stack.master, words);

    master(&["RPUSH", key, "id", &a_url]);
    only("a");
    master(&["RPUSH", key, &b_url]);
    both();
    master(&["LREM", key, "0", &a_url]);
    only("b");
    master(&["LSET", key, "1", &a_url]);
    only("a");
    master(&["LINSERT", key, "AFTER", &a_url, &b_url]);
    both();
    master(&["LTRIM", key, "0", "1"]);
    only("a");
    master(&["LPOP", key]);
    none();
    master(&["LPOP", key]);
    master(&["RPUSH", key, "id", &b_url]);
    only("b");
    master(&["DEL", key]);
    none();
    master(&["RPUSH", "other", "id", &a_url]);
    master(&["COPY", "other", key]);
    only("a");
    master(&["UNLINK", key]);
    none();
    master(&["RENAME", "other", key]);
    only("a");
    master(&["RENAME", key, "frontend:moved.test"]);
    none();
    assert_eq!(stack.planb.ask("moved.test"), "a");
    let script = "redis.call('RPUSH', KEYS[1], 'id', ARGV[1])";
    redis_cli(&stack.master, &["EVAL", script, "1", key, &b_url]);
    only("b");
    master(&["PEXPIRE", key, "20"]);
    none();
    assert!(stack.planb.count("planb_sync_events_total") > 0);
    assert_eq!(stack.planb.count("planb_sync_drift_total"), 0);
}

#[test]
fn restored_and_transactional_edits_are_live() {
    let stack = Stack::start(&[]);
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    stack.edit(&["RPUSH", "frontend:source.test", "id", &a.url()]);
    let script = "return redis.call('RESTORE', KEYS[2], 0, redis.call('DUMP', KEYS[1]))";
    redis_cli(&stack.master, &["EVAL", script, "2", "frontend:source.test", "frontend:restored.test"]);
    stack.settle();
    assert_eq!(stack.planb.ask("restored.test"), "a");

    redis_pipe(
        &stack.master,
        &[
            vec![b"MULTI"],
            vec![b"DEL", b"frontend:source.test"],
            vec![b"RPUSH", b"frontend:source.test", b"id", b.url().as_bytes()],
            vec![b"RENAME", b"frontend:restored.test", b"frontend:renamed.test"],
            vec![b"EXEC"],
        ],
    );
    stack.settle();
    let answers = ["source.test", "restored.test", "renamed.test"].map(|host| stack.planb.ask(host));
    assert_eq!(answers, ["b", "no such route", "a"]);
}

#[test]
fn a_list_overwritten_by_a_string_keeps_its_last_good_route_until_it_is_deleted() {
    let stack = Stack::start(&[]);
    let a = Backend::named("a");
    stack.edit(&["RPUSH", "frontend:set.test", "id", &a.url()]);
    stack.edit(&["SET", "frontend:set.test", "junk"]);
    assert_eq!(stack.planb.ask("set.test"), "a");
    stack.edit(&["DEL", "frontend:set.test"]);
    assert_eq!(stack.planb.ask("set.test"), "no such route");
}

#[test]
fn a_list_with_only_an_identifier_is_no_route() {
    let stack = Stack::start(&[]);
    stack.edit(&["RPUSH", "frontend:lonely.test", "id"]);
    assert_eq!(stack.planb.ask("lonely.test"), "no such route");
    let a = Backend::named("a");
    stack.edit(&["RPUSH", "frontend:lonely.test", &a.url()]);
    assert_eq!(stack.planb.ask("lonely.test"), "a");
}

#[test]
fn a_burst_of_edits_converges_to_exactly_what_redis_holds() {
    // Frequent proofs of convergence take place in the midst of the burst, where a false alarm is likeliest.
    let stack = Stack::start(&["--reconcile-interval=100ms"]);
    let backends = ["a", "b", "c"].map(Backend::named);
    let urls = backends.each_ref().map(Backend::url);
    let names = ["a", "b", "c"];
    let keys: Vec<String> = (0..HOSTS).map(|host| format!("frontend:{host}.burst.test")).collect();
    let mut model: Vec<Vec<&str>> = vec![Vec::new(); HOSTS];
    let mut commands: Vec<Vec<&[u8]>> = Vec::new();
    let mut random = SEED;
    for _ in 0..EDITS {
        // Xorshift: any sequence will do, as long as it is the same in each run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let below = |limit: usize, bits: u64| usize::try_from(bits % limit as u64).unwrap();
        let (host, backend) = (below(HOSTS, random), below(names.len(), random >> 32));
        let (key, routes) = (keys[host].as_bytes(), &mut model[host]);
        if routes.is_empty() {
            commands.push(vec![b"RPUSH", key, b"id", urls[backend].as_bytes()]);
            routes.push(names[backend]);
        } else if routes.len() == 3 || random >> 62 == 0 {
            commands.push(vec![b"DEL", key]);
            routes.clear();
        } else {
            commands.push(vec![b"RPUSH", key, urls[backend].as_bytes()]);
            routes.push(names[backend]);
        }
    }
    redis_pipe(&stack.master, &commands);
    stack.settle();
    let mut client = stack.planb.connect();
    for (host, routes) in model.iter_mut().enumerate() {
        let mut answers: Vec<String> =
            (0..routes.len().max(1)).map(|_| client.get(&format!("{host}.burst.test"), "/").text()).collect();
        answers.sort_unstable();
        routes.sort_unstable();
        if routes.is_empty() {
            routes.push("no such route");
        }
        assert_eq!(answers, *routes, "{host}.burst.test");
    }
    assert!(stack.planb.count("planb_sync_events_total") >= EDITS);
    assert_eq!(stack.planb.count("planb_sync_drift_total"), 0);
    assert_eq!(stack.planb.count("planb_sync_resyncs_total"), 0);
}

const EDITS: u64 = 20_000;
const HOSTS: usize = 150;
const SEED: u64 = 0x9E37_79B9_7F4A_7C15;
