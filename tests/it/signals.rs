//! What an operator says to the process by signals, other than that it is to end.

use std::fs;

use tokio_tungstenite::tungstenite;

use super::support::{Backend, Planb, Stack, redis_pair, wait_until};

#[test]
fn usr1_tells_what_the_process_is_doing() {
    let mut stack = Stack::start(&["--active-healthcheck"]);
    let (holding, gate) = Backend::holding();
    stack.route("held.test", &[&holding]);
    stack.route("socket.test", &[&Backend::websocket_echo()]);
    let mut client = stack.planb.connect();
    client.send("GET /held HTTP/1.1\r\nHost: held.test\r\n\r\n");
    let (_socket, _) = tungstenite::client("ws://socket.test/", stack.planb.connect().into_socket()).unwrap();
    wait_until("the request is in flight", || holding.requests().iter().any(|head| head.starts_with("GET /held ")));

    stack.planb.signal("USR1");
    stack.planb.wait_for_stdout("syncer: running");
    let said = stack.planb.stdout().join("\n");
    for line in [
        &format!("planb: version {}, process {}, up ", env!("CARGO_PKG_VERSION"), stack.planb.pid()),
        "table: 2 frontends, 0 kept without Redis, agreed with it ",
        "read Redis: usable",
        "write Redis: 0 dead marks not recorded yet",
        "connections: 1 open, 1 tunnels",
        "requests: 0 routing, 1 waiting for a backend, 0 responding, 1 tunnels",
        "connections to backends: ",
        "  signals: running, begun ",
        "  reporter of dead marks: running, begun ",
        "  health check: running, begun ",
        "  names of backends: running, begun ",
    ] {
        assert!(said.contains(line), "{line:?} is missing in\n{said}");
    }
    gate.open();
    assert_eq!(client.response().text(), "done");
    assert!(!stack.planb.has_exited());
}

#[test]
fn usr1_reopens_the_access_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let stack = Stack::start(&[&format!("--access-log={}", path.display())]);
    stack.planb.ask("nowhere.test");
    wait_until("there is a line", || fs::read_to_string(&path).is_ok_and(|text| text.contains("GET / ")));
    fs::rename(&path, folder.path().join("access.log.1")).unwrap();
    stack.planb.signal("USR1");
    wait_until("there is a new file", || path.exists());
    stack.planb.wait_for_stdout("syncer: running");
}

#[test]
fn usr1_does_not_tear_an_access_log_on_standard_output() {
    let stack = Stack::start(&["--access-log=stdout"]);
    stack.planb.ask("nowhere.test");
    stack.planb.signal("USR1");
    stack.planb.ask("nowhere.test");
    stack.planb.wait_for_stdout("syncer: running");
    stack.planb.wait_for_stdout("GET / ");
}

#[test]
fn a_dump_that_nobody_reads_is_no_loss_of_another_log() {
    let (master, replica) = redis_pair();
    let mut planb = Planb::builder(&replica, &master).arguments(&["--access-log=none"]).unread_stdout().start();
    planb.close_stdout();
    let mut dumps = 0;
    // While a test beside this one starts a process, that process has our end of the pipe until it has become another program.
    wait_until("a dump finds no reader", || {
        planb.signal("USR1");
        dumps += 1;
        planb.count("planb_log_dump_lines_dropped_total") > 0
    });
    planb.wait_for_log("dump log lines were dropped: Broken pipe");
    assert_eq!(planb.count("planb_log_error_lines_dropped_total"), 0);
    planb.signal("USR2");
    planb.wait_for_log("USR2");
    assert!(planb.log().iter().filter(|line| line.contains("lines were dropped")).count() <= dumps);
}

#[test]
fn usr2_is_survived() {
    let mut stack = Stack::start(&[]);
    stack.planb.signal("USR2");
    stack.planb.wait_for_log("USR2 asks for a profile");
    assert!(!stack.planb.has_exited());
    assert_eq!(stack.planb.ask("nowhere.test"), "no such route");
}

#[test]
fn no_signal_is_deadly_before_redis_is_there() {
    let mut planb = Planb::with(&["--listen=127.0.0.1:0", "--read-redis-port=1", "--access-log=none"]).spawn();
    planb.wait_for_log("waiting for Redis");
    for name in ["USR1", "USR2", "HUP"] {
        planb.signal(name);
    }
    planb.wait_for_stdout("syncer: running");
    planb.wait_for_stdout("table: 0 frontends, 0 kept without Redis, not loaded yet");
    planb.wait_for_log("USR2 asks for a profile");
    assert!(!planb.has_exited());
}
