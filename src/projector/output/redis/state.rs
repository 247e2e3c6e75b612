//! The state of a projection in Redis, one hash, and the scripts on it.
//!
//! It is one key, so that it lives and dies as one: a server that evicts it, or a hand that deletes it, leaves no half of it behind. And a slot
//! of a Redis Cluster that moves holds it or does not.

use std::{borrow::Cow, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    super::{
        super::{
            error::ProjectorError,
            event::SourceIdentity,
            sharding::{KeptPart, Part, Sharding, without_checkpoint},
        },
        Numbered,
    },
    scratch::Scratch,
};
use crate::{
    addresses::AddressRules,
    clients::redis::{Bounds, Client, Command, ConnectionSettings, Reply, refusal},
    names::redis_state,
};

/// What is being done when the state is made, for messages.
const DOING: &str = "read store: making the checkpoints";
/// For one script, with the connection where there is none.
const DEADLINE: Duration = Duration::from_secs(10);

/// The claims of all Projections may have so many bytes, about 100 for each key that a handler names.
const LARGEST_CLAIMS: usize = 16 << 20;

/// A script with what all of them share.
macro_rules! script {
    ($($name:literal),+) => {
        concat!(include_str!("common.lua"), $(include_str!($name)),+)
    };
}
pub(super) use script;

/// A connection to the state of a projection.
pub(super) struct State {
    client: Client,
    key: String,
    /// What the scripts write beside the keys of handlers, as `ACL SETUSER` takes it.
    granted: String,
    projection: String,
    /// Where handlers are tried: the keys that stand for the real ones, this one among them.
    scratch: Option<Scratch>,
}

impl State {
    /// Not connected yet.
    pub(super) fn new(settings: &ConnectionSettings, projection: &str) -> Self {
        let key = redis_state::key(projection);
        Self {
            client: Client::new(settings.clone(), Arc::new(AddressRules::everywhere())),
            granted: key.clone(),
            key,
            projection: projection.to_owned(),
            scratch: None,
        }
    }

    /// A state of its own, to try handlers with.
    pub(super) fn to_try(settings: &ConnectionSettings, projection: &str, scratch: Scratch) -> Self {
        let state = Self::new(settings, projection);
        let (key, granted) = (format!("{}{}", scratch.prefix(), state.key), format!("{}*", redis_state::DRY_RUN));
        Self { key, granted, scratch: Some(scratch), ..state }
    }

    /// The keys that stand for the real ones, and the state's own.
    pub(super) fn scratch(&mut self) -> Option<(&mut Scratch, &str)> {
        Some((self.scratch.as_mut()?, &self.key))
    }

    /// Removes the keys that stand for the real ones.
    pub(super) async fn remove_scratch(&mut self) -> Result<(), ProjectorError> {
        const DOING: &str = "read store: removing the keys that handlers were tried with";
        let Some(scratch) = &mut self.scratch else { return Ok(()) };
        match scratch.remove(&mut self.client, DEADLINE).await {
            Ok(()) => Ok(()),
            Err(why) => Err(self.failed(DOING, why)),
        }
    }

    /// The same for scripts that write keys whose names begin with the state's.
    pub(super) fn with_keys_below(settings: &ConnectionSettings, projection: &str) -> Self {
        let state = Self::new(settings, projection);
        Self { granted: format!("{}*", state.key), ..state }
    }

    /// The claims of all Projections.
    pub(super) fn of_claims(settings: &ConnectionSettings, projection: &str) -> Self {
        let state = Self::new(settings, projection);
        let bounds = Bounds { text: LARGEST_CLAIMS, reply: LARGEST_CLAIMS, ..Bounds::default() };
        let key = redis_state::CLAIMS.to_owned();
        Self { client: state.client.with_bounds(bounds), granted: key.clone(), key, ..state }
    }

    /// Where the server is.
    pub(super) fn at(&self) -> String {
        self.client.settings().to_string()
    }

    /// The same on a connection of its own.
    pub(super) fn another(&self) -> Self {
        Self::new(self.client.settings(), &self.projection)
    }

    pub(super) fn projection(&self) -> &str {
        &self.projection
    }

