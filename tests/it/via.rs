//! Requests that come back, because a backend leads to the proxy.

use super::support::{Backend, Planb, Stack, redis};

const HOST: &str = "loop.test";

/// The lines of `Via` that a backend gets when a client sends this head, without its final empty line.
fn vias(planb: &Planb, request: &str) -> Vec<String> {
    let mut client = planb.connect();
    client.send(format!("{request}\r\n\r\n"));
    let head = client.response().text();
    head.lines().filter_map(|line| line.strip_prefix("Via: ")).map(|value| value.trim_end().to_owned()).collect()
}

#[test]
fn a_request_that_comes_back_is_cut_at_once() {
    let stack = Stack::start(&["--dead-backend-time=none"]);
    let itself = format!("http://{}", stack.planb.address());
    stack.list(HOST, &[&itself]);
    stack.planb.wait_for_route(HOST);
    let dials = stack.planb.count("planb_reverseproxy_pool_dials_total");
    let mut client = stack.planb.connect();
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (508, "a backend leads back to this proxy"));
    assert!(stack.planb.count("planb_reverseproxy_pool_dials_total") <= dials + 1);
    let line = stack.planb.wait_for_log("leads back to this proxy");
    assert!(line.starts_with(&format!("ERROR in {HOST} -> ? - / - ")), "{line}");

    // By way of another.
    let other = Planb::builder(&stack.replica, &stack.master).start();
    redis(&stack.master, &["DEL", &format!("frontend:{HOST}")]);
    stack.planb.wait_for_no_route(HOST);
    let urls = [format!("http://{}", other.address()), itself];
    stack.list(HOST, &urls.each_ref().map(String::as_str));
    for planb in [&stack.planb, &other] {
        planb.wait_for_route(HOST);
        assert_eq!(planb.ask(HOST), "a backend leads back to this proxy");
    }
}

#[test]
fn a_request_says_whom_it_has_passed() {
    for (flags, expected) in
        [(&["--via=edge"][..], &["1.1 a, 2.0 b (c)", "1.1 edge"][..]), (&["--via=none"], &["1.1 a, 2.0 b (c)"])]
    {
        let (stack, echo) = (Stack::start(flags), Backend::echo());
        stack.route(HOST, &[&echo]);
        let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nVia: 1.1 a, 2.0 b (c)");
        assert_eq!(vias(&stack.planb, &request), expected);
    }
    let (stack, echo) = (Stack::start(&[]), Backend::echo());
    stack.route(HOST, &[&echo]);
    let own = vias(&stack.planb, &format!("GET / HTTP/1.0\r\nHost: {HOST}"));
    assert!(own.len() == 1 && own[0].starts_with("1.0 planb-"), "{own:?}");
}
