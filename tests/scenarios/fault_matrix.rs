//! What a source or a projector may get wrong, told by the operator and never mistaken for lag: one fault after the other on a Projection that
//! is only measured. Databases that are down, slow or locked are in `source_faults`.

use anyhow::{Result, ensure};
use serde_json::json;
use test_cluster::eventually;

use crate::shop::Shop;
use crate::stage::{PATIENCE, play, together};

/// Waits until the operator has seen this checkpoint: a step that no sample saw tells it nothing.
async fn commit_and_see(shop: &Shop<'_>, position: i64) -> Result<()> {
    shop.commit("orders", position).await?;
    let pending = (shop.events.head().await? - position).to_string();
    shop.metric_is("projection_pending_events", "orders", |value| value == pending).await
}

#[test]
fn a_checkpoint_that_goes_back_is_told_and_one_that_goes_back_and_forth_has_two_writers() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "rewound").await?;
        shop.events.append_events(100).await?;
        shop.commit("orders", 90).await?;
        shop.apply(&shop.measured("orders", &json!({})))?;
        commit_and_see(&shop, 90).await?;
        commit_and_see(&shop, 40).await?;
        let message = shop.condition_is("orders", "LagKnown", "False", "CheckpointRewound").await?;
        ensure!(message.contains("from 90 to 40"), "{message}");
        // The lag is known all the same, and stays readable.
        shop.metric_is("projection_pending_events", "orders", |value| value == "60").await?;
        commit_and_see(&shop, 80).await?;
        commit_and_see(&shop, 50).await?;
        shop.condition_is("orders", "LagKnown", "False", "CheckpointContested").await?;
        let told =
            || async { Ok::<_, anyhow::Error>(shop.events_about("orders")?.contains_key("CheckpointContested")) };
        eventually(PATIENCE, "an Event says so", told).await
    });
}

#[test]
fn events_of_the_future_are_told_and_age_from_when_they_were_seen() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "future").await?;
        shop.events.append_events(3).await?;
        shop.commit("orders", 3).await?;
        shop.apply(&shop.measured("orders", &json!({})))?;
        commit_and_see(&shop, 3).await?;
        let ahead = "insert into events (stream, type, data, recorded_at) values ('s', 'Counted', '{}', now() + interval '1 hour')";
        shop.events.client().execute(ahead, &[]).await?;
        shop.condition_is("orders", "LagKnown", "True", "EventTimeInFuture").await?;
        let aged = |value: &str| value.trim_end_matches('m').parse::<f64>().is_ok_and(|number| number > 0.0);
        shop.metric_is("projection_staleness_seconds", "orders", aged).await?;
        shop.condition_is("orders", "WithinTarget", "False", "BehindTarget").await.map(drop)
    });
}

#[test]
fn events_that_are_deleted_before_they_are_read_are_told_while_there_is_time() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "retention").await?;
        shop.commit("orders", 0).await?;
        let table =
            |retention: &str| json!({"spec": {"source": {"postgres": {"eventTable": {"retention": retention}}}}});
        let old = "insert into events (stream, type, data, recorded_at) values ('s', 'Counted', '{}', now() - interval '3 hours')";
        shop.events.client().execute(old, &[]).await?;
        shop.apply(&shop.measured("orders", &table("4h")))?;
        let message = shop.condition_is("orders", "Progressing", "False", "RetentionRisk").await?;
        ensure!(message.contains("59 min") || message.contains("60 min"), "{message}");
        shop.apply(&shop.measured("orders", &table("720h")))?;
        shop.condition_is("orders", "Progressing", "True", "").await.map(drop)
    });
}

#[test]
fn a_checkpoint_that_does_not_move_is_stuck_after_the_time_that_the_spec_gives() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "stuck").await?;
        shop.events.append_events(50).await?;
        shop.commit("orders", 7).await?;
        shop.apply(&shop.measured("orders", &json!({"spec": {"failure": {"stuckAfter": "2s"}}})))?;
        let message = shop.condition_is("orders", "Progressing", "False", "CheckpointFrozen").await?;
        ensure!(message.contains("at 7"), "{message}");
        shop.commit("orders", 50).await?;
        shop.condition_is("orders", "Progressing", "True", "").await.map(drop)
    });
}
