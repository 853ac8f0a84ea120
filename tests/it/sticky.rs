//! `--load-balancing=sticky`: the cookie by which clients come back to their backends.

use std::{
    collections::BTreeSet,
    net::TcpStream,
    sync::atomic::{AtomicUsize, Ordering},
};

use data_encoding::BASE64URL_NOPAD;
use h2::ext::Protocol;

use super::{
    http2::{Site, get, to, with},
    support::{Backend, Http2, Planb, Response, Stack, closed_port, hello, wait_until},
};

const HOST: &str = "sticky.test";
const STICKY: &str = "--load-balancing=sticky";
const SECRET: &str = "--sticky-secret=correct horse battery staple";

/// One request with these header lines, on a connection of its own.
fn ask(planb: &Planb, host: &str, lines: &str) -> Response {
    let mut client = planb.connect();
    client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n{lines}Connection: close\r\n\r\n"));
    client.response()
}

/// The same with a cookie.
fn visit(planb: &Planb, cookie: &str) -> Response {
    ask(planb, HOST, &format!("Cookie: {cookie}\r\n"))
}

/// The values of `Set-Cookie`.
fn set(response: &Response) -> Vec<&str> {
    let lines = response.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
    lines.map(|(_, value)| value.as_str()).collect()
}

/// What a client sends back, when exactly our cookie is set.
fn cookie(response: &Response) -> String {
    let [line] = set(response)[..] else { panic!("not one cookie is set: {response:?}") };
    assert!(line.starts_with("planb_backend="), "{line}");
    line.split(';').next().unwrap().to_owned()
}

/// Checks that a client with this cookie comes to this backend again and again, and is told nothing new.
fn stays(planb: &Planb, cookie: &str, name: &str) {
    for _ in 0..8 {
        let response = visit(planb, cookie);
        assert_eq!((response.text().as_str(), set(&response).len()), (name, 0));
    }
}

/// A stack and the three backends of [`HOST`].
fn three(arguments: &[&str]) -> (Stack, [Backend; 3]) {
    let (stack, backends) = (Stack::start(&[&[STICKY], arguments].concat()), ["a", "b", "c"].map(Backend::named));
    stack.list(HOST, &backends.each_ref().map(Backend::url).each_ref().map(String::as_str));
    (stack, backends)
}

fn sibling(stack: &Stack, arguments: &[&str]) -> Planb {
    Planb::builder(&stack.replica, &stack.master).arguments(&[&[STICKY], arguments].concat()).start()
}

fn edit(stack: &Stack, command: &str, words: &[&str]) {
    stack.edit(&[&[command, &format!("frontend:{HOST}")], words].concat());
}

#[test]
fn a_client_comes_back_to_its_backend_and_new_ones_take_turns() {
    let (stack, _backends) = three(&[SECRET]);
    let planb = &stack.planb;
    let first: Vec<_> = (0..3).map(|_| ask(planb, HOST, "")).collect();
    assert_eq!(first.iter().map(Response::text).collect::<String>(), "abc");
    for response in &first {
        let cookie = cookie(response);
        assert_eq!(set(response)[0], format!("{cookie}; Path=/; HttpOnly; SameSite=Lax"));
        stays(planb, &cookie, &response.text());
        let debugged = ask(planb, HOST, &format!("Cookie: {cookie}\r\nX-Debug-Router: 1\r\n"));
        let index = response.text().bytes().next().unwrap() - b'a';
        assert_eq!(debugged.header("x-debug-backend-id"), Some(&*index.to_string()));
    }
    assert_eq!(ask(planb, HOST, "").text(), "a", "those who came back have not had a turn");
}

#[test]
fn instances_with_the_same_secret_agree() {
    let (stack, _backends) = three(&[SECRET]);
    ask(&stack.planb, HOST, "");
    let response = ask(&stack.planb, HOST, "");
    let (given, name) = (cookie(&response), response.text());
    assert_eq!(name, "b");
    let agreeing = sibling(&stack, &[SECRET]);
    stays(&agreeing, &given, &name);
    let strangers = [sibling(&stack, &["--sticky-secret=another secret altogether"]), sibling(&stack, &[])];
    for stranger in &strangers {
        let response = visit(stranger, &given);
        assert_eq!(response.text(), "a", "its first in turn");
        assert_ne!(cookie(&response), given);
        stays(stranger, &format!("{given}; {}", cookie(&response)), "a");
    }
    let warnings = |planb: &Planb| planb.log().iter().filter(|line| line.contains("--sticky-secret")).count();
    assert_eq!([&stack.planb, &agreeing, &strangers[0], &strangers[1]].map(warnings), [0, 0, 0, 1]);
}

