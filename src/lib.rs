//! PlanB: a distributed HTTP and WebSocket reverse proxy whose routes live in Redis.

pub mod routing;
