//! Consumers of servers of several nodes or partitions that keep how far they have come in their own way, side by side: records of Kafka with offsets in a table
//! of the read store, a list in a Redis Cluster, and streams of RabbitMQ with offsets at the server.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result};
use futures::future::try_join_all;
use serde_json::{Value, json};
use test_cluster::{RabbitMq, kafka::Listener, postgres::quoted};
use tokio_postgres::Client;

use crate::consumers::{Setting, Source, projection};
use crate::kafka::{PARTITIONS, Topic};
use crate::lists::List;
use crate::secrets::CANARY;
use crate::shop::Shop;
use crate::side_by_side::{COURSE, follows_the_lag};
use crate::stage::{Stage, play, together};

/// A topic whose consumers keep the offset to read next of each partition in a table.
struct Offsets {
    topic: Topic,
    client: Client,
}

impl Source for Offsets {
    async fn append(&self, count: usize) -> Result<()> {
        self.topic.append(count).await
    }

    async fn unfinished(&self) -> Result<i64> {
        let read: i64 = self.client.query_one("select sum(\"offset\")::bigint from kafka_offsets", &[]).await?.get(0);
        Ok(i64::try_from(self.names().await?.len())? - read)
    }

    async fn names(&self) -> Result<BTreeSet<String>> {
        self.topic.names().await
    }
}

async fn offsets_in_a_table(stage: &'static Stage) -> Result<()> {
    let topic = Topic::make(stage.cluster.kafka()?)?;
    let shop = Shop::open(stage, "offsets").await?;
    shop.make_record().await?;
    topic.secrets(&shop)?;
    let role = format!("measures_{}", shop.database);
    shop.server.create_role(&role, "offsets").await?;
    shop.secret("reads", &[("url", &shop.server.url_as(&role, "offsets", &shop.database))])?;
    let client = shop.reader().await?;
    let table = format!(
        "create table kafka_offsets (topic text, partition int, \"offset\" bigint, primary key (topic, partition));
         insert into kafka_offsets select 'orders', partition, 0 from generate_series(0, {PARTITIONS} - 1) partition;
         grant select on kafka_offsets to {}",
        quoted(&role)
    );
    client.batch_execute(&table).await?;
    let brokers = topic.broker.address(Listener::Plaintext).to_string();
    let environment = [
        ("KAFKA_BROKERS", Setting::Value(&brokers)),
        ("TOPICS", Setting::Value("orders")),
        ("OFFSETS", Setting::Value("kafka_offsets")),
    ];
    shop.a_stranger_is_refused(&json!({"kafka": {
        "connection": {"secretRef": {"name": "wrong"}}, "topics": ["orders"], "group": "order-list",
    }}))
    .await?;
    let change = |suspend| {
        json!({"spec": {
            "suspend": suspend,
            "source": {"kafka": {"connection": {"secretRef": {"name": "orders-source"}}, "topics": ["orders"]}},
            "readStore": {"postgres": {"connection": {"secretRef": {"name": "reads"}}}},
            "checkpoint": {"kafkaOffsets": {"table": "kafka_offsets"}},
            "scaling": {"ordering": "PerKey", "maxWorkers": 3},
        }})
    };
    let offsets = Offsets { topic, client };
    shop.consumers_follow_the_lag(&offsets, &COURSE, |suspend| {
        projection(&shop.namespace, &environment, &change(suspend))
    })
    .await?;
    shop.no_secret_is_told()
}

/// The list has its slot on another node than the one that operator and workers are told of.
async fn redis_cluster(stage: &'static Stage) -> Result<()> {
    let mut cluster = stage.cluster.redis_cluster(3)?;
    let key = format!("{{{}}}", cluster.key_on(2, "jobs")?);
    let holder = Arc::new(cluster.nodes.pop().context("no third node")?);
    let nodes: Vec<_> = cluster.nodes.iter().chain([&*holder]).collect();
    let shop = Shop::open(stage, "redis-cluster").await?;
    let rights = ["+llen +time +cluster|slots +asking", "+blmove +lrem +cluster +@connection"];
    let list = List::new(Arc::clone(&holder), &key);
    list.is_followed(&shop, &nodes, rights, &[("REDIS_CLUSTER", Setting::Value("yes"))]).await
}

