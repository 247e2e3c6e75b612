//! Queues and streams whose consumers are measured.

use super::*;

#[test]
fn streams_in_redis_need_no_checkpoint_and_no_read_store() {
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
        ("/spec/source/redis", "event", json!({}), "spec.source.redis.event has no meaning without"),
        ("/spec/source/redis", "lists", json!([{"key": ""}]), "spec.source.redis.lists[0].key"),
        ("/spec/source/redis", "streams", json!([]), "spec.source.redis.streams must have at least 1 items"),
        ("/spec/source/redis", "streams", json!([{"key": "orders"}]), "spec.source.redis.streams[0].group"),
        ("/spec/source/redis", "streams", json!([{"key": "", "group": "g"}]), "spec.source.redis.streams[0].key"),
    ] {
        let found = refusals_with(redis(), pointer, name, value);
        assert!(found.iter().any(|refusal| refusal.starts_with(expected)), "{expected}: {found:?}");
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
        let found = refusals_with(nats(), pointer, name, value);
        assert!(found.iter().any(|refusal| refusal.starts_with(expected)), "{expected}: {found:?}");
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
        ("/spec", "checkpoint", json!({"readStore": {}}), "spec.checkpoint must be absent with spec.source.rabbitmq"),
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
        let found = refusals_with(rabbitmq(), pointer, name, value);
        assert!(found.iter().any(|refusal| refusal.starts_with(expected)), "{expected}: {found:?}");
    }
}
