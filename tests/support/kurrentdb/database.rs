//! What the fake server holds: streams, the log of all events, and persistent subscriptions that write their checkpoints when a real server would.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use prost::Message as _;

use super::protos::{
    AllOption, ConnectionInfo, Content, CountOption, Filter, FilterOption, Options, ReadEvent, ReadPosition, ReadResp,
    RecordedEvent, RevisionOption, StreamIdentifier, StreamNotFound, StreamOption, SubscriptionInfo, Uuid,
};

/// An event as the log holds it.
#[derive(Clone)]
pub struct Event {
    pub stream: String,
    pub kind: String,
    pub revision: u64,
    pub commit: u64,
    /// Another one than `commit` where several events were written in one explicit transaction.
    pub prepare: u64,
    pub created: jiff::Timestamp,
    pub data: Vec<u8>,
    pub is_json: bool,
}

/// The type of links, whose body is `REVISION@STREAM`.
const LINK: &str = "$>";

#[derive(Clone, Default)]
pub struct Stream {
    events: Vec<Event>,
    /// Events before this revision are gone.
    pub kept_from: u64,
    /// It was deleted, and nothing was appended since.
    deleted: bool,
}

/// Why a read is refused: gRPC status and the value of the header `exception`.
pub type Refused = (u32, &'static str);

#[derive(Default)]
pub struct Database {
    streams: HashMap<String, Stream>,
    log: Vec<Event>,
    /// Commit positions of all events that there ever were.
    places: BTreeSet<u64>,
    end: u64,
    /// Whether `$by_category` runs: each event of a stream such as `order-1` gets a link in `$ce-order`.
    pub links_categories: bool,
    pub groups: BTreeMap<(String, String), Group>,
    pub tombstones: HashSet<String>,
    /// Streams that the user may not read.
    pub secret: HashSet<String>,
    /// As before EventStoreDB 21.10.
    pub tells_no_end: bool,
}

impl Database {
    pub fn append(&mut self, stream: &str, count: usize, created: jiff::Timestamp) {
        self.append_sized(stream, "event", count, created, 200);
    }

    pub fn append_sized(&mut self, stream: &str, kind: &str, count: usize, created: jiff::Timestamp, size: usize) {
        for _ in 0..count {
            self.put(stream, kind, &vec![b'x'; size], true, created);
        }
    }

    /// Appends an event with this body. Returns its commit position.
    pub fn put(&mut self, stream: &str, kind: &str, data: &[u8], is_json: bool, created: jiff::Timestamp) -> u64 {
        self.end += 100 + u64::try_from(data.len()).unwrap();
        let commit = self.end;
        self.put_at(commit, stream, kind, data, is_json, created);
        commit
    }

    /// Appends events in one explicit transaction, as the old TCP protocol did. Returns their commit position.
    pub fn put_together(&mut self, stream: &str, kind: &str, bodies: &[&[u8]], created: jiff::Timestamp) -> u64 {
        self.end += 1_000;
        for data in bodies {
            self.put_at(self.end, stream, kind, data, true, created);
            self.log.last_mut().unwrap().prepare = self.end - 500;
        }
        self.end
    }

    fn put_at(&mut self, commit: u64, stream: &str, kind: &str, data: &[u8], is_json: bool, created: jiff::Timestamp) {
        let category = stream.split_once('-').filter(|_| self.links_categories && !stream.starts_with('$'));
        let category = category.map(|(category, _)| format!("$ce-{category}"));
        let kept = self.streams.entry(stream.to_owned()).or_default();
        let revision = u64::try_from(kept.events.len()).unwrap();
        if std::mem::take(&mut kept.deleted) {
            kept.kept_from = revision;
        }
        let (name, kind, data) = (stream.to_owned(), kind.to_owned(), data.to_vec());
        let event = Event { stream: name, kind, revision, commit, prepare: commit, created, data, is_json };
        kept.events.push(event.clone());
        self.log.push(event);
        self.places.insert(commit);
        for group in self.groups.values_mut().filter(|group| group.stream == stream || group.stream == "$all") {
            group.hear(if group.stream == "$all" { commit } else { revision });
        }
        if let Some(category) = category {
            self.put(&category, LINK, format!("{revision}@{stream}").as_bytes(), false, created);
        }
    }

    /// As `$tb`, `$maxCount` and `$maxAge` do.
    pub fn truncate(&mut self, stream: &str, kept_from: u64) {
        self.streams.get_mut(stream).unwrap().kept_from = kept_from;
    }

    /// As a soft deletion does.
    pub fn delete(&mut self, stream: &str) {
        let kept = self.streams.get_mut(stream).unwrap();
        (kept.deleted, kept.kept_from) = (true, u64::try_from(kept.events.len()).unwrap());
    }

    /// Removes from the log what is gone from its streams.
    pub fn scavenge(&mut self) {
        let Self { log, streams, tombstones, .. } = self;
        log.retain(|event| event.revision >= streams[&event.stream].kept_from && !tombstones.contains(&event.stream));
    }

    /// Events of this type by the streams that they were appended to: commit positions, in their order.
    pub fn commits(&self, kind: &str) -> BTreeMap<String, Vec<i64>> {
        let mut found: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for event in self.log.iter().filter(|event| event.kind == kind) {
            found.entry(event.stream.clone()).or_default().push(i64::try_from(event.commit).unwrap());
        }
        found
    }

    /// Events of this type by the streams that they were appended to: revisions of their links in this stream, in their order.
    pub fn links(&self, links: &str, kind: &str) -> BTreeMap<String, Vec<i64>> {
        let mut found: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for link in &self.streams[links].events {
            if let Some(event) = self.target(link).filter(|event| event.kind == kind) {
                found.entry(event.stream.clone()).or_default().push(i64::try_from(link.revision).unwrap());
            }
        }
        found
    }

    /// There is, or was, an event at this commit position.
    pub fn is_place(&self, commit: i64) -> bool {
        u64::try_from(commit).is_ok_and(|commit| self.places.contains(&commit))
    }

    /// What a link leads to, where that is still there.
    fn target(&self, link: &Event) -> Option<&Event> {
        let (revision, stream) = std::str::from_utf8(&link.data).unwrap().split_once('@').unwrap();
        let stream = self.streams.get(stream).filter(|_| !self.tombstones.contains(stream))?;
        let revision: u64 = revision.parse().unwrap();
        stream.events.get(usize::try_from(revision).unwrap()).filter(|event| event.revision >= stream.kept_from)
    }

    /// A restored backup, or another server of the same name.
    pub fn forget_after(&mut self, stream: &str, count: usize) {
        self.streams.get_mut(stream).unwrap().events.truncate(count);
    }

    pub fn commit_of(&self, stream: &str, revision: usize) -> i64 {
        i64::try_from(self.streams[stream].events[revision].commit).unwrap()
    }

    /// The message that tells this event.
    pub fn message(&self, stream: &str, revision: usize) -> Vec<u8> {
        let event = &self.streams[stream].events[revision];
        ReadResp { content: Some(told(Some(event), None)) }.encode_to_vec()
    }

    pub fn group(&mut self, stream: &str, group: &str) -> &mut Group {
        self.groups.entry((stream.to_owned(), group.to_owned())).or_insert_with(|| Group::new(stream, group))
    }

    /// Lets a subscription read as much as its buffer takes.
    pub fn pull(&mut self, stream: &str, group: &str) {
        let places: Vec<u64> = if stream == "$all" {
            self.log.iter().map(|event| event.commit).collect()
        } else {
            self.streams
                .get(stream)
                .map(|stream| stream.events.iter().map(|event| event.revision).collect())
                .unwrap_or_default()
        };
        self.group(stream, group).pull(&places);
    }

    pub fn read(&self, options: &Options) -> Result<Vec<ReadResp>, Refused> {
        const INVALID: Refused = (3, "");
        if options.uuid_option.is_none() || options.filter_option.is_none() {
            return Err(INVALID);
        }
        let Some(CountOption::Count(count)) = options.count_option else { return Err(INVALID) };
        let count = usize::try_from(count).unwrap();
        let answer = |content| ReadResp { content: Some(content) };
        match options.stream_option.as_ref().ok_or(INVALID)? {
            StreamOption::Stream(wanted) => {
                let identifier = wanted.stream_identifier.clone().ok_or(INVALID)?;
                let name = String::from_utf8(identifier.stream_name.clone()).unwrap();
                let Some(RevisionOption::Revision(from)) = wanted.revision_option else { return Err(INVALID) };
                if self.secret.contains(&name) {
                    return Err((7, "access-denied"));
                }
                if self.tombstones.contains(&name) {
                    return Err((9, "stream-deleted"));
                }
                let Some(stream) =
                    self.streams.get(&name).filter(|stream| !stream.events.is_empty() && !stream.deleted)
                else {
                    return Ok(vec![answer(Content::StreamNotFound(StreamNotFound {
                        stream_identifier: Some(identifier),
                    }))]);
                };
                let beyond = stream.events.iter().filter(|event| event.revision >= from.max(stream.kept_from));
                let mut answers: Vec<ReadResp> =
                    beyond.take(count).map(|event| answer(self.resolved(event, options))).collect();
                let level = options.control_option.as_ref().map_or(0, |control| control.compatibility);
                if level >= 1 && !self.tells_no_end {
                    if answers.is_empty() && from < stream.kept_from {
                        answers.push(answer(Content::FirstStreamPosition(stream.kept_from)));
                    }
                    let last = stream.events.last().unwrap().revision;
                    answers.push(answer(Content::LastStreamPosition(last)));
                }
                Ok(answers)
            }
            StreamOption::All(wanted) => {
                if self.secret.contains("$all") {
                    return Err((7, "access-denied"));
                }
                assert!(!options.resolve_links, "what links lead to is in $all itself");
                let passes = |event: &&Event| match options.filter_option.as_ref().unwrap() {
                    FilterOption::NoFilter(_) => true,
                    FilterOption::Filter(filter) => {
                        assert!(filter.window.is_some(), "the server insists on a window");
                        match filter.filter.as_ref().unwrap() {
                            Filter::EventType(by) if by.regex == "^[^\\$].*" => !event.kind.starts_with('$'),
                            Filter::EventType(by) => by.prefix.iter().any(|prefix| event.kind.starts_with(prefix)),
                            Filter::StreamIdentifier(by) => {
                                by.prefix.iter().any(|prefix| event.stream.starts_with(prefix))
                            }
                        }
                    }
                };
                let events: Box<dyn Iterator<Item = &Event> + '_> = match wanted.all_option.as_ref().ok_or(INVALID)? {
                    AllOption::End(_) if options.read_direction == 1 => Box::new(self.log.iter().rev()),
                    AllOption::Start(_) if options.read_direction == 0 => Box::new(self.log.iter()),
                    AllOption::Position(from) if options.read_direction == 0 => {
                        // A real server reads what is at that byte, or comes next where that was removed.
                        if !self.places.contains(&from.commit_position) {
                            return Err((3, ""));
                        }
                        let first = self.log.partition_point(|event| event.commit < from.commit_position);
                        Box::new(self.log[first..].iter())
                    }
                    _ => return Err(INVALID),
                };
                Ok(events.filter(passes).take(count).map(|event| answer(told(Some(event), None))).collect())
            }
        }
    }

    /// The event of a stream, with links followed where that is asked for.
    fn resolved(&self, event: &Event, options: &Options) -> Content {
        if options.resolve_links && event.kind == LINK {
            return told(self.target(event), Some(event));
        }
        told(Some(event), None)
    }

    pub fn subscriptions(&self) -> Vec<SubscriptionInfo> {
        self.groups.values().map(Group::info).collect()
    }
}

