//! What is answered of which snapshot, in both groups.

use std::time::Duration;

use kube::runtime::watcher;

use super::*;
use crate::{
    lag::{Assessment, CheckpointState, Head, Limit, Pending, Position, Rates, Required, Sample, Stage},
    leader_required::Outdated,
    measure::{MeasureError, RunKey},
};

fn measured(pending: u64, valid_until: Instant) -> Arc<Measured> {
    let sample = Sample {
        taken: "2026-01-02T03:04:05Z".parse().unwrap(),
        staleness: Some(Duration::from_millis(1_400)),
        parked: (pending == 5).then_some(2),
        ..Sample::new(
            Duration::from_secs(1),
            Head::log(Position(9), Position(9)),
            CheckpointState::Committed(vec![Position(0)]),
            Some(Pending { events: pending, exact: true }),
            9,
        )
    };
    let assessment = Assessment {
        value: None,
        pending: Pending { events: pending, exact: true },
        at_least: None,
        cadence: None,
        cadence_breaks_target: false,
        staleness: sample.staleness,
        rates: Rates { arrival: None, per_worker: None },
        drain: None,
        required: Required { workers: 3, wanted: 3, limit: Limit::None, throttled: None, reason: String::new() },
        frozen_for: Duration::ZERO,
        stuck: false,
        rewound: None,
        stage: Stage::Live,
        idle_for: Duration::ZERO,
        ahead_of_clock: None,
        retention_risk: None,
        jump: None,
        prediction: None,
    };
    Arc::new(Measured { sample, assessment, valid_until })
}

fn served(now: Instant) -> ServedMetrics {
    let fresh = now + Duration::from_secs(10);
    let observation = |tier: &str, measured, failure: Option<&str>| {
        Arc::new(Observation {
            uid: "u".into(),
            generation: 1,
            labels: Arc::new(BTreeMap::from([("tier".to_owned(), tier.to_owned())])),
            measured,
            fallback: (tier == "careful").then_some(6),
            read_store: None,
            failure: failure
                .map(|message| MeasureError { reason: Reason::ConnectionRefused, message: message.to_owned() }),
        })
    };
    let shop = BTreeMap::from([
        (run("orders"), observation("gold", Some(measured(9, fresh)), None)),
        // Another run, as while the read model is rebuilt: metrics by the Projection's name are not about it.
        (RunKey { version: Some("v2".into()), ..run("orders") }, observation("gold", Some(measured(800, fresh)), None)),
        (run("stale"), observation("gold", Some(measured(7, now)), Some("nothing listens at db:5432"))),
        (run("still-good"), observation("tin", Some(measured(5, fresh)), Some("nothing listens at db:5432"))),
        (run("new"), observation("new", None, None)),
        (run("careful"), observation("careful", None, Some("nothing listens at db:5432"))),
    ]);
    let snapshot = SharedSnapshot::default();
    snapshot.publish(Snapshot { namespaces: [("shop".into(), Arc::new(shop))].into(), ..Snapshot::default() });
    ServedMetrics::new(snapshot)
}

fn run(name: &str) -> RunKey {
    RunKey::unversioned("shop", name)
}

fn ask(metric: &str, selector: &str) -> Result<Vec<String>, ValueError> {
    let now = Instant::now();
    let values = served(now).external_at("shop", metric, &Selector::parse(selector).unwrap(), now)?;
    Ok(values.into_iter().map(|value| format!("{}={}", value.labels["projection"], value.value)).collect())
}

#[test]
fn a_measured_projection_has_its_values() {
    for (metric, value) in [
        (Metric::PendingEvents.external_name(), "orders=9"),
        (Metric::QueueLength.external_name(), "orders=9"),
        (Metric::StalenessSeconds.external_name(), "orders=1400m"),
        (Metric::RequiredWorkers.external_name(), "orders=3"),
    ] {
        assert_eq!(ask(metric, "projection=orders"), Ok(vec![value.to_owned()]));
    }
    let parked = Metric::ParkedEvents.external_name();
    assert_eq!(ask(parked, "projection=still-good"), Ok(vec!["still-good=2".to_owned()]));
    assert!(matches!(ask(parked, "projection=orders"), Err(ValueError::Unavailable(_))), "unknown, not zero");
}

