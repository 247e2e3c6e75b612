//! A second adapter really runs in the cluster and holds both groups first: it is taken over, asked for what is its own, and never in the way.
//!
//! It is made of the library that KEDA and prometheus-adapter are made of, with the values of that library's sample: `my-external-metric` is
//! 42 for `foo=bar` and 43 for `foo=baz`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use projectionist::metrics_api::certificate::issue;
use serde_json::{Value, json};
use test_cluster::{eventually, eventually_is, images};

use super::operator_faults::without_a_failed_read;
use crate::own_autoscalers::{raw, team_workload};
use crate::shop::Shop;
use crate::stage::{PATIENCE, SYSTEM, Stage, alone, play};

const API_SERVICES: [&str; 3] =
    ["v1beta1.external.metrics.k8s.io", "v1beta1.custom.metrics.k8s.io", "v1beta2.custom.metrics.k8s.io"];
const NAME: &str = "test-adapter";
/// The ServiceAccount under which it is asked.
const ASKING: &str = "projectionist-delegate";
const AUTOSCALER: &str = "horizontal-pod-autoscaler";

/// The second adapter, in a namespace of its own.
struct Adapter<'a> {
    stage: &'a Stage,
    namespace: String,
    ca: String,
}

impl<'a> Adapter<'a> {
    /// Installs it as its own chart would, APIServices included.
    fn install(stage: &'a Stage) -> Result<Self> {
        stage.cluster.import_image(&images::adapter()?)?;
        let namespace = stage.cluster.namespace("adapter")?;
        let bundle = issue(NAME, &namespace, Timestamp::now())?;
        let adapter = Self { stage, namespace, ca: bundle.ca_pem.clone() };
        let namespace = &adapter.namespace;
        let metadata = json!({"name": NAME, "namespace": namespace});
        let account = json!([{"kind": "ServiceAccount", "name": NAME, "namespace": namespace}]);
        let labels = json!({"app": NAME});
        let binding = |kind: &str, name: &str, in_: Option<&str>, role_kind: &str, role: &str, subjects: &Value| {
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
                "metadata": {"name": format!("{namespace}-{name}"), "namespace": in_},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role},
                "subjects": subjects,
            })
        };
        let reader = format!("{namespace}-reader");
        let autoscaler = json!([{"kind": "ServiceAccount", "name": AUTOSCALER, "namespace": "kube-system"}]);
        let mut objects = vec![
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "kubernetes.io/tls",
                   "stringData": {"tls.crt": bundle.cert_pem, "tls.key": bundle.key_pem}}),
            binding("ClusterRoleBinding", "reviews", None, "ClusterRole", "system:auth-delegator", &account),
            binding("ClusterRoleBinding", "objects", None, "ClusterRole", "view", &account),
            binding(
                "RoleBinding",
                "callers",
                Some("kube-system"),
                "Role",
                "extension-apiserver-authentication-reader",
                &account,
            ),
            // What its chart ships for clients that read its metrics, and the autoscaler's share in it.
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": reader}, "rules": [
                {"apiGroups": ["external.metrics.k8s.io"], "resources": ["my-external-metric"], "verbs": ["list"]},
                {"apiGroups": ["custom.metrics.k8s.io"], "resources": ["services/load"], "verbs": ["get"]},
            ]}),
            binding("ClusterRoleBinding", "autoscaler", None, "ClusterRole", &reader, &autoscaler),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {
                "selector": labels, "ports": [{"name": "https", "port": 443, "targetPort": 6443}]}}),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {
                    "serviceAccountName": NAME,
                    "terminationGracePeriodSeconds": 0,
                    "volumes": [{"name": "tls", "secret": {"secretName": NAME}}],
                    "containers": [{
                        "name": "adapter", "image": images::ADAPTER_IMAGE, "imagePullPolicy": "Never",
                        "args": ["--secure-port=6443", "--tls-cert-file=/tls/tls.crt", "--tls-private-key-file=/tls/tls.key"],
                        "volumeMounts": [{"name": "tls", "mountPath": "/tls"}],
                        // By the kernel's word alone: one that hangs stays where it is asked.
                        "readinessProbe": {"tcpSocket": {"port": 6443}, "periodSeconds": 1},
                    }],
                }},
            }}),
        ];
        for name in API_SERVICES {
            let (version, group) = name.split_once('.').context("no group")?;
            objects.push(json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": name}, "spec": {
                "group": group, "version": version, "groupPriorityMinimum": 100, "versionPriority": 100,
                "service": {"name": NAME, "namespace": namespace, "port": 443},
                "insecureSkipTLSVerify": true,
            }}));
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        stage.cluster.apply(&list.to_string())?;
        adapter.is_there()?;
        for name in API_SERVICES {
            stage.cluster.kubectl(&[
                "wait",
                "--for=condition=Available",
                "--timeout=120s",
                &format!("apiservice/{name}"),
            ])?;
        }
        Ok(adapter)
    }

    fn is_there(&self) -> Result<()> {
        let deployment = format!("deployment/{NAME}");
        let rollout = ["rollout", "status", &deployment, "-n", &self.namespace, "--timeout=120s"];
        self.stage.cluster.kubectl(&rollout).map(drop)
    }

    fn scale(&self, replicas: u32) -> Result<()> {
        let deployment = format!("deployment/{NAME}");
        self.stage.cluster.kubectl(&[
            "scale",
            &deployment,
            "-n",
            &self.namespace,
            &format!("--replicas={replicas}"),
        ])?;
        self.is_there()
    }

    /// The address of its pod, and the number of its process on this machine.
    fn pod(&self) -> Result<(String, String)> {
        let fields = "jsonpath={.items[0].status.podIP} {.items[0].status.containerStatuses[0].containerID}";
        let selector = format!("app={NAME}");
        let pod = self.stage.cluster.kubectl(&["get", "pods", "-n", &self.namespace, "-l", &selector, "-o", fields])?;
        let (address, container) = pod.split_once(' ').context("no pod")?;
        let container = container.trim().trim_start_matches("containerd://");
        let output = self.stage.cluster.command("ctr").args(["tasks", "list"]).output()?;
        let tasks = String::from_utf8_lossy(&output.stdout).into_owned();
        let task = tasks.lines().find(|line| line.starts_with(container)).context("no task of the adapter's")?;
        let process = task.split_whitespace().nth(1).context("a task without a process")?;
        Ok((address.to_owned(), process.to_owned()))
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let (_, process) = self.pod()?;
        let status = std::process::Command::new("sh").args(["-c", &format!("kill -{signal} {process}")]).status()?;
        ensure!(status.success(), "no {signal} to the process {process}");
        Ok(())
    }

    /// Gives a Service of a namespace the metric `load`.
    fn has_load(&self, namespace: &str, service: &str, value: &str) -> Result<()> {
        let (address, _) = self.pod()?;
        let url = format!("http://{address}:8080/write-metrics/namespaces/{namespace}/services/{service}/load");
        let mut curl = self.stage.cluster.command("curl");
        curl.args(["--silent", "--fail", "--max-time", "20", "-HContent-Type: application/json", "--data"]);
        let output = curl.arg(format!("{value:?}")).arg(url).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        let name = |name: &str| format!("{}-{name}", self.namespace);
        for what in ["reviews", "objects", "autoscaler"] {
            self.stage.cluster.kubectl(&["delete", "clusterrolebinding", &name(what)])?;
        }
        self.stage.cluster.kubectl(&["delete", "clusterrole", &name("reader")])?;
        self.stage.cluster.kubectl(&["delete", "rolebinding", "-n", "kube-system", &name("callers")])?;
        self.stage.cluster.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]).map(drop)
    }

    /// What a user sets to have it taken over and asked.
    fn values(&self) -> Result<String> {
        let asked = json!({"service": NAME, "namespace": self.namespace, "caBundle": self.ca, "readerClusterRole": format!("{}-reader", self.namespace)});
        let values = json!({
            "apiServices": {"takeOver": true},
            "metricsApi": {"delegate": {"external": asked, "custom": asked}},
        });
        let file = self.stage.cluster.instance().dir().join("delegate-values.json");
        std::fs::write(&file, values.to_string())?;
        Ok(format!("--values={}", file.display()))
    }
}

