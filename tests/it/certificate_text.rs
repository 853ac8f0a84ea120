//! What a certificate's text may be: keys of all kinds, chains, and junk that harms only its own name.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{
    certificates::{Secure, hset},
    support::{Authority, Pair, redis_pipe, s_client, shown, wait_until},
};

const NAME: &str = "secure.site.test";

/// What a command prints, given this to read.
fn output(command: &str, input: &[u8]) -> Vec<u8> {
    let mut process = Command::new("sh")
        .args(["-ec", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // A command that makes something of nothing may have ended already.
    let _ = process.stdin.take().unwrap().write_all(input);
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success(), "{command}");
    output.stdout
}

#[test]
fn junk_harms_only_its_own_name() {
    let secure = Secure::start();
    let good = secure.install("good.site.test");
    let pair = secure.issue();
    let megabyte = vec![b'x'; 1 << 20];
    let binary: Vec<u8> = (0..=255).collect();
    let not_der = |kind: &str| format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n");
    let encrypted = output("openssl pkcs8 -topk8 -passout pass:secret", pair.key.as_bytes());
    let legacy = output("openssl ec -aes128 -passout pass:secret", pair.key.as_bytes());
    let public = output("openssl pkey -pubout", pair.key.as_bytes());
    let half = |text: &str| text.as_bytes()[..text.len() / 2].to_vec();
    let both = [Vec::new(), megabyte, binary, b"message".to_vec(), b"-----BEGIN ".to_vec()];
    let certificates = [half(&pair.certificate), pair.key.clone().into_bytes(), not_der("CERTIFICATE").into_bytes()];
    let keys = [half(&pair.key), pair.certificate.clone().into_bytes(), not_der("PRIVATE KEY").into_bytes(), encrypted];
    let keys = [&keys[..], &[legacy, public]].concat();
    let of = |field, values: Vec<Vec<u8>>| values.into_iter().map(move |value| (field, value));
    let junk = of("certificate", [&both[..], &certificates].concat()).chain(of("key", [&both[..], &keys].concat()));
    let junk: Vec<(&str, Vec<u8>)> = junk.collect();

    // With and without a pair before.
    let names: Vec<String> = (0..junk.len()).map(|number| format!("junk{number}.site.test")).collect();
    let keys: Vec<(String, String)> =
        names.iter().map(|name| (format!("tls:{name}"), format!("tls:new-{name}"))).collect();
    redis_pipe(&secure.stack.master, &keys.iter().map(|(name, _)| hset(name, &pair)).collect::<Vec<_>>());
    wait_until("they are served", || secure.loaded() == 1 + keys.len() as u64);
    for (number, ((name, new), (field, value))) in (1..).zip(keys.iter().zip(&junk)) {
        let mut whole = hset(new, &pair);
        whole[if *field == "key" { 5 } else { 3 }] = value;
        redis_pipe(&secure.stack.master, &[vec![b"HSET", name.as_bytes(), field.as_bytes(), value], whole]);
        // Of many at once, the log does not name each.
        wait_until("they are refused", || secure.refused() == 2 * number);
    }
    redis_pipe(&secure.stack.master, &[vec![b"HSET", b"tls:\xff\xfe", b"certificate", b"\xff", b"key", b"\xff"]]);
    secure.settle();
    for (name, (field, value)) in names.iter().zip(&junk) {
        let start = String::from_utf8_lossy(&value[..value.len().min(40)]);
        assert!(secure.serves(name, &pair), "{name}: {field} {start:?}");
        assert!(shown(&secure.authority, secure.address(), &format!("new-{name}")).is_none(), "{field} {start:?}");
        let complaints = (secure.complaints(name), secure.complaints(&format!("new-{name}")));
        assert_eq!(complaints, (1, 1), "{name}: {field} {start:?}");
    }
    assert!(secure.serves("good.site.test", &good));
    assert_eq!(secure.refused(), 2 * junk.len() as u64);
    assert_eq!(secure.stack.planb.count("planb_sync_resyncs_total"), 0);
}

#[test]
fn a_certificate_too_long_for_any_handshake_harms_only_its_own_name() {
    let secure = Secure::start();
    let good = secure.install("good.site.test");
    let long = secure.authority.issue_with(&["*.site.test"], &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
        // The length of a message has three bytes.
        let padding = rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 1], vec![0; 1 << 24]);
        params.custom_extensions.push(padding);
    });
    secure.offer("long.site.test", &long);
    for _ in 0..3 {
        assert!(shown(&secure.authority, secure.address(), "long.site.test").is_none());
        assert!(secure.serves("good.site.test", &good));
    }
}

