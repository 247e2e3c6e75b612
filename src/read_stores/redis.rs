//! Checkpoints in Redis: those of all projections in one round trip.

use std::{collections::HashMap, fmt, sync::Arc};

use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::Checkpoint;
use crate::{
    addresses::AddressRules,
    api::{Reason, RedisLocation, RedisPart},
    clients::redis::{Client, Command, ConnectionIdentity, Reply, refusal},
    lag::{CheckpointState, Position},
    measure::MeasureError,
};

/// More fields of a hash are not read as shards.
const MOST_SHARDS: usize = 20_000;

/// A Redis server that checkpoints are read from, over one connection, or a cluster, over one to each master.
pub struct RedisStore {
    identity: ConnectionIdentity,
    pub(super) client: Mutex<Client>,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisStore({})", self.identity.settings())
    }
}

impl RedisStore {
    /// Connects with the first read. `addresses`: which of those that servers tell may be asked.
    pub fn new(identity: ConnectionIdentity, addresses: Arc<AddressRules>) -> Self {
        let client = Mutex::new(Client::new(identity.settings().clone(), addresses));
        Self { identity, client }
    }

    /// The server and the user.
    pub fn identity(&self) -> &ConnectionIdentity {
        &self.identity
    }

    /// Reads the checkpoints at `locations` before `deadline`, with one round trip. What cannot be read of one does not affect the others.
    pub(super) async fn read(
        &self,
        locations: &[RedisLocation],
        deadline: Instant,
    ) -> HashMap<RedisLocation, Result<Checkpoint, MeasureError>> {
        let commands: Vec<Vec<Command>> = locations.iter().map(commands).collect();
        let mut replies = self.ask(&commands.concat(), deadline).await.into_iter();
        let mut answers = HashMap::new();
        for (location, commands) in locations.iter().zip(&commands) {
            let mine: Result<Vec<Reply>, MeasureError> = replies.by_ref().take(commands.len()).collect();
            let answer = mine.and_then(|replies| interpret(location, &replies));
            let told = answer.map_err(|error| MeasureError {
                message: format!("{}, {}: {}", self.identity.settings(), shown(location), error.message),
                ..error
            });
            answers.insert(location.clone(), told);
        }
        answers
    }

    /// Asks the server, as [`Client::ask`] does.
    pub(super) async fn ask(&self, commands: &[Command], deadline: Instant) -> Vec<Result<Reply, MeasureError>> {
        match timeout_at(deadline, self.client.lock()).await {
            Ok(mut client) => client.ask(commands, deadline).await,
            Err(_) => {
                let late = MeasureError {
                    reason: Reason::TimedOut,
                    message: "the server has not answered an earlier question in time".to_owned(),
                };
                vec![Err(late); commands.len()]
            }
        }
    }
}

/// What is asked for one projection.
fn commands(RedisLocation { key, part, rows: _ }: &RedisLocation) -> Vec<Command> {
    match part {
        RedisPart::Value => vec![Command::about_key(1, ["GET", key])],
        RedisPart::Field(field) => vec![Command::about_key(1, ["HGET", key, field])],
        RedisPart::Fields => vec![Command::about_key(1, ["HGETALL", key])],
        // GET and not MGET, which takes a key of another type for one that is missing.
        RedisPart::Keys(shards) => {
            (0..*shards).map(|shard| Command::about_key(1, ["GET", &format!("{key}{shard}")])).collect()
        }
    }
}

fn shown(RedisLocation { key, part, rows: _ }: &RedisLocation) -> String {
    match part {
        RedisPart::Value => format!("key {key}"),
        RedisPart::Field(field) => format!("key {key}, field {field}"),
        RedisPart::Fields => format!("the fields of key {key}"),
        RedisPart::Keys(shards) => format!("keys {key}0 to {key}{}", shards.saturating_sub(1)),
    }
}

/// What the replies to [`commands`] mean.
fn interpret(location: &RedisLocation, replies: &[Reply]) -> Result<Checkpoint, MeasureError> {
    if let Some(Reply::Error(error)) = replies.iter().find(|reply| matches!(reply, Reply::Error(_))) {
        return Err(refused(location, error));
    }
    let mut shards: Vec<(Arc<str>, Position)> = Vec::new();
    match (&location.part, replies) {
        (RedisPart::Value | RedisPart::Field(_), [reply]) => {
            let state =
                position(reply)?.map_or(CheckpointState::NeverCommitted, |at| CheckpointState::Committed(vec![at]));
            return Ok(Checkpoint::plain(state));
        }
        (RedisPart::Fields, [Reply::Array(items)]) => {
            if items.len() > MOST_SHARDS * 2 {
                return Err(too_many(items.len() / 2));
            }
            for pair in items.chunks_exact(2) {
                let shard = pair[0]
                    .as_str()
                    .ok_or_else(|| invalid("one of its fields has a name that is no text of at most 2,048 bytes"))?;
                let at = position(&pair[1])
                    .map_err(|error| MeasureError { message: format!("field {shard}: {}", error.message), ..error })?;
                shards.extend(at.map(|at| (Arc::from(shard), at)));
            }
        }
        (RedisPart::Fields, [Reply::Oversized]) => return Err(too_many(MOST_SHARDS)),
        (RedisPart::Keys(_), replies) => {
            for (shard, reply) in replies.iter().enumerate() {
                let at = position(reply).map_err(|error| MeasureError {
                    message: format!("key {}{shard}: {}", location.key, error.message),
                    ..error
                })?;
                shards.extend(at.map(|at| (Arc::from(shard.to_string()), at)));
            }
        }
        _ => return Err(invalid("the answer makes no sense for this question")),
    }
    Ok(Checkpoint::of_shards(shards, &location.rows, &shown(location)))
}

/// The position that a text holds; `None` where there is none. The text itself is not repeated: a wrong key may hold anything.
fn position(reply: &Reply) -> Result<Option<Position>, MeasureError> {
    let text = match reply {
        Reply::Nil => return Ok(None),
        Reply::Text(text) => text,
        Reply::LongText(length) => return Err(invalid(&format!("it holds a text of {length} bytes, and no position"))),
        _ => return Err(invalid("the answer makes no sense for this question")),
    };
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok());
    match number {
        Some(number) if number >= 0 => Ok(Some(Position(number))),
        Some(_) => Err(invalid(
            "it holds a negative number, and no position: a projector that has handled nothing commits none",
        )),
        None => Err(invalid(&format!(
            "it holds a text of {} bytes that is no integer below 2^63: write the position in digits, without a fraction or quotes",
            text.len()
        ))),
    }
}

fn too_many(fields: usize) -> MeasureError {
    invalid(&format!("the hash has at least {fields} fields, which are more than can be shards: is it the right key?"))
}

fn invalid(why: &str) -> MeasureError {
    MeasureError { reason: Reason::InvalidAnswer, message: why.to_owned() }
}

fn refused(location: &RedisLocation, error: &str) -> MeasureError {
    let (reason, advice) = if error.starts_with("WRONGTYPE") {
        let wanted = match location.part {
            RedisPart::Value | RedisPart::Keys(_) => "a text, as SET makes it",
            RedisPart::Field(_) | RedisPart::Fields => "a hash, as HSET makes it",
        };
        (Reason::InvalidSpec, format!("the key does not hold {wanted}: correct spec.checkpoint.redis.key or layout"))
    } else if error.starts_with("NOPERM") {
        let advice = "the user in the Secret may not read it: grant what docs/read-stores.md lists (ACL SETUSER)";
        (Reason::PermissionDenied, advice.to_owned())
    } else {
        return refusal(error);
    };
    MeasureError { reason, message: advice }
}
