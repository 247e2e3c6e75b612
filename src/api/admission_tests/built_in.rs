//! What the built-in projector reads, and what must be absent with it.

use super::*;

#[test]
fn the_built_in_projector_reads_event_stores_of_libraries_and_keeps_the_checkpoint_itself() {
    let reading = |source: Value| {
        let mut object = projection();
        object["spec"]["source"]["postgres"] = source;
        object["spec"]["source"]["postgres"]["connection"] = json!({"secretRef": {"name": "db"}});
        object
    };
    for source in [
        json!({"marten": {}}),
        json!({"messageDb": {"category": "orders"}}),
        json!({"commanded": {}}),
        json!({"emmett": {"partition": "orders"}}),
    ] {
        admit(reading(source)).unwrap();
    }
    let group = json!({"member": 0, "size": 2});
    for (source, expected) in [
        (
            json!({"marten": {"projection": "Orders"}}),
            "spec.source.postgres.marten.projection is required, and must be absent",
        ),
        (
            json!({"messageDb": {"category": "orders", "positionStream": "p"}}),
            "spec.source.postgres.messageDb.positionStream",
        ),
        (
            json!({"messageDb": {"category": "orders", "consumerGroup": group}}),
            "spec.source.postgres.messageDb.positionStream and consumerGroup",
        ),
        (
            json!({"commanded": {"subscription": "Orders"}}),
            "spec.source.postgres.commanded.subscription is required, and must be absent",
        ),
        (json!({"commanded": {"stream": "orders"}}), "spec.source.postgres.commanded.stream must be absent"),
        (
            json!({"emmett": {"processor": "orders"}}),
            "spec.source.postgres.emmett.processor is required, and must be absent",
        ),
        (json!({"emmett": {"version": 2}}), "spec.source.postgres.emmett.version must be absent"),
        (
            json!({"query": {"sql": "select 1"}}),
            "spec.source.postgres with eventTable, outbox, marten, messageDb, commanded or emmett",
        ),
    ] {
        let found = admit(reading(source)).expect_err(expected);
        assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{expected}: {found:?}");
    }
    for (source, expected) in [
        (json!({"marten": {}}), "marten.projection is required"),
        (json!({"commanded": {}}), "commanded.subscription is required"),
        (json!({"emmett": {}}), "emmett.processor is required"),
    ] {
        let mut without = reading(source);
        without["spec"]["projector"] = Value::Null;
        without["spec"]["readStore"] = Value::Null;
        let found = admit(without).unwrap_err();
        assert!(found.iter().any(|refusal| refusal.to_string().contains(expected)), "{expected}: {found:?}");
    }
}

#[test]
fn events_are_left_out_only_where_no_order_of_all_is_promised_and_not_for_documents() {
    let with = |builtin: Value, ordering: &str| {
        let mut object = projection();
        object["spec"]["readStore"] = json!({
            "postgres": {"connection": {"secretRef": {"name": "reads"}}},
            "elasticsearch": {"connection": {"secretRef": {"name": "search"}}},
        });
        object["spec"]["scaling"] = json!({"ordering": ordering});
        object["spec"]["projector"] = json!({"builtin": builtin});
        object["spec"].as_object_mut().unwrap().remove("checkpoint");
        admit(object)
    };
    let refused = |builtin: Value, ordering: &str, expected: &str| {
        let found = with(builtin, ordering).expect_err(expected);
        assert!(found.iter().any(|refusal| refusal.to_string().contains(expected)), "{expected}: {found:?}");
    };
    let in_sql = |coalesce: Value| json!({"handlers": {"Priced": "select 1"}, "coalesce": coalesce});
    refused(
        in_sql(json!([{"types": ["Priced"]}])),
        "Strict",
        "coalesce must be absent with spec.scaling.ordering Strict",
    );
    refused(in_sql(json!([{"types": []}])), "PerKey", "coalesce[0].types");
    let documents = json!({"Priced": [{"delete": {"index": "a", "id": "{stream}"}}]});
    let in_documents = json!({"elasticsearch": {"handlers": documents}, "coalesce": [{"types": ["Priced"]}]});
    refused(in_documents, "PerKey", "coalesce must be absent with elasticsearch");
    let found = with(in_sql(json!([{"types": ["Priced"]}])), "PerKey");
    let of_coalesce =
        |found: &Vec<_>| found.iter().any(|refusal: &crate::api::Refusal| refusal.to_string().contains("coalesce"));
    assert!(!found.as_ref().err().is_some_and(of_coalesce), "{found:?}");
}

