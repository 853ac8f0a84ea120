//! TLS towards clients: which certificate answers which name, which protocol versions are spoken, and the keys of session
//! tickets.
//!
//! Everything that costs time is done before a handshake needs it: [`Keeper`] parses and checks a pair when it is learnt,
//! and publishes it through [`Certificates`], which handshakes read without waiting. Where pairs and ticket keys come from
//! is not known here.

mod certificates;
mod pair;
mod preset;
mod subject;
mod terminator;
mod tickets;

pub use certificates::{Certificates, Keeper, Outcome, Shelf};
pub use pair::{Certificate, Content, Offer, PairError, Parsed};
pub use preset::Preset;
pub use subject::subject_of;
pub use terminator::{ClientCa, Config, Terminator, TlsError};
pub use tickets::{KeyRing, Seal, SealError, TicketKey};
