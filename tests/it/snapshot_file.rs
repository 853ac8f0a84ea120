//! A start while Redis is away, with what an earlier process has left in a file.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use super::support::{Authority, Backend, Planb, Stack, closed_port, get, redis, shown, wait_until};

const HOST: &str = "kept.test";

/// A stack that keeps its table in a file.
struct Keeping {
    stack: Stack,
    backend: Backend,
    authority: Authority,
    folder: tempfile::TempDir,
}

impl Keeping {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let flag = format!("--snapshot-file={}", folder.path().join("table").display());
        let stack = Stack::start(&[&flag, "--tls-listen=127.0.0.1:0", "--dead-backend-time=3600"]);
        let (authority, backend) = (Authority::new(), Backend::named("here"));
        authority.issue(&[HOST]).install(&stack.master, HOST);
        stack.route(HOST, &[&backend]);
        Self { stack, backend, authority, folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("table")
    }

    /// Waits until the file has everything up to now.
    fn wait_until_saved(&self) {
        let before = fs::read(self.file()).unwrap_or_default();
        self.stack.edit(&["RPUSH", "frontend:last.test", "id", &self.backend.url()]);
        wait_until("the file has the last edit", || {
            let now = fs::read(self.file()).unwrap_or_default();
            now != before && now.windows(9).any(|part| part == b"last.test")
        });
    }

    /// Ends the proxy, and both Redis servers, which keep their data if they are told to.
    fn end(&mut self, keeps_data: bool) {
        self.stack.planb.signal("TERM");
        assert!(self.stack.planb.wait_for_exit().success());
        if keeps_data {
            redis(&self.stack.master, &["SAVE"]);
        }
        self.stack.replica.kill();
        self.stack.master.kill();
    }

    fn again(&self, arguments: &[&str]) -> Planb {
        let flag = format!("--snapshot-file={}", self.file().display());
        let own = [flag.as_str(), "--tls-listen=127.0.0.1:0", "--startup-wait=200ms", "--dead-backend-time=3600"];
        Planb::builder(&self.stack.master, &self.stack.master).arguments(&[&own[..], arguments].concat()).start()
    }
}

#[test]
fn a_restarted_proxy_serves_while_redis_is_down() {
    let mut keeping = Keeping::start();
    let (_guard, refusing) = closed_port();
    keeping.stack.list("marked.test", &[&refusing, &keeping.backend.url()]);
    assert_eq!(keeping.stack.planb.ask("marked.test"), "here");
    wait_until("the mark is made", || keeping.stack.planb.count("planb_router_backend_markdead_total") == 1);
    keeping.wait_until_saved();
    assert_eq!(fs::metadata(keeping.file()).unwrap().permissions().mode() & 0o777, 0o600);
    keeping.end(true);

    let planb = keeping.again(&[]);
    assert_eq!((planb.ask(HOST).as_str(), planb.ask("marked.test").as_str()), ("here", "here"));
    assert_eq!(planb.count("planb_router_backend_markdead_total"), 0, "the mark was not kept");
    assert!(shown(&keeping.authority, planb.tls_address(), HOST).is_some());
    assert_eq!(planb.ask("nowhere.test"), "no such route");
    assert_eq!(get(planb.address(), "__ping__", "/").status, 500);
    assert!(planb.metric("planb_sync_snapshot_age_seconds") > 0.0);
    planb.wait_for_log("serving the routing table of the snapshot file");

    keeping.stack.master.restart(&["--notify-keyspace-events", "KA"]).unwrap();
    wait_until("Redis is followed", || get(planb.address(), "__ping__", "/").status == 200);
    redis(&keeping.stack.master, &["DEL", &format!("frontend:{HOST}")]);
    planb.wait_for_no_route(HOST);
    assert_eq!(planb.ask("last.test"), "here");
    assert_eq!(planb.count("planb_sync_drift_total"), 0);
}

#[test]
fn a_redis_that_comes_back_without_data_is_not_believed_at_once() {
    let mut keeping = Keeping::start();
    keeping.wait_until_saved();
    keeping.end(false);
    keeping.stack.master.restart(&["--notify-keyspace-events", "KA"]).unwrap();
    let planb = keeping.again(&["--shrink-grace=3s"]);
    assert_eq!(planb.ask(HOST), "here");
    // The file's table is served before Redis is looked into.
    wait_until("what Redis lacks is kept", || planb.count("planb_sync_held") >= 3);
    planb.wait_for_log("keeping them for");
    planb.wait_for_no_route(HOST);
}

#[test]
fn while_redis_is_there_it_alone_counts() {
    let mut keeping = Keeping::start();
    keeping.wait_until_saved();
    keeping.stack.planb.signal("TERM");
    assert!(keeping.stack.planb.wait_for_exit().success());
    redis(&keeping.stack.master, &["DEL", &format!("frontend:{HOST}")]);
    let planb = keeping.again(&["--startup-wait=1h"]);
    assert_eq!((planb.ask(HOST).as_str(), planb.ask("last.test").as_str()), ("no such route", "here"));
    assert!(!planb.log().iter().any(|line| line.contains("serving the routing table of the snapshot file")));
}

#[test]
fn a_damaged_or_foreign_file_is_ignored_in_one_line() {
    let mut keeping = Keeping::start();
    keeping.wait_until_saved();
    let whole = fs::read(keeping.file()).unwrap();
    for (content, reason) in [(&whole[..whole.len() - 1], "is damaged"), (b"something else", "is no snapshot file")] {
        fs::write(keeping.file(), content).unwrap();
        let planb = keeping.again(&[]);
        assert_eq!(planb.ask(HOST), "here");
        let said = planb.log().iter().filter(|line| line.contains("snapshot file")).count();
        assert_eq!(said, 1, "{:?}", planb.log());
        planb.wait_for_log(reason);
    }
    keeping.end(false);
}

#[test]
fn a_place_that_cannot_be_written_to_ends_the_start() {
    let mut planb = Planb::with(&["--snapshot-file=/nonexistent/folder/table", "--access-log=none"]).spawn();
    assert_eq!(planb.wait_for_exit().code(), Some(1));
    let log = planb.log();
    assert!(log.len() == 1 && log[0].starts_with("planb: cannot keep a snapshot file at /nonexistent"), "{log:?}");
}
