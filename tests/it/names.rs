//! Backends that are known by name: which of their addresses are used, and what happens when DNS changes, or fails.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    thread,
    time::Instant,
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use super::support::{
    Backend, Client, DnsServer, PATIENCE, Reply, Response, Stack, full_backlog, get, hello, redis, wait_until,
    wait_within,
};

const HOST: &str = "host.test";
const NAME: &str = "backend.internal.test";
const MARKED: &str = "planb_router_backend_markdead_total";

/// A stack that asks a DNS server of the test's.
struct Named {
    stack: Stack,
    dns: DnsServer,
}

impl Named {
    fn start(arguments: &[&str]) -> Self {
        let dns = DnsServer::start();
        let stack = Stack::start(&[&[dns.flag().as_str()], arguments].concat());
        Self { stack, dns }
    }

    /// The same, with a host whose backend is [`NAME`] at the port of this backend.
    fn with(arguments: &[&str], backend: &Backend) -> Self {
        let named = Self::start(arguments);
        named.list(backend);
        named
    }

    fn list(&self, backend: &Backend) {
        self.stack.list(HOST, &[&format!("http://{NAME}:{}", backend.address().port())]);
    }

    fn get(&self) -> Response {
        get(self.stack.planb.address(), HOST, "/")
    }

    /// The backend that answers, which one must.
    fn ask(&self) -> String {
        let response = self.get();
        assert_eq!(response.status, 200, "{:#?}", self.stack.planb.log());
        response.text()
    }

    /// Fails the test if a backend was taken for dead, or a connection to one could not be made.
    fn assert_no_marks(&self) {
        assert_eq!(self.stack.planb.count(MARKED), 0);
        let log = self.stack.planb.log();
        let failures = ["DEAD", "dial", "does not resolve"];
        assert!(!log.iter().any(|line| failures.iter().any(|failure| line.contains(failure))), "{log:#?}");
    }

    fn lookups(&self, result: &str) -> u64 {
        self.stack.planb.count(&format!("planb_dns_lookups_total{{result=\"{result}\"}}"))
    }
}

