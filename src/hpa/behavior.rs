//! What `behavior` of a HorizontalPodAutoscaler says, with what the API server fills in, and the refusals of its validation.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};

use crate::quantity::{NotAQuantity, Quantity};

/// How fast the number of replicas may change.
#[derive(Clone, Debug, PartialEq)]
pub struct Behavior {
    /// Upwards.
    pub scale_up: Rules,
    /// Downwards.
    pub scale_down: Rules,
}

/// The rules of one direction.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// The most careful recommendation within this time counts. `None`, for scaling down only: the time that the controller is configured with, 300 s
    /// unless its flag says otherwise.
    pub window: Option<Duration>,
    /// Which policy counts where there are several.
    pub select: Select,
    /// At least one.
    pub policies: Vec<Policy>,
    /// How far from 1 usage over target must be before anything is done. `None`: as the controller is set up, 0.1 by default.
    pub tolerance: Option<f64>,
}

/// Which policy counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Select {
    /// The one that allows the largest change.
    Max,
    /// The one that allows the smallest change.
    Min,
    /// None: no change in this direction.
    Disabled,
}

/// The most that may change in a period.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Policy {
    /// Of what `value` is a number.
    pub unit: Unit,
    /// How many; at least 1.
    pub value: i32,
    /// In how long; 1 s to 1800 s.
    pub period: Duration,
}

/// What a policy counts in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unit {
    /// Pods.
    Pods,
    /// Hundredths of the replicas at the beginning of the period.
    Percent,
}

/// A rule that the API server would refuse.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("behavior.{field} {problem}")]
pub struct InvalidBehavior {
    /// The field, such as `scaleUp.policies[0].value`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

/// The longest stabilization window.
const LONGEST_WINDOW: i32 = 3_600;
/// The longest period of a policy.
const LONGEST_PERIOD: i32 = 1_800;

impl Behavior {
    /// Reads it as the API server does: what is absent gets its default, and what the server refuses is refused.
    ///
    /// # Errors
    /// With the field's name, when a rule is out of bounds.
    pub fn from_spec(spec: &HorizontalPodAutoscalerBehavior) -> Result<Self, InvalidBehavior> {
        Ok(Self {
            scale_up: rules(spec.scale_up.as_ref(), Rules::scale_up(), "scaleUp")?,
            scale_down: rules(spec.scale_down.as_ref(), Rules::scale_down(), "scaleDown")?,
        })
    }
}

/// What the API server makes of `behavior: {}`.
impl Default for Behavior {
    fn default() -> Self {
        Self { scale_up: Rules::scale_up(), scale_down: Rules::scale_down() }
    }
}

impl Rules {
    /// The defaults upwards: at once, by 4 pods or 100 % in 15 s, whichever is more.
    fn scale_up() -> Self {
        let period = Duration::from_secs(15);
        let pods = Policy { unit: Unit::Pods, value: 4, period };
        let percent = Policy { unit: Unit::Percent, value: 100, period };
        Self { window: Some(Duration::ZERO), select: Select::Max, policies: vec![pods, percent], tolerance: None }
    }

    /// The defaults downwards: as far as one likes, after the controller's own window.
    fn scale_down() -> Self {
        let all = Policy { unit: Unit::Percent, value: 100, period: Duration::from_secs(15) };
        Self { window: None, select: Select::Max, policies: vec![all], tolerance: None }
    }

