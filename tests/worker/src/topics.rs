//! A consumer of topics in Kafka by librdkafka, as its users write one: a member of a consumer group with the client's defaults, which commits every 5 s
//! by itself, and once more when partitions are taken from it and when it ends.
//!
//! Told by `KAFKA_BROKERS`, `TOPICS` (separated by commas), `GROUP`; with `KAFKA_USER` and `KAFKA_PASSWORD` it logs in by SASL PLAIN.

use anyhow::{Context, Result};
use rdkafka::{
    ClientConfig, Message,
    consumer::{Consumer, StreamConsumer},
};
use tokio::signal::unix::Signal;

use crate::record::{Record, variable};

/// Consumes until it is told to end.
///
/// # Errors
/// When a broker refuses it, or the database.
pub(crate) async fn consume(brokers: &str, ends: &mut Signal) -> Result<()> {
    let record = Record::open().await?;
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", variable("GROUP")?).set("auto.offset.reset", "earliest");
    // A record counts as read when it was handled. By default it does when it is polled, and this client polls on while it leaves, so that records that were
    // fetched ahead would be committed and never handled.
    config.set("enable.auto.offset.store", "false");
    if let (Ok(user), Ok(password)) = (variable("KAFKA_USER"), variable("KAFKA_PASSWORD")) {
        config.set("security.protocol", "SASL_PLAINTEXT").set("sasl.mechanism", "PLAIN");
        config.set("sasl.username", user).set("sasl.password", password);
    }
    let consumer: StreamConsumer = config.create().context("the client's configuration")?;
    let topics = variable("TOPICS")?;
    consumer.subscribe(&topics.split(',').collect::<Vec<_>>()).context("subscribing")?;
    loop {
        let message = tokio::select! {
            biased;
            // Leaving the group commits what was handled.
            _ = ends.recv() => return Ok(()),
            message = consumer.recv() => message.context("receiving a record")?,
        };
        record.handle(&format!("{}/{}/{}", message.topic(), message.partition(), message.offset())).await?;
        consumer.store_offset_from_message(&message).context("storing an offset")?;
    }
}
