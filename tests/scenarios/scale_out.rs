//! The operator scales out at once and to zero and back; the autoscaler's rules hold, and the two never fight.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::apps::v1::Deployment;
use projectionist::api::Phase;
use serde_json::json;
use test_cluster::{always_is, eventually, eventually_is};
use tokio::time::{Instant, sleep};

use crate::shop::{Shop, phase};
use crate::stage::{PATIENCE, alone, play, together};

/// True when the operator itself set the number of workers last, through the scale subresource.
fn raised_by_the_operator(deployment: &Deployment) -> bool {
    deployment.metadata.managed_fields.iter().flatten().any(|entry| {
        entry.manager.as_deref() == Some("projectionist-scale")
            && entry.subresource.as_deref() == Some("scale")
            && entry.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer("/f:spec/f:replicas").is_some())
    })
}

#[test]
fn the_operator_scales_out_without_waiting_for_the_autoscaler_and_it_agrees() {
    // No other test can do without controllers.
    let _turn = alone();
    play(|stage| async move {
        let shop = Shop::open(stage, "at-once").await?;
        shop.commit("orders", 0).await?;
        shop.scaling_idle_workers("orders", &json!({}))?;
        shop.metric_is("projection_required_workers", "orders", |value| value == "1").await?;
        shop.autoscaler_asks_for("the autoscaler looks", |replicas| replicas == 1).await?;
        let controllers = stage.cluster.freeze_program("kube-controller-manager")?;
        shop.events.append_events(2_000).await?;
        shop.replicas_become(4).await?;
        anyhow::ensure!(raised_by_the_operator(&shop.deployments().get("orders").await?), "who raised it?");
        drop(controllers);
        shop.autoscaler_asks_for("the autoscaler agrees", |replicas| replicas == 4).await?;
        shop.replicas_stay(4).await
    });
}

#[test]
fn the_autoscalers_own_rules_hold_for_the_operator_too_and_so_does_its_switch() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "rules").await?;
        shop.commit("orders", 0).await?;
        let one_in_half_an_hour = json!({"behavior": {
            "scaleUp": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 1800}]},
        }});
        for (name, rules) in [("slowly", one_in_half_an_hour), ("alone", json!({"scaleOut": "Autoscaler"}))] {
            shop.scaling_idle_workers(name, &json!({"spec": {"scaling": rules}}))?;
            shop.metric_is("projection_required_workers", name, |value| value == "1").await?;
        }
        shop.events.append_events(2_000).await?;
        eventually_is(PATIENCE, "one is added", |replicas| *replicas == 2, || shop.replicas("slowly")).await?;
        let wanted = |replicas: &i32| *replicas == 2;
        always_is(Duration::from_secs(10), "and no more within the period", wanted, || shop.replicas("slowly")).await?;
        eventually_is(PATIENCE, "the autoscaler alone does it", |replicas| *replicas == 4, || shop.replicas("alone"))
            .await?;
        anyhow::ensure!(!raised_by_the_operator(&shop.deployments().get("alone").await?), "the operator did it");
        Ok(())
    });
}

/// Events that arrive in each second of a trace.
type Arrivals = fn(u64) -> u32;

/// A worker does about 40 events a second.
const TRACES: [(&str, Arrivals); 4] = [
    ("bursts", |second| if matches!(second, 0 | 25 | 50) { 400 } else { 0 }),
    ("steady", |_| 60),
    ("ramp", |second| u32::try_from(second).unwrap_or_default() * 3 / 2),
    ("spike", |second| if second == 20 { 1_000 } else { 5 }),
];
const TRACE_SECONDS: u64 = 90;

/// What a look saw: how many workers were asked for, and then how many one of the operator's replicas required.
#[derive(Clone, Copy, Debug)]
struct Look {
    replicas: i32,
    required: i32,
}

