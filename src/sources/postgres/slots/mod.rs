//! Replication slots: how many bytes of the write-ahead log their consumers have not confirmed. One statement a poll for all slots of a server.
//!
//! The bytes hold what other tables and databases wrote, too, so that they are an upper bound of what waits; and a byte has no time, so that its age is
//! estimated from when the log was seen to grow.

mod timeline;

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio_postgres::{Client, Error, Row, types::Type};

use super::{Answer, AskRef};
use crate::{
    api::Reason,
    clients::postgres::{Live, Query, classify},
    lag::{Certain, CheckpointState, Head, Note, Pending, Position, Sample},
    measure::MeasureError,
};
use timeline::Timeline;

/// Columns that not every version has are read by way of JSON. `restart_lsn` stands for what physical slots have confirmed. A standby has no end of the
/// log: it knows what it has replayed, but not what its primary has written since.
const STATEMENT: &str = "
select (log.end - '0/0'::pg_lsn)::bigint, s.slot_name::text, s.temporary,
    (case when s.slot_type = 'logical' then s.confirmed_flush_lsn else s.restart_lsn end - '0/0'::pg_lsn)::bigint,
    pg_catalog.to_jsonb(s) ->> 'wal_status', coalesce(pg_catalog.to_jsonb(s) ->> 'conflicting', 'false') = 'true', s.active
from (select case when not pg_catalog.pg_is_in_recovery() then pg_catalog.pg_current_wal_lsn() end as end) log
left join pg_catalog.pg_replication_slots s on s.slot_name::text = any($1::text[])";

/// What is remembered of the log of a server from poll to poll.
#[derive(Default)]
pub(super) struct Slots {
    timeline: Timeline,
    /// The end of the log at the first look, and at the last one.
    ends: Option<(Position, Position)>,
}

/// What the server tells of a slot.
struct Slot {
    temporary: bool,
    active: bool,
    confirmed: Option<Position>,
    wal_status: Option<String>,
    conflicting: bool,
}

impl Slots {
    /// One answer for each projection.
    ///
    /// # Errors
    /// Why nothing is known of any slot.
    pub(super) async fn measure(
        &mut self,
        live: &Live,
        asked: &[(AskRef, Arc<str>)],
        started: std::time::Instant,
    ) -> Result<Vec<Answer>, MeasureError> {
        let names: Vec<&str> = asked.iter().map(|(_, name)| &**name).collect();
        let looked = live.reading(look(&live.session.client, &names)).await;
        let (end, slots) = looked.and_then(|looked| looked).map_err(|error| {
            let (reason, message) = classify(&error);
            MeasureError { reason, message: format!("replication slots: {message}") }
        })?;
        let Some(end) = end else {
            return Err(MeasureError { reason: Reason::SourceIsReplica, message: STANDBY.to_owned() });
        };
        let at = started.elapsed();
        self.timeline.observe(at, end);
        let first = self.ends.filter(|(_, last)| *last <= end).map_or(end, |(first, _)| first);
        self.ends = Some((first, end));
        let arrived = end.0.abs_diff(first.0);
        Ok(asked
            .iter()
            .map(|(ask, name)| (ask.clone(), self.sample(name, slots.get(&**name), end, arrived, at)))
            .collect())
    }

    fn sample(
        &self,
        name: &str,
        slot: Option<&Slot>,
        end: Position,
        arrived: u64,
        at: Duration,
    ) -> Result<Sample, MeasureError> {
        let (slot, confirmed) = slot
            .ok_or(Trouble::Missing)
            .and_then(|slot| Ok((slot, slot.confirmed()?)))
            .map_err(|trouble| trouble.of(name))?;
        // What a consumer confirmed was written by then, although the end of the log was read before.
        let end = end.max(confirmed);
        let bytes = end.0.abs_diff(confirmed.0);
        let head = Head::log(end, end);
        let pending = Some(Pending { events: bytes, exact: bytes == 0 });
        Ok(Sample {
            taken: jiff::Timestamp::now(),
            staleness: self.timeline.age_beyond(confirmed),
            notes: slot.notes(bytes),
            // Which of the bytes concern the consumer is not known: perhaps none.
            certain: (bytes > 0).then_some(Certain::Newest(0)),
            upper_bound: (bytes > 0).then(|| Arc::from(BYTES)),
            ..Sample::new(at, head, CheckpointState::Committed(vec![confirmed]), pending, arrived)
        })
    }
}

/// Why the number is a bound, for people.
const BYTES: &str = "a replication slot is behind by bytes of the write-ahead log, of which other tables, other databases and the server's own upkeep have their part; their age is estimated from when the log was seen to grow";
const STANDBY: &str = "replication slots: the server is a standby, which does not know how far the log of its primary reaches: name the primary in the Secret";

