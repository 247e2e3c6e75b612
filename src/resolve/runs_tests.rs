//! What is handed on as a run, and what names it.

use serde_json::{Value, json};

use super::*;
use crate::resolve::{LedBy, led_by, place_of, resolve, validate, version_in};

fn projection(change: impl FnOnce(&mut Value)) -> Arc<Projection> {
    let connection = json!({"secretRef": {"name": "db"}});
    let mut object = json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
        "metadata": {"namespace": "shop", "name": "orders", "uid": "u-1", "generation": 3},
        "spec": {
            "source": {"postgres": {"connection": connection, "eventTable": {}}},
            "readStore": {"postgres": {"connection": connection, "schema": "orders_{version}"}},
            "projector": {"builtin": {"handlers": {"Placed": "select 1"}}},
            "lag": {"target": "5s"}, "version": "v1",
            "rollout": {"strategy": "BlueGreen", "switch": {"postgresView": {"schema": "orders", "views": ["summary"]}}},
        },
    });
    change(&mut object);
    Arc::new(serde_json::from_value(object).unwrap())
}

fn version(run: &Projection) -> Option<String> {
    run_of(run).version.map(|version| version.to_string())
}

#[test]
fn a_projection_is_about_the_run_that_serves_readers_and_at_first_about_the_only_one() {
    assert_eq!(version(&projection(|_| {})).as_deref(), Some("v1"));
    let second = projection(|object| {
        object["spec"]["version"] = json!("v2");
        object["status"] = json!({"version": "v1"});
    });
    assert_eq!(version(&second).as_deref(), Some("v1"));
    let in_place = projection(|object| object["spec"]["rollout"] = json!({"strategy": "InPlace"}));
    assert_eq!((version(&in_place), has_runs(&in_place)), (None, false));
}

#[test]
fn each_run_is_measured_and_made_by_its_own_spec() {
    let first = projection(|_| {});
    let stored = spec_to_store(&first).unwrap();
    let second = projection(|object| {
        object["spec"]["version"] = json!("v2");
        object["spec"]["suspend"] = json!(true);
        object["spec"]["scaling"] = json!({"maxWorkers": 3});
        object["status"] = json!({"version": "v1", "workers": {"required": 4, "boundBy": "None"}, "runs": [
            {"version": "v2", "role": "Candidate", "since": "2026-01-01T00:00:00Z", "workers": {"required": 7}},
        ]});
    });
    let (old, new) = (stored_run(&second, "v1", &stored).unwrap(), described_run(&second).unwrap());
    for (run, name, schema, most, required) in [(&old, "v1", "orders_v1", 10, 4), (&new, "v2", "orders_v2", 3, 7)] {
        assert_eq!((version(run).as_deref(), place_of(run).as_deref()), (Some(name), Some(schema)));
        let (validated, resolved) = (validate(run).unwrap(), resolve(run).unwrap());
        assert_eq!((validated.owner.run.clone(), resolved.key), (run_of(run), run_of(run)));
        assert_eq!((validated.workers.max, validated.workers.suspended), (most, true), "{name}");
        assert_eq!(run.status.as_ref().unwrap().required_workers(), Some(required), "{name}");
        assert_eq!(live_beside(run), None, "{name}: no status says which version readers see");
    }
    let shown = projection(|object| {
        object["spec"]["version"] = json!("v2");
        object["status"] = json!({"version": "v1", "runs": [
            {"version": "v1", "role": "Live", "since": "2026-01-01T00:00:00Z"},
            {"version": "v2", "role": "Candidate", "since": "2026-01-01T00:00:00Z"},
        ]});
    });
    let live = |run: &Projection| live_beside(run).and_then(|live| live.version).map(|version| version.to_string());
    assert_eq!(live(&described_run(&shown).unwrap()).as_deref(), Some("v1"));
    assert_eq!(live(&stored_run(&shown, "v1", &stored).unwrap()), None, "it is the one");
    assert_eq!(spec_to_store(&old), Some(stored), "what is stored does not change by being read");
}

