//! How pending events are counted at a bounded cost: what to ask the server for, and what its answer means. No IO.
//!
//! Projections without known shards share the scan: their checkpoints and both heads cut the log into segments, each counted once. For shards see
//! [`super::tally`].

use std::{collections::BTreeSet, time::Duration};

use crate::lag::{Pending, Position};

/// Events are counted exactly up to this many in one scan.
pub(super) const EXACT_UP_TO: i64 = 10_000;
/// All scans of one statement together read no more events than this.
const SCANNED_AT_MOST: i64 = 200_000;
const FEWEST_SCANNED: i64 = 100;
/// Why a count that ended at its limit is an estimate, for people.
pub(super) const CUT: &str =
    "more events wait than are counted at a time, and the rest is the distance of their positions, which may have gaps";

/// How many events each of `scans` scans may read.
pub(super) fn scan_limit(scans: usize) -> i64 {
    let scans = i64::try_from(scans.max(1)).unwrap_or(i64::MAX);
    (SCANNED_AT_MOST / scans).clamp(FEWEST_SCANNED, EXACT_UP_TO + 1)
}

/// What waits for one projection.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Waiting {
    pub(super) pending: Pending,
    /// So many of them were counted one by one.
    pub(super) counted: u64,
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
    /// The same, so long after it was counted.
    pub(super) fn older_by(self, elapsed: Duration) -> Self {
        match self {
            Self::Age(age) => Self::Age(age + elapsed.as_secs_f64()),
            other => other,
        }
    }

    /// Staleness, and how far the event's time lies in the future, so long after counting.
    pub(super) fn after(self, elapsed: Duration) -> (Option<Duration>, Duration) {
        match self.older_by(elapsed) {
            Self::None => (Some(Duration::ZERO), Duration::ZERO),
            Self::Unknown => (None, Duration::ZERO),
            Self::Age(age) => {
                let duration = |seconds: f64| Duration::try_from_secs_f64(seconds.max(0.0)).ok();
                (duration(age), duration(-age).unwrap_or(Duration::MAX))
            }
        }
    }
}

/// A piece of the log, `low` excluded and `high` included.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Segment {
    pub(super) low: i64,
    pub(super) high: i64,
    /// What was counted, or a bound.
    pub(super) events: Pending,
    /// What was counted one by one.
    pub(super) counted: u64,
    pub(super) first: Oldest,
    /// The count ended at its limit, and there are gaps among the positions that it read: what is told of the rest is no count.
    pub(super) gaps: bool,
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
        Self {
            low,
            high,
            events: Pending { events: unsigned(events), exact },
            counted: unsigned(count),
            first,
            gaps: false,
        }
    }

    /// The same, where the count came to this position.
    pub(super) fn up_to(self, last: Option<i64>, count: i64) -> Self {
        let gaps = !self.events.exact && last.is_none_or(|last| has_gaps(last.saturating_sub(self.low), count));
        Self { gaps, ..self }
    }
}

/// So many positions hold clearly fewer events than positions. A few gaps, as failed appends leave them, distort no rate.
pub(super) fn has_gaps(positions: i64, events: i64) -> bool {
    positions.saturating_sub(events) > events / 20
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
    let counted = first.clone().fold(0_u64, |sum, segment| sum.saturating_add(segment.counted));
    let oldest = first.map(|segment| segment.first).find(|first| *first != Oldest::None).unwrap_or(Oldest::None);
    Waiting { pending: between(segments, checkpoint, end), counted, oldest }
}

const NONE: Pending = Pending { events: 0, exact: true };

/// Both together.
pub(super) fn add(a: Pending, b: Pending) -> Pending {
    Pending { events: a.events.saturating_add(b.events), exact: a.exact && b.exact }
}

/// Counts and differences of positions, where negative means nothing.
pub(super) fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: Position = Position(i64::MAX);

    fn nothing() -> Waiting {
        Waiting { pending: NONE, counted: 0, oldest: Oldest::None }
    }

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
        assert_eq!(waiting_between(&cut, Position(12), END), nothing());
        assert_eq!(waiting_between(&cut, Position(40), END), nothing());
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
    fn gaps_matter_where_a_count_was_cut_and_they_are_many() {
        let gaps = |count, limit, last| Segment::new((0, 1_000_000), count, limit, true, None).up_to(last, count).gaps;
        assert!(!gaps(9, 10, Some(900)), "all were counted");
        assert!(!gaps(10_001, 10_001, Some(10_001)) && !gaps(10_001, 10_001, Some(10_400)));
        assert!(gaps(10_001, 10_001, Some(20_002)) && gaps(10_001, 10_001, None));
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
