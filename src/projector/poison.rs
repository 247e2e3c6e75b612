//! What a Projection says of events that fail every time, as workers are told it.

use serde::{Deserialize, Serialize};

use crate::api::{Failure, OnPoison};

/// What becomes of events that fail every time, by their own fault.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Poison {
    /// What is done with the event.
    pub on_poison: OnPoison,
    /// Later events of a stream with parked events are parked behind them.
    pub park_stream: bool,
    /// Where so many events are parked, the next waits.
    pub max_parked: u32,
}

impl Poison {
    /// What a Projection says.
    pub fn of(failure: &Failure) -> Self {
        let Failure { stuck_after: _, on_poison, park_stream, max_parked } = failure;
        Self {
            on_poison: *on_poison,
            park_stream: *park_stream,
            max_parked: u32::try_from(*max_parked).unwrap_or_default(),
        }
    }

    /// True for what holds where a Projection says nothing: the configuration of workers then stays as it was before there was a choice.
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Poison {
    fn default() -> Self {
        Self::of(&Failure::default())
    }
}
