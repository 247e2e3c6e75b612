//! What the server tells of a persistent subscription: what it has before it, and which event shows the age of the oldest. Pure.
//!
//! The checkpoint is no measure of what was handled: by default the server writes it once ten events were, so that up to nine handled ones stay beyond it for
//! ever while no more come. A subscription that has caught up (`Live`) has everything it has before it in its buffers, which are counted exactly. One that is
//! behind reads on as buffers allow, and is counted beyond its checkpoint: at most `maxCheckPointCount` and two seconds too many.

use std::time::Duration;

use super::{
    all::{self, MOST_EVENTS},
    positions::{ALL, Place, age, place, unknown},
    round::Pages,
};
use crate::{
    api::Reason,
    clients::kurrentdb::{Filter, Page, Read, Recorded, Start, Subscription},
    lag::Pending,
    measure::MeasureError,
};

/// What is known of a subscription without reading events.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct State {
    stream: String,
    all: bool,
    live: bool,
    /// In its buffers and with its consumers.
    held: u64,
    /// The first event that may not have been handled: a revision, or the commit position before it for `$all`. Absent where nothing was there before.
    from: Option<u64>,
    /// The last event that it has seen.
    seen: Option<u64>,
    /// So many events beyond the checkpoint may have been handled without it being written.
    unwritten: u64,
    /// Handed out and no longer with consumers, since the server started it.
    completed: i64,
    parked: u64,
    consumers: usize,
}

/// What was seen of a subscription.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct SubscriptionState {
    pub(super) pending: Pending,
    /// So many of them wait for certain: those in its buffers and with its consumers.
    pub(super) held: u64,
    /// Age of the oldest of what is pending; absent where it is not known.
    pub(super) age: Option<Duration>,
    pub(super) ahead: Duration,
    /// The number of events of the stream, those that were deleted included; absent for `$all`, whose events are not numbered.
    pub(super) count: Option<u64>,
    /// Handed out and no longer with consumers, since the server started the subscription; redeliveries count.
    pub(super) completed: i64,
    /// Given up and laid aside.
    pub(super) parked: u64,
    /// Connected consumers.
    pub(super) consumers: usize,
}

impl State {
    /// Reads what the server tells.
    ///
    /// # Errors
    /// That it is not ready, or that its numbers make no sense.
    pub(super) fn new(told: &Subscription) -> Result<Self, MeasureError> {
        let flags: Vec<&str> = told.status.split(',').map(str::trim).collect();
        let live = flags.contains(&"Live");
        if !live && !flags.contains(&"Behind") {
            return Err(unknown(
                Reason::SourceFailed,
                "it is not ready: the server has started or elected a leader some seconds ago. If this stays, its log says why",
            ));
        }
        let all = told.event_source == ALL;
        let count = |number: i32| u64::try_from(number).map_err(|_| nonsense());
        let held = count(told.outstanding_messages_count)?
            .saturating_add(count(told.retry_buffer_count)?)
            .saturating_add(count(told.read_buffer_count)?);
        let beyond = |position: u64| if all { position } else { position.saturating_add(1) };
        let checkpoint = place(&told.last_checkpointed_event_position, all)?;
        let (from, base) = match (checkpoint, place(&told.start_from, all)?) {
            (Place::At(checkpoint), _) => (Some(beyond(checkpoint)), Some(checkpoint)),
            (_, Place::At(first)) if !all => (Some(first), None),
            (_, Place::At(position)) => (Some(position), None),
            _ => (None, None),
        };
        let seen = match place(&told.last_known_event_position, all)? {
            Place::At(seen) => Some(base.map_or(seen, |base| base.max(seen))),
            _ => base,
        };
        let completed = told.total_items.saturating_sub(i64::from(told.outstanding_messages_count));
        let unwritten = count(told.min_check_point_count)?.max(1);
        Ok(Self {
            stream: told.event_source.clone(),
            all,
            live,
            held,
            from,
            seen,
            unwritten,
            completed,
            parked: u64::try_from(told.parked_message_count).map_err(|_| nonsense())?,
            consumers: told.connections.len(),
        })
    }