/// Backends called one, two and so on at 127.0.0.1, 127.0.0.2 and so on, all with the same port.
fn neighbours<const COUNT: usize>() -> [Backend; COUNT] {
    let names = ["one", "two", "three"];
    loop {
        let first = Backend::named_at(names[0], (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let port = first.address().port();
        let others = (1..COUNT).filter_map(|index| {
            let address = Ipv4Addr::new(127, 0, 0, u8::try_from(index).unwrap() + 1);
            Backend::named_at(names[index], (address, port).into())
        });
        let all: Vec<_> = [first].into_iter().chain(others).collect();
        if let Ok(all) = all.try_into() {
            return all;
        }
    }
}

#[test]
fn the_addresses_of_a_name_share_the_load() {
    let backends: [Backend; 3] = neighbours();
    let named = Named::with(&["--workers=1"], &backends[0]);
    named.dns.point(NAME, &["127.0.0.3", "127.0.0.1", "127.0.0.2"], 60);
    for _ in 0..9 {
        named.ask();
    }
    assert_eq!(backends.each_ref().map(Backend::connections), [3, 3, 3]);
    assert!(backends[0].requests()[0].contains(&format!("Host: {NAME}\r\n")));
    assert_eq!(named.stack.planb.count("planb_dns_names"), 1);
    assert_eq!((named.lookups("ok"), named.lookups("none"), named.lookups("failed")), (1, 0, 0));
}

#[test]
fn an_address_that_refuses_costs_no_client_anything() {
    let [backend] = neighbours();
    let named = Named::with(&[], &backend);
    named.dns.point(NAME, &["127.0.0.1", "127.0.0.2", "127.0.0.3"], 60);
    for _ in 0..12 {
        assert_eq!(named.ask(), "one");
    }
    named.assert_no_marks();
}

#[test]
fn an_address_that_is_silent_costs_no_client_anything() {
    let (queue, address) = full_backlog((Ipv4Addr::new(127, 0, 0, 3), 0).into());
    let Some(backend) = Backend::named_at("one", (Ipv4Addr::LOCALHOST, address.port()).into()) else {
        drop(queue);
        return an_address_that_is_silent_costs_no_client_anything();
    };
    // Without a limit, whoever waits for the silent one waits for longer than the test.
    let named = Named::with(&["--dial-timeout=0", "--request-timeout=0", "--workers=1"], &backend);
    named.dns.point(NAME, &["127.0.0.1", "127.0.0.3"], 60);
    for _ in 0..12 {
        assert_eq!(named.ask(), "one");
    }
    named.assert_no_marks();
}

#[test]
fn a_name_all_of_whose_addresses_refuse_is_dead_and_asked_for_again() {
    let [old, new] = neighbours();
    let named = Named::with(&["--dead-backend-time=1", "--workers=1"], &old);
    named.dns.point(NAME, &["127.0.0.4", "127.0.0.5"], 3600);
    assert_eq!(named.get().status, 503);
    assert!(named.stack.planb.wait_for_log("error in backend dial: Connection refused").ends_with("*DEAD*"));
    named.dns.point(NAME, &["127.0.0.2"], 3600);
    wait_until("the new address is used", || named.get().text() == "two");
    assert_eq!((old.connections(), new.connections()), (0, 1));
}

#[test]
fn a_changed_address_is_followed_and_no_request_fails() {
    let [old, new] = neighbours();
    let named = Named::with(&[], &old);
    named.dns.point(NAME, &["127.0.0.1"], 1);
    assert_eq!(named.ask(), "one");
    named.dns.point(NAME, &["127.0.0.2"], 1);
    wait_until("the new address is used", || named.ask() == "two");
    let connections = old.connections();
    for _ in 0..10 {
        assert_eq!(named.ask(), "two");
    }
    assert_eq!((old.connections(), new.connections()), (connections, 11));
    named.assert_no_marks();
}

#[test]
fn an_answer_that_has_expired_in_a_pause_is_not_used() {
    let [old, new] = neighbours();
    let named = Named::with(&[], &old);
    named.dns.point(NAME, &["127.0.0.1"], 1);
    let asked = Instant::now();
    assert_eq!(named.ask(), "one");
    named.dns.point(NAME, &["127.0.0.2"], 1);
    wait_until("the answer has expired", || asked.elapsed().as_secs_f32() > 1.5);
    assert_eq!(named.ask(), "two");
    assert_eq!((old.connections(), new.connections()), (1, 1));
}

/// Whatever comes in place of an answer, the last addresses are used until there is one again.
fn last_addresses_are_used_while_dns_says(reply: Reply) {
    let [backend] = neighbours();
    let named = Named::with(&["--dial-timeout=3"], &backend);
    named.dns.point(NAME, &["127.0.0.1"], 1);
    named.ask();
    named.dns.set(NAME, reply);
    wait_until("it is noticed", || {
        named.ask();
        named.lookups("failed") > 0
    });
    named.ask();
    let complaints = || named.stack.planb.log().iter().filter(|line| line.contains("DNS has no answer")).count();
    wait_until("the log says so", || complaints() == 1);
    named.dns.point(NAME, &["127.0.0.1"], 1);
    wait_until("DNS is back", || {
        named.ask();
        named.stack.planb.log().iter().any(|line| line.contains("resolved again"))
    });
    assert_eq!(complaints(), 1);
    named.assert_no_marks();
}

#[test]
fn the_last_addresses_are_used_while_dns_fails() {
    last_addresses_are_used_while_dns_says(Reply::Error(ResponseCode::ServFail));
}

#[test]
fn the_last_addresses_are_used_while_dns_refuses() {
    last_addresses_are_used_while_dns_says(Reply::Error(ResponseCode::Refused));
}

#[test]
fn the_last_addresses_are_used_while_dns_talks_junk() {
    last_addresses_are_used_while_dns_says(Reply::Junk);
}

#[test]
fn the_last_addresses_are_used_while_dns_is_silent() {
    last_addresses_are_used_while_dns_says(Reply::Silence);
}

#[test]
fn without_its_dns_server_traffic_goes_on() {
    let [backend] = neighbours();
    let mut named = Named::with(&[], &backend);
    named.dns.point(NAME, &["127.0.0.1"], 1);
    named.ask();
    named.dns.stop();
    // The resolver asks several times before it gives up.
    wait_within(3 * PATIENCE, "a look-up has failed", || {
        named.ask();
        named.lookups("failed") > 0
    });
    named.ask();
    named.assert_no_marks();
}

#[test]
fn a_name_that_does_not_exist_is_dead_until_it_does() {
    let [backend] = neighbours();
    let named = Named::with(&["--dead-backend-time=2"], &backend);
    let response = named.get();
    assert_eq!((response.status, response.text().as_str()), (503, ""));
    assert_eq!(named.get().text(), "all backends are dead");
    let line = named.stack.planb.wait_for_log("the backend's name does not resolve: the name has no addresses");
    assert!(line.ends_with("*DEAD*"), "{line}");
    assert_eq!((named.lookups("none"), named.stack.planb.count(MARKED)), (1, 1));
    named.dns.point(NAME, &["127.0.0.1"], 1);
    wait_until("the name has come back", || named.get().text() == "one");
}

#[test]
fn a_name_that_is_removed_loses_its_addresses_at_once() {
    let [backend] = neighbours();
    let named = Named::with(&[], &backend);
    for nothing in [None, Some(Reply::Addresses(Vec::new(), 1))] {
        let host = if nothing.is_some() { "empty.test" } else { "removed.test" };
        let name = format!("{host}.internal.test");
        named.dns.point(&name, &["127.0.0.1"], 1);
        named.stack.list(host, &[&format!("http://{name}:{}", backend.address().port())]);
        assert_eq!(named.stack.planb.ask(host), "one");
        match nothing {
            None => named.dns.remove(&name),
            Some(reply) => named.dns.set(&name, reply),
        }
        wait_until("the name has no addresses", || named.stack.planb.ask(host) == "all backends are dead");
    }
    assert_eq!(named.lookups("failed"), 0);
}

#[test]
fn junk_alone_is_no_address() {
    let [backend] = neighbours();
    let named = Named::with(&["--dial-timeout=1"], &backend);
    named.dns.set(NAME, Reply::Junk);
    assert_eq!(named.get().status, 503);
    assert_eq!(named.get().text(), "all backends are dead");
}

#[test]
fn many_requests_at_once_are_one_look_up() {
    let [backend] = neighbours();
    let named = Named::with(&["--workers=2"], &backend);
    named.dns.set(NAME, Reply::Silence);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..20).map(|_| scope.spawn(|| named.ask())).collect();
        wait_until("all have begun", || named.stack.planb.count("planb_reverseproxy_pool_dials_total") == 20);
        // The question is repeated until there is an answer.
        named.dns.point(NAME, &["127.0.0.1"], 60);
        for client in clients {
            assert_eq!(client.join().unwrap(), "one");
        }
    });
    assert_eq!((named.lookups("ok"), named.lookups("failed")), (1, 0));
    named.assert_no_marks();
}

