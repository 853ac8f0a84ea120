//! The access log and the error log, to the byte.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

use tempfile::TempDir;
use tokio_tungstenite::tungstenite::{self, Message};

use super::support::{Backend, Planb, Stack, closed_port, get, redis_pair, wait_until};

/// A proxy whose access log is a file in a folder of its own.
struct Logged {
    stack: Stack,
    path: PathBuf,
    _folder: TempDir,
}

impl Logged {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let target = format!("--access-log={}", path.display());
        let stack = Stack::start(&[&[target.as_str()], arguments].concat());
        Self { stack, path, _folder: folder }
    }

    /// The lines about this path, once there are `count` of them.
    fn lines_about(&self, path: &str, count: usize) -> Vec<String> {
        let find = || lines_of(&self.path).into_iter().filter(|line| line.contains(&format!(" {path} "))).collect();
        let mut lines: Vec<String> = Vec::new();
        wait_until(&format!("{count} lines tell of {path}"), || {
            lines = find();
            lines.len() >= count
        });
        assert_eq!(lines.len(), count, "{lines:#?}");
        lines
    }

    /// What the only line about this path says between its time and its durations.
    fn line_about(&self, path: &str) -> String {
        middle_of(&self.lines_about(path, 1)[0]).to_owned()
    }
}

