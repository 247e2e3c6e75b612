//! A category of KurrentDB, which a fake of its published API holds: no real server can be had here. The built-in projector is scaled by its lag.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::json;
use test_cluster::eventually_is;
use tokio::net::TcpListener;
use tokio_postgres::Client;

use crate::consumers::pending_exactly;
use crate::kurrentdb_server::server::Fake;
use crate::secrets::CANARY;
use crate::shop::Shop;
use crate::stage::{PATIENCE, Stage, play, together};

/// Two workers have to do with that for some time.
const EVENTS: i64 = 4_500;
const HANDLER: &str = "insert into seen (stream, n) select :stream, (:data->>'n')::bigint from pg_sleep(0.01)";

/// Appends so many events after the first so many to forty streams of the category, and others that are not meant.
fn append(fake: &Fake, before: i64, count: i64) {
    fake.database(|database| {
        let now = jiff::Timestamp::now();
        for n in before + 1..=before + count {
            database.put(&format!("cart-{}", n % 40), "Counted", format!("{{\"n\": {n}}}").as_bytes(), true, now);
            if n % 3 == 0 {
                database.put("stock-1", "Counted", b"{\"n\": 0}", true, now);
            }
        }
    });
}

/// Each number in the read model, in the order in which they came there, by stream.
async fn seen(reader: &Client) -> Result<BTreeMap<String, Vec<i64>>> {
    let mut all: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for row in reader.query("select stream, n from orders.seen order by seq", &[]).await? {
        all.entry(row.get(0)).or_default().push(row.get(1));
    }
    Ok(all)
}

async fn workers_follow(shop: &Shop<'_>, fake: &Fake) -> Result<()> {
    shop.workers_are("orders", "the first worker is ready", |ready| ready == 1).await?;
    let reader = shop.reader().await?;
    append(fake, 0, EVENTS);
    shop.projection_is("orders", "what was appended is pending", |one| {
        one.status.as_ref().and_then(|status| status.pending.as_ref()).is_some_and(|pending| pending.value > 100)
    })
    .await?;
    shop.autoscaler_asks_for("the autoscaler asks for more", |asked| asked > 1).await?;
    let most = shop.workers_are("orders", "more than one is ready", |ready| ready > 1).await?;
    append(fake, EVENTS, 500);
    let whole = EVENTS + 500;
    let count = || async {
        let all = seen(&reader).await?;
        Ok::<i64, anyhow::Error>(i64::try_from(all.values().map(Vec::len).sum::<usize>())?)
    };
    eventually_is(PATIENCE, "every event is in the read model", |count| *count >= whole, count).await?;
    shop.projection_is("orders", "nothing is pending", pending_exactly(0)).await?;
    shop.metric_is("projection_pending_events", "orders", |value| value == "0").await?;
    shop.replicas_become(1).await?;
    for condition in ["LagKnown", "WithinTarget", "Available", "Ready"] {
        shop.condition_is("orders", condition, "True", "").await?;
    }
    let seen = seen(&reader).await?;
    let unordered = seen.iter().find(|(_, numbers)| !numbers.is_sorted());
    ensure!(unordered.is_none(), "not in the order of the stream: {unordered:?}");
    let mut numbers: Vec<i64> = seen.into_values().flatten().collect();
    numbers.sort_unstable();
    ensure!(numbers == (1..=whole).collect::<Vec<_>>(), "{} effects of {whole}", numbers.len());
    shop.no_secret_is_told()?;
    eprintln!("{}: {whole} events, each with its effect once, by up to {most} workers or more", shop.namespace);
    Ok(())
}

async fn category(stage: &'static Stage) -> Result<()> {
    let listener = stage.cluster.listener()?;
    listener.set_nonblocking(true)?;
    let fake = Fake::on(TcpListener::from_std(listener)?, None);
    fake.require_login("measures", CANARY);
    // As the projection `$by_category` does, which links each event into `$ce-cart`.
    fake.database(|database| database.links_categories = true);
    let shop = Shop::open(stage, "kurrentdb").await?;
    shop.secret("events", &[("url", &format!("kurrentdb://measures:{CANARY}@{}?tls=false", fake.at))])?;
    shop.apply(&shop.projection("orders", &json!({"spec": {
        "source": {"postgres": null, "kurrentdb": {"connection": {"secretRef": {"name": "events"}}, "catchUp": {"stream": "$ce-cart"}}},
        "scaling": {"minWorkers": 1, "maxWorkers": 3},
        "projector": {"builtin": {
            "setup": "create table if not exists seen (seq bigserial, stream text, n bigint)",
            "handlers": {"Counted": HANDLER},
        }},
    }})))?;
    workers_follow(&shop, &fake).await.map_err(|error| stage.cluster.explain(&error, &shop.namespace))
}

#[test]
fn workers_on_a_category_of_kurrentdb_are_scaled_by_its_lag_and_each_effect_comes_once() {
    let _turn = together();
    play(category);
}
