//! What a sample means: what the model answers.

use std::time::Duration;

use super::{Cadence, Jump, Pending, Prediction, Required, RetentionRisk, Rewound, Stage, ValueAssessment};

/// Events per second, as far as known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Events that arrive per second.
    pub arrival: Option<f64>,
    /// Events that one busy worker handles per second.
    pub per_worker: Option<f64>,
}

/// What waits for certain, where only an upper bound of what waits is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AtLeast {
    /// Events.
    pub events: u64,
    /// Age of the oldest of them; zero when there is none, absent when unknown.
    pub age: Option<Duration>,
}

/// What a sample means.
#[derive(Clone, Debug, PartialEq)]
pub struct Assessment {
    /// Where the source tells a plain value in place of what waits: what that asks for.
    pub value: Option<ValueAssessment>,
    /// Events that wait; means nothing where there is a value: see [`Assessment::counted`].
    pub pending: Pending,
    /// Where `pending` and `staleness` are upper bounds, since the lowest of several rows stands for all: what waits for certain.
    pub at_least: Option<AtLeast>,
    /// Age of the oldest of them; zero when there is none, absent when unknown. Where events' times lie in the future, since when it is known here.
    pub staleness: Option<Duration>,
    /// Events per second.
    pub rates: Rates,
    /// Seconds until nothing waits, at today's rates and with the workers that are ready; absent when the backlog does not shrink
    /// or a rate is unknown.
    pub drain: Option<Duration>,
    /// How many workers hold the target.
    pub required: Required,
    /// Live, or reading a backlog.
    pub stage: Stage,
    /// How long nothing has waited or arrived.
    pub idle_for: Duration,
    /// How long the checkpoint has not moved although there is work; zero when it moves or nothing waits.
    pub frozen_for: Duration,
    /// `frozen_for` has reached the bound.
    pub stuck: bool,
    /// The checkpoint went backwards a short while ago, or goes back and forth.
    pub rewound: Option<Rewound>,
    /// How far the events' times lie ahead of the source's clock, where their age is therefore unknown.
    pub ahead_of_clock: Option<Duration>,
    /// The source deletes events before they are handled.
    pub retention_risk: Option<RetentionRisk>,
    /// Far more came at once than ever.
    pub jump: Option<Jump>,
    /// In which steps the checkpoint moves; absent where it moves all the time, or where no step has been seen.
    pub cadence: Option<Cadence>,
    /// A step takes longer than the target, so that no number of workers can keep the checkpoint within it.
    pub cadence_breaks_target: bool,
    /// What was expected of the last seconds, and what came.
    pub prediction: Option<Prediction>,
}

impl Assessment {
    /// Events that wait; absent where the source tells a value and counts nothing.
    pub fn counted(&self) -> Option<Pending> {
        self.value.is_none().then_some(self.pending)
    }
}
