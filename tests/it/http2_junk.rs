//! HTTP/2 from clients that mean harm, or do not know what they are doing.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use h2::{Reason, client::Builder};
use rustls::{ClientConnection, StreamOwned};

use super::{
    http2::{NAME, Site, get, to},
    http2_limits::slow,
    support::{Backend, Http2, connect_tls, wait_until},
};

#[test]
fn heads_beyond_the_limits_are_refused_and_the_connection_goes_on() {
    let backend = slow();
    let site = Site::start(&["--max-headers=50", "--max-header-size=16384"], &[&backend.url()]);
    let mut client = site.connect();
    let lines = |count| (0..count).fold(to("/"), |request, number| request.header(format!("x-{number}"), "1"));
    assert_eq!(client.ask(lines(50).body(()).unwrap()).status, 200);
    assert_eq!(client.ask(lines(51).body(()).unwrap()).status, 431);
    let wide = |size| to("/").header("x-wide", "x".repeat(size)).body(()).unwrap();
    assert_eq!(client.ask(wide(15_000)).status, 200);
    assert_eq!(client.ask(wide(17_000)).status, 431);
    for size in [100_000, 1_000_000] {
        if let Ok(mut stream) = site.connect().try_begin(wide(size), true)
            && let Ok(response) = stream.try_head()
        {
            assert_eq!(response.status, 431, "{size}");
        }
    }
    assert_eq!(client.ask(get("/")).status, 200);
    assert_eq!(backend.requests().len(), 3);
    site.is_well();
}

#[test]
fn large_heads_of_many_streams_have_a_limit_together() {
    let (backend, gate) = Backend::holding();
    let site = Site::start(&["--max-header-size=16384", "--workers=1"], &[&backend.url()]);
    let mut client = site.connect();
    let wide = || to("/held").header("x-wide", "x".repeat(9_000)).body(()).unwrap();
    let mut held: Vec<_> = (0..3).map(|_| client.begin(wide())).collect();
    let count = || backend.requests().iter().filter(|head| head.contains("/held")).count();
    wait_until("three are held", || count() == 3);
    assert_eq!(client.ask(wide()).status, 431);
    let mut other = site.connect();
    held.push(other.begin(wide()));
    wait_until("another connection has its own", || count() == 4);
    gate.open();
    for stream in &mut held {
        assert_eq!(stream.response().status, 200);
    }
    assert_eq!(client.ask(wide()).status, 200, "what is answered is forgotten");
}

#[test]
fn rapid_resets_disturb_nobody() {
    let backend = slow();
    let site = Site::start(&["--workers=1"], &[&backend.url()]);
    let mut other = site.connect();
    let mut settings = Builder::new();
    settings.initial_max_send_streams(100_000).max_concurrent_reset_streams(100_000);
    let mut attacks = 0;
    for _ in 0..4 {
        let mut client = Http2::with(&settings, &site.authority, site.stack.planb.tls_address(), NAME);
        for _ in 0..2_500 {
            let Ok(mut stream) = client.try_begin(get("/never"), true) else { break };
            stream.reset(Reason::CANCEL);
            attacks += 1;
        }
        assert_eq!(other.ask(get("/")).text(), "ok");
    }
    assert!(attacks >= 4, "{attacks}");
    // What reached the backend is given up as well.
    wait_until("they are all forgotten", || site.stack.planb.count("planb_reverseproxy_connections_current_open") == 1);
    assert_eq!(other.ask(get("/")).text(), "ok");
    site.is_well();
}

/// A connection whose every frame the test makes.
pub struct Raw(StreamOwned<ClientConnection, TcpStream>);

impl Raw {
    /// After the preface and the settings.
    pub fn connect(site: &Site) -> Self {
        let mut raw = Self::bare(site);
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        raw.send(&frame(SETTINGS, 0, 0, &[]));
        raw
    }

