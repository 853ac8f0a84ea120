//! Certificates from a folder: which files are served, and how they are replaced.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use tempfile::TempDir;

use super::support::{Authority, Pair, Planb, PrivateRedis, connect_tls, redis, redis_pair, shown, wait_until};

/// A proxy that serves TLS with certificates from a folder.
struct Secure {
    planb: Planb,
    master: PrivateRedis,
    _replica: PrivateRedis,
    place: Place,
    signs: AtomicUsize,
}

/// A folder named `certs` in a folder of its own, and who signs what is in it.
struct Place {
    folder: TempDir,
    authority: Authority,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap(), authority: Authority::new() };
        fs::create_dir(place.certs()).unwrap();
        place
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn certs(&self) -> PathBuf {
        self.path("certs")
    }

    /// A new pair that is good for every name `<label>.site.test`, not yet written.
    fn issue(&self) -> Pair {
        self.authority.issue(&["*.site.test", "*.other.example"])
    }

    /// A new pair in `certs`.
    fn pair(&self, name: &str) -> Pair {
        let pair = self.issue();
        pair.write(&self.certs(), name);
        pair
    }

    fn start(self) -> Secure {
        let (master, replica) = redis_pair();
        let flag = format!("--load-certificates-from={}", self.certs().display());
        let planb = Planb::builder(&replica, &master).arguments(&["--tls-listen=127.0.0.1:0", &flag]).start();
        Secure { planb, master, _replica: replica, place: self, signs: AtomicUsize::new(0) }
    }
}

impl Secure {
    fn serves(&self, name: &str, pair: &Pair) -> bool {
        shown(&self.place.authority, self.planb.tls_address(), name) == Some(pair.der())
    }

    fn wait_for(&self, name: &str, pair: &Pair) {
        wait_until(&format!("{name} is served with its new pair"), || self.serves(name, pair));
    }

    fn wait_for_none(&self, name: &str) {
        let is_none = || shown(&self.place.authority, self.planb.tls_address(), name).is_none();
        wait_until(&format!("{name} is not served"), is_none);
    }

    /// The warnings that contain this.
    fn warnings(&self, text: &str) -> Vec<String> {
        self.planb.log().into_iter().filter(|line| line.contains("WARN") && line.contains(text)).collect()
    }

    /// Waits until everything written so far is dealt with, and the log of it is here.
    fn settle(&self) {
        let sign = format!("sign-{}.site.test", self.signs.fetch_add(1, Ordering::Relaxed));
        let pair = self.place.issue();
        move_into_place(&pair, &self.place.certs(), &sign);
        self.wait_for(&sign, &pair);
        self.planb.wait_for_log(&sign);
    }
}

/// Puts each of a pair's files into a folder whole.
fn move_into_place(pair: &Pair, folder: &Path, name: &str) {
    pair.write(folder, ".new");
    for end in ["crt", "key"] {
        fs::rename(folder.join(format!(".new.{end}")), folder.join(format!("{name}.{end}"))).unwrap();
    }
}

#[test]
fn good_pairs_are_served_and_each_bad_one_is_named_once() {
    let place = Place::new();
    let (exact, capital, parent, any) =
        (place.pair("a.site.test"), place.pair("B.Site.Test"), place.pair("*.site.test"), place.pair("*"));
    let mismatch = Pair { key: place.issue().key, ..place.pair("mismatch.site.test") };
    mismatch.write(&place.certs(), "mismatch.site.test");
    place.pair("half.site.test");
    fs::remove_file(place.path("certs/half.site.test.key")).unwrap();
    fs::write(place.path("certs/junk.site.test.crt"), [0xff; 5_000]).unwrap();
    fs::write(place.path("certs/junk.site.test.key"), "").unwrap();
    fs::write(place.path("certs/README"), "not a certificate").unwrap();
    let secure = place.start();
    for (name, pair) in
        [("a.site.test", &exact), ("b.site.test", &capital), ("c.site.test", &parent), ("x.other.example", &any)]
    {
        assert!(secure.serves(name, pair), "{name}");
    }
    // Without a pair of its own, a name has its parent's.
    assert!(secure.serves("mismatch.site.test", &parent) && secure.serves("half.site.test", &parent));
    secure.planb.signal("HUP");
    secure.settle();
    for bad in ["mismatch.site.test", "half.site.test", "junk.site.test"] {
        assert_eq!(secure.warnings(bad).len(), 1, "{bad}: {:?}", secure.planb.log());
    }
    wait_until("the sign is counted too", || secure.planb.count("planb_tls_certificates") == 5);
    assert!(secure.warnings("README").is_empty());

    // Redis has no say.
    secure.place.issue().install(&secure.master, "a.site.test");
    secure.place.issue().install(&secure.master, "*.other.example");
    for host in ["one.sign", "two.sign"] {
        redis(&secure.master, &["RPUSH", &format!("frontend:{host}"), "id", "http://127.0.0.1:1"]);
        secure.planb.wait_for_route(host);
    }
    assert!(secure.serves("a.site.test", &exact) && secure.serves("x.other.example", &any));
}

