//! The head of a message: one buffer, and where in it everything stands.

use std::{ops::Deref, rc::Rc};

use bytes::Bytes;

use super::known::Known;

/// The version that a message is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2, translated at the door.
    Http2,
}

impl Version {
    /// As request lines and logs have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2.0",
        }
    }
}

/// A header line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its name, as sent.
    pub name: &'a [u8],
    /// Its value, without the blanks around it.
    pub value: &'a [u8],
    /// What its name is to us.
    pub known: Known,
}

/// The header lines of a head, or of a trailer section, in their order. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Fields {
    pub(super) buffer: Bytes,
    places: Rc<[Place]>,
    /// The names that there are, as a set of [`Known`].
    names: u64,
}

/// A part of a head's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

/// Where a line stands. All of it lies within the buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) name: Span,
    pub(super) value: Span,
    pub(super) known: Known,
}

impl Span {
    /// `start..end`, which lie in a buffer of at most [`LONGEST`] bytes.
    pub(super) fn new(start: usize, end: usize) -> Self {
        debug_assert!(start <= end && end <= LONGEST);
        let position = |at| u32::try_from(at).unwrap_or(u32::MAX);
        Self { start: position(start), end: position(end) }
    }

    pub(super) fn of(self, buffer: &[u8]) -> &[u8] {
        buffer.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

impl Fields {
    pub(super) fn new(buffer: Bytes, places: Rc<[Place]>) -> Self {
        let names = places.iter().fold(0, |names, place| names | place.known.bit());
        Self { buffer, places, names }
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How many bytes are held.
    pub fn byte_len(&self) -> usize {
        self.buffer.len()
    }

    /// All lines.
    pub fn lines(&self) -> impl DoubleEndedIterator<Item = Line<'_>> + ExactSizeIterator + Clone {
        self.places.iter().map(|place| Line {
            name: place.name.of(&self.buffer),
            value: place.value.of(&self.buffer),
            known: place.known,
        })
    }

    /// Whether there is a line of this name.
    pub fn has(&self, known: Known) -> bool {
        self.names & known.bit() != 0
    }

    /// The value of the first line of this name.
    pub fn first(&self, known: Known) -> Option<&[u8]> {
        if self.has(known) { self.all(known).next() } else { None }
    }

    /// The values of all lines of this name.
    pub fn all(&self, known: Known) -> impl Iterator<Item = &[u8]> + Clone {
        let places = if self.has(known) { &self.places[..] } else { &[] };
        places.iter().filter(move |place| place.known == known).map(|place| place.value.of(&self.buffer))
    }

    /// The values of all lines with a name that no rule knows, such as one that an operator chose.
    pub fn named<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + Clone {
        self.lines().filter(move |line| line.name.eq_ignore_ascii_case(name)).map(|line| line.value)
    }

    /// The elements of all lines of this name, which is one whose values are lists (RFC 9110 section 5.6.1). Empty ones are
    /// left out.
    pub fn elements(&self, known: Known) -> impl Iterator<Item = &[u8]> + Clone {
        let elements = self.all(known).flat_map(|value| value.split(|&byte| byte == b','));
        elements.map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
    }

    /// Whether one of the elements is this one, in whatever case.
    pub fn lists(&self, known: Known, element: &[u8]) -> bool {
        self.elements(known).any(|listed| listed.eq_ignore_ascii_case(element))
    }

    /// A part of this head as a handle that outlives the borrow. It is not copied, and keeps the whole head in memory.
    pub fn value_bytes(&self, part: &[u8]) -> Bytes {
        let start = (part.as_ptr() as usize).wrapping_sub(self.buffer.as_ptr() as usize);
        match start.checked_add(part.len()) {
            Some(end) if end <= self.buffer.len() => self.buffer.slice(start..end),
            _ => Bytes::copy_from_slice(part),
        }
    }

    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }
}

/// The head of a request. It is its lines, and what the request line says besides.
#[derive(Clone, Debug)]
pub struct RequestHead {
    pub(super) fields: Fields,
    pub(super) method: Span,
    pub(super) target: Span,
    /// The protocol that an extended CONNECT asks for (RFC 8441), which has none of HTTP/1's lines for it.
    pub(super) protocol: Option<Span>,
    pub(super) version: Version,
}

impl RequestHead {
    /// The method.
    pub fn method(&self) -> &str {
        // A token is ASCII.
        str::from_utf8(self.method.of(&self.fields.buffer)).unwrap_or_default()
    }

    /// The target, byte for byte.
    pub fn target(&self) -> &[u8] {
        self.target.of(&self.fields.buffer)
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// What an extended CONNECT wants to speak.
    pub fn protocol(&self) -> Option<&[u8]> {
        Some(self.protocol?.of(&self.fields.buffer))
    }
}

impl Deref for RequestHead {
    type Target = Fields;

    fn deref(&self) -> &Fields {
        &self.fields
    }
}

/// The head of a response. It is its lines, and what the status line says besides.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    pub(super) fields: Fields,
    pub(super) version: Version,
    pub(super) status: u16,
    pub(super) reason: Span,
}

impl ResponseHead {
    /// The version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The status, at least 100 and at most 999.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Whether the connection is HTTP no more behind it (RFC 9110 section 15.2.2).
    pub fn switches_protocols(&self) -> bool {
        self.status == 101
    }

    /// The reason phrase, which may be empty, byte for byte.
    pub fn reason(&self) -> &[u8] {
        self.reason.of(&self.fields.buffer)
    }
}

impl Deref for ResponseHead {
    type Target = Fields;

    fn deref(&self) -> &Fields {
        &self.fields
    }
}

/// The most bytes that a head can have, whatever a caller's limits are.
pub(super) const LONGEST: usize = u32::MAX as usize;
