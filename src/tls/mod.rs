//! TLS towards clients: which certificate answers which name, which protocol versions are spoken, and the keys of session
//! tickets.
//!
//! Everything that costs time is done before a handshake needs it: [`Keeper`] parses and checks a pair when it is learnt,
//! and publishes it through [`Certificates`], which handshakes read without waiting. [`Folder`] reads pairs from files; what
//! Redis has of certificates and ticket keys is not known here.

mod certificates;
mod folder;
mod hello;
mod pair;
mod preset;
mod subject;
mod terminator;
mod tickets;

pub use certificates::{Certificates, Keeper, News, Outcome, Shelf};
pub use folder::{Folder, PairFiles, Problem, Refusal, Scan};
pub use hello::{ClientHello, HelloError, HelloReader};
pub use pair::{Certificate, CertificateSource, Content, Offer, PairError, Parsed};
pub use preset::Preset;
pub use subject::subject_of;
pub use terminator::{ALPN_HTTP2, ClientCa, Config, Terminator, TlsError};
pub use tickets::{KeyRing, Seal, SealError, TicketKey};
