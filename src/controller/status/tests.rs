//! What is reported, case by case.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{
    announce::announcements,
    conditions::metrics_not_served,
    next_status,
    trouble::Trouble,
    urgency::{Urgency, has_only_begun, numbers_every, urgency, waits_for_first_sample},
};
use crate::{
    api::{BoundBy, CadenceStatus, PassedOverStatus, Phase, ProjectionStatus, Reason},
    controller::{
        known::{Known, Problem, WorkloadView},
        live::WorkerCounts,
    },
    lag::{
        Assessment, AtLeast, BlockingWriter, Cadence, CheckpointState, FailedEvent, Head, Jump, Limit, Note,
        PassedOver, Pending, Position, Rates, Required, RetentionRisk, Rewound, Sample, SessionInfo, Stage,
    },
    measure::MeasureError,
    names,
    platform::registration::Unserved,
    resolve::SuspendedBy,
    snapshot::Measured,
};

mod announcements;
mod held_back;
mod sources;
mod workload;

pub(in crate::controller) fn measured(pending: u64, staleness: f64, stuck: bool) -> Measured {
    let pending = Pending { events: pending, exact: true };
    let staleness = Some(Duration::from_secs_f64(staleness));
    Measured {
        sample: Sample {
            staleness,
            ..Sample::new(
                Duration::from_secs(10),
                Head::log(Position(1_042), Position(1_040)),
                CheckpointState::Committed(vec![Position(1_035), Position(1_031)]),
                Some(pending),
                0,
            )
        },
        assessment: Assessment {
            value: None,
            pending,
            at_least: None,
            cadence: None,
            cadence_breaks_target: false,
            staleness,
            rates: Rates { arrival: Some(98.76), per_worker: Some(49.94) },
            drain: None,
            required: Required {
                workers: 2,
                wanted: 2,
                limit: Limit::Shards,
                throttled: None,
                reason: "2 workers: because".to_owned(),
            },
            frozen_for: Duration::ZERO,
            stuck,
            rewound: None,
            stage: Stage::Live,
            idle_for: Duration::ZERO,
            ahead_of_clock: None,
            retention_risk: None,
            jump: None,
            prediction: None,
        },
        valid_until: Instant::now(),
    }
}

fn unknown(reason: Reason) -> MeasureError {
    MeasureError { reason, message: format!("{reason} it is") }
}

fn present(desired: i32, ready: i32) -> WorkloadView {
    WorkloadView::Present(WorkerCounts {
        desired: Some(desired),
        ready,
        rolling: ready < desired,
        ..WorkerCounts::default()
    })
}

pub(super) fn known(measured: Result<&Measured, MeasureError>) -> Known<'_> {
    Known {
        generation: Some(1),
        version: None,
        suspended: None,
        resumed: false,
        event_table: "events".to_owned(),
        target: Duration::from_secs(30),
        workload: present(2, 2),
        trouble: None,
        starting: None,
        rollout: None,
        problem: None,
        unapplied: false,
        measured,
        failure: None,
        read_store: None,
        metrics_not_served: None,
        autoscaler_inactive: None,
        pace: None,
        runs: None,
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn status(known: &Known<'_>) -> ProjectionStatus {
    next_status(known, &ProjectionStatus::default(), at(100))
}

pub(super) fn condition(status: &ProjectionStatus, type_: &str) -> (String, String) {
    let found = status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
    (found.status.clone(), found.reason.clone())
}

fn message<'a>(status: &'a ProjectionStatus, type_: &str) -> &'a str {
    &status.conditions.iter().find(|condition| condition.type_ == type_).unwrap().message
}

pub(super) fn is(status: &ProjectionStatus, type_: &str, value: &str, reason: Reason) {
    assert_eq!(condition(status, type_), (value.to_owned(), reason.as_str().to_owned()), "{type_}");
}

