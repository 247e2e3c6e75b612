//! Reads records for a projector: what a broker sends of some partitions, batch by batch.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use kacrab_protocol::{
    Result as CodecResult,
    generated::{
        ApiKey,
        fetch_request::{FetchPartition, FetchRequestData, FetchTopic},
        fetch_response::{FetchResponseData, PartitionData},
    },
    record::Record as WireRecord,
    uuid::KafkaUuid,
};
use tokio::time::Instant;

use super::{
    Client, Isolation,
    batch::{Batch, Batches},
    calls::Call,
    client::Talk,
    compression::decompress,
    connection::{Connection, text},
    error::{Code, KafkaError},
    offsets::{Partition, by_leader, left_out, together},
};

/// How much a broker sends for each partition,
const PARTITION_BYTES: i32 = 512 << 10;
/// and in one answer. A batch that is larger comes nevertheless where it is the first of an answer.
const ANSWER_BYTES: i32 = 4 << 20;

/// From where to read a partition.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReadFrom {
    /// The broker that leads it.
    pub leader: i32,
    /// The topic's identity: where it is known, another topic of the same name is not read.
    pub topic: [u8; 16],
    /// The offset of the first record that is wanted.
    pub offset: i64,
}

/// What a broker sent of a partition, with the bounds of its log.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The first offset that is still kept.
    pub start: i64,
    /// The offset behind the last record that readers may see with this isolation.
    pub end: i64,
    /// The offset behind the last record that all replicas in step have.
    pub high_watermark: i64,
    batches: Batches,
    offset: i64,
}

/// The records of a batch, or of several that hold none for readers.
#[derive(Clone, Debug)]
pub struct Records {
    /// Those from the offset that was asked for on, in their order.
    pub records: Vec<Record>,
    /// The offset behind them: up to there these are all.
    pub end: i64,
}

/// One record.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its place in the partition.
    pub offset: i64,
    /// In milliseconds since 1970; absent where it has none.
    pub time: Option<i64>,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value; absent in a tombstone.
    pub value: Option<Bytes>,
    /// Names and values.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

/// A batch that cannot be read. Holds nothing of what is in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UnreadableBatch {
    /// Why.
    pub why: String,
}

impl Sent {
    /// There are records from the offset on that was asked for, and not one whole batch of them was sent, for want of room.
    pub fn has_no_room(&self) -> bool {
        let first = self.batches.clone().next();
        self.end > self.offset && first.is_ok_and(|first| first.is_none_or(|(batch, _)| batch.cut))
    }

    /// The next records; `None` where there are no more in what was sent. A batch that decompresses to more than `most_bytes` cannot be read.
    ///
    /// # Errors
    /// The next batch cannot be read, nor anything behind it.
    pub fn next(&mut self, most_bytes: usize) -> Result<Option<Records>, UnreadableBatch> {
        let unreadable = |why: String| UnreadableBatch { why };
        let mut end = None;
        // What holds nothing for readers is passed over together with what comes before it.
        while let Some((batch, readable)) = self.batches.next().map_err(|why| unreadable(why.to_owned()))? {
            if batch.cut {
                break;
            }
            if batch.end() <= self.offset {
                continue;
            }
            end = Some(batch.end());
            if readable {
                let records = records_of(&batch, self.offset, most_bytes).map_err(unreadable)?;
                return Ok(Some(Records { records, end: batch.end() }));
            }
        }
        Ok(end.map(|end| Records { records: Vec::new(), end }))
    }
}

fn records_of(batch: &Batch, from: i64, most_bytes: usize) -> Result<Vec<Record>, String> {
    let (told, covered) = &batch.checksum;
    if crc32c::crc32c(covered) != *told {
        return Err("its checksum does not fit: it was damaged on its way or on the broker's disk".to_owned());
    }
    let mut data = match batch.codec {
        0 => batch.records.clone(),
        codec => Bytes::from(decompress(codec, &batch.records, most_bytes)?),
    };
    let mut records = Vec::new();
    for _ in 0..batch.count {
        let WireRecord { timestamp_delta, offset_delta, key, value, headers, .. } =
            WireRecord::decode(&mut data).map_err(|error| format!("its records make no sense ({error})"))?;
        let offset = batch.base.saturating_add(i64::from(offset_delta));
        if offset < from {
            continue;
        }
        let time = if batch.append_time { batch.newest } else { batch.first_time.saturating_add(timestamp_delta) };
        let headers = headers.into_iter().map(|header| (header.key, header.value)).collect();
        records.push(Record { offset, time: (time >= 0).then_some(time), key, value, headers });
    }
    Ok(records)
}

impl Client {
    /// What brokers send of partitions at once, each asked of its leader. Where a partition's answer has no whole batch although there are records, the
    /// broker had no room for it: asked for alone, it comes. Needs the right to READ the topic.
    ///
    /// Within: why a partition cannot be read.
    pub async fn read(
        &mut self,
        isolation: Isolation,
        wanted: &BTreeMap<Partition, ReadFrom>,
        by: Instant,
    ) -> BTreeMap<Partition, Result<Sent, KafkaError>> {
        let all = wanted.iter().map(|(partition, from)| ((partition.clone(), *from), from.leader));
        let answers = self.with_brokers(by_leader(all), by, Read { isolation, by }).await;
        together(answers, |(partition, _)| partition)
    }
}

