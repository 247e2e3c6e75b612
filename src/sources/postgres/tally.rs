//! What waits in each shard of one projection: the waiting events themselves are remembered, so that each poll reads only what is new. Pure.
//!
//! The row of a quiet shard stays at its last event while the log grows. Counting from the lowest row at each poll would read all that has come
//! since, again and again. So the log is walked once, a piece a poll, and what waits is kept: an event is let go when its shard's row
//! reaches it. How many are kept is bounded; beyond that the count is an upper bound, as it is while the first walk is under way.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::counting::{Oldest, unsigned};
use crate::lag::Pending;

/// A shard of a checkpoint and the position up to which it is done.
pub(super) type ShardRow = (Arc<str>, i64);

/// An event that waits, as the source told it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) position: i64,
    pub(super) shard: String,
    /// When it was appended, in seconds on a clock of the caller's.
    pub(super) born: Option<f64>,
}

/// What a walk over a piece of the log met.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Walk {
    /// Events, waiting or not.
    pub(super) events: i64,
    /// The position of the last one.
    pub(super) last: i64,
    /// Those beyond their shard's row, in order.
    pub(super) waiting: Vec<Found>,
}

/// Follows one projection.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    rows: Vec<ShardRow>,
    by_key: HashMap<Arc<str>, i64>,
    /// Each waiting event up to this position is in `waiting`.
    until: i64,
    waiting: BTreeMap<i64, (Arc<str>, Option<f64>)>,
}

impl Tally {
    /// Takes in the checkpoint. `complete` says that there is a row for each shard that there can be; otherwise events of a shard without a row have
    /// never been handled, wherever in the log they are.
    pub(super) fn follow(&mut self, rows: &[ShardRow], complete: bool) {
        let lowest = if complete { rows.iter().map(|row| row.1).min().unwrap_or(0) } else { 0 };
        if self.rows != rows {
            let now: HashMap<Arc<str>, i64> = rows.iter().cloned().collect();
            let went_back = self.by_key.iter().any(|(shard, before)| now.get(shard).is_none_or(|row| row < before));
            if went_back {
                self.waiting.clear();
                self.until = 0;
            }
            self.rows = rows.to_vec();
            self.by_key = now;
            let by_key = &self.by_key;
            self.waiting.retain(|position, (shard, _)| by_key.get(shard).is_none_or(|row| position > row));
        }
        self.until = self.until.max(lowest);
    }

    /// The rows, for the source to sift by.
    pub(super) fn rows(&self) -> &[ShardRow] {
        &self.rows
    }

    /// From where to walk on and over how many events at most, if there is anything to walk over up to `safe` and room for what waits there.
    pub(super) fn next(&self, safe: i64, most: i64, room: usize) -> Option<(i64, i64)> {
        let room = i64::try_from(room.saturating_sub(self.waiting.len())).unwrap_or(i64::MAX);
        // Most of what comes may wait: no more is asked for than there is room for, give or take.
        let limit = most.min(room.saturating_mul(4).max(MOST_UNSIFTED));
        (self.until < safe && room > 0).then_some((self.until, limit))
    }

    /// Takes in a walk up to `safe` over at most `limit` events, keeping at most `room` that wait.
    pub(super) fn take(&mut self, walk: Walk, safe: i64, limit: i64, room: usize) {
        let left = room.saturating_sub(self.waiting.len());
        let mut reached = if walk.events < limit { safe } else { walk.last };
        if walk.waiting.len() > left
            && let Some(last_kept) = left.checked_sub(1).and_then(|last| walk.waiting.get(last))
        {
            reached = last_kept.position;
        }
        for Found { position, shard, born } in walk.waiting.into_iter().take(left) {
            let shard =
                self.by_key.get_key_value(shard.as_str()).map_or_else(|| shard.into(), |(known, _)| Arc::clone(known));
            self.waiting.insert(position, (shard, born));
        }
        self.until = self.until.max(reached);
    }

    /// Positions of the waiting events, to ask whether they are still there.
    pub(super) fn positions(&self) -> impl Iterator<Item = i64> {
        self.waiting.keys().copied()
    }