#[test]
fn the_built_in_projector_takes_rows_of_an_outbox_into_postgresql_without_an_order_by_key() {
    let connection = json!({"secretRef": {"name": "db"}});
    let outbox = || {
        json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
            "spec": {
                "source": {"postgres": {"connection": connection, "outbox": {"sentAt": "sent_at", "event": {"stream": "aggregate"}}}},
                "readStore": {"postgres": {"connection": connection}},
                "scaling": {"ordering": "None"},
                "projector": {"builtin": {"handlers": {"Ordered": "select 1"}, "inbox": {"keepFor": "24h"}}},
                "lag": {"target": "5s"},
            },
        })
    };
    let admitted = admit(outbox()).unwrap();
    let event = admitted.spec.source.outbox().unwrap().event.clone().unwrap();
    assert_eq!((event.id.as_str(), event.stream.as_str()), ("id", "aggregate"));
    for (pointer, name, value, expected) in [
        ("/spec/scaling", "ordering", json!("PerKey"), "spec.scaling.ordering must be None or Strict"),
        ("/spec/scaling", "shards", json!(4), "spec.scaling.shards must be absent with spec.source.postgres.outbox"),
        (
            "/spec/source/postgres",
            "outbox",
            json!({"unsent": "status = 'new'"}),
            "spec.source.postgres.outbox.unsent must be absent with spec.projector.builtin",
        ),
        (
            "/spec",
            "projector",
            json!({"existing": {"kind": "Deployment", "name": "relay"}}),
            "spec.source.postgres.outbox.event has no meaning without",
        ),
    ] {
        let found = refusals_with(outbox(), pointer, name, value);
        assert!(found.iter().any(|refusal| refusal.contains(expected)), "{expected}: {found:?}");
    }
}

#[test]
fn the_built_in_projector_reads_catch_up_subscriptions_of_kurrentdb_and_keeps_the_checkpoint_itself() {
    let connection = json!({"secretRef": {"name": "k"}});
    let kurrentdb = || {
        json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
            "spec": {
                "source": {"kurrentdb": {"connection": connection, "catchUp": {"stream": "$all", "filter": {"streamPrefixes": ["order-"]}}}},
                "readStore": {"postgres": {"connection": connection}},
                "projector": {"builtin": {"handlers": {"Ordered": "select 1"}}},
                "lag": {"target": "5s"},
            },
        })
    };
    assert!(admit(kurrentdb()).is_ok(), "{:?}", admit(kurrentdb()));
    let persistent = json!({"connection": connection, "persistentSubscriptions": [{"stream": "a", "group": "b"}]});
    for (pointer, name, value, expected) in [
        ("/spec/source", "kurrentdb", persistent, "spec.source.kurrentdb with catchUp"),
        ("/spec", "checkpoint", json!({"readStore": {}}), "spec.checkpoint must be absent with spec.projector.builtin"),
        ("/spec", "scaling", json!({"ordering": "None"}), "spec.scaling.ordering must be PerKey or Strict"),
        (
            "/spec/source/kurrentdb/connection",
            "port",
            json!(2113),
            "connection.host and connection.port must be absent with spec.projector.builtin",
        ),
        (
            "/spec/projector/builtin",
            "inbox",
            json!({"keepFor": "24h"}),
            "spec.projector.builtin.inbox has no meaning without",
        ),
    ] {
        let found = refusals_with(kurrentdb(), pointer, name, value);
        assert!(found.iter().any(|refusal| refusal.contains(expected)), "{expected}: {found:?}");
    }
    let mut without = kurrentdb();
    without["spec"]["projector"] = Value::Null;
    let found = admit(without).unwrap_err();
    let expected = "spec.checkpoint is required with spec.source.kurrentdb.catchUp";
    assert!(found.iter().any(|refusal| refusal.to_string().contains(expected)), "{found:?}");
}

#[test]
fn the_built_in_projector_reads_streams_in_redis_into_postgresql_without_an_order_by_key() {
    let connection = json!({"secretRef": {"name": "r"}});
    let redis = || {
        json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
            "spec": {
                "source": {"redis": {"connection": connection, "streams": [{"key": "orders", "group": "list"}]}},
                "readStore": {"postgres": {"connection": connection}},
                "scaling": {"ordering": "None"},
                "projector": {"builtin": {"handlers": {"Ordered": "select 1"}, "inbox": {"keepFor": "24h"}}},
                "lag": {"target": "5s"},
            },
        })
    };
    assert!(admit(redis()).is_ok(), "{:?}", admit(redis()));
    for (pointer, name, value, expected) in [
        ("/spec/scaling", "ordering", json!("PerKey"), "spec.scaling.ordering must be None or Strict"),
        ("/spec/scaling", "shards", json!(4), "spec.scaling.shards must be absent with spec.source.redis"),
        ("/spec/source/redis", "lists", json!([{"key": "a"}]), "spec.source.redis.lists must be absent"),
        ("/spec/projector/builtin/inbox", "keepFor", json!("59m"), "spec.projector.builtin.inbox.keepFor must be"),
        (
            "/spec/source/redis/connection",
            "host",
            json!("other"),
            "connection.host and connection.port must be absent with spec.projector.builtin",
        ),
    ] {
        let found = refusals_with(redis(), pointer, name, value);
        assert!(found.iter().any(|refusal| refusal.contains(expected)), "{expected}: {found:?}");
    }
}

