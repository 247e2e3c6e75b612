//! What the version fills, and what is refused where two versions would write to one place.

use serde_json::{Value, json};

use super::fill_template;
use crate::{
    api::{CheckpointLocation, Projection, Reason, admit},
    resolve::{Measures, Pods, Workload, resolve, run_of, validate},
};

fn projection(schema: &str, version: Option<&str>) -> Projection {
    let connection = json!({"secretRef": {"name": "db"}});
    serde_json::from_value(json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
        "metadata": {"namespace": "shop", "name": "orders", "uid": "u-1"},
        "spec": {
            "source": {"postgres": {"connection": connection, "eventTable": {}}},
            "readStore": {"postgres": {"connection": connection, "schema": schema}},
            "projector": {"builtin": {"handlers": {"Placed": "select 1"}}},
            "lag": {"target": "5s"}, "version": version,
        },
    }))
    .unwrap()
}

/// The table with the checkpoints.
fn table(projection: &Projection) -> String {
    match resolve(projection).unwrap().checkpoint {
        Some(CheckpointLocation::Table(table)) => table.table,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_checkpoint_is_read_in_the_schema_of_the_version() {
    for (schema, version, expected) in [
        ("orders", None, "orders.projectionist_checkpoints"),
        ("orders", Some("v1"), "orders.projectionist_checkpoints"),
        ("orders_{version}", Some("v1"), "orders_v1.projectionist_checkpoints"),
        ("{version}.orders", Some("2"), "\"2.orders\".projectionist_checkpoints"),
    ] {
        assert_eq!(table(&projection(schema, version)), expected, "{schema} {version:?}");
    }
}

#[test]
fn what_was_measured_of_another_version_counts_only_where_the_place_is_the_same() {
    let measures = |schema, version| Measures::of(&projection(schema, Some(version)));
    assert_eq!(measures("orders", "v1"), measures("orders", "v2"), "a name alone changes nothing");
    assert_ne!(measures("orders_{version}", "v1"), measures("orders_{version}", "v2"));
}

#[test]
fn a_schema_that_becomes_too_long_by_its_version_is_refused() {
    let long = format!("{}_{{version}}", "o".repeat(50));
    assert!(resolve(&projection(&long, Some("v1"))).is_ok());
    let version = "v".repeat(40);
    let refused = resolve(&projection(&long, Some(&version))).unwrap_err().message;
    assert!(refused.contains("spec.readStore.postgres.schema") && refused.contains("this has 91"), "{refused}");
}

/// A Projection in Redis or Elasticsearch of which `change` is made.
fn without_schemas(store: &str, change: impl FnOnce(&mut Value)) -> Projection {
    let (builtin, switch) = match store {
        "redis" => (
            json!({"redis": {"handlers": {"Placed": [["HSET", "orders:{version}:{stream}", "total", "{data.total}", "v", "{version}"]]}}}),
            json!({"redisPointer": {"key": "orders:current"}}),
        ),
        _ => (
            json!({"elasticsearch": {"handlers": {"Placed": [{"index": {"index": "orders-{version}", "id": "{stream}", "document": {}}}]}}}),
            json!({"elasticsearchAliases": [{"alias": "orders", "index": "orders-{version}"}]}),
        ),
    };
    let connection = json!({"secretRef": {"name": "db"}});
    let mut object = json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
        "metadata": {"namespace": "shop", "name": "orders", "uid": "u-1"},
        "spec": {
            "source": {"postgres": {"connection": connection, "eventTable": {}}},
            "readStore": {store: {"connection": connection}}, "projector": {"builtin": builtin},
            "lag": {"target": "5s"}, "version": "v1", "rollout": {"strategy": "BlueGreen", "switch": switch},
        },
    });
    change(&mut object["spec"]);
    serde_json::from_value(object).unwrap()
}

/// What its workers are told.
fn configuration(projection: &Projection) -> Value {
    match validate(projection).unwrap().workload {
        Workload::Own { pods: Pods::Builtin(pods), .. } => pods.configuration,
        other => panic!("{other:?}"),
    }
}

