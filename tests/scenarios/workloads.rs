//! What keeps workers from running is told in the Projection, and Ready speaks of the pods that run.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{WatchEvent, WatchParams};
use projectionist::api::ProjectionStatus;
use serde_json::{Value, json};
use test_cluster::{eventually, images::TOOLBOX_IMAGE};

use crate::shop::{Shop, idle_container, merge};
use crate::stage::{PATIENCE, play, together};

impl Shop<'_> {
    fn kubectl(&self, args: &[&str]) -> Result<String> {
        let namespace = ["-n", self.namespace.as_str()];
        self.stage.cluster.kubectl(&args.iter().chain(&namespace).copied().collect::<Vec<_>>())
    }

    /// A Projection `orders` whose one worker is ready, and whose backlog then asks for four, of which a quota allows one.
    async fn wants_four_of_one(&self, kind: &str) -> Result<()> {
        self.commit("orders", 0).await?;
        self.apply(&json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small", "namespace": self.namespace},
            "spec": {"hard": {"pods": "1"}},
        }))?;
        self.scaling_idle_workers("orders", &json!({"spec": {"projector": {"existing": {"kind": kind}}}}))?;
        self.projection_is("orders", "one worker is allowed", |projection| {
            let workers = projection.status.as_ref().and_then(|status| status.workers.as_ref());
            workers.and_then(|workers| workers.ready) == Some(1)
        })
        .await?;
        self.condition_is("orders", "Ready", "True", "AsExpected").await?;
        self.events.append_events(2_000).await?;
        Ok(())
    }

    /// A Projection whose workers are the team's own container, changed by a JSON merge patch.
    fn with_container(&self, name: &str, change: &Value) -> Result<()> {
        let mut container = idle_container();
        merge(&mut container, change);
        let template = json!({"spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}});
        let all = json!({"spec": {
            "checkpoint": {"readStore": {"name": "orders"}},
            "projector": {"template": template},
        }});
        self.apply(&self.measured(name, &all))?;
        Ok(())
    }
}

#[test]
fn a_quota_that_keeps_workers_away_is_told_with_its_words_and_their_number() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "quota").await?;
        shop.wants_four_of_one("Deployment").await?;
        let message = shop.condition_is("orders", "Ready", "False", "PodsRefused").await?;
        ensure!(message.contains("3 of 4 workers cannot be created: exceeded quota: small"), "{message}");
        let available = shop.condition_is("orders", "Available", "True", "AsExpected").await?;
        ensure!(available.contains("exceeded quota"), "{available}");
        let told = || async { Ok::<_, anyhow::Error>(shop.events_about("orders")?.remove("Scaled")) };
        let told = eventually(PATIENCE, "the Event of the scaling is there", told).await?;
        ensure!(told.contains("1 of them ready now") || told.contains("0 of them ready now"), "{told}");
        shop.kubectl(&["delete", "quota", "small"])?;
        // The controller of the pods waits longer after each refusal; its next try is all that is waited for.
        shop.condition_is("orders", "Ready", "True", "AsExpected").await?;
        Ok(())
    });
}

#[test]
fn workers_of_a_statefulset_that_a_quota_keeps_away_are_told_by_their_number_after_five_minutes() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "quota-set").await?;
        shop.wants_four_of_one("StatefulSet").await?;
        // No condition of a StatefulSet tells why its pods are not created: that they stay away has to last.
        let patience = Duration::from_secs(300) + PATIENCE;
        let message = shop.condition_within(patience, "orders", "Ready", "False", "WorkersNotReady").await?;
        ensure!(message.contains("3 of 4 workers have had no pod for more than 5 min"), "{message}");
        let available = shop.condition_is("orders", "Available", "True", "AsExpected").await?;
        ensure!(available.contains("3 of 4 workers have had no pod"), "{available}");
        let told = || async { Ok::<_, anyhow::Error>(shop.events_about("orders")?.remove("WorkersNotReady")) };
        let told = eventually(PATIENCE, "an Event tells of the workers that are missing", told).await?;
        ensure!(told.contains("3 of 4 workers have had no pod"), "{told}");
        Ok(())
    });
}

#[test]
fn pods_that_never_start_and_pods_that_crash_are_told_with_their_cause() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "causes-of-pods").await?;
        shop.commit("orders", 0).await?;
        shop.kubectl(&["label", "namespace", &shop.namespace, "pod-security.kubernetes.io/enforce=restricted"])?;
        let privileged = json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": true}});
        let no_secret = json!({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "missing", "key": "x"}}}]});
        let uid = json!({"securityContext": {"runAsUser": 65532}});
        let cases = [
            ("refused", privileged, "PodsRefused", "violates PodSecurity"),
            ("no-image", json!({"image": "example.invalid/none:1"}), "ImagePullFailed", "example.invalid/none:1"),
            ("no-secret", no_secret, "ContainerNotCreated", "\"missing\" not found"),
            (
                "crashes",
                json!({"args": ["bogus"], "terminationMessagePolicy": "FallbackToLogsOnError"}),
                "WorkersCrash",
                "exited with code 1: usage: toolbox",
            ),
            ("no-room", json!({"resources": {"requests": {"cpu": "900"}}}), "Unschedulable", "Insufficient cpu"),
        ];
        for (name, change, ..) in &cases {
            let mut change = change.clone();
            if *name != "refused" {
                merge(&mut change, &uid);
            }
            shop.with_container(name, &change)?;
        }
        for (name, _, reason, mentioned) in &cases {
            let message = shop.condition_is(name, "Available", "False", reason).await?;
            ensure!(message.contains("1 of 1 workers") && message.contains(mentioned), "{name}: {message}");
            let ready = shop.condition_is(name, "Ready", "False", reason).await?;
            ensure!(ready.contains(mentioned), "{name}: {ready}");
            let event = || async { Ok::<_, anyhow::Error>(shop.events_about(name)?.remove(*reason)) };
            let event = eventually(PATIENCE, &format!("an Event tells {reason} of {name}"), event).await?;
            ensure!(event.contains(mentioned), "{name}: {event}");
        }
        // Put right, they are well without another word.
        shop.with_container("crashes", &json!({"securityContext": {"runAsUser": 65532}, "image": TOOLBOX_IMAGE}))?;
        shop.condition_is("crashes", "Available", "True", "AsExpected").await?;
        shop.condition_is("crashes", "Ready", "True", "AsExpected").await?;
        Ok(())
    });
}

