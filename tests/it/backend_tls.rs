//! TLS towards backends: whose certificates are believed, and what is said of the others.

use std::{path::Path, process::Command};

use super::support::{OpensslServer, Stack, wait_until};

/// Commands that make a key, and those that sign a certificate with it, both as far as they differ.
const SELF_SIGNED: &str = "openssl req -x509 -key server.key -out server.crt -subj /CN=backend -days 10";

const REFUSED: &str = "planb_reverseproxy_dial_failures_total{reason=\"certificate\"}";

/// An authority, for the proxy to trust as it does the system's.
struct Signer {
    folder: tempfile::TempDir,
}

impl Signer {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let commands = format!("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem \
                        -subj /CN={name} -days 10
                        touch index.txt
                        echo 01 > serial
                        printf '[ca]\ndefault_ca=own\n[own]\ndatabase=index.txt\nnew_certs_dir=.\nserial=serial\n' > ca.conf
                        echo unique_subject=no >> ca.conf
                        printf 'default_md=sha256\npolicy=any\n[any]\ncommonName=supplied\n' >> ca.conf");
        let made = Command::new("sh").args(["-ec", &commands]).current_dir(folder.path()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self { folder }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn stack(&self, arguments: &[&str]) -> Stack {
        Stack::start_in(&[("SSL_CERT_FILE", &self.file("ca.pem"))], arguments)
    }

    /// Commands that sign `server.key` for these names.
    fn sign(&self, names: &str, arguments: &str) -> String {
        format!(
            "echo 'subjectAltName={names}' > extensions
             openssl req -new -key server.key -subj /CN=127.0.0.1 -out server.csr
             openssl x509 -req -in server.csr -CA {} -CAkey {} -CAcreateserial -CAserial server.serial -days 10 \
             -extfile extensions -out server.crt {arguments}",
            self.file("ca.pem"),
            self.file("ca.key"),
        )
    }

    /// The same with a validity of this beginning and end.
    fn sign_between(&self, start: &str, end: &str) -> String {
        let folder: &Path = self.folder.path();
        format!(
            "echo 'subjectAltName=IP:127.0.0.1' > extensions
             openssl req -new -key server.key -subj /CN=127.0.0.1 -out server.csr
             cd {folder}
             openssl ca -batch -config ca.conf -cert ca.pem -keyfile ca.key -startdate {start} -enddate {end} \
             -in $OLDPWD/server.csr -extfile $OLDPWD/extensions -notext -out $OLDPWD/server.crt",
            folder = folder.display(),
        )
    }
}

fn key(kind: &str) -> String {
    match kind.split_once(' ') {
        Some(("rsa", bits)) => format!("openssl genrsa -out server.key {bits}"),
        Some(("ec", curve)) => format!("openssl ecparam -genkey -noout -name {curve} -out server.key"),
        _ => format!("openssl genpkey -algorithm {kind} -out server.key"),
    }
}

/// The status of a backend's answer, by a host of its own.
fn status(stack: &Stack, host: &str, backend: &OpensslServer) -> u16 {
    stack.list(host, &[&backend.url()]);
    stack.planb.connect().get(host, "/").status
}

#[test]
fn no_certificate_is_too_odd_for_a_backend_that_is_not_verified() {
    let trusted = Signer::new("ours");
    let stack = Stack::start(&["--backend-tls-verify=false"]);
    let version_1 =
        "openssl req -new -key server.key -subj /CN=x | openssl x509 -req -signkey server.key -out server.crt";
    let with = |arguments: &str| format!("{SELF_SIGNED} {arguments}");
    let cases: [(&str, String, &[&str]); 22] = [
        ("rsa 2048", SELF_SIGNED.to_owned(), &[]),
        ("rsa 2048", version_1.to_owned(), &["-tls1_2"]),
        ("rsa 2048", version_1.to_owned(), &["-tls1_3"]),
        ("rsa 1024", SELF_SIGNED.to_owned(), &["-tls1_2"]),
        ("rsa 1024", SELF_SIGNED.to_owned(), &["-tls1_3"]),
        ("rsa 512", SELF_SIGNED.to_owned(), &["-tls1_2"]),
        ("ec secp521r1", SELF_SIGNED.to_owned(), &["-tls1_2"]),
        ("ec secp521r1", SELF_SIGNED.to_owned(), &["-tls1_3"]),
        ("ec prime256v1", SELF_SIGNED.to_owned(), &["-groups", "P-521"]),
        ("rsa 2048", with("-sha1"), &[]),
        ("rsa 2048", with("-md5"), &[]),
        ("rsa 2048", SELF_SIGNED.to_owned(), &["-tls1_2", "-sigalgs", "RSA+SHA1"]),
        ("ec prime256v1", SELF_SIGNED.to_owned(), &["-tls1_2", "-sigalgs", "ECDSA+SHA1"]),
        ("RSA-PSS", SELF_SIGNED.to_owned(), &["-tls1_3"]),
        ("ed25519", SELF_SIGNED.to_owned(), &[]),
        ("ed448", SELF_SIGNED.to_owned(), &["-tls1_3"]),
        ("rsa 2048", with("-addext 1.2.3.4=critical,DER:FFFF"), &[]),
        ("rsa 2048", with("-addext subjectAltName=DER:0500 -addext basicConstraints=DER:00"), &[]),
        ("ec prime256v1", with("-addext extendedKeyUsage=codeSigning"), &[]),
        ("ec prime256v1", trusted.sign("DNS:else.test", ""), &[]),
        ("ec prime256v1", trusted.sign_between("20200101000000Z", "20210101000000Z"), &[]),
        ("ec prime256v1", trusted.sign_between("20600101000000Z", "20610101000000Z"), &[]),
    ];
    for (number, (kind, sign, arguments)) in cases.iter().enumerate() {
        let backend = OpensslServer::of(&format!("{}\n{sign}", key(kind)), arguments);
        assert_eq!(status(&stack, &format!("odd{number}.test"), &backend), 200, "{kind} {sign} {arguments:?}");
    }
    assert_eq!(stack.planb.count("planb_router_backend_markdead_total"), 0);
}

#[test]
fn a_certificate_that_does_not_convince_is_told_from_a_backend_that_is_not_there() {
    let trusted = Signer::new("ours");
    let stranger = Signer::new("theirs");
    let stack = trusted.stack(&[]);
    let version_1 = trusted.sign("IP:127.0.0.1", "").replace("-extfile extensions", "");
    let ours = trusted.sign("IP:127.0.0.1", "");
    let cases = [
        (
            "ec prime256v1",
            trusted.sign("DNS:else.test,IP:127.0.0.2", ""),
            "it is not for 127.0.0.1 but for else.test, 127.0.0.2",
        ),
        ("ec prime256v1", trusted.sign("email:a@else.test", ""), "it is not for 127.0.0.1 but for no name at all"),
        (
            "ec prime256v1",
            trusted.sign_between("20200101000000Z", "20210101000000Z"),
            "it expired on 2021-01-01T00:00:00Z",
        ),
        (
            "ec prime256v1",
            trusted.sign_between("20490101000000Z", "20491231000000Z"),
            "it is not valid before 2049-01-01",
        ),
        ("ec prime256v1", SELF_SIGNED.to_owned(), "it is self-signed"),
        ("ec prime256v1", stranger.sign("IP:127.0.0.1", ""), "its issuer is unknown"),
        ("rsa 2048", version_1, "it is X.509 of version 1"),
        ("rsa 1024", ours.clone(), "its RSA key has 1024 bits"),
        ("rsa 2048", trusted.sign("IP:127.0.0.1", "-sha1"), "signed with an algorithm that is not trusted"),
    ];
    for (number, (kind, sign, reason)) in (1..).zip(&cases) {
        let host = format!("bad{number}.test");
        let backend = OpensslServer::of(&format!("{}\n{sign}", key(kind)), &[]);
        assert_eq!(status(&stack, &host, &backend), 503, "{kind} {sign}");
        let line = stack.planb.wait_for_log(&format!("ERROR in {host} -> "));
        assert!(
            line.contains("the backend's certificate is not trusted: ") && line.contains(reason),
            "{reason}: {line}"
        );
        assert!(line.ends_with(" *DEAD*"), "{line}");
        assert_eq!(stack.planb.count(REFUSED), number, "{line}");
    }
    for (number, kind) in ["rsa 2048", "ec prime256v1", "ec secp384r1", "ec secp521r1", "ed25519"].iter().enumerate() {
        for version in ["-tls1_2", "-tls1_3"] {
            let backend = OpensslServer::of(&format!("{}\n{ours}", key(kind)), &[version]);
            assert_eq!(status(&stack, &format!("good{number}{version}.test"), &backend), 200, "{kind} {version}");
        }
    }
    assert_eq!(stack.planb.count(REFUSED), cases.len() as u64);
    assert_eq!(stack.planb.count("planb_router_backend_markdead_total"), cases.len() as u64);
}

#[test]
fn the_health_check_says_that_it_is_the_certificate() {
    let stack = Stack::start(&["--active-healthcheck"]);
    let backend = OpensslServer::of(&format!("{}\n{SELF_SIGNED}", key("ec prime256v1")), &[]);
    assert_eq!(status(&stack, "checked.test", &backend), 503);
    let found = "planb_health_checks_total{result=\"certificate\"}";
    wait_until("the check has found it", || stack.planb.count(found) > 0);
    assert_eq!(stack.planb.count("planb_health_checks_total{result=\"unreachable\"}"), 0);
}
