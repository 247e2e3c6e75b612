//! `helm uninstall` leaves neither an APIService nor a worker behind, and takes no Projection away.

use anyhow::ensure;
use serde_json::json;
use test_cluster::eventually;

use crate::shop::Shop;
use crate::stage::{PATIENCE, SYSTEM, alone, play};

#[test]
fn uninstalling_leaves_no_api_service_and_no_worker_and_installing_again_goes_on() {
    let _turn = alone();
    play(|stage| async move {
        let shop = Shop::open(stage, "uninstall").await?;
        shop.apply(&shop.projection("orders", &json!({})))?;
        shop.events.append_events(50).await?;
        shop.read_model_is_whole("orders").await?;

        stage.cluster.helm(&["uninstall", "projectionist", "--namespace", SYSTEM, "--wait", "--timeout=180s"])?;
        let services = stage.cluster.kubectl(&["get", "apiservices", "-o", "name"])?;
        let ours = ["external.metrics.k8s.io", "custom.metrics.k8s.io"];
        ensure!(!ours.iter().any(|group| services.contains(group)), "{services}");
        let hooks = "validatingwebhookconfigurations,mutatingwebhookconfigurations";
        ensure!(!stage.cluster.kubectl(&["get", hooks, "-o", "name"])?.contains("projectionist"));
        let gone = || async { Ok::<_, anyhow::Error>(shop.made("deployment,hpa,pdb,configmap,pod")?.is_empty()) };
        eventually(PATIENCE, "no worker is left", gone).await?;
        let everywhere = "clusterroles,clusterrolebindings,roles,rolebindings,deployments,services,serviceaccounts,configmaps,leases,jobs,networkpolicies";
        let left = stage.cluster.kubectl(&[
            "get",
            everywhere,
            "-A",
            "-l",
            "app.kubernetes.io/instance=projectionist",
            "-o",
            "name",
        ])?;
        ensure!(left.trim().is_empty(), "left behind: {left}");
        ensure!(shop.projections().get("orders").await.is_ok(), "the Projection was deleted");

        stage.install()?;
        shop.events.append_events(50).await?;
        shop.read_model_is_whole("orders").await
    });
}