struct Read {
    isolation: Isolation,
    by: Instant,
}

type Found = BTreeMap<Partition, Result<Sent, KafkaError>>;

impl Talk for Read {
    type Work = Vec<(Partition, ReadFrom)>;
    type Answer = Found;

    async fn talk(&self, broker: &mut Connection, work: Self::Work) -> Result<Found, KafkaError> {
        let by_identity = broker.version::<ByIdentity>().is_ok() && work.iter().all(|(_, from)| from.topic != [0; 16]);
        let request = request(&work, self.isolation);
        let reply = if by_identity {
            broker.call(ByIdentity(request), self.by).await?
        } else {
            broker.call(request, self.by).await?
        };
        if let Some(code) = Code::from_wire(reply.error_code) {
            return Err(KafkaError::of(code, &broker.place, "Fetch"));
        }
        let mut names: HashMap<Vec<u8>, &Arc<str>> = HashMap::new();
        for ((topic, _), from) in &work {
            names.insert(if by_identity { from.topic.to_vec() } else { topic.as_bytes().to_vec() }, topic);
        }
        let asked: BTreeMap<&Partition, ReadFrom> = work.iter().map(|(partition, from)| (partition, *from)).collect();
        let mut found = Found::new();
        for topic in &reply.responses {
            let name =
                if by_identity { topic.topic_id.to_bytes().to_vec() } else { topic.topic.as_str().as_bytes().to_vec() };
            let Some(name) = names.get(&name) else { continue };
            for one in &topic.partitions {
                let partition = ((*name).clone(), one.partition_index);
                let Some(from) = asked.get(&partition) else { continue };
                let answer = match Code::from_wire(one.error_code) {
                    Some(code) => {
                        let what =
                            format!("partition {} of topic {name} at offset {}", one.partition_index, from.offset);
                        Err(KafkaError::of(code, &broker.place, &what))
                    }
                    None => Ok(self.sent(one, from.offset)),
                };
                found.insert(partition, answer);
            }
        }
        for (one, _) in work {
            found.entry(one.clone()).or_insert_with(|| Err(left_out(&broker.place, "Fetch", &one)));
        }
        Ok(found)
    }
}

impl Read {
    fn sent(&self, answer: &PartitionData, offset: i64) -> Sent {
        let end = match self.isolation {
            Isolation::ReadCommitted => answer.last_stable_offset,
            Isolation::ReadUncommitted => answer.high_watermark,
        };
        let batches = Batches::of(answer, self.isolation);
        Sent { start: answer.log_start_offset, end, high_watermark: answer.high_watermark, batches, offset }
    }
}

/// The partitions in the order in which they are given: the first comes first.
fn request(work: &[(Partition, ReadFrom)], isolation: Isolation) -> FetchRequestData {
    let mut topics: Vec<FetchTopic> = Vec::new();
    for ((topic, partition), from) in work {
        let one = FetchPartition {
            partition: *partition,
            current_leader_epoch: -1,
            fetch_offset: from.offset,
            last_fetched_epoch: -1,
            log_start_offset: -1,
            partition_max_bytes: PARTITION_BYTES,
            ..Default::default()
        };
        match topics.iter_mut().find(|known| known.topic.as_str() == &**topic) {
            Some(known) => known.partitions.push(one),
            None => topics.push(FetchTopic {
                topic: text(topic),
                topic_id: identity(from.topic),
                partitions: vec![one],
                ..Default::default()
            }),
        }
    }
    FetchRequestData {
        replica_id: -1,
        max_wait_ms: 0,
        min_bytes: 0,
        max_bytes: ANSWER_BYTES,
        isolation_level: isolation.wire(),
        // No session: each request stands for itself.
        session_id: 0,
        session_epoch: -1,
        topics,
        ..Default::default()
    }
}

fn identity(bytes: [u8; 16]) -> KafkaUuid {
    let number = u128::from_be_bytes(bytes);
    let half = |number: u128| u64::try_from(number & u128::from(u64::MAX)).unwrap_or_default();
    KafkaUuid::from_parts(half(number >> 64), half(number))
}

/// The same request in the versions that know topics by their identity (Kafka 3.1).
struct ByIdentity(FetchRequestData);

impl Call for ByIdentity {
    const KEY: ApiKey = ApiKey::Fetch;
    const NAME: &'static str = "Fetch";
    const OLDEST: i16 = 13;
    const NEWEST: i16 = 13;
    type Reply = FetchResponseData;

    fn write(&self, buffer: &mut BytesMut, version: i16) -> CodecResult<()> {
        self.0.write(buffer, version)
    }

    fn read(buffer: &mut Bytes, version: i16) -> CodecResult<Self::Reply> {
        FetchResponseData::read(buffer, version)
    }
}