fn leads_to(stage: &Stage, api_service: &str) -> Result<String> {
    let fields = "jsonpath={.spec.service.namespace}/{.spec.service.name} {.spec.insecureSkipTLSVerify}";
    stage.cluster.kubectl(&["get", "apiservice", api_service, "-o", fields])
}

async fn all_lead_here(stage: &Stage) -> Result<()> {
    for name in API_SERVICES {
        let here = |led_to: &String| led_to.trim_end_matches(" false").trim() == format!("{SYSTEM}/projectionist");
        eventually_is(PATIENCE, &format!("{name} leads here"), here, || async { leads_to(stage, name) }).await?;
        stage.cluster.kubectl(&[
            "wait",
            "--for=condition=Available",
            "--timeout=120s",
            &format!("apiservice/{name}"),
        ])?;
    }
    Ok(())
}

fn external(shop: &Shop<'_>, rest: &str) -> String {
    format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/{rest}", shop.namespace)
}

fn load(shop: &Shop<'_>) -> String {
    format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/{}/services/web/load", shop.namespace)
}

/// Waits until reading a metric of the adapter's fails with these words.
async fn refused(stage: &Stage, path: &str, words: &[&str]) -> Result<()> {
    let refused = || async {
        let said = raw(stage, path).map_or_else(|error| format!("{error:#}"), |value| value.to_string());
        Ok::<_, anyhow::Error>(if words.iter().all(|word| said.contains(word)) { Ok(()) } else { Err(said) })
    };
    eventually(PATIENCE, &format!("{path} is refused with {words:?}"), refused).await
}

