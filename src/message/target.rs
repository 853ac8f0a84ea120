//! What a request asks for, and of which host (RFC 9112 section 3.2).

use super::{
    head::{RequestHead, Version},
    known::Known,
    websocket::Opening,
};

/// What a request asks for, in the form that a backend gets: the origin form, or `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// What must be written before the rest: a slash where an absolute form had none.
    prefix: &'static [u8],
    /// Path and query, byte for byte.
    rest: &'a [u8],
    /// Of the absolute form.
    authority: Option<Authority<'a>>,
}

/// Whom the absolute form asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Authority<'a> {
    text: &'a [u8],
    default_port: &'static [u8],
}

/// Why a request is for nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// A CONNECT that opens no WebSocket.
    #[error("CONNECT is not supported")]
    Connect,
    /// Neither a path nor a URL, nor the `*` of an OPTIONS.
    #[error("the target is neither a path nor a URL")]
    Form,
    /// A URL of something else.
    #[error("the target's scheme is not http")]
    Scheme,
    /// A URL whose host cannot be one.
    #[error("the target's host is malformed")]
    TargetHost,
    /// HTTP/1.1 must say it.
    #[error("there is no Host header")]
    NoHost,
    /// Which of them counts?
    #[error("there is more than one Host header")]
    TwoHosts,
    /// What no host can be.
    #[error("the host is malformed")]
    Host,
    /// A URL of one host, and the header of another.
    #[error("the target's host is not the Host header's")]
    OtherHost,
}

impl<'a> Target<'a> {
    /// The target of a request. `opening` is what in it asks for a WebSocket, which a CONNECT may do.
    pub fn of(head: &'a RequestHead, opening: Option<&Opening>) -> Result<Self, TargetError> {
        if head.method() == "CONNECT" && !opening.is_some_and(Opening::is_connect) {
            return Err(TargetError::Connect);
        }
        let is_options = head.method() == "OPTIONS";
        match head.target() {
            origin @ [b'/', ..] => Ok(Self { prefix: b"", rest: origin, authority: None }),
            b"*" if is_options => Ok(Self { prefix: b"", rest: b"*", authority: None }),
            target => Self::of_absolute(target, is_options),
        }
    }

    fn of_absolute(target: &'a [u8], is_options: bool) -> Result<Self, TargetError> {
        let colon = memchr::memmem::find(target, b"://").ok_or(TargetError::Form)?;
        let scheme = &target[..colon];
        let default_port: &[u8] = match scheme {
            _ if scheme.eq_ignore_ascii_case(b"http") => b"80",
            _ if scheme.eq_ignore_ascii_case(b"https") => b"443",
            _ => return Err(TargetError::Scheme),
        };
        let after = &target[colon + 3..];
        let (text, rest) = after.split_at(memchr::memchr2(b'/', b'?', after).unwrap_or(after.len()));
        if text.is_empty() {
            return Err(TargetError::TargetHost);
        }
        let (prefix, rest): (&[u8], &[u8]) = match rest {
            // RFC 9112 section 3.2.4.
            [] if is_options => (b"", b"*"),
            [b'/', ..] => (b"", rest),
            _ => (b"/", rest),
        };
        Ok(Self { prefix, rest, authority: Some(Authority { text, default_port }) })
    }

