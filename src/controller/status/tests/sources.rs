//! What a source notes, and how it is told.

use super::*;

#[test]
fn an_upper_bound_says_why_and_what_to_add() {
    let mut bound = measured(9_000, 1.0, false);
    bound.assessment.pending.exact = false;
    bound.sample.upper_bound = Some("checkpoint table t has several rows: name spec.x".into());
    let told = status(&known(Ok(&bound)));
    is(&told, "LagKnown", "True", Reason::OnlyUpperBound);
    is(&told, "Ready", "True", Reason::AsExpected);
    let pending = told.pending.clone().unwrap();
    assert_eq!(
        (pending.exact, pending.reason.as_deref()),
        (false, Some("checkpoint table t has several rows: name spec.x"))
    );
    let before = status(&known(Ok(&measured(9, 1.0, false))));
    let events = announcements(&before, &told);
    assert_eq!(events.iter().map(|event| event.reason.as_str()).collect::<Vec<_>>(), ["OnlyUpperBound"]);
}

#[test]
fn without_workers_that_tell_the_lag_a_suspended_projection_is_suspended_and_no_failure() {
    let good = measured(9, 1.0, false);
    let silent = unknown(Reason::NoWorkerReady);
    for (measured, lag_known) in [
        (Err(silent.clone()), ("Unknown", Reason::Suspended)),
        (Err(unknown(Reason::SampleTooOld)), ("Unknown", Reason::Suspended)),
        (Ok(&good), ("True", Reason::AsExpected)),
    ] {
        let failing = Known { failure: Some(&silent), workload: present(0, 0), ..known(measured) };
        let suspended = status(&Known { suspended: Some(SuspendedBy::Spec), ..failing.clone() });
        is(&suspended, "Ready", "True", Reason::Suspended);
        is(&suspended, "SourceReachable", "Unknown", Reason::Suspended);
        is(&suspended, "LagKnown", lag_known.0, lag_known.1);
        assert_eq!(suspended.phase, Some(Phase::Suspended));
        is(&status(&failing), "SourceReachable", "False", Reason::NoWorkerReady);
    }
    // What is wrong with the page all the same is told.
    let away = unknown(Reason::ConnectionRefused);
    let failing = Known {
        suspended: Some(SuspendedBy::Spec),
        failure: Some(&away),
        workload: present(0, 0),
        ..known(Err(away.clone()))
    };
    is(&status(&failing), "SourceReachable", "False", Reason::ConnectionRefused);
}

fn noted(note: Note) -> Measured {
    let mut measured = measured(9, 1.0, false);
    measured.sample.notes = vec![note];
    measured
}

#[test]
fn what_a_source_notes_is_told_though_all_is_well() {
    let well = status(&known(Ok(&measured(9, 1.0, false))));
    for (note, type_, reason) in [
        (Note::PooledConnection, "SourceReachable", Reason::PooledConnection),
        (Note::Estimated("so it is".into()), "LagKnown", Reason::Estimated),
        (Note::DeliveryStopped("so it is".into()), "Progressing", Reason::DeliveryStopped),
        (Note::HeldByIdleConsumer("so it is".into()), "Progressing", Reason::HeldByIdleConsumer),
        (Note::NoConsumer("so it is".into()), "Progressing", Reason::NoConsumer),
        (Note::ParkedUnknown("so it is".into()), "Progressing", Reason::ParkedUnknown),
        (Note::HandlerNeverCalled("so it is".into()), "Progressing", Reason::HandlerNeverCalled),
    ] {
        let told = status(&known(Ok(&noted(note.clone()))));
        is(&told, type_, "True", reason);
        is(&told, "Ready", "True", Reason::AsExpected);
        let events: Vec<_> = announcements(&well, &told).into_iter().map(|event| event.reason).collect();
        assert_eq!(events, [reason.as_str()], "{note:?}");
        assert_eq!(announcements(&told, &told), []);
    }
}

#[test]
fn a_source_without_consumers_is_remarkable_only_while_a_worker_is_ready() {
    let none = noted(Note::NoConsumer("so it is".into()));
    for (workload, reason) in [
        (present(2, 1), Reason::NoConsumer),
        (WorkloadView::NotWanted, Reason::NoConsumer),
        (present(2, 0), Reason::AsExpected),
        (present(0, 0), Reason::AsExpected),
    ] {
        let told = status(&Known { workload, ..known(Ok(&none)) });
        is(&told, "Progressing", "True", reason);
    }
    let suspended = status(&Known { suspended: Some(SuspendedBy::Spec), ..known(Ok(&none)) });
    is(&suspended, "Progressing", "True", Reason::AsExpected);
}

#[test]
fn a_frozen_checkpoint_is_explained_by_what_the_source_notes() {
    let mut stopped = noted(Note::DeliveryStopped("the consumer is full".into()));
    stopped.assessment.stuck = true;
    let told = status(&known(Ok(&stopped)));
    is(&told, "Progressing", "False", Reason::CheckpointFrozen);
    let progressing = told.conditions.iter().find(|condition| condition.type_ == "Progressing").unwrap();
    assert!(progressing.message.ends_with("the consumer is full"), "{}", progressing.message);
}

#[test]
fn parked_events_are_told_and_announced_as_they_become_more() {
    let parked = |number| {
        let mut measured = measured(9, 1.0, false);
        measured.sample.parked = number;
        status(&known(Ok(&measured)))
    };
    let (unknown, none, few, many) = (parked(None), parked(Some(0)), parked(Some(2)), parked(Some(7)));
    assert_eq!((unknown.parked, none.parked, few.parked), (None, Some(0), Some(2)), "absent is unknown, not zero");
    is(&none, "Progressing", "True", Reason::AsExpected);
    is(&few, "Progressing", "True", Reason::EventsParked);
    is(&few, "Ready", "True", Reason::AsExpected);
    let events = |before, after| announcements(before, after).into_iter().map(|event| event.note).collect::<Vec<_>>();
    assert_eq!(events(&none, &few), ["2 events are set aside after failing, 0 before"]);
    assert_eq!(events(&few, &many), ["7 events are set aside after failing, 2 before"]);
    for (before, after) in [(&many, &few), (&few, &few), (&unknown, &none), (&few, &unknown)] {
        assert_eq!(events(before, after), Vec::<String>::new());
    }
}
