//! What a poll costs the server: connections, requests, bytes.

use std::time::{Duration, Instant};

use projectionist::measure::RunKey;

use crate::{
    harness::{Asked, DEADLINE, ago, at, key, log, persistent, probe, stream},
    server::Fake,
};

/// `cargo test --test kurrentdb_source cost -- --nocapture` prints what docs/sources/kurrentdb.md tells.
#[tokio::test]
async fn all_projections_of_a_cluster_share_one_connection_and_one_list_of_subscriptions() {
    let own = at(Some(0));
    for projections in [1_usize, 100, 1_000] {
        for (what, first_most, later_most) in [
            ("persistent, caught up", 1, 1),
            ("persistent, each with an event waiting", 1 + projections, 1 + projections),
            ("catch-up, a stream for each", projections, projections),
            ("catch-up, one stream for all", 1, 1),
            ("catch-up, $all", 2, 2),
        ] {
            let fake = Fake::start().await;
            fake.database(|database| {
                for number in 0..projections {
                    let stream = format!("order-{number}");
                    match what.split(',').next().unwrap() {
                        "persistent" => {
                            database.pull(&stream, "readers");
                            let waits = usize::from(!what.ends_with("caught up"));
                            database.append_sized(&stream, "event", waits, ago(60), 1_000);
                        }
                        _ => database.append_sized(&stream, "event", 10, ago(60), 1_000),
                    }
                }
            });
            let keys: Vec<RunKey> = (0..projections).map(|number| key(&format!("p{number}"))).collect();
            let questions: Vec<_> = (0..projections)
                .map(|number| match what {
                    "catch-up, one stream for all" => stream("order-0"),
                    "catch-up, $all" => log(),
                    _ if what.starts_with("catch-up") => stream(&format!("order-{number}")),
                    _ => persistent(&[&format!("order-{number}/readers")]),
                })
                .collect();
            let checkpoint = if what.starts_with("catch-up") { Some(&own) } else { None };
            let asked: Vec<_> =
                questions.iter().zip(&keys).map(|(question, key)| Asked { key, question, checkpoint }).collect();
            let mut probe = probe(&fake);
            for (poll, most) in [("first", first_most), ("later", later_most)] {
                let (before, began) = (fake.sent(), Instant::now());
                let answers = probe.answer(&asked, tokio::time::Instant::now() + DEADLINE).await;
                let took: Duration = began.elapsed();
                let requests = fake.requests().len();
                println!(
                    "{projections} projections, {what}, {poll} poll: {requests} requests, {} KiB, {took:?}",
                    (fake.sent() - before) >> 10
                );
                assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(|sample| sample.staleness.is_some())));
                assert!(requests <= most, "{what}: {requests}");
            }
            assert_eq!(fake.connections(), 1);
            assert!(fake.most_under_way() <= 16, "{}", fake.most_under_way());
        }
    }
}
