//! What is told of subscriptions in every state.

use std::time::Duration;

use projectionist::{
    api::Reason,
    lag::{CheckpointState, Head, Note, Position},
};

use crate::{
    harness::{about, ago, ask, at, exactly, handled, is_old, log, persistent, probe, stream},
    server::Fake,
};

#[tokio::test]
async fn a_catch_up_subscription_to_a_stream_is_counted_beyond_its_checkpoint() {
    let fake = Fake::start().await;
    let mut probe = probe(&fake);
    let orders = stream("orders");
    let missing = ask(&mut probe, &orders, Some(&at(Some(3)))).await.unwrap_err();
    assert_eq!(missing.reason, Reason::StreamNotFound);
    assert!(
        missing.message.contains("stream orders") && missing.message.contains("correct its name"),
        "{}",
        missing.message
    );
    let category = ask(&mut probe, &stream("$ce-order"), Some(&at(Some(3)))).await.unwrap_err();
    assert!(category.message.contains("$by_category"), "{}", category.message);
    fake.database(|database| {
        database.append("orders", 1, ago(900));
        database.append("orders", 9, ago(300));
    });
    let never = ask(&mut probe, &orders, Some(&at(None))).await.unwrap();
    assert_eq!((never.pending, never.checkpoint), (None, CheckpointState::NeverCommitted));
    assert_eq!(never.head, Head::log(Position(9), Position(9)));
    let from_start = ask(&mut probe, &orders, Some(&at(Some(-1)))).await.unwrap();
    assert_eq!(from_start.pending, exactly(10));
    is_old(&from_start, 900);
    let behind = ask(&mut probe, &orders, Some(&at(Some(3)))).await.unwrap();
    assert_eq!((behind.pending, behind.faults.deleted), (exactly(6), 0));
    assert_eq!(behind.checkpoint, CheckpointState::Committed(vec![Position(3)]));
    is_old(&behind, 300);
    let before = behind.arrived;
    fake.database(|database| database.append("orders", 5, ago(1)));
    let more = ask(&mut probe, &orders, Some(&at(Some(3)))).await.unwrap();
    assert_eq!((more.pending, more.arrived - before), (exactly(11), 5));
    let caught_up = ask(&mut probe, &orders, Some(&at(Some(14)))).await.unwrap();
    assert_eq!((caught_up.pending, caught_up.staleness), (exactly(0), Some(Duration::ZERO)));
    assert_eq!(caught_up.arrived - before, 5);
}

#[tokio::test]
async fn what_was_truncated_before_it_was_handled_does_not_wait_and_is_said_to_be_lost() {
    let fake = Fake::start().await;
    let mut probe = probe(&fake);
    let orders = stream("orders");
    fake.database(|database| {
        database.append("orders", 50, ago(600));
        database.append("orders", 50, ago(60));
        database.truncate("orders", 60);
    });
    let some = ask(&mut probe, &orders, Some(&at(Some(9)))).await.unwrap();
    assert_eq!((some.pending, some.faults.deleted), (exactly(40), 50));
    is_old(&some, 60);
    let handled_before = ask(&mut probe, &orders, Some(&at(Some(70)))).await.unwrap();
    assert_eq!((handled_before.pending, handled_before.faults.deleted), (exactly(29), 0));
    fake.database(|database| database.truncate("orders", 100));
    let all = ask(&mut probe, &orders, Some(&at(Some(9)))).await.unwrap();
    assert_eq!((all.pending, all.faults.deleted, all.staleness), (exactly(0), 90, Some(Duration::ZERO)));
}

