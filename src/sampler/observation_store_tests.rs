//! What the store makes of answers, by tables.

use super::*;
use crate::lag::{CheckpointState, Head, Limit, Pending, Position};

fn projection(name: &str, uid: &str, table: &str) -> Arc<Projection> {
    Arc::new(
        serde_json::from_value(serde_json::json!({
            "apiVersion": "projectionist.dev/v1alpha1",
            "kind": "Projection",
            "metadata": { "namespace": "shop", "name": name, "uid": uid, "generation": 1 },
            "spec": {
                "source": { "postgres": { "connection": { "secretRef": { "name": "db" } }, "eventTable": { "table": table } } },
                "checkpoint": { "readStore": {} },
                "readStore": { "postgres": { "connection": { "secretRef": { "name": "db" } } } },
                "lag": { "target": "30s" },
            },
        }))
        .unwrap(),
    )
}

fn sample(second: u64, checkpoint: i64, pending: u64) -> Sample {
    Sample {
        staleness: Some(Duration::from_secs(pending)),
        ..Sample::new(
            Duration::from_secs(second),
            Head::log(Position(100), Position(100)),
            CheckpointState::Committed(vec![Position(checkpoint)]),
            Some(Pending { events: pending, exact: true }),
            0,
        )
    }
}

fn reported(name: &str, uid: &str, result: Result<Sample, MeasureError>) -> Reported {
    let key = RunKey::unversioned("shop", name);
    let valid_until = Instant::now() + Duration::from_secs(5);
    Reported { key, uid: uid.into(), generation: 1, read_store: Some("reads".into()), result, valid_until }
}

fn refused() -> MeasureError {
    MeasureError { reason: Reason::ConnectionRefused, message: "nothing listens".to_owned() }
}

fn told(store: &mut ObservationStore) -> Vec<String> {
    let mut told = Vec::new();
    store.tell(|key| {
        told.push(key.name.to_string());
        true
    });
    told
}

#[test]
fn a_projection_is_known_before_it_is_measured_and_the_round_ends_with_the_last_answer() {
    let mut store = ObservationStore::default();
    assert!(store.all_answered(), "none is known");
    let (a, b) = (projection("a", "1", "events"), projection("b", "2", "events"));
    store.sync(&[Arc::clone(&a), Arc::clone(&b)], Following::default());
    assert!(!store.all_answered());
    let snapshot = store.snapshot().unwrap();
    let observation = snapshot.get(&RunKey::unversioned("shop", "a")).unwrap();
    assert_eq!(observation.current(Instant::now()).unwrap_err().reason, Reason::NotMeasuredYet);
    store.take(reported("a", "1", Ok(sample(1, 90, 10))), &a, Instant::now());
    assert!(!store.all_answered());
    store.take(reported("b", "2", Err(refused())), &b, Instant::now());
    assert!(store.all_answered());
}

#[test]
fn an_observation_says_for_which_generation_it_holds_and_a_newer_spec_is_told() {
    let mut store = ObservationStore::default();
    let first = projection("a", "1", "events");
    store.sync(&[Arc::clone(&first)], Following::default());
    store.take(reported("a", "1", Ok(sample(1, 90, 10))), &first, Instant::now());
    told(&mut store);
    let newer = |table: &str, generation: i64| {
        let mut newer = (*projection("a", "1", table)).clone();
        newer.metadata.generation = Some(generation);
        Arc::new(newer)
    };
    let seen = |store: &mut ObservationStore| {
        let snapshot = store.snapshot().unwrap();
        let observation = snapshot.get(&RunKey::unversioned("shop", "a")).unwrap();
        (observation.generation, observation.measured.is_some())
    };
    let asked = first.metadata.generation.unwrap_or_default();
    store.sync(&[newer("events", asked + 1)], Following::default());
    assert_eq!(seen(&mut store), (asked + 1, true), "the same is measured");
    assert_eq!(told(&mut store).len(), 1, "reconciling waits for it");
    store.sync(&[newer("others", asked + 2)], Following::default());
    assert_eq!(seen(&mut store), (asked + 2, false), "another table");
}

