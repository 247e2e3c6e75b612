//! Checkpoints in Redis: those of all projections in one round trip.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::{BEFORE_ALL, Checkpoint, node_counters::NodeCounters, uncalled};
use crate::{
    addresses::AddressRules,
    api::{CheckpointRows, Reason, RedisLocation, RedisPart},
    clients::{
        blamed::Blamed,
        redis::{Client, Command, ConnectionIdentity, Reply, refusal},
    },
    lag::{CheckpointState, FailedEvent, Position},
    measure::MeasureError,
    names::redis_state,
};

/// More fields of a hash are not read as shards.
const MOST_SHARDS: usize = 20_000;
/// So many failed events of a projection are told,
const MOST_FAILED: usize = 8;
/// with so many characters each.
const LONGEST_FAILURE: usize = 500;
/// About what workers of the built-in projector should have written.
const NO_SENSE: &str = "it holds what the built-in projector does not write: did something else write there?";
/// So often at most is asked at one read for what an answer that ended the connection kept from being read.
const MOST_ROUND_TRIPS: usize = 3;

/// A Redis server that checkpoints are read from, over one connection, or a cluster, over one to each master.
pub struct RedisStore {
    identity: ConnectionIdentity,
    pub(super) client: Mutex<Client>,
    /// What the nodes of a cluster have refused and evicted: connections, writes and keys.
    pub(super) counters: Mutex<NodeCounters<3>>,
    /// Places whose answers ended the connection, or came too late.
    blamed: Mutex<Blamed<RedisLocation>>,
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
        Self { identity, client, counters: Mutex::default(), blamed: Mutex::default() }
    }

    /// The server and the user.
    pub fn identity(&self) -> &ConnectionIdentity {
        &self.identity
    }

    /// Reads the checkpoints at `locations` before `deadline`, with one round trip. What cannot be read of one does not affect the others: an answer of more
    /// than 32 MiB ends the connection, and what it kept from being read is asked for again. From then on that place is asked last.
    pub(super) async fn read(
        &self,
        locations: &[RedisLocation],
        deadline: Instant,
    ) -> HashMap<RedisLocation, Result<Checkpoint, MeasureError>> {
        let (mut unread, last) = self.blamed.lock().await.part(locations);
        unread.extend(last);
        let mut answers = HashMap::new();
        for _ in 0..MOST_ROUND_TRIPS {
            let commands: Vec<Vec<Command>> = unread.iter().map(|location| commands(location)).collect();
            let replies = of_each(self.ask(&commands.concat(), deadline).await, commands.iter().map(Vec::len));
            let asked: Vec<_> = unread.into_iter().zip(replies).collect();
            let mut blamed = self.blamed.lock().await;
            unread = blamed.judge(outcomes(&asked));
            for (location, replies) in asked {
                let replies = replies.map_err(|error| blamed.explain(location, error));
                let answer = replies.and_then(|replies| interpret(location, &replies));
                let told = answer.map_err(|error| MeasureError {
                    message: format!("{}, {}: {}", self.identity.settings(), shown(location), error.message),
                    ..error
                });
                answers.insert(location.clone(), told);
            }
            if unread.is_empty() {
                break;
            }
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

/// The replies to the commands of each location, of which there are so many; where one is missing, why.
fn of_each(
    replies: Vec<Result<Reply, MeasureError>>,
    counts: impl Iterator<Item = usize>,
) -> Vec<Result<Vec<Reply>, MeasureError>> {
    let mut replies = replies.into_iter();
    // All of one's replies are taken before they are looked at: in a cluster, one that is missing is followed by others.
    counts.map(|count| replies.by_ref().take(count).collect::<Vec<_>>().into_iter().collect()).collect()
}

/// What came of each location.
fn outcomes<'a, 'r>(
    asked: &'r [(&'a RedisLocation, Result<Vec<Reply>, MeasureError>)],
) -> impl Iterator<Item = (&'a RedisLocation, Result<(), &'r MeasureError>)> {
    asked.iter().map(|(location, replies)| (*location, replies.as_ref().map(drop)))
}

