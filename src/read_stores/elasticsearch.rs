//! Checkpoints in documents of Elasticsearch or OpenSearch: those of all projections in one `_mget`, which reads what was just written.

use std::{collections::HashMap, fmt, sync::Arc};

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
    clients::elasticsearch::{Client, ConnectionIdentity, error_type, refusal},
    lag::{CheckpointState, Position},
    measure::MeasureError,
};

/// So many documents are asked for in one request.
const AT_ONCE: usize = 1_000;
/// More fields of an object are not read as shards.
const MOST_SHARDS: usize = 20_000;

type Answers = HashMap<DocumentLocation, Result<Checkpoint, MeasureError>>;

/// A server that checkpoints are read from, over one connection. Its health is asked over a second one, since a node that hangs delays the statistics of
/// all nodes, and must not delay the checkpoints.
pub struct ElasticsearchStore {
    identity: ConnectionIdentity,
    client: Mutex<Client>,
    pub(super) health: Mutex<Client>,
}

impl fmt::Debug for ElasticsearchStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ElasticsearchStore({})", self.identity.settings())
    }
}

impl ElasticsearchStore {
    /// Connects with the first read. `addresses`: which may be asked.
    pub fn new(identity: ConnectionIdentity, addresses: Arc<AddressRules>) -> Self {
        let client = || Mutex::new(Client::new(identity.settings().clone(), Arc::clone(&addresses)));
        Self { client: client(), health: client(), identity }
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
        let answer = match timeout_at(by, self.client.lock()).await {
            Ok(mut client) => client.ask(method, path, body, by).await,
            Err(_) => Err(MeasureError {
                reason: Reason::TimedOut,
                message: "the server has not answered an earlier question in time".to_owned(),
            }),
        };
        answer.map_err(|error| self.at(&error))
    }

    /// The same failure, with where it was.
    pub(super) fn at(&self, error: &MeasureError) -> MeasureError {
        MeasureError { reason: error.reason, message: format!("{}: {}", self.identity.settings(), error.message) }
    }

    /// Reads the checkpoints at `locations` before `deadline`. What cannot be read of one does not affect the others.
    pub(super) async fn read(&self, locations: &[DocumentLocation], deadline: Instant) -> Answers {
        let mut answers = Answers::new();
        for some in locations.chunks(AT_ONCE) {
            let docs: Vec<Value> =
                some.iter().map(|at| json!({ "_index": at.index, "_id": at.id, "_source": [at.field] })).collect();
            let asked = self.ask(Method::POST, "/_mget".to_owned(), Some(&json!({ "docs": docs })), deadline).await;
            let found = asked.and_then(|(status, answer)| match answer.get("docs").and_then(Value::as_array) {
                Some(docs) if status == StatusCode::OK && docs.len() == some.len() => Ok(docs.clone()),
                _ => Err(self.at(&refusal(status, &answer))),
            });
            for (place, location) in some.iter().enumerate() {
                let answer = found.as_ref().map_err(Clone::clone).and_then(|docs| {
                    interpret(location, &docs[place]).map_err(|error| {
                        self.at(&MeasureError { message: format!("{}: {}", shown(location), error.message), ..error })
                    })
                });
                answers.insert(location.clone(), answer);
            }
        }
        answers
    }
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
