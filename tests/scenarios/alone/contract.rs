//! What the API server and its aggregator make of us over time: authorities that are rotated, discovery that changes, a node that is
//! drained, and a log in which nothing is said of us.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use test_cluster::{eventually, eventually_is};

use super::operator_faults::without_a_failed_read;
use crate::shop::Shop;
use crate::stage::{PATIENCE, SYSTEM, Stage, alone, play};

const METRICS: usize = projectionist::metrics::Metric::ALL.len();
/// Where the cluster says whom extension API servers are to believe.
const AUTHENTICATION: &str = "extension-apiserver-authentication";
const AUTHORITY: &str = "requestheader-client-ca-file";

/// A front proxy of an authority that is not known yet: the authority in PEM; certificate and key are written to files.
fn front_proxy(directory: &Path) -> Result<String> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "another-front-proxy-ca");
    let key = KeyPair::generate()?;
    let pem = authority.self_signed(&key)?.pem();
    let issuer = Issuer::new(authority, key);
    let mut proxy = CertificateParams::new(Vec::new())?;
    proxy.distinguished_name.push(DnType::CommonName, "front-proxy-client");
    proxy.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    std::fs::write(directory.join("proxy.crt"), proxy.signed_by(&key, &issuer)?.pem())?;
    std::fs::write(directory.join("proxy.key"), key.serialize_pem())?;
    Ok(pem)
}

/// Those that are not on their way out.
fn staying(pods: Vec<Pod>) -> Vec<Pod> {
    pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
}

/// What each replica answers to that front proxy, past the aggregator.
fn asked_directly(stage: &Stage, pods: &[Pod], directory: &Path, path: &str) -> Result<Vec<String>> {
    let address = |pod: &Pod| pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("no address");
    let ask = |pod: &Pod| {
        let file = |name: &str| directory.join(name).display().to_string();
        let output = stage
            .cluster
            .command("curl")
            .args([
                "--silent",
                "--insecure",
                "--max-time",
                "20",
                "--output",
                "/dev/null",
                "--write-out",
                "%{http_code}",
            ])
            .args(["--cert", &file("proxy.crt"), "--key", &file("proxy.key")])
            .args(["--header", "X-Remote-User: system:serviceaccount:kube-system:horizontal-pod-autoscaler"])
            .arg(format!("https://{}:6443{path}", address(pod)?))
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    pods.iter().map(ask).collect()
}

#[test]
fn a_rotated_authority_of_the_front_proxy_counts_in_every_replica_without_a_restart() {
    let _turn = alone();
    play(|stage| async move {
        let shop = Shop::open(stage, "authorities").await?;
        shop.commit("orders", 0).await?;
        shop.apply(&shop.measured("orders", &json!({})))?;
        shop.metric_is("projection_pending_events", "orders", |_| true).await?;
        stage.operator_is_whole(&shop.client).await?;
        let pods = staying(stage.operator_pods(&shop.client).await?);
        let scratch = tempfile::tempdir()?;
        let new = front_proxy(scratch.path())?;
        let path =
            format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/projection_pending_events", shop.namespace);
        let answers = || async { asked_directly(stage, &pods, scratch.path(), &path) };
        ensure!(answers().await? == ["401", "401"], "{:?}", answers().await?);

        let config_maps: Api<ConfigMap> = Api::namespaced(shop.client.clone(), "kube-system");
        let old = config_maps.get(AUTHENTICATION).await?.data.and_then(|mut data| data.remove(AUTHORITY));
        let old = old.context("the cluster names no authority")?;
        let name = async |authorities: String| {
            let patch = Patch::Merge(json!({"data": {AUTHORITY: authorities}}));
            config_maps.patch(AUTHENTICATION, &PatchParams::default(), &patch).await
        };
        name(format!("{old}{new}")).await?;
        let all = |code: &'static str| move |answers: &Vec<String>| *answers == [code, code];
        eventually_is(PATIENCE, "every replica believes the new authority", all("200"), answers).await?;
        shop.metric_is("projection_pending_events", "orders", |_| true).await?;
        name(old).await?;
        eventually_is(PATIENCE, "no replica believes it any more", all("401"), answers).await?;
        shop.metric_is("projection_pending_events", "orders", |_| true).await?;

        let now = staying(stage.operator_pods(&shop.client).await?);
        let lives = |pods: &[Pod]| {
            let restarts = |pod: &Pod| {
                let containers = pod.status.as_ref().and_then(|status| status.container_statuses.clone());
                containers.unwrap_or_default().iter().map(|container| container.restart_count).sum::<i32>()
            };
            let mut lives: Vec<_> = pods.iter().map(|pod| (pod.metadata.uid.clone(), restarts(pod))).collect();
            lives.sort();
            lives
        };
        ensure!(lives(&now) == lives(&pods), "a replica was restarted");
        Ok(())
    });
}

/// The API server's own discovery, which its aggregator puts together.
async fn discovered(shop: &Shop<'_>) -> Result<Value> {
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    Ok(shop.client.request(http::Request::get("/apis").header("accept", accept).body(Vec::new())?).await?)
}

/// Of a group: its versions in their order, each with what it says of its freshness and how many metrics it has.
fn versions(discovered: &Value, group: &str) -> Vec<(String, String, usize)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let groups = discovered["items"].as_array().into_iter().flatten();
    let of_it = groups.filter(|item| item["metadata"]["name"] == group);
    let versions = of_it.flat_map(|item| item["versions"].as_array().cloned().unwrap_or_default());
    let metrics = |version: &Value| {
        let resources = version["resources"].as_array().into_iter().flatten();
        resources.map(|resource| resource["subresources"].as_array().map_or(1, Vec::len)).sum()
    };
    versions.map(|version| (text(&version["version"]), text(&version["freshness"]), metrics(&version))).collect()
}

