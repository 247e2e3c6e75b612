//! What is said of states that a false broker tells: never more than is known.

use std::sync::{Arc, atomic::Ordering};

use projectionist::{addresses::AddressRules, api::Reason, lag::Pending};

use crate::{
    false_cluster::{Batch, FalseBroker, Says, of_group, of_store, plain, poll, poll_one, trap},
    running::loopback,
};

fn rules() -> AddressRules {
    (*loopback()).clone()
}

fn exactly(events: u64) -> Option<Pending> {
    Some(Pending { events, exact: true })
}

fn at_most(events: u64) -> Option<Pending> {
    Some(Pending { events, exact: false })
}

#[tokio::test]
async fn addresses_are_judged_whether_the_secret_names_them_or_brokers_announce_them() {
    let says = || {
        let mut says = Says::default();
        says.topics.insert("judged", plain(&[&[Batch::Records(3)]]));
        says.committed.insert(("group", "judged"), vec![1]);
        says
    };
    let group = of_group("group", &["judged"]);
    let named = FalseBroker::start(says()).await;
    let refused = poll_one(&mut named.probe(AddressRules::default()), &group, &[]).await.unwrap_err();
    assert_eq!(refused.reason, Reason::AddressRefused, "{}", refused.message);
    assert!(!refused.message.contains("advertised.listeners"), "{}", refused.message);
    let narrow = || AddressRules::default().allowing(["127.0.0.1".parse().unwrap()]);
    assert_eq!(poll_one(&mut named.probe(narrow()), &group, &[]).await.unwrap().pending, exactly(2));
    let (elsewhere, came) = trap().await;
    let leads = FalseBroker::start(Says { leaders_at: Some(elsewhere), ..says() }).await;
    let coordinates = FalseBroker::start(Says { coordinator_at: Some(elsewhere), ..says() }).await;
    for broker in [&leads, &coordinates] {
        let mut probe = broker.probe(narrow());
        for _ in 0..2 {
            let refused = poll_one(&mut probe, &group, &[]).await.unwrap_err();
            assert_eq!(refused.reason, Reason::AddressRefused, "{}", refused.message);
            assert!(refused.message.contains(&elsewhere.to_string()), "{}", refused.message);
            assert!(refused.message.contains("advertised.listeners"), "{}", refused.message);
        }
    }
    assert_eq!(came.load(Ordering::SeqCst), 0);
    let allowed = poll_one(&mut coordinates.probe(rules()), &group, &[]).await.unwrap_err();
    assert_eq!(allowed.reason, Reason::ConnectionRefused, "{}", allowed.message);
    assert!(came.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn a_topic_without_partitions_is_unknown_and_not_zero() {
    let mut says = Says::default();
    says.topics.insert("full", plain(&[&[Batch::Records(3)]]));
    says.topics.insert("empty", plain(&[]));
    says.committed.insert(("both", "full"), vec![0]);
    let broker = FalseBroker::start(says).await;
    let mut probe = broker.probe(rules());
    for topics in [&["empty"][..], &["full", "empty"]] {
        let unknown = poll_one(&mut probe, &of_group("both", topics), &[]).await.unwrap_err();
        assert!(unknown.message.contains("topic empty"), "{}", unknown.message);
    }
    broker.change(|says| drop(says.topics.insert("empty", plain(&[&[]]))));
    let both = poll_one(&mut probe, &of_group("both", &["full", "empty"]), &[]).await.unwrap();
    assert_eq!(both.pending, exactly(3));
}

#[tokio::test]
async fn a_group_whose_coordinator_is_not_found_takes_no_other_with_it() {
    let mut says = Says::default();
    says.topics.insert("shared", plain(&[&[Batch::Records(3)]]));
    says.committed.insert(("known", "shared"), vec![1]);
    let broker = FalseBroker::start(says).await;
    let mut probe = broker.probe(rules());
    let (known, added) = (of_group("known", &["shared"]), of_group("added", &["shared"]));
    let stored = of_store("stored", &["shared"]);
    assert_eq!(poll_one(&mut probe, &known, &[]).await.unwrap().pending, exactly(2));
    broker.change(|says| {
        says.cursed.insert("added");
    });
    let answers = poll(&mut probe, &[known, stored, Arc::clone(&added)], &[("shared-0", 2)]).await;
    assert_eq!(answers[0].as_ref().unwrap().pending, exactly(2));
    assert_eq!(answers[1].as_ref().unwrap().pending, exactly(1));
    let lost = answers[2].as_ref().unwrap_err();
    assert!(lost.message.contains("closed the connection"), "{}", lost.message);
    broker.change(|says| says.cursed.clear());
    assert_eq!(poll_one(&mut probe, &added, &[]).await.unwrap().pending, exactly(3));
}

#[tokio::test]
async fn a_count_is_exact_only_where_the_topic_is_known_not_to_be_compacted() {
    let mut says = Says::default();
    let mut topic = plain(&[&[Batch::Records(3)]]);
    topic.policy = None;
    says.topics.insert("policy", topic);
    says.committed.insert(("group", "policy"), vec![1]);
    let broker = FalseBroker::start(says).await;
    let group = of_group("group", &["policy"]);
    let unknown = poll_one(&mut broker.probe(rules()), &group, &[]).await.unwrap();
    assert_eq!(unknown.pending, at_most(2));
    let why = unknown.upper_bound.unwrap();
    assert!(why.contains("topic policy") && why.contains("DESCRIBE_CONFIGS"), "{why}");
    // Where nothing waits, nothing can be too much.
    broker.change(|says| {
        says.committed.insert(("group", "policy"), vec![3]);
    });
    let done = poll_one(&mut broker.probe(rules()), &group, &[]).await.unwrap();
    assert_eq!((done.pending, done.upper_bound), (exactly(0), None));
    broker.change(|says| {
        says.committed.insert(("group", "policy"), vec![1]);
    });
    for (policy, pending) in [("delete", exactly(2)), ("compact,delete", at_most(2))] {
        broker.change(|says| says.topics.get_mut("policy").unwrap().policy = Some(policy));
        let told = poll_one(&mut broker.probe(rules()), &group, &[]).await.unwrap();
        assert_eq!((told.pending, told.upper_bound.is_some()), (pending, policy != "delete"), "{policy}");
    }
}

#[tokio::test]
async fn a_count_with_transactions_anywhere_in_the_topic_is_an_upper_bound() {
    let mut says = Says::default();
    says.topics.insert(
        "marked",
        plain(&[&[Batch::Records(3), Batch::Transactional(2), Batch::Marker, Batch::Records(4)], &[Batch::Records(5)]]),
    );
    says.committed.insert(("group", "marked"), vec![1, 5]);
    let broker = FalseBroker::start(says).await;
    let group = of_group("group", &["marked"]);
    let mut probe = broker.probe(rules());
    // The first record belongs to no transaction, and a marker is counted nevertheless.
    let counted = poll_one(&mut probe, &group, &[]).await.unwrap();
    assert_eq!(counted.pending, at_most(9));
    let why = counted.upper_bound.unwrap();
    assert!(why.contains("topic marked") && why.contains("transaction"), "{why}");
    // Behind what one answer shows, and in another partition, there may be markers as well.
    broker.change(|says| {
        says.committed.insert(("group", "marked"), vec![10, 2]);
    });
    assert_eq!(poll_one(&mut probe, &group, &[]).await.unwrap().pending, at_most(3));
    broker.change(|says| {
        says.committed.insert(("group", "marked"), vec![10, 5]);
    });
    assert_eq!(poll_one(&mut probe, &group, &[]).await.unwrap().pending, exactly(0));
}

#[tokio::test]
async fn a_topic_that_was_created_again_is_unknown_until_its_offsets_move() {
    let mut says = Says::default();
    says.topics.insert("again", plain(&[&[Batch::Records(5)], &[Batch::Records(2)]]));
    says.topics.insert("kept", plain(&[&[Batch::Records(2)]]));
    let broker = FalseBroker::start(says).await;
    let mut probe = broker.probe(rules());
    let one = of_store("one", &["again", "kept"]);
    let rows = |first: i64, second: i64| [("again-0", first), ("again-1", second), ("kept-0", 1)];
    assert_eq!(poll_one(&mut probe, &one, &rows(5, 1)).await.unwrap().pending, exactly(2));
    // The new log is longer than the old offset: by the offset alone nothing is to be seen.
    broker.change(|says| {
        let mut again = plain(&[&[Batch::Records(9)], &[Batch::Records(3)]]);
        again.id = 2;
        says.topics.insert("again", again);
    });
    for _ in 0..2 {
        let unknown = poll_one(&mut probe, &one, &rows(5, 1)).await.unwrap_err();
        assert_eq!(unknown.reason, Reason::CheckpointBeyondHead, "{}", unknown.message);
        for word in ["topic again was deleted and created again", "offset 5", "partition 0"] {
            assert!(unknown.message.contains(word), "{word}: {}", unknown.message);
        }
    }
    // One partition begins again, and the other is still where it was.
    let unknown = poll_one(&mut probe, &one, &rows(0, 1)).await.unwrap_err();
    assert!(unknown.message.contains("partition 1"), "{}", unknown.message);
    let told = poll_one(&mut probe, &one, &rows(0, 0)).await.unwrap();
    assert_eq!((told.pending, told.arrived), (exactly(13), 12));
    // An offset of zero, or none, is none of the old log; nor is one that has moved back.
    broker.change(|says| says.topics.get_mut("again").unwrap().id = 3);
    assert_eq!(poll_one(&mut probe, &one, &rows(0, 0)).await.unwrap().pending, exactly(13));
    assert_eq!(poll_one(&mut probe, &one, &rows(8, 3)).await.unwrap().pending, exactly(2));
    broker.change(|says| says.topics.get_mut("again").unwrap().id = 4);
    assert_eq!(poll_one(&mut probe, &one, &rows(4, 1)).await.unwrap().pending, exactly(8));
    // One that goes on from the old offset is somewhere in the new log from then on.
    broker.change(|says| says.topics.get_mut("again").unwrap().id = 5);
    let fetched = broker.says.lock().unwrap().fetches;
    assert!(poll_one(&mut probe, &one, &rows(4, 1)).await.is_err());
    // What was seen of the old log at the same offset says nothing of the new one.
    assert!(broker.says.lock().unwrap().fetches > fetched);
    assert_eq!(poll_one(&mut probe, &one, &rows(6, 2)).await.unwrap().pending, exactly(5));
}
