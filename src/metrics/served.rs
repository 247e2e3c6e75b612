//! The snapshot as the metrics API serves it: as external metrics with the Projection as a label, and as metrics of the Projection.
//!
//! A projection that is known and has no value now is an error that says why, so that an autoscaler holds; it is never zero and never
//! left out of a list.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Instant,
};

use futures::FutureExt;
use kube::{
    Resource,
    runtime::reflector::{ObjectRef, Store},
};
use tokio::sync::watch;

use super::{Metric, read_stores};
use crate::{
    api::{Projection, Reason},
    lag::ARRIVAL_TIME_CONSTANT,
    leader_required::Following,
    measure::RunKey,
    metrics_api::{
        ExternalValue, MeasuredKind, MetricValues, ObjectQuery, ObjectValue, Quantity, Selector, ValueError,
    },
    names::{METRIC_PROJECTION_LABEL, METRIC_VERSION_LABEL},
    required_workers::RequiredWorkers,
    resolve::run_of,
    snapshot::{Measured, Observation, SharedSnapshot, Snapshot},
};

/// The Projection as a kind of object that has metrics.
pub fn measured_kind() -> MeasuredKind {
    MeasuredKind {
        kind: Projection::kind(&()).into_owned(),
        api_version: Projection::api_version(&()).into_owned(),
        resource: format!("{}.{}", Projection::plural(&()), Projection::group(&())),
        metrics: Metric::ALL.into_iter().map(|metric| metric.object_name().to_owned()).collect(),
    }
}

/// Answers from the newest snapshot.
#[derive(Clone)]
pub struct ServedMetrics {
    snapshot: SharedSnapshot,
    known: Option<Store<Projection>>,
    following: Option<watch::Receiver<Following>>,
}

/// What is looked for.
#[derive(Clone, Debug)]
struct Search<'a> {
    namespace: &'a str,
    metric: Metric,
    /// The metric's name in the group that was asked, for messages.
    called: &'a str,
    /// Only these, each of which must exist.
    names: Option<BTreeSet<&'a str>>,
    selects: Selects<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Selects<'a> {
    /// An external metric has one set of labels: the Projection's own and, as `projection`, its name.
    Mixed(&'a Selector),
    /// A Projection has labels, and its metric has the label `projection`.
    Apart { object: &'a Selector, metric: &'a Selector },
}

impl Selects<'_> {
    /// `version`: of the run, where it has one.
    fn holds(self, name: &str, version: Option<&str>, labels: &BTreeMap<String, String>) -> bool {
        let of_metric = |key: &str| match key {
            METRIC_PROJECTION_LABEL => Some(name),
            METRIC_VERSION_LABEL => version,
            _ => None,
        };
        match self {
            Self::Mixed(selector) => {
                selector.matches_by(|key| of_metric(key).or_else(|| labels.get(key).map(String::as_str)))
            }
            Self::Apart { object, metric } => object.matches(labels) && metric.matches_by(of_metric),
        }
    }

    fn wants(self, projection: &Projection, run: &RunKey) -> bool {
        let none = BTreeMap::new();
        let labels = projection.metadata.labels.as_ref().unwrap_or(&none);
        self.holds(projection.metadata.name.as_deref().unwrap_or_default(), run.version.as_deref(), labels)
    }

    /// The versions that are asked for by name.
    fn versions(&self) -> Option<BTreeSet<&str>> {
        match self {
            Self::Mixed(metric) | Self::Apart { metric, .. } => metric.named(METRIC_VERSION_LABEL),
        }
    }
}

impl fmt::Display for Selects<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mixed(selector) => write!(f, "{:?}", selector.to_string()),
            Self::Apart { object, metric } => {
                write!(f, "{:?} with the metric's labels {:?}", object.to_string(), metric.to_string())
            }
        }
    }
}

/// A value of one Projection.
#[derive(Debug)]
struct Found {
    run: RunKey,
    timestamp: jiff::Timestamp,
    window_seconds: Option<u64>,
    value: Quantity,
}

impl ServedMetrics {
    /// Serves this snapshot. What it does not hold does not exist.
    pub fn new(snapshot: SharedSnapshot) -> Self {
        Self { snapshot, known: None, following: None }
    }

