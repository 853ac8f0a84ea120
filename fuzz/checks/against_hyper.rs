//! A client's requests, one behind another, are the same requests to us and to hyper's server.
//!
//! Requests are smuggled where a backend reads others than the proxy did. Hyper reads with code that is not ours, and leniently
//! where we do not. What we take, it takes, and alike, but for what [`may_refuse`] and [`Expected`] list. What it takes and we
//! refuse is listed in [`is_our_strictness`]. Whatever is on no list is a fault of one of the two.

mod readings;

use hyper::{
    HeaderMap, Version as HyperVersion,
    header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING},
    http::request::Parts,
};
use planb::message::{
    ChunkError, Framing, FramingError, Limits, Line, ParseError, RequestHead, Target, TargetError, Version,
};
use readings::{End, Refusal, Their, our_reading, their_reading};

/// Reads these bytes.
pub fn check(stream: &[u8]) {
    if stream.len() > LONGEST {
        return;
    }
    let (ours, end) = our_reading(stream, LIMITS);
    let mut theirs = their_reading(stream).into_iter();
    for (index, our) in ours.iter().enumerate() {
        let Some(their) = theirs.next() else {
            let before = index.checked_sub(1).map(|before| &ours[before].head);
            assert!(may_refuse(&our.head) || before.is_some_and(has_overlooked_options), "hyper refuses {our:?}");
            return;
        };
        Expected::of(&our.head).check(&their.parts);
        match (&our.trailers, &their.trailers) {
            (Some(trailers), Some(others)) => {
                assert_eq!((&our.body, &header_map(trailers.lines())), (&their.body, others));
            }
            (Some(_), None) => panic!("hyper refuses the body of {our:?}"),
            (None, others) => {
                assert!(our.body.starts_with(&their.body) || their.body.starts_with(&our.body), "{our:?}: {their:?}");
                let reads_on = others.is_some() || their.body.len() > our.body.len();
                let is_meant = || matches!(&end, End::Refused(refusal) if is_our_strictness(refusal, &their));
                assert!(!reads_on || is_meant(), "{our:?}, then {end:?}: {their:?}");
            }
        }
    }
    match (end, theirs.next()) {
        (_, None) | (End::Opening | End::Refused(Refusal::Body(..)), _) => {}
        (End::Refused(refusal), Some(their)) => {
            assert!(is_our_strictness(&refusal, &their), "{refusal:?}: {their:?}");
        }
        (End::Close, Some(their)) => {
            let is_overlooked = ours.last().is_some_and(|last| has_overlooked_options(&last.head));
            assert!(is_overlooked, "hyper reads on: {their:?}");
        }
        (End::Missing, Some(their)) => panic!("hyper misses nothing of {their:?}"),
    }
}

/// Whether hyper may refuse a request that we take.
fn may_refuse(head: &RequestHead) -> bool {
    // It takes several lines of one length, but no list of them in one (RFC 9110 section 8.6).
    let is_list = values(head, "content-length").any(|value| value.contains(&b','));
    // It has other uses for the two largest numbers, and nobody has so many bytes.
    let is_largest = matches!(Framing::of_request(head), Ok(Framing::Length(length)) if length > u64::MAX - 2);
    is_list || is_largest || !fits_uri(head)
}

/// Whether hyper's type for targets holds this one. We pass on what clients send, byte for byte, which is more than RFC 3986 has.
fn fits_uri(head: &RequestHead) -> bool {
    let (authority, asked) = (Target::authority_of(head), asked(head));
    let (path, query) = asked.split_at(position(&asked, b'?').unwrap_or(asked.len()));
    let has = |part: &[u8], odd: &[u8]| part.iter().any(|byte| odd.contains(byte));
    // There, brackets stand around one address, and a name is not percent-encoded.
    let is_address = authority.starts_with(b"[") && count(authority, b'[') == 1 && count(authority, b']') == 1;
    let has_odd_brackets = has(authority, b"[]") && !is_address;
    let is_odd_name = has_odd_brackets || has(authority, b"%") || count(authority, b':') > 8;
    str::from_utf8(head.target()).is_ok() && !has(path, b"<>`") && !has(query, b"\"<>") && !is_odd_name
}

