//! `planb demo`, as someone who tries it sees it.

use std::{net::TcpStream, path::Path, process::Command};

use super::support::{Client, Planb, get, signal, wait_until};

/// The numbers that follow each occurrence of a word.
fn numbers_after(line: &str, word: &str) -> Vec<u16> {
    let pieces = line.split(word).skip(1);
    pieces.map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()).collect()
}

/// Sends the request that a `curl` command line describes.
fn curl(command: &str) -> (Client, super::support::Response) {
    let url = command.split_whitespace().find_map(|word| word.strip_prefix("http://")).unwrap();
    let (address, path) = url.split_once('/').unwrap();
    let headers: Vec<_> = command.split("-H '").skip(1).map(|rest| rest.split('\'').next().unwrap()).collect();
    let mut client = Client::connect(address.parse().unwrap());
    client.send(format!("GET /{path} HTTP/1.1\r\n{}\r\n\r\n", headers.join("\r\n")));
    let response = client.response();
    (client, response)
}

#[test]
fn the_demonstration_shows_an_edit_going_live_and_cleans_up() {
    let mut demo = Planb::with(&["demo"]).spawn();
    demo.wait_for_stdout("...and the second backend answered a request ");
    demo.wait_for_stdout("Ctrl-C stops everything.");
    let redis_ports = numbers_after(&demo.wait_for_stdout("A Redis master is on port"), "port ");
    assert_eq!(redis_ports.len(), 2);
    for port in &redis_ports {
        TcpStream::connect(("127.0.0.1", *port)).unwrap();
    }

    let command = demo.wait_for_stdout("curl -i");
    let mut bodies: Vec<String> = (0..2).map(|_| curl(&command).1.text()).collect();
    bodies.sort();
    assert!(
        bodies[0].contains("I am the first backend") && bodies[1].contains("I am the second backend"),
        "{bodies:?}"
    );
    let (_kept_open, response) = curl(&command);
    assert_eq!(response.status, 200);
    assert_eq!(response.header("x-debug-frontend-key"), Some("demo.localhost"));
    let metrics = demo.wait_for_stdout("/metrics");
    let address = metrics.split("http://").nth(1).unwrap().split('/').next().unwrap();
    assert!(get(address.parse().unwrap(), "metrics", "/metrics").text().contains("planb_router_frontends 1"));
    let access_log = demo.wait_for_stdout("  tail ");
    let access_log = Path::new(access_log.trim_start().strip_prefix("tail ").unwrap());
    assert!(access_log.exists());

    demo.signal("INT");
    assert_eq!(demo.wait_for_exit().code(), Some(0));
    assert_eq!(demo.stdout().last().map(String::as_str), Some("Everything has been stopped."));
    for port in redis_ports {
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "the Redis on port {port} was left behind");
    }
    assert!(!access_log.exists());
}

#[test]
fn an_interrupt_while_it_starts_leaves_nothing_behind() {
    let mut demo = Planb::with(&["demo"]).spawn();
    let mut children = String::new();
    wait_until("a Redis has been started", || {
        let output = Command::new("pgrep").args(["-P", &demo.pid().to_string()]).output().unwrap();
        children = String::from_utf8(output.stdout).unwrap();
        !children.is_empty()
    });
    demo.signal("INT");
    let code = demo.wait_for_exit().code();
    let is_left = |child: &u32| Path::new(&format!("/proc/{child}")).exists();
    let left: Vec<u32> = children.lines().map(|child| child.parse().unwrap()).filter(is_left).collect();
    for child in &left {
        signal(*child, "KILL");
    }
    assert_eq!((code, left.len()), (Some(0), 0));
}

#[test]
fn without_redis_the_demonstration_says_what_to_install() {
    let mut demo = Planb::with(&["demo"]).environment("PATH", "/nonexistent").spawn();
    assert_eq!(demo.wait_for_exit().code(), Some(1));
    let reason = "planb: redis-server is not in the PATH; install it, for example with: apt-get install redis-server";
    assert_eq!(demo.log(), [reason]);
    assert!(demo.stdout().is_empty());
}
