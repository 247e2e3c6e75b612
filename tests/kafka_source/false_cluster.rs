//! A broker that says what a test wants: states that a real cluster has for moments only, and answers that no honest one gives.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kacrab_protocol::{
    KafkaString,
    generated::{
        ApiKey, ApiVersion, ApiVersionsResponseData, Coordinator, DescribeConfigsRequestData,
        DescribeConfigsResourceResult, DescribeConfigsResponseData, DescribeConfigsResult, FetchRequestData,
        FetchResponseData, FetchableTopicResponse, FindCoordinatorRequestData, FindCoordinatorResponseData,
        ListOffsetsPartitionResponse, ListOffsetsRequestData, ListOffsetsResponseData, ListOffsetsTopicResponse,
        MetadataRequestData, MetadataResponseBroker, MetadataResponseData, MetadataResponsePartition,
        MetadataResponseTopic, OffsetFetchRequestData, OffsetFetchResponseData, OffsetFetchResponseGroup,
        OffsetFetchResponsePartitions, OffsetFetchResponseTopics, fetch_response::PartitionData,
    },
};
use projectionist::{
    addresses::AddressRules,
    api::StoredOffset,
    clients::kafka::Isolation,
    lag::{CheckpointState, Position, Sample},
    measure::{MeasureError, RunKey},
    read_stores::Checkpoint,
    sources::{
        Ask, Probe, Target,
        kafka::{KafkaProbe, Progress, Question},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use crate::harness::settings;

/// Requests by key, with the version that the broker speaks.
const VERSIONS: [(ApiKey, i16); 7] = [
    (ApiKey::ApiVersions, 0),
    (ApiKey::Metadata, 12),
    (ApiKey::FindCoordinator, 4),
    (ApiKey::OffsetFetch, 8),
    (ApiKey::ListOffsets, 7),
    (ApiKey::Fetch, 12),
    (ApiKey::DescribeConfigs, 4),
];

/// So much is sent of a log in one answer.
const PAGE_BYTES: usize = 250;

/// Some offsets of a log.
#[derive(Clone, Copy)]
pub enum Batch {
    /// So many records.
    Records(i32),
    /// So many records of a transaction.
    Transactional(i32),
    /// The marker that ends a transaction.
    Marker,
}

#[derive(Clone, Default)]
pub struct FalseTopic {
    /// The topic's identity; another one after it was created again.
    pub id: u8,
    /// Each partition's log, from offset 0 on.
    pub logs: Vec<Vec<Batch>>,
    /// `cleanup.policy`; none where the user may not ask for it.
    pub policy: Option<&'static str>,
}

/// What the broker says.
#[derive(Default)]
pub struct Says {
    pub topics: BTreeMap<&'static str, FalseTopic>,
    /// By group and topic: one offset for each partition.
    pub committed: BTreeMap<(&'static str, &'static str), Vec<i64>>,
    /// Where brokers are said to be, other than here: the leaders of all partitions; the coordinator of all groups.
    pub leaders_at: Option<SocketAddr>,
    pub coordinator_at: Option<SocketAddr>,
    /// The broker hangs up where it is asked for the coordinator of one of these.
    pub cursed: BTreeSet<&'static str>,
    /// What was fetched.
    pub fetches: usize,
}

pub struct FalseBroker {
    pub address: SocketAddr,
    pub says: Arc<Mutex<Says>>,
}

impl FalseBroker {
    pub async fn start(says: Says) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let says = Arc::new(Mutex::new(says));
        let shared = Arc::clone(&says);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared), address));
            }
        });
        Self { address, says }
    }

    pub fn probe(&self, rules: AddressRules) -> KafkaProbe {
        KafkaProbe::new(settings(&self.address, &[]), Arc::new(rules), std::time::Instant::now())
    }

    pub fn change(&self, change: impl FnOnce(&mut Says)) {
        change(&mut self.says.lock().unwrap());
    }
}

/// A listener that only counts who comes.
pub async fn trap() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let came = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&came);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            drop(stream);
        }
    });
    (address, came)
}