    /// Takes from the watch which Projections there are, so that one which no snapshot holds yet, just created or just after a
    /// start, is unknown instead of not found, and a namesake of a deleted one does not inherit its value.
    pub fn knowing(self, projections: Store<Projection>) -> Self {
        Self { known: Some(projections), ..self }
    }

    /// While another replica leads, repeats how many workers that one asks for, by the Projection's status, as long as the leader vouches for
    /// it. Each replica measures for itself and came to know each burst at another moment: two numbers would send the autoscaler up and down.
    pub fn following(self, following: watch::Receiver<Following>) -> Self {
        Self { following: Some(following), ..self }
    }

    fn leader_required(&self, projection: &Projection, run: &RunKey) -> Option<u32> {
        let following = self.following.as_ref()?.borrow();
        match &run.version {
            Some(version) if *run != run_of(projection) => following.required_of(projection, version),
            _ => following.required(projection),
        }
    }

    fn external_at(
        &self,
        namespace: &str,
        metric: &str,
        selector: &Selector,
        now: Instant,
    ) -> Result<Vec<ExternalValue>, ValueError> {
        let Some(known) = Metric::by_external_name(metric) else {
            return Err(ValueError::NotFound(format!(
                "there is no metric {metric:?}: there are {}",
                Metric::ALL.map(Metric::external_name).join(", ")
            )));
        };
        let found = self.find(
            &Search {
                namespace,
                metric: known,
                called: metric,
                names: selector.named(METRIC_PROJECTION_LABEL),
                selects: Selects::Mixed(selector),
            },
            now,
        )?;
        let labels = |RunKey { projection, version }: RunKey| {
            let version = version.map(|version| (METRIC_VERSION_LABEL.to_owned(), version.to_string()));
            [(METRIC_PROJECTION_LABEL.to_owned(), projection.name.to_string())].into_iter().chain(version).collect()
        };
        let value = |Found { run, timestamp, window_seconds, value }| ExternalValue {
            labels: labels(run),
            timestamp,
            window_seconds,
            value,
        };
        Ok(found.into_iter().map(value).collect())
    }

    fn objects_at(&self, query: &ObjectQuery<'_>, now: Instant) -> Result<Vec<ObjectValue>, ValueError> {
        let ObjectQuery { namespace, name, labels, metric, metric_labels } = *query;
        let Some(known) = Metric::by_object_name(metric) else {
            return Err(ValueError::NotFound(format!("Projections have no metric {metric:?}")));
        };
        let found = self.find(
            &Search {
                namespace,
                metric: known,
                called: metric,
                names: name.map(|name| BTreeSet::from([name])),
                selects: Selects::Apart { object: labels, metric: metric_labels },
            },
            now,
        )?;
        let value = |Found { run, timestamp, window_seconds, value }| ObjectValue {
            name: run.projection.name.to_string(),
            timestamp,
            window_seconds,
            value,
        };
        Ok(found.into_iter().map(value).collect())
    }

    fn find(&self, search: &Search<'_>, now: Instant) -> Result<Vec<Found>, ValueError> {
        if self.known.as_ref().is_some_and(|known| !matches!(known.wait_until_ready().now_or_never(), Some(Ok(())))) {
            return Err(ValueError::Unavailable(
                "the operator does not know yet which Projections there are".to_owned(),
            ));
        }
        let snapshot = self.snapshot.load();
        let found = match &search.names {
            Some(names) => self.named(&snapshot, search, names, now)?,
            None => self.all(&snapshot, search, now)?,
        };
        if found.is_empty() { Err(nothing(search)) } else { Ok(found) }
    }