#[test]
fn a_cookie_reveals_nothing_and_is_bound_to_its_host() {
    let (stack, [a, b, _]) = three(&[SECRET]);
    stack.list("other.test", &[&b.url(), &a.url()]);
    let here = cookie(&ask(&stack.planb, HOST, ""));
    let value = here.strip_prefix("planb_backend=").unwrap();
    let bytes = BASE64URL_NOPAD.decode(value.as_bytes()).unwrap();
    assert_eq!(bytes.len(), 24);
    let address = a.address().to_string();
    for part in [&address, "127", &a.address().port().to_string(), HOST, "http"] {
        assert!(!bytes.windows(part.len()).any(|window| window == part.as_bytes()), "{part}");
    }
    let there = ask(&stack.planb, "other.test", &format!("Cookie: {here}\r\n"));
    assert_eq!(there.text(), "b", "the other host's first in turn");
    let back = ask(&stack.planb, "other.test", "");
    assert_eq!(back.text(), "a");
    assert_ne!(cookie(&back), here, "the same backend has another name there");
}

#[test]
fn what_is_not_a_valid_cookie_is_ignored() {
    let (stack, _backends) = three(&[SECRET]);
    let planb = &stack.planb;
    let (valid, second) = (cookie(&ask(planb, HOST, "")), cookie(&ask(planb, HOST, "")));
    let last = if valid.ends_with('A') { 'B' } else { 'A' };
    let forged = format!("{}{last}", &valid[..valid.len() - 1]);
    let huge = format!("planb_backend={}", "x".repeat(40_000));
    for junk in [
        &*forged,
        "planb_backend",
        "planb_backend=",
        "planb_backend=\"\"",
        ";=;;= ;\u{e9}=\u{fc}",
        &huge,
        &format!("x{valid}"),
        &valid.to_uppercase(),
        &format!("{valid}AAAA"),
        "planb_backend=http://127.0.0.1:1",
    ] {
        let response = visit(planb, junk);
        assert_eq!((response.status, cookie(&response).len()), (200, valid.len()), "{junk}");
        stays(planb, &format!("{junk}; {valid};{second}"), "a");
    }
    for lines in
        [format!("Cookie: {forged}\r\ncookie: x=y; {valid}\r\n"), format!("Cookie:{valid}\r\nCookie: {second}\r\n")]
    {
        let response = ask(planb, HOST, &lines);
        assert_eq!((response.text().as_str(), set(&response).len()), ("a", 0), "{lines}");
    }
}

#[test]
fn a_client_whose_backend_dies_moves_once() {
    let stack = Stack::start(&[STICKY, SECRET]);
    let (planb, [a, b]) = (&stack.planb, ["a", "b"].map(Backend::named));
    let (_guard, dying) = Backend::dying("dying");
    stack.list(HOST, &[&dying.url(), &a.url(), &b.url()]);
    let response = ask(planb, HOST, "");
    assert_eq!(response.text(), "dying");
    let old = cookie(&response);
    wait_until("its port is closed", || TcpStream::connect(dying.address()).is_err());
    let response = visit(planb, &old);
    assert_eq!(response.status, 200, "the failure costs the client nothing");
    let (name, new) = (response.text(), cookie(&response));
    stays(planb, &new, &name);
    assert_eq!(planb.count("planb_router_backend_markdead_total"), 1);
    // While the mark stands, the old one is of no use, but no error either.
    let again: BTreeSet<_> =
        (0..2).map(|_| visit(planb, &old)).map(|response| (response.text(), cookie(&response))).collect();
    assert_eq!(again.len(), 2, "they took turns");
    assert_eq!(planb.count("planb_reverseproxy_retries_total"), 1);
}