    /// These are not there any more.
    pub(super) fn forget(&mut self, deleted: &[i64]) {
        for position in deleted {
            self.waiting.remove(position);
        }
    }

    /// The walk has not come to `safe` yet although there is room.
    pub(super) fn is_walking(&self, safe: i64, room: usize) -> bool {
        self.until < safe && self.waiting.len() < room
    }

    /// A row is beyond this position.
    pub(super) fn reaches_beyond(&self, position: i64) -> bool {
        self.rows.iter().any(|row| row.1 > position)
    }

    /// What waits up to `safe`.
    pub(super) fn pending(&self, safe: i64) -> Pending {
        let kept = self.counted();
        let exact = self.until >= safe;
        let beyond = if exact { 0 } else { unsigned(safe.saturating_sub(self.until)) };
        Pending { events: kept.saturating_add(beyond), exact }
    }

    /// What waits for certain, where [`Self::pending`] is a bound only since the walk over events that may be done long ago has not ended.
    pub(super) fn certain(&self, safe: i64, room: usize) -> Option<u64> {
        self.is_walking(safe, room).then(|| self.counted())
    }

    /// The waiting events that the walk has come to.
    pub(super) fn counted(&self) -> u64 {
        u64::try_from(self.waiting.len()).unwrap_or(u64::MAX)
    }

    /// What waits in each shard: those of the checkpoint in its order, then others that have events. What lies beyond the walk is taken as spread evenly.
    pub(super) fn by_shard(&self, safe: i64) -> Vec<u64> {
        let mut counts: HashMap<&str, u64> = HashMap::new();
        for (shard, _) in self.waiting.values() {
            *counts.entry(shard).or_default() += 1;
        }
        let beyond = if self.until >= safe { 0 } else { unsigned(safe.saturating_sub(self.until)) };
        let each = beyond.div_ceil(u64::try_from(self.rows.len().max(1)).unwrap_or(u64::MAX));
        let known = self.rows.iter().map(|(shard, _)| counts.remove(&**shard).unwrap_or(0) + each).collect::<Vec<_>>();
        let mut others: Vec<(&str, u64)> = counts.into_iter().collect();
        others.sort_unstable();
        known.into_iter().chain(others.into_iter().map(|(_, count)| count)).collect()
    }

    /// No event at or below this position waits.
    pub(super) fn handled_up_to(&self) -> i64 {
        self.waiting.keys().next().map_or(self.until, |first| self.until.min(first.saturating_sub(1)))
    }

    /// The oldest event that waits up to `safe`, `now` being on the clock of [`Found::born`].
    pub(super) fn oldest(&self, safe: i64, now: f64) -> Oldest {
        match self.waiting.values().next() {
            Some((_, Some(born))) => Oldest::Age(now - born),
            Some((_, None)) => Oldest::Unknown,
            None if self.until < safe => Oldest::Unknown,
            None => Oldest::None,
        }
    }
}

