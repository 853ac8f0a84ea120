//! A Redis that has lost its data takes no route away, at least not at once.

use super::support::{Authority, Backend, Stack, get, redis, redis_cli, shown, wait_until};

const HOSTS: usize = 12;

/// A stack with [`HOSTS`] hosts, `host-0.test` and so on, all on one backend.
fn loaded(arguments: &[&str]) -> (Stack, Backend) {
    let (stack, backend) = (Stack::start(arguments), Backend::named("here"));
    for number in 0..HOSTS {
        redis(&stack.master, &["RPUSH", &format!("frontend:host-{number}.test"), "id", &backend.url()]);
    }
    wait_until("all hosts are listed", || stack.planb.count("planb_router_frontends") == HOSTS as u64);
    (stack, backend)
}

impl Stack {
    /// Restarts the master without its data, which its replica then copies.
    fn lose_data(&mut self) {
        self.master.kill();
        self.master.restart(&[]).unwrap();
        wait_until("the replica is as empty", || redis_cli(&self.replica, &["DBSIZE"]) == "0");
    }

    fn held(&self) -> u64 {
        self.planb.count("planb_sync_held")
    }

    fn answers_all(&self) -> bool {
        (0..HOSTS).all(|number| self.planb.ask(&format!("host-{number}.test")) == "here")
    }
}

#[test]
fn a_master_that_restarts_empty_takes_no_route_away_until_the_grace_is_over() {
    let (mut stack, backend) = loaded(&["--shrink-grace=6s"]);
    stack.lose_data();
    wait_until("the loss is noticed", || stack.held() == HOSTS as u64);
    assert!(stack.answers_all());
    let ping = get(stack.planb.address(), "__ping__", "/");
    assert!(ping.status == 500 && ping.text().contains("lost data"), "{}", ping.text());
    stack.planb.wait_for_log("keeping them for");

    // New routes, and edits of old ones, go on meanwhile.
    stack.route("new.test", &[&backend]);
    redis(&stack.master, &["RPUSH", "frontend:host-0.test", "id", &Backend::named("other").url()]);
    wait_until("an edit arrives", || stack.planb.ask("host-0.test") == "other");
    redis(&stack.master, &["DEL", "frontend:host-0.test"]);
    stack.planb.wait_for_no_route("host-0.test");
    assert_eq!(stack.planb.ask("host-1.test"), "here");

    stack.planb.wait_for_no_route("host-1.test");
    assert_eq!((stack.held(), stack.planb.ask("new.test").as_str()), (0, "here"));
    wait_until("it is well again", || get(stack.planb.address(), "__ping__", "/").status == 200);
    assert_eq!(stack.planb.count("planb_sync_drift_total"), 0);
}

#[test]
fn data_that_comes_back_ends_the_hold_without_a_trace() {
    let (mut stack, backend) = loaded(&["--shrink-grace=1h"]);
    stack.lose_data();
    wait_until("the loss is noticed", || stack.held() == HOSTS as u64);
    for number in 1..HOSTS {
        redis(&stack.master, &["RPUSH", &format!("frontend:host-{number}.test"), "id", &backend.url()]);
    }
    wait_until("the hold is over", || stack.held() == 0);
    stack.planb.wait_for_no_route("host-0.test");
    assert_eq!(stack.planb.ask("host-1.test"), "here");
    assert_eq!(stack.planb.count("planb_sync_drift_total"), 0);
}

#[test]
fn a_flush_of_the_very_server_is_an_order() {
    let (stack, _backend) = loaded(&["--shrink-grace=1h"]);
    redis(&stack.master, &["FLUSHALL"]);
    stack.planb.wait_for_no_route("host-0.test");
    wait_until("all are gone", || stack.planb.count("planb_router_frontends") == 0);
    assert_eq!(stack.held(), 0);
}

#[test]
fn without_grace_a_loss_is_believed_at_once() {
    let (mut stack, _backend) = loaded(&["--shrink-grace=0s"]);
    stack.lose_data();
    wait_until("all are gone", || stack.planb.count("planb_router_frontends") == 0);
    assert!(!stack.planb.log().iter().any(|line| line.contains("keeping them for")));
}

#[test]
fn certificates_are_held_as_routes_are() {
    let (mut stack, _backend) = loaded(&["--shrink-grace=6s", "--tls-listen=127.0.0.1:0"]);
    let authority = Authority::new();
    authority.issue(&["host-0.test"]).install(&stack.master, "host-0.test");
    let serves = |stack: &Stack| shown(&authority, stack.planb.tls_address(), "host-0.test").is_some();
    wait_until("the certificate is served", || serves(&stack));
    stack.lose_data();
    wait_until("the loss is noticed", || stack.held() == HOSTS as u64 + 1);
    assert!(serves(&stack));
    wait_until("the grace is over", || !serves(&stack));
}

#[test]
fn a_master_that_loses_its_data_again_and_again_is_believed_in_the_end() {
    let (mut stack, _backend) = loaded(&["--shrink-grace=4s"]);
    stack.lose_data();
    wait_until("the loss is noticed", || stack.held() == HOSTS as u64);
    stack.lose_data();
    assert!(stack.answers_all());
    wait_until("all are gone", || stack.planb.count("planb_router_frontends") == 0);
}