#[test]
fn handlers_write_to_the_places_of_their_version_and_keep_their_state_under_its_name() {
    for (version, name) in [("v1", "shop/orders@v1"), ("v2-a", "shop/orders@v2-a")] {
        let redis = without_schemas("redis", |spec| spec["version"] = json!(version));
        let told = configuration(&redis);
        assert_eq!(told["projection"], name);
        let key = format!("orders:{version}:{{stream}}");
        assert_eq!(
            told["output"]["redis"]["handlers"]["Placed"][0],
            json!(["HSET", key, "total", "{data.total}", "v", version])
        );
        let Some(CheckpointLocation::Redis(location)) = resolve(&redis).unwrap().checkpoint else { panic!() };
        assert_eq!(location.key, format!("projectionist:{{{name}}}"));
        let search = without_schemas("elasticsearch", |spec| {
            spec["version"] = json!(version);
            spec["projector"]["builtin"]["elasticsearch"]["stateIndex"] = json!("state-{version}");
            spec["projector"]["builtin"]["elasticsearch"]["handlers"]["Gone"] = json!([
                {"delete": {"index": "orders-{version}", "id": "{stream}"}},
                {"update": {"index": "sums-{version}-{data.region}", "id": "all", "add": {"n": 1}}},
            ]);
        });
        let told = configuration(&search);
        assert_eq!(told["projection"], name);
        let output = &told["output"]["elasticsearch"];
        assert_eq!(output["handlers"]["Placed"][0]["index"]["index"], format!("orders-{version}"));
        assert_eq!(output["handlers"]["Gone"][0]["delete"]["index"], format!("orders-{version}"));
        assert_eq!(output["handlers"]["Gone"][1]["update"]["index"], format!("sums-{version}-{{data.region}}"));
        let Some(CheckpointLocation::Document(location)) = resolve(&search).unwrap().checkpoint else { panic!() };
        assert_eq!((location.index, location.id), (format!("state-{version}"), name.to_owned()));
        assert_eq!(validate(&search).unwrap().owner.run, run_of(&search));
    }
    let measures = |version: &str| Measures::of(&without_schemas("redis", |spec| spec["version"] = json!(version)));
    assert_ne!(measures("v1"), measures("v2"), "the checkpoint is another one");
    let plain = without_schemas("redis", |spec| {
        spec["rollout"] = Value::Null;
        spec["projector"]["builtin"]["redis"]["handlers"]["Placed"] = json!([["SET", "{stream}", "{{version}}"]]);
    });
    assert_eq!(configuration(&plain)["projection"], "shop/orders");
}

#[test]
fn the_version_is_filled_in_where_no_brace_makes_it_a_text() {
    for (template, expected) in [
        ("{version}", "v1"),
        ("a:{version}:{stream}:{version}", "a:v1:{stream}:v1"),
        ("{{version}}", "{{version}}"),
        ("{{{version}}}", "{{v1}}"),
        ("{{shop/orders@{version}}}:{data.a}", "{{shop/orders@v1}}:{data.a}"),
        ("{data.x}}}{version}", "{data.x}}}v1"),
        ("{data.version}{version", "{data.version}{version"),
        ("} {version} ä{", "} v1 ä{"),
        ("", ""),
    ] {
        assert_eq!(fill_template(template, "v1"), expected, "{template}");
    }
}

