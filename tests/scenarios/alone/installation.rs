//! Installing with and without Helm, for all namespaces or for some, and uninstalling.

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::json;
use test_cluster::eventually;

use crate::shop::Shop;
use crate::stage::{PATIENCE, SYSTEM, alone, play};

/// What a user does who has no Helm: sets the image and applies.
const PLAIN: &str = include_str!("../../../manifests/install.yaml");

#[test]
fn the_plain_manifests_install_an_operator_that_runs_projections() {
    let _turn = alone();
    play(|stage| async move {
        let shop = Shop::open(stage, "plain").await?;
        stage.cluster.helm(&["uninstall", "projectionist", "--namespace", SYSTEM, "--wait", "--timeout=180s"])?;
        let plain = PLAIN.replace("projectionist:0.1.0", test_cluster::images::PROJECT_IMAGE);
        let file = stage.cluster.instance().dir().join("install.yaml");
        std::fs::write(&file, &plain)?;
        let file = file.display().to_string();
        stage.cluster.kubectl(&["apply", "--server-side", "-f", &file])?;
        stage.operator_is_whole(&shop.client).await?;
        shop.apply(&shop.projection("orders", &json!({})))?;
        shop.events.append_events(50).await?;
        shop.read_model_is_whole("orders").await?;
        shop.metric_is("projection_pending_events", "orders", |value| value == "0").await?;

        // As its head says: first the Projections, then the rest. The CustomResourceDefinition and the namespace, which others here still
        // need, stay.
        shop.delete("orders").await?;
        let gone = || async { Ok::<_, anyhow::Error>(shop.made("deployment,hpa,pdb,configmap,pod")?.is_empty()) };
        eventually(PATIENCE, "no worker is left", gone).await?;
        let label = "--selector=app.kubernetes.io/name=projectionist";
        let kinds = "clusterroles,clusterrolebindings,roles,rolebindings,deployments,services,serviceaccounts,leases,networkpolicies,apiservices,poddisruptionbudgets";
        stage.cluster.kubectl(&["delete", kinds, "--all-namespaces", label])?;
        stage.cluster.install_operator(&[])
    });
}

#[test]
fn an_operator_of_some_namespaces_runs_projections_there_and_may_nothing_elsewhere() {
    let _turn = alone();
    play(|stage| async move {
        let (inside, outside) = (Shop::open(stage, "inside").await?, Shop::open(stage, "outside").await?);
        // Made before, so that a right that is left over would show.
        outside.apply(&outside.projection("before", &json!({})))?;
        outside.workers_are("before", "it runs as long as all namespaces are watched", |ready| ready == 1).await?;
        stage.cluster.install_operator(&[&format!("--set=watchNamespaces={{{}}}", inside.namespace)])?;
        stage.operator_is_whole(&inside.client).await?;

        inside.apply(&inside.projection("orders", &json!({})))?;
        outside.apply(&outside.projection("orders", &json!({})))?;
        inside.events.append_events(50).await?;
        inside.read_model_is_whole("orders").await?;
        inside.metric_is("projection_pending_events", "orders", |value| value == "0").await?;
        let untouched = outside.projections().get("orders").await?;
        ensure!(untouched.status.is_none(), "a Projection outside got a status");
        ensure!(outside.deployments().get_opt("orders").await?.is_none(), "a Projection outside got workers");
        ensure!(
            outside.replicas("before").await? == 1,
            "workers of a namespace that is not watched any more were touched"
        );

        let account = "--as=system:serviceaccount:projectionist:projectionist";
        for (namespace, wanted) in [(&inside.namespace, "yes"), (&outside.namespace, "no")] {
            for what in ["get secrets", "create deployments", "delete deployments", "patch horizontalpodautoscalers"] {
                let mut args = vec!["auth", "can-i", account, "-n", namespace];
                args.extend(what.split(' '));
                // The answer `no` is an exit code, too.
                let answer = stage.cluster.kubectl(&args).unwrap_or_else(|error| format!("{error:#}"));
                let may = if answer.trim() == "yes" { "yes" } else { "no" };
                ensure!(may == wanted, "{what} in {namespace}: {answer}");
            }
        }
        stage.cluster.install_operator(&[])?;
        stage.operator_is_whole(&inside.client).await
    });
}

