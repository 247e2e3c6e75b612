//! Reads the events of topics in Kafka. The partitions are the shards, and no consumer group is joined: which worker reads which is the read store's matter.
//!
//! A position is the offset that is read next, as consumer groups commit it: an event's is one more than its offset, and 0 is before the first. Offsets without a
//! record (markers of transactions, records that were compacted away) are passed over.

mod buffer;
mod mirror;
mod records;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

pub(super) use self::records::layout;
use self::{
    buffer::{Budget, Buffer, Reached},
    mirror::Mirror,
    records::event_of,
};
use super::{
    super::{
        config::KafkaInput,
        error::ProjectorError,
        event::SourceIdentity,
        sharding::{Part, Sharding},
    },
    EventReader, Fetch, Fetched, Horizon, Range, Unreadable,
    mapping::Mapping,
};
use crate::{
    addresses::AddressRules,
    api::{KafkaIsolation, Reason},
    clients::kafka::{At, Client, Isolation, KafkaError, Partition, ReadFrom, Settings, Topic},
};

/// For all that is asked in one turn.
const DEADLINE: Duration = Duration::from_secs(5);
/// A broker that cannot be reached is left alone for so long, so that it does not hold up what others lead.
const AVOIDED: Duration = Duration::from_secs(10);
/// How often it is asked which partitions there are and who leads them; at once where a leader has moved.
const METADATA_EVERY: Duration = Duration::from_secs(5);
/// After a leader has moved it is asked no more often.
const METADATA_AGAIN: Duration = Duration::from_millis(250);
/// A batch of events ends where they reach this many bytes.
const MOST_BYTES: usize = 4 << 20;
/// So many records, with a handler or without, are looked at in one turn.
const MOST_RECORDS: usize = 20_000;
/// A batch of records and a broker's answer may have so many bytes, or twice as many as the largest event that is read.
const MOST_BATCH_BYTES: usize = 16 << 20;
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Connections to a cluster, with what was read and is not handled yet.
pub(in crate::projector) struct KafkaReader {
    client: Client,
    isolation: Isolation,
    names: BTreeSet<Arc<str>>,
    topics: BTreeMap<Arc<str>, Topic>,
    /// The first offset that was kept of each partition when it was first seen.
    starts: BTreeMap<Partition, i64>,
    /// In the order of the shards.
    logs: Vec<Log>,
    mapping: Mapping,
    mirror: Option<Mirror>,
    most_batch_bytes: usize,
    metadata_at: Instant,
    /// A leader has moved.
    stale: bool,
    /// There are more partitions than are numbered.
    grown: bool,
    /// Brokers that could not be reached, and until when they are not asked.
    avoided: HashMap<i32, Instant>,
    /// Which shard's events come first.
    turn: usize,
    warned: Option<Instant>,
}

/// A partition.
struct Log {
    partition: Partition,
    buffer: Buffer,
    /// The offset behind the last record that may be read, and behind the last that there is; absent before a broker has told.
    ends: Option<(i64, i64)>,
}

impl KafkaReader {
    /// Connects, and looks which partitions there are. `types` are the types of event that are wanted.
    pub(in crate::projector) async fn open(
        settings: Settings,
        input: &KafkaInput,
        max_event_bytes: u64,
        types: Vec<String>,
    ) -> Result<Self, ProjectorError> {
        let KafkaInput { topics, group, isolation, event } = input;
        let twice = usize::try_from(max_event_bytes.saturating_mul(2)).unwrap_or(usize::MAX);
        let most_batch_bytes = MOST_BATCH_BYTES.max(twice);
        let mirror = group.as_ref().map(|group| Mirror::start(settings.clone(), group)).transpose().map_err(failed)?;
        let client = Client::new(settings, Arc::new(AddressRules::everywhere())).map_err(failed)?;
        let mut reader = Self {
            client: client.with_replies_of(most_batch_bytes),
            isolation: match isolation {
                KafkaIsolation::ReadCommitted => Isolation::ReadCommitted,
                KafkaIsolation::ReadUncommitted => Isolation::ReadUncommitted,
            },
            names: topics.iter().map(|topic| Arc::from(topic.as_str())).collect(),
            topics: BTreeMap::new(),
            starts: BTreeMap::new(),
            logs: Vec::new(),
            mapping: Mapping::new(layout(event), types, max_event_bytes),
            mirror,
            most_batch_bytes,
            metadata_at: Instant::now(),
            stale: false,
            grown: false,
            avoided: HashMap::new(),
            turn: 0,
            warned: None,
        };
        let by = Instant::now() + DEADLINE;
        reader.topics = reader.metadata(by).await?;
        let leaders = reader.leaders()?;
        for (partition, start) in reader.client.offsets(At::Earliest, &leaders, by).await {
            reader.starts.insert(partition, start.map_err(failed)?.offset);
        }
        Ok(reader)
    }

