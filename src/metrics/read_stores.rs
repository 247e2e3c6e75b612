//! Read stores as metrics: each once for Prometheus, and by Projection for autoscalers. A value that is not known is absent, never zero.

use std::{collections::BTreeMap, fmt, time::Instant};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::Metric;
use crate::{
    api::Reason,
    measure::MeasureError,
    metrics_api::Quantity,
    snapshot::{Observation, SharedSnapshot, Snapshot},
    store_health::{StoreName, StoreObservation, StoreSample},
};

/// A value of a read store, and why it may be absent.
pub(super) type StoreReading = (fn(&StoreSample) -> Option<Quantity>, &'static str);

/// The value of a read store that this metric is; `None` for metrics of the lag.
pub(super) fn reading(metric: Metric) -> Option<StoreReading> {
    match metric {
        Metric::ReadStoreConnections => Some((
            |sample| sample.connections.map(|connections| Quantity::count(connections.used)),
            "the read store does not tell its connections: see status.readStore.reason",
        )),
        Metric::ReadStoreConnectionsRatio => Some((
            |sample| sample.connections.and_then(|connections| connections.ratio()).and_then(Quantity::measured),
            "the read store does not tell its connections or has no limit of them: see status.readStore",
        )),
        Metric::ReadStoreLatencySeconds => {
            Some((|sample| Some(Quantity::seconds(sample.latency)), "the read store was not asked"))
        }
        Metric::PendingEvents
        | Metric::QueueLength
        | Metric::HeldBackEvents
        | Metric::StalenessSeconds
        | Metric::RequiredWorkers
        | Metric::ParkedEvents
        | Metric::ArrivalRate
        | Metric::DrainSeconds
        | Metric::Value => None,
    }
}

/// The value of one Projection's read store and when it was taken, or why there is none.
pub(super) fn read(
    snapshot: &Snapshot,
    observation: &Observation,
    (reading, absent): StoreReading,
    now: Instant,
) -> Result<(Quantity, jiff::Timestamp), MeasureError> {
    let Some(store) = snapshot.read_store_of(observation) else {
        return Err(MeasureError {
            reason: Reason::NotMeasuredYet,
            message: "there is no spec.readStore, or it is not known yet which server it is".to_owned(),
        });
    };
    let value = reading(store.current(now)?);
    let taken = store.newest.as_ref().map(|newest| newest.taken);
    value.zip(taken).ok_or_else(|| MeasureError { reason: Reason::InvalidAnswer, message: absent.to_owned() })
}

/// The metrics of read stores for Prometheus.
pub(super) struct ReadStorePage(pub(super) SharedSnapshot);

impl fmt::Debug for ReadStorePage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadStorePage")
    }
}

/// Counts stay far below 2^53, above which a float would round them.
#[allow(clippy::cast_precision_loss)]
fn float(count: u64) -> f64 {
    count as f64
}

type Gauge = (&'static str, &'static str, fn(&StoreSample) -> Option<f64>);
type Total = (&'static str, &'static str, fn(&StoreSample) -> Option<u64>);

const GAUGES: [Gauge; 6] = [
    ("read_store_latency_seconds", "Time in which a read store answers one small request", |sample| {
        Some(sample.latency.as_secs_f64())
    }),
    ("read_store_connections", "Connections of a read store in use, of all its clients", |sample| {
        sample.connections.map(|connections| float(connections.used))
    }),
    ("read_store_connections_limit", "The most connections that a read store allows", |sample| {
        sample.connections.and_then(|connections| connections.limit).map(float)
    }),
    ("read_store_memory_bytes", "Memory of a read store in use (Redis)", |sample| {
        sample.memory.map(|memory| float(memory.used))
    }),
    ("read_store_memory_limit_bytes", "The most memory that a read store takes (Redis)", |sample| {
        sample.memory.and_then(|memory| memory.limit).map(float)
    }),
    ("read_store_write_queue", "Writes that wait for a thread (Elasticsearch, OpenSearch)", |sample| {
        sample.writes.map(|writes| float(writes.queued))
    }),
];

const TOTALS: [Total; 3] = [
    ("read_store_rejected_connections", "Connections that a read store refused for want of room (Redis)", |sample| {
        sample.rejected_connections
    }),
    ("read_store_evicted_keys", "Keys that a read store removed for want of memory (Redis)", |sample| {
        sample.evicted_keys
    }),
    (
        "read_store_rejected_writes",
        "Writes that a read store refused for want of room (Redis, Elasticsearch, OpenSearch)",
        StoreSample::rejected_writes,
    ),
];

