//! What a read store answered about itself: whether it can be reached, how fast, and how much of it is in use. Passes from the sampler to the status
//! and to the metrics; asks no server.

use std::{sync::Arc, time::Duration, time::Instant};

use jiff::Timestamp;

use crate::{
    api::{
        ConnectionLimit, ConnectionsStatus, MemoryStatus, ReadStoreRefusal, ReadStoreState, ReadStoreStatus, Reason,
        WriteQueueStatus,
    },
    lag::Strain,
    measure::MeasureError,
};

/// One read store as one login reaches it. Projections with the same server, user and credentials have the same.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StoreId(pub u64);

/// Which read store it is, for the labels of metrics. Holds no secret.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StoreName {
    /// `postgres`, `redis` or `elasticsearch`.
    pub kind: &'static str,
    /// Host and port, and the database where the server has several; what describes the connection, while that cannot be read.
    pub server: Arc<str>,
    /// The user; empty where there is none.
    pub user: Arc<str>,
}

/// What one request found. What is absent is not known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoreSample {
    /// From sending the request over an open connection to the whole answer.
    pub latency: Duration,
    /// Connections in use, of the limit that leaves the fewest.
    pub connections: Option<Connections>,
    /// Redis: memory in use.
    pub memory: Option<Memory>,
    /// Redis: connections refused for want of room since the server started.
    pub rejected_connections: Option<u64>,
    /// Redis from 6.2 on: commands refused for want of memory since the server started.
    pub refused_writes: Option<u64>,
    /// Redis: keys removed for want of memory since the server started.
    pub evicted_keys: Option<u64>,
    /// Elasticsearch and OpenSearch: the thread pools for writes of all nodes.
    pub writes: Option<WriteQueue>,
    /// PostgreSQL: of the sessions of this database that have waited for a lock for some time the one that waits longest.
    pub lock_wait: Option<LockWait>,
    /// Why figures are absent that this kind of store has, and what to do.
    pub missing: Option<Arc<str>>,
}

impl StoreSample {
    /// Writes refused for want of room since the server or its nodes started.
    pub fn rejected_writes(&self) -> Option<u64> {
        self.writes.map(|writes| writes.rejected).or(self.refused_writes)
    }
}

/// A session that waits for a lock, and one that keeps it from it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LockWait {
    /// The one that waits.
    pub waiting: LockSession,
    /// Since when, where the server tells (from PostgreSQL 14 on).
    pub since: Option<Timestamp>,
    /// The one that it waits for.
    pub holding: LockSession,
}

/// A session by what everybody may see of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LockSession {
    /// The number of its process; 0 for a transaction that was prepared and has no session.
    pub pid: i32,
    /// How the application calls itself; empty where it does not.
    pub application: String,
}

/// Connections of a server, or those of a role or database where its own limit leaves fewer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Connections {
    /// Those that are open.
    pub used: u64,
    /// False where processes may be counted that are no connections, since the server does not show us what they are.
    pub exact: bool,
    /// The most that there may be for an ordinary user; absent where the server tells none.
    pub limit: Option<u64>,
    /// Whose limit it is.
    pub limited_by: ConnectionLimit,
}

impl Connections {
    /// The part of the limit that is in use, 0 to 1 and above; absent without a limit.
    // No server has 2^53 connections.
    #[allow(clippy::cast_precision_loss)]
    pub fn ratio(&self) -> Option<f64> {
        self.limit.filter(|limit| *limit > 0).map(|limit| self.used as f64 / limit as f64)
    }
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Memory {
    /// In use.
    pub used: u64,
    /// The most that the server takes; absent where it has no limit.
    pub limit: Option<u64>,
}

/// Writes that wait for a thread, and those refused for want of room.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WriteQueue {
    /// Waiting now.
    pub queued: u64,
    /// Refused since the nodes started.
    pub rejected: u64,
}

/// What is known of one read store.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreObservation {
    /// Which it is.
    pub name: StoreName,
    /// The newest answer, or why there is none; absent before the first.
    pub newest: Option<Polled>,
    /// What it had refused lately when it was asked last.
    pub strain: Option<Strain>,
}

/// The outcome of asking a read store once.
#[derive(Clone, Debug, PartialEq)]
pub struct Polled {
    /// What it answered, or why not.
    pub result: Result<StoreSample, MeasureError>,
    /// When it was asked.
    pub taken: Timestamp,
    /// From this moment on it is too old to act on.
    pub valid_until: Instant,
}

impl StoreObservation {
    /// What is known at `now`, or why nothing is. An old answer is none.
    pub fn current(&self, now: Instant) -> Result<&StoreSample, MeasureError> {
        match &self.newest {
            None => Err(MeasureError {
                reason: Reason::NotMeasuredYet,
                message: "the read store has not been asked yet".to_owned(),
            }),
            Some(Polled { result: Err(why), .. }) => Err(why.clone()),
            Some(Polled { taken, valid_until, .. }) if now >= *valid_until => Err(MeasureError {
                reason: Reason::SampleTooOld,
                message: format!("the read store was last asked at {taken}: the operator may be overloaded"),
            }),
            Some(Polled { result: Ok(sample), .. }) => Ok(sample),
        }
    }