    /// Each of the names must exist, since a sum that lacks one is too small; other requirements may still leave it out.
    fn named(
        &self,
        snapshot: &Snapshot,
        search: &Search<'_>,
        names: &BTreeSet<&str>,
        now: Instant,
    ) -> Result<Vec<Found>, ValueError> {
        let namespace = search.namespace;
        let versions = search.selects.versions();
        let mut values = Vec::with_capacity(names.len());
        for name in names {
            let projection = match &self.known {
                None => None,
                Some(known) => {
                    let projection = known.get(&ObjectRef::new(name).within(namespace));
                    Some(projection.ok_or_else(|| missing_projection(namespace, name))?)
                }
            };
            for run in runs(namespace, name, projection.as_deref(), versions.as_ref()) {
                let observation = snapshot.get(&run);
                let (observation, word) = match (&projection, observation) {
                    (None, observation) => (observation.ok_or_else(|| missing_projection(namespace, name))?, None),
                    (Some(projection), Some(it)) if is_of(it, projection) => {
                        (it, self.leader_required(projection, &run))
                    }
                    (Some(projection), _) if !search.selects.wants(projection, &run) => continue,
                    _ => return Err(not_measured(search, name)),
                };
                if search.selects.holds(name, run.version.as_deref(), &observation.labels) {
                    values.push(value(search, run, snapshot, observation, word, now)?);
                }
            }
        }
        Ok(values)
    }

    fn all(&self, snapshot: &Snapshot, search: &Search<'_>, now: Instant) -> Result<Vec<Found>, ValueError> {
        let here = snapshot.namespaces.get(search.namespace).map(Arc::as_ref);
        if let Some(known) = &self.known {
            let unseen = known.find(|projection| {
                let run = run_of(projection);
                let measured = here.and_then(|here| here.get(&run));
                projection.metadata.namespace.as_deref() == Some(search.namespace)
                    && !measured.is_some_and(|it| is_of(it, projection))
                    && search.selects.wants(projection, &run)
            });
            if let Some(projection) = unseen {
                return Err(not_measured(search, projection.metadata.name.as_deref().unwrap_or_default()));
            }
        }
        let versions = search.selects.versions();
        let named = here.into_iter().flatten();
        let matching =
            named.filter(|(run, it)| search.selects.holds(&run.projection.name, run.version.as_deref(), &it.labels));
        let existing = matching.filter_map(|(run, observation)| {
            let Some(known) = &self.known else {
                return run.version.is_none().then_some((run, observation, None));
            };
            let projection = known.get(&ObjectRef::new(&run.projection.name).within(search.namespace))?;
            let asked = run.version.as_deref().zip(versions.as_ref()).is_some_and(|(one, all)| all.contains(one));
            let serving = run_of(&projection);
            let counts = *run == serving || (asked && serving.version.is_some());
            counts.then(|| (run, observation, self.leader_required(&projection, run)))
        });
        existing.map(|(run, observation, word)| value(search, run.clone(), snapshot, observation, word, now)).collect()
    }
}

/// The runs that are meant by this name: those of the versions that are asked for or, where none are, the one that serves readers.
fn runs(
    namespace: &str,
    name: &str,
    projection: Option<&Projection>,
    versions: Option<&BTreeSet<&str>>,
) -> Vec<RunKey> {
    let serving = projection.map_or_else(|| RunKey::unversioned(namespace, name), run_of);
    match versions.filter(|_| serving.version.is_some()) {
        Some(versions) => {
            let of = |version: &&str| RunKey { version: Some((*version).into()), ..serving.clone() };
            versions.iter().map(of).collect()
        }
        None => vec![serving],
    }
}

impl MetricValues for ServedMetrics {
    fn external(&self, namespace: &str, metric: &str, selector: &Selector) -> Result<Vec<ExternalValue>, ValueError> {
        self.external_at(namespace, metric, selector, Instant::now())
    }

    fn objects(&self, query: &ObjectQuery<'_>) -> Result<Vec<ObjectValue>, ValueError> {
        self.objects_at(query, Instant::now())
    }
}

fn is_of(observation: &Observation, projection: &Projection) -> bool {
    projection.metadata.uid.as_deref() == Some(&observation.uid)
}

fn missing_projection(namespace: &str, name: &str) -> ValueError {
    ValueError::NotFound(format!("there is no Projection {name:?} in the namespace {namespace:?}"))
}

fn not_measured(search: &Search<'_>, name: &str) -> ValueError {
    unavailable(search, name, &format!("{}: no sample has been taken yet", Reason::NotMeasuredYet))
}

fn unavailable(Search { namespace, called, .. }: &Search<'_>, name: &str, why: &str) -> ValueError {
    ValueError::Unavailable(format!("{called} of the Projection {namespace}/{name} is unknown: {why}"))
}

