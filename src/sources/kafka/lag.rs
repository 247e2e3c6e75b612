//! What is told of a projection's partitions, and remembered of them from poll to poll: pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use super::partitions::{Counts, Nature, Offsets, TopicId, difference};
use crate::{
    clients::kafka::Partition,
    lag::{Certain, CheckpointState, Head, LogProgress, Pending, Position, Sample},
};

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
        let mut told = Counts::default();
        for (partition, offsets) in &partitions {
            told.add(partition, offsets, reset_to_earliest, nature(&partition.0), now);
        }
        let by_log = partitions.iter().zip(&told.by_partition).filter_map(|((partition, offsets), pending)| {
            // One beyond the end is of another log.
            let committed = offsets.committed.filter(|committed| *committed <= offsets.latest)?;
            let next = if *pending == 0 { offsets.latest } else { committed };
            let done_up_to = Position(next.saturating_sub(1));
            Some(LogProgress { name: Arc::clone(&partition.0), number: partition.1, done_up_to })
        });
        let by_log = by_log.collect();
        let pending = Pending { events: told.by_partition.iter().sum(), exact: told.exact };
        let checkpoint = CheckpointState::Committed(told.checkpoints);
        let mut sample = Sample::new(at, heads, checkpoint, Some(pending), self.arrived);
        sample.pending_by_shard = told.by_partition;
        sample.by_log = by_log;
        sample.staleness = told.staleness;
        sample.ahead_of_clock = told.ahead;
        sample.faults.deleted = told.lost;
        sample.certain = (!pending.exact).then(|| match told.uncommitted {
            // What no commit tells of is no queue to plan with, and its age is not that of an event that waits.
            Some(_) => Certain::Newest(told.certain),
            None if told.unseen => Certain::oldest_of_part(told.certain),
            None => Certain::oldest(told.certain),
        });
        // Where the log has no gaps at the committed offsets, offsets are handled as records are, with markers spread among them.
        sample.tells_rates = told.gapless && told.uncommitted.is_none();
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

#[cfg(test)]
#[path = "lag_tests.rs"]
mod tests;
