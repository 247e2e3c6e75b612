//! Checkpoints in documents of Elasticsearch or OpenSearch: those of all projections in one `_mget`, which reads what was just written.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    sync::Arc,
};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::{BEFORE_ALL, Checkpoint, uncalled};
use crate::{
    addresses::AddressRules,
    api::{CheckpointRows, DocumentLocation, DocumentPart, Reason},
    clients::{
        blamed::Blamed,
        elasticsearch::{Client, ConnectionIdentity, error_type, is_too_large, refusal},
    },
    lag::{CheckpointState, FailedEvent, Position},
    measure::MeasureError,
    names::search_state,
};

/// So many documents are asked for in one request, unless the answers turn out to be too large.
const AT_ONCE: usize = 1_000;
/// After halving, each read asks for this part more at once: one in some dozen reads finds out that it is too much again.
const GROWTH: usize = 16;
/// So many requests of one read are repeated in halves, since the answer was too large: enough to find two documents of a thousand.
const MOST_HALVED: usize = 20;
/// So many failed events of a projection are told,
const MOST_FAILED: usize = 8;
/// with so many characters each.
const LONGEST_FAILURE: usize = 500;
/// More fields of an object are not read as shards.
const MOST_SHARDS: usize = 20_000;

/// The shards of so many projections are remembered.
const MOST_REMEMBERED: usize = 10_000;

type Answers = HashMap<DocumentLocation, Result<Checkpoint, MeasureError>>;

/// A server that checkpoints are read from, over one connection. Its health is asked over a second one, since a node that hangs delays the statistics of
/// all nodes, and must not delay the checkpoints.
pub struct ElasticsearchStore {
    identity: ConnectionIdentity,
    client: Mutex<Client>,
    pub(super) health: Mutex<Client>,
    memory: Mutex<Memory>,
}

/// What is kept from read to read.
struct Memory {
    /// So many documents are asked for in one request.
    at_once: usize,
    /// Documents that are too large on their own.
    blamed: Blamed<DocumentLocation>,
    /// The documents of shards that workers of the built-in projector keep, where they are not those that the place tells.
    shards: HashMap<DocumentLocation, Vec<String>>,
}

impl Memory {
    fn shards(&self, location: &DocumentLocation) -> Vec<String> {
        self.shards.get(location).cloned().unwrap_or_else(|| expected_shards(location))
    }

    /// Notes which documents there are; returns whether they are others than those that were asked for.
    fn learn(&mut self, location: &DocumentLocation, asked: &[String], documents: &[Value]) -> bool {
        let told = match (&location.part, documents.first()) {
            (DocumentPart::Builtin, Some(header)) => told_shards(location, header),
            _ => None,
        };
        let Some(told) = told.filter(|told| told != asked) else { return false };
        if self.shards.len() > MOST_REMEMBERED {
            self.shards.clear();
        }
        self.shards.insert(location.clone(), told);
        true
    }
}

impl fmt::Debug for ElasticsearchStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ElasticsearchStore({})", self.identity.settings())
    }
}

impl ElasticsearchStore {
    /// Connects with the first read. `addresses`: which may be asked.
    pub fn new(identity: ConnectionIdentity, addresses: Arc<AddressRules>) -> Self {
        let client = |addresses| Mutex::new(Client::new(identity.settings().clone(), addresses));
        let (health, client) = (client(Arc::clone(&addresses)), client(addresses));
        let memory = Mutex::new(Memory { at_once: AT_ONCE, blamed: Blamed::default(), shards: HashMap::new() });
        Self { client, health, memory, identity }
    }

    /// The server and the user.
    pub fn identity(&self) -> &ConnectionIdentity {
        &self.identity
    }

