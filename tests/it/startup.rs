//! From the command line to the first client, or to one clear line about what is wrong.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use super::support::{Planb, PrivateRedis, closed_port, get, redis, redis_pair};

/// Runs the proxy to its end, and returns its exit code, standard output and standard error.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, Vec<String>, Vec<String>) {
    let builder = Planb::with(arguments);
    let mut planb = environment.iter().fold(builder, |builder, (name, value)| builder.environment(name, value)).spawn();
    let code = planb.wait_for_exit().code();
    (code, planb.stdout(), planb.log())
}

fn refusal(arguments: &[&str]) -> String {
    let (code, stdout, log) = run(arguments, &[]);
    assert_eq!((code, stdout.len(), log.len()), (Some(2), 0, 1), "{arguments:?}: {stdout:?} {log:?}");
    assert!(log[0].starts_with("planb: ") && log[0].ends_with(" (try planb --help)"), "{}", log[0]);
    log[0].clone()
}

#[test]
fn a_wrong_command_line_is_one_clear_line() {
    for (arguments, reason) in [
        (["--nonsense", "1"], "'--nonsense'"),
        (["--listen", "nonsense"], "'nonsense' for '--listen"),
        (["--listen", "127.0.0.1:70000"], "'127.0.0.1:70000' for '--listen"),
        (["--listen", "127.0.0.1"], "'127.0.0.1' for '--listen"),
        (["--listen", ":http"], "':http' for '--listen"),
        (["--metrics-address", "nonsense"], "'nonsense' for '--metrics-address"),
        (["--client-idle-timeout", "5"], "'5' for '--client-idle-timeout"),
        (["--client-read-timeout", "soon"], "'soon' for '--client-read-timeout"),
        (["--reconcile-interval", "0s"], "'0s' for '--reconcile-interval"),
        (["--request-timeout", "30s"], "'30s' for '--request-timeout"),
        (["--dial-timeout", "-1s"], "'-1s' for '--dial-timeout"),
        (["-request-timeout", "1_"], "'1_' for '--request-timeout"),
        (["-listen", "nonsense"], "'nonsense' for '--listen"),
        (["--dead-backend-time", "many"], "'many' for '--dead-backend-time"),
        (["--read-redis-port", "65536"], "'65536' for '--read-redis-port"),
        (["--write-redis-db", "-1"], "-1"),
        (["--read-redis-network", "udp"], "'udp' for '--read-redis-network"),
        (["--write-redis-network", "udp"], "'udp' for '--write-redis-network"),
        (["--read-redis-sentinel-addrs", "s1,s2:26379"], "'s1,s2:26379' for '--read-redis-sentinel-addrs"),
        (["--write-redis-sentinel-addrs", "s1:port"], "'s1:port' for '--write-redis-sentinel-addrs"),
        (["--read-redis-sentinel-role", "slave"], "'slave' for '--read-redis-sentinel-role"),
        (["--read-redis-sentinel-addrs", "s1:26379"], "needs --read-redis-sentinel-name"),
        (["--write-redis-sentinel-name", "main"], "needs --write-redis-sentinel-addrs"),
        (["--request-id-header", "not a name"], "'not a name' for '--request-id-header"),
        (["--active-healthcheck=maybe", "--listen=:0"], "'maybe' for '--active-healthcheck"),
        (["--workers", "0"], "'0' for '--workers"),
        (["--max-header-size", "1"], "'1' for '--max-header-size"),
        (["--dns-server", "localhost:53"], "'localhost:53' for '--dns-server"),
        (["--dns-server", "127.0.0.1:53,127.0.0.1"], "'127.0.0.1' for '--dns-server"),
        (["--flush-interval", "10ms"], "'10ms' for '--flush-interval"),
        (["--load-balancing", "fair"], "'fair' for '--load-balancing"),
        (["--backend-cache=maybe", "--listen=:0"], "'maybe' for '--backend-cache"),
    ] {
        let line = refusal(&arguments);
        assert!(line.contains(reason), "{line} does not tell of {reason}");
    }
    assert!(refusal(&["--listen"]).contains("--listen"));
}

#[test]
fn a_secret_that_is_too_short_is_not_quoted() {
    for flag in ["--tls-ticket-secret", "--sticky-secret"] {
        let line = refusal(&[flag, "sesame"]);
        let reason = format!("{flag} has fewer than 16 characters");
        assert!(line.contains(&reason) && !line.contains("sesame"), "{line}");
    }
}

