//! Decides whether the operator itself sets the number of workers, and to what. The autoscaler removes workers, except for the last one: it can
//! neither set 0 nor leave it. The operator may add workers before the autoscaler looks: see `scale_out`.

use crate::resolve::WorkerBounds;

/// What is known when deciding.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ScaleView {
    /// `spec.replicas` of the workload; absent when there is no workload yet.
    pub replicas: Option<i32>,
    /// The workers that the model requires by a fresh sample; 0 once nothing has waited for long enough. Absent when the model does not know.
    pub required: Option<i32>,
    /// It has been suspended until now, by the status.
    pub was_suspended: bool,
    /// The most workers that the autoscaler's own rules allow now; absent where only the autoscaler may add workers.
    pub ceiling: Option<i32>,
}

/// What to do about the number of workers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ScalePlan {
    /// Leave the number as it is: the autoscaler decides or, without one, the user.
    Leave,
    /// Create the workload with this many workers.
    CreateWith(i32),
    /// Set this number now.
    Set(i32),
    /// Make sure that there are at least this many workers; never remove one.
    Raise(i32),
}

/// Decides what to do about the number of workers.
pub fn plan_scale(workers: &WorkerBounds, view: ScaleView) -> ScalePlan {
    let WorkerBounds { min, max, suspended, autoscaled, immediate, pending_per_worker: _, behavior: _ } = workers;
    let ScaleView { replicas, required, was_suspended, ceiling } = view;
    let least = (*min).max(1);
    // Where the rules allow some of the workers now and others later, only the autoscaler adds workers: it does not count those that another client
    // adds, so that the two together would break the rules.
    let free = *immediate && ceiling.is_some_and(|ceiling| *max <= ceiling);
    let may_sleep = *min == 0 && *autoscaled;
    match (replicas, required) {
        (None, _) if *suspended => ScalePlan::CreateWith(0),
        // The first commit needs a worker, even where there may be none later.
        (None, _) => ScalePlan::CreateWith(least),
        (Some(0), _) if *suspended => ScalePlan::Leave,
        (Some(_), _) if *suspended => ScalePlan::Set(0),
        (Some(0), Some(0)) if may_sleep => ScalePlan::Leave,
        // Workers that are scaled to 0 stay so while the lag is unknown: there is no known work.
        (Some(0), None) if may_sleep && !was_suspended => ScalePlan::Leave,
        // Without an autoscaler of the operator's, a 0 may be what a user wants, unless suspending set it.
        (Some(0), required) if *autoscaled || was_suspended => {
            // Where the autoscaler has rules of its own, it goes on from the least number.
            let all = !autoscaled || free;
            ScalePlan::Set(required.filter(|_| all).unwrap_or(least).clamp(least, (*max).max(least)))
        }
        (Some(1..), Some(0)) if may_sleep => ScalePlan::Set(0),
        (Some(now @ 1..), Some(required)) => {
            let to = required.min(*max);
            if to > now && free { ScalePlan::Raise(to) } else { ScalePlan::Leave }
        }
        (Some(_), _) => ScalePlan::Leave,
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
            immediate: autoscaled,
            pending_per_worker: None,
            behavior: None,
        }
    }

    fn view(replicas: Option<i32>, required: Option<i32>, was_suspended: bool) -> ScaleView {
        ScaleView { replicas, required, was_suspended, ceiling: None }
    }

    fn free(view: ScaleView) -> ScaleView {
        ScaleView { ceiling: Some(99), ..view }
    }

    #[test]
    fn decides_about_the_number_of_workers_only_where_no_autoscaler_can() {
        use ScalePlan::{CreateWith, Leave, Set};
        for (suspended, autoscaled, seen, expected, why) in [
            (false, true, view(None, Some(5), false), CreateWith(2), "made with min"),
            (true, true, view(None, None, false), CreateWith(0), "made asleep"),
            (true, true, view(Some(5), Some(5), false), Set(0), "the kill switch"),
            (true, true, view(Some(0), Some(5), true), Leave, "asleep already"),
            (true, false, view(Some(3), None, true), Set(0), "edited while suspended: put back"),
            (false, true, view(Some(5), Some(8), false), Leave, "the autoscaler's"),
            (false, true, view(Some(0), None, false), Set(2), "the autoscaler ignores 0, and min is at least 1"),
            (false, true, free(view(Some(0), Some(5), true)), Set(5), "resumed where the load wants it"),
            (false, true, view(Some(0), Some(5), true), Set(2), "the autoscaler's own rules hold"),
            (false, true, free(view(Some(0), Some(99), true)), Set(8), "never above max"),
            (false, true, view(Some(0), Some(1), true), Set(2), "never below min"),
            (false, false, view(Some(0), Some(5), true), Set(5), "resumed where no autoscaler scales"),
            (false, false, view(Some(0), None, true), Set(2), "resumed without an autoscaler: at least min"),
            (false, false, view(Some(0), None, false), Leave, "another client's zero"),
            (false, false, view(Some(40), None, true), Leave, "another client's number"),
        ] {
            assert_eq!(plan_scale(&workers(suspended, autoscaled), seen), expected, "{why}");
        }
    }

    #[test]
    fn raises_at_once_within_all_bounds_and_never_lowers() {
        use ScalePlan::{Leave, Raise};
        for (replicas, required, ceiling, expected, why) in [
            (2, Some(5), Some(20), Raise(5), "the model asks for more"),
            (2, Some(5), Some(4), Leave, "the autoscaler's rules do not allow all of it now"),
            (2, Some(3), Some(4), Leave, "they allow this much, and would allow as much again by the autoscaler"),
            (2, Some(99), Some(99), Raise(8), "never above max"),
            (2, Some(5), None, Leave, "the rules want a look back"),
            (2, None, Some(20), Leave, "never without a fresh sample"),
            (5, Some(2), Some(20), Leave, "downwards the autoscaler decides"),
            (5, Some(5), Some(20), Leave, "there already"),
            (40, Some(8), Some(44), Leave, "above max is the autoscaler's to lower"),
        ] {
            let view = ScaleView { ceiling, ..view(Some(replicas), required, false) };
            assert_eq!(plan_scale(&workers(false, true), view), expected, "{why}");
            let alone = WorkerBounds { immediate: false, ..workers(false, true) };
            assert_eq!(plan_scale(&alone, view), Leave, "scaleOut: Autoscaler leaves it alone");
        }
    }

    #[test]
    fn sleeps_when_nothing_waits_and_wakes_for_the_first_event() {
        use ScalePlan::{CreateWith, Leave, Set};
        let sleepy = WorkerBounds { min: 0, ..workers(false, true) };
        for (seen, expected, why) in [
            (view(None, Some(0), false), CreateWith(1), "a first commit needs a worker"),
            (view(Some(1), Some(0), false), Set(0), "quiet for long enough"),
            (view(Some(5), Some(0), false), Set(0), "also where the autoscaler has not come down yet"),
            (view(Some(0), Some(0), false), Leave, "asleep"),
            (view(Some(0), Some(1), false), Set(1), "the first event"),
            (free(view(Some(0), Some(6), false)), Set(6), "a burst wakes as many as it needs"),
            (
                view(Some(0), Some(6), false),
                Set(1),
                "or the first, where the autoscaler adds the others by rules of its own",
            ),
            (view(Some(0), None, false), Leave, "unknown is no work"),
            (view(Some(3), None, false), Leave, "and no reason to sleep"),
            (view(Some(0), None, true), Set(1), "resumed, and the number is unknown"),
            (view(Some(0), Some(0), true), Leave, "resumed, and nothing waits"),
        ] {
            assert_eq!(plan_scale(&sleepy, seen), expected, "{why}");
        }
        let theirs = WorkerBounds { min: 0, autoscaled: false, immediate: false, ..workers(false, false) };
        assert_eq!(plan_scale(&theirs, view(Some(3), Some(0), false)), Leave, "no autoscaler of ours");
    }
}
