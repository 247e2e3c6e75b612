//! How fast events arrive, and since when those that wait have been there: learnt from a counter that only grows.
//!
//! A rate has to follow a burst within a sample or two, since that time is what lateness is made of, and must not take the batches of a writer
//! for bursts. So the average is slow, and jumps when a short window holds more than any such window of the last minute did: a batch that comes
//! again and again is nothing new, the first second of a burst is. Once a burst is over, the average falls to the mean since the burst began: a burst
//! of a second must not be remembered as a rate that lasted.

use std::{collections::VecDeque, time::Duration};

use super::{as_float, queue::rounded};

/// Time constant of the arrival rate's exponential average.
pub const ARRIVAL_TIME_CONSTANT: Duration = Duration::from_secs(10);
/// What came within one of these is compared with what came within others of the same length.
const SHORT_WINDOWS: [f64; 2] = [1.0, 2.0];
/// How far back a writer's batches are remembered.
const USUAL: Duration = Duration::from_secs(60);
/// A window is unusual when it holds this many times what was usual, beyond what chance explains.
const NEW: f64 = 1.3;
/// Marks closer together than this are merged.
const GRAIN: Duration = Duration::from_millis(750);
/// More marks than this are thinned out where they lie closest for their age: the age of the oldest event stays known, only less finely.
const MOST_MARKS: usize = 96;

#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Duration,
    total: u64,
}

/// Follows one source's counter of arrivals.
#[derive(Clone, Debug, Default)]
pub(super) struct Arrivals {
    marks: VecDeque<Mark>,
    average: Option<f64>,
    /// The same average without any jump.
    slow: Option<f64>,
    /// The beginning of the burst that the average jumped for, until the slow average explains it.
    burst: Option<Mark>,
    /// The average is the mean since the first look, until that is long enough ago.
    begins: bool,
}

impl Arrivals {
    /// Takes in the counter. Where the counter or the clock went back, it has started again, and all that was learnt but the average is dropped.
    pub(super) fn observe(&mut self, at: Duration, total: u64) {
        let Some(last) = self.marks.back().copied() else {
            self.begins = self.average.is_none();
            self.marks.push_back(Mark { at, total });
            return;
        };
        if at <= last.at || total < last.total {
            self.marks.clear();
            self.marks.push_back(Mark { at, total });
            (self.slow, self.burst) = (self.average, None);
            return;
        }
        let seconds = (at - last.at).as_secs_f64();
        let rate = as_float(total - last.total) / seconds;
        let (seen, count) = self
            .marks
            .front()
            .map_or((seconds, 0.0), |first| ((at - first.at).as_secs_f64(), as_float(total - first.total)));
        let weight = 1.0 - (-seconds / ARRIVAL_TIME_CONSTANT.as_secs_f64()).exp();
        let begins = self.begins;
        let follow = |before: Option<f64>| match before {
            Some(before) if !begins => before + weight * (rate - before),
            _ => few(count, seen),
        };
        let slow = follow(self.slow);
        let average = self.bounded(Mark { at, total }, slow, follow(self.average));
        self.slow = Some(slow);
        self.begins &= seen < ARRIVAL_TIME_CONSTANT.as_secs_f64();
        self.remember(Mark { at, total });
        self.average = Some(match self.new_rate(average) {
            Some((rate, began)) => {
                self.burst = Some(began);
                rate
            }
            None => average,
        });
    }

    /// The average after a jump: no more than the mean since the burst began, or the slow average where that is more.
    fn bounded(&mut self, now: Mark, slow: f64, average: f64) -> f64 {
        let Some(burst) = self.burst else { return average };
        let mean =
            as_float(now.total.saturating_sub(burst.total)) / now.at.saturating_sub(burst.at).as_secs_f64().max(0.001);
        if mean <= slow {
            self.burst = None;
        }
        average.min(mean.max(slow))
    }

    fn remember(&mut self, mark: Mark) {
        let before = self.marks.len().checked_sub(2).and_then(|index| self.marks.get(index));
        if before.is_some_and(|before| self.marks.back().is_some_and(|last| last.at - before.at < GRAIN)) {
            self.marks.pop_back();
        }
        self.marks.push_back(mark);
        if self.marks.len() > MOST_MARKS {
            self.thin_out(mark.at);
        }
    }

    fn thin_out(&mut self, now: Duration) {
        let at = |index: usize| self.marks.get(index).map_or(0.0, |mark| mark.at.as_secs_f64());
        let closeness = |index: usize| {
            let old = (now.saturating_sub(USUAL).as_secs_f64() - at(index)).max(0.0);
            (at(index + 1) - at(index - 1)) / (old + 1.0)
        };
        let inner = 1..self.marks.len().saturating_sub(1);
        if let Some(index) = inner.min_by(|a, b| closeness(*a).total_cmp(&closeness(*b))) {
            self.marks.remove(index);
        }
    }