#[tokio::test]
async fn a_stream_that_was_set_back_is_seen_by_its_head_and_a_tombstone_is_for_ever() {
    let fake = Fake::start().await;
    let mut probe = probe(&fake);
    let orders = stream("orders");
    fake.database(|database| database.append("orders", 10, ago(60)));
    let before = ask(&mut probe, &orders, Some(&at(Some(9)))).await.unwrap();
    fake.database(|database| database.forget_after("orders", 4));
    let back = ask(&mut probe, &orders, Some(&at(Some(9)))).await.unwrap();
    assert_eq!((back.head, back.pending), (Head::log(Position(3), Position(3)), exactly(0)));
    assert_eq!((back.arrived, back.faults.deleted), (before.arrived, 0), "nothing came, and nothing is lost");
    fake.database(|database| database.tombstones.insert("orders".to_owned()));
    let gone = ask(&mut probe, &orders, Some(&at(Some(9)))).await.unwrap_err();
    assert_eq!(gone.reason, Reason::StreamNotFound);
    assert!(gone.message.contains("tombstone") && !gone.message.contains("correct its name"), "{}", gone.message);
}

#[tokio::test]
async fn what_the_user_may_not_read_is_unknown_and_concerns_no_other() {
    let fake = Fake::start().await;
    let mut probe = probe(&fake);
    fake.database(|database| {
        database.append("orders", 10, ago(60));
        database.append("secret", 10, ago(60));
        database.secret.extend(["secret".to_owned(), "$all".to_owned()]);
    });
    for question in [stream("secret"), log()] {
        let denied = ask(&mut probe, &question, Some(&at(Some(2)))).await.unwrap_err();
        assert_eq!(denied.reason, Reason::PermissionDenied, "{}", denied.message);
        assert!(denied.message.contains("docs/sources/kurrentdb.md"), "{}", denied.message);
    }
    assert_eq!(ask(&mut probe, &stream("orders"), Some(&at(Some(2)))).await.unwrap().pending, exactly(7));
}

#[tokio::test]
async fn a_large_event_is_passed_over_and_counted() {
    let fake = Fake::start().await;
    let mut probe = probe(&fake);
    fake.database(|database| database.append_sized("orders", "event", 3, ago(60), 3 << 20));
    let large = ask(&mut probe, &stream("orders"), Some(&at(Some(0)))).await.unwrap();
    assert_eq!((large.pending, large.staleness), (about(2), None), "its time is not known, and that is not zero");
    fake.database(|database| database.append("orders", 1, ago(60)));
    let small = ask(&mut probe, &stream("orders"), Some(&at(Some(2)))).await.unwrap();
    assert_eq!(small.pending, exactly(1));
}

#[tokio::test]
async fn several_checkpoints_for_one_subscription_are_none() {
    let fake = Fake::start().await;
    fake.database(|database| database.append("order-1", 3, ago(600)));
    let mut rows = at(Some(1));
    rows.state = CheckpointState::Committed(vec![Position(1), Position(2)]);
    rows.bound = Some("several rows".into());
    for question in [stream("order-1"), log()] {
        let several = ask(&mut probe(&fake), &question, Some(&rows)).await.unwrap_err();
        assert_eq!(several.reason, Reason::InvalidAnswer);
        assert!(several.message.contains("a row of its own"), "{}", several.message);
    }
}

