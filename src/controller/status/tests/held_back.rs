//! What is reported of transactions that hold events back.

use super::*;

fn held(open_for: u64, statement: Option<&str>) -> Measured {
    let mut measured = measured(501, 62.0, false);
    measured.sample.held_back = 501;
    measured.sample.blocked_by = Some(BlockingWriter {
        pid: Some(4711),
        open_for: Some(Duration::from_secs(open_for)),
        holds_for: Duration::from_secs(62),
        session: SessionInfo {
            application: Some("batch".to_owned()),
            statement: statement.map(str::to_owned),
            ..SessionInfo::default()
        },
    });
    measured
}

#[test]
fn events_that_an_open_transaction_holds_back_are_counted_and_the_transaction_is_named() {
    let before = status(&known(Ok(&measured(0, 0.0, false))));
    is(&before, "HeldBack", "False", Reason::AsExpected);
    let held_now = held(150, Some("SELECT"));
    let after = next_status(&known(Ok(&held_now)), &before, at(200));
    is(&after, "HeldBack", "True", Reason::HeldBackByTransaction);
    is(&after, "WithinTarget", "False", Reason::HeldBackByTransaction);
    is(&after, "Progressing", "True", Reason::AsExpected);
    is(&after, "Ready", "True", Reason::AsExpected);
    assert_eq!(after.phase, Some(Phase::CatchingUp));
    assert_eq!(after.pending.as_ref().map(|pending| (pending.value, pending.held_back)), Some((501, 501)));
    let message = |status: &ProjectionStatus| {
        status.conditions.iter().find(|condition| condition.type_ == "HeldBack").unwrap().message.clone()
    };
    assert_eq!(
        message(&after),
        "events after position 1040 may not be read before a transaction has ended that may still commit an earlier one: server process 4711 (application \"batch\", runs SELECT, open for 2 min); if it hangs, end it with select pg_terminate_backend(4711)"
    );
    let events = announcements(&before, &after);
    let reasons: Vec<&str> = events.iter().map(|event| event.reason.as_str()).collect();
    assert_eq!(reasons, ["HeldBackByTransaction"], "once, by the condition that names it");
    assert!(events[0].warning && events[0].note.contains("4711"), "{events:?}");
    // A second later nothing is reported again.
    let second = held(151, Some("SELECT"));
    let later = next_status(&known(Ok(&second)), &after, at(201));
    assert_eq!(message(&later), message(&after));
    assert!(announcements(&after, &later).is_empty());
    assert_eq!(urgency(&after, &later), Urgency::Never);
    let released = next_status(&known(Ok(&measured(501, 3.0, false))), &later, at(202));
    is(&released, "HeldBack", "False", Reason::AsExpected);
    assert!(announcements(&later, &released).iter().all(|event| !event.warning));
}

#[test]
fn a_hold_is_told_only_where_it_lasts_and_concerns_events_that_wait() {
    let mut short = held(150, None);
    short.sample.blocked_by.as_mut().unwrap().holds_for = Duration::from_secs(1);
    is(&status(&known(Ok(&short))), "HeldBack", "False", Reason::AsExpected);
    let mut elsewhere = held(150, None);
    elsewhere.sample.held_back = 0;
    let told = status(&known(Ok(&elsewhere)));
    is(&told, "HeldBack", "False", Reason::AsExpected);
    is(&told, "WithinTarget", "False", Reason::BehindTarget);
    let mut some = held(150, None);
    some.sample.held_back = 500;
    is(&status(&known(Ok(&some))), "WithinTarget", "False", Reason::BehindTarget);
    is(&status(&known(Err(unknown(Reason::TimedOut)))), "HeldBack", "Unknown", Reason::TimedOut);
}

#[test]
fn a_transaction_is_described_as_far_as_the_server_tells() {
    let message = |writer: BlockingWriter| {
        let mut measured = held(1, None);
        measured.sample.blocked_by = Some(BlockingWriter { holds_for: Duration::from_secs(30), ..writer });
        let status = status(&known(Ok(&measured)));
        let found = status.conditions.into_iter().find(|condition| condition.type_ == "HeldBack").unwrap();
        found.message.split_once("an earlier one: ").unwrap().1.to_owned()
    };
    let prepared = SessionInfo { prepared: Some("o'clock".to_owned()), ..SessionInfo::default() };
    assert_eq!(
        message(BlockingWriter { session: prepared, ..BlockingWriter::default() }),
        "the prepared transaction 'o''clock' (open for less than a minute); end it with commit prepared or rollback prepared 'o''clock'"
    );
    let idle = SessionInfo { idle: true, ..SessionInfo::default() };
    assert_eq!(
        message(BlockingWriter { pid: Some(7), session: idle, ..BlockingWriter::default() }),
        "server process 7 (idle in transaction, open for less than a minute); if it hangs, end it with select pg_terminate_backend(7)"
    );
}