/// The end of the log, and the slots of these names that there are.
async fn look(client: &Client, names: &[&str]) -> Result<(Option<Position>, HashMap<String, Slot>), Error> {
    let rows = Query::new(STATEMENT, &[Type::TEXT_ARRAY]).rows(client, &[&names]).await?;
    let end = rows.first().map(|row| row.try_get::<_, Option<i64>>(0)).transpose()?.flatten().map(Position);
    let slots = rows.iter().filter_map(|row| read(row).transpose()).collect::<Result<_, Error>>()?;
    Ok((end, slots))
}

fn read(row: &Row) -> Result<Option<(String, Slot)>, Error> {
    let Some(name) = row.try_get::<_, Option<String>>(1)? else { return Ok(None) };
    let slot = Slot {
        temporary: row.try_get(2)?,
        confirmed: row.try_get::<_, Option<i64>>(3)?.map(Position),
        wal_status: row.try_get(4)?,
        conflicting: row.try_get(5)?,
        active: row.try_get(6)?,
    };
    Ok(Some((name, slot)))
}

/// Why a slot cannot be measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Trouble {
    Missing,
    Temporary,
    Lost,
    Conflicting,
    Unused,
}

impl Slot {
    /// What people should know of a slot that is behind by so many bytes.
    fn notes(&self, bytes: u64) -> Vec<Note> {
        let mut notes = Vec::new();
        if bytes > 0 && !self.active {
            notes.push(Note::NoConsumer(Arc::from(
                "no consumer is connected to the replication slot, and the server keeps its log for it",
            )));
        }
        if self.wal_status.as_deref() == Some("unreserved") {
            notes.push(Note::Estimated(Arc::from("the server may soon remove log that the slot needs (wal_status unreserved), as max_slot_wal_keep_size says: let its consumer catch up, or raise the limit")));
        }
        notes
    }

    fn confirmed(&self) -> Result<Position, Trouble> {
        match (self.wal_status.as_deref(), self.confirmed) {
            _ if self.temporary => Err(Trouble::Temporary),
            _ if self.conflicting => Err(Trouble::Conflicting),
            (Some("lost"), _) => Err(Trouble::Lost),
            (_, None) => Err(Trouble::Unused),
            (_, Some(confirmed)) => Ok(confirmed),
        }
    }
}

impl Trouble {
    fn of(self, name: &str) -> MeasureError {
        let (reason, what) = match self {
            Self::Missing => (
                Reason::SlotNotFound,
                "there is no such slot: correct its name in the Projection, or let the consumer create it. After a failover it is gone, unless the server carries slots over",
            ),
            Self::Temporary => {
                (Reason::InvalidSpec, "it is temporary and ends with the session that made it: name a slot that stays")
            }
            Self::Lost => (
                Reason::SourceFailed,
                "it is lost (wal_status lost): the server has removed log that it needs, as max_slot_wal_keep_size says, so that changes were not read. Drop the slot, create it again, and let the consumer begin with a new copy of its tables",
            ),
            Self::Conflicting => (
                Reason::SourceFailed,
                "it was invalidated by recovery on this standby: create it again, on the primary where possible",
            ),
            Self::Unused => (Reason::NeverCommitted, "it holds no log yet, since no consumer has used it"),
        };
        MeasureError { reason, message: format!("replication slot {name}: {what}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> Slot {
        Slot {
            temporary: false,
            active: true,
            confirmed: Some(Position(7)),
            wal_status: Some("reserved".to_owned()),
            conflicting: false,
        }
    }

    #[test]
    fn a_slot_that_tells_nothing_is_refused_in_words() {
        assert_eq!(slot().confirmed(), Ok(Position(7)));
        let status = |status: &str| Slot { wal_status: Some(status.to_owned()), ..slot() }.confirmed();
        assert_eq!((status("extended"), status("unreserved")), (Ok(Position(7)), Ok(Position(7))));
        assert_eq!(status("lost"), Err(Trouble::Lost));
        assert_eq!(Slot { wal_status: None, ..slot() }.confirmed(), Ok(Position(7)), "before PostgreSQL 13");
        assert_eq!(Slot { conflicting: true, ..slot() }.confirmed(), Err(Trouble::Conflicting));
        assert_eq!(Slot { temporary: true, ..slot() }.confirmed(), Err(Trouble::Temporary));
        assert_eq!(Slot { confirmed: None, ..slot() }.confirmed(), Err(Trouble::Unused));
    }
}
