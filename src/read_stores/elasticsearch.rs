//! Checkpoints in documents of Elasticsearch or OpenSearch: those of all projections in one `_mget`, which reads what was just written.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::Arc,
};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::Checkpoint;
use crate::{
    addresses::AddressRules,
    api::{DocumentLocation, Reason},
    clients::{
        blamed::Blamed,
        elasticsearch::{Client, ConnectionIdentity, error_type, is_too_large, refusal},
    },
    lag::{CheckpointState, Position},
    measure::MeasureError,
};

/// So many documents are asked for in one request, unless the answers turn out to be too large.
const AT_ONCE: usize = 1_000;
/// So many requests of one read are repeated in halves, since the answer was too large: enough to find two documents of a thousand.
const MOST_HALVED: usize = 20;
/// More fields of an object are not read as shards.
const MOST_SHARDS: usize = 20_000;

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
        let memory = Mutex::new(Memory { at_once: AT_ONCE, blamed: Blamed::default() });
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
            let mut parts: VecDeque<Vec<&DocumentLocation>> = first.chunks(memory.at_once).map(<[_]>::to_vec).collect();
            parts.extend(last.first().map(|location| vec![*location]));
            (parts, memory.at_once)
        };
        let (mut halved, mut is_one_to_blame) = (0, false);
        while let Some(mut part) = parts.pop_front() {
            let found = self.documents(&part, deadline).await;
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
        if halved > 0 && !is_one_to_blame {
            // Only together were they too large.
            self.memory.lock().await.at_once = (at_once / 2).max(1);
        }
        answers
    }

    /// What the server says of each of these documents.
    async fn documents(&self, part: &[&DocumentLocation], deadline: Instant) -> Result<Vec<Value>, MeasureError> {
        let docs: Vec<Value> =
            part.iter().map(|at| json!({ "_index": at.index, "_id": at.id, "_source": [at.field] })).collect();
        let body = json!({ "docs": docs });
        let (status, mut answer) = self.ask_there(Method::POST, "/_mget".to_owned(), Some(&body), deadline).await?;
        match answer.get_mut("docs").map(Value::take) {
            Some(Value::Array(docs)) if status == StatusCode::OK && docs.len() == part.len() => Ok(docs),
            _ => Err(refusal(status, &answer)),
        }
    }
}

fn about(location: &DocumentLocation, error: &MeasureError) -> MeasureError {
    MeasureError { reason: error.reason, message: format!("{}: {}", shown(location), error.message) }
}

fn shown(DocumentLocation { index, id, field, rows: _ }: &DocumentLocation) -> String {
    format!("index {index}, document {id}, field {field}")
}

/// What the server says of one document.
fn interpret(location: &DocumentLocation, document: &Value) -> Result<Checkpoint, MeasureError> {
    if document.get("error").is_some() {
        return Err(match error_type(document) {
            Some("index_not_found_exception") => refusal(StatusCode::NOT_FOUND, document),
            Some("security_exception") => refusal(StatusCode::FORBIDDEN, document),
            Some("illegal_argument_exception") => invalid("the name is no single index: an alias must lead to one"),
            _ => refusal(StatusCode::INTERNAL_SERVER_ERROR, document),
        });
    }
    match document.get("found") {
        Some(Value::Bool(false)) => return Ok(Checkpoint::plain(CheckpointState::NeverCommitted)),
        Some(Value::Bool(true)) => {}
        _ => return Err(invalid("the answer makes no sense for this question")),
    }
    let source = document.get("_source").unwrap_or(&Value::Null);
    // A name with dots is written as such or as objects in objects.
    let nested = format!("/{}", location.field.replace('~', "~0").replace('/', "~1").replace('.', "/"));
    match source.get(&location.field).or_else(|| source.pointer(&nested)) {
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
    let number = match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    match number {
        Some(number) if number >= 0 => Ok(Position(number)),
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