    /// The rate of the last second or two and when that began, where it is higher than chance and the last minute explain.
    fn new_rate(&self, average: f64) -> Option<(f64, Mark)> {
        let now = self.marks.back()?.at;
        let first = self.marks.front()?.at;
        let rates = SHORT_WINDOWS.into_iter().filter_map(|seconds| {
            let window = Duration::from_secs_f64(seconds);
            let from = now.checked_sub(window).filter(|from| *from > first)?;
            let count = self.total_at(now) - self.total_at(from);
            let ends = self.marks.iter().map(|mark| mark.at);
            let ends = ends.filter(|end| *end <= from && *end >= first + window && now - *end <= USUAL);
            let usual = ends.map(|end| self.total_at(end) - self.total_at(end - window)).fold(0.0, f64::max);
            let expected = usual.max(average * seconds);
            let is_new = count > expected * NEW && count > expected + 3.0 * expected.sqrt() + 3.0;
            let began = Mark { at: from, total: rounded(self.total_at(from)) };
            is_new.then_some((count / seconds, began))
        });
        rates.max_by(|(one, _), (other, _)| one.total_cmp(other))
    }

    /// The counter at a time, between marks in proportion.
    fn total_at(&self, at: Duration) -> f64 {
        let after = self.marks.partition_point(|mark| mark.at <= at);
        let Some(before) = after.checked_sub(1).and_then(|index| self.marks.get(index)) else {
            return self.marks.front().map_or(0.0, |mark| as_float(mark.total));
        };
        let Some(next) = self.marks.get(after) else { return as_float(before.total) };
        let part = (at - before.at).as_secs_f64() / (next.at - before.at).as_secs_f64();
        as_float(before.total) + part * as_float(next.total - before.total)
    }

    /// The counter, as it was seen last.
    pub(super) fn total(&self) -> u64 {
        self.marks.back().map_or(0, |mark| mark.total)
    }

    /// Events per second, as they arrive now.
    pub(super) fn rate(&self) -> Option<f64> {
        self.average
    }

    /// True while too little was seen since the first look for a reliable rate.
    pub(super) fn begins(&self) -> bool {
        self.begins || self.average.is_none()
    }

    /// The mean rate over this time until now, or over what is known of it (at least one second), in events per second.
    pub(super) fn mean(&self, window: Duration) -> Option<f64> {
        let (now, first) = (self.marks.back()?.at, self.marks.front()?.at);
        let from = now.saturating_sub(window).max(first);
        let seconds = (now - from).as_secs_f64();
        let count = self.total_at(now) - self.total_at(from);
        (seconds >= 1.0).then(|| if seconds < window.as_secs_f64() { few(count, seconds) } else { count / seconds })
    }

    /// For how long the oldest of this many waiting events has been known here, by the operator's own clock: since the last look at which it was not
    /// there yet. Longer, if it was there from the first look on.
    pub(super) fn known_for(&self, pending: u64) -> Duration {
        let Some(now) = self.marks.back() else { return Duration::ZERO };
        if pending == 0 {
            return Duration::ZERO;
        }
        let handled = now.total.saturating_sub(pending);
        let since = self.marks.iter().find(|mark| mark.total > handled).map_or(now.at, |mark| mark.at);
        let since = if now.total < pending { self.marks.front().map_or(now.at, |mark| mark.at) } else { since };
        now.at - since
    }

    /// The waiting events in the order in which they came: how many have been here for at least how long.
    pub(super) fn ages(&self, pending: u64) -> impl Iterator<Item = (f64, f64)> + '_ {
        let now = self.marks.back().copied().unwrap_or(Mark { at: Duration::ZERO, total: 0 });
        let handled = as_float(now.total) - as_float(pending);
        let waiting = self.marks.iter().filter(move |mark| as_float(mark.total) > handled);
        waiting.map(move |mark| (as_float(mark.total) - handled, (now.at - mark.at).as_secs_f64()))
    }
}

