//! PEM sections in text that has been through editors, forms, shells and other systems on its way. What can be read without
//! a guess is read: line ends of any kind or none, `\n` spelt out, a byte order mark, UTF-16 behind one, text and headers
//! around.

use std::borrow::Cow;

use data_encoding::BASE64_NOPAD;
use memchr::memmem;

/// A section, from its `BEGIN` to its `END`. It may be a key, and so cannot be printed.
pub(super) struct Section {
    /// What its label says that it is.
    pub(super) kind: Kind,
    /// Its content; `None` if it is cut off or no Base64.
    pub(super) der: Option<Vec<u8>>,
}

/// What sections hold, as far as it concerns certificates and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Certificate,
    /// In any form; labels are wrong too often to believe them the form.
    Key,
    EncryptedKey,
    DsaKey,
    OpensshKey,
    PublicKey,
    Request,
    /// Certificates in a form of their own (RFC 7468 section 8).
    Bundle,
}

impl Kind {
    /// `None` for what is of no interest, such as parameters.
    fn of(label: &[u8]) -> Option<Self> {
        match label {
            b"CERTIFICATE" | b"X509 CERTIFICATE" | b"TRUSTED CERTIFICATE" => Some(Self::Certificate),
            b"CERTIFICATE REQUEST" | b"NEW CERTIFICATE REQUEST" => Some(Self::Request),
            b"PKCS7" | b"CMS" => Some(Self::Bundle),
            b"ENCRYPTED PRIVATE KEY" => Some(Self::EncryptedKey),
            b"DSA PRIVATE KEY" => Some(Self::DsaKey),
            b"OPENSSH PRIVATE KEY" => Some(Self::OpensshKey),
            _ if label.ends_with(b"PRIVATE KEY") => Some(Self::Key),
            _ if label.ends_with(b"PUBLIC KEY") => Some(Self::PublicKey),
            _ => None,
        }
    }

    /// Whether it is a private key, of whatever use.
    pub(super) fn is_key(self) -> bool {
        matches!(self, Self::Key | Self::EncryptedKey | Self::DsaKey | Self::OpensshKey)
    }
}

/// The sections of a text, in its order.
pub(super) fn sections(text: &[u8]) -> Vec<Section> {
    let text = narrow(text);
    let mut sections = Vec::new();
    let mut rest = &*text;
    while let Some(begin) = memmem::find(rest, BEGIN) {
        rest = &rest[begin + BEGIN.len()..];
        let Some((label, body)) = label(rest) else { continue };
        rest = body;
        let Some(kind) = Kind::of(label) else { continue };
        let until = memmem::find(body, BEGIN).unwrap_or(body.len());
        let content = memmem::find(&body[..until], END).and_then(|end| {
            let (closing, _) = self::label(&body[end + END.len()..])?;
            (closing == label).then_some(&body[..end])
        });
        rest = &body[content.map_or(0, <[u8]>::len)..];
        let is_encrypted = content.is_some_and(|content| memmem::find(content, ENCRYPTED).is_some());
        let kind = if kind == Kind::Key && is_encrypted { Kind::EncryptedKey } else { kind };
        sections.push(Section { kind, der: content.and_then(decode) });
    }
    sections
}

/// Whether a text is no text but what sections hold: a sequence, and nothing after it where its length is in one byte.
pub(super) fn is_der(text: &[u8]) -> bool {
    match text {
        [0x30, 0x80..=0x84, ..] => true,
        [0x30, length, content @ ..] => usize::from(*length) == content.len(),
        _ => false,
    }
}

/// The label and what follows the dashes after it.
fn label(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memmem::find(&text[..text.len().min(LONGEST_LABEL)], DASHES)?;
    Some((text[..end].trim_ascii(), &text[end + DASHES.len()..]))
}

fn decode(content: &[u8]) -> Option<Vec<u8>> {
    let mut base64 = Vec::with_capacity(content.len());
    // A line with a colon is a header (RFC 1421 section 4.6).
    for line in content.split(|byte| matches!(byte, b'\n' | b'\r')).filter(|line| !line.contains(&b':')) {
        let mut bytes = line.iter().copied().peekable();
        while let Some(byte) = bytes.next() {
            match byte {
                // An escape of JSON, of a line end or of a slash.
                b'\\' => {
                    bytes.next_if(|byte| matches!(byte, b'n' | b'r'));
                }
                b'=' => {}
                byte if byte.is_ascii_whitespace() => {}
                byte => base64.push(byte),
            }
        }
    }
    BASE64_NOPAD.decode(&base64).ok().filter(|der| !der.is_empty())
}