    /// The path that a request asks for, without the query, for whoever only wants to name it: whatever there is where the
    /// target is none that could be answered, and the host of a CONNECT.
    pub fn path_of(head: &'a RequestHead) -> &'a [u8] {
        let target = head.target();
        let rest = match Self::of_absolute(target, false) {
            Ok(absolute) if absolute.rest.is_empty() => absolute.prefix,
            Ok(absolute) => absolute.rest,
            Err(_) => target,
        };
        &rest[..memchr::memchr(b'?', rest).unwrap_or(rest.len())]
    }

    /// The host that an absolute form names, for whoever only wants to name it; empty for any other.
    pub fn authority_of(head: &'a RequestHead) -> &'a [u8] {
        let absolute = Self::of_absolute(head.target(), false).ok();
        absolute.and_then(|absolute| absolute.authority).map_or(b"", |authority| authority.text)
    }

    /// Its two parts, to be written one after the other.
    pub fn parts(&self) -> [&[u8]; 2] {
        [self.prefix, self.rest]
    }

    /// The path, without the query.
    pub fn path(&self) -> &'a [u8] {
        let path = &self.rest[..memchr::memchr(b'?', self.rest).unwrap_or(self.rest.len())];
        if path.is_empty() { self.prefix } else { path }
    }

    /// The host that the request is for, as sent. A request that two readers could understand differently is refused.
    pub fn host(&self, head: &'a RequestHead) -> Result<&'a [u8], TargetError> {
        let mut lines = head.all(Known::Host);
        let line = lines.next();
        if lines.next().is_some() {
            return Err(TargetError::TwoHosts);
        }
        let host = match (line, self.authority) {
            (Some(host), _) => host,
            (None, _) if head.version() == Version::Http11 => return Err(TargetError::NoHost),
            (None, Some(authority)) => authority.text,
            // RFC 9113 section 8.3.1.
            (None, None) if head.version() == Version::Http2 => return Err(TargetError::NoHost),
            (None, None) => b"",
        };
        let parsed = HostAndPort::parse(host).ok_or(TargetError::Host)?;
        if let Some(Authority { text, default_port }) = self.authority {
            let asked = HostAndPort::parse(text).ok_or(TargetError::TargetHost)?;
            if !asked.without_port(default_port).is_same(parsed.without_port(default_port)) {
                return Err(TargetError::OtherHost);
            }
        }
        Ok(host)
    }
}

/// A host, taken apart. A trailing dot of the name is not kept.
#[derive(Clone, Copy)]
struct HostAndPort<'a> {
    name: &'a [u8],
    /// With its colon, or nothing.
    port: &'a [u8],
}

impl<'a> HostAndPort<'a> {
    fn parse(text: &'a [u8]) -> Option<Self> {
        if !text.iter().all(|&byte| is_host_byte(byte)) {
            return None;
        }
        let bracket = if text.first() == Some(&b'[') { memchr::memchr(b']', text) } else { None };
        let end = bracket.map(|end| end + 1).or_else(|| memchr::memchr(b':', text)).unwrap_or(text.len());
        let (name, port) = text.split_at(end);
        let is_port = match port {
            [] => true,
            [b':', digits @ ..] => digits.iter().all(u8::is_ascii_digit),
            _ => false,
        };
        is_port.then(|| Self { name: name.strip_suffix(b".").unwrap_or(name), port })
    }

    fn without_port(self, default: &[u8]) -> Self {
        if self.port.strip_prefix(b":") == Some(default) { Self { port: b"", ..self } } else { self }
    }

    fn is_same(self, other: Self) -> bool {
        self.name.eq_ignore_ascii_case(other.name) && self.port == other.port
    }
}

/// RFC 3986's characters of hosts and ports: unreserved, sub-delims, percent, and the brackets and colons of addresses.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%:[]".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::RequestHeadBuilder;

    fn head(line: &str, hosts: &[&str]) -> RequestHead {
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let version = if words.next() == Some("1.0") { Version::Http10 } else { Version::Http11 };
        let mut builder = RequestHeadBuilder::new(version, method.as_bytes(), target.as_bytes());
        for host in hosts {
            builder.push(b"Host", host.as_bytes());
        }
        builder.build().unwrap()
    }

    /// What is asked for, and of whom.
    fn asked(line: &str, hosts: &[&str]) -> Result<(String, String), TargetError> {
        let head = head(line, hosts);
        let target = Target::of(&head, None)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Ok((text(&target.parts().concat()), text(target.host(&head)?)))
    }