#[test]
fn a_failure_keeps_the_last_good_measurement_until_it_is_too_old() {
    let mut store = ObservationStore::default();
    let a = projection("a", "1", "events");
    store.sync(&[Arc::clone(&a)], Following::default());
    store.take(reported("a", "1", Ok(sample(1, 90, 10))), &a, Instant::now());
    assert_eq!(store.take(reported("a", "1", Err(refused())), &a, Instant::now()), Taken::Material);
    let snapshot = store.snapshot().unwrap();
    let observation = snapshot.get(&RunKey::unversioned("shop", "a")).unwrap();
    assert_eq!(observation.current(Instant::now()).unwrap().assessment.pending.events, 10);
    let later = Instant::now() + Duration::from_secs(6);
    assert_eq!(observation.current(later).unwrap_err().reason, Reason::ConnectionRefused);
    told(&mut store);
    store.expire(Instant::now(), later);
    assert_eq!(told(&mut store), ["a"], "that it is too old now asks for action");
    store.expire(later, later + Duration::from_secs(1));
    assert!(told(&mut store).is_empty());
}

#[test]
fn numbers_that_changed_just_after_others_were_told_are_told_although_they_stay_as_they_are_then() {
    let mut store = ObservationStore::default();
    let a = projection("a", "1", "events");
    store.sync(&[Arc::clone(&a)], Following::default());
    let begun = Instant::now();
    let mut told_after = |second: u64, pending: u64| {
        let sample = Sample { staleness: None, ..sample(second, 0, pending) };
        store.take(reported("a", "1", Ok(sample)), &a, begun + Duration::from_secs(second));
        !told(&mut store).is_empty()
    };
    assert!(told_after(1, 10));
    assert!(!told_after(2, 11), "too soon for numbers alone");
    assert!(!told_after(3, 11));
    assert!(told_after(7, 11), "the change of before");
    assert!(!told_after(13, 11), "and no more than once");
}

#[test]
fn a_namesake_and_another_source_start_over() {
    for replacement in [projection("a", "2", "events"), projection("a", "1", "other")] {
        let mut store = ObservationStore::default();
        let a = projection("a", "1", "events");
        store.sync(&[Arc::clone(&a)], Following::default());
        store.take(reported("a", "1", Ok(sample(1, 90, 10))), &a, Instant::now());
        store.sync(&[Arc::clone(&replacement)], Following::default());
        let snapshot = store.snapshot().unwrap();
        assert!(snapshot.get(&RunKey::unversioned("shop", "a")).unwrap().measured.is_none());
    }
    let mut store = ObservationStore::default();
    let a = projection("a", "2", "events");
    store.sync(&[Arc::clone(&a)], Following::default());
    assert_eq!(store.take(reported("a", "1", Ok(sample(1, 90, 10))), &a, Instant::now()), Taken::Ignored);
    assert_eq!(store.take(reported("b", "1", Ok(sample(1, 90, 10))), &a, Instant::now()), Taken::Ignored);
}

#[test]
fn a_deleted_projection_leaves_nothing() {
    let mut store = ObservationStore::default();
    store.sync(&[projection("a", "1", "events")], Following::default());
    store.snapshot();
    store.sync(&[], Following::default());
    assert!(store.snapshot().unwrap().namespaces.is_empty());
    assert!(told(&mut store).is_empty());
    assert!(store.snapshot().is_none(), "nothing new");
}

#[test]
fn what_the_model_refuses_is_unknown_with_its_reason() {
    let mut store = ObservationStore::default();
    let a = projection("a", "1", "events");
    store.sync(&[Arc::clone(&a)], Following::default());
    let never = Sample { checkpoint: CheckpointState::NeverCommitted, pending: None, ..sample(1, 0, 0) };
    for (sample, reason) in [
        (never, Reason::NeverCommitted),
        (sample(2, 101, 0), Reason::CheckpointBeyondHead),
        (Sample { pending: None, ..sample(3, 90, 0) }, Reason::InvalidAnswer),
    ] {
        store.take(reported("a", "1", Ok(sample)), &a, Instant::now());
        let snapshot = store.snapshot().unwrap();
        assert_eq!(
            snapshot.get(&RunKey::unversioned("shop", "a")).unwrap().current(Instant::now()).unwrap_err().reason,
            reason
        );
    }
}

#[test]
fn what_asks_for_action_is_told_at_once_and_mere_numbers_now_and_then() {
    let mut store = ObservationStore::default();
    let a = projection("a", "1", "events");
    store.sync(&[Arc::clone(&a)], Following::default());
    let start = Instant::now();
    store.take(reported("a", "1", Ok(sample(1, 90, 10))), &a, start);
    assert_eq!(told(&mut store), ["a"]);
    assert_eq!(store.take(reported("a", "1", Ok(sample(2, 91, 9))), &a, start), Taken::Numbers);
    assert!(told(&mut store).is_empty());
    store.take(reported("a", "1", Ok(sample(3, 92, 8))), &a, start + TELL_NUMBERS_EVERY);
    assert_eq!(told(&mut store), ["a"]);
    assert_eq!(store.take(reported("a", "1", Ok(sample(4, 92, 40))), &a, start + TELL_NUMBERS_EVERY), Taken::Material);
    assert_eq!(told(&mut store), ["a"], "beyond the target");
}

