//! What the offsets of a projection's partitions mean: pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use crate::{
    clients::kafka::{FirstRecord, Partition},
    lag::{CheckpointState, Head, Pending, Position, Sample},
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

/// What is remembered of a question from poll to poll.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The partitions in the order in which they were first seen: a partition that is added changes no other's place.
    order: Vec<Partition>,
    /// The end of each log when it was last seen.
    ends: HashMap<Partition, i64>,
    arrived: u64,
    /// The topic that each partition belonged to when it was last seen, with the committed offset.
    last: HashMap<Partition, (TopicId, Option<i64>)>,
    /// Committed offsets that were there before their topic was created again, and have not changed since.
    outlived: BTreeMap<Partition, i64>,
    /// A committed offset has been seen.
    committed: bool,
}

/// Why nothing is said: no partition has a committed offset any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct CommitsGone;

/// Why nothing is said: the topic was created again, and this committed offset is still that of the old one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Outlived {
    pub partition: Partition,
    pub offset: i64,
}

impl Memory {
    /// Looks for topics that were created again since the last poll.
    ///
    /// # Errors
    /// A committed offset has not changed since: it is no place in the new log. One that has moved back, or is gone, belongs to the new log; so does
    /// one that goes on, whose reader is somewhere in the new log from then on.
    pub fn created_again(&mut self, found: &HashMap<Partition, Offsets>) -> Result<(), Outlived> {
        for (partition, offsets) in found {
            let now = offsets.committed;
            if self.outlived.get(partition).is_some_and(|offset| now != Some(*offset)) {
                self.outlived.remove(partition);
            }
            let last = self.last.insert(partition.clone(), (offsets.topic, now));
            let another =
                |topic: &TopicId| *topic != offsets.topic && ![*topic, offsets.topic].contains(&TopicId::default());
            let Some((_, before)) = last.filter(|(topic, _)| another(topic)) else { continue };
            // All that is in it came since.
            if let Some(end) = self.ends.get_mut(partition) {
                *end = offsets.earliest;
            }
            self.outlived.remove(partition);
            if let (Some(before), Some(now)) = (before, now)
                && now >= before
                && now > offsets.earliest
            {
                self.outlived.insert(partition.clone(), now);
            }
        }
        self.last.retain(|partition, _| found.contains_key(partition));
        self.outlived.retain(|partition, _| found.contains_key(partition));
        match self.outlived.first_key_value() {
            None => Ok(()),
            Some((partition, offset)) => Err(Outlived { partition: partition.clone(), offset: *offset }),
        }
    }

    /// The measurement at `at` (time since the process started), `now` being the time of day in milliseconds since 1970. `nature` tells of a topic
    /// whether its offsets are more than its records.
    ///
    /// # Errors
    /// There were committed offsets, and there are none any more.
    pub fn sample(
        &mut self,
        found: &HashMap<Partition, Offsets>,
        reset_to_earliest: bool,
        nature: impl Fn(&str) -> Nature,
        (at, now): (Duration, i64),
    ) -> Result<Sample, CommitsGone> {
        self.follow(found);
        let partitions: Vec<(&Partition, &Offsets)> =
            self.order.iter().filter_map(|partition| Some((partition, found.get(partition)?))).collect();
        let heads = Head::Shards(partitions.iter().map(|(_, offsets)| Position(offsets.latest)).collect());
        let any_committed = partitions.iter().any(|(_, offsets)| offsets.committed.is_some());
        if !any_committed && !reset_to_earliest {
            return if self.committed {
                Err(CommitsGone)
            } else {
                Ok(Sample::new(at, heads, CheckpointState::NeverCommitted, None, self.arrived))
            };
        }
        self.committed |= any_committed;
        let mut told = Told::default();
        for (partition, offsets) in &partitions {
            told.add(partition, offsets, reset_to_earliest, nature(&partition.0), now);
        }
        let pending = Pending { events: told.by_partition.iter().sum(), exact: told.exact };
        let checkpoint = CheckpointState::Committed(told.checkpoints);
        let mut sample = Sample::new(at, heads, checkpoint, Some(pending), self.arrived);
        sample.pending_by_shard = told.by_partition;
        sample.staleness = told.staleness;
        sample.ahead_of_clock = told.ahead;
        sample.faults.deleted = told.lost;
        // What no commit tells of is no queue to plan with.
        sample.beyond_all_rows = told.uncommitted.as_ref().map(|_| told.certain);
        let uncommitted = told.uncommitted.map(|(topic, number)| {
            format!(
                "nothing is committed for partition {number} of topic {topic}, which is counted from its first record on: set spec.source.kafka.offsetReset to Earliest if that is where the consumers begin"
            )
        });
        sample.upper_bound = uncommitted.or(told.bound).map(Arc::from);
        Ok(sample)
    }

