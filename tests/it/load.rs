//! Loads that take long, and edits by the ten thousand.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::support::{Backend, Planb, PrivateRedis, Stack, redis, redis_pair, redis_pipe, signal, wait_until};

#[test]
fn a_long_load_tells_its_progress() {
    let (master, replica) = redis_pair();
    fill(&master, MANY);
    let line = SlowLine::to(&replica);
    let planb = Planb::with(&[
        &format!("--read-redis-port={}", line.port),
        &format!("--write-redis-port={}", master.port()),
        "--listen=127.0.0.1:0",
        "--metrics-address=127.0.0.1:0",
        "--access-log=none",
    ])
    .start();
    let progress = || planb.metric("planb_sync_load_progress");
    assert!(progress() > 0.999, "nothing is being loaded");
    assert!(!planb.log().iter().any(|line| line.contains("loading the routing table read=")));

    line.is_slow.store(true, Ordering::Relaxed);
    redis(&replica, &["CLIENT", "KILL", "TYPE", "normal"]);
    wait_until("it is in the midst of a load", || (0.05..0.95).contains(&progress()));
    let said = planb.wait_for_log("loading the routing table");
    let figure = |name: &str| -> usize {
        let (_, rest) = said.split_once(name).unwrap_or_else(|| panic!("no {name} in {said}"));
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    let (read, about) = (figure("read="), figure("of_about="));
    assert!(read < about && about > MANY / 4 && about < MANY * 4, "{said}");
    assert!(said.contains("left=Some("), "{said}");
    line.is_slow.store(false, Ordering::Relaxed);
    wait_until("it is loaded", || planb.count("planb_sync_resyncs_total") == 1 && progress() > 0.999);
}

#[test]
fn a_load_that_is_broken_off_has_no_progress() {
    let (master, replica) = redis_pair();
    fill(&master, MANY);
    let line = SlowLine::to(&replica);
    let planb = Planb::with(&[
        &format!("--read-redis-port={}", line.port),
        &format!("--write-redis-port={}", master.port()),
        "--listen=127.0.0.1:0",
        "--metrics-address=127.0.0.1:0",
        "--access-log=none",
    ])
    .start();
    line.is_slow.store(true, Ordering::Relaxed);
    redis(&replica, &["CLIENT", "KILL", "TYPE", "normal"]);
    let progress = || planb.metric("planb_sync_load_progress");
    wait_until("it is in the midst of a load", || (0.05..0.95).contains(&progress()));
    line.is_cut.store(true, Ordering::Relaxed);
    wait_until("the load is given up", || progress() > 0.999);
    assert_eq!(planb.count("planb_sync_connected"), 0);
}

#[test]
fn a_terminal_shows_a_bar_which_goes() {
    let (master, replica) = redis_pair();
    fill(&master, MANY);
    let line = SlowLine::to(&replica);
    line.is_slow.store(true, Ordering::Relaxed);
    let command = format!(
        "exec {} --read-redis-port={} --write-redis-port={} --listen=127.0.0.1:0 --access-log=none",
        env!("CARGO_BIN_EXE_planb"),
        line.port,
        master.port()
    );
    // It gives the process a terminal of its own.
    let mut terminal = Command::new("script")
        .args(["-qefc", &format!("echo pid $$; {command}"), "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let shown = Arc::new(Mutex::new(String::new()));
    let (mut screen, seen) = (terminal.stdout.take().unwrap(), Arc::clone(&shown));
    let reader = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = screen.read(&mut buffer) {
            seen.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    });
    let sees = |text: &str| shown.lock().unwrap().contains(text);
    wait_until("there is a bar", || sees(" keys, ") && sees("[#"));
    line.is_slow.store(false, Ordering::Relaxed);
    wait_until("it serves", || sees("listening"));
    let text = shown.lock().unwrap().clone();
    let pid = text.split_once("pid ").and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok()).unwrap();
    signal(pid, "TERM");
    terminal.wait().unwrap();
    reader.join().unwrap();
    assert!(!text.contains("of_about="), "the bar is instead of the lines: {text}");
    let after = text.rsplit_once("keys").map_or("", |(_, after)| after);
    assert!(after.contains("\x1b[2K"), "the bar is still there: {after:?}");
}

#[test]
fn an_edit_is_live_beside_a_burst_and_huge_values() {
    let stack = Stack::start(&[]);
    let a = Backend::named("a");
    let mut million = vec!["RPUSH".to_owned(), "frontend:long.test".to_owned(), "id".to_owned(), a.url()];
    million.extend((0..200_000).map(|number| format!("http://10.{}.{}.1", number >> 8, number & 255)));
    let words: Vec<&[u8]> = million.iter().map(String::as_bytes).collect();
    let (url, huge) = (a.url(), vec![b'y'; 20_000_000]);
    let large = [b"http://127.0.0.1:9/".as_slice(), &huge].concat();
    let mut commands = vec![words, vec![b"RPUSH", b"frontend:large.test", b"id", &large]];
    let hosts: Vec<String> = (0..30_000).map(|number| format!("frontend:burst-{number}.test")).collect();
    commands.extend(hosts.iter().map(|host| vec![b"RPUSH", host.as_bytes(), b"id", url.as_bytes()]));
    redis_pipe(&stack.master, &commands);
    stack.route("edit.test", &[&a]);
    // In whatever order they are read.
    wait_until("all are routed", || stack.planb.count("planb_router_frontends") == 30_003);
    assert_eq!(["burst-0.test", "burst-29999.test"].map(|host| stack.planb.ask(host)), ["a", "a"]);
    stack.planb.wait_for_log("a burst of edits is in force");
    let told = |host: &str| {
        let is_told = |line: &&String| line.contains("a very large value") && line.contains(host);
        stack.planb.log().iter().filter(is_told).count()
    };
    redis(&stack.master, &["RPUSH", "frontend:long.test", &url]);
    stack.settle();
    assert_eq!((told("long.test"), told("large.test")), (1, 1), "each is told of once");

    let expire: Vec<Vec<&[u8]>> =
        hosts.iter().map(|host| vec![b"PEXPIRE".as_slice(), host.as_bytes(), b"1".as_slice()]).collect();
    redis_pipe(&stack.master, &expire);
    redis(&stack.master, &["RPUSH", "frontend:later.test", "id", &url]);
    stack.planb.wait_for_route("later.test");
    wait_until("all are gone", || stack.planb.count("planb_router_frontends") == 5);
    assert_eq!(stack.planb.ask("edit.test"), "a");
    assert_eq!((stack.planb.count("planb_sync_drift_total"), stack.planb.count("planb_sync_resyncs_total")), (0, 0));
}

/// So many take long over a slow line.
const MANY: usize = 20_000;

fn fill(server: &PrivateRedis, count: usize) {
    let hosts: Vec<String> = (0..count).map(|number| format!("frontend:host-{number}.test")).collect();
    let list = |host| vec![b"RPUSH".as_slice(), host, b"id", b"http://10.0.0.1:8001", b"http://10.0.0.2:8001"];
    let lists: Vec<_> = hosts.iter().map(|host| list(host.as_bytes())).collect();
    redis_pipe(server, &lists);
}

/// A line to a Redis that can be made slow, or be cut.
struct SlowLine {
    port: u16,
    is_slow: Arc<AtomicBool>,
    is_cut: Arc<AtomicBool>,
}

impl SlowLine {
    fn to(server: &PrivateRedis) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, far) = (listener.local_addr().unwrap().port(), server.port());
        let (is_slow, is_cut) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let line = Self { port, is_slow: Arc::clone(&is_slow), is_cut: Arc::clone(&is_cut) };
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(("127.0.0.1", far)) else { continue };
                let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { continue };
                let (never, slow, cut) = (Arc::default(), Arc::clone(&is_slow), Arc::clone(&is_cut));
                let cut_too = Arc::clone(&cut);
                thread::spawn(move || pass(&near_too, &far_too, &never, &cut_too));
                thread::spawn(move || pass(&far, &near, &slow, &cut));
            }
        });
        line
    }
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, is_slow: &AtomicBool, is_cut: &AtomicBool) {
    let mut buffer = [0; 8 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if is_slow.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(20));
        }
        if is_cut.load(Ordering::Relaxed) || to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // Whichever side is gone by now needs none.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