async fn answered(stage: &Stage, path: &str, value: &str) -> Result<Value> {
    let has = |list: &Value| list["items"][0]["value"] == value;
    eventually_is(PATIENCE, &format!("{path} is {value}"), has, || async { raw(stage, path) }).await
}

#[test]
fn another_adapter_is_taken_over_and_asked_and_its_silence_fails_no_read_of_ours() {
    let _turn = alone();
    play(|stage| async move {
        stage.cluster.helm(&["uninstall", "projectionist", "--namespace", SYSTEM, "--wait", "--timeout=180s"])?;
        let adapter = Adapter::install(stage)?;
        stage.cluster.install_operator(&[&adapter.values()?])?;
        all_lead_here(stage).await?;
        let events = || async {
            let selector = "involvedObject.kind=Service,reason=ApiServiceTakenOver";
            let args = ["get", "events", "-n", SYSTEM, "--field-selector", selector, "-o", "jsonpath={..message}"];
            stage.cluster.kubectl(&args)
        };
        let told = |text: &String| {
            let led_to = format!("it led to the service {}/{NAME}:443", adapter.namespace);
            text.matches(&led_to).count() >= 3
        };
        eventually_is(PATIENCE, "Events tell what each APIService led to", told, events).await?;

        without_a_failed_read(stage, "delegate", async |shop: &Shop<'_>| {
            both_are_read(stage, &adapter, shop).await?;
            who_may_not_is_refused_by_us(stage, shop)?;
            an_autoscaler_scales_on_it(shop).await?;

            adapter.signal("STOP")?;
            let name = format!("the service {}/{NAME}", adapter.namespace);
            refused(stage, &external(shop, "my-external-metric"), &[&name, "did not answer within 5 s"]).await?;
            refused(stage, &external(shop, "my-external-metric"), &[&name, "left alone"]).await?;
            refused(stage, &load(shop), &[&name]).await?;
            // An autoscaler's owner reads it, too, and the workload is held.
            let describe = || async { stage.cluster.kubectl(&["describe", "hpa", "team", "-n", &shop.namespace]) };
            let says = |text: &String| text.contains("FailedGetExternalMetric") && text.contains(&name);
            eventually_is(PATIENCE, "kubectl describe hpa names the adapter", says, describe).await?;
            ensure!(shop.replicas("team").await? == 3);
            listed(stage).await?;
            adapter.signal("CONT")?;
            answered(stage, &external(shop, "my-external-metric"), "42").await?;

            adapter.scale(0)?;
            refused(stage, &external(shop, "my-external-metric"), &[&name]).await?;
            listed(stage).await?;
            adapter.scale(1)?;
            answered(stage, &external(shop, "my-external-metric"), "42").await?;

            // Made again, it has none of the tokens that were issued before.
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ASKING, "namespace": SYSTEM}});
            stage.cluster.kubectl(&["delete", "serviceaccount", ASKING, "-n", SYSTEM])?;
            stage.cluster.apply(&account.to_string())?;
            // The adapter may remember for ten seconds whom an old one named.
            tokio::time::sleep(Duration::from_secs(12)).await;
            answered(stage, &external(shop, "my-external-metric"), "42").await.map(drop)
        })
        .await?;

        // With the other adapter, its APIService may go: ours is made again.
        stage.cluster.kubectl(&["delete", "apiservice", API_SERVICES[0]])?;
        let again = || async { Ok::<_, anyhow::Error>(leads_to(stage, API_SERVICES[0]).unwrap_or_default()) };
        eventually_is(PATIENCE, "it is made again", |led_to: &String| led_to.contains("projectionist"), again).await?;
        all_lead_here(stage).await?;

        stage.cluster.helm(&["uninstall", "projectionist", "--namespace", SYSTEM, "--wait", "--timeout=180s"])?;
        let left = stage.cluster.kubectl(&["get", "apiservices", "-o", "name"])?;
        ensure!(!API_SERVICES.iter().any(|name| left.contains(name)), "left behind: {left}");
        adapter.remove()?;
        stage.cluster.install_operator(&[])
    });
}

