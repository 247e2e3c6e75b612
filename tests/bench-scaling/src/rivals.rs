//! What the workers are scaled by: ours, and what else there is.

use std::{collections::VecDeque, time::Duration};

use projectionist::{
    hpa::{Behavior, Policy as HpaPolicy, Rules, Select, TargetValue, Unit},
    simulate::{CpuPolicy, ModelPolicy, Policy, QueryPolicy, QueueLengthPolicy, State},
};
use serde_json::json;

use crate::traces::PER_WORKER;

/// The most workers.
pub const MOST: i32 = 24;
const WORKERS: std::ops::RangeInclusive<i32> = 1..=MOST;

/// A way to scale.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rival {
    /// An autoscaler on CPU, as it comes.
    Cpu,
    /// One worker for 10 pending events: what KEDA's Kafka scaler does unless told otherwise.
    CountByDefault,
    /// One worker for as many events as it handles within the target, and a window of 60 s.
    CountByTarget,
    /// For a third of that.
    CountTuned,
    /// A query that computes what ours does, told the capacity of a worker.
    Query,
    /// Ours through the autoscaler alone.
    OursByAutoscaler,
    /// Ours as it comes.
    Ours,
}

impl Rival {
    /// All of them, ours last.
    pub const ALL: [Self; 7] = [
        Self::Cpu,
        Self::CountByDefault,
        Self::CountByTarget,
        Self::CountTuned,
        Self::Query,
        Self::OursByAutoscaler,
        Self::Ours,
    ];

    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU 80 %",
            Self::CountByDefault => "count, default",
            Self::CountByTarget => "count, target",
            Self::CountTuned => "count, tuned",
            Self::Query => "query",
            Self::OursByAutoscaler => "ours by HPA",
            Self::Ours => "ours",
        }
    }

    /// A new one. Only those that are told what a worker handles are told anything but the target.
    pub fn policy(self, target: Duration) -> Box<dyn Policy> {
        let count = |share: f64| {
            let threshold = whole(PER_WORKER * target.as_secs_f64() * share);
            QueueLengthPolicy::with_behavior(WORKERS, threshold, Some(at_once()))
        };
        match self {
            Self::Cpu => Box::new(CpuPolicy::new(WORKERS)),
            Self::CountByDefault => Box::new(QueueLengthPolicy::new(WORKERS, 10)),
            Self::CountByTarget => Box::new(count(1.0)),
            Self::CountTuned => Box::new(count(1.0 / 3.0)),
            Self::Query => Box::new(QueryPolicy::new(WORKERS, TargetValue::Average(1_000), Some(at_once()), query())),
            Self::OursByAutoscaler => Box::new(ours(target, "Autoscaler")),
            Self::Ours => Box::new(ours(target, "Immediate")),
        }
    }
}

/// What one would write for a quick reaction: all at once up, and a window of 60 s down.
fn at_once() -> Behavior {
    let rules = |window: u64| Rules {
        window: Some(Duration::from_secs(window)),
        select: Select::Max,
        policies: vec![HpaPolicy { unit: Unit::Pods, value: MOST, period: Duration::from_secs(15) }],
        tolerance: None,
    };
    Behavior { scale_up: rules(0), scale_down: rules(60) }
}

/// Arrivals of 10 s over what a worker handles, and what waits over what it handles in 8 s.
fn query() -> impl FnMut(&State<'_>) -> Option<f64> {
    let mut seen: VecDeque<(Duration, f64)> = VecDeque::new();
    move |state| {
        let arrived = float(state.arrived);
        seen.push_back((state.now, arrived));
        while seen.get(1).is_some_and(|second| state.now - second.0 >= Duration::from_secs(10)) {
            seen.pop_front();
        }
        let (since, before) = *seen.front()?;
        let seconds = (state.now - since).as_secs_f64();
        let rate = if seconds > 0.0 { (arrived - before) / seconds } else { 0.0 };
        Some(rate / PER_WORKER + float(state.pending()) / (PER_WORKER * 8.0))
    }
}

fn ours(target: Duration, scale_out: &str) -> ModelPolicy {
    let projection = json!({
        "apiVersion": "projectionist.dev/v1alpha1",
        "kind": "Projection",
        "metadata": { "namespace": "shop", "name": "orders", "uid": "u" },
        "spec": {
            "source": { "postgres": { "connection": { "secretRef": { "name": "db" } }, "eventTable": {} } },
            "readStore": { "postgres": { "connection": { "secretRef": { "name": "db" } } } },
            "lag": { "target": format!("{}s", target.as_secs()) },
            "scaling": { "maxWorkers": MOST, "shards": 24, "scaleOut": scale_out },
            "projector": { "builtin": { "handlers": { "Ordered": "select 1" } } },
        },
    });
    let projection = serde_json::from_value(projection).unwrap_or_else(|error| unreachable!("{error}"));
    ModelPolicy::new(&projection, None).unwrap_or_else(|error| unreachable!("{error}"))
}

/// Counts of events stay far below 2^53.
#[allow(clippy::cast_precision_loss)]
fn float(count: u64) -> f64 {
    count as f64
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A few hundred.
fn whole(number: f64) -> u32 {
    number.round() as u32
}
