//! The snapshot as the metrics API serves it.
//!
//! A projection that is known and has no value now is an error that says why, so that an autoscaler holds; it is never zero and never
//! left out of a list.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use kube::runtime::reflector::{ObjectRef, Store};

use crate::{
    api::{Projection, Reason},
    metrics_api::{ExternalValue, MetricValues, Quantity, Selector, ValueError},
    names::{METRIC_PROJECTION_LABEL, metric},
    snapshot::{Measured, Observation, SharedSnapshot, Snapshot},
};

/// Answers from the newest snapshot.
#[derive(Clone)]
pub struct ServedMetrics {
    snapshot: SharedSnapshot,
    known: Option<Store<Projection>>,
}

impl ServedMetrics {
    /// Serves this snapshot. What it does not hold does not exist.
    pub fn new(snapshot: SharedSnapshot) -> Self {
        Self { snapshot, known: None }
    }

    /// Takes from the watch which Projections there are, so that one which no snapshot holds yet, just created or just after a
    /// start, is unknown instead of not found, and a namesake of a deleted one does not inherit its value.
    pub fn knowing(self, projections: Store<Projection>) -> Self {
        Self { known: Some(projections), ..self }
    }

    fn at(
        &self,
        namespace: &str,
        metric: &str,
        selector: &Selector,
        now: Instant,
    ) -> Result<Vec<ExternalValue>, ValueError> {
        let Some(metric) = metric::ALL.into_iter().find(|known| *known == metric) else {
            return Err(ValueError::NotFound(format!(
                "there is no metric {metric:?}: there are {}",
                metric::ALL.join(", ")
            )));
        };
        if self.known.as_ref().is_some_and(|known| !matches!(known.wait_until_ready().now_or_never(), Some(Ok(())))) {
            return Err(ValueError::Unavailable(
                "the operator does not know yet which Projections there are".to_owned(),
            ));
        }
        let snapshot = self.snapshot.load();
        let values = match selector.named(METRIC_PROJECTION_LABEL) {
            Some(names) => self.named(&snapshot, namespace, metric, selector, &names, now)?,
            None => self.all(&snapshot, namespace, metric, selector, now)?,
        };
        if values.is_empty() { Err(nothing(namespace, selector)) } else { Ok(values) }
    }

    /// Each of the names must exist, since a sum that lacks one is too small; other requirements may still leave it out.
    fn named(
        &self,
        snapshot: &Snapshot,
        namespace: &str,
        metric: &str,
        selector: &Selector,
        names: &BTreeSet<&str>,
        now: Instant,
    ) -> Result<Vec<ExternalValue>, ValueError> {
        let mut values = Vec::with_capacity(names.len());
        for name in names {
            let observation = snapshot.get(namespace, name);
            match &self.known {
                None => {}
                Some(known) => match known.get(&ObjectRef::new(name).within(namespace)) {
                    None => return Err(missing_projection(namespace, name)),
                    Some(projection) if observation.is_some_and(|it| is_of(it, &projection)) => {}
                    Some(projection) if !wants(selector, &projection) => continue,
                    Some(_) => return Err(not_measured(namespace, name, metric)),
                },
            }
            let observation = observation.ok_or_else(|| missing_projection(namespace, name))?;
            if selects(selector, name, &observation.labels) {
                values.push(value(namespace, name, observation, metric, now)?);
            }
        }
        Ok(values)
    }

    fn all(
        &self,
        snapshot: &Snapshot,
        namespace: &str,
        metric: &str,
        selector: &Selector,
        now: Instant,
    ) -> Result<Vec<ExternalValue>, ValueError> {
        let here = snapshot.namespaces.get(namespace).map(Arc::as_ref);
        if let Some(known) = &self.known {
            let unseen = known.find(|projection| {
                let measured = |name| here.and_then(|here| here.get(name)).is_some_and(|it| is_of(it, projection));
                projection.metadata.namespace.as_deref() == Some(namespace)
                    && !measured(projection.metadata.name.as_deref().unwrap_or_default())
                    && wants(selector, projection)
            });
            if let Some(projection) = unseen {
                return Err(not_measured(namespace, projection.metadata.name.as_deref().unwrap_or_default(), metric));
            }
        }
        let matching = here.into_iter().flatten().filter(|(name, it)| selects(selector, name, &it.labels));
        let existing = matching.filter(|(name, _)| {
            self.known.as_ref().is_none_or(|known| known.get(&ObjectRef::new(name).within(namespace)).is_some())
        });
        existing.map(|(name, observation)| value(namespace, name, observation, metric, now)).collect()
    }
}