#[test]
fn the_built_in_projector_reads_consumers_of_jetstream_into_postgresql_without_an_order_by_key() {
    let connection = json!({"secretRef": {"name": "n"}});
    let nats = || {
        json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
            "spec": {
                "source": {"nats": {
                    "connection": connection, "consumers": [{"stream": "orders", "consumer": "list"}],
                    "event": {"type": {"subjectToken": -1}, "stream": {"subjectToken": 2}, "data": "payload"},
                }},
                "readStore": {"postgres": {"connection": connection}},
                "scaling": {"ordering": "None"},
                "projector": {"builtin": {"handlers": {"Ordered": "select 1"}, "inbox": {"keepFor": "24h"}}},
                "lag": {"target": "5s"},
            },
        })
    };
    assert!(admit(nats()).is_ok(), "{:?}", admit(nats()));
    for (pointer, name, value, expected) in [
        ("/spec/scaling", "ordering", json!("PerKey"), "spec.scaling.ordering must be None or Strict"),
        (
            "/spec/scaling",
            "shards",
            json!(4),
            "spec.scaling.shards must be absent with spec.source.redis, nats or rabbitmq",
        ),
        ("/spec/source/nats/event", "type", json!({}), "spec.source.nats.event.type must have exactly one"),
        ("/spec/source/nats/event/type", "name", json!("A"), "spec.source.nats.event.type must have exactly one"),
        ("/spec/source/nats/event/type", "subjectToken", json!(0), "type.subjectToken must not be 0"),
        ("/spec/source/nats/event/stream", "header", json!("a"), "spec.source.nats.event.stream must have exactly one"),
        ("/spec/source/nats/event/stream", "subjectToken", json!(0), "stream.subjectToken must not be 0"),
        (
            "/spec/source/nats/connection",
            "host",
            json!("other"),
            "connection.host and connection.port must be absent with spec.projector.builtin",
        ),
        (
            "/spec",
            "projector",
            json!({"existing": {"kind": "Deployment", "name": "a"}}),
            "spec.source.nats.event has no meaning without spec.projector.builtin",
        ),
    ] {
        let found = refusals_with(nats(), pointer, name, value);
        assert!(found.iter().any(|refusal| refusal.contains(expected)), "{expected}: {found:?}");
    }
}

#[test]
fn the_built_in_projector_reads_queues_of_rabbitmq_into_postgresql_without_an_order_by_key() {
    let connection = json!({"secretRef": {"name": "r"}});
    let rabbitmq = || {
        json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
            "spec": {
                "source": {"rabbitmq": {
                    "connection": connection, "queues": ["orders"],
                    "event": {"id": {"header": "event-id"}, "type": {"routingKeyToken": -1}, "stream": {"header": "order"}, "data": "payload"},
                }},
                "readStore": {"postgres": {"connection": connection}},
                "scaling": {"ordering": "None"},
                "projector": {"builtin": {"handlers": {"Ordered": "select 1"}, "inbox": {"keepFor": "24h"}}},
                "lag": {"target": "5s"},
            },
        })
    };
    assert!(admit(rabbitmq()).is_ok(), "{:?}", admit(rabbitmq()));
    for (pointer, name, value, expected) in [
        ("/spec/scaling", "ordering", json!("PerKey"), "spec.scaling.ordering must be None or Strict"),
        (
            "/spec/scaling",
            "shards",
            json!(4),
            "spec.scaling.shards must be absent with spec.source.redis, nats or rabbitmq",
        ),
        ("/spec/source/rabbitmq/event", "id", json!({}), "spec.source.rabbitmq.event.id must have exactly one"),
        ("/spec/source/rabbitmq/event", "type", json!({}), "spec.source.rabbitmq.event.type must have exactly one"),
        ("/spec/source/rabbitmq/event/type", "routingKeyToken", json!(0), "type.routingKeyToken must not be 0"),
        ("/spec/source/rabbitmq/event", "stream", json!({}), "spec.source.rabbitmq.event.stream must have exactly one"),
        (
            "/spec/source/rabbitmq",
            "streams",
            json!([{"stream": "log", "reference": "list"}]),
            "spec.source.rabbitmq.streams must be absent with spec.projector.builtin",
        ),
        (
            "/spec/source/rabbitmq/connection",
            "host",
            json!("other"),
            "connection.host and connection.port must be absent with spec.projector.builtin",
        ),
        (
            "/spec",
            "projector",
            json!({"existing": {"kind": "Deployment", "name": "a"}}),
            "spec.source.rabbitmq.event has no meaning without spec.projector.builtin",
        ),
    ] {
        let found = refusals_with(rabbitmq(), pointer, name, value);
        assert!(found.iter().any(|refusal| refusal.contains(expected)), "{expected}: {found:?}");
    }
}

