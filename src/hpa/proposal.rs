//! How many replicas one metric asks for.

use std::time::Duration;

use super::{
    arithmetic::{as_float, ceil_at_most_i32, ceil_to_i32, ceil_to_i64},
    pods::{Group, Pod, Youth},
};

/// What a metric is and what it is held against.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Metric {
    /// Of `external.metrics.k8s.io`: the sum of its items.
    External(TargetValue),
    /// Of `custom.metrics.k8s.io`, about one object.
    Object(TargetValue),
    /// CPU of the pods, in per cent of what they request.
    Cpu {
        /// `averageUtilization`.
        utilization: i32,
    },
}

/// A target in thousandths, greater than 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TargetValue {
    /// `value`: for the whole metric, and so relative to the pods that are ready.
    Value(i64),
    /// `averageValue`: for each replica.
    Average(i64),
}

/// What the metrics API answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reading {
    /// An answer of `external.metrics.k8s.io`, in thousandths.
    Items(Vec<i64>),
    /// An answer of `custom.metrics.k8s.io`, in thousandths.
    Value(i64),
    /// The answer of the metrics server is in [`Pod::cpu`].
    OfPods,
    /// No answer, or an error.
    Failed,
}

/// What one metric asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Proposal {
    /// The number of replicas that the metric asks for.
    pub replicas: i32,
    /// What the autoscaler's status shows as current: thousandths of the value, of the average for each replica, or of a core.
    pub shown: i64,
}

/// Why a metric asks for nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Invalid {
    /// Not answered.
    #[error("the metric was not answered")]
    NotAnswered,
    /// Answered without a single item.
    #[error("the answer holds no items")]
    NoItems,
    /// An answer about something else.
    #[error("the answer is of another kind than the metric")]
    WrongKind,
    /// The workload has no pods at all.
    #[error("the selector finds no pods")]
    NoPods,
    /// No pod's use counts.
    #[error("no pod that counts has metrics")]
    NoPodCounts,
    /// A pod requests no CPU, so that nothing can be a share of it.
    #[error("a pod requests no CPU")]
    NoRequest,
}

/// From which ratio of usage to target something is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerances {
    pub(super) up: f64,
    pub(super) down: f64,
}

/// The workload, as the scale subresource and the list of pods show it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Scale<'a> {
    /// `spec.replicas`.
    pub spec: i32,
    /// `status.replicas`.
    pub status: i32,
    /// Those that the selector finds.
    pub pods: &'a [Pod],
}

impl Tolerances {
    fn allow(self, ratio: f64) -> bool {
        (1.0 - self.down) <= ratio && ratio <= (1.0 + self.up)
    }
}

pub(super) fn propose(
    metric: Metric,
    reading: &Reading,
    scale: Scale<'_>,
    tolerances: Tolerances,
    youth: Youth,
    now: Duration,
) -> Result<Proposal, Invalid> {
    match (metric, reading) {
        (_, Reading::Failed) => Err(Invalid::NotAnswered),
        (Metric::External(_), Reading::Items(items)) if items.is_empty() => Err(Invalid::NoItems),
        (Metric::External(TargetValue::Value(target)), Reading::Items(items)) => {
            by_ready_pods(sum_of_values(items), target, scale, tolerances)
        }
        (Metric::External(TargetValue::Average(target)), Reading::Items(items)) => {
            Ok(for_each_replica(sum_for_averages(items), target, scale.status, tolerances, ceil_at_most_i32))
        }
        (Metric::Object(TargetValue::Value(target)), Reading::Value(usage)) => {
            by_ready_pods(*usage, target, scale, tolerances)
        }
        (Metric::Object(TargetValue::Average(target)), Reading::Value(usage)) => {
            Ok(for_each_replica(*usage, target, scale.status, tolerances, ceil_to_i32))
        }
        (Metric::Cpu { utilization }, Reading::OfPods) => by_utilization(utilization, scale, tolerances, youth, now),
        _ => Err(Invalid::WrongKind),
    }
}

/// What is too much stays the most; a negative sum stays negative.
fn sum_of_values(items: &[i64]) -> i64 {
    let mut sum = 0_i64;
    for item in items {
        if *item > 0 && sum > i64::MAX - *item {
            return i64::MAX;
        }
        sum = sum.wrapping_add(*item);
    }
    sum
}