#[test]
fn names_whose_servers_are_silent_hold_no_others_up() {
    let [backend] = neighbours();
    let named = Named::with(&["--dial-timeout=5"], &backend);
    named.dns.point(NAME, &["127.0.0.1"], 60);
    let hosts = 200;
    let waiting: Vec<_> = (0..hosts)
        .map(|index| {
            named.dns.set(&format!("silent{index}.test"), Reply::Silence);
            named.stack.list(&format!("host{index}.test"), &[&format!("http://silent{index}.test:80")]);
            let mut client = named.stack.planb.connect();
            client.send(format!("GET / HTTP/1.1\r\nHost: host{index}.test\r\n\r\n"));
            client
        })
        .collect();
    wait_until("all have begun", || named.stack.planb.count("planb_reverseproxy_pool_dials_total") == hosts);
    assert_eq!(named.ask(), "one");
    drop(waiting);
}

#[test]
fn an_answer_that_is_not_to_be_kept_is_kept_for_a_second() {
    let [backend] = neighbours();
    let named = Named::with(&[], &backend);
    named.dns.point(NAME, &["127.0.0.1"], 0);
    let began = Instant::now();
    for _ in 0..50 {
        named.ask();
    }
    // Look-ups are at least three quarters of a second apart.
    let most = began.elapsed().as_millis() / 750 + 1;
    let count = named.lookups("ok");
    assert!(u128::from(count) <= most, "{count} look-ups in {:?}", began.elapsed());
}

