//! What lies beyond the checkpoint of a catch-up subscription. Pure.
//!
//! Revisions of a stream are dense, and what is deleted (`$maxCount`, `$maxAge`, `$tb`, a soft delete) is its beginning: what is pending is the number of
//! revisions from the first event that is still there to the last. A category is a stream of links, numbered alike. Positions of `$all` are bytes.

use std::time::Duration;

use super::{
    all::{self, MOST_EVENTS},
    counters::Arrivals,
    positions::{age, unknown},
    round::Pages,
};
use crate::{
    api::Reason,
    clients::kurrentdb::{Filter, Page, Read, Start},
    lag::{Certain, CheckpointState, Head, Pending, Position, Sample},
    measure::MeasureError,
    read_stores::Checkpoint,
};

/// The position of the last event that was handled; absent where none ever was. A subscription has one checkpoint, and several rows are no such.
fn committed(checkpoint: Option<&Checkpoint>) -> Result<Option<i64>, MeasureError> {
    match checkpoint.map(|checkpoint| &checkpoint.state) {
        Some(CheckpointState::Committed(rows)) => match rows[..] {
            [Position(position)] => Ok(Some(position)),
            _ => Err(unknown(
                Reason::InvalidAnswer,
                "the checkpoint table has several rows for this name: a catch-up subscription has one checkpoint. Give each Projection a row of its own (spec.checkpoint.readStore.name)",
            )),
        },
        Some(CheckpointState::NeverCommitted | CheckpointState::Handled(_)) | None => Ok(None),
    }
}

/// The first event beyond the checkpoint, which comes with the stream's end.
pub(super) fn stream_read(stream: &str, checkpoint: Option<&Checkpoint>) -> Read {
    let beyond =
        committed(checkpoint).ok().flatten().and_then(|position| u64::try_from(position.saturating_add(1)).ok());
    Read::Stream { stream: stream.to_owned(), from: beyond.unwrap_or_default() }
}

/// The number of events that the stream ever had, where it is known.
pub(super) fn count(stream: &str, checkpoint: Option<&Checkpoint>, pages: &Pages) -> Option<u64> {
    pages.of(&stream_read(stream, checkpoint)).ok()?.last_revision.map(|last| last.saturating_add(1))
}

/// Measures a stream.
pub(super) fn of_stream(
    stream: &str,
    checkpoint: Option<&Checkpoint>,
    pages: &Pages,
    arrived: u64,
    at: Duration,
) -> Result<Sample, MeasureError> {
    let committed = committed(checkpoint)?;
    let read = stream_read(stream, checkpoint);
    let page = pages.of(&read).map_err(|error| in_words(stream, error))?;
    let last = page.last_revision.ok_or_else(|| {
        unknown(
            Reason::InvalidAnswer,
            "the server does not tell the end of the stream: EventStoreDB 22.6 or newer, or KurrentDB, is needed",
        )
    })?;
    let head = head(last)?;
    let Some(committed) = committed else {
        return Ok(never(head, arrived, at));
    };
    let Read::Stream { from, .. } = read else { return Err(unknown(Reason::InvalidAnswer, "another read")) };
    let there = page.events.first().copied();
    // Of an event that was too large to be looked at the revision is not known: it may not be the first beyond the checkpoint.
    let (first, exact) = match there {
        Some(Some(event)) => (event.revision.max(from), true),
        Some(None) => (from, false),
        None => (last.saturating_add(1).max(from), true),
    };
    let events = last.saturating_add(1).saturating_sub(first);
    // The last of them is there.
    let mut sample = sampled(head, committed, (Pending { events, exact }, events.min(1)), arrived, at);
    (sample.staleness, sample.ahead_of_clock) = oldest(there.flatten().and_then(|event| event.created), events, page);
    // Where nothing is left, what the checkpoint had not reached yet is gone as well.
    let kept_from = first.min(last.saturating_add(1));
    sample.faults.deleted = kept_from.saturating_sub(from);
    Ok(sample)
}

