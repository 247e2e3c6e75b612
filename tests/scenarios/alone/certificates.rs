//! The serving certificate changes while metrics are read: by the operator's own hand, and by cert-manager's.

use std::{collections::BTreeMap, future::pending, time::Duration};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret, kube_aggregator::pkg::apis::apiregistration::v1::APIService};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use projectionist::{
    metrics_api::{
        certificate::{CertificateBundle, issue},
        serving::ServingCertificate,
    },
    platform::serving_certificate::{self, CertificateSettings},
};
use serde_json::{Value, json};
use test_cluster::{eventually, eventually_is};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::operator_faults::without_a_failed_read;
use crate::shop::Shop;
use crate::stage::{PATIENCE, SYSTEM, Stage, alone, play};

const API_SERVICE: &str = "v1beta1.external.metrics.k8s.io";

fn secrets(client: &Client) -> Api<Secret> {
    Api::namespaced(client.clone(), SYSTEM)
}

async fn ca_bundle(client: &Client) -> Result<String> {
    let services: Api<APIService> = Api::all(client.clone());
    let spec = services.get(API_SERVICE).await?.spec.unwrap_or_default();
    Ok(String::from_utf8(spec.ca_bundle.unwrap_or_default().0)?)
}

fn data(parts: &[(&str, &str)]) -> Option<BTreeMap<String, ByteString>> {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    Some(parts.iter().map(|(key, text)| ((*key).to_owned(), bytes(text))).collect())
}

#[test]
fn a_deleted_secret_and_a_new_authority_fail_no_metric_read() {
    let _turn = alone();
    play(|stage| async move {
        without_a_failed_read(stage, "rotation", async |shop: &Shop<'_>| {
            const SECRET: &str = "projectionist-serving-cert";
            let secrets = secrets(&shop.client);
            let before = secrets.get(SECRET).await?.data;
            secrets.delete(SECRET, &DeleteParams::default()).await?;
            let again = || async { Ok::<_, kube::Error>(secrets.get_opt(SECRET).await?.map(|secret| secret.data)) };
            let old = before.as_ref().and_then(|data| data.get("ca.crt")).context("no authority")?;
            let old = String::from_utf8(old.0.clone())?;
            let same = |now: &Option<_>| now.as_ref() == Some(&before);
            eventually_is(PATIENCE, "what is served is written back", same, again).await?;

            // As another replica would at the end of an authority, and worse: without the old one beside it.
            let new = issue("projectionist", SYSTEM, Timestamp::now())?;
            let mut secret = secrets.get(SECRET).await?;
            secret.data = data(&[
                ("ca.crt", &new.ca_pem),
                ("ca.key", &new.ca_key_pem),
                ("tls.crt", &new.cert_pem),
                ("tls.key", &new.key_pem),
            ]);
            secrets.replace(SECRET, &PostParams::default(), &secret).await?;
            let trusted = || ca_bundle(&shop.client);
            let both = |ca: &String| ca.contains(new.authority().trim()) && ca.contains(old.trim());
            eventually_is(PATIENCE, "both authorities are trusted", both, trusted).await?;
            let alone = |ca: &String| ca.trim() == new.authority().trim();
            eventually_is(PATIENCE, "the old authority is forgotten once no replica serves with it", alone, trusted)
                .await?;
            // The aggregator has opened new connections with each change: a replica that still served with the old one would be refused now.
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok(())
        })
        .await
    });
}

