//! What a spec of pages means, and what is refused of one that no API server has checked.

use serde_json::{Value, json};

use crate::{
    api::{Aggregate, Projection, admit},
    clients::ServerKind,
    resolve::{Numbers, Resolved, ResolvedSource, resolve},
};

/// A Projection whose own pods tell what waits, changed by `change`, an object of JSON pointers.
fn of_pods(change: &[(&str, Value)]) -> Value {
    let mut object = json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {
            "source": {"scrape": {"pods": {"port": 9100}, "pending": {"metric": "waiting"}, "staleness": {"metric": "age"}}},
            "lag": {"target": "5s"},
            "scaling": {"minWorkers": 1},
            "projector": {"existing": {"kind": "StatefulSet", "name": "workers"}},
        },
    });
    for (pointer, value) in change {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        let parent = object.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        // Null: the field is absent.
        match value {
            Value::Null => drop(parent.remove(field)),
            value => drop(parent.insert(field.to_owned(), value.clone())),
        }
    }
    object
}

fn resolved(object: Value) -> Result<Resolved, String> {
    let mut projection: Projection = serde_json::from_value(object).unwrap();
    projection.metadata.namespace = Some("shop".to_owned());
    resolve(&projection).map_err(|unknown| unknown.message)
}

#[test]
fn pods_are_summed_and_the_oldest_of_them_counts() {
    let object = of_pods(&[]);
    admit(object.clone()).unwrap();
    let resolved = resolved(object).unwrap();
    let (connection, field) = resolved.source.connection();
    assert_eq!((connection.server, field), (ServerKind::WorkerPods, "spec.source.scrape.pods"));
    let expected = [
        ("namespace", "shop"),
        ("projection", "orders"),
        ("port", "9100"),
        ("path", "/metrics"),
        ("statefulset", "workers"),
    ];
    let given: Vec<(&str, &str)> = connection.given.iter().map(|(key, value)| (*key, value.as_str())).collect();
    assert_eq!(given, expected);
    let ResolvedSource::Scrape { metrics: Numbers::Lag { pending, staleness: Some(staleness), .. }, .. } =
        resolved.source
    else {
        panic!("not what waits")
    };
    assert_eq!((pending.single, pending.aggregate), (true, Aggregate::Sum));
    assert_eq!((staleness.single, staleness.aggregate), (true, Aggregate::Max));
}

#[test]
fn what_pods_cannot_tell_is_refused_with_what_to_do() {
    let value = |aggregate: Value| {
        of_pods(&[
            (
                "/spec/source/scrape",
                json!({"pods": {"port": 9100}, "value": {"metric": "seconds", "aggregate": aggregate}}),
            ),
            ("/spec/lag/value", json!({"target": 0.2})),
        ])
    };
    admit(value(json!("Average"))).unwrap();
    for (object, expected) in [
        (value(json!("Sum")), "spec.source.scrape.value.aggregate must be Max or Average"),
        (
            of_pods(&[("/spec/scaling/minWorkers", json!(0))]),
            "spec.scaling.minWorkers must be at least 1 with spec.source.scr",
        ),
        (of_pods(&[("/spec/source/scrape/pods/port", json!(0))]), "spec.source.scrape.pods.port"),
        (of_pods(&[("/spec/source/scrape/pods/path", json!("metrics"))]), "spec.source.scrape.pods.path"),
        (of_pods(&[("/spec/source/scrape/pods/path", json!("/a b"))]), "spec.source.scrape.pods.path"),
        (of_pods(&[("/spec/projector", Value::Null)]), "spec.projector is required with spec.source.scrape.pods"),
    ] {
        let found = admit(object).expect_err(expected);
        assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{expected}: {found:?}");
    }
    for (change, expected) in [
        (("/spec/scaling/minWorkers", json!(0)), "without a worker no page tells"),
        (("/spec/projector", Value::Null), "spec.projector is required"),
        (("/spec/source/scrape/connection", json!({"url": "http://host"})), "exactly one of connection and pods"),
    ] {
        let refused = resolved(of_pods(&[change])).unwrap_err();
        assert!(refused.contains(expected), "{refused}");
    }
}