    fn follow(&mut self, found: &HashMap<Partition, Offsets>) {
        let begun = !self.order.is_empty();
        let mut added: Vec<&Partition> = found.keys().filter(|one| !self.ends.contains_key(*one)).collect();
        added.sort();
        for partition in added {
            // Everything in a partition that was added came since measuring began.
            let offsets = &found[partition];
            if begun {
                self.arrived += difference(offsets.latest, offsets.earliest);
            }
            self.ends.insert(partition.clone(), offsets.latest);
            self.order.push(partition.clone());
        }
        for (partition, offsets) in found {
            if let Some(end) = self.ends.get_mut(partition) {
                // A topic that was created again begins at zero.
                self.arrived += if offsets.latest >= *end {
                    difference(offsets.latest, *end)
                } else {
                    difference(offsets.latest, 0)
                };
                *end = offsets.latest;
            }
        }
        self.order.retain(|partition| found.contains_key(partition));
        self.ends.retain(|partition, _| found.contains_key(partition));
    }
}

struct Told {
    by_partition: Vec<u64>,
    checkpoints: Vec<Position>,
    exact: bool,
    staleness: Option<Duration>,
    ahead: Duration,
    lost: u64,
    /// What waits in partitions with a commit.
    certain: u64,
    uncommitted: Option<Partition>,
    /// Why what is counted may be more than the records.
    bound: Option<String>,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            by_partition: Vec::new(),
            checkpoints: Vec::new(),
            exact: true,
            staleness: Some(Duration::ZERO),
            ahead: Duration::ZERO,
            lost: 0,
            certain: 0,
            uncommitted: None,
            bound: None,
        }
    }
}

impl Told {
    fn add(&mut self, partition: &Partition, offsets: &Offsets, reset_to_earliest: bool, nature: Nature, now: i64) {
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
        self.certain += known.map_or(0, |_| pending);
        if pending == 0 {
            return;
        }
        let seen = matches!(offsets.first, Some(FirstRecord::Batch { transactional: true, .. }));
        let nature = Nature { transactional: nature.transactional || seen, ..nature };
        if let Some(why) = nature.bound(&partition.0) {
            self.exact = false;
            self.bound.get_or_insert(why);
        }
        match offsets.first {
            Some(FirstRecord::Batch { oldest, offset, .. }) => {
                self.exact &= offset <= from;
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
                // Without a look at the records, markers may be among what is counted.
                self.exact = false;
                self.staleness = None;
            }
        }
    }
}

