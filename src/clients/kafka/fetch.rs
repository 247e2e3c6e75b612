//! The first record that a reader would get from an offset, by the headers of record batches alone: nothing is decompressed.

use std::collections::{BTreeMap, BTreeSet};

use kacrab_protocol::generated::{
    fetch_request::{FetchPartition, FetchRequestData, FetchTopic},
    fetch_response::PartitionData,
};
use tokio::time::Instant;

use super::{
    Client, Isolation,
    batch::{Batch, Batches},
    client::Talk,
    connection::{Connection, text},
    error::{Code, KafkaError},
    offsets::{Partition, by_leader, by_topic, left_out, names, together},
};

/// What a reader that continues at an offset would get next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FirstRecord {
    /// A record, in a batch of records.
    Batch {
        /// The time of the batch's first record, in milliseconds since 1970; for a topic with `LogAppendTime`, when the batch was appended.
        oldest: i64,
        /// The time of the batch's newest record. The record's own lies between the two.
        newest: i64,
        /// The offset of the batch's first record, or the one asked for where that is inside the batch.
        offset: i64,
        /// What the broker sent with it holds transactions, or one is open, so that markers which no reader gets stand between records.
        transactional: bool,
        /// Records from the offset asked for on that the broker sent, without those of aborted transactions where only committed ones are asked for:
        /// so many wait for certain. Only headers are read, so that records at the end of a batch with gaps, which may lie before that offset, are
        /// not counted.
        records: u64,
        /// Each offset from the one asked for up to the last of these has a record or a marker, as in a log of which nothing was removed.
        gapless: bool,
    },
    /// Nothing but transaction markers and aborted transactions, up to the end that was given in the same answer.
    Nothing,
}

/// How much a broker sends for each partition beyond its first batch.
const PARTITION_BYTES: i32 = 16 << 10;
/// How much a broker sends in one answer; a first batch that is larger comes nevertheless.
const ANSWER_BYTES: i32 = 1 << 20;
/// Answers for one broker in one poll. What is left then is asked in later polls.
const MOST_ANSWERS: usize = 8;

impl Client {
    /// The first record at or behind an offset, for each partition with its leader. Partitions for which nothing could be told within the limits of
    /// one poll are left out. Needs the right to READ the topic.
    ///
    /// Within: why a partition's is not known.
    pub async fn first_records(
        &mut self,
        isolation: Isolation,
        partitions: &BTreeMap<Partition, (i32, i64)>,
        by: Instant,
    ) -> BTreeMap<Partition, Result<FirstRecord, KafkaError>> {
        let all = partitions.iter().map(|(partition, (leader, offset))| ((partition.clone(), *offset), *leader));
        let answers = self.with_brokers(by_leader(all), by, FetchFirst { isolation, by }).await;
        together(answers, |(partition, _)| partition)
    }
}

struct FetchFirst {
    isolation: Isolation,
    by: Instant,
}

impl Talk for FetchFirst {
    type Work = Vec<(Partition, i64)>;
    type Answer = Found;

    async fn talk(&self, broker: &mut Connection, work: Self::Work) -> Result<Found, KafkaError> {
        fetch(broker, self.isolation, &work, self.by).await
    }
}

type Found = BTreeMap<Partition, Result<FirstRecord, KafkaError>>;

async fn fetch(
    broker: &mut Connection,
    isolation: Isolation,
    asked: &[(Partition, i64)],
    by: Instant,
) -> Result<Found, KafkaError> {
    let mut found = Found::new();
    let mut left: BTreeMap<Partition, i64> = asked.iter().cloned().collect();
    for _ in 0..MOST_ANSWERS {
        if left.is_empty() {
            break;
        }
        let before = left.clone();
        let answered = ask(broker, isolation, &left, by).await?;
        for (partition, step) in answered {
            match step {
                Step::Told(answer) => {
                    left.remove(&partition);
                    found.insert(partition, answer);
                }
                Step::Continue(offset) => drop(left.insert(partition, offset)),
            }
        }
        if left == before {
            break;
        }
    }
    Ok(found)
}

enum Step {
    Told(Result<FirstRecord, KafkaError>),
    /// Only batches that no reader gets came before this offset.
    Continue(i64),
}