/// A client that writes an APIService again and again, as an administrator's tools may.
async fn keep_writing(client: Client, name: String) -> Result<()> {
    let services: Api<APIService> = Api::all(client);
    for round in 0_u64.. {
        let patch = json!({"metadata": {"annotations": {"round": round.to_string()}}});
        services.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(())
}

#[test]
fn of_many_replicas_that_start_at_once_one_issues_the_certificate_and_all_serve_it_and_it_is_trusted() {
    let _turn = alone();
    play(|stage| async move {
        let client = stage.cluster.client().await?;
        let namespace = stage.cluster.namespace("replicas")?;
        let (group, service) = (format!("{namespace}.example"), "metrics");
        let name = format!("v1.{group}");
        stage.cluster.apply(
            &json!({
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": name},
                "spec": {
                    "group": group, "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 100,
                    "service": {"name": service, "namespace": namespace, "port": 443},
                },
            })
            .to_string(),
        )?;
        let settings = CertificateSettings {
            namespace: namespace.clone(),
            service: service.to_owned(),
            given: None,
            api_services: vec![name.clone()],
            take_over: false,
        };
        let writing = tokio::spawn(keep_writing(client.clone(), name.clone()));
        let mut replicas = JoinSet::new();
        let mut all = Vec::new();
        for _ in 0..8 {
            let (current, served) = watch::channel(None);
            let (taken, _) = mpsc::unbounded_channel();
            let (unserved, _) = watch::channel(None);
            let (client, settings) = (stage.cluster.client().await?, settings.clone());
            replicas.spawn(serving_certificate::run(client, settings, current, unserved, taken, pending()));
            all.push(served);
        }
        let secret = Api::<Secret>::namespaced(client.clone(), &namespace);
        let mut served = Vec::new();
        for one in &mut all {
            let one =
                tokio::time::timeout(PATIENCE, one.wait_for(Option::is_some)).await.context("nothing is served")??;
            served.extend(one.clone());
        }
        ensure!(!writing.is_finished(), "no client wrote meanwhile");
        writing.abort();
        let data = secret.get("metrics-serving-cert").await?.data.unwrap_or_default();
        let part = |key: &str| String::from_utf8(data[key].0.clone());
        let written = ServingCertificate::from_pem(&part("tls.crt")?, &part("tls.key")?)?;
        ensure!(served.iter().all(|one| **one == written), "they serve what is not in the Secret");
        let services: Api<APIService> = Api::all(client.clone());
        let spec = services.get(&name).await?.spec.unwrap_or_default();
        let trusted = String::from_utf8(spec.ca_bundle.unwrap_or_default().0)?;
        ensure!(trusted.trim() == part("ca.crt")?.trim(), "trusted is:\n{trusted}");
        drop(replicas);
        services.delete(&name, &DeleteParams::default()).await?;
        Ok(())
    });
}

/// Takes any object of these kinds: what cert-manager's own definitions do for the chart.
fn stand_in(kind: &str, plural: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.cert-manager.io")},
        "spec": {
            "group": "cert-manager.io",
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    })
}

/// The Secret as cert-manager writes it: without the authority's key.
async fn issue_as_cert_manager(client: &Client, bundle: &CertificateBundle) -> Result<Secret> {
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {
            "name": "projectionist-serving-tls",
            "annotations": {"cert-manager.io/certificate-name": "projectionist-serving"},
            "labels": {"controller.cert-manager.io/fao": "true"},
        },
        "data": data(&[("ca.crt", &bundle.ca_pem), ("tls.crt", &bundle.cert_pem), ("tls.key", &bundle.key_pem)]),
    });
    let parameters = PatchParams::apply("cert-manager-certificates-issuing").force();
    Ok(secrets(client).patch("projectionist-serving-tls", &parameters, &Patch::Apply(secret)).await?)
}

