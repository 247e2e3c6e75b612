//! Shards that wait just before an event that failed, and when to try it again. Pure: the time comes in.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::backoff::Backoff;

/// The pauses before a failed event is tried again.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

#[derive(Clone, Copy, Debug)]
struct Stuck {
    position: i64,
    /// The last position before the event that the shard may come to.
    before: i64,
    times: u32,
    /// How often it was tried without any other event.
    alone: u32,
    since: Instant,
    retry_at: Instant,
}

/// How an event has failed so far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Tried {
    /// How often.
    pub(super) times: u32,
    /// How often of those without any other event.
    pub(super) alone: u32,
    /// When it failed first.
    pub(super) since: Instant,
}

/// The stuck among a worker's shards.
#[derive(Clone, Debug, Default)]
pub(super) struct StuckShards(BTreeMap<u32, Stuck>);

impl StuckShards {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The last position of the shard that may be read as usual.
    pub(super) fn last_before(&self, shard: u32) -> Option<i64> {
        self.0.get(&shard).map(|stuck| stuck.before)
    }

    /// A shard whose event is due to be tried again, with that event's position. `reached` returns how far a shard has come: what lies before the
    /// event comes first.
    pub(super) fn due(&self, now: Instant, reached: impl Fn(u32) -> Option<i64>) -> Option<(u32, i64)> {
        let due = self.0.iter().find(|(shard, stuck)| {
            stuck.retry_at <= now && reached(**shard).is_some_and(|position| position >= stuck.before)
        });
        due.map(|(shard, stuck)| (*shard, stuck.position))
    }

    /// When the next event's time comes.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.0.values().map(|stuck| stuck.retry_at).min()
    }

    /// Takes in a failure of the event at `position`, and that the shard may come up to `before` meanwhile. Returns the pause until the next try.
    pub(super) fn fail(
        &mut self,
        shard: u32,
        (before, position): (i64, i64),
        is_alone: bool,
        now: Instant,
    ) -> Duration {
        let before = self.of(shard, position).map_or(before, |stuck| stuck.before);
        let Tried { times, alone, since } = self.tried(shard, position, now);
        let pause = BACKOFF.pause(times);
        let (times, alone) = (times.saturating_add(1), alone.saturating_add(u32::from(is_alone)));
        self.0.insert(shard, Stuck { position, before, times, alone, since, retry_at: now + pause });
        pause
    }

    /// How the event at `position` has failed before.
    pub(super) fn tried(&self, shard: u32, position: i64, now: Instant) -> Tried {
        self.of(shard, position).map_or(Tried { times: 0, alone: 0, since: now }, |stuck| Tried {
            times: stuck.times,
            alone: stuck.alone,
            since: stuck.since,
        })
    }

    fn of(&self, shard: u32, position: i64) -> Option<&Stuck> {
        self.0.get(&shard).filter(|stuck| stuck.position == position)
    }

    /// Forgets a shard whose event was set aside.
    pub(super) fn forget(&mut self, shard: u32) {
        self.0.remove(&shard);
    }

    /// Forgets shards that this worker no longer holds (`None`) or that have passed their event; returns the latter with that event's position.
    pub(super) fn settle(&mut self, reached: impl Fn(u32) -> Option<i64>) -> Vec<(u32, i64)> {
        let mut passed = Vec::new();
        self.0.retain(|shard, stuck| match reached(*shard) {
            Some(position) if position >= stuck.position => {
                passed.push((*shard, stuck.position));
                false
            }
            Some(_) => true,
            None => false,
        });
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_before_the_failed_event_comes_first_and_then_its_time() {
        let (mut stuck, now) = (StuckShards::default(), Instant::now());
        let pause = stuck.fail(3, (40, 50), false, now);
        assert_eq!(stuck.last_before(3), Some(40));
        assert_eq!(stuck.last_before(4), None);
        assert_eq!(stuck.due(now, |_| Some(40)), None, "too early");
        assert_eq!(stuck.due(now + pause, |_| Some(39)), None, "not there yet");
        assert_eq!(stuck.due(now + pause, |_| None), None, "not ours");
        assert_eq!(stuck.due(now + pause, |_| Some(40)), Some((3, 50)));
        stuck.fail(3, (49, 50), true, now);
        assert_eq!(stuck.last_before(3), Some(40), "alone it is not seen what is before it");
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_start_over_with_another_event() {
        let (mut stuck, now) = (StuckShards::default(), Instant::now());
        let pauses: Vec<u128> = (0..8).map(|_| stuck.fail(3, (49, 50), true, now).as_millis()).collect();
        assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        assert_eq!(stuck.fail(3, (59, 60), true, now).as_millis(), 500);
    }

    #[test]
    fn a_shard_is_no_longer_stuck_once_it_has_passed_or_is_gone() {
        let (mut stuck, now) = (StuckShards::default(), Instant::now());
        for shard in [1, 2, 3] {
            stuck.fail(shard, (49, 50), true, now);
        }
        let reached = |shard| [None, Some(49), Some(50), None][shard as usize];
        assert_eq!(stuck.settle(reached), [(2, 50)]);
        assert!(stuck.last_before(1).is_some() && stuck.last_before(3).is_none());
    }

    #[test]
    fn tries_without_another_event_are_counted_of_one_event_only() {
        let (mut stuck, now) = (StuckShards::default(), Instant::now());
        stuck.fail(3, (40, 50), false, now);
        let later = now + Duration::from_secs(1);
        stuck.fail(3, (49, 50), true, later);
        assert_eq!(stuck.tried(3, 50, later), Tried { times: 2, alone: 1, since: now });
        assert_eq!(stuck.tried(3, 51, later), Tried { times: 0, alone: 0, since: later });
        stuck.forget(3);
        assert_eq!(stuck.tried(3, 50, later).times, 0);
    }
}