    /// RFC 9112 sections 3.2.1, 3.2.2 and 3.2.4.
    #[test]
    fn a_target_is_reduced_to_what_a_backend_gets() {
        for (line, expected, path) in [
            ("GET /", "/", "/"),
            ("GET //double//slashes//?a?b", "//double//slashes//?a?b", "//double//slashes//"),
            ("GET /a://b", "/a://b", "/a://b"),
            ("GET http://a.test/a?b=//c", "/a?b=//c", "/a"),
            ("GET HTTPS://A.test/a", "/a", "/a"),
            ("GET http://a.test", "/", "/"),
            ("GET http://a.test?q", "/?q", "/"),
            ("OPTIONS http://a.test", "*", "*"),
            ("OPTIONS http://a.test/", "/", "/"),
            ("OPTIONS http://a.test?q", "/?q", "/"),
            ("OPTIONS *", "*", "*"),
        ] {
            assert_eq!(asked(line, &["a.test"]).unwrap(), (expected.to_owned(), "a.test".to_owned()), "{line}");
            assert_eq!(Target::of(&head(line, &[]), None).unwrap().path(), path.as_bytes(), "{line}");
        }
        for (line, error) in [
            ("GET *", TargetError::Form),
            ("GET path", TargetError::Form),
            ("GET a.test:80", TargetError::Form),
            ("GET ftp://a.test/", TargetError::Scheme),
            ("GET ://a.test/", TargetError::Scheme),
            ("GET http:///path", TargetError::TargetHost),
            ("GET http://user@a.test/", TargetError::TargetHost),
            ("GET http://a.test:80:80/", TargetError::TargetHost),
            ("CONNECT a.test:443", TargetError::Connect),
            ("CONNECT /", TargetError::Connect),
        ] {
            assert_eq!(asked(line, &["a.test"]), Err(error), "{line}");
        }
    }

    /// RFC 9112 section 3.2.
    #[test]
    fn a_request_has_one_host() {
        let host = |line: &str, hosts: &[&str]| asked(line, hosts).map(|(_, host)| host);
        for sent in ["a.test", "A.Test.", "a.test:8080", "[::1]:80", "[::1]", "", "a.test:"] {
            assert_eq!(host("GET /", &[sent]).as_deref(), Ok(sent));
        }
        for wrong in ["a b", "a/b", "user@a", "a:80x", "a:1:2", "[::1]80", "\u{e9}", "a,b c"] {
            assert_eq!(host("GET /", &[wrong]), Err(TargetError::Host), "{wrong}");
        }
        assert_eq!(host("GET /", &[]), Err(TargetError::NoHost));
        assert_eq!(host("GET http://a.test/", &[]), Err(TargetError::NoHost));
        assert_eq!(host("GET /", &["a.test", "a.test"]), Err(TargetError::TwoHosts));
        assert_eq!(host("GET / 1.0", &[]).as_deref(), Ok(""));
        assert_eq!(host("GET http://a.test/ 1.0", &[]).as_deref(), Ok("a.test"));
        assert_eq!(host("GET / 1.0", &["a.test", "b.test"]), Err(TargetError::TwoHosts));
    }

    /// RFC 9112 section 3.2.2.
    #[test]
    fn an_absolute_target_and_the_host_are_one() {
        for (target, sent, is_one) in [
            ("http://a.test/", "a.test:80", true),
            ("http://a.test:80/", "A.TEST", true),
            ("https://a.test:443/", "a.test.", true),
            ("http://[::1]:80", "[::1]", true),
            ("http://a.test:81/", "a.test:81", true),
            ("https://a.test:80/", "a.test", false),
            ("http://a.test:81/", "a.test", false),
            ("http://a.test/", "a.test:443", false),
            ("http://a.test/", "b.test", false),
            ("http://a.test/", "", false),
            ("http://a.test:/", "a.test", false),
        ] {
            let expected = if is_one { Ok(sent.to_owned()) } else { Err(TargetError::OtherHost) };
            assert_eq!(asked(&format!("GET {target}"), &[sent]).map(|(_, host)| host), expected, "{target} and {sent}");
        }
    }

    #[test]
    fn http_2_may_name_its_host_in_either_way() {
        let builder = || RequestHeadBuilder::from_parts(Version::Http2, b"GET", b"https", b"a.test", b"/a?b");
        for head in [builder(), builder().line(b"host", b"a.test"), builder().line(b"host", b"A.test:443")] {
            let head = head.build().unwrap();
            let target = Target::of(&head, None).unwrap();
            assert_eq!(target.parts().concat(), b"/a?b");
            assert!(target.host(&head).unwrap().to_ascii_lowercase().starts_with(b"a.test"));
        }
        let other = builder().line(b"host", b"b.test").build().unwrap();
        assert_eq!(Target::of(&other, None).unwrap().host(&other), Err(TargetError::OtherHost));
        let all =
            RequestHeadBuilder::from_parts(Version::Http2, b"OPTIONS", b"https", b"a.test", b"*").build().unwrap();
        assert_eq!(Target::of(&all, None).unwrap().parts().concat(), b"*");
    }
}