fn told(event: Option<&Event>, link: Option<&Event>) -> Content {
    let read = link.or(event).unwrap();
    Content::Event(ReadEvent {
        event: event.map(recorded),
        link: link.map(recorded),
        position: Some(ReadPosition::CommitPosition(read.commit)),
    })
}

fn recorded(event: &Event) -> RecordedEvent {
    let ticks = event.created.as_nanosecond() / 100;
    let content_type = if event.is_json { "application/json" } else { "application/octet-stream" };
    let metadata =
        [("type", event.kind.clone()), ("created", ticks.to_string()), ("content-type", content_type.to_owned())];
    RecordedEvent {
        id: Some(Uuid { string: "4ee24a30-8d52-4d52-b7a5-5e0d4d4c4a43".to_owned() }),
        stream_identifier: Some(StreamIdentifier { stream_name: event.stream.clone().into_bytes() }),
        stream_revision: event.revision,
        prepare_position: event.prepare,
        commit_position: event.commit,
        metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into(),
        custom_metadata: b"{}".to_vec(),
        data: event.data.clone(),
    }
}

/// A persistent subscription, which hands out events and writes checkpoints as `PersistentSubscription.cs` of KurrentDB does.
pub struct Group {
    pub stream: String,
    name: String,
    pub start_from: Option<u64>,
    pub buffer_size: usize,
    min_check_point_count: usize,
    live: bool,
    pub ready: bool,
    buffer: VecDeque<u64>,
    retry: VecDeque<u64>,
    outstanding: BTreeSet<u64>,
    /// The last that was read or heard of.
    known: Option<u64>,
    pulled: Option<u64>,
    /// All that were handed out, in their order.
    pushed: Vec<u64>,
    checkpoint: Option<u64>,
    /// Index into `pushed` of what the checkpoint is at.
    written: usize,
    total: i64,
    pub parked: i64,
    pub consumers: usize,
}

