//! Where logs begin and end, and what groups have committed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use kacrab_protocol::generated::{
    ListOffsetsPartition, ListOffsetsRequestData, ListOffsetsTopic, OffsetFetchRequestData, OffsetFetchRequestGroup,
    OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use tokio::time::Instant;

use super::{
    Client,
    client::Talk,
    connection::{Connection, text},
    error::{Code, KafkaError},
};

/// A partition of a topic.
pub type Partition = (Arc<str>, i32);

/// Which records a reader may see.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Isolation {
    /// Those of committed transactions, up to the first transaction that is still open.
    #[default]
    ReadCommitted,
    /// All.
    ReadUncommitted,
}

impl Isolation {
    pub(super) fn wire(self) -> i8 {
        match self {
            Self::ReadUncommitted => 0,
            Self::ReadCommitted => 1,
        }
    }
}

/// Which offset is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum At {
    /// The first that is still kept: the low watermark.
    Earliest,
    /// The one behind the last record that may be read.
    Latest(Isolation),
    /// That of the first record with at least this time, in milliseconds since 1970.
    Time(i64, Isolation),
}

/// A place in a partition.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offset {
    /// The offset; -1 where no record is as young as the time that was asked for.
    pub offset: i64,
    /// The time of the record there, in milliseconds since 1970, where a time was asked for.
    pub time: Option<i64>,
}

/// The partitions that a group is asked about.
pub type Wanted = BTreeMap<Arc<str>, BTreeSet<Partition>>;
/// What a group has committed for each partition; `None` where nothing.
type Committed = BTreeMap<Partition, Option<i64>>;

/// More partitions in one request would make a long reply: 50,000 make one of about 1 MiB.
const MOST_PARTITIONS: usize = 50_000;

impl Client {
    /// What groups have committed, each asked of its coordinator: one request a broker where it can tell of many groups at once (Kafka 3.0),
    /// else one a group.
    ///
    /// Within: why a group's offsets are not known.
    pub async fn committed(
        &mut self,
        wanted: &Wanted,
        coordinators: &BTreeMap<Arc<str>, i32>,
        by: Instant,
    ) -> BTreeMap<Arc<str>, Result<Committed, KafkaError>> {
        let mut by_broker: BTreeMap<i32, Wanted> = BTreeMap::new();
        for (group, partitions) in wanted {
            if let Some(id) = coordinators.get(group) {
                by_broker.entry(*id).or_default().insert(group.clone(), partitions.clone());
            }
        }
        let work = by_broker.into_iter();
        let answers = self.with_brokers(work, by, AskCommitted { by }).await;
        let mut all = BTreeMap::new();
        for answer in answers {
            match answer {
                Ok(groups) => all.extend(groups),
                Err((groups, error)) => all.extend(groups.into_keys().map(|group| (group, Err(error.clone())))),
            }
        }
        all
    }

    /// Offsets of partitions, each asked of its leader: one request a broker.
    ///
    /// Within: why a partition's is not known.
    pub async fn offsets(
        &mut self,
        at: At,
        partitions: &BTreeMap<Partition, i32>,
        by: Instant,
    ) -> BTreeMap<Partition, Result<Offset, KafkaError>> {
        let work = by_leader(partitions.iter().map(|(partition, leader)| (partition.clone(), *leader)));
        together(self.with_brokers(work, by, List { at, by }).await, |partition| partition)
    }
}

struct AskCommitted {
    by: Instant,
}

impl Talk for AskCommitted {
    type Work = Wanted;
    type Answer = Groups;

    async fn talk(&self, broker: &mut Connection, work: Wanted) -> Result<Groups, KafkaError> {
        ask_committed(broker, &work, self.by).await
    }
}

struct List {
    at: At,
    by: Instant,
}

impl Talk for List {
    type Work = Vec<Partition>;
    type Answer = BTreeMap<Partition, Result<Offset, KafkaError>>;

    async fn talk(&self, broker: &mut Connection, work: Vec<Partition>) -> Result<Self::Answer, KafkaError> {
        list(broker, self.at, &work, self.by).await
    }
}

