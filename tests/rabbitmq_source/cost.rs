//! What a poll costs the server: connections, requests, bytes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use projectionist::sources::{BatchProbe as _, rabbitmq::Question};
use serde_json::json;
use test_cluster::RabbitMq;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::harness::{DEADLINE, exactly, probe, question, server};

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

/// Passes on what is said between a probe and the server, and counts it.
async fn relay(server: &RabbitMq) -> (String, Arc<Counts>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://guest:guest@{}", listener.local_addr().unwrap());
    let (address, counts) = (server.address(), Arc::new(Counts::default()));
    let counter = Arc::clone(&counts);
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            counter.connections.fetch_add(1, Ordering::Relaxed);
            let (mut from, mut to) = client.into_split();
            let (mut answers, mut requests) = TcpStream::connect(address).await.unwrap().into_split();
            let counter_there = Arc::clone(&counter);
            tokio::spawn(async move {
                let mut piece = vec![0; 64 << 10];
                while let Ok(length @ 1..) = from.read(&mut piece).await {
                    let asked = piece[..length].windows(5).filter(|window| *window == b"GET /").count();
                    counter_there.requests.fetch_add(asked, Ordering::Relaxed);
                    if requests.write_all(&piece[..length]).await.is_err() {
                        return;
                    }
                }
            });
            let counter_back = Arc::clone(&counter);
            tokio::spawn(async move {
                let mut piece = vec![0; 64 << 10];
                while let Ok(length @ 1..) = answers.read(&mut piece).await {
                    counter_back.bytes.fetch_add(length, Ordering::Relaxed);
                    if to.write_all(&piece[..length]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (url, counts)
}

/// `cargo test --test rabbitmq_source cost -- --nocapture` prints what docs/sources/rabbitmq.md tells.
#[tokio::test]
async fn all_projections_of_a_virtual_host_share_one_connection_and_one_request() {
    server().run("PUT", "vhosts/cost", &json!({})).unwrap();
    server().run("PUT", "permissions/cost/guest", &json!({"configure": ".*", "write": ".*", "read": ".*"})).unwrap();
    let (url, counts) = relay(server()).await;
    let mut declared = 0;
    for projections in [1_usize, 100, 1_000] {
        while declared < projections {
            server().run("PUT", &format!("queues/cost/queue-{declared}"), &json!({"durable": true})).unwrap();
            declared += 1;
        }
        let questions: Vec<_> = (0..projections)
            .map(|n| Question { vhost: "cost".to_owned(), ..question(&[&format!("queue-{n}")]) })
            .collect();
        let questions: Vec<_> = questions.iter().collect();
        let mut probe = probe(&url);
        let end = Instant::now() + DEADLINE;
        loop {
            let before =
                [&counts.connections, &counts.requests, &counts.bytes].map(|count| count.load(Ordering::Relaxed));
            let began = Instant::now();
            let answers = probe.answer(&questions, tokio::time::Instant::now() + DEADLINE).await;
            let took = began.elapsed();
            let after =
                [&counts.connections, &counts.requests, &counts.bytes].map(|count| count.load(Ordering::Relaxed));
            assert_eq!(after[1] - before[1], 1, "requests");
            if answers.iter().all(|answer| answer.as_ref().is_ok_and(|sample| sample.pending == exactly(0))) {
                println!("{projections} projections: 1 request, {} KiB sent, {took:?}", (after[2] - before[2]) >> 10);
                break;
            }
            assert!(Instant::now() < end, "{:?}", answers.iter().find(|answer| answer.is_err()));
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        probe.answer(&questions, tokio::time::Instant::now() + DEADLINE).await;
    }
    assert_eq!(counts.connections.load(Ordering::Relaxed), 3, "one for each of the three probes");
}
