//! The event source: a log that grows by the trace. Exact about each event's time of arrival.
//!
//! Arrivals are a line that rises piece by piece; the event at position `k` arrives when the line reaches `k`. So the age of any event can be
//! computed without storing any. Its shard is computed by [`super::deal`].

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
    /// From a trace and a backlog: events that wait at the beginning, with the age of the oldest in seconds.
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

    /// When the line reached this many events.
    pub(super) fn time_of(&self, events: f64) -> f64 {
        let mut from = self.sums.partition_point(|sum| *sum < events);
        self.reached(events, &mut from)
    }

    /// When the line reached this many events, searching from the knot `from` on; the knot where it was found is stored there.
    pub(super) fn reached(&self, events: f64, from: &mut usize) -> f64 {
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
    /// The number of events.
    pub events: f64,
    /// The oldest is so old; the others came evenly since.
    pub age: Duration,
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
}