    /// The same for the status.
    pub fn status(&self, now: Instant) -> ReadStoreStatus {
        let refuses = self.strain.map(|strain| match strain {
            Strain::Writes => ReadStoreRefusal::Writes,
            Strain::Connections => ReadStoreRefusal::Connections,
        });
        let sample = match self.current(now) {
            Ok(sample) => sample,
            Err(MeasureError { reason: Reason::NotMeasuredYet | Reason::SampleTooOld, .. }) => {
                return ReadStoreStatus::default();
            }
            Err(_) => {
                let state = ReadStoreState::Unreachable;
                return ReadStoreStatus { state, refuses, ..ReadStoreStatus::default() };
            }
        };
        let StoreSample {
            latency,
            connections,
            memory,
            rejected_connections,
            evicted_keys,
            writes,
            missing,
            refused_writes,
            lock_wait: _,
        } = sample;
        ReadStoreStatus {
            state: ReadStoreState::Healthy,
            refuses,
            latency_seconds: Some(two_digits(latency.as_secs_f64())),
            connections: connections.map(|Connections { used, exact, limit, limited_by }| ConnectionsStatus {
                used: count(used),
                limit: limit.map(count),
                limited_by,
                exact,
            }),
            memory: memory
                .map(|Memory { used, limit }| MemoryStatus { used_bytes: count(used), limit_bytes: limit.map(count) }),
            rejected_connections: rejected_connections.map(count),
            rejected_writes: refused_writes.map(count),
            evicted_keys: evicted_keys.map(count),
            writes: writes.map(|WriteQueue { queued, rejected }| WriteQueueStatus {
                queued: count(queued),
                rejected: count(rejected),
            }),
            reason: missing.as_deref().map(str::to_owned),
        }
    }
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Rounds to two significant digits, at the finest to microseconds.
fn two_digits(seconds: f64) -> f64 {
    let scale = [1e6, 1e5, 1e4, 1e3, 1e2, 1e1].into_iter().find(|scale| seconds * scale < 100.0).unwrap_or(1.0);
    (seconds * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(newest: Option<Result<StoreSample, MeasureError>>, valid_until: Instant) -> StoreObservation {
        let polled = newest.map(|result| Polled { result, taken: Timestamp::UNIX_EPOCH, valid_until });
        let name = StoreName { kind: "redis", server: "db:6379".into(), user: "".into() };
        StoreObservation { name, newest: polled, strain: None }
    }

    #[test]
    fn only_a_fresh_answer_is_healthy() {
        let now = Instant::now();
        let later = now + Duration::from_secs(10);
        let sample = StoreSample { latency: Duration::from_micros(1_234), ..StoreSample::default() };
        let refused = MeasureError { reason: Reason::ConnectionRefused, message: "refused".to_owned() };
        for (newest, until, state, latency) in [
            (None, later, ReadStoreState::Unknown, None),
            (Some(Ok(sample.clone())), later, ReadStoreState::Healthy, Some(0.0012)),
            (Some(Ok(sample)), now, ReadStoreState::Unknown, None),
            (Some(Err(refused)), later, ReadStoreState::Unreachable, None),
        ] {
            let status = observed(newest, until).status(now);
            assert_eq!((status.state, status.latency_seconds), (state, latency));
        }
    }

    #[test]
    fn what_is_refused_is_told_of_a_store_that_answers_or_cannot_be_reached_and_not_of_one_that_was_not_asked() {
        let now = Instant::now();
        let later = now + Duration::from_secs(10);
        let sample = StoreSample { refused_writes: Some(3), ..StoreSample::default() };
        let full = MeasureError { reason: Reason::TooManyConnections, message: "full".to_owned() };
        for (newest, until, strain, told) in [
            (Some(Ok(sample.clone())), later, None, (None, Some(3))),
            (Some(Ok(sample.clone())), later, Some(Strain::Writes), (Some(ReadStoreRefusal::Writes), Some(3))),
            (Some(Err(full)), later, Some(Strain::Connections), (Some(ReadStoreRefusal::Connections), None)),
            (Some(Ok(sample)), now, Some(Strain::Writes), (None, None)),
            (None, later, Some(Strain::Writes), (None, None)),
        ] {
            let status = StoreObservation { strain, ..observed(newest, until) }.status(now);
            assert_eq!((status.refuses, status.rejected_writes), told);
        }
    }

    #[test]
    fn a_latency_has_two_digits() {
        for (seconds, shown) in
            [(0.000_000_4, 0.0), (0.000_084_6, 0.000_085), (0.001_26, 0.0013), (0.25, 0.25), (4.96, 5.0)]
        {
            assert!((two_digits(seconds) - shown).abs() < 1e-9, "{seconds}");
        }
    }
}
