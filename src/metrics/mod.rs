//! The metrics of a Projection: what each is, and its name for each reader.
//!
//! [`served`] answers autoscalers, [`page`] answers Prometheus; both read the snapshot.

pub mod page;
mod read_stores;
pub mod served;

pub use page::{ControllerMetrics, Metrics};
pub use served::{ServedMetrics, measured_kind};

/// External metrics whose names begin with this are the operator's, whether such a metric exists or not.
pub const PREFIX: &str = "projection_";

/// A metric of a Projection.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Metric {
    /// Committed events beyond the checkpoint.
    PendingEvents,
    /// The same number, by the name that queues use.
    QueueLength,
    /// Those of the pending events that may not be read yet.
    HeldBackEvents,
    /// Age of the oldest unprocessed event in seconds.
    StalenessSeconds,
    /// Workers that hold the lag target, within the bounds.
    RequiredWorkers,
    /// Events that were set aside after failing.
    ParkedEvents,
    /// Events that arrive per second.
    ArrivalRate,
    /// Seconds until nothing waits.
    DrainSeconds,
    /// The plain value that a source tells in place of what waits.
    Value,
    /// Connections of the read store in use, of all its clients.
    ReadStoreConnections,
    /// The part of the read store's limit of connections that is in use: 1 is all of it.
    ReadStoreConnectionsRatio,
    /// Seconds that the read store takes to answer one small request.
    ReadStoreLatencySeconds,
}

impl Metric {
    /// All of them, in the order in which discovery and documentation list them.
    pub const ALL: [Self; 12] = [
        Self::PendingEvents,
        Self::QueueLength,
        Self::HeldBackEvents,
        Self::StalenessSeconds,
        Self::RequiredWorkers,
        Self::ParkedEvents,
        Self::ArrivalRate,
        Self::DrainSeconds,
        Self::Value,
        Self::ReadStoreConnections,
        Self::ReadStoreConnectionsRatio,
        Self::ReadStoreLatencySeconds,
    ];

    /// Its name in `external.metrics.k8s.io` and for Prometheus.
    pub const fn external_name(self) -> &'static str {
        match self {
            Self::PendingEvents => "projection_pending_events",
            Self::QueueLength => "projection_queue_length",
            Self::HeldBackEvents => "projection_held_back_events",
            Self::StalenessSeconds => "projection_staleness_seconds",
            Self::RequiredWorkers => "projection_required_workers",
            Self::ParkedEvents => "projection_parked_events",
            Self::ArrivalRate => "projection_arrival_rate",
            Self::DrainSeconds => "projection_drain_seconds",
            Self::Value => "projection_value",
            Self::ReadStoreConnections => "projection_read_store_connections",
            Self::ReadStoreConnectionsRatio => "projection_read_store_connections_ratio",
            Self::ReadStoreLatencySeconds => "projection_read_store_latency_seconds",
        }
    }

    /// Its name in `custom.metrics.k8s.io`, where the object says what it is about.
    pub fn object_name(self) -> &'static str {
        self.external_name().trim_start_matches(PREFIX)
    }

    /// The metric with this external name.
    pub fn by_external_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.external_name() == name)
    }

    /// The metric with this name on a Projection.
    pub fn by_object_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.object_name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_metric_and_to_no_other() {
        for metric in Metric::ALL {
            assert!(metric.external_name().starts_with(PREFIX) && !metric.object_name().starts_with(PREFIX));
            assert_eq!(Metric::by_external_name(metric.external_name()), Some(metric));
            assert_eq!(Metric::by_object_name(metric.object_name()), Some(metric));
            assert_eq!(Metric::by_external_name(metric.object_name()), None);
        }
    }
}
