//! What is told of catch-up subscriptions to `$all`, whose positions are bytes.

use std::time::Duration;

use projectionist::{
    api::Reason,
    clients::kurrentdb::Filter,
    lag::{CheckpointState, Head, Position},
    sources::kurrentdb::Question,
};

use crate::{
    harness::{ago, ask, at, exactly, is_old, log, probe},
    server::Fake,
};

#[tokio::test]
async fn of_all_events_those_of_the_filter_are_counted_and_beyond_a_page_estimated() {
    let fake = Fake::start().await;
    let mut probe = probe(&fake);
    fake.database(|database| {
        database.append_sized("$stats", "$statsCollected", 1, ago(900), 200);
        database.append("order-1", 3, ago(600));
        database.append_sized("bill-1", "billed", 2, ago(300), 200);
        database.append_sized("$stats", "$statsCollected", 4, ago(1), 200);
    });
    let first = fake.database(|database| database.commit_of("order-1", 0));
    let never = ask(&mut probe, &log(), Some(&at(None))).await.unwrap();
    assert_eq!((never.pending, never.checkpoint), (None, CheckpointState::NeverCommitted));
    let behind = ask(&mut probe, &log(), Some(&at(Some(first)))).await.unwrap();
    assert_eq!(behind.pending, exactly(4));
    is_old(&behind, 600);
    let end = fake.database(|database| database.commit_of("$stats", 4));
    assert_eq!(behind.head, Head::log(Position(end), Position(end)), "that of the log, which a checkpoint may reach");
    for (filter, pending) in [
        (Filter::None, 8),
        (Filter::EventTypes(vec!["billed".to_owned()]), 2),
        (Filter::Streams(vec!["order-".to_owned(), "x".to_owned()]), 2),
    ] {
        let sample = ask(&mut probe, &Question::All(filter), Some(&at(Some(first)))).await.unwrap();
        assert_eq!(sample.pending, exactly(pending));
    }
    let beginning = ask(&mut probe, &log(), Some(&at(Some(0)))).await.unwrap();
    assert_eq!(beginning.pending, exactly(5));
    let caught_up = ask(&mut probe, &log(), Some(&at(Some(end)))).await.unwrap();
    assert_eq!((caught_up.pending, caught_up.staleness), (exactly(0), Some(Duration::ZERO)));
    let before = caught_up.arrived;
    fake.database(|database| {
        database.append("order-2", 3, ago(20));
        database.append_sized("$stats", "$statsCollected", 1, ago(1), 200);
    });
    let new = ask(&mut probe, &log(), Some(&at(Some(end)))).await.unwrap();
    assert_eq!((new.pending, new.arrived - before), (exactly(3), 3), "of the filter alone");
    let end = fake.database(|database| database.commit_of("$stats", 5));
    fake.database(|database| database.append("order-2", 7, ago(20)));
    let handled_meanwhile = fake.database(|database| database.commit_of("order-2", 9));
    let done = ask(&mut probe, &log(), Some(&at(Some(handled_meanwhile)))).await.unwrap();
    assert_eq!((done.pending, done.arrived - before), (exactly(0), 10), "what came and was handled between two looks");
    fake.database(|database| database.append("order-3", 20_000, ago(10)));
    let many = ask(&mut probe, &log(), Some(&at(Some(end)))).await.unwrap();
    let pending = many.pending.unwrap();
    assert!(!pending.exact && (19_000..21_100).contains(&pending.events), "{pending:?}");
    assert!((19_000..21_100).contains(&(many.arrived - done.arrived)), "{}", many.arrived);
}

#[tokio::test]
async fn a_checkpoint_that_is_no_position_of_the_log_is_said_to_be_none() {
    let fake = Fake::start().await;
    fake.database(|database| database.append("order-1", 3, ago(600)));
    let wrong = ask(&mut probe(&fake), &log(), Some(&at(Some(17)))).await.unwrap_err();
    assert_eq!(wrong.reason, Reason::InvalidAnswer);
    assert!(wrong.message.contains("commit position"), "{}", wrong.message);
}

#[tokio::test]
async fn a_subscription_that_keeps_up_is_counted_exactly_however_much_comes_between_two_looks() {
    let fake = Fake::start().await;
    let mut probe = probe(&fake);
    fake.database(|database| database.append("order-1", 1, ago(900)));
    let commit = |revision| fake.database(|database| database.commit_of("order-1", revision));
    let before = ask(&mut probe, &log(), Some(&at(Some(commit(0))))).await.unwrap();
    assert_eq!(before.pending, exactly(0));
    fake.database(|database| {
        database.append("order-1", 2_997, ago(600));
        database.append("order-1", 3, ago(30));
    });
    fake.requests();
    let busy = ask(&mut probe, &log(), Some(&at(Some(commit(2_997))))).await.unwrap();
    assert_eq!(busy.pending, exactly(3));
    is_old(&busy, 30);
    assert!((2_900..3_100).contains(&(busy.arrived - before.arrived)), "by its bytes: {}", busy.arrived);
    assert_eq!(fake.requests().len(), 3, "the end, what came, and what waits");

    fake.database(|database| database.append("order-1", 1_000, ago(20)));
    let done = ask(&mut probe, &log(), Some(&at(Some(commit(4_000))))).await.unwrap();
    assert_eq!((done.pending, done.staleness), (exactly(0), Some(Duration::ZERO)), "at the end");
    assert_eq!(fake.requests().len(), 2, "nothing waits beyond it");

    fake.database(|database| database.append("order-1", 3_000, ago(10)));
    let behind = ask(&mut probe, &log(), Some(&at(Some(commit(4_500))))).await.unwrap();
    let pending = behind.pending.unwrap();
    assert!(!pending.exact && (2_400..2_600).contains(&pending.events), "more than a page: {pending:?}");
    assert_eq!(fake.requests().len(), 3, "no more than that");
}

#[tokio::test]
async fn a_large_event_that_the_checkpoint_has_passed_does_not_wait() {
    let fake = Fake::start().await;
    let mut probe = probe(&fake);
    fake.database(|database| database.append("order-1", 1, ago(900)));
    let commit = |revision| fake.database(|database| database.commit_of("order-1", revision));
    ask(&mut probe, &log(), Some(&at(Some(commit(0))))).await.unwrap();
    fake.database(|database| {
        database.append_sized("order-1", "event", 1, ago(60), 3 << 20);
        database.append("order-1", 2, ago(30));
    });
    let passed = ask(&mut probe, &log(), Some(&at(Some(commit(2))))).await.unwrap();
    assert_eq!(passed.pending, exactly(1), "where it lies in the log is not told, and the checkpoint is read from");
    is_old(&passed, 30);
}
