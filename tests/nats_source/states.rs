//! Streams and consumers in every state, as real clients bring them about.

use std::time::Duration;

use async_nats::jetstream::{
    self, AckKind,
    consumer::{AckPolicy, DeliverPolicy, pull, push},
};
use projectionist::{api::Reason, sources::BatchProbe as _};

use crate::harness::{
    DEADLINE, acknowledge, ask, durable, exactly, fetch, handled, jetstream, probe, publish, question, server, stream,
};

#[tokio::test]
async fn what_waits_and_what_workers_hold_is_pending_until_it_is_acknowledged() {
    let context = jetstream(&server().url()).await;
    let orders = stream(&context, "orders").await;
    let list = orders.create_consumer(durable("list")).await.unwrap();
    let mut probe = probe(&server().url());
    let empty = ask(&mut probe, &["orders/list"]).await.unwrap();
    assert_eq!((empty.pending, empty.staleness, empty.arrived), (exactly(0), Some(Duration::ZERO), 0));

    publish(&context, "orders.made", 5).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let behind = ask(&mut probe, &["orders/list"]).await.unwrap();
    assert_eq!((behind.pending, behind.arrived, handled(&behind)), (exactly(5), 5, 0));
    assert!(behind.staleness.unwrap() >= Duration::from_millis(20), "{:?}", behind.staleness);
    assert!(behind.staleness.unwrap() < DEADLINE);

    let held = fetch(&list, 3).await;
    let holding = ask(&mut probe, &["orders/list"]).await.unwrap();
    assert_eq!((holding.pending, handled(&holding)), (exactly(5), 0), "what is held is not done");
    assert!(holding.staleness.unwrap() >= behind.staleness.unwrap(), "the first is still the oldest");

    // Out of their order: the first stays the oldest.
    acknowledge(&held[1..]).await;
    let middle = ask(&mut probe, &["orders/list"]).await.unwrap();
    assert_eq!((middle.pending, handled(&middle)), (exactly(3), 2));
    assert!(middle.staleness.unwrap() >= holding.staleness.unwrap());

    acknowledge(&held[..1]).await;
    acknowledge(&fetch(&list, 10).await).await;
    let caught_up = ask(&mut probe, &["orders/list"]).await.unwrap();
    assert_eq!((caught_up.pending, caught_up.staleness), (exactly(0), Some(Duration::ZERO)));
    assert_eq!((caught_up.arrived, handled(&caught_up)), (5, 5));

    publish(&context, "orders.made", 1).await;
    let young = ask(&mut probe, &["orders/list"]).await.unwrap();
    assert_eq!((young.pending, young.arrived), (exactly(1), 6));
    assert!(young.staleness.unwrap() < middle.staleness.unwrap() + DEADLINE, "the age of the new one");
}

#[tokio::test]
async fn redelivered_messages_are_counted_once_and_rejected_ones_are_done() {
    let context = jetstream(&server().url()).await;
    let again = stream(&context, "again").await;
    let list = again.create_consumer(durable("list")).await.unwrap();
    publish(&context, "again.made", 4).await;
    let mut probe = probe(&server().url());
    ask(&mut probe, &["again/list"]).await.unwrap();
    for _ in 0..2 {
        for message in fetch(&list, 4).await {
            message.double_ack_with(AckKind::Nak(None)).await.unwrap();
        }
        let back = ask(&mut probe, &["again/list"]).await.unwrap();
        assert_eq!((back.pending, back.arrived, handled(&back)), (exactly(4), 0, 0));
    }
    for message in fetch(&list, 4).await {
        message.double_ack_with(AckKind::Term).await.unwrap();
    }
    let done = ask(&mut probe, &["again/list"]).await.unwrap();
    assert_eq!((done.pending, done.arrived, handled(&done)), (exactly(0), 0, 4));
}

#[tokio::test]
async fn what_a_server_gave_up_is_not_pending_and_the_age_is_not_taken_from_it() {
    let context = jetstream(&server().url()).await;
    let orders = stream(&context, "lost").await;
    let config =
        pull::Config { max_deliver: 1, ack_wait: Duration::from_millis(200), max_ack_pending: 2, ..durable("list") };
    let list = orders.create_consumer(config).await.unwrap();
    publish(&context, "lost.made", 6).await;
    let mut probe = probe(&server().url());
    assert_eq!(fetch(&list, 2).await.len(), 2);
    let full = ask(&mut probe, &["lost/list"]).await.unwrap();
    assert_eq!(full.pending, exactly(6), "at max_ack_pending nothing is delivered any more, and all is pending");
    // A worker that ended without an acknowledgement.
    let until = std::time::Instant::now() + DEADLINE;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let next = fetch(&list, 1).await;
        let found = ask(&mut probe, &["lost/list"]).await.unwrap();
        if !next.is_empty() && found.pending.unwrap().events < 6 {
            assert_eq!(found.staleness, None, "the message after the floor is never delivered again");
            break;
        }
        assert!(std::time::Instant::now() < until);
    }
}