fn lines_of(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// What a line says between its time and its durations. Checks those, and that the client is 127.0.0.1.
fn middle_of(line: &str) -> &str {
    let (time, rest) = line.strip_prefix("::ffff:127.0.0.1 - - [").unwrap().split_once("] ").unwrap();
    let time = jiff::Timestamp::strptime("%d/%b/%Y:%H:%M:%S %z", time).unwrap();
    let age = jiff::Timestamp::now().duration_since(time);
    assert!(!age.is_negative() && age.as_mins() < 5, "{line} is not of now");
    assert!(line.contains(" +0000] "), "{line} is not in UTC");

    let mut words = rest.rsplitn(3, ' ');
    let (backend, total, middle) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    for duration in [backend, total] {
        assert_eq!(duration.split_once('.').unwrap().1.len(), 3, "{line} has no milliseconds");
    }
    assert!(backend.parse::<f64>().unwrap() <= total.parse().unwrap(), "{line}");
    middle
}

#[test]
fn a_line_says_everything_about_its_request() {
    let logged = Logged::start(&["--request-id-header=X-Request-Id"]);
    logged.stack.route("*.wild.test", &[&Backend::echo()]);
    let mut client = logged.stack.planb.connect();
    client.send(
        "PUT /path/to?a=secret HTTP/1.1\r\nHost: A.Wild.test:8080\r\nReferer: http://from/?q=1\r\n\
         User-Agent: agent/1.0 (x; y)\r\nX-Request-Id: the-id\r\nX-Forwarded-For: 1.2.3.4\r\n\
         X-Forwarded-For: 5.6.7.8\r\nContent-Length: 4\r\n\r\nbody",
    );
    let length = client.response().body.len();
    assert_eq!(
        logged.line_about("/path/to"),
        format!(
            "\"PUT /path/to HTTP/1.1\" 200 {length} \"http://from/?q=1\" \"agent/1.0 (x; y)\" \
             \"X-Request-Id:the-id\" \"*.wild.test\" \"1.2.3.4, 5.6.7.8\""
        )
    );
}

#[test]
fn what_a_request_lacks_is_empty() {
    let logged = Logged::start(&[]);
    logged.stack.route("log.test", &[&Backend::named("a")]);
    let mut client = logged.stack.planb.connect();
    client.send("GET /bare HTTP/1.0\r\nHost: log.test\r\n\r\n");
    client.response();
    assert_eq!(logged.line_about("/bare"), r#""GET /bare HTTP/1.0" 200 1 "" "" ":" "log.test" """#);
}

#[test]
fn a_request_without_an_id_is_logged_with_the_one_it_was_given() {
    let logged = Logged::start(&["--request-id-header=X-Request-Id"]);
    logged.stack.route("log.test", &[&Backend::echo()]);
    let seen_by_backend = get(logged.stack.planb.address(), "log.test", "/id").text();
    let id = seen_by_backend.lines().find_map(|line| line.strip_prefix("X-Request-Id: ")).unwrap();
    assert_eq!(id.len(), 36);
    assert!(logged.line_about("/id").contains(&format!("\"X-Request-Id:{id}\"")));
}

#[test]
fn bytes_are_counted_as_sent() {
    let logged = Logged::start(&[]);
    let backend = Backend::start(|exchange| {
        let head = exchange.head.clone();
        if head.contains(" /chunked ") {
            exchange.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\ndefgh\r\n0\r\n\r\n")
        } else if head.contains(" /broken ") {
            exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this");
            false
        } else {
            exchange.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        }
    });
    let planb = &logged.stack.planb;
    logged.stack.master.command(&["RPUSH", "frontend:log.test", "id", &backend.url()]).unwrap();
    wait_until("the host is routed", || {
        let mut client = planb.connect();
        client.send("HEAD /head HTTP/1.1\r\nHost: log.test\r\nConnection: close\r\n\r\n");
        client.head().unwrap().status == 200
    });
    assert_eq!(get(planb.address(), "log.test", "/chunked").text(), "abcdefgh");
    let mut client = planb.connect();
    client.send("GET /broken HTTP/1.1\r\nHost: log.test\r\n\r\n");
    assert!(client.try_response().is_err(), "the backend broke off");
    assert!(logged.line_about("/chunked").contains(" 200 8 "));
    assert!(logged.line_about("/broken").contains(" 200 9 "));
    let heads = lines_of(&logged.path);
    assert!(heads.iter().any(|line| line.contains("\"HEAD /head HTTP/1.1\" 200 0 ")), "{heads:#?}");
}

#[test]
fn a_client_cannot_forge_a_line() {
    let logged = Logged::start(&["--request-id-header=X-Request-Id"]);
    logged.stack.route("log.test", &[&Backend::named("a")]);
    let mut client = logged.stack.planb.connect();
    client.send(
        b"GET /a\"b HTTP/1.1\r\nHost: log.test\r\nReferer: \" 500 0 \\\r\nUser-Agent: a\t\xff\xc2\x85\"\r\n\
          X-Request-Id: \"\t\r\nX-Forwarded-For: 1\"2\r\n\r\n",
    );
    assert_eq!(client.response().status, 200);
    assert_eq!(
        logged.line_about(r#"/a\"b"#),
        r#""GET /a\"b HTTP/1.1" 200 1 "\" 500 0 \\" "a\x09\xff\xc2\x85\"" "X-Request-Id:\"" "log.test" "1\"2""#
    );
    for byte in [b'\0', b'\n', b'\r', 0x1b, 0x7f] {
        let mut client = logged.stack.planb.connect();
        let head = b"GET /forged HTTP/1.1\r\nHost: log.test\r\nUser-Agent: a";
        client.send([head.as_slice(), &[byte], b"::ffff:6.6.6.6 - - []\r\n\r\n"].concat());
        assert_eq!(client.response().status, 400, "byte {byte}");
    }
    assert!(!lines_of(&logged.path).iter().any(|line| line.contains("6.6.6.6")));
}

#[test]
fn every_way_to_end_leaves_one_line() {
    let mut logged = Logged::start(&[]);
    let (_guard, closed) = closed_port();
    let (holding, _gate) = Backend::holding();
    let stack = &mut logged.stack;
    stack.route("live.test", &[&holding]);
    stack.route("socket.test", &[&Backend::websocket_echo()]);
    let planb = &mut stack.planb;
    let ask = |planb: &Planb, host: &str, path: &str| get(planb.address(), host, path).status;

    assert_eq!(ask(planb, "live.test", "/good"), 200);
    assert_eq!(ask(planb, "nowhere.test", "/lost"), 400);
    stack.master.command(&["RPUSH", "frontend:dead.test", "id", &closed]).unwrap();
    wait_until("dead.test is routed", || planb.connect().get("dead.test", "/routed").status == 503);
    assert_eq!(ask(planb, "dead.test", "/dead"), 503);

    let mut client = planb.connect();
    client.send("GET /held HTTP/1.1\r\nHost: live.test\r\n\r\n");
    wait_until("it is in flight", || holding.requests().iter().any(|head| head.starts_with("GET /held ")));
    drop(client);

    let (mut socket, _) = tungstenite::client("ws://socket.test/socket", planb.connect().into_socket()).unwrap();
    socket.send(Message::text("12345")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text("12345"));
    assert!(!lines_of(&logged.path).iter().any(|line| line.contains("/socket")), "a tunnel is logged at its end");
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    drop(socket);

    let lines = [
        ("/good", r#"200 4 "" "" ":" "live.test" """#),
        ("/lost", r#"400 13 "" "" ":" "" """#),
        ("/dead", r#"503 21 "" "" ":" "dead.test" """#),
        ("/held", r#"499 0 "" "" ":" "live.test" """#),
        // Five bytes of text and the end, each with a header of two bytes.
        ("/socket", r#"101 9 "" "" ":" "socket.test" """#),
    ];
    wait_until("all is logged", || {
        lines.iter().all(|(path, _)| lines_of(&logged.path).iter().any(|l| l.contains(path)))
    });
    assert_eq!(logged.stack.planb.count("planb_router_backend_markdead_total"), 1, "only the closed port is dead");
    logged.stack.planb.signal("TERM");
    logged.stack.planb.wait_for_exit();
    for (path, end) in lines {
        assert_eq!(logged.line_about(path), format!("\"GET {path} HTTP/1.1\" {end}"));
    }
    let others = |line: &&String| !line.contains("\"GET / HTTP") && !line.contains("\"GET /routed HTTP");
    assert_eq!(lines_of(&logged.path).iter().filter(others).count(), lines.len());
}

#[test]
fn only_ipv4_clients_are_prefixed() {
    let logged = Logged::start(&["--listen=:0"]);
    logged.stack.route("log.test", &[&Backend::named("a")]);
    let address = logged.stack.planb.address();
    get((Ipv4Addr::LOCALHOST, address.port()).into(), "log.test", "/four");
    logged.line_about("/four");
    // A machine without IPv6 has no other clients.
    if address.is_ipv6() {
        get((Ipv6Addr::LOCALHOST, address.port()).into(), "log.test", "/six");
        let line = &logged.lines_about("/six", 1)[0];
        assert!(line.starts_with("::1 - - ["), "{line}");
    }
}

#[test]
fn a_hang_up_reopens_a_renamed_log_without_a_loss() {
    let mut logged = Logged::start(&[]);
    logged.stack.route("log.test", &[&Backend::named("a")]);
    let rotated = logged.path.with_extension("log.1");
    get(logged.stack.planb.address(), "log.test", "/before");
    logged.line_about("/before");
    fs::rename(&logged.path, &rotated).unwrap();
    get(logged.stack.planb.address(), "log.test", "/between");
    logged.stack.planb.signal("HUP");
    wait_until("there is a new file", || logged.path.exists());
    get(logged.stack.planb.address(), "log.test", "/after");
    logged.line_about("/after");
    let old = fs::read_to_string(&rotated).unwrap();
    assert!(old.contains("/before") && old.contains("/between") && !old.contains("/after"), "{old}");
    assert!(!logged.stack.planb.has_exited());
}

#[test]
fn a_log_can_go_to_standard_output() {
    let stack = Stack::start(&["--access-log=stdout"]);
    get(stack.planb.address(), "nowhere.test", "/out");
    let line = stack.planb.wait_for_stdout("/out");
    assert_eq!(middle_of(&line), r#""GET /out HTTP/1.1" 400 13 "" "" ":" "" """#);
}

#[test]
fn a_log_can_go_nowhere_and_is_a_file_here_by_default() {
    let (master, replica) = redis_pair();
    let folder = tempfile::tempdir().unwrap();
    let mut planb = Planb::builder(&replica, &master).folder(folder.path()).start();
    planb.ask("nowhere.test");
    planb.signal("TERM");
    planb.wait_for_exit();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert!(planb.stdout().is_empty());

    let by_default = [
        &format!("--read-redis-port={}", replica.port()),
        &format!("--write-redis-port={}", master.port()),
        "--listen=127.0.0.1:0",
    ];
    let mut planb = Planb::with(&by_default).folder(folder.path()).start();
    planb.ask("nowhere.test");
    planb.signal("TERM");
    planb.wait_for_exit();
    assert_eq!(lines_of(&folder.path().join("access.log")).len(), 1);
}

#[test]
fn a_log_can_go_to_syslog() {
    let daemon = SyslogDaemon::start();
    let stack = Stack::start(&["--access-log=syslog"]);
    get(stack.planb.address(), "nowhere.test", "/to-syslog");
    let mut message = String::new();
    wait_until("syslog has the line", || {
        message = daemon.messages().into_iter().find(|message| message.contains("/to-syslog")).unwrap_or_default();
        !message.is_empty()
    });
    // Facility local0 is 16, level info is 6.
    assert!(message.starts_with("<134>"), "{message}");
    let (_, line) = message.split_once(&format!(" hipache[{}]: ", stack.planb.pid())).unwrap();
    assert_eq!(middle_of(line.trim_end()), r#""GET /to-syslog HTTP/1.1" 400 13 "" "" ":" "" """#);
}

#[test]
fn a_log_that_cannot_be_opened_is_one_clear_line() {
    let mut planb = Planb::with(&["--listen=127.0.0.1:0", "--access-log=/nonexistent/folder/log"]).spawn();
    assert_eq!(planb.wait_for_exit().code(), Some(1));
    let reason = "planb: cannot open the access log /nonexistent/folder/log: No such file or directory (os error 2)";
    assert_eq!(planb.log(), [reason]);
}

#[test]
fn a_stalled_reader_of_standard_output_delays_no_request() {
    let (master, replica) = redis_pair();
    let mut planb = Planb::builder(&replica, &master).arguments(&["--access-log=stdout"]).unread_stdout().start();
    // More than the queue of 10,000 lines, the pipe and the buffers hold.
    let (rounds, batch) = (28, 400);
    let mut client = planb.connect();
    let request = format!("GET /{} HTTP/1.1\r\nHost: nowhere.test\r\n\r\n", "long".repeat(25));
    for _ in 0..rounds {
        client.send(request.repeat(400));
        for _ in 0..batch {
            assert_eq!(client.response().status, 400);
        }
    }
    let dropped = planb.count("planb_log_access_lines_dropped_total");
    assert!(dropped > 0);
    planb.read_stdout();
    planb.wait_for_log("log lines were dropped");
    planb.signal("TERM");
    assert_eq!(planb.wait_for_exit().code(), Some(0));
    assert_eq!(planb.stdout().len() as u64 + dropped, rounds * batch, "each line is written or counted");
}

#[test]
fn errors_are_logged_in_the_originals_form() {
    let stack = Stack::start(&["--request-id-header=X-Request-Id"]);
    let (_guard, closed) = closed_port();
    let breaking = Backend::start(|exchange| !exchange.head.contains(" /broken"));
    for (host, url) in [("dead.test", &closed), ("broken.test", &breaking.url())] {
        stack.master.command(&["RPUSH", &format!("frontend:{host}"), "id", url]).unwrap();
    }
    // Backends that fail or say nothing cannot prove that they are routed; the number of frontends can.
    wait_until("both are routed", || stack.planb.count("planb_router_frontends") == 2);
    let ask = |host: &str, path: &str, id: &str| {
        let mut client = stack.planb.connect();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Request-Id: {id}\r\n\r\n"));
        client.response().status
    };
    assert_eq!(ask("Nowhere.test:80", "/a?secret", "id-1"), 400);
    assert_eq!(ask("dead.test", "/b?secret", "id-2"), 503);
    assert_eq!(ask("dead.test", "/c", "id-3"), 503);
    assert_eq!(ask("broken.test", "/broken", "id-4"), 503);
    assert_eq!(ask("dead.test", "/\"\\", "\"\t\u{85}x"), 503);

    let broken = breaking.url();
    let expected = [
        "ERROR in Nowhere.test:80 -> ? - /a - X-Request-Id:id-1 - no such route".to_owned(),
        format!(
            "ERROR in dead.test -> {closed} - /b - X-Request-Id:id-2 - error in backend dial: Connection refused \
             (os error 111) *DEAD*"
        ),
        "ERROR in dead.test -> ? - /c - X-Request-Id:id-3 - all backends are dead".to_owned(),
        format!(
            "ERROR in broken.test -> {broken} - /broken - X-Request-Id:id-4 - error in backend request: connection \
             closed before message completed"
        ),
        r#"ERROR in dead.test -> ? - /\"\\ - X-Request-Id:\"\x09\xc2\x85x - all backends are dead"#.to_owned(),
    ];
    stack.planb.wait_for_log(&expected[4]);
    let errors: Vec<_> = stack.planb.log().into_iter().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors, expected);
}

/// What listens where programs send their syslog messages. It cannot stand beside a real syslog daemon.
struct SyslogDaemon {
    messages: Arc<Mutex<Vec<String>>>,
    _alone: fs::File,
}

impl SyslogDaemon {
    fn start() -> Self {
        // Another run of the tests may be at the same point.
        let alone = fs::File::create(std::env::temp_dir().join("planb-syslog-test.lock")).unwrap();
        alone.lock().unwrap();
        let is_stale = UnixDatagram::unbound().unwrap().connect(DEV_LOG).is_err();
        assert!(
            is_stale,
            "{DEV_LOG} is in use: stop the syslog daemon, or run this test in a container, where there is none"
        );
        // There may be nothing to remove.
        let _ = fs::remove_file(DEV_LOG);
        let socket = UnixDatagram::bind(DEV_LOG);
        let socket = socket.unwrap_or_else(|error| panic!("this test must be root to bind {DEV_LOG}: {error}"));
        let messages: Arc<Mutex<Vec<String>>> = Arc::default();
        let received = Arc::clone(&messages);
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok(length) = socket.recv(&mut buffer) {
                received.lock().unwrap().push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
        });
        Self { messages, _alone: alone }
    }

    fn messages(&self) -> Vec<String> {
        self.messages.lock().unwrap().clone()
    }
}

impl Drop for SyslogDaemon {
    fn drop(&mut self) {
        // The next run removes what this one cannot.
        let _ = fs::remove_file(DEV_LOG);
    }
}

const DEV_LOG: &str = "/dev/log";