#[test]
fn events_that_are_not_handled_are_named_by_their_positions() {
    let mut failing = measured(9, 1.0, false);
    failing.sample.faults.failed = vec![FailedEvent {
        shard: 3,
        part: None,
        position: Some(Position(50)),
        why: "handler of event type A failed".to_owned(),
    }];
    let said = status(&known(Ok(&failing)));
    is(&said, "Progressing", "False", Reason::EventFailed);
    is(&said, "Ready", "False", Reason::EventFailed);
    assert_eq!(said.phase, Some(Phase::Stuck));
    let message = &said.conditions.iter().find(|condition| condition.type_ == "Progressing").unwrap().message;
    assert_eq!(message, "shard 3 waits before the event at position 50: handler of event type A failed");

    let mut late = measured(0, 0.0, false);
    late.sample.faults.passed_over = PassedOver { positions: (2..=13).map(Position).collect(), more: 5 };
    let said = status(&known(Ok(&late)));
    is(&said, "Progressing", "False", Reason::EventsPassedOver);
    let message = &said.conditions.iter().find(|condition| condition.type_ == "Progressing").unwrap().message;
    assert!(
        message.starts_with("events appeared at positions 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 7 more after"),
        "{message}"
    );
}

#[test]
fn events_that_were_passed_over_stay_in_the_status_until_a_sample_says_otherwise() {
    let (mut late, good) = (measured(0, 0.0, false), measured(0, 0.0, false));
    late.sample.faults.passed_over = PassedOver { positions: vec![Position(2), Position(40)], more: 0 };
    let told = status(&known(Ok(&late)));
    let positions = vec!["2".to_owned(), "40".to_owned()];
    assert_eq!(told.passed_over, Some(PassedOverStatus { event_table: "events".to_owned(), positions, more: 0 }));
    let unmeasured = MeasureError { reason: Reason::NotMeasuredYet, message: String::new() };
    let restarted = next_status(&known(Err(unmeasured)), &told, at(200));
    assert_eq!(restarted.passed_over, told.passed_over, "the next process has yet to look");
    assert_eq!(next_status(&known(Ok(&good)), &restarted, at(300)).passed_over, None, "they are handled");
    late.sample.faults.passed_over.positions.pop();
    let fewer = next_status(&known(Ok(&late)), &told, at(200));
    assert_eq!(urgency(&told, &fewer), Urgency::Now, "or the next process would tell of it again");
}

#[test]
fn all_is_well_and_the_numbers_are_rounded() {
    let good = measured(9, 1.4321, false);
    let status = status(&known(Ok(&good)));
    assert_eq!(status.phase, Some(Phase::Live));
    assert_eq!(status.staleness_seconds, Some(1.4));
    assert_eq!(status.checkpoint.as_deref(), Some("1031"), "the lowest shard");
    assert_eq!(status.pending.as_ref().unwrap().value, 9);
    let workers = status.workers.clone().unwrap();
    assert_eq!((workers.summary.as_deref(), workers.bound_by), (Some("2/2"), BoundBy::Shards));
    let rates = status.rates.unwrap();
    assert_eq!((rates.arrival_per_second, rates.per_worker_per_second), (Some(99.0), Some(49.9)));
    for type_ in ["Ready", "SourceReachable", "LagKnown", "WithinTarget", "Progressing", "Available"] {
        is(&status, type_, "True", Reason::AsExpected);
    }
}

#[test]
fn what_is_unknown_is_absent_and_what_was_learnt_is_kept() {
    let good = measured(9, 1.0, false);
    let before = status(&known(Ok(&good)));
    let mut down = known(Err(unknown(Reason::ConnectionRefused)));
    let refused = unknown(Reason::ConnectionRefused);
    down.failure = Some(&refused);
    let after = next_status(&down, &before, at(200));
    assert_eq!((after.pending.as_ref(), after.staleness_seconds, after.checkpoint.as_ref()), (None, None, None));
    assert!(after.head.is_none());
    let workers = after.workers.clone().unwrap();
    assert_eq!((workers.required, workers.ready, workers.summary.as_deref()), (None, Some(2), Some("2/?")));
    assert_eq!(after.rates.unwrap().per_worker_per_second, Some(49.9));
    assert_eq!(after.phase, Some(Phase::Live), "the workers go on");
    is(&after, "SourceReachable", "False", Reason::ConnectionRefused);
    is(&after, "LagKnown", "Unknown", Reason::ConnectionRefused);
    is(&after, "Ready", "False", Reason::ConnectionRefused);
}

