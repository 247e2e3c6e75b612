//! What the operator's model knows of the workers: what the watch of their workload shows, a moment after it has happened.

use std::time::Duration;

use super::policy::State;
use crate::lag::Workers;

/// From a worker being ready to the operator's knowing: the node reports it, the workload's controller counts it, the watch brings it. An assumption,
/// longer than all three take on a cluster that is not overloaded.
const SHOWN_AFTER: Duration = Duration::from_millis(500);

/// The workers that the watch shows at a sample.
pub(super) fn workers(state: &State<'_>) -> Workers {
    let shown = |ready_at: Duration| ready_at.is_zero() || ready_at + SHOWN_AFTER <= state.now;
    let known = state.workers.iter().filter(|worker| worker.ready_at <= state.now && shown(worker.ready_at)).count();
    let ready = u32::try_from(known).unwrap_or(u32::MAX);
    Workers { ready, rolling: known != state.workers.len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{Measured, WorkerKind, crew::Crew};

    /// What is known of the crew at such a second: ready workers, and whether some come or go.
    fn known(crew: &Crew, second: f64) -> (u32, bool) {
        let (now, measured) = (Duration::from_secs_f64(second), Measured::default());
        let (replicas, workers) = (crew.count(), crew.workers());
        let (arrived, per_worker, arriving) = (0, 50.0, 0.0);
        let state = State { now, clock: now, arrived, measured: &measured, replicas, workers, per_worker, arriving };
        let known = super::workers(&state);
        (known.ready, known.rolling)
    }

    #[test]
    fn that_workers_are_ready_is_known_a_moment_later_and_that_they_come_or_go_at_once() {
        let mut crew = Crew::ready(2, Duration::from_millis(600), WorkerKind::default());
        assert_eq!(known(&crew, 0.0), (2, false), "those of the beginning were known before");
        crew.scale(4, Duration::from_millis(1_500));
        assert_eq!(known(&crew, 1.6), (2, true));
        assert_eq!(known(&crew, 2.5), (2, true), "two are ready since 2.1 s");
        assert_eq!(known(&crew, 2.7), (4, false));
        crew.scale(3, Duration::from_millis(5_000));
        assert_eq!(known(&crew, 5.0), (3, false), "one is gone");
    }
}