/// The streams of a super stream, each read by one consumer at a time, which stores the offset of what it has handled at the server.
struct Streams {
    server: RabbitMq,
    appended: AtomicUsize,
}

const STREAMS: usize = 3;
const REFERENCE: &str = "order-list";

impl Streams {
    /// Makes the streams, each with an event that is handled, and a user with the rights that the operator needs.
    fn make(server: RabbitMq) -> Result<Self> {
        for stream in Self::all() {
            let arguments = json!({"durable": true, "arguments": {"x-queue-type": "stream"}});
            server.run("PUT", &format!("queues/%2F/{stream}"), &arguments)?;
            server.consumer()?.publish(&stream, ["before".to_owned()])?;
            server.store_offset(&stream, REFERENCE, 0)?;
        }
        server.run("PUT", "users/projectionist", &json!({"password": CANARY, "tags": "management"}))?;
        let rights = json!({"configure": "^$", "write": "^$", "read": "^orders-"});
        server.run("PUT", "permissions/%2F/projectionist", &rights)?;
        Ok(Self { server, appended: AtomicUsize::new(0) })
    }

    fn all() -> impl Iterator<Item = String> {
        (0..STREAMS).map(|number| format!("orders-{number}"))
    }
}

impl Source for Streams {
    async fn append(&self, count: usize) -> Result<()> {
        let before = self.appended.fetch_add(count, Ordering::Relaxed);
        let mut publisher = self.server.consumer()?;
        for (number, stream) in Self::all().enumerate() {
            let its = (before..before + count).filter(|event| event % STREAMS == number);
            publisher.publish(&stream, its.map(|event| event.to_string()))?;
        }
        Ok(())
    }

    /// The server tells no more than the offsets that the operator asks it for.
    async fn unfinished(&self) -> Result<i64> {
        Ok(0)
    }

    fn is_bound(&self) -> bool {
        true
    }

    async fn names(&self) -> Result<BTreeSet<String>> {
        Ok((0..self.appended.load(Ordering::Relaxed)).map(|event| event.to_string()).collect())
    }
}

async fn streams(stage: &'static Stage) -> Result<()> {
    let streams = Streams::make(stage.cluster.rabbitmq()?)?;
    let shop = Shop::open(stage, "super-stream").await?;
    shop.make_record().await?;
    let (server, wrong) = (&streams.server, format!("{CANARY}-wrong"));
    let port = server.streams().port().to_string();
    for (secret, password) in [("orders-source", CANARY), ("wrong", wrong.as_str())] {
        shop.secret(secret, &[("url", &server.url_as("projectionist", password)), ("stream-port", &port)])?;
    }
    let (amqp, address) = (server.amqp_url_as("guest", "guest"), server.streams().to_string());
    let environment = [
        ("AMQP_URL", Setting::Value(&amqp)),
        ("SUPER_STREAM", Setting::Value("orders")),
        ("PARTITIONS", Setting::Value("3")),
        ("STREAMS_AT", Setting::Value(&address)),
        ("REFERENCE", Setting::Value(REFERENCE)),
    ];
    let spec = |secret: &str| {
        let all: Vec<Value> = Streams::all().map(|stream| json!({"stream": stream, "reference": REFERENCE})).collect();
        json!({"rabbitmq": {"connection": {"secretRef": {"name": secret}}, "streams": all}})
    };
    let scaling = json!({"ordering": "PerKey", "shards": STREAMS, "maxWorkers": 3});
    follows_the_lag(&shop, &streams, &environment, spec, &scaling).await
}

#[test]
fn consumers_with_offsets_in_a_table_of_a_redis_cluster_and_of_streams_are_scaled_side_by_side_and_every_event_is_handled_once()
 {
    let _turn = together();
    play(|stage| async move {
        let all =
            [tokio::spawn(offsets_in_a_table(stage)), tokio::spawn(redis_cluster(stage)), tokio::spawn(streams(stage))];
        try_join_all(all.map(|one| async { one.await.context("it broke down")? })).await.map(drop)
    });
}
