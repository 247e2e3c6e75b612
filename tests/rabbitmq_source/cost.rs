//! What a poll costs the server: connections, requests, bytes.

use std::time::Instant;

use projectionist::sources::{BatchProbe as _, rabbitmq::Question};
use serde_json::json;

use crate::{
    harness::{DEADLINE, exactly, probe, question, server},
    relay::relay,
};

/// `cargo test --test rabbitmq_source cost -- --nocapture` prints what docs/sources/rabbitmq.md tells.
#[tokio::test]
async fn all_projections_of_a_virtual_host_share_one_connection_and_one_request() {
    server().run("PUT", "vhosts/cost", &json!({})).unwrap();
    server().run("PUT", "permissions/cost/guest", &json!({"configure": ".*", "write": ".*", "read": ".*"})).unwrap();
    let (address, passed) = relay(server().address(), "GET /").await;
    let url = format!("http://guest:guest@{address}");
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
            let before = (passed.requests(), passed.received());
            let began = Instant::now();
            let answers = probe.answer(&questions, tokio::time::Instant::now() + DEADLINE).await;
            let took = began.elapsed();
            let received = passed.received() - before.1;
            assert_eq!(passed.requests() - before.0, 1, "requests");
            if answers.iter().all(|answer| answer.as_ref().is_ok_and(|sample| sample.pending == exactly(0))) {
                println!("{projections} projections: 1 request, {} KiB sent, {took:?}", received >> 10);
                break;
            }
            assert!(Instant::now() < end, "{:?}", answers.iter().find(|answer| answer.is_err()));
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        probe.answer(&questions, tokio::time::Instant::now() + DEADLINE).await;
    }
    assert_eq!(passed.connections(), 3, "one for each of the three probes");
}
