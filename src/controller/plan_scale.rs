//! Whether the operator itself sets the number of workers, and to what. Mostly it does not: between min and max the
//! autoscaler decides. It does at creation, for the kill switch, and to wake what an autoscaler cannot (it ignores 0).

use super::validate::WorkerBounds;

/// What is known when deciding.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ScaleView {
    /// `spec.replicas` of the workload; absent when there is no workload yet.
    pub replicas: Option<i32>,
    /// The workers that the model asks for, if it knows.
    pub required: Option<i32>,
    /// The kill switch has been in force until now (by the status).
    pub was_suspended: bool,
}

/// What to do about the number of workers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ScalePlan {
    /// Leave it to the autoscaler, or to whoever scales.
    Leave,
    /// The workload is to be made with so many.
    CreateWith(i32),
    /// Set it now.
    Set(i32),
}

/// Decides.
pub fn plan_scale(workers: &WorkerBounds, view: ScaleView) -> ScalePlan {
    let WorkerBounds { min, max, suspended, autoscaled, immediate: _, pending_per_worker: _, behavior: _ } = workers;
    let awake = view.required.unwrap_or(*min).clamp(*min, *max);
    match view.replicas {
        None if *suspended => ScalePlan::CreateWith(0),
        None => ScalePlan::CreateWith(*min),
        Some(0) if *suspended => ScalePlan::Leave,
        Some(_) if *suspended => ScalePlan::Set(0),
        // Without an autoscaler of ours a 0 may be somebody's will, unless it was our kill switch.
        Some(0) if *autoscaled || view.was_suspended => ScalePlan::Set(awake),
        Some(_) => ScalePlan::Leave,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(suspended: bool, autoscaled: bool) -> WorkerBounds {
        WorkerBounds {
            min: 2,
            max: 8,
            suspended,
            autoscaled,
            immediate: false,
            pending_per_worker: None,
            behavior: None,
        }
    }

    fn view(replicas: Option<i32>, required: Option<i32>, was_suspended: bool) -> ScaleView {
        ScaleView { replicas, required, was_suspended }
    }

    #[test]
    fn decides_about_the_number_of_workers_only_where_nobody_else_can() {
        use ScalePlan::{CreateWith, Leave, Set};
        for (suspended, autoscaled, seen, expected, why) in [
            (false, true, view(None, Some(5), false), CreateWith(2), "made with min"),
            (true, true, view(None, None, false), CreateWith(0), "made asleep"),
            (true, true, view(Some(5), Some(5), false), Set(0), "the kill switch"),
            (true, true, view(Some(0), Some(5), true), Leave, "asleep already"),
            (true, false, view(Some(3), None, true), Set(0), "edited while suspended: put back"),
            (false, true, view(Some(5), Some(8), false), Leave, "the autoscaler's"),
            (false, true, view(Some(0), None, false), Set(2), "the autoscaler ignores 0, and min is at least 1"),
            (false, true, view(Some(0), Some(5), true), Set(5), "resumed where the load wants it"),
            (false, true, view(Some(0), Some(99), true), Set(8), "never above max"),
            (false, true, view(Some(0), Some(1), true), Set(2), "never below min"),
            (false, false, view(Some(0), None, true), Set(2), "resumed without an autoscaler: at least min"),
            (false, false, view(Some(0), None, false), Leave, "somebody else's zero"),
            (false, false, view(Some(40), None, true), Leave, "somebody else's number"),
        ] {
            assert_eq!(plan_scale(&workers(suspended, autoscaled), seen), expected, "{why}");
        }
    }
}