/// Plays a trace to real workers, and looks at their number again and again.
async fn looks_at_workers(shop: &Shop<'_>, arrivals: Arrivals) -> Result<Vec<Look>> {
    let mut looks: Vec<Look> = Vec::new();
    let begun = Instant::now();
    let mut appended = 0;
    while begun.elapsed() < Duration::from_secs(TRACE_SECONDS) {
        while appended <= begun.elapsed().as_secs() {
            shop.events.append_events(arrivals(appended)).await?;
            appended += 1;
        }
        let replicas = shop.replicas("orders").await?;
        let required = shop.metric("projection_required_workers", "orders").await?.parse()?;
        looks.push(Look { replicas, required });
        sleep(Duration::from_millis(100)).await;
    }
    Ok(looks)
}

/// The changes of a number of workers that no measurement asked for: where the operator and the autoscaler fight, the one undoes what the other did while
/// the requirement stays as it is. A change is seen a little later than it is made, and what it followed may be seen a little later still.
fn unasked(looks: &[Look]) -> Vec<(usize, i32, i32)> {
    const LATER: usize = 5;
    let mut since = 0;
    let mut found = Vec::new();
    for (at, two) in looks.windows(2).enumerate() {
        let (before, now) = (two[0].replicas, two[1].replicas);
        if before == now {
            continue;
        }
        let about = &looks[since..looks.len().min(at + 2 + LATER)];
        let asked = |look: &Look| if now > before { look.required >= now } else { look.required <= now };
        if !about.iter().any(asked) {
            found.push((at + 1, before, now));
        }
        since = at;
    }
    found
}

#[test]
fn operator_and_autoscaler_never_fight() {
    let _turn = together();
    play(|stage| async move {
        let played = TRACES.map(|(name, arrivals)| async move {
            let shop = Shop::open(stage, &format!("peace-{name}")).await?;
            let short = json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}});
            shop.apply(&shop.projection("orders", &json!({"spec": {"scaling": short}})))?;
            shop.workers_are("orders", "the first worker is ready", |ready| ready == 1).await?;
            // A worker that is ready may not have committed yet.
            shop.metric_is("projection_required_workers", "orders", |_| true).await?;
            let looks = looks_at_workers(&shop, arrivals).await?;
            let mut told: Vec<i32> = looks.iter().map(|look| look.replicas).collect();
            told.dedup();
            anyhow::ensure!(told.iter().any(|replicas| *replicas > 1), "{name}: nothing happened: {told:?}");
            let unasked = unasked(&looks);
            anyhow::ensure!(unasked.is_empty(), "{name}: they fought: {told:?}: {unasked:?} in {looks:?}");
            println!("{name}: {told:?}");
            shop.read_model_is_whole("orders").await
        });
        futures::future::try_join_all(played).await.map(drop)
    });
}

#[test]
fn quiet_workers_go_away_and_the_first_event_brings_them_back_however_close() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "sleepy").await?;
        let zero = json!({"minWorkers": 0, "idleFor": "2s"});
        shop.apply(&shop.projection("orders", &json!({"spec": {"scaling": zero}})))?;
        // A first commit needs a worker, which may be gone again before anybody sees it.
        shop.condition_is("orders", "LagKnown", "True", "").await?;
        let asleep = |what: &'static str| {
            let shop = &shop;
            async move { eventually_is(PATIENCE, what, |replicas| *replicas == 0, || shop.replicas("orders")).await }
        };
        asleep("quiet sends the last worker away").await?;
        shop.projection_is("orders", "it says that it sleeps", |one| phase(one) == Some(Phase::Idle)).await?;
        shop.condition_is("orders", "Available", "True", "Idle").await?;
        shop.condition_is("orders", "Ready", "True", "").await?;
        shop.metric_is("projection_pending_events", "orders", |value| value == "0").await?;

        // Around the very moment at which the last worker goes away, many times.
        let (mut asleep_then, mut awake_then) = (0, 0);
        for round in 0..40_u64 {
            if round >= 8 && asleep_then >= 2 && awake_then >= 2 {
                break;
            }
            shop.events.append_events(1).await?;
            shop.read_model_is_whole("orders").await?;
            sleep(Duration::from_millis(1_700 + 150 * (round % 10))).await;
            *(if shop.replicas("orders").await? == 0 { &mut asleep_then } else { &mut awake_then }) += 1;
            shop.events.append_events(1).await?;
            shop.read_model_is_whole("orders").await?;
        }
        anyhow::ensure!(asleep_then >= 2 && awake_then >= 2, "never near it: {asleep_then} asleep, {awake_then} awake");
        asleep("and sleeps again").await?;
        shop.events.append_events(600).await?;
        shop.workers_are("orders", "a burst wakes several at once", |ready| ready > 1).await?;
        shop.read_model_is_whole("orders").await
    });
}

