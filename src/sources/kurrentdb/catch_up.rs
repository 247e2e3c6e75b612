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
    clients::kurrentdb::{Filter, Page, Read, Recorded, Start, shard_of},
    lag::{Certain, CheckpointState, Head, Pending, Position, Sample},
    measure::MeasureError,
    read_stores::Checkpoint,
};

/// How far a subscription has come: the position of the last event that was handled, one for each of the shards that streams are divided into. At least one.
struct Rows(Vec<Position>);

impl Rows {
    /// Absent where nothing was ever handled. Only workers of the built-in projector keep several rows.
    fn of(checkpoint: Option<&Checkpoint>) -> Result<Option<Self>, MeasureError> {
        let Some(checkpoint) = checkpoint else { return Ok(None) };
        match &checkpoint.state {
            CheckpointState::Committed(rows) if checkpoint.bound.is_none() && !rows.is_empty() => {
                Ok(Some(Self(rows.clone())))
            }
            CheckpointState::Committed(_) => Err(unknown(
                Reason::InvalidAnswer,
                "the checkpoint table has several rows for this name: a catch-up subscription has one checkpoint. Give each Projection a row of its own (spec.checkpoint.readStore.name)",
            )),
            CheckpointState::NeverCommitted | CheckpointState::Handled(_) => Ok(None),
        }
    }

    fn lowest(&self) -> i64 {
        self.0.iter().min().map_or(i64::MAX, |row| row.0)
    }

    /// The same as a position of `$all`; 0 where nothing was handled yet.
    fn lowest_commit(&self) -> u64 {
        u64::try_from(self.lowest()).unwrap_or_default()
    }

    fn highest(&self) -> i64 {
        self.0.iter().max().map_or(i64::MIN, |row| row.0)
    }

    /// Some shards have come further than others.
    fn differ(&self) -> bool {
        self.lowest() < self.highest()
    }

    /// The event at this position, of the stream with this hash, has not been handled.
    fn wait_for(&self, position: u64, stream_hash: u64) -> bool {
        let shards = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let row = self.0.get(shard_of(stream_hash, shards) as usize).map_or(i64::MIN, |row| row.0);
        i64::try_from(position).is_ok_and(|position| position > row)
    }
}

/// What may be read first: the events beyond a checkpoint, with the stream's end. Where all shards have come as far, the first of them is enough.
pub(super) fn stream_read(stream: &str, checkpoint: Option<&Checkpoint>) -> Read {
    let rows = Rows::of(checkpoint).ok().flatten();
    let beyond = rows.as_ref().and_then(|rows| u64::try_from(rows.lowest().saturating_add(1)).ok());
    let most = if rows.is_some_and(|rows| rows.differ()) { MOST_EVENTS } else { 1 };
    Read::Stream { stream: stream.to_owned(), from: beyond.unwrap_or_default(), most }
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
    let rows = Rows::of(checkpoint)?;
    let read = stream_read(stream, checkpoint);
    let page = pages.of(&read).map_err(|error| in_words(stream, error))?;
    let last = page.last_revision.ok_or_else(|| {
        unknown(
            Reason::InvalidAnswer,
            "the server does not tell the end of the stream: EventStoreDB 22.6 or newer, or KurrentDB, is needed",
        )
    })?;
    let head = head(last)?;
    let Some(rows) = rows else {
        return Ok(never(head, arrived, at));
    };
    let Read::Stream { from, .. } = read else { return Err(unknown(Reason::InvalidAnswer, "another read")) };
    if rows.differ() {
        return Ok(of_shards(&rows, page, (head, last), arrived, at));
    }
    let there = page.events.first().copied();
    // Of an event that was too large to be looked at the revision is not known: it may not be the first beyond the checkpoint.
    let (first, exact) = match there {
        Some(Some(event)) => (event.revision.max(from), true),
        Some(None) => (from, false),
        None => (last.saturating_add(1).max(from), true),
    };
    let events = last.saturating_add(1).saturating_sub(first);
    // The last of them is there.
    let mut sample = sampled(head, &rows, (Pending { events, exact }, events.min(1)), arrived, at);
    (sample.staleness, sample.ahead_of_clock) = oldest(there.flatten().and_then(|event| event.created), events, page);
    // Where nothing is left, what the checkpoint had not reached yet is gone as well.
    let kept_from = first.min(last.saturating_add(1));
    sample.faults.deleted = kept_from.saturating_sub(from);
    Ok(sample)
}

