//! Dead marks that arrive from Redis: the sets, their expiry, and the messages of other instances.

use super::support::{Backend, Planb, Stack, get, redis, redis_pipe, wait_until};

#[test]
fn a_member_takes_its_backend_out_until_it_is_removed() {
    let pair = Pair::start();
    pair.edit(&["SADD", SET, "0"]);
    assert_eq!(pair.answers(), ["b", "b"]);
    pair.edit(&["SREM", SET, "0"]);
    assert_eq!(pair.answers(), ["a", "b"]);
    pair.edit(&["SADD", SET, "0"]);
    assert_eq!(pair.answers(), ["b", "b"]);
    pair.edit(&["SADD", SET, "1"]);
    pair.edit(&["SREM", SET, "0"]);
    assert_eq!(pair.answers(), ["a", "a"]);
    pair.edit(&["DEL", SET]);
    assert_eq!(pair.answers(), ["a", "b"]);
}

#[test]
fn the_expiry_of_the_set_revives() {
    let pair = Pair::start();
    // Learnt without a deadline, so that nothing but the expiry itself can revive.
    pair.edit(&["SADD", SET, "0"]);
    assert_eq!(pair.answers(), ["b", "b"]);
    redis(&pair.stack.master, &["PEXPIRE", SET, "10"]);
    wait_until("both answer again", || pair.answers() == ["a", "b"]);
}

#[test]
fn a_mark_ends_at_its_own_deadline_and_a_message_renews_it() {
    let pair = Pair::start();
    redis_pipe(
        &pair.stack.master,
        &[
            vec![b"MULTI"],
            vec![b"SADD", SET.as_bytes(), b"0"],
            vec![b"PEXPIRE", SET.as_bytes(), b"8000"],
            vec![b"EXEC"],
        ],
    );
    wait_until("only b answers", || pair.answers() == ["b", "b"]);
    assert_eq!(redis(&pair.stack.master, &["EXPIRE", SET, "100"]), ":1");
    wait_until("both answer again, though the set still stands", || pair.answers() == ["a", "b"]);

    let notice = format!("marks.test;{};0;2", pair.a.url());
    pair.edit(&["PUBLISH", "dead", &notice]);
    assert_eq!(pair.answers(), ["b", "b"]);
}

#[test]
fn a_mark_stays_with_its_backend_through_every_edit_of_the_list() {
    let pair = Pair::start();
    let (a, b, c) = (pair.a.url(), pair.b.url(), Backend::named("c"));
    pair.edit(&["SADD", SET, "0"]);
    pair.edit(&["LINSERT", LIST, "BEFORE", &a, &c.url()]);
    assert_eq!(pair.answers(), ["b", "c"]);
    pair.edit(&["LREM", LIST, "0", &b]);
    assert_eq!(pair.answers(), ["c", "c"]);
    pair.edit(&["LREM", LIST, "0", &a]);
    assert_eq!(pair.answers(), ["c", "c"]);
    pair.edit(&["RPUSH", LIST, &b, &a]);
    assert_eq!(pair.answers(), ["b", "c"]);
    redis_pipe(
        &pair.stack.master,
        &[
            vec![b"MULTI"],
            vec![b"DEL", LIST.as_bytes()],
            vec![b"RPUSH", LIST.as_bytes(), b"id", b.as_bytes(), a.as_bytes()],
            vec![b"EXEC"],
        ],
    );
    pair.stack.settle();
    assert_eq!(pair.answers(), ["b", "b"]);
    pair.edit(&["SREM", SET, "0"]);
    assert_eq!(pair.answers(), ["a", "b"]);
}

#[test]
fn members_that_are_no_index_of_the_list_mark_nothing() {
    let pair = Pair::start();
    pair.edit(&["SADD", SET, "1", "2", "99", "-1", "x", "0x0", "18446744073709551616"]);
    assert_eq!(pair.answers(), ["a", "a"]);
    pair.stack.planb.wait_for_log("members of the dead set are not indexes");
    assert!(pair.stack.planb.count("planb_sync_malformed_total") >= 1);
    pair.edit(&["SREM", SET, "1"]);
    assert_eq!(pair.answers(), ["a", "b"]);
}

#[test]
fn a_dead_key_of_another_type_and_leases_mark_nothing() {
    let pair = Pair::start();
    pair.edit(&["SET", SET, "0"]);
    assert_eq!(pair.answers(), ["a", "b"]);
    pair.edit(&["SET", &format!("{SET}:{}", pair.a.url()), "some-machine", "EX", "30"]);
    pair.edit(&["SADD", &format!("{SET}:{}", pair.b.url()), "0"]);
    assert_eq!(pair.answers(), ["a", "b"]);
    pair.edit(&["DEL", SET]);
    pair.edit(&["SADD", SET, "0"]);
    assert_eq!(pair.answers(), ["b", "b"]);
    // A set that becomes something else holds no member any more.
    pair.edit(&["SET", SET, "0"]);
    assert_eq!(pair.answers(), ["a", "b"]);
}

#[test]
fn the_set_is_that_of_the_frontend_key_that_matched() {
    let pair = Pair::start();
    pair.edit(&["RPUSH", "frontend:*.marks.test", "id", &pair.a.url(), &pair.b.url()]);
    pair.edit(&["SADD", "dead:*.marks.test", "0"]);
    pair.edit(&["SADD", "dead:x.marks.test", "1"]);
    let ask = || pair.stack.planb.ask("x.marks.test");
    assert_eq!([ask(), ask()], ["b", "b"]);
    assert_eq!(pair.answers(), ["a", "b"]);
}

#[test]
fn with_all_backends_dead_the_answer_is_503() {
    let pair = Pair::start();
    pair.edit(&["SADD", SET, "0", "1"]);
    let response = get(pair.stack.planb.address(), "marks.test", "/");
    assert_eq!((response.status, response.text().as_str()), (503, "all backends are dead"));
    pair.edit(&["SREM", SET, "1"]);
    assert_eq!(pair.answers(), ["b", "b"]);
}

#[test]
fn marks_that_stand_at_the_start_are_heeded() {
    let pair = Pair::start();
    pair.edit(&["SADD", SET, "0"]);
    let late = Planb::builder(&pair.stack.replica, &pair.stack.master).start();
    assert_eq!([late.ask("marks.test"), late.ask("marks.test")], ["b", "b"]);
}

/// A frontend `marks.test` with the backends a and b.
struct Pair {
    stack: Stack,
    a: Backend,
    b: Backend,
}

impl Pair {
    fn start() -> Self {
        let pair = Self { stack: Stack::start(&[]), a: Backend::named("a"), b: Backend::named("b") };
        pair.edit(&["RPUSH", LIST, "id", &pair.a.url(), &pair.b.url()]);
        assert_eq!(pair.answers(), ["a", "b"]);
        pair
    }

    fn edit(&self, words: &[&str]) {
        self.stack.edit(words);
    }

    /// Who answers two requests in a row, in alphabetical order.
    fn answers(&self) -> [String; 2] {
        let mut answers = [(); 2].map(|()| self.stack.planb.ask("marks.test"));
        answers.sort();
        answers
    }
}

const LIST: &str = "frontend:marks.test";
const SET: &str = "dead:marks.test";
