//! What a source or a projector may get wrong: told by the operator, never mistaken for lag, and what the autoscaler makes of it. One fault
//! after the other on a Projection whose checkpoint the test writes and whose workers do nothing. Databases that are down, slow or locked are in
//! `source_faults`.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use test_cluster::eventually;
use tokio::time::{Instant, sleep};

use crate::shop::Shop;
use crate::stage::{PATIENCE, play, together};

/// Waits until the operator has seen this checkpoint: a step that no sample saw tells it nothing.
async fn commit_and_see(shop: &Shop<'_>, position: i64) -> Result<()> {
    shop.commit("orders", position).await?;
    let pending = (shop.events.head().await? - position).to_string();
    shop.metric_is("projection_pending_events", "orders", |value| value == pending).await
}

#[test]
fn a_checkpoint_that_goes_back_brings_workers_and_two_that_pull_at_it_do_not_swing_them() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "rewound").await?;
        shop.events.append_events(2_000).await?;
        shop.commit("orders", 1_990).await?;
        shop.scaling_idle_workers("orders", &json!({}))?;
        commit_and_see(&shop, 1_990).await?;
        shop.replicas_stay(1).await?;
        // The lag is known all the same, and the worker that handles the events again does it in time.
        commit_and_see(&shop, 40).await?;
        let message = shop.condition_is("orders", "LagKnown", "False", "CheckpointRewound").await?;
        ensure!(message.contains("from 1990 to 40"), "{message}");
        shop.replicas_become(4).await?;
        commit_and_see(&shop, 1_995).await?;
        commit_and_see(&shop, 50).await?;
        shop.condition_is("orders", "LagKnown", "False", "CheckpointContested").await?;
        let told =
            || async { Ok::<_, anyhow::Error>(shop.events_about("orders")?.contains_key("CheckpointContested")) };
        eventually(PATIENCE, "an Event says so", told).await?;
        let end = Instant::now() + Duration::from_secs(20);
        for position in [1_995, 50].into_iter().cycle() {
            if Instant::now() > end {
                break;
            }
            shop.commit("orders", position).await?;
            sleep(Duration::from_millis(1_500)).await;
            let replicas = shop.replicas("orders").await?;
            ensure!(replicas == 4, "{replicas} workers after the checkpoint went to {position}");
        }
        Ok(())
    });
}

#[test]
fn events_of_the_future_age_from_when_they_were_seen_and_bring_workers() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "future").await?;
        shop.events.append_events(3).await?;
        shop.commit("orders", 3).await?;
        shop.scaling_idle_workers("orders", &json!({"spec": {"scaling": {"eventsPerWorkerSecond": 10}}}))?;
        commit_and_see(&shop, 3).await?;
        // Two workers would handle them in time if they stayed as young as their times say.
        let ahead = "insert into events (stream, type, data, recorded_at)
             select 's', 'Counted', '{}', now() + interval '1 hour' from generate_series(1, 60)";
        shop.events.client().execute(ahead, &[]).await?;
        shop.condition_is("orders", "LagKnown", "True", "EventTimeInFuture").await?;
        let aged = |value: &str| value.trim_end_matches('m').parse::<f64>().is_ok_and(|number| number > 0.0);
        shop.metric_is("projection_staleness_seconds", "orders", aged).await?;
        shop.condition_is("orders", "WithinTarget", "False", "BehindTarget").await?;
        shop.replicas_become(4).await?;
        shop.commit("orders", shop.events.head().await?).await?;
        shop.replicas_become(1).await?;
        shop.condition_is("orders", "LagKnown", "True", "").await.map(drop)
    });
}

#[test]
fn events_that_are_deleted_before_they_are_read_are_told_while_there_is_time_and_all_workers_come() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "retention").await?;
        shop.commit("orders", 0).await?;
        let keeping = |retention: &str| {
            json!({"spec": {
                "source": {"postgres": {"eventTable": {"retention": retention}}},
                "scaling": {"eventsPerWorkerSecond": 1},
            }})
        };
        let old = "insert into events (stream, type, data, recorded_at)
             select 's', 'Counted', '{}', now() - interval '3 hours' from generate_series(1, 4000)";
        shop.events.client().execute(old, &[]).await?;
        // 4,000 events at four a second take longer than the quarter of an hour that is left.
        shop.scaling_idle_workers("orders", &keeping("3h15m"))?;
        shop.condition_is("orders", "Progressing", "False", "RetentionRisk").await?;
        shop.replicas_become(4).await?;
        shop.replicas_stay(4).await?;
        let message = shop.condition_is("orders", "Progressing", "False", "RetentionRisk").await?;
        ensure!(message.contains(" min, and the backlog takes 16 min"), "{message}");
        shop.scaling_idle_workers("orders", &keeping("720h"))?;
        shop.condition_is("orders", "Progressing", "True", "").await?;
        shop.replicas_stay(4).await
    });
}

