//! Kafka: consumers by librdkafka in a group, which commit every 5 s, bound by the partitions.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use serde_json::json;
use test_cluster::{
    Kafka,
    kafka::{Listener, PLAIN_PASSWORD, PLAIN_USER},
};

use crate::consumers::{Course, Setting, Source, projection};
use crate::secrets::CANARY;
use crate::shop::Shop;
use crate::stage::{play, together};

const PARTITIONS: usize = 3;

/// The topic `orders`, which the group `order-list` reads.
struct Topic {
    broker: Kafka,
    in_each: AtomicUsize,
}

impl Topic {
    /// Makes the topic, and users with the rights that each needs: the operator those that its page lists.
    fn make(broker: Kafka) -> Result<Self> {
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
        let brokers = topic.broker.address(Listener::Sasl).to_string();
        for (secret, password) in [("orders-kafka", CANARY), ("wrong", &format!("{CANARY}-wrong"))] {
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
                "source": source("orders-kafka"),
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
