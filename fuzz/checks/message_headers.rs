//! Whatever lines a client sends, its backend gets a strict head with one framing, one host and our own lines once each, and
//! nothing that imitates them.

use std::net::{IpAddr, Ipv4Addr};

use bytes::BytesMut;
use planb::message::{
    Addressee, Framing, HeadReader, Known, Limits, Opening, Provenance, RequestHead, RequestRules, Target, headers,
};

const LIMITS: Limits = Limits { bytes: 8_192, lines: 60 };

/// Reads these bytes.
pub fn check(lines: &[u8]) {
    let text = [b"POST http://a.test/b?c HTTP/1.1\r\nHost: a.test\r\n", lines, b"\r\n\r\n"].concat();
    let Ok(Some(head)) = HeadReader::default().request(&mut BytesMut::from(&text[..]), LIMITS) else { return };
    let opening = Opening::of(&head);
    let (Ok(target), Ok(framing)) = (Target::of(&head, opening.as_ref()), Framing::of_request(&head)) else { return };
    let Ok(host) = target.host(&head) else { return };
    for addressee in [Addressee::Client(host), Addressee::Backend { name: b"name.internal", original: host }] {
        let provenance = Provenance::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080, false);
        let rules = RequestRules {
            provenance: &provenance,
            request_id: Some((b"X-Request-Id", headers::request_id(&head, b"x-request-id").unwrap_or(b"ours"))),
            opening: opening.as_ref(),
            certificate: Some(b"Hash=0"),
            via: Some(b"planb-0"),
            addressee,
        };
        let mut out = BytesMut::new();
        headers::write_request(&mut out, &head, &target, &rules, framing);
        let limits = Limits { bytes: usize::MAX, lines: usize::MAX };
        let read = HeadReader::default().request(&mut out, limits).unwrap().unwrap();
        assert!(out.is_empty());
        forwarded(&read, &addressee, framing, opening.is_some());
    }
}

fn forwarded(read: &RequestHead, addressee: &Addressee<'_>, framing: Framing, is_opening: bool) {
    assert_eq!((read.method(), read.target()), ("POST", &b"/b?c"[..]));
    assert_eq!(Framing::of_request(read), Ok(framing));
    for once in [Known::Host, Known::XForwardedFor, Known::XForwardedClientCert] {
        assert_eq!(read.all(once).count(), 1, "{once:?}");
    }
    assert_eq!(read.named(b"x-request-id").count(), 1);
    assert_eq!(read.first(Known::XForwardedClientCert), Some(&b"Hash=0"[..]));
    assert!(read.first(Known::XForwardedFor).is_some_and(|value| value.ends_with(b"127.0.0.1")));
    for said in [Known::XForwardedProto, Known::XForwardedProtocol, Known::XForwardedPort, Known::XRealIp] {
        assert!(read.first(said).is_some_and(|value| !value.is_empty()), "{said:?}");
    }
    match addressee {
        Addressee::Client(host) => assert_eq!(read.first(Known::Host), Some(*host)),
        Addressee::Backend { name, original } => {
            assert_eq!(read.first(Known::Host), Some(*name));
            for known in [Known::XHost, Known::XForwardedHost] {
                assert!(read.all(known).eq([*original]));
            }
        }
    }
    let is_about_us = [Known::Connection, Known::Upgrade].map(|known| read.all(known).count());
    assert_eq!(is_about_us, [usize::from(is_opening); 2]);
    for gone in [Known::Disguised, Known::KeepAlive, Known::ProxyConnection, Known::XDebugRouter] {
        assert!(!read.has(gone), "{gone:?}");
    }
}
