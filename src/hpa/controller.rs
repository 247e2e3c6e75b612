//! One look of the controller at one autoscaler: whether the metrics are asked, what they ask for together, and what the rules make of it.

use std::time::Duration;

use super::{
    behavior::Behavior,
    normalize::{Memory, Normalized, Range},
    pods::Youth,
    proposal::{Invalid, Metric, Proposal, Reading, Scale, Tolerances, propose},
};

/// A HorizontalPodAutoscaler, as far as it decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Autoscaler {
    /// `minReplicas`, at least 1, and `maxReplicas`.
    pub range: Range,
    /// At least one.
    pub metrics: Vec<Metric>,
    /// `behavior`. None is not the same as an empty one: see [`Behavior::default`].
    pub behavior: Option<Behavior>,
}

/// How the controller is set up: flags of the kube-controller-manager.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// `--horizontal-pod-autoscaler-tolerance`.
    pub tolerance: f64,
    /// `--horizontal-pod-autoscaler-downscale-stabilization`.
    pub downscale_stabilization: Duration,
    /// `--horizontal-pod-autoscaler-cpu-initialization-period`.
    pub cpu_initialization_period: Duration,
    /// `--horizontal-pod-autoscaler-initial-readiness-delay`.
    pub initial_readiness_delay: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tolerance: 0.1,
            downscale_stabilization: Duration::from_secs(300),
            cpu_initialization_period: Duration::from_secs(300),
            initial_readiness_delay: Duration::from_secs(30),
        }
    }
}

/// What a look came to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Evaluation {
    /// What is written to the scale, if anything.
    pub scale_to: Option<i32>,
    /// Why.
    pub decided_by: DecidedBy,
    /// What each metric asked for; empty where they were not asked.
    pub proposals: Vec<Result<Proposal, Invalid>>,
}

/// What decided.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DecidedBy {
    /// At 0 replicas the autoscaler rests.
    Disabled,
    /// There were more than max, or fewer than min: set right, without asking the metrics.
    OutOfRange,
    /// The metrics were not sufficient: the number of replicas is kept.
    Unknown,
    /// The metrics, and the rules.
    Metrics(Normalized),
}

/// The controller, as far as it concerns one autoscaler.
#[derive(Clone, Debug)]
pub struct Controller {
    settings: Settings,
    memory: Memory,
}

impl Controller {
    /// One that has just started.
    pub fn new(settings: Settings) -> Self {
        Self { settings, memory: Memory::default() }
    }

    /// Looks once. `readings` are the answers to `autoscaler.metrics`, in that order; one that is absent was not answered. What is to be
    /// scaled counts as done.
    pub fn look(
        &mut self,
        autoscaler: &Autoscaler,
        scale: Scale<'_>,
        readings: &[Reading],
        now: Duration,
    ) -> Evaluation {
        let Autoscaler { range, metrics, behavior } = autoscaler;
        let current = scale.spec;
        self.memory.begin(now, current);
        let unasked = |decided_by, scale_to| Evaluation { scale_to, decided_by, proposals: Vec::new() };
        let look = if current == 0 {
            unasked(DecidedBy::Disabled, None)
        } else if current > range.max {
            unasked(DecidedBy::OutOfRange, Some(range.max))
        } else if current < range.min {
            unasked(DecidedBy::OutOfRange, Some(range.min))
        } else {
            let proposals = self.ask(metrics, behavior.as_ref(), scale, readings, now);
            match together(&proposals, current) {
                None => Evaluation { scale_to: None, decided_by: DecidedBy::Unknown, proposals },
                Some(desired) => {
                    let window = self.settings.downscale_stabilization;
                    let normalized =
                        self.memory.normalize(behavior.as_ref(), window, *range, now, current, desired.max(0));
                    let scale_to = Some(normalized.replicas).filter(|replicas| *replicas != current);
                    Evaluation { scale_to, decided_by: DecidedBy::Metrics(normalized), proposals }
                }
            }
        };
        if let Some(replicas) = look.scale_to {
            self.memory.scaled(behavior.as_ref(), current, replicas, now);
        }
        look
    }

    fn ask(
        &self,
        metrics: &[Metric],
        behavior: Option<&Behavior>,
        scale: Scale<'_>,
        readings: &[Reading],
        now: Duration,
    ) -> Vec<Result<Proposal, Invalid>> {
        let usual = self.settings.tolerance;
        let tolerances = Tolerances {
            up: behavior.and_then(|behavior| behavior.scale_up.tolerance).unwrap_or(usual),
            down: behavior.and_then(|behavior| behavior.scale_down.tolerance).unwrap_or(usual),
        };
        let youth = Youth {
            initialization: self.settings.cpu_initialization_period,
            readiness_delay: self.settings.initial_readiness_delay,
        };
        let answers = readings.iter().chain(std::iter::repeat(&Reading::Failed));
        let pairs = metrics.iter().zip(answers);
        pairs.map(|(metric, reading)| propose(*metric, reading, scale, tolerances, youth, now)).collect()
    }
}

/// The most that a valid metric asks for; nothing where none is valid, or where one is not and the others would scale in.
fn together(proposals: &[Result<Proposal, Invalid>], current: i32) -> Option<i32> {
    // Any proposal that follows replaces a proposal of 0, even a negative one.
    let valid = proposals.iter().flatten().map(|proposal| proposal.replicas);
    let most = valid.fold(0, |most, replicas| if most == 0 || replicas > most { replicas } else { most });
    let invalid = proposals.iter().filter(|proposal| proposal.is_err()).count();
    let unknown = invalid == proposals.len() || (invalid > 0 && most < current);
    (!unknown).then_some(most)
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;
