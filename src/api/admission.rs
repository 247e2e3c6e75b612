//! What the API server makes of a Projection that is created: refused, or taken with the defaults filled in. By the CustomResourceDefinition's own schema
//! and rules, so that what is said without a cluster is what a cluster says.
//!
//! Left to a real server: whether a name is taken, quotas, other webhooks, and rules about a change, which need the object from before.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt as _;
use kube_cel::{ErrorKind, ValidationError, Validator};
use serde_json::{Value, json};

use super::{
    Projection, Shards,
    structural::{Refusal, prune, refusals, shown},
};

fn refusal(field: impl Into<String>, problem: impl Into<String>) -> Refusal {
    Refusal { field: field.into(), problem: problem.into() }
}

/// Takes a Projection as it is written, as the API server would.
///
/// # Errors
/// With everything that it would refuse. Rules in CEL are asked only once the schema finds nothing, as the server does.
pub fn admit(mut object: Value) -> Result<Projection, Vec<Refusal>> {
    let Some(fields) = object.as_object_mut() else {
        let problem = format!("must be an object with apiVersion, kind, metadata and spec, and is {}", shown(&object));
        return Err(vec![refusal("the document", problem)]);
    };
    // What comes from a cluster has one, and the server takes none from others.
    fields.remove("status");
    let mut found = Vec::new();
    let resource = Projection::api_resource();
    for (field, expected) in [("apiVersion", &resource.api_version), ("kind", &resource.kind)] {
        match fields.get(field) {
            Some(Value::String(given)) if given == expected => {}
            Some(other) => found.push(refusal(field, format!("must be {expected}, and is {}", shown(other)))),
            None => found.push(refusal(field, format!("is required: {expected}"))),
        }
    }
    if !found.is_empty() {
        return Err(found);
    }
    for name in fields.keys().filter(|name| !["apiVersion", "kind", "metadata", "spec"].contains(&name.as_str())) {
        found.push(refusal(name, "is no field there: the fields of a Projection are in spec"));
    }
    found.extend(metadata(fields.get("metadata").unwrap_or(&Value::Null)));
    let schema = schema();
    let spec_schema = schema.pointer("/properties/spec").unwrap_or(&Value::Null);
    match fields.get_mut("spec") {
        Some(spec) if !spec.is_null() => {
            prune(spec_schema, spec);
            found.extend(refusals(spec_schema, spec, "spec"));
        }
        _ => found.push(refusal("spec", "is required")),
    }
    if !found.is_empty() {
        return Err(found);
    }
    if let Err(broken) = Validator::new().validate(&schema, &object, None) {
        found.extend(broken.into_vec().iter().filter_map(|error| of_rule(error, &object)));
    }
    if !found.is_empty() {
        return Err(found);
    }
    serde_json::from_value(object).map_err(|error| vec![refusal("the document", format!("cannot be read: {error}"))])
}

/// What the API server would refuse of `spec.scaling.behavior`, wherever it stands: `path` is where.
pub fn refused_behavior(behavior: &Value, path: &str) -> Vec<Refusal> {
    let schema = schema();
    let part = schema.pointer("/properties/spec/properties/scaling/properties/behavior").unwrap_or(&Value::Null);
    refusals(part, behavior, path)
}

/// The first field that was given and not understood.
pub fn unknown_field(given: &Value, understood: &Value, path: &str) -> Option<String> {
    match (given, understood) {
        (Value::Object(given), understood) => {
            given.iter().filter(|(_, value)| !value.is_null()).find_map(|(key, value)| {
                let path = format!("{path}.{key}").trim_start_matches('.').to_owned();
                match understood.get(key) {
                    None if value.as_object().is_some_and(serde_json::Map::is_empty) => None,
                    None => Some(path),
                    Some(understood) => unknown_field(value, understood, &path),
                }
            })
        }
        (Value::Array(given), Value::Array(understood)) => (0..)
            .zip(given.iter().zip(understood))
            .find_map(|(index, (given, understood))| unknown_field(given, understood, &format!("{path}[{index}]"))),
        _ => None,
    }
}

fn schema() -> Value {
    json!(Projection::crd()).pointer("/spec/versions/0/schema/openAPIV3Schema").cloned().unwrap_or(Value::Null)
}

/// The name, and fields that no metadata has.
fn metadata(metadata: &Value) -> Vec<Refusal> {
    let read: ObjectMeta = match serde_json::from_value(metadata.clone()) {
        Ok(read) => read,
        Err(error) => return vec![refusal("metadata", format!("cannot be read: {error}"))],
    };
    let unknown = unknown_field(metadata, &json!(read), "metadata").map(|field| refusal(field, "is no field there"));
    let end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let fits = |name: &str| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
        let bytes = name.as_bytes();
        bytes.iter().copied().all(allowed) && end(bytes.first()) && end(bytes.last()) && bytes.len() <= 253
    };
    let name = match read.name.as_deref() {
        None => Some("is required".to_owned()),
        Some(name) if name.split('.').all(fits) => None,
        Some(name) => Some(format!("must be lower-case letters, digits, - and ., and is {name:?}")),
    };
    unknown.into_iter().chain(name.map(|problem| refusal("metadata.name", problem))).collect()
}

