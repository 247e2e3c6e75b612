//! Consumers of a team's own on a source that keeps how far they have come, from the first event until they have nothing to do: scaled by a real
//! autoscaler, and counted against what the source and the consumers say.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use projectionist::{
    api::{Phase, Projection},
    quantity::Quantity,
};
use serde_json::{Value, json};
use test_cluster::{eventually, eventually_is, images::WORKER_IMAGE};
use tokio::time::{Instant, sleep};

use crate::shop::{Shop, merge, phase};
use crate::stage::PATIENCE;

/// How long a consumer takes over an event, in milliseconds: it handles at most 40 a second.
const COST: u32 = 25;
/// How often events arrive.
const ARRIVE_EVERY: Duration = Duration::from_millis(200);

/// A source with its producers, and what it says of the consumers.
pub(crate) trait Source: Sync {
    /// Appends so many events.
    fn append(&self, count: usize) -> impl Future<Output = Result<()>> + Send;
    /// What the consumers have not acknowledged or committed, in the source's own words.
    fn unfinished(&self) -> impl Future<Output = Result<i64>> + Send;
    /// Whether more may be told to be pending than there is, as long as there is some.
    fn is_bound(&self) -> bool {
        false
    }
    /// The names under which consumers write down all the events that were appended.
    fn names(&self) -> impl Future<Output = Result<BTreeSet<String>>> + Send;
}

/// How the events come and what is to be seen.
pub(crate) struct Course {
    /// Before any consumer runs.
    pub(crate) first: usize,
    /// Each [`ARRIVE_EVERY`], until enough consumers have begun.
    pub(crate) arriving: usize,
    /// So many are enough.
    pub(crate) scaled_out: i32,
    /// More are never asked for.
    pub(crate) most: i32,
    /// All at once, when enough consumers are ready and before all are stopped.
    pub(crate) burst: usize,
    /// What is left when all is done: `scaling.minWorkers`.
    pub(crate) least: i32,
}

/// A Projection `orders` with consumers in a pod template, changed by a JSON merge patch. `environment`: name and value, or name, Secret and key.
pub(crate) fn projection(namespace: &str, environment: &[(&str, Setting<'_>)], change: &Value) -> Value {
    let mut env = vec![
        json!({"name": "RECORD_URL", "valueFrom": {"secretKeyRef": {"name": "database", "key": "url"}}}),
        json!({"name": "COST_MS", "value": COST.to_string()}),
    ];
    env.extend(environment.iter().map(|(name, setting)| match setting {
        Setting::Value(value) => json!({"name": name, "value": value}),
        Setting::Secret(secret, key) => {
            json!({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
        }
    }));
    let mut projection = json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
        "metadata": {"name": "orders", "namespace": namespace},
        "spec": {
            "lag": {"target": "10s"},
            "scaling": {
                "minWorkers": 1, "maxWorkers": 6, "ordering": "None",
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}},
            },
            "projector": {"template": {"spec": {
                "terminationGracePeriodSeconds": 60,
                "containers": [{
                    "name": "worker", "image": WORKER_IMAGE, "imagePullPolicy": "Never", "env": env,
                    "resources": {"requests": {"cpu": "5m", "memory": "8Mi"}},
                    // One that has just been started is told to end only when it listens for that: otherwise it is killed a minute later, in the middle of an event.
                    "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
                }],
            }}},
        },
    });
    merge(&mut projection, change);
    projection
}

/// What a variable of the consumers is.
#[derive(Clone, Copy)]
pub(crate) enum Setting<'a> {
    Value(&'a str),
    Secret(&'a str, &'a str),
}

/// Exactly so many events are pending, as the status says.
pub(crate) fn pending_exactly(count: i64) -> impl Fn(&Projection) -> bool {
    move |projection| {
        let pending = projection.status.as_ref().and_then(|status| status.pending.clone());
        pending.is_some_and(|pending| pending.value == count && pending.exact)
    }
}

/// So many events are pending, or with an upper bound at least so many.
fn pending(count: i64, is_bound: bool) -> impl Fn(&Projection) -> bool {
    move |projection| {
        let told = projection.status.as_ref().and_then(|status| status.pending.as_ref());
        pending_exactly(count)(projection) || is_bound && told.is_some_and(|pending| pending.value >= count)
    }
}

