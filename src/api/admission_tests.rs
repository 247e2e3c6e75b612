//! What is refused of a Projection before a cluster sees it, and what is taken.

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
        let mut object = redis();
        object.pointer_mut(pointer).unwrap()[name] = value;
        let found = admit(object).expect_err(expected);
        assert!(found.iter().any(|refusal| refusal.to_string().starts_with(expected)), "{expected}: {found:?}");
    }
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
            "/spec/projector",
            "builtin",
            json!({"redis": {"handlers": {"A": [["DEL", "a"]]}}}),
            "spec.projector.builtin.handlers and spec.readStore.postgres are required with spec.source.postgres.outbox",
        ),
        (
            "/spec",
            "projector",
            json!({"existing": {"kind": "Deployment", "name": "relay"}}),
            "spec.source.postgres.outbox.event has no meaning without",
        ),
    ] {
        let mut object = outbox();
        object.pointer_mut(pointer).unwrap()[name] = value;
        let found = admit(object).expect_err(expected);
        assert!(found.iter().any(|refusal| refusal.to_string().contains(expected)), "{expected}: {found:?}");
    }
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
            "/spec/projector",
            "builtin",
            json!({"redis": {"handlers": {"A": [["DEL", "a"]]}}}),
            "spec.projector.builtin.handlers and spec.readStore.postgres are required with spec.source.redis",
        ),
        (
            "/spec/source/redis/connection",
            "host",
            json!("other"),
            "connection.host and connection.port must be absent with spec.projector.builtin",
        ),
    ] {
        let mut object = redis();
        object.pointer_mut(pointer).unwrap()[name] = value;
        let found = admit(object).expect_err(expected);
        assert!(found.iter().any(|refusal| refusal.to_string().contains(expected)), "{expected}: {found:?}");
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
        ("/spec/scaling", "shards", json!(4), "spec.scaling.shards must be absent with spec.source.redis or nats"),
        ("/spec/source/nats/event", "type", json!({}), "spec.source.nats.event.type must have exactly one"),
        ("/spec/source/nats/event/type", "name", json!("A"), "spec.source.nats.event.type must have exactly one"),
        ("/spec/source/nats/event/type", "subjectToken", json!(0), "type.subjectToken must not be 0"),
        ("/spec/source/nats/event/stream", "header", json!("a"), "spec.source.nats.event.stream must have exactly one"),
        ("/spec/source/nats/event/stream", "subjectToken", json!(0), "stream.subjectToken must not be 0"),
        (
            "/spec/projector",
            "builtin",
            json!({"redis": {"handlers": {"A": [["DEL", "a"]]}}}),
            "spec.projector.builtin.handlers and spec.readStore.postgres are required with spec.source.redis or nats",
        ),
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
        let mut object = nats();
        object.pointer_mut(pointer).unwrap()[name] = value;
        let found = admit(object).expect_err(expected);
        assert!(found.iter().any(|refusal| refusal.to_string().contains(expected)), "{expected}: {found:?}");
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
        (scrape("pending", json!({"pending": {"metric": "x", "aggregate": "Min"}})), "spec.source.scrape.pending.agg"),
        (scrape("pending", json!({"connection": {"url": "http://u:p@host/"}})), "spec.source.scrape.connection.url"),
        (scrape("pending", json!({"connection": {}})), "spec.source.scrape.connection"),
        (scrape("pending", json!({"pods": {"port": 80}})), "spec.source.scrape must have exactly one of connection"),
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
        ("/spec/scaling", "shards", json!("24"), "spec.scaling.shards must be Auto or a number from 1 to 1024, and is"),
        ("/spec/scaling", "shards", json!(2_000), "spec.scaling.shards must be Auto or a number from 1 to 1024"),
        ("/spec/scaling", "ordering", json!("None"), "spec.scaling.ordering must be PerKey or Strict"),
        ("/spec/lag", "target", json!("1ms"), "spec.lag.target must be from 1s to 168h, and is \"1ms\""),
        ("/spec/lag", "target", json!("soon"), "spec.lag.target must be a duration such as 30s"),
        ("/spec/projector", "existing", json!({"kind": "Job", "name": "x"}), "spec.projector.existing.kind must be"),
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
