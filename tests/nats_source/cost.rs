//! What a poll costs the server: connections, requests, bytes.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use projectionist::sources::BatchProbe as _;
use test_cluster::Nats;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::harness::{DEADLINE, acknowledge, durable, exactly, fetch, jetstream, probe, question, stream};

/// What goes through a relay.
#[derive(Default)]
struct Passed {
    connections: AtomicUsize,
    requests: AtomicUsize,
    received: AtomicUsize,
}

/// Passes everything on to `server`, and counts.
async fn relay(server: SocketAddr) -> (String, Arc<Passed>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let passed = Arc::new(Passed::default());
    let counter = Arc::clone(&passed);
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            counter.connections.fetch_add(1, Ordering::Relaxed);
            let (mut near_in, mut near_out) = near.into_split();
            let (mut far_in, mut far_out) = TcpStream::connect(server).await.unwrap().into_split();
            let sent = Arc::clone(&counter);
            tokio::spawn(async move {
                let mut piece = vec![0; 1 << 16];
                while let Ok(length) = near_in.read(&mut piece).await {
                    // Each request names the subject of its answer once. One that is cut between two pieces is missed.
                    let text = String::from_utf8_lossy(&piece[..length]);
                    sent.requests.fetch_add(text.matches("_INBOX.projectionist.").count(), Ordering::Relaxed);
                    if length == 0 || far_out.write_all(&piece[..length]).await.is_err() {
                        return;
                    }
                }
            });
            let received = Arc::clone(&counter);
            tokio::spawn(async move {
                let mut piece = vec![0; 1 << 16];
                while let Ok(length) = far_in.read(&mut piece).await {
                    received.received.fetch_add(length, Ordering::Relaxed);
                    if length == 0 || near_out.write_all(&piece[..length]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (url, passed)
}

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
        let (url, passed) = relay(own.address()).await;
        let questions: Vec<_> = (0..projections).map(|number| question(&[&format!("made/c{number}")])).collect();
        let questions: Vec<_> = questions.iter().collect();
        let mut probe = probe(&url);
        let mut poll = async |what: &str| {
            let before = (passed.requests.load(Ordering::Relaxed), passed.received.load(Ordering::Relaxed));
            let began = Instant::now();
            let answers = probe.answer(&questions, tokio::time::Instant::now() + DEADLINE).await;
            let took = began.elapsed();
            let requests = passed.requests.load(Ordering::Relaxed) - before.0;
            let received = passed.received.load(Ordering::Relaxed) - before.1;
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
        assert_eq!(passed.connections.load(Ordering::Relaxed), 1);
    }
}
