//! A real HorizontalPodAutoscaler scales real workers by how far behind they are.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::StatefulSet, autoscaling::v2::HPAScalingRules};
use kube::Api;
use serde_json::json;
use test_cluster::{always_is, eventually, eventually_is};

use crate::shop::Shop;
use crate::stage::{PATIENCE, play, together};

#[test]
fn a_burst_scales_the_workers_out_and_quiet_scales_them_back() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "burst").await?;
        shop.apply(&shop.projection(
            "orders",
            &json!({"spec": {"scaling": {
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}},
            }}}),
        ))?;
        shop.workers_are("orders", "the first worker is ready", |ready| ready == 1).await?;

        shop.events.append_events(1_500).await?;
        shop.workers_are("orders", "the burst has brought all four workers", |ready| ready == 4).await?;
        let projection = shop.projection_is("orders", "status shows the bound", |projection| {
            let workers = projection.status.as_ref().and_then(|status| status.workers.as_ref());
            workers.is_some_and(|workers| workers.required == Some(4) && workers.ready == Some(4))
        });
        projection.await?;

        shop.read_model_is_whole("orders").await?;
        shop.workers_are("orders", "quiet has sent three of them away", |ready| ready == 1).await?;
        shop.condition_is("orders", "WithinTarget", "True", "").await?;
        shop.condition_is("orders", "Ready", "True", "").await?;
        Ok(())
    });
}

#[test]
fn queue_length_scales_beside_the_target_where_it_is_asked_for() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "queue").await?;
        // The target is never in danger; only the second rule asks for workers.
        shop.apply(&shop.projection("orders", &json!({"spec": {"lag": {"target": "24h", "pendingPerWorker": 200}}})))?;
        shop.workers_are("orders", "the first worker is ready", |ready| ready == 1).await?;
        shop.events.append_events(1_500).await?;
        shop.workers_are("orders", "there is a worker for every 200 events", |ready| ready >= 3).await?;
        // Ten workers of eleven are within the usual tolerance; the server keeps ours.
        let behavior = shop.autoscalers().get("orders").await?.spec.behavior.unwrap_or_default();
        let tolerance = |rules: Option<HPAScalingRules>| rules.and_then(|rules| rules.tolerance).map(|it| it.0);
        let both = (tolerance(behavior.scale_up), tolerance(behavior.scale_down));
        anyhow::ensure!(both == (Some("0".to_owned()), Some("0".to_owned())), "{both:?}");
        Ok(())
    });
}

#[test]
fn a_suspended_projection_has_no_workers_and_is_still_measured() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "suspended").await?;
        shop.apply(&shop.projection("orders", &json!({})))?;
        shop.workers_are("orders", "the first worker is ready", |ready| ready == 1).await?;

        shop.apply(&shop.projection("orders", &json!({"spec": {"suspend": true}})))?;
        // A worker that was told to end may still finish a batch, and is not counted as ready meanwhile.
        let gone = || async { Ok::<_, anyhow::Error>(shop.made("pod")?.is_empty()) };
        eventually(PATIENCE, "the worker is gone", gone).await?;
        shop.events.append_events(30).await?;
        shop.projection_is("orders", "30 events are pending", |projection| {
            let status = projection.status.clone().unwrap_or_default();
            status.pending.is_some_and(|pending| pending.value == 30 && pending.exact)
        })
        .await?;
        shop.metric_is("projection_pending_events", "orders", |value| value == "30").await?;

        shop.stage.cluster.kubectl(&["scale", "deployment/orders", "--replicas=3", "-n", &shop.namespace])?;
        eventually_is(PATIENCE, "the kill switch holds", |replicas| *replicas == 0, || shop.replicas("orders")).await?;
        always_is(
            Duration::from_secs(5),
            "no worker is started",
            |replicas| *replicas == 0,
            || shop.replicas("orders"),
        )
        .await?;

        shop.apply(&shop.projection("orders", &json!({"spec": {"suspend": false}})))?;
        shop.read_model_is_whole("orders").await
    });
}

#[test]
fn an_existing_deployment_is_scaled_and_otherwise_left_as_it_is() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "existing").await?;
        shop.events.append_events(900).await?;
        shop.commit("orders", 1).await?;
        shop.idle_workload("Deployment", "team-workers")?;
        let before = shop.deployments().get("team-workers").await?;
        shop.apply(&shop.measured(
            "orders",
            &json!({"spec": {
                "lag": {"pendingPerWorker": 300},
                "projector": {"existing": {"kind": "Deployment", "name": "team-workers"}},
            }}),
        ))?;
        shop.workers_are("team-workers", "900 pending bring three workers", |ready| ready >= 3).await?;
        let after = shop.deployments().get("team-workers").await?;
        anyhow::ensure!(
            after.spec.as_ref().map(|spec| &spec.template) == before.spec.as_ref().map(|spec| &spec.template)
        );
        anyhow::ensure!(after.metadata.owner_references.is_none() && after.metadata.labels == before.metadata.labels);
        anyhow::ensure!(shop.made("deployment,pdb")?.is_empty(), "it made something besides the HPA");

        shop.delete("orders").await?;
        let gone = || async { Ok::<_, anyhow::Error>(shop.made("hpa")?.is_empty()) };
        eventually(PATIENCE, "the HPA is gone", gone).await?;
        anyhow::ensure!(shop.replicas("team-workers").await? >= 3, "the team's workload was touched on the way out");
        Ok(())
    });
}

#[test]
fn an_existing_stateful_set_is_scaled() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "stateful").await?;
        shop.events.append_events(900).await?;
        shop.commit("orders", 1).await?;
        shop.idle_workload("StatefulSet", "team-workers")?;
        let projection = |suspend: bool| {
            shop.measured(
                "orders",
                &json!({"spec": {
                    "suspend": suspend,
                    "lag": {"pendingPerWorker": 300},
                    "projector": {"existing": {"kind": "StatefulSet", "name": "team-workers"}},
                }}),
            )
        };
        let sets: Api<StatefulSet> = Api::namespaced(shop.client.clone(), &shop.namespace);
        let wanted =
            || async { Ok::<_, kube::Error>(sets.get("team-workers").await?.spec.and_then(|spec| spec.replicas)) };
        shop.apply(&projection(false))?;
        eventually_is(PATIENCE, "900 pending bring three workers", |replicas| *replicas >= Some(3), wanted).await?;
        shop.apply(&projection(true))?;
        eventually_is(PATIENCE, "the kill switch works", |replicas| *replicas == Some(0), wanted).await?;
        Ok(())
    });
}