    /// Asks the server, as [`Client::ask`] does. Failures say where.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: String,
        body: Option<&Value>,
        by: Instant,
    ) -> Result<(StatusCode, Value), MeasureError> {
        self.ask_there(method, path, body, by).await.map_err(|error| self.at(&error))
    }

    async fn ask_there(
        &self,
        method: Method,
        path: String,
        body: Option<&Value>,
        by: Instant,
    ) -> Result<(StatusCode, Value), MeasureError> {
        match timeout_at(by, self.client.lock()).await {
            Ok(mut client) => client.ask(method, path, body, by).await,
            Err(_) => Err(MeasureError {
                reason: Reason::TimedOut,
                message: "the server has not answered an earlier question in time".to_owned(),
            }),
        }
    }

    /// The same failure, with where it was.
    pub(super) fn at(&self, error: &MeasureError) -> MeasureError {
        MeasureError { reason: error.reason, message: format!("{}: {}", self.identity.settings(), error.message) }
    }

    /// Reads the checkpoints at `locations` before `deadline`. What cannot be read of one does not affect the others: documents whose answer is too large are
    /// asked for in halves, and one that is too large on its own is asked for alone from then on, and of several such one at each read.
    pub(super) async fn read(&self, locations: &[DocumentLocation], deadline: Instant) -> Answers {
        let mut answers = Answers::new();
        let (mut parts, at_once) = {
            let mut memory = self.memory.lock().await;
            let (first, last) = memory.blamed.part(locations);
            for location in last.iter().skip(1) {
                let why = memory.blamed.why(location).cloned().unwrap_or_else(|| invalid("it is too large"));
                answers.insert((*location).clone(), Err(why));
            }
            let size = |location: &DocumentLocation| 1 + memory.shards(location).len();
            let mut parts = parts(&first, size, memory.at_once);
            parts.extend(last.first().map(|location| vec![*location]));
            (parts, memory.at_once)
        };
        let requests = parts.len();
        let (mut halved, mut is_one_to_blame, mut again) = (0, false, HashSet::new());
        while let Some(mut part) = parts.pop_front() {
            let shards: Vec<Vec<String>> = {
                let memory = self.memory.lock().await;
                part.iter().map(|location| memory.shards(location)).collect()
            };
            let found = self.documents(&part, &shards, deadline).await;
            let is_too_large = found.as_ref().is_err_and(is_too_large);
            if is_too_large && part.len() > 1 && halved < MOST_HALVED {
                halved += 1;
                let rest = part.split_off(part.len() / 2);
                parts.push_front(rest);
                parts.push_front(part);
                continue;
            }
            let mut memory = self.memory.lock().await;
            for (place, location) in part.iter().copied().enumerate() {
                if let Ok(documents) = &found
                    && memory.learn(location, &shards[place], &documents[place])
                    && again.insert(location)
                {
                    parts.push_back(vec![location]);
                    continue;
                }
                let answer = match &found {
                    Ok(documents) => interpret(location, &documents[place]).map_err(|error| about(location, &error)),
                    Err(error) if part.len() == 1 => Err(about(location, error)),
                    Err(error) => Err(error.clone()),
                };
                let answer = answer.map_err(|error| self.at(&error));
                match &answer {
                    Err(why) if is_too_large && part.len() == 1 => {
                        is_one_to_blame = true;
                        memory.blamed.blame(location, why);
                    }
                    _ if found.is_ok() => memory.blamed.clear(location),
                    _ => {}
                }
                answers.insert(location.clone(), answer);
            }
        }
        // Where there are more parts than may be halved, trying a larger size could cost the rest their answers.
        if halved > 0 || requests <= MOST_HALVED {
            self.memory.lock().await.at_once = next_at_once(at_once, halved > 0, is_one_to_blame);
        }
        answers
    }

    /// What the server says of the documents of each of these places.
    async fn documents(
        &self,
        part: &[&DocumentLocation],
        shards: &[Vec<String>],
        deadline: Instant,
    ) -> Result<Vec<Vec<Value>>, MeasureError> {
        let asked: Vec<Vec<Value>> =
            part.iter().zip(shards).map(|(location, shards)| asked(location, shards)).collect();
        let sizes: Vec<usize> = asked.iter().map(Vec::len).collect();
        let (docs, count) = (asked.concat(), sizes.iter().sum::<usize>());
        let body = json!({ "docs": docs });
        let (status, mut answer) = self.ask_there(Method::POST, "/_mget".to_owned(), Some(&body), deadline).await?;
        match answer.get_mut("docs").map(Value::take) {
            Some(Value::Array(docs)) if status == StatusCode::OK && docs.len() == count => {
                let mut docs = docs.into_iter();
                Ok(sizes.into_iter().map(|size| docs.by_ref().take(size).collect()).collect())
            }
            _ => Err(refusal(status, &answer)),
        }
    }
}