impl Group {
    fn new(stream: &str, name: &str) -> Self {
        Self {
            stream: stream.to_owned(),
            name: name.to_owned(),
            start_from: None,
            buffer_size: 500,
            min_check_point_count: 10,
            live: false,
            ready: true,
            buffer: VecDeque::new(),
            retry: VecDeque::new(),
            outstanding: BTreeSet::new(),
            known: None,
            pulled: None,
            pushed: Vec::new(),
            checkpoint: None,
            written: 0,
            total: 0,
            parked: 0,
            consumers: 1,
        }
    }

    fn pull(&mut self, places: &[u64]) {
        let from = self.pulled.or(self.checkpoint);
        let first = self.start_from.unwrap_or_default();
        for place in places.iter().filter(|place| from.is_none_or(|from| **place > from) && **place >= first) {
            if self.buffer.len() >= self.buffer_size {
                return;
            }
            self.buffer.push_back(*place);
            (self.pulled, self.known) = (Some(*place), self.known.max(Some(*place)));
        }
        self.live = true;
    }

    fn hear(&mut self, place: u64) {
        self.known = Some(place);
        if self.live {
            self.live = self.buffer.len() < self.buffer_size;
        }
        if self.live {
            self.buffer.push_back(place);
            self.pulled = Some(place);
        }
    }

