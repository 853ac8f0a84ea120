//! Things that exist, counted by a gauge.

/// Keeps a gauge one higher while it lives.
pub struct Counted(prometheus::IntGauge);

impl Counted {
    /// Counts one more.
    pub fn one(gauge: &prometheus::IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