#[test]
fn a_wrong_environment_is_one_clear_line() {
    let (code, stdout, log) = run(&[], &[("PLANB_REQUEST_TIMEOUT", "soon")]);
    assert_eq!((code, stdout.len(), log.len()), (Some(2), 0, 1), "{log:?}");
    assert!(log[0].contains("'soon' for '--request-timeout"), "{}", log[0]);
}

#[test]
fn flags_can_come_from_the_environment() {
    let (master, replica) = redis_pair();
    let (read, write) = (replica.port().to_string(), master.port().to_string());
    let planb = Planb::with(&[])
        .environment("PLANB_LISTEN", "127.0.0.1:0")
        .environment("PLANB_METRICS_ADDRESS", "127.0.0.1:0")
        .environment("PLANB_READ_REDIS_PORT", &read)
        .environment("PLANB_WRITE_REDIS_PORT", &write)
        .environment("PLANB_ACCESS_LOG", "stdout")
        .environment("PLANB_REQUEST_ID_HEADER", "X-Id")
        .environment("PLANB_BACKEND_CACHE", "true")
        .start();
    planb.ask("nowhere.test");
    assert!(planb.wait_for_stdout("GET /").contains("\"X-Id:"));
    assert!(planb.metric("process_open_fds") > 0.0);
}

#[test]
fn a_flag_beats_the_environment() {
    let (master, replica) = redis_pair();
    let planb = Planb::builder(&replica, &master)
        .arguments(&["--access-log=stdout"])
        .environment("PLANB_LISTEN", "192.0.2.1:80")
        .environment("PLANB_ACCESS_LOG", "/nonexistent/folder/log")
        .start();
    assert!(planb.address().ip().is_loopback());
    planb.ask("nowhere.test");
    planb.wait_for_stdout("GET /");
}

#[test]
fn a_value_follows_its_flag_or_an_equals_sign() {
    let (master, replica) = redis_pair();
    let (read, write) = (replica.port().to_string(), format!("--write-redis-port={}", master.port()));
    let separate = ["-l", "127.0.0.1:0", "--read-redis-port", &read, "--request-timeout", "5", "--access-log", "none"];
    let joined = [write.as_str(), "--client-idle-timeout=1m30s", "--backend-cache=true", "--flush-interval=10"];
    let planb = Planb::with(&[separate.as_slice(), &joined].concat()).start();
    assert_eq!(planb.ask("nowhere.test"), "no such route");
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let (master, replica) = redis_pair();
    let (_, help, _) = run(&["--help"], &[]);
    let help = help.join("\n");
    let names = help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next());
    let empty: Vec<&str> = names.filter(|name| name.starts_with("PLANB_")).collect();
    assert!(empty.len() > 50, "{empty:?}");
    let builder = Planb::builder(&replica, &master);
    let planb = empty.iter().fold(builder, |builder, name| builder.environment(name, "")).start();
    assert_eq!(planb.ask("nowhere.test"), "no such route");
}

#[test]
fn the_originals_ways_to_write_flags_are_understood() {
    let (master, replica) = redis_pair();
    let (read, write) = (replica.port().to_string(), format!("{:#x}", master.port()));
    let planb = Planb::with(&[
        "-listen=192.0.2.1:80",
        "--l",
        "127.0.0.1:0",
        "-read-redis-port",
        &read,
        "-write-redis-port",
        &write,
        "-metrics-address",
        "127.0.0.1:0",
        "-active-healthcheck=T",
        "-backend-cache",
        "-request-timeout",
        "-1",
        "-client-idle-timeout=.5m",
        "-access-log=",
        "-request-id-header",
        "",
    ])
    .environment("PLANB_ACTIVE_HEALTHCHECK", "0")
    .start();
    assert_eq!(planb.ask("nowhere.test"), "no such route");
    planb.wait_for_log("dead backends are checked until they are healthy");
}

#[test]
fn words_behind_the_flags_are_told() {
    let (master, replica) = redis_pair();
    let ports = [format!("--read-redis-port={}", replica.port()), format!("--write-redis-port={}", master.port())];
    let planb = Planb::with(&[
        &ports[0],
        &ports[1],
        "--listen=127.0.0.1:0",
        "--access-log=none",
        "--read-redis-password=",
        "secret",
        "--write-redis-password=secret",
    ])
    .start();
    planb.wait_for_log("the end of the command line is ignored: it begins with a word that is no flag words=2");
    assert!(!planb.log().iter().any(|line| line.contains("secret")));
}

