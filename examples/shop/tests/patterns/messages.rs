//! Outbox and consumers on real brokers: what is committed arrives, in order, and is told once.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use rdkafka::{
    ClientConfig, Message as _,
    consumer::{Consumer as _, StreamConsumer},
};
use shop::{
    brokers::{self, Brokers},
    competing_consumers::{self, Handled, Notification, Notifier},
    orders,
    outbox::{self, Message, Publisher, RelayError},
    saga::{self, Progress},
};
use test_cluster::{Kafka, eventually_is, kafka::Listener};

use crate::{servers::brokers as brokers_of_all_tests, write_side::WriteSide};

const PATIENCE: Duration = Duration::from_secs(120);

/// Sends, and dies before anybody hears of it.
struct DiesAfterwards(Brokers);

#[derive(Debug, thiserror::Error)]
#[error("killed")]
struct Killed;

impl Publisher for DiesAfterwards {
    type Error = Killed;

    async fn publish(&mut self, messages: &[Message]) -> Result<(), Killed> {
        self.0.publish(messages).await.unwrap();
        Err(Killed)
    }
}

/// Reads so many records that are committed, of these keys, and returns their identities by key.
async fn records(kafka: &Kafka, keys: &[String], expected: usize) -> Result<HashMap<String, Vec<String>>> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.address(Listener::Plaintext).to_string());
    config.set("group.id", "test").set("auto.offset.reset", "earliest").set("isolation.level", "read_committed");
    let consumer: StreamConsumer = config.create()?;
    consumer.subscribe(&[orders::TOPIC])?;
    let mut records: HashMap<String, Vec<String>> = HashMap::new();
    let mut number = 0;
    while number < expected {
        let record = tokio::time::timeout(PATIENCE, consumer.recv()).await;
        let record = record.with_context(|| format!("{number} records of {expected}"))??;
        let key = String::from_utf8_lossy(record.key().unwrap()).into_owned();
        if !keys.contains(&key) {
            continue;
        }
        number += 1;
        let headers = record.headers().context("a record without headers")?;
        let id = rdkafka::message::Headers::iter(headers).find(|header| header.key == "id").unwrap().value.unwrap();
        records.entry(key).or_default().push(String::from_utf8_lossy(id).into_owned());
    }
    Ok(records)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_is_sent_in_order_and_each_customer_is_told_once() -> Result<()> {
    let brokers_lent = brokers_of_all_tests().await;
    let (kafka, rabbitmq) = (&brokers_lent.kafka, &brokers_lent.rabbitmq);
    let (servers, amqp) = (kafka.address(Listener::Plaintext).to_string(), rabbitmq.amqp_url_as("guest", "guest"));
    let mut shop = WriteSide::open().await?;
    shop.product("book", 100).await?;
    for number in 0..5 {
        shop.order(&number.to_string(), "book", 1, "Portugal").await?;
    }
    // Rolled back, and so never told.
    let transaction = shop.client.transaction().await?;
    let never = Message {
        id: "never".to_owned(),
        destination: outbox::Destination::Kafka,
        address: orders::TOPIC.to_owned(),
        key: "never".to_owned(),
        type_: "Never".to_owned(),
        body: serde_json::json!({}),
    };
    outbox::put(&transaction, &never).await?;
    transaction.rollback().await?;

    let first = shop.database.connect().await?;
    outbox::wait_for_turn(&first).await?;
    let mut killed = DiesAfterwards(Brokers::connect(&servers, &amqp, brokers_lent.authority()).await?);
    let died = outbox::relay_batch(&first, &mut killed).await;
    assert!(matches!(died, Err(RelayError::Publish(Killed))));
    // A second relay waits for its turn, and sends what the first had sent and not marked.
    let second = shop.database.connect().await?;
    let waits = tokio::time::timeout(Duration::from_millis(500), outbox::wait_for_turn(&second)).await;
    ensure!(waits.is_err(), "two relays had their turn");
    drop(first);
    outbox::wait_for_turn(&second).await?;
    let mut brokers = Brokers::connect(&servers, &amqp, brokers_lent.authority()).await?;
    assert_eq!(outbox::relay_batch(&second, &mut brokers).await?, 5);
    // The first one, which only slept, can send nothing more.
    let stale = [Message { id: "stale".to_owned(), ..never }];
    ensure!(killed.0.publish(&stale).await.is_err(), "a relay that was replaced has sent something");

    // Orders come to their ends, and more is sent, part of it twice.
    let (mut client, services) = (shop.database.connect().await?, shop.services());
    while saga::step(&mut client, &services).await? != Progress::Nothing {}
    let mut killed = DiesAfterwards(brokers);
    let died = outbox::relay_batch(&second, &mut killed).await;
    assert!(matches!(died, Err(RelayError::Publish(Killed))));
    let mut brokers = Brokers::connect(&servers, &amqp, brokers_lent.authority()).await?;
    while outbox::relay_batch(&second, &mut brokers).await? > 0 {}
    assert_eq!(shop.number("select count(*) from outbox where sent_at is null").await?, 0);

    // Of each order: placed, twice; then confirmed, paid and shipped, twice.
    let keys: Vec<String> = (0..5).map(|number| orders::stream(&number.to_string())).collect();
    for (key, ids) in records(kafka, &keys, 5 * (2 + 2 * 3)).await? {
        let expected = [1, 1, 2, 3, 4, 2, 3, 4].map(|version| format!("{key}/{version}"));
        assert_eq!(ids, expected);
    }

    // Two workers; the first dies with messages in its hands, which it has told and not acknowledged.
    let connection = brokers::connect(&amqp, brokers_lent.authority()).await?;
    let mut killed = Notifier::new(shop.database.connect().await?, "killed".to_owned());
    let told = Notification { order: "0".to_owned(), text: "told before".to_owned() };
    assert_eq!(killed.tell("order-0/end", &told).await?, Handled::Told);
    assert_eq!(killed.tell("order-0/end", &told).await?, Handled::Repeated);
    // Somebody else's message, which is none.
    rabbitmq.consumer()?.publish(orders::NOTIFICATIONS, ["garbage".to_owned()])?;
    let work = async |name: &str| {
        let channel = connection.create_channel().await?;
        let mut notifier = Notifier::new(shop.database.connect().await?, name.to_owned());
        anyhow::Ok(
            competing_consumers::consume(&channel, orders::NOTIFICATIONS, &mut notifier)
                .await
                .map(|never| match never {})?,
        )
    };
    let depth = |queue: &'static str| {
        move || async move {
            let told = rabbitmq.run("GET", &format!("queues/%2F/{queue}"), &serde_json::Value::Null)?;
            told["messages"].as_i64().context("no depth")
        }
    };
    let handled = async {
        eventually_is(PATIENCE, "all are acknowledged", |left| *left == 0, depth(orders::NOTIFICATIONS)).await?;
        eventually_is(PATIENCE, "the garbage is put aside", |left| *left == 1, depth("shop.dead-letters")).await?;
        let told = || shop.number("select count(*) from notifications");
        eventually_is(PATIENCE, "all are told", |told| *told == 5, told).await
    };
    tokio::select! { one = work("one") => one?, two = work("two") => two?, handled = handled => { handled?; } }
    assert_eq!(shop.number("select count(distinct order_id) from notifications").await?, 5);
    Ok(())
}
