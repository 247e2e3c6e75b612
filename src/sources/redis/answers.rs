//! What the server's answers about a stream and its groups say. Pure.

use std::fmt;

use crate::clients::redis::Reply;

/// IDs below this (2001-09-09 in milliseconds) were chosen by the producer and are no times.
const EARLIEST: u64 = 1_000_000_000_000;

/// An entry's ID: a number of milliseconds, normally the time of the append, and a sequence.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct EntryId {
    pub(super) milliseconds: u64,
    pub(super) sequence: u64,
}

impl EntryId {
    pub(super) fn read(text: &str) -> Option<Self> {
        let (milliseconds, sequence) = text.split_once('-')?;
        Some(Self { milliseconds: milliseconds.parse().ok()?, sequence: sequence.parse().ok()? })
    }

    fn of(reply: &Reply) -> Option<Self> {
        reply.as_str().and_then(Self::read)
    }

    /// When the entry was appended, in milliseconds since 1970; absent where the producer chooses IDs that are no times.
    pub(super) fn time(self) -> Option<u64> {
        (self.milliseconds >= EARLIEST).then_some(self.milliseconds)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.milliseconds, self.sequence)
    }
}

/// What `XINFO STREAM` says.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Stream {
    /// Entries that are there.
    pub(super) length: u64,
    /// The first and the last of them; absent where there is none, and only there.
    pub(super) ends: Option<(EntryId, EntryId)>,
    /// The ID of the newest entry that ever was.
    pub(super) newest: EntryId,
    /// The highest ID that `XDEL` deleted.
    pub(super) deleted: EntryId,
    /// Entries that were ever added.
    pub(super) added: u64,
}

impl Stream {
    /// Reads the answer; `None` where it makes no sense, as where entries are there and the first or the last of them cannot be read.
    pub(super) fn read(reply: &Reply) -> Option<Self> {
        let end = |name| reply.field(name)?.as_array()?.first().and_then(EntryId::of);
        let length = reply.field("length")?.as_count()?;
        let ends = match length {
            0 => None,
            _ => Some(end("first-entry").zip(end("last-entry")).filter(|(first, last)| first <= last)?),
        };
        Some(Self {
            length,
            ends,
            newest: reply.field("last-generated-id").and_then(EntryId::of)?,
            deleted: reply.field("max-deleted-entry-id").and_then(EntryId::of)?,
            added: reply.field("entries-added")?.as_count()?,
        })
    }

    /// Entries that were deleted or trimmed since the stream began.
    pub(super) fn removed(&self) -> u64 {
        self.added.saturating_sub(self.length)
    }
}

/// What `XINFO GROUPS` says of one group.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Group {
    /// Entries that a consumer has been given and has not acknowledged.
    pub(super) pending: u64,
    /// The last entry that any consumer was given.
    pub(super) delivered: EntryId,
    /// Entries up to and with that one, deleted ones included. NULL where the server has lost count; too low where entries were trimmed before the group had
    /// them (up to Redis 7.2.5), for then the server goes on without them.
    pub(super) read: Option<u64>,
    /// Entries beyond it, as the server counts. NULL where it has lost count.
    pub(super) lag: Option<u64>,
}

impl Group {
    /// The group of this name. `Ok(None)` where there is none.
    ///
    /// # Errors
    /// The answer makes no sense.
    pub(super) fn find(reply: &Reply, name: &str) -> Result<Option<Self>, ()> {
        let groups = reply.as_array().ok_or(())?;
        let Some(group) = groups.iter().find(|group| group.field("name").and_then(Reply::as_str) == Some(name)) else {
            return Ok(None);
        };
        let read = || {
            Some(Self {
                pending: group.field("pending")?.as_count()?,
                delivered: group.field("last-delivered-id").and_then(EntryId::of)?,
                // A number below zero, which XGROUP SETID with a wrong ENTRIESREAD leads to, is no better than NULL.
                read: group.field("entries-read")?.as_count(),
                lag: group.field("lag")?.as_count(),
            })
        };
        read().map(Some).ok_or(())
    }
}

/// What `XPENDING` says: the range of the entries that consumers hold; nothing where they hold none.
pub(super) fn held(reply: &Reply) -> Option<(EntryId, EntryId)> {
    let parts = reply.as_array()?;
    parts.get(1).and_then(EntryId::of).zip(parts.get(2).and_then(EntryId::of))
}

/// What `XRANGE` says: how many entries there are, and the first of them.
pub(super) fn range(reply: &Reply) -> Option<(u64, Option<EntryId>)> {
    let entries = reply.as_array()?;
    let first = entries.first().and_then(|entry| entry.as_array()?.first().and_then(EntryId::of));
    Some((u64::try_from(entries.len()).ok()?, first))
}

/// What `TIME` says, in milliseconds since 1970.
pub(super) fn time(reply: &Reply) -> Option<u64> {
    let [seconds, microseconds] = reply.as_array()? else { return None };
    let number = |reply: &Reply| reply.as_str()?.parse::<u64>().ok();
    number(seconds)?.checked_mul(1_000)?.checked_add(number(microseconds)? / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Reply {
        Reply::Text(text.as_bytes().to_vec())
    }

    #[test]
    fn ids_are_ordered_as_numbers_and_tell_a_time_only_where_they_are_one() {
        let read = |text| EntryId::read(text).unwrap();
        assert!(read("9-10") > read("9-9") && read("10-0") > read("9-9"));
        assert_eq!(read("1764129600000-3").time(), Some(1_764_129_600_000));
        assert_eq!(read("17-0").time(), None);
        assert!(["", "5", "a-b", "-1-0", "18446744073709551616-0"].iter().all(|text| EntryId::read(text).is_none()));
    }

    #[test]
    fn answers_that_make_no_sense_are_not_read_as_zero() {
        for reply in [Reply::Nil, Reply::Integer(0), Reply::Oversized, Reply::Array(vec![text("length")]), text("OK")] {
            assert_eq!(Stream::read(&reply), None);
            assert_eq!(time(&reply), None);
        }
        let stream = |length, first, last| {
            let entry = |id: &str| if id.is_empty() { Reply::Nil } else { Reply::Array(vec![text(id), Reply::Nil]) };
            let zero = || text("0-0");
            let fields = [
                ("length", Reply::Integer(length)),
                ("first-entry", entry(first)),
                ("last-entry", entry(last)),
                ("last-generated-id", zero()),
                ("max-deleted-entry-id", zero()),
                ("entries-added", Reply::Integer(9)),
            ];
            Stream::read(&Reply::Array(fields.into_iter().flat_map(|(name, value)| [text(name), value]).collect()))
        };
        assert!(stream(7, "1-0", "9-0").is_some() && stream(0, "", "").is_some());
        for (first, last) in [("", "9-0"), ("1-0", ""), ("", ""), ("x", "9-0"), ("9-0", "1-0")] {
            assert_eq!(stream(7, first, last), None, "entries that are there have a first and a last: {first}, {last}");
        }
        assert_eq!(Group::find(&Reply::Oversized, "g"), Err(()));
        assert_eq!(Group::find(&Reply::Array(Vec::new()), "g"), Ok(None));
        let half = Reply::Array(vec![Reply::Array(vec![text("name"), text("g"), text("pending"), Reply::Integer(3)])]);
        assert_eq!(Group::find(&half, "g"), Err(()), "Redis 6 tells no lag");
        assert_eq!(range(&Reply::Oversized), None);
    }
}
