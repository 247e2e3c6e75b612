//! Every state of a queue, on a real server.

use std::time::Duration;

use projectionist::{
    api::Reason,
    lag::{Note, Sample},
    measure::MeasureError,
};
use serde_json::{Value, json};

use crate::harness::{
    ask, ask_within, declare, exactly, handled, probe, publish, question, server, until, until_pending,
};

fn plain() -> Value {
    json!({"delivery_mode": 2})
}

fn failed(reason: Reason) -> impl Fn(&Result<Sample, MeasureError>) -> bool {
    move |found| found.as_ref().is_err_and(|unknown| unknown.reason == reason)
}

#[tokio::test]
async fn an_empty_queue_has_nothing_pending_and_what_waits_or_is_held_is_pending_until_it_is_acknowledged() {
    for kind in ["classic", "quorum"] {
        let queue = format!("states-{kind}");
        let queues = [queue.as_str()];
        declare(server(), &queue, kind);
        let mut probe = probe(&server().url());
        let empty = until_pending(&mut probe, &queues, 0).await;
        assert_eq!(empty.staleness, Some(Duration::ZERO), "{kind}");
        assert_eq!((empty.arrived, handled(&empty)), (0, 0), "{kind}");
        publish(server(), &queue, 3, &plain());
        let behind = until_pending(&mut probe, &queues, 3).await;
        assert_eq!((behind.staleness, behind.arrived), (None, 3), "{kind}: without timestamps its age is unknown");
        // What a consumer holds has not been handled.
        let mut consumer = server().consumer().unwrap();
        let held = [consumer.take(&queue).unwrap().unwrap(), consumer.take(&queue).unwrap().unwrap()];
        let ready = || server().run("GET", &format!("queues/%2F/{queue}"), &Value::Null).unwrap();
        until(&mut probe, &queues, "one is ready", |_| ready()["messages_ready"] == 1).await.unwrap();
        assert_eq!(until_pending(&mut probe, &queues, 3).await.arrived, 3, "{kind}");
        consumer.acknowledge(held[0]).unwrap();
        let two = until(&mut probe, &queues, "one is handled", |found| {
            found.as_ref().is_ok_and(|sample| sample.pending == exactly(2) && handled(sample) == 1)
        });
        assert_eq!(two.await.unwrap().arrived, 3, "{kind}");
        // What a consumer held that ended waits again.
        drop(consumer);
        until(&mut probe, &queues, "two are ready", |_| ready()["messages_ready"] == 2).await.unwrap();
        let mut consumer = server().consumer().unwrap();
        while let Some(tag) = consumer.take(&queue).unwrap() {
            consumer.acknowledge(tag).unwrap();
        }
        let done = until(&mut probe, &queues, "all are handled", |found| {
            found.as_ref().is_ok_and(|sample| sample.pending == exactly(0) && handled(sample) == 3)
        });
        let done = done.await.unwrap();
        assert_eq!((done.staleness, done.arrived), (Some(Duration::ZERO), 3), "{kind}");
    }
}

#[tokio::test]
async fn the_age_of_the_oldest_is_known_in_a_classic_queue_whose_producers_set_the_timestamp() {
    let now = || u64::try_from(jiff::Timestamp::now().as_second()).unwrap();
    declare(server(), "dated", "classic");
    publish(server(), "dated", 1, &json!({"delivery_mode": 2, "timestamp": now() - 600}));
    publish(server(), "dated", 1, &json!({"delivery_mode": 2, "timestamp": now() - 60}));
    let mut probe = probe(&server().url());
    // The server tells the age with its next statistics, which may come after the number.
    let aged = |found: &Result<Sample, MeasureError>| {
        found.as_ref().is_ok_and(|sample| sample.pending == exactly(2) && sample.staleness.is_some())
    };
    let old = until(&mut probe, &["dated"], "the age of the oldest of two is known", aged).await.unwrap();
    let age = old.staleness.unwrap();
    assert!((Duration::from_secs(590)..Duration::from_secs(900)).contains(&age), "{age:?}");
    assert_eq!(old.ahead_of_clock, Duration::ZERO);
    // The oldest is held by a consumer, and is still the oldest.
    let mut consumer = server().consumer().unwrap();
    let tag = consumer.take("dated").unwrap().unwrap();
    let stats = || server().run("GET", "queues/%2F/dated", &Value::Null).unwrap();
    until(&mut probe, &["dated"], "one is held", |_| stats()["messages_unacknowledged"] == 1).await.unwrap();
    let held = ask(&mut probe, &["dated"]).await.unwrap();
    println!("age of the oldest while a consumer holds it: {:?}", held.staleness);
    consumer.acknowledge(tag).unwrap();
    let next = |found: &Result<Sample, MeasureError>| {
        let age = |sample: &Sample| sample.staleness.is_some_and(|age| age < Duration::from_secs(500));
        found.as_ref().is_ok_and(|sample| sample.pending == exactly(1) && age(sample))
    };
    until(&mut probe, &["dated"], "the next one is the oldest", next).await.unwrap();
    // With a queue whose age is unknown, that of both is.
    declare(server(), "undated", "quorum");
    publish(server(), "undated", 1, &json!({"timestamp": now()}));
    let both = until_pending(&mut probe, &["dated", "undated"], 2).await;
    assert_eq!(both.staleness, None);
    // Producers whose clock is ahead, or that write milliseconds.
    declare(server(), "ahead", "classic");
    publish(server(), "ahead", 1, &json!({"timestamp": now() + 3_600}));
    let dated = |found: &Result<Sample, MeasureError>| {
        found.as_ref().is_ok_and(|sample| sample.pending == exactly(1) && sample.staleness.is_some())
    };
    let ahead = until(&mut probe, &["ahead"], "the age of the one is known", dated).await.unwrap();
    assert!(ahead.ahead_of_clock > Duration::from_secs(3_000), "{ahead:?}");
    assert_eq!(ahead.staleness, Some(Duration::ZERO));
}