#[tokio::test]
async fn a_persistent_subscription_that_has_caught_up_is_counted_by_its_buffers_and_not_by_its_lazy_checkpoint() {
    let fake = Fake::start().await;
    let mut probe = probe(&fake);
    let question = persistent(&["orders/readers"]);
    let missing = ask(&mut probe, &question, None).await.unwrap_err();
    assert_eq!(missing.reason, Reason::NeverCommitted, "{}", missing.message);
    fake.database(|database| database.group("orders", "readers").ready = false);
    let unready = ask(&mut probe, &question, None).await.unwrap_err();
    assert_eq!(unready.reason, Reason::SourceFailed, "{}", unready.message);
    fake.database(|database| {
        database.group("orders", "readers").ready = true;
        database.pull("orders", "readers");
    });
    let empty = ask(&mut probe, &question, None).await.unwrap();
    assert_eq!((empty.pending, empty.staleness), (exactly(0), Some(Duration::ZERO)));
    assert_eq!(empty.head, Head::Unnumbered);
    fake.database(|database| database.append("orders", 7, ago(300)));
    let waiting = ask(&mut probe, &question, None).await.unwrap();
    assert_eq!((waiting.pending, waiting.arrived, handled(&waiting)), (exactly(7), 7, 0));
    is_old(&waiting, 300);
    let taken = fake.database(|database| database.group("orders", "readers").push(5));
    let held = ask(&mut probe, &question, None).await.unwrap();
    assert_eq!((held.pending, handled(&held)), (exactly(7), 0), "consumers hold five of them");
    fake.database(|database| {
        let group = database.group("orders", "readers");
        group.acknowledge(&taken);
        let rest = group.push(2);
        group.acknowledge(&rest);
        group.tick();
    });
    let done = ask(&mut probe, &question, None).await.unwrap();
    assert_eq!((done.pending, done.staleness), (exactly(0), Some(Duration::ZERO)), "though no checkpoint was written");
    assert_eq!(handled(&done), 7);
    // One new event, while the checkpoint still is before the old ones.
    fake.database(|database| database.append("orders", 1, ago(5)));
    let one = ask(&mut probe, &question, None).await.unwrap();
    assert_eq!((one.pending, one.arrived), (exactly(1), 8));
    assert!(one.staleness.unwrap() < Duration::from_secs(200), "that of the new one: {:?}", one.staleness);
}

#[tokio::test]
async fn an_event_that_comes_back_again_and_again_shows_its_age_although_newer_ones_were_handled() {
    let fake = Fake::start().await;
    let mut probe = probe(&fake);
    let question = persistent(&["orders/readers"]);
    fake.database(|database| {
        database.group("orders", "readers");
        database.pull("orders", "readers");
        database.append("orders", 1, ago(900));
        database.append("orders", 99, ago(60));
        let group = database.group("orders", "readers");
        let taken = group.push(100);
        group.acknowledge(&taken[1..]);
        group.retry(&taken[..1]);
        group.tick();
    });
    let stuck = ask(&mut probe, &question, None).await.unwrap();
    assert_eq!(stuck.pending, exactly(1));
    // Up to ten events after the checkpoint may be the oldest: the youngest of them is told, so that no age is too high.
    is_old(&stuck, 60);
    fake.database(|database| {
        database.append("orders", 1, ago(5));
        drop(database.group("orders", "readers").push(1));
    });
    let both = ask(&mut probe, &question, None).await.unwrap();
    assert_eq!(both.pending, exactly(2));
    is_old(&both, 60);
}

#[tokio::test]
async fn a_persistent_subscription_that_is_behind_is_counted_beyond_its_checkpoint() {
    let fake = Fake::start().await;
    let mut probe = probe(&fake);
    let question = persistent(&["orders/readers"]);
    fake.database(|database| {
        database.append("orders", 2_000, ago(900));
        database.pull("orders", "readers");
    });
    let behind = ask(&mut probe, &question, None).await.unwrap();
    assert_eq!((behind.pending, handled(&behind)), (about(2_000), 0));
    is_old(&behind, 900);
    fake.database(|database| {
        let group = database.group("orders", "readers");
        let taken = group.push(400);
        group.acknowledge(&taken);
        group.tick();
        database.append("orders", 100, ago(1));
        database.pull("orders", "readers");
    });
    let later = ask(&mut probe, &question, None).await.unwrap();
    assert_eq!((later.pending, later.arrived, handled(&later)), (about(1_700), 100, 400));
    // Deleted before it was read.
    fake.database(|database| database.truncate("orders", 1_500));
    let truncated = ask(&mut probe, &question, None).await.unwrap();
    assert_eq!(truncated.pending, about(600));
    fake.database(|database| database.secret.insert("orders".to_owned()));
    let denied = ask(&mut probe, &question, None).await.unwrap_err();
    assert_eq!(denied.reason, Reason::PermissionDenied);
    assert!(denied.message.contains("stream orders, group readers"), "{}", denied.message);
}

