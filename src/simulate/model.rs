//! The operator's own policy: the very model that it runs. Beside `watched.rs` the only file of the simulator that knows the model's types.

use super::{
    given_autoscaler::{GivenAutoscaler, Reads},
    kind::Measured,
    policy::{Policy, State},
    watched,
};
use crate::{
    api::Projection,
    controller::{Invalid, Preview, ServerAbilities},
    hpa::{Autoscaler, InvalidAutoscaler, Metric, Reading},
    lag::{Assessment, Bounds, Certain, CheckpointState, Head, Model, Pending, Position, Sample},
    resolve::bounds,
};

/// Scales as the operator does: the model computes how many workers hold the target, and the managed autoscaler reads that number.
#[derive(Clone, Debug)]
pub struct ModelPolicy {
    model: Model,
    bounds: Bounds,
    autoscaler: Autoscaler,
    /// What each of its metrics reads.
    reads: Vec<Reads>,
    operator: Preview,
    latest: Option<Assessment>,
}

/// Why a Projection cannot be simulated.
#[derive(Clone, Debug, thiserror::Error)]
pub enum InvalidProjection {
    /// The Projection cannot be carried out.
    #[error(transparent)]
    Projection(#[from] Invalid),
    /// Its autoscaler would be refused by the API server.
    #[error("the autoscaler would be refused by the API server: {0}")]
    Autoscaler(#[from] InvalidAutoscaler),
}

impl ModelPolicy {
    /// For a Projection on Kubernetes 1.35 or later; who scales out is as its spec says. `per_worker` is what an earlier run learnt that one worker
    /// handles, in events per second; none: it has to be learnt.
    ///
    /// # Errors
    /// With the field's name, when the Projection cannot be carried out.
    pub fn new(projection: &Projection, per_worker: Option<f64>) -> Result<Self, InvalidProjection> {
        Self::on(projection, per_worker, ServerAbilities { autoscaler_tolerance: true })
    }

    /// The same on an API server with these abilities.
    ///
    /// # Errors
    /// With the field's name, when the Projection cannot be carried out.
    pub fn on(
        projection: &Projection,
        per_worker: Option<f64>,
        server: ServerAbilities,
    ) -> Result<Self, InvalidProjection> {
        let operator = Preview::of(projection, server)?;
        let autoscaler = Autoscaler::from_spec(&operator.autoscaler)?;
        Ok(Self {
            model: Model::remembering(per_worker, None, None),
            bounds: bounds(projection),
            autoscaler,
            // The required workers, and then, where a second rule asks for it, the length of the queue.
            reads: vec![Reads::Required, Reads::Pending],
            operator,
            latest: None,
        })
    }

    /// Scaled by another autoscaler than the operator's own, which then leaves scaling to it.
    pub(super) fn scaled_by(self, given: GivenAutoscaler) -> Self {
        let GivenAutoscaler { autoscaler, reads } = given;
        Self { autoscaler, reads, operator: self.operator.beside_another_autoscaler(), ..self }
    }
}

impl Policy for ModelPolicy {
    fn autoscaler(&self) -> Option<Autoscaler> {
        Some(self.autoscaler.clone())
    }

    fn sample(&mut self, state: &State<'_>) {
        // After a sample without a lag there is no answer, as in the operator once the last one is too old.
        self.latest = self.model.observe(&sample(state), watched::workers(state), self.bounds).ok();
    }

    fn readings(&mut self, _: &State<'_>) -> Vec<Reading> {
        let Some(latest) = &self.latest else { return Vec::new() };
        let of = |(reads, metric): (&Reads, &Metric)| {
            let milli = |count: u64| i64::try_from(count).unwrap_or(i64::MAX).saturating_mul(1_000);
            let thousandths = |number: f64| milli_of((number * 1_000.0).ceil());
            let value = match reads {
                Reads::Required => Some(milli(u64::from(latest.required.workers))),
                Reads::Pending => Some(milli(latest.pending.events)),
                Reads::Staleness => latest.staleness.map(|age| thousandths(age.as_secs_f64())),
                Reads::ArrivalRate => latest.rates.arrival.map(thousandths),
                Reads::Drain => latest.drain.map(|drain| thousandths(drain.as_secs_f64())),
            };
            match (value, metric) {
                (None, _) => Reading::Failed,
                (Some(value), Metric::Object(_)) => Reading::Value(value),
                (Some(value), _) => Reading::Items(vec![value]),
            }
        };
        self.reads.iter().zip(&self.autoscaler.metrics).map(of).collect()
    }

    fn scale_to(&mut self, state: &State<'_>) -> Option<i32> {
        let required = self.required().map(|required| i32::try_from(required).unwrap_or(i32::MAX));
        self.operator.scale_to(state.replicas, required, state.now)
    }

    fn required(&self) -> Option<u32> {
        self.latest.as_ref().map(|latest| latest.required.workers)
    }
}

/// Rates and ages are far below 2^53.
#[allow(clippy::cast_possible_truncation)]
fn milli_of(number: f64) -> i64 {
    number as i64
}

/// The patterns of hours and days go by the trace's own times.
fn taken(clock: std::time::Duration) -> jiff::Timestamp {
    let since = jiff::SignedDuration::try_from(clock).unwrap_or_default();
    jiff::Timestamp::UNIX_EPOCH.checked_add(since).unwrap_or(jiff::Timestamp::MAX)
}

/// What a probe of the simulated source answers.
fn sample(state: &State<'_>) -> Sample {
    let Measured { pending, exact, by_shard, checkpoints, staleness } = state.measured;
    let position = |events: u64| Position(i64::try_from(events).unwrap_or(i64::MAX));
    let head = position(state.arrived);
    Sample {
        taken: taken(state.clock),
        // A log without shards has one entry, which says nothing of shards.
        pending_by_shard: if by_shard.len() > 1 { by_shard.clone() } else { Vec::new() },
        staleness: Some(*staleness),
        certain: (checkpoints.iter().max().filter(|_| !exact))
            .map(|row| Certain::Newest(state.arrived.saturating_sub(*row))),
        ..Sample::new(
            state.now,
            Head::log(head, head),
            CheckpointState::Committed(checkpoints.iter().copied().map(position).collect()),
            Some(Pending { events: *pending, exact: *exact }),
            state.arrived,
        )
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