#[tokio::test]
async fn a_queue_that_is_not_there_is_unknown_and_one_that_is_purged_deleted_or_made_again_is_told_as_it_is() {
    let mut probe = probe(&server().url());
    // While queues are declared beside it, the server answers with 500 now and then.
    let missing = until(&mut probe, &["gone"], "there is none", failed(Reason::QueueNotFound)).await.unwrap_err();
    assert_eq!(missing.reason, Reason::QueueNotFound, "{}", missing.message);
    assert!(missing.message.contains("vhost /: queue gone: there is no such queue"), "{}", missing.message);
    declare(server(), "gone", "classic");
    publish(server(), "gone", 5, &plain());
    until_pending(&mut probe, &["gone"], 5).await;
    let purged_at = server().run("DELETE", "queues/%2F/gone/contents", &Value::Null);
    purged_at.unwrap();
    let purged = until_pending(&mut probe, &["gone"], 0).await;
    assert_eq!(handled(&purged), 0, "what was purged has not been handled");
    server().run("DELETE", "queues/%2F/gone", &Value::Null).unwrap();
    until(&mut probe, &["gone"], "it is gone", failed(Reason::QueueNotFound)).await.unwrap_err();
    // One of several that is missing makes the sum unknown.
    declare(server(), "here", "classic");
    until_pending(&mut probe, &["here"], 0).await;
    let sum = until(&mut probe, &["here", "gone"], "one is gone", failed(Reason::QueueNotFound)).await.unwrap_err();
    assert_eq!(sum.reason, Reason::QueueNotFound, "{}", sum.message);
    declare(server(), "gone", "quorum");
    publish(server(), "gone", 2, &plain());
    let again = until_pending(&mut probe, &["gone", "here"], 2).await;
    assert_eq!(again.pending, exactly(2));
    // Another virtual host has queues of its own.
    let elsewhere =
        projectionist::sources::rabbitmq::Question { vhost: "else/where".to_owned(), ..question(&["gone"]) };
    let no_vhost = ask_within(&mut probe, &elsewhere, crate::harness::DEADLINE).await.unwrap_err();
    assert!(no_vhost.message.contains("no such virtual host"), "{}", no_vhost.message);
    server().run("PUT", "vhosts/else%2Fwhere", &json!({})).unwrap();
    let no_queue = ask_within(&mut probe, &elsewhere, crate::harness::DEADLINE).await.unwrap_err();
    assert_eq!(no_queue.reason, Reason::QueueNotFound);
    assert!(no_queue.message.contains("vhost else/where: queue gone"), "{}", no_queue.message);
}

#[tokio::test]
async fn names_that_are_no_words_lead_to_their_queue_alone() {
    let names = ["a.b", "a-b", "A.B", "(a|b)", "a b/c?d=e&f#g", "^$", "bücher", "a+", "100%"];
    let mut probe = probe(&server().url());
    for (count, name) in (1..).zip(names) {
        let encoded: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
        server().run("PUT", &format!("queues/%2F/{encoded}"), &json!({"durable": true})).unwrap();
        publish(server(), name, count, &plain());
        until_pending(&mut probe, &[name], count).await;
    }
    let sum = until_pending(&mut probe, &names, 45).await;
    assert_eq!(sum.pending, exactly(45));
}