/// Keeps `caBundle` at the newest authority, as cert-manager's CA injector does for who has the annotation.
async fn inject(client: Client, authority: watch::Receiver<String>) -> Result<()> {
    let services: Api<APIService> = Api::all(client.clone());
    loop {
        let ca = authority.borrow().clone();
        let service = services.get(API_SERVICE).await?;
        let annotation = service.metadata.annotations.unwrap_or_default();
        let asked = annotation.get("cert-manager.io/inject-ca-from").is_some_and(|from| from.ends_with("-serving"));
        if asked && ca_bundle(&client).await? != ca {
            let patch = json!({"spec": {"caBundle": ByteString(ca.into_bytes())}});
            services.patch(API_SERVICE, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn serves_what_cert_manager_issues(stage: &'static Stage, shop: &Shop<'_>) -> Result<()> {
    let client = &shop.client;
    let first = issue("projectionist", SYSTEM, Timestamp::now())?;
    issue_as_cert_manager(client, &first).await?;
    let (authority, newest) = watch::channel(first.ca_pem.clone());
    let injector = tokio::spawn(inject(client.clone(), newest));
    stage.cluster.install_operator(&["--set=certManager.enabled=true"])?;
    stage.operator_is_whole(client).await?;
    shop.metric_is("projection_pending_events", "orders", |_| true).await?;

    // Another certificate of another authority: read from the Secret without a restart, or else refused from now on.
    let second = issue("projectionist", SYSTEM, Timestamp::now())?;
    let written = issue_as_cert_manager(client, &second).await?;
    authority.send_replace(second.ca_pem.clone());
    eventually_is(PATIENCE, "the new authority is trusted", |ca| *ca == second.ca_pem, || ca_bundle(client)).await?;
    shop.metric_is("projection_pending_events", "orders", |_| true).await?;

    // Only cert-manager writes: there is no right to.
    injector.abort();
    let now = secrets(client).get("projectionist-serving-tls").await?;
    ensure!(now.metadata.resource_version == written.metadata.resource_version, "the Secret was written");
    for what in
        ["update secrets/projectionist-serving-tls", "create secrets", &format!("patch apiservices/{API_SERVICE}")]
    {
        let account = "--as=system:serviceaccount:projectionist:projectionist";
        let mut args = vec!["auth", "can-i", account, "-n", SYSTEM];
        args.extend(what.split(' '));
        // The answer `no` is an exit code, too.
        let answer = stage.cluster.kubectl(&args).unwrap_or_else(|error| format!("{error:#}"));
        ensure!(answer.trim() != "yes", "the operator may {what}");
    }

    // What cannot be used changes nothing.
    let mut spoilt = second.clone();
    spoilt.key_pem = "spoilt".to_owned();
    issue_as_cert_manager(client, &spoilt).await?;
    let log = || async {
        let log = stage.cluster.kubectl(&["logs", "-l", "app.kubernetes.io/name=projectionist", "-n", SYSTEM])?;
        Ok::<_, anyhow::Error>(if log.contains("tls.key is not PEM") { Ok(()) } else { Err(log) })
    };
    eventually(PATIENCE, "the log tells what is wrong", log).await?;
    shop.metric_is("projection_pending_events", "orders", |_| true).await
}

/// cert-manager is not there: this test writes the Secret and the `caBundle` as it does, and its kinds are stand-ins.
#[test]
fn a_certificate_of_cert_manager_is_served_followed_and_never_written() {
    let _turn = alone();
    play(|stage| async move {
        let shop = Shop::open(stage, "cert-manager").await?;
        shop.commit("orders", 0).await?;
        shop.apply(&shop.measured("orders", &json!({})))?;
        let kinds = [("Certificate", "certificates"), ("Issuer", "issuers")];
        for (kind, plural) in kinds {
            shop.apply(&stand_in(kind, plural))?;
            stage.cluster.serves_kind(&format!("{plural}.cert-manager.io"))?;
        }
        let served = serves_what_cert_manager_issues(stage, &shop).await;
        // Back to the operator's own, also for the other tests.
        stage.cluster.install_operator(&[])?;
        stage.operator_is_whole(&shop.client).await?;
        for (_, plural) in kinds {
            stage.cluster.kubectl(&["delete", "crd", &format!("{plural}.cert-manager.io")])?;
        }
        secrets(&shop.client).delete("projectionist-serving-tls", &DeleteParams::default()).await?;
        served.context("with cert-manager's certificate")?;
        shop.metric_is("projection_pending_events", "orders", |_| true).await
    });
}