    /// The event that is to be read: the first beyond the checkpoint where the stream's end is to be known, else the oldest one that waits for certain.
    pub(super) fn wants(&self) -> Option<Read> {
        if self.live && self.held == 0 {
            return None;
        }
        if self.all {
            let from = self.from.filter(|from| *from > 0).map_or(Start::Beginning, Start::At);
            return Some(Read::All { from, filter: Filter::None, most: MOST_EVENTS });
        }
        let first = self.from.unwrap_or_default();
        let from = match self.seen.filter(|_| self.live) {
            // The newest wait. Where an older one does, too, the checkpoint stays before it.
            Some(seen) => {
                let newest = seen.saturating_add(1).saturating_sub(self.held);
                newest.min(first.saturating_add(self.unwritten - 1)).max(first)
            }
            None => first,
        };
        Some(Read::Stream { stream: self.stream.clone(), from, most: 1 })
    }

    /// The commit position of the log's end is needed.
    pub(super) fn wants_end_of_log(&self) -> bool {
        self.all && !self.live
    }

    /// Joins it with what was read.
    ///
    /// # Errors
    /// Why what it has before it cannot be told.
    pub(super) fn seen(&self, pages: &Pages) -> Result<SubscriptionState, MeasureError> {
        let held = self.held;
        let count = self.seen.filter(|_| !self.all).map(|seen| seen.saturating_add(1));
        let exactly = |events| Pending { events, exact: true };
        let Some(read) = self.wants() else {
            return Ok(self.counted(exactly(0), None, count.or((!self.all).then_some(0))));
        };
        let page = match pages.of(&read) {
            Ok(page) => page,
            // What is pending is known all the same.
            Err(_) if self.live => return Ok(self.counted(exactly(held), None, count)),
            Err(error) => return Err(error),
        };
        if self.all {
            return self.seen_of_all(page, pages);
        }
        let first = page.events.first().copied().flatten();
        let dated = first.and_then(|first| first.created).map(|created| age(created, page));
        if self.live {
            return Ok(self.counted(exactly(held), dated, count));
        }
        let last = page.last_revision.ok_or_else(nonsense)?;
        let from = first.map_or(self.from.unwrap_or_default(), |first| first.revision);
        let beyond = last.saturating_add(1).saturating_sub(from);
        let pending = Pending { events: beyond.max(held), exact: beyond == 0 && held == 0 };
        Ok(self.counted(pending, dated, Some(last.saturating_add(1))))
    }

    fn seen_of_all(&self, page: &Page, pages: &Pages) -> Result<SubscriptionState, MeasureError> {
        // Without a checkpoint, the event that it starts from is one of those that wait.
        let waits =
            |event: &&Option<Recorded>| event.is_none_or(|event| self.from.is_none_or(|from| event.commit > from));
        let beyond: Vec<&Option<Recorded>> = page.events.iter().filter(waits).collect();
        let (pending, oldest) = if self.live {
            let held = usize::try_from(self.held).unwrap_or(usize::MAX);
            let unwritten = usize::try_from(self.unwritten - 1).unwrap_or(usize::MAX);
            let newest = if all::reaches_end(page) { beyond.len().saturating_sub(held) } else { unwritten };
            (Pending { events: self.held, exact: true }, newest.min(unwritten))
        } else {
            let (end, _) = pages.end()?;
            let counted = all::beyond(page, self.from.unwrap_or_default(), end);
            let exact = counted.events == 0 && self.held == 0;
            (Pending { events: counted.events.max(self.held), exact }, 0)
        };
        let created = beyond.get(oldest).and_then(|event| event.as_ref()).and_then(|event| event.created);
        Ok(self.counted(pending, created.map(|created| age(created, page)), None))
    }

    /// `dated`: age of the oldest of what is pending, and how far it is dated in the future, where that is known.
    fn counted(&self, pending: Pending, dated: Option<(Duration, Duration)>, count: Option<u64>) -> SubscriptionState {
        let dated = if pending.events == 0 { Some((Duration::ZERO, Duration::ZERO)) } else { dated };
        SubscriptionState {
            pending,
            held: self.held.min(pending.events),
            age: dated.map(|(age, _)| age),
            ahead: dated.map_or(Duration::ZERO, |(_, ahead)| ahead),
            count,
            completed: self.completed,
            parked: self.parked,
            consumers: self.consumers,
        }
    }
}

fn nonsense() -> MeasureError {
    unknown(Reason::InvalidAnswer, "the server's numbers of the subscription make no sense")
}
