//! How many committed events have come, whether or not they may be read yet. Pure.
//!
//! Below the safe head each event is counted once and for all. Between the safe head and the raw head events may still appear in gaps, so
//! that part is counted at each poll, and what appeared there since the last one is added.

use super::counting::{Segment, between};
use crate::lag::{LogHead, Pending, Position};

/// A counter that only grows.
#[derive(Clone, Debug, Default)]
pub(super) struct Arrivals {
    total: u64,
    last: Option<Last>,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    head: LogHead,
    /// Events between safe and raw head, where they were few enough to be counted.
    above: Option<u64>,
}

impl Arrivals {
    /// Events that came since counting began.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// The log was emptied or restored: what comes from now on is added.
    pub(super) fn restart(&mut self) {
        self.last = None;
    }

    /// Where the log must be cut, besides at both heads, for [`Self::take`].
    pub(super) fn cuts(&self) -> impl Iterator<Item = Position> {
        self.last.into_iter().flat_map(|last| [last.head.safe, last.head.raw])
    }

    /// Takes in a count of the log, cut at both heads and at [`Self::cuts`].
    pub(super) fn take(&mut self, counted: &[Segment], head: LogHead) {
        if let Some(Last { head: before, above }) = self.last {
            let newer = between(counted, before.raw, head.raw).events;
            let exact = |count: Pending| count.exact.then_some(count.events);
            // Where there were too many to count, the few that appeared in gaps are not told apart from them.
            let late =
                above.zip(exact(between(counted, before.safe, before.raw))).map(|(then, now)| now.saturating_sub(then));
            self.total = self.total.saturating_add(newer).saturating_add(late.unwrap_or(0));
        }
        let above = between(counted, head.safe, head.raw);
        self.last = Some(Last { head, above: above.exact.then_some(above.events) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log with events at these positions, and its heads.
    struct World {
        arrivals: Arrivals,
        events: Vec<i64>,
        limit: i64,
    }

    impl World {
        fn look(&mut self, safe: i64, raw: i64) -> u64 {
            let head = LogHead { raw: Position(raw), safe: Position(safe) };
            let points = self.arrivals.cuts().chain([head.safe, head.raw]);
            let cut = super::super::counting::segments(points, head.raw);
            let count = |(low, high): (i64, i64)| {
                let events = self.events.iter().filter(|event| **event > low && **event <= high).count();
                let count = i64::try_from(events).unwrap().min(self.limit);
                Segment::new((low, high), count, self.limit, count > 0, Some(1.0))
            };
            let counted: Vec<Segment> = cut.into_iter().map(count).collect();
            self.arrivals.take(&counted, head);
            self.arrivals.total()
        }
    }

    #[test]
    fn events_are_counted_when_they_are_committed_and_not_again_when_they_become_safe() {
        let mut world = World { arrivals: Arrivals::default(), events: vec![1, 2, 3], limit: 1_000 };
        assert_eq!(world.look(3, 3), 0, "what is there at first has not come");
        world.events.extend([5, 6]);
        assert_eq!(world.look(3, 6), 2, "4 is in flight");
        world.events.push(8);
        assert_eq!(world.look(3, 8), 3, "7 as well");
        world.events.push(7);
        assert_eq!(world.look(3, 8), 4, "7 appeared in its gap");
        world.events.push(4);
        assert_eq!(world.look(8, 8), 5, "all is safe now");
        assert_eq!(world.look(8, 8), 5);
        world.events.extend(9..=20);
        assert_eq!(world.look(12, 20), 17);
        assert_eq!(world.look(20, 20), 17, "released, and nothing more came");
    }

    #[test]
    fn a_long_hold_over_more_events_than_are_counted_makes_no_jump() {
        let mut world = World { arrivals: Arrivals::default(), events: Vec::new(), limit: 100 };
        world.look(0, 0);
        for batch in 0..10 {
            world.events.extend(batch * 100 + 2..=batch * 100 + 51);
            assert_eq!(world.look(0, batch * 100 + 51), u64::try_from(batch + 1).unwrap() * 50);
        }
        assert_eq!(world.look(951, 951), 500, "released");
    }
}
