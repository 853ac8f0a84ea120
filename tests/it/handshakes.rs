//! TLS handshakes, with the clients that people have.

use std::io::{Read, Write};

use super::support::{Authority, Backend, Planb, Stack, connect_tls, curl, redis_pair, s_client, shown, wait_until};

const NAME: &str = "secure.test";

/// A stack that serves [`NAME`] over TLS, with a certificate from Redis.
fn secured(arguments: &[&str]) -> (Stack, Authority, Backend) {
    let stack = Stack::start(&[&["--tls-listen=127.0.0.1:0"], arguments].concat());
    let (authority, backend) = (Authority::new(), Backend::echo());
    authority.issue(&[NAME]).install(&stack.master, NAME);
    stack.list(NAME, &[&backend.url()]);
    stack.planb.wait_for_log("a certificate is put into service");
    (stack, authority, backend)
}

/// What `openssl s_client` reports of a handshake.
fn handshake(stack: &Stack, arguments: &[&str]) -> String {
    s_client(stack.planb.tls_address(), &[&["-servername", NAME], arguments].concat(), "")
}

#[test]
fn curl_is_served_over_every_version_of_http() {
    for (engine, versions) in [
        ("native", [("--http1.0", "1"), ("--http1.1", "1.1"), ("--http2", "2")]),
        ("fasthttp", [("--http1.0", "1"), ("--http1.1", "1.1"), ("--http2", "1.1")]),
    ] {
        let (stack, authority, _backend) = secured(&["--engine", engine]);
        for (flag, version) in versions {
            let arguments = [flag, "--write-out", "\n%{http_version}"];
            let output = curl(&authority, stack.planb.tls_address(), NAME, "/path?query", &arguments);
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.starts_with("GET /path?query HTTP/1.1\r\n"), "{text} {output:?}");
            assert!(text.contains("\r\nX-Forwarded-Proto: https\r\n"), "{text}");
            assert!(text.ends_with(&format!("\n{version}")), "{engine} {flag}: {text}");
        }
    }
}

#[test]
fn the_default_preset_offers_two_versions_of_tls_and_forward_secrecy_only() {
    let (stack, ..) = secured(&[]);
    let said = handshake(&stack, &["-tls1_3"]);
    assert!(said.contains("New, TLSv1.3, Cipher is TLS_"), "{said}");
    let said = handshake(&stack, &["-tls1_2"]);
    assert!(said.contains("New, TLSv1.2, Cipher is ECDHE-ECDSA-"), "{said}");
    for refused in [&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"][..], &["-tls1", "-cipher", "ALL:@SECLEVEL=0"]] {
        let said = handshake(&stack, refused);
        assert!(said.contains("Cipher is (NONE)"), "{refused:?}: {said}");
    }
    for cipher in ["ECDHE-ECDSA-AES128-SHA", "AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-SHA384"] {
        let said = handshake(&stack, &["-tls1_2", "-cipher", &format!("{cipher}:@SECLEVEL=0")]);
        assert!(said.contains("Cipher is (NONE)"), "{cipher}: {said}");
    }
    let result = |result: &str| {
        stack.planb.count(&format!("planb_tls_handshakes_total{{result=\"{result}\",version=\"none\"}}"))
    };
    wait_until("the refusals are counted", || result("incompatible") == 5);
}

#[test]
fn the_strict_preset_offers_tls_1_3_alone() {
    let (stack, ..) = secured(&["--tls-preset=strict"]);
    assert!(handshake(&stack, &["-tls1_3"]).contains("New, TLSv1.3"));
    assert!(handshake(&stack, &["-tls1_2"]).contains("Cipher is (NONE)"));
}

#[test]
fn presets_that_promise_more_than_there_is_say_so() {
    let (stack, ..) = secured(&["--tls-preset=old"]);
    stack.planb.wait_for_log("TLS 1.0 and 1.1 and weaker ciphers are not offered");
    assert!(handshake(&stack, &["-tls1_2"]).contains("New, TLSv1.2"));
    let (stack, ..) = secured(&["--tls-preset=intermediate"]);
    assert!(handshake(&stack, &["-tls1_2"]).contains("New, TLSv1.2"));
    assert!(!stack.planb.log().iter().any(|line| line.contains("weaker ciphers")));
}

