//! PlanB: a distributed HTTP, WebSocket and TLS reverse proxy whose routes live in Redis.
//!
//! | module | job |
//! |---|---|
//! | [`cli`], [`config`] | flags and environment, turned into each part's own configuration once |
//! | [`app`], [`drain`] | put the parts together, start them, watch them, end them in order |
//! | [`routing`] | pure: which backend answers a request |
//! | [`store`] | Redis: sessions, keys and messages; the only importer of the client library |
//! | [`sync`] | keeps routes and certificates in step with Redis, and carries dead marks back to it |
//! | [`health`] | the active health check: leases, whose turn it is, the request that a dead backend must answer |
//! | [`message`] | pure: what an HTTP/1.1 message says, and how it is said on |
//! | [`proxy`] | from an accepted connection to a finished response |
//! | [`dial`], [`transport`] | connections to backends, and what HTTP is spoken over |
//! | [`tls`] | which certificate answers which name; presets, ticket keys, the reader of a ClientHello |
//! | [`telemetry`] | metrics, access log, error log, the operators' listener |
//! | [`roots`], [`secret`], [`files`], [`clock`], [`memory`] | whose certificates are believed; text that is never shown; files that an operator names; points in time; how much memory there is |
//! | [`demo`] | the main job before one's eyes, on this machine alone |
//!
//! One task, the [`sync::Syncer`], keeps a [`routing::Snapshot`] current. Requests read it through
//! [`routing::Routes`] and never wait for Redis; failures travel to the Redis master through a bounded queue, by way of the
//! [`sync::Reporter`]. Where it is wanted, the [`health::Checker`] asks dead backends whether they are well again. Requests run
//! on one single-threaded runtime per core; everything else shares a small one, so that it never delays a request.

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod dial;
pub mod drain;
pub mod files;
pub mod health;
pub mod memory;
pub mod message;
pub mod proxy;
pub mod roots;
pub mod routing;
pub mod secret;
pub mod store;
pub mod sync;
pub mod telemetry;
pub mod tls;
pub mod transport;
