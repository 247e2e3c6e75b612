//! Servers that Sentinels watch: the primary is measured, and after a failover the one that took its place.

use std::time::Duration;

use projectionist::{api::Reason, lag::Sample, measure::MeasureError};
use test_cluster::{Redis, eventually_is, free_address, redis::Answer};
use tokio::time::Instant;

use crate::harness::{DEADLINE, ask, ask_within, exactly, probe};

#[tokio::test]
async fn a_failover_is_followed_and_what_is_pending_is_unknown_meanwhile_and_never_another_number() {
    let users = "user shop on >hunter2 allkeys allcommands";
    let mut primary = Redis::with(users).unwrap();
    let replica =
        Redis::with(&format!("{users}\nreplicaof 127.0.0.1 {}\nrepl-diskless-sync-delay 0", primary.address().port()))
            .unwrap();
    let sentinel = Redis::sentinel().unwrap();
    sentinel.run(&format!("SENTINEL MONITOR orders-db 127.0.0.1 {} 1", primary.address().port())).unwrap();
    sentinel.run("SENTINEL SET orders-db down-after-milliseconds 500").unwrap();
    sentinel.run("SENTINEL SET orders-db failover-timeout 2000").unwrap();
    for command in
        ["XGROUP CREATE orders list 0 MKSTREAM", "XADD orders * a b", "XADD orders * a b", "XADD orders * a b"]
    {
        primary.run(command).unwrap();
    }
    let copied = || async { Ok::<_, anyhow::Error>(matches!(replica.run("XLEN orders"), Ok(Answer::Integer(3)))) };
    eventually_is(DEADLINE, "the replica has the stream", |copied| *copied, copied).await.unwrap();
    let port = replica.address().port().to_string();
    let known = || async {
        Ok::<_, anyhow::Error>(format!("{:?}", sentinel.run("SENTINEL REPLICAS orders-db")?).contains(&port))
    };
    eventually_is(DEADLINE, "the Sentinel knows the replica", |known| *known, known).await.unwrap();

    // The first of the Sentinels that are named is away.
    let away = free_address().unwrap();
    let url = |name: &str| format!("redis-sentinel://shop:hunter2@{away},{}/{name}", sentinel.address());
    let mut probe = probe(&url("orders-db"));
    assert_eq!(ask(&mut probe, &["orders/list"]).await.unwrap().pending, exactly(3));
    primary.kill();
    let end = Instant::now() + DEADLINE;
    let took_over: Sample = loop {
        let found: Result<Sample, MeasureError> =
            ask_within(&mut probe, &["orders/list"], Duration::from_secs(2)).await;
        match found {
            Ok(sample) => break sample,
            Err(unknown) => assert!(Instant::now() < end, "last seen {}", unknown.message),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(took_over.pending, exactly(3));
    replica.run("XADD orders * a b").unwrap();
    assert_eq!(ask(&mut probe, &["orders/list"]).await.unwrap().pending, exactly(4), "the one that took its place");

    let other = ask(&mut crate::harness::probe(&url("other-db")), &["orders/list"]).await.unwrap_err();
    assert_eq!(other.reason, Reason::ConnectionStringInvalid, "{}", other.message);
    assert!(
        other.message.contains("no primary of that name") && !other.message.contains("hunter2"),
        "{}",
        other.message
    );
    let wrong = url("orders-db").replace("hunter2", "hunter2-old");
    let refused = ask(&mut crate::harness::probe(&wrong), &["orders/list"]).await.unwrap_err();
    assert_eq!(refused.reason, Reason::AuthenticationFailed, "{}", refused.message);
    let no_sentinel = format!("redis-sentinel://shop:hunter2@{}/orders-db", replica.address());
    let no_sentinel = ask(&mut crate::harness::probe(&no_sentinel), &["orders/list"]).await.unwrap_err();
    assert!(no_sentinel.message.contains("it is no Sentinel"), "{}", no_sentinel.message);
    assert!(!no_sentinel.message.contains("hunter2"), "{}", no_sentinel.message);
}
