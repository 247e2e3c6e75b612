//! What is wrong with a sample, or with what samples say one after another.

use std::{collections::VecDeque, time::Duration};

use super::{CheckpointState, Pending, Position, Sample, as_float};

/// Why a sample does not show the lag.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Fault {
    /// There is no checkpoint: what is pending cannot be distinguished from "nothing done yet" or "nothing to do".
    #[error("no checkpoint has been committed yet")]
    NeverCommitted,
    /// A source that was restored or replaced silently skips events.
    #[error(
        "the checkpoint {checkpoint} is beyond the source's head {head}: was the source restored or replaced? Events would be skipped silently"
    )]
    CheckpointBeyondHead {
        /// The furthest shard's checkpoint.
        checkpoint: Position,
        /// The raw head of its log.
        head: Position,
    },
    /// The probe could not count what is pending.
    #[error("the source did not tell how many events are pending")]
    PendingUnknown,
    /// A number that means nothing by itself.
    #[error("the source tells a value, and spec.lag.value does not say what it is to be")]
    NoTarget,
    /// No number at all.
    #[error("the source tells a value that is not finite, which says nothing")]
    ValueNotFinite,
}

/// The pending events of a sample that makes sense.
pub(super) fn plausible(sample: &Sample) -> Result<Pending, Fault> {
    if sample.checkpoint == CheckpointState::NeverCommitted {
        return Err(Fault::NeverCommitted);
    }
    match sample.head.passed_by(sample.checkpoint.positions()) {
        Some((checkpoint, head)) => Err(Fault::CheckpointBeyondHead { checkpoint, head }),
        None => sample.pending.ok_or(Fault::PendingUnknown),
    }
}

/// An event that lies further ahead of the source's clock than this has a time that says nothing about its age.
const AHEAD: Duration = Duration::from_secs(30);

/// How far the events' times lie in the future, where that is more than clocks differ by.
pub(super) fn ahead_of_clock(sample: &Sample) -> Option<Duration> {
    Some(sample.ahead_of_clock).filter(|ahead| *ahead > AHEAD)
}

/// More events at once than the projection has ever known, by orders of magnitude: an import, or a source that reports wrong numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Jump {
    /// Events that came between two samples.
    pub arrived: u64,
    /// The time between them.
    pub within: Duration,
}

const JUMP_EVENTS: u64 = 100_000;
const JUMP_TIMES: f64 = 1_000.0;

/// What is no load that grew but another order of magnitude, `usual` being the rate before.
pub(super) fn jump(arrived: u64, within: Duration, usual: f64) -> Option<Jump> {
    let rate = as_float(arrived) / within.as_secs_f64().max(0.001);
    (arrived >= JUMP_EVENTS && rate > usual.max(1.0) * JUMP_TIMES).then_some(Jump { arrived, within })
}

/// How long a source still keeps the oldest waiting event, and how long it takes to come to the end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RetentionRisk {
    /// Until the source deletes the oldest event that waits; zero when it may be gone already.
    pub lost_in: Duration,
    /// Until nothing waits, where the backlog shrinks.
    pub drained_in: Option<Duration>,
}

/// The events that wait are deleted before they are handled. A backlog that does not shrink is a risk once half of the time is gone.
pub(super) fn retention_risk(
    retention: Option<Duration>,
    staleness: Option<Duration>,
    pending: u64,
    drained_in: Option<Duration>,
) -> Option<RetentionRisk> {
    let (retention, staleness) = (retention?, staleness?);
    let lost_in = retention.saturating_sub(staleness);
    let risk = match drained_in {
        _ if pending == 0 => false,
        Some(drained_in) => drained_in >= lost_in,
        None => staleness >= retention / 2,
    };
    risk.then_some(RetentionRisk { lost_in, drained_in })
}

/// A checkpoint that went back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rewound {
    /// Where it was.
    pub from: Position,
    /// Where it went.
    pub to: Position,
    /// It goes back and forth: more than one projector commits to it.
    pub contested: bool,
}

/// How long a step back of the checkpoint is reported, so that the report is not over before a user sees it.
const SAY_REWOUND: Duration = Duration::from_secs(60);
/// Two steps back within this time are no coincidence.
const CONTESTED: Duration = Duration::from_secs(600);

/// Follows a checkpoint's steps back.
#[derive(Clone, Debug, Default)]
pub(super) struct Rewinds {
    before: Option<CheckpointState>,
    /// When, from where, to where.
    last: Option<(Duration, Position, Position)>,
    /// Those that came after it had gone forward again.
    repeated: VecDeque<Duration>,
}

