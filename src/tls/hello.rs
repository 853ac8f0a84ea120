//! The name that a TLS connection asks for, read in passing.
//!
//! A connection that is passed through is routed by the server name in its client hello (RFC 6066 section 3), which
//! travels in the clear. The bytes are only looked at: the caller keeps them and sends them on as they came, and the
//! backend is the judge of everything that is not read here. What is read is read strictly, because a hello that two
//! readers understand differently could reach a backend that its name does not lead to.

/// What the first message of a TLS connection says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The host that is asked for: a lower-case DNS name without a trailing dot. `None` if the client names none.
    pub server_name: Option<String>,
}

/// Why a connection does not begin with a usable client hello. It is always the client's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The first bytes are no TLS handshake record; those of SSL 2.0 are not either.
    #[error("the connection does not speak TLS")]
    NotTls,
    /// A record that is empty or too long, or that is no handshake record in the midst of the hello.
    #[error("a TLS record is illegal")]
    Record,
    /// The first handshake message is something else.
    #[error("the TLS handshake does not begin with a client hello")]
    NotClientHello,
    /// The message is longer, or in more pieces, than this proxy cares to hold.
    #[error("the client hello is too long")]
    TooLong,
    /// The lengths inside the message contradict one another, or the protocol.
    #[error("the client hello is malformed")]
    Malformed,
    /// Two server name extensions, or two host names in one.
    #[error("the client hello names two servers")]
    TwoNames,
    /// The server name is no DNS name.
    #[error("the server name is no DNS name")]
    Name,
}

/// Follows a connection's first bytes to the end of its client hello, across reads and records.
///
/// Each byte is looked at once when it comes, and once more when the message is complete.
#[derive(Debug, Default)]
pub struct HelloReader {
    /// How many bytes of the current record's header have arrived; back at 0 once it is complete.
    header: usize,
    /// The first byte of the current record's length.
    length_high: u8,
    /// How many bytes of the current record are yet to come. Not 0 between a record's header and its end only.
    fragment: usize,
    /// How many records have begun.
    records: usize,
    /// The handshake message as far as it has arrived, without what the records put around it.
    message: Vec<u8>,
}

impl HelloReader {
    /// How many bytes of a connection are looked at, at the most.
    pub const LONGEST: usize = LONGEST_MESSAGE + MOST_RECORDS * RECORD_HEADER;

    /// Looks at the next bytes. `Ok(None)` when more are needed, which is never so after more than
    /// [`HelloReader::LONGEST`] bytes. Bytes after the hello are not looked at. An answer is final: there is nothing to
    /// read after it.
    pub fn read(&mut self, mut bytes: &[u8]) -> Result<Option<ClientHello>, HelloError> {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.fragment == 0 {
                self.read_header(first)?;
                bytes = rest;
                continue;
            }
            let missing = self.message_length()? - self.message.len();
            let (part, rest) = bytes.split_at(missing.min(self.fragment).min(bytes.len()));
            self.message.extend_from_slice(part);
            self.fragment -= part.len();
            bytes = rest;
            if self.message.len() == self.message_length()? {
                return parse(&self.message[MESSAGE_HEADER..]).map(Some);
            }
        }
        Ok(None)
    }

    /// Takes one byte of a record's header (RFC 8446 section 5.1). The minor version means nothing there.
    fn read_header(&mut self, byte: u8) -> Result<(), HelloError> {
        match self.header {
            0 if self.records == MOST_RECORDS => return Err(HelloError::TooLong),
            0 if byte != HANDSHAKE => return Err(self.stranger()),
            0 => self.records += 1,
            1 if byte != MAJOR_VERSION => return Err(self.stranger()),
            3 => self.length_high = byte,
            4 => {
                let length = u16::from_be_bytes([self.length_high, byte]).into();
                if !(1..=LONGEST_RECORD).contains(&length) {
                    return Err(HelloError::Record);
                }
                self.fragment = length;
            }
            _ => {}
        }
        self.header = (self.header + 1) % RECORD_HEADER;
        Ok(())
    }

    /// What a record is that is no TLS handshake record.
    fn stranger(&self) -> HelloError {
        if self.message.is_empty() { HelloError::NotTls } else { HelloError::Record }
    }

    /// How long the message is with its header (RFC 8446 section 4), as far as it has told yet.
    fn message_length(&self) -> Result<usize, HelloError> {
        match self.message[..] {
            [kind, ..] if kind != CLIENT_HELLO => Err(HelloError::NotClientHello),
            [_, high, middle, low, ..] => {
                let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                if length > LONGEST_MESSAGE - MESSAGE_HEADER {
                    return Err(HelloError::TooLong);
                }
                Ok(MESSAGE_HEADER + length)
            }
            _ => Ok(MESSAGE_HEADER),
        }
    }
}