#[test]
fn what_a_slow_worker_does_is_reported_and_outlives_a_restart() {
    for (rate, told) in [(0.004_126, Some(0.004_13)), (49.949, Some(49.9)), (123_456.0, Some(123_000.0)), (0.0, None)] {
        let mut slow = measured(9, 1.0, false);
        slow.assessment.rates.per_worker = Some(rate);
        assert_eq!(status(&known(Ok(&slow))).rates.unwrap().per_worker_per_second, told, "{rate}");
    }
}

#[test]
fn a_failed_attempt_shows_while_the_last_good_value_still_holds() {
    let good = measured(9, 1.0, false);
    let timed_out = unknown(Reason::TimedOut);
    let status = status(&Known { failure: Some(&timed_out), ..known(Ok(&good)) });
    is(&status, "SourceReachable", "False", Reason::TimedOut);
    is(&status, "LagKnown", "True", Reason::AsExpected);
    assert!(status.pending.is_some());
}

#[test]
fn an_answer_that_makes_no_sense_is_an_answer() {
    for reason in [Reason::NeverCommitted, Reason::CheckpointBeyondHead] {
        let why = unknown(reason);
        let status = status(&Known { failure: Some(&why), ..known(Err(why.clone())) });
        is(&status, "SourceReachable", "True", Reason::AsExpected);
        is(&status, "LagKnown", "False", reason);
        is(&status, "Ready", "False", reason);
    }
}

#[test]
fn before_the_first_sample_nothing_is_claimed() {
    let status = status(&known(Err(unknown(Reason::NotMeasuredYet))));
    assert_eq!(status.phase, Some(Phase::Pending));
    for type_ in ["Ready", "SourceReachable", "LagKnown", "WithinTarget", "Progressing"] {
        is(&status, type_, "Unknown", Reason::NotMeasuredYet);
    }
}

#[test]
fn each_case_has_its_phase() {
    let (live, behind, stuck) = (measured(9, 1.0, false), measured(9, 31.0, false), measured(9, 400.0, true));
    let problem = |lasting| Some(Problem { reason: Reason::ApplyFailed, message: "no".to_owned(), lasting });
    for (case, expected) in [
        (known(Ok(&behind)), Phase::CatchingUp),
        (known(Ok(&stuck)), Phase::Stuck),
        (Known { suspended: Some(SuspendedBy::Spec), workload: present(0, 0), ..known(Ok(&behind)) }, Phase::Suspended),
        (Known { workload: WorkloadView::Absent, ..known(Ok(&live)) }, Phase::Pending),
        (Known { workload: WorkloadView::NotWanted, ..known(Ok(&live)) }, Phase::Live),
        (Known { problem: problem(true), ..known(Ok(&live)) }, Phase::Failed),
        (Known { problem: problem(false), ..known(Ok(&live)) }, Phase::Live),
    ] {
        assert_eq!(status(&case).phase, Some(expected), "{case:?}");
    }
    is(&status(&known(Ok(&stuck))), "Progressing", "False", Reason::CheckpointFrozen);
    is(&status(&known(Ok(&behind))), "WithinTarget", "False", Reason::BehindTarget);
}

