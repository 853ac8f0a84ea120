//! The access log and the error log, to the byte.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader},
    net::{Ipv4Addr, Ipv6Addr, Shutdown},
    os::unix::{
        fs::{OpenOptionsExt, PermissionsExt, symlink},
        net::UnixDatagram,
    },
    path::{Path, PathBuf},
    process::Command,
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
        Self::start_with(arguments, |_| {})
    }

    /// With something at the log's path before the start.
    fn start_with(arguments: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs").join("access.log");
        fs::create_dir(path.parent().unwrap()).unwrap();
        prepare(&path);
        let target = format!("--access-log={}", path.display());
        let stack = Stack::start(&[&[target.as_str()], arguments].concat());
        Self { stack, path, _folder: folder }
    }

    /// A request for the path, which no backend gets, and which need not be logged anywhere.
    fn ask(&self, path: &str) {
        get(self.stack.planb.address(), "nowhere.test", path);
    }

    /// Asks for the path until a line about it is in the log's file.
    fn ask_until_logged(&self, path: &str) {
        wait_until(&format!("{path} is logged"), || {
            self.ask(path);
            lines_of(&self.path).iter().any(|line| line.contains(&format!(" {path} ")))
        });
    }

    fn lost(&self, reason: &str) -> u64 {
        lost(&self.stack.planb, reason)
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

fn lost(planb: &Planb, reason: &str) -> u64 {
    planb.count(&format!("planb_log_lines_lost_total{{log=\"access\",reason=\"{reason}\"}}"))
}

fn make_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// A reader of a pipe, whether anybody writes to it or not. Reading never waits.
fn open_pipe(path: &Path) -> BufReader<File> {
    BufReader::new(OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path).unwrap())
}

/// Whether a line about the path comes out of the pipe, among those that are there now.
fn reads_of(pipe: &mut BufReader<File>, path: &str) -> bool {
    let mut line = String::new();
    while pipe.read_line(&mut line).is_ok_and(|length| length > 0) {
        if std::mem::take(&mut line).contains(&format!(" {path} ")) {
            return true;
        }
    }
    false
}

/// As the system's headers have it.
const O_NONBLOCK: i32 = 0o4000;

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
    // A client has its answer before there is a line about it.
    wait_until("the old file goes on", || fs::read_to_string(&rotated).unwrap().contains("/between"));
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
fn the_header_of_request_ids_has_its_standard_form() {
    let logged = Logged::start(&["--request-id-header=x-REQUEST-id"]);
    let mut client = logged.stack.planb.connect();
    client.send("GET /id HTTP/1.1\r\nHost: nowhere.test\r\nX-Request-ID: one\r\n\r\n");
    client.response();
    assert!(logged.line_about("/id").contains("\"X-Request-Id:one\""));
    logged.stack.planb.wait_for_log("ERROR in nowhere.test -> ? - /id - X-Request-Id:one - no such route");
}

#[test]
fn a_new_log_is_not_for_everybody_to_read() {
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:\t")).unwrap();
    let umask = u32::from_str_radix(umask, 8).unwrap();
    let logged = Logged::start(&[]);
    assert_eq!(mode(&logged.path), 0o640 & !umask);

    let existing = Logged::start_with(&[], |path| {
        File::create(path).unwrap().set_permissions(fs::Permissions::from_mode(0o604)).unwrap();
    });
    assert_eq!(mode(&existing.path), 0o604);
}

