//! Where events come from: the seam between the worker and the kinds of event source.

pub(in crate::projector) mod kafka;
pub(in crate::projector) mod kurrentdb;
mod mapping;
pub(in crate::projector) mod nats;
pub(in crate::projector) mod outbox;
pub(in crate::projector) mod postgres;
pub(in crate::projector) mod queue;
pub(in crate::projector) mod rabbitmq;
pub(in crate::projector) mod reader;
pub(in crate::projector) mod redis;

use std::{future::Future, sync::Arc};

use super::{
    error::ProjectorError,
    event::{Event, SourceIdentity},
    sharding::Sharding,
};
use crate::lag::BlockingWriter;

/// Reads the events of one source, in the order of their positions within each shard.
pub(in crate::projector) trait EventReader: Send {
    /// How the events are divided into shards.
    fn sharding(&self) -> Sharding;

    /// Takes over how the read store numbers the parts: their names in the order of the shards. Not called where shards are hashed.
    fn number(&mut self, parts: &[Arc<str>]) {
        let _ = parts;
    }

    /// An event's place, for people.
    fn place(&self, shard: u32, position: i64) -> String {
        let _ = shard;
        format!("position {position}")
    }

    /// The last position before that of this event, which was read and cannot be handled, that a checkpoint may be at.
    fn before(&self, position: i64) -> i64 {
        position - 1
    }

    /// True where each shard is a part of the source, with a log of its own.
    fn has_parts(&self) -> bool {
        false
    }

    /// Notes that the checkpoint of a shard of this worker is there in the read store.
    fn committed(&mut self, shard: u32, position: i64) {
        let _ = (shard, position);
    }

    /// Notes that a shard is this worker's no more.
    fn released(&mut self, shard: u32) {
        let _ = shard;
    }

    /// Tells other tools of the last checkpoints, where the source has such; a failure is no matter.
    fn finish(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// True when the source notifies of new events.
    fn notifies(&self) -> bool;

    /// What tells this source from another.
    fn identity(&mut self) -> impl Future<Output = Result<SourceIdentity, ProjectorError>> + Send;

    /// Looks how far events may be read. `reached` are the worker's shards and their positions, which some worker has found safe before.
    fn look(&mut self, reached: &[(u32, i64)]) -> impl Future<Output = Result<Horizon, ProjectorError>> + Send;

    /// Reads up to `limit` events. `range` must not reach beyond the safe head.
    fn fetch(&mut self, range: &Range, limit: usize) -> impl Future<Output = Result<Fetch, ProjectorError>> + Send;

    /// Returns when the source has notified of new events; never for a source that does not notify. Can be dropped at any time.
    fn woken(&mut self) -> impl Future<Output = ()> + Send;
}

/// What a look at the source showed.
#[derive(Clone, Debug)]
pub(in crate::projector) struct Horizon {
    /// For each shard the highest position that may be read up to; empty while that is not known.
    pub(in crate::projector) safe: Vec<i64>,
    /// For each shard the highest committed position.
    pub(in crate::projector) head: Vec<i64>,
    /// The transaction that holds the safe head back.
    pub(in crate::projector) blocked_by: Option<BlockingWriter>,
    /// The source has more parts than are numbered.
    pub(in crate::projector) grown: bool,
}

/// Which events to read.
#[derive(Clone, Debug)]
pub(in crate::projector) struct Range {
    /// For each shard, whether the worker holds it or not, the position after which to read.
    pub(in crate::projector) after: Vec<i64>,
    /// For each shard the last position to read.
    pub(in crate::projector) until: Vec<i64>,
}

impl Range {
    /// Nothing of any shard.
    pub(in crate::projector) fn nothing(shards: u32) -> Self {
        let shards = shards as usize;
        Self { after: vec![i64::MAX; shards], until: vec![i64::MIN; shards] }
    }

    /// Adds one shard. One that has nothing to read is left out.
    pub(in crate::projector) fn add(&mut self, shard: u32, after: i64, until: i64) {
        if let (Some(a), Some(u)) = (self.after.get_mut(shard as usize), self.until.get_mut(shard as usize))
            && after < until
        {
            (*a, *u) = (after, until);
        }
    }

    /// True when no shard has anything to read.
    pub(in crate::projector) fn is_empty(&self) -> bool {
        self.bounds().is_none()
    }

    /// The positions before the first and at the last to look at, where all shards share one order; `None` when there is nothing to read.
    pub(in crate::projector) fn bounds(&self) -> Option<(i64, i64)> {
        let (from, until) = (self.after.iter().min()?, self.until.iter().max()?);
        (from < until).then_some((*from, *until))
    }
}

impl Fetched {
    /// How far each shard is done when the first `count` of the events are: before the first of its events that is not, or as far as was read.
    pub(in crate::projector) fn reach_of(&self, count: usize) -> Vec<i64> {
        let mut reach = self.reach.clone();
        for event in self.events.iter().skip(count).rev() {
            if let Some(reach) = reach.get_mut(event.shard as usize) {
                *reach = (*reach).min(event.before);
            }
        }
        reach
    }
}

/// What came of reading.
#[derive(Debug)]
pub(in crate::projector) enum Fetch {
    /// There was nothing to read.
    Nothing,
    /// The source ends before the position up to which it was to be read: events were deleted since the look. They may come back, so that nothing
    /// is done with the rest.
    WentBack,
    /// Events, or none in a range that has none.
    Events(Fetched),
    /// The first event of the range that cannot be read. Nothing of the range is to be taken as read.
    Unreadable(Unreadable),
}

/// An event that cannot be read.
#[derive(Debug)]
pub(in crate::projector) struct Unreadable {
    pub(in crate::projector) position: i64,
    pub(in crate::projector) shard: u32,
    /// Why, without anything of what the event holds.
    pub(in crate::projector) why: String,
    /// Its stream, where that is known.
    pub(in crate::projector) stream: Option<String>,
    /// A checkpoint at its position passes over no other event.
    pub(in crate::projector) is_alone_there: bool,
}

/// What was read.
#[derive(Debug)]
pub(in crate::projector) struct Fetched {
    /// The events with a handler, in the order in which they are to be handled.
    pub(in crate::projector) events: Vec<Event>,
    /// For each shard the position up to which these are all.
    pub(in crate::projector) reach: Vec<i64>,
    /// Their bodies are so large that no more were read.
    pub(in crate::projector) cut: bool,
}