/// Reads a client hello of any version (RFC 8446 section 4.1.2; RFC 5246 section 7.4.1.2, whose extensions are optional).
fn parse(body: &[u8]) -> Result<ClientHello, HelloError> {
    let mut hello = Fields(body);
    hello.take(LEGACY_VERSION + RANDOM)?;
    let session = hello.vector8()?;
    let suites = hello.vector16()?;
    let compressions = hello.vector8()?;
    if session.0.len() > LONGEST_SESSION || suites.is_empty() || suites.0.len() % 2 != 0 || compressions.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut server_name = None;
    if !hello.is_empty() {
        let mut extensions = hello.vector16()?;
        let mut named = false;
        while !extensions.is_empty() {
            let kind = extensions.number16()?;
            let extension = extensions.vector16()?;
            if kind == SERVER_NAME {
                if named {
                    return Err(HelloError::TwoNames);
                }
                named = true;
                server_name = parse_names(extension)?;
            }
        }
        hello.end()?;
    }
    Ok(ClientHello { server_name })
}

/// Reads a server name extension (RFC 6066 section 3). Names of types to come begin with their length too.
fn parse_names(mut extension: Fields) -> Result<Option<String>, HelloError> {
    let mut names = extension.vector16()?;
    extension.end()?;
    if names.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut host = None;
    while !names.is_empty() {
        let kind = names.number8()?;
        let name = names.vector16()?;
        if kind == HOST_NAME && host.replace(name).is_some() {
            return Err(HelloError::TwoNames);
        }
    }
    host.map(|name| dns_name(name.0)).transpose()
}

/// Checks a host name and brings it into the form in which names are compared. Hyphens and underscores may stand
/// anywhere, because names in use have them there. A last label of digits alone makes an address, and never a name
/// (RFC 1123 section 2.1).
fn dns_name(name: &[u8]) -> Result<String, HelloError> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let mut labels = name.split(|&byte| byte == b'.');
    let is_label = |label: &[u8]| {
        (1..=LONGEST_LABEL).contains(&label.len())
            && label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let is_address = name.rsplit(|&byte| byte == b'.').next().is_some_and(|last| last.iter().all(u8::is_ascii_digit));
    if name.len() > LONGEST_NAME || is_address || !labels.all(is_label) {
        return Err(HelloError::Name);
    }
    Ok(name.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect())
}

/// What is left to read of a structure in TLS's presentation language (RFC 8446 section 3).
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn end(&self) -> Result<(), HelloError> {
        if self.is_empty() { Ok(()) } else { Err(HelloError::Malformed) }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number8(&mut self) -> Result<u8, HelloError> {
        let (&number, rest) = self.0.split_first().ok_or(HelloError::Malformed)?;
        self.0 = rest;
        Ok(number)
    }

    fn number16(&mut self) -> Result<u16, HelloError> {
        Ok(u16::from_be_bytes([self.number8()?, self.number8()?]))
    }

    /// A variable-length vector with one byte of length.
    fn vector8(&mut self) -> Result<Self, HelloError> {
        let length = self.number8()?;
        self.take(length.into()).map(Self)
    }

    /// A variable-length vector with two bytes of length.
    fn vector16(&mut self) -> Result<Self, HelloError> {
        let length = self.number16()?;
        self.take(length.into()).map(Self)
    }
}

