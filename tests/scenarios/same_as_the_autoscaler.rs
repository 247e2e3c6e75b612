//! The simulator finds the replicas that the real HorizontalPodAutoscaler controller finds, from the same metrics.
//!
//! Autoscalers of many kinds read one metric, which the test moves step by step. What each of them makes of it is watched on the cluster and then
//! simulated with steps of the same lengths. Compared is the sequence of replicas within each step, and no time: each step lasts until nothing
//! has changed for longer than any rule that is on its way needs, and what takes longer takes an hour.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use projectionist::{
    hpa::{Autoscaler, Reading},
    simulate::{Point, Policy, Scenario, State, Trace, run},
};
use serde_json::{Value, json};

use crate::shop::{Shop, idle_container};
use crate::stage::{PATIENCE, Stage, play, together};

/// Events that pend, step by step. 33 after 30 is just within the usual tolerance of ten replicas.
const SERIES: [i64; 5] = [10, 30, 33, 12, 0];
/// Events in the log.
const EVENTS: i64 = 40;
/// A step is over when nothing has changed for so long. Windows and periods of the cases are shorter than this, or an hour.
const SETTLED: Duration = Duration::from_secs(20);
/// The real controller's period, by the stage.
const SYNC_PERIOD: Duration = Duration::from_secs(2);

/// When the simulated controller looks first, in milliseconds. That of the real one is not known.
const PHASES: [u64; 4] = [100, 700, 1_300, 1_900];

/// An autoscaler and its workload.
struct Case {
    name: &'static str,
    /// Replicas at the beginning.
    start: i32,
    /// The pods run and become ready; else they stay unscheduled, which no average minds.
    ready: bool,
    /// The autoscaler's spec, without the workload.
    spec: Value,
}

fn external(projection: &str, target: &Value) -> Value {
    let selector = json!({"matchLabels": {"projection": projection}});
    json!({"type": "External", "external": {"metric": {"name": "projection_pending_events", "selector": selector}, "target": target}})
}

fn object(target: &Value) -> Value {
    let described = json!({"apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection", "name": "orders"});
    json!({"type": "Object", "object": {"describedObject": described, "metric": {"name": "pending_events"}, "target": target}})
}

fn value(quantity: &str) -> Value {
    json!({"type": "Value", "value": quantity})
}

fn average(quantity: &str) -> Value {
    json!({"type": "AverageValue", "averageValue": quantity})
}

fn case(name: &'static str, start: i32, metric: &Value, behavior: &Value) -> Case {
    let spec = json!({"minReplicas": 1, "maxReplicas": 12, "metrics": [metric], "behavior": behavior});
    Case { name, start, ready: false, spec }
}

/// Rules that scale in at once.
fn at_once() -> Value {
    json!({"scaleDown": {"stabilizationWindowSeconds": 0}})
}

fn cases() -> Vec<Case> {
    let fours = external("orders", &average("4"));
    let threes = external("orders", &average("3"));
    let policy = |type_: &str, value: i32, period: i32| json!({"type": type_, "value": value, "periodSeconds": period});
    let mut several = case("one-metric-invalid", 2, &fours, &at_once());
    several.spec["metrics"] = json!([fours, external("missing", &average("1"))]);
    let mut none_valid = case("no-metric-valid", 3, &fours, &at_once());
    none_valid.spec["metrics"] = json!([external("missing", &average("1"))]);
    let mut two = case("two-metrics", 2, &fours, &at_once());
    two.spec["metrics"] = json!([object(&average("2500m")), fours]);
    let mut outside = case("outside-the-range", 9, &fours, &at_once());
    outside.spec["minReplicas"] = json!(4);
    outside.spec["maxReplicas"] = json!(6);
    let mut by_value = case("external-value", 1, &external("orders", &value("7")), &at_once());
    by_value.ready = true;
    // More would depend on how many of several new pods are ready at a look.
    by_value.spec["maxReplicas"] = json!(3);
    let mut unready = case("object-value-unready", 5, &object(&value("5")), &at_once());
    unready.spec["minReplicas"] = json!(2);
    vec![
        case("external-average", 1, &fours, &at_once()),
        case("no-behavior", 1, &object(&average("4500m")), &Value::Null),
        case("empty-behavior", 1, &fours, &json!({})),
        case("usual-tolerance", 2, &threes, &at_once()),
        case(
            "own-tolerances",
            2,
            &threes,
            &json!({"scaleUp": {"tolerance": "0"}, "scaleDown": {"tolerance": "650m", "stabilizationWindowSeconds": 0}}),
        ),
        case(
            "slow-policies",
            2,
            &fours,
            &json!({
                "scaleUp": {"policies": [policy("Pods", 2, 1800)]},
                "scaleDown": {"stabilizationWindowSeconds": 0, "policies": [policy("Percent", 40, 1800)]},
            }),
        ),
        case(
            "smallest-change",
            2,
            &fours,
            &json!({
                "scaleUp": {"selectPolicy": "Min", "policies": [policy("Pods", 2, 9), policy("Percent", 50, 5)]},
                "scaleDown": {"selectPolicy": "Disabled"},
            }),
        ),
        case(
            "up-window",
            2,
            &fours,
            &json!({"scaleUp": {"stabilizationWindowSeconds": 3600}, "scaleDown": {"stabilizationWindowSeconds": 0}}),
        ),
        case("down-window", 2, &fours, &json!({"scaleDown": {"stabilizationWindowSeconds": 3600}})),
        case(
            "short-windows",
            2,
            &fours,
            &json!({"scaleUp": {"stabilizationWindowSeconds": 8}, "scaleDown": {"stabilizationWindowSeconds": 12}}),
        ),
        several,
        none_valid,
        two,
        outside,
        by_value,
        unready,
    ]
}