    async fn metadata(&mut self, by: Instant) -> Result<BTreeMap<Arc<str>, Topic>, ProjectorError> {
        let found = self.client.topics(&self.names, by).await.map_err(failed)?;
        self.metadata_at = Instant::now();
        found.into_iter().map(|(name, topic)| Ok((name, topic.map_err(failed)?))).collect()
    }

    /// The leader of each partition.
    ///
    /// # Errors
    /// One has none.
    fn leaders(&self) -> Result<BTreeMap<Partition, i32>, ProjectorError> {
        let all = self.topics.iter().flat_map(|(name, topic)| topic.leaders.iter().map(move |one| (name, one)));
        let leaders = all.map(|(name, (number, leader))| match leader {
            Some(leader) => Ok(((name.clone(), *number), *leader)),
            None => Err(failed(KafkaError::no_leader(name, *number))),
        });
        leaders.collect()
    }

    /// Asks again which partitions there are and who leads them, where that is due.
    async fn refresh(&mut self, by: Instant) -> Result<(), ProjectorError> {
        let due = if self.stale { METADATA_AGAIN } else { METADATA_EVERY };
        if self.metadata_at.elapsed() < due {
            return Ok(());
        }
        let found = self.metadata(by).await?;
        self.stale = false;
        for (name, topic) in &found {
            let before = self.topics.get(name);
            if before.is_some_and(|before| before.id != topic.id) {
                // The next run compares it with what the read store holds.
                return Err(ProjectorError::Source(format!("topic {name} was deleted and created again")));
            }
        }
        let count =
            |topics: &BTreeMap<Arc<str>, Topic>| topics.values().map(|topic| topic.leaders.len()).sum::<usize>();
        self.grown |= count(&found) > count(&self.topics);
        self.topics = found;
        Ok(())
    }

    /// Asks for what comes next of these shards, where nothing is known of it.
    async fn fill(&mut self, shards: &[usize]) -> Result<(), ProjectorError> {
        let by = Instant::now() + DEADLINE;
        self.refresh(by).await?;
        self.avoided.retain(|_, until| *until > Instant::now());
        let mut wanted = BTreeMap::new();
        let mut first_failure = None;
        for log in shards.iter().filter_map(|shard| self.logs.get(*shard)).filter(|log| log.buffer.is_empty()) {
            let (name, number) = &log.partition;
            let Some(topic) = self.topics.get(name) else { continue };
            match topic.leaders.get(number).copied().flatten() {
                Some(leader) if self.avoided.contains_key(&leader) => {}
                Some(leader) => {
                    let from = ReadFrom { leader, topic: topic.id, offset: log.buffer.offset() };
                    wanted.insert(log.partition.clone(), from);
                }
                None => {
                    self.stale = true;
                    first_failure.get_or_insert_with(|| KafkaError::no_leader(name, *number));
                }
            }
        }
        let answers = self.client.read(self.isolation, &wanted, by).await;
        let (mut alone, mut told) = (BTreeMap::new(), 0);
        for (partition, answer) in answers {
            let Some(from) = wanted.get(&partition).copied() else { continue };
            match answer {
                Ok(sent) if sent.has_no_room() && wanted.len() > 1 => drop(alone.insert(partition, from)),
                Err(error) if error.oversized && wanted.len() > 1 => drop(alone.insert(partition, from)),
                answer => match self.take_in(&partition, from, answer, by).await? {
                    None => told += 1,
                    Some(error) => drop(first_failure.get_or_insert(error)),
                },
            }
        }
        // The first batch of an answer comes however large it is.
        for (partition, from) in alone {
            let one = BTreeMap::from([(partition.clone(), from)]);
            for (_, answer) in self.client.read(self.isolation, &one, by).await {
                match self.take_in(&partition, from, answer, by).await? {
                    None => told += 1,
                    Some(error) => drop(first_failure.get_or_insert(error)),
                }
            }
        }
        match first_failure {
            // The others go on; brokers and leaders are asked for again.
            Some(error) if told > 0 || error.code.is_some_and(|code| code.has_moved()) => {
                if self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                    self.warned = Some(Instant::now());
                    tracing::warn!("event source: some partitions cannot be read at present: {error}");
                }
                Ok(())
            }
            Some(error) => Err(failed(error)),
            None => Ok(()),
        }
    }

    /// Takes over a broker's answer. Returns a failure that is not the end of the others.
    async fn take_in(
        &mut self,
        partition: &Partition,
        from: ReadFrom,
        answer: Result<crate::clients::kafka::Sent, KafkaError>,
        by: Instant,
    ) -> Result<Option<KafkaError>, ProjectorError> {
        let most = self.most_batch_bytes;
        let out_of_range = |error: &KafkaError| error.code.is_some_and(|code| code.is_out_of_range());
        let (ends, content) = match answer {
            Ok(sent) => ((sent.end, sent.high_watermark), Ok(sent)),
            Err(error) if error.oversized => {
                let why = format!(
                    "the batch of records that begins there has more than {most} bytes: raise spec.projector.builtin.maxEventBytes to more than half of what it has, and the workers' memory to six times as much"
                );
                ((i64::MAX, i64::MAX), Err(Some(why)))
            }
            Err(error) if out_of_range(&error) => match self.bounds(partition, from.leader, by).await? {
                (start, end) if from.offset < start => ((end, end), Err(Some(lost(partition, from.offset, start)))),
                // The log ends before the checkpoint: the worker says so.
                (_, end) => ((end, end), Err(None)),
            },
            Err(error) => {
                let gone = error.code.is_some_and(|code| code.has_moved() || code.is_unknown_topic());
                let lost = [Reason::ConnectionRefused, Reason::TimedOut].contains(&error.reason);
                if error.code.is_none() && !lost {
                    return Err(failed(error));
                }
                self.stale |= gone || lost;
                if lost {
                    self.avoided.insert(from.leader, Instant::now() + AVOIDED);
                }
                return Ok(Some(error));
            }
        };
        if let Some(log) = self.logs.iter_mut().find(|log| log.partition == *partition) {
            log.ends = Some(ends);
            match content {
                Ok(sent) => log.buffer.fill(sent),
                Err(Some(why)) => log.buffer.spoil(why),
                Err(None) => {}
            }
        }
        Ok(None)
    }

    /// The first offset that is kept of a partition, and the one behind the last.
    async fn bounds(&mut self, partition: &Partition, leader: i32, by: Instant) -> Result<(i64, i64), ProjectorError> {
        let asked = BTreeMap::from([(partition.clone(), leader)]);
        let mut found = Vec::new();
        for at in [At::Earliest, At::Latest(self.isolation)] {
            let answer = self.client.offsets(at, &asked, by).await.remove(partition);
            let answer = answer.unwrap_or_else(|| Err(KafkaError::not_told(&format!("topic {}", partition.0))));
            found.push(answer.map_err(failed)?.offset);
        }
        Ok((found[0], found[1]))
    }

    /// Shards with something to read, as their numbers, the offset to begin with and the one to end before.
    fn wanted(&self, range: &Range) -> Vec<(usize, i64, i64)> {
        let bounds = range.after.iter().zip(&range.until).enumerate().take(self.logs.len());
        bounds
            .filter(|(_, (after, until))| after < until)
            .map(|(shard, (after, until))| (shard, *after, *until))
            .collect()
    }
}

