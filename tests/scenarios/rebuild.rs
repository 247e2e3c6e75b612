//! A read model is rebuilt beside the one that readers see: readers who ask all the time see the one or the other version whole, at once, and back again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use test_cluster::{eventually, eventually_is};

use crate::shop::Shop;
use crate::stage::{PATIENCE, play, together};

/// The Projection in this version, whose rows tell by which version they were made.
fn in_version(shop: &Shop<'_>, version: &str, change: &Value) -> Value {
    let mut projection = shop.projection(
        "orders",
        &json!({"spec": {
            "version": version,
            "readStore": {"postgres": {"schema": "orders_{version}"}},
            "rollout": {
                "strategy": "BlueGreen", "promote": {"for": "1s"},
                "switch": {"postgresView": {"schema": "shown", "views": ["seen"]}},
            },
            "projector": {"builtin": {
                "setup": "create table if not exists seen (position bigint primary key, stream text, n bigint, made_by text)",
                "handlers": {"Counted": format!("insert into seen select :position, :stream, (:data->>'n')::bigint, '{version}'")},
                "batchSize": null,
            }},
        }}),
    );
    crate::shop::merge(&mut projection, change);
    projection
}

/// One who asks all the time.
struct Reader {
    ended: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<Vec<String>>>,
}

impl Reader {
    /// Returns the versions in the order in which they were seen, or what was wrong.
    async fn begin(shop: &Shop<'_>, least: i64) -> Result<Self> {
        let client = shop.reader().await?;
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let task = tokio::spawn(async move {
            let mut seen: Vec<String> = Vec::new();
            while !end.load(Ordering::Relaxed) {
                let ask = "select count(*), array_agg(distinct made_by) from shown.seen";
                let row = client.query_one(ask, &[]).await.context("a reader is refused")?;
                let (count, versions): (i64, Vec<String>) = (row.get(0), row.get(1));
                ensure!(count >= least && versions.len() == 1, "{count} rows of {versions:?} at once");
                if seen.last() != versions.last() {
                    seen.extend(versions);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(seen)
        });
        Ok(Self { ended, task })
    }

    async fn end(self) -> Result<Vec<String>> {
        self.ended.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

async fn serves(shop: &Shop<'_>, version: &str) -> Result<()> {
    let what = format!("the status is about version {version}");
    let wanted = |status: &projectionist::api::ProjectionStatus| status.live_version() == Some(version);
    let found = shop.projection_is("orders", &what, |it| it.status.as_ref().is_some_and(wanted)).await;
    found.map(drop).map_err(|_| {
        let told = |command: &[&str]| {
            shop.stage
                .cluster
                .kubectl(&[command, &["-n", &shop.namespace]].concat())
                .unwrap_or_else(|error| error.to_string())
        };
        let status = told(&["get", "projection", "orders", "-o", "jsonpath={.status}"]);
        let objects = told(&["get", "deployments,pods,hpa", "-o", "wide"]);
        let events = told(&["get", "events"]);
        let logs = told(&["logs", "deployment/orders-v2", "--tail=20"]);
        anyhow::anyhow!("{what} never: {status}\n{objects}\n{events}\n{logs}")
    })
}

/// Every event is in the schema of this version.
async fn is_whole(shop: &Shop<'_>, version: &str) -> Result<()> {
    let reader = shop.reader().await?;
    let missing = format!(
        "select (select count(*) from events where type = 'Counted') - (select count(*) from orders_{version}.seen)"
    );
    let what = format!("every event is in version {version}");
    let found = eventually_is(
        PATIENCE,
        &what,
        |missing: &i64| *missing == 0,
        || async { Ok::<i64, tokio_postgres::Error>(reader.query_one(&missing, &[]).await?.get(0)) },
    );
    found.await.map(drop).map_err(|error| shop.stage.cluster.explain(&error, &shop.namespace))
}

fn annotate(shop: &Shop<'_>, annotation: &str) -> Result<()> {
    let command = ["annotate", "projection", "orders", "-n", &shop.namespace, "--overwrite", annotation];
    shop.stage.cluster.kubectl(&command).map(drop)
}

#[test]
fn a_version_is_built_beside_the_other_shown_at_once_taken_back_and_the_other_removed() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "rebuild").await?;
        shop.events.client().batch_execute("create schema shown").await?;
        shop.apply(&in_version(&shop, "v1", &json!({})))?;
        shop.events.append_events(40).await?;
        serves(&shop, "v1").await?;
        is_whole(&shop, "v1").await?;
        let readers = [Reader::begin(&shop, 40).await?, Reader::begin(&shop, 40).await?];

        shop.apply(&in_version(&shop, "v2", &json!({})))?;
        serves(&shop, "v2").await?;
        shop.condition_is("orders", "Promoted", "True", "").await?;
        shop.events.append_events(10).await?;
        is_whole(&shop, "v1").await?;
        is_whole(&shop, "v2").await?;
        let value = shop.metrics("projection_pending_events", "projection=orders,version=v1").await?;
        ensure!(value.pointer("/items/0/metricLabels/version") == Some(&json!("v1")), "{value}");

        annotate(&shop, "projectionist.dev/rollback=v1")?;
        serves(&shop, "v1").await?;
        shop.condition_is("orders", "Promoted", "False", "RolledBack").await?;
        annotate(&shop, "projectionist.dev/rollback-")?;
        serves(&shop, "v2").await?;

        shop.apply(&in_version(&shop, "v2", &json!({"spec": {"rollout": {"keepOld": "0s"}}})))?;
        eventually(PATIENCE, "the workers of the other version go", || async {
            let made = shop.deployments().list(&Default::default()).await?;
            let names: Vec<String> = made.iter().map(|one| one.name_any()).collect();
            Ok::<_, kube::Error>(if names == ["orders-v2"] { Ok(()) } else { Err(format!("{names:?}")) })
        })
        .await?;
        for reader in readers {
            ensure!(reader.end().await? == ["v1", "v2", "v1", "v2"], "what a reader saw");
        }
        eventually(PATIENCE, "Events tell of both", || async {
            let events = shop.events_about("orders")?;
            let both = events.contains_key("Promoted") && events.contains_key("RolledBack");
            Ok::<_, anyhow::Error>(if both { Ok(()) } else { Err(format!("{events:?}")) })
        })
        .await
    });
}
