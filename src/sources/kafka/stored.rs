//! Offsets that a read store holds, one a partition: which partition each belongs to, and whether it makes sense in the log. Pure.

use std::collections::{BTreeMap, HashMap};

use super::{
    partitions::{Committed, Offsets},
    question::{Progress, Question},
};
use crate::{
    api::{Reason, StoredOffset},
    clients::kafka::{KafkaError, Partition},
    lag::{CheckpointState, Position},
    measure::MeasureError,
    read_stores::Checkpoint,
};

/// More characters of a name that the read store holds are not shown.
const MOST_SHOWN: usize = 80;

/// The offset that is read next, by partition. Partitions without an offset are absent; so are all where a group keeps the offsets.
///
/// # Errors
/// What was read tells no partitions, or none of these topics.
pub(super) fn offsets(question: &Question, checkpoint: Option<&Checkpoint>) -> Result<Committed, MeasureError> {
    let Progress::Stored { meaning, .. } = &question.progress else { return Ok(Committed::new()) };
    let Some(Checkpoint { state: CheckpointState::Committed(positions), shards, .. }) = checkpoint else {
        return Ok(Committed::new());
    };
    let Some(shards) = shards else {
        return Err(invalid(
            "the checkpoint holds one number, and Kafka has an offset for each partition: store an object with a field for each, such as {\"orders-0\": 17}",
        ));
    };
    let mut found = Committed::new();
    let mut fields: BTreeMap<Partition, &str> = BTreeMap::new();
    for (shard, Position(offset)) in shards.iter().zip(positions) {
        let (topic, number) = partition(shard).ok_or_else(|| {
            let shown: String = shard.chars().take(MOST_SHOWN).collect();
            invalid(&format!(
                "the checkpoint has a field {shown:?} that names no partition: a field is the topic, a hyphen and the partition's number, such as orders-0"
            ))
        })?;
        let Some(topic) = question.topics.iter().find(|one| ***one == *topic) else { continue };
        let next = match meaning {
            StoredOffset::NextToRead => *offset,
            StoredOffset::LastHandled => offset.saturating_add(1),
        };
        // `a-0` and `a-00` are one partition, and which of them counts is not known.
        if let Some(other) = fields.insert((topic.clone(), number), shard) {
            return Err(invalid(&format!(
                "the checkpoint has two fields for partition {number} of topic {topic}, {other:?} and {shard:?}: delete the one that the projector does not write"
            )));
        }
        found.insert((topic.clone(), number), Some(next));
    }
    if found.is_empty() && !shards.is_empty() {
        let shown: String = shards[0].chars().take(MOST_SHOWN).collect();
        return Err(invalid(&format!(
            "the checkpoint has offsets, such as that of {shown:?}, and none of the topics in spec.source.kafka.topics"
        )));
    }
    Ok(found)
}

/// `orders-0` as Kafka's own tools write a partition: the number is behind the last hyphen, since topics may hold hyphens.
fn partition(shard: &str) -> Option<(&str, i32)> {
    let (topic, number) = shard.rsplit_once('-')?;
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    Some((topic, number.parse().ok().filter(|_| digits && !topic.is_empty())?))
}

/// What is stored, unless it is for a partition that the cluster does not have.
pub(super) fn of_partitions<'a>(
    stored: Option<&'a Committed>,
    partitions: &BTreeMap<Partition, i32>,
) -> Result<&'a Committed, KafkaError> {
    let stored = stored.ok_or_else(|| KafkaError::not_told("the stored offsets"))?;
    match stored.keys().find(|partition| !partitions.contains_key(*partition)) {
        None => Ok(stored),
        Some((topic, number)) => {
            let message = format!(
                "the read store holds an offset for partition {number} of topic {topic}, which has no such partition. Kafka never takes one away: was the topic created again with fewer? Then no offset that is stored for it is right: delete them, and let the projector begin again"
            );
            Err(KafkaError::new(Reason::InvalidAnswer, message))
        }
    }
}

