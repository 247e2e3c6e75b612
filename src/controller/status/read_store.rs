//! What is said of the read store. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{
    condition_state::{ConditionState, fails, holds, unknown},
    foreign_message::one_line,
};
use crate::{
    api::{ConditionType, ProjectionStatus, ReadStoreState, Reason},
    controller::known::{Known, ReadStoreView},
    store_health::{LockSession, LockWait},
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

/// Who waits in the read store for a lock, and what to do. Whether those that wait are the workers is not known: they may call themselves anything.
pub(super) fn lock_wait(known: &Known<'_>) -> Option<String> {
    let LockWait { waiting, since, holding } = known.read_store.as_ref()?.lock_wait.as_ref()?;
    let called = |LockSession { pid, application }: &LockSession| match one_line(application) {
        name if name.is_empty() => format!("session {pid}"),
        name => format!("session {pid} ({name})"),
    };
    let since = since.map_or_else(String::new, |since| format!(" since {since:.0}"));
    let (holder, remedy) = match holding.pid {
        0 => ("a prepared transaction".to_owned(), "commit it or roll it back (pg_prepared_xacts)".to_owned()),
        pid => (called(holding), format!("end that transaction, or the session with pg_terminate_backend({pid})")),
    };
    let waiting = called(waiting);
    Some(format!("in the read store {waiting} waits{since} for a lock that {holder} holds: {remedy}"))
}

/// The condition that stands, and with it what else was said of the store: a process that has just begun has not asked it yet, and does so within seconds.
pub(super) fn said_before<'a>(known: &Known<'_>, previous: &'a ProjectionStatus) -> Option<&'a Condition> {
    let why = known.read_store.as_ref()?.why.as_ref()?;
    previous.read_store.as_ref().filter(|_| why.reason == Reason::NotMeasuredYet)?;
    let type_ = ConditionType::ReadStoreReachable.as_str();
    previous.conditions.iter().find(|said| said.type_ == type_ && said.observed_generation == known.generation)
}