#[test]
fn a_kept_connection_needs_no_look_up() {
    let backend = Backend::named("kept");
    let named = Named::with(&["--workers=1"], &backend);
    named.dns.point(NAME, &["127.0.0.1"], 1);
    let began = Instant::now();
    while began.elapsed().as_secs() < 3 {
        assert_eq!(named.ask(), "kept");
    }
    assert_eq!((backend.connections(), named.lookups("ok"), named.dns.questions(NAME).len()), (1, 1, 2));
}

#[test]
fn an_answer_too_long_for_udp_comes_over_tcp() {
    let [backend] = neighbours();
    let named = Named::with(&[], &backend);
    let mut addresses: Vec<_> = (1..=80).map(|number| format!("127.1.0.{number}")).collect();
    addresses.push("127.0.0.1".to_owned());
    named.dns.point(NAME, &addresses.iter().map(String::as_str).collect::<Vec<_>>(), 60);
    assert_eq!(named.ask(), "one");
    assert!(named.dns.questions(NAME).iter().any(|question| question.tcp && question.kind == RecordType::A));
    named.assert_no_marks();
}

#[test]
fn ipv6_alone_will_do_and_both_families_are_tried() {
    // A machine without IPv6 has no such backends.
    let Some(backend) = Backend::named_at("six", (Ipv6Addr::LOCALHOST, 0).into()) else { return };
    let named = Named::with(&["--workers=1"], &backend);
    named.dns.point(NAME, &["::1"], 1);
    assert_eq!(named.ask(), "six");
    named.stack.list("both.test", &[&format!("http://both.internal.test:{}", backend.address().port())]);
    named.dns.point("both.internal.test", &["127.0.0.9", "::1"], 60);
    for _ in 0..4 {
        assert_eq!(named.stack.planb.ask("both.test"), "six");
    }
    named.assert_no_marks();
}

#[test]
fn a_server_that_is_silent_about_ipv6_holds_nobody_up() {
    let [backend] = neighbours();
    // Less than the resolver's own patience.
    let named = Named::with(&["--dial-timeout=3"], &backend);
    named.dns.set(NAME, Reply::Ipv4Only(vec![Ipv4Addr::LOCALHOST.into()], 60));
    assert_eq!(named.ask(), "one");
    named.assert_no_marks();
}

#[test]
fn aliases_are_followed() {
    let [backend] = neighbours();
    let named = Named::start(&[]);
    named.dns.point("last.test", &["127.0.0.1"], 60);
    for (whole, first, second) in [(true, "whole-1.test", "whole-2.test"), (false, "parts-1.test", "parts-2.test")] {
        named.dns.set(first, Reply::Alias { target: second, whole });
        named.dns.set(second, Reply::Alias { target: "last.test", whole });
        named.stack.list(HOST, &[&format!("http://{first}:{}", backend.address().port())]);
        assert_eq!(named.ask(), "one", "{first}");
        redis(&named.stack.master, &["DEL", &format!("frontend:{HOST}")]);
        named.stack.planb.wait_for_no_route(HOST);
    }
    named.assert_no_marks();
}