/// The longest handshake message that is read, with its header. Hellos in use have up to a few thousand bytes; most of
/// that are post-quantum key shares.
const LONGEST_MESSAGE: usize = 64 * 1024;
/// The most records that a hello may be cut into. One byte in each is legal, and six bytes to hold for each that counts.
const MOST_RECORDS: usize = 4096;
/// A record's header: its type, two bytes of version, two bytes of length (RFC 8446 section 5.1).
const RECORD_HEADER: usize = 5;
/// The record type of handshake messages.
const HANDSHAKE: u8 = 22;
/// The first byte of the version, from SSL 3.0 to TLS 1.3.
const MAJOR_VERSION: u8 = 3;
/// The longest record before encryption begins.
const LONGEST_RECORD: usize = 1 << 14;
/// A handshake message's header: its type, three bytes of length (RFC 8446 section 4).
const MESSAGE_HEADER: usize = 4;
/// The type of a client hello.
const CLIENT_HELLO: u8 = 1;
/// The length of a client hello's version.
const LEGACY_VERSION: usize = 2;
/// The length of its random value.
const RANDOM: usize = 32;
/// The longest session identifier.
const LONGEST_SESSION: usize = 32;
/// The extension that holds the server name (RFC 6066 section 3).
const SERVER_NAME: u16 = 0;
/// The type of name that a host name is, the only one there is.
const HOST_NAME: u8 = 0;
/// The longest DNS name as text, and its longest label (RFC 1035 section 2.3.4).
const LONGEST_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs};

    use super::*;

    type Answer = Result<Option<ClientHello>, HelloError>;

    /// A vector with its length in `N` bytes before it.
    fn vector<const N: usize>(body: &[u8]) -> Vec<u8> {
        let length = body.len().to_be_bytes();
        [&length[length.len() - N..], body].concat()
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind], &*vector::<3>(body)].concat()
    }

    /// A hello's body up to its extensions, as TLS 1.0 has it.
    fn body() -> Vec<u8> {
        let session = vector::<1>(&[7; 32]);
        let suites = vector::<2>(&[0x1A, 0x1A, 0x13, 0x01, 0x00, 0x2F]);
        [&[3, 1], &[9; RANDOM][..], &session, &suites, &vector::<1>(&[0])].concat()
    }

    fn hello_with(extensions: &[Vec<u8>]) -> Vec<u8> {
        message(CLIENT_HELLO, &[body(), vector::<2>(&extensions.concat())].concat())
    }

    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &vector::<2>(body)].concat()
    }

    fn names(names: &[(u8, &[u8])]) -> Vec<u8> {
        let names: Vec<u8> = names.iter().flat_map(|(kind, name)| [&[*kind], &*vector::<2>(name)].concat()).collect();
        extension(SERVER_NAME, &vector::<2>(&names))
    }

    /// A GREASE extension (RFC 8701) and one that nobody knows, the name, and an empty extension after it.
    fn hello_for(name: &str) -> Vec<u8> {
        hello_with(&[
            extension(0x3A3A, &[0]),
            extension(0xFFFE, b"unknown"),
            names(&[(HOST_NAME, name.as_bytes())]),
            extension(23, &[]),
        ])
    }

    fn record(part: &[u8]) -> Vec<u8> {
        [&[HANDSHAKE, 3, 1], &*vector::<2>(part)].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(record).collect()
    }

    fn read(bytes: &[u8]) -> Answer {
        HelloReader::default().read(bytes)
    }

    fn read_in_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Answer {
        let mut reader = HelloReader::default();
        pieces.into_iter().map(|piece| reader.read(piece)).find(|answer| *answer != Ok(None)).unwrap_or(Ok(None))
    }

    fn read_message(message: &[u8]) -> Answer {
        read(&records(message, LONGEST_RECORD))
    }

    #[expect(clippy::unnecessary_wraps, reason = "it is what answers are compared with")]
    fn asks_for(name: &str) -> Answer {
        Ok(Some(ClientHello { server_name: Some(name.to_owned()) }))
    }

    const NAMELESS: Answer = Ok(Some(ClientHello { server_name: None }));

    /// What a rustls client with a post-quantum key share sends, in records of up to `fragment` bytes.
    fn rustls_hello(server: &'static str, fragment: Option<usize>) -> Vec<u8> {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.max_fragment_size = fragment;
        let mut client = ClientConnection::new(Arc::new(config), server.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_name_is_found_in_any_reads_and_records() {
        let message = hello_for("www.example.com");
        for size in 1..=message.len() {
            let bytes = records(&message, size);
            for step in [1, 2, 5, 6, 100, bytes.len()] {
                assert_eq!(read_in_pieces(bytes.chunks(step)), asks_for("www.example.com"), "{size}, {step}");
            }
        }
    }

    #[test]
    fn real_hellos_are_read() {
        let whole = rustls_hello("pq.example.com", None);
        assert!(whole.len() > 1200, "no post-quantum key share in {} bytes", whole.len());
        assert_eq!(read(&whole), asks_for("pq.example.com"));
        let pieces = rustls_hello("pq.example.com", Some(32));
        assert!(pieces.len() > whole.len() + 40 * RECORD_HEADER);
        assert_eq!(read_in_pieces(pieces.chunks(1)), asks_for("pq.example.com"));
        assert_eq!(read(&rustls_hello("192.0.2.1", None)), NAMELESS);
    }

    #[test]
    fn a_name_takes_the_form_in_which_names_are_compared() {
        let longest = [&*"a".repeat(63), &*"b".repeat(63), &*"c".repeat(63), &*"d".repeat(61)].join(".");
        for (sent, read) in [
            ("WWW.Example.COM.", "www.example.com"),
            ("_dmarc.a_b.example", "_dmarc.a_b.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("trailing-.-leading.example", "trailing-.-leading.example"),
            ("4.3.2.1.in-addr.arpa", "4.3.2.1.in-addr.arpa"),
            ("localhost", "localhost"),
            (&format!("{longest}."), &longest),
        ] {
            assert_eq!(read_message(&hello_for(sent)), asks_for(read), "{sent}");
        }
    }

    #[test]
    fn what_is_no_dns_name_is_refused() {
        let too_long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(62)].join(".");
        for name in [
            "",
            ".",
            "..",
            "a..",
            ".a",
            "a..b",
            "*.a",
            "a b",
            "a\0",
            "a\n.b",
            "a:443",
            "a/b",
            "bücher.example",
            "192.0.2.1",
            "192.0.2.1.",
            "1",
            "::1",
            "[::1]",
            "a.1",
            &"a".repeat(64),
            &too_long,
        ] {
            assert_eq!(read_message(&hello_for(name)), Err(HelloError::Name), "{name:?}");
        }
    }

    #[test]
    fn a_hello_may_name_no_one() {
        assert_eq!(read_message(&message(CLIENT_HELLO, &body())), NAMELESS);
        assert_eq!(read_message(&hello_with(&[])), NAMELESS);
        assert_eq!(read_message(&hello_with(&[extension(13, &[0, 2, 4, 3]), extension(0x0A0A, &[])])), NAMELESS);
        assert_eq!(read_message(&hello_with(&[names(&[(1, b"of another type")])])), NAMELESS);
    }

    #[test]
    fn a_name_of_another_type_is_passed_over() {
        let message = hello_with(&[names(&[(1, b"\xFF"), (HOST_NAME, b"a.example"), (200, b"")])]);
        assert_eq!(read_message(&message), asks_for("a.example"));
    }

    #[test]
    fn two_names_are_refused() {
        let (a, b) = ((HOST_NAME, &b"a.example"[..]), (HOST_NAME, &b"b.example"[..]));
        for extensions in [
            vec![names(&[a, b])],
            vec![names(&[a, a])],
            vec![names(&[a]), names(&[b])],
            vec![names(&[a]), extension(23, &[]), names(&[a])],
            vec![names(&[(1, b"")]), names(&[a])],
        ] {
            assert_eq!(read_message(&hello_with(&extensions)), Err(HelloError::TwoNames), "{extensions:x?}");
        }
    }

    #[test]
    fn lengths_that_contradict_one_another_are_refused() {
        let in_hello = |extensions: &[u8]| message(CLIENT_HELLO, &[&*body(), extensions].concat());
        let start = [&[3, 3], &[9; RANDOM][..]].concat();
        let tail = [&*vector::<2>(&[0x13, 0x01]), &vector::<1>(&[0])].concat();
        for message in [
            message(CLIENT_HELLO, &[]),
            message(CLIENT_HELLO, &body()[..body().len() - 1]),
            message(CLIENT_HELLO, &[&*start, &vector::<1>(&[7; 33]), &tail].concat()),
            message(CLIENT_HELLO, &[&*start, &[0], &vector::<2>(&[]), &vector::<1>(&[0])].concat()),
            message(CLIENT_HELLO, &[&*start, &[0], &vector::<2>(&[0x13]), &vector::<1>(&[0])].concat()),
            message(CLIENT_HELLO, &[&*start, &[0], &vector::<2>(&[0x13, 0x01]), &[0]].concat()),
            in_hello(&[0]),
            in_hello(&[0, 1]),
            in_hello(&[0, 0, 0]),
            in_hello(&vector::<2>(&[0, 23, 0])),
            in_hello(&vector::<2>(&[0, 23, 0, 1])),
            hello_with(&[extension(SERVER_NAME, &[])]),
            hello_with(&[extension(SERVER_NAME, &[0, 0])]),
            hello_with(&[extension(SERVER_NAME, &[0, 4, 0, 0, 1, b'a', 0])]),
            hello_with(&[extension(SERVER_NAME, &[0, 5, 0, 0, 1, b'a'])]),
            hello_with(&[extension(SERVER_NAME, &[0, 4, 0, 0, 2, b'a'])]),
            hello_with(&[extension(SERVER_NAME, &[0, 4, 1, 0, 2, b'a'])]),
        ] {
            assert_eq!(read_message(&message), Err(HelloError::Malformed), "{message:x?}");
        }
    }

    #[test]
    fn what_is_not_tls_is_refused_at_once() {
        for bytes in [&b"G"[..], b"\x80", b"\x15", b"\x17", b"\0", b"\x16\x02", b"\x16\xFE"] {
            assert_eq!(read(bytes), Err(HelloError::NotTls), "{bytes:x?}");
        }
        let server_hello = record(&message(2, &body()));
        assert_eq!(read(&server_hello[..RECORD_HEADER]), Ok(None));
        assert_eq!(read(&server_hello[..=RECORD_HEADER]), Err(HelloError::NotClientHello));
    }

    #[test]
    fn illegal_records_are_refused_at_once() {
        assert_eq!(read(&[22, 3, 1, 0, 0]), Err(HelloError::Record));
        assert_eq!(read(&[22, 3, 1, 0x40, 0x01]), Err(HelloError::Record));
        assert_eq!(read(&[22, 3, 1, 0x40, 0x00]), Ok(None));
        let begun = record(&hello_for("a.example")[..20]);
        for next in [&[20][..], &[21], &[23], &[22, 2], &[22, 3, 3, 0, 0], &[22, 3, 3, 0xFF, 0xFF]] {
            assert_eq!(read(&[&*begun, next].concat()), Err(HelloError::Record), "{next:x?}");
        }
    }

    #[test]
    fn the_minor_version_of_a_record_means_nothing() {
        let message = hello_for("a.example");
        let (mut first, mut second) = (record(&message[..20]), record(&message[20..]));
        (first[2], second[2]) = (0, 0xFF);
        assert_eq!(read(&[first, second].concat()), asks_for("a.example"));
    }

    #[test]
    fn the_longest_hello_is_read_and_no_longer_one() {
        let name = names(&[(HOST_NAME, b"a.example")]);
        let room = LONGEST_MESSAGE - hello_with(&[extension(21, &[]), name.clone()]).len();
        let padded = |padding| hello_with(&[extension(21, &vec![0; padding]), name.clone()]);
        assert_eq!(read_message(&padded(room)), asks_for("a.example"));
        let longer = record(&padded(room + 1)[..MESSAGE_HEADER]);
        assert_eq!(read(&longer[..longer.len() - 1]), Ok(None));
        assert_eq!(read(&longer), Err(HelloError::TooLong));
    }

    #[test]
    fn a_hello_in_too_many_records_is_refused() {
        let message = hello_with(&[extension(21, &[0; MOST_RECORDS])]);
        let bytes = records(&message, 1);
        let most = MOST_RECORDS * (RECORD_HEADER + 1);
        assert_eq!(read(&bytes[..most]), Ok(None));
        assert_eq!(read(&bytes[..=most]), Err(HelloError::TooLong));
    }

    #[test]
    fn what_follows_the_hello_is_not_looked_at() {
        let mut message = hello_for("a.example");
        let bytes = [&*record(&message), b"\x17junk"].concat();
        assert_eq!(read(&bytes), asks_for("a.example"));
        message.extend(b"junk");
        assert_eq!(read(&record(&message)), asks_for("a.example"));
    }

    /// A hello that is cut into records at random.
    fn any_records() -> impl Strategy<Value = (String, Vec<u8>)> {
        let extensions = proptest::collection::vec((1..=u16::MAX, proptest::collection::vec(any::<u8>(), 0..80)), 0..6);
        ("[a-z0-9_-]{1,20}(\\.[a-z0-9-]{1,9}){0,3}\\.[a-z]{2,6}", extensions, any::<prop::sample::Index>())
            .prop_flat_map(|(name, extensions, place)| {
                let mut all: Vec<_> = extensions.iter().map(|(kind, body)| extension(*kind, body)).collect();
                all.insert(place.index(all.len() + 1), names(&[(HOST_NAME, name.as_bytes())]));
                let message = hello_with(&all);
                let sizes = proptest::collection::vec(1..60usize, message.len());
                (Just(name), sizes.prop_map(move |sizes| cut(&message, &sizes).flat_map(record).collect()))
            })
    }

    fn cut<'a>(mut bytes: &'a [u8], sizes: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
        sizes.iter().map_while(move |&size| {
            let (part, rest) = bytes.split_at(size.min(bytes.len()));
            bytes = rest;
            (!part.is_empty()).then_some(part)
        })
    }

    /// Changes to make to a hello: where, and to what.
    fn any_changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
        proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)
    }

    proptest! {
        #[test]
        fn the_answer_depends_on_no_cut((name, bytes) in any_records(), step in 1..200usize) {
            prop_assert_eq!(read(&bytes), asks_for(&name));
            prop_assert_eq!(read_in_pieces(bytes.chunks(step)), asks_for(&name));
        }

        #[test]
        fn every_proper_prefix_waits_for_more((_, bytes) in any_records()) {
            let mut reader = HelloReader::default();
            for byte in &bytes[..bytes.len() - 1] {
                prop_assert_eq!(reader.read(&[*byte]), Ok(None));
            }
            prop_assert!(matches!(reader.read(&bytes[bytes.len() - 1..]), Ok(Some(_))));
        }

        #[test]
        fn junk_is_answered_alike_in_any_reads(junk in proptest::collection::vec(any::<u8>(), 0..200), step in 1..50usize) {
            for bytes in [record(&junk), record(&message(CLIENT_HELLO, &junk)), junk] {
                prop_assert_eq!(read_in_pieces(bytes.chunks(step)), read(&bytes));
            }
        }

        #[test]
        fn a_changed_hello_is_answered_in_time((_, mut bytes) in any_records(), changes in any_changes(), filler in 1..LONGEST_RECORD) {
            for (place, value) in changes {
                let position = place.index(bytes.len());
                bytes[position] = value;
            }
            let step = bytes.len();
            while bytes.len() <= HelloReader::LONGEST {
                bytes.extend(record(&vec![0; filler]));
            }
            bytes.truncate(HelloReader::LONGEST + 1);
            let answer = read(&bytes);
            prop_assert_ne!(&answer, &Ok(None));
            prop_assert_eq!(read_in_pieces(bytes.chunks(step)), answer);
        }
    }
}
