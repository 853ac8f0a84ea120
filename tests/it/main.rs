//! The program as its users meet it: the real executable, real Redis servers, real sockets, real clients.
//!
//! One topic a file. Everything waits for conditions, never for time; the only test servers are in `support`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

mod architecture;
mod backend_tls;
mod balancing;
mod bodies;
mod certificate_folder;
mod certificate_text;
mod certificates;
mod demo;
mod drain;
mod error_pages;
mod fleet;
mod fleet_mixed;
mod fuzz;
mod handshakes;
mod headers;
mod healthcheck;
mod hipache;
mod hostile_redis;
mod http1;
mod http2;
mod http2_bodies;
mod http2_informational;
mod http2_junk;
mod http2_limits;
mod http2_streams;
mod http2_websocket;
mod identity;
mod junk;
mod limits;
mod load;
mod logs;
mod malformed;
mod marks;
mod metrics;
mod names;
mod notifications;
mod passthrough;
mod redis_login;
mod removal;
mod reports;
mod retries;
mod selection;
mod sentinel;
mod session;
mod signals;
mod silent;
mod snapshot_file;
mod startup;
mod sticky;
mod table;
mod trust;
mod upstream;
mod via;
mod websocket;