/// The messages of our rules name the field, or say what it must be.
fn of_rule(error: &ValidationError, object: &Value) -> Option<Refusal> {
    let field = error.field_path.trim_start_matches('.').to_owned();
    let pointer = format!("/{}", field.replace(['.', '['], "/").replace(']', ""));
    let value = object.pointer(&pointer);
    if error.kind == ErrorKind::UnsupportedReference && field == SHARDS {
        let problem =
            || format!("must be Auto or a number from 1 to 1024, and is {}", value.map(shown).unwrap_or_default());
        let read = value.is_none_or(|value| serde_json::from_value::<Shards>(value.clone()).is_ok());
        return (!read).then(|| refusal(field, problem()));
    }
    if error.kind != ErrorKind::ValidationFailure {
        let field = if field.is_empty() { "the document".to_owned() } else { field };
        return Some(refusal(field, format!("has a rule that cannot be checked here: {}", error.message)));
    }
    let value = value.filter(|value| !value.is_object() && !value.is_array());
    let is = value.map(|value| format!(", and is {}", shown(value))).unwrap_or_default();
    Some(match error.message.split_once(' ') {
        Some((named, problem)) if named.starts_with("spec") || named.starts_with("metadata") => {
            refusal(named, format!("{problem}{is}"))
        }
        _ => refusal(field, format!("{}{is}", error.message)),
    })
}

/// The one field whose rule in CEL asks for a type, which is not known here: its own reader holds the same rule.
const SHARDS: &str = "spec.scaling.shards";

#[cfg(test)]
mod tests {
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
    fn streams_in_redis_need_no_checkpoint_and_no_read_store_and_suit_no_built_in_projector() {
        let redis = || {
            json!({
                "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
                "spec": {
                    "source": {"redis": {"connection": {"secretRef": {"name": "r"}}, "streams": [{"key": "orders", "group": "list"}]}},
                    "lag": {"target": "5s"},
                },
            })
        };
        assert_eq!(admit(redis()).unwrap().spec.source.redis.unwrap().streams.len(), 1);
        let postgres = projection()["spec"]["source"]["postgres"].clone();
        for (pointer, name, value, expected) in [
            ("/spec/source", "postgres", postgres, "spec.source must name exactly one source"),
            ("/spec", "checkpoint", json!({"readStore": {}}), "spec.checkpoint must be absent with spec.source.redis"),
            (
                "/spec",
                "projector",
                json!({"builtin": {"handlers": {"Ordered": "select 1"}}}),
                "spec.source.postgres.eventTable is required with spec.projector.builtin",
            ),
            ("/spec/source/redis", "lists", json!([{"key": ""}]), "spec.source.redis.lists[0].key"),
            ("/spec/source/redis", "streams", json!([]), "spec.source.redis.streams must have at least 1 items"),
            ("/spec/source/redis", "streams", json!([{"key": "orders"}]), "spec.source.redis.streams[0].group"),
            ("/spec/source/redis", "streams", json!([{"key": "", "group": "g"}]), "spec.source.redis.streams[0].key"),
        ] {
            let mut object = redis();
            object.pointer_mut(pointer).unwrap()[name] = value;
            let found = admit(object).expect_err(expected);
            assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{expected}: {found:?}");
        }
    }

    #[test]
    fn consumers_of_jetstream_need_no_checkpoint_and_have_names_that_are_one_part_of_a_subject() {
        let nats = || {
            json!({
                "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
                "spec": {
                    "source": {"nats": {"connection": {"secretRef": {"name": "n"}}, "consumers": [{"stream": "orders", "consumer": "list"}]}},
                    "lag": {"target": "5s"},
                },
            })
        };
        assert_eq!(admit(nats()).unwrap().spec.source.nats.unwrap().consumers.len(), 1);
        let consumer = |stream: &str, consumer: &str| json!([{"stream": stream, "consumer": consumer}]);
        for (pointer, name, value, expected) in [
            ("/spec", "checkpoint", json!({"readStore": {}}), "spec.checkpoint must be absent with spec.source.nats"),
            ("/spec/source/nats", "consumers", json!([]), "spec.source.nats.consumers must have at least 1 items"),
            ("/spec/source/nats", "consumers", consumer("", "c"), "spec.source.nats.consumers[0].stream"),
            ("/spec/source/nats", "consumers", consumer("a.b", "c"), "spec.source.nats.consumers[0].stream"),
            ("/spec/source/nats", "consumers", consumer("a", "b c"), "spec.source.nats.consumers[0].consumer"),
            ("/spec/source/nats", "consumers", consumer("a", ">"), "spec.source.nats.consumers[0].consumer"),
            ("/spec/source/nats", "domain", json!("a.b"), "spec.source.nats.domain"),
        ] {
            let mut object = nats();
            object.pointer_mut(pointer).unwrap()[name] = value;
            let found = admit(object).expect_err(expected);
            assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{expected}: {found:?}");
        }
    }

