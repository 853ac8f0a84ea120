//! TLS towards clients: which certificate answers which name, which protocol versions are spoken, and the keys of session
//! tickets.
//!
//! Everything that costs time is done before a handshake needs it: [`Keeper`] parses and checks a pair when it is learnt,
//! and publishes it through [`Certificates`], which handshakes read without waiting. A pair is taken as people have it, in
//! whatever order and form, as long as there is but one way to understand it. [`Folder`] reads pairs from files; what Redis
//! has of certificates and ticket keys is not known here.

mod certificates;
mod chain;
mod folder;
mod hello;
mod key;
mod pair;
mod pem;
mod preset;
mod short_rsa;
mod subject;
mod terminator;
mod tickets;

pub use certificates::{Certificates, Keeper, News, Outcome, Shelf};
pub use folder::{Folder, PairFiles, Problem, Refusal, Scan};
pub use hello::{ClientHello, HelloError, HelloReader};
pub use pair::{Certificate, CertificateSource, Content, Offer, PairError, Parsed, Remark};
pub use preset::Preset;
pub use subject::subject_of;
pub use terminator::{ALPN_HTTP2, ClientCa, Config, Terminator, TlsError};
pub use tickets::{KeyRing, Seal, SealError, TicketKey};
