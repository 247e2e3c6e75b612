//! What a condition says before its times are known. Pure.

use std::time::Duration;

use crate::{
    api::{ConditionStatus, Reason},
    measure::MeasureError,
};

/// A condition before its times are known.
#[derive(Clone, Debug)]
pub(super) struct ConditionState {
    pub(super) status: ConditionStatus,
    pub(super) reason: Reason,
    pub(super) message: String,
}

/// The condition is true, and all is well.
pub(super) fn holds(message: &str) -> ConditionState {
    ConditionState { status: ConditionStatus::True, reason: Reason::AsExpected, message: message.to_owned() }
}

/// The condition is true, but an administrator should look at it.
pub(super) fn remarkable(reason: Reason, message: String) -> ConditionState {
    ConditionState { status: ConditionStatus::True, reason, message }
}

/// The condition is false.
pub(super) fn fails(reason: Reason, message: impl Into<String>) -> ConditionState {
    ConditionState { status: ConditionStatus::False, reason, message: message.into() }
}

/// Whether the condition holds is not known.
pub(super) fn unknown(unknown: &MeasureError) -> ConditionState {
    ConditionState { status: ConditionStatus::Unknown, reason: unknown.reason, message: unknown.message.clone() }
}

/// Coarse, so that the message does not change with each sample.
pub(super) fn duration(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    match minutes {
        0 => "less than a minute".to_owned(),
        1..120 => format!("{minutes} min"),
        _ => format!("{} h", minutes / 60),
    }
}