    #[test]
    fn queues_in_rabbitmq_need_no_checkpoint_and_have_no_database() {
        let rabbitmq = || {
            json!({
                "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
                "spec": {
                    "source": {"rabbitmq": {"connection": {"secretRef": {"name": "r"}}, "queues": ["orders", "invoices"]}},
                    "lag": {"target": "5s"},
                },
            })
        };
        let source = admit(rabbitmq()).unwrap().spec.source.rabbitmq.unwrap();
        assert_eq!((source.vhost.as_str(), source.queues.len()), ("/", 2));
        let redis = json!({"connection": {"secretRef": {"name": "r"}}, "streams": [{"key": "a", "group": "b"}]});
        for (pointer, name, value, expected) in [
            ("/spec/source", "redis", redis, "spec.source must name exactly one source"),
            (
                "/spec",
                "checkpoint",
                json!({"readStore": {}}),
                "spec.checkpoint must be absent with spec.source.rabbitmq",
            ),
            ("/spec/source/rabbitmq", "queues", json!([]), "spec.source.rabbitmq.queues must have at least 1 items"),
            ("/spec/source/rabbitmq", "queues", json!([""]), "spec.source.rabbitmq.queues[0]"),
            ("/spec/source/rabbitmq", "vhost", json!(""), "spec.source.rabbitmq.vhost"),
            ("/spec/source/rabbitmq", "deadLetterQueues", json!([""]), "spec.source.rabbitmq.deadLetterQueues[0]"),
            (
                "/spec/source/rabbitmq",
                "deadLetterQueues",
                json!(["dead", "orders"]),
                "spec.source.rabbitmq.deadLetterQueues must not name a queue of",
            ),
            (
                "/spec/source/rabbitmq/connection",
                "database",
                json!("shop"),
                "spec.source.rabbitmq.connection.database must be absent",
            ),
        ] {
            let mut object = rabbitmq();
            object.pointer_mut(pointer).unwrap()[name] = value;
            let found = admit(object).expect_err(expected);
            assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{expected}: {found:?}");
        }
    }

    #[test]
    fn queries_tell_what_waits_or_a_value_with_its_target() {
        let prometheus = |query: &str| {
            json!({
                "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
                "spec": {
                    "source": {"prometheus": {"connection": {"url": "http://prometheus:9090"}, query: "sum(x)"}},
                    "lag": {"target": "5s"},
                    "scaling": {},
                },
            })
        };
        let secret = json!({"name": "p"});
        let mut value = prometheus("value");
        assert!(admit(prometheus("pending")).is_ok());
        let found = admit(value.clone()).unwrap_err();
        assert!(found[0].to_string().starts_with("spec.lag.value is required with"), "{found:?}");
        for target in [json!({"target": 0.2}), json!({"target": 1}), json!({"averageTarget": 100})] {
            value["spec"]["lag"]["value"] = target;
            assert!(admit(value.clone()).is_ok());
        }
        value["spec"]["scaling"]["minWorkers"] = json!(0);
        assert!(admit(value.clone()).is_ok());
        value["spec"]["lag"]["value"] = json!({"target": 0.2});
        let found = admit(value.clone()).unwrap_err();
        assert!(found[0].to_string().starts_with("spec.scaling.minWorkers must be at least 1 with"), "{found:?}");
        let source = "/spec/source/prometheus";
        for (query, pointer, name, value, expected) in [
            (
                "pending",
                "/spec",
                "checkpoint",
                json!({"readStore": {}}),
                "spec.checkpoint must be absent with spec.source.prom",
            ),
            ("pending", source, "value", json!("x"), "spec.source.prometheus must have exactly one of"),
            ("pending", source, "pending", json!(""), "spec.source.prometheus.pending"),
            ("pending", source, "tenant", json!("a b"), "spec.source.prometheus.tenant"),
            ("value", source, "staleness", json!("x"), "spec.source.prometheus: staleness and arrived"),
            ("pending", "/spec/lag", "value", json!({"target": 1}), "spec.lag.value is required with"),
            ("value", "/spec/lag", "value", json!({}), "spec.lag.value must have exactly one of"),
            (
                "value",
                "/spec/lag",
                "value",
                json!({"target": 1, "averageTarget": 1}),
                "spec.lag.value must have exactly one",
            ),
            ("value", "/spec/lag", "value", json!({"target": 0}), "spec.lag.value.target must be at least"),
            ("value", "/spec/lag", "value", json!({"target": -1.5}), "spec.lag.value.target must be at least"),
            ("pending", &format!("{source}/connection"), "secretRef", secret, "spec.source.prometheus.connection"),
            (
                "pending",
                &format!("{source}/connection"),
                "url",
                json!("http://u:p@host"),
                "spec.source.prometheus.connection.url",
            ),
            (
                "pending",
                &format!("{source}/connection"),
                "url",
                json!("file:///etc"),
                "spec.source.prometheus.connection.url",
            ),
        ] {
            let mut object = prometheus(query);
            object.pointer_mut(pointer).unwrap()[name] = value;
            let found = admit(object).expect_err(expected);
            assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{expected}: {found:?}");
        }
    }