#[tokio::test]
async fn what_is_dead_lettered_into_a_queue_arrives_there() {
    declare(server(), "parked", "classic");
    let arguments = json!({"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "parked", "x-message-ttl": 1});
    server().run("PUT", "queues/%2F/waiting", &json!({"durable": true, "arguments": arguments})).unwrap();
    let mut probe = probe(&server().url());
    until_pending(&mut probe, &["parked"], 0).await;
    publish(server(), "waiting", 4, &plain());
    assert_eq!(until_pending(&mut probe, &["parked"], 4).await.arrived, 4);
}

#[tokio::test]
async fn a_stream_is_refused_since_it_keeps_what_was_handled() {
    declare(server(), "log", "stream");
    publish(server(), "log", 2, &plain());
    let mut probe = probe(&server().url());
    let refused = until(&mut probe, &["log"], "a stream", failed(Reason::InvalidSpec)).await.unwrap_err();
    assert_eq!(refused.reason, Reason::InvalidSpec);
    assert!(refused.message.contains("name it in spec.source.rabbitmq.streams"), "{}", refused.message);
}

#[tokio::test]
async fn what_dead_letter_queues_hold_is_parked_and_not_pending() {
    let with_dead = |dead: &[&str]| projectionist::sources::rabbitmq::Question {
        dead_letter_queues: dead.iter().map(|queue| (*queue).to_owned()).collect(),
        ..question(&["risky"])
    };
    for queue in ["dead", "dead-too"] {
        declare(server(), queue, "classic");
    }
    let arguments =
        json!({"x-queue-type": "quorum", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"});
    server().run("PUT", "queues/%2F/risky", &json!({"durable": true, "arguments": arguments})).unwrap();
    let mut probe = probe(&server().url());
    until_pending(&mut probe, &["risky", "dead", "dead-too"], 0).await;
    let mut told =
        async |question: projectionist::sources::rabbitmq::Question, what: &str, holds: fn(&Sample) -> bool| {
            let end = tokio::time::Instant::now() + crate::harness::DEADLINE;
            loop {
                let found = ask_within(&mut probe, &question, crate::harness::DEADLINE).await;
                if let Ok(sample) = &found
                    && holds(sample)
                {
                    return found.unwrap();
                }
                assert!(tokio::time::Instant::now() < end, "{what}: last seen {found:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
    let both = || with_dead(&["dead", "dead-too"]);
    told(both(), "empty", |sample| sample.parked == Some(0) && sample.pending == exactly(0)).await;
    told(with_dead(&[]), "not named", |sample| sample.parked.is_none() && sample.notes.is_empty()).await;
    publish(server(), "risky", 3, &plain());
    publish(server(), "dead-too", 1, &plain());
    told(both(), "one failed elsewhere", |sample| sample.parked == Some(1) && sample.pending == exactly(3)).await;
    // A worker refuses two of them for good.
    let mut consumer = server().consumer().unwrap();
    for _ in 0..2 {
        let tag = consumer.take("risky").unwrap().unwrap();
        consumer.reject(tag).unwrap();
    }
    told(both(), "two were refused", |sample| sample.parked == Some(3) && sample.pending == exactly(1)).await;
    // One that is not there hides neither what is pending nor that something is not known.
    let unknown = told(with_dead(&["dead", "dead-none"]), "unknown", |sample| sample.pending == exactly(1)).await;
    // On a slow machine a note is beside it that no consumer is there.
    let why = unknown.notes.iter().find_map(|note| match note {
        Note::ParkedUnknown(why) => Some(why),
        _ => None,
    });
    let why = why.unwrap_or_else(|| panic!("{:?}", unknown.notes));
    assert_eq!(unknown.parked, None, "not zero, and not the part that is known");
    assert!(why.contains("queue dead-none: there is no such queue"), "{why}");
}

#[tokio::test]
async fn queues_in_which_messages_wait_without_a_consumer_are_named_after_a_while() {
    let unattended = |found: &Result<Sample, MeasureError>| {
        found.as_ref().is_ok_and(|sample| matches!(&*sample.notes, [Note::NoConsumer(_)]))
    };
    declare(server(), "left", "classic");
    let mut probe = probe(&server().url());
    assert_eq!(until_pending(&mut probe, &["left"], 0).await.notes, [], "nothing waits");
    publish(server(), "left", 1, &plain());
    assert_eq!(until_pending(&mut probe, &["left"], 1).await.notes, [], "not at once: workers may be starting");
    let left = until(&mut probe, &["left"], "it is left alone", unattended).await.unwrap();
    let [Note::NoConsumer(why)] = &*left.notes else { panic!() };
    assert!(why.contains("queue left") && why.contains("vhost /"), "{why}");
    let mut consumer = server().consumer().unwrap();
    consumer.subscribe("left").unwrap();
    let attended = |found: &Result<Sample, MeasureError>| found.as_ref().is_ok_and(|sample| sample.notes.is_empty());
    let held = until(&mut probe, &["left"], "a consumer is there", attended).await.unwrap();
    assert_eq!(held.pending, exactly(1), "it is held, and not handled");
}
