//! A read model in Redis that the built-in projector makes of an event table: the whole path, with a real autoscaler.

use anyhow::{Result, ensure};
use projectionist::api::Phase;
use serde_json::json;
use test_cluster::{Redis, eventually_is, redis::Answer};

use crate::shop::{Shop, phase};
use crate::stage::{PATIENCE, play, together};

/// As a number; 0 where there is nothing.
fn number(redis: &Redis, command: &str) -> Result<i64> {
    Ok(match redis.run(command)? {
        Answer::Nil => 0,
        Answer::Integer(number) => number,
        other => other.text().parse()?,
    })
}

#[test]
fn the_built_in_projector_writes_to_redis_each_event_once_with_as_many_workers_as_its_lag_asks_for() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "cards").await?;
        let redis = stage.cluster.redis()?;
        let rights = "+eval +hget +hset +hdel +hgetall +hincrby +time +info";
        let keys = format!("~projectionist:{{{}/cards}} ~card:* ~total", shop.namespace);
        redis.run(&format!("ACL SETUSER cards on >writes {keys} {rights}"))?;
        let url = format!("--from-literal=url={}", redis.url_as("cards", "writes"));
        stage.cluster.kubectl(&["create", "secret", "generic", "redis", "-n", &shop.namespace, &url])?;
        let projection = |suspend: bool| {
            let handlers = json!({"Counted": [
                ["HINCRBY", "card:{stream}", "sum", "{data.n}"],
                ["HINCRBY", "card:{stream}", "events", "1"],
                ["HINCRBY", "total", "events", "1"],
            ]});
            let change = json!({"spec": {
                "suspend": suspend,
                "readStore": {"postgres": null, "redis": {"connection": {"secretRef": {"name": "redis"}}}},
                "scaling": {
                    "minWorkers": 1, "eventsPerWorkerSecond": 200,
                    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}},
                },
                "projector": {"builtin": {"setup": null, "handlers": null, "redis": {"handlers": handlers}}},
            }});
            shop.projection("cards", &change)
        };
        // A backlog that one worker would take longer for than the target allows, as far as is known when it begins.
        shop.events.append_events(20_000).await?;
        redis.run("SET card:stuck no-hash")?;
        shop.events.append("stuck", "Counted", &json!({"n": 1})).await?;
        shop.apply(&projection(true))?;
        shop.projection_is("cards", "it is suspended", |one| phase(one) == Some(Phase::Suspended)).await?;
        shop.apply(&projection(false))?;
        shop.autoscaler_asks_for("the autoscaler asks for more than one", |asked| asked > 1).await?;
        let handled = || async { number(&redis, "HGET total events") };
        eventually_is(PATIENCE, "all events but one are handled", |count| *count == 20_000, handled)
            .await
            .map_err(|error| stage.cluster.explain(&error, &shop.namespace))?;

        // The event that cannot be handled is named, and waits.
        let said = shop.condition_is("cards", "Stuck", "True", "").await?;
        ensure!(said.contains("position 20001") && said.contains("WRONGTYPE"), "{said}");
        shop.metric_is("projection_pending_events", "cards", |value| value == "1").await?;
        redis.run("DEL card:stuck")?;
        shop.metric_is("projection_pending_events", "cards", |value| value == "0").await?;
        shop.condition_is("cards", "Stuck", "False", "").await?;
        shop.workers_are("cards", "quiet has left one worker", |ready| ready == 1).await?;
        shop.autoscaler_asks_for("the autoscaler asks for one", |asked| asked == 1).await?;
        for condition in ["LagKnown", "WithinTarget", "Available", "Ready"] {
            shop.condition_is("cards", condition, "True", "").await?;
        }

        let query = "select stream, count(*), sum((data->>'n')::bigint)::bigint from events group by stream";
        let streams = shop.reader().await?.query(query, &[]).await?;
        ensure!(!streams.is_empty());
        for row in &streams {
            let (stream, events, sum): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
            let found = (
                number(&redis, &format!("HGET card:{stream} events"))?,
                number(&redis, &format!("HGET card:{stream} sum"))?,
            );
            ensure!(found == (events, sum), "{stream}: {found:?} in Redis, {:?} in the events", (events, sum));
        }
        println!("20,001 events of {} streams, each once", streams.len());
        Ok(())
    });
}