impl MetricValues for ServedMetrics {
    fn external(&self, namespace: &str, metric: &str, selector: &Selector) -> Result<Vec<ExternalValue>, ValueError> {
        self.at(namespace, metric, selector, Instant::now())
    }
}

/// The label `projection` is the name; every other one is the Projection's own.
fn selects(selector: &Selector, name: &str, labels: &BTreeMap<String, String>) -> bool {
    selector.matches_by(
        |key| {
            if key == METRIC_PROJECTION_LABEL { Some(name) } else { labels.get(key).map(String::as_str) }
        },
    )
}

fn wants(selector: &Selector, projection: &Projection) -> bool {
    let none = BTreeMap::new();
    let labels = projection.metadata.labels.as_ref().unwrap_or(&none);
    selects(selector, projection.metadata.name.as_deref().unwrap_or_default(), labels)
}

fn is_of(observation: &Observation, projection: &Projection) -> bool {
    projection.metadata.uid.as_deref() == Some(&observation.uid)
}

fn missing_projection(namespace: &str, name: &str) -> ValueError {
    ValueError::NotFound(format!("there is no Projection {name:?} in the namespace {namespace:?}"))
}

fn not_measured(namespace: &str, name: &str, metric: &str) -> ValueError {
    let reason = Reason::NotMeasuredYet;
    ValueError::Unavailable(format!(
        "{metric} of the Projection {namespace}/{name} is unknown: {reason}: no sample has been taken yet"
    ))
}

fn nothing(namespace: &str, selector: &Selector) -> ValueError {
    ValueError::NotFound(format!("no Projection in the namespace {namespace:?} matches {:?}", selector.to_string()))
}

fn value(
    namespace: &str,
    name: &str,
    observation: &Observation,
    metric: &str,
    now: Instant,
) -> Result<ExternalValue, ValueError> {
    let unavailable =
        |why: &str| ValueError::Unavailable(format!("{metric} of the Projection {namespace}/{name} is unknown: {why}"));
    let measured =
        observation.current(now).map_err(|unknown| unavailable(&format!("{}: {}", unknown.reason, unknown.message)))?;
    let quantity = quantity(measured, metric).ok_or_else(|| unavailable(missing(metric)))?;
    Ok(ExternalValue {
        labels: BTreeMap::from([(METRIC_PROJECTION_LABEL.to_owned(), name.to_owned())]),
        timestamp: measured.sample.taken,
        window_seconds: None,
        value: quantity,
    })
}

fn quantity(measured: &Measured, metric: &str) -> Option<Quantity> {
    let assessment = &measured.assessment;
    let seconds = |duration: Option<Duration>| duration.and_then(|duration| Quantity::measured(duration.as_secs_f64()));
    match metric {
        metric::PENDING_EVENTS | metric::QUEUE_LENGTH => Some(Quantity::count(assessment.pending.events)),
        metric::STALENESS_SECONDS => seconds(assessment.staleness),
        metric::REQUIRED_WORKERS => Some(Quantity::count(u64::from(assessment.required.workers))),
        metric::ARRIVAL_RATE => assessment.rates.arrival.and_then(Quantity::measured),
        metric::DRAIN_SECONDS => seconds(assessment.drain),
        _ => None,
    }
}

