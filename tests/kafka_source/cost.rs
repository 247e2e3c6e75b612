//! What measuring costs a broker: requests and connections for one Projection, a hundred and a thousand.

use std::{sync::Arc, time::Duration};

use projectionist::{
    api::StoredOffset,
    clients::kafka::Isolation,
    lag::{CheckpointState, Position, Sample},
    measure::{MeasureError, RunKey},
    read_stores::Checkpoint,
    sources::{
        Ask, Probe, Target,
        kafka::{KafkaProbe, Progress, Question},
    },
};
use test_cluster::kafka::Listener;
use tokio::time::Instant;

use crate::{
    harness::{ask, broker, commit, produce, settings, topic},
    running::loopback,
};

fn asks(topic: &str, count: usize) -> Vec<Arc<Ask<Question>>> {
    let one = |n: usize| Ask {
        key: RunKey::unversioned("shop", format!("{topic}-{n}")),
        uid: format!("{topic}-{n}").into(),
        generation: 1,
        read_store: None,
        checkpoint: None,
        question: Question {
            topics: Arc::new([Arc::from(topic)]),
            progress: Progress::Group(format!("{topic}-group-{n}").into()),
            isolation: Isolation::ReadCommitted,
            reset_to_earliest: true,
        },
    };
    (0..count).map(|n| Arc::new(one(n))).collect()
}

/// One poll: the requests it took, and what was answered.
async fn poll(probe: &mut KafkaProbe, asks: &[Arc<Ask<Question>>]) -> (u64, Vec<Result<Sample, MeasureError>>) {
    let targets = asks.iter().map(|ask| Target { ask: Arc::clone(ask), checkpoint: None }).collect();
    let (before, mut answers) = (probe.cost().0, Vec::new());
    let mut report = |_: &Ask<Question>, answer| answers.push(answer);
    probe.measure(targets, Instant::now() + Duration::from_secs(60), &mut report).await;
    (probe.cost().0 - before, answers)
}

/// The first poll in which all is known: coordinators of groups may still be starting.
async fn settled(probe: &mut KafkaProbe, asks: &[Arc<Ask<Question>>]) -> (u64, Vec<Result<Sample, MeasureError>>) {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let (requests, answers) = poll(probe, asks).await;
        match answers.iter().find(|answer| answer.is_err()) {
            None => return (requests, answers),
            Some(error) => assert!(Instant::now() < until, "{error:?}"),
        }
    }
}

fn events(answers: &[Result<Sample, MeasureError>]) -> Vec<u64> {
    answers.iter().map(|answer| answer.as_ref().unwrap().pending.unwrap().events).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_takes_four_requests_on_one_connection_however_many_projections_there_are() {
    topic("cost", 10, "");
    // The first group ever asked for makes the cluster create the topic that groups are kept in.
    commit("cost-any", "cost", 0, 0);
    for count in [1, 100, 1_000] {
        let asks = asks("cost", count);
        let mut probe = KafkaProbe::new(
            settings(&broker().address(Listener::Plaintext), &[]),
            loopback(),
            std::time::Instant::now(),
        );
        let (first, answers) = settled(&mut probe, &asks).await;
        assert_eq!(answers.len(), count);
        assert!(events(&answers).iter().all(|events| *events == 0));
        let began = Instant::now();
        let (next, answers) = poll(&mut probe, &asks).await;
        println!("{count} projections: {first} requests at first, then {next} a poll ({:?})", began.elapsed());
        assert_eq!((answers.len(), next, probe.cost().1), (count, 4, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_in_a_read_store_take_one_request_less() {
    topic("cost-stored", 2, "");
    let stored = |ask: &Arc<Ask<Question>>| {
        let (of, meaning) = (ask.key.clone(), StoredOffset::NextToRead);
        let question = Question { progress: Progress::Stored { of, meaning }, ..ask.question.clone() };
        Arc::new(Ask { question, ..Ask::clone(ask) })
    };
    let asks: Vec<_> = asks("cost-stored", 1_000).iter().map(stored).collect();
    let checkpoint = Checkpoint {
        state: CheckpointState::Committed(vec![Position(0); 2]),
        shards: Some(["cost-stored-0".into(), "cost-stored-1".into()].into()),
        bound: None,
        failed: Vec::new(),
        parked: None,
        uncalled: Vec::new(),
    };
    let mut probe =
        KafkaProbe::new(settings(&broker().address(Listener::Plaintext), &[]), loopback(), std::time::Instant::now());
    let mut last = 0;
    for _ in 0..2 {
        let target = |ask: &Arc<Ask<Question>>| Target { ask: Arc::clone(ask), checkpoint: Some(checkpoint.clone()) };
        let (targets, mut answers) = (asks.iter().map(target).collect(), Vec::new());
        last = probe.cost().0;
        let mut report = |_: &Ask<Question>, answer| answers.push(answer);
        probe.measure(targets, Instant::now() + Duration::from_secs(60), &mut report).await;
        assert_eq!(events(&answers), vec![0; 1_000]);
    }
    assert_eq!((probe.cost().0 - last, probe.cost().1), (3, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_looked_at_once_for_each_place_and_not_without_bound() {
    topic("places", 1, "");
    produce("places", 0, 100, Duration::from_secs(60));
    let all = asks("places", 60);
    let mut probe =
        KafkaProbe::new(settings(&broker().address(Listener::Plaintext), &[]), loopback(), std::time::Instant::now());
    // All at one place: one look serves all of them, and a checkpoint that stays needs none.
    let (_, answers) = settled(&mut probe, &all).await;
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap().staleness.unwrap() >= Duration::from_secs(60)));
    assert_eq!(poll(&mut probe, &all).await.0, 4);
    for n in 0..60 {
        ask(&["commit", &format!("places-group-{n}"), "places", "0", &(n + 1).to_string()]);
    }
    // At sixty places: some are looked at, the others with the next poll. What waits is counted at once.
    let (requests, answers) = poll(&mut probe, &all).await;
    println!("60 places in one partition: {requests} requests");
    assert!((5..=4 + 32).contains(&requests), "{requests}");
    let mut counted = events(&answers);
    counted.sort_unstable();
    assert_eq!(counted, (40..100).collect::<Vec<u64>>());
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let (_, answers) = poll(&mut probe, &all).await;
        if answers.iter().all(|answer| answer.as_ref().unwrap().staleness.is_some()) {
            break;
        }
        assert!(Instant::now() < until);
    }
    assert_eq!(poll(&mut probe, &all).await.0, 4);
}