#[test]
fn an_unknown_name_is_refused_by_its_own_alert() {
    let (stack, authority, _backend) = secured(&[]);
    let said = s_client(stack.planb.tls_address(), &["-servername", "else.test"], "");
    assert!(said.contains("alert number 112") || said.contains("unrecognized name"), "{said}");
    let said = s_client(stack.planb.tls_address(), &["-noservername"], "");
    assert!(said.contains("alert number 112") || said.contains("unrecognized name"), "{said}");
    assert!(shown(&authority, stack.planb.tls_address(), "else.test").is_none());
    let refused = "planb_tls_handshakes_total{result=\"no_certificate\",version=\"none\"}";
    wait_until("they are counted", || stack.planb.count(refused) == 3);
}

#[test]
fn a_client_that_stalls_is_closed_at_the_deadline() {
    let (stack, authority, _backend) = secured(&["--client-read-header-timeout=300ms"]);
    let mut silent = std::net::TcpStream::connect(stack.planb.tls_address()).unwrap();
    let mut half = std::net::TcpStream::connect(stack.planb.tls_address()).unwrap();
    half.write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
    for socket in [&mut silent, &mut half] {
        let mut rest = Vec::new();
        // Closing with bytes unread may reset the connection.
        let _ = socket.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    }
    let late = "planb_tls_handshakes_total{result=\"timeout\",version=\"none\"}";
    wait_until("both are counted", || stack.planb.count(late) == 2);
    assert!(shown(&authority, stack.planb.tls_address(), NAME).is_some());
}

#[test]
fn plain_http_on_the_tls_port_is_told_so() {
    let (stack, ..) = secured(&[]);
    let mut client = super::support::Client::connect(stack.planb.tls_address());
    let response = client.get(NAME, "/");
    assert_eq!(response.status, 400);
    assert!(response.text().contains("use https"), "{}", response.text());
    let mut client = super::support::Client::connect(stack.planb.tls_address());
    client.send([0, 1, 2, 3]);
    assert!(client.ends_silently());
}

#[test]
fn tls_alone_is_served_where_plain_http_is_disabled() {
    let (master, replica) = redis_pair();
    let planb = Planb::builder(&replica, &master).arguments(&["--listen=disabled", "--tls-listen=127.0.0.1:0"]).start();
    let (authority, backend) = (Authority::new(), Backend::named("here"));
    authority.issue(&["*.alone.test"]).install(&master, "*.alone.test");
    super::support::redis(&master, &["RPUSH", "frontend:a.alone.test", "id", &backend.url()]);
    wait_until("it is served", || curl(&authority, planb.tls_address(), "a.alone.test", "/", &[]).stdout == b"here");
}

/// How many of so many connections, one after the other, one to each address in turn, resumed a session.
fn resumed(authority: &Authority, addresses: &[std::net::SocketAddr], count: usize) -> usize {
    let config = authority.client(&["http/1.1"]);
    let mut resumed = 0;
    for address in addresses.iter().cycle().take(count) {
        let mut stream = connect_tls(&config, *address, NAME).unwrap();
        resumed += usize::from(stream.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed));
        // Tickets come after the handshake.
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
    resumed
}

#[test]
fn a_session_is_resumed_on_the_instance_that_made_its_ticket() {
    let (stack, authority, _backend) = secured(&[]);
    assert_eq!(resumed(&authority, &[stack.planb.tls_address()], 5), 4);
    assert_eq!(stack.planb.count("planb_tls_resumptions_total"), 4);
    assert_eq!(stack.planb.count("planb_tls_ticket_keys_shared"), 0);
    for version in ["-tls1_2", "-tls1_3"] {
        let said = handshake(&stack, &[version, "-reconnect"]);
        let reused = said.matches("Reused, TLSv1.").count();
        assert!(version == "-tls1_3" || reused == 5, "{said}");
    }
}

/// A second instance beside a stack's.
fn sibling(stack: &Stack, arguments: &[&str]) -> Planb {
    let arguments = [&["--tls-listen=127.0.0.1:0"], arguments].concat();
    Planb::builder(&stack.replica, &stack.master).arguments(&arguments).start()
}

fn shares(planb: &Planb) {
    wait_until("ticket keys are shared", || planb.count("planb_tls_ticket_keys_shared") == 1);
}

