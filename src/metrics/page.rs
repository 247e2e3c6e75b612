//! The metrics that the operator exposes to Prometheus, about itself and about Projections.
//!
//! Labels are namespaces and names of Projections, never texts of errors. Gauges of Projections are read from the snapshot at each scrape, so those
//! of a deleted Projection disappear with it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use kube::runtime::reflector::{ObjectRef, Store};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet, text::encode},
    metrics::{MetricType, counter::Counter, histogram::Histogram},
    registry::Registry,
};

use super::{Metric, read_stores::ReadStorePage};
use crate::{
    api::{Projection, RunWorkers, WorkersStatus},
    measure::{ProjectionKey, RunKey},
    metrics_api::ApiMetrics,
    resolve::run_of,
    sampler::SamplerMetrics,
    snapshot::{Measured, SharedSnapshot},
};

/// What the controller counts.
#[derive(Debug)]
pub struct ControllerMetrics {
    /// Rounds.
    pub reconciles: Counter,
    /// Rounds in which something could not be written.
    pub failures: Counter,
    /// Seconds a round took.
    pub duration: Histogram,
    /// Writes of a status.
    pub status_writes: Counter,
}

impl Default for ControllerMetrics {
    fn default() -> Self {
        Self {
            reconciles: Counter::default(),
            failures: Counter::default(),
            duration: Histogram::new([0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0]),
            status_writes: Counter::default(),
        }
    }
}

/// All metrics, as a page.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
}

impl Metrics {
    /// Puts them together.
    pub fn new(
        controller: &ControllerMetrics,
        api: &ApiMetrics,
        sampler: Arc<SamplerMetrics>,
        snapshot: SharedSnapshot,
        projections: Store<Projection>,
    ) -> Self {
        let mut registry = Registry::with_prefix("projectionist");
        registry.register("reconciles", "Rounds of reconciling a Projection", controller.reconciles.clone());
        registry.register(
            "reconcile_failures",
            "Rounds in which something could not be written",
            controller.failures.clone(),
        );
        registry.register("reconcile_duration_seconds", "Time that a round took", controller.duration.clone());
        registry.register("status_writes", "Writes of a Projection's status", controller.status_writes.clone());
        registry.register(
            "metrics_api_throttled_requests",
            "Requests to the metrics API refused since their caller asks too often",
            api.throttled.clone(),
        );
        registry.register("awaiting_requests", "Requests that wait for a read model", api.awaiting.clone());
        registry.register(
            "metrics_api_request_duration_seconds",
            "Time from a request to the metrics API to its answer, without TLS and HTTP",
            api.duration.clone(),
        );
        registry.register(
            "metrics_api_delegated_requests",
            "Requests for metrics of another adapter, by how they ended",
            api.delegates.requests.clone(),
        );
        registry.register(
            "metrics_api_delegate_listed_timestamp_seconds",
            "When another adapter last said which metrics it has",
            api.delegates.listed.clone(),
        );
        registry.register_collector(Box::new(SamplerPage(sampler)));
        registry.register_collector(Box::new(ReadStorePage(snapshot.clone())));
        registry.register_collector(Box::new(ProjectionPage { snapshot, projections }));
        Self { registry: Arc::new(registry) }
    }