/// What is asked for one projection.
fn commands(RedisLocation { key, part, rows: _ }: &RedisLocation) -> Vec<Command> {
    match part {
        RedisPart::Value => vec![Command::about_key(1, ["GET", key])],
        RedisPart::Field(field) => vec![Command::about_key(1, ["HGET", key, field])],
        RedisPart::Fields | RedisPart::Builtin | RedisPart::Inbox => vec![Command::about_key(1, ["HGETALL", key])],
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
        RedisPart::Fields | RedisPart::Builtin | RedisPart::Inbox => format!("the fields of key {key}"),
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
                    .ok_or_else(|| invalid("one of its fields has a name that is no text of at most 4,096 bytes"))?;
                let at = position(&pair[1])
                    .map_err(|error| MeasureError { message: format!("field {shard}: {}", error.message), ..error })?;
                shards.extend(at.map(|at| (Arc::from(shard), at)));
            }
        }
        (RedisPart::Builtin, [state]) => return of_workers(location, state),
        (RedisPart::Inbox, [failed]) => return of_inbox(failed),
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

/// What workers of the built-in projector keep: a position for each shard, and the events that they cannot handle.
fn of_workers(location: &RedisLocation, state: &Reply) -> Result<Checkpoint, MeasureError> {
    let shards = match location.rows {
        CheckpointRows::Numbered(shards) => Some(shards),
        CheckpointRows::Parts => None,
        _ => return Err(invalid(NO_SENSE)),
    };
    let fields = match state {
        Reply::Array(fields) => fields,
        Reply::Oversized => {
            let why =
                "it is larger than 4 MiB, or what was read before it has taken 32 MiB: did something else write there?";
            return Err(invalid(why));
        }
        _ => return Err(invalid(NO_SENSE)),
    };
    if fields.is_empty() {
        return Ok(Checkpoint::plain(CheckpointState::NeverCommitted));
    }
    let (mut by_shard, mut failures, mut parts) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
    let (mut fences, mut notes) = (BTreeMap::new(), BTreeMap::new());
    for pair in fields.chunks_exact(2) {
        let name = pair[0].as_str().unwrap_or_default();
        if let Some(shard) = name.strip_prefix(redis_state::POSITION) {
            let shard: u32 = shard.parse().map_err(|_| invalid(NO_SENSE))?;
            let at = position_from(&pair[1], BEFORE_ALL)
                .map_err(|error| MeasureError { message: format!("field {name}: {}", error.message), ..error })?;
            by_shard.extend(at.map(|at| (shard, at)));
        } else if let Some(shard) = name.strip_prefix(redis_state::PART) {
            let part = shard.parse::<u32>().ok().zip(pair[1].as_str());
            parts.extend(part.map(|(shard, part)| (shard, Arc::<str>::from(part))));
        } else if let Some(shard) = name.strip_prefix(redis_state::FENCE) {
            fences.insert(shard, pair[1].as_str());
        } else if let Some(shard) = name.strip_prefix(redis_state::UNCALLED) {
            notes.insert(shard, pair[1].as_str());
        } else if let Some(shard) = name.strip_prefix(redis_state::FAILURE) {
            let failure = pair[1].as_str().and_then(|text| text.split_once(' '));
            if let (Ok(shard), Some((Ok(at), why))) = (shard.parse(), failure.map(|(at, why)| (at.parse(), why))) {
                let why = why.chars().take(LONGEST_FAILURE).collect();
                failures.push(FailedEvent { shard, part: None, position: Some(Position(at)), why });
            }
        }
    }
    let complete: Vec<Position> = match shards {
        Some(shards) => (0..shards).filter_map(|shard| by_shard.get(&shard).copied()).collect(),
        None => by_shard.values().copied().collect(),
    };
    if shards.is_none() && !parts.keys().eq(by_shard.keys()) {
        return Err(invalid("it lacks the part or the position of a shard: was a field of it deleted?"));
    }
    if let Some(shards) = shards
        && (complete.len() != by_shard.len() || u32::try_from(complete.len()) != Ok(shards))
    {
        return Err(invalid(&format!(
            "it holds positions of {} shards, and spec.scaling.shards says {shards}: set it back, or create the Projection under another name to rebuild",
            by_shard.len()
        )));
    }
    // A worker that ended before it could forget one that has been handled meanwhile.
    let mut failed: Vec<FailedEvent> = failures
        .into_iter()
        .filter(|event| by_shard.get(&event.shard).is_some_and(|done| Some(*done) < event.position))
        .collect();
    failed.sort_by_key(|event| event.position);
    failed.truncate(MOST_FAILED);
    failed.iter_mut().for_each(|event| event.part = parts.get(&event.shard).cloned());
    let shards = shards.is_none().then(|| parts.into_values().collect());
    let note = |shard: &str| uncalled::of_shard(*notes.get(shard)?, *fences.get(shard)?);
    let uncalled = uncalled::by_all(by_shard.keys().map(|shard| note(&shard.to_string())));
    Ok(Checkpoint { shards, failed, uncalled, ..Checkpoint::plain(CheckpointState::Committed(complete)) })
}

