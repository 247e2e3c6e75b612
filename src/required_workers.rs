//! How many workers should there be now: one answer for all that ask, the controller as well as the metrics API. Pure.

use crate::api::Reason;

/// The number of workers that should run now, and what it follows from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RequiredWorkers {
    /// The leader asks for so many; this replica repeats it, so that all replicas serve one number.
    Leader(u32),
    /// By a fresh sample of this replica.
    Sample(u32),
    /// The lag is not known, and the spec says how many workers to run then (`spec.lag.onUnknown: Fallback`).
    Fallback(u32),
    /// Nothing has ever been committed: the first commit takes a worker. How many more are needed is not known.
    FirstCommit,
    /// Not known. Workers stay as they are.
    Unknown,
}

impl RequiredWorkers {
    /// `sample`: the workers that the model requires by a fresh sample, or why there is none. `leader`: what another replica, which leads, asks for.
    /// `fallback`: the workers to run while the lag is not known, where the spec names a number.
    pub fn now(sample: Result<u32, Reason>, leader: Option<u32>, fallback: Option<u32>) -> Self {
        match (leader, sample, fallback) {
            (Some(workers), _, _) => Self::Leader(workers),
            (None, Ok(workers), _) => Self::Sample(workers),
            (None, Err(Reason::NeverCommitted), Some(workers)) => Self::Fallback(workers.max(1)),
            (None, Err(_), Some(workers)) => Self::Fallback(workers),
            (None, Err(Reason::NeverCommitted), None) => Self::FirstCommit,
            (None, Err(_), None) => Self::Unknown,
        }
    }

    /// The number for autoscalers. Absent where nothing was measured: an autoscaler that reads 1 would remove all workers but one.
    pub fn served(self) -> Option<u32> {
        match self {
            Self::Leader(workers) | Self::Sample(workers) | Self::Fallback(workers) => Some(workers),
            Self::FirstCommit | Self::Unknown => None,
        }
    }

    /// The number that the operator itself asks for. It only adds workers, and removes none but the last one of a Projection that may sleep.
    pub fn asked_for(self) -> Option<u32> {
        match self {
            Self::FirstCommit => Some(1),
            other => other.served(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_answer_and_what_is_unknown_is_never_zero() {
        use RequiredWorkers::{Fallback, FirstCommit, Leader, Sample, Unknown};
        const NEVER: Result<u32, Reason> = Err(Reason::NeverCommitted);
        const OLD: Result<u32, Reason> = Err(Reason::SampleTooOld);
        for (sample, leader, fallback, answer, served, asked_for) in [
            (Ok(4), None, None, Sample(4), Some(4), Some(4)),
            (Ok(4), None, Some(9), Sample(4), Some(4), Some(4)),
            (Ok(0), None, Some(9), Sample(0), Some(0), Some(0)),
            (Ok(4), Some(6), None, Leader(6), Some(6), Some(6)),
            (OLD, Some(6), Some(9), Leader(6), Some(6), Some(6)),
            (OLD, None, Some(9), Fallback(9), Some(9), Some(9)),
            (OLD, None, None, Unknown, None, None),
            (NEVER, None, None, FirstCommit, None, Some(1)),
            (NEVER, None, Some(3), Fallback(3), Some(3), Some(3)),
            (NEVER, None, Some(0), Fallback(1), Some(1), Some(1)),
        ] {
            let now = RequiredWorkers::now(sample, leader, fallback);
            assert_eq!(
                (now, now.served(), now.asked_for()),
                (answer, served, asked_for),
                "{sample:?} {leader:?} {fallback:?}"
            );
        }
    }
}
