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

#[tokio::test]
async fn addresses_that_brokers_announce_are_judged_and_those_refused_are_not_connected_to() {
    let says = || {
        let mut says = Says::default();
        says.topics.insert("judged", plain(&[&[Batch::Records(3)]]));
        says.committed.insert(("group", "judged"), vec![1]);
        says
    };
    let group = of_group("group", &["judged"]);
    // What the Secret names is asked wherever it leads.
    let named = FalseBroker::start(says()).await;
    assert_eq!(poll_one(&mut named.probe(AddressRules::default()), &group, &[]).await.unwrap().pending, exactly(2));
    let (elsewhere, came) = trap().await;
    let leads = FalseBroker::start(Says { leaders_at: Some(elsewhere), ..says() }).await;
    let coordinates = FalseBroker::start(Says { coordinator_at: Some(elsewhere), ..says() }).await;
    for broker in [&leads, &coordinates] {
        let mut probe = broker.probe(AddressRules::default());
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
