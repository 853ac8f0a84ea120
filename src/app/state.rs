//! What many parts of the process read, and report to.

use std::sync::Arc;

use crate::{
    clock::Clock,
    routing::Routes,
    telemetry::{Activities, Metrics, StoreHealth},
};

/// The process's shared state. Cloning shares it.
#[derive(Clone)]
pub struct State {
    /// The routing table.
    pub routes: Routes,
    /// The clock of the table's dead marks and of its age.
    pub clock: Clock,
    /// Whether the table is current.
    pub health: Arc<StoreHealth>,
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// What requests are doing.
    pub activities: Arc<Activities>,
}

impl State {
    /// With an empty table that is not loaded yet.
    pub fn new(metrics: &Arc<Metrics>) -> Self {
        let clock = Clock::start();
        Self {
            routes: Routes::default(),
            clock,
            health: Arc::new(StoreHealth::starting(clock.now())),
            metrics: Arc::clone(metrics),
            activities: Arc::default(),
        }
    }
}
