//! Redis: the only module that speaks to it, and the only importer of the client library.
//!
//! A connection here is a disposable [`Session`]: connect, check whom we reached, subscribe, confirm, use. On any doubt
//! (a missed heartbeat, an overrun subscription, changed replication, an error) the owner drops it and opens another; the
//! client library's own reconnection is switched off, because it restores subscriptions in an order that can lose events.
//! So is its own support for sentinels, which leaves a client on a master that was frozen or demoted: a [`Place`] finds the
//! server for each session, and a [`Watch`] tells when the session should be with another.
//!
//! Keys are read over a connection of our own (`bulk`), in pages: the library writes each command by itself, and makes values
//! of its own out of each reply. A load goes through all lists by a task of its own (`walk`). What subscriptions bring is
//! taken over by a thread of its own (`inbox`), since the library has memory for a fixed number of messages.

mod answers;
mod bulk;
mod client;
mod dial;
mod error;
mod guard;
mod health;
mod heard;
mod inbox;
mod login;
mod patience;
mod replies;
mod schema;
mod sentinel;
mod session;
mod tls;
mod vitals;
mod walk;
mod writer;

pub use answers::Page;
pub use client::{Access, Address, Server};
pub use error::StoreError;
pub use health::{Criteria, HealthSession, Intent, LEASE, Standing, Visit};
pub use heard::Class;
pub use login::{Login, Password};
pub use patience::Patience;
pub use replies::{Bounds, Replies};
pub use schema::{CertificateHash, CertificateRecord, Change, DeadNotice, DeadSet, List, Record};
pub use sentinel::{Found, Moved, Place, Purpose, Sentinels, Watch};
pub use session::{Pattern, Session};
pub use tls::{Tls, TlsError};
pub use vitals::{Backlog, Doubt, Identity, Notifications, Role, Vitals};
pub use walk::{FIRST, Listed};
pub use writer::WriteSession;

/// Which Redis servers to use.
#[derive(Clone, Debug)]
pub struct Config {
    /// Routes, subscriptions and dead sets are read here; normally a replica on localhost.
    pub read: Place,
    /// Dead marks are written here; it must be a master.
    pub write: Place,
}
