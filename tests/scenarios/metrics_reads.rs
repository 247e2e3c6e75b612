//! What the aggregator, `kubectl` and an HPA ask of the metrics API.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use test_cluster::eventually;

use crate::shop::Shop;
use crate::stage::{PATIENCE, SYSTEM, play, together};

const GROUP: &str = "/apis/external.metrics.k8s.io/v1beta1";

#[test]
fn discovery_lists_the_metrics_and_the_aggregator_calls_them_available() {
    let _turn = together();
    play(|stage| async move {
        let cluster = &stage.cluster;
        let listed = cluster.kubectl(&["api-resources", "--api-group=external.metrics.k8s.io"])?;
        ensure!(listed.contains("ExternalMetricValueList"), "{listed}");
        let raw: Value = serde_json::from_str(&cluster.kubectl(&["get", "--raw", GROUP])?)?;
        ensure!(raw["kind"] == "APIResourceList" && raw["resources"][0]["name"] == "externalmetrics", "{raw}");
        let service = cluster.kubectl(&["get", "apiservice", "v1beta1.external.metrics.k8s.io", "-o", "json"])?;
        let service: Value = serde_json::from_str(&service)?;
        ensure!(
            service["spec"]["insecureSkipTLSVerify"] != true && service["spec"]["caBundle"].is_string(),
            "{service}"
        );
        ensure!(service["status"]["conditions"][0]["status"] == "True", "{service}");
        Ok(())
    });
}

#[test]
fn values_are_answered_by_name_and_by_label_selector() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "selectors").await?;
        shop.events.append_events(10).await?;
        for (name, position, tier) in [("first", 2, "gold"), ("second", 5, "gold"), ("third", 9, "tin")] {
            shop.commit(name, position).await?;
            shop.apply(&shop.measured(name, &json!({"metadata": {"labels": {"tier": tier}}})))?;
        }
        for (selector, wanted) in [
            ("projection=first", vec!["8"]),
            ("projection==second", vec!["5"]),
            ("projection in (first,third)", vec!["1", "8"]),
            ("projection!=first", vec!["1", "5"]),
            ("tier=gold", vec!["5", "8"]),
            ("tier=gold,projection notin (first)", vec!["5"]),
            ("tier", vec!["1", "5", "8"]),
        ] {
            let values = || async {
                let list = shop.metrics("projection_pending_events", selector).await?;
                let items = list["items"].as_array().cloned().unwrap_or_default();
                let mut values: Vec<String> =
                    items.iter().filter_map(|item| item["value"].as_str().map(ToOwned::to_owned)).collect();
                values.sort();
                Ok::<_, anyhow::Error>(if values == wanted { Ok(()) } else { Err(format!("{values:?}")) })
            };
            eventually(PATIENCE, &format!("{selector} gives {wanted:?}"), values).await?;
        }
        shop.metric_is("projection_queue_length", "first", |value| value == "8").await?;
        let at_least_one = |value: &str| value.parse::<u32>().is_ok_and(|workers| workers >= 1);
        shop.metric_is("projection_required_workers", "first", at_least_one).await?;
        shop.metric_is("projection_staleness_seconds", "first", |value| !value.starts_with('0')).await?;
        Ok(())
    });
}

#[test]
fn errors_are_status_objects_that_say_what_is_wrong() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "statuses").await?;
        let namespaced = format!("{GROUP}/namespaces/{}", shop.namespace);
        for (path, code) in [
            (format!("{namespaced}/nonexistent"), 404),
            (format!("{namespaced}/projection_pending_events?labelSelector=projection%3Dmissing"), 404),
            (format!("{namespaced}/projection_pending_events?labelSelector=%3D%3D"), 400),
            (namespaced.clone(), 404),
            (format!("{namespaced}/group/metric"), 404),
        ] {
            let request = http::Request::get(&path).body(Vec::new())?;
            let error =
                shop.client.request::<Value>(request).await.err().with_context(|| format!("{path} was answered"))?;
            let kube::Error::Api(status) = error else { anyhow::bail!("{path}: {error}") };
            ensure!(status.code == code && !status.message.is_empty(), "{path}: {status:?}");
        }
        Ok(())
    });
}

