//! How a host's requests are spread over its backends: in turns, and by load.

use std::{collections::BTreeMap, net::TcpStream, thread};

use h2::{Reason, ext::Protocol};
use tokio_tungstenite::tungstenite::{WebSocket, client::IntoClientRequest};

use super::{
    http2::{NAME, Site, get, with},
    support::{Backend, Client, Planb, Stack, closed_port, hello, wait_until},
};

const HOST: &str = "balanced.test";
const LEAST: &str = "--load-balancing=least-requests";

/// A proxy that goes by load, and the two backends of [`HOST`].
struct Pair {
    stack: Stack,
    backends: [Backend; 2],
}

impl Pair {
    fn start(backends: [Backend; 2]) -> Self {
        let stack = Stack::start(&[LEAST]);
        stack.list(HOST, &[&backends[0].url(), &backends[1].url()]);
        Self { stack, backends }
    }

    /// A client that waits for an answer, or the rest of one.
    fn hold(&self) -> Client {
        let mut client = self.stack.planb.connect();
        client.send(format!("GET /held HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        client
    }

    /// The index of the backend that was asked for this path.
    fn asked_for(&self, path: &str) -> usize {
        asked_for(&self.backends, path)
    }

    fn is_avoided(&self, busy: usize) {
        is_avoided(&self.stack.planb, HOST, busy);
    }

    fn is_chosen_again(&self, index: usize) {
        is_chosen_again(&self.stack.planb, HOST, index);
    }

    fn open(&self) -> WebSocket<TcpStream> {
        let request = format!("ws://{HOST}/held").into_client_request().unwrap();
        tokio_tungstenite::tungstenite::client(request, self.stack.planb.connect().into_socket()).unwrap().0
    }
}

fn asked_for(backends: &[Backend; 2], path: &str) -> usize {
    let start = format!("GET {path} ");
    let mut found = None;
    wait_until(&format!("a backend is asked for {path}"), || {
        found = backends.iter().position(|backend| backend.requests().iter().any(|head| head.starts_with(&start)));
        found.is_some()
    });
    found.unwrap()
}

/// The index of the backend that answers the next request of this connection. When it has, it is done with it: a request is
/// taken from a connection only when the one before it is over.
fn next(client: &mut Client, host: &str) -> usize {
    client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-Debug-Router: 1\r\n\r\n"));
    client.response().header("x-debug-backend-id").unwrap().parse().unwrap()
}

/// Checks that a backend which is busier than the other gets nothing.
fn is_avoided(planb: &Planb, host: &str, busy: usize) {
    let mut client = planb.connect();
    assert!((0..40).all(|_| next(&mut client, host) != busy), "the busier backend was chosen");
    // Once this is answered, the last of them is over, for requests on other connections too.
    assert_eq!(client.get("__ping__", "/").status, 200);
}

/// Waits until a backend is as good as the other. One request too many on its account would keep it out for ever.
fn is_chosen_again(planb: &Planb, host: &str, index: usize) {
    let mut client = planb.connect();
    wait_until(&format!("backend {index} is chosen"), || next(&mut client, host) == index);
}

fn tally(answers: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for answer in answers {
        *tally.entry(answer).or_default() += 1;
    }
    tally
}

#[test]
fn turns_are_exactly_even_over_all_connections() {
    for arguments in [&[][..], &["--load-balancing=round-robin"]] {
        let stack = Stack::start(arguments);
        let backends = ["a", "b", "c"].map(Backend::named);
        stack.list(HOST, &backends.each_ref().map(Backend::url).each_ref().map(String::as_str));
        let clients: Vec<_> = (0..6)
            .map(|_| {
                let mut client = stack.planb.connect();
                thread::spawn(move || (0..50).map(|_| client.get(HOST, "/").text()).collect::<Vec<_>>())
            })
            .collect();
        let answers = clients.into_iter().flat_map(|client| client.join().unwrap());
        let even = ["a", "b", "c"].map(|name| (name.to_owned(), 100));
        assert_eq!(tally(answers), BTreeMap::from(even));
    }
}

#[test]
fn turns_go_on_through_an_edit() {
    let stack = Stack::start(&[]);
    let [a, b, c] = ["a", "b", "c"].map(Backend::named);
    stack.list(HOST, &[&a.url(), &b.url()]);
    let ask = |times| (0..times).map(|_| stack.planb.ask(HOST)).collect::<String>();
    let key = format!("frontend:{HOST}");
    assert_eq!(ask(1), "a");
    stack.edit(&["RPUSH", &key, &c.url()]);
    assert_eq!(ask(2), "bc");
    stack.edit(&["LREM", &key, "0", &c.url()]);
    assert_eq!(ask(4), "baba");
    let names = [a, b].each_ref().map(|backend| backend.requests().len());
    assert_eq!(names, [3, 3]);
}

#[test]
fn a_backend_that_holds_its_answer_is_avoided_until_it_gives_it() {
    let [(one, first), (other, second)] = [Backend::holding(), Backend::holding()];
    let pair = Pair::start([one, other]);
    let mut held = pair.hold();
    let busy = pair.asked_for("/held");
    pair.is_avoided(busy);
    first.open();
    second.open();
    assert_eq!(held.response().text(), "done");
    pair.is_chosen_again(busy);
    pair.is_chosen_again(1 - busy);
}

#[test]
fn a_backend_that_holds_a_body_is_avoided_until_its_end() {
    let [(one, first), (other, second)] = [Backend::holding_bodies(), Backend::holding_bodies()];
    let pair = Pair::start([one, other]);
    let mut held = pair.hold();
    let mut head = held.head().unwrap();
    let busy = pair.asked_for("/held");
    pair.is_avoided(busy);
    first.open();
    second.open();
    held.finish(&mut head).unwrap();
    pair.is_chosen_again(busy);
}

#[test]
fn a_client_that_leaves_is_counted_no_more() {
    for holding in [Backend::holding, Backend::holding_bodies] {
        let [(one, _first), (other, _second)] = [holding(), holding()];
        let pair = Pair::start([one, other]);
        let held = pair.hold();
        let busy = pair.asked_for("/held");
        pair.is_avoided(busy);
        drop(held);
        pair.is_chosen_again(busy);
    }
}

#[test]
fn a_websocket_counts_until_it_is_closed() {
    let pair = Pair::start([Backend::websocket_echo(), Backend::websocket_echo()]);
    let mut socket = pair.open();
    let busy = pair.asked_for("/held");
    pair.is_avoided(busy);
    let second = pair.open();
    let opened = |backend: &Backend| backend.requests().iter().filter(|head| head.starts_with("GET /held ")).count();
    assert_eq!(pair.backends.each_ref().map(opened), [1, 1]);
    drop(second);
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    drop(socket);
    pair.is_chosen_again(busy);
    let socket = pair.open();
    drop(socket);
    pair.is_chosen_again(0);
    pair.is_chosen_again(1);
}

#[test]
fn http_2_counts_streams_and_websockets_that_are_reset() {
    let [(one, _first), (other, _second)] = [Backend::holding(), Backend::holding()];
    let site = Site::start(&[LEAST], &[&one.url(), &other.url()]);
    let (backends, planb) = ([one, other], &site.stack.planb);
    let mut client = site.connect();
    let mut held = client.begin(get("/held"));
    let busy = asked_for(&backends, "/held");
    is_avoided(planb, NAME, busy);
    held.reset(Reason::CANCEL);
    is_chosen_again(planb, NAME, busy);

    let sockets = [Backend::websocket_echo(), Backend::websocket_echo()];
    site.stack.edit(&["DEL", &format!("frontend:{NAME}")]);
    site.stack.list(NAME, &[&sockets[0].url(), &sockets[1].url()]);
    client.wait_for_connect_protocol();
    let opening = with("CONNECT", "/socket").extension(Protocol::from_static("websocket"));
    let mut socket = client.open(opening.header("sec-websocket-version", "13").body(()).unwrap());
    assert_eq!(socket.head().status, 200);
    let busy = asked_for(&sockets, "/socket");
    is_avoided(planb, NAME, busy);
    socket.reset(Reason::CANCEL);
    is_chosen_again(planb, NAME, busy);
}

#[test]
fn attempts_that_fail_are_counted_no_more() {
    let stack = Stack::start(&[LEAST, "--dead-backend-time=none"]);
    let (_guard, refusing) = closed_port();
    let [a, b] = ["a", "b"].map(Backend::named);
    stack.list(HOST, &[&refusing, &a.url(), &b.url()]);
    let mut client = stack.planb.connect();
    let failures = || stack.planb.count("planb_reverseproxy_retries_total");
    // Were one kept on its account, the two that are idle would always be preferred.
    // More often within a second, and the retry budget would refuse.
    wait_until("it has failed often", || {
        assert_eq!(client.get(HOST, "/").status, 200);
        failures() >= 10
    });
    stack.list("single.test", &[&refusing]);
    assert!((0..3).all(|_| client.get("single.test", "/").status == 503));
    assert_eq!(client.get(HOST, "/").status, 200);
}

#[test]
fn connections_that_are_passed_through_count_until_they_end() {
    let stack = Stack::start(&["--engine=sni", LEAST]);
    let backends = ["a", "b"].map(Backend::named);
    stack.list(HOST, &[&backends[0].url(), &backends[1].url()]);
    let open = || {
        let mut client = stack.planb.connect();
        client.send([&*hello(&[HOST]), b"GET / HTTP/1.1\r\n\r\n"].concat());
        (client.response().text(), client)
    };
    let (of_a, of_b): (Vec<_>, Vec<_>) = (0..10).map(|_| open()).partition(|(name, _)| name == "a");
    assert_eq!((of_a.len(), of_b.len()), (5, 5));
    drop(of_a);
    wait_until("half of them are closed", || stack.planb.count("planb_reverseproxy_connections_current_open") == 5);
    let next: Vec<_> = (0..5).map(|_| open()).collect();
    assert!(next.iter().all(|(name, _)| name == "a"));
}