#[test]
fn a_projection_that_could_not_be_told_about_is_told_about_later() {
    let mut store = ObservationStore::default();
    store.sync(&[projection("a", "1", "events"), projection("b", "2", "events")], Following::default());
    store.tell(|_| false);
    assert_eq!(told(&mut store), ["a", "b"]);
}

#[test]
fn other_namespaces_are_shared_between_snapshots() {
    let mut store = ObservationStore::default();
    let a = projection("a", "1", "events");
    let mut elsewhere = (*projection("b", "2", "events")).clone();
    elsewhere.metadata.namespace = Some("other".to_owned());
    store.sync(&[Arc::clone(&a), Arc::new(elsewhere)], Following::default());
    let before = store.snapshot().unwrap();
    store.take(reported("a", "1", Ok(sample(1, 90, 10))), &a, Instant::now());
    let after = store.snapshot().unwrap();
    assert!(Arc::ptr_eq(&before.namespaces["other"], &after.namespaces["other"]));
    assert!(!Arc::ptr_eq(&before.namespaces["shop"], &after.namespaces["shop"]));
}

#[test]
fn stuck_by_the_last_word_about_this_spec_is_stuck_from_the_first_sample_on() {
    let stuck_after_restart = |checkpoint: &str, observed_generation: i64, reason: &str| {
        let mut a = projection("a", "1", "events");
        Arc::make_mut(&mut a).status = Some(
            serde_json::from_value(serde_json::json!({
                "observedGeneration": observed_generation,
                "checkpoint": checkpoint,
                "conditions": [{ "type": "Progressing", "status": "False", "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" }],
            }))
            .unwrap(),
        );
        let mut store = ObservationStore::default();
        store.sync(&[Arc::clone(&a)], Following::default());
        store.take(reported("a", "1", Ok(sample(1, 90, 10))), &a, Instant::now());
        let snapshot = store.snapshot().unwrap();
        snapshot.get(&RunKey::unversioned("shop", "a")).unwrap().measured.as_ref().unwrap().assessment.stuck
    };
    assert!(stuck_after_restart("90", 1, "CheckpointFrozen"));
    assert!(!stuck_after_restart("80", 1, "CheckpointFrozen"), "it moved meanwhile");
    assert!(!stuck_after_restart("90", 0, "CheckpointFrozen"), "said about another source, perhaps");
    assert!(!stuck_after_restart("90", 1, "AsExpected"));
}

#[test]
fn a_fallback_never_asks_for_fewer_workers_than_run() {
    let fallback_of = |lag: serde_json::Value, desired: Option<i32>| {
        let mut a = projection("a", "1", "events");
        let projection = Arc::make_mut(&mut a);
        projection.spec.lag = serde_json::from_value(lag).unwrap();
        projection.status = Some(
            serde_json::from_value(serde_json::json!({ "workers": { "desired": desired, "boundBy": "None" } }))
                .unwrap(),
        );
        let mut store = ObservationStore::default();
        store.sync(&[a], Following::default());
        store.snapshot().unwrap().get(&RunKey::unversioned("shop", "a")).unwrap().fallback
    };
    let wanted = serde_json::json!({ "target": "5s", "onUnknown": "Fallback", "fallbackWorkers": 3 });
    assert_eq!(fallback_of(wanted.clone(), None), Some(3));
    assert_eq!(fallback_of(wanted.clone(), Some(1)), Some(3));
    assert_eq!(fallback_of(wanted, Some(8)), Some(8));
    assert_eq!(fallback_of(serde_json::json!({ "target": "5s" }), Some(8)), None, "hold is the default");
}

