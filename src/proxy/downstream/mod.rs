//! Clients' connections: how they are taken, what is spoken on them, and when they end.

pub mod connection;
mod frames;
mod handshake;
mod http1;
pub mod http2;
pub mod listener;
mod malformed;
mod passthrough;
mod scanner;
mod supervised;
pub mod upgrade;
