//! The read-through cache.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::Result;
use futures::future::join_all;
use shop::read_through_cache::{CacheError, ReadThroughCache};
use test_cluster::{Redis, eventually};

const LONG: Duration = Duration::from_secs(3_600);

async fn cache(server: &Redis, expiry: Duration) -> Result<ReadThroughCache> {
    let connection = redis::Client::open(server.url())?.get_connection_manager().await?;
    Ok(ReadThroughCache::new(connection, expiry))
}

#[tokio::test]
async fn many_that_want_the_same_ask_once_and_a_failure_is_not_kept() -> Result<()> {
    let server = Redis::on_loopback()?;
    let cache = cache(&server, LONG).await?;
    let failed = cache.get("product:book", || async { Err("the database is away") }).await;
    assert!(matches!(failed, Err(CacheError::Query("the database is away"))));
    let asked = AtomicU32::new(0);
    let gets = (0..50).map(|_| {
        cache.get("product:book", || async {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok::<_, Infallible>("7".to_owned())
        })
    });
    for value in join_all(gets).await {
        assert_eq!(value?, "7");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    Ok(())
}

#[tokio::test]
async fn a_change_is_seen_by_whoever_asks_after_it_was_invalidated() -> Result<()> {
    let server = Redis::on_loopback()?;
    let cache = cache(&server, LONG).await?;
    let value = |text: &'static str| move || async move { Ok::<_, Infallible>(text.to_owned()) };
    assert_eq!(cache.get("a", value("old")).await?, "old");
    assert_eq!(cache.get("a", value("new")).await?, "old");
    cache.invalidate("a").await?;
    assert_eq!(cache.get("a", value("new")).await?, "new");
    // A handler of a Projection invalidates so.
    server.run("INCR cache:{a}:generation")?;
    assert_eq!(cache.get("a", value("newer")).await?, "newer");
    assert_eq!(cache.get("b", value("other")).await?, "other");
    Ok(())
}

#[tokio::test]
async fn an_answer_from_before_a_change_is_not_kept_after_it() -> Result<()> {
    let server = Redis::on_loopback()?;
    let cache = cache(&server, LONG).await?;
    let slow = cache.get("a", || async {
        // It has read the old value, and the change comes before it can be kept.
        cache.invalidate("a").await?;
        Ok::<_, redis::RedisError>("old".to_owned())
    });
    assert_eq!(slow.await?, "old");
    assert_eq!(cache.get("a", || async { Ok::<_, Infallible>("new".to_owned()) }).await?, "new");
    Ok(())
}

#[tokio::test]
async fn a_value_that_nothing_invalidates_expires() -> Result<()> {
    let server = Redis::on_loopback()?;
    let cache = cache(&server, Duration::from_millis(200)).await?;
    let asked = AtomicU32::new(0);
    eventually(Duration::from_secs(60), "it is asked for again", || async {
        cache
            .get("a", || async {
                asked.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Infallible>("value".to_owned())
            })
            .await?;
        Ok::<_, CacheError<Infallible>>(asked.load(Ordering::Relaxed) >= 2)
    })
    .await
}
