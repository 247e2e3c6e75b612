//! What others delete or change comes back; what belongs to others stays theirs.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use projectionist::api::Projection;
use serde_json::json;
use test_cluster::{eventually, eventually_is};

use crate::shop::{Shop, busy, uid};
use crate::stage::{PATIENCE, Stage, play, together};

async fn running<'a>(stage: &'a Stage, name: &str) -> Result<Shop<'a>> {
    let shop = Shop::open(stage, name).await?;
    shop.apply(&shop.projection("orders", &json!({})))?;
    shop.workers_are("orders", "the first worker is ready", |ready| ready == 1).await?;
    Ok(shop)
}

#[test]
fn a_deleted_deployment_and_a_deleted_hpa_come_back_and_no_event_is_lost() {
    let _turn = together();
    play(|stage| async move {
        let shop = running(stage, "deleted").await?;
        shop.events.append_events(200).await?;
        let before = (uid(&shop.deployments().get("orders").await?), uid(&shop.autoscalers().get("orders").await?));
        shop.deployments().delete("orders", &DeleteParams::background()).await?;
        shop.autoscalers().delete("orders", &DeleteParams::default()).await?;
        let back = || async {
            let now = (uid(&shop.deployments().get("orders").await?), uid(&shop.autoscalers().get("orders").await?));
            Ok::<_, kube::Error>(now.0 != before.0 && now.1 != before.1)
        };
        eventually(PATIENCE, "both are back", back).await?;
        shop.read_model_is_whole("orders").await
    });
}

#[test]
fn a_changed_field_of_ours_is_put_back_and_a_field_of_theirs_stays() {
    let _turn = together();
    play(|stage| async move {
        let shop = running(stage, "changed").await?;
        let change = json!({
            "metadata": {"annotations": {"team.example/note": "ours"}},
            "spec": {"template": {"spec": {"containers": [{"name": "projector", "image": "example.invalid/other:1"}]}}},
        });
        let wanted = image_of(&shop).await?;
        shop.deployments().patch("orders", &PatchParams::default(), &Patch::Strategic(&change)).await?;
        eventually_is(PATIENCE, "the image is ours again", |image| *image == wanted, || image_of(&shop)).await?;
        let deployment = shop.deployments().get("orders").await?;
        let annotations = deployment.metadata.annotations.unwrap_or_default();
        ensure!(
            annotations.get("team.example/note").map(String::as_str) == Some("ours"),
            "a foreign annotation was removed"
        );

        let change = json!({"spec": {"maxReplicas": 40}});
        shop.autoscalers().patch("orders", &PatchParams::default(), &Patch::Merge(&change)).await?;
        let most = || async { Ok::<_, kube::Error>(shop.autoscalers().get("orders").await?.spec.max_replicas) };
        eventually_is(PATIENCE, "maxReplicas is ours again", |most: &i32| *most == 4, most).await?;
        Ok(())
    });
}

async fn image_of(shop: &Shop<'_>) -> Result<String> {
    let deployment = shop.deployments().get("orders").await?;
    let containers = deployment.spec.and_then(|spec| spec.template.spec).map(|pod| pod.containers).unwrap_or_default();
    containers.first().and_then(|container| container.image.clone()).context("no image")
}

#[test]
fn edited_replicas_are_corrected_by_the_autoscaler_and_not_fought_over() {
    let _turn = together();
    play(|stage| async move {
        let shop = running(stage, "edited").await?;
        shop.stage.cluster.kubectl(&["scale", "deployment/orders", "--replicas=4", "-n", &shop.namespace])?;
        // The default scale-in window passes first.
        eventually_is(
            PATIENCE,
            "the HPA has brought them back to one",
            |replicas| *replicas == 1,
            || shop.replicas("orders"),
        )
        .await?;
        let deployment = shop.deployments().get("orders").await?;
        let managers = deployment.metadata.managed_fields.unwrap_or_default();
        let owns_replicas = |entry: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry| {
            serde_json::to_value(&entry.fields_v1).is_ok_and(|fields| fields.pointer("/f:spec/f:replicas").is_some())
        };
        let owners: Vec<_> =
            managers.iter().filter(|entry| owns_replicas(entry)).filter_map(|entry| entry.manager.clone()).collect();
        ensure!(!owners.contains(&"projectionist".to_owned()), "replicas belong to {owners:?}");
        Ok(())
    });
}