/// What a worker does not have that the next test sets.
fn amiss(worker: &Pod) -> Option<&'static str> {
    let spec = worker.spec.clone().unwrap_or_default();
    let user = spec.security_context.and_then(|context| context.run_as_user);
    let has = |map: &Option<std::collections::BTreeMap<String, String>>, key: &str, value: &str| {
        map.as_ref().and_then(|map| map.get(key)).is_some_and(|there| there == value)
    };
    let tolerates = spec.tolerations.iter().flatten().any(|toleration| toleration.key.as_deref() == Some("gpu"));
    [
        ("the user id", user == Some(1_000_660_001)),
        ("the priority class", spec.priority_class_name.as_deref() == Some("system-node-critical")),
        ("the Projection's toleration", tolerates),
        ("the node selector", has(&spec.node_selector, "pool", "projectors")),
        ("the label", has(&worker.metadata.labels, "cost-centre", "reading")),
        ("the annotation", has(&worker.metadata.annotations, "sidecar", "no")),
    ]
    .into_iter()
    .find_map(|(what, there)| (!there).then_some(what))
}

#[test]
fn what_the_clusters_owner_sets_reaches_operator_and_workers() {
    let _turn = alone();
    play(|stage| async move {
        let shop = Shop::open(stage, "owner").await?;
        let node = stage.cluster.kubectl(&["get", "nodes", "-o", "name"])?;
        stage.cluster.kubectl(&["label", "--overwrite", node.trim(), "pool=projectors"])?;
        // Host ports are taken once on each node, and pods that share the node's network are not allowed where `restricted` is enforced.
        stage.cluster.kubectl(&[
            "label",
            "--overwrite",
            "namespace",
            SYSTEM,
            "pod-security.kubernetes.io/enforce=privileged",
        ])?;
        stage.cluster.install_operator(&[
            "--set=replicaCount=1",
            "--set=hostNetwork=true",
            "--set=ports.metricsApi=16443",
            "--set=ports.telemetry=18080",
            "--set=podSecurityContext.runAsUser=1000660000",
            "--set=podSecurityContext.runAsGroup=0",
            "--set=workers.podSecurityContext.runAsUser=1000660001",
            "--set=workers.podSecurityContext.runAsGroup=0",
            "--set=workers.nodeSelector.pool=projectors",
            "--set=workers.labels.cost-centre=reading",
            "--set=workers.annotations.sidecar=no",
            "--set=workers.priorityClassName=system-node-critical",
        ])?;
        shop.apply(&shop.projection(
            "orders",
            &json!({"spec": {"projector": {"builtin": {"pod": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}}}}}),
        ))?;
        shop.events.append_events(50).await?;
        shop.read_model_is_whole("orders").await?;
        shop.metric_is("projection_pending_events", "orders", |value| value == "0").await?;
        // The replica that went may have made workers by what it knew.
        let pods: Api<Pod> = Api::namespaced(shop.client.clone(), &shop.namespace);
        let as_set = || async {
            let workers = pods.list(&ListParams::default()).await?.items;
            let wrong =
                workers.iter().find_map(|worker| amiss(worker).map(|what| format!("{}: {what}", worker.name_any())));
            Ok::<_, kube::Error>(match wrong {
                None if workers.is_empty() => Err("no workers".to_owned()),
                None => Ok(()),
                Some(wrong) => Err(wrong),
            })
        };
        eventually(PATIENCE, "the workers are as the cluster's owner and the Projection say", as_set).await?;
        let as_set = || async {
            let pods = stage.operator_pods(&shop.client).await?;
            let right = |pod: &Pod| {
                let spec = pod.spec.clone().unwrap_or_default();
                let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
                let ports: Vec<i32> = ports.map(|port| port.container_port).collect();
                let user = spec.security_context.and_then(|context| context.run_as_user);
                spec.host_network == Some(true) && user == Some(1_000_660_000) && ports == [16_443, 18_080]
            };
            Ok::<_, anyhow::Error>(pods.len() == 1 && pods.iter().all(right))
        };
        eventually(PATIENCE, "the operator is as set", as_set).await?;
        stage.cluster.install_operator(&[])?;
        stage.cluster.kubectl(&["label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce-"])?;
        stage.operator_is_whole(&shop.client).await
    });
}

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
        let keyless = || async {
            let secrets = stage.cluster.kubectl(&["get", "secrets", "-n", SYSTEM, "-o", "name"])?;
            Ok::<_, anyhow::Error>(if secrets.contains("serving-cert") { Err(secrets) } else { Ok(()) })
        };
        eventually(PATIENCE, "the serving certificate has gone with its Service", keyless).await?;
        ensure!(shop.projections().get("orders").await.is_ok(), "the Projection was deleted");

        stage.cluster.install_operator(&[])?;
        shop.events.append_events(50).await?;
        shop.read_model_is_whole("orders").await
    });
}