#[test]
fn an_upper_bound_breaks_no_target_by_itself() {
    let mut bound = measured(98, 60.0, false);
    for (age, status_is, reason, phase) in [
        (Some(0.2), "Unknown", Reason::OnlyUpperBound, Phase::Live),
        (None, "Unknown", Reason::OnlyUpperBound, Phase::Live),
        (Some(40.0), "False", Reason::BehindTarget, Phase::CatchingUp),
    ] {
        bound.assessment.at_least = Some(AtLeast { events: 2, age: age.map(Duration::from_secs_f64) });
        let told = status(&known(Ok(&bound)));
        is(&told, "WithinTarget", status_is, reason);
        assert_eq!((told.phase, told.staleness_seconds), (Some(phase), Some(60.0)), "{age:?}");
    }
}

#[test]
fn a_cadence_is_told_outlives_an_outage_and_is_blamed_where_it_breaks_the_target() {
    let mut stepping = measured(9, 60.0, false);
    stepping.assessment.cadence = Some(Cadence { every: Duration::from_millis(5_040), events: None });
    let told = status(&known(Ok(&stepping)));
    assert_eq!(told.cadence, Some(CadenceStatus { seconds: 5.0, events: None }));
    is(&told, "WithinTarget", "False", Reason::BehindTarget);
    let outage = known(Err(unknown(Reason::TimedOut)));
    assert_eq!(next_status(&outage, &told, at(200)).cadence, told.cadence);
    stepping.assessment.cadence = Some(Cadence { every: Duration::from_secs(100), events: Some(1_000.2) });
    stepping.assessment.cadence_breaks_target = true;
    let told = status(&known(Ok(&stepping)));
    assert_eq!(told.cadence, Some(CadenceStatus { seconds: 100.0, events: Some(1_000) }));
    is(&told, "WithinTarget", "False", Reason::CadenceBreaksTarget);
    let message = &told.conditions.iter().find(|condition| condition.type_ == "WithinTarget").unwrap().message;
    assert!(message.contains("after 1000 events each") && message.contains("Commit more often"), "{message}");
    stepping.assessment.staleness = Some(Duration::ZERO);
    is(&status(&known(Ok(&stepping))), "WithinTarget", "True", Reason::CadenceBreaksTarget);
}

#[test]
fn suspended_lasts_until_the_workers_are_back() {
    let good = measured(9, 1.0, false);
    let asleep = Known { suspended: Some(SuspendedBy::Spec), workload: present(0, 0), ..known(Ok(&good)) };
    let suspended = status(&asleep);
    is(&suspended, "Ready", "True", Reason::Suspended);
    let resuming = Known { suspended: None, ..asleep };
    assert_eq!(next_status(&resuming, &suspended, at(200)).phase, Some(Phase::Suspended));
    let back = Known { workload: present(1, 1), resumed: true, ..resuming.clone() };
    let resumed = next_status(&back, &suspended, at(200));
    assert_eq!((resumed.phase, resumed.suspended), (Some(Phase::Live), false));
    // Another phase in between does not lose it.
    let problem = Problem { reason: Reason::InvalidSpec, message: "no such thing".to_owned(), lasting: true };
    let broken = next_status(&Known { problem: Some(problem), ..resuming.clone() }, &suspended, at(200));
    assert_eq!((broken.phase, broken.suspended), (Some(Phase::Failed), true));
    assert_eq!(next_status(&resuming, &broken, at(300)).phase, Some(Phase::Suspended));
}

#[test]
fn without_a_ready_worker_it_is_not_available_and_a_measured_one_always_is() {
    let good = measured(0, 0.0, false);
    let idle = status(&Known { workload: present(2, 0), ..known(Ok(&good)) });
    is(&idle, "Available", "False", Reason::NoWorkerReady);
    is(&idle, "Ready", "False", Reason::NoWorkerReady);
    let only = status(&Known { workload: WorkloadView::NotWanted, ..known(Ok(&good)) });
    is(&only, "Available", "True", Reason::MeasureOnly);
    assert_eq!(only.workers.unwrap().summary.as_deref(), Some("-/2"));
    let inactive = status(&Known { autoscaler_inactive: Some("FailedGetScale: gone".to_owned()), ..known(Ok(&good)) });
    is(&inactive, "Ready", "False", Reason::AutoscalerInactive);
}

