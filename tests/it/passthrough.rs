//! `--engine=sni`: TLS connections that are routed by the name in their hello, and reach the backend untouched.

use std::{
    collections::HashSet,
    fs,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use rustls::{HandshakeKind, crypto::aws_lc_rs};
use socket2::SockRef;

use super::support::{
    Authority, Backend, Client, OpensslServer, Planb, Stack, closed_port, connect_tls, curl, hello, hello_message,
    record, redis, redis_cli, s_client, wait_until, wait_within,
};

const NAME: &str = "secure.test";
const REQUEST: &str = "GET / HTTP/1.1\r\n\r\n";
const MEBIBYTE: usize = 1 << 20;

/// A stack whose proxy passes TLS through, and logs to standard output.
fn passing(arguments: &[&str]) -> Stack {
    Stack::start(&[&["--engine=sni", "--access-log=stdout"], arguments].concat())
}

/// A stack that passes [`NAME`] through to a socket of the test's own.
struct Wired {
    stack: Stack,
    listener: TcpListener,
}

impl Wired {
    fn start(arguments: &[&str]) -> Self {
        let (stack, listener) = (passing(arguments), TcpListener::bind("127.0.0.1:0").unwrap());
        listener.set_nonblocking(true).unwrap();
        stack.list(NAME, &[&listener.local_addr().unwrap().to_string()]);
        Self { stack, listener }
    }

    /// The backend's end of the next connection.
    fn accept(&self) -> Client {
        let mut accepted = None;
        wait_until("the backend is connected to", || {
            accepted = self.listener.accept().ok();
            accepted.is_some()
        });
        accepted.unwrap().0.into()
    }

    /// A client that has said hello, and the backend's end that has heard it.
    fn join(&self) -> (Client, Client) {
        let mut client = self.stack.planb.connect();
        client.send(hello(&[NAME]));
        let mut backend = self.accept();
        assert_eq!(backend.read(hello(&[NAME]).len()).unwrap(), hello(&[NAME]));
        (client, backend)
    }

    /// Such a pair with the client first, then one with the backend first.
    fn both_ways(&self) -> impl Iterator<Item = (Client, Client)> {
        let pairs = [false, true].into_iter().map(|turned| (turned, self.join()));
        pairs.map(|(turned, (client, backend))| if turned { (backend, client) } else { (client, backend) })
    }

    fn wait_for_open(&self, count: u64) {
        let open = || self.stack.planb.count("planb_reverseproxy_connections_current_open");
        wait_until(&format!("{count} connections are open"), || open() == count);
    }
}

/// Who answers a request behind a hello with these names: a backend's name, or the proxy with an alert.
fn ask(planb: &Planb, names: &[&str]) -> String {
    let mut client = planb.connect();
    client.send([&*hello(names), REQUEST.as_bytes()].concat());
    client.close_write();
    let said = client.rest().unwrap();
    match *said {
        [21, _, _, 0, 2, 2, description] => format!("alert {description}"),
        _ => String::from_utf8(said).unwrap().split("\r\n\r\n").nth(1).unwrap_or_default().to_owned(),
    }
}

/// What the first `count` lines of the access log say between their times and their durations. There are no more.
fn access_log(planb: &Planb, count: usize) -> Vec<String> {
    wait_until(&format!("there are {count} lines"), || planb.stdout().len() >= count);
    let lines = planb.stdout();
    assert_eq!(lines.len(), count, "{lines:#?}");
    let middle = |line: &String| {
        let rest = line.strip_prefix("::ffff:127.0.0.1 - - [").unwrap().split_once("] ").unwrap().1;
        rest.rsplitn(3, ' ').last().unwrap().to_owned()
    };
    lines.iter().map(middle).collect()
}

/// Such a line.
fn line(name: &str, status: u16, bytes: usize, frontend: &str) -> String {
    format!("\"CONNECT {name} TLS\" {status} {bytes} \"\" \"\" \":\" \"{frontend}\" \"\"")
}

fn responses(planb: &Planb, status: u16) -> u64 {
    planb.count(&format!("planb_reverseproxy_backends_responses_total{{status_code=\"{status}\"}}"))
}

/// Resets a connection.
fn abort(client: Client) {
    SockRef::from(client.socket()).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
}

#[test]
fn every_version_of_tls_reaches_the_backend() {
    let (stack, server) = (passing(&[]), OpensslServer::start(&Authority::new(), NAME));
    stack.list(NAME, &[&format!("https://{}", server.address)]);
    let root = server.root();
    let verify = ["-servername", NAME, "-verify_hostname", NAME, "-verify_return_error", "-CAfile", &root];
    for (version, said) in [("-tls1", "TLSv1"), ("-tls1_1", "TLSv1.1"), ("-tls1_2", "TLSv1.2")] {
        let arguments = [&verify[..], &[version, "-cipher", "ALL:@SECLEVEL=0", "-reconnect"]].concat();
        let text = s_client(stack.planb.address(), &arguments, "");
        assert!(text.contains(&format!("    Protocol  : {said}\n")), "{text}");
        assert!(text.contains("Verify return code: 0 (ok)"), "{text}");
        assert_eq!(text.matches("Reused, TLSv1.").count(), 5, "{text}");
    }
    let text = s_client(stack.planb.address(), &[&verify[..], &["-tls1_3"]].concat(), "");
    assert!(text.contains("New, TLSv1.3, ") && text.contains("Verify return code: 0 (ok)"), "{text}");
    assert_eq!(access_log(&stack.planb, 19).len(), 19);
}

#[test]
fn curl_and_the_library_speak_with_the_backend_end_to_end() {
    let (authority, outer, inner) = (Authority::new(), passing(&[]), Stack::start(&["--tls-listen=127.0.0.1:0"]));
    let backend = Backend::echo();
    authority.issue(&[NAME]).install(&inner.master, NAME);
    inner.list(NAME, &[&backend.url()]);
    outer.list(NAME, &[&format!("https://{}", inner.planb.tls_address())]);
    for (flags, version) in [(["--http1.1", "--tlsv1.3"], "1.1"), (["--http2", "--tlsv1.2"], "2")] {
        let arguments = [&flags[..], &["--write-out", "\n%{http_version}"]].concat();
        let output = curl(&authority, outer.planb.address(), NAME, "/path", &arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.starts_with("GET /path HTTP/1.1\r\n") && text.ends_with(&format!("\n{version}")), "{output:?}");
    }

    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    let config = authority.client_of(provider, &["http/1.1"]);
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        let mut stream = connect_tls(&config, outer.planb.address(), NAME).unwrap();
        assert_eq!(stream.conn.handshake_kind(), Some(kind));
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        write!(stream, "GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n").unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
    assert_eq!(inner.planb.count("planb_tls_resumptions_total"), 2);
}

#[test]
fn the_hello_and_what_follows_arrive_unchanged_however_they_are_cut() {
    let wired = Wired::start(&[]);
    let message = hello_message(&[NAME], 600);
    let mut ancient = record(&message);
    ancient[2] = 0;
    let tiny: Vec<u8> = message.chunks(3).flat_map(record).collect();
    let early = [&*record(&message), b"\x14\x03\x03\x00\x01\x01\x17\x03\x03\x00\x05early"].concat();
    for (bytes, step) in [(&ancient, 1), (&tiny, 1), (&tiny, 4096), (&tiny, 7), (&early, 4096), (&early, 1)] {
        let mut client = wired.stack.planb.connect();
        bytes.chunks(step).for_each(|piece| client.send(piece));
        assert_eq!(&wired.accept().read(bytes.len()).unwrap(), bytes, "in pieces of {step}");
    }

    let follows = (0..=250).cycle().take(2 * MEBIBYTE);
    let all: Vec<u8> = hello(&[NAME]).into_iter().chain(follows).collect();
    let mut client = wired.stack.planb.connect();
    thread::scope(|scope| {
        scope.spawn(|| client.send(&all));
        assert!(wired.accept().read(all.len()).unwrap() == all);
    });
}

#[test]
fn frontends_are_found_as_for_http() {
    let stack = passing(&["--workers=1"]);
    let (exact, wild, rest) = (Backend::named("exact"), Backend::named("wild"), Backend::named("rest"));
    stack.list("a.b.test", &[&exact.url()]);
    stack.list("*.test", &[&wild.url()]);
    for (name, answer) in [
        ("a.b.test", "exact"),
        ("A.B.TEST", "exact"),
        ("a.b.test.", "exact"),
        ("c.b.test", "wild"),
        ("1.2.3.4.5.test", "wild"),
        ("test", "alert 112"),
        ("a.b.testing", "alert 112"),
        ("localhost", "alert 112"),
    ] {
        assert_eq!(ask(&stack.planb, &[name]), answer, "{name}");
    }
    assert_eq!(ask(&stack.planb, &[]), "alert 112");
    stack.list("*", &[&rest.url()]);
    for names in [&["a.b.testing"][..], &["localhost"], &[]] {
        assert_eq!(ask(&stack.planb, names), "rest", "{names:?}");
    }
    assert_eq!(ask(&stack.planb, &["a.b.test"]), "exact");
    let lines = access_log(&stack.planb, 13);
    assert!(lines[2].starts_with("\"CONNECT a.b.test TLS\" 200 ") && lines[2].ends_with(" \"a.b.test\" \"\""));
    assert!(lines[4].starts_with("\"CONNECT 1.2.3.4.5.test TLS\" 200 ") && lines[4].ends_with(" \"*.test\" \"\""));
    assert_eq!(lines[5], line("test", 400, 0, ""));
    assert!(lines[11].starts_with("\"CONNECT / TLS\" 200 ") && lines[11].ends_with(" \"*\" \"\""), "{}", lines[11]);
}

#[test]
fn an_unknown_name_is_told_so_by_an_alert_and_a_clean_close() {
    let stack = passing(&[]);
    for version in ["-tls1", "-tls1_1", "-tls1_2", "-tls1_3"] {
        let arguments = ["-servername", NAME, version, "-cipher", "ALL:@SECLEVEL=0"];
        let said = s_client(stack.planb.address(), &arguments, "");
        assert!(said.contains("SSL alert number 112"), "{version}: {said}");
    }
    let authority = Authority::new();
    let error = connect_tls(&authority.client(&[]), stack.planb.address(), NAME).unwrap_err();
    assert!(error.to_string().contains("UnrecognisedName"), "{error}");
    let output = curl(&authority, stack.planb.address(), NAME, "/", &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("unrecognized name"), "{output:?}");

    let mut talkative = stack.planb.connect();
    talkative.send([hello(&[NAME]), vec![7; MEBIBYTE / 4]].concat());
    assert_eq!(talkative.rest().unwrap(), [21, 3, 3, 0, 2, 2, 112], "what it goes on to say resets nothing");
    drop(talkative);
    assert_eq!(access_log(&stack.planb, 7), vec![line(NAME, 400, 0, ""); 7]);
    stack.planb.wait_for_log(&format!("ERROR in {NAME} -> ? - {NAME} - : - no such route"));
}

#[test]
fn edits_take_effect_at_once_and_backends_take_turns() {
    let stack = passing(&[]);
    let backends = ["one", "two", "three"].map(Backend::named);
    let urls = backends.each_ref().map(Backend::url);
    stack.list(NAME, &[&urls[0], &urls[1]]);
    let turns = |count| (0..count).map(|_| ask(&stack.planb, &[NAME])).collect::<Vec<_>>();
    assert_eq!(turns(6), ["one", "two"].repeat(3));
    redis(&stack.master, &["RPUSH", &format!("frontend:{NAME}"), &urls[2]]);
    wait_until("the third is asked", || ask(&stack.planb, &[NAME]) == "three");
    assert_eq!(turns(6), ["one", "two", "three"].repeat(2));
    redis(&stack.master, &["SADD", &format!("dead:{NAME}"), "1"]);
    wait_until("the second is dead", || !turns(3).contains(&"two".to_owned()));
    let alive = turns(4);
    assert!(alive == ["one", "three"].repeat(2) || alive == ["three", "one"].repeat(2), "{alive:?}");
    redis(&stack.master, &["DEL", &format!("frontend:{NAME}")]);
    wait_until("it has no route", || ask(&stack.planb, &[NAME]) == "alert 112");
}

#[test]
fn a_refusing_backend_costs_no_client_anything() {
    let (stack, alive, (_guard, refusing)) = (passing(&[]), Backend::named("alive"), closed_port());
    stack.list(NAME, &[&alive.url(), &refusing, &alive.url()]);
    for _ in 0..6 {
        assert_eq!(ask(&stack.planb, &[NAME]), "alive");
    }
    let log = stack.planb.wait_for_log("*DEAD*");
    assert!(log.starts_with(&format!("ERROR in {NAME} -> {refusing} - {NAME} - : - error in backend dial: ")), "{log}");
    let count = |name: &str| stack.planb.count(name);
    assert_eq!(count("planb_router_backend_markdead_total"), 1);
    assert_eq!(count("planb_reverseproxy_retries_total"), 1);
    assert_eq!(count("planb_reverseproxy_pool_dials_total"), 7);
    wait_until("all are counted", || responses(&stack.planb, 200) == 6);
    let members = || redis_cli(&stack.master, &["SMEMBERS", &format!("dead:{NAME}")]);
    wait_until("the master knows", || members() == "1");
}

#[test]
fn four_backends_are_tried_at_most_and_none_of_them_twice() {
    let stack = passing(&["--dead-backend-time=none", "--workers=1"]);
    let refusing: Vec<_> = (0..6).map(|_| closed_port()).collect();
    let urls: Vec<&str> = refusing.iter().map(|(_, url)| url.as_str()).collect();
    stack.list(NAME, &urls);
    stack.list("few.test", &[urls[0], urls[1], urls[0], urls[1]]);
    for (name, dials) in [(NAME, 4), ("few.test", 2)] {
        assert_eq!(ask(&stack.planb, &[name]), "alert 80");
        let start = format!("ERROR in {name} -> ");
        let tried = || -> Vec<String> {
            let log = stack.planb.log().into_iter();
            log.filter_map(|line| Some(line.strip_prefix(&start)?.split(' ').next()?.to_owned())).collect()
        };
        wait_until("each is logged", || tried().len() == dials);
        assert_eq!(tried().into_iter().collect::<HashSet<_>>().len(), dials, "{:?}", tried());
    }
    assert_eq!(stack.planb.count("planb_reverseproxy_pool_dials_total"), 6);
    assert_eq!(stack.planb.count("planb_router_backend_markdead_total"), 0);
    assert_eq!(access_log(&stack.planb, 2), [line(NAME, 503, 0, NAME), line("few.test", 503, 0, "few.test")]);
}

#[test]
fn a_client_whose_backends_are_all_dead_is_told_by_an_alert() {
    let (stack, (_guard, refusing)) = (passing(&[]), closed_port());
    stack.list(NAME, &[&refusing]);
    for dials in [1, 1] {
        assert_eq!(ask(&stack.planb, &[NAME]), "alert 80");
        assert_eq!(stack.planb.count("planb_reverseproxy_pool_dials_total"), dials);
    }
    assert_eq!(access_log(&stack.planb, 2), vec![line(NAME, 503, 0, NAME); 2]);
    assert_eq!(responses(&stack.planb, 503), 2);
    stack.planb.wait_for_log(&format!("ERROR in {NAME} -> ? - {NAME} - : - all backends are dead"));
}

#[test]
fn a_backend_that_resets_at_once_is_blamed_but_not_dead() {
    let wired = Wired::start(&[]);
    for _ in 0..3 {
        let mut client = wired.stack.planb.connect();
        client.send(hello(&[NAME]));
        abort(wired.accept());
        assert!(client.ends_silently());
    }
    assert_eq!(access_log(&wired.stack.planb, 3), vec![line(NAME, 503, 0, NAME); 3]);
    wired.stack.planb.wait_for_log("without an answer");
    assert_eq!(wired.stack.planb.count("planb_router_backend_markdead_total"), 0);
}

#[test]
fn a_client_that_stalls_in_its_hello_is_closed_and_no_other_is() {
    let wired = Wired::start(&["--client-read-header-timeout=300ms"]);
    let (mut client, mut backend) = wired.join();
    let (mut silent, mut half) = (wired.stack.planb.connect(), wired.stack.planb.connect());
    half.send(&hello(&[NAME])[..50]);
    let mut trickling = wired.stack.planb.connect();
    trickling.send([22, 3, 1, 64, 0, 1, 0, 63, 0]);
    wait_until("a trickle is cut off", || trickling.try_send([0]).is_err());
    assert!(silent.ends_silently() && half.ends_silently());
    assert_eq!(access_log(&wired.stack.planb, 3), vec![line("/", 408, 0, ""); 3]);
    client.send("still");
    assert_eq!(backend.read(5).unwrap(), b"still");
}

#[test]
fn what_is_no_usable_hello_is_closed_and_harms_nobody() {
    let wired = Wired::start(&[]);
    let planb = &wired.stack.planb;
    for _ in 0..5 {
        let mut silent = planb.connect();
        silent.close_write();
        assert!(silent.ends_silently());
        abort(planb.connect());
    }
    let http = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
    let endless = [&[22, 3, 1, 0x40, 0, 1, 0xFF, 0xFF, 0xFF], &*vec![0; 90_000]].concat();
    let empty_records: Vec<u8> = [22, 3, 1, 0, 0].repeat(100);
    let mut cut_short = hello(&[NAME]);
    let length = cut_short.len();
    cut_short[length - 3..].fill(b'.');
    let none: &[u8] = &[];
    let decode_error: &[u8] = &[21, 3, 3, 0, 2, 2, 50];
    for (junk, answer) in [
        (http.as_bytes(), none),
        (&[0x80, 0x2E, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10], none),
        (&[0; 5000], none),
        (&[21, 3, 1, 0, 2, 2, 40], none),
        (&[22, 2, 0, 0, 1, 1], none),
        (&record(&[2, 0, 0, 0]), decode_error),
        (&record(&[1, 0, 0, 0]), decode_error),
        (&endless, decode_error),
        (&empty_records, decode_error),
        (&cut_short, decode_error),
        (&hello(&[NAME, NAME]), decode_error),
        (&hello(&[NAME, "other.test"]), decode_error),
        (&hello(&[""]), decode_error),
        (&hello(&["192.0.2.1"]), decode_error),
    ] {
        let mut client = planb.connect();
        client.send(junk);
        assert_eq!(client.rest_or_reset().unwrap(), answer, "{:x?}", &junk[..junk.len().min(60)]);
    }
    assert_eq!(access_log(planb, 14), vec![line("/", 400, 0, ""); 14]);
    let mut half = planb.connect();
    half.send(&hello(&[NAME])[..40]);
    half.close_write();
    assert!(half.ends_silently());
    assert_eq!(access_log(planb, 15)[14], line("/", 499, 0, ""));
    drop(wired.join());
    wired.wait_for_open(0);
}

#[test]
fn no_name_forges_a_line_of_a_log() {
    let stack = passing(&["--workers=1"]);
    let names = ["a\"b", "a\nERROR in b.test", "a b.test", "a\\b", "\x1B[31m", "a\r\n", "é.test", "a\0b", "a\u{2028}b"];
    for name in names {
        assert_eq!(ask(&stack.planb, &[name]), "alert 50", "{name:?}");
    }
    let longest = [&*"a".repeat(63), &*"b".repeat(63), &*"c".repeat(63), &*"d".repeat(56), "test"].join(".");
    assert_eq!(ask(&stack.planb, &[&longest]), "alert 112");
    let mut expected = vec![line("/", 400, 0, ""); names.len()];
    expected.push(line(&longest, 400, 0, ""));
    assert_eq!(access_log(&stack.planb, names.len() + 1), expected);
    let errors = || stack.planb.log().into_iter().filter(|line| line.starts_with("ERROR ")).collect::<Vec<_>>();
    wait_until("all are logged", || errors().len() == names.len() + 1);
    let nameless = "ERROR in  -> ? - / - : - cannot be passed through: the server name is no DNS name";
    assert!(errors()[..names.len()].iter().all(|line| line == nameless), "{:#?}", errors());
}

#[test]
fn the_end_of_either_direction_is_passed_on_while_the_other_goes_on() {
    let wired = Wired::start(&["--workers=1"]);
    for (mut first, mut second) in wired.both_ways() {
        first.send("last words");
        first.close_write();
        assert_eq!(second.rest().unwrap(), b"last words");
        for _ in 0..3 {
            second.send("more");
            assert_eq!(first.read(4).unwrap(), b"more");
        }
        second.close_write();
        assert!(first.rest().unwrap().is_empty());
    }
    assert_eq!(access_log(&wired.stack.planb, 2), [line(NAME, 200, 12, NAME), line(NAME, 200, 10, NAME)]);
    wired.wait_for_open(0);
}

#[test]
fn an_abort_of_either_side_is_passed_on() {
    let wired = Wired::start(&[]);
    for (first, mut second) in wired.both_ways() {
        abort(first);
        assert!(second.ends_silently());
        wait_until("it can send no more", || second.try_send("x").is_err());
    }
    wired.wait_for_open(0);
}

#[test]
fn an_abort_is_passed_on_to_a_side_that_does_not_read() {
    let wired = Wired::start(&[]);
    for (first, _stalled) in wired.both_ways() {
        fill(&first, &vec![0; 64 * MEBIBYTE]);
        abort(first);
        let open = || wired.stack.planb.count("planb_reverseproxy_connections_current_open");
        wait_within(Duration::from_secs(5), "the connection is given up", || open() == 0);
    }
}

/// Sends bytes until no more can be sent; returns how many could.
fn fill(from: &Client, bytes: &[u8]) -> usize {
    from.socket().set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut sent = 0;
    while let Ok(count @ 1..) = from.socket().write(&bytes[sent..]) {
        sent += count;
    }
    from.socket().set_write_timeout(None).unwrap();
    assert!(sent < bytes.len() / 2, "{sent} bytes are held for a reader that does not read");
    sent
}

/// Sends bytes from one end to the other, which begins to read only when nothing more can be sent.
fn transfer(bytes: &[u8], from: &Client, to: &mut Client) {
    let sent = fill(from, bytes);
    thread::scope(|scope| {
        scope.spawn(|| from.socket().write_all(&bytes[sent..]).unwrap());
        assert!(to.read(bytes.len()).unwrap() == bytes);
    });
}

/// Kilobytes of memory that a process has used at the most.
fn peak_memory(planb: &Planb) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", planb.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn large_transfers_wait_for_slow_readers_in_little_memory() {
    let wired = Wired::start(&[]);
    let (mut client, mut backend) = wired.join();
    let pattern: Vec<u8> = (0..65_521_u32).map(|number| (number * number % 251) as u8).collect();
    let bytes = pattern.repeat(100 * MEBIBYTE / pattern.len());
    let before = peak_memory(&wired.stack.planb);
    transfer(&bytes, &client, &mut backend);
    transfer(&bytes, &backend, &mut client);
    let grown = peak_memory(&wired.stack.planb) - before;
    assert!(grown < 8192, "memory grew by {grown} kB");
    drop((client, backend));
    assert_eq!(access_log(&wired.stack.planb, 1), [line(NAME, 200, bytes.len(), NAME)]);
}