/// Which documents are asked for, and what of them. `shards` are those that workers of the built-in projector keep.
fn asked(DocumentLocation { index, id, part, rows: _ }: &DocumentLocation, shards: &[String]) -> Vec<Value> {
    match part {
        DocumentPart::Field(field) => vec![json!({ "_index": index, "_id": id, "_source": [field] })],
        DocumentPart::Inbox => vec![json!({ "_index": index, "_id": id, "_source": [search_state::FAILED] })],
        DocumentPart::Builtin => {
            let of_all = [search_state::SHARDS, search_state::PARTS];
            let of_shard = [search_state::POSITION, search_state::FAILURE, search_state::FENCE, search_state::UNCALLED];
            let mut all = vec![json!({ "_index": index, "_id": id, "_source": of_all })];
            all.extend(shards.iter().map(|id| json!({ "_index": index, "_id": id, "_source": of_shard })));
            all
        }
    }
}

/// The documents of shards that are asked for before the Projection's own was read: as many as there should be.
fn expected_shards(DocumentLocation { id, part, rows, .. }: &DocumentLocation) -> Vec<String> {
    match (part, rows) {
        (DocumentPart::Builtin, CheckpointRows::Numbered(shards)) => {
            (0..*shards).map(|shard| search_state::shard(id, shard)).collect()
        }
        _ => Vec::new(),
    }
}

/// The names of the parts of the source that the shards are; empty where they are none.
fn part_names(header: &Value) -> Vec<Arc<str>> {
    let parts = header.get(search_state::PARTS).and_then(Value::as_array).into_iter().flatten();
    parts.filter_map(|part| part.get(search_state::NAME)?.as_str().map(Arc::from)).collect()
}

/// The documents of shards that there are, as the Projection's own tells; `None` where that is not there.
fn told_shards(location: &DocumentLocation, header: &Value) -> Option<Vec<String>> {
    let header = source(header).ok()??;
    let count = header.get(search_state::SHARDS)?.as_u64()?;
    let parts = part_names(header);
    let shard = |shard| match usize::try_from(shard).ok().and_then(|shard| parts.get(shard)) {
        Some(part) => search_state::part(&location.id, part),
        None => search_state::shard(&location.id, u32::try_from(shard).unwrap_or(u32::MAX)),
    };
    Some((0..count.min(MOST_SHARDS as u64)).map(shard).collect())
}

/// The places, in parts of so many documents or of one place.
fn parts<'a>(
    locations: &[&'a DocumentLocation],
    size: impl Fn(&DocumentLocation) -> usize,
    at_once: usize,
) -> VecDeque<Vec<&'a DocumentLocation>> {
    let (mut parts, mut count): (VecDeque<Vec<&DocumentLocation>>, usize) = (VecDeque::new(), 0);
    for location in locations {
        count += size(location);
        match parts.back_mut() {
            Some(part) if count <= at_once => part.push(location),
            _ => {
                count = size(location);
                parts.push_back(vec![location]);
            }
        }
    }
    parts
}

/// So many documents are asked for in one request of the next read: half where they were too large only together, and little by little more again, since
/// documents grow smaller, too, and are taken out.
fn next_at_once(at_once: usize, are_too_large: bool, is_one_to_blame: bool) -> usize {
    match (are_too_large, is_one_to_blame) {
        (true, false) => (at_once / 2).max(1),
        (true, true) => at_once,
        (false, _) => (at_once + at_once.div_ceil(GROWTH)).min(AT_ONCE),
    }
}

fn about(location: &DocumentLocation, error: &MeasureError) -> MeasureError {
    MeasureError { reason: error.reason, message: format!("{}: {}", shown(location), error.message) }
}

fn shown(DocumentLocation { index, id, part, rows: _ }: &DocumentLocation) -> String {
    match part {
        DocumentPart::Field(field) => format!("index {index}, document {id}, field {field}"),
        DocumentPart::Builtin => format!("index {index}, documents {id}…"),
        DocumentPart::Inbox => format!("index {index}, document {id}"),
    }
}