#[test]
fn files_are_replaced_and_removed_while_serving() {
    let secure = Place::new().start();
    secure.wait_for_none("a.site.test");
    for _ in 0..3 {
        let pair = secure.place.pair("a.site.test");
        secure.wait_for("a.site.test", &pair);
        let pair = secure.place.issue();
        move_into_place(&pair, &secure.place.certs(), "a.site.test");
        secure.wait_for("a.site.test", &pair);
    }
    let any = secure.place.pair("*.site.test");
    secure.wait_for("b.site.test", &any);
    for end in ["crt", "key"] {
        fs::remove_file(secure.place.path(&format!("certs/a.site.test.{end}"))).unwrap();
    }
    secure.wait_for("a.site.test", &any);
    for end in ["crt", "key"] {
        fs::rename(
            secure.place.path(&format!("certs/*.site.test.{end}")),
            secure.place.path(&format!("certs/c.site.test.{end}")),
        )
        .unwrap();
    }
    secure.wait_for_none("a.site.test");
    secure.wait_for("c.site.test", &any);
}

#[test]
fn while_a_pair_is_replaced_file_by_file_the_previous_is_served() {
    let place = Place::new();
    let mut old = place.pair("a.site.test");
    let secure = place.start();
    for (round, ends) in [(1, ["crt", "key"]), (2, ["key", "crt"])] {
        let new = secure.place.issue();
        new.write(secure.place.folder.path(), "next");
        let put = |end| {
            let to = secure.place.path(&format!("certs/a.site.test.{end}"));
            fs::rename(secure.place.path(&format!("next.{end}")), to).unwrap();
        };
        put(ends[0]);
        wait_until("it is refused", || secure.warnings("the previous one stays in service").len() == round);
        assert!(secure.serves("a.site.test", &old));
        secure.settle();
        assert_eq!(secure.planb.count("planb_tls_certificates_refused_total"), round as u64);
        put(ends[1]);
        secure.wait_for("a.site.test", &new);
        old = new;
    }
    for end in ["crt", "key"] {
        let (path, kept) = (secure.place.path(&format!("certs/a.site.test.{end}")), secure.place.path("kept"));
        fs::rename(&path, &kept).unwrap();
        wait_until("it is missed", || !secure.warnings(&format!("a.site.test.{end}")).is_empty());
        assert!(secure.serves("a.site.test", &old));
        fs::rename(&kept, &path).unwrap();
        secure.settle();
    }
    assert!(secure.serves("a.site.test", &old));
}

#[test]
fn links_are_followed_wherever_they_are_swapped() {
    let place = Place::new();
    // Kubernetes: the files are links through a link to a folder beside them.
    let version = |number: u32| {
        let pair = place.issue();
        let folder = place.path(&format!("certs/..{number}"));
        fs::create_dir(&folder).unwrap();
        pair.write(&folder, "kube");
        pair
    };
    let [kube, next_kube, last_kube] = [1, 2, 3].map(version);
    symlink("..1", place.path("certs/..data")).unwrap();
    // Certbot: each file is a link to a link in a folder elsewhere.
    fs::create_dir_all(place.path("live/bot")).unwrap();
    fs::create_dir_all(place.path("archive/bot")).unwrap();
    let issued = |number: u32| {
        let pair = place.issue();
        pair.write(&place.path("archive/bot"), &number.to_string());
        pair
    };
    let [bot, next_bot] = [1, 2].map(issued);
    for end in ["crt", "key"] {
        symlink(format!("..data/kube.{end}"), place.path(&format!("certs/kube.site.test.{end}"))).unwrap();
        symlink(format!("../../archive/bot/1.{end}"), place.path(&format!("live/bot/it.{end}"))).unwrap();
        symlink(place.path(&format!("live/bot/it.{end}")), place.path(&format!("certs/bot.site.test.{end}"))).unwrap();
    }
    let secure = place.start();
    assert!(secure.serves("kube.site.test", &kube) && secure.serves("bot.site.test", &bot));

    let swap = |target: &str, link: &str| {
        symlink(target, secure.place.path("new")).unwrap();
        fs::rename(secure.place.path("new"), secure.place.path(link)).unwrap();
    };
    for (number, pair) in [(2, &next_kube), (3, &last_kube), (1, &kube)] {
        swap(&format!("..{number}"), "certs/..data");
        secure.wait_for("kube.site.test", pair);
    }
    for end in ["crt", "key"] {
        swap(&format!("../../archive/bot/2.{end}"), &format!("live/bot/it.{end}"));
    }
    secure.wait_for("bot.site.test", &next_bot);
    let rewritten = secure.place.issue();
    rewritten.write(&secure.place.path("archive/bot"), "2");
    secure.wait_for("bot.site.test", &rewritten);
    assert!(secure.serves("kube.site.test", &kube));
    for end in ["crt", "key"] {
        fs::remove_file(secure.place.path(&format!("archive/bot/2.{end}"))).unwrap();
    }
    wait_until("the loss is said", || !secure.warnings("bot.site.test.crt").is_empty());
    assert!(secure.serves("bot.site.test", &rewritten), "a link that leads nowhere is half of a rotation");
}