    /// The page, in the OpenMetrics text format.
    pub fn page(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

#[derive(Debug)]
struct SamplerPage(Arc<SamplerMetrics>);

impl Collector for SamplerPage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let SamplerMetrics { samples, failures, polls, poll_microseconds, pushes, servers, snapshots } = &*self.0;
        for (name, help, value) in [
            ("samples", "Samples taken, one a Projection and poll", samples),
            ("sample_failures", "Failures instead of samples", failures),
            ("polls", "Polls of a source", polls),
            ("pushes", "Polls that a source asked for", pushes),
            ("snapshots", "Snapshots published", snapshots),
        ] {
            encoder
                .encode_descriptor(name, help, None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, u64, u64>(&value.load(Ordering::Relaxed), None)?;
        }
        encoder
            .encode_descriptor("poll_seconds", "Time spent in polls", None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, f64, u64>(&seconds(poll_microseconds), None)?;
        let servers = i64::try_from(servers.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        encoder
            .encode_descriptor("servers", "Distinct connections to event sources and read stores that Projections name, by server and credentials", None, MetricType::Gauge)?
            .encode_gauge(&servers)
    }
}

/// Microseconds stay far below 2^53, above which a float would round them.
#[allow(clippy::cast_precision_loss)]
fn seconds(microseconds: &AtomicU64) -> f64 {
    microseconds.load(Ordering::Relaxed) as f64 / 1e6
}

struct ProjectionPage {
    snapshot: SharedSnapshot,
    projections: Store<Projection>,
}

impl fmt::Debug for ProjectionPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProjectionPage")
    }
}

/// A gauge's value, where it is known: an unknown one is absent, never zero.
type Reading = fn(&Measured) -> Option<f64>;
/// Counts stay far below 2^53, above which a float would round them.
#[allow(clippy::cast_precision_loss)]
fn float(count: u64) -> f64 {
    count as f64
}

/// A metric's help text and value in Prometheus. Absent for metrics that would only repeat another.
fn shown(metric: Metric) -> Option<(&'static str, Reading)> {
    Some(match metric {
        Metric::RequiredWorkers => ("Workers that hold the lag target, within the bounds", |measured| {
            Some(f64::from(measured.assessment.required.workers))
        }),
        Metric::PendingEvents => ("Committed events beyond the checkpoint", |measured| {
            measured.assessment.counted().map(|pending| float(pending.events))
        }),
        Metric::HeldBackEvents => {
            ("Those of the pending events that may not be read before an open transaction has ended", |measured| {
                measured.assessment.counted().map(|_| float(measured.sample.held_back))
            })
        }
        Metric::StalenessSeconds => ("Age of the oldest unprocessed event", |measured| {
            measured.assessment.staleness.map(|staleness| staleness.as_secs_f64())
        }),
        Metric::ArrivalRate => {
            ("Events that arrive per second, as the model assumes", |measured| measured.assessment.rates.arrival)
        }
        Metric::DrainSeconds => ("Seconds until nothing waits, at today's rates", |measured| {
            measured.assessment.drain.map(|drain| drain.as_secs_f64())
        }),
        Metric::ParkedEvents => {
            ("Events set aside after failing, where the source tells", |measured| measured.sample.parked.map(float))
        }
        Metric::Value => ("The plain value that the source tells", |measured| measured.sample.value),
        // Read stores are shown by themselves, each once.
        Metric::ReadStoreConnections | Metric::ReadStoreConnectionsRatio | Metric::ReadStoreLatencySeconds => {
            return None;
        }
        Metric::QueueLength => return None,
    })
}

/// A number of workers from the status, where it has one.
type Count = fn(&WorkersStatus) -> Option<i32>;

impl ProjectionPage {
    /// Those that only Prometheus has.
    const READINGS: [(&'static str, &'static str, Reading); 3] = [
        ("projection_arrived_events", "Committed events that came since measuring the source began", |measured| {
            measured.assessment.counted().map(|_| float(measured.sample.arrived))
        }),
        ("projection_worker_rate", "Events that one busy worker handles per second, as learnt", |measured| {
            measured.assessment.rates.per_worker
        }),
        ("projection_prediction_ratio", "Events that came over those expected; 1 is a right prediction", |measured| {
            measured.assessment.prediction.map(|prediction| prediction.ratio())
        }),
    ];

    /// What the Projection's status says of workers.
    const COUNTS: [(&'static str, &'static str, Count); 2] = [
        ("projection_desired_workers", "Workers that the workload is asked to run", |workers| workers.desired),
        ("projection_ready_workers", "Workers that are ready", |workers| workers.ready),
    ];

