//! Whether the autoscaler of a workload works, so that it will take workers away again: only then does the operator add workers itself. Pure: the
//! time comes in.
//!
//! An autoscaler has no heartbeat. But its controller writes down the number of workers at each of its looks, so that a number that stays wrong shows
//! that the controller does not look.

use std::time::Duration;

use super::live::LiveObject;

/// Several looks of the autoscaler, which come every 15 s by default, and a change of the controller's leader.
pub const SILENT_FOR: Duration = Duration::from_secs(90);

/// What is remembered of one autoscaler between two rounds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AutoscalerMemory {
    /// What its controller said last of the number of workers.
    sees: Option<i32>,
    /// Since when that has been wrong, or nothing has been said.
    wrong_since: Option<Duration>,
}

/// Whether it works.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Standing {
    /// It does.
    Works,
    /// It has not shown it yet, or not for a moment. Ask again after this time.
    Unproven(Duration),
    /// It does not; a sentence says why.
    Broken(String),
}

impl AutoscalerMemory {
    /// Judges the `autoscaler`, if there is one, of a workload with this number of pods, at `now`.
    pub fn judge(&mut self, autoscaler: Option<&LiveObject>, pods: i32, now: Duration) -> Standing {
        let sees = autoscaler.and_then(|live| live.autoscaler_sees);
        if let Some(why) = autoscaler.and_then(|live| live.autoscaler_inactive.as_deref()) {
            *self = Self { sees, wrong_since: None };
            return Standing::Broken(format!("the HorizontalPodAutoscaler does not scale: {why}"));
        }
        // Another number means that it was looked at a moment ago.
        if sees == Some(pods) || sees != self.sees {
            *self = Self { sees, wrong_since: None };
        }
        if sees == Some(pods) {
            return Standing::Works;
        }
        let since = *self.wrong_since.get_or_insert(now);
        let left = SILENT_FOR.saturating_sub(now.saturating_sub(since));
        match sees {
            // It works for all that is known: it looks every now and then.
            Some(_) if !left.is_zero() => Standing::Works,
            None if !left.is_zero() => Standing::Unproven(left),
            seen => {
                let seen = seen.map_or_else(
                    || "has no status".to_owned(),
                    |seen| format!("still counts {seen} pods, and there are {pods}"),
                );
                Standing::Broken(format!(
                    "no controller looks after the HorizontalPodAutoscaler, which {seen}: the operator adds no workers by itself, since nothing would take them away again"
                ))
            }
        }
    }

    /// What to say of it, and when to ask again: a number that is wrong now may prove later that the autoscaler does not look.
    pub fn told(&self, standing: Standing, now: Duration) -> (Option<String>, Option<Duration>) {
        match standing {
            Standing::Works => (None, self.proves_at().map(|at| at.saturating_sub(now))),
            Standing::Unproven(left) => (None, Some(left)),
            Standing::Broken(why) => (Some(why), None),
        }
    }

    fn proves_at(&self) -> Option<Duration> {
        self.wrong_since.map(|since| since + SILENT_FOR)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn autoscaler(status: &serde_json::Value) -> LiveObject {
        let object = json!({"metadata": {"name": "orders", "namespace": "shop"}, "status": status});
        LiveObject::from_object(&serde_json::from_value(object).unwrap())
    }

    fn sees(pods: i32) -> LiveObject {
        let conditions =
            json!([{"type": "AbleToScale", "status": "True"}, {"type": "ScalingActive", "status": "True"}]);
        autoscaler(&json!({"currentReplicas": pods, "conditions": conditions}))
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn one_that_was_never_looked_at_is_unproven_and_then_broken() {
        let (mut memory, fresh) = (AutoscalerMemory::default(), autoscaler(&json!({})));
        assert_eq!(memory.judge(None, 1, at(0)), Standing::Unproven(SILENT_FOR), "not made yet");
        assert_eq!(memory.judge(Some(&fresh), 1, at(30)), Standing::Unproven(at(60)));
        let Standing::Broken(why) = memory.judge(Some(&fresh), 1, at(90)) else { panic!() };
        assert!(why.contains("no controller looks after") && why.contains("has no status"), "{why}");
        assert_eq!(memory.judge(Some(&sees(1)), 1, at(91)), Standing::Works);
    }

    #[test]
    fn one_that_keeps_a_wrong_number_is_not_looked_at_any_more() {
        let mut memory = AutoscalerMemory::default();
        assert_eq!(memory.judge(Some(&sees(1)), 1, at(0)), Standing::Works);
        // We have raised them, and it has not looked yet.
        assert_eq!(memory.judge(Some(&sees(1)), 4, at(100)), Standing::Works);
        assert_eq!(memory.proves_at(), Some(at(190)));
        assert_eq!(memory.judge(Some(&sees(1)), 4, at(189)), Standing::Works);
        let Standing::Broken(why) = memory.judge(Some(&sees(1)), 4, at(190)) else { panic!() };
        assert!(why.contains("still counts 1 pods, and there are 4"), "{why}");
        // It looks, though not at this very moment.
        assert_eq!(memory.judge(Some(&sees(3)), 4, at(191)), Standing::Works);
        assert_eq!(memory.judge(Some(&sees(4)), 4, at(200)), Standing::Works);
        assert_eq!(memory.proves_at(), None);
    }

    #[test]
    fn one_that_says_why_it_cannot_scale_is_broken_and_a_sleeping_one_is_not() {
        let with = |type_: &str, reason: &str| {
            let able = json!({"type": "AbleToScale", "status": "True"});
            let condition = json!({"type": type_, "status": "False", "reason": reason, "message": "no"});
            let conditions = if type_ == "AbleToScale" { json!([condition]) } else { json!([able, condition]) };
            autoscaler(&json!({"currentReplicas": 1, "conditions": conditions}))
        };
        let judge = |live: &LiveObject| AutoscalerMemory::default().judge(Some(live), 1, at(0));
        for (type_, reason) in [("ScalingActive", "FailedGetExternalMetric"), ("AbleToScale", "FailedGetScale")] {
            let Standing::Broken(why) = judge(&with(type_, reason)) else { panic!("{reason}") };
            assert!(why.contains(reason), "{why}");
        }
        assert_eq!(judge(&with("ScalingActive", "ScalingDisabled")), Standing::Works);
    }
}