/// A sum below 0 is taken for one that was too much, wherever it comes from.
fn sum_for_averages(items: &[i64]) -> i64 {
    let mut sum = 0_i64;
    for item in items {
        sum = sum.wrapping_add(*item);
        if sum < 0 {
            return i64::MAX;
        }
    }
    sum
}

fn by_ready_pods(usage: i64, target: i64, scale: Scale<'_>, tolerances: Tolerances) -> Result<Proposal, Invalid> {
    let ratio = as_float(usage) / as_float(target);
    let replicas = if tolerances.allow(ratio) {
        scale.spec
    } else if scale.pods.is_empty() {
        return Err(Invalid::NoPods);
    } else {
        let ready = scale.pods.iter().filter(|pod| pod.counts_as_ready()).count();
        ceil_at_most_i32(ratio * count(ready))
    };
    Ok(Proposal { replicas, shown: usage })
}

fn for_each_replica(
    usage: i64,
    target: i64,
    replicas: i32,
    tolerances: Tolerances,
    ceiling: fn(f64) -> i32,
) -> Proposal {
    let ratio = as_float(usage) / (as_float(target) * f64::from(replicas));
    let proposed = if tolerances.allow(ratio) { replicas } else { ceiling(as_float(usage) / as_float(target)) };
    let shown = if usage == i64::MAX { usage } else { ceil_to_i64(as_float(usage) / f64::from(replicas)) };
    Proposal { replicas: proposed, shown }
}

fn by_utilization(
    target: i32,
    scale: Scale<'_>,
    tolerances: Tolerances,
    youth: Youth,
    now: Duration,
) -> Result<Proposal, Invalid> {
    if scale.pods.is_empty() {
        return Err(Invalid::NoPods);
    }
    let grouped: Vec<(Group, i64)> = scale.pods.iter().map(|pod| (pod.group(youth, now), pod.cpu_request)).collect();
    let measured = |group: Group| if let Group::Ready(milli) = group { Some(milli) } else { None };
    let counted = grouped.iter().filter_map(|(group, request)| Some((measured(*group)?, *request)));
    let counted: Vec<(i64, i64)> = counted.collect();
    if counted.is_empty() {
        return Err(Invalid::NoPodCounts);
    }
    let ratio = utilization(&counted, target)?;
    let used: i64 = counted.iter().map(|(used, _)| used).sum();
    let shown = used / i64::try_from(counted.len()).unwrap_or(1);
    let proposed = |replicas| Ok(Proposal { replicas, shown });
    let held = proposed(scale.spec);

    let any = |wanted: Group| grouped.iter().any(|(group, _)| *group == wanted);
    let up_with_unready = any(Group::Unready) && ratio > 1.0;
    if !up_with_unready && !any(Group::Missing) {
        let all = ceil_to_i32(ratio * count(counted.len()));
        return if tolerances.allow(ratio) { held } else { proposed(all) };
    }
    // What is not known is taken for what speaks against the move.
    let assumed = grouped.iter().filter_map(|(group, request)| match group {
        Group::Ready(used) => Some((*used, *request)),
        Group::Missing if ratio < 1.0 => Some((request * i64::from(target.max(100)) / 100, *request)),
        Group::Missing if ratio > 1.0 => Some((0, *request)),
        Group::Unready if up_with_unready => Some((0, *request)),
        _ => None,
    });
    let assumed: Vec<(i64, i64)> = assumed.collect();
    let again = utilization(&assumed, target)?;
    let turned = (ratio < 1.0 && again > 1.0) || (ratio > 1.0 && again < 1.0);
    if tolerances.allow(again) || turned {
        return held;
    }
    let replicas = ceil_to_i32(again * count(assumed.len()));
    if (again < 1.0 && replicas > scale.spec) || (again > 1.0 && replicas < scale.spec) {
        return held;
    }
    proposed(replicas)
}

/// Use over request, in whole per cent, over the target.
fn utilization(pods: &[(i64, i64)], target: i32) -> Result<f64, Invalid> {
    let (used, requested) =
        pods.iter().fold((0_i64, 0_i64), |(used, requested), pod| (used + pod.0, requested + pod.1));
    if requested == 0 {
        return Err(Invalid::NoRequest);
    }
    Ok(as_float(used * 100 / requested) / f64::from(target))
}

#[allow(clippy::cast_precision_loss)]
fn count(pods: usize) -> f64 {
    pods as f64
}

#[cfg(test)]
#[path = "proposal_tests.rs"]
mod tests;
