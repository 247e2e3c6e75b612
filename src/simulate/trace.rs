//! A trace: how many events arrive, step by step. How texts are read is in [`super::read_trace`].

use std::time::Duration;

/// Events that arrive, over time.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    begins: Duration,
    step: Duration,
    /// Events per second of each step.
    rates: Vec<f64>,
    /// What a worker handles in each step, 0 where the trace does not contain it; empty where no step contains it.
    per_worker: Vec<f64>,
}

/// One step of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Events per second that arrive; not negative.
    pub arriving: f64,
    /// Events per second that one busy worker handles, where the trace contains them; greater than 0.
    pub per_worker: Option<f64>,
}

/// Why a text is no trace.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct InvalidTrace {
    /// `line 7`, or which value of a series.
    pub place: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl Trace {
    /// From rates and one step; `None` when there are none, or the step is zero.
    pub fn new(step: Duration, points: Vec<Point>) -> Option<Self> {
        let told = points.iter().any(|point| point.per_worker.is_some());
        let per_worker = points.iter().filter(|_| told).map(|point| point.per_worker.unwrap_or(0.0)).collect();
        let rates = points.into_iter().map(|point| point.arriving).collect();
        Self::of(Duration::ZERO, step, rates, per_worker)
    }

    pub(super) fn of(begins: Duration, step: Duration, rates: Vec<f64>, per_worker: Vec<f64>) -> Option<Self> {
        (!rates.is_empty() && !step.is_zero()).then_some(Self { begins, step, rates, per_worker })
    }

    /// The time of the first row, as given: seconds of the day, or since 1970, or since whatever it counts from.
    pub fn begins(&self) -> Duration {
        self.begins
    }

    /// How long one step is.
    pub fn step(&self) -> Duration {
        self.step
    }

    /// How long the whole trace is.
    pub fn length(&self) -> Duration {
        self.step.saturating_mul(u32::try_from(self.rates.len()).unwrap_or(u32::MAX))
    }

    /// The steps.
    pub fn points(&self) -> impl ExactSizeIterator<Item = Point> + '_ {
        let told = |index: usize| self.per_worker.get(index).copied().filter(|rate| *rate > 0.0);
        self.rates.iter().enumerate().map(move |(index, rate)| Point { arriving: *rate, per_worker: told(index) })
    }

    /// Whether some step contains what a worker handles.
    pub fn tells_worker_rate(&self) -> bool {
        !self.per_worker.is_empty()
    }

    /// What holds at `at`; after the end, that nothing arrives.
    pub fn at(&self, at: Duration) -> Point {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let index = usize::try_from(nanos(at) / nanos(self.step).max(1)).unwrap_or(usize::MAX);
        let per_worker = self.per_worker.get(index).or(self.per_worker.last()).copied().filter(|rate| *rate > 0.0);
        Point { arriving: self.rates.get(index).copied().unwrap_or(0.0), per_worker }
    }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
