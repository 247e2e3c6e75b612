//! What is reported of the workers and what runs them.

use super::*;

fn trouble(reason: Reason, serious: bool) -> Option<Trouble> {
    Some(Trouble { reason, sentence: "1 of 2 workers cannot be created: exceeded quota".to_owned(), serious })
}

#[test]
fn what_keeps_workers_away_is_told_where_a_person_looks() {
    let good = measured(9, 1.0, false);
    let sentence = "1 of 2 workers cannot be created: exceeded quota";
    let some = |serious| {
        status(&Known { workload: present(2, 1), trouble: trouble(Reason::PodsRefused, serious), ..known(Ok(&good)) })
    };
    is(&some(false), "Ready", "True", Reason::AsExpected);
    is(&some(true), "Ready", "False", Reason::PodsRefused);
    assert_eq!(message(&some(true), "Ready"), sentence);
    is(&some(true), "Available", "True", Reason::AsExpected);
    assert!(message(&some(true), "Available").ends_with(sentence));

    let none = |serious| {
        status(&Known { workload: present(2, 0), trouble: trouble(Reason::PodsRefused, serious), ..known(Ok(&good)) })
    };
    is(&none(false), "Available", "False", Reason::NoWorkerReady);
    is(&none(true), "Available", "False", Reason::PodsRefused);
    for seen in [none(false), none(true)] {
        assert_eq!(message(&seen, "Available"), format!("no worker is ready: {sentence}"));
    }
    // Nothing is ever committed without a worker, so that this is the effect and not the cause.
    let why = unknown(Reason::NeverCommitted);
    let never = Known {
        failure: Some(&why),
        workload: present(2, 0),
        trouble: trouble(Reason::PodsRefused, true),
        ..known(Err(why.clone()))
    };
    is(&status(&never), "Ready", "False", Reason::PodsRefused);
    let stuck = measured(9, 400.0, true);
    let stuck = status(&Known { trouble: trouble(Reason::WorkersCrash, true), ..known(Ok(&stuck)) });
    assert!(message(&stuck, "Progressing").ends_with(sentence), "{}", message(&stuck, "Progressing"));
    // A database that cannot be reached explains workers that crash.
    let refused = unknown(Reason::ConnectionRefused);
    let down =
        Known { failure: Some(&refused), trouble: trouble(Reason::WorkersCrash, true), ..known(Err(refused.clone())) };
    is(&status(&down), "Ready", "False", Reason::ConnectionRefused);
    let suspended = status(&Known {
        suspended: Some(SuspendedBy::Spec),
        trouble: trouble(Reason::PodsRefused, true),
        ..known(Ok(&good))
    });
    is(&suspended, "Ready", "True", Reason::Suspended);
}

#[test]
fn without_pods_no_message_sends_a_reader_to_them() {
    let good = measured(9, 1.0, false);
    for (starting, expected) in [
        (None, "no worker is ready yet"),
        (Some(0), "no worker is ready: the workload has no pods yet"),
        (Some(2), "no worker is ready yet: they start"),
    ] {
        let seen = status(&Known { workload: present(2, 0), starting, ..known(Ok(&good)) });
        assert_eq!(message(&seen, "Available"), expected);
    }
}

#[test]
fn ready_speaks_of_the_generation_that_runs() {
    let good = measured(9, 1.0, false);
    let rollout = |reason| Some((reason, "1 of 2 pods run an older pod template".to_owned()));
    let before = status(&known(Ok(&good)));
    let next = |reason, trouble| Known { generation: Some(2), rollout: rollout(reason), trouble, ..known(Ok(&good)) };
    let rolling = next_status(&next(Reason::RollingOut, None), &before, at(200));
    is(&rolling, "Ready", "False", Reason::RollingOut);
    assert!(rolling.workers.as_ref().unwrap().rolling);
    assert_eq!(announcements(&before, &rolling), [], "a rollout is nothing to warn of");
    for (known, reason) in [
        (next(Reason::RollingOut, trouble(Reason::WorkersCrash, false)), Reason::RollingOut),
        (next(Reason::RollingOut, trouble(Reason::WorkersCrash, true)), Reason::WorkersCrash),
        (next(Reason::RolloutPaused, None), Reason::RolloutPaused),
        (next(Reason::RolloutStalled, trouble(Reason::ImagePullFailed, true)), Reason::ImagePullFailed),
        (next(Reason::RolloutStalled, None), Reason::RolloutStalled),
    ] {
        let seen = next_status(&known, &rolling, at(300));
        is(&seen, "Ready", "False", reason);
        let told = announcements(&rolling, &seen);
        assert_eq!(told.len(), usize::from(reason != Reason::RollingOut), "{told:?}");
        assert!(told.iter().all(|one| one.warning));
    }
    let done = next_status(&Known { generation: Some(2), ..known(Ok(&good)) }, &rolling, at(300));
    is(&done, "Ready", "True", Reason::AsExpected);
    assert!(done.conditions.iter().all(|condition| condition.observed_generation == Some(2)));
}