/// How far `high` is above `low`; zero where it is not.
fn difference(high: i64, low: i64) -> u64 {
    u64::try_from(high.saturating_sub(low)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn record(offset: i64, age: i64) -> Option<FirstRecord> {
        Some(FirstRecord::Batch { oldest: NOW - age, newest: NOW, offset, transactional: false })
    }

    fn offsets(committed: Option<i64>, earliest: i64, latest: i64, first: Option<FirstRecord>) -> Offsets {
        Offsets { topic: [1; 16], committed, earliest, latest, first }
    }

    fn found(all: &[(&str, i32, Offsets)]) -> HashMap<Partition, Offsets> {
        all.iter().map(|(topic, number, offsets)| ((Arc::from(*topic), *number), *offsets)).collect()
    }

    fn sample(memory: &mut Memory, all: &[(&str, i32, Offsets)], earliest: bool) -> Result<Sample, CommitsGone> {
        let nature = |topic: &str| Nature {
            compacted: (topic != "unknown").then_some(topic == "compacted"),
            transactional: topic == "transactional",
        };
        memory.sample(&found(all), earliest, nature, (Duration::from_secs(1), NOW))
    }

    fn pending(all: &[(&str, i32, Offsets)], earliest: bool) -> (u64, bool, Option<Duration>) {
        let sample = sample(&mut Memory::default(), all, earliest).unwrap();
        let pending = sample.pending.unwrap();
        (pending.events, pending.exact, sample.staleness)
    }

    #[test]
    fn what_waits_is_the_sum_over_all_partitions_and_the_oldest_record_tells_the_age() {
        let all = [
            ("a", 0, offsets(Some(3), 0, 10, record(3, 4_000))),
            ("a", 1, offsets(Some(5), 0, 5, None)),
            ("b", 0, offsets(Some(1), 0, 3, record(1, 9_000))),
        ];
        assert_eq!(pending(&all, false), (9, true, Some(Duration::from_secs(9))));
        assert_eq!(pending(&all[1..2], false), (0, true, Some(Duration::ZERO)));
    }

    #[test]
    fn what_is_not_known_is_never_told_as_known() {
        // No look at the record; no time on it; a time in the future.
        assert_eq!(pending(&[("a", 0, offsets(Some(3), 0, 10, None))], false), (7, false, None));
        assert_eq!(pending(&[("a", 0, offsets(Some(3), 0, 10, record(3, NOW + 1)))], false), (7, true, None));
        assert_eq!(pending(&[("a", 0, offsets(Some(3), 0, 10, record(3, NOW)))], false), (7, true, None));
        let ahead =
            sample(&mut Memory::default(), &[("a", 0, offsets(Some(3), 0, 10, record(3, -60_000)))], false).unwrap();
        assert_eq!((ahead.staleness, ahead.ahead_of_clock), (Some(Duration::ZERO), Duration::from_secs(60)));
    }

    #[test]
    fn markers_are_no_events_and_make_a_count_of_others_an_upper_bound() {
        assert_eq!(pending(&[("a", 0, offsets(Some(3), 0, 4, Some(FirstRecord::Nothing)))], false).0, 0);
        let first = Some(FirstRecord::Batch { oldest: NOW, newest: NOW, offset: 3, transactional: true });
        assert_eq!(pending(&[("a", 0, offsets(Some(3), 0, 9, first))], false), (6, false, Some(Duration::ZERO)));
        // Or they were seen at another time or in another partition.
        assert!(!pending(&[("transactional", 0, offsets(Some(3), 0, 9, record(3, 0)))], false).1);
        assert!(pending(&[("transactional", 0, offsets(Some(9), 0, 9, None))], false).1);
    }

    #[test]
    fn a_compacted_topic_is_counted_as_an_upper_bound_unless_nothing_waits() {
        assert!(!pending(&[("compacted", 0, offsets(Some(3), 0, 9, record(3, 0)))], false).1);
        let all =
            [("a", 0, offsets(Some(3), 0, 9, record(3, 0))), ("unknown", 0, offsets(Some(3), 0, 9, record(3, 0)))];
        let unknown = sample(&mut Memory::default(), &all, false).unwrap();
        assert_eq!(unknown.pending.unwrap(), Pending { events: 12, exact: false });
        assert!(unknown.upper_bound.unwrap().contains("topic unknown"));
        assert!(pending(&[("compacted", 0, offsets(Some(9), 0, 9, None))], false).1);
        // Or the first record is not where the group continues.
        assert!(!pending(&[("a", 0, offsets(Some(3), 0, 9, record(5, 0)))], false).1);
    }

    #[test]
    fn what_was_deleted_before_it_was_handled_is_told() {
        let sample = sample(&mut Memory::default(), &[("a", 0, offsets(Some(3), 7, 9, record(7, 0)))], false).unwrap();
        assert_eq!((sample.pending.unwrap().events, sample.faults.deleted), (2, 4));
    }

    #[test]
    fn a_group_that_never_committed_is_unknown_unless_the_spec_says_where_it_begins() {
        let all = [("a", 0, offsets(None, 2, 9, record(2, 0)))];
        let unknown = sample(&mut Memory::default(), &all, false).unwrap();
        assert_eq!((unknown.checkpoint, unknown.pending), (CheckpointState::NeverCommitted, None));
        assert_eq!(pending(&all, true).0, 7);
    }

    #[test]
    fn one_partition_without_a_commit_is_an_upper_bound_that_names_it_unless_it_is_empty() {
        let one_waits = ("a", 0, offsets(Some(4), 0, 5, record(4, 0)));
        let mut memory = Memory::default();
        let told = sample(&mut memory, &[one_waits, ("a", 1, offsets(None, 2, 9, record(2, 0)))], false).unwrap();
        assert_eq!((told.pending.unwrap(), told.beyond_all_rows), (Pending { events: 8, exact: false }, Some(1)));
        assert!(told.upper_bound.unwrap().contains("partition 1 of topic a"));
        let told = sample(&mut memory, &[one_waits, ("a", 1, offsets(None, 0, 0, None))], false).unwrap();
        assert_eq!((told.pending.unwrap(), told.upper_bound), (Pending { events: 1, exact: true }, None));
    }

    #[test]
    fn commits_that_are_gone_are_not_a_group_that_never_committed() {
        let mut memory = Memory::default();
        sample(&mut memory, &[("a", 0, offsets(Some(5), 0, 5, None))], false).unwrap();
        assert_eq!(sample(&mut memory, &[("a", 0, offsets(None, 0, 5, None))], false), Err(CommitsGone));
    }

    #[test]
    fn arrivals_only_grow_with_partitions_added_and_topics_created_again() {
        let mut memory = Memory::default();
        let mut arrived = |all: &[(&str, i32, Offsets)]| sample(&mut memory, all, false).unwrap().arrived;
        let at = |latest| offsets(Some(0), 0, latest, record(0, 0));
        assert_eq!(arrived(&[("a", 0, at(5))]), 0);
        assert_eq!(arrived(&[("a", 0, at(8))]), 3);
        assert_eq!(arrived(&[("a", 0, at(8)), ("a", 1, at(4))]), 7);
        assert_eq!(arrived(&[("a", 0, at(2)), ("a", 1, at(4))]), 9);
    }

    #[test]
    fn an_offset_outlives_its_topic_until_it_changes_and_no_partition_is_lost_by_that() {
        let mut memory = Memory::default();
        let mut at = |topic: u8, committed, latest| {
            let offsets = Offsets { topic: [topic; 16], ..offsets(committed, 0, latest, record(0, 0)) };
            let found = found(&[("a", 0, offsets)]);
            let told = memory.created_again(&found).map_err(|outlived| outlived.offset);
            told.map(|()| {
                let nature = Nature { compacted: Some(false), transactional: false };
                let told = memory.sample(&found, false, |_| nature, (Duration::from_secs(1), NOW)).unwrap();
                (told.pending_by_shard, told.arrived)
            })
        };
        assert_eq!(at(1, Some(5), 5), Ok((vec![0], 0)));
        assert_eq!((at(2, Some(6), 9), at(2, Some(6), 9)), (Err(6), Err(6)));
        assert_eq!(at(2, Some(7), 9), Ok((vec![2], 9)));
        // Brokers that know no identities, and those that begin to.
        assert_eq!(at(0, Some(7), 9), Ok((vec![2], 9)));
        assert_eq!(at(3, Some(7), 9), Ok((vec![2], 9)));
        assert_eq!(at(4, Some(2), 9), Ok((vec![7], 18)));
        let mut fresh = Memory::default();
        let of = |topic: u8| found(&[("a", 0, Offsets { topic: [topic; 16], ..offsets(Some(3), 0, 2, None) })]);
        // Refused for another reason before it was ever counted.
        fresh.created_again(&of(1)).unwrap();
        assert!(fresh.created_again(&of(2)).is_err());
        assert_eq!(sample(&mut fresh, &[("a", 0, offsets(Some(1), 0, 2, None))], false).unwrap().pending_by_shard, [1]);
    }

    #[test]
    fn a_partition_that_is_added_takes_the_last_place() {
        let mut memory = Memory::default();
        let at = |latest| offsets(Some(0), 0, latest, record(0, 0));
        sample(&mut memory, &[("a", 0, at(1)), ("b", 0, at(2))], false).unwrap();
        let told = sample(&mut memory, &[("a", 0, at(1)), ("a", 1, at(3)), ("b", 0, at(2))], false).unwrap();
        assert_eq!(told.pending_by_shard, [1, 2, 3]);
        assert_eq!(told.head, Head::Shards(vec![Position(1), Position(2), Position(3)]));
    }
}
