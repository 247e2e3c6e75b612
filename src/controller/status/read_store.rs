//! What is said of the read store. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::condition_state::{ConditionState, fails, holds, unknown};
use crate::{
    api::{ConditionType, ProjectionStatus, ReadStoreState, Reason},
    controller::known::{Known, ReadStoreView},
};

/// The condition ReadStoreReachable. Ready does not depend on it: workers may reach a store that the operator does not.
pub(super) fn reachable(store: Option<&ReadStoreView>) -> ConditionState {
    match store.map(|store| (store.status.state, store.why.as_ref())) {
        None => holds("there is no spec.readStore"),
        Some((_, None)) => holds("the read store answers"),
        Some((ReadStoreState::Unreachable, Some(why))) => fails(why.reason, format!("read store: {}", why.message)),
        Some((_, Some(why))) => unknown(why),
    }
}

/// The condition that stands, and with it what else was said of the store: a process that has just begun has not asked it yet, and does so within seconds.
pub(super) fn said_before<'a>(known: &Known<'_>, previous: &'a ProjectionStatus) -> Option<&'a Condition> {
    let why = known.read_store.as_ref()?.why.as_ref()?;
    previous.read_store.as_ref().filter(|_| why.reason == Reason::NotMeasuredYet)?;
    let type_ = ConditionType::ReadStoreReachable.as_str();
    previous.conditions.iter().find(|said| said.type_ == type_ && said.observed_generation == known.generation)
}