#[test]
fn a_stuck_checkpoint_brings_no_worker_however_much_comes_and_one_that_moves_again_does() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "stuck").await?;
        shop.events.append_events(50).await?;
        shop.commit("orders", 7).await?;
        shop.scaling_idle_workers("orders", &json!({"spec": {"failure": {"stuckAfter": "2s"}}}))?;
        let message = shop.condition_is("orders", "Progressing", "False", "CheckpointFrozen").await?;
        ensure!(message.contains("at 7"), "{message}");
        shop.events.append_events(5_000).await?;
        shop.metric_is("projection_pending_events", "orders", |value| value == "5043").await?;
        shop.replicas_stay(1).await?;
        let told = || async { Ok::<_, anyhow::Error>(shop.events_about("orders")?.contains_key("CheckpointFrozen")) };
        eventually(PATIENCE, "an Event says why", told).await?;
        // It moves again: what waits is work, and not a poisoned event.
        for position in 8..200 {
            shop.commit("orders", position).await?;
            if shop.replicas("orders").await? == 4 {
                break;
            }
            sleep(Duration::from_millis(500)).await;
        }
        shop.replicas_become(4).await?;
        shop.commit("orders", shop.events.head().await?).await?;
        shop.condition_is("orders", "Progressing", "True", "").await.map(drop)
    });
}

#[test]
fn what_never_committed_keeps_a_worker_and_may_sleep_afterwards() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "never").await?;
        shop.commit("others", 0).await?;
        let sleepy = json!({"spec": {"scaling": {"minWorkers": 0, "idleFor": "2s"}}});
        // No worker runs yet.
        shop.idle_workload("Deployment", "orders")?;
        shop.stage.cluster.kubectl(&["scale", "deployment/orders", "--replicas=0", "-n", &shop.namespace])?;
        shop.scaling_idle_workers("orders", &sleepy)?;
        shop.condition_is("orders", "LagKnown", "False", "NeverCommitted").await?;
        let (code, message) =
            eventually(PATIENCE, "the metric is an error", || shop.refusal("projection_required_workers", "orders"))
                .await?;
        ensure!(code == 503 && message.contains("no checkpoint"), "{code} {message}");
        shop.replicas_become(1).await?;
        shop.replicas_stay(1).await?;
        shop.events.append_events(500).await?;
        shop.replicas_stay(1).await?;
        shop.commit("orders", shop.events.head().await?).await?;
        shop.replicas_become(0).await
    });
}

#[test]
fn a_number_too_large_for_the_autoscaler_brings_all_workers_and_wraps_around_nowhere() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "huge").await?;
        shop.events.append_events(10).await?;
        shop.commit("orders", 10).await?;
        // The autoscaler reads the pending events themselves, too.
        shop.scaling_idle_workers("orders", &json!({"spec": {"lag": {"pendingPerWorker": 1}}}))?;
        commit_and_see(&shop, 10).await?;
        shop.replicas_stay(1).await?;
        // More than are counted one by one, and a position near the end of all positions.
        shop.events.append_events(20_000).await?;
        // A sequence that lags behind the positions would be refused.
        let last = "select setval(pg_get_serial_sequence('events', 'position'), 9223372036854774999)";
        shop.events.client().query_one(last, &[]).await?;
        shop.events.append_events(1).await?;
        shop.metric_is("projection_pending_events", "orders", |value| value == "9223372036854775").await?;
        shop.replicas_become(4).await?;
        shop.replicas_stay(4).await?;
        let autoscaler = shop.autoscalers().get("orders").await?;
        let active = autoscaler.status.and_then(|status| status.conditions).unwrap_or_default();
        let active = active.into_iter().find(|condition| condition.type_ == "ScalingActive");
        ensure!(active.as_ref().is_some_and(|condition| condition.status == "True"), "{active:?}");
        Ok(())
    });
}
