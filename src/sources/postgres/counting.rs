//! How pending events are counted at a bounded cost: what to ask the server for, and what its answer means. No IO.
//!
//! Projections without known shards share the scan: their checkpoints and the last safe head cut the log into segments, each counted once.
//! With the built-in projector each event must be hashed; there each projection's events are scanned from its lowest shard on, so many
//! at most that all scans of a poll together stay bounded.

use std::{collections::BTreeSet, time::Duration};

use crate::lag::{Pending, Position};

/// Events are counted exactly up to this many in one scan.
pub(super) const EXACT_UP_TO: i64 = 10_000;
/// All scans of one statement together read no more events than this.
const SCANNED_AT_MOST: i64 = 200_000;
const FEWEST_SCANNED: i64 = 100;

/// How many events each of `scans` scans may read.
pub(super) fn scan_limit(scans: usize) -> i64 {
    let scans = i64::try_from(scans.max(1)).unwrap_or(i64::MAX);
    (SCANNED_AT_MOST / scans).clamp(FEWEST_SCANNED, EXACT_UP_TO + 1)
}

/// What waits for one projection.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Waiting {
    pub(super) pending: Pending,
    pub(super) by_shard: Vec<u64>,
    pub(super) oldest: Oldest,
}

/// The oldest event that waits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Oldest {
    /// There is none.
    None,
    /// There is one; its time is NULL, or it was not reached.
    Unknown,
    /// Its age in seconds by the source's clock when it was counted; negative when its time lies in the future.
    Age(f64),
}

impl Oldest {
    /// Staleness, and how far the event's time lies in the future, so long after counting.
    pub(super) fn after(self, elapsed: Duration) -> (Option<Duration>, Duration) {
        match self {
            Self::None => (Some(Duration::ZERO), Duration::ZERO),
            Self::Unknown => (None, Duration::ZERO),
            Self::Age(age) => {
                let age = age + elapsed.as_secs_f64();
                let duration = |seconds: f64| Duration::try_from_secs_f64(seconds.max(0.0)).ok();
                (duration(age), duration(-age).unwrap_or(Duration::MAX))
            }
        }
    }
}

impl Waiting {
    pub(super) fn nothing(shards: usize) -> Self {
        Self { pending: Pending { events: 0, exact: true }, by_shard: vec![0; shards], oldest: Oldest::None }
    }
}

/// A piece of the log, `low` excluded and `high` included.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Segment {
    pub(super) low: i64,
    pub(super) high: i64,
    /// What was counted, or a bound.
    pub(super) events: Pending,
    pub(super) first: Oldest,
}

impl Segment {
    /// From the server's answer: `count` stops at `limit`.
    pub(super) fn new((low, high): (i64, i64), count: i64, limit: i64, found: bool, age: Option<f64>) -> Self {
        let exact = count < limit;
        let events = if exact { count } else { high.saturating_sub(low).max(count) };
        let first = match (found, age) {
            (false, _) => Oldest::None,
            (true, None) => Oldest::Unknown,
            (true, Some(age)) => Oldest::Age(age),
        };
        Self { low, high, events: Pending { events: unsigned(events), exact }, first }
    }
}

