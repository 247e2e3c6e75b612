//! The kinds of workers: when they commit, what their checkpoints look like from outside, and whether one of them is slow.
//!
//! An ideal worker commits each event the moment it has handled it, and is as fast as the others. Real ones commit every now and then, so that what
//! is measured from outside is not what waits: [`WorkerKind`] says how. How late a run was is always computed from when events were handled.

use std::{str::FromStr, time::Duration};

use crate::api::HumanDuration;

/// How workers commit, and how even they are. The default is ideal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WorkerKind {
    /// When a worker commits what it has handled.
    pub commits: Commits,
    /// Which rows there are, and what they show.
    pub checkpoints: Checkpoints,
    /// How many times as long as the others the oldest worker needs for an event: 1 where all are equal, 3 for one that is three times slower.
    pub slowest: f64,
}

impl Default for WorkerKind {
    fn default() -> Self {
        Self { commits: Commits::EachEvent, checkpoints: Checkpoints::Following, slowest: 1.0 }
    }
}

impl WorkerKind {
    /// How often a worker looks which other workers there are, and which shards are its own. The built-in projector's workers are notified at once;
    /// others share a log as a consumer group does, whose members learn of each other by asking every now and then.
    pub(super) fn looks_every(self) -> Duration {
        match self.checkpoints {
            Checkpoints::Following => Duration::ZERO,
            Checkpoints::Shard | Checkpoints::ShardUnknown | Checkpoints::One => Duration::from_millis(500),
        }
    }
}

/// When a worker commits what it has handled of its shards. It also commits before it gives up a shard, since the next owner begins where the last
/// one has committed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Commits {
    /// Each event.
    EachEvent,
    /// After this time since its last commit. Each worker has a phase of its own.
    Every(Duration),
    /// After this many events since its last commit. Fewer stay uncommitted for as long as no more come.
    EveryEvents(u32),
}

impl FromStr for Commits {
    type Err = String;

    /// `event`, a duration such as `500ms`, or a count such as `1000 events`.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || {
            format!(
                "{text:?} is neither a time such as 500ms or 5s, nor a count such as \"1000 events\", nor \"event\" for each one"
            )
        };
        let counted = text.strip_suffix("events").or_else(|| text.strip_suffix("event"));
        match counted.map(str::trim) {
            Some("") => Ok(Self::EachEvent),
            Some(count) => match count.parse() {
                Ok(1) => Ok(Self::EachEvent),
                Ok(count @ 2..=1_000_000_000) => Ok(Self::EveryEvents(count)),
                _ => Err(refused()),
            },
            None => match text.parse() {
                Ok(HumanDuration(time)) if !time.is_zero() => Ok(Self::Every(time)),
                _ => Err(refused()),
            },
        }
    }
}

/// What the checkpoint table holds, and what can be measured from it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Checkpoints {
    /// A row a shard, counted exactly; the row of a shard with nothing to do follows the head, as those of the built-in projector do.
    Following,
    /// A row a shard, counted exactly, since the column with an event's shard is given. A row stays at its shard's last event.
    Shard,
    /// The same rows, without knowing which event is whose: the lowest row counts for all, which makes an upper bound.
    ShardUnknown,
    /// One row for all: everything up to its position is handled. It is the lowest of what the workers knew of their shards when each committed last.
    One,
}

/// How far the projection is behind, as it is measured from outside: by what is committed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Events beyond the checkpoints.
    pub pending: u64,
    /// False where that is an upper bound.
    pub exact: bool,
    /// The same by shard, where that is known; one entry when workers compete; else empty.
    pub by_shard: Vec<u64>,
    /// The rows of the checkpoint table, at least one.
    pub checkpoints: Vec<u64>,
    /// Age of the oldest event beyond the checkpoints; zero when there is none.
    pub staleness: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_when_workers_commit() {
        for (text, commits) in [
            ("event", Commits::EachEvent),
            ("1 event", Commits::EachEvent),
            ("1000 events", Commits::EveryEvents(1_000)),
            ("1000events", Commits::EveryEvents(1_000)),
            ("500ms", Commits::Every(Duration::from_millis(500))),
            ("1m30s", Commits::Every(Duration::from_secs(90))),
        ] {
            assert_eq!(text.parse(), Ok(commits), "{text}");
        }
        for text in ["", "0s", "0 events", "1000", "-5s", "some events", "1.5 events", "soon", "4294967296 events"] {
            let refused = text.parse::<Commits>().expect_err(text);
            assert!(refused.contains("such as 500ms"), "{refused}");
        }
    }
}
