//! What a request's head costs: reading it, and writing it for a backend; and the same for a response.

use std::{hint::black_box, net::IpAddr};

use bytes::BytesMut;
use criterion::Criterion;
use planb::message::{
    Addressee, Framing, HeadReader, Limits, Opening, Persistence, Provenance, RequestRules, ResponseRules, Target,
    Version, headers,
};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    heads(&mut criterion);
    criterion.final_summary();
}

fn heads(criterion: &mut Criterion) {
    let provenance = Provenance::new(IpAddr::from([10, 0, 0, 9]), 8989, false);
    let (mut buffer, mut out) = (BytesMut::new(), BytesMut::new());
    criterion.bench_function("a request of ten lines, read", |bencher| {
        bencher.iter(|| {
            buffer.reserve(1_024);
            buffer.extend_from_slice(black_box(REQUEST));
            HeadReader::default().request(&mut buffer, LIMITS).map(|head| head.map(|head| head.len()))
        });
    });
    criterion.bench_function("a request of ten lines, read and written for a backend", |bencher| {
        bencher.iter(|| {
            buffer.reserve(1_024);
            buffer.extend_from_slice(black_box(REQUEST));
            let Ok(Some(head)) = HeadReader::default().request(&mut buffer, LIMITS) else { return };
            let opening = Opening::of(&head);
            let (Ok(target), Ok(framing)) = (Target::of(&head, opening.as_ref()), Framing::of_request(&head)) else {
                return;
            };
            let Ok(host) = target.host(&head) else { return };
            let rules = RequestRules {
                provenance: &provenance,
                request_id: None,
                opening: opening.as_ref(),
                certificate: None,
                via: Some(b"planb-0123456789ab"),
                addressee: Addressee::Client(host),
            };
            out.clear();
            headers::write_request(&mut out, &head, &target, &rules, framing);
            black_box(&out);
        });
    });
    criterion.bench_function("a response of eight lines, read and written for a client", |bencher| {
        bencher.iter(|| {
            buffer.reserve(1_024);
            buffer.extend_from_slice(black_box(RESPONSE));
            let Ok(Some(head)) = HeadReader::default().response(&mut buffer, LIMITS) else { return };
            let Ok(framing) = Framing::of_response(false, &head) else { return };
            let persistence = Persistence::Unsaid;
            let rules = ResponseRules { version: Version::Http11, framing, persistence, lines: &[] };
            out.clear();
            headers::write_response(&mut out, &head, &rules);
            black_box(&out);
        });
    });
}

const LIMITS: Limits = Limits { bytes: 1 << 20, lines: 1_000 };

const REQUEST: &[u8] = b"GET /assets/app.js?version=17 HTTP/1.1\r\nHost: www.example.com\r\nConnection: keep-alive\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\nAccept: */*\r\n\
    Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nReferer: http://www.example.com/\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef\r\nIf-None-Match: \"0123456789abcdef\"\r\nCache-Control: max-age=0\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Thu, 26 Nov 2026 01:55:20 GMT\r\n\
    Content-Type: text/javascript\r\nContent-Length: 1234\r\nConnection: keep-alive\r\nVary: Accept-Encoding\r\n\
    ETag: \"0123456789abcdef\"\r\nCache-Control: max-age=3600\r\n\r\n";
