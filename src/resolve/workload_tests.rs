//! What workers on a queue are told, and what is refused of them.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::api::{CheckpointLocation, CheckpointRows, DocumentLocation, DocumentPart, RedisLocation, RedisPart};

/// A Projection of a stream in Redis with this read store and built-in projector.
fn of_stream(store: &str, builtin: &Value) -> Projection {
    let connection = json!({"connection": {"secretRef": {"name": "r"}}});
    let mut source = connection.clone();
    source["streams"] = json!([{"key": "orders", "group": "list"}]);
    serde_json::from_value(json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
        "metadata": {"namespace": "shop", "name": "orders", "uid": "1"},
        "spec": {
            "source": {"redis": source},
            "readStore": {store: connection},
            "scaling": {"ordering": "None"},
            "projector": {"builtin": builtin},
            "lag": {"target": "5s"},
        },
    }))
    .unwrap()
}

/// For how long notes are kept.
fn kept_for(projection: &Projection) -> Duration {
    let Workload::Own { pods: Pods::Builtin(pods), .. } = validate(projection).unwrap().workload else {
        panic!("no built-in projector")
    };
    let config = ProjectorConfig::from_json(&pods.configuration.to_string()).unwrap();
    let Input::Queue(QueueInput { keep_for, .. }) = config.input else { panic!("no queue") };
    keep_for.0
}

fn commands(value: &str) -> Value {
    json!({"redis": {"handlers": {"Ordered": [["DEL", "a"], ["SET", "a", value]]}}})
}

#[test]
fn notes_of_messages_are_kept_for_a_day_in_redis_and_for_a_week_in_postgresql() {
    const DAY: Duration = Duration::from_secs(24 * 3_600);
    assert_eq!(kept_for(&of_stream("redis", &commands("{stream}"))), DAY);
    assert_eq!(kept_for(&of_stream("postgres", &json!({"handlers": {"Ordered": "select 1"}}))), DAY * 7);
    let mut builtin = commands("{stream}");
    builtin["inbox"] = json!({"keepFor": "72h"});
    assert_eq!(kept_for(&of_stream("redis", &builtin)), DAY * 3);
}

#[test]
fn what_could_not_be_handled_of_a_queue_is_read_where_the_workers_write_it() {
    let found = of_stream("redis", &commands("{stream}")).spec.checkpoint_location("shop", "orders");
    let (key, rows) = ("projectionist:{shop/orders}:failed".to_owned(), CheckpointRows::One);
    assert_eq!(found, Some(CheckpointLocation::Redis(RedisLocation { key, part: RedisPart::Inbox, rows })));
    let handlers = json!({"Ordered": [{"delete": {"index": "orders", "id": "1", "version": "{data.version}"}}]});
    let builtin = json!({"elasticsearch": {"stateIndex": "state", "handlers": handlers}});
    let found = of_stream("elasticsearch", &builtin).spec.checkpoint_location("shop", "orders");
    let (index, id) = ("state".to_owned(), "shop/orders:failed".to_owned());
    let place = DocumentLocation { index, id, part: DocumentPart::Inbox, rows: CheckpointRows::One };
    assert_eq!(found, Some(CheckpointLocation::Document(place)));
}

#[test]
fn handlers_that_need_what_messages_lack_are_refused_in_words() {
    let documents = |operation: Value| json!({"elasticsearch": {"handlers": {"Ordered": [operation]}}});
    let index = |more: Value| {
        let mut operation = json!({"index": "orders", "id": "{stream}", "document": {"at": "{recorded_at}"}});
        operation.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"index": operation})
    };
    for (store, builtin, expected) in [
        (
            "redis",
            commands("{position}"),
            "event type Ordered: it asks for {position}, and messages of a queue have none",
        ),
        ("postgres", json!({"handlers": {"Ordered": "insert into a values (:position)"}}), "it asks for :position"),
        (
            "elasticsearch",
            documents(index(json!({}))),
            "operation 1 (index): a message of a queue may be delivered again",
        ),
        (
            "elasticsearch",
            documents(json!({"update": {"index": "orders", "id": "{stream}", "add": {"n": 1}}})),
            "operation 1 (update): a message of a queue may be delivered again",
        ),
        (
            "elasticsearch",
            documents(index(json!({"version": "{data.n}", "document": {"at": ["{position}"]}}))),
            "it asks for {position}",
        ),
        ("elasticsearch", documents(index(json!({"version": "{position}"}))), "it asks for {position}"),
    ] {
        let refused = validate(&of_stream(store, &builtin)).unwrap_err().to_string();
        assert!(refused.starts_with("spec.projector.builtin cannot be run") && refused.contains(expected), "{refused}");
    }
    validate(&of_stream("elasticsearch", &documents(index(json!({"version": "{data.version}"}))))).unwrap();
}

#[test]
fn a_version_is_refused_where_events_have_positions() {
    let versioned = json!({"delete": {"index": "orders", "id": "{stream}", "version": "{data.version}"}});
    let mut projection = of_stream("elasticsearch", &json!({"elasticsearch": {"handlers": {"Ordered": [versioned]}}}));
    projection.spec.source =
        serde_json::from_value(json!({"postgres": {"connection": {"secretRef": {"name": "db"}}, "eventTable": {}}}))
            .unwrap();
    let refused = validate(&projection).unwrap_err().to_string();
    assert!(refused.contains("operation 1: version must be absent where events have positions"), "{refused}");
}

#[test]
fn an_object_from_before_the_rule_sets_nothing_aside_where_that_is_impossible() {
    let mut projection = of_stream("postgres", &json!({"handlers": {"Ordered": "select 1"}}));
    validate(&projection).unwrap();
    projection.spec.failure.on_poison = OnPoison::Park;
    let refused = validate(&projection).unwrap_err().to_string();
    assert!(refused.starts_with("spec.failure.onPoison must be Pause"), "{refused}");
}
