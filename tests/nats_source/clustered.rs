//! Streams that several servers hold, streams that mirror others, and consumers that stop delivering.

use std::time::Duration;

use async_nats::jetstream::{self, consumer::pull, stream};
use projectionist::{
    api::Reason,
    lag::{Note, Sample},
    measure::MeasureError,
    sources::nats::NatsProbe,
};
use test_cluster::{Nats, free_port};
use tokio::time::Instant;

use crate::harness::{
    DEADLINE, acknowledge, ask, ask_within, durable, exactly, fetch, handled, jetstream, probe, publish, server,
    settings,
};
use crate::sampler::loopback;

/// Three servers of one cluster.
fn cluster() -> Vec<Nats> {
    let ports = [(); 3].map(|()| free_port("127.0.0.1").unwrap());
    let routes = ports.map(|port| format!("\"nats://127.0.0.1:{port}\"")).join(", ");
    let start = |(number, port): (usize, &u16)| {
        Nats::with(&format!(
            "server_name: s{number}\njetstream: {{store_dir: {{root}}/jetstream}}\ncluster: {{name: test, host: 127.0.0.1, port: {port}, routes: [{routes}]}}"
        ))
        .unwrap()
    };
    ports.iter().enumerate().map(start).collect()
}

/// Asks until this holds. What comes before is unknown or this many pending, and never anything else.
async fn until(
    probe: &mut NatsProbe,
    pending: u64,
    what: &str,
    holds: impl Fn(&Result<Sample, MeasureError>) -> bool,
) -> Result<Sample, MeasureError> {
    let end = Instant::now() + DEADLINE;
    loop {
        let found = ask_within(probe, &["orders/list"], Duration::from_secs(3)).await;
        if let Ok(sample) = &found {
            assert_eq!(sample.pending, exactly(pending), "{what}");
        }
        if holds(&found) {
            return found;
        }
        assert!(Instant::now() < end, "{what}: last seen {found:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_stream_of_three_servers_is_unknown_while_it_has_no_leader_and_never_zero() {
    let mut servers = cluster();
    let urls: Vec<String> = servers.iter().map(Nats::url).collect();
    let all = urls.join(",");
    let context = jetstream(&urls[0]).await;
    let config = || stream::Config {
        name: "orders".to_owned(),
        subjects: vec!["orders.>".to_owned()],
        num_replicas: 3,
        ..Default::default()
    };
    let end = Instant::now() + DEADLINE;
    let orders = loop {
        match context.create_stream(config()).await {
            Ok(orders) => break orders,
            Err(error) => assert!(Instant::now() < end, "the cluster has no leader yet: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let list = orders.create_consumer(durable("list")).await.unwrap();
    publish(&context, "orders.made", 5).await;
    acknowledge(&fetch(&list, 2).await).await;
    // Each of the servers tells the same, whichever of them leads.
    for url in &urls {
        until(&mut probe(url), 3, "each server knows", Result::is_ok).await.unwrap();
    }
    // One is lost: the two that are left elect a leader.
    let mut probe = NatsProbe::new(settings(&all), loopback(), std::time::Instant::now());
    until(&mut probe, 3, "all three", Result::is_ok).await.unwrap();
    let leader = orders.get_info().await.unwrap().cluster.unwrap().leader.unwrap();
    let leader: usize = leader.strip_prefix('s').unwrap().parse().unwrap();
    servers[leader].kill();
    until(&mut probe, 3, "another leads", Result::is_ok).await.unwrap();
    // Another one hangs: there is no leader.
    let second = (leader + 1) % 3;
    servers[second].pause();
    let unknown = until(&mut probe, 3, "none leads", |found| found.is_err()).await.unwrap_err();
    assert!(
        matches!(unknown.reason, Reason::TimedOut | Reason::SourceFailed),
        "{}: {}",
        unknown.reason,
        unknown.message
    );
    servers[second].resume();
    let back = until(&mut probe, 3, "one leads again", Result::is_ok).await.unwrap();
    assert_eq!((back.arrived, handled(&back)), (0, 0), "nothing came and nothing was done meanwhile");
}

#[tokio::test]
async fn consumers_of_a_mirror_are_measured_by_the_mirror() {
    let context = jetstream(&server().url()).await;
    crate::harness::stream(&context, "origin").await;
    publish(&context, "origin.made", 4).await;
    let mirror = stream::Config {
        name: "mirror".to_owned(),
        mirror: Some(stream::Source { name: "origin".to_owned(), ..Default::default() }),
        ..Default::default()
    };
    let mirror = context.create_stream(mirror).await.unwrap();
    let list = mirror.create_consumer(durable("list")).await.unwrap();
    let mut probe = probe(&server().url());
    let mut wait = async |events| {
        let end = Instant::now() + DEADLINE;
        loop {
            let found = ask(&mut probe, &["mirror/list"]).await.unwrap();
            if found.pending == exactly(events) {
                return found;
            }
            assert!(Instant::now() < end, "{events} pending: last seen {found:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let copied = wait(4).await;
    assert!(copied.staleness.unwrap() > Duration::ZERO, "the age is that of the original message");
    acknowledge(&fetch(&list, 3).await).await;
    wait(1).await;
    publish(&context, "origin.made", 2).await;
    wait(3).await;
}

#[tokio::test]
async fn a_consumer_that_delivers_nothing_more_since_workers_hold_too_much_is_named() {
    let context: jetstream::Context = jetstream(&server().url()).await;
    let full = crate::harness::stream(&context, "full").await;
    let config = pull::Config { max_ack_pending: 2, ack_wait: DEADLINE * 10, ..durable("list") };
    let list = full.create_consumer(config).await.unwrap();
    publish(&context, "full.made", 3).await;
    let mut probe = probe(&server().url());
    let held = fetch(&list, 2).await;
    let at_first = ask(&mut probe, &["full/list"]).await.unwrap();
    assert_eq!((at_first.pending, at_first.notes), (exactly(3), Vec::new()), "workers may be busy");
    let end = Instant::now() + DEADLINE;
    let stopped = loop {
        let found = ask(&mut probe, &["full/list"]).await.unwrap();
        if !found.notes.is_empty() {
            break found;
        }
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(stopped.pending, exactly(3));
    let [Note::DeliveryStopped(why)] = &*stopped.notes else { panic!("{:?}", stopped.notes) };
    assert!(why.contains("stream full, consumer list") && why.contains("max_ack_pending allows (2)"), "{why}");
    acknowledge(&held).await;
    assert_eq!(ask(&mut probe, &["full/list"]).await.unwrap().notes, [], "there is room again");
}