#[test]
fn what_one_side_said_before_it_reset_the_connection_reaches_the_other() {
    let wired = Wired::start(&["--workers=1"]);
    for (mut first, mut second) in wired.both_ways() {
        // Closing a socket with bytes unread resets the connection, behind what was sent before.
        second.send("unread");
        first.socket().peek(&mut [0]).unwrap();
        wired.stack.planb.signal("STOP");
        second.send("more");
        first.send("last words");
        drop(first);
        wired.stack.planb.signal("CONT");
        assert_eq!(second.rest_or_reset().unwrap(), b"last words");
    }
}

#[test]
fn a_thousand_connections_are_open_at_once_and_cost_little() {
    const COUNT: u32 = 1000;
    rlimit::increase_nofile_limit(8192).unwrap();
    let wired = Wired::start(&[]);
    let before = peak_memory(&wired.stack.planb);
    let mut clients: Vec<Client> = (0..COUNT).map(|_| wired.stack.planb.connect()).collect();
    for (client, number) in clients.iter_mut().zip(0..COUNT) {
        client.send([&*hello(&[NAME]), &number.to_be_bytes()].concat());
    }
    let mut backends: Vec<Client> = clients.iter().map(|_| wired.accept()).collect();
    wired.wait_for_open(COUNT.into());
    for backend in &mut backends {
        backend.read(hello(&[NAME]).len()).unwrap();
        let number = backend.read(4).unwrap();
        backend.send(number);
    }
    for (client, number) in clients.iter_mut().zip(0..COUNT) {
        assert_eq!(client.read(4).unwrap(), number.to_be_bytes());
    }
    let grown = peak_memory(&wired.stack.planb) - before;
    assert!(grown < 64 * u64::from(COUNT), "{grown} kB for {COUNT} connections");
    drop((clients, backends));
    wired.wait_for_open(0);
    assert_eq!(responses(&wired.stack.planb, 200), COUNT.into());
    assert_eq!(access_log(&wired.stack.planb, 1000), vec![line(NAME, 200, 4, NAME); 1000]);
}