#[test]
fn the_last_good_value_counts_until_it_is_too_old_and_then_the_failure_is_told() {
    assert_eq!(
        ask(Metric::PendingEvents.external_name(), "projection=still-good"),
        Ok(vec!["still-good=5".to_owned()])
    );
    let ValueError::Unavailable(message) = ask(Metric::PendingEvents.external_name(), "projection=stale").unwrap_err()
    else {
        panic!()
    };
    assert_eq!(
        message,
        "projection_pending_events of the Projection shop/stale is unknown: ConnectionRefused: nothing listens at db:5432"
    );
}

#[test]
fn what_is_not_known_is_an_error_and_not_zero() {
    for (metric, selector) in [
        (Metric::PendingEvents.external_name(), "projection=new"),
        (Metric::ArrivalRate.external_name(), "projection=orders"),
        (Metric::DrainSeconds.external_name(), "projection=orders"),
    ] {
        assert!(matches!(ask(metric, selector), Err(ValueError::Unavailable(_))), "{metric} {selector}");
    }
}

#[test]
fn a_fallback_answers_for_workers_that_cannot_be_computed_and_for_nothing_else() {
    assert_eq!(ask(Metric::RequiredWorkers.external_name(), "projection=careful"), Ok(vec!["careful=6".to_owned()]));
    assert!(matches!(
        ask(Metric::PendingEvents.external_name(), "projection=careful"),
        Err(ValueError::Unavailable(_))
    ));
}

#[test]
fn a_list_is_complete_or_an_error() {
    assert_eq!(ask(Metric::PendingEvents.external_name(), "tier in (tin),projection").unwrap(), ["still-good=5"]);
    assert!(
        matches!(ask(Metric::PendingEvents.external_name(), "tier=gold"), Err(ValueError::Unavailable(_))),
        "one of two is unknown"
    );
    assert!(matches!(ask(Metric::PendingEvents.external_name(), ""), Err(ValueError::Unavailable(_))));
}

#[test]
fn what_does_not_exist_is_not_found() {
    for (metric, selector) in [
        ("nonexistent", ""),
        (Metric::PendingEvents.external_name(), "projection=missing"),
        (Metric::PendingEvents.external_name(), "tier=lead"),
        (Metric::PendingEvents.external_name(), "projection=orders,tier=tin"),
    ] {
        assert!(matches!(ask(metric, selector), Err(ValueError::NotFound(_))), "{metric} {selector}");
    }
}

#[test]
fn a_set_of_names_is_complete_or_an_error_and_counts_each_once() {
    assert_eq!(
        ask(Metric::PendingEvents.external_name(), "projection in (orders,still-good,orders)").unwrap(),
        ["orders=9", "still-good=5"]
    );
    assert_eq!(
        ask(Metric::PendingEvents.external_name(), "projection in (orders,still-good),tier=tin").unwrap(),
        ["still-good=5"]
    );
    let lacking = ask(Metric::PendingEvents.external_name(), "projection in (orders,missing)");
    assert!(matches!(lacking, Err(ValueError::NotFound(_))), "{lacking:?}");
    let unknown = ask(Metric::PendingEvents.external_name(), "projection in (orders,new)");
    assert!(matches!(unknown, Err(ValueError::Unavailable(_))), "{unknown:?}");
}

fn ask_objects(query: &str, labels: &str, metric_labels: &str) -> Result<Vec<String>, ValueError> {
    let now = Instant::now();
    let (name, metric) = query.split_once('/').unwrap();
    let query = ObjectQuery {
        namespace: "shop",
        name: Some(name).filter(|name| *name != "*"),
        labels: &Selector::parse(labels).unwrap(),
        metric,
        metric_labels: &Selector::parse(metric_labels).unwrap(),
    };
    let values = served(now).objects_at(&query, now)?;
    Ok(values.into_iter().map(|value| format!("{}={}", value.name, value.value)).collect())
}

