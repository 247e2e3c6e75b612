//! What the status says of a read store.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{
    announce::announcements,
    next_status,
    tests::{condition, is, known, measured},
    urgency::{Urgency, urgency},
};
use crate::{
    api::{ProjectionStatus, ReadStoreState, ReadStoreStatus, Reason},
    controller::known::{Known, ReadStoreView},
    measure::MeasureError,
    store_health::{LockSession, LockWait, Polled, StoreName, StoreObservation, StoreSample},
};

pub(super) fn store(result: Option<Result<u64, Reason>>) -> ReadStoreView {
    let now = Instant::now();
    let newest = result.map(|result| Polled {
        result: result
            .map(|millis| StoreSample { latency: Duration::from_millis(millis), ..StoreSample::default() })
            .map_err(|reason| MeasureError { reason, message: "Redis at db:6379: no process listens".to_owned() }),
        taken: Timestamp::UNIX_EPOCH,
        valid_until: now + Duration::from_secs(10),
    });
    let name = StoreName { kind: "redis", server: "db:6379".into(), user: "".into() };
    let observation = StoreObservation { name, newest, strain: None };
    ReadStoreView { status: observation.status(now), why: observation.current(now).err(), lock_wait: None }
}

pub(super) fn next(known: &Known<'_>, view: Option<ReadStoreView>, previous: &ProjectionStatus) -> ProjectionStatus {
    next_status(&Known { read_store: view, ..known.clone() }, previous, Timestamp::UNIX_EPOCH)
}

#[test]
fn a_checkpoint_that_stands_still_is_explained_by_a_lock_in_the_read_store() {
    let (stuck, behind) = (measured(9, 400.0, true), measured(9, 31.0, false));
    let session = |pid, application: &str| LockSession { pid, application: application.to_owned() };
    let wait = LockWait {
        waiting: session(12, "orders-worker"),
        since: Some(Timestamp::UNIX_EPOCH),
        holding: session(77, ""),
    };
    let locked = ReadStoreView { lock_wait: Some(wait), ..store(Some(Ok(3))) };
    let before = ProjectionStatus::default();
    let told = next(&known(Ok(&stuck)), Some(locked.clone()), &before);
    is(&told, "Progressing", "False", Reason::CheckpointFrozen);
    let message = &told.conditions.iter().find(|one| one.type_ == "Progressing").unwrap().message;
    assert!(
        message.ends_with("in the read store session 12 (orders-worker) waits since 1970-01-01T00:00:00Z for a lock that session 77 holds: end that transaction, or the session with pg_terminate_backend(77)"),
        "{message}"
    );
    is(&next(&known(Ok(&behind)), Some(locked), &before), "Progressing", "True", Reason::AsExpected);
}

#[test]
fn a_read_store_is_healthy_only_where_it_answered_and_ready_does_not_depend_on_it() {
    let good = measured(0, 0.0, false);
    let known = known(Ok(&good));
    let before = ProjectionStatus::default();
    let healthy = next(&known, Some(store(Some(Ok(3)))), &before);
    is(&healthy, "ReadStoreReachable", "True", Reason::AsExpected);
    assert_eq!(healthy.read_store.as_ref().and_then(|store| store.latency_seconds), Some(0.003));
    let away = next(&known, Some(store(Some(Err(Reason::ConnectionRefused)))), &healthy);
    is(&away, "ReadStoreReachable", "False", Reason::ConnectionRefused);
    is(&away, "Ready", "True", Reason::AsExpected);
    assert_eq!(away.read_store.as_ref().map(|store| store.state), Some(ReadStoreState::Unreachable));
    assert_eq!(away.read_store.as_ref().and_then(|store| store.latency_seconds), None, "no number stays");
    assert_eq!(urgency(&healthy, &away), Urgency::InTurn, "it is the same for all Projections on the store");
    let told = announcements(&healthy, &away);
    let notes: Vec<_> = told.iter().map(|one| (one.warning, one.note.as_str())).collect();
    assert_eq!(notes, [(true, "read store: Redis at db:6379: no process listens")]);
    let unknown = next(&known, Some(store(None)), &before);
    is(&unknown, "ReadStoreReachable", "Unknown", Reason::NotMeasuredYet);
    assert_eq!(unknown.read_store, Some(ReadStoreStatus::default()));
    let none = next(&known, None, &healthy);
    is(&none, "ReadStoreReachable", "True", Reason::AsExpected);
    assert_eq!(none.read_store, None);
}

#[test]
fn a_restart_of_the_operator_says_nothing_of_a_store_that_it_has_not_asked_yet() {
    let good = measured(0, 0.0, false);
    let known = known(Ok(&good));
    let before = next(&known, Some(store(Some(Ok(3)))), &ProjectionStatus::default());
    let started = next(&known, Some(store(None)), &before);
    assert_eq!(urgency(&before, &started), Urgency::Never, "no write");
    assert_eq!(condition(&started, "ReadStoreReachable"), condition(&before, "ReadStoreReachable"));
    let another = Known { generation: Some(2), ..known };
    is(&next(&another, Some(store(None)), &before), "ReadStoreReachable", "Unknown", Reason::NotMeasuredYet);
}

#[test]
fn noise_in_a_latency_costs_no_write() {
    let good = measured(0, 0.0, false);
    let known = known(Ok(&good));
    let before = next(&known, Some(store(Some(Ok(3)))), &ProjectionStatus::default());
    for (millis, expected) in [(9, Urgency::Never), (90, Urgency::Never), (900, Urgency::Soon)] {
        assert_eq!(urgency(&before, &next(&known, Some(store(Some(Ok(millis)))), &before)), expected, "{millis} ms");
    }
}
