//! The operator's pages in place of our own words.

use std::{fs, path::Path, process::Command};

use super::support::{Backend, Planb, Response, Stack, closed_port, get, redis_pair};

const HTML: &str = "text/html; charset=utf-8";

fn write(folder: &Path, name: &str, page: &str) {
    fs::write(folder.join(name), page).unwrap();
}

fn stack(folder: &Path) -> Stack {
    Stack::start(&[&format!("--error-pages={}", folder.display())])
}

fn is_page(response: &Response, status: u16, page: &str) -> bool {
    (response.status, response.text().as_str(), response.header("content-type")) == (status, page, Some(HTML))
}

#[test]
fn each_status_has_its_page_and_what_has_none_has_the_default() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "error_400.html", "<h1>unknown</h1>");
    write(folder.path(), "error_503.html", "<h1>away</h1>");
    write(folder.path(), "error_default.html", "<h1>sorry</h1>");
    let stack = stack(folder.path());
    let (_guard, refusing) = closed_port();
    stack.list("dead.test", &[&refusing]);
    let address = stack.planb.address();
    assert!(is_page(&get(address, "nowhere.test", "/"), 400, "<h1>unknown</h1>"));
    // First for a backend that refuses, then for all backends being dead.
    assert!(is_page(&get(address, "dead.test", "/"), 503, "<h1>away</h1>"));
    assert!(is_page(&get(address, "dead.test", "/"), 503, "<h1>away</h1>"));

    let mut client = stack.planb.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    assert!(is_page(&client.response(), 400, "<h1>unknown</h1>"));
}

#[test]
fn a_head_has_the_pages_length_and_no_page() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "error_default.html", "<h1>sorry</h1>");
    let stack = stack(folder.path());
    let mut client = stack.planb.connect();
    client.send("HEAD / HTTP/1.1\r\nHost: nowhere.test\r\nConnection: close\r\n\r\n");
    let response = client.head().unwrap();
    assert_eq!((response.status, response.header("content-length")), (400, Some("14")));
    assert!(client.rest().unwrap().is_empty());
}

#[test]
fn what_a_backend_answers_is_its_own_and_so_is_our_health() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "error_default.html", "<h1>sorry</h1>");
    let stack = stack(folder.path());
    let backend = Backend::start(|exchange| {
        exchange.answer("503 Service Unavailable", "", b"mine");
        true
    });
    stack.list("own.test", &[&backend.url()]);
    assert_eq!(get(stack.planb.address(), "own.test", "/").text(), "mine");
    assert_eq!(get(stack.planb.address(), "__ping__", "/").text(), "OK");
}

#[test]
fn pages_are_read_again_on_hup() {
    let folder = tempfile::tempdir().unwrap();
    let stack = stack(folder.path());
    let ask = || get(stack.planb.address(), "nowhere.test", "/");
    assert_eq!(
        (ask().text().as_str(), ask().header("content-type")),
        ("no such route", Some("text/plain; charset=utf-8"))
    );
    write(folder.path(), "error_400.html", "<h1>first</h1>");
    assert_eq!(ask().text(), "no such route", "a page is read only when told to");
    hang_up(&stack.planb, 1);
    assert!(is_page(&ask(), 400, "<h1>first</h1>"));
    fs::remove_file(folder.path().join("error_400.html")).unwrap();
    write(folder.path(), "error_default.html", "<h1>second</h1>");
    hang_up(&stack.planb, 2);
    assert!(is_page(&ask(), 400, "<h1>second</h1>"));
    // A folder in a page's place can be opened but not read.
    fs::remove_file(folder.path().join("error_default.html")).unwrap();
    fs::create_dir(folder.path().join("error_default.html")).unwrap();
    hang_up(&stack.planb, 3);
    stack.planb.wait_for_log("error_default.html cannot be read");
    assert!(is_page(&ask(), 400, "<h1>second</h1>"));
}

#[test]
fn a_pipe_in_a_pages_place_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "error_400.html", "<h1>first</h1>");
    let mut stack = stack(folder.path());
    let page = folder.path().join("error_400.html");
    fs::remove_file(&page).unwrap();
    // Nobody will ever write to it.
    assert!(Command::new("mkfifo").arg(&page).status().unwrap().success());
    hang_up(&stack.planb, 1);
    stack.planb.wait_for_log("error_400.html cannot be read: it is not a regular file");
    assert!(is_page(&get(stack.planb.address(), "nowhere.test", "/"), 400, "<h1>first</h1>"));
    stack.planb.signal("TERM");
    assert!(stack.planb.wait_for_exit().success());
}

/// Has the pages read again, for the `times`th time.
fn hang_up(planb: &Planb, times: usize) {
    planb.signal("HUP");
    super::support::wait_until("the pages are read", || {
        planb.log().iter().filter(|line| line.contains("error pages are read")).count() == times + 1
    });
}

#[test]
fn a_folder_that_is_not_there_ends_the_start_with_one_line() {
    let (master, replica) = redis_pair();
    let mut planb = Planb::builder(&replica, &master).arguments(&["--error-pages=/nonexistent/pages"]).spawn();
    assert_eq!(planb.wait_for_exit().code(), Some(1));
    let log = planb.log();
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(log[0].contains("cannot read the error pages in /nonexistent/pages"), "{log:?}");
}
