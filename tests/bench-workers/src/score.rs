//! How good a cell was: staleness from when the events came and when the workers say that they handled them, and workers from what the scale asked for.

use std::time::Duration;

use projectionist::simulate::{Moment, Run, Trace};

/// The grain of a score, as the simulator's.
pub const TICK: Duration = Duration::from_millis(100);

/// An event, in seconds since the trace began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Handled {
    /// When it was recorded.
    pub came: f64,
    /// When a worker had handled it, by the worker's clock; none: never.
    pub done: Option<f64>,
}

/// What the scale was from some time on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Since the trace began; before it, zero.
    pub at: Duration,
    /// What it asked for.
    pub replicas: i32,
    /// Workers that were ready.
    pub ready: u32,
}

/// The cell as the simulator tells one of its own. `events` are in the order in which they came, `scales` in time's, the first at zero.
pub fn run(trace: &Trace, target: Duration, events: &[Handled], scales: &[Scale]) -> Run {
    let ticks = u32::try_from(trace.length().as_millis() / TICK.as_millis()).unwrap_or(u32::MAX);
    // All before `oldest` are handled, all before `came` have come.
    let (mut oldest, mut came, mut scale) = (0, 0, 0);
    let moment = |tick: u32| {
        let at = TICK * tick;
        let now = at.as_secs_f64();
        while events.get(came).is_some_and(|event| event.came <= now) {
            came += 1;
        }
        while events.get(oldest).is_some_and(|event| event.done.is_some_and(|done| done <= now)) {
            oldest += 1;
        }
        while scales.get(scale + 1).is_some_and(|next| next.at <= at) {
            scale += 1;
        }
        let waits = |event: &&Handled| event.done.is_none_or(|done| done > now);
        let pending = events.get(oldest.min(came)..came).unwrap_or_default().iter().filter(waits).count();
        let age = events.get(oldest).filter(|_| oldest < came).map_or(0.0, |event| now - event.came);
        let Scale { replicas, ready, .. } = scales.get(scale).copied().unwrap_or(Scale { at, replicas: 0, ready: 0 });
        Moment {
            at,
            arriving: trace.at(at).arriving,
            pending: u64::try_from(pending).unwrap_or(u64::MAX),
            staleness: Duration::try_from_secs_f64(age).unwrap_or_default(),
            measured_pending: u64::try_from(pending).unwrap_or(u64::MAX),
            measured_staleness: Duration::try_from_secs_f64(age).unwrap_or_default(),
            replicas,
            ready,
            required: None,
        }
    };
    Run::new((0..=ticks).map(moment).collect(), TICK, target)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use projectionist::simulate::Point;

    use super::*;

    fn trace(seconds: usize) -> Trace {
        Trace::new(Duration::from_secs(1), vec![Point { arriving: 1.0, per_worker: None }; seconds]).unwrap()
    }

    fn scale(second: u64, replicas: i32) -> Scale {
        Scale { at: Duration::from_secs(second), replicas, ready: 1 }
    }

    #[test]
    fn the_oldest_event_that_waits_tells_how_stale_it_is() {
        let event = |came: f64, done: Option<f64>| Handled { came, done };
        // The second is done before the first; the last never.
        let events = [event(1.0, Some(7.0)), event(2.0, Some(3.0)), event(6.0, Some(8.0)), event(19.0, None)];
        let run = run(&trace(20), Duration::from_secs(4), &events, &[scale(0, 1), scale(5, 3), scale(10, 1)]);
        let at = |second: usize| run.moments()[second * 10];
        let seconds = |moment: Moment| moment.staleness.as_secs_f64();
        assert_eq!((at(0).pending, seconds(at(0))), (0, 0.0));
        assert_eq!((at(2).pending, seconds(at(2))), (2, 1.0));
        assert_eq!((at(6).pending, seconds(at(6))), (2, 5.0));
        assert_eq!((at(7).pending, seconds(at(7))), (1, 1.0), "the first is done, the third waits");
        assert_eq!((at(9).pending, seconds(at(9))), (0, 0.0));
        assert_eq!((at(20).pending, seconds(at(20))), (1, 1.0));
        let score = run.score();
        assert_eq!((score.worker_seconds, score.most_workers, score.reversals), (30.0, 3, 1));
        assert!((score.worst_staleness_seconds - 5.9).abs() < 1e-9, "{score:?}");
        assert!((score.out_of_target_seconds - 1.9).abs() < 1e-9, "from 5 s on, when the first was 4 s old: {score:?}");
    }
}