#[test]
fn the_next_server_is_asked_when_one_is_silent_or_fails() {
    let [backend] = neighbours();
    let (dns, second) = (DnsServer::start(), DnsServer::start());
    let servers = format!("--dns-server={},{}", dns.address(), second.address());
    let named = Named { stack: Stack::start(&[&servers, "--dial-timeout=4"]), dns };
    named.list(&backend);
    named.dns.set(NAME, Reply::Silence);
    second.point(NAME, &["127.0.0.1"], 60);
    assert_eq!(named.ask(), "one");
    let failing = "failing.internal.test";
    named.dns.set(failing, Reply::Error(ResponseCode::ServFail));
    second.point(failing, &["127.0.0.1"], 60);
    named.stack.list("failing.test", &[&format!("http://{failing}:{}", backend.address().port())]);
    assert_eq!(named.stack.planb.ask("failing.test"), "one");
    // What the first says is not there is not looked for elsewhere.
    let missing = "missing.internal.test";
    second.point(missing, &["127.0.0.1"], 60);
    named.stack.list("missing.test", &[&format!("http://{missing}:{}", backend.address().port())]);
    assert_eq!(get(named.stack.planb.address(), "missing.test", "/").status, 503);
    assert!(second.questions(missing).is_empty());
}

#[test]
fn names_of_the_hosts_file_need_no_server() {
    let mut named = Named::start(&[]);
    named.dns.stop();
    let hosts = fs::read_to_string("/etc/hosts").unwrap();
    let lines = hosts.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address: Ipv4Addr = words.next()?.parse().ok()?;
        address.is_loopback().then(|| words.map(move |name| (name, address))).into_iter().flatten().next_back()
    });
    let mixed = ("LocalHost", Ipv4Addr::LOCALHOST);
    for (index, (name, address)) in lines.chain([mixed]).enumerate() {
        let (host, backend) = (format!("{index}.test"), Backend::named_at(name, (address, 0).into()).unwrap());
        named.stack.list(&host, &[&format!("http://{name}:{}", backend.address().port())]);
        for _ in 0..4 {
            assert_eq!(named.stack.planb.ask(&host), name);
        }
    }
    assert_eq!(named.lookups("failed"), 0);
    named.assert_no_marks();
}

#[test]
fn websockets_reach_names() {
    let backend = Backend::websocket_echo();
    let named = Named::with(&[], &backend);
    named.dns.point(NAME, &["127.0.0.2", "127.0.0.1"], 60);
    for text in ["one", "two"] {
        let request = format!("ws://{HOST}/").into_client_request().unwrap();
        let stream = named.stack.planb.connect().into_socket();
        let (mut socket, _) = tokio_tungstenite::tungstenite::client(request, stream).unwrap();
        socket.send(Message::text(text)).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text(text));
    }
    named.assert_no_marks();
}

#[test]
fn passthrough_reaches_names() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let named = Named::start(&["--engine=sni"]);
    named.stack.list(HOST, &[&format!("{NAME}:{port}")]);
    named.dns.point(NAME, &["127.0.0.2", "127.0.0.1"], 60);
    for _ in 0..2 {
        let mut client = named.stack.planb.connect();
        client.send(hello(&[HOST]));
        let mut accepted = None;
        wait_until("the backend is connected to", || {
            accepted = listener.accept().ok();
            accepted.is_some()
        });
        let mut backend = Client::from(accepted.unwrap().0);
        assert_eq!(backend.read(hello(&[HOST]).len()).unwrap(), hello(&[HOST]));
    }
    named.assert_no_marks();
}
