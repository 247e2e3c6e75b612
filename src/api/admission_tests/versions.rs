//! What is refused of versions of a read model, also of a change.

use super::*;

fn in_version(version: &str, schema: &str) -> Value {
    let mut object = projection();
    object["spec"]["readStore"]["postgres"]["schema"] = json!(schema);
    object["spec"]["version"] = json!(version);
    object
}

/// What the rules say of a change.
fn refused_change(before: &Value, after: &Value) -> Vec<String> {
    let broken = Validator::new().validate(&schema(), after, Some(before)).err();
    let broken = broken.into_iter().flat_map(|broken| broken.into_vec());
    broken.map(|error| error.message).filter(|message| message.contains("version")).collect()
}

#[test]
fn a_version_is_a_part_of_names() {
    for version in ["v1", "2", "2026-11-27", "a-b"] {
        assert_eq!(admit(in_version(version, "orders")).unwrap().spec.version.as_deref(), Some(version));
    }
    for (version, expected) in [
        ("V1", "spec.version must match"),
        ("v1.2", "spec.version must match"),
        ("-v1", "spec.version must match"),
        ("", "spec.version must have at least 1 characters"),
        ("unversioned", "spec.version must not be \"unversioned\""),
    ] {
        let found = admit(in_version(version, "orders")).expect_err(version);
        assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{expected}: {found:?}");
    }
    let mut long = in_version(&"v".repeat(20), "orders");
    long["metadata"]["name"] = json!("o".repeat(31));
    admit(long.clone()).unwrap();
    long["metadata"]["name"] = json!("o".repeat(32));
    let found = admit(long).unwrap_err();
    let expected = "spec.version and metadata.name must have at most 51 characters together";
    assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{found:?}");
}

#[test]
fn a_place_that_is_named_by_the_version_needs_one_and_keeps_it() {
    admit(in_version("v1", "orders_{version}")).unwrap();
    let mut without = in_version("v1", "orders_{version}");
    without["spec"].as_object_mut().unwrap().remove("version");
    let found = admit(without).unwrap_err();
    let expected = "spec.version is required where spec.readStore.postgres.schema holds {version}";
    assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{found:?}");
    let (first, second) = (in_version("v1", "orders_{version}"), in_version("v2", "orders_{version}"));
    let refused = refused_change(&first, &second);
    assert!(refused.iter().any(|message| message.starts_with("spec.version cannot be changed where")), "{refused:?}");
    assert_eq!(refused_change(&first, &first), [""; 0]);
    assert_eq!(refused_change(&in_version("v1", "orders"), &in_version("v2", "orders")), [""; 0], "a name alone");
}

fn side_by_side(version: &str) -> Value {
    let mut object = in_version(version, "orders_{version}");
    object["spec"]["rollout"] = json!({
        "strategy": "BlueGreen", "switch": {"postgresView": {"schema": "orders", "views": ["summary"]}},
    });
    object
}