#[test]
fn projections_on_one_read_store_share_its_connections() {
    let limited = |name: &str| {
        let mut one = projection(name, name, "events");
        let spec = &mut Arc::make_mut(&mut one).spec;
        let limits = serde_json::json!({ "connectionsPerWorker": 2, "maxConnections": 12 });
        spec.read_store.as_mut().unwrap().limits = Some(serde_json::from_value(limits).unwrap());
        spec.scaling = serde_json::from_value(serde_json::json!({ "eventsPerWorkerSecond": 10 })).unwrap();
        one
    };
    let (a, b) = (limited("a"), limited("b"));
    let mut store = ObservationStore::default();
    store.sync(&[Arc::clone(&a), Arc::clone(&b)], Following::default());
    let required = |store: &mut ObservationStore, name: &str| {
        let snapshot = store.snapshot().unwrap();
        let measured = snapshot.get(&RunKey::unversioned("shop", name)).unwrap().measured.clone().unwrap();
        (measured.assessment.required.workers, measured.assessment.required.limit)
    };
    let began = Instant::now();
    let mut asked = |name: &str, projection: &Projection, second: u64| {
        let now = began + Duration::from_secs(second);
        store.take(reported(name, name, Ok(sample(second, 10, 90_000))), projection, now);
        required(&mut store, name)
    };
    asked("a", &a, 1);
    assert_eq!(asked("a", &a, 2), (6, Limit::Connections), "b has not been measured yet");
    asked("b", &b, 3);
    assert_eq!(asked("b", &b, 4), (1, Limit::Connections), "an autoscaler may still start a's six");
    assert_eq!(asked("a", &a, 5), (3, Limit::Connections), "half of it");
    asked("a", &a, 40);
    assert_eq!(asked("b", &b, 41), (3, Limit::Connections), "and so for the other, once the six are acted on no more");
}

#[test]
fn a_follower_would_go_on_from_what_the_leader_asked_for() {
    for (follows, required) in [(true, 6), (false, 1)] {
        let mut store = ObservationStore::default();
        let mut a = projection("a", "1", "events");
        store.sync(&[Arc::clone(&a)], Following { another_leads: follows, ..Following::default() });
        store.take(reported("a", "1", Ok(sample(1, 90, 0))), &a, Instant::now());
        let said = serde_json::json!({"workers": {"required": 6, "boundBy": "None", "rolling": false}});
        Arc::make_mut(&mut a).status = Some(serde_json::from_value(said).unwrap());
        store.sync(&[Arc::clone(&a)], Following { another_leads: follows, ..Following::default() });
        store.take(reported("a", "1", Ok(sample(2, 90, 0))), &a, Instant::now());
        let snapshot = store.snapshot().unwrap();
        let measured = snapshot.get(&RunKey::unversioned("shop", "a")).unwrap().measured.clone().unwrap();
        assert_eq!(measured.assessment.required.workers, required, "follows: {follows}");
    }
}

/// A run of the version, as a Projection of its own, beside the one of version v1 that readers see.
fn run_of_version(version: &str) -> Arc<Projection> {
    let mut object = serde_json::to_value(&*projection("orders", "1", "events")).unwrap();
    object["spec"]["version"] = serde_json::json!(version);
    object["spec"]["rollout"] = serde_json::json!({"strategy": "BlueGreen"});
    let since = "2026-01-01T00:00:00Z";
    object["status"] = serde_json::json!({"version": version, "workers": {"required": 8, "boundBy": "None"}, "runs": [
        {"version": "v1", "role": "Live", "since": since}, {"version": "v2", "role": "Candidate", "since": since},
    ]});
    Arc::new(serde_json::from_value(object).unwrap())
}

#[test]
fn a_run_that_builds_a_new_version_has_one_worker_while_what_readers_see_is_late_and_that_one_keeps_its_own() {
    let runs = ["v1", "v2"].map(run_of_version);
    let mut store = ObservationStore::default();
    store.sync(&runs, Following::default());
    let began = Instant::now();
    let mut look = |second: u64, live: u64| {
        let now = began + Duration::from_secs(second);
        let mut required = Vec::new();
        // Both have far too much to do.
        for (run, staleness) in runs.iter().zip([live, 9_000]) {
            let sample = Sample { staleness: Some(Duration::from_secs(staleness)), ..sample(second + 1, 10, 90) };
            let valid_until = now + Duration::from_secs(5);
            let report = Reported { key: run_of(run), valid_until, ..reported("orders", "1", Ok(sample)) };
            store.take(report, run, now);
            let seen = store.observation(&run_of(run)).unwrap();
            let of = &seen.measured.as_ref().unwrap().assessment.required;
            required.push((of.workers, of.limit));
        }
        required
    };
    let before = look(0, 20);
    assert!(before.iter().all(|(workers, limit)| *workers > 1 && *limit != Limit::LiveVersion), "{before:?}");
    let late = look(1, 31);
    assert!(late[0].0 > 1 && late[0].1 != Limit::LiveVersion, "{late:?}");
    assert_eq!(late[1], (1, Limit::LiveVersion), "at once");
    assert_eq!(look(2, 28)[1], (1, Limit::LiveVersion), "not yet well");
    assert_eq!(look(3, 5)[1], (1, Limit::LiveVersion));
    assert_eq!(look(40, 5)[1], (2, Limit::LiveVersion), "by and by");
}