#[test]
fn the_built_in_projector_takes_messages_of_every_queue_into_every_store() {
    let connection = json!({"secretRef": {"name": "r"}});
    let into = |source: &Value, store: &str, builtin: Value| {
        json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "metadata": {"name": "orders"},
            "spec": {
                "source": source,
                "readStore": {store: {"connection": connection}},
                "scaling": {"ordering": "None"},
                "projector": {"builtin": builtin},
                "lag": {"target": "5s"},
            },
        })
    };
    for source in [
        json!({"redis": {"connection": connection, "streams": [{"key": "orders", "group": "list"}]}}),
        json!({"nats": {"connection": connection, "consumers": [{"stream": "orders", "consumer": "list"}]}}),
        json!({"rabbitmq": {"connection": connection, "queues": ["orders"]}}),
        json!({"postgres": {"connection": connection, "outbox": {"sentAt": "sent_at"}}}),
    ] {
        let commands = json!({"redis": {"handlers": {"A": [["DEL", "a"]]}}, "inbox": {"keepFor": "1h"}});
        let deleted = json!({"delete": {"index": "a", "id": "1", "version": "{data.version}"}});
        let documents = json!({"elasticsearch": {"handlers": {"A": [deleted]}}});
        for (store, builtin, other) in
            [("redis", commands, "postgres"), ("elasticsearch", documents.clone(), "postgres")]
        {
            let queue = into(&source, store, builtin);
            assert!(admit(queue.clone()).is_ok(), "{:?}", admit(queue));
            let elsewhere = refusals_with(queue, "/spec", "readStore", json!({other: {"connection": connection}}));
            let expected = format!("spec.readStore.{store} is required with spec.projector.builtin.{store}");
            assert!(elsewhere.iter().any(|refusal| refusal.contains(&expected)), "{elsewhere:?}");
        }
        let queue = into(&source, "elasticsearch", documents);
        let found = refusals_with(queue, "/spec/projector/builtin", "inbox", json!({"keepFor": "1h"}));
        let expected = "spec.projector.builtin.inbox has no meaning with elasticsearch";
        assert!(found.iter().any(|refusal| refusal.contains(expected)), "{found:?}");
    }
}

#[test]
fn events_are_set_aside_only_where_that_is_possible() {
    let park = |mut object: Value| {
        object["spec"]["failure"] = json!({"onPoison": "Park"});
        object
    };
    let taken = admit(park(projection())).unwrap().spec.failure;
    assert_eq!((taken.on_poison, taken.park_stream, taken.max_parked), (crate::api::OnPoison::Park, true, 100));
    let connection = json!({"secretRef": {"name": "r"}});
    let mut strict = projection();
    strict["spec"]["scaling"] = json!({"ordering": "Strict"});
    let mut redis = projection();
    redis["spec"]["readStore"] = json!({"redis": {"connection": connection}});
    redis["spec"]["projector"] = json!({"builtin": {"redis": {"handlers": {"A": [["DEL", "a"]]}}}});
    let mut outbox = projection();
    outbox["spec"]["source"]["postgres"] = json!({"connection": connection, "outbox": {"sentAt": "sent_at"}});
    outbox["spec"]["scaling"] = json!({"ordering": "None"});
    let mut nats = outbox.clone();
    nats["spec"]["source"] =
        json!({"nats": {"connection": connection, "consumers": [{"stream": "orders", "consumer": "list"}]}});
    for (object, expected) in [
        (strict, "must be Pause with spec.scaling.ordering Strict"),
        (redis, "must be Pause: Park and Skip are for"),
        (outbox, "must be Pause: Park and Skip are for"),
        (nats, "must be Pause: Park and Skip are for"),
    ] {
        admit(object.clone()).unwrap();
        let found: Vec<String> = admit(park(object)).expect_err(expected).iter().map(ToString::to_string).collect();
        assert!(
            found.iter().any(|refusal| refusal.starts_with(&format!("spec.failure.onPoison {expected}"))),
            "{found:?}"
        );
    }
    let found = refusals_with(projection(), "/spec", "failure", json!({"onPoison": "Park", "maxParked": 0}));
    assert!(found.iter().any(|refusal| refusal.contains("spec.failure.maxParked must be at least 1")), "{found:?}");
}