#[test]
fn a_session_is_resumed_on_another_instance_that_has_the_secret() {
    const SECRET: &str = "--tls-ticket-secret=correct horse battery staple";
    let (stack, authority, _backend) = secured(&[SECRET]);
    let other = sibling(&stack, &[SECRET]);
    let stranger = sibling(&stack, &["--tls-ticket-secret=another secret altogether"]);
    let private = sibling(&stack, &[]);
    shares(&stack.planb);
    shares(&other);
    shares(&stranger);
    let address = stack.planb.tls_address();
    assert_eq!(resumed(&authority, &[address, other.tls_address()], 6), 5);
    assert_eq!(resumed(&authority, &[address, private.tls_address()], 2), 0);
    assert_eq!(resumed(&authority, &[address, stranger.tls_address()], 2), 0);
    stranger.wait_for_log("under another --tls-ticket-secret");

    // A key is kept sealed: none of its 48 bytes' neighbours tell anything, and no field is as short as a bare key.
    let kept = super::support::redis_cli(&stack.master, &["HKEYS", "planb:tickets"]);
    assert_eq!(kept.lines().count(), 4, "two periods of two secrets: {kept}");
    assert!(!kept.contains("horse"));
}

#[test]
fn ticket_keys_are_rotated_and_let_go() {
    const FLAGS: [&str; 2] = ["--tls-ticket-secret=correct horse battery staple", "--tls-ticket-rotation=1s"];
    let (stack, authority, _backend) = secured(&FLAGS);
    let other = sibling(&stack, &FLAGS);
    shares(&stack.planb);
    shares(&other);
    let names = || -> Vec<String> {
        let kept = super::support::redis_cli(&stack.master, &["HKEYS", "planb:tickets"]);
        kept.lines().map(str::to_owned).collect()
    };
    let first = names();
    wait_until("the first keys are gone", || names().iter().all(|name| !first.contains(name)));
    assert!(names().len() <= 6, "{:?}", names());
    let addresses = [stack.planb.tls_address(), other.tls_address()];
    assert_eq!(resumed(&authority, &addresses, 4), 3);

    stack.master.command(&["DEL", "planb:tickets"]).unwrap();
    wait_until("keys are shared anew", || names().len() >= 2);
    wait_until("sessions go on", || resumed(&authority, &addresses, 2) == 1);
}

#[test]
fn tickets_survive_the_loss_of_the_write_redis() {
    const SECRET: &str = "--tls-ticket-secret=correct horse battery staple";
    let (mut stack, authority, _backend) = secured(&[SECRET, "--tls-ticket-rotation=2s"]);
    let other = sibling(&stack, &[SECRET, "--tls-ticket-rotation=2s"]);
    shares(&stack.planb);
    shares(&other);
    stack.master.kill();
    wait_until("the loss is noticed", || stack.planb.count("planb_tls_ticket_keys_shared") == 0);
    assert_eq!(resumed(&authority, &[stack.planb.tls_address()], 2), 1);
    stack.planb.wait_for_log("session tickets cannot be shared");
}

#[test]
fn a_certificate_folder_that_is_not_there_ends_the_start() {
    let (master, replica) = redis_pair();
    let mut planb = Planb::builder(&replica, &master)
        .arguments(&["--tls-listen=127.0.0.1:0", "--load-certificates-from=/nonexistent/certificates"])
        .spawn();
    assert_eq!(planb.wait_for_exit().code(), Some(1));
    let log = planb.log();
    let ours: Vec<&String> = log.iter().filter(|line| line.starts_with("planb: ")).collect();
    assert!(ours.len() == 1 && ours[0].contains("/nonexistent/certificates"), "{log:?}");
}

mod client_certificates {
    use std::process::Command;

    use super::*;

    struct Clients {
        ours: Authority,
        folder: tempfile::TempDir,
    }

    impl Clients {
        fn new() -> Self {
            let (ours, folder) = (Authority::new(), tempfile::tempdir().unwrap());
            std::fs::write(folder.path().join("ca.pem"), ours.pem()).unwrap();
            Self { ours, folder }
        }

        fn flag(&self) -> String {
            format!("--tls-client-ca={}", self.folder.path().join("ca.pem").display())
        }

        /// What the backend receives from curl with a certificate that `authority` signed for `name`.
        fn ask(&self, stack: &Stack, server: &Authority, authority: &Authority, name: &str) -> String {
            let pair = authority.issue_with(&[], &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
                params.distinguished_name.push(rcgen::DnType::CommonName, name);
            });
            pair.write(self.folder.path(), "client");
            let file = |name: &str| self.folder.path().join(name).display().to_string();
            let (certificate, key) = (file("client.crt"), file("client.key"));
            let arguments = ["--cert", &certificate, "--key", &key, "-H", "X-Forwarded-Client-Cert: forged"];
            let output = curl(server, stack.planb.tls_address(), NAME, "/", &arguments);
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
    }