    #[test]
    fn metrics_of_a_page_are_named_one_by_one() {
        let scrape = |what: &str, change: Value| {
            let mut source = json!({"connection": {"url": "http://exporter:9100/metrics"}, what: {"metric": "orders"}});
            for (field, value) in change.as_object().unwrap() {
                source[field] = value.clone();
            }
            json!({
                "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
                "spec": {"source": {"scrape": source}, "lag": {"target": "5s"}},
            })
        };
        assert!(admit(scrape("pending", json!({}))).is_ok());
        let whole = json!({"metric": "a:b_total", "labels": {"queue": "a,b"}, "aggregate": "Max"});
        assert!(admit(scrape("pending", json!({"staleness": whole, "arrived": whole}))).is_ok());
        let mut value = scrape("value", json!({}));
        let found = admit(value.clone()).unwrap_err();
        assert!(found[0].to_string().starts_with("spec.lag.value is required with"), "{found:?}");
        value["spec"]["lag"]["value"] = json!({"averageTarget": 100});
        assert!(admit(value).is_ok());
        let mut checkpoint = scrape("pending", json!({}));
        checkpoint["spec"]["checkpoint"] = json!({"readStore": {}});
        for (object, expected) in [
            (checkpoint, "spec.checkpoint must be absent with spec.source.scrape"),
            (scrape("pending", json!({"value": {"metric": "x"}})), "spec.source.scrape must have exactly one of"),
            (scrape("value", json!({"staleness": {"metric": "x"}})), "spec.source.scrape: staleness and arrived"),
            (scrape("pending", json!({"pending": {"metric": "a b"}})), "spec.source.scrape.pending.metric"),
            (scrape("pending", json!({"pending": {"metric": ""}})), "spec.source.scrape.pending.metric"),
            (scrape("pending", json!({"pending": {}})), "spec.source.scrape.pending.metric"),
            (
                scrape("pending", json!({"pending": {"metric": "x", "aggregate": "Min"}})),
                "spec.source.scrape.pending.agg",
            ),
            (
                scrape("pending", json!({"connection": {"url": "http://u:p@host/"}})),
                "spec.source.scrape.connection.url",
            ),
            (scrape("pending", json!({"connection": {}})), "spec.source.scrape.connection"),
            (
                scrape("pending", json!({"pods": {"port": 80}})),
                "spec.source.scrape must have exactly one of connection",
            ),
        ] {
            let found = admit(object).expect_err(expected);
            assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{expected}: {found:?}");
        }
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
            (
                "/spec/scaling",
                "shards",
                json!("24"),
                "spec.scaling.shards must be Auto or a number from 1 to 1024, and is",
            ),
            ("/spec/scaling", "shards", json!(2_000), "spec.scaling.shards must be Auto or a number from 1 to 1024"),
            ("/spec/scaling", "ordering", json!("None"), "spec.scaling.ordering must be PerKey or Strict"),
            ("/spec/lag", "target", json!("1ms"), "spec.lag.target must be from 1s to 168h, and is \"1ms\""),
            ("/spec/lag", "target", json!("soon"), "spec.lag.target must be a duration such as 30s"),
            (
                "/spec/projector",
                "existing",
                json!({"kind": "Job", "name": "x"}),
                "spec.projector.existing.kind must be",
            ),
            ("/spec", "checkpoint", json!({"readStore": {}}), "spec.checkpoint must be absent"),
        ] {
            let mut object = projection();
            object.pointer_mut(pointer).unwrap()[name] = value;
            let found = admit(object).expect_err(expected);
            assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{expected}: {found:?}");
        }
        for missing in ["apiVersion", "kind", "metadata", "spec"] {
            let mut object = projection();
            object.as_object_mut().unwrap().remove(missing);
            let found = admit(object).expect_err(missing);
            assert!(found.iter().any(|refusal| refusal.field.starts_with(missing)), "{missing}: {found:?}");
        }
        assert_eq!(admit(json!([1])).expect_err("a list")[0].field, "the document");
    }
}
