//! An event on its way from a source to a read store.

use std::fmt;

/// One event.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// Its place in the order of its shard: the checkpoint once it is handled.
    pub(super) position: i64,
    /// Where it stands in that order: its own position, or that of the first event that was left out in its favour.
    pub(super) since: i64,
    /// The last position before that which a checkpoint may be at.
    pub(super) before: i64,
    /// Its position as handlers get it.
    pub(super) shown_position: i64,
    /// Its place for people, where earlier events of its stream are parked: then it is parked behind them, and its handler does not run.
    pub(super) behind_parked: Option<String>,
    pub(super) shard: u32,
    pub(super) event_type: String,
    pub(super) stream: Option<String>,
    pub(super) recorded_at: Option<Timestamp>,
    pub(super) data: Option<JsonText>,
}

impl Event {
    /// An event of a queue, which has no place in an order that all workers keep: no handler asks for one.
    pub(super) fn without_position(
        event_type: String,
        stream: Option<String>,
        recorded_at: Option<Timestamp>,
        data: Option<JsonText>,
    ) -> Self {
        Self {
            position: 0,
            since: 0,
            before: 0,
            shown_position: 0,
            behind_parked: None,
            shard: 0,
            event_type,
            stream,
            recorded_at,
            data,
        }
    }
}

/// Microseconds since 2000-01-01 00:00 UTC, as PostgreSQL counts them: the largest and the smallest number are infinity and minus infinity.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Timestamp(pub(super) i64);

/// JSON as text, passed on without a look at it: large numbers keep all their digits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct JsonText(pub(super) String);

/// What tells a source from another whose positions mean something else.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SourceIdentity {
    /// Where on its server it is, such as `database shop, table public.events`.
    pub(super) place: String,
    /// What tells its server from others, and is the same after a failover; absent where the server does not say.
    pub(super) server: Option<String>,
}

impl fmt::Display for SourceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)?;
        match &self.server {
            Some(server) => write!(f, " of server {server}"),
            None => Ok(()),
        }
    }
}
