//! Perfect foresight: the fewest worker-seconds with which no event waits longer than the target, for a planner that knows all that will come.
//!
//! Found by looking back from the end, second by second (dynamic programming): for each backlog and each number of workers, what the rest costs at least. A
//! worker that is added is paid for while it starts. Nothing keeps it from changing its mind at any time; where the target cannot be held, it is
//! as little late as can be.

use std::time::Duration;

use projectionist::{
    hpa::{Autoscaler, Reading},
    simulate::{Point, Policy, Scenario, State},
};

/// The numbers of workers that differ, of 24 shards, and what they are worth.
const CHOICES: [(i32, f64); 9] =
    [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 4.8), (6, 6.0), (8, 8.0), (12, 12.0), (24, 24.0)];
/// Backlogs are told apart by so many events, and rounded up.
const GRAIN: f64 = 5.0;
/// An event that waits too long costs this many worker-seconds a second: more than any number of workers.
const LATE: f64 = 50.0;
/// The longest backlog that is told apart, in seconds of all workers' work.
const DEEPEST: f64 = 12.0;

/// Sets the scale by the best plan.
pub struct Foresight {
    workers: Vec<i32>,
    start_up: usize,
}

impl Foresight {
    /// Plans for what comes.
    pub fn new(plan: &Scenario) -> Self {
        let start_up = usize::try_from(plan.start_up.as_secs()).unwrap_or(0);
        // Seconds are coarse and shards are handled at their own pace: with a fifth to spare it is in time indeed.
        let target = usize::try_from((plan.target - plan.target / 5).as_secs()).unwrap_or(1);
        let points: Vec<Point> = plan.trace.points().collect();
        // All hands until a backlog is gone: there is nothing to choose.
        let mut waiting = plan.backlog.events;
        let most = CHOICES[CHOICES.len() - 1];
        let mut workers = Vec::new();
        while let Some(point) = points.get(workers.len()).filter(|_| waiting > 0.0) {
            waiting += point.arriving - most.1 * point.per_worker.unwrap_or(plan.per_worker);
            workers.push(most.0);
        }
        let rest: Vec<(f64, f64)> = points
            .iter()
            .skip(workers.len())
            .map(|point| (point.arriving, point.per_worker.unwrap_or(plan.per_worker)))
            .collect();
        let begin = workers.last().copied().unwrap_or(plan.workers);
        workers.extend(best(&rest, target, plan.start_up.as_secs_f64(), begin));
        Self { workers, start_up }
    }
}

/// The best number of workers in each second of `load` (events that come, and what a worker handles).
fn best(load: &[(f64, f64)], target: usize, start_up: f64, begin: i32) -> Vec<i32> {
    let fastest = load.iter().map(|second| second.1).fold(0.0, f64::max);
    let levels = index(fastest * CHOICES[CHOICES.len() - 1].1 * DEEPEST / GRAIN) + 1;
    let width = CHOICES.len();
    // From here on it costs nothing more.
    let mut after = vec![0.0_f32; levels * width];
    let mut decisions: Vec<Vec<u8>> = Vec::with_capacity(load.len());
    for (second, (arriving, rate)) in load.iter().enumerate().rev() {
        // What came within the target may still wait.
        let allowed: f64 = load.iter().take(second + 1).rev().take(target).map(|second| second.0).sum();
        let mut now = vec![0.0_f32; levels * width];
        let mut decision = vec![0_u8; levels * width];
        for level in 0..levels {
            let mut with = [0.0_f32; CHOICES.len()];
            for (choice, (workers, worth)) in CHOICES.iter().enumerate() {
                let left = (float(level) * GRAIN + arriving - worth * rate).max(0.0);
                let next = index((left / GRAIN).ceil()).min(levels - 1);
                let late = (left - allowed).max(0.0) / rate * LATE;
                with[choice] = single(f64::from(*workers) + late) + after[next * width + choice];
            }
            for (before, (had, _)) in CHOICES.iter().enumerate() {
                let cost =
                    |choice: usize| with[choice] + single(f64::from((CHOICES[choice].0 - had).max(0)) * start_up);
                let chosen = (0..width).min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(0);
                now[level * width + before] = cost(chosen);
                decision[level * width + before] = u8::try_from(chosen).unwrap_or(0);
            }
        }
        after = now;
        decisions.push(decision);
    }
    let (mut waiting, mut had) = (0.0, CHOICES.iter().position(|choice| choice.0 == begin).unwrap_or(0));
    let mut workers = Vec::with_capacity(load.len());
    for ((arriving, rate), decision) in load.iter().zip(decisions.iter().rev()) {
        let level = index(f64::ceil(waiting / GRAIN)).min(levels - 1);
        had = usize::from(decision[level * width + had]);
        waiting = f64::max(waiting + arriving - CHOICES[had].1 * rate, 0.0);
        workers.push(CHOICES[had].0);
    }
    workers
}

impl Policy for Foresight {
    fn autoscaler(&self) -> Option<Autoscaler> {
        None
    }

    fn sample(&mut self, _: &State<'_>) {}

    fn readings(&mut self, _: &State<'_>) -> Vec<Reading> {
        Vec::new()
    }

    /// What is wanted now and what is wanted when those that are asked for now will be there.
    fn scale_to(&mut self, state: &State<'_>) -> Option<i32> {
        let second = usize::try_from(Duration::as_secs(&state.now)).unwrap_or(usize::MAX);
        let soon = self.workers.iter().skip(second).take(self.start_up + 1);
        soon.max().copied().filter(|workers| *workers != state.replicas)
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Levels of a backlog: thousands.
fn index(number: f64) -> usize {
    number.max(0.0) as usize
}

#[allow(clippy::cast_precision_loss)]
fn float(number: usize) -> f64 {
    number as f64
}

/// Sums stay below what a short float tells apart by less than a thousandth.
#[allow(clippy::cast_possible_truncation)]
fn single(number: f64) -> f32 {
    number as f32
}