/// The text in one byte a character, as far as it is ASCII.
fn narrow(text: &[u8]) -> Cow<'_, [u8]> {
    let units = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, _) = bytes.as_chunks();
        pairs.iter().map(|&pair| u8::try_from(unit(pair)).unwrap_or(b'?')).collect()
    };
    match text {
        [0xFF, 0xFE, rest @ ..] => Cow::Owned(units(rest, u16::from_le_bytes)),
        [0xFE, 0xFF, rest @ ..] => Cow::Owned(units(rest, u16::from_be_bytes)),
        _ => Cow::Borrowed(text),
    }
}

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";

/// In the header of a key that is encrypted the traditional way: `Proc-Type: 4,ENCRYPTED`.
const ENCRYPTED: &[u8] = b"4,ENCRYPTED";

/// Bytes of a label with its dashes. The longest known has 23.
const LONGEST_LABEL: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pem(label: &str, der: &[u8]) -> String {
        let base64 = data_encoding::BASE64.encode(der);
        let lines: Vec<&str> = base64.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    fn kinds(text: &str) -> Vec<(Kind, bool)> {
        sections(text.as_bytes()).iter().map(|section| (section.kind, section.der.is_some())).collect()
    }

    #[test]
    fn a_label_says_what_is_in_a_section() {
        for (label, kind) in [
            ("CERTIFICATE", Kind::Certificate),
            ("TRUSTED CERTIFICATE", Kind::Certificate),
            ("NEW CERTIFICATE REQUEST", Kind::Request),
            ("PKCS7", Kind::Bundle),
            ("RSA PRIVATE KEY", Kind::Key),
            ("PRIVATE KEY", Kind::Key),
            ("ENCRYPTED PRIVATE KEY", Kind::EncryptedKey),
            ("DSA PRIVATE KEY", Kind::DsaKey),
            ("OPENSSH PRIVATE KEY", Kind::OpensshKey),
            ("PUBLIC KEY", Kind::PublicKey),
        ] {
            assert_eq!(kinds(&pem(label, b"content")), [(kind, true)], "{label}");
        }
        assert_eq!(kinds(&pem("EC PARAMETERS", b"content")), []);
    }

    #[test]
    fn a_key_that_is_encrypted_the_traditional_way_is_known_by_its_header() {
        let text = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n\
                    -----END RSA PRIVATE KEY-----\n";
        assert_eq!(kinds(text), [(Kind::EncryptedKey, true)]);
        assert_eq!(kinds(&text.replace('\n', " ")), [(Kind::EncryptedKey, false)]);
    }

    #[test]
    fn what_is_damaged_does_not_hide_what_follows() {
        let whole = pem("CERTIFICATE", b"content");
        let cut = &whole[..40];
        let other_end = whole.replace("END CERTIFICATE", "END PRIVATE KEY");
        for damaged in [cut, &other_end, &whole.replace("Y29u", "Y2%u"), &pem("CERTIFICATE", b"")] {
            assert_eq!(kinds(&format!("{damaged}{whole}")), [(Kind::Certificate, false), (Kind::Certificate, true)]);
            assert_eq!(kinds(damaged), [(Kind::Certificate, false)], "{damaged}");
        }
        assert_eq!(kinds("-----BEGIN "), []);
        assert_eq!(kinds("-----BEGIN CERTIFICATE--"), []);
    }

    proptest! {
        #[test]
        fn whatever_was_done_to_its_lines_a_section_is_read(
            ders in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..200), 1..4),
            line_end in prop_oneof![Just("\n"), Just("\r\n"), Just("\r"), Just(" "), Just(""), Just("\\n"), Just("\n \t")],
            around in prop_oneof![Just(""), Just("\u{feff}"), Just("Bag Attributes\n  a: b\n"), Just("-----\n")],
        ) {
            let text: Vec<String> = ders.iter().map(|der| [around, &pem("CERTIFICATE", der)].concat()).collect();
            let text = text.concat().replace('\n', line_end);
            let wide = |bytes: fn(u16) -> [u8; 2]| "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(bytes).collect();
            for text in [text.clone().into_bytes(), wide(u16::to_le_bytes), wide(u16::to_be_bytes)] {
                let read: Vec<_> = sections(&text).into_iter().map(|section| section.der).collect();
                prop_assert_eq!(&read, &ders.iter().cloned().map(Some).collect::<Vec<_>>());
            }
        }

        #[test]
        fn no_text_panics(pieces in proptest::collection::vec(prop_oneof![
            Just("-----BEGIN ".to_owned()), Just("-----END ".to_owned()), Just("CERTIFICATE".to_owned()), Just("-----".to_owned()),
            Just("\\".to_owned()), Just("4,ENCRYPTED".to_owned()), "\\PC{0,9}",
        ], 0..30)) {
            sections(pieces.concat().as_bytes());
        }
    }
}
