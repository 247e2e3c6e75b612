//! What the operator reports about a Projection's read store.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A read store as the operator reaches it. A field that is absent is unknown, never zero.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadStoreStatus {
    /// Whether it answers; the condition ReadStoreReachable says why not.
    pub state: ReadStoreState,
    /// What it refuses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refuses: Option<ReadStoreRefusal>,
    /// Seconds that it takes to answer one small request over an open connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_seconds: Option<f64>,
    /// Connections in use, of all its clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<ConnectionsStatus>,
    /// Redis: the memory in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStatus>,
    /// Redis: connections that were refused for want of room since the server started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected_connections: Option<i64>,
    /// Redis from 6.2 on: commands that were refused for want of memory (`OOM`) since the server started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected_writes: Option<i64>,
    /// Redis: keys that were removed for want of memory since the server started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evicted_keys: Option<i64>,
    /// Elasticsearch and OpenSearch: writes that wait or were refused, of all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writes: Option<WriteQueueStatus>,
    /// Why figures are absent, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Whether a read store answers.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum ReadStoreState {
    /// It answered when it was last asked, a few seconds ago.
    Healthy,
    /// It did not answer, or refused the login.
    Unreachable,
    /// It has not been asked yet, or not for long.
    #[default]
    Unknown,
}

/// What a read store refused for want of room within the last minute, in which no worker is added. Absent where nothing is known to be refused.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum ReadStoreRefusal {
    /// Writes: its queue or its memory is full.
    Writes,
    /// Connections.
    Connections,
}

/// Connections in use. Where several limits hold, of the one that leaves the fewest.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionsStatus {
    /// Those that are open.
    pub used: i64,
    /// The most that an ordinary user may open; absent where the server tells no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// What is counted, and whose limit it is.
    pub limited_by: ConnectionLimit,
    /// False where the number may be too high, since the server does not show the user what each of its processes is.
    pub exact: bool,
}

/// Whose limit of connections counts.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
pub enum ConnectionLimit {
    /// The server's, of all its clients.
    #[default]
    Server,
    /// The role's (`CONNECTION LIMIT` of PostgreSQL).
    Role,
    /// The database's (`CONNECTION LIMIT` of PostgreSQL).
    Database,
}

/// Memory in bytes.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryStatus {
    /// In use.
    pub used_bytes: i64,
    /// The most that the server takes; absent where it has no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<i64>,
}

/// Writes that wait for a thread, and those that were refused for want of room.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WriteQueueStatus {
    /// Waiting now.
    pub queued: i64,
    /// Refused since the nodes started.
    pub rejected: i64,
}

/// A latency that differs by less than this, in seconds, is no news.
const SMALL_LATENCY: f64 = 0.1;
/// Nor is one that differs by less than this share of the longer.
const SMALL_SHARE_OF_LATENCY: f64 = 0.5;
/// Counts are news when they differ by more than one part in so many of their limit...
const PARTS_OF_LIMIT: i64 = 10;
/// ... or, where there is none, of themselves.
const PARTS_OF_ITSELF: i64 = 4;

impl ReadStoreStatus {
    /// The same with the numbers of `before` where they have hardly changed, so that the noise of a busy server costs no write of a status.
    #[must_use]
    pub fn settled(&self, before: &Self) -> Self {
        if (self.state, self.refuses, &self.reason) != (before.state, before.refuses, &before.reason) {
            return self.clone();
        }
        let latency_seconds = match (self.latency_seconds, before.latency_seconds) {
            (Some(now), Some(then))
                if (now - then).abs() <= SMALL_LATENCY.max(SMALL_SHARE_OF_LATENCY * now.max(then)) =>
            {
                Some(then)
            }
            (now, _) => now,
        };
        let connections = match (&self.connections, &before.connections) {
            (Some(now), Some(then))
                if (now.limit, now.limited_by, now.exact) == (then.limit, then.limited_by, then.exact)
                    && is_close(now.used, then.used, now.limit, 2) =>
            {
                Some(then.clone())
            }
            (now, _) => now.clone(),
        };
        let memory = match (&self.memory, &before.memory) {
            (Some(now), Some(then))
                if now.limit_bytes == then.limit_bytes
                    && is_close(now.used_bytes, then.used_bytes, now.limit_bytes, 1 << 20) =>
            {
                Some(then.clone())
            }
            (now, _) => now.clone(),
        };
        let writes = match (&self.writes, &before.writes) {
            (Some(now), Some(then))
                if is_close(now.queued, then.queued, None, 10) && is_close(now.rejected, then.rejected, None, 0) =>
            {
                Some(then.clone())
            }
            (now, _) => now.clone(),
        };
        let total = |now: Option<i64>, then: Option<i64>| match (now, then) {
            (Some(now), Some(then)) if is_close(now, then, None, 0) => Some(then),
            (now, _) => now,
        };
        Self {
            state: self.state,
            refuses: self.refuses,
            latency_seconds,
            connections,
            memory,
            rejected_connections: total(self.rejected_connections, before.rejected_connections),
            rejected_writes: total(self.rejected_writes, before.rejected_writes),
            evicted_keys: total(self.evicted_keys, before.evicted_keys),
            writes,
            reason: self.reason.clone(),
        }
    }
}

fn is_close(now: i64, then: i64, limit: Option<i64>, least: i64) -> bool {
    let small = limit.map_or(then / PARTS_OF_ITSELF, |limit| limit / PARTS_OF_LIMIT);
    now.abs_diff(then) <= small.max(least).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(latency: f64, used: i64, evicted: i64) -> ReadStoreStatus {
        ReadStoreStatus {
            state: ReadStoreState::Healthy,
            latency_seconds: Some(latency),
            connections: Some(ConnectionsStatus { used, limit: Some(100), exact: true, ..Default::default() }),
            evicted_keys: Some(evicted),
            ..ReadStoreStatus::default()
        }
    }

    #[test]
    fn noise_is_no_news_and_what_people_would_act_on_is() {
        let before = status(0.001, 20, 0);
        for quiet in [status(0.05, 20, 0), status(0.001, 30, 0), status(0.0, 10, 0)] {
            assert_eq!(quiet.settled(&before), before);
        }
        for news in [status(0.2, 20, 0), status(0.001, 31, 0), status(0.001, 20, 1)] {
            assert_eq!(news.settled(&before), news);
        }
        assert_eq!(status(0.001, 20, 9).settled(&status(0.001, 20, 8)), status(0.001, 20, 8));
        let refusing = ReadStoreStatus { refuses: Some(ReadStoreRefusal::Writes), ..before.clone() };
        assert_eq!((refusing.settled(&before), before.settled(&refusing)), (refusing.clone(), before.clone()));
        let away = ReadStoreStatus { state: ReadStoreState::Unreachable, ..ReadStoreStatus::default() };
        assert_eq!(away.settled(&before), away, "no number of a store that is away stays");
    }
}
