use std::{fs::File, os::unix::fs::symlink, process::Command};

use super::*;

/// A place of its own for the folder, whose path has no links in it.
struct Place {
    root: PathBuf,
    _scratch: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let place = Self { root: scratch.path().canonicalize().unwrap(), _scratch: scratch };
        place.folder("certs");
        place
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn folder(&self, path: &str) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    fn file(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
    }

    fn pair(&self, path: &str, text: &str) {
        self.file(&format!("{path}.crt"), text);
        self.file(&format!("{path}.key"), text);
    }

    /// A link that is put in the place of another in one step.
    fn link(&self, path: &str, target: impl AsRef<Path>) {
        let fresh = self.path(&format!("{path}.tmp"));
        symlink(target, &fresh).unwrap();
        fs::rename(fresh, self.path(path)).unwrap();
    }

    fn open(&self, path: &str) -> Watched {
        let mut watched = Watched { folder: Folder::open(&self.path(path), FAR).unwrap() };
        watched.folder.scan().unwrap();
        watched
    }
}

/// A folder that was scanned.
struct Watched {
    folder: Folder,
}

impl Watched {
    async fn wakes(&mut self) {
        time::timeout(DEADLINE, self.folder.changed()).await.expect("no event");
    }

    async fn sleeps(&mut self) {
        assert!(time::timeout(WHILE, self.folder.changed()).await.is_err(), "woken by nothing");
    }

    /// Follows the folder until the pair is given with this text in both halves.
    async fn gives(&mut self, name: &str, text: &str) {
        self.scans_until(|scan| {
            scan.changed
                .iter()
                .any(|pair| pair.name == name && pair.certificate == text.as_bytes() && pair.key == text.as_bytes())
        })
        .await;
    }

    async fn scans_until(&mut self, mut done: impl FnMut(&Scan) -> bool) {
        let follow = async {
            loop {
                self.folder.changed().await;
                if self.folder.scan().is_ok_and(|scan| done(&scan)) {
                    return;
                }
            }
        };
        time::timeout(DEADLINE, follow).await.expect("no such scan");
    }

    /// Follows the folder until nothing happens any more, and returns the last scan.
    async fn settles(&mut self) -> Scan {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let scan = self.folder.scan().unwrap();
            if time::timeout(WHILE, self.folder.changed()).await.is_err() {
                return scan;
            }
            assert!(Instant::now() < deadline, "it never settles");
        }
    }
}

/// So long that only events can be the reason to wake.
const FAR: Duration = Duration::from_hours(1);
const DEADLINE: Duration = Duration::from_secs(10);
/// How long nothing must happen for it to be nothing; longer than it takes to settle.
const WHILE: Duration = Duration::from_millis(200);

fn problems(scan: &Scan) -> Vec<(String, bool)> {
    let said = |problem: &Problem| {
        let name = problem.path.file_name().unwrap().to_string_lossy();
        (format!("{name}: {}", problem.refusal), problem.is_new)
    };
    scan.problems.iter().map(said).collect()
}

#[test]
fn a_scan_finds_pairs_and_nothing_else() {
    let place = Place::new();
    for name in ["www.example.com", "*.example.com", "*"] {
        place.pair(&format!("certs/{name}"), name);
    }
    place.pair("certs/.hidden", "");
    place.file("certs/notes.txt", "");
    place.folder("certs/folder.crt");
    let mut folder = Folder::open(&place.path("certs"), FAR).unwrap();
    let scan = folder.scan().unwrap();
    assert_eq!(scan.names, ["*", "*.example.com", "www.example.com"]);
    assert!(scan.problems.is_empty());
    for (pair, name) in scan.changed.iter().zip(&scan.names) {
        let bytes = name.as_bytes();
        assert_eq!((&pair.name, &pair.certificate[..], &pair.key[..]), (name, bytes, bytes));
    }
    let scan = folder.scan().unwrap();
    assert_eq!((scan.names.len(), scan.changed.len()), (3, 0), "nothing changed, though the files are young");
}