/// Each name once. Where Secrets hold two passwords of one user, one that works counts.
fn by_name(snapshot: &Snapshot, now: Instant) -> BTreeMap<&StoreName, &StoreObservation> {
    let mut all: BTreeMap<&StoreName, &StoreObservation> = BTreeMap::new();
    for store in snapshot.read_stores.values() {
        let kept = all.entry(&store.name).or_insert(store);
        if kept.current(now).is_err() {
            *kept = store;
        }
    }
    all
}

fn labels(StoreName { kind, server, user }: &StoreName) -> [(&'static str, &str); 3] {
    [("kind", kind), ("server", server), ("user", user)]
}

impl Collector for ReadStorePage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (snapshot, now) = (self.0.load(), Instant::now());
        let stores = by_name(&snapshot, now);
        let help = "1 where a read store answers, 0 where it does not";
        let mut family = encoder.encode_descriptor("read_store_up", help, None, MetricType::Gauge)?;
        for (name, store) in &stores {
            let up = match store.current(now) {
                Ok(_) => 1.0,
                Err(why) if matches!(why.reason, Reason::NotMeasuredYet | Reason::SampleTooOld) => continue,
                Err(_) => 0.0,
            };
            family.encode_family(&labels(name))?.encode_gauge(&up)?;
        }
        for (metric, help, reading) in GAUGES {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Gauge)?;
            for (name, store) in &stores {
                if let Some(value) = store.current(now).ok().and_then(reading) {
                    family.encode_family(&labels(name))?.encode_gauge(&value)?;
                }
            }
        }
        for (metric, help, reading) in TOTALS {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Counter)?;
            for (name, store) in &stores {
                if let Some(value) = store.current(now).ok().and_then(reading) {
                    family.encode_family(&labels(name))?.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;
    use crate::{
        api::ConnectionLimit,
        store_health::{Connections, Memory, Polled, StoreId},
    };

    fn store(user: &str, result: Option<Result<StoreSample, Reason>>) -> Arc<StoreObservation> {
        let newest = result.map(|result| Polled {
            result: result.map_err(|reason| MeasureError { reason, message: String::new() }),
            taken: jiff::Timestamp::UNIX_EPOCH,
            valid_until: Instant::now() + Duration::from_secs(600),
        });
        let name = StoreName { kind: "redis", server: "db:6379".into(), user: user.into() };
        Arc::new(StoreObservation { name, newest, strain: None })
    }

    #[test]
    fn each_store_is_shown_once_and_what_is_unknown_not_at_all() {
        let connections = Connections { used: 7, exact: true, limit: Some(100), limited_by: ConnectionLimit::Server };
        let sample = StoreSample {
            latency: Duration::from_millis(2),
            connections: Some(connections),
            memory: Some(Memory { used: 5, limit: None }),
            evicted_keys: Some(3),
            refused_writes: Some(12),
            ..StoreSample::default()
        };
        let refused = || Some(Err(Reason::AuthenticationFailed));
        let stores = [
            // Two Secrets name one user, one of them with a wrong password.
            (StoreId(1), store("shop", refused())),
            (StoreId(2), store("shop", Some(Ok(sample)))),
            (StoreId(3), store("shop", refused())),
            (StoreId(4), store("other", refused())),
            (StoreId(5), store("new", None)),
        ];
        let snapshot = SharedSnapshot::default();
        snapshot.publish(Snapshot { read_stores: Arc::new(stores.into()), ..Snapshot::default() });
        let mut registry = Registry::with_prefix("projectionist");
        registry.register_collector(Box::new(ReadStorePage(snapshot)));
        let mut page = String::new();
        encode(&mut page, &registry).unwrap();
        let lines: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
        let shop = r#"{kind="redis",server="db:6379",user="shop"}"#;
        assert_eq!(
            lines,
            [
                r#"projectionist_read_store_up{kind="redis",server="db:6379",user="other"} 0.0"#.to_owned(),
                format!("projectionist_read_store_up{shop} 1.0"),
                format!("projectionist_read_store_latency_seconds{shop} 0.002"),
                format!("projectionist_read_store_connections{shop} 7.0"),
                format!("projectionist_read_store_connections_limit{shop} 100.0"),
                format!("projectionist_read_store_memory_bytes{shop} 5.0"),
                format!("projectionist_read_store_evicted_keys_total{shop} 3"),
                format!("projectionist_read_store_rejected_writes_total{shop} 12"),
            ]
        );
    }
}