#[test]
fn what_changes_in_discovery_reaches_the_aggregator() {
    let _turn = alone();
    play(|stage| async move {
        let shop = Shop::open(stage, "discovery").await?;
        let custom = || async { Ok::<_, anyhow::Error>(versions(&discovered(&shop).await?, "custom.metrics.k8s.io")) };
        let current = |version: &str, metrics| (version.to_owned(), "Current".to_owned(), metrics);
        let both = |found: &Vec<_>| *found == [current("v1beta2", METRICS), current("v1beta1", METRICS)];
        eventually_is(PATIENCE, "the aggregator lists both versions and every metric", both, custom).await?;
        let external = versions(&discovered(&shop).await?, "external.metrics.k8s.io");
        ensure!(external == [current("v1beta1", 1)], "{external:?}");
        stage.cluster.install_operator(&["--set=customMetrics.enabled=false"])?;
        let gone = eventually_is(PATIENCE, "the aggregator has forgotten the group", Vec::is_empty, custom).await;
        stage.cluster.install_operator(&[])?;
        gone?;
        eventually_is(PATIENCE, "the aggregator lists the group again", both, custom).await?;
        stage.operator_is_whole(&shop.client).await
    });
}

#[test]
fn a_drained_node_fails_no_metric_read() {
    let _turn = alone();
    play(|stage| async move {
        without_a_failed_read(stage, "drain", async |shop: &Shop<'_>| {
            let pods: Api<Pod> = Api::namespaced(shop.client.clone(), SYSTEM);
            let before = staying(stage.operator_pods(&shop.client).await?);
            let node = before.iter().find_map(|pod| pod.spec.as_ref()?.node_name.clone()).context("no node")?;
            // One replica goes; the budget for disruptions keeps the other until the first is back, for which the node is opened again.
            let mut drain = stage.cluster.command("kubectl");
            drain.args(["drain", &node, "--pod-selector=app.kubernetes.io/component=operator", "--timeout=180s"]);
            let drained = tokio::task::spawn_blocking(move || drain.output());
            let waits = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Pending");
            let one_waits = eventually(PATIENCE, "a replica waits for a node", || async {
                Ok::<_, kube::Error>(pods.list(&kube::api::ListParams::default()).await?.items.iter().any(waits))
            })
            .await;
            stage.cluster.kubectl(&["uncordon", &node])?;
            let drained = drained.await??;
            one_waits?;
            ensure!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
            stage.operator_is_whole(&shop.client).await?;
            let now = staying(stage.operator_pods(&shop.client).await?);
            let stayed = now.iter().any(|pod| before.iter().any(|old| old.metadata.uid == pod.metadata.uid));
            ensure!(!stayed, "not every replica was evicted");
            Ok(())
        })
        .await
    });
}