async fn ask(
    broker: &mut Connection,
    isolation: Isolation,
    left: &BTreeMap<Partition, i64>,
    by: Instant,
) -> Result<Vec<(Partition, Step)>, KafkaError> {
    let topics = by_topic(left.keys()).into_iter().map(|(topic, numbers)| FetchTopic {
        topic: text(topic),
        partitions: numbers
            .into_iter()
            .map(|partition| FetchPartition {
                partition,
                current_leader_epoch: -1,
                fetch_offset: left.get(&(topic.clone(), partition)).copied().unwrap_or(0),
                last_fetched_epoch: -1,
                log_start_offset: -1,
                partition_max_bytes: PARTITION_BYTES,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    });
    let request = FetchRequestData {
        replica_id: -1,
        max_wait_ms: 0,
        min_bytes: 0,
        max_bytes: ANSWER_BYTES,
        isolation_level: isolation.wire(),
        // No session: each request stands for itself.
        session_id: 0,
        session_epoch: -1,
        topics: topics.collect(),
        ..Default::default()
    };
    let reply = broker.call(request, by).await?;
    if let Some(code) = Code::from_wire(reply.error_code) {
        return Err(KafkaError::of(code, &broker.place, "Fetch"));
    }
    let partitions: Vec<Partition> = left.keys().cloned().collect();
    let names = names(&partitions);
    let mut steps = Vec::new();
    let mut seen = BTreeSet::new();
    for topic in &reply.responses {
        let Some(name) = names.get(topic.topic.as_str()) else { continue };
        for one in &topic.partitions {
            let partition = ((*name).clone(), one.partition_index);
            let Some(offset) = left.get(&partition) else { continue };
            seen.insert(partition.clone());
            let step = match Code::from_wire(one.error_code) {
                Some(code) => {
                    let what = format!("partition {} of topic {name} at offset {offset}", one.partition_index);
                    Some(Step::Told(Err(KafkaError::of(code, &broker.place, &what))))
                }
                None => step(one, *offset, isolation).unwrap_or_else(|why| {
                    let why =
                        format!("records of partition {} of topic {name} cannot be read ({why})", one.partition_index);
                    Some(Step::Told(Err(KafkaError::invalid(&broker.place, &why))))
                }),
            };
            steps.extend(step.map(|step| (partition, step)));
        }
    }
    for one in partitions.into_iter().filter(|one| !seen.contains(one)) {
        let error = left_out(&broker.place, "Fetch", &one);
        steps.push((one, Step::Told(Err(error))));
    }
    Ok(steps)
}

/// What one partition's answer means; `None` where the broker had no room for it.
fn step(answer: &PartitionData, offset: i64, isolation: Isolation) -> Result<Option<Step>, &'static str> {
    let end = match isolation {
        Isolation::ReadCommitted => answer.last_stable_offset,
        Isolation::ReadUncommitted => answer.high_watermark,
    };
    let mut next = offset;
    let mut transactions = (0..answer.high_watermark).contains(&answer.last_stable_offset);
    let mut found: Option<Batch> = None;
    let (mut counted, mut gapless) = (0_u64, true);
    let mut batches = Batches::of(answer, isolation);
    loop {
        let (batch, readable) = match batches.next() {
            Ok(Some(batch)) => batch,
            // What is behind the first record tells only how many follow, and of transactions.
            Err(why) if found.is_none() => return Err(why),
            Ok(None) | Err(_) => break,
        };
        if batch.end() <= next {
            continue;
        }
        transactions |= batch.transactional || batch.control;
        gapless &= batch.base <= next && batch.is_whole();
        if readable {
            counted = counted.saturating_add(batch.records_from(offset));
        }
        next = batch.end();
        found = found.or(readable.then_some(batch));
    }
    if let Some(batch) = found {
        return Ok(Some(Step::Told(Ok(FirstRecord::Batch {
            oldest: batch.oldest(),
            newest: batch.newest,
            offset: batch.base.max(offset),
            transactional: transactions,
            records: counted,
            gapless,
        }))));
    }
    if next >= end {
        return Ok(Some(Step::Told(Ok(FirstRecord::Nothing))));
    }
    Ok((next > offset).then_some(Step::Continue(next)))
}
