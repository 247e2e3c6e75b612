//! HorizontalPodAutoscalers of a team's own read every form of metric that there is, and a person reads why one has none.

use anyhow::{Context, Result, ensure};
use projectionist::metrics::Metric;
use serde_json::{Value, json};
use test_cluster::eventually;

use crate::shop::{Shop, merge};
use crate::stage::{PATIENCE, Stage, play, together};

const SERVICES: [&str; 3] =
    ["v1beta1.external.metrics.k8s.io", "v1beta1.custom.metrics.k8s.io", "v1beta2.custom.metrics.k8s.io"];

pub(crate) fn available(stage: &Stage) -> Result<()> {
    for service in SERVICES {
        let name = format!("apiservice/{service}");
        stage.cluster.kubectl(&["wait", "--for=condition=Available", "--timeout=60s", &name])?;
    }
    Ok(())
}

pub(crate) fn raw(stage: &Stage, path: &str) -> Result<Value> {
    Ok(serde_json::from_str(&stage.cluster.kubectl(&["get", "--raw", path])?)?)
}

/// The Projection `orders`, which the operator does not scale, with so many events pending.
async fn pending<'a>(stage: &'a Stage, name: &str, events: i64, change: &Value) -> Result<Shop<'a>> {
    available(stage)?;
    let shop = Shop::open(stage, name).await?;
    shop.events.append_events(20).await?;
    shop.commit("orders", 20 - events).await?;
    shop.apply(&shop.measured("orders", change))?;
    shop.metric_is("projection_pending_events", "orders", |value| value == events.to_string()).await?;
    Ok(shop)
}

/// A Deployment of the team's, and its own autoscaler for it.
pub(crate) fn team_workload(shop: &Shop<'_>, name: &str, most: u32, metric: &Value) -> Result<()> {
    shop.idle_workload("Deployment", name)?;
    shop.apply(&json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "namespace": shop.namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 1,
            "maxReplicas": most,
            "metrics": [metric],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    }))?;
    Ok(())
}

fn external(target: &Value) -> Value {
    let selector = json!({"matchExpressions": [{"key": "projection", "operator": "In", "values": ["orders"]}]});
    let metric = json!({"name": "projection_pending_events", "selector": selector});
    json!({"type": "External", "external": {"metric": metric, "target": target}})
}