#[test]
fn a_folder_must_be_one_that_can_be_listed() {
    let place = Place::new();
    place.file("file", "");
    assert!(Folder::open(&place.path("gone"), FAR).is_err());
    assert!(Folder::open(&place.path("file"), FAR).is_err());
}

#[test]
fn what_cannot_be_half_of_a_pair_is_named_and_news_once() {
    let place = Place::new();
    place.file("certs/alone.crt", "");
    place.pair("certs/big", "");
    File::create(place.path("certs/big.key")).unwrap().set_len(1024 * 1024 + 1).unwrap();
    place.file("certs/broken.key", "");
    place.link("certs/broken.crt", "nowhere");
    place.file("certs/loop.crt", "");
    place.link("certs/loop.key", "loop.key");
    place.file("certs/pipe.key", "");
    assert!(Command::new("mkfifo").arg(place.path("certs/pipe.crt")).status().unwrap().success());
    place.file("certs/device.crt", "");
    place.link("certs/device.key", "/dev/zero");
    let mut folder = Folder::open(&place.path("certs"), FAR).unwrap();
    let expected = |is_new| {
        [
            "alone.key: it is missing, though the other file of the pair is there",
            "big.key: it is larger than 1024 KiB",
            "broken.crt: No such file or directory (os error 2)",
            "device.key: it is not a regular file",
            "loop.key: Too many levels of symbolic links (os error 40)",
            "pipe.crt: it is not a regular file",
        ]
        .map(|line| (line.to_owned(), is_new))
    };
    let scan = folder.scan().unwrap();
    assert_eq!(problems(&scan), expected(true));
    assert_eq!(scan.names, ["alone", "big", "broken", "device", "loop", "pipe"]);
    assert!(scan.changed.is_empty());
    assert_eq!(problems(&folder.scan().unwrap()), expected(false));

    place.file("certs/alone.key", "");
    let scan = folder.scan().unwrap();
    assert_eq!((scan.problems.len(), scan.changed.len()), (5, 1));
    fs::remove_file(place.path("certs/alone.key")).unwrap();
    let scan = folder.scan().unwrap();
    assert!(scan.problems[0].is_new && !scan.problems[1].is_new);
}

#[test]
fn a_name_that_is_not_unicode_is_a_problem() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    fs::write(place.path("certs").join(std::ffi::OsStr::from_bytes(b"\xff.crt")), "").unwrap();
    let mut folder = Folder::open(&place.path("certs"), FAR).unwrap();
    let scan = folder.scan().unwrap();
    assert!(matches!(scan.problems[..], [Problem { refusal: Refusal::NotUnicode, is_new: true, .. }]));
    assert!(!folder.scan().unwrap().problems[0].is_new);
}

#[test]
fn a_pipe_that_takes_the_place_of_a_file_is_not_waited_for() {
    let place = Place::new();
    assert!(Command::new("mkfifo").arg(place.path("pipe")).status().unwrap().success());
    assert!(matches!(file::read(&place.path("pipe"), SystemTime::now()), Err(Refusal::NotRegular)));
}

#[test]
fn until_it_is_scanned_a_folder_counts_as_changed() {
    let place = Place::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut watched = Watched { folder: Folder::open(&place.path("certs"), FAR).unwrap() };
    runtime.block_on(watched.wakes());
}

#[tokio::test]
async fn a_pair_that_comes_changes_and_goes_is_seen() {
    let place = Place::new();
    let mut watched = place.open("certs");
    place.pair("certs/a", "1");
    watched.gives("a", "1").await;
    place.pair("certs/a", "2");
    watched.gives("a", "2").await;
    place.pair("fresh", "3");
    fs::rename(place.path("fresh.crt"), place.path("certs/a.crt")).unwrap();
    fs::rename(place.path("fresh.key"), place.path("certs/a.key")).unwrap();
    watched.gives("a", "3").await;
    fs::remove_file(place.path("certs/a.crt")).unwrap();
    watched.scans_until(|scan| scan.names == ["a"] && scan.problems.len() == 1).await;
    fs::remove_file(place.path("certs/a.key")).unwrap();
    watched.scans_until(|scan| scan.names.is_empty() && scan.problems.is_empty()).await;
    place.pair("certs/a", "3");
    watched.gives("a", "3").await;
}

