//! The seam between the simulated world and what scales in it.

use std::time::Duration;

use super::{crew::Worker, kind::Measured};
use crate::hpa::{Autoscaler, Reading};

/// What there is to be seen at one moment.
#[derive(Clone, Debug)]
pub struct State<'a> {
    /// Since the trace began.
    pub now: Duration,
    /// The same by the trace's own times, which may be those of a day or since 1970.
    pub clock: Duration,
    /// Events that have ever arrived: the head.
    pub arrived: u64,
    /// How far behind the projection is, as measured from outside: by what is committed.
    pub measured: &'a Measured,
    /// What the scale asks for.
    pub replicas: i32,
    /// The workers that there are, oldest first, ready or not.
    pub workers: &'a [Worker],
    /// What one busy worker really handles now, in events per second. For policies that are given this number; a real one has to find it out.
    pub per_worker: f64,
    /// Events per second that really arrive now. For policies with perfect foresight.
    pub arriving: f64,
}

impl State<'_> {
    /// Events beyond the checkpoints.
    pub fn pending(&self) -> u64 {
        self.measured.pending
    }

    /// Workers that are ready.
    pub fn ready(&self) -> u32 {
        let ready = self.workers.iter().filter(|worker| worker.ready_at <= self.now).count();
        u32::try_from(ready).unwrap_or(u32::MAX)
    }
}

/// Something that scales workers: through the autoscaler, which reads its metrics, or by itself, or both.
pub trait Policy {
    /// The autoscaler that reads [`Policy::readings`]; none: only [`Policy::scale_to`] scales.
    fn autoscaler(&self) -> Option<Autoscaler>;

    /// Takes a sample. Called every sampling interval of the plan.
    fn sample(&mut self, state: &State<'_>);

    /// What the metrics API answers now, in the order of the autoscaler's metrics. Called at each look of the autoscaler. For [`Reading::OfPods`] the
    /// policy reports each worker's use of CPU by [`Policy::cpu`].
    fn readings(&mut self, state: &State<'_>) -> Vec<Reading>;

    /// The scale to be set right now, past the autoscaler; none: leave it. Called after each sample.
    fn scale_to(&mut self, _state: &State<'_>) -> Option<i32> {
        None
    }

    /// For metrics of CPU: what each worker requests, and what each uses by the metrics server, in the order of [`State::workers`], in
    /// thousandths of a core.
    fn cpu(&self, _state: &State<'_>) -> Vec<Cpu> {
        Vec::new()
    }

    /// The workers that this policy asks for at present, for the chart.
    fn required(&self) -> Option<u32> {
        None
    }
}

/// A worker's CPU as the metrics server reports it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cpu {
    /// What it requests, in thousandths of a core.
    pub request: i64,
    /// What it used, where known.
    pub used: Option<crate::hpa::CpuUse>,
}
