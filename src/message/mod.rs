//! What an HTTP/1.1 message says, and how it is said on (RFC 9110, RFC 9112).
//!
//! Everything here is pure: bytes in, bytes out. It knows no sockets, no clock, no routes, and imports no sibling. Whatever
//! comes in, nothing panics, and nothing is kept that the caller's [`Limits`] do not bound. Each question that two readers of
//! one message could answer differently (where it ends, whom it is for, what a line is) is answered once, and strictly.
//!
//! | module | job |
//! |---|---|
//! | [`head`], [`known`], [`builder`] | a head as one buffer and ranges; the names that rules speak of; heads that are not read |
//! | [`parse`] | from bytes to a head |
//! | [`target`] | what a request asks for, and of which host |
//! | [`framing`], [`chunked`], [`joined_chunks`] | where a body ends; chunks and trailers; small chunks made one |
//! | [`headers`] | which lines pass, and which are ours (contract section 3) |
//! | [`websocket`] | what opens a WebSocket |

pub mod builder;
pub mod chunked;
pub mod framing;
pub mod head;
pub mod headers;
pub mod joined_chunks;
pub mod known;
pub mod parse;
pub mod target;
pub mod websocket;

pub use builder::{RequestHeadBuilder, ResponseHeadBuilder};
pub use chunked::{Chunk, ChunkError, ChunkReader, Trailers, chunk_header};
pub use framing::{Framing, FramingError};
pub use head::{Fields, Line, RequestHead, ResponseHead, Version};
pub use headers::{Addressee, Persistence, Provenance, RequestRules, ResponseRules};
pub use joined_chunks::JoinedChunks;
pub use known::Known;
pub use parse::{HeadReader, Limits, ParseError, is_token};
pub use target::{Target, TargetError};
pub use websocket::Opening;
