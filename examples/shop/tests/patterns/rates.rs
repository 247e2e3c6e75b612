//! The token bucket.

use std::time::Duration;

use anyhow::Result;
use futures::future::join_all;
use shop::rate_limit::{RateLimit, Verdict};
use test_cluster::{Redis, eventually};

#[tokio::test]
async fn many_replicas_together_let_no_more_through_than_the_bucket_holds() -> Result<()> {
    let server = Redis::on_loopback()?;
    let client = redis::Client::open(server.url())?;
    // So slow that no token comes back while the test runs.
    let limit = RateLimit { per_second: 0.001, burst: 20 };
    let replicas = (0..8).map(|_| async {
        let mut connection = client.get_connection_manager().await?;
        let mut allowed = 0;
        for _ in 0..10 {
            match limit.take(&mut connection, "ada").await? {
                Verdict::Allowed => allowed += 1,
                Verdict::TooMany { retry_after } => assert!(retry_after > Duration::from_secs(100), "{retry_after:?}"),
            }
        }
        anyhow::Ok(allowed)
    });
    let allowed: i32 = join_all(replicas).await.into_iter().sum::<Result<i32>>()?;
    assert_eq!(allowed, 20);
    // Another client has a bucket of its own.
    let mut connection = client.get_connection_manager().await?;
    assert_eq!(limit.take(&mut connection, "bob").await?, Verdict::Allowed);
    Ok(())
}

#[tokio::test]
async fn tokens_come_back_and_a_full_bucket_is_forgotten() -> Result<()> {
    let server = Redis::on_loopback()?;
    let mut connection = redis::Client::open(server.url())?.get_connection_manager().await?;
    let limit = RateLimit { per_second: 2.0, burst: 1 };
    assert_eq!(limit.take(&mut connection, "ada").await?, Verdict::Allowed);
    assert!(matches!(limit.take(&mut connection, "ada").await?, Verdict::TooMany { .. }));
    let deadline = Duration::from_secs(60);
    eventually(deadline, "there is a token again", || {
        let mut connection = connection.clone();
        async move { Ok::<_, redis::RedisError>(limit.take(&mut connection, "ada").await? == Verdict::Allowed) }
    })
    .await?;
    eventually(deadline, "the bucket is forgotten", || {
        let mut connection = connection.clone();
        async move { Ok::<_, redis::RedisError>(redis::cmd("DBSIZE").query_async::<i64>(&mut connection).await? == 0) }
    })
    .await
}