/// The rate, in events per second, where `count` events came within `seconds` and nothing else was seen: the fewer events there are, the less a short
/// time shows. One event in half a second is not two events per second; a thousand are two thousand.
fn few(count: f64, seconds: f64) -> f64 {
    count / (seconds + ARRIVAL_TIME_CONSTANT.as_secs_f64() / (count + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(counts: &[u64]) -> Arrivals {
        let mut arrivals = Arrivals::default();
        let mut total = 1_000;
        arrivals.observe(Duration::from_secs(100), total);
        for (second, count) in (101..).zip(counts) {
            total += count;
            arrivals.observe(Duration::from_secs(second), total);
        }
        arrivals
    }

    fn rate(counts: &[u64]) -> f64 {
        after(counts).rate().unwrap()
    }

    #[test]
    fn follows_a_burst_within_two_samples() {
        let mut counts = vec![100; 60];
        counts.push(500);
        assert!((rate(&counts) - 500.0).abs() < 1.0, "{}", rate(&counts));
        let mut halved = vec![100; 60];
        halved.extend([300, 500]);
        assert!((rate(&halved) - 500.0).abs() < 1.0, "{}", rate(&halved));
        counts.extend([500; 20]);
        assert!((rate(&counts) - 500.0).abs() < 1.0, "and stays there");
    }

    #[test]
    fn one_event_after_a_restart_is_no_rate_and_a_thousand_are() {
        let first = |count: u64| {
            let mut arrivals = Arrivals::default();
            arrivals.observe(Duration::from_secs(100), 7);
            arrivals.observe(Duration::from_millis(100_380), 7 + count);
            arrivals.rate().unwrap()
        };
        assert!(first(1) < 0.25, "{}", first(1));
        assert!((first(1_000) - 1_000.0 / 0.38).abs() < 100.0, "{}", first(1_000));
        assert_eq!(first(0), 0.0);
        assert!((rate(&[10; 9]) - 10.0).abs() < 0.2, "and soon it is the mean: {}", rate(&[10; 9]));
    }

    #[test]
    fn batches_of_a_writer_are_no_bursts() {
        let batched: Vec<u64> = (0..120).map(|second| if second % 5 == 4 { 500 } else { 0 }).collect();
        let rate = rate(&batched);
        assert!((60.0..=140.0).contains(&rate), "{rate}");
    }

    #[test]
    fn chance_is_no_burst() {
        let noisy: Vec<u64> = (0..120).map(|second| [1, 3, 0, 4, 2, 2, 0, 5, 1, 2][second % 10]).collect();
        let rate = rate(&noisy);
        assert!((1.5..=2.6).contains(&rate), "{rate}");
    }

    #[test]
    fn fades_when_a_burst_is_over() {
        let mut counts = vec![500; 30];
        counts.extend([0; 30]);
        assert!(rate(&counts) < 30.0);
    }

    #[test]
    fn a_burst_of_one_second_is_no_rate_that_lasted() {
        // As while a Projection is suspended: 3,000 events at once, and nothing after that.
        let mut counts = vec![0; 60];
        counts.push(3_000);
        assert!(rate(&counts) > 2_900.0, "it may go on: {}", rate(&counts));
        for (quiet, most) in [(1, 1_501.0), (8, 340.0), (20, 150.0)] {
            let counts = [counts.clone(), vec![0; quiet]].concat();
            let rate = rate(&counts);
            assert!(rate <= most, "{rate} after {quiet} s without an event");
            assert!(rate > 60.0, "and it is not forgotten: {rate} after {quiet} s");
        }
        // What came before goes on afterwards.
        let mut counts = vec![100; 60];
        counts.push(3_000);
        counts.extend([100; 30]);
        assert!((100.0..=250.0).contains(&rate(&counts)), "{}", rate(&counts));
    }

    #[test]
    fn a_counter_that_was_reset_keeps_the_average() {
        let mut arrivals = after(&[100; 30]);
        arrivals.observe(Duration::from_secs(200), 0);
        assert!((arrivals.rate().unwrap() - 100.0).abs() < 0.1);
    }

    #[test]
    fn says_since_when_the_oldest_waiting_event_is_known() {
        let arrivals = after(&[10; 50]);
        for (pending, seconds) in [(0, 0), (1, 0), (10, 0), (11, 1), (200, 19), (500, 49), (501, 50), (9_999, 50)] {
            assert_eq!(arrivals.known_for(pending), Duration::from_secs(seconds), "{pending}");
        }
    }

    #[test]
    fn ages_are_told_oldest_first() {
        let arrivals = after(&[10; 50]);
        let ages: Vec<_> = arrivals.ages(25).collect();
        assert_eq!(ages, [(5.0, 2.0), (15.0, 1.0), (25.0, 0.0)]);
    }

    #[test]
    fn a_long_wait_is_remembered_in_bounded_memory() {
        let arrivals = after(&vec![10; 20_000]);
        assert!(arrivals.marks.len() <= MOST_MARKS);
        let known = arrivals.known_for(190_000).as_secs_f64();
        assert!((15_000.0..20_000.0).contains(&known), "{known}");
    }
}
