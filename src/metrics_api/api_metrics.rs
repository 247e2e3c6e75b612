//! Metrics about the metrics API itself.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};

use super::delegate::DelegateMetrics;

/// Upper bounds in seconds: fine where requests are answered from memory, coarse where the cluster was asked.
const DURATIONS: [f64; 12] = [25e-6, 50e-6, 100e-6, 150e-6, 200e-6, 300e-6, 500e-6, 1e-3, 5e-3, 25e-3, 0.1, 1.0];

/// What the server counts. Clones count together.
#[derive(Clone, Debug)]
pub struct ApiMetrics {
    /// Requests that were refused because their caller exceeds its rate limit.
    pub throttled: Counter,
    /// Seconds from a complete request to its answer: authentication, authorization, the value and the JSON. Without TLS and HTTP, and without
    /// requests that wait for a read model.
    pub duration: Histogram,
    /// Requests that wait for a read model now.
    pub awaiting: Gauge,
    /// Counts about other adapters.
    pub delegates: DelegateMetrics,
}

impl Default for ApiMetrics {
    fn default() -> Self {
        Self {
            throttled: Counter::default(),
            awaiting: Gauge::default(),
            duration: Histogram::new(DURATIONS),
            delegates: DelegateMetrics::default(),
        }
    }
}