#[test]
fn what_is_wrong_with_a_pair_is_said_without_its_content() {
    let secure = Secure::start();
    let pair = secure.issue();
    let in_one_line = pair.key.replace('\n', " ");
    let secret = pair.key.lines().nth(1).unwrap();
    let flood = format!("-----BEGIN {}", "x".repeat(1 << 20));
    for (name, certificate, key) in [
        ("cut.site.test", pair.certificate.as_str(), in_one_line.trim_end().trim_end_matches('-')),
        ("flood.site.test", &flood, &pair.key),
        ("label.site.test", &pair.certificate, &format!("-----BEGIN {secret}-----")),
    ] {
        secure.offer(name, &Pair { certificate: certificate.to_owned(), key: key.to_owned() });
        wait_until("it is said", || secure.complaints(name) == 1);
    }
    let log = secure.stack.planb.log().join("\n");
    let in_numbers = format!("{:?}", secret.as_bytes());
    assert!(!log.contains(secret) && !log.contains(in_numbers.trim_matches(['[', ']'])), "a private key is in the log");
    assert!(log.len() < 20_000, "the log has {} bytes", log.len());
}

#[test]
fn a_name_can_neither_forge_lines_of_the_log_nor_flood_it() {
    let secure = Secure::start();
    let over = secure.authority.issue_with(&["*.site.test"], &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
        params.not_after = (SystemTime::now() - Duration::from_hours(24)).into();
    });
    let mismatch = Pair { key: secure.issue().key, certificate: over.certificate.clone() };
    for pair in [over, mismatch] {
        for name in ["a\nforged", "a\rforged", &"long".repeat(25_000)] {
            secure.offer(name, &pair);
        }
    }
    assert_eq!((secure.loaded(), secure.refused()), (3, 3));
    // Ends of validity are looked at once a second, the soonest first.
    let soon = secure.authority.issue_with(&["*.site.test"], &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
        params.not_after = (SystemTime::now() + Duration::from_hours(24)).into();
    });
    soon.install(&secure.stack.master, "last.site.test");
    let is_last = |line: &String| line.contains("a certificate expires") && line.contains("last.site.test");
    wait_until("the last is warned of", || secure.stack.planb.log().iter().any(is_last));
    for line in secure.stack.planb.log() {
        assert!(!line.starts_with("forged") && !line.contains('\r'), "{line}");
        assert!(line.len() < 2_000, "a line has {} bytes", line.len());
    }
}

#[test]
fn keys_of_every_usual_kind_are_served() {
    const CURVE: &str = "openssl ecparam -genkey -name";
    let secure = Secure::start();
    let kinds = [
        ("openssl genrsa 2048".to_owned(), "BEGIN PRIVATE KEY"),
        ("openssl genrsa -traditional 2048".to_owned(), "BEGIN RSA PRIVATE KEY"),
        ("openssl genrsa -traditional 3072".to_owned(), "BEGIN RSA PRIVATE KEY"),
        (format!("{CURVE} prime256v1"), "BEGIN EC PARAMETERS"),
        (format!("{CURVE} prime256v1 -noout"), "BEGIN EC PRIVATE KEY"),
        (format!("{CURVE} secp384r1"), "BEGIN EC PARAMETERS"),
        (format!("{CURVE} secp384r1 -noout | openssl pkcs8 -topk8 -nocrypt"), "BEGIN PRIVATE KEY"),
        (format!("{CURVE} secp521r1 -noout"), "BEGIN EC PRIVATE KEY"),
        (format!("{CURVE} prime256v1 -noout | openssl ec -no_public"), "BEGIN EC PRIVATE KEY"),
        ("openssl genpkey -algorithm ed25519".to_owned(), "BEGIN PRIVATE KEY"),
    ];
    for (number, (command, begin)) in kinds.into_iter().enumerate() {
        let key = output(&command, b"");
        assert!(String::from_utf8_lossy(&key).contains(begin), "{command}");
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&key).unwrap();
        let path = file.path().display();
        // X.509 of the first version is what comes without extensions.
        let (version, sign) = match number % 2 {
            0 => (3, format!("openssl req -new -subj /CN={NAME} -x509 -key {path}")),
            _ => (1, format!("openssl req -new -subj /CN={NAME} -key {path} | openssl x509 -req -signkey {path}")),
        };
        let certificate = output(&sign, b"");
        let text = String::from_utf8(output("openssl x509 -noout -text", &certificate)).unwrap();
        assert!(text.contains(&format!("Version: {version} ")), "{text}");
        let [certificate, key] = [certificate, key].map(|text| String::from_utf8(text).unwrap());
        let pair = Pair { certificate, key };
        secure.offer(NAME, &pair);
        let what = format!("{command} of version {version} is served");
        wait_until(&what, || secure.chain(&["-servername", NAME]) == [pair.der()]);
    }
    assert_eq!(secure.refused(), 0);
}

