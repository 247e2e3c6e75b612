//! The built-in projector into read stores other than PostgreSQL.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams};
use serde_json::json;
use test_cluster::{Redis, eventually_is, redis::Answer};

use crate::secrets::CANARY;
use crate::shop::Shop;
use crate::stage::{PATIENCE, play, together};

/// The positions that each stream's list holds, in its order.
fn listed(server: &Redis, streams: &[String]) -> Result<BTreeMap<String, Vec<i64>>> {
    let mut all = BTreeMap::new();
    for stream in streams {
        let Answer::Array(entries) = server.run(&format!("LRANGE seen:{stream} 0 -1"))? else {
            bail!("{stream}: no list")
        };
        let positions: Result<Vec<i64>, _> = entries.iter().map(|entry| entry.text().parse()).collect();
        all.insert(stream.clone(), positions?);
    }
    Ok(all)
}

#[test]
fn events_of_a_table_reach_redis_once_and_in_order_while_workers_are_killed() {
    let _turn = together();
    play(|stage| async move {
        let server = stage.cluster.redis()?;
        let shop = Shop::open(stage, "cards").await?;
        server.run(&format!(
            "ACL SETUSER views on >{CANARY} ~projectionist:{{{}/orders}} ~projectionist:claims ~seen:* ~card:* \
             +eval +hget +hset +hdel +hgetall +hincrby +time +info +rpush",
            shop.namespace
        ))?;
        shop.secret("views", &[("url", server.url_as("views", CANARY).as_str())])?;
        let change = json!({"spec": {
            "readStore": {"postgres": null, "redis": {"connection": {"secretRef": {"name": "views"}}}},
            "scaling": {"minWorkers": 2, "maxWorkers": 4},
            "projector": {"builtin": {
                "setup": null, "handlers": null,
                "redis": {"handlers": {"Counted": [
                    ["RPUSH", "seen:{stream}", "{position}"],
                    ["HSET", "card:{stream}", "n", "{data.n}", "position", "{position}"],
                ]}},
            }},
        }});
        shop.apply(&shop.projection("orders", &change))?;
        shop.workers_are("orders", "two workers are ready", |ready| ready == 2).await?;
        let pods: Api<Pod> = Api::namespaced(shop.client.clone(), &shop.namespace);
        for _ in 0..3 {
            shop.events.append_events(1_000).await?;
            let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            let running =
                pods.list(&ListParams::default().labels("app.kubernetes.io/managed-by=projectionist")).await?;
            let first = running.items.first().and_then(|pod| pod.metadata.name.clone());
            if let Some(pod) = first {
                pods.delete(&pod, &now).await?;
            }
        }
        let rows = shop.events.client().query("select stream, position from events order by position", &[]).await?;
        let mut expected: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for row in rows {
            expected.entry(row.get(0)).or_default().push(row.get(1));
        }
        let streams: Vec<String> = expected.keys().cloned().collect();
        let count = |all: &BTreeMap<String, Vec<i64>>| all.values().map(Vec::len).sum::<usize>();
        let are_there = |all: &BTreeMap<String, Vec<i64>>| count(all) >= count(&expected);
        let seen = || async { listed(&server, &streams) };
        let found = eventually_is(PATIENCE, "every event is in Redis", are_there, seen).await;
        let found = found.map_err(|error| stage.cluster.explain(&error, &shop.namespace))?;
        ensure!(found == expected, "{} events are in Redis, and {} were appended", count(&found), count(&expected));
        shop.metric_is("projection_pending_events", "orders", |value| value == "0").await?;
        for condition in ["LagKnown", "WithinTarget", "Available", "Ready"] {
            shop.condition_is("orders", condition, "True", "").await?;
        }
        shop.no_secret_is_told()
    });
}