/// What the server says of the documents of one place.
fn interpret(location: &DocumentLocation, documents: &[Value]) -> Result<Checkpoint, MeasureError> {
    let mut sources = Vec::new();
    for document in documents {
        match source(document) {
            // The first worker makes the index.
            Err(error)
                if matches!(location.part, DocumentPart::Builtin | DocumentPart::Inbox)
                    && error.reason == Reason::IndexNotFound =>
            {
                sources.push(None);
            }
            source => sources.push(source?),
        }
    }
    match (&location.part, sources.as_slice()) {
        (DocumentPart::Builtin, [header, shards @ ..]) => of_workers(location, *header, shards),
        (DocumentPart::Inbox, [Some(source)]) => of_inbox(source),
        (DocumentPart::Field(field), [Some(source)]) => of_field(location, field, source),
        _ => Ok(Checkpoint::plain(CheckpointState::NeverCommitted)),
    }
}

/// What a document holds; `None` where it is not there.
fn source(document: &Value) -> Result<Option<&Value>, MeasureError> {
    if document.get("error").is_some() {
        return Err(match error_type(document) {
            Some("index_not_found_exception") => refusal(StatusCode::NOT_FOUND, document),
            Some("security_exception") => refusal(StatusCode::FORBIDDEN, document),
            Some("illegal_argument_exception") => invalid("the name is no single index: an alias must lead to one"),
            _ => refusal(StatusCode::INTERNAL_SERVER_ERROR, document),
        });
    }
    match document.get("found") {
        Some(Value::Bool(false)) => Ok(None),
        Some(Value::Bool(true)) => Ok(Some(document.get("_source").unwrap_or(&Value::Null))),
        _ => Err(invalid("the answer makes no sense for this question")),
    }
}

/// What workers of the built-in projector keep: a position for each shard, and the events that they cannot handle.
fn of_workers(
    location: &DocumentLocation,
    header: Option<&Value>,
    shards: &[Option<&Value>],
) -> Result<Checkpoint, MeasureError> {
    let Some(header) = header else {
        return match shards.iter().all(Option::is_none) {
            true => Ok(Checkpoint::plain(CheckpointState::NeverCommitted)),
            false => Err(invalid("it is missing, and documents of its shards are there: was it deleted?")),
        };
    };
    let parts = part_names(header);
    match location.rows {
        CheckpointRows::Numbered(configured) if shards.len() != configured as usize || !parts.is_empty() => {
            return Err(invalid(&format!(
                "it holds positions of {} shards, and spec.scaling.shards says {configured}: set it back, or create the Projection under another name to rebuild",
                shards.len()
            )));
        }
        CheckpointRows::Parts if parts.len() != shards.len() => {
            return Err(invalid("it lacks the part of a shard: was a field of it deleted?"));
        }
        // The first worker is about to add the parts.
        CheckpointRows::Parts if parts.is_empty() => return Ok(Checkpoint::plain(CheckpointState::NeverCommitted)),
        _ => {}
    }
    let (mut positions, mut failed, mut noted) = (Vec::new(), Vec::new(), Vec::new());
    for (number, shard) in (0_u32..).zip(shards) {
        let about =
            |error: MeasureError| MeasureError { message: format!("shard {number}: {}", error.message), ..error };
        let shard = shard.ok_or_else(|| about(invalid("its document is missing: was it deleted?")))?;
        let kept = shard.get(search_state::POSITION).unwrap_or(&Value::Null);
        let at = position_from(kept, BEFORE_ALL).map_err(about)?;
        positions.push(at);
        let fence = shard.get(search_state::FENCE).map(Value::to_string);
        noted.push(uncalled::of_shard(shard.get(search_state::UNCALLED).and_then(Value::as_str), fence.as_deref()));
        let failure = shard.get(search_state::FAILURE).filter(|failure| !failure.is_null());
        let position_of = |failure: &Value| position(failure.get(search_state::POSITION)?).ok();
        let why = failure.and_then(|failure| failure.get(search_state::WHY)?.as_str());
        // A worker that ended before it could forget one that has been handled meanwhile.
        if let (Some(position), Some(why)) = (failure.and_then(position_of).filter(|position| at < *position), why) {
            let why = why.chars().take(LONGEST_FAILURE).collect();
            let part = parts.get(number as usize).cloned();
            failed.push(FailedEvent { shard: number, part, position: Some(position), why });
        }
    }
    failed.sort_by_key(|event| event.position);
    failed.truncate(MOST_FAILED);
    let shards = (location.rows == CheckpointRows::Parts).then(|| parts.into());
    let uncalled = uncalled::by_all(noted);
    Ok(Checkpoint { shards, failed, uncalled, ..Checkpoint::plain(CheckpointState::Committed(positions)) })
}

