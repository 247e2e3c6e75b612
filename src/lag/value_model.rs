//! What the model answers where the source tells a plain value: the rule of [`super::value`], scale to zero, and the read store's connections.

use std::time::Duration;

use super::{
    Assessment, Bounds, Fault, Limit, Pending, Rates, Required, Stage, ValueAssessment, Workers,
    model::Model,
    planning::within_connections,
    required::Fit,
    value::{ValueInput, within},
};

impl Model {
    /// Workers by a plain value: nothing is counted, so that nothing is learnt.
    pub(super) fn observe_value(
        &mut self,
        at: Duration,
        number: f64,
        workers: Workers,
        bounds: &Bounds,
    ) -> Result<Assessment, Fault> {
        let target = bounds.value.ok_or(Fault::NoTarget)?;
        if !number.is_finite() {
            return Err(Fault::ValueNotFinite);
        }
        let settled_for = self.settled_for(at, workers);
        let idle_for = self.idle.observe(at, u64::from(number > 0.0), 0);
        let before = self.steadiness.before();
        let seen = ValueInput { at, value: number, target, workers, settled_for, before };
        let (fit, why) = self.value.observe(seen, bounds);
        let required = if self.idle.enough(bounds) {
            Required {
                workers: 0,
                wanted: 0,
                limit: Limit::None,
                throttled: None,
                reason: "0 workers: the value has been zero".to_owned(),
            }
        } else {
            let held = self.steadiness.held(workers.ready, bounds.min);
            let fit = match bounds.strain {
                Some(_) if fit.workers > held => Fit { workers: held, limit: Limit::ReadStore },
                _ => fit,
            };
            let (workers, limit) = within_connections(fit.workers, fit.limit, bounds);
            let bound = bound(limit, bounds);
            let reason = format!("{workers} workers: {why}{bound}");
            Required { workers, wanted: fit.workers, limit, throttled: None, reason }
        };
        self.steadiness.force(required.wanted);
        self.last = None;
        Ok(Assessment {
            value: Some(ValueAssessment { value: number, target, within: within(number, target, workers.ready) }),
            pending: Pending { events: 0, exact: true },
            at_least: None,
            staleness: None,
            rates: Rates::default(),
            drain: None,
            required,
            stage: Stage::Live,
            idle_for,
            frozen_for: Duration::ZERO,
            stuck: false,
            rewound: None,
            ahead_of_clock: None,
            retention_risk: None,
            jump: None,
            cadence: None,
            cadence_breaks_target: false,
            prediction: None,
        })
    }
}

fn bound(limit: Limit, bounds: &Bounds) -> String {
    match limit {
        Limit::Min => format!("; minWorkers is {}", bounds.min),
        Limit::Max => format!("; bound by maxWorkers {}", bounds.max),
        Limit::Ordering => "; bound by ordering Strict".to_owned(),
        Limit::Shards => format!("; bound by {} shards", bounds.shards.unwrap_or(0)),
        Limit::Connections => "; bound by the read store's connections".to_owned(),
        Limit::ReadStore => bounds.strain.map_or_else(String::new, |strain| strain.to_string()),
        Limit::None | Limit::HottestShard | Limit::LiveVersion => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lag::{CheckpointState, Head, Sample, ValueTarget};

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn bounds(value: Option<ValueTarget>) -> Bounds {
        Bounds {
            target: seconds(10),
            min: 0,
            max: 10,
            shards: None,
            strict: false,
            stuck_after: seconds(300),
            idle_for: seconds(60),
            catch_up: None,
            given_rate: None,
            connections: None,
            strain: None,
            throttled: None,
            retention: None,
            look_ahead: None,
            value,
        }
    }

    fn sample(at: u64, value: f64) -> Sample {
        let sample = Sample::new(seconds(at), Head::Unnumbered, CheckpointState::Handled(0), None, 0);
        Sample { value: Some(value), ..sample }
    }

    const EACH: Option<ValueTarget> = Some(ValueTarget::PerWorker(100.0));

    #[test]
    fn a_value_is_no_count_of_what_waits_and_says_why_so_many_workers() {
        let mut model = Model::remembering(None, None, None);
        let workers = Workers { ready: 2, rolling: false };
        let assessment = model.observe(&sample(0, 250.0), workers, bounds(EACH)).unwrap();
        assert_eq!((assessment.counted(), assessment.staleness), (None, None));
        assert_eq!(assessment.required.reason, "3 workers: the value 250 at 100 for each worker");
        assert!(!assessment.value.unwrap().within, "2 workers have 125 each");
        let assessment = model.observe(&sample(1, 5_000.0), workers, bounds(EACH)).unwrap();
        assert_eq!((assessment.required.workers, assessment.required.limit), (10, Limit::Max));
        let few = Bounds { connections: Some(4), ..bounds(EACH) };
        let assessment = model.observe(&sample(2, 5_000.0), workers, few).unwrap();
        let Required { workers, wanted, limit, .. } = assessment.required;
        assert_eq!((workers, wanted, limit), (4, 10, Limit::Connections));
    }

    #[test]
    fn a_value_without_a_target_is_unknown() {
        let mut model = Model::remembering(None, Some(3), None);
        assert_eq!(model.observe(&sample(0, 250.0), Workers::default(), bounds(None)), Err(Fault::NoTarget));
    }

    #[test]
    fn a_value_that_is_no_number_takes_no_worker_away() {
        let mut model = Model::remembering(None, Some(3), None);
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let answer = model.observe(&sample(0, value), Workers::default(), bounds(EACH));
            assert_eq!(answer, Err(Fault::ValueNotFinite), "{value}");
        }
    }

    #[test]
    fn no_worker_is_needed_once_the_value_has_been_zero_for_long_and_one_as_soon_as_it_is_not() {
        let mut model = Model::remembering(None, Some(2), None);
        let workers = Workers { ready: 1, rolling: false };
        let mut required =
            |at, value| model.observe(&sample(at, value), workers, bounds(EACH)).unwrap().required.workers;
        let quiet: Vec<u32> = [0, 30, 59, 60].into_iter().map(|at| required(at, 0.0)).collect();
        assert_eq!(quiet, [1, 1, 1, 0]);
        assert_eq!(required(61, 0.5), 1);
    }

    #[test]
    fn another_replicas_number_is_where_a_new_leader_goes_on_from_and_no_longer() {
        let mut model = Model::remembering(None, Some(1), None);
        let whole = Bounds { min: 1, ..bounds(Some(ValueTarget::Whole(1.0))) };
        let required = |model: &mut Model, at, ready, rolling| {
            model.observe(&sample(at, 2.0), Workers { ready, rolling }, whole).unwrap().required.workers
        };
        model.hear(6);
        assert_eq!(required(&mut model, 0, 4, true), 6, "held at the leader's number while workers start");
        assert_eq!(required(&mut model, 1, 5, true), 6);
        assert_eq!(required(&mut model, 2, 4, false), 6, "not settled yet");
        assert_eq!(required(&mut model, 20, 4, false), 8);
        assert_eq!(required(&mut model, 21, 5, true), 8, "its own number, and not the one that was heard once");
    }
}