#[test]
fn a_place_that_two_versions_would_write_to_is_refused_with_its_field() {
    let refused = |store: &str, change: &dyn Fn(&mut Value)| {
        let projection = without_schemas(store, change);
        let (said, measured) = (validate(&projection).unwrap_err().to_string(), resolve(&projection).unwrap_err());
        assert_eq!((measured.reason, &measured.message), (Reason::InvalidSpec, &said));
        said
    };
    let words = |words: Value| {
        move |spec: &mut Value| {
            spec["projector"]["builtin"]["redis"]["handlers"]["Placed"] = json!([["SET", "a:{version}", "1"], words]);
        }
    };
    for (command, expected) in [
        (json!(["SET", "orders:{stream}", "{version}"]), "the key \"orders:{stream}\" must hold {version}"),
        (json!(["SET", "{stream}:{version}", "1"]), "in front of what comes from an event"),
        (json!(["SET", "a{version}{stream}", "1"]), "something between {version} and what comes from an event"),
        (json!(["SET", "{{version}}:a", "1"]), "must hold {version}"),
        (json!(["del", "a:{version}", "b"]), "the key \"b\" must hold {version}"),
        (json!(["PUBLISH", "orders", "{stream}"]), "the key \"orders\" must hold {version}"),
    ] {
        let said = refused("redis", &words(command));
        assert!(
            said.starts_with("spec.projector.builtin.redis.handlers[Placed] cannot be run: in command 2"),
            "{said}"
        );
        assert!(said.contains(expected), "{expected}: {said}");
    }
    for command in [json!(["DEL", "a:{version}", "{version}"]), json!(["SET", "{version}:{stream}", "orders"])] {
        assert!(validate(&without_schemas("redis", words(command))).is_ok());
    }
    let search = |field: &'static str, value: Value| {
        move |spec: &mut Value| spec["projector"]["builtin"]["elasticsearch"][field] = value.clone()
    };
    let index = |index: &str| json!({"Placed": [{"index": {"index": index, "id": "a", "document": {}}}]});
    let said = refused("elasticsearch", &search("handlers", index("orders")));
    assert!(said.starts_with("spec.projector.builtin.elasticsearch.handlers[Placed] cannot be run: in operation 1 the index \"orders\" must hold {version}"), "{said}");
    for other in ["others-{version}", "orders-{version}-{data.region}"] {
        let said = refused("elasticsearch", &search("handlers", index(other)));
        assert!(
            said.starts_with("spec.rollout.switch.elasticsearchAliases[0].index must be an index that a handler"),
            "{said}"
        );
    }
    let deleted = json!({"Placed": [{"delete": {"index": "orders-{version}", "id": "a"}}]});
    assert!(
        refused("elasticsearch", &search("handlers", deleted)).contains("alias orders would lead readers to nothing")
    );
    let regions = without_schemas("elasticsearch", |spec| {
        spec["projector"]["builtin"]["elasticsearch"]["handlers"] = index("orders-{version}-{data.region}");
        spec["rollout"]["switch"]["elasticsearchAliases"][0]["index"] = json!("orders-{version}-eu");
    });
    assert!(validate(&regions).is_ok());
    // Without runs nothing tells versions apart.
    for store in ["redis", "elasticsearch"] {
        let said = refused(store, &|spec| spec["rollout"] = Value::Null);
        assert!(
            said.contains("holds {version}, which stands for the version with spec.rollout.strategy BlueGreen only"),
            "{said}"
        );
    }
    let said = refused("elasticsearch", &|spec| {
        spec["rollout"] = Value::Null;
        spec["projector"]["builtin"]["elasticsearch"]["handlers"] = index("orders");
        spec["projector"]["builtin"]["elasticsearch"]["stateIndex"] = json!("s-{version}");
    });
    assert!(said.starts_with("spec.projector.builtin.elasticsearch.stateIndex cannot be used"), "{said}");
}

#[test]
fn workers_of_the_teams_own_have_a_checkpoint_for_each_version() {
    let template = |store: &str, checkpoint: Value| {
        without_schemas(store, |spec| {
            spec["projector"] = json!({"template": {"spec": {"containers": [{"name": "w", "image": "team:1"}]}}});
            spec["checkpoint"] = checkpoint;
        })
    };
    let place = |projection: &Projection| match resolve(projection).unwrap().checkpoint.unwrap() {
        CheckpointLocation::Redis(location) => location.key,
        CheckpointLocation::Document(location) => format!("{}/{}", location.index, location.id),
        other => panic!("{other:?}"),
    };
    assert_eq!(place(&template("redis", json!({"redis": {"key": "checkpoints:{version}"}}))), "checkpoints:v1");
    for (document, expected) in [
        (json!({"id": "orders-{version}"}), "checkpoints/orders-v1"),
        (json!({"index": "checkpoints-{version}"}), "checkpoints-v1/orders"),
    ] {
        assert_eq!(place(&template("elasticsearch", json!({"elasticsearch": document}))), expected);
    }
    for (store, checkpoint, field) in [
        ("redis", json!({"redis": {"field": "{version}"}}), "spec.checkpoint.redis.key"),
        ("elasticsearch", json!({"elasticsearch": {}}), "spec.checkpoint.elasticsearch.id"),
    ] {
        let projection = template(store, checkpoint);
        let said = validate(&projection).unwrap_err().to_string();
        assert!(said.starts_with(&format!("{field} must hold {{version}}")), "{said}");
        assert_eq!(
            resolve(&projection).unwrap_err().reason,
            Reason::InvalidSpec,
            "what is measured would be another's"
        );
    }
}

#[test]
fn the_examples_of_rebuilds_are_taken_and_can_be_carried_out() {
    for example in [
        include_str!("../../examples/rebuild.yaml"),
        include_str!("../../examples/rebuild-redis.yaml"),
        include_str!("../../examples/rebuild-elasticsearch.yaml"),
    ] {
        let mut projection = admit(serde_saphyr::from_str(example).unwrap()).unwrap();
        projection.metadata.uid = Some("u-1".to_owned());
        let (validated, resolved) = (validate(&projection).unwrap(), resolve(&projection).unwrap());
        assert_eq!(validated.owner.run, resolved.key);
        assert!(resolved.key.version.is_some() && resolved.checkpoint.is_some(), "{example}");
    }
}
