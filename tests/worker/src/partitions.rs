//! A consumer of partitions in Kafka by librdkafka that joins no group, as projectors write one that handle each record exactly once: the offsets to read
//! next are in a table of the read store, and move in the transaction that writes down the record. Such consumers deal the partitions out among each other.
//!
//! Told by `KAFKA_BROKERS`, `TOPICS` (one), `OFFSETS`, a table `(topic text, partition int, "offset" bigint)`; `RECORD_URL`, `COST_MS`, `HOSTNAME`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{Consumer, StreamConsumer},
};
use tokio::{
    signal::unix::Signal,
    time::{Instant, sleep},
};
use tokio_postgres::{Client, NoTls};

use crate::group::Group;
use crate::record::variable;

/// The number of the advisory locks by which the consumers know of each other.
const GROUP: i32 = 1;
/// How often a consumer looks who else is there.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long it waits for the brokers' word of a topic.
const METADATA_WITHIN: Duration = Duration::from_secs(30);

struct Share {
    client: Client,
    group: Group,
    kafka: StreamConsumer,
    topic: String,
    table: String,
    partitions: i32,
    /// The partitions that are this consumer's, and what it reads next of each.
    held: BTreeMap<i32, i64>,
}

/// Consumes until it is told to end.
///
/// # Errors
/// When a broker or the database is away or refuses something.
pub(crate) async fn consume(brokers: &str, table: String, ends: &mut Signal) -> Result<()> {
    let worker = variable("HOSTNAME")?;
    let cost = Duration::from_millis(variable("COST_MS")?.parse().context("COST_MS")?);
    let mut share = Share::open(brokers, table).await?;
    let mut looked = None::<Instant>;
    loop {
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            share.look().await?;
            looked = Some(Instant::now());
        }
        let message = tokio::select! {
            biased;
            _ = ends.recv() => return Ok(()),
            message = share.kafka.recv() => message.context("receiving a record")?,
            () = sleep(LOOK_EVERY) => continue,
        };
        let (partition, offset) = (message.partition(), message.offset());
        drop(message);
        sleep(cost).await;
        share.handled(partition, offset, &worker).await?;
    }
}

impl Share {
    async fn open(brokers: &str, table: String) -> Result<Self> {
        let topic = variable("TOPICS")?;
        let mut config = ClientConfig::new();
        // No member of it commits or subscribes; the client will not be made without the name of one.
        config.set("bootstrap.servers", brokers).set("group.id", "none").set("enable.auto.commit", "false");
        let kafka: StreamConsumer = config.create().context("the client's configuration")?;
        let metadata = kafka.fetch_metadata(Some(&topic), METADATA_WITHIN).context("asking for the topic")?;
        let partitions = metadata.topics().first().context("no such topic")?.partitions().len();
        let url = variable("RECORD_URL")?;
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.context("connecting to the database")?;
        // The client reports what happens to its connection.
        tokio::spawn(connection);
        let (locks, connection) = tokio_postgres::connect(&url, NoTls).await.context("connecting to the database")?;
        tokio::spawn(connection);
        let group = Group::join(Arc::new(locks), GROUP).await?;
        let partitions = i32::try_from(partitions)?;
        Ok(Self { client, group, kafka, topic, table, partitions, held: BTreeMap::new() })
    }

    /// Sees who is there, gives up what is another's, and takes what is free of its own.
    async fn look(&mut self) -> Result<()> {
        let wanted = self.group.share(self.partitions).await?;
        let before = self.held.len();
        let lost: Vec<i32> = self.held.keys().copied().filter(|partition| !wanted.contains(partition)).collect();
        for partition in &lost {
            self.held.remove(partition);
        }
        let mut taken = Vec::new();
        for partition in wanted {
            if !self.held.contains_key(&partition) && self.group.takes(partition).await? {
                taken.push(partition);
            }
        }
        for partition in taken.iter().copied() {
            let read = format!("select \"offset\" from {} where topic = $1 and partition = $2", self.table);
            let row = self.client.query_one(&read, &[&self.topic, &partition]).await.context("reading an offset")?;
            self.held.insert(partition, row.get(0));
        }
        if !taken.is_empty() || self.held.len() != before {
            let mut list = TopicPartitionList::new();
            for (partition, offset) in &self.held {
                list.add_partition_offset(&self.topic, *partition, Offset::Offset(*offset))?;
            }
            self.kafka.assign(&list).context("assigning partitions")?;
        }
        // Only now, when none of its records can come any more.
        for partition in lost {
            self.group.gives_up(partition).await?;
        }
        Ok(())
    }

    /// Writes a record down and moves the offset, both or neither.
    async fn handled(&mut self, partition: i32, offset: i64, worker: &str) -> Result<()> {
        // It was fetched before the partitions were assigned anew, and comes again, or another consumer has it.
        let Some(next) = self.held.get(&partition).copied().filter(|next| offset >= *next) else { return Ok(()) };
        let moves = format!(
            "update {} set \"offset\" = $3 where topic = $1 and partition = $2 and \"offset\" = $4",
            self.table
        );
        let transaction = self.client.transaction().await?;
        let event = format!("{}/{partition}/{offset}", self.topic);
        let insert = "insert into handled (event, worker) values ($1, $2)";
        transaction.execute(insert, &[&event, &worker]).await.context("writing down a record")?;
        let moved = transaction.execute(&moves, &[&self.topic, &partition, &(offset + 1), &next]).await;
        let moved = moved.context("moving an offset")?;
        ensure!(moved == 1, "the offset of partition {partition} is not {next}: another consumer has moved it");
        transaction.commit().await.context("committing")?;
        self.held.insert(partition, offset + 1);
        Ok(())
    }
}