#[tokio::test]
async fn a_filtered_consumer_counts_its_own_messages_and_takes_the_age_of_its_own() {
    let context = jetstream(&server().url()).await;
    let mixed = stream(&context, "mixed").await;
    publish(&context, "mixed.other", 7).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let config = pull::Config { filter_subject: "mixed.mine".to_owned(), ..durable("list") };
    let list = mixed.create_consumer(config).await.unwrap();
    let all = mixed.create_consumer(durable("all")).await.unwrap();
    publish(&context, "mixed.mine", 2).await;
    publish(&context, "mixed.other", 4).await;
    let mut probe = probe(&server().url());
    let mine = ask(&mut probe, &["mixed/list"]).await.unwrap();
    let everything = ask(&mut probe, &["mixed/all"]).await.unwrap();
    assert_eq!((mine.pending, everything.pending), (exactly(2), exactly(13)));
    let younger = everything.staleness.unwrap() - mine.staleness.unwrap();
    assert!(younger >= Duration::from_millis(400), "the first of the other subject is older: {younger:?}");
    acknowledge(&fetch(&list, 1).await).await;
    publish(&context, "mixed.other", 5).await;
    publish(&context, "mixed.mine", 3).await;
    acknowledge(&fetch(&list, 2).await).await;
    let later = ask(&mut probe, &["mixed/list"]).await.unwrap();
    assert_eq!(later.pending, exactly(2));
    assert_eq!((later.arrived, handled(&later)), (0, 0), "counting began again: it was not asked for in between");
    acknowledge(&fetch(&list, 2).await).await;
    let done = ask(&mut probe, &["mixed/list"]).await.unwrap();
    assert_eq!((done.pending, done.arrived, handled(&done)), (exactly(0), 0, 2));
    drop(all);
}

#[tokio::test]
async fn messages_that_are_deleted_or_purged_are_not_pending_any_more() {
    let context = jetstream(&server().url()).await;
    let purged = stream(&context, "purged").await;
    let list = purged.create_consumer(durable("list")).await.unwrap();
    publish(&context, "purged.made", 3).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    publish(&context, "purged.made", 5).await;
    let mut probe = probe(&server().url());
    let before = ask(&mut probe, &["purged/list"]).await.unwrap();
    assert_eq!(before.pending, exactly(8));
    for sequence in 1..=3 {
        purged.delete_message(sequence).await.unwrap();
    }
    purged.delete_message(6).await.unwrap();
    let holes = ask(&mut probe, &["purged/list"]).await.unwrap();
    assert_eq!((holes.pending, holes.arrived, handled(&holes)), (exactly(4), 0, 0));
    assert!(
        holes.staleness.unwrap() + Duration::from_millis(400) < before.staleness.unwrap(),
        "the next that is there"
    );
    let held = fetch(&list, 2).await;
    assert_eq!(held.len(), 2);
    purged.purge().await.unwrap();
    let empty = ask(&mut probe, &["purged/list"]).await.unwrap();
    assert_eq!((empty.pending, empty.staleness), (exactly(0), Some(Duration::ZERO)));
    publish(&context, "purged.made", 2).await;
    let after = ask(&mut probe, &["purged/list"]).await.unwrap();
    assert_eq!((after.pending, after.arrived), (exactly(2), 2));
}

#[tokio::test]
async fn a_missing_stream_or_consumer_is_unknown_and_one_that_is_made_again_is_counted_from_its_beginning() {
    let context = jetstream(&server().url()).await;
    let mut probe = probe(&server().url());
    let missing = ask(&mut probe, &["missing/list"]).await.unwrap_err();
    assert_eq!(missing.reason, Reason::StreamNotFound, "{}", missing.message);
    assert!(missing.message.contains("stream missing, consumer list: stream not found"), "{}", missing.message);
    let made = stream(&context, "missing").await;
    publish(&context, "missing.made", 3).await;
    let never = ask(&mut probe, &["missing/list"]).await.unwrap_err();
    assert_eq!(never.reason, Reason::NeverCommitted, "{}", never.message);
    let list = made.create_consumer(durable("list")).await.unwrap();
    assert_eq!(ask(&mut probe, &["missing/list"]).await.unwrap().pending, exactly(3));
    acknowledge(&fetch(&list, 3).await).await;
    let done = ask(&mut probe, &["missing/list"]).await.unwrap();
    assert_eq!((done.pending, handled(&done)), (exactly(0), 3));

    made.delete_consumer("list").await.unwrap();
    assert_eq!(ask(&mut probe, &["missing/list"]).await.unwrap_err().reason, Reason::NeverCommitted);
    let list = made.create_consumer(durable("list")).await.unwrap();
    let again = ask(&mut probe, &["missing/list"]).await.unwrap();
    assert_eq!((again.pending, again.arrived, handled(&again)), (exactly(3), 0, 3), "all comes again");
    acknowledge(&fetch(&list, 3).await).await;
    assert_eq!(handled(&ask(&mut probe, &["missing/list"]).await.unwrap()), 6);

    context.delete_stream("missing").await.unwrap();
    assert_eq!(ask(&mut probe, &["missing/list"]).await.unwrap_err().reason, Reason::StreamNotFound);
    let made = stream(&context, "missing").await;
    made.create_consumer(durable("list")).await.unwrap();
    publish(&context, "missing.made", 2).await;
    let new = ask(&mut probe, &["missing/list"]).await.unwrap();
    assert_eq!((new.pending, handled(&new)), (exactly(2), 6));
}