/// Whether hyper may miss that a connection is kept, or is not: it overlooks the options in a line with bytes beyond ASCII.
fn has_overlooked_options(head: &RequestHead) -> bool {
    values(head, "connection").any(|value| !value.is_ascii())
}

/// How hyper has a request that it takes as we do.
struct Expected<'a> {
    head: &'a RequestHead,
    asked: Vec<u8>,
    host: &'a [u8],
    headers: HeaderMap,
}

impl<'a> Expected<'a> {
    fn of(head: &'a RequestHead) -> Self {
        let mut asked = asked(head);
        // It leaves it to others that this is `*` (RFC 9112 section 3.2.4).
        if asked == b"*" && head.target() != b"*" {
            asked = b"/".to_vec();
        }
        let mut headers = header_map(head.lines());
        // Of several lines of one length it keeps the first.
        if let Some(first) = headers.remove(CONTENT_LENGTH) {
            headers.insert(CONTENT_LENGTH, first);
        }
        let host = Target::of(head, None).and_then(|target| target.host(head)).expect("a request that is taken");
        Self { head, asked, host, headers }
    }

    fn check(&self, their: &Parts) {
        let version = match their.version {
            HyperVersion::HTTP_10 => Version::Http10,
            _ => Version::Http11,
        };
        assert_eq!((self.head.method(), self.head.version()), (their.method.as_str(), version));
        let scheme = their.uri.scheme_str().unwrap_or_default();
        assert!(self.head.target()[..scheme.len()].eq_ignore_ascii_case(scheme.as_bytes()));
        let authority = their.uri.authority().map_or("", |authority| authority.as_str()).as_bytes();
        assert_eq!(Target::authority_of(self.head), authority);
        assert_eq!(self.host, their.headers.get(HOST).map_or(authority, HeaderValue::as_bytes));
        assert_eq!(self.asked, their.uri.path_and_query().unwrap().to_string().as_bytes());
        assert_eq!(self.headers, their.headers);
    }
}

/// Whether we refuse on purpose what hyper takes.
fn is_our_strictness(refusal: &Refusal<'_>, their: &Their) -> bool {
    let Parts { uri, headers, version, method, .. } = &their.parts;
    let authority = uri.authority().map_or(&b""[..], |authority| authority.as_str().as_bytes());
    match refusal {
        Refusal::Head(error, rest) => {
            let block = Block::of(rest);
            match error {
                // For it, an LF ends a line as well, as RFC 9112 section 2.2 allows.
                ParseError::LineEnd => block.has_bare_feed(),
                // It passes over any number of them.
                ParseError::EmptyLines => block.empty_lines > 4,
                // It cuts the fragment off.
                ParseError::Target => block.first_line().contains(&b'#'),
                ParseError::TooLong => block.lines.len() > LIMITS.bytes,
                ParseError::TooManyLines => block.count() > LIMITS.lines + 1,
                _ => false,
            }
        }
        Refusal::Framing(error, head) => match error {
            // It drops the length, as RFC 9112 section 6.1 allows.
            FramingError::LengthAndCoding => {
                values(head, "content-length").count() > 0 && headers.contains_key(TRANSFER_ENCODING)
            }
            // It takes the last one, and leaves the others to whoever answers.
            FramingError::Coding => {
                let codings = headers.get_all(TRANSFER_ENCODING);
                codings.iter().count() > 1 || codings.iter().any(|line| line.as_bytes().contains(&b','))
            }
            _ => false,
        },
        // It leaves it to whoever answers whom a request is for.
        Refusal::Target(error, head) => {
            let hosts: Vec<_> = headers.get_all(HOST).iter().map(HeaderValue::as_bytes).collect();
            match error {
                TargetError::Connect => method == "CONNECT",
                TargetError::Form => !head.target().starts_with(b"/") && uri.scheme().is_none(),
                TargetError::Scheme => uri.scheme_str().is_some_and(|scheme| !["http", "https"].contains(&scheme)),
                TargetError::TargetHost => !is_host(authority),
                TargetError::NoHost => hosts.is_empty() && *version == HyperVersion::HTTP_11,
                TargetError::TwoHosts => hosts.len() > 1,
                TargetError::Host => !is_host(hosts.first().copied().unwrap_or(authority)),
                TargetError::OtherHost => hosts.len() == 1 && !hosts[0].eq_ignore_ascii_case(authority),
            }
        }
        Refusal::Body(error, rest) => match error {
            // It looks for nothing but an LF in them.
            ChunkError::Extension => {
                let line = rest.strip_prefix(b"\r\n").unwrap_or(rest);
                let line = &line[..position(line, b'\r').unwrap_or(line.len())];
                line.contains(&b';') && line.iter().any(|&byte| byte < b' ' && byte != b'\t' || byte == 0x7F)
            }
            // It ends the section where a CR and LF are followed by another, and its lines where there is an LF.
            ChunkError::Trailers(ParseError::LineEnd) => Block::of(rest).has_bare_feed(),
            ChunkError::Trailers(ParseError::TooManyLines) => Block::of(rest).count() > 100,
            _ => false,
        },
    }
}