/// What workers of the built-in projector tell of messages of a queue that they cannot handle.
fn of_inbox(source: &Value) -> Result<Checkpoint, MeasureError> {
    let failed = source.get(search_state::FAILED).and_then(Value::as_array);
    let failed = failed.ok_or_else(|| {
        invalid("it holds what the built-in projector does not write: did something else write there?")
    })?;
    let why = failed.iter().filter_map(|one| one.get(search_state::WHY)?.as_str()).take(MOST_FAILED);
    let why = why.map(|why| why.chars().take(LONGEST_FAILURE).collect());
    let failed = why.map(|why| FailedEvent { shard: 0, part: None, position: None, why }).collect();
    Ok(Checkpoint { failed, ..Checkpoint::plain(CheckpointState::NeverCommitted) })
}

/// The position in a field of a document.
fn of_field(location: &DocumentLocation, field: &str, source: &Value) -> Result<Checkpoint, MeasureError> {
    // A name with dots is written as such or as objects in objects.
    let nested = format!("/{}", field.replace('~', "~0").replace('/', "~1").replace('.', "/"));
    match source.get(field).or_else(|| source.pointer(&nested)) {
        None => Err(invalid(
            "the document has no such field: correct spec.checkpoint.elasticsearch.field, or does the index keep no _source?",
        )),
        Some(Value::Null) => Ok(Checkpoint::plain(CheckpointState::NeverCommitted)),
        Some(Value::Object(shards)) => {
            if shards.len() > MOST_SHARDS {
                return Err(invalid("the object has more fields than can be shards: is it the right field?"));
            }
            let mut found = Vec::with_capacity(shards.len());
            for (shard, value) in shards.iter().filter(|(_, value)| !value.is_null()) {
                let at = position(value)
                    .map_err(|error| MeasureError { message: format!("shard {shard}: {}", error.message), ..error })?;
                found.push((Arc::from(shard.as_str()), at));
            }
            Ok(Checkpoint::of_shards(found, &location.rows, &shown(location)))
        }
        Some(value) => Ok(Checkpoint::plain(CheckpointState::Committed(vec![position(value)?]))),
    }
}

/// The position that a value holds: a number, or a text in digits. The value itself is not repeated: a wrong field may hold anything.
fn position(value: &Value) -> Result<Position, MeasureError> {
    position_from(value, 0)
}

/// The same where the lowest position is `least`.
fn position_from(value: &Value, least: i64) -> Result<Position, MeasureError> {
    let number = match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    match number {
        Some(number) if number >= least => Ok(Position(number)),
        Some(_) => Err(invalid(
            "it holds a negative number, and no position: a projector that has handled nothing commits none",
        )),
        None => {
            Err(invalid("it holds no integer below 2^63: write the position as a whole number, without a fraction"))
        }
    }
}

fn invalid(why: &str) -> MeasureError {
    MeasureError { reason: Reason::InvalidAnswer, message: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_are_asked_for_where_they_are_too_large_together_and_by_and_by_as_many_as_before() {
        assert_eq!(next_at_once(AT_ONCE, true, false), 500);
        assert_eq!(next_at_once(500, true, true), 500, "one is too large on its own, whatever stands beside it");
        assert_eq!(next_at_once(1, true, false), 1);
        let mut sizes = std::iter::successors(Some(1), |size| Some(next_at_once(*size, false, false)));
        let reads = sizes.position(|size| size == AT_ONCE).unwrap();
        assert!((20..200).contains(&reads), "{reads}");
        assert_eq!(next_at_once(AT_ONCE, false, false), AT_ONCE);
    }
}
