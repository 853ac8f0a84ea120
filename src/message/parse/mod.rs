//! From bytes to a head, in one strict reading.
//!
//! A line is lexed by `httparse`; what must hold beyond that stands here. In a request, what two readers could understand
//! differently is refused. A response has one reader, who writes it afresh for the client, so that two old ways of writing
//! one are read as they are meant: lines that end in a bare LF (RFC 9112 section 2.2), and folded lines (section 5.2).
//!
//! | module | job |
//! |---|---|
//! | `head_reader` | heads, one after another, in whatever pieces they arrive |
//! | `first_line` | a request line, a status line, and the beginning of either |
//! | `lines` | where lines end, and the header lines themselves |
//! | `characters` | which bytes may stand where |

mod characters;
mod first_line;
mod head_reader;
mod lines;

pub use head_reader::HeadReader;

pub(super) use characters::is_text;
pub use characters::is_token;
pub(super) use first_line::check_target;
pub(super) use lines::{LineEnds, LineScanner, fields};

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// All of it, to its last line end.
    pub bytes: usize,
    /// Its header lines.
    pub lines: usize,
}

/// Why bytes are not the head of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Something other than a token and a blank at the beginning.
    #[error("the method is malformed")]
    Method,
    /// A byte that no target has, or none at all.
    #[error("the target is malformed")]
    Target,
    /// More bytes of target than anybody reads.
    #[error("the target is too long")]
    TargetTooLong,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    #[error("the version is neither HTTP/1.0 nor HTTP/1.1")]
    Version,
    /// Not three digits from 100 on.
    #[error("the status is malformed")]
    Status,
    /// A control character.
    #[error("the reason phrase is malformed")]
    Reason,
    /// A CR without an LF, or, in a request, an LF without a CR.
    #[error("a line does not end in CR and LF")]
    LineEnd,
    /// No token, or no colon right behind it.
    #[error("a header's name is malformed")]
    Name,
    /// A control character.
    #[error("a header's value is malformed")]
    Value,
    /// More than a few empty lines at the beginning.
    #[error("there are too many empty lines before the message")]
    EmptyLines,
    /// More lines than the limit.
    #[error("there are too many header lines")]
    TooManyLines,
    /// More bytes than the limit.
    #[error("the head is too long")]
    TooLong,
}

impl ParseError {
    /// The status that a request with this error is answered with.
    pub fn status(self) -> u16 {
        match self {
            Self::TooManyLines | Self::TooLong => 431,
            Self::TargetTooLong => 414,
            _ => 400,
        }
    }
}