    /// Absent for a Projection that has one run only, and where no status says what readers see.
    fn is_live(&self, run: &RunKey) -> Option<bool> {
        let ProjectionKey { namespace, name } = &run.projection;
        let projection = self.projections.get(&ObjectRef::new(name).within(namespace))?;
        Some(projection.status.as_ref()?.live_version()? == run.version.as_deref()?)
    }

    /// How far a version has come that is being built, 0 to 1.
    fn progress(&self, run: &RunKey) -> Option<f64> {
        let ProjectionKey { namespace, name } = &run.projection;
        let projection = self.projections.get(&ObjectRef::new(name).within(namespace))?;
        let runs = &projection.status.as_ref()?.runs;
        let said = runs.iter().find(|said| Some(&*said.version) == run.version.as_deref() && said.pending.is_some())?;
        Some(said.progress?.percent / 100.0)
    }

    /// The number in the status.
    fn count(&self, run: &RunKey, count: Count) -> Option<f64> {
        let ProjectionKey { namespace, name } = &run.projection;
        let projection = self.projections.get(&ObjectRef::new(name).within(namespace))?;
        let status = projection.status.as_ref()?;
        if run_of(&projection) == *run {
            return count(status.workers.as_ref()?).map(f64::from);
        }
        let RunWorkers { required, desired, ready } = status.workers_of(run.version.as_deref()?)?;
        count(&WorkersStatus { required, desired, ready, ..WorkersStatus::default() }).map(f64::from)
    }
}

impl Collector for ProjectionPage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (snapshot, now) = (self.snapshot.load(), Instant::now());
        let all = || snapshot.namespaces.values().flat_map(|runs| runs.iter());
        let of_metrics = Metric::ALL
            .into_iter()
            .filter_map(|metric| shown(metric).map(|(help, reading)| (metric.external_name(), help, reading)));
        for (metric, help, reading) in of_metrics.chain(Self::READINGS) {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Gauge)?;
            for (run, observation) in all() {
                if let Some(value) = observation.current(now).ok().and_then(reading) {
                    family.encode_family(&labels(run))?.encode_gauge(&value)?;
                }
            }
        }
        let (metric, help) =
            ("projection_live", "1 for the run whose version readers see, 0 for another of its Projection");
        let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Gauge)?;
        for (run, _) in all() {
            if let Some(live) = self.is_live(run) {
                family.encode_family(&labels(run))?.encode_gauge(&i64::from(live))?;
            }
        }
        let (metric, help) = (
            "projection_rebuild_progress_ratio",
            "Of a version that readers do not see yet: the part of its events that do not wait any more",
        );
        let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Gauge)?;
        for (run, _) in all() {
            if let Some(ratio) = self.progress(run) {
                family.encode_family(&labels(run))?.encode_gauge(&ratio)?;
            }
        }
        for (metric, help, count) in Self::COUNTS {
            let mut family = encoder.encode_descriptor(metric, help, None, MetricType::Gauge)?;
            for (run, _) in all() {
                if let Some(value) = self.count(run, count) {
                    family.encode_family(&labels(run))?.encode_gauge(&value)?;
                }
            }
        }
        Ok(())
    }
}

/// The labels of a run's metrics: no two runs have the same.
fn labels(RunKey { projection, version }: &RunKey) -> Vec<(&'static str, &str)> {
    let ProjectionKey { namespace, name } = projection;
    let version = version.as_deref().map(|version| ("version", version));
    [("namespace", &**namespace), ("projection", &**name)].into_iter().chain(version).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_of_one_projection_have_metrics_of_their_own() {
        let only = RunKey::unversioned("shop", "orders");
        let second = RunKey { version: Some("v2".into()), ..only.clone() };
        assert_eq!(labels(&only), [("namespace", "shop"), ("projection", "orders")]);
        assert_eq!(labels(&second), [("namespace", "shop"), ("projection", "orders"), ("version", "v2")]);
    }
}
