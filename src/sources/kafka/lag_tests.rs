//! What is told of partitions from poll to poll.

use super::*;
use crate::clients::kafka::FirstRecord;

const NOW: i64 = 1_000_000;

fn record(offset: i64, age: i64) -> Option<FirstRecord> {
    Some(FirstRecord::Batch { oldest: NOW - age, newest: NOW, offset, transactional: false, records: 1, gapless: true })
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
    let first = Some(FirstRecord::Batch {
        oldest: NOW,
        newest: NOW,
        offset: 3,
        transactional: true,
        records: 2,
        gapless: true,
    });
    assert_eq!(pending(&[("a", 0, offsets(Some(3), 0, 9, first))], false), (6, false, Some(Duration::ZERO)));
    // Or they were seen at another time or in another partition.
    assert!(!pending(&[("transactional", 0, offsets(Some(3), 0, 9, record(3, 0)))], false).1);
    assert!(pending(&[("transactional", 0, offsets(Some(9), 0, 9, None))], false).1);
}

#[test]
fn a_compacted_topic_is_counted_as_an_upper_bound_unless_nothing_waits() {
    assert!(!pending(&[("compacted", 0, offsets(Some(3), 0, 9, record(3, 0)))], false).1);
    let all = [("a", 0, offsets(Some(3), 0, 9, record(3, 0))), ("unknown", 0, offsets(Some(3), 0, 9, record(3, 0)))];
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
    assert_eq!((told.pending.unwrap(), told.certain), (Pending { events: 8, exact: false }, Some(Certain::Newest(1))));
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