#[test]
fn a_malformed_request_has_a_line() {
    let logged = Logged::start(&["--request-id-header=X-Request-Id"]);
    let long_target = [b"GET /long?", &b"a".repeat(65_600)[..], b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
    let cases: [(&[u8], &str); 10] = [
        (b"GET /nul?secret HTTP/1.1\r\nHost: a\0b\r\n\r\n", "GET /nul HTTP/1.1\" 400"),
        (b"GET /bare HTTP/1.1\nHost: a\n\n", "GET /bare HTTP/1.1\" 400"),
        (b"GET /blank in it HTTP/1.1\r\nHost: a\r\n\r\n", "GET /blank in it HTTP/1.1\" 400"),
        (b"GET /no-protocol\r\n\r\n", "GET /no-protocol -\" 400"),
        (b"GET /\"\x1b#a HTTP/1.1\r\nHost: a\r\n\r\n", "GET /\\\"\\x1b HTTP/1.1\" 400"),
        (b"GE(T /method HTTP/1.1\r\nHost: a\r\n\r\n", "GE(T /method HTTP/1.1\" 400"),
        (b"\x16\x03\x01\x02\0\r\n\r\n", "\\x16\\x03\\x01\\x02\\x00 - -\" 400"),
        (b"GET /twice HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "GET /twice HTTP/1.1\" 400"),
        (b"GET /large HTTP/1.1\r\nHost: a\r\nA: ", "GET /large HTTP/1.1\" 431"),
        (&long_target, "GET /long -\" 414"),
    ];
    for (request, line) in cases {
        let mut client = logged.stack.planb.connect();
        let large = if request.ends_with(b": ") { vec![b'a'; 1_100_000] } else { Vec::new() };
        client.send([request, &large].concat());
        let status = line.rsplit(' ').next().unwrap();
        assert!(client.rest_or_reset().unwrap().starts_with(format!("HTTP/1.1 {status}").as_bytes()));
    }
    // And one that comes in pieces, behind one that is sound.
    let mut client = logged.stack.planb.connect();
    client.get("nowhere.test", "/sound");
    for byte in b"\r\nGET /pieces HTTP/1.1\r\nHost: a\nb: c\r\n\r\n" {
        // It may have seen enough.
        let _ = client.try_send([*byte]);
    }
    client.rest_or_reset().unwrap();
    let expected: Vec<&str> = cases
        .iter()
        .map(|(_, line)| *line)
        .chain(["GET /sound HTTP/1.1\" 400", "GET /pieces HTTP/1.1\" 400"])
        .collect();
    wait_until("all have lines", || lines_of(&logged.path).len() >= expected.len());
    let lines = lines_of(&logged.path);
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    let middles: Vec<&str> = lines.iter().map(|line| middle_of(line)).collect();
    for expected in expected {
        let is_it = |middle: &&&str| middle.starts_with(&format!("\"{expected} "));
        assert_eq!(middles.iter().filter(is_it).count(), 1, "{expected} is not in {middles:#?}");
    }
    assert!(middles.contains(&r#""GET /nul HTTP/1.1" 400 0 "" "" "X-Request-Id:" "" """#), "{middles:#?}");
    assert_eq!(logged.stack.planb.count("planb_reverseproxy_malformed_requests_total"), 11);
    let answered = |status| format!("planb_reverseproxy_backends_responses_total{{status_code=\"{status}\"}}");
    assert_eq!([431, 414].map(|status| logged.stack.planb.count(&answered(status))), [1, 1]);
}

#[test]
fn a_full_disk_is_named_and_can_be_rotated_away() {
    let mut logged = Logged::start_with(&[], |path| symlink("/dev/full", path).unwrap());
    for _ in 0..10 {
        logged.ask("/lost");
    }
    let line = logged.stack.planb.wait_for_log("access log lines were dropped");
    assert!(line.contains("No space left on device"), "{line}");
    wait_until("the lines are counted", || logged.lost("no_space") == 10);
    assert_eq!(logged.stack.planb.count("planb_log_access_lines_dropped_total"), 10);

    fs::remove_file(&logged.path).unwrap();
    logged.stack.planb.signal("HUP");
    logged.ask_until_logged("/kept");
    let told = logged.stack.planb.log().into_iter().filter(|line| line.contains("lines were dropped"));
    assert_eq!(told.count(), 1, "once a minute");
    assert!(!logged.stack.planb.has_exited());
}

#[test]
fn a_log_at_the_limit_of_its_size_ends_no_process() {
    let (master, replica) = redis_pair();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let target = format!("--access-log={}", path.display());
    // In blocks of 512 bytes.
    let mut planb = Planb::builder(&replica, &master).arguments(&[&target]).after("ulimit -f 8").start();
    wait_until("the file is full", || {
        get(planb.address(), "nowhere.test", "/filling");
        lost(&planb, "no_space") > 0
    });
    let line = planb.wait_for_log("access log lines were dropped");
    assert!(line.contains("File too large"), "{line}");
    assert_eq!(fs::metadata(&path).unwrap().len(), 8 * 512, "it is filled to the last byte");
    assert!(!fs::read_to_string(&path).unwrap().ends_with('\n'), "and its last line is torn");

    fs::write(&path, "torn").unwrap();
    wait_until("the next line is written", || {
        get(planb.address(), "nowhere.test", "/next");
        lines_of(&path).len() > 1
    });
    let lines = lines_of(&path);
    assert_eq!(lines[0], "torn");
    middle_of(&lines[1]);
    assert!(!planb.has_exited());
}

#[test]
fn a_log_can_be_copied_and_truncated() {
    let logged = Logged::start(&[]);
    logged.ask("/before");
    logged.line_about("/before");
    OpenOptions::new().write(true).truncate(true).open(&logged.path).unwrap();
    logged.ask("/after");
    logged.line_about("/after");
    let text = fs::read(&logged.path).unwrap();
    assert!(text.starts_with(b"::ffff:"), "there is no hole at its beginning");
}

#[test]
fn a_pipe_may_be_without_a_reader_now_and_then() {
    let mut logged = Logged::start_with(&[], make_pipe);
    logged.stack.planb.wait_for_log("nobody reads the pipe");
    logged.ask("/unread");
    wait_until("it is lost", || logged.lost("no_reader") == 1);

    for visit in 1..=2 {
        let mut reader = open_pipe(&logged.path);
        let path = format!("/visit-{visit}");
        wait_until("the reader gets lines", || {
            logged.ask(&path);
            reads_of(&mut reader, &path)
        });
        drop(reader);
        let before = logged.lost("no_reader");
        wait_until("lines are lost again", || {
            logged.ask("/unread");
            logged.lost("no_reader") > before
        });
    }
    assert!(!logged.stack.planb.has_exited());
    logged.stack.planb.signal("TERM");
    assert_eq!(logged.stack.planb.wait_for_exit().code(), Some(0));
}

#[test]
fn a_stalled_reader_of_a_pipe_hinders_neither_requests_nor_rotation() {
    let mut logged = Logged::start_with(&[], make_pipe);
    let mut reader = open_pipe(&logged.path);
    wait_until("the pipe is open", || {
        logged.ask("/first");
        reads_of(&mut reader, "/first")
    });
    let mut client = logged.stack.planb.connect();
    let request = format!("GET /{} HTTP/1.1\r\nHost: nowhere.test\r\n\r\n", "long".repeat(15_000));
    let mut asked = 0;
    while logged.lost("slow") == 0 {
        assert!(asked < 1_000, "what waits is bounded");
        client.send(request.repeat(10));
        for _ in 0..10 {
            assert_eq!(client.response().status, 400);
        }
        asked += 10;
    }
    logged.stack.planb.wait_for_log("the log is written faster than its target takes it");
    fs::remove_file(&logged.path).unwrap();
    logged.stack.planb.signal("HUP");
    logged.ask_until_logged("/rotated");
    drop(reader);
    logged.stack.planb.signal("TERM");
    assert_eq!(logged.stack.planb.wait_for_exit().code(), Some(0));
    for line in lines_of(&logged.path) {
        middle_of(&line);
    }
}

#[test]
fn a_log_that_cannot_be_opened_again_goes_on_and_is_tried_until_it_can() {
    let logged = Logged::start(&[]);
    let folder = logged.path.parent().unwrap();
    let away = folder.with_file_name("away");
    let old = away.join("access.log");
    fs::rename(folder, &away).unwrap();
    logged.stack.planb.signal("HUP");
    let line = logged.stack.planb.wait_for_log("the log cannot be opened again");
    assert!(line.contains(&logged.path.display().to_string()) && line.contains("No such file or directory"), "{line}");
    logged.ask("/in-the-old");
    wait_until("the old file has it", || lines_of(&old).iter().any(|line| line.contains("/in-the-old")));

    fs::create_dir(folder).unwrap();
    logged.stack.planb.wait_for_log("the log is open again");
    logged.ask_until_logged("/in-the-new");

    fs::remove_file(&logged.path).unwrap();
    fs::create_dir(&logged.path).unwrap();
    logged.stack.planb.signal("HUP");
    logged.stack.planb.wait_for_log("Is a directory");
    fs::remove_dir(&logged.path).unwrap();
    logged.ask_until_logged("/in-the-newest");
    assert_eq!(logged.stack.planb.count("planb_log_access_lines_dropped_total"), 0);
}

#[test]
fn a_log_may_go_to_a_standard_output_that_is_closed() {
    let (master, replica) = redis_pair();
    let builder = || Planb::builder(&replica, &master).arguments(&["--access-log=stdout"]);
    let mut closed = builder().after("exec >&-").start();
    let mut left = builder().unread_stdout().start();
    left.close_stdout();
    for planb in [&mut closed, &mut left] {
        for _ in 0..100 {
            assert_eq!(get(planb.address(), "nowhere.test", "/").status, 400);
        }
    }
    wait_until("the lines are counted", || lost(&left, "no_reader") >= 100);
    left.wait_for_log("Broken pipe");
    for mut planb in [closed, left] {
        planb.signal("TERM");
        assert_eq!(planb.wait_for_exit().code(), Some(0));
    }
}

#[test]
fn a_flood_of_one_kind_of_errors_hides_no_other() {
    let stack = Stack::start(&[]);
    let (_guard, closed) = closed_port();
    stack.list("dead.test", &[&closed]);
    let planb = &stack.planb;
    let mut client = planb.connect();
    let (rounds, batch) = (10, 500);
    for _ in 0..rounds {
        client.send("GET / HTTP/1.1\r\nHost: nowhere.test\r\n\r\n".repeat(batch));
        for _ in 0..batch {
            assert_eq!(client.response().status, 400);
        }
    }
    assert_eq!(client.get("dead.test", "/").status, 503);
    planb.wait_for_log(&format!("ERROR in dead.test -> {closed} - / - : - error in backend dial"));
    let line = planb.wait_for_log("lines about clients' mistakes were left out");
    let told: u64 = line.split_once("lines=").unwrap().1.trim().parse().unwrap();

    let suppressed = || planb.count("planb_log_error_lines_suppressed_total");
    let written = || planb.log().iter().filter(|line| line.starts_with("ERROR in nowhere.test ")).count() as u64;
    assert_eq!(written() + suppressed(), (rounds * batch) as u64, "each is written or counted");
    assert!(written() >= 500 && suppressed() >= told && told > 0);
    assert_eq!(planb.count("planb_log_error_lines_dropped_total"), 0);
}

#[test]
fn what_is_logged_cannot_be_misspelt_unnoticed() {
    let (master, replica) = redis_pair();
    let planb = Planb::builder(&replica, &master).environment("RUST_LOG", "planb=loud").start();
    planb.wait_for_log("RUST_LOG is ignored: ");
}

#[test]
fn a_syslog_daemon_may_come_later_and_go() {
    let alone = SyslogDaemon::alone();
    let (master, replica) = redis_pair();
    let planb = Planb::builder(&replica, &master).arguments(&["--access-log=syslog"]).start();
    planb.wait_for_log("the log is written as soon as it can be");
    let mut daemons = Some(alone);
    for life in 1..=2 {
        let before = lost(&planb, "no_reader");
        wait_until("lines are lost", || {
            planb.ask("nowhere.test");
            lost(&planb, "no_reader") > before
        });
        let daemon = SyslogDaemon::bind(daemons.take().unwrap());
        let path = format!("/life-{life}");
        wait_until("syslog has the line", || {
            get(planb.address(), "nowhere.test", &path);
            daemon.messages().iter().any(|message| message.contains(&path))
        });
        daemons = Some(daemon.end());
    }
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
    // A line is written once its response is, and the last one may still be on its way there.
    let responses = "planb_reverseproxy_backends_responses_total{status_code=\"400\"}";
    wait_until("each line is written or counted", || planb.count(responses) == rounds * batch);
    let dropped = planb.count("planb_log_access_lines_dropped_total");
    assert!(dropped > 0);
    planb.read_stdout();
    planb.wait_for_log("access log lines were dropped");
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
    socket: Arc<UnixDatagram>,
    alone: Option<Alone>,
}

/// Nobody else is a syslog daemon meanwhile.
struct Alone {
    _lock: File,
}

impl SyslogDaemon {
    fn start() -> Self {
        Self::bind(Self::alone())
    }

    fn alone() -> Alone {
        // Another run of the tests may be at the same point.
        let alone = File::create(std::env::temp_dir().join("planb-syslog-test.lock")).unwrap();
        alone.lock().unwrap();
        let is_stale = UnixDatagram::unbound().unwrap().connect(DEV_LOG).is_err();
        assert!(
            is_stale,
            "{DEV_LOG} is in use: stop the syslog daemon, or run this test in a container, where there is none"
        );
        // There may be nothing to remove.
        let _ = fs::remove_file(DEV_LOG);
        Alone { _lock: alone }
    }

    fn bind(alone: Alone) -> Self {
        let socket = UnixDatagram::bind(DEV_LOG);
        let socket = socket.unwrap_or_else(|error| panic!("this test must be root to bind {DEV_LOG}: {error}"));
        let socket = Arc::new(socket);
        let messages: Arc<Mutex<Vec<String>>> = Arc::default();
        let (received, receiving) = (Arc::clone(&messages), Arc::clone(&socket));
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok(length) = receiving.recv(&mut buffer)
                && length > 0
            {
                received.lock().unwrap().push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
        });
        Self { messages, socket, alone: Some(alone) }
    }

    fn messages(&self) -> Vec<String> {
        self.messages.lock().unwrap().clone()
    }

    /// Ends it, and lets no other begin.
    fn end(mut self) -> Alone {
        self.alone.take().unwrap()
    }
}

impl Drop for SyslogDaemon {
    fn drop(&mut self) {
        // The next run removes what this one cannot.
        let _ = fs::remove_file(DEV_LOG);
        // Its thread ends by this, and the socket with it.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

const DEV_LOG: &str = "/dev/log";
