//! PlanB

pub mod routing;
pub mod store;
pub mod sync;
pub mod telemetry;
