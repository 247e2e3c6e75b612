//! The input of the model besides the samples: the spec's bounds, and the workers as the cluster reports them.

use std::time::Duration;

use super::{Head, LookAhead, Strain, Throttled, ValueTarget};

/// What the spec asks for, as far as the model needs it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// No event waits longer than this.
    pub target: Duration,
    /// Fewest workers. Zero: none at all while nothing waits or arrives.
    pub min: u32,
    /// Most workers.
    pub max: u32,
    /// The unit of parallelism, where the spec tells it and it limits the workers.
    pub shards: Option<u32>,
    /// All events in one order.
    pub strict: bool,
    /// A checkpoint that does not move for this long while there is work is stuck.
    pub stuck_after: Duration,
    /// After this long without events, a projection with a minimum of zero needs no worker.
    pub idle_for: Duration,
    /// A time and a number of workers for backlogs that cannot be cleared within the target.
    pub catch_up: Option<CatchUp>,
    /// Events that one busy worker handles per second, as long as that is not learnt.
    pub given_rate: Option<f64>,
    /// Workers that the read store has connections for.
    pub connections: Option<u32>,
    /// What the read store refuses for want of room: no worker is added meanwhile, and none removed for it.
    pub strain: Option<Strain>,
    /// A run that builds a new version: what it may have so that it does not harm the one that readers see.
    pub throttled: Option<Throttled>,
    /// How long the source keeps events.
    pub retention: Option<Duration>,
    /// Which pattern of arrivals may add workers before the events come.
    pub look_ahead: Option<LookAhead>,
    /// What a source's plain value is to be, where it tells one.
    pub value: Option<ValueTarget>,
}

impl Bounds {
    /// The same where the source deals its events out to workers by logs of its own, such as Kafka's partitions: each log has one worker at a time,
    /// whatever order is asked for. A smaller number in the spec stays.
    pub(super) fn within(self, head: &Head) -> Self {
        let Head::Shards(logs) = head else { return self };
        let logs = u32::try_from(logs.len()).unwrap_or(u32::MAX).max(1);
        Self { shards: Some(self.shards.map_or(logs, |told| told.min(logs))), ..self }
    }
}

/// How a backlog that cannot be cleared within the target is handled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CatchUp {
    /// It is to be cleared within this time.
    pub within: Duration,
    /// Most workers meanwhile.
    pub max: u32,
}

/// The workers, as the cluster reports them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Workers {
    /// Ready now.
    pub ready: u32,
    /// Some are being replaced or started.
    pub rolling: bool,
}