/// Where to cut the log between the lowest of `points` and `head`.
pub(super) fn segments(points: impl Iterator<Item = Position>, head: Position) -> Vec<(i64, i64)> {
    let mut cuts: BTreeSet<i64> = points.map(|point| point.0).filter(|point| *point < head.0).collect();
    cuts.insert(head.0);
    let cuts: Vec<i64> = cuts.into_iter().collect();
    cuts.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

/// Events after `low` up to `high`, both of which the log was cut at.
pub(super) fn between(segments: &[Segment], low: Position, high: Position) -> Pending {
    let inside = segments.iter().filter(|segment| segment.low >= low.0 && segment.high <= high.0);
    inside.fold(NONE, |sum, segment| add(sum, segment.events))
}

/// What waits beyond `checkpoint` up to `end`. The log was cut at both, as far as it was counted there.
pub(super) fn waiting_between(segments: &[Segment], checkpoint: Position, end: Position) -> Waiting {
    let first = segments.iter().filter(|segment| segment.low >= checkpoint.0 && segment.high <= end.0);
    let oldest = first.map(|segment| segment.first).find(|first| *first != Oldest::None).unwrap_or(Oldest::None);
    Waiting { pending: between(segments, checkpoint, end), by_shard: Vec::new(), oldest }
}

const NONE: Pending = Pending { events: 0, exact: true };

/// Both together.
pub(super) fn add(a: Pending, b: Pending) -> Pending {
    Pending { events: a.events.saturating_add(b.events), exact: a.exact && b.exact }
}

/// One row of the server's answer about a sharded projection.
#[derive(Clone, Debug)]
pub(super) struct ShardRow {
    pub(super) shard: usize,
    /// Events of the shard that the scan met.
    pub(super) scanned: i64,
    /// Those of them beyond the shard's checkpoint.
    pub(super) pending: i64,
    /// The last position that the scan met in the shard.
    pub(super) last: i64,
    /// The first pending one, with its age.
    pub(super) oldest: Option<(i64, Option<f64>)>,
}

/// What waits for a projection whose shards stand at `checkpoints`.
pub(super) fn waiting_by_shard(rows: &[ShardRow], checkpoints: &[Position], safe: Position, limit: i64) -> Waiting {
    let mut by_shard = vec![0_u64; checkpoints.len()];
    for row in rows {
        if let Some(count) = by_shard.get_mut(row.shard) {
            *count = unsigned(row.pending);
        }
    }
    let counted: u64 = by_shard.iter().sum();
    let scanned: i64 = rows.iter().map(|row| row.scanned).sum();
    let oldest = rows.iter().filter_map(|row| row.oldest).min_by_key(|(position, _)| *position);
    let truncated = scanned >= limit;
    let oldest = match oldest {
        Some((_, Some(age))) => Oldest::Age(age),
        Some((_, None)) => Oldest::Unknown,
        None if truncated => Oldest::Unknown,
        None => Oldest::None,
    };
    if !truncated {
        return Waiting { pending: Pending { events: counted, exact: true }, by_shard, oldest };
    }
    let last = rows.iter().map(|row| row.last).max().unwrap_or(safe.0);
    let shards = i64::try_from(checkpoints.len().max(1)).unwrap_or(i64::MAX);
    for (count, checkpoint) in by_shard.iter_mut().zip(checkpoints) {
        // Beyond the scan nobody knows which shard an event belongs to: taken as spread evenly.
        let beyond = unsigned(safe.0.saturating_sub(last.max(checkpoint.0)));
        *count = count.saturating_add(beyond.div_ceil(unsigned(shards)));
    }
    let beyond = unsigned(safe.0.saturating_sub(last));
    Waiting { pending: Pending { events: counted.saturating_add(beyond), exact: false }, by_shard, oldest }
}

/// Counts and differences of positions, where negative means nothing.
pub(super) fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: Position = Position(i64::MAX);

    fn segment(low: i64, high: i64, count: i64, first: Oldest) -> Segment {
        Segment { first, ..Segment::new((low, high), count, EXACT_UP_TO + 1, true, None) }
    }

    #[test]
    fn the_log_is_cut_at_each_checkpoint_once_and_never_beyond_the_head() {
        let points = [5, 9, 5, 30, 12].map(Position);
        assert_eq!(segments(points.into_iter(), Position(12)), [(5, 9), (9, 12)]);
        assert_eq!(segments([Position(12)].into_iter(), Position(12)), []);
    }

    #[test]
    fn each_projection_waits_for_all_segments_beyond_its_checkpoint() {
        let cut = [segment(5, 9, 3, Oldest::Age(8.0)), segment(9, 12, 2, Oldest::Age(4.0))];
        assert_eq!(waiting_between(&cut, Position(5), END).pending, Pending { events: 5, exact: true });
        assert_eq!(waiting_between(&cut, Position(5), END).oldest, Oldest::Age(8.0));
        assert_eq!(waiting_between(&cut, Position(9), END).pending, Pending { events: 2, exact: true });
        assert_eq!(waiting_between(&cut, Position(12), END), Waiting::nothing(0));
        assert_eq!(waiting_between(&cut, Position(40), END), Waiting::nothing(0));
    }

    #[test]
    fn an_empty_segment_leaves_the_oldest_event_to_the_next() {
        let cut = [segment(5, 9, 0, Oldest::None), segment(9, 12, 2, Oldest::Unknown)];
        assert_eq!(waiting_between(&cut, Position(5), END).oldest, Oldest::Unknown, "NULL is not fresh");
    }

    #[test]
    fn beyond_the_bound_a_count_becomes_an_upper_bound() {
        let limit = EXACT_UP_TO + 1;
        let long = Segment::new((0, 1_000_000), limit, limit, true, Some(3.0));
        assert_eq!(long.events, Pending { events: 1_000_000, exact: false });
        let short = segment(1_000_000, 1_000_010, 4, Oldest::Age(1.0));
        assert_eq!(
            waiting_between(&[long, short], Position(0), END).pending,
            Pending { events: 1_000_004, exact: false }
        );
    }

    #[test]
    fn shards_count_their_own_events_and_the_oldest_is_the_first_of_all() {
        let rows = [
            ShardRow { shard: 0, scanned: 4, pending: 2, last: 9, oldest: Some((8, Some(2.0))) },
            ShardRow { shard: 2, scanned: 3, pending: 3, last: 7, oldest: Some((6, Some(5.0))) },
        ];
        let waiting = waiting_by_shard(&rows, &[7, 9, 5].map(Position), Position(9), 100);
        assert_eq!(waiting.pending, Pending { events: 5, exact: true });
        assert_eq!(waiting.by_shard, [2, 0, 3]);
        assert_eq!(waiting.oldest, Oldest::Age(5.0));
    }

    #[test]
    fn a_scan_that_ends_early_gives_an_upper_bound() {
        let rows = [ShardRow { shard: 0, scanned: 100, pending: 0, last: 150, oldest: None }];
        let waiting = waiting_by_shard(&rows, &[900, 50].map(Position), Position(1_000), 100);
        assert_eq!(waiting.pending, Pending { events: 850, exact: false });
        assert_eq!(waiting.oldest, Oldest::Unknown, "its first event lies beyond the scan");
        assert_eq!(waiting.by_shard, [50, 425]);
    }

    #[test]
    fn many_scans_share_the_bound() {
        assert_eq!(scan_limit(1), EXACT_UP_TO + 1);
        assert_eq!(scan_limit(100), 2_000);
        assert_eq!(scan_limit(1_000_000), FEWEST_SCANNED);
    }

    #[test]
    fn an_event_of_the_future_is_not_stale_until_its_time_has_come() {
        assert_eq!(Oldest::Age(-3.0).after(Duration::from_secs(1)), (Some(Duration::ZERO), Duration::from_secs(2)));
        assert_eq!(Oldest::Age(-3.0).after(Duration::from_secs(5)), (Some(Duration::from_secs(2)), Duration::ZERO));
        assert_eq!(Oldest::Unknown.after(Duration::from_secs(5)).0, None);
    }
}
