//! The lines that a proxy takes out, puts in and changes (contract section 3).
//!
//! A head is written afresh for each attempt, from the client's own head and the rules: nothing is edited, so that nothing
//! need be put back. What `Connection` names is looked up among the client's lines only, which is why it can remove nothing
//! of ours.
//!
//! | module | job |
//! |---|---|
//! | `request`, `response` | what of a head passes, and what is ours |
//! | `trailers` | what of a trailer section passes |
//! | `connection` | what `Connection` says, and which lines are about one connection |
//! | `lines` | how lines are written |

mod connection;
mod lines;
mod request;
mod response;
#[cfg(test)]
mod samples;
mod trailers;

pub use connection::keeps_alive;
pub use request::{Addressee, Provenance, RequestRules, forwarded_for, request_id, write_request};
pub use response::{Persistence, ResponseRules, response_lines, told_length, write_response};
pub use trailers::{response_trailer_lines, write_request_trailers, write_response_trailers};
