//! In which steps the checkpoint moves: workers commit after a time or after a number of events, and what lies between two commits is no queue.
//!
//! One observation is the time for which events had been waiting for the step that took them in, and how many it took. Only steps that left (next to)
//! nothing are looked at: what waits for longer than a step waits for a worker, which says nothing of how often workers commit.

use std::{collections::VecDeque, time::Duration};

/// In which steps a checkpoint moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cadence {
    /// From one step of a worker to its next, at the present load.
    pub every: Duration,
    /// Events per step, where workers commit after a number of events and not after a time.
    pub events: Option<f64>,
}

/// The cadence is the median of this many steps: a worker that was replaced in between does not move it, and a change is known after half as many.
const STEPS: usize = 15;
/// Workers commit by time or by count, whichever varies by less than this share of how much the other one varies.
const STEADIER: f64 = 0.5;
/// This many steps are needed to distinguish a commit by time from one by count.
const TOLD_APART: usize = 6;
/// A cadence of no more than this many looks counts as none: what is left at a look is the queue, as far as can be seen.
const LOOKS: f64 = 2.0;

/// Follows the steps.
#[derive(Clone, Debug, Default)]
pub(super) struct Steps {
    /// Seconds, and events.
    seen: VecDeque<(f64, f64)>,
    remembered: Option<Cadence>,
}

impl Steps {
    /// Starts from what an earlier run learnt.
    pub(super) fn remembering(cadence: Option<Cadence>) -> Self {
        let sound = |cadence: &Cadence| cadence.events.is_none_or(|events| events.is_finite() && events >= 1.0);
        Self { seen: VecDeque::new(), remembered: cadence.filter(sound) }
    }

    /// Takes in a step: for how many seconds the events had waited for it, and how many it took in.
    pub(super) fn observe(&mut self, seconds: f64, events: f64) {
        if self.seen.len() >= STEPS {
            self.seen.pop_front();
        }
        self.seen.push_back((seconds, events));
    }

    /// A step of this run has been seen, or one of an earlier run is remembered.
    pub(super) fn known(&self) -> bool {
        !self.seen.is_empty() || self.remembered.is_some()
    }

    /// Events that a step takes in, once one was seen.
    pub(super) fn events(&self) -> Option<f64> {
        let seen = (!self.seen.is_empty()).then(|| median(self.seen.iter().map(|step| step.1)));
        seen.or(self.remembered.and_then(|remembered| remembered.events))
    }

    /// The cadence, unless the checkpoint moves all the time. `look`: seconds between two looks; `each`: events per second and worker, at present.
    pub(super) fn cadence(&self, look: f64, each: f64) -> Option<Cadence> {
        let (time, events) = match (self.remembered, self.seen.len()) {
            (Some(remembered), 0..=1) => (remembered.every.as_secs_f64(), remembered.events),
            (_, 0) => return None,
            _ => {
                let counted = median(self.seen.iter().map(|step| step.1));
                (median(self.seen.iter().map(|step| step.0)), Some(counted).filter(|_| self.go_by_events()))
            }
        };
        let every = match events {
            Some(events) if each > 0.0 => events / each,
            _ => time,
        };
        // At hardly any load the next step may be days away.
        let every = Duration::try_from_secs_f64(every).unwrap_or(Duration::MAX).min(LONGEST);
        (time > LOOKS * look).then_some(Cadence { every, events })
    }

    fn go_by_events(&self) -> bool {
        // By the median, so that a step that was cut short (shards change hands) counts for no more than one.
        let varies = |value: fn(&(f64, f64)) -> f64| {
            let typical = median(self.seen.iter().map(value));
            median(self.seen.iter().map(|step| (value(step) - typical).abs())) / typical.max(f64::MIN_POSITIVE)
        };
        self.seen.len() >= TOLD_APART && varies(|step| step.1) < STEADIER * varies(|step| step.0)
    }
}

/// No step is expected to take longer.
const LONGEST: Duration = Duration::from_secs(24 * 3_600);

/// The upper one of two in the middle.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(steps: &[(f64, f64)]) -> Steps {
        let mut seen = Steps::default();
        steps.iter().for_each(|(seconds, events)| seen.observe(*seconds, *events));
        seen
    }

    fn told(steps: &Steps, each: f64) -> Option<(f64, Option<f64>)> {
        steps.cadence(0.5, each).map(|cadence| (cadence.every.as_secs_f64(), cadence.events))
    }

    #[test]
    fn a_time_between_commits_is_told_after_the_first_and_outlasts_an_odd_one() {
        assert_eq!(told(&after(&[]), 10.0), None);
        assert_eq!(told(&after(&[(5.0, 50.0)]), 10.0), Some((5.0, None)));
        let odd =
            after(&[(5.0, 50.0), (4.5, 230.0), (5.0, 51.0), (60.0, 700.0), (5.0, 40.0), (4.5, 49.0), (5.0, 90.0)]);
        assert_eq!(told(&odd, 10.0), Some((5.0, None)));
    }

    #[test]
    fn a_checkpoint_that_moves_at_nearly_every_look_has_none() {
        assert_eq!(told(&after(&[(0.5, 5.0), (0.0, 5.0), (1.0, 9.0)]), 10.0), None);
        assert_eq!(told(&after(&[(0.5, 5.0), (5.0, 50.0), (5.0, 50.0)]), 10.0), Some((5.0, None)));
    }

    #[test]
    fn a_number_of_events_is_told_from_a_time_when_the_load_changes_and_gives_the_time_at_the_present_load() {
        let steps = after(&[
            (100.0, 1_000.0),
            (100.0, 1_000.0),
            (50.0, 1_000.0),
            (20.0, 1_003.0),
            (20.0, 1_000.0),
            (19.5, 1_000.0),
        ]);
        assert_eq!(told(&steps, 10.0), Some((100.0, Some(1_000.0))));
        assert_eq!(told(&steps, 50.0), Some((20.0, Some(1_000.0))));
        assert_eq!(told(&steps, 0.0), Some((50.0, Some(1_000.0))), "no load: as it was");
    }

    #[test]
    fn steps_that_are_cut_short_now_and_then_hide_no_number_of_events() {
        let steps = after(&[
            (12.0, 311.0),
            (24.0, 465.0),
            (51.0, 1_000.0),
            (51.0, 1_000.0),
            (52.5, 1_001.0),
            (103.5, 1_000.0),
            (105.0, 1_000.0),
        ]);
        assert_eq!(told(&steps, 10.0), Some((100.0, Some(1_000.0))));
    }

    #[test]
    fn what_an_earlier_run_learnt_holds_until_two_steps_were_seen() {
        let mut steps = Steps::remembering(Some(Cadence { every: Duration::from_secs(30), events: None }));
        assert_eq!(told(&steps, 10.0), Some((30.0, None)));
        steps.observe(5.0, 50.0);
        assert_eq!(told(&steps, 10.0), Some((30.0, None)));
        steps.observe(5.0, 50.0);
        assert_eq!(told(&steps, 10.0), Some((5.0, None)));
        for nonsense in [f64::NAN, 0.0, -3.0, f64::INFINITY] {
            let nonsense = Cadence { every: Duration::from_secs(30), events: Some(nonsense) };
            assert!(!Steps::remembering(Some(nonsense)).known());
        }
    }
}