/// What workers of the built-in projector tell of messages of a queue that they cannot handle. They themselves forget those that they have not seen for a while.
fn of_inbox(failed: &Reply) -> Result<Checkpoint, MeasureError> {
    let fields = failed.as_array().ok_or_else(|| invalid(NO_SENSE))?;
    let told = fields.chunks_exact(2).map(|pair| {
        let (_, why) = pair[1].as_str()?.split_once(' ')?;
        Some((pair[0].as_str()?, why.chars().take(LONGEST_FAILURE).collect::<String>()))
    });
    let mut told = told.collect::<Option<Vec<_>>>().ok_or_else(|| invalid(NO_SENSE))?;
    told.sort_unstable();
    told.truncate(MOST_FAILED);
    let failed = told.into_iter().map(|(_, why)| FailedEvent { shard: 0, part: None, position: None, why }).collect();
    Ok(Checkpoint { failed, ..Checkpoint::plain(CheckpointState::NeverCommitted) })
}

/// The position that a text holds; `None` where there is none. The text itself is not repeated: a wrong key may hold anything.
fn position(reply: &Reply) -> Result<Option<Position>, MeasureError> {
    position_from(reply, 0)
}

/// The same where the lowest position is `least`.
fn position_from(reply: &Reply, least: i64) -> Result<Option<Position>, MeasureError> {
    let text = match reply {
        Reply::Nil => return Ok(None),
        Reply::Text(text) => text,
        Reply::LongText(length) => return Err(invalid(&format!("it holds a text of {length} bytes, and no position"))),
        _ => return Err(invalid("the answer makes no sense for this question")),
    };
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok());
    match number {
        Some(number) if number >= least => Ok(Some(Position(number))),
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
            RedisPart::Field(_) | RedisPart::Fields | RedisPart::Builtin | RedisPart::Inbox => {
                "a hash, as HSET makes it"
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(reason: Reason) -> MeasureError {
        MeasureError { reason, message: format!("{reason:?}") }
    }

    #[test]
    fn a_reply_that_is_missing_shifts_no_other_to_another_place() {
        let text = |text: &str| Ok(Reply::Text(text.as_bytes().to_vec()));
        let replies = vec![Err(failed(Reason::TimedOut)), text("5"), text("7"), text("9")];
        let each = of_each(replies, [3, 1].into_iter());
        assert_eq!(each, [Err(failed(Reason::TimedOut)), Ok(vec![Reply::Text(b"9".to_vec())])]);
    }

    #[test]
    fn what_workers_of_the_built_in_projector_keep_is_read_shard_by_shard() {
        let location = RedisLocation {
            key: "projectionist:{shop/orders}".to_owned(),
            part: RedisPart::Builtin,
            rows: CheckpointRows::Numbered(11),
        };
        let hash = |fields: &[(String, &str)]| {
            let text = |text: &str| Reply::Text(text.as_bytes().to_vec());
            Reply::Array(fields.iter().flat_map(|(name, value)| [text(name), text(value)]).collect())
        };
        // In the order in which a hash comes, which is none.
        let positions: Vec<(String, String)> =
            (0..11).rev().map(|shard| (format!("position:{shard}"), (shard * 10).to_string())).collect();
        let mut all: Vec<(String, &str)> = positions.iter().map(|(name, at)| (name.clone(), at.as_str())).collect();
        for (name, value) in [
            ("shards", "11"),
            ("owner:3", "a:1"),
            ("fence:3", "7"),
            ("worker:a:1", "1795714859000"),
            ("begun:3", "31:1:00ff"),
            ("failure:3", "31 it failed, and why"),
            ("failure:1", "12 so did this"),
            ("failure:5", "50 it is handled"),
        ] {
            all.push((name.to_owned(), value));
        }
        let read = interpret(&location, &[hash(&all)]).unwrap();
        assert_eq!(read.state, CheckpointState::Committed((0..11).map(|shard| Position(shard * 10)).collect()));
        let failed: Vec<(u32, Position, &str)> =
            read.failed.iter().map(|event| (event.shard, event.position.unwrap(), event.why.as_str())).collect();
        assert_eq!(failed, [(1, Position(12), "so did this"), (3, Position(31), "it failed, and why")]);
        assert!(read.uncalled.is_empty(), "nothing is known of most shards");
        let mut noted = all.clone();
        for shard in 0..11 {
            noted.extend([(format!("fence:{shard}"), "7"), (format!("uncalled:{shard}"), r#"7 ["Plaecd"]"#)]);
        }
        assert_eq!(interpret(&location, &[hash(&noted)]).unwrap().uncalled, ["Plaecd"]);
        let none = Reply::Array(Vec::new());
        assert_eq!(interpret(&location, &[none]).unwrap().state, CheckpointState::NeverCommitted);
        for (wrong, expected) in [(&all[1..], "10 shards"), (&[("position:0".to_owned(), "x")][..], "no integer")] {
            let unknown = interpret(&location, &[hash(wrong)]).unwrap_err();
            assert!(unknown.message.contains(expected), "{}", unknown.message);
        }
        let unknown = interpret(&location, &[Reply::Oversized]).unwrap_err();
        assert!(unknown.message.contains("4 MiB"), "{}", unknown.message);
    }

    #[test]
    fn of_messages_of_a_queue_those_that_cannot_be_handled_are_read() {
        let location = RedisLocation {
            key: "projectionist:{shop/orders}:failed".to_owned(),
            part: RedisPart::Inbox,
            rows: CheckpointRows::One,
        };
        let text = |text: &str| Reply::Text(text.as_bytes().to_vec());
        let hash = |fields: &[&str]| Reply::Array(fields.iter().map(|field| text(field)).collect());
        let read = interpret(&location, &[hash(&["b 2", "17 no JSON", "a 1", "18 WRONGTYPE: what"])]).unwrap();
        let told: Vec<&str> = read.failed.iter().map(|event| event.why.as_str()).collect();
        assert_eq!((told, read.state), (vec!["WRONGTYPE: what", "no JSON"], CheckpointState::NeverCommitted));
        assert!(interpret(&location, &[hash(&[])]).unwrap().failed.is_empty());
        for wrong in [hash(&["a", "nothing"]), text("a")] {
            assert!(interpret(&location, &[wrong]).unwrap_err().message.contains("did something else write there"));
        }
    }

    #[test]
    fn what_ended_the_connection_is_blamed_and_what_it_spoilt_is_asked_for_again() {
        let at = |key: &str| RedisLocation {
            key: key.to_owned(),
            part: RedisPart::Value,
            rows: crate::api::CheckpointRows::One,
        };
        let (a, b, c, d) = (at("a"), at("b"), at("c"), at("d"));
        let mut blamed = Blamed::default();
        let spoilt = || Err(failed(Reason::SourceFailed));
        let first =
            [(&a, Ok(vec![Reply::Nil])), (&b, Err(failed(Reason::InvalidAnswer))), (&c, spoilt()), (&d, spoilt())];
        assert_eq!(blamed.judge(outcomes(&first)), [&c, &d]);
        let second = [(&c, Err(failed(Reason::InvalidAnswer))), (&d, spoilt()), (&b, spoilt())];
        assert_eq!(blamed.judge(outcomes(&second)), [&d], "b is to blame itself");
        let away = [(&a, spoilt()), (&d, spoilt())];
        assert!(blamed.judge(outcomes(&away)).is_empty(), "the server hung up, and no place is to blame");
        let late = [(&a, Err(failed(Reason::TimedOut))), (&d, Err(failed(Reason::TimedOut)))];
        assert!(blamed.judge(outcomes(&late)).is_empty());
        let (asked, asked_last) = ([a.clone(), b.clone(), c.clone(), d.clone()], [&b, &c, &a]);
        assert_eq!(blamed.part(&asked), (vec![&d], asked_last.to_vec()));
        blamed.judge(outcomes(&[(&b, Ok(vec![Reply::Nil]))]));
        assert_eq!(blamed.part(&asked).1, [&c, &a], "read again");
    }
}