#[test]
fn a_kept_connection_that_is_lost_moves_nobody() {
    let lost = AtomicUsize::new(0);
    let closing = Backend::start(move |exchange| {
        // The second request of the first connection.
        let closes = lost.fetch_add(1, Ordering::SeqCst) == 1;
        if !closes {
            exchange.answer("200 OK", "", b"closing");
        }
        !closes
    });
    let stack = Stack::start(&[STICKY, SECRET, "--workers=1"]);
    stack.list(HOST, &[&closing.url(), &Backend::named("other").url()]);
    let first = ask(&stack.planb, HOST, "");
    assert_eq!(first.text(), "closing");
    stays(&stack.planb, &cookie(&first), "closing");
    assert_eq!((closing.connections(), stack.planb.count("planb_reverseproxy_retries_total")), (2, 1));
}

#[test]
fn a_mark_or_an_edit_that_takes_a_backend_away_moves_its_clients() {
    let (stack, [a, ..]) = three(&[SECRET]);
    let planb = &stack.planb;
    let old = cookie(&ask(planb, HOST, ""));
    let dead = format!("dead:{HOST}");
    stack.edit(&["SADD", &dead, "0"]);
    let response = visit(planb, &old);
    assert_ne!(response.text(), "a");
    stays(planb, &cookie(&response), &response.text());
    stack.edit(&["DEL", &dead]);
    stays(planb, &old, "a");
    stays(planb, &cookie(&response), &response.text());

    edit(&stack, "LREM", &["0", &a.url()]);
    let response = visit(planb, &old);
    assert_ne!(response.text(), "a");
    stays(planb, &cookie(&response), &response.text());
    edit(&stack, "RPUSH", &[&a.url()]);
    stays(planb, &old, "a");
}

#[test]
fn a_second_backend_moves_nobody() {
    let (stack, only) = (Stack::start(&[STICKY, SECRET]), Backend::named("only"));
    stack.list(HOST, &[&only.url()]);
    let given = cookie(&ask(&stack.planb, HOST, ""));
    stays(&stack.planb, &given, "only");
    let second = Backend::named("second");
    edit(&stack, "RPUSH", &[&second.url()]);
    stays(&stack.planb, &given, "only");
    let new: BTreeSet<_> = (0..2).map(|_| stack.planb.ask(HOST)).collect();
    assert_eq!(Vec::from_iter(new), ["only", "second"]);
}

#[test]
fn the_backend_s_own_cookies_and_the_client_s_pass() {
    let stack = Stack::start(&[STICKY, SECRET]);
    let backend = Backend::start(|exchange| {
        let headers = "Set-Cookie: own=1; Path=/\r\nConnection: set-cookie2\r\nSet-Cookie: two=2\r\n";
        exchange.answer("200 OK", headers, b"");
        true
    });
    let hostile = Backend::start(|exchange| {
        exchange.answer("200 OK", "Connection: set-cookie\r\n", b"");
        true
    });
    stack.list(HOST, &[&backend.url()]);
    stack.list("hostile.test", &[&hostile.url()]);
    let response = ask(&stack.planb, HOST, "");
    let lines = set(&response);
    assert_eq!(lines[..2], ["own=1; Path=/", "two=2"]);
    let given = lines[2].split(';').next().unwrap();
    let response = visit(&stack.planb, &format!("own=1; {given}; two=2"));
    assert_eq!(set(&response), ["own=1; Path=/", "two=2"]);
    let head = backend.requests().pop().unwrap();
    assert!(head.contains(&format!("Cookie: own=1; {given}; two=2")), "{head}");
    cookie(&ask(&stack.planb, "hostile.test", ""));
}

#[test]
fn websockets_are_sticky() {
    let (stack, backends) = (Stack::start(&[STICKY, SECRET]), [(); 2].map(|()| Backend::websocket_echo()));
    stack.list(HOST, &[&backends[0].url(), &backends[1].url()]);
    let open = |lines: &str| {
        let mut client = stack.planb.connect();
        client.send(format!(
            "GET /socket HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             X-Debug-Router: 1\r\n{lines}\r\n"
        ));
        let head = client.head().unwrap();
        assert_eq!(head.status, 101);
        (client, head)
    };
    let (_first, head) = open("");
    let given = cookie(&head);
    assert_eq!(head.header("x-debug-backend-id"), Some("0"));
    for _ in 0..4 {
        let (_client, head) = open(&format!("Cookie: {given}\r\n"));
        assert_eq!((head.header("x-debug-backend-id"), set(&head).len()), (Some("0"), 0));
    }
    assert_eq!(backends.each_ref().map(|backend| backend.requests().len()), [5, 0]);
    let refused = visit(&stack.planb, &given);
    assert_eq!((refused.status, set(&refused).len()), (400, 0), "an answer of the same backend");
}

