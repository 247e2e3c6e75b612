//! A namespace with an event store, a read store and Projections: what most tests begin with.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
pub(crate) use json_patch::merge;
use k8s_openapi::api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler};
use kube::{Api, Client, ResourceExt, api::DeleteParams};
use projectionist::api::Projection;
use serde_json::{Value, json};
use test_cluster::{EventStore, Postgres, always_is, eventually, eventually_is};

use crate::stage::{PATIENCE, Stage};

/// What every event does to the read model; the sleep makes a worker's capacity known: about 40 events a second.
const COUNT_SLOWLY: &str =
    "insert into seen (position, stream, n) select :position, :stream, (:data->>'n')::bigint from pg_sleep(0.02)";

/// One team's namespace.
pub(crate) struct Shop<'a> {
    pub(crate) stage: &'a Stage,
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) database: String,
    pub(crate) server: &'a Postgres,
    pub(crate) events: EventStore,
}

/// What a test has made is measured and worked on until it is deleted, beside all tests that follow.
impl Drop for Shop<'_> {
    fn drop(&mut self) {
        let all = ["delete", "projections", "--all", "-n", &self.namespace, "--wait=false"];
        if let Err(error) = self.stage.cluster.kubectl(&all) {
            eprintln!("{}: what the test has made stays: {error:#}", self.namespace);
        }
    }
}

impl<'a> Shop<'a> {
    /// Opens a shop on the shared database server.
    pub(crate) async fn open(stage: &'a Stage, name: &str) -> Result<Self> {
        Self::open_on(stage, &stage.postgres, name).await
    }

    /// Opens a shop on a database server of its own.
    pub(crate) async fn open_on(stage: &'a Stage, server: &'a Postgres, name: &str) -> Result<Self> {
        let client = stage.cluster.client().await?;
        let namespace = stage.cluster.namespace(name)?;
        let database = namespace.replace('-', "_");
        let url = server.create_database(&database).await?;
        let events = EventStore::create_events_table(server, &database, "events").await?;
        stage.cluster.kubectl(&[
            "create",
            "secret",
            "generic",
            "database",
            "-n",
            &namespace,
            &format!("--from-literal=url={url}"),
        ])?;
        Ok(Self { stage, client, namespace, database, server, events })
    }