#[test]
fn every_metric_is_one_of_the_projection_too() {
    for (metric, value) in [
        ("pending_events", "orders=9"),
        ("queue_length", "orders=9"),
        ("staleness_seconds", "orders=1400m"),
        ("required_workers", "orders=3"),
    ] {
        assert_eq!(ask_objects(&format!("orders/{metric}"), "", ""), Ok(vec![value.to_owned()]));
    }
    for metric in measured_kind().metrics {
        let answer = ask_objects(&format!("orders/{metric}"), "", "");
        assert!(!matches!(answer, Err(ValueError::NotFound(_))), "{metric}: {answer:?}");
    }
    assert!(matches!(ask_objects("orders/projection_pending_events", "", ""), Err(ValueError::NotFound(_))));
}

#[test]
fn a_projection_by_name_has_one_value_or_a_reason() {
    let refusal = |query, labels, metric_labels| match ask_objects(query, labels, metric_labels) {
        Err(ValueError::NotFound(message)) => ("not found", message),
        Err(ValueError::Unavailable(message)) => ("unavailable", message),
        Ok(values) => panic!("{values:?}"),
    };
    assert_eq!(
        refusal("stale/pending_events", "", ""),
        (
            "unavailable",
            "pending_events of the Projection shop/stale is unknown: ConnectionRefused: nothing listens at db:5432"
                .into()
        )
    );
    assert_eq!(refusal("orders/drain_seconds", "", "").0, "unavailable");
    assert_eq!(
        refusal("orders/parked_events", "", ""),
        (
            "unavailable",
            "parked_events of the Projection shop/orders is unknown: the source tells of no place where events that failed are kept, or the spec names none".into()
        )
    );
    assert_eq!(
        refusal("missing/pending_events", "", ""),
        ("not found", "there is no Projection \"missing\" in the namespace \"shop\"".into())
    );
    assert_eq!(
        refusal("orders/pending_events", "", "projection=still-good"),
        (
            "not found",
            "none of the Projections orders in the namespace \"shop\" matches \"\" with the metric's labels \"projection=still-good\"".into()
        )
    );
    assert_eq!(ask_objects("orders/pending_events", "tier=gold", "projection=orders").unwrap(), ["orders=9"]);
}

#[test]
fn all_projections_are_complete_or_an_error() {
    assert!(matches!(ask_objects("*/pending_events", "", ""), Err(ValueError::Unavailable(_))), "two are unknown");
    assert!(matches!(ask_objects("*/pending_events", "tier=gold", ""), Err(ValueError::Unavailable(_))), "one of two");
    assert_eq!(ask_objects("*/pending_events", "tier=tin", "").unwrap(), ["still-good=5"]);
    assert_eq!(
        ask_objects("*/pending_events", "tier", "projection in (orders,still-good)").unwrap(),
        ["orders=9", "still-good=5"]
    );
    for (labels, metric_labels) in
        [("tier=lead", ""), ("", "projection=missing"), ("", "tier=gold"), ("projection=orders", "")]
    {
        let answer = ask_objects("*/pending_events", labels, metric_labels);
        assert!(matches!(answer, Err(ValueError::NotFound(_))), "{labels} {metric_labels}: {answer:?}");
    }
}

