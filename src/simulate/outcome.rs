//! What a simulation came to: replicas and lag over time, and a few numbers that tell how good that was.

use std::time::Duration;

use serde::Serialize;

/// What was at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    /// Since the trace began.
    pub at: Duration,
    /// Events per second that arrive.
    pub arriving: f64,
    /// Events that are not wholly handled.
    pub pending: u64,
    /// Age of the oldest of them.
    pub staleness: Duration,
    /// Events beyond the checkpoints, as they were measured last: more, where workers do not commit each event.
    pub measured_pending: u64,
    /// Age of the oldest of these.
    pub measured_staleness: Duration,
    /// What the scale asks for.
    pub replicas: i32,
    /// Workers that are ready.
    pub ready: u32,
    /// What the policy asks for, where it says.
    pub required: Option<u32>,
}

/// A whole simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    moments: Vec<Moment>,
    tick: Duration,
    target: Duration,
}

/// How good it was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Score {
    /// Seconds in which the oldest event was older than the target.
    pub out_of_target_seconds: f64,
    /// The part of the time that this is, from 0 to 1.
    pub out_of_target: f64,
    /// The integral of staleness beyond the target, in seconds times seconds.
    pub lateness: f64,
    /// The highest staleness, in seconds.
    pub worst_staleness_seconds: f64,
    /// The integral of workers that were paid for, ready or not.
    pub worker_seconds: f64,
    /// The most of them.
    pub most_workers: i32,
    /// How often the number of workers was changed.
    pub changes: usize,
    /// How often within a minute of another change it was changed the other way.
    pub reversals: usize,
}

/// A change that undoes another sooner than this is a reversal.
const REVERSAL_WITHIN: Duration = Duration::from_secs(60);

impl Run {
    /// From each tick's moment, in order; at least one. Also for what was measured on a cluster, which is then scored the same way.
    pub fn new(moments: Vec<Moment>, tick: Duration, target: Duration) -> Self {
        Self { moments, tick, target }
    }

    /// Each tick, in order; at least one.
    pub fn moments(&self) -> &[Moment] {
        &self.moments
    }

    /// No event should have waited longer than this.
    pub fn target(&self) -> Duration {
        self.target
    }

    /// When the number of workers changed, from how many to how many.
    pub fn changes(&self) -> Vec<(Duration, i32, i32)> {
        let pairs = self.moments.iter().zip(self.moments.iter().skip(1));
        let changed = pairs.filter(|(before, after)| before.replicas != after.replicas);
        changed.map(|(before, after)| (after.at, before.replicas, after.replicas)).collect()
    }

    /// The numbers.
    pub fn score(&self) -> Score {
        let (tick, target) = (self.tick.as_secs_f64(), self.target.as_secs_f64());
        // The last moment is the end, and lasts no time.
        let lasting = self.moments.len().saturating_sub(1);
        let (mut out, mut lateness, mut worst, mut worker_seconds) = (0.0, 0.0, 0.0_f64, 0.0);
        for moment in self.moments.iter().take(lasting) {
            let staleness = moment.staleness.as_secs_f64();
            worst = worst.max(staleness);
            worker_seconds += f64::from(moment.replicas) * tick;
            if staleness > target {
                out += tick;
                lateness += (staleness - target) * tick;
            }
        }
        let changes = self.changes();
        let turned = |pair: &(&(Duration, i32, i32), &(Duration, i32, i32))| {
            let (before, after) = pair;
            (before.2 > before.1) != (after.2 > after.1) && after.0 - before.0 < REVERSAL_WITHIN
        };
        let length = self.moments.last().map_or(0.0, |moment| moment.at.as_secs_f64());
        Score {
            out_of_target_seconds: rounded(out),
            out_of_target: rounded(if length > 0.0 { out / length } else { 0.0 }),
            lateness: rounded(lateness),
            worst_staleness_seconds: rounded(worst),
            worker_seconds: rounded(worker_seconds),
            most_workers: self.moments.iter().map(|moment| moment.replicas).max().unwrap_or(0),
            changes: changes.len(),
            reversals: changes.iter().zip(changes.iter().skip(1)).filter(turned).count(),
        }
    }
}

/// To the thousandth: sums of many ticks are not exact beyond it.
fn rounded(number: f64) -> f64 {
    (number * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_lateness_worker_seconds_and_reversals() {
        let moment = |(second, staleness, replicas): (u64, u64, i32)| Moment {
            at: Duration::from_secs(second * 10),
            arriving: 1.0,
            pending: 0,
            staleness: Duration::from_secs(staleness),
            measured_pending: 0,
            measured_staleness: Duration::ZERO,
            replicas,
            ready: 1,
            required: None,
        };
        let moments = [(0, 0, 1), (1, 7, 1), (2, 5, 4), (3, 6, 4), (4, 1, 2), (5, 1, 2), (6, 0, 5), (13, 9, 3)];
        let run = Run::new(moments.map(moment).to_vec(), Duration::from_secs(10), Duration::from_secs(5));
        let expected = Score {
            out_of_target_seconds: 20.0,
            out_of_target: 0.154,
            lateness: 30.0,
            worst_staleness_seconds: 7.0,
            worker_seconds: 190.0,
            most_workers: 5,
            changes: 4,
            reversals: 2,
        };
        assert_eq!(run.score(), expected, "the last change comes more than a minute after the one before");
    }
}