/// Whether this is a host, perhaps with a port.
fn is_host(text: &[u8]) -> bool {
    let end = if text.starts_with(b"[") { position(text, b']').map(|end| end + 1) } else { position(text, b':') };
    let (name, port) = text.split_at(end.or_else(|| position(text, b':')).unwrap_or(text.len()));
    let is_host_byte = |&byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%:[]".contains(&byte);
    name.iter().all(is_host_byte)
        && (port.is_empty() || port.starts_with(b":") && port[1..].iter().all(u8::is_ascii_digit))
}

/// Lines up to an empty one, as a reader finds them for whom an LF ends a line.
struct Block<'a> {
    whole: &'a [u8],
    /// How many empty lines stand before the first.
    empty_lines: usize,
    /// Without those, but with the one at the end.
    lines: &'a [u8],
}

impl<'a> Block<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        let is_empty = |line: &&[u8]| matches!(line, [b'\n'] | [b'\r', b'\n']);
        let lines = || bytes.split_inclusive(|&byte| byte == b'\n');
        let before: Vec<&[u8]> = lines().take_while(is_empty).collect();
        let start = before.concat().len();
        let length = lines().skip(before.len()).take_while(|line| !is_empty(line)).map(<[u8]>::len).sum::<usize>();
        let last = bytes[start + length..].iter().position(|&byte| byte == b'\n').map_or(0, |feed| feed + 1);
        let whole = &bytes[..start + length + last];
        Self { whole, empty_lines: before.len(), lines: &whole[start..] }
    }

    fn has_bare_feed(&self) -> bool {
        self.whole.split_inclusive(|&byte| byte == b'\n').any(|line| line.ends_with(b"\n") && !line.ends_with(b"\r\n"))
    }

    fn first_line(&self) -> &'a [u8] {
        self.lines.split(|&byte| byte == b'\n').next().unwrap_or_default()
    }

    /// How many lines there are, without the empty one.
    fn count(&self) -> usize {
        count(self.lines, b'\n').saturating_sub(1)
    }
}

/// The path and the query, or `*`.
fn asked(head: &RequestHead) -> Vec<u8> {
    Target::of(head, None).map(|target| target.parts().concat()).unwrap_or_default()
}

fn header_map<'a>(lines: impl Iterator<Item = Line<'a>>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in lines {
        map.append(HeaderName::from_bytes(line.name).unwrap(), HeaderValue::from_bytes(line.value).unwrap());
    }
    map
}

fn values<'a>(head: &'a RequestHead, name: &str) -> impl Iterator<Item = &'a [u8]> {
    head.lines().filter(move |line| line.name.eq_ignore_ascii_case(name.as_bytes())).map(|line| line.value)
}

fn position(bytes: &[u8], wanted: u8) -> Option<usize> {
    bytes.iter().position(|&byte| byte == wanted)
}

fn count(bytes: &[u8], wanted: u8) -> usize {
    memchr::memchr_iter(wanted, bytes).count()
}

/// Small, so that they are met.
const LIMITS: Limits = Limits { bytes: 512, lines: 20 };

/// Longer streams would meet limits that cannot be set: ours and hyper's, of extensions and trailers.
const LONGEST: usize = 16_384;