pub(super) fn by_leader<T>(all: impl Iterator<Item = (T, i32)>) -> BTreeMap<i32, Vec<T>> {
    let mut by_leader: BTreeMap<i32, Vec<T>> = BTreeMap::new();
    for (one, leader) in all {
        by_leader.entry(leader).or_default().push(one);
    }
    by_leader
}

/// An answer for each partition, or why there is none.
type OfPartitions<Answer> = BTreeMap<Partition, Result<Answer, KafkaError>>;
/// What a broker was asked that did not answer, and why it did not.
type Unanswered<Asked> = (Vec<Asked>, KafkaError);

/// What all brokers answered about partitions; of a broker that did not, why, for each partition that it was asked about.
pub(super) fn together<Asked, Answer>(
    answers: Vec<Result<OfPartitions<Answer>, Unanswered<Asked>>>,
    partition: impl Fn(Asked) -> Partition,
) -> OfPartitions<Answer> {
    let mut all = BTreeMap::new();
    for answer in answers {
        match answer {
            Ok(found) => all.extend(found),
            Err((asked, error)) => all.extend(asked.into_iter().map(|one| (partition(one), Err(error.clone())))),
        }
    }
    all
}

/// The partitions of each topic, as requests name them.
pub(super) fn by_topic<'a>(partitions: impl IntoIterator<Item = &'a Partition>) -> BTreeMap<&'a Arc<str>, Vec<i32>> {
    let mut topics: BTreeMap<&Arc<str>, Vec<i32>> = BTreeMap::new();
    for (topic, number) in partitions {
        topics.entry(topic).or_default().push(*number);
    }
    topics
}