fn lost((topic, number): &Partition, offset: i64, start: i64) -> String {
    format!(
        "the records from offset {offset} to {last} of partition {number} of topic {topic} were deleted before they were handled (by the topic's retention, or by hand), and the first that is kept is {start}. Nothing is passed over in silence: rebuild the read model from another source, or go on without them by setting the checkpoint of {topic}-{number} in the read store to {start}",
        last = start - 1
    )
}

fn failed(error: KafkaError) -> ProjectorError {
    ProjectorError::Source(error.message)
}

/// The name of a partition, as Kafka's own tools write it.
fn name((topic, number): &Partition) -> String {
    format!("{topic}-{number}")
}

impl EventReader for KafkaReader {
    fn sharding(&self) -> Sharding {
        let parts = self.topics.iter().flat_map(|(name, topic)| {
            let identity = (topic.id != [0; 16]).then(|| topic.id.iter().map(|byte| format!("{byte:02x}")).collect());
            topic.leaders.keys().map(move |number| (name, *number, identity.clone()))
        });
        let parts = parts.map(|(topic, number, identity): (_, _, Option<String>)| {
            let partition = (topic.clone(), number);
            let start = self.starts.get(&partition).copied().unwrap_or_default();
            Part { name: name(&partition).into(), identity: identity.map(Arc::from), start }
        });
        Sharding::Parts(parts.collect())
    }

    fn number(&mut self, parts: &[Arc<str>]) {
        let known: HashMap<String, Partition> =
            self.starts.keys().map(|partition| (name(partition), partition.clone())).collect();
        let of = |part: &Arc<str>| known.get(&**part).cloned();
        let partitions = parts.iter().filter_map(of);
        self.logs = partitions.map(|partition| Log { partition, buffer: Buffer::default(), ends: None }).collect();
    }

    fn place(&self, shard: u32, position: i64) -> String {
        match self.logs.get(shard as usize) {
            Some(Log { partition: (topic, number), .. }) => {
                format!("offset {} of partition {number} of topic {topic}", position.saturating_sub(1))
            }
            None => format!("offset {}", position.saturating_sub(1)),
        }
    }