fn nothing(Search { namespace, names, selects, .. }: &Search<'_>) -> ValueError {
    let which = names.as_ref().map_or("no Projection".to_owned(), |names| {
        format!("none of the Projections {}", names.iter().copied().collect::<Vec<_>>().join(", "))
    });
    ValueError::NotFound(format!("{which} in the namespace {namespace:?} matches {selects}"))
}

/// `word`: the workers that the leader asks for, where that is what counts.
fn value(
    search: &Search<'_>,
    run: RunKey,
    snapshot: &Snapshot,
    observation: &Observation,
    word: Option<u32>,
    now: Instant,
) -> Result<Found, ValueError> {
    if let Some(reading) = read_stores::reading(search.metric) {
        let (value, timestamp) = read_stores::read(snapshot, observation, reading, now)
            .map_err(|why| unavailable(search, &run.projection.name, &format!("{}: {}", why.reason, why.message)))?;
        return Ok(Found { run, timestamp, window_seconds: None, value });
    }
    let measured = observation.current(now);
    if search.metric == Metric::RequiredWorkers {
        let sample = measured.as_ref().map(|measured| measured.assessment.required.workers);
        let required = RequiredWorkers::now(sample.map_err(|unknown| unknown.reason), word, observation.fallback);
        if let Some(workers) = required.served() {
            // Without a sample, the number holds as of now: there is nothing that it could be as old as.
            let timestamp = measured.map_or_else(|_| jiff::Timestamp::now(), |measured| measured.sample.taken);
            let value = Quantity::count(u64::from(workers));
            return Ok(Found { run, timestamp, window_seconds: None, value });
        }
    }
    let why = |why: &str| unavailable(search, &run.projection.name, why);
    let measured = measured.map_err(|unknown| why(&format!("{}: {}", unknown.reason, unknown.message)))?;
    let value = quantity(measured, search.metric).ok_or_else(|| why(missing(search.metric)))?;
    Ok(Found { run, timestamp: measured.sample.taken, window_seconds: window_seconds(search.metric), value })
}

/// A rate is an average over the last seconds, all else is as of the sample.
fn window_seconds(metric: Metric) -> Option<u64> {
    (metric == Metric::ArrivalRate).then_some(ARRIVAL_TIME_CONSTANT.as_secs())
}

fn quantity(measured: &Measured, metric: Metric) -> Option<Quantity> {
    let assessment = &measured.assessment;
    match metric {
        Metric::PendingEvents | Metric::QueueLength => {
            assessment.counted().map(|pending| Quantity::count(pending.events))
        }
        Metric::HeldBackEvents => assessment.counted().map(|_| Quantity::count(measured.sample.held_back)),
        Metric::Value => assessment.value.and_then(|value| Quantity::measured(value.value)),
        Metric::StalenessSeconds => assessment.staleness.map(Quantity::seconds),
        Metric::RequiredWorkers => Some(Quantity::count(u64::from(assessment.required.workers))),
        Metric::ArrivalRate => assessment.rates.arrival.and_then(Quantity::measured),
        Metric::DrainSeconds => assessment.drain.map(Quantity::seconds),
        Metric::ParkedEvents => measured.sample.parked.map(Quantity::count),
        Metric::ReadStoreConnections | Metric::ReadStoreConnectionsRatio | Metric::ReadStoreLatencySeconds => None,
    }
}

/// Why a measured projection may lack a value.
fn missing(metric: Metric) -> &'static str {
    match metric {
        Metric::StalenessSeconds => "the oldest unprocessed event has no time",
        Metric::ArrivalRate => "it takes two samples to know a rate",
        Metric::ParkedEvents => {
            "the source tells of no place where events that failed are kept, or the spec names none"
        }
        Metric::DrainSeconds => "the backlog does not shrink, or what a worker does is not learnt yet",
        Metric::PendingEvents | Metric::QueueLength | Metric::HeldBackEvents => {
            "the source tells a value (projection_value), and no events that wait"
        }
        Metric::Value => "the source tells events that wait, and no plain value that an autoscaler can read",
        Metric::RequiredWorkers
        | Metric::ReadStoreConnections
        | Metric::ReadStoreConnectionsRatio
        | Metric::ReadStoreLatencySeconds => "it was not measured",
    }
}

#[cfg(test)]
#[path = "served_tests.rs"]
mod tests;
