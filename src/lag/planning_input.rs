//! What one sample says together with what was learnt before it: the input of a plan.

use std::time::Duration;

use super::{
    Bounds, Cadence, Pending, Workers, as_float,
    assessment::Rates,
    faults::Jump,
    need::{Load, Need, Why},
    read_store::Saturated,
    required::shards,
    shards::Uneven,
    waiting::Waiting,
};

/// One shard is compared with the others only when events have waited for this share of the target.
const UNEVEN_FROM: f64 = 0.2;

/// One sample, and what was learnt up to it.
pub(super) struct PlanningInput {
    pub(super) at: Duration,
    /// Events per second that the pattern of earlier hours or days expects before long.
    pub(super) expected: Option<f64>,
    pub(super) pending: Pending,
    /// What is planned with.
    pub(super) waiting: Waiting,
    /// The difference of two counts of what waits says how many events were handled.
    pub(super) teaches: bool,
    /// The same by shard, where shards are counted.
    pub(super) by_shard: Vec<u64>,
    pub(super) cadence: Option<Cadence>,
    pub(super) rates: Rates,
    pub(super) workers: Workers,
    pub(super) settled_for: Duration,
    pub(super) idle_for: Duration,
    pub(super) stuck: bool,
    pub(super) saturated: Option<Saturated>,
    pub(super) jump: Option<Jump>,
}

impl PlanningInput {
    /// Nothing waits, exactly counted, and nothing has come since the last look.
    pub(super) fn nothing_to_do(&self) -> bool {
        self.pending.exact && self.pending.events == 0 && !self.idle_for.is_zero()
    }

    /// How one shard stands out, where that is known and the target is in danger.
    pub(super) fn uneven(&self, load: &Load<'_>, need: Need, bounds: &Bounds) -> Option<Uneven> {
        let shards = shards(bounds).filter(|shards| *shards > 1 && self.by_shard.len() == *shards as usize)?;
        let rate = self.rates.per_worker.filter(|_| need.why == Why::Rates)?;
        let waits = self.waiting.age.is_some_and(|age| age >= bounds.target.mul_f64(UNEVEN_FROM));
        let hottest = as_float(self.by_shard.iter().max().copied().filter(|_| waits)?);
        let all: u64 = self.by_shard.iter().fold(0, |sum, shard| sum.saturating_add(*shard));
        let mean = as_float(all) / f64::from(shards);
        let excess = (hottest - mean) / (rate * need.left.min(load.left()).max(0.001));
        let even = (need.workers - excess).max(load.arrival / rate) / f64::from(shards);
        // What waits shows how what arrives is dealt out, as far as one worker can have kept up with it.
        let its_own = (load.arrival / rate * hottest / as_float(all.max(1))).min(1.0);
        let other = (even * f64::from(shards) - its_own).max(0.0) / f64::from(shards - 1);
        Some(Uneven { shards, hottest: even + excess, other: other.min(even) })
    }
}