#[tokio::test]
async fn consumers_of_every_kind_are_measured() {
    let context = jetstream(&server().url()).await;
    let kinds = stream(&context, "kinds").await;
    publish(&context, "kinds.made", 5).await;
    let none = pull::Config { ack_policy: AckPolicy::None, ..durable("none") };
    let none = kinds.create_consumer(none).await.unwrap();
    let all = kinds.create_consumer(pull::Config { ack_policy: AckPolicy::All, ..durable("all") }).await.unwrap();
    let new = pull::Config { deliver_policy: DeliverPolicy::New, ..durable("new") };
    kinds.create_consumer(new).await.unwrap();
    let ephemeral = pull::Config { inactive_threshold: DEADLINE, ..Default::default() };
    let ephemeral = kinds.create_consumer(ephemeral).await.unwrap().cached_info().name.clone();
    let push = push::Config {
        durable_name: Some("push".to_owned()),
        deliver_subject: "kinds-push".to_owned(),
        ..Default::default()
    };
    let push: jetstream::consumer::PushConsumer = kinds.create_consumer(push).await.unwrap();
    let mut probe = probe(&server().url());
    let ephemeral = format!("kinds/{ephemeral}");
    for (name, events) in
        [("kinds/none", 5), ("kinds/all", 5), ("kinds/new", 0), ("kinds/push", 5), (ephemeral.as_str(), 5)]
    {
        assert_eq!(ask(&mut probe, &[name]).await.unwrap().pending, exactly(events), "{name}");
    }
    assert_eq!(fetch(&none, 3).await.len(), 3);
    let without = ask(&mut probe, &["kinds/none"]).await.unwrap();
    assert_eq!(without.pending, exactly(2), "without acknowledgements, what is delivered is done");
    assert!(without.staleness.is_some());
    let held = fetch(&all, 4).await;
    acknowledge(&held[2..3]).await;
    assert_eq!(ask(&mut probe, &["kinds/all"]).await.unwrap().pending, exactly(2), "one for all before it");
    let _subscribed = push.messages().await.unwrap();
    let pushed = ask(&mut probe, &["kinds/push"]).await.unwrap();
    assert_eq!(pushed.pending, exactly(5), "delivered, not acknowledged");
}

#[tokio::test]
async fn consumers_are_summed_and_one_that_is_unknown_makes_only_its_projection_unknown() {
    let context = jetstream(&server().url()).await;
    for (name, count) in [("sum-a", 2), ("sum-b", 3)] {
        let made = stream(&context, name).await;
        made.create_consumer(durable("list")).await.unwrap();
        publish(&context, &format!("{name}.made"), count).await;
    }
    let questions =
        [question(&["sum-a/list", "sum-b/list"]), question(&["sum-a/list", "sum-c/list"]), question(&["sum-b/list"])];
    let questions: Vec<_> = questions.iter().collect();
    let mut probe = probe(&server().url());
    let answers = probe.answer(&questions, tokio::time::Instant::now() + DEADLINE).await;
    let [both, missing, one] = answers.try_into().unwrap();
    assert_eq!((both.unwrap().pending, one.unwrap().pending), (exactly(5), exactly(3)));
    assert_eq!(missing.unwrap_err().reason, Reason::StreamNotFound);
}

#[tokio::test]
async fn the_age_is_known_also_where_the_oldest_message_is_large() {
    let context = jetstream(&server().url()).await;
    let large = stream(&context, "large").await;
    large.create_consumer(durable("list")).await.unwrap();
    context.publish("large.made", vec![b'"'; 1_000_000].into()).await.unwrap().await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let found = ask(&mut probe(&server().url()), &["large/list"]).await.unwrap();
    assert_eq!(found.pending, exactly(1));
    assert!(found.staleness.unwrap() >= Duration::from_millis(20), "{:?}", found.staleness);
}
