//! What a poll costs the server: connections, requests, bytes.

use std::time::Instant;

use projectionist::sources::BatchProbe as _;
use test_cluster::Nats;

use crate::{
    harness::{DEADLINE, acknowledge, durable, exactly, fetch, jetstream, probe, question, stream},
    relay::relay,
};

/// `cargo test --test nats_source cost -- --nocapture` prints what docs/sources/nats.md tells.
#[tokio::test]
async fn all_projections_of_a_server_share_one_connection_and_a_poll_costs_one_or_two_requests_for_each() {
    let own = Nats::on_loopback().unwrap();
    let context = jetstream(&own.url()).await;
    let made = stream(&context, "made").await;
    for _ in 0..10 {
        context.publish("made.event", vec![b'x'; 1_000].into()).await.unwrap().await.unwrap();
    }
    let mut consumers = Vec::new();
    for projections in [1_usize, 100, 1_000] {
        while consumers.len() < projections {
            consumers.push(made.create_consumer(durable(&format!("c{}", consumers.len()))).await.unwrap());
        }
        // Each request names the subject of its answer once.
        let (address, passed) = relay(own.address(), "_INBOX.projectionist.").await;
        let questions: Vec<_> = (0..projections).map(|number| question(&[&format!("made/c{number}")])).collect();
        let questions: Vec<_> = questions.iter().collect();
        let mut probe = probe(&format!("nats://{address}"));
        let mut poll = async |what: &str| {
            let before = (passed.requests(), passed.received());
            let began = Instant::now();
            let answers = probe.answer(&questions, tokio::time::Instant::now() + DEADLINE).await;
            let took = began.elapsed();
            let requests = passed.requests() - before.0;
            let received = passed.received() - before.1;
            println!(
                "{projections} projections, {what}: {requests} requests, {} KiB received, {took:?}",
                received >> 10
            );
            for answer in answers {
                let sample = answer.unwrap();
                assert!(sample.pending != exactly(0) && sample.staleness.is_some());
            }
            requests
        };
        // The subscription for answers is the first.
        let first = poll("the first poll").await;
        assert!(first <= 1 + 2 * projections, "{first}");
        let later = poll("a later poll, nothing handled").await;
        assert!(later <= projections, "{later}");
        let done = fetch(&consumers[0], 1).await;
        acknowledge(&done).await;
        let moved = poll("a later poll, one handled").await;
        assert!(moved <= projections + 1, "{moved}");
        assert_eq!(passed.connections(), 1);
    }
}