#[tokio::test]
async fn what_does_not_matter_wakes_nobody() {
    let place = Place::new();
    place.pair("certs/a", "1");
    let mut watched = place.open("certs");
    watched.settles().await;
    place.file("certs/notes.txt", "");
    place.file("certs/.a.crt.swp", "");
    place.pair("certs/.a", "");
    place.pair("b", "beside the folder");
    fs::read(place.path("certs/a.crt")).unwrap();
    fs::read_dir(place.path("certs")).unwrap().for_each(drop);
    watched.sleeps().await;
    place.pair("certs/a", "2");
    watched.gives("a", "2").await;
}

#[tokio::test]
async fn a_secret_that_kubernetes_mounts_is_followed() {
    let place = Place::new();
    place.folder("certs/..1");
    place.pair("certs/..1/a", "1");
    place.link("certs/..data", "..1");
    place.link("certs/a.crt", "..data/a.crt");
    place.link("certs/a.key", "..data/a.key");
    let mut watched = place.open("certs");
    watched.settles().await;
    let held = watched.folder.watches.held();
    for number in 2..6 {
        let version = format!("certs/..{number}");
        place.folder(&version);
        place.pair(&format!("{version}/a"), &number.to_string());
        place.link("certs/..data", format!("..{number}"));
        fs::remove_dir_all(place.path(&format!("certs/..{}", number - 1))).unwrap();
        watched.gives("a", &number.to_string()).await;
    }
    watched.settles().await;
    assert_eq!(watched.folder.watches.held(), held, "watches of former versions are dropped");
}

#[tokio::test]
async fn links_that_certbot_swaps_in_its_own_folder_are_followed() {
    let place = Place::new();
    place.folder("live/a");
    place.folder("archive/a");
    place.file("archive/a/fullchain1.pem", "1");
    place.file("archive/a/privkey1.pem", "1");
    place.link("live/a/fullchain.pem", "../../archive/a/fullchain1.pem");
    place.link("live/a/privkey.pem", "../../archive/a/privkey1.pem");
    place.link("certs/a.crt", place.path("live/a/fullchain.pem"));
    place.link("certs/a.key", place.path("live/a/privkey.pem"));
    let mut watched = place.open("certs");
    watched.settles().await;

    place.file("archive/a/fullchain2.pem", "2");
    place.file("archive/a/privkey2.pem", "2");
    place.link("live/a/fullchain.pem", "../../archive/a/fullchain2.pem");
    place.link("live/a/privkey.pem", "../../archive/a/privkey2.pem");
    watched.gives("a", "2").await;

    // In place, where the links end.
    place.file("archive/a/fullchain2.pem", "3");
    place.file("archive/a/privkey2.pem", "3");
    watched.gives("a", "3").await;

    // Gone with its folder, and back.
    fs::remove_dir_all(place.path("live/a")).unwrap();
    watched.scans_until(|scan| scan.problems.len() == 2).await;
    place.folder("live/a");
    place.file("archive/a/fullchain1.pem", "4");
    place.file("archive/a/privkey1.pem", "4");
    place.link("live/a/fullchain.pem", "../../archive/a/fullchain1.pem");
    place.link("live/a/privkey.pem", "../../archive/a/privkey1.pem");
    watched.gives("a", "4").await;

    for end in ["crt", "key"] {
        fs::remove_file(place.path(&format!("certs/a.{end}"))).unwrap();
    }
    watched.scans_until(|scan| scan.names.is_empty()).await;
    watched.settles().await;
    assert_eq!(watched.folder.watches.held(), 2, "the folder and the one that holds it");
}

#[tokio::test]
async fn a_folder_that_is_a_link_may_be_swapped() {
    let place = Place::new();
    for version in ["1", "2", "3"] {
        place.folder(version);
        place.pair(&format!("{version}/a"), version);
    }
    place.link("current", "1");
    let mut watched = place.open("current");
    for version in ["2", "3", "1"] {
        place.link("current", version);
        watched.gives("a", version).await;
    }
    place.pair("1/b", "b");
    watched.gives("b", "b").await;
}

