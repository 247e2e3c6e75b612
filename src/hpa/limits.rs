//! How far the number of replicas may move now, by the policies of a [`Behavior`] and what was scaled lately.

use std::time::Duration;

use super::{
    arithmetic::{ceil_to_i32, trunc_to_i32},
    behavior::{Behavior, Policy, Rules, Select, Unit},
};

/// What was scaled lately, as far as the policies look back. Of times only the differences count; they must not go back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scalings {
    up: Vec<Scaling>,
    down: Vec<Scaling>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Scaling {
    at: Duration,
    /// Always positive.
    by: i32,
}

impl Scalings {
    /// Takes note that the replicas were changed from `from` to `to` at the time `at`. What no policy of `behavior` looks back at any more
    /// makes room, so that the note does not grow.
    pub fn record(&mut self, behavior: &Behavior, from: i32, to: i32, at: Duration) {
        let (list, rules) =
            if to > from { (&mut self.up, &behavior.scale_up) } else { (&mut self.down, &behavior.scale_down) };
        let scaling = Scaling { at, by: to.wrapping_sub(from).wrapping_abs() };
        // One that no longer counts is only overwritten, never removed: the policies of the other direction, which may look back further,
        // see it until then. So does the controller.
        let longest = rules.longest_period();
        match list.iter_mut().rfind(|old| old.at + longest < at) {
            Some(old) => *old = scaling,
            None => list.push(scaling),
        }
    }

    /// The replicas at the beginning of the period that ends now.
    fn replicas_before(&self, current: i32, period: Duration, now: Duration) -> i32 {
        let sum = |list: &[Scaling]| {
            let within = list.iter().filter(|scaling| scaling.at + period > now);
            within.fold(0_i32, |sum, scaling| sum.wrapping_add(scaling.by))
        };
        current.wrapping_sub(sum(&self.up)).wrapping_add(sum(&self.down))
    }
}

impl Behavior {
    /// The most replicas that the scale-up policies allow now, from `current` ones and after `scalings`. Never less than `current`.
    /// The stabilization window and the largest number of replicas are matters of their own.
    pub fn scale_up_limit(&self, current: i32, scalings: &Scalings, now: Duration) -> i32 {
        let propose = |policy: &Policy| {
            let before = scalings.replicas_before(current, policy.period, now);
            match policy.unit {
                Unit::Pods => before.wrapping_add(policy.value),
                // Rounded up: from one replica, a few per cent would else never be another.
                Unit::Percent => ceil_to_i32(f64::from(before) * (1.0 + f64::from(policy.value) / 100.0)),
            }
        };
        select(&self.scale_up, current, propose, Ord::max).max(current)
    }

    /// The fewest replicas that the scale-down policies allow now, from `current` ones and after `scalings`. Never more than `current`.
    pub fn scale_down_limit(&self, current: i32, scalings: &Scalings, now: Duration) -> i32 {
        let propose = |policy: &Policy| {
            let before = scalings.replicas_before(current, policy.period, now);
            match policy.unit {
                Unit::Pods => before.wrapping_sub(policy.value),
                Unit::Percent => trunc_to_i32(f64::from(before) * (1.0 - f64::from(policy.value) / 100.0)),
            }
        };
        select(&self.scale_down, current, propose, Ord::min).min(current)
    }
}

/// The proposal that counts; `larger` is the one of two that changes more.
fn select(rules: &Rules, current: i32, propose: impl Fn(&Policy) -> i32, larger: fn(i32, i32) -> i32) -> i32 {
    let proposals = rules.policies.iter().map(propose);
    let chosen = match rules.select {
        Select::Disabled => None,
        Select::Max => proposals.reduce(larger),
        Select::Min => proposals.reduce(|one, other| if larger(one, other) == one { other } else { one }),
    };
    chosen.unwrap_or(current)
}

/// The most replicas that are allowed in one step without any `behavior`.
pub fn scale_up_limit_without_behavior(current: i32) -> i32 {
    trunc_to_i32((2.0 * f64::from(current)).max(4.0))
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