#[test]
fn a_failure_that_passes_is_not_told_unless_the_newest_spec_is_not_there_for_it() {
    let good = measured(9, 1.0, false);
    let before = status(&known(Ok(&good)));
    let failing = |generation| Known { generation: Some(generation), unapplied: true, ..known(Ok(&good)) };
    assert_eq!(next_status(&failing(1), &before, at(200)), before);
    let unapplied = next_status(&failing(2), &before, at(200));
    is(&unapplied, "Ready", "False", Reason::RollingOut);
    assert_eq!(announcements(&before, &unapplied), []);
}

#[test]
fn an_autoscaler_that_reads_elsewhere_makes_it_not_ready_until_it_reads_here() {
    let measured = measured(9, 2.0, false);
    let elsewhere = Unserved::from([(names::EXTERNAL_API_SERVICE.to_owned(), "it leads to keda".to_owned())]);
    let custom_alone = Unserved::from([("v1beta1.custom.metrics.k8s.io".to_owned(), "it leads to keda".to_owned())]);
    let report = |unserved: Option<&Unserved>, suspended: bool, before: &ProjectionStatus| {
        let metrics_not_served = metrics_not_served(unserved, before);
        next_status(
            &Known { metrics_not_served, suspended: suspended.then_some(SuspendedBy::Spec), ..known(Ok(&measured)) },
            before,
            at(100),
        )
    };
    let well = report(Some(&Unserved::new()), false, &ProjectionStatus::default());
    assert_eq!(condition(&well, "Ready"), ("True".to_owned(), "AsExpected".to_owned()));
    assert_eq!(report(Some(&custom_alone), false, &well), well, "no autoscaler of ours reads that group");

    let told = report(Some(&elsewhere), false, &well);
    assert_eq!(condition(&told, "Ready"), ("False".to_owned(), "MetricsNotServed".to_owned()));
    assert_eq!(told.phase, Some(Phase::Live), "what is measured is as good as before");
    let message = &told.conditions[0].message;
    assert!(message.contains("it leads to keda") && message.contains("autoscaler: None"), "{message}");
    assert_eq!(urgency(&well, &told), Urgency::InTurn);
    let events: Vec<_> = announcements(&well, &told).into_iter().map(|one| (one.warning, one.reason)).collect();
    assert_eq!(events, [(true, "MetricsNotServed".to_owned())]);
    assert_eq!(condition(&report(Some(&elsewhere), true, &well), "Ready").0, "True", "it does not scale anyhow");

    // A replica that has just begun to lead, and does not know yet.
    assert_eq!(urgency(&told, &report(None, false, &told)), Urgency::Never);
    assert_eq!(report(Some(&Unserved::new()), false, &told).conditions[0].reason, "AsExpected");
}

#[test]
fn asleep_is_well_and_says_so_until_the_first_event_or_the_kill_switch() {
    let mut quiet = measured(0, 0.0, false);
    quiet.assessment.required.workers = 0;
    let asleep = status(&Known { workload: present(0, 0), ..known(Ok(&quiet)) });
    assert_eq!(asleep.phase, Some(Phase::Idle));
    is(&asleep, "Available", "True", Reason::Idle);
    is(&asleep, "Ready", "True", Reason::AsExpected);

    let refused = unknown(Reason::ConnectionRefused);
    let down = Known { workload: present(0, 0), failure: Some(&refused), ..known(Err(refused.clone())) };
    let down = next_status(&down, &asleep, at(200));
    assert_eq!(down.phase, Some(Phase::Idle), "what cannot be measured sleeps on");
    is(&down, "Available", "True", Reason::Idle);

    let work = measured(9, 1.0, false);
    let waking = next_status(&Known { workload: present(0, 0), ..known(Ok(&work)) }, &asleep, at(200));
    assert_eq!(waking.phase, Some(Phase::Live));
    is(&waking, "Available", "False", Reason::NoWorkerReady);

    let off = Known { workload: present(0, 0), suspended: Some(SuspendedBy::Spec), ..known(Ok(&quiet)) };
    let off = next_status(&off, &asleep, at(200));
    assert_eq!(off.phase, Some(Phase::Suspended));
    let resumed = Known { workload: present(0, 0), resumed: true, ..known(Ok(&quiet)) };
    let resumed = next_status(&resumed, &off, at(300));
    assert_eq!(resumed.phase, Some(Phase::Idle), "resumed, and nothing waits");
}

#[test]
fn only_a_first_word_that_says_nothing_yet_may_wait() {
    let nothing = ProjectionStatus::default();
    let begun = status(&Known { workload: WorkloadView::Absent, ..known(Err(unknown(Reason::NotMeasuredYet))) });
    assert!(has_only_begun(&nothing, &begun));
    assert!(!has_only_begun(&begun, &begun), "not the second");
    let good = measured(9, 1.0, false);
    assert!(!has_only_begun(&nothing, &status(&known(Ok(&good)))), "nor one that tells the lag");
    let problem = Problem { reason: Reason::NotOwned, message: "taken".to_owned(), lasting: true };
    let failed = status(&Known { problem: Some(problem), ..known(Err(unknown(Reason::NotMeasuredYet))) });
    assert!(!has_only_begun(&nothing, &failed), "nor one that says what went wrong");
}
