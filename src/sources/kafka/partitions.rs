//! What the offsets of one partition mean, and the sum over several: pure.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    clients::kafka::{FirstRecord, Partition},
    lag::Position,
};

/// The offset that is read next, of each partition that has one.
pub(super) type Committed = BTreeMap<Partition, Option<i64>>;

/// The identity of a topic.
pub(super) type TopicId = [u8; 16];

/// What was found of one partition.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Offsets {
    /// The identity of the topic: another one after it was created again. Zero where brokers tell none.
    pub topic: TopicId,
    /// What the consumers have committed: the offset that is read next.
    pub committed: Option<i64>,
    /// The first offset that is still kept.
    pub earliest: i64,
    /// The offset behind the last record that the consumers may read.
    pub latest: i64,
    /// What a reader that continues at the committed offset gets next, where that is known.
    pub first: Option<FirstRecord>,
}

impl Offsets {
    /// Where a consumer continues; `None` where that depends on its reset policy, and there is something to read.
    pub fn from(&self, reset_to_earliest: bool) -> Option<i64> {
        match self.committed {
            Some(committed) => Some(committed.max(self.earliest)),
            None if reset_to_earliest || self.earliest >= self.latest => Some(self.earliest),
            None => None,
        }
    }
}

/// What is known of a topic that makes its offsets more than its records.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Nature {
    /// Whether brokers remove records from the middle; `None` where that is not known.
    pub compacted: Option<bool>,
    /// Transactions were seen, whose markers no reader gets.
    pub transactional: bool,
}

impl Nature {
    /// Why a count of this topic's offsets is only an upper bound of its records.
    fn bound(self, topic: &str) -> Option<String> {
        match self {
            Self { compacted: None, .. } => Some(format!(
                "it is not known whether topic {topic} is compacted, and offsets whose records were removed may be counted: allow the user DESCRIBE_CONFIGS on the topic"
            )),
            Self { compacted: Some(true), .. } => {
                Some(format!("topic {topic} is compacted, and offsets whose records were removed are counted"))
            }
            Self { transactional: true, .. } => {
                Some(format!("topic {topic} holds transactions, whose markers are counted among the records"))
            }
            Self { .. } => None,
        }
    }
}

/// The sum over the partitions of a question.
pub(super) struct Counts {
    pub(super) by_partition: Vec<u64>,
    pub(super) checkpoints: Vec<Position>,
    pub(super) exact: bool,
    pub(super) staleness: Option<Duration>,
    pub(super) ahead: Duration,
    pub(super) lost: u64,
    /// What waits for certain in partitions with a commit.
    pub(super) certain: u64,
    /// In a partition with a commit, the records could not be looked at, and not all offsets there need be records.
    pub(super) unseen: bool,
    /// No look at records beyond a committed offset has found offsets without any.
    pub(super) gapless: bool,
    pub(super) uncommitted: Option<Partition>,
    /// Why what is counted may be more than the records.
    pub(super) bound: Option<String>,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            by_partition: Vec::new(),
            checkpoints: Vec::new(),
            exact: true,
            staleness: Some(Duration::ZERO),
            ahead: Duration::ZERO,
            lost: 0,
            certain: 0,
            unseen: false,
            gapless: true,
            uncommitted: None,
            bound: None,
        }
    }
}

impl Counts {
    /// Adds one. `now`: the time of day in milliseconds since 1970.
    pub(super) fn add(
        &mut self,
        partition: &Partition,
        offsets: &Offsets,
        reset_to_earliest: bool,
        nature: Nature,
        now: i64,
    ) {
        let known = offsets.from(reset_to_earliest);
        let from = known.unwrap_or(offsets.earliest);
        if known.is_none() {
            self.exact = false;
            self.uncommitted.get_or_insert_with(|| partition.clone());
        }
        // The committed offset itself, so that one beyond the head is seen as such.
        self.checkpoints.push(Position(offsets.committed.unwrap_or(from)));
        self.lost += offsets.committed.map_or(0, |committed| difference(offsets.earliest, committed));
        let only_markers = offsets.first == Some(FirstRecord::Nothing);
        let pending = if only_markers { 0 } else { difference(offsets.latest, from) };
        self.by_partition.push(pending);
        if pending == 0 {
            return;
        }
        let seen = matches!(offsets.first, Some(FirstRecord::Batch { transactional: true, .. }));
        let nature = Nature { transactional: nature.transactional || seen, ..nature };
        let bound = nature.bound(&partition.0);
        let counts_records = bound.is_none();
        if let Some(why) = bound {
            self.exact = false;
            self.bound.get_or_insert(why);
        }
        match offsets.first {
            Some(FirstRecord::Batch { oldest, offset, records, gapless, .. }) => {
                self.exact &= offset <= from;
                let certain = if counts_records && offset <= from { pending } else { records.min(pending) };
                self.certain += known.map_or(0, |_| certain);
                self.gapless &= gapless;
                // A client that sets no time leaves -1 or 0: such a record is not as old as 1970.
                match now.checked_sub(oldest).filter(|_| oldest > 0) {
                    Some(age) => {
                        let (age, ahead) = (u64::try_from(age), u64::try_from(age.saturating_neg()));
                        self.ahead = self.ahead.max(Duration::from_millis(ahead.unwrap_or(0)));
                        let age = Duration::from_millis(age.unwrap_or(0));
                        self.staleness = self.staleness.map(|oldest| oldest.max(age));
                    }
                    None => self.staleness = None,
                }
            }
            _ => {
                // Without a look at the records, markers may be among what is counted: in a topic in which none were seen, few if any.
                self.exact = false;
                self.certain += known.filter(|_| counts_records).map_or(0, |_| pending);
                self.unseen |= known.is_some() && !counts_records;
                self.gapless &= counts_records;
                self.staleness = None;
            }
        }
    }
}

/// How far `high` is above `low`; zero where it is not.
pub(super) fn difference(high: i64, low: i64) -> u64 {
    u64::try_from(high.saturating_sub(low)).unwrap_or(0)
}