impl Rewinds {
    /// Takes in a checkpoint, and answers whether it went back just now.
    pub(super) fn observe(&mut self, now: Duration, checkpoint: &CheckpointState) -> bool {
        let before = self.before.replace(checkpoint.clone());
        let Some((from, to)) = before.and_then(|before| step_back(&before, checkpoint)) else { return false };
        if self.last.is_some_and(|(_, _, lowest)| from > lowest) {
            self.repeated.push_back(now);
        }
        self.last = Some((now, from, to));
        true
    }

    /// What is to be said of it.
    pub(super) fn say(&mut self, now: Duration) -> Option<Rewound> {
        while self.repeated.front().is_some_and(|at| now.saturating_sub(*at) >= CONTESTED) {
            self.repeated.pop_front();
        }
        if self.repeated.len() > 8 {
            self.repeated.pop_front();
        }
        let (at, from, to) = self.last?;
        let age = now.saturating_sub(at);
        if age >= CONTESTED {
            self.last = None;
        }
        let contested = !self.repeated.is_empty();
        (contested || age < SAY_REWOUND).then_some(Rewound { from, to, contested })
    }
}

fn step_back(before: &CheckpointState, now: &CheckpointState) -> Option<(Position, Position)> {
    if let (CheckpointState::Committed(before), CheckpointState::Committed(now)) = (before, now)
        && before.len() == now.len()
    {
        return before.iter().copied().zip(now.iter().copied()).find(|(before, now)| now < before);
    }
    let (before, now) = (before.lowest()?, now.lowest()?);
    (now < before).then_some((before, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn said(steps: &[(u64, i64)]) -> Option<Rewound> {
        let mut rewinds = Rewinds::default();
        let mut last = None;
        for (second, position) in steps {
            rewinds.observe(at(*second), &CheckpointState::Committed(vec![Position(*position), Position(1_000)]));
            last = rewinds.say(at(*second));
        }
        last
    }

    #[test]
    fn going_back_once_is_rewound_and_back_and_forth_is_contested() {
        let once = Rewound { from: Position(50), to: Position(10), contested: false };
        for (steps, expected) in [
            (&[(0, 10), (1, 50)][..], None),
            (&[(0, 50), (1, 10)], Some(once)),
            (&[(0, 50), (1, 10), (30, 20)], Some(once)),
            (&[(0, 50), (1, 10), (70, 20)], None),
            (&[(0, 80), (1, 50), (2, 10)], Some(once)),
            (&[(0, 50), (1, 10), (2, 50), (3, 10)], Some(Rewound { contested: true, ..once })),
            (&[(0, 50), (1, 10), (2, 50), (3, 10), (590, 20)], Some(Rewound { contested: true, ..once })),
            (&[(0, 50), (1, 10), (2, 50), (3, 10), (604, 20)], None),
            (&[(0, 50), (1, 10), (700, 50), (701, 10)], Some(once)),
        ] {
            assert_eq!(said(steps), expected, "{steps:?}");
        }
    }

    #[test]
    fn any_shard_may_go_back() {
        let mut rewinds = Rewinds::default();
        let checkpoint = |second| CheckpointState::Committed(vec![Position(5), Position(second)]);
        assert!(!rewinds.observe(at(0), &checkpoint(90)));
        assert!(rewinds.observe(at(1), &checkpoint(80)));
        assert_eq!(rewinds.say(at(1)).map(|said| (said.from, said.to)), Some((Position(90), Position(80))));
        // Another number of shards: only the lowest can be compared.
        assert!(!rewinds.observe(at(2), &CheckpointState::Committed(vec![Position(7)])));
        assert!(rewinds.observe(at(3), &CheckpointState::Committed(vec![Position(6), Position(90)])));
    }

    #[test]
    fn events_that_are_deleted_before_they_are_handled_are_a_risk() {
        let hour = Duration::from_secs(3_600);
        for (staleness, pending, drained_in, risk) in [
            (at(600), 10, Some(at(60)), false),
            (at(3_000), 10, Some(at(599)), false),
            (at(3_000), 10, Some(at(600)), true),
            (at(4_000), 10, Some(at(1)), true),
            (at(1_000), 10, None, false),
            (at(1_800), 10, None, true),
            (at(0), 0, None, false),
        ] {
            let found = retention_risk(Some(hour), Some(staleness), pending, drained_in);
            assert_eq!(found.is_some(), risk, "{staleness:?} {pending} {drained_in:?}");
        }
        assert_eq!(retention_risk(None, Some(hour), 10, None), None);
        assert_eq!(retention_risk(Some(hour), None, 10, None), None, "unknown is no risk");
    }

    #[test]
    fn a_jump_is_another_order_of_magnitude_and_not_a_burst() {
        for (arrived, usual, jumped) in
            [(50_000, 0.0, false), (200_000, 0.0, true), (200_000, 100.0, true), (200_000, 1_000.0, false)]
        {
            assert_eq!(jump(arrived, at(1), usual).is_some(), jumped, "{arrived} {usual}");
        }
    }
}