#[test]
fn the_connection_limit_holds_and_every_permit_comes_back() {
    let wired = Wired::start(&["--max-connections=2", "--workers=1", "--client-read-header-timeout=500ms"]);
    let (planb, (_guard, refusing)) = (&wired.stack.planb, closed_port());
    wired.stack.list("dead.test", &[&refusing]);
    for _ in 0..3 {
        ask(planb, &["dead.test"]);
        ask(planb, &["unknown.test"]);
        planb.connect().send("GET / HTTP/1.1\r\n\r\n");
        abort(planb.connect());
        assert!(planb.connect().ends_silently(), "at the deadline");
        drop(wired.join());
        wired.wait_for_open(0);
    }
    let reached = || planb.log().iter().filter(|line| line.contains("the connection limit is reached")).count();
    let (before, first, _second) = (reached(), wired.join(), wired.join());
    let mut third = planb.connect();
    third.send(hello(&[NAME]));
    wait_until("the third waits", || reached() > before);
    assert_eq!(wired.listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(first);
    assert_eq!(wired.accept().read(5).unwrap(), hello(&[NAME])[..5]);
}

#[test]
fn a_connection_in_flight_outlives_the_first_signal_and_not_the_second() {
    let whole = vec![5; 8 * MEBIBYTE];
    for is_patient in [true, false] {
        let mut wired = Wired::start(&[]);
        let (mut client, mut backend) = wired.join();
        let address = wired.stack.planb.address();
        wired.stack.planb.signal("TERM");
        wait_until("new connections are refused", || TcpStream::connect(address).is_err());
        client.send("request");
        assert_eq!(backend.read(7).unwrap(), b"request");
        if !is_patient {
            wired.stack.planb.signal("TERM");
            assert!(client.ends_silently() && backend.ends_silently());
            assert_eq!(wired.stack.planb.wait_for_exit().code(), Some(143));
            continue;
        }
        thread::scope(|scope| {
            scope.spawn(|| backend.send(&whole));
            assert!(client.read(whole.len()).unwrap() == whole);
        });
        assert!(!wired.stack.planb.has_exited());
        drop((client, backend));
        assert_eq!(wired.stack.planb.wait_for_exit().code(), Some(0));
        assert_eq!(access_log(&wired.stack.planb, 1), [line(NAME, 200, whole.len(), NAME)]);
    }
}

#[test]
fn a_connection_that_has_said_nothing_does_not_hold_up_the_end() {
    let mut wired = Wired::start(&[]);
    let mut silent = wired.stack.planb.connect();
    wired.wait_for_open(1);
    wired.stack.planb.signal("TERM");
    wait_within(Duration::from_secs(5), "the proxy has ended", || wired.stack.planb.has_exited());
    assert!(silent.ends_silently());
}

#[test]
fn tls_is_passed_through_on_one_port_and_ended_on_the_other() {
    let (stack, authority) = (passing(&["--tls-listen=127.0.0.1:0"]), Authority::new());
    let backend = Backend::named("here");
    authority.issue(&["*.both.test"]).install(&stack.master, "*.both.test");
    stack.list("*.both.test", &[&backend.url()]);
    let ended = || curl(&authority, stack.planb.tls_address(), "a.both.test", "/", &["--http2"]).stdout;
    wait_until("it is served", || ended() == b"here");
    assert_eq!(ask(&stack.planb, &["a.both.test"]), "here");
    assert!(backend.requests().last().unwrap().starts_with('\u{16}'));
    redis(&stack.master, &["DEL", "frontend:*.both.test"]);
    wait_until("it is passed nowhere", || ask(&stack.planb, &["a.both.test"]) == "alert 112");
    assert_eq!(ended(), b"no such route");
}

#[test]
fn the_engine_of_old_means_native() {
    let (stack, backend) = (Stack::start(&["--engine=fasthttp"]), Backend::named("http"));
    stack.route(NAME, &[&backend]);
    assert_eq!(stack.planb.ask(NAME), "http");
}

#[test]
fn an_engine_with_nowhere_to_listen_is_one_clear_line() {
    for (arguments, reason) in [
        (&["--engine=sni", "--listen=disabled"][..], "--engine sni has nowhere to listen"),
        (&["--engine=sni", "--listen=disabled", "--tls-listen=127.0.0.1:0"], "--engine sni has nowhere to listen"),
        (&["--listen=disabled"], "there is no --tls-listen"),
        (&["--engine=other"], "'other' for '--engine"),
    ] {
        let mut planb = Planb::with(arguments).spawn();
        assert_eq!(planb.wait_for_exit().code(), Some(2), "{arguments:?}");
        let log = planb.log();
        assert!(log.len() == 1 && log[0].starts_with("planb: ") && log[0].contains(reason), "{log:?}");
    }
}
