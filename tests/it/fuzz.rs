//! Every reader of strangers' bytes against its corpus, and against what chance makes of that. `make fuzz` goes on from here, guided by
//! what is reached; this takes the minute that each change is worth.

use std::{fs, path::Path};

use fastrand::Rng;

#[path = "../../fuzz/checks/against_hyper.rs"]
mod against_hyper;
#[path = "../../fuzz/checks/backend_url.rs"]
mod backend_url;
#[path = "../../fuzz/checks/client_hello.rs"]
mod client_hello;
#[path = "../../fuzz/checks/cookies.rs"]
mod cookies;
#[path = "../../fuzz/checks/host.rs"]
mod host;
#[path = "../../fuzz/checks/message_chunked.rs"]
mod message_chunked;
#[path = "../../fuzz/checks/message_headers.rs"]
mod message_headers;
#[path = "../../fuzz/checks/message_request.rs"]
mod message_request;
#[path = "../../fuzz/checks/message_response.rs"]
mod message_response;
#[path = "../../fuzz/checks/replies.rs"]
mod replies;
#[path = "../../fuzz/checks/schema.rs"]
mod schema;
#[path = "../../fuzz/checks/snapshot_file.rs"]
mod snapshot_file;

/// Checks the corpus of this name, and so many changed inputs, the same each time.
fn smoke(name: &str, inputs: u64, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(seeds.len() >= 5, "a corpus of {} files", seeds.len());
    for seed in &seeds {
        check(seed);
    }
    for number in 0..inputs {
        let input = changed(&seeds, &mut Rng::with_seed(number));
        // Whoever reads of a failure gets what it takes to make a file of it.
        let shown = Shown(&input);
        check(&input);
        std::mem::forget(shown);
    }
}

/// Shows an input when its check panics.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        eprintln!("the input was: b\"{}\"", self.0.escape_ascii());
    }
}

/// One of the seeds with some changes: bytes that are others, gone, doubled, or of another seed.
fn changed(seeds: &[Vec<u8>], random: &mut Rng) -> Vec<u8> {
    let mut input = random.choice(seeds).cloned().unwrap_or_default();
    for _ in 0..random.usize(1..=6) {
        let at = random.usize(..=input.len());
        let to = (at + random.usize(..=16)).min(input.len());
        match random.u8(..6) {
            0 if at < input.len() => input[at] ^= 1 << random.u8(..8),
            1 if at < input.len() => input[at] = random.u8(..),
            2 => drop(input.drain(at..to)),
            3 => input.splice(at..at, input[at..to].to_vec()).for_each(drop),
            4 => input.truncate(at),
            _ => {
                let other = random.choice(seeds).map_or(&[][..], |seed| &seed[..]);
                let from = random.usize(..=other.len());
                let end = (from + random.usize(..=64)).min(other.len());
                input.splice(at..to, other[from..end].iter().copied()).for_each(drop);
            }
        }
    }
    input
}

#[test]
fn requests_are_read_as_another_server_reads_them() {
    smoke("against_hyper", 100_000, against_hyper::check);
}

#[test]
fn urls_of_backends_are_read_whatever_they_are() {
    smoke("backend_url", 4_000_000, backend_url::check);
}

#[test]
fn a_client_hello_is_read_whatever_it_is() {
    smoke("client_hello", 100_000, client_hello::check);
}

#[test]
fn cookies_are_read_whatever_they_are() {
    smoke("cookies", 400_000, cookies::check);
}

#[test]
fn hosts_are_read_whatever_they_are() {
    smoke("host", 4_000_000, host::check);
}

#[test]
fn chunks_are_read_whatever_they_are() {
    smoke("message_chunked", 1_000_000, message_chunked::check);
}

#[test]
fn lines_of_heads_are_read_whatever_they_are() {
    smoke("message_headers", 400_000, message_headers::check);
}

#[test]
fn requests_are_read_whatever_they_are() {
    smoke("message_request", 400_000, message_request::check);
}

#[test]
fn responses_are_read_whatever_they_are() {
    smoke("message_response", 400_000, message_response::check);
}

#[test]
fn replies_of_redis_are_followed_whatever_they_are() {
    smoke("replies", 1_000_000, replies::check);
}

#[test]
fn values_in_redis_are_read_whatever_they_are() {
    smoke("schema", 4_000_000, schema::check);
}

#[test]
fn snapshot_files_are_read_whatever_they_are() {
    smoke("snapshot_file", 1_000_000, snapshot_file::check);
}