#[test]
fn a_chain_is_sent_whole_and_text_around_it_does_no_harm() {
    let secure = Secure::start();
    let intermediate = secure.authority.intermediate();
    let leaf = intermediate.issue(&["*.site.test"]);
    let unrelated = Authority::new().intermediate().issue(&["*.else.test"]);
    let whole = format!("{}{}", leaf.certificate, intermediate.pem());
    let expected: Vec<_> = CertificateDer::pem_slice_iter(whole.as_bytes()).map(Result::unwrap).collect();
    let texts = [
        ("as it is", whole.clone(), leaf.key.clone()),
        ("no line end at the end", whole.trim_end().to_owned(), leaf.key.trim_end().to_owned()),
        ("line ends of an old Macintosh", whole.replace('\n', "\r"), leaf.key.replace('\n', "\r")),
        ("line ends that an environment variable ate", whole.replace('\n', " "), leaf.key.replace('\n', " ")),
        ("line ends spelt out", whole.replace('\n', "\\n"), leaf.key.replace('\n', "\\n")),
        ("a byte order mark", format!("\u{feff}{whole}"), format!("\u{feff}{}", leaf.key)),
        ("the certificate twice", format!("{}{whole}", leaf.certificate), leaf.key.clone()),
        ("the certificate last", format!("{}{}", intermediate.pem(), leaf.certificate), leaf.key.clone()),
        ("an unrelated certificate first", format!("{}{whole}", unrelated.certificate), leaf.key.clone()),
        ("all in the certificate's", format!("{whole}{}", leaf.key), String::new()),
        ("all in the key's", String::new(), format!("{}{whole}", leaf.key)),
        ("swapped", leaf.key.clone(), whole.clone()),
        ("line ends of Windows", whole.replace('\n', "\r\n"), leaf.key.replace('\n', "\r\n")),
        ("blank lines first", format!("\n \n\r\n{whole}\n\n"), format!("\n\n\t\n{}", leaf.key)),
        (
            "comments",
            format!("# of Tuesday\nBag Attributes\n  key: ü\n{}0 s:CN = b\n{}", leaf.certificate, intermediate.pem()),
            format!("subject=CN = a\n{}-----\nthe end", leaf.key),
        ),
        ("all in both", format!("{}{whole}", leaf.key), format!("{whole}{}", leaf.key)),
    ];
    for (number, (what, certificate, key)) in texts.into_iter().enumerate() {
        let name = format!("text{number}.site.test");
        secure.offer(&name, &Pair { certificate, key });
        wait_until(what, || secure.chain(&["-servername", &name]) == expected);
        assert!(secure.serves(&name, &leaf), "a client that knows the root alone: {what}");
    }
    assert_eq!(secure.refused(), 0);
}

#[test]
fn files_joined_without_a_line_end_do_not_lose_a_certificate() {
    let secure = Secure::start();
    let intermediate = secure.authority.intermediate();
    let leaf = intermediate.issue(&["*.site.test"]);
    let certificate = format!("{}{}", leaf.certificate.trim_end(), intermediate.pem());
    secure.offer(NAME, &Pair { certificate, key: leaf.key.clone() });
    wait_until("it is served whole", || secure.chain(&["-servername", NAME]).len() == 2);
}

#[test]
fn a_short_rsa_key_is_served_and_warned_of() {
    let secure = Secure::start();
    for (number, (bits, form)) in [(1024, ""), (1024, "-traditional"), (1536, ""), (2047, "")].into_iter().enumerate() {
        let name = format!("short{number}.site.test");
        let key = output(&format!("openssl genrsa {form} {bits}"), b"");
        let pair = self_signed(&key);
        secure.offer(&name, &pair);
        for version in ["-tls1_2", "-tls1_3"] {
            let arguments = ["-servername", &name, version, "-showcerts", "-cipher", "DEFAULT:@SECLEVEL=0"];
            let what = format!("RSA of {bits} bits is served with {version}");
            wait_until(&what, || {
                let said = s_client(secure.address(), &arguments, "");
                said.contains("Verify return code") && said.contains(pair.certificate.lines().nth(1).unwrap())
            });
        }
        let warning = secure.stack.planb.wait_for_log(&format!("fewer than 2048 certificate=\"tls:{name}\""));
        assert!(warning.contains(" WARN ") && warning.contains(&format!("its RSA key has {bits} bits")), "{warning}");
    }
    assert_eq!(secure.refused(), 0);
}

