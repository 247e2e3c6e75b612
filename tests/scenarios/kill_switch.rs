//! Many Projections are suspended and resumed by one command, as a label or their read store selects them.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use kube::{ResourceExt as _, api::ListParams};
use serde_json::json;
use test_cluster::eventually;

use crate::shop::{Shop, idle_container};
use crate::stage::{PATIENCE, Stage, play, together};

const PROJECTIONS: usize = 20;

/// Waits until the Deployments of this group ask for no worker, or for one each.
async fn all_ask_for(shop: &Shop<'_>, group: &str, wanted: i32) -> Result<()> {
    let deployments = shop.deployments();
    let its = ListParams::default();
    let what = format!("every Deployment of {group} asks for {wanted}");
    let waited = eventually(PATIENCE, &what, || async {
        let all = deployments.list(&its).await?;
        let group = all.iter().filter(|one| one.name_any().starts_with(group));
        let asked: Vec<_> = group.map(|one| one.spec.as_ref().and_then(|spec| spec.replicas)).collect();
        let done = asked.iter().filter(|replicas| **replicas == Some(wanted)).count();
        let whole = !asked.is_empty() && done == asked.len() && asked.len() >= PROJECTIONS / 2;
        Ok::<_, kube::Error>(if whole { Ok(()) } else { Err(format!("{done} of {} do", asked.len())) })
    });
    waited.await.map_err(|error| shop.stage.cluster.explain(&error, &shop.namespace))
}

fn annotate(shop: &Shop<'_>, selected: &[&str], value: &str) -> Result<Instant> {
    let annotation = format!("projectionist.dev/suspend={value}");
    let mut command = vec!["annotate", "projections", "-n", &shop.namespace, "--overwrite"];
    command.extend_from_slice(selected);
    command.push(&annotation);
    shop.stage.cluster.kubectl(&command)?;
    Ok(Instant::now())
}

async fn switched_off(stage: &'static Stage) -> Result<()> {
    let shop = Shop::open(stage, "brake").await?;
    shop.commit("orders", 0).await?;
    shop.secret("other", &[("url", &shop.server.url(&shop.database))])?;
    // Pods that no node takes: what is looked at is what is asked for.
    let items: Vec<_> = (0..PROJECTIONS)
        .map(|number| {
            let (group, store) = if number % 2 == 0 { ("even", "database") } else { ("odd", "other") };
            let change = json!({
                "metadata": {"labels": {"team": group}},
                "spec": {
                    "readStore": {"postgres": {"connection": {"secretRef": {"name": store, "key": "url"}}}},
                    "checkpoint": {"readStore": {"name": "orders"}},
                    "scaling": {"maxWorkers": 3},
                    "projector": {"template": {"spec": {"nodeSelector": {"none": "none"}, "containers": [idle_container()]}}},
                },
            });
            shop.measured(&format!("{group}-{number}"), &change)
        })
        .collect();
    shop.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}))?;
    all_ask_for(&shop, "even", 1).await?;
    all_ask_for(&shop, "odd", 1).await?;

    let told = annotate(&shop, &["-l", "team in (even, odd)"], "true")?;
    all_ask_for(&shop, "even", 0).await?;
    all_ask_for(&shop, "odd", 0).await?;
    eprintln!(
        "{}: {PROJECTIONS} workloads ask for no worker {:?} after the command has ended",
        shop.namespace,
        told.elapsed()
    );
    let message = shop.condition_is("odd-1", "Ready", "True", "Suspended").await?;
    ensure!(message.contains("the annotation projectionist.dev/suspend"), "{message}");
    shop.metric_is("projection_pending_events", "odd-1", |value| value == "0").await?;

    annotate(&shop, &["--field-selector", "spec.readStore.postgres.connection.secretRef.name=other"], "false")?;
    all_ask_for(&shop, "odd", 1).await?;
    let still = shop.deployments().list(&ListParams::default()).await?;
    let even = still.iter().find(|one| one.name_any() == "even-0").and_then(|one| one.spec.as_ref()?.replicas);
    ensure!(even == Some(0), "of another read store: {even:?}");
    let table = stage.cluster.kubectl(&["get", "projections", "-n", &shop.namespace, "even-0"])?;
    ensure!(table.contains("Suspended"), "{table}");
    annotate(&shop, &["--all"], "maybe")?;
    let refused = shop.condition_is("even-0", "Ready", "False", "InvalidSpec").await?;
    ensure!(refused.contains("must be \"true\" or \"false\""), "{refused}");
    let kept = shop.deployments().get("even-0").await?.spec.context("no spec")?.replicas;
    ensure!(kept == Some(0), "no worker comes back because of a word that cannot be understood: {kept:?}");
    annotate(&shop, &["--all"], "false")?;
    all_ask_for(&shop, "even", 1).await
}

#[test]
fn one_command_suspends_all_projections_of_a_label_a_read_store_or_a_namespace() {
    let _turn = together();
    play(switched_off);
}