    /// A Projection with the built-in projector, changed by a JSON merge patch.
    pub(crate) fn projection(&self, name: &str, change: &Value) -> Value {
        let connection = json!({"secretRef": {"name": "database", "key": "url"}});
        let mut projection = json!({
            "apiVersion": "projectionist.dev/v1alpha1",
            "kind": "Projection",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "source": {"postgres": {"connection": connection, "eventTable": {"notifyChannel": "events"}}},
                "readStore": {"postgres": {"connection": connection, "schema": name.replace('-', "_")}},
                "lag": {"target": "5s"},
                "scaling": {"maxWorkers": 4, "shards": 12},
                "projector": {"builtin": {
                    "setup": "create table if not exists seen (position bigint primary key, stream text, n bigint)",
                    "handlers": {"Counted": COUNT_SLOWLY},
                    "batchSize": 10,
                    "resources": {"requests": {"cpu": "5m", "memory": "16Mi"}},
                }},
            },
        });
        merge(&mut projection, change);
        projection
    }

    /// A Projection that is only measured: its checkpoint is a row that the test writes.
    pub(crate) fn measured(&self, name: &str, change: &Value) -> Value {
        let mut projection = self.projection(
            name,
            &json!({"spec": {
                "projector": null,
                "checkpoint": {"readStore": {"table": "checkpoints"}},
                "readStore": {"postgres": {"schema": null}},
            }}),
        );
        merge(&mut projection, change);
        projection
    }

    /// A Deployment or StatefulSet of the team's own, whose pods do nothing.
    pub(crate) fn idle_workload(&self, kind: &str, name: &str) -> Result<()> {
        let mut workload = json!({
            "apiVersion": "apps/v1", "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {"terminationGracePeriodSeconds": 0, "containers": [idle_container()]},
                },
            },
        });
        if kind == "StatefulSet" {
            merge(&mut workload["spec"], &json!({"serviceName": name, "podManagementPolicy": "Parallel"}));
        }
        self.apply(&workload)?;
        Ok(())
    }

    /// A Projection that scales an [idle](Shop::idle_workload) workload of its name up to four workers, of which each is known to do 100 events a
    /// second, and which the autoscaler takes away without a window. The checkpoint is that of `orders`. The workload is a Deployment, unless `change`
    /// names another kind.
    pub(crate) fn scaling_idle_workers(&self, name: &str, change: &Value) -> Result<()> {
        let mut all = json!({"spec": {
            "scaling": {
                "eventsPerWorkerSecond": 100, "maxWorkers": 4, "ordering": "None", "shards": null,
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
            },
            "checkpoint": {"readStore": {"name": "orders"}},
            "projector": {"existing": {"kind": "Deployment", "name": name}},
        }});
        merge(&mut all, change);
        let kind = all.pointer("/spec/projector/existing/kind").and_then(Value::as_str);
        self.idle_workload(kind.context("no workload")?, name)?;
        self.apply(&self.measured(name, &all))?;
        Ok(())
    }

    /// Makes the table that [`Shop::measured`] reads, and commits a checkpoint in it.
    pub(crate) async fn commit(&self, name: &str, position: i64) -> Result<()> {
        let client = self.events.client();
        client
            .batch_execute("create table if not exists checkpoints (projection text primary key, position bigint)")
            .await?;
        let upsert = "insert into checkpoints values ($1, $2) on conflict (projection) do update set position = excluded.position";
        client.execute(upsert, &[&name, &position]).await?;
        Ok(())
    }

    pub(crate) fn apply(&self, object: &Value) -> Result<String> {
        self.stage.cluster.apply(&object.to_string())
    }

    pub(crate) fn projections(&self) -> Api<Projection> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) fn autoscalers(&self) -> Api<HorizontalPodAutoscaler> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        self.projections().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// `kubectl get --raw` of one metric of one projection: its value as Kubernetes writes it, or the error.
    pub(crate) async fn metric(&self, metric: &str, projection: &str) -> Result<String> {
        let list = self.metrics(metric, &format!("projection={projection}")).await?;
        let value = list.pointer("/items/0/value").and_then(Value::as_str).map(ToOwned::to_owned);
        value.with_context(|| format!("no value in {list}"))
    }

    /// Waits until every replica answers with such a value: the aggregator takes any of them, and each measures for itself.
    pub(crate) async fn metric_is(&self, metric: &str, projection: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
        eventually(PATIENCE, &format!("{metric} of {projection} is as wanted at every replica"), || async {
            for _ in 0..20 {
                let value = self.metric(metric, projection).await?;
                if !wanted(&value) {
                    return Ok(Err(value));
                }
            }
            Ok::<_, anyhow::Error>(Ok(()))
        })
        .await
    }

    /// The code and message with which a metric is refused; `None` if it has a value.
    pub(crate) async fn refusal(&self, metric: &str, projection: &str) -> Result<Option<(u16, String)>> {
        match self.metric(metric, projection).await {
            Ok(_) => Ok(None),
            Err(error) => match error.downcast::<kube::Error>()? {
                kube::Error::Api(status) => Ok(Some((status.code, status.message.clone()))),
                other => Err(other.into()),
            },
        }
    }

    /// The list that a label selector gets.
    pub(crate) async fn metrics(&self, metric: &str, selector: &str) -> Result<Value> {
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/{metric}?labelSelector={}",
            self.namespace,
            selector.replace('=', "%3D").replace(' ', "%20").replace(',', "%2C")
        );
        let request = http::Request::get(path).body(Vec::new())?;
        Ok(self.client.request(request).await?)
    }

    /// Waits until the status says so.
    pub(crate) async fn projection_is(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Projection) -> bool,
    ) -> Result<Projection> {
        self.projection_within(PATIENCE, name, what, wanted).await
    }

    async fn projection_within(
        &self,
        patience: Duration,
        name: &str,
        what: &str,
        wanted: impl Fn(&Projection) -> bool,
    ) -> Result<Projection> {
        let projections = self.projections();
        let seen = eventually_is(patience, what, wanted, || projections.get(name)).await;
        seen.map_err(|error| self.stage.cluster.explain(&error, &self.namespace))
    }

    /// Waits until a condition has this status and reason, and returns its message.
    pub(crate) async fn condition_is(&self, name: &str, type_: &str, status: &str, reason: &str) -> Result<String> {
        self.condition_within(PATIENCE, name, type_, status, reason).await
    }

    /// The same for what takes longer than seconds on a quiet machine.
    pub(crate) async fn condition_within(
        &self,
        patience: Duration,
        name: &str,
        type_: &str,
        status: &str,
        reason: &str,
    ) -> Result<String> {
        let what = format!("{name} has the condition {type_}={status} ({reason})");
        let find = |projection: &Projection| {
            let conditions = projection.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
            conditions.into_iter().find(|condition| condition.type_ == type_)
        };
        let matches = |projection: &Projection| {
            find(projection).is_some_and(|condition| {
                condition.status == status && (reason.is_empty() || condition.reason == reason)
            })
        };
        let projection = self.projection_within(patience, name, &what, matches).await?;
        Ok(find(&projection).map(|condition| condition.message).unwrap_or_default())
    }

    /// Waits until so many workers are ready.
    pub(crate) async fn workers_are(&self, name: &str, what: &str, wanted: impl Fn(i32) -> bool) -> Result<i32> {
        let deployments = self.deployments();
        let waited = eventually(PATIENCE, what, || async {
            let status = deployments.get(name).await?.status.unwrap_or_default();
            let ready = status.ready_replicas.unwrap_or(0);
            Ok::<_, kube::Error>(if wanted(ready) {
                Ok(ready)
            } else {
                Err(format!("{ready} ready of {:?}", status.replicas))
            })
        })
        .await;
        waited.map_err(|error| self.stage.cluster.explain(&error, &self.namespace))
    }

    /// What the Deployment is asked for.
    pub(crate) async fn replicas(&self, name: &str) -> Result<i32> {
        let deployment = self.deployments().get(name).await?;
        deployment.spec.and_then(|spec| spec.replicas).context("no replicas in the Deployment")
    }

    /// Waits until so many workers are asked for, of the Deployment `orders`.
    pub(crate) async fn replicas_become(&self, count: i32) -> Result<()> {
        let what = format!("{count} workers are asked for");
        eventually_is(PATIENCE, &what, |replicas| *replicas == count, || self.replicas("orders")).await?;
        Ok(())
    }

    /// So many workers of `orders` stay, through several looks of the autoscaler, which here looks every two seconds and would scale in at once.
    pub(crate) async fn replicas_stay(&self, count: i32) -> Result<()> {
        let wanted = |replicas: &i32| *replicas == count;
        let held = always_is(Duration::from_secs(15), "the workers are held", wanted, || self.replicas("orders")).await;
        held.map_err(|error| self.stage.cluster.explain(&error, &self.namespace))
    }

    /// A connection to the database, which holds the events and the read models.
    pub(crate) async fn reader(&self) -> Result<tokio_postgres::Client> {
        self.server.connect(&self.database).await
    }

    /// Waits until every event is in the read model, then checks that each is there exactly once with what it said.
    pub(crate) async fn read_model_is_whole(&self, name: &str) -> Result<()> {
        let schema = name.replace('-', "_");
        let reader = self.reader().await?;
        let (missing, unequal) = (
            format!(
                "select count(*) from events e where not exists (select from {schema}.seen s where s.position = e.position)"
            ),
            format!(
                "select count(*) from (select position, stream, (data->>'n')::bigint from events where type = 'Counted' \
                 except all select position, stream, n from {schema}.seen) x"
            ),
        );
        let nothing = |count: &i64| *count == 0;
        eventually_is(PATIENCE, "every event is in the read model", nothing, || async {
            Ok::<i64, tokio_postgres::Error>(reader.query_one(&missing, &[]).await?.get(0))
        })
        .await
        .map_err(|error| self.stage.cluster.explain(&error, &self.namespace))?;
        let differing: i64 = reader.query_one(&unequal, &[]).await?.get(0);
        anyhow::ensure!(differing == 0, "{differing} rows of the read model differ from the events");
        Ok(())
    }

    /// The messages of the Events about an object, by reason.
    pub(crate) fn events_about(&self, name: &str) -> Result<BTreeMap<String, String>> {
        let selector = format!("involvedObject.name={name}");
        let text = self.stage.cluster.kubectl(&[
            "get",
            "events",
            "-n",
            &self.namespace,
            "--field-selector",
            &selector,
            "-o",
            "json",
        ])?;
        let list: Value = serde_json::from_str(&text)?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let text_of = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
        Ok(items.iter().map(|item| (text_of(item, "reason"), text_of(item, "message"))).collect())
    }

    /// The names of this kind of object that the operator made here.
    pub(crate) fn made(&self, kind: &str) -> Result<Vec<String>> {
        let text = self.stage.cluster.kubectl(&[
            "get",
            kind,
            "-n",
            &self.namespace,
            "-l",
            "app.kubernetes.io/managed-by=projectionist",
            "-o",
            "name",
        ])?;
        Ok(text.lines().map(ToOwned::to_owned).collect())
    }
}

/// A container that does nothing.
pub(crate) fn idle_container() -> Value {
    let image = test_cluster::images::TOOLBOX_IMAGE;
    json!({"name": "worker", "image": image, "imagePullPolicy": "Never", "args": ["pause"]})
}

/// A shop with a backlog that keeps four workers busy for minutes.
pub(crate) async fn busy<'a>(stage: &'a Stage, server: &'a Postgres, name: &str) -> Result<Shop<'a>> {
    let shop = Shop::open_on(stage, server, name).await?;
    shop.apply(&shop.projection(
        "orders",
        &json!({"spec": {"scaling": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}}}),
    ))?;
    shop.workers_are("orders", "the first worker is ready", |ready| ready == 1).await?;
    shop.events.append_events(4_000).await?;
    shop.workers_are("orders", "the backlog has brought all four workers", |ready| ready == 4).await?;
    Ok(shop)
}

/// Phase, for conditions in tests.
pub(crate) fn phase(projection: &Projection) -> Option<projectionist::api::Phase> {
    projection.status.as_ref().and_then(|status| status.phase)
}

/// The UID of an object that exists.
pub(crate) fn uid(object: &impl ResourceExt) -> String {
    object.uid().unwrap_or_default()
}