impl Case {
    fn apply(&self, shop: &Shop<'_>) -> Result<()> {
        let Self { name, start, ready, spec } = self;
        let metadata = json!({"name": name, "namespace": shop.namespace, "labels": {"differential": "yes"}});
        let mut pod = json!({
            "terminationGracePeriodSeconds": 0,
            "containers": [idle_container()],
        });
        if !ready {
            pod["nodeSelector"] = json!({"nowhere": "to-be-found"});
        }
        shop.apply(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {
                "replicas": start,
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
            },
        }))?;
        let mut spec = spec.clone();
        spec["scaleTargetRef"] = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": name});
        shop.apply(&json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": spec,
        }))?;
        Ok(())
    }

    /// The replicas of each step, by the simulator, when the controller looks first at `phase`.
    ///
    /// `behind`: of which metrics the first look of each step still finds what was before, if anything, a bit for each. The controller reads one metric after the other,
    /// from whichever replica of the operator answers, so that a change can come between two of them.
    fn simulated(&self, lengths: &[Duration], phase: Duration, behind: u32) -> Result<Vec<Vec<i32>>> {
        let mut spec = self.spec.clone();
        spec["scaleTargetRef"] = json!({"kind": "Deployment", "name": self.name});
        let autoscaler = Autoscaler::from_spec(&serde_json::from_value(spec)?)?;
        let readings = self.spec["metrics"].as_array().context("no metrics")?.iter().map(|metric| {
            let missing = metric.pointer("/external/metric/selector/matchLabels/projection") == Some(&json!("missing"));
            let kind = if missing {
                Kind::Failed
            } else if metric["type"] == "Object" {
                Kind::Object
            } else {
                Kind::External
            };
            move |events: i64| match kind {
                Kind::Failed => Reading::Failed,
                Kind::Object => Reading::Value(events * 1_000),
                Kind::External => Reading::Items(vec![events * 1_000]),
            }
        });
        let mut ends = Vec::new();
        let mut end = Duration::ZERO;
        for length in lengths {
            end += *length;
            ends.push(end);
        }
        let mut series = Series { autoscaler, ends: ends.clone(), readings: readings.collect(), behind };
        let nothing = Point { arriving: 0.0, per_worker: None };
        let trace = Trace::new(end, vec![nothing]).context("no steps")?;
        let start_up = if self.ready { Duration::from_secs(1) } else { Duration::from_secs(1_000_000) };
        let mut plan = Scenario {
            start_up,
            workers: self.start,
            sync_period: SYNC_PERIOD,
            phase,
            ..Scenario::new(trace, SETTLED)
        };
        if !self.ready {
            plan.ready_at_first = false;
        }
        let changes = run(&plan, &mut series).changes();
        // As `readings` has it: what a look at the end of a step finds is the next step's.
        let step_of = |at: Duration| ends.iter().position(|end| at < *end).unwrap_or(ends.len() - 1);
        let mut steps = vec![Vec::new(); ends.len()];
        for (at, _, to) in changes {
            steps[step_of(at)].push(to);
        }
        Ok(steps)
    }

    /// Each way in which metrics can be behind others. One alone is behind none.
    fn ways_behind(&self) -> std::ops::Range<u32> {
        let metrics = self.spec["metrics"].as_array().map_or(0, Vec::len);
        0..if metrics > 1 { 1 << metrics } else { 1 }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    External,
    Object,
    Failed,
}

/// What the metrics API answers, by time.
struct Series<R> {
    autoscaler: Autoscaler,
    ends: Vec<Duration>,
    readings: Vec<R>,
    /// As in [`Case::simulated`].
    behind: u32,
}

impl<R: Fn(i64) -> Reading> Policy for Series<R> {
    fn autoscaler(&self) -> Option<Autoscaler> {
        Some(self.autoscaler.clone())
    }

