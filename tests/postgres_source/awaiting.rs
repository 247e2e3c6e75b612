//! Requests that wait until a read model has an event, on a running sampler: when they are answered, and what they are told when they are not.

use std::time::{Duration, Instant};

use projectionist::metrics_api::{AwaitError, AwaitQuery, ReadModels as _};
use serde_json::json;
use test_cluster::{always_is, eventually_is};

use crate::harness::{Running, SOON, append, commit, database, server};

impl Running {
    /// As a request does.
    async fn reached(&self, name: &str, position: &str, timeout: &str) -> Result<i64, AwaitError> {
        let query = AwaitQuery { namespace: "shop", name, position, timeout: Some(timeout) };
        self.read_models.reached(query).await.map(|position| position.parse().unwrap())
    }

    /// Asks again and again, as long as the time is over before the read model is there.
    async fn reached_at_last(&self, name: &str, position: i64) -> i64 {
        let until = Instant::now() + SOON;
        loop {
            match self.reached(name, &position.to_string(), "10s").await {
                Ok(reached) => return reached,
                Err(error) if Instant::now() > until => panic!("{error:?}"),
                Err(AwaitError::TimedOut { .. } | AwaitError::Unknown(_)) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// How far it is when the time is over.
    async fn timed_out(&self, name: &str, position: &str) -> Option<i64> {
        let until = Instant::now() + SOON;
        loop {
            match self.reached(name, position, "500ms").await {
                Err(AwaitError::TimedOut { position, message }) => {
                    assert!(message.contains(&format!("shop/{name}")), "{message}");
                    return position.map(|position| position.parse().unwrap());
                }
                Err(AwaitError::Unknown(_)) if Instant::now() < until => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn it_is_answered_soon_after_the_checkpoint_is_committed_although_the_interval_is_long() {
    let (url, client) = database(server(), "awaited").await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("orders", |spec| spec["lag"] = json!({"target": "600s"}));
    append(&client, 3).await;
    commit(&client, "orders", 3).await;
    assert_eq!(sampler.reached_at_last("orders", 3).await, 3);
    for position in 4..24_i64 {
        append(&client, 1).await;
        let text = position.to_string();
        let (reached, ()) = tokio::join!(sampler.reached("orders", &text, "10s"), async {
            tokio::time::sleep(Duration::from_millis(120)).await;
            commit(&client, "orders", position).await;
        });
        assert_eq!(reached, Ok(position));
    }
    assert_eq!(sampler.waiters.count(), 0);
}

#[tokio::test]
async fn what_it_has_not_reached_or_does_not_know_is_never_reached() {
    let (url, client) = database(server(), "not_reached").await;
    let mut sampler = Running::start(&[("db", &url), ("elsewhere", "postgres://nobody@127.0.0.1:1/none")]);
    sampler.declare("orders", |_| {});
    append(&client, 5).await;
    let new = sampler.reached("orders", "0", "1s").await;
    assert!(matches!(&new, Err(AwaitError::Unknown(_))), "nothing was ever committed: {new:?}");
    commit(&client, "orders", 2).await;
    assert_eq!(sampler.reached_at_last("orders", 2).await, 2);
    assert_eq!(sampler.timed_out("orders", "3").await, Some(2));
    commit(&client, "orders", 5).await;
    assert_eq!(sampler.reached_at_last("orders", 5).await, 5);
    assert_eq!(sampler.timed_out("orders", "6").await, Some(5), "beyond the head: it was not appended yet");

    sampler.declare("dark", |spec| spec["source"]["postgres"]["connection"]["secretRef"]["name"] = json!("elsewhere"));
    let dark = sampler.reached("dark", "0", "2s").await;
    assert!(matches!(&dark, Err(AwaitError::Unknown(why)) if why.contains("shop/dark")), "{dark:?}");
    // A checkpoint beyond the head is of another log.
    client.batch_execute("truncate events restart identity").await.unwrap();
    append(&client, 1).await;
    let replaced = eventually_is(
        SOON,
        "the log was replaced",
        |seen: &Result<i64, AwaitError>| matches!(seen, Err(AwaitError::Unknown(_))),
        || async { Ok::<_, std::convert::Infallible>(sampler.reached("orders", "2", "100ms").await) },
    );
    assert!(replaced.await.unwrap().is_err());

    let missing = sampler.reached("missing", "1", "5s").await;
    assert!(matches!(&missing, Err(AwaitError::NotFound(why)) if why.contains("missing")), "{missing:?}");
    for (position, timeout) in [("one", "5s"), ("-1", "5s"), ("1", "11s"), ("1", "soon")] {
        let refused = sampler.reached("orders", position, timeout).await;
        assert!(matches!(refused, Err(AwaitError::BadRequest(_))), "{position} {timeout}: {refused:?}");
    }
    sampler.declare("letters", |spec| {
        spec["source"]["postgres"] = json!({
            "connection": {"secretRef": {"name": "db"}},
            "outbox": {"table": "events"},
        });
        spec.as_object_mut().unwrap().retain(|field, _| field == "source" || field == "lag");
    });
    let outbox = sampler.reached("letters", "1", "5s").await;
    assert!(matches!(&outbox, Err(AwaitError::BadRequest(why)) if why.contains("outbox")), "{outbox:?}");
}

#[tokio::test]
async fn a_quiet_shard_holds_up_no_answer_and_an_event_that_waits_does() {
    let (url, client) = database(server(), "awaited_shards").await;
    client
        .batch_execute(
            "create table rows (projection text, shard text, position bigint, primary key (projection, shard))",
        )
        .await
        .unwrap();
    let row = |shard: &'static str, position: i64| {
        let upsert = "insert into rows values ('a', $1, $2) on conflict (projection, shard) do update set position = excluded.position";
        let client = &client;
        async move { client.execute(upsert, &[&shard, &position]).await.unwrap() }
    };
    let event = |shard: &'static str| {
        let insert = "insert into events (stream) values ($1) returning position";
        let client = &client;
        async move { client.query_one(insert, &[&shard]).await.unwrap().get::<_, i64>(0) }
    };
    let first = event("quiet").await;
    row("quiet", first).await;
    let second = event("busy").await;
    row("busy", second).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |spec| {
        spec["source"]["postgres"]["eventTable"]["shard"] = json!("stream");
        spec["checkpoint"]["readStore"]["table"] = json!("rows");
    });
    // The quiet shard stays at its last event.
    assert_eq!(sampler.reached_at_last("a", second).await, second);
    let waits = event("quiet").await;
    let after = event("busy").await;
    row("busy", after).await;
    assert_eq!(sampler.timed_out("a", &after.to_string()).await, Some(waits - 1), "the one before it waits");
    row("quiet", waits).await;
    assert_eq!(sampler.reached_at_last("a", after).await, after);
}

#[tokio::test]
async fn many_that_wait_cost_no_more_queries_than_one() {
    let (url, client) = database(server(), "awaited_by_many").await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("orders", |spec| spec["lag"] = json!({"target": "600s"}));
    append(&client, 1).await;
    commit(&client, "orders", 1).await;
    sampler.reached_at_last("orders", 1).await;
    let polls = || sampler.metrics.polls.load(std::sync::atomic::Ordering::Relaxed);
    let before = polls();
    let all = futures::future::join_all((0..500).map(|_| sampler.reached("orders", "2", "2s"))).await;
    let spent = polls() - before;
    assert!(all.iter().all(|answer| matches!(answer, Err(AwaitError::TimedOut { .. }))));
    // At most one poll each 50 ms.
    assert!((1..=60).contains(&spent), "{spent} polls");
    assert_eq!(sampler.waiters.count(), 0);
    // Without waiters the interval of the Projection counts again. One poll may have been under way.
    let rest = polls();
    always_is(
        Duration::from_secs(1),
        "it rests",
        |now: &u64| *now <= rest + 1,
        || async { Ok::<_, std::convert::Infallible>(polls()) },
    )
    .await
    .unwrap();
}