async fn serve(mut stream: TcpStream, says: Arc<Mutex<Says>>, own: SocketAddr) {
    while let Ok(length) = stream.read_i32().await {
        let mut frame = vec![0; usize::try_from(length).unwrap()];
        if stream.read_exact(&mut frame).await.is_err() {
            return;
        }
        let answer = answer(Bytes::from(frame), &mut says.lock().unwrap(), own);
        let Some(answer) = answer else { return };
        let length = i32::try_from(answer.len()).unwrap();
        if stream.write_i32(length).await.is_err() || stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// One answer with its header; none where the broker hangs up.
fn answer(mut frame: Bytes, says: &mut Says, own: SocketAddr) -> Option<BytesMut> {
    let (key, version, correlation) = (frame.get_i16(), frame.get_i16(), frame.get_i32());
    let client = usize::try_from(frame.get_i16()).unwrap();
    frame.advance(client);
    let key = ApiKey::from_i16(key).unwrap();
    let mut out = BytesMut::new();
    out.put_i32(correlation);
    if key != ApiKey::ApiVersions {
        // The fields with tags, of which there are none, in both headers.
        frame.advance(1);
        out.put_u8(0);
    }
    match key {
        ApiKey::ApiVersions => versions().write(&mut out, version),
        ApiKey::Metadata => {
            metadata(&MetadataRequestData::read(&mut frame, version).unwrap(), says, own).write(&mut out, version)
        }
        ApiKey::FindCoordinator => {
            coordinators(&FindCoordinatorRequestData::read(&mut frame, version).unwrap(), says, own)?
                .write(&mut out, version)
        }
        ApiKey::OffsetFetch => {
            committed(&OffsetFetchRequestData::read(&mut frame, version).unwrap(), says).write(&mut out, version)
        }
        ApiKey::ListOffsets => {
            offsets(&ListOffsetsRequestData::read(&mut frame, version).unwrap(), says).write(&mut out, version)
        }
        ApiKey::Fetch => fetch(&FetchRequestData::read(&mut frame, version).unwrap(), says).write(&mut out, version),
        ApiKey::DescribeConfigs => {
            configs(&DescribeConfigsRequestData::read(&mut frame, version).unwrap(), says).write(&mut out, version)
        }
        other => panic!("asked for {other:?}"),
    }
    .unwrap();
    Some(out)
}

fn versions() -> ApiVersionsResponseData {
    let one = |(key, version): (ApiKey, i16)| ApiVersion {
        api_key: key as i16,
        min_version: version,
        max_version: version,
        ..Default::default()
    };
    ApiVersionsResponseData { api_keys: VERSIONS.map(one).to_vec(), ..Default::default() }
}

fn text(text: &str) -> KafkaString {
    KafkaString::from(text.to_owned())
}

fn metadata(asked: &MetadataRequestData, says: &Says, own: SocketAddr) -> MetadataResponseData {
    let at = says.leaders_at.unwrap_or(own);
    let broker = MetadataResponseBroker {
        node_id: 1,
        host: text(&at.ip().to_string()),
        port: at.port().into(),
        ..Default::default()
    };
    let topic = |name: &KafkaString| {
        let Some(topic) = says.topics.get(name.as_str()) else {
            return MetadataResponseTopic { error_code: 3, name: Some(name.clone()), ..Default::default() };
        };
        let partition = |partition_index| MetadataResponsePartition {
            partition_index,
            leader_id: 1,
            replica_nodes: vec![1],
            isr_nodes: vec![1],
            ..Default::default()
        };
        let count = i32::try_from(topic.logs.len()).unwrap();
        let mut id = Bytes::copy_from_slice(&[topic.id; 16]);
        MetadataResponseTopic {
            name: Some(name.clone()),
            topic_id: kacrab_protocol::uuid::read_uuid(&mut id).unwrap(),
            partitions: (0..count).map(partition).collect(),
            ..Default::default()
        }
    };
    let topics = asked.topics.iter().flatten().filter_map(|one| one.name.as_ref()).map(topic).collect();
    MetadataResponseData { brokers: vec![broker], topics, controller_id: 1, ..Default::default() }
}

fn coordinators(
    asked: &FindCoordinatorRequestData,
    says: &Says,
    own: SocketAddr,
) -> Option<FindCoordinatorResponseData> {
    if asked.coordinator_keys.iter().any(|group| says.cursed.contains(group.as_str())) {
        return None;
    }
    let (node_id, at) = says.coordinator_at.map_or((1, own), |at| (2, at));
    let one = |group: &KafkaString| Coordinator {
        key: group.clone(),
        node_id,
        host: text(&at.ip().to_string()),
        port: at.port().into(),
        ..Default::default()
    };
    let coordinators = asked.coordinator_keys.iter().map(one).collect();
    Some(FindCoordinatorResponseData { coordinators, ..Default::default() })
}

fn committed(asked: &OffsetFetchRequestData, says: &Says) -> OffsetFetchResponseData {
    let group = |group: &kacrab_protocol::generated::OffsetFetchRequestGroup| {
        let topics = group.topics.iter().flatten().map(|topic| {
            let of = says
                .committed
                .iter()
                .find(|((one, name), _)| (*one, *name) == (group.group_id.as_str(), topic.name.as_str()));
            let offset = |number: i32| of.and_then(|(_, all)| all.get(usize::try_from(number).unwrap())).copied();
            let one = |number: &i32| OffsetFetchResponsePartitions {
                partition_index: *number,
                committed_offset: offset(*number).unwrap_or(-1),
                committed_leader_epoch: -1,
                metadata: Some(text("")),
                ..Default::default()
            };
            OffsetFetchResponseTopics {
                name: topic.name.clone(),
                partitions: topic.partition_indexes.iter().map(one).collect(),
                ..Default::default()
            }
        });
        OffsetFetchResponseGroup { group_id: group.group_id.clone(), topics: topics.collect(), ..Default::default() }
    };
    OffsetFetchResponseData { groups: asked.groups.iter().map(group).collect(), ..Default::default() }
}

fn log<'a>(says: &'a Says, topic: &KafkaString, number: i32) -> &'a [Batch] {
    &says.topics[topic.as_str()].logs[usize::try_from(number).unwrap()]
}

