//! A read model in Redis: the user's commands for each event, effects and checkpoint in one script.
//!
//! A script is one step for all readers, for replicas and for the append-only file: what Redis keeps of it, it keeps whole. Redis takes nothing back,
//! though: a command that fails leaves those before it done. How far a failed event has come is therefore kept as well, so that it is taken
//! up there and no command runs twice.

mod claims;
mod dry_run;
mod handlers;
mod inbox;
mod members;
mod overwrites;
mod portion;
mod refusals;
mod scratch;
mod state;

use std::collections::BTreeMap;

pub use self::handlers::{CommandError, written_by};
pub(in crate::projector) use self::{
    claims::claim, dry_run::RedisDryRun, handlers::Commands, inbox::RedisInbox, overwrites::check as check_overwrites,
};
use self::{
    handlers::Filled,
    members::RedisMembership,
    portion::Stopped,
    refusals::Refused,
    state::{State, script},
};
use super::{
    super::{
        config::ProjectorConfig, error::ProjectorError, event::Event, input::EventReader, sharding::Sharding, uncalled,
    },
    Advance, Again, Applied, ApplyError, Held, Numbered, ReadModel,
};
use crate::clients::redis::{ConnectionSettings, Reply};

/// The commands of one event may have as many bytes as the largest event that is read, and this many more.
const MORE_OF_ONE_EVENT: u64 = 16 << 20;
/// Redis takes no longer words, and no longer commands than twice as much.
const MOST_OF_ONE_EVENT: usize = 512 << 20;
/// So many letters of why an event failed are recorded: the operator reads no longer texts than 4,096 bytes.
const LONGEST_FAILURE: usize = 900;
/// What is being done, for messages.
const RUNNING: &str = "read store: running the handlers";

/// What the commands of one event may have, where events have so many bytes at most.
fn most_bytes_of_one_event(max_event_bytes: u64) -> usize {
    let most = usize::try_from(max_event_bytes.saturating_add(MORE_OF_ONE_EVENT)).unwrap_or(usize::MAX);
    most.min(MOST_OF_ONE_EVENT)
}

/// A connection to the read store.
pub(in crate::projector) struct RedisReadModel {
    me: String,
    state: State,
    commands: Commands,
    shards: u32,
    /// What the commands of one event may have.
    most_of_one_event: usize,
}

impl RedisReadModel {
    /// Connects, and makes the checkpoints where there are none. `me` is this worker's name among the owners.
    pub(in crate::projector) async fn open(
        settings: &ConnectionSettings,
        config: &ProjectorConfig,
        commands: Commands,
        sharding: &Sharding,
        me: &str,
    ) -> Result<(Self, Numbered), ProjectorError> {
        let mut state = State::new(settings, &config.projection);
        let numbered = state.create(sharding).await?;
        let most_of_one_event = most_bytes_of_one_event(config.max_event_bytes);
        let (me, shards) = (me.to_owned(), numbered.shards);
        Ok((Self { me, state, commands, shards, most_of_one_event }, numbered))
    }

    /// Runs one script with the commands of `events`, whose shards' checkpoints move as `advances` say.
    async fn run_commands(
        &mut self,
        events: &[Event],
        commands: Vec<Vec<Filled>>,
        advances: &[Advance],
    ) -> Result<Applied, ApplyError> {
        let mut words = vec![self.me.clone(), advances.len().to_string()];
        for Advance { shard, fence, before, position } in advances {
            words.extend([shard.to_string(), fence.to_string(), before.to_string(), position.to_string()]);
        }
        words.push(events.len().to_string());
        // Which command it was, for when one fails.
        let mut names: Vec<Vec<Filled>> = Vec::new();
        for (event, commands) in events.iter().zip(commands) {
            let (position, since) = (event.position.to_string(), event.since.to_string());
            words.extend([event.shard.to_string(), position, since, commands.len().to_string()]);
            names.push(portion::push(&mut words, commands));
        }
        let reply =
            self.state.run(RUNNING, script!("words.lua", "apply.lua"), words).await.map_err(ApplyError::Store)?;
        let stopped = match reply.as_array() {
            Some([done]) if done.as_str() == Some("done") => return Ok(Applied::Committed(events.len())),
            Some([lost]) if lost.as_str() == Some("lost") => return Ok(Applied::ReadAgain(Again::Lost)),
            Some(stopped) => self.stopped(stopped, events, &names),
            None => None,
        };
        let (index, refused) = stopped.ok_or_else(|| ApplyError::Store(self.state.garbled(RUNNING)))?;
        match refused {
            Refused::Server(message) => Err(ApplyError::Store(self.state.failed(RUNNING, message))),
            Refused::Event(message) if index == 0 => Err(ApplyError::Event { index: 0, message }),
            // The events before it are done: it is the first of what comes next.
            Refused::Event(_) => Ok(Applied::ReadAgain(Again::LaterFailed)),
        }
    }

    /// Which event the script stopped at, and why.
    fn stopped(&self, reply: &[Reply], events: &[Event], commands: &[Vec<Filled>]) -> Option<(usize, Refused)> {
        let Stopped { index, command, error } = Stopped::read(reply)?;
        let event = events.get(index)?;
        let refused = match error {
            Some(error) => {
                let failed = commands.get(index)?.get(command.checked_sub(1)?)?;
                refusals::meaning(error, (command, failed), &event.event_type, self.state.projection())
            }
            None => Refused::Event(self.state.changed(event.shard, command)),
        };
        Some((index, refused))
    }
}