#[test]
fn a_transition_time_changes_only_with_the_status() {
    let (good, other) = (measured(9, 1.0, false), measured(9, 40.0, false));
    let first = next_status(&known(Ok(&good)), &ProjectionStatus::default(), at(100));
    let second = next_status(&known(Ok(&other)), &first, at(200));
    let time = |status: &ProjectionStatus, type_: &str| {
        status.conditions.iter().find(|one| one.type_ == type_).unwrap().last_transition_time.0
    };
    assert_eq!(time(&second, "WithinTarget"), at(200));
    assert_eq!(time(&second, "Ready"), at(100));
}

#[test]
fn nothing_is_written_for_nothing_numbers_soon_news_in_turn_and_changes_of_counts_and_spec_now() {
    let good = measured(9, 1.0, false);
    let before = status(&known(Ok(&good)));
    let next = |known: &Known<'_>| next_status(known, &before, at(500));
    assert_eq!(urgency(&before, &next(&known(Ok(&good)))), Urgency::Never);
    assert_eq!(urgency(&before, &next(&known(Ok(&measured(10, 1.2, false))))), Urgency::Soon);
    assert_eq!(urgency(&before, &next(&known(Ok(&measured(10, 31.0, false))))), Urgency::InTurn);
    assert_eq!(urgency(&before, &next(&Known { workload: present(3, 2), ..known(Ok(&good)) })), Urgency::Now);
    // Pods come and go one after the other; that they begin to is news.
    let rolling = next(&Known { workload: present(2, 1), ..known(Ok(&good)) });
    assert_eq!(urgency(&before, &rolling), Urgency::Now);
    assert_eq!(urgency(&rolling, &before), Urgency::Shortly);
    assert_eq!(urgency(&before, &next(&Known { generation: Some(2), ..known(Ok(&good)) })), Urgency::Now);
}

#[test]
fn an_age_that_grows_is_told_again_when_it_has_grown_by_a_quarter() {
    let at_age = |age: f64| status(&known(Ok(&measured(9, age, false))));
    let before = at_age(20.0);
    for (age, wanted) in [(20.4, Urgency::Never), (25.0, Urgency::Never), (25.1, Urgency::Soon), (14.9, Urgency::Soon)]
    {
        assert_eq!(urgency(&before, &at_age(age)), wanted, "{age}");
    }
    // Small ages differ by less than a user would notice; crossing the target is news.
    assert_eq!(urgency(&at_age(0.1), &at_age(0.3)), Urgency::Never);
    assert_eq!(urgency(&at_age(29.9), &at_age(30.1)), Urgency::InTurn);
    // An age that is not known any more, or again.
    let unknown = ProjectionStatus { staleness_seconds: None, ..before.clone() };
    assert_eq!((urgency(&before, &unknown), urgency(&unknown, &before)), (Urgency::Soon, Urgency::Soon));
}

#[test]
fn the_numbers_of_many_projections_come_less_often() {
    for (projections, seconds) in [(0, 10), (200, 10), (1_000, 50)] {
        assert_eq!(numbers_every(projections), Duration::from_secs(seconds), "{projections}");
    }
}