fn object(metric: &str, target: &Value) -> Value {
    let described = json!({"apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "name": "orders"});
    json!({"type": "Object", "object": {"describedObject": described, "metric": {"name": metric}, "target": target}})
}

fn value(quantity: &str) -> Value {
    json!({"type": "Value", "value": quantity})
}

fn average(quantity: &str) -> Value {
    json!({"type": "AverageValue", "averageValue": quantity})
}

#[test]
fn autoscalers_of_a_teams_own_scale_on_each_kind_of_target_of_both_groups() {
    let _turn = together();
    play(|stage| async move {
        let team = json!({"spec": {
            "scaling": {"autoscaler": "None"},
            "projector": {"existing": {"kind": "Deployment", "name": "object-average"}},
        }});
        let shop = pending(stage, "targets", 10, &team).await?;
        // A Value is held against the whole metric, whatever the replicas: twice the target doubles them until there is no more.
        // An AverageValue is for each replica: 10 events, 4 for each, are 3 replicas.
        let mut by_label = object("pending_events", &value("5"));
        merge(&mut by_label, &json!({"object": {"metric": {"selector": {"matchLabels": {"projection": "orders"}}}}}));
        let all = [
            ("external-value", 2, external(&value("5")), 2),
            ("external-average", 5, external(&average("4")), 3),
            ("object-value", 2, by_label, 2),
            ("object-average", 5, object("pending_events", &average("4")), 3),
        ];
        for (name, most, metric, _) in &all {
            team_workload(&shop, name, *most, metric)?;
        }
        for (name, _, _, replicas) in &all {
            shop.workers_are(name, &format!("{name} has scaled out to {replicas}"), |ready| ready == *replicas).await?;
            shows(&shop, name, "10").await?;
        }
        shop.commit("orders", 18).await?;
        for (name, ..) in &all {
            shop.workers_are(name, &format!("{name} has scaled in to 1"), |ready| ready == 1).await?;
            shows(&shop, name, "2").await?;
        }
        ensure!(shop.made("hpa")?.is_empty(), "there is an autoscaler of ours beside the team's");
        Ok(())
    });
}

/// What the autoscaler read in the end: the value itself, or its share for each replica, of which there are so many.
async fn shows(shop: &Shop<'_>, name: &str, pending: &str) -> Result<()> {
    let autoscalers = shop.autoscalers();
    let expected: f64 = pending.parse()?;
    eventually(PATIENCE, &format!("the autoscaler {name} shows the metric that it read"), || async {
        let status = serde_json::to_value(autoscalers.get(name).await?.status)?;
        let current = &status["currentMetrics"][0];
        let of_it = current.get("external").or(current.get("object")).map(|metric| metric["current"].clone());
        let of_it = of_it.unwrap_or_default();
        let replicas = status["currentReplicas"].as_f64().unwrap_or_default();
        let number = |quantity: &Value| {
            let text = quantity.as_str()?;
            let milli = text.strip_suffix('m').and_then(|milli| milli.parse::<f64>().ok()).map(|milli| milli / 1000.0);
            milli.or_else(|| text.parse().ok())
        };
        let whole = number(&of_it["value"]).filter(|value| *value > 0.0);
        let read = whole.or_else(|| number(&of_it["averageValue"]).map(|average| average * replicas));
        // A share is rounded up to the milli.
        let as_wanted = read.is_some_and(|read| (read - expected).abs() < 0.01);
        Ok::<_, anyhow::Error>(if as_wanted { Ok(()) } else { Err(status.to_string()) })
    })
    .await
}

#[test]
fn a_metric_without_a_value_tells_a_person_why_and_the_workload_is_held() {
    let _turn = together();
    play(|stage| async move {
        let shop = pending(stage, "reasons", 10, &json!({})).await?;
        team_workload(&shop, "team", 5, &object("drain_seconds", &average("4")))?;
        let describe = || async {
            let text = stage.cluster.kubectl(&["describe", "hpa", "team", "-n", &shop.namespace])?;
            let reason =
                format!("drain_seconds of the Projection {}/orders is unknown: the backlog does not", shop.namespace);
            let told = text.contains("FailedGetObjectMetric") && text.contains(&reason);
            Ok::<_, anyhow::Error>(if told { Ok(()) } else { Err(text) })
        };
        eventually(PATIENCE, "kubectl describe hpa says why there is no value", describe).await?;
        ensure!(shop.replicas("team").await? == 1);
        let missing = raw(stage, &objects(&shop, "v1beta2", "missing/pending_events"))
            .err()
            .context("a missing Projection has a value")?;
        ensure!(format!("{missing:#}").contains("there is no Projection"), "{missing:#}");
        Ok(())
    });
}

fn objects(shop: &Shop<'_>, version: &str, rest: &str) -> String {
    let namespace = &shop.namespace;
    format!("/apis/custom.metrics.k8s.io/{version}/namespaces/{namespace}/projections.projectionist.dev/{rest}")
}

#[test]
fn metrics_of_projections_are_read_by_name_by_label_and_all_at_once() {
    let _turn = together();
    play(|stage| async move {
        let shop = pending(stage, "objects", 10, &json!({"metadata": {"labels": {"tier": "gold"}}})).await?;
        shop.commit("returns", 15).await?;
        shop.apply(&shop.measured("returns", &json!({"metadata": {"labels": {"tier": "tin"}}})))?;
        shop.metric_is("projection_pending_events", "returns", |value| value == "5").await?;
        for (path, expected) in [
            ("orders/pending_events", vec![("orders", "10")]),
            ("*/queue_length", vec![("orders", "10"), ("returns", "5")]),
            ("*/pending_events?labelSelector=tier%3Dtin", vec![("returns", "5")]),
            ("*/pending_events?metricLabelSelector=projection%3Dorders", vec![("orders", "10")]),
        ] {
            for version in ["v1beta1", "v1beta2"] {
                let list = raw(stage, &objects(&shop, version, path))?;
                let items = list["items"].as_array().cloned().unwrap_or_default();
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let found: Vec<(String, String)> =
                    items.iter().map(|item| (text(&item["describedObject"]["name"]), text(&item["value"]))).collect();
                let found: Vec<(&str, &str)> =
                    found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                ensure!(found == expected, "{version} {path}: {list}");
                let named = if version == "v1beta1" { &items[0]["metricName"] } else { &items[0]["metric"]["name"] };
                ensure!(items[0]["describedObject"]["kind"] == "Projection" && named.is_string(), "{list}");
            }
        }
        // One without a value makes the whole list an error.
        shop.apply(&shop.measured("never-committed", &json!({})))?;
        let refused = || async {
            let answer = raw(stage, &objects(&shop, "v1beta2", "*/pending_events"));
            Ok::<_, anyhow::Error>(match answer {
                Err(error) if format!("{error:#}").contains("never-committed is unknown") => Ok(()),
                other => Err(format!("{other:?}")),
            })
        };
        eventually(PATIENCE, "the list is an error that names the Projection", refused).await?;

        let stranger = format!("system:serviceaccount:{}:default", shop.namespace);
        let path = objects(&shop, "v1beta2", "orders/pending_events");
        let error = stage.cluster.kubectl(&["get", "--raw", &path, "--as", &stranger]).err();
        let error = format!("{:#}", error.context("a stranger was answered")?);
        ensure!(error.contains("orbidden"), "{error}");
        Ok(())
    });
}

#[test]
fn discovery_and_explain_know_both_groups_as_they_know_built_in_ones() {
    let _turn = together();
    play(|stage| async move {
        available(stage)?;
        let group = raw(stage, "/apis/custom.metrics.k8s.io")?;
        ensure!(group["preferredVersion"]["version"] == "v1beta2", "{group}");
        for version in ["v1beta1", "v1beta2"] {
            let list = raw(stage, &format!("/apis/custom.metrics.k8s.io/{version}"))?;
            let names: Vec<&str> =
                list["resources"].as_array().into_iter().flatten().filter_map(|it| it["name"].as_str()).collect();
            ensure!(
                names.len() == Metric::ALL.len() && names.contains(&"projections.projectionist.dev/pending_events"),
                "{list}"
            );
        }
        for service in SERVICES {
            let service = stage.cluster.kubectl(&["get", "apiservice", service, "-o", "json"])?;
            let service: Value = serde_json::from_str(&service)?;
            ensure!(
                service["spec"]["caBundle"].is_string() && service["spec"]["insecureSkipTLSVerify"] != true,
                "{service}"
            );
        }
        let explain = || async {
            let text = stage.cluster.kubectl(&["explain", "externalmetrics.items.metricLabels"])?;
            Ok::<_, anyhow::Error>(text.contains("Labels that tell this value from the others"))
        };
        eventually(PATIENCE, "kubectl explain knows the external metrics", explain).await?;
        for path in ["/openapi/v2", "/openapi/v3"] {
            let has = || async {
                let document = raw(stage, path)?.to_string();
                let (external, custom) = ("external.metrics.k8s.io/v1beta1", "custom.metrics.k8s.io/v1beta2");
                Ok::<_, anyhow::Error>(document.contains(external) && document.contains(custom))
            };
            eventually(PATIENCE, &format!("{path} of the cluster holds both groups"), has).await?;
        }
        Ok(())
    });
}