#[test]
fn the_run_of_a_version_that_failed_is_there_until_it_is_to_be_removed() {
    let failed = |on_failure: &str, promote: Option<&str>| {
        projection(|object| {
            object["spec"]["version"] = json!("v2");
            object["spec"]["rollout"]["onFailure"] = json!(on_failure);
            object["metadata"]["annotations"] =
                promote.map_or(json!({}), |version| json!({PROMOTE_ANNOTATION: version}));
            let live = json!({"version": "v1", "role": "Live", "since": "2026-01-01T00:00:00Z"});
            object["status"] = json!({"version": "v1", "runs": [live], "rollout": {"failed": "v2"}});
        })
    };
    assert!(described_run(&failed("Keep", None)).is_some());
    assert!(described_run(&failed("Remove", None)).is_none());
    assert!(described_run(&failed("Remove", Some("v2"))).is_some(), "asked for all the same");
}

#[test]
fn a_schema_tells_the_version_that_is_built_in_it() {
    for (template, place, expected) in [
        ("orders_{version}", "orders_v1", Some("v1")),
        ("orders_{version}", "orders_", None),
        ("orders_{version}", "invoices_v1", None),
        ("{version}_orders", "v1_orders", Some("v1")),
        ("{version}_{version}", "v1_v1", None),
        ("orders", "orders", None),
    ] {
        let one = projection(|object| object["spec"]["readStore"]["postgres"]["schema"] = json!(template));
        assert_eq!(version_in(&one, place).as_deref(), expected, "{template} {place}");
    }
}

#[test]
fn a_version_that_is_named_again_with_another_spec_keeps_the_one_it_was_made_with() {
    let stored = spec_to_store(&projection(|_| {})).unwrap();
    let returns = |described: Option<&str>, handler: &str| {
        comes_back_changed(
            &projection(|object| {
                object["spec"]["projector"]["builtin"]["handlers"]["Placed"] = json!(handler);
                object["status"] = json!({"version": "v1", "rollout": {"described": described}});
            }),
            &stored,
        )
    };
    assert!(returns(Some("v2"), "select 2"), "only the version was set back");
    assert!(!returns(Some("v2"), "select 1"), "the whole spec was");
    assert!(!returns(Some("v1"), "select 2"), "a change in place");
    assert!(!returns(None, "select 2"), "nothing is remembered");
}

#[test]
fn what_cannot_be_a_version_is_none_in_the_name_of_a_schema() {
    let projection = projection(|_| {});
    for (place, expected) in
        [("orders_v1", Some("v1")), ("orders_lines_v1", None), ("orders_", None), ("orders_-", None), ("shop", None)]
    {
        assert_eq!(version_in(&projection, place).as_deref(), expected, "{place}");
    }
}

#[test]
fn a_pointer_and_aliases_name_the_version_itself() {
    let led = |store: &str, switch: Value, status: Value| {
        projection(|object| {
            object["spec"]["readStore"] = json!({store: {"connection": {"secretRef": {"name": "db"}}}});
            object["spec"]["rollout"]["switch"] = switch;
            object["status"] = status;
        })
    };
    let live = json!({"version": "v1", "runs": [{"version": "v1", "role": "Live", "since": "2026-01-01T00:00:00Z"}]});
    let pointer = |status: &Value| led("redis", json!({"redisPointer": {"key": "orders:current"}}), status.clone());
    let aliases = led(
        "elasticsearch",
        json!({"elasticsearchAliases": [{"alias": "orders", "index": "orders-{version}"}]}),
        json!({}),
    );
    for one in [&pointer(&live), &aliases] {
        assert_eq!(place_of(one).as_deref(), Some("v1"));
        assert_eq!(version_in(one, "v0").as_deref(), Some("v0"), "of which there is no run any more");
    }
    assert_eq!(version_in(&pointer(&json!({})), "v0"), None, "nothing says that a switch wrote it");
    assert_eq!(version_in(&pointer(&live), "Not one"), None);
    let Some(LedBy::Aliases(all)) = led_by(&aliases) else { panic!() };
    assert_eq!(all[0].index_of("v2"), "orders-v2");
    assert_eq!(
        (all[0].version_of("orders-v2"), all[0].version_of("others-v2"), all[0].version_of("orders-")),
        (Some("v2"), None, None)
    );
    let told = led_by(&pointer(&live)).unwrap().stray("s3cret");
    assert!(told.contains("key orders:current") && !told.contains("s3cret"), "{told}");
}