#[test]
fn who_has_no_right_gets_no_value() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "rights").await?;
        shop.commit("orders", 0).await?;
        shop.apply(&shop.measured("orders", &json!({})))?;
        let path = format!("{GROUP}/namespaces/{}/projection_pending_events", shop.namespace);
        let stranger = format!("system:serviceaccount:{}:default", shop.namespace);
        let refused = stage.cluster.kubectl(&["get", "--raw", &path, "--as", &stranger]);
        let refused = format!("{:#}", refused.err().context("a stranger was answered")?);
        ensure!(refused.contains("orbidden"), "{refused}");
        let autoscaler = "system:serviceaccount:kube-system:horizontal-pod-autoscaler";
        let asked = || async {
            Ok::<_, anyhow::Error>(
                stage
                    .cluster
                    .kubectl(&["get", "--raw", &path, "--as", autoscaler, "--as-group=system:serviceaccounts"])?
                    .contains("\"0\""),
            )
        };
        eventually(PATIENCE, "the autoscaler is answered", asked).await?;

        // Past the aggregator, straight to a replica: forged headers without its certificate name no user.
        let addresses = stage.cluster.kubectl(&[
            "get",
            "endpointslices",
            "-n",
            SYSTEM,
            "-l",
            "kubernetes.io/service-name=projectionist",
            "-o",
            "jsonpath={.items[0].endpoints[0].addresses[0]}:{.items[0].ports[?(@.port==6443)].port}",
        ])?;
        for headers in [
            vec![],
            vec!["-HX-Remote-User: admin", "-HX-Remote-Group: system:masters"],
            vec!["-HAuthorization: Bearer nonsense"],
        ] {
            let mut curl = stage.cluster.command("curl");
            let output = curl
                .args([
                    "--silent",
                    "--insecure",
                    "--max-time",
                    "20",
                    "--write-out",
                    "%{http_code}",
                    "--output",
                    "/dev/null",
                ])
                .args(&headers)
                .arg(format!("https://{addresses}{path}"))
                .output()?;
            let code = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(code == "401" || code == "403", "{headers:?} got {code}");
        }
        Ok(())
    });
}

/// What names us in the API server's log: the groups, and the Service behind them.
const US: [&str; 3] = ["external.metrics.k8s.io", "custom.metrics.k8s.io", "projectionist"];
/// The aggregator asks for discovery and OpenAPI once a minute: three rounds of each.
const QUIET: Duration = Duration::from_secs(200);

#[test]
fn the_api_server_logs_nothing_about_us() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "silence").await?;
        shop.commit("orders", 0).await?;
        shop.apply(&shop.projection("orders", &json!({})))?;
        shop.workers_are("orders", "the worker is ready", |ready| ready == 1).await?;
        stage.operator_is_whole(&shop.client).await?;
        // What an earlier test did to the operator may be told until the next round.
        tokio::time::sleep(Duration::from_secs(65)).await;
        let before = stage.cluster.log("kube-apiserver")?.lines().count();
        let began = Instant::now();
        while began.elapsed() < QUIET {
            shop.metric("projection_pending_events", "orders").await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let log = stage.cluster.log("kube-apiserver")?;
        // A trace tells that a request took long on a busy machine, whichever program sent it.
        let lines = log.lines().skip(before).filter(|line| !line.contains("Trace["));
        // Who asks for pods by our labels and gives up after a deadline of its own is told of with the labels: no word about our API.
        let about_us = lines.filter(|line| {
            let line = line.replace("labelSelector=projectionist.dev", "").replace("%2Cprojectionist.dev", "");
            US.iter().any(|word| line.contains(word))
        });
        let about_us: Vec<&str> = about_us.collect();
        ensure!(about_us.is_empty(), "{} lines, such as: {}", about_us.len(), about_us[0]);
        Ok(())
    });
}
