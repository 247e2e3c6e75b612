//! What the operator's model knows of the workers: what the Projection's status says of them, which is written with some delay.

use std::time::Duration;

use super::policy::State;
use crate::{
    controller::{COUNTS_EVERY, COUNTS_SETTLE, NUMBERS_EVERY},
    lag::Workers,
};

/// The workers by the status that was written last.
///
/// A status with another number of required workers is written at once, and so is one that says that workers begin to come or go. That they are all
/// ready waits until it has been so for a moment, and until the last write is some seconds old. So the model keeps to what it has asked for while
/// real workers may long be at work.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    workers: Option<Workers>,
    required: Option<u32>,
    replicas: i32,
    /// When the last sample was taken.
    seen: Duration,
    written: Duration,
    /// Since when the workers are others than the status says.
    differs: Option<Duration>,
}

impl Told {
    /// What is known at a sample.
    pub(super) fn workers(&mut self, state: &State<'_>) -> Workers {
        let (now, there) = (state.now, there(state));
        let Some(told) = self.workers else {
            (self.replicas, self.seen) = (state.replicas, now);
            self.write(there, now);
            return there;
        };
        if state.replicas != self.replicas {
            // Workers begin to come or go, and those that come were not ready when the status was written.
            let come = state.workers.iter().map(|worker| worker.created).filter(|at| *at >= self.seen).max();
            self.replicas = state.replicas;
            self.write(Workers { ready: told.ready.min(there.ready), rolling: true }, come.unwrap_or(now));
        } else if told == there {
            self.differs = None;
            if now >= self.written + NUMBERS_EVERY {
                self.written = now;
            }
        }
        // It may have happened since the last sample.
        let became =
            state.workers.iter().map(|worker| worker.ready_at).filter(|at| *at <= now && *at > self.seen).max();
        self.seen = now;
        if self.workers != Some(there) {
            let differs = *self.differs.get_or_insert(became.unwrap_or(now));
            if now >= (differs + COUNTS_SETTLE).max(self.written + COUNTS_EVERY) {
                self.write(there, now);
            }
        }
        self.workers.unwrap_or(there)
    }

    /// The model asks for `required` workers: the status is written at once where that has changed.
    pub(super) fn asks_for(&mut self, required: Option<u32>, state: &State<'_>) {
        if self.required != required {
            self.required = required;
            self.write(there(state), state.now);
        }
    }

    fn write(&mut self, workers: Workers, now: Duration) {
        (self.workers, self.written, self.differs) = (Some(workers), now, None);
    }
}

fn there(state: &State<'_>) -> Workers {
    let ready = state.ready();
    Workers { ready, rolling: usize::try_from(ready).ok() != Some(state.workers.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{Measured, WorkerKind, crew::Crew};

    /// What is known of the crew at such a second: ready workers, and whether some come or go.
    fn known(told: &mut Told, crew: &Crew, second: f64, required: u32) -> (u32, bool) {
        let (now, measured) = (Duration::from_secs_f64(second), Measured::default());
        let (replicas, workers) = (crew.count(), crew.workers());
        let (arrived, per_worker, arriving) = (0, 50.0, 0.0);
        let state = State { now, clock: now, arrived, measured: &measured, replicas, workers, per_worker, arriving };
        let known = told.workers(&state);
        told.asks_for(Some(required), &state);
        (known.ready, known.rolling)
    }

    #[test]
    fn that_workers_are_ready_is_told_seconds_later_and_that_they_come_at_once() {
        let mut crew = Crew::ready(2, Duration::from_millis(600), WorkerKind::default());
        let mut told = Told::default();
        assert_eq!(known(&mut told, &crew, 0.0, 2), (2, false));
        assert_eq!(known(&mut told, &crew, 1.5, 4), (2, false));
        crew.scale(4, Duration::from_millis(1_500));
        assert_eq!(
            known(&mut told, &crew, 3.0, 4),
            (2, true),
            "four are ready since 2.1 s, and the status is from 1.5 s"
        );
        assert_eq!(known(&mut told, &crew, 4.5, 4), (4, false), "three seconds later it is written again");
        crew.scale(3, Duration::from_millis(5_000));
        assert_eq!(known(&mut told, &crew, 6.0, 4), (3, true), "one goes");
        assert_eq!(known(&mut told, &crew, 7.5, 4), (3, true));
        assert_eq!(known(&mut told, &crew, 9.0, 4), (3, false));
    }
}