    fn sample(&mut self, _: &State<'_>) {}

    fn readings(&mut self, state: &State<'_>) -> Vec<Reading> {
        let step_at = |now| self.ends.iter().position(|end| now < *end).unwrap_or(self.ends.len() - 1);
        let before = state.now.checked_sub(SYNC_PERIOD);
        let of = |(metric, reading): (usize, &R)| {
            let seen = if self.behind >> metric & 1 == 1 { before } else { Some(state.now) };
            // Before the first step there was no value.
            seen.map_or(Reading::Failed, |seen| reading(SERIES[step_at(seen)]))
        };
        self.readings.iter().enumerate().map(of).collect()
    }
}

/// What has become of the workloads' replicas, by name.
struct Changes {
    seen: BTreeMap<String, i32>,
    found: BTreeMap<String, Vec<i32>>,
    last: Instant,
}

/// Notes each change as the API server tells it: whoever only looks now and then misses some on a busy machine.
async fn watch(deployments: Api<Deployment>, changes: Arc<Mutex<Changes>>) -> Result<()> {
    let ours = watcher::Config::default().labels("differential=yes");
    let mut told = pin!(watcher(deployments, ours).default_backoff().applied_objects());
    while let Some(deployment) = told.next().await {
        // What cannot be watched is tried again.
        let Ok(deployment) = deployment else { continue };
        let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).context("no replicas")?;
        let name = deployment.name_any();
        let mut changes = changes.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.seen.insert(name.clone(), replicas).is_some_and(|before| before != replicas) {
            changes.found.entry(name).or_default().push(replicas);
            changes.last = Instant::now();
        }
    }
    bail!("the watch has ended")
}

/// Waits until nothing has changed for a while; returns the changes since the last time.
async fn settle(changes: &Mutex<Changes>) -> Result<BTreeMap<String, Vec<i32>>> {
    let begun = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut changes = changes.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.max(changes.last).elapsed() >= SETTLED {
            return Ok(std::mem::take(&mut changes.found));
        }
        ensure!(begun.elapsed() < PATIENCE, "the autoscalers do not come to rest: {:?}", changes.found);
    }
}

#[test]
fn the_cases_do_not_depend_on_when_the_controller_looks() {
    for case in cases() {
        let mut all = Vec::new();
        for length in [24, 40] {
            for phase in PHASES {
                let lengths = [Duration::from_secs(length); SERIES.len()];
                all.push(case.simulated(&lengths, Duration::from_millis(phase), 0).unwrap());
            }
        }
        all.dedup();
        assert_eq!(all.len(), 1, "{}: {all:?}", case.name);
        println!("{}: {all:?}", case.name);
    }
}

#[test]
fn the_simulator_finds_the_replicas_that_the_real_controller_finds() {
    let _turn = together();
    play(|stage: &'static Stage| async move {
        let shop = Shop::open(stage, "differential").await?;
        shop.events.append_events(EVENTS.try_into()?).await?;
        shop.commit("orders", EVENTS - SERIES[0]).await?;
        shop.apply(&shop.measured("orders", &json!({})))?;
        shop.metric_is("projection_pending_events", "orders", |value| value == SERIES[0].to_string()).await?;
        let cases = cases();
        let seen = cases.iter().map(|case| (case.name.to_owned(), case.start)).collect();
        let mut begun = Instant::now();
        let changes = Arc::new(Mutex::new(Changes { seen, found: BTreeMap::new(), last: begun }));
        let watching = tokio::spawn(watch(shop.deployments(), Arc::clone(&changes)));
        for case in &cases {
            case.apply(&shop)?;
        }
        let (mut lengths, mut real) = (Vec::new(), Vec::new());
        for (step, events) in SERIES.iter().enumerate() {
            if step > 0 {
                shop.commit("orders", EVENTS - events).await?;
                shop.metric_is("projection_pending_events", "orders", |value| value == events.to_string()).await?;
            }
            real.push(settle(&changes).await?);
            lengths.push(begun.elapsed());
            begun = Instant::now();
        }
        ensure!(!watching.is_finished(), "{:?}", watching.await);
        watching.abort();
        let mut differing = Vec::new();
        for case in &cases {
            let watched: Vec<Vec<i32>> =
                real.iter().map(|step| step.get(case.name).cloned().unwrap_or_default()).collect();
            for phase in PHASES {
                let simulate = |behind| case.simulated(&lengths, Duration::from_millis(phase), behind);
                let simulated: Vec<_> = case.ways_behind().map(simulate).collect::<Result<_>>()?;
                // Another metric can be the one that is behind at each step.
                let found = |step: usize| simulated.iter().any(|one| one[step] == watched[step]);
                if !(0..SERIES.len()).all(found) {
                    let name = case.name;
                    differing
                        .push(format!("{name}: the controller {watched:?}, the simulator {simulated:?} ({phase} ms)"));
                }
            }
        }
        ensure!(differing.is_empty(), "steps of {lengths:?}, of {SERIES:?} events:\n{}", differing.join("\n"));
        let moved = |name: &str| real.iter().any(|step| step.contains_key(name));
        let unmoved: Vec<&str> = cases.iter().map(|case| case.name).filter(|name| !moved(name)).collect();
        ensure!(unmoved == ["no-metric-valid"], "the test would not see a difference: {unmoved:?} did not move");
        Ok(())
    });
}
