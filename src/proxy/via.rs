//! The name by which requests say that they have come through here (RFC 9110 section 7.6.3), and by which one that comes back is
//! known: a backend that is this proxy, by however many others, would otherwise be asked again and again, by as many
//! connections as there are descriptors.

use std::str::FromStr;

use crate::message::{Known, RequestHead, is_token};

/// What `Via` names this proxy; nothing where backends must not see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via(Option<Box<str>>);

impl Via {
    /// A name that nobody else has.
    pub fn random() -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string();
        Self(Some(format!("planb-{}", &id[..12]).into()))
    }

    /// The name.
    pub fn pseudonym(&self) -> Option<&[u8]> {
        self.0.as_deref().map(str::as_bytes)
    }

    /// Whether a request has come through here before.
    pub fn is_in(&self, head: &RequestHead) -> bool {
        let Some(own) = self.pseudonym() else { return false };
        head.elements(Known::Via).any(|hop| {
            let mut words = hop.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
            words.nth(1).is_some_and(|by| by.eq_ignore_ascii_case(own))
        })
    }
}

impl FromStr for Via {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self(None)),
            _ if text.len() <= LONGEST && is_token(text.as_bytes()) => Ok(Self(Some(text.into()))),
            _ => Err("it is no name of up to 64 letters, digits and marks, and not none"),
        }
    }
}

/// Bytes of a name.
const LONGEST: usize = 64;

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::message::{HeadReader, Limits};

    #[test]
    fn a_request_that_has_been_here_says_so() {
        let has_been_here = |lines: &str| {
            let mut text = BytesMut::from(&*format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
            let head = HeadReader::default().request(&mut text, Limits { bytes: 1_000, lines: 10 }).unwrap().unwrap();
            "edge".parse::<Via>().unwrap().is_in(&head)
        };
        for lines in
            ["Via: 1.1 edge\r\n", "via: 1.0 a (x), 2.0\tEDGE (planb)\r\n", "Via: 1.1 a\r\nVia:1.1 edge,1.1 b\r\n"]
        {
            assert!(has_been_here(lines), "{lines}");
        }
        for lines in
            ["", "Via: 1.1 edge2\r\n", "Via: edge 1.1\r\n", "Via: edge\r\n", "Via: 1.1 a (edge)\r\n", "Via:,\r\n"]
        {
            assert!(!has_been_here(lines), "{lines}");
        }
    }

    #[test]
    fn a_name_is_one_word() {
        assert_eq!("none".parse::<Via>().unwrap().pseudonym(), None);
        assert!(Via::random() != Via::random());
        for junk in ["", "a b", "a,b", "a\r\nb", "\u{e9}", &"a".repeat(65)] {
            assert!(junk.parse::<Via>().is_err(), "{junk}");
        }
    }
}