    /// Runs a script on the state.
    ///
    /// # Errors
    /// Where the server cannot be asked or refuses it, and where the state is gone or lacks something.
    pub(super) async fn run(
        &mut self,
        doing: &'static str,
        script: &str,
        words: Vec<String>,
    ) -> Result<Reply, ProjectorError> {
        let (script, words) = match &mut self.scratch {
            Some(scratch) => scratch.wrap(&self.key, script, words),
            None => (Cow::Borrowed(script), words),
        };
        let before = ["EVAL", &*script, "1", &self.key];
        let command =
            Command::about_key(3, before.into_iter().chain(words.iter().map(String::as_str))).waiting_for_its_slot();
        // They may be large, and are in the command.
        drop(words);
        let reply = self.client.ask(&[command], Instant::now() + DEADLINE).await.pop();
        let reply = match reply {
            Some(Ok(Reply::Error(error))) => return Err(self.failed(doing, self.refused(&error))),
            Some(Ok(reply)) => reply,
            Some(Err(error)) => return Err(self.failed(doing, error.message)),
            None => return Err(self.failed(doing, "the server did not answer".to_owned())),
        };
        let reply = match &mut self.scratch {
            Some(scratch) => scratch.unwrap(reply).ok_or_else(|| self.garbled(doing))?,
            None => reply,
        };
        let items = reply.as_array().unwrap_or_default();
        match (items.first().and_then(Reply::as_str), items.get(1).and_then(Reply::as_str)) {
            (Some("gone"), _) => Err(ProjectorError::StateGone {
                projection: self.projection.clone(),
                at: self.client.settings().to_string(),
                key: format!("key {}", self.key),
                then: "The workers begin again at the first event. Where the read model did not go with it, effects come twice: set spec.suspend, delete the read model and this key, and take it back",
            }),
            (Some("broken"), Some(shard)) => {
                let message = format!(
                    "{} lacks the position or the fence of shard {shard}: was a field of it deleted? No position is made up. Write HSET {0} position:{shard} with what is handled, and fence:{shard} if it is missing with 1; or delete the key together with the read model, which is then built again",
                    self.key
                );
                Err(self.failed(doing, message))
            }
            _ => Ok(reply),
        }
    }

    /// What the server's refusal of a script means, and not of a command of the handlers.
    fn refused(&self, error: &str) -> String {
        if error.starts_with("WRONGTYPE") {
            return self.foreign();
        }
        if error.starts_with("NOPERM") || error.contains("The user executing the script can't") {
            return format!(
                "{}: grant the user in the Secret the key {} and the commands that docs/projector.md lists (ACL SETUSER)",
                error.split(" script: ").next().unwrap_or(error),
                self.granted
            );
        }
        if error.starts_with("ASK ") {
            return format!(
                "the slot of {} is being moved to another node of the Redis Cluster: the workers wait until all of its keys are there",
                self.key
            );
        }
        refusal(error).message
    }

    fn foreign(&self) -> String {
        format!("{} holds what no worker writes: did something else write there?", self.granted)
    }

    /// An answer of another program than the server.
    pub(super) fn garbled(&self, doing: &'static str) -> ProjectorError {
        let message = "the script's answer makes no sense: does something between worker and server change it?";
        self.failed(doing, message.to_owned())
    }

    /// Something that is no state was found, or an answer that makes no sense.
    pub(super) fn nonsense(&self, doing: &'static str) -> ProjectorError {
        self.failed(doing, self.foreign())
    }

    pub(super) fn failed(&self, doing: &'static str, message: String) -> ProjectorError {
        ProjectorError::Store { doing, at: self.client.settings().to_string(), message }
    }

    /// What to do where the first `count` commands of an event are done, of a handler that has been changed since.
    pub(super) fn changed(&self, shard: u32, count: usize) -> String {
        changed(count, &format!("HDEL {} begun:{shard}", self.key))
    }