    #[test]
    fn the_verified_subject_is_passed_on() {
        let clients = Clients::new();
        let (stack, server, _backend) = secured(&[&clients.flag()]);
        let head = clients.ask(&stack, &server, &clients.ours, "client, \"one\"");
        let line = head.lines().find(|line| line.starts_with("X-Forwarded-Client-Cert: ")).unwrap_or_default();
        assert!(line.contains("Hash=") && line.ends_with(";Subject=\"CN=client\\, \\22one\\22\""), "{head}");
        assert_eq!(head.matches("X-Forwarded-Client-Cert").count(), 1);

        assert_eq!(clients.ask(&stack, &server, &Authority::new(), "stranger"), "");
        let output = curl(&server, stack.planb.tls_address(), NAME, "/", &[]);
        assert!(output.stdout.is_empty() && !output.status.success());
        let refused = "planb_tls_handshakes_total{result=\"client_certificate\",version=\"none\"}";
        wait_until("the refusals are counted", || stack.planb.count(refused) == 2);
    }

    #[test]
    fn where_it_is_optional_a_client_without_one_is_served() {
        let clients = Clients::new();
        let (stack, server, _backend) = secured(&[&clients.flag(), "--tls-client-auth=optional"]);
        let output = curl(&server, stack.planb.tls_address(), NAME, "/", &["-H", "X-Forwarded-Client-Cert: forged"]);
        let head = String::from_utf8_lossy(&output.stdout);
        assert!(head.starts_with("GET / ") && !head.contains("Client-Cert"), "{head}");
        assert!(clients.ask(&stack, &server, &clients.ours, "known").contains("Subject=\"CN=known\""));
        assert_eq!(clients.ask(&stack, &server, &Authority::new(), "stranger"), "");
    }

    #[test]
    fn a_client_cannot_say_who_it_is_where_nobody_asks() {
        let (stack, server, _backend) = secured(&[]);
        let forged = ["-H", "X-Forwarded-Client-Cert: forged"];
        let output = curl(&server, stack.planb.tls_address(), NAME, "/", &forged);
        assert!(!String::from_utf8_lossy(&output.stdout).contains("forged"));
        let mut client = stack.planb.connect();
        client.send(format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nX-Forwarded-Client-Cert: forged\r\n\r\n"));
        assert!(!client.response().text().contains("forged"));
    }

    #[test]
    fn authorities_are_read_again_on_hup_and_old_sessions_end_with_them() {
        let clients = Clients::new();
        let (stack, server, _backend) = secured(&[&clients.flag()]);
        assert!(clients.ask(&stack, &server, &clients.ours, "one").contains("CN=one"));
        let others = Authority::new();
        std::fs::write(clients.folder.path().join("ca.pem"), others.pem()).unwrap();
        stack.planb.signal("HUP");
        wait_until("the new authority counts", || clients.ask(&stack, &server, &others, "two").contains("CN=two"));
        assert_eq!(clients.ask(&stack, &server, &clients.ours, "one"), "");

        std::fs::write(clients.folder.path().join("ca.pem"), "junk").unwrap();
        stack.planb.signal("HUP");
        stack.planb.wait_for_log("client certificates are verified as before");
        assert!(clients.ask(&stack, &server, &others, "two").contains("CN=two"));

        // A pipe that nobody writes to holds nothing up.
        let pipe = clients.folder.path().join("ca.pem");
        std::fs::remove_file(&pipe).unwrap();
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        stack.planb.signal("HUP");
        stack.planb.wait_for_log("it is not a regular file");
        assert!(clients.ask(&stack, &server, &others, "two").contains("CN=two"));
    }

    #[test]
    fn an_unusable_file_of_authorities_ends_the_start() {
        let (master, replica) = redis_pair();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("junk.pem");
        std::fs::write(&file, "junk").unwrap();
        let pipe = folder.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [file.display().to_string(), pipe.display().to_string(), "/nonexistent/ca.pem".to_owned()] {
            let flag = format!("--tls-client-ca={path}");
            let arguments = ["--tls-listen=127.0.0.1:0", &flag];
            let mut planb = Planb::builder(&replica, &master).arguments(&arguments).spawn();
            assert_eq!(planb.wait_for_exit().code(), Some(1));
            let log = planb.log();
            assert!(log.iter().any(|line| line.starts_with("planb: ") && line.contains(&path)), "{log:?}");
        }
    }
}
