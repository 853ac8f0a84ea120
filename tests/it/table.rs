//! Edits of the routes in Redis, and what the proxy makes of them.

use super::support::{Backend, Stack, redis, redis_cli, wait_until};

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
    assert!(stack.planb.metric("planb_sync_events_total") > 0.0);
    assert_eq!(stack.planb.metric("planb_sync_drift_total") as u64, 0);
}