#[tokio::test]
async fn a_folder_that_is_renamed_away_is_left() {
    let place = Place::new();
    place.pair("certs/a", "1");
    let mut watched = place.open("certs");
    place.folder("next");
    place.pair("next/a", "2");
    fs::rename(place.path("certs"), place.path("former")).unwrap();
    fs::rename(place.path("next"), place.path("certs")).unwrap();
    watched.gives("a", "2").await;
    watched.settles().await;
    place.pair("former/a", "3");
    watched.sleeps().await;
    place.pair("certs/a", "4");
    watched.gives("a", "4").await;
}

#[tokio::test]
async fn a_folder_that_is_deleted_may_come_back() {
    let place = Place::new();
    place.folder("deep/deeper/certs");
    let mut watched = place.open("deep/deeper/certs");
    for version in ["1", "2", "3"] {
        fs::remove_dir_all(place.path("deep")).unwrap();
        watched.wakes().await;
        watched.folder.scan().unwrap_err();
        place.folder("deep/deeper/certs");
        place.pair("deep/deeper/certs/a", version);
        watched.gives("a", version).await;
    }
    // So fast that it is never seen to be gone.
    for version in ["4", "5", "6"] {
        fs::remove_dir_all(place.path("deep")).unwrap();
        place.folder("deep/deeper/certs");
        place.pair("deep/deeper/certs/a", version);
        watched.gives("a", version).await;
    }
}

#[tokio::test]
async fn a_change_is_not_lost_with_the_future_that_saw_it() {
    let place = Place::new();
    let mut watched = place.open("certs");
    watched.settles().await;
    place.pair("certs/a", "1");
    let deadline = Instant::now() + DEADLINE;
    // Shorter than it takes to settle, so that the last wait begins settled or half so.
    while watched.folder.dirty.is_none() {
        assert!(Instant::now() < deadline);
        let _ = time::timeout(QUIET / 10, watched.folder.changed()).await;
    }
    watched.wakes().await;
    watched.wakes().await;
    watched.folder.scan().unwrap();
    watched.sleeps().await;
}

#[tokio::test]
async fn a_folder_that_is_never_quiet_is_still_scanned() {
    let place = Place::new();
    let mut watched = place.open("certs");
    let path = place.path("certs/a.crt");
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        while stopped.recv_timeout(QUIET / 10).is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout) {
            fs::write(&path, "a").unwrap();
        }
    });
    watched.wakes().await;
    watched.folder.scan().unwrap();
    watched.wakes().await;
    drop(stop);
    writer.join().unwrap();
}

#[tokio::test]
async fn lost_events_are_made_good() {
    let place = Place::new();
    let mut watched = place.open("certs");
    watched.settles().await;
    watched.folder.watches.lose_events();
    watched.wakes().await;
    watched.settles().await;
    place.pair("certs/a", "1");
    watched.gives("a", "1").await;
}

#[tokio::test]
async fn what_cannot_be_watched_is_looked_for() {
    let place = Place::new();
    let mut watched = Watched { folder: Folder::open(&place.path("certs"), FAR).unwrap() };
    watched.folder.watches.allow(0);
    watched.folder.scan().unwrap();
    place.pair("certs/a", "1");
    watched.gives("a", "1").await;
    assert!(!watched.folder.watches.are_complete());
    watched.folder.watches.allow(10);
    watched.folder.scan().unwrap();
    assert!(watched.folder.watches.are_complete());
    place.pair("certs/a", "2");
    watched.gives("a", "2").await;
}

#[tokio::test]
async fn it_wakes_when_nothing_happens_for_long() {
    let place = Place::new();
    let mut folder = Folder::open(&place.path("certs"), Duration::from_millis(300)).unwrap();
    for _ in 0..2 {
        folder.scan().unwrap();
        time::timeout(DEADLINE, folder.changed()).await.expect("it sleeps for ever");
    }
}