    /// Consumers take so many; returns them.
    pub fn push(&mut self, count: usize) -> Vec<u64> {
        let mut taken = Vec::new();
        for _ in 0..count {
            let again = self.retry.pop_front();
            let Some(place) = again.or_else(|| self.buffer.pop_front()) else { break };
            if again.is_none() {
                self.pushed.push(place);
            }
            self.outstanding.insert(place);
            self.total += 1;
            taken.push(place);
        }
        taken
    }

    pub fn acknowledge(&mut self, places: &[u64]) {
        for place in places {
            assert!(self.outstanding.remove(place));
        }
    }

    /// Consumers give these back.
    pub fn retry(&mut self, places: &[u64]) {
        self.acknowledge(places);
        self.retry.extend(places);
    }

    /// The server's clock ticks: the checkpoint is written, where enough was handled.
    pub fn tick(&mut self) {
        let lowest = self.outstanding.iter().chain(&self.retry).min();
        let done =
            lowest.map_or(self.pushed.len(), |lowest| self.pushed.iter().position(|place| place == lowest).unwrap());
        if done >= self.written + self.min_check_point_count {
            self.checkpoint = Some(self.pushed[done - 1]);
            self.written = done;
        }
    }

    fn info(&self) -> SubscriptionInfo {
        let all = self.stream == "$all";
        let text = |place: Option<u64>| match place {
            None => String::new(),
            Some(place) if all => format!("C:{place}/P:{place}"),
            Some(place) => place.to_string(),
        };
        let count = |number: usize| i32::try_from(number).unwrap();
        let status = match (self.ready, self.live) {
            (false, _) => "NotReady",
            (_, true) => "Live",
            (_, false) => "Behind, OutstandingPageRequest",
        };
        SubscriptionInfo {
            event_source: self.stream.clone(),
            group_name: self.name.clone(),
            status: status.to_owned(),
            total_items: self.total,
            last_checkpointed_event_position: text(self.checkpoint),
            last_known_event_position: text(self.known),
            start_from: text(Some(self.start_from.unwrap_or_default())),
            min_check_point_count: count(self.min_check_point_count),
            max_check_point_count: 1_000,
            read_buffer_count: count(self.buffer.len()),
            live_buffer_count: 17,
            retry_buffer_count: count(self.retry.len()),
            outstanding_messages_count: count(self.outstanding.len()),
            total_in_flight_messages: count(self.outstanding.len()),
            parked_message_count: self.parked,
            connections: vec![
                ConnectionInfo {
                    from: "10.0.0.1:5000".to_owned(),
                    username: "shop".to_owned(),
                    in_flight_messages: 1
                };
                self.consumers
            ],
            named_consumer_strategy: "RoundRobin".to_owned(),
            ..SubscriptionInfo::default()
        }
    }
}