#[test]
fn only_a_rate_has_a_window_and_all_have_the_time_of_the_sample() {
    let now = Instant::now();
    let mut rated = Measured::clone(&measured(9, now + Duration::from_secs(10)));
    rated.assessment.rates.arrival = Some(2.5);
    let snapshot = SharedSnapshot::default();
    let observation = Observation {
        uid: "u".into(),
        generation: 1,
        labels: Arc::default(),
        measured: Some(Arc::new(rated)),
        fallback: None,
        read_store: None,
        failure: None,
    };
    let shop = BTreeMap::from([(run("orders"), Arc::new(observation))]);
    snapshot.publish(Snapshot { namespaces: [("shop".into(), Arc::new(shop))].into(), ..Snapshot::default() });
    let (served, everything) = (ServedMetrics::new(snapshot), Selector::default());
    for (external, window) in [
        (Metric::ArrivalRate.external_name(), Some(10)),
        (Metric::PendingEvents.external_name(), None),
        (Metric::StalenessSeconds.external_name(), None),
    ] {
        let value = &served.external_at("shop", external, &everything, now).unwrap()[0];
        assert_eq!((value.timestamp.to_string().as_str(), value.window_seconds), ("2026-01-02T03:04:05Z", window));
        assert_eq!(value.labels, BTreeMap::from([("projection".to_owned(), "orders".to_owned())]));
        let query = ObjectQuery {
            namespace: "shop",
            name: Some("orders"),
            labels: &everything,
            metric: external.trim_start_matches(crate::metrics::PREFIX),
            metric_labels: &everything,
        };
        let of_object = &served.objects_at(&query, now).unwrap()[0];
        assert_eq!(
            (of_object.timestamp, of_object.window_seconds, of_object.value),
            (value.timestamp, window, value.value)
        );
    }
}

#[test]
fn the_kind_is_the_projection_as_the_cluster_knows_it() {
    let kind = measured_kind();
    assert_eq!(
        (kind.kind.as_str(), kind.api_version.as_str(), kind.resource.as_str()),
        ("Projection", "projectionist.dev/v1alpha1", "projections.projectionist.dev")
    );
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
        .external_at("shop", metric, &Selector::parse(selector).unwrap(), now)
        .map(|values| values.len())
}

#[test]
fn a_projection_that_no_snapshot_holds_yet_is_unknown_and_one_that_does_not_exist_is_not_found() {
    let unavailable = |answer| matches!(answer, Err(ValueError::Unavailable(_)));
    let not_found = |answer| matches!(answer, Err(ValueError::NotFound(_)));
    let ask = |known: Option<&[(&str, &str)]>, selector: &str| {
        knowing(known, Metric::PendingEvents.external_name(), selector)
    };
    assert!(unavailable(ask(None, "projection=orders")), "the watch has not answered yet");
    assert!(unavailable(ask(Some(&[("created", "c")]), "projection=created")));
    assert!(unavailable(ask(Some(&[("created", "c"), ("orders", "u")]), "")), "a list would lack one");
    assert!(unavailable(ask(Some(&[("orders", "another")]), "projection=orders")), "a namesake");
    assert!(unavailable(ask(Some(&[("orders", "another")]), "")), "a namesake");
    assert!(not_found(ask(Some(&[("orders", "u")]), "projection=missing")));
    assert!(not_found(ask(Some(&[("orders", "u")]), "projection=still-good")), "deleted, and still in the snapshot");
    assert_eq!(ask(Some(&[("orders", "u")]), "projection=orders"), Ok(1));
    assert_eq!(ask(Some(&[("orders", "u")]), ""), Ok(1), "the deleted ones do not count");
    let neither = ask(Some(&[("orders", "u"), ("created", "c")]), "projection in (orders,created),tier!=gold");
    assert!(not_found(neither), "what the selector leaves out need not be known");
}