/// The autoscaler reads the metric and asks for so many workers.
fn asks_for(autoscaler: &HorizontalPodAutoscaler, wanted: impl Fn(i32) -> bool) -> bool {
    let Some(status) = &autoscaler.status else { return false };
    let active = status.conditions.iter().flatten().any(|one| one.type_ == "ScalingActive" && one.status == "True");
    active && status.current_metrics.is_some() && wanted(status.desired_replicas)
}

impl Shop<'_> {
    pub(crate) async fn consumers_are_gone(&self) -> Result<()> {
        let gone = || async { Ok::<_, anyhow::Error>(self.made("pod")?.is_empty()) };
        eventually(PATIENCE, "the consumers are gone", gone).await
    }

    /// Waits until every consumer that is asked for has written something down. The first process of a container does not hear that it is to end before it
    /// listens for that, and one that is killed in the middle of its work leaves something handled and not acknowledged.
    async fn consumers_have_begun(&self) -> Result<()> {
        let all = || async {
            let asked = self.replicas("orders").await?;
            let pods: BTreeSet<String> =
                self.made("pod")?.iter().map(|name| name.trim_start_matches("pod/").to_owned()).collect();
            let rows = self.events.client().query("select distinct worker from handled", &[]).await?;
            let begun: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
            let idle: Vec<&String> = pods.difference(&begun).collect();
            let all = usize::try_from(asked)? == pods.len() && idle.is_empty();
            Ok::<_, anyhow::Error>(if all {
                Ok(())
            } else {
                Err(format!("{asked} are asked for, {idle:?} did nothing"))
            })
        };
        eventually(PATIENCE, "every consumer has handled something", all).await
    }

    pub(crate) async fn autoscaler_asks_for(&self, what: &str, wanted: impl Fn(i32) -> bool) -> Result<()> {
        let autoscalers = self.autoscalers();
        let is_wanted = |autoscaler: &HorizontalPodAutoscaler| asks_for(autoscaler, &wanted);
        eventually_is(PATIENCE, what, is_wanted, || autoscalers.get("orders")).await.map(drop)
    }

    /// The table in which the consumers write down what they handled.
    pub(crate) async fn make_record(&self) -> Result<()> {
        Ok(self
            .events
            .client()
            .batch_execute("create table handled (event text not null, worker text not null)")
            .await?)
    }

    pub(crate) fn secret(&self, name: &str, entries: &[(&str, &str)]) -> Result<()> {
        let entries: Vec<String> = entries.iter().map(|(key, value)| format!("--from-literal={key}={value}")).collect();
        let mut command = vec!["create", "secret", "generic", name, "-n", &self.namespace];
        command.extend(entries.iter().map(String::as_str));
        self.stage.cluster.kubectl(&command).map(drop)
    }

    /// How many events the consumers have written down.
    pub(crate) async fn recorded(&self) -> Result<i64> {
        Ok(self.events.client().query_one("select count(distinct event) from handled", &[]).await?.get(0))
    }

    /// Checks that the recorded events are those of the source, each handled once. Returns how many consumers handled some.
    pub(crate) async fn each_was_handled_once(&self, names: &BTreeSet<String>) -> Result<i64> {
        let client = self.events.client();
        let rows = client.query("select event, count(*) from handled group by event", &[]).await?;
        let often: Vec<(String, i64)> =
            rows.iter().map(|row| (row.get(0), row.get(1))).filter(|(_, times)| *times != 1).collect();
        ensure!(often.is_empty(), "handled more than once: {often:?}");
        let recorded: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        ensure!(recorded == *names, "{} events are recorded and {} were appended", recorded.len(), names.len());
        Ok(client.query_one("select count(distinct worker) from handled", &[]).await?.get(0))
    }

    /// Several tests print side by side.
    fn tells(&self, begun: Instant, what: &str) {
        eprintln!("{} {:5.1} s: {what}", self.namespace, begun.elapsed().as_secs_f64());
    }

    /// Follows what is asked for, for as long as it is polled; fails where that is more than the most.
    async fn asked_at_most(&self, most: i32, begun: Instant) -> Result<()> {
        let mut last = (-1, String::new());
        loop {
            let asked = self.replicas("orders").await.unwrap_or(0);
            let said = self.projections().get("orders").await.ok().and_then(|one| one.status);
            let said = said.and_then(|status| status.workers).and_then(|workers| workers.reason).unwrap_or_default();
            if asked != last.0 {
                self.tells(begun, &format!("{asked} asked for: {said}"));
                last = (asked, said);
            }
            ensure!(asked <= most, "{asked} workers are asked for: {}", last.1);
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// Plays the course. `projection` makes the Projection, suspended or not.
    pub(crate) async fn consumers_follow_the_lag(
        &self,
        source: &impl Source,
        course: &Course,
        projection: impl Fn(bool) -> Value,
    ) -> Result<()> {
        let begun = Instant::now();
        let played = async {
            tokio::select! {
                ended = self.asked_at_most(course.most, begun) => bail!("{ended:?}"),
                played = self.play_course(source, course, projection, begun) => played,
            }
        };
        played.await.map_err(|error| self.stage.cluster.explain(&error, &self.namespace))
    }

    async fn play_course(
        &self,
        source: &impl Source,
        course: &Course,
        projection: impl Fn(bool) -> Value,
        begun: Instant,
    ) -> Result<()> {
        // Before any consumer runs.
        source.append(course.first).await?;
        let first = i64::try_from(course.first)?;
        self.apply(&projection(true))?;
        let is_bound = source.is_bound();
        let is = |value: &str, count: i64| {
            value == count.to_string()
                || is_bound && Quantity::parse(value).is_ok_and(|value| value.milli() >= count * 1_000)
        };
        self.projection_is("orders", "what was appended is pending", pending(first, is_bound)).await?;
        self.metric_is("projection_pending_events", "orders", |value| is(value, first)).await?;

        // One consumer cannot keep up with what arrives.
        self.apply(&projection(false))?;
        let (extra, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
        let arrivals = async {
            // Never given up in the middle of an append, of which it would not be known whether it was carried out.
            while !enough.load(Ordering::Relaxed) {
                let count = course.arriving + extra.swap(0, Ordering::Relaxed);
                source.append(count).await.context("appending")?;
                sleep(ARRIVE_EVERY).await;
            }
            Ok(())
        };
        let scaled_out = async {
            self.autoscaler_asks_for("the autoscaler asks for more", |asked| asked >= course.scaled_out).await?;
            let ready =
                self.workers_are("orders", "more consumers are ready", |ready| ready >= course.scaled_out).await?;
            extra.store(course.burst, Ordering::Relaxed);
            self.consumers_have_begun().await?;
            enough.store(true, Ordering::Relaxed);
            Ok::<i32, anyhow::Error>(ready)
        };
        let ((), most) = try_join(arrivals, scaled_out).await?;
        self.tells(begun, &format!("{most} consumers are ready"));

        // All of them are stopped in the middle of their work: what they held or had not committed is counted like what no consumer was given.
        self.apply(&projection(true))?;
        self.consumers_are_gone().await?;
        source.append(100).await?;
        let unhandled = i64::try_from(source.names().await?.len())? - self.recorded().await?;
        if !is_bound {
            let own_number = || source.unfinished();
            let what = format!("the source itself tells {unhandled}");
            eventually_is(PATIENCE, &what, |own| *own == unhandled, own_number).await?;
        }
        let what = format!("{unhandled} are pending, which are not handled");
        self.projection_is("orders", &what, pending(unhandled, is_bound)).await?;
        self.metric_is("projection_pending_events", "orders", |value| is(value, unhandled)).await?;
        self.tells(begun, &format!("while none runs, {unhandled} are pending, as counted"));

        // They come back, and are sent away again when there is nothing to do.
        self.apply(&projection(false))?;
        let whole = i64::try_from(source.names().await?.len())?;
        eventually_is(PATIENCE * 2, "every event is handled", |done| *done == whole, || self.recorded()).await?;
        self.tells(begun, "every event is handled");
        self.projection_is("orders", "nothing is pending", pending_exactly(0)).await?;
        self.metric_is("projection_pending_events", "orders", |value| value == "0").await?;
        self.replicas_become(course.least).await?;
        self.workers_are("orders", "quiet has left the fewest", |ready| ready == course.least).await?;
        self.tells(begun, &format!("{} asked for", course.least));
        for condition in ["LagKnown", "WithinTarget", "Ready"] {
            self.condition_is("orders", condition, "True", "").await?;
        }
        let quiet = [Phase::Live, Phase::Idle];
        self.projection_is("orders", "it is live", |one| phase(one).is_some_and(|phase| quiet.contains(&phase)))
            .await?;
        let consumers = self.each_was_handled_once(&source.names().await?).await?;
        ensure!(source.unfinished().await? == 0, "the source still holds {}", source.unfinished().await?);
        let told = format!("{whole} events, each handled once, by {consumers} consumers (first {most} at a time)");
        self.tells(begun, &told);
        Ok(())
    }
}
