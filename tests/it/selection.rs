//! Which frontend a request finds, and which of its backends answers.

use std::{collections::HashMap, thread};

use super::support::{Backend, Planb, Stack};

#[test]
fn a_host_with_its_port_comes_before_the_host_alone() {
    let stack = Stack::start(&[]);
    let (with, without) = (Backend::named("with"), Backend::named("without"));
    stack.route("port.test:8080", &[&with]);
    assert_eq!(ask(&stack, "port.test"), NONE);
    stack.route("port.test", &[&without]);
    assert_eq!(ask(&stack, "port.test:8080"), "with");
    assert_eq!(ask(&stack, "port.test:80"), "without");
    assert_eq!(ask(&stack, "port.test"), "without");
}

#[test]
fn a_trailing_dot_and_capitals_in_a_request_change_nothing() {
    let stack = Stack::start(&[]);
    let (with, without) = (Backend::named("with"), Backend::named("without"));
    stack.route("name.test:8080", &[&with]);
    stack.route("name.test", &[&without]);
    for host in ["NAME.test", "name.test.", "Name.Test.", "name.test.:81"] {
        assert_eq!(ask(&stack, host), "without", "{host}");
    }
    for host in ["NAME.TEST:8080", "name.test.:8080"] {
        assert_eq!(ask(&stack, host), "with", "{host}");
    }
}

#[test]
fn keys_may_have_capitals_and_the_lower_case_one_wins() {
    let stack = Stack::start(&[]);
    let (lower, capital) = (Backend::named("lower"), Backend::named("capital"));
    stack.route("Case.Test", &[&capital]);
    assert_eq!(
        (ask(&stack, "case.test"), frontend_key(&stack.planb, "case.TEST")),
        ("capital".into(), "Case.Test".into())
    );

    stack.edit(&["RPUSH", "frontend:case.test", "id", &lower.url()]);
    assert_eq!(
        (ask(&stack, "Case.Test"), frontend_key(&stack.planb, "Case.Test")),
        ("lower".into(), "case.test".into())
    );
    stack.edit(&["RPUSH", "frontend:CASE.TEST", "id", &capital.url()]);
    assert_eq!(ask(&stack, "CASE.TEST"), "lower");

    stack.edit(&["DEL", "frontend:case.test"]);
    assert_eq!(ask(&stack, "case.test"), "capital");
    stack.edit(&["DEL", "frontend:Case.Test", "frontend:CASE.TEST"]);
    assert_eq!(ask(&stack, "case.test"), NONE);
}

#[test]
fn wildcards_match_up_to_five_levels_deep_and_the_closest_wins() {
    let stack = Stack::start(&[]);
    let (far, near, exact) = (Backend::named("far"), Backend::named("near"), Backend::named("exact"));
    stack.edit(&["RPUSH", "frontend:*.wild.test", "id", &far.url()]);
    stack.edit(&["RPUSH", "frontend:*.near.wild.test", "id", &near.url()]);
    stack.edit(&["RPUSH", "frontend:exact.near.wild.test", "id", &exact.url()]);
    stack.edit(&["RPUSH", "frontend:*.1.2.3.4.wild.test", "id", &near.url()]);
    stack.edit(&["RPUSH", "frontend:*.partial", "id", &near.url()]);
    for (host, answer) in [
        ("a.wild.test", "far"),
        ("A.Wild.Test.:8080", "far"),
        ("a.b.c.d.wild.test", "far"),
        // Longer names are first cut to six labels, which hides wildcards of six labels from them.
        ("a.1.2.3.4.wild.test", "far"),
        ("a.b.c.d.e.f.g.h.wild.test", "far"),
        ("a.near.wild.test", "near"),
        ("a.b.near.wild.test", "near"),
        ("near.wild.test", "far"),
        ("exact.near.wild.test", "exact"),
        ("wild.test", NONE),
        ("notwild.test", NONE),
        ("a.partial.test", NONE),
        ("partial", NONE),
    ] {
        assert_eq!(ask(&stack, host), answer, "{host}");
    }
}

#[test]
fn the_catch_all_answers_for_every_other_host() {
    let stack = Stack::start(&[]);
    let (known, other) = (Backend::named("known"), Backend::named("other"));
    stack.route("known.test", &[&known]);
    stack.edit(&["RPUSH", "frontend:empty.test", "id"]);
    assert_eq!(ask(&stack, "anything.test"), NONE);
    stack.edit(&["RPUSH", "frontend:*", "id", &other.url()]);
    for host in ["anything.test", "localhost:8080", "10.0.0.1", "[::1]:80", "empty.test"] {
        assert_eq!(ask(&stack, host), "other", "{host}");
    }
    assert_eq!(ask(&stack, "known.test"), "known");
    assert_eq!(frontend_key(&stack.planb, "anything.test"), "*");
    stack.edit(&["DEL", "frontend:*"]);
    assert_eq!(ask(&stack, "anything.test"), NONE);
}

#[test]
fn turns_are_exactly_even_over_many_connections_and_all_workers() {
    let stack = Stack::start(&["--workers=2"]);
    let backends = ["a", "b", "c"].map(Backend::named);
    stack.route("even.test", &backends.each_ref());
    let answers: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = stack.planb.connect();
                    (0..TURNS).map(|_| client.get("even.test", "/").text()).collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let mut tally: HashMap<&str, usize> = HashMap::new();
    for answer in &answers {
        *tally.entry(answer).or_default() += 1;
    }
    let share = CONNECTIONS * TURNS / backends.len();
    assert_eq!(tally, HashMap::from([("a", share), ("b", share), ("c", share)]));
}

#[test]
fn an_edit_of_the_list_does_not_restart_the_rotation() {
    let stack = Stack::start(&[]);
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    stack.edit(&["RPUSH", "frontend:turn.test", "id", &a.url(), &b.url()]);
    for _ in 0..3 {
        let before = ask(&stack, "turn.test");
        stack.edit(&["LSET", "frontend:turn.test", "0", "renamed"]);
        assert_ne!(ask(&stack, "turn.test"), before);
        stack.edit(&["LSET", "frontend:turn.test", "0", "id"]);
    }
}

fn ask(stack: &Stack, host: &str) -> String {
    stack.planb.ask(host)
}

/// The frontend key that the request for this host found.
fn frontend_key(planb: &Planb, host: &str) -> String {
    let mut client = planb.connect();
    client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-Debug-Router: 1\r\n\r\n"));
    client.response().header("X-Debug-Frontend-Key").unwrap().to_owned()
}

/// What a request gets that no frontend answers for.
const NONE: &str = "no such route";

const CONNECTIONS: usize = 8;
const TURNS: usize = 30;