#[test]
fn a_number_of_workers_that_others_write_into_the_status_is_put_right_and_scales_nothing() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "word").await?;
        shop.events.append_events(10).await?;
        shop.commit("orders", 10).await?;
        shop.scaling_idle_workers("orders", &json!({}))?;
        let required =
            |projection: &Projection| projection.status.as_ref().and_then(|status| status.workers.as_ref()?.required);
        shop.projection_is("orders", "one worker is required", |projection| required(projection) == Some(1)).await?;
        shop.metric_is("projection_required_workers", "orders", |value| value == "1").await?;
        shop.replicas_stay(1).await?;
        // Each change of its scale would be a new generation.
        let generation = || async { Ok::<_, kube::Error>(shop.deployments().get("orders").await?.metadata.generation) };
        let before = generation().await?;
        for _ in 0..3 {
            let word = json!({"status": {"workers": {"required": 4}}});
            shop.projections().patch_status("orders", &PatchParams::default(), &Patch::Merge(&word)).await?;
            shop.projection_is("orders", "the status is put right", |projection| required(projection) == Some(1))
                .await?;
        }
        shop.metric_is("projection_required_workers", "orders", |value| value == "1").await?;
        shop.replicas_stay(1).await?;
        let after = generation().await?;
        ensure!(
            after == before,
            "the Deployment was scaled meanwhile: its generation went from {before:?} to {after:?}"
        );
        Ok(())
    });
}

#[test]
fn a_killed_worker_neither_loses_nor_repeats_an_event() {
    let _turn = together();
    play(|stage| async move {
        let shop = running(stage, "killed").await?;
        shop.events.append_events(2_000).await?;
        shop.workers_are("orders", "there are several workers", |ready| ready >= 3).await?;
        let handled: i64 = shop.reader().await?.query_one("select count(*) from orders.seen", &[]).await?.get(0);
        ensure!(handled < 2_000, "nothing was left to lose when the workers were killed");
        let pods: Api<Pod> = Api::namespaced(shop.client.clone(), &shop.namespace);
        let list = pods.list(&kube::api::ListParams::default()).await?;
        for pod in list.items.iter().take(2) {
            let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            pods.delete(pod.metadata.name.as_deref().unwrap_or_default(), &now).await?;
        }
        shop.read_model_is_whole("orders").await
    });
}

#[test]
fn a_deleted_secret_is_named_and_a_new_one_is_taken_up() {
    let _turn = together();
    play(|stage| async move {
        let shop = busy(stage, &stage.postgres, "secret").await?;
        let url = shop.server.url(&shop.database);
        shop.stage.cluster.kubectl(&["delete", "secret", "database", "-n", &shop.namespace])?;
        let message = shop.condition_is("orders", "SourceReachable", "False", "SecretNotFound").await?;
        ensure!(message.contains("database"), "{message}");
        shop.replicas_stay(4).await?;
        let literal = format!("--from-literal=url={url}");
        shop.stage.cluster.kubectl(&["create", "secret", "generic", "database", "-n", &shop.namespace, &literal])?;
        shop.condition_is("orders", "SourceReachable", "True", "").await?;
        shop.events.append_events(20).await?;
        shop.read_model_is_whole("orders").await
    });
}

#[test]
fn an_object_of_another_owner_with_the_same_name_is_not_taken_over() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "foreign").await?;
        shop.apply(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "orders", "namespace": shop.namespace},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"app": "theirs"}},
                "template": {"metadata": {"labels": {"app": "theirs"}}, "spec": {"containers": [{"name": "theirs", "image": "theirs:1"}]}},
            },
        }))?;
        let before = shop.deployments().get("orders").await?;
        shop.apply(&shop.projection("orders", &json!({})))?;
        let message = shop.condition_is("orders", "Ready", "False", "NotOwned").await?;
        ensure!(message.contains("Deployment") && message.contains("orders"), "{message}");
        let after = shop.deployments().get("orders").await?;
        ensure!(after.spec == before.spec && after.metadata.labels == before.metadata.labels, "it was changed");
        Ok(())
    });
}