#[tokio::test]
async fn parked_events_do_not_wait_and_are_told_and_so_is_that_no_consumer_is_connected() {
    let fake = Fake::start().await;
    let mut probe = probe(&fake);
    fake.database(|database| {
        for group in ["one", "two"] {
            database.pull("orders", group);
            database.group("orders", group).parked = 3;
        }
        database.group("orders", "two").consumers = 0;
    });
    let both = persistent(&["orders/one", "orders/two"]);
    let parked = ask(&mut probe, &both, None).await.unwrap();
    assert_eq!((parked.pending, parked.parked, parked.notes.len()), (exactly(0), Some(6), 0));
    fake.database(|database| database.append("orders", 1, ago(5)));
    let alone = ask(&mut probe, &both, None).await.unwrap();
    assert_eq!(alone.notes, [Note::NoConsumer("stream orders, group two".into())]);
}

#[tokio::test]
async fn one_that_starts_in_the_middle_waits_for_what_follows() {
    let fake = Fake::start().await;
    let mut probe = probe(&fake);
    fake.database(|database| {
        database.append("orders", 2_000, ago(900));
        database.group("orders", "late").start_from = Some(1_200);
        database.pull("orders", "late");
    });
    assert_eq!(ask(&mut probe, &persistent(&["orders/late"]), None).await.unwrap().pending, about(800));
}

#[tokio::test]
async fn persistent_subscriptions_to_all_events_are_counted_too_and_several_are_summed() {
    let fake = Fake::start().await;
    let mut probe = probe(&fake);
    fake.database(|database| {
        for stream in ["$all", "orders"] {
            database.group(stream, "readers");
            database.pull(stream, "readers");
        }
        database.append("orders", 20, ago(300));
    });
    let both = persistent(&["$all/readers", "orders/readers"]);
    let first = ask(&mut probe, &both, None).await.unwrap();
    assert_eq!(first.pending, exactly(40));
    is_old(&first, 300);
    fake.database(|database| {
        let group = database.group("$all", "readers");
        let taken = group.push(15);
        group.acknowledge(&taken);
        group.tick();
    });
    let all = ask(&mut probe, &both, None).await.unwrap();
    assert_eq!((all.pending, handled(&all)), (exactly(25), 15));
    fake.database(|database| {
        database.append("orders", 30_000, ago(60));
        let group = database.group("$all", "readers");
        let taken = group.push(505);
        group.acknowledge(&taken);
        group.tick();
    });
    let behind = ask(&mut probe, &persistent(&["$all/readers"]), None).await.unwrap();
    let pending = behind.pending.unwrap();
    assert!(!pending.exact && (29_000..30_200).contains(&pending.events), "{pending:?}");
    is_old(&behind, 60);
}

#[tokio::test]
async fn the_age_is_by_the_servers_clock() {
    let fake = Fake::start().await;
    let mut probe = probe(&fake);
    let hour = jiff::SignedDuration::from_hours(1);
    fake.skew(-hour);
    // A server whose clock is an hour behind dates its events alike.
    fake.database(|database| database.append("orders", 2, ago(3_600 + 30)));
    let skewed = ask(&mut probe, &stream("orders"), Some(&at(Some(0)))).await.unwrap();
    is_old(&skewed, 30);
    fake.database(|database| database.append("future", 2, ago(0)));
    let ahead = ask(&mut probe, &stream("future"), Some(&at(Some(0)))).await.unwrap();
    assert_eq!(ahead.staleness, Some(Duration::ZERO));
    assert!(ahead.ahead_of_clock > Duration::from_secs(3_500), "{:?}", ahead.ahead_of_clock);
    fake.tell_no_time();
    let ours = ask(&mut probe, &stream("orders"), Some(&at(Some(0)))).await.unwrap();
    is_old(&ours, 3_630);
}