async fn list(
    broker: &mut Connection,
    at: At,
    asked: &[Partition],
    by: Instant,
) -> Result<BTreeMap<Partition, Result<Offset, KafkaError>>, KafkaError> {
    let (timestamp, isolation) = match at {
        At::Earliest => (-2, Isolation::ReadUncommitted),
        At::Latest(isolation) => (-1, isolation),
        At::Time(time, isolation) => (time.max(0), isolation),
    };
    let mut found = BTreeMap::new();
    for some in asked.chunks(MOST_PARTITIONS) {
        let topics = by_topic(some).into_iter().map(|(topic, numbers)| ListOffsetsTopic {
            name: text(topic),
            partitions: numbers
                .into_iter()
                .map(|partition_index| ListOffsetsPartition {
                    partition_index,
                    current_leader_epoch: -1,
                    timestamp,
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        });
        let request = ListOffsetsRequestData {
            replica_id: -1,
            isolation_level: isolation.wire(),
            topics: topics.collect(),
            ..Default::default()
        };
        let reply = broker.call(request, by).await?;
        let names = names(some);
        for topic in &reply.topics {
            let Some(name) = names.get(topic.name.as_str()) else { continue };
            for one in &topic.partitions {
                let answer = match Code::from_wire(one.error_code) {
                    Some(code) => Err(KafkaError::of(
                        code,
                        &broker.place,
                        &format!("partition {} of topic {name}", one.partition_index),
                    )),
                    None => Ok(Offset { offset: one.offset, time: (one.timestamp >= 0).then_some(one.timestamp) }),
                };
                found.insert(((*name).clone(), one.partition_index), answer);
            }
        }
    }
    for one in asked {
        found.entry(one.clone()).or_insert_with(|| Err(left_out(&broker.place, "ListOffsets", one)));
    }
    Ok(found)
}

pub(super) fn names(partitions: &[Partition]) -> HashMap<&str, &Arc<str>> {
    partitions.iter().map(|(topic, _)| (&**topic, topic)).collect()
}

pub(super) fn left_out(place: &str, what: &str, (topic, number): &Partition) -> KafkaError {
    KafkaError::invalid(place, &format!("the answer to {what} leaves out partition {number} of topic {topic}"))
}

type Groups = BTreeMap<Arc<str>, Result<Committed, KafkaError>>;

async fn ask_committed(broker: &mut Connection, wanted: &Wanted, by: Instant) -> Result<Groups, KafkaError> {
    let mut all = Groups::new();
    if broker.version::<OffsetFetchRequestData>()? >= 8 {
        let mut part = Wanted::new();
        let mut size = 0;
        for (group, partitions) in wanted {
            if size > 0 && size + partitions.len() > MOST_PARTITIONS {
                ask_many(broker, &std::mem::take(&mut part), by, &mut all).await?;
                size = 0;
            }
            size += partitions.len();
            part.insert(group.clone(), partitions.clone());
        }
        ask_many(broker, &part, by, &mut all).await?;
    } else {
        for (group, partitions) in wanted {
            let answer = ask_one(broker, group, partitions, by).await?;
            all.insert(group.clone(), answer);
        }
    }
    Ok(all)
}

async fn ask_many(broker: &mut Connection, wanted: &Wanted, by: Instant, all: &mut Groups) -> Result<(), KafkaError> {
    let groups = wanted.iter().map(|(group, partitions)| OffsetFetchRequestGroup {
        group_id: text(group),
        topics: Some(
            by_topic(partitions)
                .into_iter()
                .map(|(topic, numbers)| OffsetFetchRequestTopics {
                    name: text(topic),
                    partition_indexes: numbers,
                    ..Default::default()
                })
                .collect(),
        ),
        ..Default::default()
    });
    // Without `require_stable`: with it, a coordinator that starts would have to write.
    let request = OffsetFetchRequestData { groups: groups.collect(), ..Default::default() };
    let reply = broker.call(request, by).await?;
    for group in &reply.groups {
        let Some((name, partitions)) = wanted.get_key_value(group.group_id.as_str()) else { continue };
        let found = group.topics.iter().flat_map(|topic| {
            topic
                .partitions
                .iter()
                .map(|one| (topic.name.as_str(), one.partition_index, one.committed_offset, one.error_code))
        });
        all.insert(name.clone(), gather(&broker.place, name, partitions, group.error_code, found));
    }
    for group in wanted.keys() {
        all.entry(group.clone()).or_insert_with(|| {
            Err(KafkaError::invalid(&broker.place, &format!("the answer to OffsetFetch leaves out group {group}")))
        });
    }
    Ok(())
}

async fn ask_one(
    broker: &mut Connection,
    group: &Arc<str>,
    partitions: &BTreeSet<Partition>,
    by: Instant,
) -> Result<Result<Committed, KafkaError>, KafkaError> {
    let topics = by_topic(partitions).into_iter().map(|(topic, numbers)| OffsetFetchRequestTopic {
        name: text(topic),
        partition_indexes: numbers,
        ..Default::default()
    });
    let request =
        OffsetFetchRequestData { group_id: text(group), topics: Some(topics.collect()), ..Default::default() };
    let reply = broker.call(request, by).await?;
    let found = reply.topics.iter().flat_map(|topic| {
        topic
            .partitions
            .iter()
            .map(|one| (topic.name.as_str(), one.partition_index, one.committed_offset, one.error_code))
    });
    Ok(gather(&broker.place, group, partitions, reply.error_code, found))
}

fn gather<'a>(
    place: &str,
    group: &str,
    partitions: &BTreeSet<Partition>,
    error: i16,
    found: impl Iterator<Item = (&'a str, i32, i64, i16)>,
) -> Result<Committed, KafkaError> {
    if let Some(code) = Code::from_wire(error) {
        return Err(KafkaError::of(code, place, &format!("group {group}")));
    }
    let asked: HashMap<(&str, i32), &Partition> = partitions.iter().map(|one| ((&*one.0, one.1), one)).collect();
    let mut committed = Committed::new();
    for (topic, number, offset, error) in found {
        let Some(partition) = asked.get(&(topic, number)) else { continue };
        if let Some(code) = Code::from_wire(error) {
            return Err(KafkaError::of(code, place, &format!("group {group}, partition {number} of topic {topic}")));
        }
        committed.insert((*partition).clone(), (offset >= 0).then_some(offset));
    }
    match partitions.iter().find(|one| !committed.contains_key(*one)) {
        Some(one) => Err(left_out(place, "OffsetFetch", one)),
        None => Ok(committed),
    }
}