#[test]
fn help_and_version_are_told_and_that_is_all() {
    for flag in ["--help", "-h", "-help", "--h", "help", "h", "-h=1", "--help=true"] {
        let (code, stdout, log) = run(&[flag], &[]);
        assert_eq!((code, log.len()), (Some(0), 0), "{flag}");
        assert!(stdout.iter().any(|line| line.contains("Usage: planb")), "{flag}");
    }
    for flag in ["--version", "-v", "-version", "--v", "--version=T"] {
        let (code, stdout, log) = run(&[flag], &[]);
        assert_eq!((code, log.len()), (Some(0), 0), "{flag}");
        assert_eq!(stdout, [format!("planb {}", env!("CARGO_PKG_VERSION"))], "{flag}");
    }
}

#[test]
fn help_tells_of_every_flag_there_is_and_of_no_other() {
    let (_, stdout, _) = run(
        &["--help"],
        &[
            ("PLANB_READ_REDIS_PASSWORD", SECRET),
            ("PLANB_WRITE_REDIS_PASSWORD", SECRET),
            ("PLANB_TLS_TICKET_SECRET", SECRET),
            ("PLANB_STICKY_SECRET", SECRET),
            ("PLANB_READ_REDIS_SENTINEL_PASSWORD", SECRET),
            ("PLANB_WRITE_REDIS_SENTINEL_PASSWORD", SECRET),
        ],
    );
    let help = stdout.join("\n");
    for flag in [
        "listen",
        "metrics-address",
        "read-redis-network",
        "write-redis-network",
        "read-redis-host",
        "write-redis-host",
        "read-redis-port",
        "write-redis-port",
        "read-redis-sentinel-addrs",
        "write-redis-sentinel-addrs",
        "read-redis-sentinel-name",
        "write-redis-sentinel-name",
        "read-redis-sentinel-password",
        "write-redis-sentinel-password",
        "read-redis-sentinel-role",
        "read-redis-password",
        "write-redis-password",
        "read-redis-username",
        "write-redis-username",
        "read-redis-password-file",
        "write-redis-password-file",
        "read-redis-tls",
        "write-redis-tls",
        "read-redis-tls-ca",
        "write-redis-tls-ca",
        "read-redis-db",
        "write-redis-db",
        "access-log",
        "error-pages",
        "request-timeout",
        "dial-timeout",
        "dns-server",
        "client-read-timeout",
        "client-read-header-timeout",
        "client-write-timeout",
        "client-idle-timeout",
        "dead-backend-time",
        "flush-interval",
        "request-id-header",
        "active-healthcheck",
        "hostname",
        "backend-cache",
        "tls-listen",
        "tls-preset",
        "load-certificates-from",
        "tls-client-ca",
        "tls-client-auth",
        "tls-ticket-secret",
        "tls-ticket-rotation",
        "engine",
        "shrink-grace",
        "snapshot-file",
        "startup-wait",
        "load-balancing",
        "sticky-secret",
        "max-memory",
    ] {
        assert!(help.contains(&format!("--{flag} ")) || help.contains(&format!("--{flag}[")), "--{flag} is missing");
        assert!(
            help.contains(&format!("PLANB_{}", flag.to_uppercase().replace('-', "_"))),
            "{flag} in the environment"
        );
    }
    assert!(!help.contains(SECRET));
}

#[test]
fn a_port_that_another_program_has_is_one_clear_line() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let (code, _, log) = run(&[&format!("--listen={address}"), "--access-log=none"], &[]);
    assert_eq!(code, Some(1));
    assert_eq!(log, [format!("planb: cannot listen on {address}: Address already in use (os error 98)")]);
}

#[test]
fn an_address_of_another_machine_is_one_clear_line() {
    let (code, _, log) = run(&["--listen=192.0.2.1:8989", "--access-log=none"], &[]);
    assert_eq!(code, Some(1));
    assert_eq!(log, ["planb: cannot listen on 192.0.2.1:8989: Cannot assign requested address (os error 99)"]);
}