    fn notifies(&self) -> bool {
        false
    }

    async fn identity(&mut self) -> Result<SourceIdentity, ProjectorError> {
        Ok(SourceIdentity { place: "topics in Kafka".to_owned(), server: self.client.cluster().map(str::to_owned) })
    }

    async fn look(&mut self, reached: &[(u32, i64)]) -> Result<Horizon, ProjectorError> {
        let nothing = vec![i64::MIN; self.logs.len()];
        let shards: Vec<usize> = reached.iter().map(|(shard, _)| *shard as usize).collect();
        // Of what is another worker's nothing is kept.
        for (_, log) in self.logs.iter_mut().enumerate().filter(|(shard, _)| !shards.contains(shard)) {
            log.buffer.clear();
            log.ends = None;
        }
        for (shard, position) in reached {
            if let Some(log) = self.logs.get_mut(*shard as usize) {
                log.buffer.forward(*position);
                // All of what it was told before is handled.
                if log.ends.is_none_or(|(end, _)| end <= *position) {
                    log.buffer.clear();
                    log.ends = None;
                }
            }
        }
        self.fill(&shards).await?;
        let (mut safe, mut head) = (nothing.clone(), nothing);
        for (shard, position) in reached {
            let log = self.logs.get(*shard as usize);
            let ends = log.and_then(|log| log.ends).unwrap_or((*position, *position));
            if let (Some(safe), Some(head)) = (safe.get_mut(*shard as usize), head.get_mut(*shard as usize)) {
                (*safe, *head) = ends;
            }
        }
        Ok(Horizon { safe, head, blocked_by: None, grown: self.grown })
    }

    async fn fetch(&mut self, range: &Range, limit: usize) -> Result<Fetch, ProjectorError> {
        let mut wanted = self.wanted(range);
        if wanted.is_empty() {
            return Ok(Fetch::Nothing);
        }
        for (shard, after, _) in &wanted {
            self.logs[*shard].buffer.forward(*after);
        }
        // A batch that is undone is finished first, so that few are kept; else none always comes last.
        self.turn = self.turn.wrapping_add(1);
        let begun = wanted.iter().position(|(shard, ..)| self.logs[*shard].buffer.is_begun());
        let begin = begun.unwrap_or(self.turn % wanted.len());
        wanted.rotate_left(begin);
        match self.take(&wanted, limit) {
            Fetch::Nothing => {}
            found => return Ok(found),
        }
        let shards: Vec<usize> = wanted.iter().map(|(shard, ..)| *shard).collect();
        self.fill(&shards).await?;
        Ok(self.take(&wanted, limit))
    }

    async fn woken(&mut self) {
        std::future::pending::<()>().await;
    }

    fn has_parts(&self) -> bool {
        true
    }

    fn released(&mut self, shard: u32) {
        if let (Some(mirror), Some(log)) = (&self.mirror, self.logs.get(shard as usize)) {
            mirror.released(&log.partition);
        }
    }

    fn committed(&mut self, shard: u32, position: i64) {
        if let (Some(mirror), Some(log)) = (&self.mirror, self.logs.get(shard as usize)) {
            mirror.committed(&log.partition, position);
        }
    }

    async fn finish(&mut self) {
        if let Some(mirror) = self.mirror.take() {
            mirror.finish().await;
        }
    }
}

impl KafkaReader {
    /// Takes events out of what was sent.
    fn take(&mut self, wanted: &[(usize, i64, i64)], limit: usize) -> Fetch {
        let mut budget = Budget { events: limit, bytes: MOST_BYTES, records: MOST_RECORDS };
        let (mut events, mut reach) = (Vec::new(), vec![i64::MIN; self.logs.len()]);
        let mut moved = false;
        for (shard, after, until) in wanted.iter().copied() {
            let number = u32::try_from(shard).unwrap_or(u32::MAX);
            let read = |record: &_| event_of(&self.mapping, record, number);
            let buffer = &mut self.logs[shard].buffer;
            match buffer.take(until, self.most_batch_bytes, &mut budget, read, &mut events) {
                Reached::Until(offset) => {
                    moved |= offset > after;
                    reach[shard] = offset;
                }
                Reached::Unreadable(offset, why) => {
                    let position = offset.saturating_add(1);
                    // It is read again when it is tried again: it may have been mended or removed.
                    self.logs[shard].buffer.clear();
                    return Fetch::Unreadable(Unreadable {
                        position,
                        shard: number,
                        why,
                        stream: None,
                        is_alone_there: true,
                    });
                }
            }
        }
        if moved { Fetch::Events(Fetched { events, reach, cut: false }) } else { Fetch::Nothing }
    }
}