    /// How long the longest policy looks back.
    pub(super) fn longest_period(&self) -> Duration {
        self.policies.iter().map(|policy| policy.period).max().unwrap_or(Duration::ZERO)
    }
}

fn rules(spec: Option<&HPAScalingRules>, defaults: Rules, direction: &str) -> Result<Rules, InvalidBehavior> {
    let Some(HPAScalingRules { policies, select_policy, stabilization_window_seconds, tolerance }) = spec else {
        return Ok(defaults);
    };
    let invalid = |field: &str, problem: String| InvalidBehavior { field: format!("{direction}.{field}"), problem };
    let window = match stabilization_window_seconds {
        None => defaults.window,
        Some(seconds) => Some(whole_seconds(*seconds, 0..=LONGEST_WINDOW).ok_or_else(|| {
            let problem = format!("must be from 0 to {LONGEST_WINDOW}, and is {seconds}");
            invalid("stabilizationWindowSeconds", problem)
        })?),
    };
    let select = match select_policy.as_deref() {
        None => defaults.select,
        Some("Max") => Select::Max,
        Some("Min") => Select::Min,
        Some("Disabled") => Select::Disabled,
        Some(other) => {
            return Err(invalid("selectPolicy", format!("must be Max, Min or Disabled, and is {other:?}")));
        }
    };
    let policies = match policies.as_deref() {
        None => defaults.policies,
        Some([]) => return Err(invalid("policies", "must have at least one policy, or be absent".to_owned())),
        Some(all) => all
            .iter()
            .enumerate()
            .map(|(index, spec)| {
                policy(spec).map_err(|(field, problem)| invalid(&format!("policies[{index}].{field}"), problem))
            })
            .collect::<Result<_, _>>()?,
    };
    let tolerance = match tolerance {
        None => None,
        Some(text) => {
            let quantity =
                Quantity::parse(&text.0).map_err(|error: NotAQuantity| invalid("tolerance", error.to_string()))?;
            if quantity.approximate() < 0.0 {
                return Err(invalid("tolerance", format!("must not be negative, and is {}", text.0)));
            }
            Some(quantity.approximate())
        }
    };
    Ok(Rules { window, select, policies, tolerance })
}

fn policy(spec: &HPAScalingPolicy) -> Result<Policy, (&'static str, String)> {
    let HPAScalingPolicy { period_seconds, type_, value } = spec;
    let unit = match type_.as_str() {
        "Pods" => Unit::Pods,
        "Percent" => Unit::Percent,
        other => return Err(("type", format!("must be Pods or Percent, and is {other:?}"))),
    };
    if *value < 1 {
        return Err(("value", format!("must be at least 1, and is {value}")));
    }
    let period = whole_seconds(*period_seconds, 1..=LONGEST_PERIOD)
        .ok_or_else(|| ("periodSeconds", format!("must be from 1 to {LONGEST_PERIOD}, and is {period_seconds}")))?;
    Ok(Policy { unit, value: *value, period })
}

fn whole_seconds(seconds: i32, allowed: std::ops::RangeInclusive<i32>) -> Option<Duration> {
    u64::try_from(seconds).ok().filter(|_| allowed.contains(&seconds)).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: &Value) -> Result<Behavior, InvalidBehavior> {
        Behavior::from_spec(&serde_json::from_value(value.clone()).unwrap())
    }

    #[test]
    fn what_is_absent_gets_the_defaults_of_the_api_server() {
        assert_eq!(read(&json!({})), Ok(Behavior::default()));
        let given = read(&json!({"scaleUp": {"selectPolicy": "Min"}, "scaleDown": {"stabilizationWindowSeconds": 7}}));
        let defaults = Behavior::default();
        let expected = Behavior {
            scale_up: Rules { select: Select::Min, ..defaults.scale_up },
            scale_down: Rules { window: Some(Duration::from_secs(7)), ..defaults.scale_down },
        };
        assert_eq!(given, Ok(expected));
    }

    #[test]
    fn what_the_api_server_refuses_is_refused_with_the_field() {
        let policy = |change: Value| {
            let mut policy = json!({"type": "Pods", "value": 1, "periodSeconds": 15});
            policy.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            json!({"policies": [{"type": "Percent", "value": 10, "periodSeconds": 1800}, policy]})
        };
        for (rules, field, problem) in [
            (json!({"stabilizationWindowSeconds": -1}), "stabilizationWindowSeconds", "from 0 to 3600"),
            (json!({"stabilizationWindowSeconds": 3_601}), "stabilizationWindowSeconds", "from 0 to 3600"),
            (json!({"selectPolicy": "Most"}), "selectPolicy", "Max, Min or Disabled"),
            (json!({"policies": []}), "policies", "at least one"),
            (policy(json!({"type": "Pod"})), "policies[1].type", "Pods or Percent"),
            (policy(json!({"value": 0})), "policies[1].value", "at least 1"),
            (policy(json!({"periodSeconds": 0})), "policies[1].periodSeconds", "from 1 to 1800"),
            (policy(json!({"periodSeconds": 1_801})), "policies[1].periodSeconds", "from 1 to 1800"),
            (json!({"tolerance": "-0.1"}), "tolerance", "must not be negative"),
            (json!({"tolerance": "lots"}), "tolerance", "is not a quantity"),
        ] {
            for direction in ["scaleUp", "scaleDown"] {
                let error = read(&json!({direction: rules})).expect_err("it was accepted");
                assert_eq!(error.field, format!("{direction}.{field}"));
                assert!(error.problem.contains(problem), "{error}");
            }
        }
    }
}
