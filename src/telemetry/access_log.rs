//! One line a request, in Hipache's format.

use std::{
    cell::RefCell,
    io::Write,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::Lines;

/// Everything that a line says.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The address of the client's end of the connection.
    pub client: IpAddr,
    /// The request's method.
    pub method: &'a [u8],
    /// The path, without its query.
    pub path: &'a [u8],
    /// `HTTP/1.1`.
    pub protocol: &'a [u8],
    /// The response's status.
    pub status: u16,
    /// Bytes of the response's body that were handed to the client's connection.
    pub body_bytes: u64,
    /// The Referer header; empty if there is none.
    pub referer: &'a [u8],
    /// The User-Agent header; empty if there is none.
    pub user_agent: &'a [u8],
    /// The header that carries request ids; empty if none is configured.
    pub request_id_header: &'a str,
    /// The request's id.
    pub request_id: &'a [u8],
    /// The frontend key that matched; empty if none did.
    pub frontend: &'a str,
    /// X-Forwarded-For as the client sent it.
    pub forwarded_for: &'a [u8],
    /// From the request's head to the response's last byte.
    pub total: Duration,
    /// From choosing the backend to its response head.
    pub backend: Duration,
}

/// The access log. Cloning shares it.
#[derive(Clone, Debug)]
pub struct AccessLog {
    lines: Lines,
}

impl AccessLog {
    /// A log that writes to `lines`.
    pub fn new(lines: Lines) -> Self {
        Self { lines }
    }

    /// Whether entries go anywhere.
    pub fn is_on(&self) -> bool {
        self.lines.is_on()
    }

    /// Queues an entry, dated now.
    pub fn write(&self, entry: &Entry<'_>) {
        if self.is_on() {
            self.lines.write(format(entry, SystemTime::now()));
        }
    }
}

fn format(entry: &Entry<'_>, time: SystemTime) -> Vec<u8> {
    let mut line = Vec::with_capacity(256);
    let prefix = if entry.client.is_ipv4() { "::ffff:" } else { "" };
    line.extend_from_slice(prefix.as_bytes());
    put(&mut line, format_args!("{} - - [", entry.client));
    put_time(&mut line, time);
    line.extend_from_slice(b"] \"");
    put_escaped(&mut line, entry.method);
    line.push(b' ');
    put_escaped(&mut line, entry.path);
    line.push(b' ');
    put_escaped(&mut line, entry.protocol);
    put(&mut line, format_args!("\" {} {} \"", entry.status, entry.body_bytes));
    put_escaped(&mut line, entry.referer);
    line.extend_from_slice(b"\" \"");
    put_escaped(&mut line, entry.user_agent);
    put(&mut line, format_args!("\" \"{}:", entry.request_id_header));
    put_escaped(&mut line, entry.request_id);
    line.extend_from_slice(b"\" \"");
    put_escaped(&mut line, entry.frontend.as_bytes());
    line.extend_from_slice(b"\" \"");
    put_escaped(&mut line, entry.forwarded_for);
    put(&mut line, format_args!("\" {:.3} {:.3}", entry.total.as_secs_f64(), entry.backend.as_secs_f64()));
    line
}

fn put(line: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    line.write_fmt(arguments).expect("writing to memory cannot fail");
}

/// Appends text from strangers such that it can neither end its field nor its line: quotes and backslashes get a backslash,
/// control characters and bytes that are not UTF-8 become `\xNN`.
pub fn put_escaped(line: &mut Vec<u8>, text: &[u8]) {
    if text.iter().all(|&byte| (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\') {
        line.extend_from_slice(text);
        return;
    }
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' | '\\' => put(line, format_args!("\\{character}")),
                _ if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') => {
                    for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                        put(line, format_args!("\\x{byte:02x}"));
                    }
                }
                _ => put(line, format_args!("{character}")),
            }
        }
        for byte in chunk.invalid() {
            put(line, format_args!("\\x{byte:02x}"));
        }
    }
}

/// Appends `22/Nov/2026:05:17:06 +0000`. Each thread formats a second once.
fn put_time(line: &mut Vec<u8>, time: SystemTime) {
    thread_local! {
        static CACHED: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    CACHED.with_borrow_mut(|(second, text)| {
        if *second != seconds {
            let timestamp = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
            *text = timestamp.unwrap_or_default().strftime("%d/%b/%Y:%H:%M:%S +0000").to_string();
            *second = seconds;
        }
        line.extend_from_slice(text.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;

    fn entry() -> Entry<'static> {
        Entry {
            client: IpAddr::from([10, 1, 2, 3]),
            method: b"GET",
            path: b"/path",
            protocol: b"HTTP/1.1",
            status: 200,
            body_bytes: 42,
            referer: b"http://ref/",
            user_agent: b"curl/8",
            request_id_header: "X-Request-Id",
            request_id: b"abc",
            frontend: "*.example.com",
            forwarded_for: b"1.2.3.4, 5.6.7.8",
            total: Duration::from_micros(12_345),
            backend: Duration::from_micros(10_499),
        }
    }

    fn at() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_795_324_626)
    }

    fn text(entry: &Entry<'_>) -> String {
        String::from_utf8(format(entry, at())).unwrap()
    }

    #[test]
    fn a_line_has_hipaches_form() {
        assert_eq!(
            text(&entry()),
            "::ffff:10.1.2.3 - - [22/Nov/2026:05:17:06 +0000] \"GET /path HTTP/1.1\" 200 42 \"http://ref/\" \"curl/8\" \
             \"X-Request-Id:abc\" \"*.example.com\" \"1.2.3.4, 5.6.7.8\" 0.012 0.010"
        );
    }

    #[test]
    fn only_ipv4_clients_are_prefixed() {
        let line = text(&Entry { client: IpAddr::from(Ipv6Addr::LOCALHOST), ..entry() });
        assert!(line.starts_with("::1 - - "), "{line}");
    }

    #[test]
    fn a_client_cannot_end_its_field_or_line() {
        let line = text(&Entry { user_agent: b"a\" 500 0\\\n::ffff:6.6.6.6\x00\xff\xc2\x85", ..entry() });
        assert!(line.contains("\"a\\\" 500 0\\\\\\x0a::ffff:6.6.6.6\\x00\\xff\\xc2\\x85\""), "{line}");
    }

    proptest! {
        #[test]
        fn no_text_can_forge_a_line(agent in proptest::collection::vec(any::<u8>(), 0..60)) {
            let line = text(&Entry { user_agent: &agent, ..entry() });
            prop_assert!(!line.chars().any(char::is_control));
            // Outside of escapes there are exactly the format's own quotes.
            let unescaped = line.replace("\\\\", "").replace("\\\"", "");
            prop_assert_eq!(unescaped.matches('"').count(), 12);
        }
    }
}
