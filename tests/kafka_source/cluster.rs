//! A cluster of three brokers: partitions and groups that are spread over them, brokers that go and come back, and what a poll costs.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use projectionist::{
    api::Reason,
    clients::kafka::Isolation,
    lag::{CheckpointState, Sample},
    measure::{MeasureError, RunKey},
    sources::{
        Ask, Probe, Target,
        kafka::{KafkaProbe, Progress, Question},
    },
};
use test_cluster::kafka::Brokers;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::Instant,
};

use crate::{harness::settings, running::loopback};

/// The cluster, for one test at a time: each may take brokers down, and brings them back.
async fn cluster() -> (&'static Brokers, MutexGuard<'static, ()>) {
    static BROKERS: OnceLock<Result<Brokers, String>> = OnceLock::new();
    static ONE_TEST: Mutex<()> = Mutex::const_new(());
    let turn = ONE_TEST.lock().await;
    let brokers = BROKERS.get_or_init(|| Brokers::on_loopback(3).map_err(|error| format!("{error:#}")));
    (brokers.as_ref().unwrap_or_else(|error| panic!("{error}")), turn)
}

fn probe(brokers: &Brokers) -> KafkaProbe {
    KafkaProbe::new(settings(&brokers.addresses(), &[]), loopback(), std::time::Instant::now())
}

fn asking(topic: &str, group: &str) -> Arc<Ask<Question>> {
    Arc::new(Ask {
        key: RunKey::unversioned("shop", format!("{topic}-{group}")),
        uid: format!("{topic}-{group}").into(),
        generation: 1,
        read_store: None,
        checkpoint: None,
        question: Question {
            topics: Arc::new([Arc::from(topic)]),
            progress: Progress::Group(group.into()),
            isolation: Isolation::ReadCommitted,
            reset_to_earliest: false,
        },
    })
}