fn end(log: &[Batch]) -> i64 {
    log.iter().map(|batch| i64::from(batch.offsets())).sum()
}

impl Batch {
    fn offsets(self) -> i32 {
        match self {
            Self::Records(count) | Self::Transactional(count) => count,
            Self::Marker => 1,
        }
    }

    /// The header of a batch of format 2, and a few bytes for the records.
    fn write(self, base: i64, out: &mut BytesMut) {
        let now = jiff::Timestamp::now().as_millisecond();
        let attributes = match self {
            Self::Records(_) => 0,
            Self::Transactional(_) => 0x10,
            Self::Marker => 0x30,
        };
        out.put_i64(base);
        out.put_i32(49 + 8);
        out.put_i32(0);
        out.put_i8(2);
        out.put_u32(0);
        out.put_i16(attributes);
        out.put_i32(self.offsets() - 1);
        out.put_i64(now - 9_000);
        out.put_i64(now);
        out.put_i64(7);
        out.put_i16(0);
        out.put_i32(0);
        out.put_i32(self.offsets());
        out.put_u64(0);
    }
}

fn offsets(asked: &ListOffsetsRequestData, says: &Says) -> ListOffsetsResponseData {
    let topic = |topic: &kacrab_protocol::generated::ListOffsetsTopic| {
        let one = |one: &kacrab_protocol::generated::ListOffsetsPartition| ListOffsetsPartitionResponse {
            partition_index: one.partition_index,
            timestamp: -1,
            offset: if one.timestamp == -2 { 0 } else { end(log(says, &topic.name, one.partition_index)) },
            ..Default::default()
        };
        ListOffsetsTopicResponse {
            name: topic.name.clone(),
            partitions: topic.partitions.iter().map(one).collect(),
            ..Default::default()
        }
    };
    ListOffsetsResponseData { topics: asked.topics.iter().map(topic).collect(), ..Default::default() }
}

fn fetch(asked: &FetchRequestData, says: &mut Says) -> FetchResponseData {
    says.fetches += 1;
    let topic = |topic: &kacrab_protocol::generated::fetch_request::FetchTopic| {
        let one = |one: &kacrab_protocol::generated::fetch_request::FetchPartition| {
            let log = log(says, &topic.topic, one.partition);
            let (mut base, mut records) = (0, BytesMut::new());
            for batch in log {
                let next = base + i64::from(batch.offsets());
                // A broker sends one page, which has room for a few batches here.
                if next > one.fetch_offset && records.len() < PAGE_BYTES {
                    batch.write(base, &mut records);
                }
                base = next;
            }
            PartitionData {
                partition_index: one.partition,
                high_watermark: base,
                last_stable_offset: base,
                aborted_transactions: Some(Vec::new()),
                preferred_read_replica: -1,
                records: Some(records.freeze()),
                ..Default::default()
            }
        };
        FetchableTopicResponse {
            topic: topic.topic.clone(),
            partitions: topic.partitions.iter().map(one).collect(),
            ..Default::default()
        }
    };
    FetchResponseData { responses: asked.topics.iter().map(topic).collect(), ..Default::default() }
}