    /// Makes the state where there is none.
    ///
    /// # Errors
    /// Where the server evicts keys like it, and where there is one for another number of shards, or one that lacks something.
    pub(super) async fn create(&mut self, sharding: &Sharding) -> Result<Numbered, ProjectorError> {
        let (shards, start) = match sharding {
            Sharding::Hashed { shards, start } => (*shards, *start),
            // They are added by their names.
            Sharding::Parts(_) => (0, 0),
        };
        let words = vec![shards.to_string(), start.to_string()];
        let made = self.run(DOING, include_str!("create.lua"), words).await?;
        let texts: Vec<&str> = made.as_array().unwrap_or_default().iter().filter_map(Reply::as_str).collect();
        let (made, found, policy, is_parts) = match texts[..] {
            ["evicts", policy] => {
                let message = format!(
                    "the server evicts any key when its memory is full (maxmemory-policy {policy}), and with {} it would lose how far the read model has come: set noeviction or a policy that begins with volatile-",
                    self.key
                );
                return Err(self.failed(DOING, message));
            }
            [made, found, policy, parts] => (made, found, policy, parts == "parts"),
            _ => return Err(self.nonsense(DOING)),
        };
        if policy.is_empty() {
            tracing::warn!(
                "the server does not say what it evicts when its memory is full (grant +info): a policy that begins with allkeys- may lose the checkpoints"
            );
        }
        if made == "made" {
            tracing::warn!(
                key = self.key,
                "there was no state of this projection: beginning at the first event. A read model that is not empty now must be emptied, or effects come twice"
            );
        }
        if let Sharding::Parts(parts) = sharding {
            if !is_parts && found != "0" {
                return Err(self.other_sharding("hashes of streams"));
            }
            return Ok(Numbered::parts(self.create_parts(parts).await?));
        }
        if is_parts {
            return Err(self.other_sharding("partitions"));
        }
        if found == shards.to_string() {
            return Ok(Numbered::hashed(shards));
        }
        Err(ProjectorError::ShardsChanged {
            projection: self.projection.clone(),
            table: self.key.clone(),
            found: found.parse().unwrap_or(i32::MAX),
            configured: shards,
        })
    }

    /// Adds parts that have no checkpoint, and returns all in the order of their numbers: a part keeps its number for good.
    async fn create_parts(&mut self, parts: &[Part]) -> Result<Vec<KeptPart>, ProjectorError> {
        loop {
            let kept = self.parts(vec![String::new()]).await?;
            let new = without_checkpoint(&self.projection, &kept, parts)?;
            if new.is_empty() {
                return Ok(kept);
            }
            let mut words = vec![kept.len().to_string()];
            for Part { name, identity, start } in new {
                words.extend([name.to_string(), identity.as_deref().unwrap_or_default().to_owned(), start.to_string()]);
            }
            // Where another worker was first, nothing is added, and the next turn sees what it added.
            self.parts(words).await?;
        }
    }

    async fn parts(&mut self, words: Vec<String>) -> Result<Vec<KeptPart>, ProjectorError> {
        let reply = self.run(DOING, script!("parts.lua"), words).await?;
        let each = reply.as_array().unwrap_or_default().chunks_exact(2).map(|part| {
            let (name, identity) = (part[0].as_str()?, part[1].as_str()?);
            let identity = Some(identity).filter(|identity| !identity.is_empty()).map(Arc::from);
            Some(KeptPart { name: name.into(), identity })
        });
        each.collect::<Option<_>>().ok_or_else(|| self.nonsense(DOING))
    }

    fn other_sharding(&self, kept: &'static str) -> ProjectorError {
        ProjectorError::OtherSharding { projection: self.projection.clone(), table: self.key.clone(), kept }
    }

    /// Notes which events the positions are of.
    ///
    /// # Errors
    /// Where they are of others.
    pub(super) async fn of_source(&mut self, source: &SourceIdentity) -> Result<(), ProjectorError> {
        let doing = "read store: comparing the event source";
        let words = vec![source.place.clone(), source.server.clone().unwrap_or_default()];
        let reply = self.run(doing, script!("source.lua"), words).await?;
        let texts: Vec<&str> = reply.as_array().unwrap_or_default().iter().filter_map(Reply::as_str).collect();
        match texts[..] {
            ["same"] => Ok(()),
            ["other", place, server] => {
                let server = Some(server).filter(|server| !server.is_empty()).map(str::to_owned);
                Err(ProjectorError::OtherSource {
                    projection: self.projection.clone(),
                    at: self.client.settings().to_string(),
                    key: format!("key {}", self.key),
                    remedy: format!(
                        "Give one of them another database of Redis or another name. If these are the same events at a new place, with the positions they had: HDEL {} source server",
                        self.key
                    ),
                    found: Box::new(SourceIdentity { place: place.to_owned(), server }),
                    configured: Box::new(source.clone()),
                })
            }
            _ => Err(self.nonsense(doing)),
        }
    }
}

/// What to do where the first `count` commands of an event are done, of a handler that has been changed since; `forget` lets all of them run.
pub(super) fn changed(count: usize, forget: &str) -> String {
    format!(
        "the first {count} commands of its handler were done before one failed, and the handler no longer begins with them. Let it begin with the same {count} commands; or undo in the read model what they did, and then let all commands run with {forget}"
    )
}