#[test]
fn versions_side_by_side_need_places_of_their_own_a_history_and_a_way_to_lead_readers() {
    let taken = admit(side_by_side("v1")).unwrap().spec.rollout.unwrap();
    assert_eq!((taken.keep_old.0.as_secs(), taken.promote), (3_600, None), "by hand, where nothing is said");
    for (pointer, name, value, expected) in [
        ("/spec", "version", Value::Null, "spec.version is required"),
        ("/spec/rollout", "switch", Value::Null, "spec.rollout.switch is required"),
        ("/spec/rollout", "strategy", json!("InPlace"), "spec.rollout: promote, switch and deadline have no meaning"),
        ("/spec/rollout", "keepOld", json!("9000h"), "spec.rollout.keepOld must be from 0s to 8760h"),
        ("/spec/rollout", "deadline", json!("1s"), "spec.rollout.deadline must be from 1m to 8760h"),
        ("/spec/rollout", "promote", json!({"for": "soon"}), "spec.rollout.promote.for must be a duration"),
        ("/spec/rollout/switch/postgresView", "views", json!([]), "spec.rollout.switch.postgresView.views must"),
        ("/spec/rollout/switch", "postgresView", Value::Null, "spec.rollout.switch must have exactly one of"),
        (
            "/spec/rollout/switch",
            "redisPointer",
            json!({"key": "current"}),
            "spec.rollout.switch must have exactly one of",
        ),
        ("/spec/readStore/postgres", "schema", json!("orders"), "spec.readStore.postgres.schema must hold {version}"),
        (
            "/spec",
            "projector",
            json!({"existing": {"kind": "Deployment", "name": "x"}}),
            "spec.projector must be builtin",
        ),
        ("/spec/source/postgres", "eventTable", Value::Null, "spec.source must be an event store in PostgreSQL"),
    ] {
        let mut object = side_by_side("v1");
        if name == "eventTable" {
            object["spec"]["source"]["postgres"]["outbox"] = json!({"table": "outbox", "sentAt": "sent_at"});
            object["spec"]["scaling"] = json!({"ordering": "None"});
        }
        let fields = object.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
        match value {
            Value::Null => drop(fields.remove(name)),
            value => drop(fields.insert(name.to_owned(), value)),
        }
        let found: Vec<String> = admit(object).expect_err(name).iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|refusal| refusal.starts_with(expected)), "{expected}: {found:?}");
    }
    let template = |table: &str| {
        let mut object = side_by_side("v1");
        object["spec"]["projector"] =
            json!({"template": {"spec": {"containers": [{"name": "worker", "image": "team:1"}]}}});
        object["spec"]["checkpoint"] = json!({"readStore": {"table": table}});
        admit(object)
    };
    template("checkpoints").unwrap();
    let found = template("public.checkpoints").unwrap_err();
    assert!(found.iter().any(|refusal| refusal.to_string().contains("a table without a schema")), "{found:?}");
}

#[test]
fn versions_side_by_side_follow_on_each_other_and_what_readers_name_stays() {
    let (first, second) = (side_by_side("v1"), side_by_side("v2"));
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut after = second.clone();
        change(&mut after["spec"]);
        let broken = Validator::new().validate(&schema(), &after, Some(&first)).err();
        let broken = broken.into_iter().flat_map(|broken| broken.into_vec());
        // Some rules can only be asked by a server.
        broken.map(|error| error.message).filter(|message| message.starts_with("spec.")).collect::<Vec<_>>()
    };
    assert_eq!(refused(&|_| {}), [""; 0]);
    for (change, expected) in [
        (
            (&|spec: &mut Value| drop(spec.as_object_mut().unwrap().remove("rollout"))) as &dyn Fn(&mut Value),
            "spec.rollout.strategy cannot be changed",
        ),
        (
            &|spec| spec["rollout"]["switch"]["postgresView"]["views"] = json!(["other"]),
            "spec.rollout.switch cannot be",
        ),
        (
            &|spec| spec["readStore"]["postgres"]["connection"]["secretRef"]["name"] = json!("other"),
            "spec.readStore.postgres.connection cannot be changed",
        ),
        (
            &|spec| {
                spec["version"] = json!("v1");
                spec["readStore"]["postgres"]["schema"] = json!("o_{version}");
            },
            "spec.readStore.postgres.schema cannot be changed",
        ),
    ] {
        let found = refused(change);
        assert!(found.iter().any(|message| message.starts_with(expected)), "{expected}: {found:?}");
    }
}

/// Versions in Redis or Elasticsearch.
fn without_schemas(store: &str) -> Value {
    let (builtin, switch) = match store {
        "redis" => (
            json!({"redis": {"handlers": {"Placed": [["SET", "orders:{version}:{stream}", "{{version}}"]]}}}),
            json!({"redisPointer": {"key": "orders:current"}}),
        ),
        _ => (
            json!({"elasticsearch": {"handlers": {"Placed": [{"index": {"index": "orders-{version}", "id": "{stream}", "document": {}}}]}}}),
            json!({"elasticsearchAliases": [{"alias": "orders", "index": "orders-{version}"}]}),
        ),
    };
    let mut object = side_by_side("v1");
    object["spec"]["readStore"] = json!({store: {"connection": {"secretRef": {"name": "reads"}}}});
    object["spec"]["projector"] = json!({"builtin": builtin});
    object["spec"]["rollout"]["switch"] = switch;
    object
}