#[test]
fn ready_is_not_true_while_old_pods_run_because_the_new_ones_fail_or_wait() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "generation").await?;
        shop.apply(&shop.projection("orders", &json!({})))?;
        shop.condition_is("orders", "Ready", "True", "AsExpected").await?;
        let handler = |sql: &str| json!({"spec": {"projector": {"builtin": {"handlers": {"Counted": sql}}}}});
        let wait = |seconds: u32| {
            shop.kubectl(&["wait", "--for=condition=Ready", &format!("--timeout={seconds}s"), "prj/orders"])
        };

        shop.apply(&shop.projection("orders", &handler("insert into no_such_table values (:position)")))?;
        shop.projection_is("orders", "the refused handler's generation is seen", |projection| {
            projection.status.as_ref().and_then(|status| status.observed_generation) == projection.metadata.generation
        })
        .await?;
        let waited = wait(25);
        ensure!(waited.is_err(), "Ready while the store refuses the handler: {waited:?}");
        let ready = shop.condition_is("orders", "Ready", "False", "").await?;
        ensure!(ready.contains("1 of 2 pods run an older pod template"), "{ready}");
        shop.condition_is("orders", "Available", "True", "AsExpected").await?;

        shop.apply(&shop.projection("orders", &json!({})))?;
        shop.condition_is("orders", "Ready", "True", "AsExpected").await?;

        shop.kubectl(&["rollout", "pause", "deployment/orders"])?;
        let other = "insert into seen (position, stream, n) values (:position, :stream, (:data->>'n')::bigint)";
        shop.apply(&shop.projection("orders", &handler(other)))?;
        let paused = shop.condition_is("orders", "Ready", "False", "RolloutPaused").await?;
        ensure!(paused.contains("1 of 1 pods run an older pod template"), "{paused}");
        shop.kubectl(&["rollout", "resume", "deployment/orders"])?;
        let done = wait(120);
        ensure!(done.is_ok(), "not Ready after the rollout went on: {done:?}");
        Ok(())
    });
}

/// The statuses that are written until one of them is as wanted, beginning with the one that is there.
async fn statuses_until(
    shop: &Shop<'_>,
    name: &str,
    wanted: impl Fn(&ProjectionStatus) -> bool,
) -> Result<Vec<ProjectionStatus>> {
    let begin = shop.projections().get(name).await?;
    let version = begin.metadata.resource_version.clone().context("no version")?;
    let mut written = vec![begin.status.unwrap_or_default()];
    let only = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut events = shop.projections().watch(&only, &version).await?.boxed();
    while let Some(event) = events.try_next().await? {
        let WatchEvent::Modified(projection) = event else { continue };
        let status = projection.status.unwrap_or_default();
        if written.last() != Some(&status) {
            written.push(status);
        }
        if written.len() > 1 && written.last().is_some_and(&wanted) {
            return Ok(written);
        }
    }
    anyhow::bail!("the watch ended after {} statuses", written.len())
}

#[test]
fn a_rollout_of_three_workers_costs_few_writes_of_the_status() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "few-writes").await?;
        let three = |batch: u32| {
            json!({"spec": {
                "scaling": {"minWorkers": 3},
                "projector": {"builtin": {"batchSize": batch}},
            }})
        };
        shop.apply(&shop.projection("orders", &three(10)))?;
        shop.events.append_events(10).await?;
        shop.workers_are("orders", "three workers are ready", |ready| ready == 3).await?;
        shop.condition_is("orders", "Ready", "True", "AsExpected").await?;
        shop.projection_is("orders", "the three ready workers are told", |projection| {
            let workers = projection.status.as_ref().and_then(|status| status.workers.clone());
            workers.is_some_and(|workers| workers.ready == Some(3) && !workers.rolling)
        })
        .await?;
        let generation = shop.projections().get("orders").await?.metadata.generation;
        let done = |status: &ProjectionStatus| {
            status.observed_generation > generation
                && status.conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True")
        };
        let begun = Instant::now();
        let watched = statuses_until(&shop, "orders", done);
        let applied = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            shop.apply(&shop.projection("orders", &three(11)))
        };
        let (written, applied) = tokio::time::timeout(PATIENCE, async { tokio::join!(watched, applied) }).await?;
        applied?;
        let (written, seconds) = (written?, begun.elapsed().as_secs());
        // Numbers may follow every few seconds where the rollout takes long.
        let allowed = 3 + usize::try_from(seconds / 5)?;
        let ready = |status: &ProjectionStatus| {
            let condition = status.conditions.iter().find(|one| one.type_ == "Ready").cloned();
            condition.map(|one| format!("{}: {}", one.reason, one.message))
        };
        let told: Vec<_> = written.iter().skip(1).map(|status| (ready(status), status.workers.clone())).collect();
        println!("{} writes of the status in {seconds} s", told.len());
        ensure!(told.len() <= allowed, "{} writes in {seconds} s: {told:#?}", told.len());
        Ok(())
    });
}