#[test]
fn https_and_http_2_are_sticky_and_their_cookies_secure() {
    let backends = [(); 2].map(|()| Backend::websocket_echo());
    let site = Site::start(&[STICKY, SECRET], &[&backends[0].url(), &backends[1].url()]);
    let planb = &site.stack.planb;
    let response = site.connect().ask(get("/"));
    let given = cookie(&response);
    assert_eq!(set(&response)[0], format!("{given}; Path=/; HttpOnly; SameSite=Lax; Secure"));
    let back = |client: &mut Http2| {
        let request = to("/").header("cookie", "a=b").header("cookie", &given).header("x-debug-router", "1");
        let response = client.ask(request.body(()).unwrap());
        assert_eq!((response.header("x-debug-backend-id"), set(&response).len()), (Some("0"), 0));
    };
    let mut client = site.connect();
    for _ in 0..4 {
        back(&mut client);
        back(&mut site.connect());
    }
    let socket = |client: &mut Http2, cookie: &str| {
        client.wait_for_connect_protocol();
        let request = with("CONNECT", "/socket").extension(Protocol::from_static("websocket"));
        let request = request.header("sec-websocket-version", "13").header("cookie", cookie).body(()).unwrap();
        let mut stream = client.open(request);
        let head = stream.head();
        assert_eq!(head.status, 200);
        head
    };
    assert_eq!(set(&socket(&mut client, &given)).len(), 0);
    assert_eq!(backends.each_ref().map(|backend| backend.requests().len()), [10, 0]);
    let second = socket(&mut client, "a=b");
    assert!(cookie(&second) != given && set(&second)[0].ends_with("; Secure"));
    assert_eq!(backends[1].requests().len(), 1);

    let curl = super::support::curl;
    let output = curl(&site.authority, planb.tls_address(), super::http2::NAME, "/", &["--http1.1", "--include"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.lines().any(|line| line.starts_with("Set-Cookie: planb_backend=") && line.ends_with("; Secure")),
        "{text}"
    );
    let plain = ask(planb, super::http2::NAME, "");
    assert!(!set(&plain)[0].contains("Secure"));
}

#[test]
fn answers_of_our_own_set_no_cookie() {
    let (stack, _backends) = three(&[SECRET]);
    let (_guard, refusing) = closed_port();
    stack.list("refusing.test", &[&refusing]);
    for (host, status) in
        [("nowhere.test", 400), ("refusing.test", 503), ("refusing.test", 503), ("__ping__", 200), ("", 400)]
    {
        let response = ask(&stack.planb, host, "");
        assert_eq!((response.status, set(&response).len()), (status, 0), "{host}");
    }
    cookie(&ask(&stack.planb, HOST, ""));
}

#[test]
fn other_policies_set_no_cookie_and_heed_none() {
    let (stack, _backends) = three(&[SECRET]);
    let given = cookie(&ask(&stack.planb, HOST, ""));
    for policy in ["round-robin", "least-requests"] {
        let other = sibling(&stack, &[&format!("--load-balancing={policy}"), SECRET]);
        let names: BTreeSet<_> = (0..40)
            .map(|_| visit(&other, &given))
            .map(|response| {
                assert_eq!(set(&response).len(), 0);
                response.text()
            })
            .collect();
        assert_eq!(names.len(), 3, "{policy}");
    }
}

#[test]
fn connections_that_are_passed_through_take_turns() {
    let stack = Stack::start(&[STICKY, SECRET, "--engine=sni"]);
    let backends = ["a", "b"].map(Backend::named);
    stack.list(HOST, &[&backends[0].url(), &backends[1].url()]);
    let ask = || {
        let mut client = stack.planb.connect();
        client.send([&*hello(&[HOST]), b"GET / HTTP/1.1\r\n\r\n"].concat());
        client.response().text()
    };
    assert_eq!((0..4).map(|_| ask()).collect::<String>(), "abab");
}
