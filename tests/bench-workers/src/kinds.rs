//! The kinds of workers that are raced, and what each means for their tables, their environment and the Projection that measures them.

use std::time::Duration;

use bench_scaling::traces::Cost;
use clap::ValueEnum;
use projectionist::simulate::{Checkpoints, Commits, WorkerKind};
use serde_json::{Value, json};

/// Shards of every cell.
pub const SHARDS: usize = 24;

/// A kind of workers. All but [`Kind::Row`] commit a row a shard; all but those that say otherwise commit every half second.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, ValueEnum)]
pub enum Kind {
    /// One row for all shards: the lowest of them
    Row,
    /// A row a shard, and the Projection is told the columns
    Shards,
    /// A row a shard, and the Projection is not told which event is which shard's
    Untold,
    /// A commit after each event
    CommitEach,
    /// A commit every 5 s, as Kafka's clients do by themselves
    #[value(name = "commit-5s")]
    CommitFiveSeconds,
    /// A commit after 1,000 events
    #[value(name = "commit-1000")]
    CommitThousand,
    /// 30 s from a worker's start until it works
    SlowStart,
    /// One worker takes three times as long as the others
    SlowWorker,
    /// An event costs twice as much from the middle on
    Dearer,
    /// Shard k gets k parts of the events
    Uneven,
}

impl Kind {
    /// As on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether the Projection is told what it needs to count each shard's events exactly.
    pub fn is_exact(self) -> bool {
        !matches!(self, Self::Row | Self::Untold)
    }

    /// One checkpoint row for all shards.
    pub fn has_one_row(self) -> bool {
        self == Self::Row
    }

    /// Seconds from a worker's start until it works, beyond what a pod takes.
    pub fn slow_start(self) -> u64 {
        if self == Self::SlowStart { 30 } else { 0 }
    }

    /// What an event costs over time.
    pub fn cost(self) -> Cost {
        if self == Self::Dearer { Cost::Doubles } else { Cost::Known }
    }

    /// Each shard's part of the events.
    pub fn weights(self) -> Vec<f64> {
        let weight = |shard: u32| if self == Self::Uneven { f64::from(shard) } else { 1.0 };
        (1..).take(SHARDS).map(weight).collect()
    }

    /// When its workers commit.
    fn commits(self) -> Commits {
        match self {
            Self::CommitEach => Commits::EachEvent,
            Self::CommitFiveSeconds => Commits::Every(Duration::from_secs(5)),
            Self::CommitThousand => Commits::EveryEvents(1_000),
            _ => Commits::Every(Duration::from_millis(500)),
        }
    }

    /// What the worker's `COMMIT` says.
    fn commit(self) -> String {
        match self.commits() {
            Commits::EachEvent => "each".to_owned(),
            Commits::Every(interval) => format!("{}ms", interval.as_millis()),
            Commits::EveryEvents(events) => events.to_string(),
        }
    }

    /// How many times as long the slowest worker takes as the others.
    fn slowest(self) -> u32 {
        if self == Self::SlowWorker { 3 } else { 1 }
    }

    /// The same workers in the simulator.
    pub fn simulated(self) -> WorkerKind {
        let checkpoints = match self {
            Self::Row => Checkpoints::One,
            Self::Untold => Checkpoints::ShardUnknown,
            _ => Checkpoints::Shard,
        };
        WorkerKind { commits: self.commits(), checkpoints, slowest: f64::from(self.slowest()) }
    }

    /// The worker's environment, but for its database.
    pub fn environment(self) -> Vec<(&'static str, String)> {
        vec![
            ("ROWS", if self.has_one_row() { "one" } else { "shard" }.to_owned()),
            ("COMMIT", self.commit()),
            ("SHARDS", SHARDS.to_string()),
            ("SLOW_START", self.slow_start().to_string()),
            ("SLOW_ONE", self.slowest().to_string()),
        ]
    }

    /// `spec.source.postgres.eventTable` and `spec.checkpoint.readStore` of the Projection.
    pub fn tables(self, schema: &str, projection: &str) -> (Value, Value) {
        let mut events = json!({"table": format!("{schema}.events")});
        let mut checkpoints = json!({"table": format!("{schema}.checkpoints"), "name": projection});
        if self.is_exact() {
            events["shard"] = json!("shard");
            checkpoints["shardColumn"] = json!("shard");
        }
        (events, checkpoints)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_differs_from_the_plain_one_in_what_it_is_named_for() {
        for kind in Kind::value_variants() {
            let differs = [
                kind.has_one_row(),
                kind.commit() != "500ms",
                kind.slow_start() > 0,
                kind.cost() == Cost::Doubles,
                kind.weights()[0] < kind.weights()[SHARDS - 1],
                kind.slowest() > 1,
                *kind == Kind::Untold,
            ];
            let count = differs.iter().filter(|differs| **differs).count();
            assert_eq!(count, usize::from(*kind != Kind::Shards), "{kind:?}");
        }
    }

    #[test]
    fn only_those_that_are_exact_are_told_the_columns() {
        for kind in Kind::value_variants() {
            let (events, checkpoints) = kind.tables("cell_1", "p");
            assert_eq!(events.get("shard").is_some(), kind.is_exact(), "{kind:?}");
            assert_eq!(checkpoints.get("shardColumn").is_some(), kind.is_exact(), "{kind:?}");
        }
    }
}
