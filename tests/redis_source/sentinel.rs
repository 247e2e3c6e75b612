//! Servers that Sentinels watch: the primary is measured, and after a failover the one that took its place.

use std::time::Duration;

use projectionist::{api::Reason, lag::Sample, measure::MeasureError, sources::redis::RedisProbe};
use test_cluster::{Redis, eventually_is, free_address, redis::Answer};
use tokio::time::Instant;

use crate::{
    certificates::{Authority, Files, authority},
    harness::{DEADLINE, ask, ask_within, exactly, loopback, probe, redis_over_tls, settings, tls_alone},
};

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

#[tokio::test]
async fn with_tls_the_primary_is_verified_by_the_name_that_the_sentinels_tell() {
    let ours = authority();
    let files = Files::signed(&ours);
    let primary = Redis::with(&tls_alone(&files)).unwrap();
    let names = "sentinel resolve-hostnames yes\nsentinel announce-hostnames yes";
    let sentinel = Redis::sentinel_with(&format!("{}{names}", tls_alone(&files))).unwrap();
    let (at, watches) = (primary.address().port(), sentinel.address().port());
    let told = |port: u16, command: &str| redis_over_tls(port, &files, command);
    assert!(told(at, "XGROUP CREATE orders list 0 MKSTREAM").contains("OK"));
    assert!(told(at, "XADD orders * a b").contains('-'));
    let monitor = told(watches, &format!("SENTINEL MONITOR orders-db localhost {at} 1"));
    assert!(monitor.contains("OK"), "{monitor}");
    let url = format!("rediss-sentinel://localhost:{watches}/orders-db");
    let asked = async |authority: &Authority| {
        let settings = settings(&url).with_ca(authority.pem().as_bytes());
        ask(&mut RedisProbe::new(settings, loopback(), std::time::Instant::now()), &["orders/list"]).await
    };
    assert_eq!(asked(&ours).await.unwrap().pending, exactly(1), "TLS to both");
    let other = asked(&authority()).await.unwrap_err();
    assert_eq!(other.reason, Reason::TlsFailed, "another authority: {}", other.message);
    assert!(told(watches, "SENTINEL CONFIG SET announce-hostnames no").contains("OK"));
    let by_address = asked(&ours).await.unwrap_err();
    assert_eq!(by_address.reason, Reason::TlsFailed, "its certificate is for localhost: {}", by_address.message);
}
