//! The event source: a log that grows by the trace, dealt out to shards. Exact about each event's time of arrival.
//!
//! Arrivals are a line that rises piece by piece; event `k` of a shard arrives when that shard's part of the line reaches `k`. So
//! the age of any event is told without keeping any.

use std::time::Duration;

use super::trace::Trace;

/// The line of arrivals.
#[derive(Clone, Debug)]
pub(super) struct Arrivals {
    /// How long before the beginning the first event of the backlog came, in seconds.
    backlog_age: f64,
    /// The trace's step in seconds.
    step: f64,
    /// Events until the end of each step, those that wait at the beginning first.
    sums: Vec<f64>,
}

impl Arrivals {
    /// From a trace and a backlog: events that wait at the beginning, the oldest so many seconds old.
    pub(super) fn new(trace: &Trace, backlog: Backlog) -> Self {
        let (step, mut sum) = (trace.step().as_secs_f64(), backlog.events);
        let mut sums = Vec::with_capacity(trace.points().len() + 1);
        sums.push(sum);
        for point in trace.points() {
            sum += point.arriving * step;
            sums.push(sum);
        }
        Self { backlog_age: backlog.age.as_secs_f64().max(1e-3), step, sums }
    }

    /// Where the line bends: a time in seconds and the events until then, rising in both.
    fn knot(&self, index: usize) -> Option<(f64, f64)> {
        match index.checked_sub(1) {
            None => Some((-self.backlog_age, 0.0)),
            Some(steps) => self.sums.get(steps).map(|sum| (as_float(steps) * self.step, *sum)),
        }
    }

    /// Events that have arrived until `seconds`.
    pub(super) fn until(&self, seconds: f64) -> f64 {
        if seconds < -self.backlog_age {
            return 0.0;
        }
        let before = if seconds < 0.0 { 0 } else { (steps(seconds / self.step) + 1).min(self.sums.len()) };
        match (self.knot(before), self.knot(before + 1)) {
            (Some(before), Some(after)) => {
                before.1 + (after.1 - before.1) * (seconds - before.0) / (after.0 - before.0)
            }
            (Some(last), None) => last.1,
            (None, _) => 0.0,
        }
    }

    /// When the line reached so many events.
    pub(super) fn time_of(&self, events: f64) -> f64 {
        let mut from = self.sums.partition_point(|sum| *sum < events);
        self.reached(events, &mut from)
    }

    /// When the line reached so many events, searching from the knot `from` on; the knot where it was found is stored there.
    fn reached(&self, events: f64, from: &mut usize) -> f64 {
        // Knot `from + 1` is at the end of step `from`.
        while self.sums.get(*from).is_some_and(|sum| *sum < events) {
            *from += 1;
        }
        match (self.knot(*from), self.knot(*from + 1)) {
            (Some(before), Some(after)) if after.1 > before.1 => {
                let part = ((events - before.1) / (after.1 - before.1)).clamp(0.0, 1.0);
                before.0 + (after.0 - before.0) * part
            }
            (Some(knot), _) => knot.0,
            (None, _) => 0.0,
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn as_float(number: usize) -> f64 {
    number as f64
}

/// Whole steps.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn steps(number: f64) -> usize {
    number.max(0.0) as usize
}

/// What waits when the simulation begins.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// So many events.
    pub events: f64,
    /// The oldest is so old; the others came evenly since.
    pub age: Duration,
}

/// One shard: its part of the log, and how far it has been handled.
#[derive(Clone, Debug)]
pub(super) struct Shard {
    /// Of all events, this part.
    weight: f64,
    /// Between 0 and 1: shards do not get their events all at the same moment.
    offset: f64,
    /// Events handled; the fraction is work begun on the next.
    done: f64,
    /// Whole events that are handled and committed.
    committed: f64,
    /// Whole events that have arrived.
    arrived: f64,
    /// Where in the line the oldest that waits was found.
    knot: usize,
    /// And the oldest that is not committed.
    committed_knot: usize,
    /// The highest position told, which never goes back.
    told: f64,
}

/// Work that is this near to a whole event is done: sums of fractions are not exact.
const WHOLE: f64 = 1e-6;

impl Shard {
    pub(super) fn new(weight: f64, offset: f64) -> Self {
        Self { weight, offset, done: 0.0, committed: 0.0, arrived: 0.0, knot: 0, committed_knot: 0, told: 0.0 }
    }

    pub(super) fn grow(&mut self, arrivals_until_now: f64) {
        self.arrived = self.arrived.max((self.weight * arrivals_until_now + self.offset + WHOLE).floor());
    }

    /// Events of work that can be done now.
    pub(super) fn waiting(&self) -> f64 {
        self.arrived - self.done
    }

    /// Does so much work, at most what is there.
    pub(super) fn work(&mut self, events: f64) {
        self.done = (self.done + events).min(self.arrived);
        if self.done.round() - self.done < WHOLE && self.done.round() > self.done {
            self.done = self.done.round();
        }
    }

    /// Events that are not wholly handled.
    pub(super) fn pending(&self) -> f64 {
        self.arrived - self.done.floor()
    }

    /// When the oldest event that is not wholly handled arrived, in seconds.
    pub(super) fn oldest(&mut self, arrivals: &Arrivals) -> Option<f64> {
        if self.pending() <= 0.0 || self.weight <= 0.0 {
            return None;
        }
        Some(arrivals.reached(self.position(self.done.floor() + 1.0), &mut self.knot))
    }