/// Asks until the cluster does as it is told: what moves is refused for a while.
fn insist(brokers: &Brokers, command: &[&str], good: impl Fn(&str) -> bool) -> String {
    let until = std::time::Instant::now() + Duration::from_secs(180);
    loop {
        match brokers.ask(command) {
            Ok(answer) if good(&answer) => return answer,
            other => assert!(std::time::Instant::now() < until, "{command:?}: {other:?}"),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn produce(brokers: &Brokers, topic: &str, partition: i32, count: u32) {
    insist(brokers, &["produce", topic, &partition.to_string(), &count.to_string(), "60000", ""], |_| true);
}

fn commit(brokers: &Brokers, group: &str, topic: &str, partition: i32, offset: i64) {
    insist(brokers, &["commit", group, topic, &partition.to_string(), &offset.to_string()], |_| true);
}

/// A topic with the replicas of each partition as `1:2,2:3`.
fn place(brokers: &Brokers, topic: &str, replicas: &str) {
    brokers.ask(&["place", topic, replicas]).unwrap();
    let count = replicas.split(',').count();
    insist(brokers, &["leaders", topic], |leaders| {
        leaders.split(',').filter(|one| !one.starts_with('-')).count() == count
    });
}

/// A group of its own that this broker coordinates, with nothing committed but 0 for partition 0 of the topic.
fn group_at(brokers: &Brokers, broker: usize, topic: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let group = format!("{topic}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        commit(brokers, &group, topic, 0, 0);
        if insist(brokers, &["coordinator", &group], |_| true) == broker.to_string() {
            return group;
        }
    }
}

/// All brokers are in step, and lead what they led at first.
fn settle(brokers: &Brokers, topic: &str, leaders: &str) {
    let (of_groups, of_topic) = ("1/3,2/3,3/3", leaders);
    let sorted = |text: &str| {
        let mut all: Vec<String> = text.split(',').map(str::to_owned).collect();
        all.sort();
        all.join(",")
    };
    insist(brokers, &["leaders", "__consumer_offsets"], |now| now.split(',').all(|one| one.ends_with("/3")));
    let until = std::time::Instant::now() + Duration::from_secs(180);
    loop {
        let _ = brokers.ask(&["elect"]);
        let groups = brokers.ask(&["leaders", "__consumer_offsets"]).unwrap_or_default();
        let topic = brokers.ask(&["leaders", topic]).unwrap_or_default();
        if sorted(&groups) == of_groups && topic == of_topic {
            break;
        }
        assert!(std::time::Instant::now() < until, "{groups} {topic}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

type Answer = Result<Sample, MeasureError>;

/// One poll, with the answers in the order of what is asked; with as much time as the sampler gives.
async fn poll(probe: &mut KafkaProbe, asks: &[Arc<Ask<Question>>]) -> Vec<Answer> {
    let targets = asks.iter().map(|ask| Target { ask: Arc::clone(ask), checkpoint: None }).collect();
    let mut answers = BTreeMap::new();
    let mut report = |ask: &Ask<Question>, answer| drop(answers.insert(ask.key.projection.name.clone(), answer));
    probe.measure(targets, Instant::now() + Duration::from_secs(5), &mut report).await;
    asks.iter().map(|ask| answers.remove(&ask.key.projection.name).unwrap()).collect()
}

/// Polls until all answers are as they shall be. Until then each is unknown, or no less than it was or shall be: a coordinator that has just taken over may for a
/// moment know an older commit only.
async fn until(
    probe: &mut KafkaProbe,
    asks: &[Arc<Ask<Question>>],
    before: &[u64],
    after: &[Option<u64>],
) -> Vec<Answer> {
    let end = Instant::now() + Duration::from_secs(180);
    loop {
        let answers = poll(probe, asks).await;
        let pending = |answer: &Answer| answer.as_ref().ok().map(|sample| sample.pending.unwrap().events);
        for ((answer, before), after) in answers.iter().zip(before).zip(after) {
            if let Some(events) = pending(answer) {
                let least = (*before).min(after.unwrap_or(*before));
                assert!(events >= least, "{events} of {before} or {after:?}: {answer:?}");
            }
        }
        if answers.iter().map(pending).eq(after.iter().copied()) {
            return answers;
        }
        assert!(Instant::now() < end, "{answers:?} instead of {after:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn message(answer: &Answer) -> &MeasureError {
    answer.as_ref().unwrap_err()
}

const LEADERS: &str = "1/2,2/2,3/2";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_takes_one_request_of_each_kind_for_each_broker() {
    let (brokers, _turn) = cluster().await;
    place(brokers, "spread", "1:2,2:3,3:1");
    let groups: Vec<String> = (1..=3).map(|broker| group_at(brokers, broker, "spread")).collect();
    for partition in 0..3 {
        produce(brokers, "spread", partition, 5);
        for (done, group) in (1..).zip(&groups) {
            commit(brokers, group, "spread", partition, done);
        }
    }
    settle(brokers, "spread", LEADERS);
    let asks: Vec<_> = groups.iter().map(|group| asking("spread", group)).collect();
    let mut right = probe(brokers);
    let answers = until(&mut right, &asks, &[12, 9, 6], &[Some(12), Some(9), Some(6)]).await;
    for answer in &answers {
        let sample = answer.as_ref().unwrap();
        assert!(sample.pending.unwrap().exact && sample.staleness.unwrap() >= Duration::from_secs(60), "{sample:?}");
        assert_eq!(sample.pending_by_shard.len(), 3);
    }
    for count in [1, 100, 1_000] {
        let mut probe = probe(brokers);
        let asks: Vec<_> = (0..count).map(|n| asking("spread", &format!("cost-{n}"))).collect();
        // None of these groups has ever committed.
        let end = Instant::now() + Duration::from_secs(120);
        while !poll(&mut probe, &asks)
            .await
            .iter()
            .all(|answer| answer.as_ref().is_ok_and(|sample| sample.checkpoint == CheckpointState::NeverCommitted))
        {
            assert!(Instant::now() < end);
        }
        let before = probe.cost().0;
        let began = Instant::now();
        poll(&mut probe, &asks).await;
        let (requests, connections) = (probe.cost().0 - before, probe.cost().1);
        println!(
            "3 brokers, {count} projections: {requests} requests a poll on {connections} connections ({:?})",
            began.elapsed()
        );
        // One Metadata; OffsetFetch of those that coordinate a group; and the logs' ends and beginnings of those that lead.
        let coordinators = if count == 1 { 1 } else { 3 };
        assert_eq!((requests, connections), (1 + coordinators + 2 * 3, 3));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_leaves_what_it_led_unknown_and_never_zero_until_others_lead() {
    let (brokers, _turn) = cluster().await;
    place(brokers, "moves", "1:3,2:1,3:2");
    place(brokers, "alone", "2");
    let (there, elsewhere) = (group_at(brokers, 2, "moves"), group_at(brokers, 1, "moves"));
    for partition in 0..3 {
        produce(brokers, "moves", partition, 4);
        commit(brokers, &there, "moves", partition, 1);
        commit(brokers, &elsewhere, "moves", partition, 2);
    }
    produce(brokers, "alone", 0, 5);
    commit(brokers, &elsewhere, "alone", 0, 0);
    settle(brokers, "moves", LEADERS);
    let asks = [asking("moves", &there), asking("moves", &elsewhere), asking("alone", &elsewhere)];
    let mut probe = probe(brokers);
    until(&mut probe, &asks, &[9, 6, 5], &[Some(9), Some(6), Some(5)]).await;

    // Leader of a partition, and coordinator of a group.
    brokers.kill(2).unwrap();
    let answers = until(&mut probe, &asks, &[9, 6, 5], &[Some(9), Some(6), None]).await;
    let lost = message(&answers[2]);
    assert!([Reason::SourceFailed, Reason::ConnectionRefused].contains(&lost.reason), "{lost:?}");
    produce(brokers, "moves", 1, 2);
    commit(brokers, &there, "moves", 0, 4);
    let answers = until(&mut probe, &asks, &[9, 6, 5], &[Some(8), Some(8), None]).await;
    let lost = message(&answers[2]);
    assert!(lost.message.contains("partition 0 of topic alone has no leader"), "{lost:?}");

    // It comes back, and with it the only replica.
    brokers.start(2).unwrap();
    until(&mut probe, &asks, &[8, 8, 5], &[Some(8), Some(8), Some(5)]).await;
    // Leaders and coordinators move back between brokers that all run.
    settle(brokers, "moves", LEADERS);
    commit(brokers, &there, "moves", 1, 3);
    until(&mut probe, &asks, &[8, 8, 5], &[Some(6), Some(8), Some(5)]).await;
    assert!(probe.cost().1 <= 3, "{:?}", probe.cost());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_hangs_does_not_hold_up_what_others_lead_and_is_not_believed_when_it_goes_on() {
    let (brokers, _turn) = cluster().await;
    place(brokers, "hangs", "1:3,2:1,3:2");
    place(brokers, "beside", "1:3,3:1");
    let (there, elsewhere) = (group_at(brokers, 2, "hangs"), group_at(brokers, 1, "beside"));
    for partition in 0..3 {
        produce(brokers, "hangs", partition, 4);
        commit(brokers, &there, "hangs", partition, 4);
    }
    for partition in 0..2 {
        produce(brokers, "beside", partition, 3);
        commit(brokers, &elsewhere, "beside", partition, 0);
    }
    settle(brokers, "hangs", LEADERS);
    let asks = [asking("hangs", &there), asking("beside", &elsewhere)];
    let mut probe = probe(brokers);
    until(&mut probe, &asks, &[0, 6], &[Some(0), Some(6)]).await;

    brokers.halt(2).unwrap();
    for _ in 0..3 {
        let answers = poll(&mut probe, &asks).await;
        let beside = answers[1].as_ref().ok().map(|sample| sample.pending.unwrap().events);
        assert_eq!(beside, Some(6), "{answers:?}");
    }
    until(&mut probe, &asks, &[0, 6], &[Some(0), Some(6)]).await;
    // What the halted broker knows nothing of: by its log nothing waits.
    produce(brokers, "hangs", 1, 7);
    until(&mut probe, &asks, &[0, 6], &[Some(7), Some(6)]).await;
    brokers.go_on(2).unwrap();
    for _ in 0..50 {
        for (answer, right) in poll(&mut probe, &asks).await.iter().zip([7, 6]) {
            let wrong = answer.as_ref().ok().map(|sample| sample.pending.unwrap().events).filter(|one| *one != right);
            assert_eq!(wrong, None, "{answer:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    settle(brokers, "hangs", LEADERS);
    until(&mut probe, &asks, &[7, 6], &[Some(7), Some(6)]).await;
}