#[test]
fn what_is_wrong_with_checkpoint_time_head_or_retention_is_said_where_a_person_looks() {
    let with = |change: &dyn Fn(&mut Assessment)| {
        let mut measured = measured(9, 1.0, false);
        change(&mut measured.assessment);
        status(&known(Ok(&measured)))
    };
    let rewound = |contested| Some(Rewound { from: Position(50), to: Position(10), contested });
    let once = with(&|all| all.rewound = rewound(false));
    is(&once, "LagKnown", "False", Reason::CheckpointRewound);
    let contested = with(&|all| all.rewound = rewound(true));
    is(&contested, "LagKnown", "False", Reason::CheckpointContested);
    is(&contested, "Ready", "False", Reason::CheckpointContested);
    for (drained_in, words) in [
        (Some(Duration::from_secs(7_300)), "in 30 min, and the backlog takes 2 h"),
        (None, "in 30 min, and the backlog does not shrink"),
    ] {
        let lost_in = Duration::from_secs(1_800);
        let risk = with(&|all| all.retention_risk = Some(RetentionRisk { lost_in, drained_in }));
        is(&risk, "Progressing", "False", Reason::RetentionRisk);
        let message = &risk.conditions.iter().find(|one| one.type_ == "Progressing").unwrap().message;
        assert!(message.ends_with(words), "{message}");
    }
    // Lag is known all the same.
    let future = with(&|all| all.ahead_of_clock = Some(Duration::from_secs(3_600)));
    is(&future, "LagKnown", "True", Reason::EventTimeInFuture);
    is(&future, "Ready", "True", Reason::AsExpected);
    let jumped = with(&|all| all.jump = Some(Jump { arrived: 9_000_000, within: Duration::from_secs(1) }));
    is(&jumped, "LagKnown", "True", Reason::HeadJumped);
    let well = with(&|_| ());
    for (after, reason) in [(&future, "EventTimeInFuture"), (&jumped, "HeadJumped")] {
        let told = announcements(&well, after);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].warning && told[0].reason == reason);
        assert_eq!(announcements(after, after), [], "once");
    }
}

#[test]
fn asleep_is_idle_and_not_merely_live() {
    let with = |required: u32, workload| {
        let mut measured = measured(0, 0.0, false);
        measured.assessment.required.workers = required;
        status(&Known { workload, ..known(Ok(&measured)) }).phase
    };
    assert_eq!(with(0, present(0, 0)), Some(Phase::Idle));
    assert_eq!(with(0, present(1, 1)), Some(Phase::Live), "not yet");
    assert_eq!(with(1, present(0, 0)), Some(Phase::Live), "no more");
    let idle = ProjectionStatus { phase: Some(Phase::Idle), ..ProjectionStatus::default() };
    let gone = Known { workload: present(0, 0), ..known(Err(unknown(Reason::ConnectionRefused))) };
    assert_eq!(next_status(&gone, &idle, at(1)).phase, Some(Phase::Idle), "what cannot be read changes nothing");
}

#[test]
fn a_process_that_has_just_begun_does_not_unsay_what_was_measured() {
    let good = measured(9, 1.0, false);
    let before = status(&known(Ok(&good)));
    let unmeasured = || known(Err(unknown(Reason::NotMeasuredYet)));
    let waits = |before: &ProjectionStatus, known: &Known<'_>, seconds| {
        let after = next_status(known, before, at(200));
        let unmeasured = known.measured.as_ref().is_err_and(|why| why.reason == Reason::NotMeasuredYet);
        waits_for_first_sample(before, &after, unmeasured, Duration::from_secs(seconds))
    };
    assert_eq!(waits(&before, &unmeasured(), 2), Some(Duration::from_secs(13)));
    assert_eq!(waits(&before, &unmeasured(), 15), None, "not for ever");
    assert_eq!(waits(&ProjectionStatus::default(), &unmeasured(), 2), None, "nothing was said");
    assert_eq!(waits(&before, &Known { generation: Some(2), ..unmeasured() }, 2), None, "a newer spec is seen at once");
    let problem = Some(Problem { reason: Reason::NotOwned, message: "taken".to_owned(), lasting: true });
    assert_eq!(waits(&before, &Known { problem, ..unmeasured() }, 2), None, "what is wrong is told at once");
    assert_eq!(waits(&before, &known(Err(unknown(Reason::ConnectionRefused))), 2), None, "an answer is an answer");
}
