//! Where effects go: the seam between the worker and the kinds of read store.

pub(super) mod claims;
pub(super) mod elasticsearch;
pub(super) mod inbox;
mod looking;
pub(super) mod postgres;
pub(super) mod redis;

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{error::ProjectorError, event::Event, input::EventReader, sharding::KeptPart};

/// A read model with its checkpoints: the effects of events and the checkpoints of their shards are kept together, or neither is.
///
/// Every change of a shard is guarded by owner and fence. The fence grows whenever the owner changes, so that a worker that was thought dead and
/// comes back changes nothing.
pub(super) trait ReadModel: Send {
    /// What keeps this worker among the others.
    type Membership: Membership;

    /// Announces this worker, on a connection of its own, and forgets earlier runs of it. `name` is the same for all runs.
    fn join(&self, name: &str) -> impl Future<Output = Result<Self::Membership, ProjectorError>> + Send;

    /// Notes which events the checkpoints are of, and refuses others. Comes before [`ReadModel::join`]. A read model that keeps no such note asks nothing.
    fn of_source<R: EventReader>(&mut self, source: &mut R) -> impl Future<Output = Result<(), ProjectorError>> + Send {
        let _ = source;
        std::future::ready(Ok(()))
    }

    /// Takes those of `shards` that are free, and returns their positions.
    fn take(&mut self, shards: &[u32]) -> impl Future<Output = Result<Vec<(u32, Held)>, ProjectorError>> + Send;

    /// The shards that the store says are this worker's.
    fn mine(&mut self) -> impl Future<Output = Result<Vec<(u32, Held)>, ProjectorError>> + Send;

    /// Gives shards back, with the positions reached, and notifies the other workers.
    fn release(&mut self, shards: &[(u32, Held)]) -> impl Future<Output = Result<(), ProjectorError>> + Send;

    /// Ends this worker's membership, so that the others need not wait for its lease.
    fn leave(&mut self) -> impl Future<Output = Result<(), ProjectorError>> + Send;

    /// Runs the handlers of `events` in order until all are done, time is up or `hurry` says so, and commits their effects together with the
    /// checkpoints: `advances` says which, for the number of events that were done.
    fn apply(
        &mut self,
        events: &[Event],
        advances: &(dyn Fn(usize) -> Vec<Advance> + Sync),
        hurry: &(dyn Fn() -> bool + Sync),
    ) -> impl Future<Output = Result<Applied, ApplyError>> + Send;

    /// Writes the checkpoints of shards that had nothing to do. Returns whether all of them were still this worker's.
    fn advance(&mut self, advances: &[Advance]) -> impl Future<Output = Result<bool, ProjectorError>> + Send;

    /// True for an event that follows others of its stream that are parked, as far as this worker knows.
    fn follows_parked(&self, event: &Event) -> bool {
        let _ = event;
        false
    }

    /// Keeps an event with its error and moves the checkpoint of its shard past it, both or neither. A read model that cannot keep it says so.
    fn set_aside(
        &mut self,
        poisoned: &Poisoned<'_>,
        advance: Advance,
    ) -> impl Future<Output = Result<SetAside, ProjectorError>> + Send {
        let _ = (poisoned, advance);
        std::future::ready(Ok(SetAside::Refused("this read store keeps no events".to_owned())))
    }

    /// Handles the first event of these shards that was parked and is to be handled again, if it is time to look for such. It is handled and no longer parked,
    /// or neither.
    fn replay(&mut self, held: &BTreeMap<u32, Held>) -> impl Future<Output = Result<Replayed, ProjectorError>> + Send {
        let _ = held;
        std::future::ready(Ok(Replayed::Nothing))
    }

    /// Records that the shard waits before the event at `position`, and why: the operator reads it there.
    fn record_failure(
        &mut self,
        shard: (u32, Held),
        position: i64,
        why: &str,
    ) -> impl Future<Output = Result<(), ProjectorError>> + Send;