/// Why a measured projection may lack a value.
fn missing(metric: &str) -> &'static str {
    match metric {
        metric::STALENESS_SECONDS => "the oldest unprocessed event has no time",
        metric::ARRIVAL_RATE => "it takes two samples to know a rate",
        metric::DRAIN_SECONDS => "the backlog does not shrink, or what a worker does is not learnt yet",
        _ => "it was not measured",
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher;

    use super::*;
    use crate::{
        lag::{Assessment, CheckpointState, Head, Limit, Pending, Position, Rates, Required, Sample},
        snapshot::Unknown,
    };

    fn measured(pending: u64, valid_until: Instant) -> Arc<Measured> {
        let sample = Sample {
            at: Duration::from_secs(1),
            taken: "2026-01-02T03:04:05Z".parse().unwrap(),
            head: Head { raw: Position(9), safe: Position(9) },
            checkpoint: CheckpointState::Committed(vec![Position(0)]),
            pending: Some(Pending { events: pending, exact: true }),
            pending_by_shard: Vec::new(),
            arrived: 9,
            staleness: Some(Duration::from_millis(1_400)),
            ahead_of_clock: Duration::ZERO,
            blocked_by: None,
        };
        let assessment = Assessment {
            pending: Pending { events: pending, exact: true },
            staleness: sample.staleness,
            rates: Rates { arrival: None, per_worker: None },
            drain: None,
            required: Required { workers: 3, limit: Limit::None, reason: String::new() },
            frozen_for: Duration::ZERO,
            stuck: false,
            rewound: None,
        };
        Arc::new(Measured { sample, assessment, valid_until })
    }

    fn served(now: Instant) -> ServedMetrics {
        let fresh = now + Duration::from_secs(10);
        let observation = |tier: &str, measured, failure: Option<&str>| {
            Arc::new(Observation {
                uid: "u".into(),
                labels: Arc::new(BTreeMap::from([("tier".to_owned(), tier.to_owned())])),
                measured,
                failure: failure
                    .map(|message| Unknown { reason: Reason::ConnectionRefused, message: message.to_owned() }),
            })
        };
        let shop = BTreeMap::from([
            ("orders".into(), observation("gold", Some(measured(9, fresh)), None)),
            ("stale".into(), observation("gold", Some(measured(7, now)), Some("nobody listens at db:5432"))),
            ("still-good".into(), observation("tin", Some(measured(5, fresh)), Some("nobody listens at db:5432"))),
            ("new".into(), observation("new", None, None)),
        ]);
        let snapshot = SharedSnapshot::default();
        snapshot.publish(Snapshot { namespaces: [("shop".into(), Arc::new(shop))].into() });
        ServedMetrics::new(snapshot)
    }

    fn ask(metric: &str, selector: &str) -> Result<Vec<String>, ValueError> {
        let now = Instant::now();
        let values = served(now).at("shop", metric, &Selector::parse(selector).unwrap(), now)?;
        Ok(values.into_iter().map(|value| format!("{}={}", value.labels["projection"], value.value)).collect())
    }

    #[test]
    fn a_measured_projection_has_its_values() {
        for (metric, value) in [
            (metric::PENDING_EVENTS, "orders=9"),
            (metric::QUEUE_LENGTH, "orders=9"),
            (metric::STALENESS_SECONDS, "orders=1400m"),
            (metric::REQUIRED_WORKERS, "orders=3"),
        ] {
            assert_eq!(ask(metric, "projection=orders"), Ok(vec![value.to_owned()]));
        }
    }

    #[test]
    fn the_last_good_value_counts_until_it_is_too_old_and_then_the_failure_is_told() {
        assert_eq!(ask(metric::PENDING_EVENTS, "projection=still-good"), Ok(vec!["still-good=5".to_owned()]));
        let ValueError::Unavailable(message) = ask(metric::PENDING_EVENTS, "projection=stale").unwrap_err() else {
            panic!()
        };
        assert_eq!(
            message,
            "projection_pending_events of the Projection shop/stale is unknown: ConnectionRefused: nobody listens at db:5432"
        );
    }

    #[test]
    fn what_is_not_known_is_an_error_and_not_zero() {
        for (metric, selector) in [
            (metric::PENDING_EVENTS, "projection=new"),
            (metric::ARRIVAL_RATE, "projection=orders"),
            (metric::DRAIN_SECONDS, "projection=orders"),
        ] {
            assert!(matches!(ask(metric, selector), Err(ValueError::Unavailable(_))), "{metric} {selector}");
        }
    }

    #[test]
    fn a_list_is_complete_or_an_error() {
        assert_eq!(ask(metric::PENDING_EVENTS, "tier in (tin),projection").unwrap(), ["still-good=5"]);
        assert!(
            matches!(ask(metric::PENDING_EVENTS, "tier=gold"), Err(ValueError::Unavailable(_))),
            "one of two is unknown"
        );
        assert!(matches!(ask(metric::PENDING_EVENTS, ""), Err(ValueError::Unavailable(_))));
    }

    #[test]
    fn what_does_not_exist_is_not_found() {
        for (metric, selector) in [
            ("nonexistent", ""),
            (metric::PENDING_EVENTS, "projection=nobody"),
            (metric::PENDING_EVENTS, "tier=lead"),
            (metric::PENDING_EVENTS, "projection=orders,tier=tin"),
        ] {
            assert!(matches!(ask(metric, selector), Err(ValueError::NotFound(_))), "{metric} {selector}");
        }
    }

    #[test]
    fn a_set_of_names_is_complete_or_an_error_and_counts_each_once() {
        assert_eq!(
            ask(metric::PENDING_EVENTS, "projection in (orders,still-good,orders)").unwrap(),
            ["orders=9", "still-good=5"]
        );
        assert_eq!(
            ask(metric::PENDING_EVENTS, "projection in (orders,still-good),tier=tin").unwrap(),
            ["still-good=5"]
        );
        let lacking = ask(metric::PENDING_EVENTS, "projection in (orders,nobody)");
        assert!(matches!(lacking, Err(ValueError::NotFound(_))), "{lacking:?}");
        let unknown = ask(metric::PENDING_EVENTS, "projection in (orders,new)");
        assert!(matches!(unknown, Err(ValueError::Unavailable(_))), "{unknown:?}");
    }

    fn projection(name: &str, uid: &str) -> Projection {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "projectionist.dev/v1alpha1",
            "kind": "Projection",
            "metadata": {"name": name, "namespace": "shop", "uid": uid, "labels": {"tier": "gold"}},
            "spec": {
                "source": {"postgres": {"connection": {"secretRef": {"name": "db"}}, "eventTable": {}}},
                "lag": {"target": "10s"},
            },
        }))
        .unwrap()
    }

    fn knowing(projections: Option<&[(&str, &str)]>, metric: &str, selector: &str) -> Result<usize, ValueError> {
        let (store, mut writer) = kube::runtime::reflector::store();
        for (name, uid) in projections.unwrap_or_default() {
            writer.apply_watcher_event(&watcher::Event::Apply(projection(name, uid)));
        }
        if projections.is_some() {
            writer.apply_watcher_event(&watcher::Event::Init);
            for (name, uid) in projections.unwrap_or_default() {
                writer.apply_watcher_event(&watcher::Event::InitApply(projection(name, uid)));
            }
            writer.apply_watcher_event(&watcher::Event::InitDone);
        }
        let now = Instant::now();
        served(now)
            .knowing(store)
            .at("shop", metric, &Selector::parse(selector).unwrap(), now)
            .map(|values| values.len())
    }

    #[test]
    fn a_projection_that_no_snapshot_holds_yet_is_unknown_and_one_that_nobody_created_is_not_found() {
        let unavailable = |answer| matches!(answer, Err(ValueError::Unavailable(_)));
        let not_found = |answer| matches!(answer, Err(ValueError::NotFound(_)));
        let ask = |known: Option<&[(&str, &str)]>, selector: &str| knowing(known, metric::PENDING_EVENTS, selector);
        assert!(unavailable(ask(None, "projection=orders")), "the watch has not answered yet");
        assert!(unavailable(ask(Some(&[("created", "c")]), "projection=created")));
        assert!(unavailable(ask(Some(&[("created", "c"), ("orders", "u")]), "")), "a list would lack one");
        assert!(unavailable(ask(Some(&[("orders", "another")]), "projection=orders")), "a namesake");
        assert!(unavailable(ask(Some(&[("orders", "another")]), "")), "a namesake");
        assert!(not_found(ask(Some(&[("orders", "u")]), "projection=nobody")));
        assert!(
            not_found(ask(Some(&[("orders", "u")]), "projection=still-good")),
            "deleted, and still in the snapshot"
        );
        assert_eq!(ask(Some(&[("orders", "u")]), "projection=orders"), Ok(1));
        assert_eq!(ask(Some(&[("orders", "u")]), ""), Ok(1), "the deleted ones do not count");
        let neither = ask(Some(&[("orders", "u"), ("created", "c")]), "projection in (orders,created),tier!=gold");
        assert!(not_found(neither), "what the selector leaves out need not be known");
    }
}