/// Values and discovery of both.
async fn both_are_read(stage: &Stage, adapter: &Adapter<'_>, shop: &Shop<'_>) -> Result<()> {
    let all = answered(stage, &external(shop, "my-external-metric"), "42").await?;
    ensure!(all["items"].as_array().is_some_and(|items| items.len() == 2), "{all}");
    let one = raw(stage, &external(shop, "my-external-metric?labelSelector=foo%3Dbaz"))?;
    ensure!(one["items"][0]["value"] == "43" && one["items"].as_array().is_some_and(|items| items.len() == 1), "{one}");
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": shop.namespace},
                         "spec": {"ports": [{"port": 80}]}});
    shop.apply(&service)?;
    adapter.has_load(&shop.namespace, "web", "300m")?;
    let load = answered(stage, &load(shop), "300m").await?;
    ensure!(load["items"][0]["describedObject"]["name"] == "web", "{load}");
    // Not granted to the ServiceAccount under which it is asked, so not even an administrator reads it.
    refused(stage, &external(shop, "other-external-metric"), &["ServiceAccount", NAME]).await?;
    shop.metric_is("projection_pending_events", "orders", |value| value == "0").await?;
    listed(stage).await
}

/// `kubectl api-resources` lists ours and theirs.
async fn listed(stage: &Stage) -> Result<()> {
    let resources = || async { stage.cluster.kubectl(&["api-resources", "--api-group=external.metrics.k8s.io"]) };
    let both = |text: &String| ["externalmetrics ", "my-external-metric "].iter().all(|name| text.contains(name));
    eventually_is(PATIENCE, "kubectl api-resources lists both", both, resources).await?;
    let list = raw(stage, "/apis/custom.metrics.k8s.io/v1beta2")?.to_string();
    ensure!(list.contains("projections.projectionist.dev/pending_events"), "{list}");
    ensure!(list.contains("\"services/load\""), "{list}");
    Ok(())
}