fn template(store: &str, checkpoint: Value) -> Value {
    let mut object = without_schemas(store);
    object["spec"]["projector"] =
        json!({"template": {"spec": {"containers": [{"name": "worker", "image": "team:1"}]}}});
    object["spec"]["checkpoint"] = checkpoint;
    object
}

#[test]
fn a_pointer_and_aliases_need_their_kind_of_read_store_and_workers_that_have_a_checkpoint_for_each_version() {
    for store in ["redis", "elasticsearch"] {
        admit(without_schemas(store)).unwrap();
    }
    for (store, checkpoint) in [
        ("redis", json!({"redis": {"key": "checkpoints:{version}"}})),
        ("elasticsearch", json!({"elasticsearch": {"id": "orders-{version}"}})),
        ("elasticsearch", json!({"elasticsearch": {"index": "checkpoints-{version}"}})),
    ] {
        admit(template(store, checkpoint)).unwrap();
    }
    let changed = |store: &str, change: &dyn Fn(&mut Value)| {
        let mut object = without_schemas(store);
        change(&mut object["spec"]);
        object
    };
    let alias = |index: &str| json!([{"alias": "orders", "index": index}]);
    for (object, expected) in [
        (
            changed("redis", &|spec| spec["readStore"] = without_schemas("elasticsearch")["spec"]["readStore"].clone()),
            "spec.readStore.redis is required with spec.rollout.switch.redisPointer",
        ),
        (
            changed("elasticsearch", &|spec| spec["readStore"] = without_schemas("redis")["spec"]["readStore"].clone()),
            "spec.readStore.elasticsearch is required with spec.rollout.switch.elasticsearchAliases",
        ),
        (
            changed("redis", &|spec| {
                spec["rollout"]["switch"] = side_by_side("v1")["spec"]["rollout"]["switch"].clone();
            }),
            "spec.readStore.postgres.schema must hold {version} with spec.rollout.switch.postgresView",
        ),
        (
            changed("redis", &|spec| spec["projector"] = json!({"existing": {"kind": "Deployment", "name": "x"}})),
            "spec.projector must be builtin with redis, or template",
        ),
        (
            template("redis", json!({"redis": {"key": "checkpoints"}})),
            "spec.projector must be builtin with redis, or template",
        ),
        (
            template("elasticsearch", json!({"elasticsearch": {}})),
            "spec.projector must be builtin with elasticsearch, or template",
        ),
        (
            changed("redis", &|spec| spec["rollout"]["promote"] = json!({"parity": {"query": "select 1"}})),
            "spec.rollout.promote.parity must be absent without spec.rollout.switch.postgresView",
        ),
        (
            changed("elasticsearch", &|spec| spec["rollout"]["switch"]["elasticsearchAliases"] = alias("orders")),
            "spec.rollout.switch.elasticsearchAliases[].index must hold {version} once",
        ),
        (
            changed("elasticsearch", &|spec| {
                spec["rollout"]["switch"]["elasticsearchAliases"] = alias("o-{version}-{version}");
            }),
            "spec.rollout.switch.elasticsearchAliases[].index must hold {version} once",
        ),
        (
            changed("elasticsearch", &|spec| spec["rollout"]["switch"]["elasticsearchAliases"] = json!([])),
            "spec.rollout.switch.elasticsearchAliases must",
        ),
        (
            changed("elasticsearch", &|spec| {
                spec["projector"]["builtin"]["elasticsearch"]["handlers"]["Placed"][0]["index"]["id"] =
                    json!("{version}");
            }),
            "spec.projector.builtin.elasticsearch.handlers",
        ),
    ] {
        let found: Vec<String> = admit(object).expect_err(expected).iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|refusal| refusal.starts_with(expected)), "{expected}: {found:?}");
    }
    for store in ["redis", "elasticsearch"] {
        let mut after = without_schemas(store);
        after["spec"]["readStore"][store]["connection"]["secretRef"]["name"] = json!("other");
        let broken =
            Validator::new().validate(&schema(), &after, Some(&without_schemas(store))).unwrap_err().into_vec();
        let expected = format!("spec.readStore.{store}.connection cannot be changed");
        assert!(broken.iter().any(|error| error.message.starts_with(&expected)), "{broken:?}");
    }
}