#[test]
fn a_port_belongs_to_the_proxy_that_listened_first() {
    let (master, replica) = redis_pair();
    // Keeps the port from everyone else, and out of nobody's way who also may share it until one listens.
    let reserved = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    reserved.set_reuse_address(true).unwrap();
    reserved.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = reserved.local_addr().unwrap().as_socket().unwrap();
    let listen = format!("--listen={address}");

    let mut away = PrivateRedis::start(&[]).unwrap();
    away.kill();
    let mut waiting = Planb::builder(&away, &away).arguments(&[&listen]).spawn();
    waiting.wait_for_log("waiting for Redis");
    let first = Planb::builder(&replica, &master).arguments(&[&listen]).start();
    assert_eq!(first.address(), address);

    let (code, _, log) = run(&[&listen, "--access-log=none"], &[]);
    assert_eq!(code, Some(1));
    let reason = format!("planb: cannot listen on {address}: Address already in use (os error 98)");
    assert_eq!(log, [reason.as_str()]);

    away.restart(&[]).unwrap();
    assert_eq!(waiting.wait_for_exit().code(), Some(1));
    let log = waiting.log();
    assert_eq!(log.iter().filter(|line| line.starts_with("planb: ")).collect::<Vec<_>>(), [&reason]);
    assert_eq!(log.last(), Some(&reason));
    assert_eq!(first.ask("nowhere.test"), "no such route");
}

#[test]
fn an_empty_host_means_both_families() {
    let (master, replica) = redis_pair();
    let planb = Planb::builder(&replica, &master).arguments(&["--listen=:0"]).start();
    let port = planb.address().port();
    assert_eq!(get((Ipv4Addr::LOCALHOST, port).into(), "nowhere.test", "/").status, 400);
    // A machine without IPv6 has no other clients.
    if planb.address().is_ipv6() {
        assert_eq!(get((Ipv6Addr::LOCALHOST, port).into(), "nowhere.test", "/").status, 400);
    }
}

#[test]
fn clients_are_refused_until_the_routes_are_loaded() {
    let mut away = PrivateRedis::start(&["--notify-keyspace-events", "KA"]).unwrap();
    let (_guard, closed) = closed_port();
    redis(&away, &["RPUSH", "frontend:ready.test", "id", &closed]);
    redis(&away, &["SAVE"]);
    away.kill();
    let mut planb = Planb::builder(&away, &away).spawn();
    planb.wait_for_log("waiting for Redis");
    assert!(!planb.log().iter().any(|line| line.contains("listening")));
    away.restart(&["--notify-keyspace-events", "KA"]).unwrap();
    planb.wait_until_listening();
    assert_eq!(get(planb.address(), "ready.test", "/").status, 503, "the first request already finds its route");
}

#[test]
fn a_wrong_password_is_one_clear_line() {
    let guarded = PrivateRedis::start(&["--requirepass", SECRET]).unwrap();
    let open = PrivateRedis::start(&[]).unwrap();
    let name = format!("Redis at 127.0.0.1:{} refuses the password", guarded.port());
    for (read, write, password) in [
        (&guarded, &open, "--read-redis-password=wrong-guess"),
        (&open, &guarded, "--write-redis-password=wrong-guess"),
        (&guarded, &open, "--read-redis-password="),
    ] {
        let mut planb = Planb::builder(read, write).arguments(&[password]).environment("RUST_LOG", "trace").spawn();
        assert_eq!(planb.wait_for_exit().code(), Some(1), "{password}");
        let log = planb.log();
        let reasons: Vec<_> = log.iter().filter(|line| line.starts_with("planb: ")).collect();
        assert!(reasons.len() == 1 && reasons[0].contains(&name), "{reasons:?}");
        assert_eq!(log.last(), Some(reasons[0]));
        assert!(!log.iter().any(|line| line.contains("wrong-guess")), "{log:#?}");
    }
}

#[test]
fn a_password_is_used_and_never_told() {
    let redis = PrivateRedis::start(&["--requirepass", SECRET]).unwrap();
    let mut planb = Planb::builder(&redis, &redis)
        .environment("PLANB_READ_REDIS_PASSWORD", SECRET)
        .arguments(&[&format!("--write-redis-password={SECRET}")])
        .environment("RUST_LOG", "trace")
        .start();
    planb.wait_for_log("dead backends are recorded");
    planb.signal("TERM");
    assert_eq!(planb.wait_for_exit().code(), Some(0));
    assert!(!planb.log().iter().chain(&planb.stdout()).any(|line| line.contains(SECRET)));
}

const SECRET: &str = "open-sesame";
