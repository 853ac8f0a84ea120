//! Clients' connections: how they are taken, what is spoken on them, and when they end.

mod alert;
mod connection;
mod handshake;
mod http1;
mod http2;
mod lifetime;
mod listener;
mod malformed;
mod passthrough;
mod upgrade;
mod wire;

pub use connection::Protocol;
pub use listener::{Door, Listeners, accept};