#[test]
fn projections_on_one_read_store_keep_within_its_connections() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "budget").await?;
        let limited = json!({"spec": {"readStore": {"limits": {"connectionsPerWorker": 2, "maxConnections": 6}}}});
        for name in ["orders", "stock"] {
            shop.apply(&shop.projection(name, &limited))?;
            shop.workers_are(name, "the first worker is ready", |ready| ready == 1).await?;
        }
        shop.events.append_events(3_000).await?;
        for name in ["orders", "stock"] {
            shop.projection_is(name, "the budget bounds it", |projection| {
                let workers = projection.status.as_ref().and_then(|status| status.workers.as_ref());
                workers.is_some_and(|workers| workers.bound_by == projectionist::api::BoundBy::Connections)
            })
            .await?;
        }
        let both = || async { Ok::<_, anyhow::Error>((shop.replicas("orders").await?, shop.replicas("stock").await?)) };
        eventually_is(PATIENCE, "three workers in all", |(one, other)| one + other == 3, both).await?;
        let within = |(one, other): &(i32, i32)| one + other <= 3;
        always_is(Duration::from_secs(10), "six connections and no more", within, both).await?;
        Ok(())
    });
}

#[test]
fn a_fallback_is_followed_while_the_source_is_down_and_takes_no_worker_away() {
    let _turn = together();
    play(|stage| async move {
        let server = stage.cluster.postgres()?;
        let shop = Shop::open_on(stage, &server, "fallback").await?;
        shop.events.append_events(2_000).await?;
        // One has nothing to do and is to have three workers, the other has four and is to have one.
        shop.commit("more", shop.events.head().await?).await?;
        shop.commit("fewer", 0).await?;
        for (name, fallback, before) in [("more", 3, 1), ("fewer", 1, 4)] {
            shop.scaling_idle_workers(
                name,
                &json!({"spec": {
                    "lag": {"onUnknown": "Fallback", "fallbackWorkers": fallback},
                    "checkpoint": {"readStore": {"name": name}},
                }}),
            )?;
            shop.projection_is(name, "it has the workers that it needs", |projection| {
                let workers = projection.status.as_ref().and_then(|status| status.workers.as_ref());
                workers.is_some_and(|workers| workers.desired == Some(before) && workers.required == Some(before))
            })
            .await?;
        }
        server.stop()?;
        eventually_is(PATIENCE, "the fallback is followed", |replicas| *replicas == 3, || shop.replicas("more"))
            .await?;
        let lag_is_unknown = || async {
            let refusal = shop.refusal("projection_pending_events", "fewer").await?;
            Ok::<_, anyhow::Error>(refusal.is_some_and(|(code, _)| code == 503))
        };
        eventually(PATIENCE, "the lag itself stays unknown", lag_is_unknown).await?;
        let kept = |replicas: &i32| *replicas == 4;
        always_is(Duration::from_secs(8), "none is taken away", kept, || shop.replicas("fewer")).await?;
        Ok(())
    });
}
