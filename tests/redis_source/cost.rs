//! What a poll costs the server: connections, commands, bytes.

use std::time::Instant;

use projectionist::sources::BatchProbe as _;
use test_cluster::Redis;

use crate::harness::{DEADLINE, exactly, probe, question};

/// A number of a section of `INFO`.
fn info(server: &Redis, section: &str, field: &str) -> u64 {
    let text = server.run(&format!("INFO {section}")).unwrap().text().to_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:"))).unwrap().to_owned();
    line.split('.').next().unwrap().parse().unwrap()
}

/// `cargo test --test redis_source cost -- --nocapture` prints what docs/sources/redis.md tells.
#[tokio::test]
async fn all_projections_of_a_server_share_one_connection_and_a_poll_costs_three_commands_for_each() {
    let own = Redis::on_loopback().unwrap();
    for projections in [1_u64, 100, 1_000] {
        own.run("FLUSHALL").unwrap();
        let names: Vec<String> = (0..projections).map(|n| format!("stream-{n}")).collect();
        let body = "x".repeat(1_000);
        let group = |name| ["XGROUP", "CREATE", name, "group", "0", "MKSTREAM"];
        let add = |name| ["XADD", name, "*", "body", body.as_str()];
        let groups: Vec<_> = names.iter().map(|name| group(name.as_str())).collect();
        own.run_all(&groups.iter().map(<[_; 6]>::as_slice).collect::<Vec<_>>()).unwrap();
        for _ in 0..10 {
            let added: Vec<_> = names.iter().map(|name| add(name.as_str())).collect();
            own.run_all(&added.iter().map(<[_; 5]>::as_slice).collect::<Vec<_>>()).unwrap();
        }
        let questions: Vec<_> = names.iter().map(|name| question(&[&format!("{name}/group")])).collect();
        let questions: Vec<_> = questions.iter().collect();
        let mut probe = probe(&own.url());
        let mut poll = async |what: &str| {
            let count =
                || (info(&own, "stats", "total_commands_processed"), info(&own, "stats", "total_net_output_bytes"));
            let (commands, bytes) = count();
            let began = Instant::now();
            let answers = probe.answer(&questions, tokio::time::Instant::now() + DEADLINE).await;
            let took = began.elapsed();
            assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(|sample| sample.pending == exactly(10))));
            let (commands_after, bytes_after) = count();
            // The looks at the numbers are commands themselves.
            let commands = commands_after - commands - 2;
            println!(
                "{projections} projections, {what}: {commands} commands, {} KiB sent, {took:?}",
                (bytes_after - bytes) >> 10
            );
            commands
        };
        let first = poll("the first poll").await;
        let later = poll("a later poll").await;
        assert!(first <= 3 + 3 * projections && later == 2 + 3 * projections, "{first} and {later}");
        own.run("CLIENT LIST").unwrap();
        let clients = own.run("CLIENT LIST").unwrap();
        let ours = clients.text().lines().filter(|line| line.contains("name=projectionist-sampler")).count();
        assert_eq!(ours, 1, "{clients:?}");
    }
}
