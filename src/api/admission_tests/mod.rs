//! What is refused of a Projection before a cluster sees it, and what is taken.

mod built_in;
mod metrics;
mod queues;
mod versions;

use super::*;

fn projection() -> Value {
    json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
        "spec": {
            "source": {"postgres": {"connection": {"secretRef": {"name": "db"}}, "eventTable": {}}},
            "readStore": {"postgres": {"connection": {"secretRef": {"name": "db"}}}},
            "lag": {"target": "5s"},
            "scaling": {"maxWorkers": 24, "shards": 24, "eventsPerWorkerSecond": 50},
            "projector": {"builtin": {"handlers": {"Ordered": "select 1"}}},
        },
    })
}

/// What is refused of the object with this value for the field `name` of what is at `pointer`.
#[track_caller]
fn refusals_with(mut object: Value, pointer: &str, name: &str, value: Value) -> Vec<String> {
    object.pointer_mut(pointer).unwrap()[name] = value;
    admit(object).expect_err(name).iter().map(ToString::to_string).collect()
}

#[test]
fn takes_what_a_cluster_takes() {
    let taken = admit(projection()).unwrap();
    assert_eq!(taken.spec.scaling.max_workers, Some(24));
    let mut auto = projection();
    auto["spec"]["scaling"] = json!({"shards": "Auto", "behavior": null});
    auto["status"] = json!({"whatever": 1});
    auto["metadata"]["managedFields"] = json!([]);
    assert_eq!(admit(auto).unwrap().spec.scaling.most_workers(), 10, "defaults are filled in");
}

#[test]
fn a_database_is_asked_for_exactly_one_kind_of_source() {
    let mut none = projection();
    none["spec"]["source"]["postgres"] = json!({"connection": {"secretRef": {"name": "db"}}});
    none["spec"]["projector"] = Value::Null;
    let found = admit(none).unwrap_err();
    let expected = "spec.source.postgres must name exactly one kind of source beside the connection: eventTable";
    assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{found:?}");
}

#[test]
fn refuses_what_a_cluster_refuses_and_names_the_field() {
    let long = "x".repeat(53);
    for (pointer, name, value, expected) in [
        ("", "apiVersion", json!("v1"), "apiVersion must be projectionist.dev/v1alpha1"),
        ("", "kind", json!("Projecton"), "kind must be Projection, and is \"Projecton\""),
        ("", "scaling", json!({}), "scaling is no field there"),
        ("/metadata", "name", json!("My Orders"), "metadata.name must be lower-case"),
        ("/metadata", "name", json!(long), "metadata.name must have at most 52 characters"),
        ("/metadata", "lables", json!({"x": "y"}), "metadata.lables is no field there"),
        ("/spec", "lags", json!({"target": "1s"}), "spec.lags is no field there: lag is meant?"),
        ("/spec/scaling", "maxWorker", json!(24), "spec.scaling.maxWorker is no field there: maxWorkers is meant?"),
        ("/spec/scaling", "maxWorkers", json!(0), "spec.scaling.maxWorkers must be at least 1, and is 0"),
        ("/spec/scaling", "maxWorkers", json!(2_147_483_647), "spec.scaling.maxWorkers must be at most 10000"),
        ("/spec/scaling", "maxWorkers", json!(60.5), "spec.scaling.maxWorkers must be a whole number, and is 60.5"),
        ("/spec/scaling", "minWorkers", json!(30), "spec.scaling.minWorkers must not be greater than"),
        ("/spec/scaling", "shards", json!("24"), "spec.scaling.shards must be Auto or a number from 1 to 1024, and is"),
        ("/spec/scaling", "shards", json!(2_000), "spec.scaling.shards must be Auto or a number from 1 to 1024"),
        ("/spec/scaling", "ordering", json!("None"), "spec.scaling.ordering must be PerKey or Strict"),
        ("/spec/lag", "target", json!("1ms"), "spec.lag.target must be from 1s to 168h, and is \"1ms\""),
        ("/spec/lag", "target", json!("soon"), "spec.lag.target must be a duration such as 30s"),
        ("/spec/projector", "existing", json!({"kind": "Job", "name": "x"}), "spec.projector.existing.kind must be"),
        ("/spec", "checkpoint", json!({"readStore": {}}), "spec.checkpoint must be absent"),
    ] {
        let found = refusals_with(projection(), pointer, name, value);
        assert!(found.iter().any(|refusal| refusal.starts_with(expected)), "{expected}: {found:?}");
    }
    for missing in ["apiVersion", "kind", "metadata", "spec"] {
        let mut object = projection();
        object.as_object_mut().unwrap().remove(missing);
        let found = admit(object).expect_err(missing);
        assert!(found.iter().any(|refusal| refusal.field.starts_with(missing)), "{missing}: {found:?}");
    }
    assert_eq!(admit(json!([1])).expect_err("a list")[0].field, "the document");
}