#[test]
fn a_change_without_an_event_is_found_on_hup() {
    let place = Place::new();
    place.issue().write(place.folder.path(), "other");
    // Of a change through a file's other name, a folder is not told.
    for end in ["crt", "key"] {
        fs::hard_link(place.path(&format!("other.{end}")), place.path(&format!("certs/a.site.test.{end}"))).unwrap();
    }
    let secure = place.start();
    let pair = secure.place.issue();
    pair.write(secure.place.folder.path(), "other");
    secure.planb.signal("HUP");
    secure.wait_for("a.site.test", &pair);
}

#[test]
fn a_folder_that_is_gone_leaves_its_certificates_in_service_until_it_is_back() {
    let place = Place::new();
    let (a, b) = (place.pair("a.site.test"), place.pair("b.site.test"));
    let secure = place.start();
    for round in 1..=3 {
        let away = secure.place.path(&format!("away{round}"));
        fs::rename(secure.place.certs(), &away).unwrap();
        wait_until("the loss is said", || secure.warnings("cannot be read").len() == round);
        secure.planb.signal("HUP");
        let reread =
            || secure.planb.log().iter().filter(|line| line.contains("reading the certificates again")).count();
        wait_until("it is looked at again", || reread() == round);
        assert!(secure.serves("a.site.test", &a) && secure.serves("b.site.test", &b));
        if round < 3 {
            fs::rename(&away, secure.place.certs()).unwrap();
            secure.settle();
            assert!(secure.serves("a.site.test", &a) && secure.serves("b.site.test", &b));
        }
    }
    fs::create_dir(secure.place.certs()).unwrap();
    let new = secure.place.pair("a.site.test");
    secure.wait_for("a.site.test", &new);
    secure.wait_for_none("b.site.test");
}

#[test]
fn a_name_that_has_a_pair_before_and_after_is_served_in_between() {
    let place = Place::new();
    fs::remove_dir(place.certs()).unwrap();
    for release in ["exact", "wildcard"] {
        fs::create_dir(place.path(release)).unwrap();
    }
    let (exact, wildcard) = (place.issue(), place.issue());
    exact.write(&place.path("exact"), "a.site.test");
    wildcard.write(&place.path("wildcard"), "*.site.test");
    for number in 0..200 {
        wildcard.write(&place.path("wildcard"), &format!("n{number}.other.example"));
    }
    symlink("exact", place.certs()).unwrap();
    let secure = place.start();
    let config = secure.place.authority.client(&[]);
    for (release, pair) in [("wildcard", &wildcard), ("exact", &exact), ("wildcard", &wildcard), ("exact", &exact)] {
        symlink(release, secure.place.path("next")).unwrap();
        fs::rename(secure.place.path("next"), secure.place.certs()).unwrap();
        wait_until("the swap is seen", || {
            let stream = connect_tls(&config, secure.planb.tls_address(), "a.site.test").unwrap();
            stream.conn.peer_certificates().unwrap()[0] == pair.der()
        });
    }
}

#[test]
fn two_thousand_pairs_are_there_before_the_port_is() {
    let place = Place::new();
    let pair = place.issue();
    for number in 0..2_000 {
        pair.write(&place.certs(), &format!("n{number}.site.test"));
    }
    let secure = place.start();
    let config = secure.place.authority.client(&[]);
    for number in (0..2_000).step_by(50) {
        assert!(connect_tls(&config, secure.planb.tls_address(), &format!("n{number}.site.test")).is_ok(), "{number}");
    }
    assert_eq!(secure.planb.count("planb_tls_certificates_loaded_total"), 2_000);
}

#[test]
fn files_are_read_as_redis_is() {
    let place = Place::new();
    let intermediate = place.authority.intermediate();
    let good = place.pair("stays.site.test");
    let leaf = intermediate.issue(&["*.site.test"]);
    let wrong_order =
        Pair { certificate: format!("{}{}", intermediate.pem(), leaf.certificate), key: leaf.key.clone() };
    wrong_order.write(&place.certs(), "order.site.test");
    let swapped = Pair { certificate: good.key.clone(), key: good.certificate.clone() };
    swapped.write(&place.certs(), "swapped.site.test");
    let secure = place.start();
    secure.wait_for("order.site.test", &leaf);
    secure.wait_for("swapped.site.test", &good);
    assert_eq!(secure.warnings("the certificate and the private key are swapped").len(), 1);

    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    fs::write(secure.place.certs().join("stays.site.test.key"), encrypted).unwrap();
    let warning = secure.planb.wait_for_log("cannot be served: the private key is encrypted; the previous one stays");
    assert!(warning.contains("stays.site.test.crt"), "{warning}");
    assert!(secure.serves("stays.site.test", &good));
}