    /// Writes down for these shards, as far as they are still this worker's, that it has had no event of these types: the operator reads it there. A note
    /// counts for as long as the shard keeps its fence.
    fn note_uncalled(
        &mut self,
        shards: &[(u32, Held)],
        types: &[String],
    ) -> impl Future<Output = Result<(), ProjectorError>> + Send {
        let _ = (shards, types);
        std::future::ready(Ok(()))
    }
}

/// A read model of events that come from a queue, which has no positions: each message is noted together with the effects of its event, so that one that is
/// delivered twice has them once. Notes are kept for a while, which must be longer than any message waits to be delivered again.
pub(super) trait Inbox: Send {
    /// Runs the handlers of those events whose messages are not noted yet, in order, until all are done or time is up, and commits their effects together with
    /// the notes. `ids` name the messages of `events`. Returns how many are done, those noted before included: at least one, if there is one.
    fn handle(&mut self, ids: &[String], events: &[Event]) -> impl Future<Output = Result<usize, ApplyError>> + Send;

    /// Records that this message cannot be handled, and why: the operator reads it there. Returns how often that was recorded since it was first; 0 where another
    /// worker has handled it.
    fn record_failure(&mut self, id: &str, why: &str) -> impl Future<Output = Result<u32, ProjectorError>> + Send;

    /// Forgets some of the messages that were noted longer ago than they are kept. Returns whether there may be more.
    fn prune(&mut self) -> impl Future<Output = Result<bool, ProjectorError>> + Send;
}

/// A worker among the others of its projection. Has a connection of its own, so that the lease is kept while a long batch runs.
pub(super) trait Membership: Send {
    /// Renews the lease and publishes what it sees, until something fails.
    fn keep(self, views: &watch::Sender<View>) -> impl Future<Output = ProjectorError> + Send;
}

/// The shards as the read store numbers them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Numbered {
    /// How many there are.
    pub(super) shards: u32,
    /// Where they are parts of the source: their names, in the order of their numbers.
    pub(super) parts: Vec<Arc<str>>,
}

impl Numbered {
    /// Hashed shards.
    pub(super) fn hashed(shards: u32) -> Self {
        Self { shards, parts: Vec::new() }
    }

    /// Parts of the source.
    pub(super) fn parts(kept: Vec<KeptPart>) -> Self {
        let parts: Vec<Arc<str>> = kept.into_iter().map(|part| part.name).collect();
        Self { shards: u32::try_from(parts.len()).unwrap_or(u32::MAX), parts }
    }
}

/// The live workers, and the owner of each shard.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// The view shows everything that happened before; absent before the first look.
    pub(super) since: Option<Instant>,
    /// Live workers.
    pub(super) members: Vec<String>,
    /// Each shard's owner.
    pub(super) owners: Vec<Option<String>>,
    /// For each shard the last position that may be handled for now; empty where no shard can be held.
    pub(super) holds: Vec<Option<i64>>,
}

/// Handlers that are tried without an effect that lasts.
pub(super) trait DryRun: Send {
    /// Makes what they are tried in. Comes first.
    fn begin(&mut self) -> impl Future<Output = Result<(), ProjectorError>> + Send {
        std::future::ready(Ok(()))
    }

    /// Runs the handler of one event, or shows what it would do; `None` where its type has no handler.
    fn handle(&mut self, event: &Event) -> impl Future<Output = Result<Option<Done>, DryRunError>> + Send;

    /// Finds what the store would refuse of all together, and returns lines about what is there in the end. Nothing is tried after that.
    fn finish(&mut self) -> impl Future<Output = Result<Vec<String>, DryRunError>> + Send;

    /// Removes what was made to try them. Comes last, however the rest ended.
    fn remove(&mut self) -> impl Future<Output = Result<(), ProjectorError>> + Send {
        std::future::ready(Ok(()))
    }
}

/// What a handler did that was tried.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Done {
    /// How much, such as `1 row`.
    pub(super) summary: String,
    /// What exactly, where that is known.
    pub(super) lines: Vec<String>,
}

/// Why a handler was not tried, or failed.
#[derive(Debug)]
pub(super) enum DryRunError {
    /// On this event, for this reason. Others can be tried.
    Event(String),
    /// The store cannot be asked.
    Store(ProjectorError),
}