/// Refuses offsets beyond the end of their log.
pub(super) fn within_the_log(found: &HashMap<Partition, Offsets>) -> Result<(), MeasureError> {
    let beyond = |offsets: &Offsets| offsets.committed.is_some_and(|next| next > offsets.latest);
    let Some(((topic, number), offsets)) = found.iter().filter(|(_, one)| beyond(one)).min_by_key(|(one, _)| *one)
    else {
        return Ok(());
    };
    let (next, end) = (offsets.committed.unwrap_or_default(), offsets.latest);
    Err(MeasureError {
        reason: Reason::CheckpointBeyondHead,
        message: format!(
            "by the offset in the read store offset {next} of partition {number} of topic {topic} is read next, and the log ends before {end}: was the topic created again? Or does spec.source.kafka.storedOffset say wrongly whether the number is that of the last record that was handled or of the next?"
        ),
    })
}

fn invalid(why: &str) -> MeasureError {
    MeasureError { reason: Reason::InvalidAnswer, message: format!("read store: {why}") }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{clients::kafka::Isolation, measure::RunKey};

    fn question(meaning: StoredOffset) -> Question {
        let of = RunKey::unversioned("shop", "list");
        Question {
            topics: Arc::new(["a".into(), "a-1".into()]),
            progress: Progress::Stored { of, meaning },
            isolation: Isolation::ReadCommitted,
            reset_to_earliest: false,
        }
    }

    fn checkpoint(rows: &[(&str, i64)]) -> Checkpoint {
        Checkpoint {
            state: CheckpointState::Committed(rows.iter().map(|(_, offset)| Position(*offset)).collect()),
            shards: Some(rows.iter().map(|(shard, _)| Arc::from(*shard)).collect()),
            bound: None,
            failed: Vec::new(),
            parked: None,
            uncalled: Vec::new(),
        }
    }

    #[test]
    fn an_offset_belongs_to_the_partition_behind_the_last_hyphen_and_means_what_the_spec_says() {
        let rows = checkpoint(&[("a-0", 7), ("a-1-12", 3), ("other-0", 9)]);
        for (meaning, expected) in [(StoredOffset::NextToRead, [7, 3]), (StoredOffset::LastHandled, [8, 4])] {
            let found = offsets(&question(meaning), Some(&rows)).unwrap();
            let partitions: Vec<(&str, i32)> = found.keys().map(|(topic, number)| (topic.as_ref(), *number)).collect();
            assert_eq!(partitions, [("a", 0), ("a-1", 12)]);
            assert_eq!(found.values().flatten().copied().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn what_names_no_partition_of_the_topics_is_not_taken_for_nothing() {
        let refused = |rows: &Checkpoint| offsets(&question(StoredOffset::NextToRead), Some(rows)).unwrap_err().message;
        for wrong in ["a", "a-", "a-x", "-0", "a-+1", "a-99999999999"] {
            assert!(refused(&checkpoint(&[("a-0", 1), (wrong, 1)])).contains("names no partition"), "{wrong}");
        }
        assert!(refused(&checkpoint(&[("b-0", 1)])).contains("none of the topics"));
        let twice = refused(&checkpoint(&[("a-0", 1), ("a-1-0", 2), ("a-00", 3)]));
        assert!(twice.contains("\"a-0\" and \"a-00\""), "{twice}");
        let one = Checkpoint { shards: None, ..checkpoint(&[("a-0", 1)]) };
        assert!(refused(&one).contains("holds one number"));
        let never = Checkpoint { state: CheckpointState::NeverCommitted, ..one };
        assert!(offsets(&question(StoredOffset::NextToRead), Some(&never)).unwrap().is_empty());
    }

    #[test]
    fn an_offset_of_a_partition_that_is_not_there_or_beyond_the_end_is_told() {
        let partition = (Arc::from("a"), 3);
        let stored = Committed::from([(partition.clone(), Some(5))]);
        let leaders = BTreeMap::from([((Arc::from("a"), 0), 1)]);
        assert!(of_partitions(Some(&stored), &leaders).unwrap_err().message.contains("partition 3 of topic a"));
        let offsets = |latest| {
            let offsets = Offsets { topic: [1; 16], committed: Some(5), earliest: 0, latest, first: None };
            HashMap::from([(partition.clone(), offsets)])
        };
        assert_eq!(within_the_log(&offsets(4)).unwrap_err().reason, Reason::CheckpointBeyondHead);
        assert!(within_the_log(&offsets(5)).is_ok());
    }
}
