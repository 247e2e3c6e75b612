//! Kafka: consumers by librdkafka in a group, which commit every 5 s, bound by the partitions.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use serde_json::json;
use test_cluster::{
    Kafka, eventually_is,
    kafka::{Listener, PLAIN_PASSWORD, PLAIN_USER},
};

use crate::consumers::{Course, Setting, Source, projection};
use crate::secrets::CANARY;
use crate::shop::Shop;
use crate::stage::{PATIENCE, play, together};

pub(crate) const PARTITIONS: usize = 3;

/// The topic `orders`, which the group `order-list` reads.
pub(crate) struct Topic {
    pub(crate) broker: Kafka,
    in_each: AtomicUsize,
}

impl Topic {
    /// Makes the topic, and users with the rights that each needs: the operator those that its page lists.
    pub(crate) fn make(broker: Kafka) -> Result<Self> {
        broker.ask(&["create", "orders", &PARTITIONS.to_string(), ""])?;
        broker.ask(&["scram", "projectionist", "SCRAM-SHA-512", CANARY])?;
        for right in ["DESCRIBE", "READ", "DESCRIBE_CONFIGS"] {
            broker.ask(&["allow", "projectionist", "topic", "orders", right])?;
        }
        broker.ask(&["allow", "projectionist", "group", "order-list", "DESCRIBE"])?;
        broker.ask(&["allow", PLAIN_USER, "topic", "orders", "READ"])?;
        broker.ask(&["allow", PLAIN_USER, "group", "order-list", "READ"])?;
        Ok(Self { broker, in_each: AtomicUsize::new(0) })
    }

    /// A Secret by which the operator logs in, and one with another password.
    pub(crate) fn secrets(&self, shop: &Shop<'_>) -> Result<()> {
        let brokers = self.broker.address(Listener::Sasl).to_string();
        for (secret, password) in [("orders-source", CANARY), ("wrong", &format!("{CANARY}-wrong"))] {
            shop.secret(
                secret,
                &[
                    ("bootstrapServers", brokers.as_str()),
                    ("securityProtocol", "SASL_PLAINTEXT"),
                    ("saslMechanism", "SCRAM-SHA-512"),
                    ("username", "projectionist"),
                    ("password", password),
                ],
            )?;
        }
        Ok(())
    }
}

impl Source for Topic {
    /// Equally many in each partition; no more than a multiple of them.
    async fn append(&self, count: usize) -> Result<()> {
        let each = count / PARTITIONS;
        for partition in 0..PARTITIONS {
            self.broker.ask(&["produce", "orders", &partition.to_string(), &each.to_string(), "0", ""])?;
        }
        self.in_each.fetch_add(each, Ordering::Relaxed);
        Ok(())
    }

    async fn unfinished(&self) -> Result<i64> {
        Ok(self.broker.ask(&["lag", "order-list", "orders"])?.parse()?)
    }

    async fn names(&self) -> Result<BTreeSet<String>> {
        let in_each = self.in_each.load(Ordering::Relaxed);
        let of = |partition| (0..in_each).map(move |offset| format!("orders/{partition}/{offset}"));
        Ok((0..PARTITIONS).flat_map(of).collect())
    }
}

#[test]
fn consumers_of_a_kafka_topic_are_scaled_by_lag_up_to_its_partitions_and_every_record_is_counted_and_handled_once() {
    let _turn = together();
    play(|stage| async move {
        let topic = Topic::make(stage.cluster.kafka()?)?;
        let shop = Shop::open(stage, "topics").await?;
        shop.make_record().await?;
        topic.secrets(&shop)?;
        let brokers = topic.broker.address(Listener::Sasl).to_string();
        shop.secret("workers-kafka", &[("user", PLAIN_USER), ("password", PLAIN_PASSWORD)])?;
        let environment = [
            ("KAFKA_BROKERS", Setting::Value(&brokers)),
            ("KAFKA_USER", Setting::Secret("workers-kafka", "user")),
            ("KAFKA_PASSWORD", Setting::Secret("workers-kafka", "password")),
            ("TOPICS", Setting::Value("orders")),
            ("GROUP", Setting::Value("order-list")),
        ];
        // 150 a second would take four consumers, and more to clear what waits.
        let course = Course { first: 600, arriving: 30, scaled_out: 3, most: 3, burst: 1_500, least: 1 };
        let source = |secret: &str| {
            json!({"kafka": {
                "connection": {"secretRef": {"name": secret}},
                "topics": ["orders"], "group": "order-list", "offsetReset": "Earliest",
            }})
        };
        shop.a_stranger_is_refused(&source("wrong")).await?;
        let change = |suspend| {
            json!({"spec": {
                "suspend": suspend,
                "source": source("orders-source"),
                "lag": {"target": "15s"},
                "scaling": {"ordering": "PerKey"},
            }})
        };
        shop.consumers_follow_the_lag(&topic, &course, |suspend| {
            projection(&shop.namespace, &environment, &change(suspend))
        })
        .await?;
        shop.no_secret_is_told()
    });
}

#[test]
fn the_built_in_projector_reads_a_topic_with_as_many_workers_as_its_lag_asks_for_and_each_record_once() {
    let _turn = together();
    play(|stage| async move {
        let broker = stage.cluster.kafka()?;
        broker.ask(&["create", "views", "4", ""])?;
        let shop = Shop::open(stage, "views").await?;
        let brokers = broker.address(Listener::Plaintext).to_string();
        shop.secret("kafka", &[("bootstrapServers", brokers.as_str()), ("securityProtocol", "PLAINTEXT")])?;
        let handler = "insert into seen (stream, position, n) select :stream, :position, (:data->>'n')::bigint from pg_sleep(0.02)";
        let change = json!({"spec": {
            "source": {"postgres": null, "kafka": {
                "connection": {"secretRef": {"name": "kafka"}}, "topics": ["views"], "group": "views-mirror",
            }},
            "scaling": {"shards": null, "minWorkers": 1, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}}},
            "projector": {"builtin": {
                "setup": "create table if not exists seen (seq bigserial, stream text, position bigint, n bigint)",
                "handlers": {"Counted": handler},
            }},
        }});
        broker.ask(&["count", "views", "2000", "zstd"])?;
        shop.apply(&shop.projection("orders", &change))?;
        // 20 ms for each of 2,000 events is more than one worker can do within the target of 5 s.
        shop.workers_are("orders", "more workers than one are ready", |ready| ready > 1).await?;
        broker.ask(&["count", "views", "200", "none"])?;
        let client = shop.reader().await?;
        let seen = async || {
            let row =
                client.query_one("select count(*), count(distinct (stream, position)) from orders.seen", &[]).await?;
            Ok::<(i64, i64), anyhow::Error>((row.get(0), row.get(1)))
        };
        let whole =
            eventually_is(PATIENCE, "every record is handled once", |found| *found == (2_200, 2_200), &seen).await;
        whole.map_err(|error| stage.cluster.explain(&error, &shop.namespace))?;
        shop.metric_is("projection_pending_events", "orders", |value| value == "0").await?;
        let mirrored = || async { broker.ask(&["lag", "views-mirror", "views"]) };
        eventually_is(PATIENCE, "the group's offsets follow", |lag| lag == "0", mirrored).await?;
        shop.replicas_become(1).await?;
        for condition in ["LagKnown", "WithinTarget", "Available", "Ready"] {
            shop.condition_is("orders", condition, "True", "").await?;
        }
        ensure!(seen().await? == (2_200, 2_200), "{:?}", seen().await?);
        Ok(())
    });
}