/// Shards, fences and positions, as the scripts return them.
fn held(reply: &Reply) -> Option<Vec<(u32, Held)>> {
    let of_each = reply.as_array()?.chunks_exact(3).map(|of_shard| {
        let number = |reply: &Reply| reply.as_str()?.parse::<i64>().ok();
        let (shard, fence, position) = (number(&of_shard[0])?, number(&of_shard[1])?, number(&of_shard[2])?);
        Some((u32::try_from(shard).ok()?, Held { fence, committed: position, position }))
    });
    of_each.collect()
}

impl RedisReadModel {
    async fn ask_held(
        &mut self,
        doing: &'static str,
        script: &str,
        words: Vec<String>,
    ) -> Result<Vec<(u32, Held)>, ProjectorError> {
        let reply = self.state.run(doing, script, words).await?;
        held(&reply).ok_or_else(|| self.state.nonsense(doing))
    }
}

impl ReadModel for RedisReadModel {
    type Membership = RedisMembership;

    async fn join(&self, name: &str) -> Result<RedisMembership, ProjectorError> {
        RedisMembership::join(self.state.another(), &self.me, name, self.shards).await
    }

    async fn of_source<R: EventReader>(&mut self, source: &mut R) -> Result<(), ProjectorError> {
        self.state.of_source(&source.identity().await?).await
    }

    async fn take(&mut self, shards: &[u32]) -> Result<Vec<(u32, Held)>, ProjectorError> {
        let words = [self.me.clone()].into_iter().chain(shards.iter().map(u32::to_string)).collect();
        self.ask_held("read store: sharing the shards", script!("take.lua"), words).await
    }

    async fn mine(&mut self) -> Result<Vec<(u32, Held)>, ProjectorError> {
        let words = vec![self.me.clone()];
        self.ask_held("read store: reading the checkpoints", script!("mine.lua"), words).await
    }

    async fn release(&mut self, shards: &[(u32, Held)]) -> Result<(), ProjectorError> {
        let mut words = vec![self.me.clone()];
        for (shard, Held { fence, committed, position }) in shards {
            words.extend([shard.to_string(), fence.to_string(), committed.to_string(), position.to_string()]);
        }
        self.state.run("read store: giving shards back", script!("release.lua"), words).await.map(drop)
    }

    async fn leave(&mut self) -> Result<(), ProjectorError> {
        let words = vec![self.me.clone()];
        self.state.run("read store: leaving the workers", script!("leave.lua"), words).await.map(drop)
    }

    async fn apply(
        &mut self,
        events: &[Event],
        advances: &(dyn Fn(usize) -> Vec<Advance> + Sync),
        hurry: &(dyn Fn() -> bool + Sync),
    ) -> Result<Applied, ApplyError> {
        let (mut done, mut reached) = (0, BTreeMap::new());
        while done < events.len() {
            let left = events.get(done..).unwrap_or_default();
            let (chunk, failed) = portion::of(&self.commands, left, self.most_of_one_event);
            if let (true, Some(message)) = (chunk.is_empty(), failed) {
                return if done > 0 {
                    Ok(Applied::Committed(done))
                } else {
                    Err(ApplyError::Event { index: 0, message })
                };
            }
            let until = done + chunk.len();
            let mut steps = advances(until);
            Advance::continue_from(&mut reached, &mut steps);
            let of_chunk = events.get(done..until).unwrap_or_default();
            match self.run_commands(of_chunk, chunk, &steps).await {
                Ok(Applied::Committed(_)) => {}
                Err(ApplyError::Event { .. }) if done > 0 => return Ok(Applied::Committed(done)),
                other => return other,
            }
            done = until;
            if hurry() {
                break;
            }
        }
        Ok(Applied::Committed(done))
    }

    async fn advance(&mut self, advances: &[Advance]) -> Result<bool, ProjectorError> {
        match self.run_commands(&[], Vec::new(), advances).await {
            Ok(applied) => Ok(matches!(applied, Applied::Committed(_))),
            Err(ApplyError::Store(error)) => Err(error),
            Err(_) => Ok(false),
        }
    }

    async fn record_failure(
        &mut self,
        (shard, held): (u32, Held),
        position: i64,
        why: &str,
    ) -> Result<(), ProjectorError> {
        let why = why.chars().take(LONGEST_FAILURE).collect();
        let words = vec![self.me.clone(), shard.to_string(), held.fence.to_string(), position.to_string(), why];
        self.state.run("read store: recording a failed event", script!("fail.lua"), words).await.map(drop)
    }

    async fn note_uncalled(&mut self, shards: &[(u32, Held)], types: &[String]) -> Result<(), ProjectorError> {
        let mut words = vec![self.me.clone()];
        for (shard, Held { fence, .. }) in shards {
            words.extend([shard.to_string(), fence.to_string(), uncalled::note(*fence, types)]);
        }
        self.state.run(uncalled::NOTING, script!("uncalled.lua"), words).await.map(drop)
    }
}
