//! A Projection from `kubectl apply` to `kubectl delete`.

use anyhow::ensure;
use projectionist::api::Phase;
use serde_json::json;
use test_cluster::eventually;

use crate::shop::{Shop, idle_container, merge, phase};
use crate::stage::{PATIENCE, play, together};

#[test]
fn deleting_a_projection_removes_all_that_it_made_and_nothing_else() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "deletion").await?;
        shop.apply(&shop.projection("orders", &json!({})))?;
        shop.workers_are("orders", "the worker is ready", |ready| ready == 1).await?;
        let kinds = "deployment,hpa,pdb,configmap,replicaset,pod";
        ensure!(
            shop.made("deployment,hpa,pdb,configmap")?.len() == 4,
            "{:?}",
            shop.made("deployment,hpa,pdb,configmap")?
        );
        shop.delete("orders").await?;
        let gone = || async { Ok::<_, anyhow::Error>(shop.made(kinds)?.is_empty()) };
        eventually(PATIENCE, "nothing of it is left", gone).await?;
        let refused = || shop.refusal("projection_pending_events", "orders");
        let (code, message) = eventually(PATIENCE, "its metric is gone", refused).await?;
        ensure!(code == 404 && message.contains("orders"), "{code} {message}");
        ensure!(shop.stage.cluster.kubectl(&["get", "secret", "database", "-n", &shop.namespace]).is_ok());
        Ok(())
    });
}

#[test]
fn kubectl_shows_what_a_person_needs() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "columns").await?;
        shop.apply(&shop.projection("orders", &json!({})))?;
        shop.projection_is("orders", "it is live", |projection| phase(projection) == Some(Phase::Live)).await?;
        let table = shop.stage.cluster.kubectl(&["get", "prj", "-n", &shop.namespace])?;
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        ensure!(
            lines[0] == ["NAME", "PHASE", "PENDING", "STALENESS", "TARGET", "WORKERS", "BOUND-BY", "READY", "AGE"],
            "{table}"
        );
        ensure!(lines[1][..3] == ["orders", "Live", "0"] && lines[1][4] == "5s", "{table}");
        let explained = shop.stage.cluster.kubectl(&["explain", "projection.spec.lag.target"])?;
        ensure!(explained.contains("no event waits longer than this"), "{explained}");
        let silent = shop.stage.cluster.kubectl(&["explain", "projection", "--recursive"])?;
        ensure!(silent.contains("pendingPerWorker"), "{silent}");
        Ok(())
    });
}

#[test]
fn workers_meet_the_restricted_pod_security_level() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "restricted").await?;
        let label = "pod-security.kubernetes.io/enforce=restricted";
        shop.stage.cluster.kubectl(&["label", "namespace", &shop.namespace, label])?;
        shop.apply(&shop.projection("orders", &json!({})))?;
        shop.workers_are("orders", "the worker is admitted and ready", |ready| ready == 1).await?;
        // A template that says nothing of security gets the same.
        shop.commit("theirs", 0).await?;
        let mut container = idle_container();
        merge(&mut container, &json!({"securityContext": {"runAsUser": 20_000}}));
        let template = json!({"spec": {"projector": {"template": {"spec": {"containers": [container]}}}}});
        shop.apply(&shop.measured("theirs", &template))?;
        shop.workers_are("theirs", "the team's worker is admitted and ready", |ready| ready == 1).await?;
        let deployment = shop.deployments().get("theirs").await?;
        let pod = deployment.spec.and_then(|spec| spec.template.spec).unwrap_or_default();
        let names: Vec<String> =
            pod.containers[0].env.clone().unwrap_or_default().into_iter().map(|variable| variable.name).collect();
        for wanted in ["PROJECTION_NAME", "PROJECTION_NAMESPACE", "EVENT_SOURCE_URL", "READ_STORE_URL"] {
            ensure!(names.iter().any(|name| name == wanted), "{wanted} is missing in {names:?}");
        }
        Ok(())
    });
}