/// Measures a stream of which some shards have come further than others: the events of the page are counted for each shard, and all behind them wait.
fn of_shards(rows: &Rows, page: &Page, (head, last): (Position, u64), arrived: u64, at: Duration) -> Sample {
    let waits = |event: &Recorded| rows.wait_for(event.revision, event.stream_hash);
    let counted = all::counted(page, waits);
    let rest = if all::reaches_end(page) {
        0
    } else {
        let seen = page.events.iter().rev().flatten().next().map(|event| event.revision);
        let seen = seen.or_else(|| u64::try_from(rows.lowest()).ok());
        seen.map_or(last.saturating_add(1), |seen| last.saturating_sub(seen))
    };
    let known = page.events.iter().all(Option::is_some);
    let pending = Pending { events: counted.saturating_add(rest), exact: rest == 0 && known };
    let mut sample = sampled(head, rows, (pending, counted), arrived, at);
    let first = page.events.iter().find(|event| event.as_ref().is_none_or(waits)).copied().flatten();
    (sample.staleness, sample.ahead_of_clock) = oldest(first.and_then(|event| event.created), pending.events, page);
    // What the shard that has come furthest was to handle next, and is gone.
    let next = u64::try_from(rows.highest().saturating_add(1)).unwrap_or_default();
    let kept_from = match page.events.first() {
        Some(Some(event)) => event.revision,
        // Nothing is left of what none of them had reached.
        None if all::reaches_end(page) => last.saturating_add(1),
        Some(None) | None => 0,
    };
    sample.faults.deleted = kept_from.saturating_sub(next);
    sample
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

/// What is to be read of `$all` first: events beyond the checkpoint, and those that came since the last look.
pub(super) fn log_read(
    filter: &Filter,
    checkpoint: Option<&Checkpoint>,
    last_end: Option<u64>,
    end: u64,
) -> Option<Read> {
    let handled = Rows::of(checkpoint).ok()?.as_ref().map(Rows::lowest_commit);
    let from = [handled, last_end].into_iter().flatten().min()?;
    (from < end).then(|| page_from(filter, from))
}

/// What is to be read of `$all` after that: events beyond the checkpoint, where it has passed the last look, from which that page begins, and the page
/// does not tell all. So a subscription that keeps up is counted exactly however much comes between two looks.
pub(super) fn log_read_on(
    filter: &Filter,
    checkpoint: Option<&Checkpoint>,
    last_end: Option<u64>,
    pages: &Pages,
) -> Option<Read> {
    let (end, _) = pages.end().ok()?;
    let handled = Rows::of(checkpoint).ok()??.lowest_commit();
    let passed = last_end.is_some_and(|last| last < handled) && handled < end;
    let page = pages.of(&log_read(filter, checkpoint, last_end, end)?).ok()?;
    (passed && !all::tells_all(page)).then(|| page_from(filter, handled))
}

fn page_from(filter: &Filter, from: u64) -> Read {
    let from = if from == 0 { Start::Beginning } else { Start::At(from) };
    Read::All { from, filter: filter.clone(), most: MOST_EVENTS }
}

/// Measures `$all`.
pub(super) fn of_log(
    filter: &Filter,
    checkpoint: Option<&Checkpoint>,
    pages: &Pages,
    arrivals: &mut Arrivals,
    at: Duration,
) -> Result<Sample, MeasureError> {
    let rows = Rows::of(checkpoint)?;
    let (end, end_page) = pages.end()?;
    let head = head(end)?;
    let page_of = |read: Option<Read>| read.map(|read| pages.of(&read)).transpose();
    let page = page_of(log_read(filter, checkpoint, arrivals.end, end))?;
    let beyond = page_of(log_read_on(filter, checkpoint, arrivals.end, pages))?.or(page);
    let nothing = Pending { events: 0, exact: true };
    let since = |before: u64| page.map_or(nothing, |page| all::beyond(page, before, end));
    let arrived = arrivals.take(end, |before| since(before).events);
    let Some(rows) = rows else {
        return Ok(never(head, arrived, at));
    };
    let from = rows.lowest_commit();
    let waits = |event: &Recorded| rows.wait_for(event.commit, event.stream_hash);
    // Of what came since the last look nothing waits where the checkpoint is at the end.
    let beyond = beyond.filter(|_| from < end);
    let pending = beyond.map_or(nothing, |page| all::waiting(page, from, end, waits));
    let first = beyond.and_then(|page| page.events.iter().find(|event| event.as_ref().is_none_or(waits)));
    let created = first.and_then(|event| event.as_ref()).and_then(|event| event.created);
    let counted = beyond.map_or(0, |page| all::counted(page, waits));
    let mut sample = sampled(head, &rows, (pending, counted), arrived, at);
    (sample.staleness, sample.ahead_of_clock) = oldest(created, pending.events, beyond.unwrap_or(end_page));
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

fn sampled(head: Position, rows: &Rows, (pending, counted): (Pending, u64), arrived: u64, at: Duration) -> Sample {
    let checkpoint = CheckpointState::Committed(rows.0.clone());
    let sample = Sample::new(at, Head::log(head, head), checkpoint, Some(pending), arrived);
    let upper_bound = (!pending.exact).then(|| BEYOND_A_PAGE.into());
    let certain = (!pending.exact).then(|| Certain::oldest(counted));
    Sample { taken: jiff::Timestamp::now(), upper_bound, certain, ..sample }
}

/// Why what waits is an estimate, for people.
const BEYOND_A_PAGE: &str = "more events wait than are read at a time: of $all the rest is estimated by its bytes, and of a stream whose shards have not come equally far all of the rest counts; no rate per worker is learnt meanwhile";

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
