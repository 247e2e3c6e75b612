//! An APIService that leads to another adapter: told wherever an administrator may look, and left alone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use test_cluster::{always_is, eventually, eventually_is};

use crate::own_autoscalers::{available, raw};
use crate::shop::Shop;
use crate::stage::{PATIENCE, SYSTEM, Stage, alone, play};

const API_SERVICE: &str = "v1beta1.external.metrics.k8s.io";

fn spec(stage: &Stage) -> Result<Value> {
    let text = stage.cluster.kubectl(&["get", "apiservice", API_SERVICE, "-o", "json"])?;
    let mut service: Value = serde_json::from_str(&text)?;
    Ok(service["spec"].take())
}

fn change(stage: &Stage, change: &Value) -> Result<String> {
    let patch = json!({ "spec": change }).to_string();
    stage.cluster.kubectl(&["patch", "apiservice", API_SERVICE, "--type=merge", "--patch", &patch])
}

/// The newest Event of this reason about the operator's Service.
fn event(stage: &Stage, reason: &str) -> Result<Option<Value>> {
    let selector = format!("involvedObject.kind=Service,involvedObject.name=projectionist,reason={reason}");
    let text = stage.cluster.kubectl(&["get", "events", "-n", SYSTEM, "--field-selector", &selector, "-o", "json"])?;
    let mut list: Value = serde_json::from_str(&text)?;
    Ok(list["items"].as_array_mut().and_then(Vec::pop))
}

#[test]
fn an_api_service_of_another_adapter_is_told_and_left_alone_until_it_comes_back() {
    let _turn = alone();
    play(|stage| async move {
        let shop = Shop::open(stage, "foreign").await?;
        shop.apply(&shop.projection("scaled", &json!({})))?;
        shop.apply(&shop.projection("by-hand", &json!({"spec": {"scaling": {"autoscaler": "None"}}})))?;
        for name in ["scaled", "by-hand"] {
            shop.condition_is(name, "Ready", "True", "AsExpected").await?;
        }

        // As many an adapter registers itself.
        change(
            stage,
            &json!({"service": {"name": "another-adapter", "namespace": "default"}, "caBundle": null, "insecureSkipTLSVerify": true}),
        )?;
        let theirs = spec(stage)?;
        let message = shop.condition_is("scaled", "Ready", "False", "MetricsNotServed").await?;
        for word in [API_SERVICE, "default/another-adapter", "externalMetrics.enabled=false"] {
            ensure!(message.contains(word), "{message}");
        }
        let told = || async { event(stage, "MetricsNotServed") };
        let told = eventually_is(PATIENCE, "an Event tells", Option::is_some, told).await?.context("no Event")?;
        ensure!(told["type"] == "Warning" && told["message"].to_string().contains("another-adapter"), "{told}");
        ensure!(shop.events_about("scaled")?.contains_key("MetricsNotServed"), "no Event about the Projection");
        // No replica writes there, and Projections that are not read there are unaffected.
        let as_they_left_it = |spec: &Value| *spec == theirs;
        let look = || async { spec(stage) };
        always_is(Duration::from_secs(10), "no replica overwrites it", as_they_left_it, look).await?;
        shop.condition_is("by-hand", "Ready", "True", "AsExpected").await?;

        // Also a replica that starts now says so in its log and overwrites nothing.
        stage.cluster.kubectl(&["rollout", "restart", "deployment/projectionist", "-n", SYSTEM])?;
        stage.cluster.kubectl(&["rollout", "status", "deployment/projectionist", "-n", SYSTEM, "--timeout=180s"])?;
        let log = || async {
            let log = stage.cluster.kubectl(&["logs", "deployment/projectionist", "-n", SYSTEM])?;
            Ok::<_, anyhow::Error>(if log.contains("default/another-adapter") { Ok(()) } else { Err(log) })
        };
        eventually(PATIENCE, "the log at the start tells", log).await?;
        ensure!(spec(stage)? == theirs, "a new replica overwrote the APIService: {}", spec(stage)?);
        shop.condition_is("scaled", "Ready", "False", "MetricsNotServed").await?;

        // What trusts anybody is mended together with the rest.
        change(stage, &json!({"service": {"name": "projectionist", "namespace": SYSTEM}}))?;
        let ours = |spec: &Value| spec["caBundle"].is_string() && spec["insecureSkipTLSVerify"] != true;
        eventually_is(PATIENCE, "it trusts our authority alone", ours, look).await?;
        shop.condition_is("scaled", "Ready", "True", "AsExpected").await?;
        let told = || async { event(stage, "MetricsServed") };
        eventually_is(PATIENCE, "an Event tells that it is over", Option::is_some, told).await?;
        stage.operator_is_whole(&shop.client).await
    });
}

#[test]
fn the_chart_leaves_a_group_alone_that_another_adapter_holds_and_takes_it_when_it_is_free() {
    let _turn = alone();
    play(|stage| async move {
        let names = || stage.cluster.kubectl(&["get", "apiservices", "-o", "name"]);
        stage.cluster.install_operator(&["--set=customMetrics.enabled=false"])?;
        ensure!(!names()?.contains("custom.metrics.k8s.io"), "{}", names()?);
        // Without a service it leads to the API server itself, and not here in any case.
        let foreign = json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": "v1beta1.custom.metrics.k8s.io"},
            "spec": {"group": "custom.metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100},
        });
        stage.cluster.apply(&foreign.to_string())?;
        let upgraded = stage.cluster.install_operator(&[]);
        let beside = names()?;
        let held = stage.cluster.kubectl(&["get", "apiservice", "v1beta1.custom.metrics.k8s.io", "-o", "json"])?;
        stage.cluster.kubectl(&["delete", "apiservice", "v1beta1.custom.metrics.k8s.io"])?;
        upgraded?;
        ensure!(!beside.contains("v1beta2.custom"), "one version was taken beside another adapter's: {beside}");
        let held: Value = serde_json::from_str(&held)?;
        ensure!(held["spec"]["service"].is_null() && held["spec"]["caBundle"].is_null(), "{held}");

        stage.cluster.install_operator(&[])?;
        available(stage)?;
        let client = stage.cluster.client().await?;
        stage.operator_is_whole(&client).await?;
        let answers = || async { Ok::<_, anyhow::Error>(raw(stage, "/apis/custom.metrics.k8s.io/v1beta2").is_ok()) };
        eventually_is(PATIENCE, "the group is served", |served| *served, answers).await?;
        // A second look keeps what is ours.
        stage.cluster.install_operator(&[])?;
        ensure!(names()?.contains("v1beta2.custom.metrics.k8s.io"), "{}", names()?);
        Ok(())
    });
}