fn in_words(stream: &str, error: MeasureError) -> MeasureError {
    if error.reason != Reason::StreamNotFound || error.message.contains("tombstone") {
        return error;
    }
    let advice = if stream.starts_with("$ce-") {
        "no event of this category was appended, it was deleted, or the system projection $by_category does not run"
    } else {
        "correct its name in the Projection; one that was deleted, or to which nothing was ever appended, is not there either"
    };
    MeasureError { message: format!("{}: {advice}", error.message), ..error }
}

/// What is to be read of `$all`: events beyond the checkpoint, and those that came since the last look.
pub(super) fn log_read(
    filter: &Filter,
    checkpoint: Option<&Checkpoint>,
    last_end: Option<u64>,
    end: u64,
) -> Option<Read> {
    let committed = committed(checkpoint).ok()?;
    let committed = committed.map(|position| u64::try_from(position).unwrap_or_default());
    let from = [committed, last_end].into_iter().flatten().min()?;
    let from = if from >= end {
        return None;
    } else if from == 0 {
        Start::Beginning
    } else {
        Start::At(from)
    };
    Some(Read::All { from, filter: filter.clone(), most: MOST_EVENTS })
}

/// Measures `$all`.
pub(super) fn of_log(
    filter: &Filter,
    checkpoint: Option<&Checkpoint>,
    pages: &Pages,
    arrivals: &mut Arrivals,
    at: Duration,
) -> Result<Sample, MeasureError> {
    let committed = committed(checkpoint)?;
    let (end, end_page) = pages.end()?;
    let head = head(end)?;
    let read = log_read(filter, checkpoint, arrivals.end, end);
    let page = read.as_ref().map(|read| pages.of(read)).transpose()?;
    let beyond =
        |position: u64| page.map_or(Pending { events: 0, exact: true }, |page| all::beyond(page, position, end));
    let arrived = arrivals.take(end, |before| beyond(before).events);
    let Some(committed) = committed else {
        return Ok(never(head, arrived, at));
    };
    let from = u64::try_from(committed).unwrap_or_default();
    // An event at position 0 is beyond a checkpoint of -1 alone, and is the server's own.
    let pending = beyond(from);
    let first = page.and_then(|page| page.events.iter().find(|event| event.is_none_or(|event| event.commit > from)));
    let created = first.and_then(|event| event.as_ref()).and_then(|event| event.created);
    let counted = page.map_or(0, |page| all::counted(page, from));
    let mut sample = sampled(head, committed, (pending, counted), arrived, at);
    (sample.staleness, sample.ahead_of_clock) = oldest(created, pending.events, page.unwrap_or(end_page));
    Ok(sample)
}

fn head(number: u64) -> Result<Position, MeasureError> {
    i64::try_from(number)
        .map(Position)
        .map_err(|_| unknown(Reason::InvalidAnswer, "the server tells a position above 2^63"))
}

fn never(head: Position, arrived: u64, at: Duration) -> Sample {
    let sample = Sample::new(at, Head::log(head, head), CheckpointState::NeverCommitted, None, arrived);
    Sample { taken: jiff::Timestamp::now(), ..sample }
}

fn sampled(head: Position, committed: i64, (pending, counted): (Pending, u64), arrived: u64, at: Duration) -> Sample {
    let checkpoint = CheckpointState::Committed(vec![Position(committed)]);
    let sample = Sample::new(at, Head::log(head, head), checkpoint, Some(pending), arrived);
    let upper_bound = (!pending.exact).then(|| BYTES.into());
    let certain = (!pending.exact).then(|| Certain::oldest(counted));
    Sample { taken: jiff::Timestamp::now(), upper_bound, certain, ..sample }
}

/// Why what waits is an estimate, for people.
const BYTES: &str = "more events of $all wait than are read at a time, and the rest is estimated by its bytes; no rate per worker is learnt meanwhile";

/// Age of the oldest of so many events, and how far it is dated in the future.
fn oldest(created: Option<jiff::Timestamp>, events: u64, page: &Page) -> (Option<Duration>, Duration) {
    match created {
        _ if events == 0 => (Some(Duration::ZERO), Duration::ZERO),
        None => (None, Duration::ZERO),
        Some(created) => {
            let (age, ahead) = age(created, page);
            (Some(age), ahead)
        }
    }
}
