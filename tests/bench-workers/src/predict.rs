//! What the simulator and perfect foresight say of a cell.

use std::time::Duration;

use bench_scaling::{
    foresight::Foresight,
    traces::{Brief, PER_WORKER},
};
use projectionist::simulate::{Plan, Point, Score, Trace, run};

use crate::{kinds::Kind, ways::Way};

/// When the autoscaler looks first: what a cluster does lies somewhere between.
const PHASES: [u64; 3] = [1, 6, 11];

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

    fn plan(&self, start_up: Duration, phase: u64) -> Plan {
        Plan {
            shards: self.kind.weights(),
            kind: self.kind.simulated(),
            per_worker: PER_WORKER,
            start_up,
            phase: Duration::from_secs(phase),
            // What the operator does for these targets.
            sampling: (self.target / 10).clamp(Duration::from_millis(500), Duration::from_secs(5)),
            ..Plan::new(self.arrivals(), self.target)
        }
    }

    /// The mean of the phases, and the most reversals of any. `start_up`: from a worker's creation until it works.
    pub fn simulated(&self, way: Way, start_up: Duration) -> Prediction {
        let scores: Vec<Score> = PHASES
            .iter()
            .map(|phase| run(&self.plan(start_up, *phase), way.simulated().policy(self.target).as_mut()).score())
            .collect();
        let mean = |of: fn(&Score) -> f64| scores.iter().map(of).sum::<f64>() / PHASES.len() as f64;
        Prediction { lateness: mean(|score| score.lateness), worker_seconds: mean(|score| score.worker_seconds) }
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
    /// What it costs.
    pub worker_seconds: f64,
}