/// Past the API server, which would refuse by itself: a token of a user without a role, straight at a replica.
fn who_may_not_is_refused_by_us(stage: &Stage, shop: &Shop<'_>) -> Result<()> {
    let token = stage.cluster.kubectl(&["create", "token", "default", "-n", &shop.namespace])?;
    let fields = "jsonpath={.items[0].endpoints[0].addresses[0]}:{.items[0].ports[?(@.port==6443)].port}";
    let slice = ["get", "endpointslices", "-n", SYSTEM, "-l", "kubernetes.io/service-name=projectionist", "-o", fields];
    let address = stage.cluster.kubectl(&slice)?;
    let mut curl = stage.cluster.command("curl");
    curl.args(["--silent", "--insecure", "--max-time", "20"]).arg(format!("-HAuthorization: Bearer {}", token.trim()));
    let output = curl.arg(format!("https://{address}{}", external(shop, "my-external-metric"))).output()?;
    let status: Value = serde_json::from_slice(&output.stdout)?;
    let message = status["message"].as_str().unwrap_or_default();
    let words = ["forbidden", "system:serviceaccount", "my-external-metric"];
    ensure!(status["code"] == 403 && words.iter().all(|word| message.contains(word)), "{status}");
    Ok(())
}

/// 42 for all, 14 for each: three.
async fn an_autoscaler_scales_on_it(shop: &Shop<'_>) -> Result<()> {
    let metric = json!({"name": "my-external-metric", "selector": {"matchLabels": {"foo": "bar"}}});
    let target = json!({"type": "AverageValue", "averageValue": "14"});
    team_workload(shop, "team", 5, &json!({"type": "External", "external": {"metric": metric, "target": target}}))?;
    shop.workers_are("team", "an autoscaler scales on the adapter's metric", |ready| ready == 3).await.map(drop)
}

#[test]
fn the_chart_serves_both_groups_or_one_or_none() {
    let _turn = alone();
    play(|stage| async move {
        let shop = Shop::open(stage, "groups").await?;
        shop.commit("orders", 0).await?;
        shop.apply(&shop.measured("orders", &json!({})))?;
        let chart = test_cluster::instance::workspace().join("charts/projectionist").display().to_string();
        let objects = format!(
            "/apis/custom.metrics.k8s.io/v1beta1/namespaces/{}/projections.projectionist.dev/orders/pending_events",
            shop.namespace
        );
        let externals = external(&shop, "projection_pending_events?labelSelector=projection%3Dorders");
        for (external_metrics, custom) in [(false, true), (false, false), (true, false), (true, true)] {
            let (one, other) = (
                format!("--set=externalMetrics.enabled={external_metrics}"),
                format!("--set=customMetrics.enabled={custom}"),
            );
            let upgrade = [
                "upgrade",
                "projectionist",
                &chart,
                "--namespace",
                SYSTEM,
                "--reuse-values",
                "--wait",
                "--timeout=180s",
                &one,
                &other,
            ];
            stage.cluster.helm(&upgrade)?;
            stage.operator_is_whole(&shop.client).await?;
            let registered = stage.cluster.kubectl(&["get", "apiservices", "-o", "name"])?;
            for (name, served) in
                [(API_SERVICES[0], external_metrics), (API_SERVICES[1], custom), (API_SERVICES[2], custom)]
            {
                ensure!(registered.contains(name) == served, "{name}: {registered}");
            }
            for (path, served) in [(&externals, external_metrics), (&objects, custom)] {
                if served {
                    answered(stage, path, "0").await?;
                } else {
                    refused(stage, path, &["NotFound"]).await?;
                }
            }
        }
        stage.cluster.install_operator(&[])
    });
}