#[test]
fn a_replica_that_follows_repeats_how_many_workers_the_leader_asks_for() {
    let (follow, following) = watch::channel(Following::default());
    let now = Instant::now();
    for (said, follows, outdated, metric, answered) in [
        (Some(5), true, Some("shop/orders"), Metric::RequiredWorkers.external_name(), "3"),
        (Some(5), true, Some("shop/others"), Metric::RequiredWorkers.external_name(), "5"),
        (Some(5), true, None, Metric::RequiredWorkers.external_name(), "5"),
        (Some(2), true, None, Metric::RequiredWorkers.external_name(), "2"),
        (Some(0), true, None, Metric::RequiredWorkers.external_name(), "0"),
        (Some(5), false, None, Metric::RequiredWorkers.external_name(), "3"),
        (None, true, None, Metric::RequiredWorkers.external_name(), "3"),
        (Some(50), true, None, Metric::PendingEvents.external_name(), "9"),
    ] {
        follow.send_replace(Following { another_leads: follows, outdated: Outdated::from_annotation(outdated) });
        let mut known = projection("orders", "u");
        let status = serde_json::json!({"workers": {"required": said, "boundBy": "None", "rolling": false}});
        known.status = Some(serde_json::from_value(status).unwrap());
        let (store, mut writer) = kube::runtime::reflector::store();
        writer.apply_watcher_event(&watcher::Event::Init);
        writer.apply_watcher_event(&watcher::Event::InitApply(known));
        writer.apply_watcher_event(&watcher::Event::InitDone);
        let served = served(now).knowing(store).following(following.clone());
        for selector in ["projection=orders", ""] {
            let values = served.external_at("shop", metric, &Selector::parse(selector).unwrap(), now).unwrap();
            assert_eq!(values[0].value.to_string(), answered, "{said:?} {follows} {metric} {selector}");
        }
    }
}

#[test]
fn a_run_is_asked_for_by_its_version_and_without_one_the_run_that_serves_readers_answers() {
    let now = Instant::now();
    let observation = |pending| {
        Arc::new(Observation {
            uid: "u".into(),
            generation: 1,
            labels: Arc::default(),
            measured: Some(measured(pending, now + Duration::from_secs(10))),
            fallback: None,
            read_store: None,
            failure: None,
        })
    };
    let of = |version: &str| RunKey { version: Some(version.into()), ..run("orders") };
    let shop = BTreeMap::from([(of("v1"), observation(9)), (of("v2"), observation(800))]);
    let snapshot = SharedSnapshot::default();
    snapshot.publish(Snapshot { namespaces: [("shop".into(), Arc::new(shop))].into(), ..Snapshot::default() });
    let projection: Projection = serde_json::from_value(serde_json::json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
        "metadata": {"namespace": "shop", "name": "orders", "uid": "u"},
        "spec": {
            "source": {}, "lag": {"target": "5s"}, "version": "v2",
            "rollout": {"strategy": "BlueGreen"},
        },
        "status": {"version": "v1", "workers": {"required": 5, "boundBy": "None"}, "runs": [
            {"version": "v2", "role": "Candidate", "since": "2026-01-01T00:00:00Z", "workers": {"required": 7}},
        ]},
    }))
    .unwrap();
    let (known, mut writer) = kube::runtime::reflector::store();
    writer.apply_watcher_event(&kube::runtime::watcher::Event::Init);
    writer.apply_watcher_event(&kube::runtime::watcher::Event::InitApply(projection));
    writer.apply_watcher_event(&kube::runtime::watcher::Event::InitDone);
    let (_leader, following) = watch::channel(Following { another_leads: true, ..Following::default() });
    let served = ServedMetrics::new(snapshot).knowing(known).following(following);
    let ask = |metric: &str, selector: &str| {
        let values = served.external_at("shop", metric, &Selector::parse(selector).unwrap(), now)?;
        Ok::<_, ValueError>(
            values.into_iter().map(|value| format!("{}={}", value.labels["version"], value.value)).collect::<Vec<_>>(),
        )
    };
    let (pending, required) = (Metric::PendingEvents.external_name(), Metric::RequiredWorkers.external_name());
    for (metric, selector, expected) in [
        (pending, "projection=orders", vec!["v1=9"]),
        (pending, "projection=orders,version=v2", vec!["v2=800"]),
        (pending, "projection=orders,version in (v1,v2)", vec!["v1=9", "v2=800"]),
        (pending, "", vec!["v1=9"]),
        (pending, "version=v2", vec!["v2=800"]),
        // As the leader says.
        (required, "projection=orders", vec!["v1=5"]),
        (required, "projection=orders,version=v2", vec!["v2=7"]),
    ] {
        assert_eq!(ask(metric, selector).unwrap(), expected, "{metric} {selector}");
    }
    let unknown = ask(pending, "projection=orders,version=v9");
    assert!(matches!(unknown, Err(ValueError::Unavailable(_))), "{unknown:?}");
}