    /// Commits what is wholly handled.
    pub(super) fn commit(&mut self) {
        self.committed = self.done.floor();
    }

    /// Events that have arrived and are not committed.
    pub(super) fn uncommitted(&self) -> f64 {
        self.arrived - self.committed
    }

    /// When the oldest event that is not committed arrived, in seconds.
    pub(super) fn oldest_uncommitted(&mut self, arrivals: &Arrivals) -> Option<f64> {
        if self.uncommitted() <= 0.0 || self.weight <= 0.0 {
            return None;
        }
        Some(arrivals.reached(self.position(self.committed + 1.0), &mut self.committed_knot))
    }

    /// The position up to which all of the shard's events are committed: the head where all are, else that before the oldest.
    pub(super) fn following(&mut self, head: f64) -> f64 {
        let position = if self.uncommitted() <= 0.0 || self.weight <= 0.0 {
            head
        } else {
            self.position(self.committed + 1.0).floor() - 1.0
        };
        self.tell(position, head)
    }

    /// The position of the last event that is committed, where the row stays.
    pub(super) fn row(&mut self, head: f64) -> f64 {
        let position = if self.committed < 1.0 || self.weight <= 0.0 { 0.0 } else { self.position(self.committed) };
        self.tell(position.floor(), head)
    }

    fn tell(&mut self, position: f64, head: f64) -> f64 {
        self.told = self.told.max(position.min(head));
        self.told
    }

    /// How many events of all shards there are when the shard's event of this number comes.
    fn position(&self, event: f64) -> f64 {
        (event - self.offset) / self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::trace::Point;

    fn arrivals(rates: &[f64], backlog: Backlog) -> Arrivals {
        let points = rates.iter().map(|arriving| Point { arriving: *arriving, per_worker: None }).collect();
        Arrivals::new(&Trace::new(Duration::from_secs(10), points).unwrap(), backlog)
    }

    #[test]
    fn the_line_of_arrivals_is_read_both_ways() {
        let line = arrivals(&[2.0, 0.0, 4.0], Backlog { events: 100.0, age: Duration::from_secs(50) });
        for (seconds, events) in
            [(-50.0, 0.0), (-25.0, 50.0), (0.0, 100.0), (5.0, 110.0), (15.0, 120.0), (25.0, 140.0), (99.0, 160.0)]
        {
            assert!((line.until(seconds) - events).abs() < 1e-9, "{seconds}");
        }
        for (events, seconds) in [(50.0, -25.0), (110.0, 5.0), (120.0, 10.0), (121.0, 20.25), (160.0, 30.0)] {
            let mut knot = 0;
            assert!((line.reached(events, &mut knot) - seconds).abs() < 1e-9, "{events}");
        }
    }

    #[test]
    fn the_oldest_event_that_waits_is_told_exactly() {
        let line = arrivals(&[1.0, 1.0], Backlog::default());
        let mut shard = Shard::new(0.5, 0.0);
        shard.grow(line.until(11.0));
        assert_eq!((shard.pending(), shard.oldest(&line)), (5.0, Some(2.0)), "every second event is this shard's");
        shard.work(1.5);
        assert_eq!((shard.pending(), shard.oldest(&line)), (4.0, Some(4.0)), "half done is not done");
        shard.work(0.5);
        assert_eq!((shard.pending(), shard.oldest(&line)), (3.0, Some(6.0)));
        shard.work(99.0);
        assert_eq!((shard.pending(), shard.oldest(&line)), (0.0, None), "no more work than there is");
    }

    #[test]
    fn what_is_not_committed_waits_as_seen_from_outside() {
        let line = arrivals(&[1.0, 1.0], Backlog::default());
        let mut shard = Shard::new(0.5, 0.0);
        shard.grow(line.until(11.0));
        shard.work(3.5);
        assert_eq!((shard.pending(), shard.uncommitted(), shard.oldest_uncommitted(&line)), (2.0, 5.0, Some(2.0)));
        shard.commit();
        assert_eq!((shard.uncommitted(), shard.oldest_uncommitted(&line)), (2.0, Some(8.0)), "half done is not done");
        assert_eq!((shard.row(11.0), shard.clone().following(11.0)), (6.0, 7.0), "the third event came sixth");
        shard.work(9.0);
        shard.commit();
        assert_eq!((shard.row(11.0), shard.clone().following(11.0)), (10.0, 11.0), "all is done");
        assert_eq!((shard.uncommitted(), shard.oldest_uncommitted(&line)), (0.0, None));
    }

    #[test]
    fn checkpoints_never_go_back_nor_beyond_the_head() {
        let line = arrivals(&[3.0, 0.5, 7.0], Backlog::default());
        let mut shards: Vec<Shard> = (0..4).map(|index| Shard::new(0.25, f64::from(index) / 4.0)).collect();
        let mut before = vec![0.0; 4];
        for tick in 1..=60_u32 {
            let all = line.until(f64::from(tick) / 2.0);
            for (shard, before) in shards.iter_mut().zip(&mut before) {
                shard.grow(all);
                shard.work(0.7);
                shard.commit();
                let checkpoint = if tick % 3 == 0 { shard.row(all.floor()) } else { shard.following(all.floor()) };
                assert!(checkpoint >= *before && checkpoint <= all.floor(), "{checkpoint} after {before} of {all}");
                *before = checkpoint;
            }
        }
    }
}