    /// Before them.
    pub fn bare(site: &Site) -> Self {
        let config = site.authority.client(&["h2"]);
        let stream = connect_tls(&config, site.stack.planb.tls_address(), NAME).unwrap();
        stream.sock.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self(stream)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    /// The proxy may have closed the connection.
    fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)?;
        self.0.flush()
    }

    /// The next frame's type, flags, stream and payload.
    fn frame(&mut self) -> io::Result<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head)?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload)?;
        Ok((kind, flags, u32::from_be_bytes(stream), payload))
    }

    /// How the proxy answers stream 1: by a status, or by refusing to.
    pub fn verdict(&mut self) -> Verdict {
        self.verdict_of(1)
    }

    pub fn verdict_of(&mut self, asked: u32) -> Verdict {
        loop {
            match self.frame() {
                Ok((HEADERS, _, stream, block)) if stream == asked => return Verdict::Status(status(&block)),
                Ok((RST_STREAM, _, stream, _)) if stream == asked => return Verdict::Reset,
                Ok((GO_AWAY, ..)) => return Verdict::Closed,
                Ok(_) => {}
                Err(error) => {
                    assert!(!matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "no answer");
                    return Verdict::Closed;
                }
            }
        }
    }

    /// Waits until the proxy has closed the connection.
    pub fn until_closed(&mut self) {
        loop {
            if let Err(error) = self.frame() {
                assert!(
                    !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
                    "it is still open"
                );
                return;
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Status(u16),
    Reset,
    Closed,
}

/// The status of a header block, which begins with it. Of those outside of the static table (RFC 7541 appendix A) we send
/// none here.
fn status(block: &[u8]) -> u16 {
    // A change of the table's size may come first.
    match block.iter().find(|&&byte| byte & 0xE0 != 0x20) {
        Some(0x88) => 200,
        Some(0x8C) => 400,
        _ => 0,
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block of literals that enter no table (RFC 7541 section 6.2.2).
pub fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const PLAIN: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "https"), (":authority", NAME), (":path", "/")];

#[test]
fn malformed_heads_are_refused_and_reach_no_backend() {
    let backend = Backend::echo();
    let site = Site::start(&[], &[&backend.url()]);
    let ask = |head: &[(&str, &str)]| {
        let mut raw = Raw::connect(&site);
        raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields(head)));
        raw.verdict()
    };
    assert_eq!(ask(&PLAIN), Verdict::Status(200));
    assert_eq!(ask(&[(":method", "OPTIONS"), PLAIN[1], PLAIN[2], (":path", "*")]), Verdict::Status(200));
    assert!(backend.requests()[1].starts_with("OPTIONS * HTTP/1.1\r\n"), "{:?}", backend.requests());
    let known = backend.requests().len();
    for line in [
        ("connection", "close"),
        ("connection", "x-forwarded-for"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("X-Upper", "1"),
        ("x y", "1"),
        ("x:y", "1"),
        ("", "1"),
        ("x-split", "a\r\nx-smuggled: 1"),
        ("x-null", "a\0b"),
        (":path", "/again"),
        (":late", "1"),
        (":status", "200"),
        ("content-length", "5"),
    ] {
        let verdict = ask(&[&PLAIN[..], &[line]].concat());
        assert_ne!(verdict, Verdict::Status(200), "{line:?}");
    }
    for (name, value) in [
        (":path", ""),
        (":path", "no-slash"),
        (":path", "/a b"),
        (":path", "/a\r\nx-smuggled: 1"),
        (":path", "/ HTTP/1.1\r\nx-smuggled: 1\r\n"),
        (":path", "https://other.test/"),
        (":method", ""),
        (":method", "GET /smuggled HTTP/1.1\r\n"),
        (":method", "G T"),
        (":scheme", ""),
        (":scheme", "ftp"),
        (":authority", ""),
        (":authority", "http2.test/path"),
        (":authority", "user@http2.test"),
        (":authority", "http2.test\r\nx-smuggled: 1"),
        (":authority", "http2.test:port"),
        (":authority", "a b"),
    ] {
        let head: Vec<_> = PLAIN.iter().map(|&(own, was)| (own, if own == name { value } else { was })).collect();
        assert_ne!(ask(&head), Verdict::Status(200), "{name} {value:?}");
    }
    for missing in [":method", ":scheme", ":path"] {
        let head: Vec<_> = PLAIN.into_iter().filter(|(name, _)| *name != missing).collect();
        assert_ne!(ask(&head), Verdict::Status(200), "without {missing}");
    }
    let reached = backend.requests().split_off(known);
    assert!(reached.is_empty(), "{reached:#?}");
    site.is_well();
}

/// As in HTTP/1. The library drops a fragment, and puts a slash before a query.
#[test]
fn junk_and_floods_end_their_connection_at_most() {
    let backend = slow();
    let site = Site::start(&["--workers=1"], &[&backend.url()]);
    let mut other = site.connect();
    let before = site.stack.planb.metric("process_resident_memory_bytes");

    for junk in [&b"GET / HTTP/1.1\r\nHost: http2.test\r\n\r\n"[..], &[0xFF; 100], b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"]
    {
        let mut raw = Raw::bare(&site);
        let _ = raw.try_send(junk);
        raw.until_closed();
    }
    let plain = fields(&PLAIN);
    for frames in [
        [0xFF; 64].to_vec(),
        frame(DATA, 0, 1, b"to nobody"),
        frame(HEADERS, END_STREAM | END_HEADERS, 2, &plain),
        frame(HEADERS, END_STREAM | END_HEADERS, 0, &plain),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0x80]),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xBF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]),
        frame(CONTINUATION, END_HEADERS, 1, &plain),
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 0]),
        [frame(WINDOW_UPDATE, 0, 0, &[0x7F, 0xFF, 0xFF, 0xFF]), frame(WINDOW_UPDATE, 0, 0, &[0x7F, 0xFF, 0xFF, 0xFF])]
            .concat(),
        frame(SETTINGS, 0, 0, &[0, 4, 0xFF, 0xFF, 0xFF, 0xFF]),
        frame(SETTINGS, 0, 0, &[1]),
        frame(PING, 0, 0, &[1]),
        frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]),
        [frame(HEADERS, END_STREAM, 1, &plain), frame(PING, 0, 0, &[0; 8])].concat(),
        frame(DATA, 0, 1, &vec![0; 20_000]),
    ] {
        let mut raw = Raw::connect(&site);
        let _ = raw.try_send(&frames);
        raw.until_closed();
    }
    assert!(backend.requests().is_empty());

    let floods: [(Vec<u8>, Vec<u8>); 6] = [
        (frame(HEADERS, END_STREAM, 1, &plain), frame(CONTINUATION, 0, 1, &fields(&[("x", "y")]).repeat(2_000))),
        (frame(HEADERS, END_STREAM, 1, &plain), frame(CONTINUATION, 0, 1, &[])),
        (Vec::new(), frame(PING, 0, 0, &[0; 8])),
        (Vec::new(), frame(SETTINGS, 0, 0, &[])),
        (frame(HEADERS, END_HEADERS, 1, &plain), frame(DATA, 0, 1, &[])),
        (Vec::new(), frame(0xEE, 0, 0, &[0; 1000])),
    ];
    for (opening, flood) in &floods {
        let mut raw = Raw::connect(&site);
        let _ = raw.try_send(opening);
        // Nothing is read, so that answers pile up. As many as the connection stands, up to some megabytes.
        let many = flood.repeat(65_536 / flood.len() + 1);
        raw.0.sock.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        for _ in 0..100 {
            if raw.try_send(&many).is_err() {
                break;
            }
        }
        assert_eq!(other.ask(get("/")).text(), "ok");
    }
    let grown = site.stack.planb.metric("process_resident_memory_bytes") - before;
    assert!(grown < 40e6, "{grown} bytes more are in memory");
    wait_until("their connections are gone", || {
        site.stack.planb.count("planb_reverseproxy_connections_current_open") == 1
    });
    site.is_well();
}

#[test]
fn a_connection_of_frames_that_carry_nothing_is_closed_and_not_written_about() {
    let backend = slow();
    let site = Site::start(&["--workers=1"], &[&backend.url()]);
    for empty in
        [frame(PING, 1, 0, &[7; 8]), frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[]), frame(0xFA, 0, 0, b"junk")]
    {
        let floods = site.stack.planb.count("planb_reverseproxy_http2_floods_total");
        let mut raw = Raw::connect(&site);
        raw.send(&empty.repeat(900));
        raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields(&PLAIN)));
        assert_eq!(raw.verdict(), Verdict::Status(200), "not yet");
        let all = empty.repeat(50_000);
        // The proxy stops reading somewhere in between.
        let _ = all.chunks(4_096).try_for_each(|piece| raw.try_send(piece));
        raw.until_closed();
        wait_until("it is counted", || site.stack.planb.count("planb_reverseproxy_http2_floods_total") == floods + 1);
    }
    let log = site.stack.planb.log();
    assert!(log.len() < 20, "{} lines: {log:#?}", log.len());
    site.is_well();
}
