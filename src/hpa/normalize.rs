//! From the replicas that the metrics ask for to those that the rules let through: windows first, then rates, then min and max.

use std::time::Duration;

use super::{
    behavior::Behavior,
    limits::{Scalings, scale_up_limit_without_behavior},
};

/// What the controller remembers of one autoscaler between two looks. A restart of the controller forgets it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    recommendations: Vec<Recommendation>,
    scalings: Scalings,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Recommendation {
    at: Duration,
    replicas: i32,
}

/// The fewest and the most replicas.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Range {
    /// `minReplicas`.
    pub min: i32,
    /// `maxReplicas`.
    pub max: i32,
}

/// What the rules let through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Normalized {
    /// How many replicas.
    pub replicas: i32,
    /// An earlier recommendation counted more than this one.
    pub stabilized: bool,
    /// The rate of change, min or max held the number back.
    pub limited: bool,
}

impl Memory {
    /// The first look takes what is there for a recommendation, so that the windows hold from the beginning. Later ones change nothing.
    pub fn begin(&mut self, now: Duration, current: i32) {
        if self.recommendations.is_empty() {
            self.recommendations.push(Recommendation { at: now, replicas: current });
        }
    }

    /// What becomes of `desired`, the answer of the metrics, now; remembers it. `usual_window` is the controller's own downscale
    /// stabilization, where `behavior` is absent or does not say.
    pub fn normalize(
        &mut self,
        behavior: Option<&Behavior>,
        usual_window: Duration,
        range: Range,
        now: Duration,
        current: i32,
        desired: i32,
    ) -> Normalized {
        let (stable, replicas) = match behavior {
            None => {
                let stable = self.highest(usual_window, now, desired);
                (stable, within_usual_rules(current, stable, range))
            }
            Some(behavior) => {
                let up = behavior.scale_up.window.unwrap_or(Duration::ZERO);
                let down = behavior.scale_down.window.unwrap_or(usual_window);
                let stable = self.between(up, down, now, current, desired);
                (stable, self.within_rates(behavior, range, now, current, stable))
            }
        };
        Normalized { replicas, stabilized: stable != desired, limited: replicas != stable }
    }

    /// Records that the number of replicas was changed. Without `behavior` no rule uses the record.
    pub fn scaled(&mut self, behavior: Option<&Behavior>, from: i32, to: i32, at: Duration) {
        if let Some(behavior) = behavior {
            self.scalings.record(behavior, from, to, at);
        }
    }

    /// What was scaled lately.
    pub fn scalings(&self) -> &Scalings {
        &self.scalings
    }

    /// Without `behavior`: the highest recommendation of the window, its beginning included.
    fn highest(&mut self, window: Duration, now: Duration, desired: i32) -> i32 {
        let recent = self.recommendations.iter().filter(|earlier| earlier.at + window >= now);
        let highest = recent.map(|earlier| earlier.replicas).max().unwrap_or(desired).max(desired);
        self.remember(now, desired, |earlier| earlier.at + window < now);
        highest
    }

    /// With `behavior`: as near to `current` as the lowest of the window upwards and the highest of that downwards allow, beginnings excluded.
    fn between(&mut self, up: Duration, down: Duration, now: Duration, current: i32, desired: i32) -> i32 {
        let within = |window: Duration| {
            let recent = self.recommendations.iter().filter(move |earlier| earlier.at + window > now);
            recent.map(|earlier| earlier.replicas)
        };
        let lowest = within(up).min().unwrap_or(desired).min(desired);
        let highest = within(down).max().unwrap_or(desired).max(desired);
        self.remember(now, desired, |earlier| earlier.at + up < now && earlier.at + down < now);
        current.max(lowest).min(highest)
    }

    fn remember(&mut self, at: Duration, replicas: i32, outdated: impl Fn(&Recommendation) -> bool) {
        let recommendation = Recommendation { at, replicas };
        match self.recommendations.iter_mut().rfind(|earlier| outdated(earlier)) {
            Some(earlier) => *earlier = recommendation,
            None => self.recommendations.push(recommendation),
        }
    }

    fn within_rates(&self, behavior: &Behavior, range: Range, now: Duration, current: i32, stable: i32) -> i32 {
        if stable > current {
            stable.min(range.max.min(behavior.scale_up_limit(current, &self.scalings, now)))
        } else if stable < current {
            stable.max(range.min.max(behavior.scale_down_limit(current, &self.scalings, now)))
        } else {
            stable
        }
    }
}

fn within_usual_rules(current: i32, stable: i32, range: Range) -> i32 {
    if stable < range.min { range.min } else { stable.min(range.max.min(scale_up_limit_without_behavior(current))) }
}

#[cfg(test)]
#[path = "normalize_tests.rs"]
mod tests;
