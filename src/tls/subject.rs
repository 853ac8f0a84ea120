//! A certificate's subject, written as a header can carry it.

use aws_lc_rs::digest::{SHA256, digest};
use http::HeaderValue;
use rustls::pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    objects::{oid_registry, oid2abbrev},
    prelude::FromDer,
};

/// `Hash=<SHA-256 of the certificate>;Subject="<distinguished name>"`, the form in which other proxies write
/// `X-Forwarded-Client-Cert`. The name is written as in RFC 4514. `None` if the certificate is not X.509, which one that was
/// verified is.
pub fn subject_of(certificate: &CertificateDer<'_>) -> Option<HeaderValue> {
    let (_, x509) = X509Certificate::from_der(certificate).ok()?;
    let mut text = String::from("Hash=");
    for byte in digest(&SHA256, certificate).as_ref() {
        push_hex(&mut text, *byte);
    }
    text.push_str(";Subject=\"");
    for (position, rdn) in x509.subject().iter_rdn().collect::<Vec<_>>().into_iter().rev().enumerate() {
        if position > 0 {
            text.push(',');
        }
        for (position, attribute) in rdn.iter().enumerate() {
            if position > 0 {
                text.push('+');
            }
            let kind = attribute.attr_type();
            match oid2abbrev(kind, oid_registry()) {
                Ok(name) => text.push_str(name),
                Err(_) => text.push_str(&kind.to_id_string()),
            }
            text.push('=');
            if let Ok(value) = attribute.as_str() {
                push_escaped(&mut text, value.as_bytes());
            } else {
                text.push('#');
                attribute.as_slice().iter().for_each(|byte| push_hex(&mut text, *byte));
            }
        }
    }
    text.push('"');
    HeaderValue::from_str(&text).ok()
}

/// Escapes what has a meaning in a distinguished name (RFC 4514 section 2.4) or in the quotes around it, and whatever is
/// not visible ASCII.
fn push_escaped(text: &mut String, value: &[u8]) {
    for (position, &byte) in value.iter().enumerate() {
        let at_edge = position == 0 || position + 1 == value.len();
        match byte {
            b'"' | b'\\' => push_pair(text, byte),
            b'+' | b',' | b';' | b'<' | b'>' | b'=' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b'#' if position == 0 => text.push_str("\\#"),
            b' ' if at_edge => text.push_str("\\ "),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => push_pair(text, byte),
        }
    }
}

/// A backslash and two digits, which hold no quote that could end the header's own.
fn push_pair(text: &mut String, byte: u8) {
    text.push('\\');
    push_hex(text, byte);
}

fn push_hex(text: &mut String, byte: u8) {
    for digit in [byte >> 4, byte & 15] {
        text.extend(char::from_digit(digit.into(), 16));
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    fn subject(parts: &[(DnType, &str)]) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in parts {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let header = subject_of(certificate.der()).unwrap();
        header.to_str().unwrap().split_once(';').unwrap().1.to_owned()
    }

    #[test]
    fn a_name_is_written_most_specific_first() {
        let parts =
            [(DnType::CountryName, "DE"), (DnType::OrganizationName, "Example"), (DnType::CommonName, "client")];
        assert_eq!(subject(&parts), "Subject=\"CN=client,O=Example,C=DE\"");
        assert_eq!(subject(&[]), "Subject=\"\"");
    }

    #[test]
    fn no_name_can_forge_another() {
        let name = "a\",CN=admin;Hash=1\\\r\n \u{e9}";
        assert_eq!(
            subject(&[(DnType::CommonName, name)]),
            "Subject=\"CN=a\\22\\,CN\\=admin\\;Hash\\=1\\5c\\0d\\0a \\c3\\a9\""
        );
        assert_eq!(subject(&[(DnType::CommonName, " #a ")]), "Subject=\"CN=\\ #a\\ \"");
    }

    #[test]
    fn the_hash_is_the_certificates() {
        let certificate = CertificateParams::default().self_signed(&KeyPair::generate().unwrap()).unwrap();
        let header = subject_of(certificate.der()).unwrap();
        let hash = header.to_str().unwrap().strip_prefix("Hash=").unwrap();
        assert_eq!(hash.find(';'), Some(64));
        assert!(subject_of(&CertificateDer::from(vec![1, 2, 3])).is_none());
    }
}