fn configs(asked: &DescribeConfigsRequestData, says: &Says) -> DescribeConfigsResponseData {
    let one = |one: &kacrab_protocol::generated::DescribeConfigsResource| {
        let name = &one.resource_name;
        let result = DescribeConfigsResult { resource_type: 2, resource_name: name.clone(), ..Default::default() };
        match says.topics.get(name.as_str()).and_then(|topic| topic.policy) {
            None => DescribeConfigsResult { error_code: 29, ..result },
            Some(policy) => {
                let value = DescribeConfigsResourceResult {
                    name: text("cleanup.policy"),
                    value: Some(text(policy)),
                    ..Default::default()
                };
                DescribeConfigsResult { configs: vec![value], ..result }
            }
        }
    };
    DescribeConfigsResponseData { results: asked.resources.iter().map(one).collect(), ..Default::default() }
}

/// A topic that is not compacted, with these logs.
pub fn plain(logs: &[&[Batch]]) -> FalseTopic {
    FalseTopic { id: 1, logs: logs.iter().map(|log| log.to_vec()).collect(), policy: Some("delete") }
}

fn ask(name: &str, topics: &[&str], progress: Progress, reset_to_earliest: bool) -> Arc<Ask<Question>> {
    Arc::new(Ask {
        key: RunKey::unversioned("shop", name),
        uid: name.into(),
        generation: 1,
        read_store: None,
        checkpoint: None,
        question: Question {
            topics: topics.iter().map(|topic| Arc::from(*topic)).collect(),
            progress,
            isolation: Isolation::ReadCommitted,
            reset_to_earliest,
        },
    })
}

/// A Projection whose group keeps how far it has come, with `offsetReset: Earliest`.
pub fn of_group(group: &str, topics: &[&str]) -> Arc<Ask<Question>> {
    ask(group, topics, Progress::Group(group.into()), true)
}

/// A Projection whose offsets the read store holds.
pub fn of_store(name: &str, topics: &[&str]) -> Arc<Ask<Question>> {
    let of = RunKey::unversioned("shop", name);
    ask(name, topics, Progress::Stored { of, meaning: StoredOffset::NextToRead }, false)
}

pub type Answer = Result<Sample, MeasureError>;

/// One poll, with the answers in the order of what is asked; `stored` by partition as the read store names it.
pub async fn poll(probe: &mut KafkaProbe, asks: &[Arc<Ask<Question>>], stored: &[(&str, i64)]) -> Vec<Answer> {
    let checkpoint = Checkpoint {
        state: CheckpointState::Committed(stored.iter().map(|(_, offset)| Position(*offset)).collect()),
        shards: Some(stored.iter().map(|(shard, _)| Arc::from(*shard)).collect()),
        bound: None,
        failed: Vec::new(),
        parked: None,
        uncalled: Vec::new(),
    };
    let target = |ask: &Arc<Ask<Question>>| Target {
        ask: Arc::clone(ask),
        checkpoint: ask.question.progress.group().is_none().then(|| checkpoint.clone()),
    };
    let targets = asks.iter().map(target).collect();
    let mut answers = BTreeMap::new();
    let mut report = |ask: &Ask<Question>, answer| drop(answers.insert(ask.key.projection.name.clone(), answer));
    probe.measure(targets, Instant::now() + Duration::from_secs(20), &mut report).await;
    asks.iter().map(|ask| answers.remove(&ask.key.projection.name).unwrap()).collect()
}

/// The answer for one Projection.
pub async fn poll_one(probe: &mut KafkaProbe, one: &Arc<Ask<Question>>, stored: &[(&str, i64)]) -> Answer {
    poll(probe, std::slice::from_ref(one), stored).await.remove(0)
}