/// A walk may be over so many events, however little room there is.
const MOST_UNSIFTED: i64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 100;

    /// A log: position and shard of each event.
    struct World {
        tally: Tally,
        log: Vec<(i64, &'static str)>,
        rows: Vec<(&'static str, i64)>,
        complete: bool,
        room: usize,
        walked: i64,
    }

    impl World {
        fn poll(&mut self, most: i64) -> Pending {
            let rows: Vec<ShardRow> = self.rows.iter().map(|(shard, row)| (Arc::from(*shard), *row)).collect();
            let safe = self.log.last().map_or(0, |event| event.0);
            self.tally.follow(&rows, self.complete);
            if let Some((from, limit)) = self.tally.next(safe, most, self.room) {
                let piece: Vec<_> =
                    self.log.iter().filter(|event| event.0 > from).take(usize::try_from(limit).unwrap()).collect();
                let done = |shard: &str| self.rows.iter().find(|row| row.0 == shard).map_or(i64::MIN, |row| row.1);
                let waiting =
                    piece.iter().filter(|(position, shard)| *position > done(shard)).map(|(position, shard)| Found {
                        position: *position,
                        shard: (*shard).to_owned(),
                        born: Some(f64::from(u32::try_from(*position).unwrap())),
                    });
                let events = i64::try_from(piece.len()).unwrap();
                self.walked += events;
                let walk = Walk { events, last: piece.last().map_or(0, |event| event.0), waiting: waiting.collect() };
                self.tally.take(walk, safe, limit, self.room);
            }
            self.tally.pending(safe)
        }

        fn truth(&self) -> u64 {
            let waits = |(position, shard): &&(i64, &str)| {
                self.rows.iter().find(|row| row.0 == *shard).is_none_or(|row| *position > row.1)
            };
            u64::try_from(self.log.iter().filter(waits).count()).unwrap()
        }
    }

    fn world(events: i64) -> World {
        let shards = ["a", "b", "c"];
        let log = (1..=events).map(|position| (position, shards[usize::try_from(position % 3).unwrap()]));
        let rows = vec![("a", events), ("b", events), ("c", events)];
        World { tally: Tally::default(), log: log.collect(), rows, complete: true, room: ROOM, walked: 0 }
    }

    #[test]
    fn a_quiet_shard_is_not_counted_as_waiting_and_its_row_costs_one_walk() {
        let mut world = world(3_000);
        world.log.retain(|(position, shard)| *shard != "a" || *position <= 9);
        world.rows[0].1 = 9;
        assert!(!world.poll(1_000).exact);
        assert_eq!(world.tally.certain(3_000, ROOM), Some(0), "nothing waits for certain yet");
        world.poll(1_000);
        assert_eq!(world.poll(1_000), Pending { events: 0, exact: true });
        let walked = world.walked;
        for position in 3_001..=3_010 {
            world.log.push((position, "b"));
            assert_eq!(world.poll(1_000).events, unsigned(position - 3_000));
        }
        assert_eq!(world.walked, walked + 10, "only what is new is read");
        world.rows[1].1 = 3_007;
        assert_eq!(world.poll(1_000), Pending { events: 3, exact: true });
        assert_eq!(world.tally.by_shard(3_010), [0, 3, 0]);
        assert_eq!(world.tally.oldest(3_010, 3_050.0), Oldest::Age(42.0));
    }

    #[test]
    fn events_of_a_shard_without_a_row_wait_from_the_beginning_until_its_row_appears() {
        let mut world = world(60);
        world.complete = false;
        world.rows.remove(2);
        assert_eq!(world.poll(1_000), Pending { events: 20, exact: true });
        assert_eq!(world.tally.by_shard(60), [0, 0, 20]);
        world.rows.push(("c", 30));
        assert_eq!(world.poll(1_000).events, world.truth());
        assert_eq!(world.tally.by_shard(60), [0, 0, 10]);
    }

    #[test]
    fn a_row_that_goes_back_is_counted_again() {
        let mut world = world(60);
        world.poll(1_000);
        world.rows[1].1 = 30;
        assert_eq!(world.poll(1_000), Pending { events: 10, exact: true });
        world.rows.remove(1);
        world.complete = false;
        assert_eq!(world.poll(1_000), Pending { events: 20, exact: true }, "a row that is gone has handled nothing");
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for_and_the_rest_is_a_bound() {
        let mut world = world(3_000);
        world.rows = vec![("a", 0), ("b", 0), ("c", 0)];
        let bound = world.poll(10_000);
        assert_eq!(bound, Pending { events: 3_000, exact: false });
        assert_eq!(world.tally.certain(3_000, ROOM), None, "all of it waits, as far as anyone can tell");
        assert_eq!(world.tally.positions().count(), ROOM);
        assert_eq!(world.tally.oldest(3_000, 50.0), Oldest::Age(49.0));
        for done in [500, 2_000, 2_950] {
            world.rows = vec![("a", done), ("b", done), ("c", done)];
            for _ in 0..30 {
                world.poll(10_000);
            }
            assert!(world.poll(10_000).events >= world.truth());
        }
        assert_eq!(world.poll(10_000), Pending { events: 50, exact: true });
    }

    #[test]
    fn deleted_events_wait_no_more() {
        let mut world = world(60);
        world.rows[0].1 = 0;
        assert_eq!(world.poll(1_000).events, 20);
        world.tally.forget(&[3, 6]);
        assert_eq!(world.tally.pending(60), Pending { events: 18, exact: true });
    }
}
