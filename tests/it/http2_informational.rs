//! Informational responses over HTTP/2 (RFC 9110 section 15.2).

use super::{
    http2::{Site, get, with},
    http2_bodies::pattern,
    support::Backend,
};

#[test]
fn informational_responses_are_passed_on_before_the_final_one() {
    let backend = Backend::start(|exchange| {
        exchange.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n");
        exchange.send("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 110 Unheard Of\r\nX-Odd: 1\r\n\r\n");
        exchange.answer("200 OK", "Link: </final>\r\n", b"done");
        true
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    for _ in 0..3 {
        let mut stream = client.begin(get("/hints"));
        let early: Vec<_> = (0..3).map(|_| stream.informational().unwrap()).collect();
        assert_eq!([103, 102, 110], [early[0].status, early[1].status, early[2].status]);
        let all = |name: &str| early[0].headers.iter().filter(|(own, _)| own == name).count();
        assert_eq!((all("link"), all("x-hop"), all("connection")), (2, 0, 0), "{:?}", early[0]);
        assert_eq!(early[2].header("x-odd"), Some("1"));
        let response = stream.response();
        assert_eq!((response.status, response.header("link"), response.text()), (200, Some("</final>"), "done".into()));
    }
    let lines = site.lines("GET /hints ", 3);
    assert!(lines.iter().all(|line| line.contains("HTTP/2.0\" 200 4 ")), "{lines:#?}");
}

#[test]
fn a_client_waits_for_its_backend_to_say_that_it_may_go_on() {
    let backend = Backend::start(|exchange| {
        if exchange.head.contains(" /never ") {
            exchange.answer("417 Expectation Failed", "", b"no");
            return true;
        }
        exchange.send("HTTP/1.1 100 Continue\r\n\r\n");
        let body = exchange.read_body();
        exchange.answer("200 OK", "", &body);
        true
    });
    let site = Site::start(&[], &[&backend.url()]);
    let mut client = site.connect();
    for length in [Some(200_000), None] {
        let mut request = with("POST", "/go-on").header("expect", "100-continue");
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let mut stream = client.open(request.body(()).unwrap());
        assert_eq!(stream.informational().unwrap().status, 100);
        stream.send(pattern(200_000));
        stream.finish();
        assert_eq!(stream.response().body, pattern(200_000));
    }
    let mut stream = client.open(with("POST", "/never").header("expect", "100-continue").body(()).unwrap());
    assert_eq!(stream.response().status, 417);
    assert!(backend.requests()[0].contains("\r\nExpect: 100-continue"), "{}", backend.requests()[0]);
}