/// A certificate that a key has signed for itself.
fn self_signed(key: &[u8]) -> Pair {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(key).unwrap();
    let certificate = output(&format!("openssl req -x509 -new -subj /CN={NAME} -key {}", file.path().display()), b"");
    let [certificate, key] = [certificate, key.to_vec()].map(|text| String::from_utf8(text).unwrap());
    Pair { certificate, key }
}

#[test]
fn what_cannot_be_served_is_named_for_what_it_is_and_the_previous_pair_stays() {
    const CURVE: &str = "openssl ecparam -genkey -noout -name";
    let secure = Secure::start();
    let pair = secure.issue();
    let dsa =
        "openssl genpkey -genparam -algorithm DSA -pkeyopt dsa_paramgen_bits:1024 > $0; openssl genpkey -paramfile $0";
    let dsa = dsa.replace("$0", &tempfile::NamedTempFile::new().unwrap().path().display().to_string());
    let keys = [
        ("openssl pkcs8 -topk8 -passout pass:secret".to_owned(), "the private key is encrypted"),
        ("openssl ec -aes128 -passout pass:secret".to_owned(), "the private key is encrypted"),
        ("openssl genrsa -traditional -aes128 -passout pass:secret 2048".to_owned(), "the private key is encrypted"),
        ("openssl pkey -pubout".to_owned(), "this is a public key"),
        ("openssl pkey -outform der".to_owned(), "the private key is DER"),
        ("openssl genrsa 512".to_owned(), "the private key is RSA of 512 bits"),
        (dsa.clone(), "DSA keys are not supported"),
        (format!("{dsa} | openssl dsa"), "DSA keys are not supported"),
        ("openssl genpkey -algorithm ed448".to_owned(), "Ed448 keys are not supported"),
        ("openssl genpkey -algorithm x25519".to_owned(), "key exchange keys are not supported"),
        ("openssl genpkey -algorithm RSA-PSS".to_owned(), "RSASSA-PSS keys are not supported"),
        (format!("{CURVE} secp256k1"), "ECDSA (of this curve) keys are not supported"),
        (format!("{CURVE} secp256k1 | openssl pkcs8 -topk8 -nocrypt"), "ECDSA (of this curve) keys are not supported"),
        (format!("{CURVE} secp256k1 -param_enc explicit"), "ECDSA (of a curve without a name) keys are not supported"),
        ("sed 's/ PRIVATE/ OPENSSH PRIVATE/'".to_owned(), "OpenSSH keys are not supported"),
        (format!("{CURVE} prime256v1"), "the private key is not the certificate's"),
        ("echo /etc/planb/site.key".to_owned(), "the private key is not PEM"),
        ("true".to_owned(), "there is no private key"),
    ];
    let request = "openssl req -new -subj /CN=x -key /dev/stdin";
    let certificates = [
        (request.to_owned(), "this is a certificate request"),
        ("openssl pkey".to_owned(), "there is a private key where the certificate belongs"),
        (format!("{request} -x509 | openssl crl2pkcs7 -nocrl -certfile /dev/stdin"), "this is a PKCS#7 bundle"),
        (format!("{request} -x509 | openssl x509 -outform der"), "the certificate is DER"),
    ];
    let of = |field: &'static str, cases: &[(String, &'static str)]| -> Vec<(&str, Vec<u8>, &str)> {
        cases.iter().map(|(command, reason)| (field, output(command, pair.key.as_bytes()), *reason)).collect()
    };
    for (number, (field, value, reason)) in
        [of("key", &keys), of("certificate", &certificates)].concat().into_iter().enumerate()
    {
        let name = format!("named{number}.site.test");
        pair.install(&secure.stack.master, &name);
        secure.wait_for(&name, &pair);
        secure.set(&name, field, &value);
        wait_until(&format!("{reason} is said"), || secure.complaints(&name) == 1);
        let is_said = |line: &String| {
            line.contains(&format!("tls:{name}")) && line.contains(&format!("cannot be served: {reason}"))
        };
        let log = secure.stack.planb.log();
        assert!(
            log.iter().any(|line| is_said(line) && line.contains("; the previous one stays in service")),
            "{reason}: {log:?}"
        );
        assert!(secure.serves(&name, &pair), "{reason}");
    }
}
