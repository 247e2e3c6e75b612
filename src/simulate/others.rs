//! What else there is to scale workers by: CPU, the length of the queue, and whatever a query computes.

use std::{ops::RangeInclusive, time::Duration};

use super::policy::{Cpu, Policy, State};
use crate::hpa::{Autoscaler, Behavior, CpuUse, Metric, Range, Reading, TargetValue};

fn range(workers: &RangeInclusive<i32>) -> Range {
    Range { min: *workers.start(), max: *workers.end() }
}

/// An autoscaler on CPU utilization, as the metrics server reports it.
#[derive(Clone, Debug)]
pub struct CpuPolicy {
    /// The autoscaler; its one metric is of CPU.
    pub autoscaler: Autoscaler,
    /// What a worker requests, in thousandths of a core.
    pub request: i64,
    /// What a busy worker uses.
    pub busy: f64,
    /// What an idle worker uses.
    pub idle: f64,
    /// Time between two rounds of the metrics server.
    pub resolution: Duration,
    last: Vec<Watched>,
    last_round: Option<Duration>,
}

/// What the metrics server knows of a worker.
#[derive(Clone, Copy, Debug)]
struct Watched {
    created: Duration,
    busy_seconds: f64,
    used: Option<CpuUse>,
}

impl CpuPolicy {
    /// With the usual target of 80 % and no behavior; a busy worker uses all of the 1 core that it requests, an idle one next to nothing, and
    /// the metrics server looks every 15 s.
    pub fn new(workers: RangeInclusive<i32>) -> Self {
        let metrics = vec![Metric::Cpu { utilization: 80 }];
        Self {
            autoscaler: Autoscaler { range: range(&workers), metrics, behavior: None },
            request: 1_000,
            busy: 1_000.0,
            idle: 2.0,
            resolution: Duration::from_secs(15),
            last: Vec::new(),
            last_round: None,
        }
    }
}

impl Policy for CpuPolicy {
    fn autoscaler(&self) -> Option<Autoscaler> {
        Some(self.autoscaler.clone())
    }

    fn sample(&mut self, state: &State<'_>) {
        let window = self.last_round.map(|last| state.now - last);
        if window.is_some_and(|window| window < self.resolution) {
            return;
        }
        let seconds = window.map_or(0.0, |window| window.as_secs_f64());
        let watch = |(index, worker): (usize, &super::Worker)| {
            let before = self.last.get(index).filter(|before| before.created == worker.created && seconds > 0.0);
            let used = before.map(|before| {
                let part = ((worker.busy_seconds - before.busy_seconds) / seconds).clamp(0.0, 1.0);
                let milli = milli_of(self.idle + part * (self.busy - self.idle));
                CpuUse { milli, at: state.now, window: window.unwrap_or_default() }
            });
            Watched { created: worker.created, busy_seconds: worker.busy_seconds, used }
        };
        self.last = state.workers.iter().enumerate().map(watch).collect();
        self.last_round = Some(state.now);
    }

    fn readings(&mut self, _: &State<'_>) -> Vec<Reading> {
        vec![Reading::OfPods]
    }

    fn cpu(&self, state: &State<'_>) -> Vec<Cpu> {
        let told = |(index, worker): (usize, &super::Worker)| {
            let same = self.last.get(index).filter(|known| known.created == worker.created);
            Cpu { request: self.request, used: same.and_then(|known| known.used) }
        };
        state.workers.iter().enumerate().map(told).collect()
    }
}

/// Use of CPU is far below 2^63.
#[allow(clippy::cast_possible_truncation)]
fn milli_of(number: f64) -> i64 {
    number.round() as i64
}

/// An autoscaler on the length of the queue: one worker for a given number of pending events.
#[derive(Clone, Debug)]
pub struct QueueLengthPolicy {
    /// The autoscaler; its one metric is an average for each replica.
    pub autoscaler: Autoscaler,
}

impl QueueLengthPolicy {
    /// One worker for `per_worker` pending events, without behavior.
    pub fn new(workers: RangeInclusive<i32>, per_worker: u32) -> Self {
        Self::with_behavior(workers, per_worker, None)
    }

    /// The same with a behavior.
    pub fn with_behavior(workers: RangeInclusive<i32>, per_worker: u32, behavior: Option<Behavior>) -> Self {
        let metrics = vec![Metric::External(TargetValue::Average(i64::from(per_worker) * 1_000))];
        Self { autoscaler: Autoscaler { range: range(&workers), metrics, behavior } }
    }
}

impl Policy for QueueLengthPolicy {
    fn autoscaler(&self) -> Option<Autoscaler> {
        Some(self.autoscaler.clone())
    }

    fn sample(&mut self, _: &State<'_>) {}

    fn readings(&mut self, state: &State<'_>) -> Vec<Reading> {
        vec![Reading::Items(vec![i64::try_from(state.pending()).unwrap_or(i64::MAX).saturating_mul(1_000)])]
    }
}

/// An autoscaler on whatever a query computes from what there is to be seen.
pub struct QueryPolicy<Q> {
    /// The autoscaler; its one metric is External.
    pub autoscaler: Autoscaler,
    /// Asked at each sample; what it answered last is what the autoscaler reads. It may keep what it needs of earlier samples.
    query: Q,
    latest: Option<f64>,
}

impl<Q: FnMut(&State<'_>) -> Option<f64>> QueryPolicy<Q> {
    /// The autoscaler holds the query's answer against `target`.
    pub fn new(workers: RangeInclusive<i32>, target: TargetValue, behavior: Option<Behavior>, query: Q) -> Self {
        let metrics = vec![Metric::External(target)];
        Self { autoscaler: Autoscaler { range: range(&workers), metrics, behavior }, query, latest: None }
    }
}

impl<Q: FnMut(&State<'_>) -> Option<f64>> Policy for QueryPolicy<Q> {
    fn autoscaler(&self) -> Option<Autoscaler> {
        Some(self.autoscaler.clone())
    }

    fn sample(&mut self, state: &State<'_>) {
        self.latest = (self.query)(state);
    }

    fn readings(&mut self, _: &State<'_>) -> Vec<Reading> {
        let finite = self.latest.filter(|value| value.is_finite());
        vec![finite.map_or(Reading::Failed, |value| Reading::Items(vec![milli_of((value * 1_000.0).ceil())]))]
    }
}

#[cfg(test)]
#[path = "others_tests.rs"]
mod tests;
