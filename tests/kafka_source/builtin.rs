//! The built-in projector at work, and what is measured of it meanwhile: the same offsets.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use projectionist::{
    api::{KafkaEvent, KafkaIsolation},
    clients::{postgres::ConnectionSettings, redis},
    lag::{CheckpointState, Pending, Position},
    projector::{
        GIVE_BACK_AFTER, Input, KafkaInput, Output, Poison, PostgresOutput, ProjectorConfig, RedisOutput, RunOptions,
        SourceConnection, StoreConnection, run,
    },
};
use serde_json::{Value, json};
use test_cluster::{Postgres, Redis, kafka::Listener};
use tokio::task::JoinHandle;

use crate::{
    harness::{ask, broker, settings, topic},
    sampler::Running,
};

fn worker(topic: &str, output: Output, store: StoreConnection) -> JoinHandle<()> {
    let options = RunOptions {
        config: ProjectorConfig {
            projection: format!("shop/{topic}"),
            input: Input::Kafka(KafkaInput {
                topics: vec![topic.to_owned()],
                group: Some(format!("{topic}-mirror")),
                isolation: KafkaIsolation::ReadCommitted,
                event: KafkaEvent::default(),
            }),
            batch_size: 100,
            max_event_bytes: 1 << 20,
            coalesce: Vec::new(),
            poison: Poison::default(),
            output,
        },
        source: SourceConnection::Kafka(settings(&broker().address(Listener::Plaintext), &[])),
        store,
        worker_name: "a".to_owned(),
        health_listen: None,
        give_back_after: GIVE_BACK_AFTER,
    };
    tokio::spawn(async {
        run(options, std::future::pending()).await.unwrap();
    })
}

/// One record of the type Counted.
fn put(topic: &str, partition: &str, value: &str) {
    let (value, name) = (BASE64_STANDARD.encode(value), BASE64_STANDARD.encode("Counted"));
    ask(&["put", topic, partition, "-", &value, "type", &name]);
}

fn spec(topic: &str, store: &str, builtin: &Value) -> Value {
    json!({
        "source": { "kafka": { "connection": { "secretRef": { "name": "open" } }, "topics": [topic], "group": format!("{topic}-mirror") } },
        "readStore": { store: { "connection": { "secretRef": { "name": "views" } } } },
        "projector": { "builtin": builtin },
    })
}

fn exactly(events: u64) -> Pending {
    Pending { events, exact: true }
}

/// From before the first worker to an event that none can handle.
async fn follow(sampler: &Running, topic: &str, start: impl FnOnce() -> JoinHandle<()>) {
    // Workers begin with the first record, so that what waits is known before one has started.
    sampler.wait_pending(topic, exactly(50)).await;
    let worker = start();
    let done = sampler.wait_pending(topic, exactly(0)).await;
    let CheckpointState::Committed(positions) = &done.sample.checkpoint else { panic!("{done:?}") };
    let ends = ["0", "1"].map(|number| ask(&["offsets", topic, number]).split_once(' ').unwrap().1.parse().unwrap());
    assert_eq!(*positions, ends.map(Position), "the ends of the partitions");
    put(topic, "1", "no json");
    for n in 0..3 {
        put(topic, "1", &json!({ "n": n }).to_string());
        put(topic, "0", &json!({ "n": n }).to_string());
    }
    let what = "the partition with the event that failed waits, and the other does not";
    let stuck = sampler
        .wait_measured(what, topic, |m| m.sample.pending_by_shard == [0, 4] && !m.sample.faults.failed.is_empty())
        .await;
    let failed = &stuck.sample.faults.failed[0];
    assert_eq!(failed.part.as_deref(), Some(format!("{topic}-1").as_str()));
    let place = format!("the event at offset {} of partition 1 of topic {topic} cannot be read", ends[1]);
    assert!(failed.why.contains(&place), "{}", failed.why);
    // Other tools see the same in the group.
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while ask(&["lag", &format!("{topic}-mirror"), topic]) != "4" {
        assert!(std::time::Instant::now() < until, "{}", ask(&["lag", &format!("{topic}-mirror"), topic]));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    worker.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_workers_that_write_to_postgresql_is_counted_from_their_own_checkpoints() {
    let server = Postgres::on_loopback().unwrap();
    topic("viewed", 2, "");
    ask(&["count", "viewed", "50", "none"]);
    let mut sampler = Running::start();
    sampler.secret("views", &json!({ "url": server.url("postgres") }));
    sampler.declare_spec("viewed", &spec("viewed", "postgres", &json!({ "handlers": { "Counted": "select 1" } })));
    follow(&sampler, "viewed", || {
        let handlers = BTreeMap::from([("Counted".to_owned(), "select 1".to_owned())]);
        let settings = ConnectionSettings::parse(&server.url("postgres")).unwrap();
        let output = Output::Postgres(PostgresOutput { schema: None, setup: None, handlers });
        worker("viewed", output, StoreConnection::Postgres(Box::new(settings)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_workers_that_write_to_redis_is_counted_from_their_own_checkpoints() {
    let server = Redis::on_loopback().unwrap();
    topic("pushed", 2, "");
    ask(&["count", "pushed", "50", "none"]);
    let mut sampler = Running::start();
    sampler.secret("views", &json!({ "url": server.url() }));
    let commands = json!({ "redis": { "handlers": { "Counted": [["INCR", "events"]] } } });
    sampler.declare_spec("pushed", &spec("pushed", "redis", &commands));
    follow(&sampler, "pushed", || {
        let handlers = BTreeMap::from([("Counted".to_owned(), vec![vec!["INCR".to_owned(), "events".to_owned()]])]);
        let url = server.url();
        let settings = redis::ConnectionSettings::from_keys(|key| (key == "url").then_some(url.as_str())).unwrap();
        worker("pushed", Output::Redis(RedisOutput { handlers, shared: false }), StoreConnection::Redis(settings))
    })
    .await;
}
