//! What the simulator and perfect foresight say of a cell.

use std::time::Duration;

use bench_scaling::{
    foresight::Foresight,
    traces::{Brief, PER_WORKER},
};
use projectionist::simulate::{Point, Scenario, Score, Trace, run};

use crate::{kinds::Kind, ways::Way};

/// A race on a cluster is one draw of many: when the autoscaler and the operator look first and how long a pod takes is chance, and where a decision is
/// near, all that follows hangs on it. So many of each are simulated.
const DRAWS: usize = 3;
/// When the autoscaler looks first.
const PHASES: [u64; DRAWS] = [1, 6, 11];
/// Pods take so many times as long to start as they do in the mean.
const SPREAD: [f64; DRAWS] = [0.75, 1.0, 1.25];

/// What is raced: workers of a kind, under a load, with a target.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Race {
    pub kind: Kind,
    pub trace: Brief,
    pub target: Duration,
    /// Of the trace's events, so many in a hundred come.
    pub percent: u32,
    /// So much of the trace is played.
    pub seconds: u32,
}

impl Race {
    /// What comes, and what an event costs a worker.
    pub fn arrivals(&self) -> Trace {
        let whole = self.trace.trace(self.kind.cost());
        let part = f64::from(self.percent) / 100.0;
        let seconds = usize::try_from(self.seconds).unwrap_or(usize::MAX);
        let points =
            whole.points().take(seconds).map(|point| Point { arriving: point.arriving * part, ..point }).collect();
        Trace::new(whole.step(), points).unwrap_or(whole)
    }

    fn plan(&self, start_up: Duration, phase: u64) -> Scenario {
        Scenario {
            shards: self.kind.weights(),
            kind: self.kind.simulated(),
            per_worker: PER_WORKER,
            start_up,
            phase: Duration::from_secs(phase),
            // What the operator does for these targets.
            sampling: (self.target / 10).clamp(Duration::from_millis(500), Duration::from_secs(5)),
            ..Scenario::new(self.arrivals(), self.target)
        }
    }

    /// The median of nine runs, and the least and the most. `start_up`: from a worker's creation until it works, in the mean.
    pub fn simulated(&self, way: Way, start_up: Duration) -> Prediction {
        let draws = (0..DRAWS).flat_map(|phase| (0..DRAWS).map(move |sample| (phase, sample)));
        let scores: Vec<Score> = draws
            .map(|(phase, sample)| {
                let took = SPREAD[(phase + sample) % DRAWS];
                let plan = self.plan(start_up.mul_f64(took), PHASES[phase]);
                let first_sample = plan.sampling.mul_f64(sample as f64 / DRAWS as f64);
                run(&Scenario { first_sample, ..plan }, way.simulated().policy(self.target).as_mut()).score()
            })
            .collect();
        let sorted = |of: fn(&Score) -> f64| {
            let mut values: Vec<f64> = scores.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let costs = sorted(|score| score.worker_seconds);
        let middle = |values: &[f64]| values[values.len() / 2];
        Prediction {
            lateness: middle(&sorted(|score| score.lateness)),
            worker_seconds: middle(&costs),
            least: costs[0],
            most: costs[costs.len() - 1],
        }
    }

    /// Worker-seconds of the best plan; none where shards or workers differ, for which it is not known.
    pub fn foresight(&self, start_up: Duration) -> Option<f64> {
        if matches!(self.kind, Kind::Uneven | Kind::SlowWorker) {
            return None;
        }
        let plan = self.plan(start_up, 0);
        Some(run(&plan, &mut Foresight::new(&plan)).score().worker_seconds)
    }
}

/// What the simulator says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Staleness beyond the target, in s·s.
    pub lateness: f64,
    /// What it costs: the median,
    pub worker_seconds: f64,
    /// the least,
    pub least: f64,
    /// and the most.
    pub most: f64,
}