impl From<ApplyError> for DryRunError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Contention { message, .. }
            | ApplyError::Event { message, .. }
            | ApplyError::Poison { message, .. }
            | ApplyError::OneOf { message } => Self::Event(message),
            ApplyError::NoRoom => Self::Event("no more events may be parked".to_owned()),
            ApplyError::Store(error) => Self::Store(error),
        }
    }
}

/// A shard that this worker holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Held {
    /// Counts how often the shard has changed its owner.
    pub(super) fence: i64,
    /// The checkpoint in the read store.
    pub(super) committed: i64,
    /// The position up to which nothing is left to do: beyond `committed` when there was nothing to do in between.
    pub(super) position: i64,
}

/// A step of a shard's checkpoint, from where its owner found it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Advance {
    pub(super) shard: u32,
    pub(super) fence: i64,
    pub(super) before: i64,
    pub(super) position: i64,
}

/// How a batch ended that did not fail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Applied {
    /// The effects of so many events, and the checkpoints, are committed: at least one event.
    Committed(usize),
    /// The checkpoints are to be read again.
    ReadAgain(Again),
}

/// Why the checkpoints are to be read again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Again {
    /// One belongs to another worker, or is not where this one found it: nothing is done.
    Lost,
    /// An event failed that is not the first: those before it are done, and it comes first in what is read next.
    LaterFailed,
    /// Events were to be parked behind others of their streams, and those are parked no more: nothing is done.
    NoneParked,
}

/// An event that is to be set aside, which failed each time.
#[derive(Clone, Debug)]
pub(super) struct Poisoned<'a> {
    pub(super) shard: u32,
    pub(super) position: i64,
    /// Its place, for people.
    pub(super) place: String,
    /// What it holds; absent where it cannot be read.
    pub(super) event: Option<&'a Event>,
    /// Its stream, where it has one and that is known.
    pub(super) stream: Option<&'a str>,
    /// Why it fails, as far as that may be repeated, and the kind of error.
    pub(super) reason: &'a str,
    pub(super) class: &'a str,
    /// How often it was tried, and for how long.
    pub(super) attempts: u32,
    pub(super) failing_for: Duration,
}

/// What came of setting an event aside.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum SetAside {
    /// It is kept, and the checkpoint has passed it.
    Done,
    /// The shard belongs to another worker, or its checkpoint is not where it was: nothing is done.
    Lost,
    /// No more may be parked.
    NoRoom,
    /// It cannot be kept there, and why.
    Refused(String),
}

/// What came of events that are to be handled again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Replayed {
    /// There is none now.
    Nothing,
    /// One was handled, and is parked no more.
    Handled { shard: u32, place: String },
    /// One failed again, for this reason, and stays with its stream.
    Failed { shard: u32, place: String, why: String },
    /// The shard belongs to another worker.
    Lost,
}

/// Why a batch is not committed. The checkpoints have not moved, and the connection can be used again unless it is the store itself that fails.
#[derive(Debug)]
pub(super) enum ApplyError {
    /// Another transaction got in the way of an event's handler: the same again may succeed at once.
    Contention { index: usize, message: String },
    /// An event's handler failed: the event's index in the batch, and what the store says, as far as it may be repeated.
    Event { index: usize, message: String },
    /// The same, where the failure lasts and is the event's own: `class` is the kind of error, such as an SQLSTATE.
    Poison { index: usize, message: String, class: String },
    /// The first event follows others of its stream that are parked, and no more may be parked.
    NoRoom,
    /// One of the events is refused, and the store does not say which.
    OneOf { message: String },
    /// The connection or the store.
    Store(ProjectorError),
}

impl Advance {
    /// The steps of several portions one after the other: each begins where the portion before has moved its shard to, as noted in `reached`.
    fn continue_from(reached: &mut BTreeMap<u32, i64>, steps: &mut [Self]) {
        for step in steps {
            step.before = reached.insert(step.shard, step.position).unwrap_or(step.before);
        }
    }

    /// A step of a shard to `position`.
    pub(super) fn to(position: i64, shard: u32, held: Held) -> Self {
        Self { shard, fence: held.fence, before: held.committed, position }
    }
}
