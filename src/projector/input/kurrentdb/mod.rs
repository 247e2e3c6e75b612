//! Reads the events of a stream, a category or `$all` of KurrentDB, in the order of their positions.
//!
//! A position is what catch-up subscriptions keep: the revision in the stream (of a category that of the link), or the commit position in `$all`. The server
//! numbers with `u64`; what is beyond 2^63 is refused. The shards are hashes of the stream that an event was appended to, and all share one order. What a server
//! has once told comes in its final order, so that all up to the head may be read.
//!
//! Revisions are dense, and those that are gone are passed over. Positions of `$all` are bytes, and a read begins only at one of an event: so workers are told no
//! position that is none.

mod events;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use self::events::{Slice, failed, invalid, position};
use super::{
    super::{config::KurrentDbInput, error::ProjectorError, event::SourceIdentity, sharding::Sharding},
    EventReader, Fetch, Fetched, Horizon, Range,
};
use crate::{
    addresses::AddressRules,
    api::Reason,
    clients::kurrentdb::{Client, ConnectionSettings, EventPage, Filter, Page, Read, Request, Response, Start},
    measure::MeasureError,
    sources::kurrentdb::Log,
};

/// For one question.
const DEADLINE: Duration = Duration::from_secs(15);
/// Before the first event, of a stream and of `$all`.
const BEFORE_ALL: i64 = -1;
/// Of a batch that others have a part in, so many events are read at most.
const MOST_EVENTS: u64 = 10_000;

/// A connection to the cluster.
pub(in crate::projector) struct KurrentDbReader {
    client: Client,
    log: Log,
    shards: u32,
    /// The types that have a handler.
    types: BTreeSet<String>,
    max_event_bytes: u64,
    /// With a filter that few events pass, the server has found none in time. It is read without one until the end of the log, which takes longer and goes on.
    unfiltered: bool,
    /// Positions of the last page, and the one before it, in their order.
    seen: Vec<i64>,
}

impl KurrentDbReader {
    /// Connects, and checks that there is such a log. `types` are the types of event that are wanted.
    pub(in crate::projector) async fn open(
        settings: ConnectionSettings,
        input: &KurrentDbInput,
        max_event_bytes: u64,
        types: Vec<String>,
    ) -> Result<Self, ProjectorError> {
        let KurrentDbInput { subscription, shards } = input;
        let client = Client::new(settings, Arc::new(AddressRules::everywhere())).named("projectionist-projector");
        let mut reader = Self {
            client,
            log: Log::from(subscription),
            shards: *shards,
            types: types.into_iter().collect(),
            max_event_bytes,
            unfiltered: false,
            seen: Vec::new(),
        };
        reader.head(BEFORE_ALL).await?;
        Ok(reader)
    }

    async fn ask(&mut self, request: Request) -> Result<Response, MeasureError> {
        let answers = self.client.ask(&[request], Instant::now() + DEADLINE).await;
        let answer = answers.into_iter().next().unwrap_or_else(|| Err(invalid("there is no answer")));
        answer.map_err(|error| error.about(&self.log).about(self.client.settings()))
    }

    /// The events; `None` where there is no such stream.
    async fn events(&mut self, read: Read) -> Result<Option<EventPage>, MeasureError> {
        match self.ask(Request::Events(read)).await {
            Ok(Response::Events(page)) => Ok(Some(page)),
            Ok(_) => Err(invalid("another answer")),
            Err(error) if may_come(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The position of the last event. A stream that is not there may come: it has none.
    async fn head(&mut self, reached: i64) -> Result<i64, ProjectorError> {
        let last = match &self.log {
            Log::Stream(stream) => {
                let from = u64::try_from(reached.saturating_add(1)).unwrap_or_default();
                let read = Read::Stream { stream: stream.clone(), from, most: 1 };
                match self.ask(Request::Read(read)).await {
                    Ok(Response::Page(Page { last_revision: Some(last), .. })) => last,
                    Ok(_) => {
                        return Err(failed(invalid(
                            "the server does not tell the end of the stream: EventStoreDB 22.6 or newer, or KurrentDB, is needed",
                        )));
                    }
                    Err(error) if may_come(&error) => return Ok(BEFORE_ALL),
                    Err(error) => return Err(failed(error)),
                }
            }
            Log::All(_) => {
                let page = self.events(Read::All { from: Start::End, filter: Filter::None, most: 1 }).await;
                let page = page.map_err(failed)?;
                let last = page.as_ref().and_then(|page| page.events.first());
                last.ok_or_else(|| failed(invalid("$all tells no last event")))?.position
            }
        };
        position(last)
    }

    /// What brings the events after `from` up to `until`, about `count` of them.
    fn read(&self, from: i64, until: i64, count: u64) -> Read {
        let unsigned = |position: i64| u64::try_from(position).unwrap_or_default();
        match &self.log {
            Log::Stream(stream) => {
                let most = count.min(until.abs_diff(from));
                Read::Stream { stream: stream.clone(), from: unsigned(from.saturating_add(1)), most }
            }
            // One event alone is tried again: what is before it is no position of an event.
            Log::All(_) if until.abs_diff(from) == 1 => {
                Read::All { from: Start::At(unsigned(until)), filter: Filter::None, most: 1 }
            }
            Log::All(filter) => {
                let start = if from <= 0 { Start::Beginning } else { Start::At(unsigned(from)) };
                let (filter, count) =
                    if self.unfiltered { (Filter::None, MOST_EVENTS) } else { (filter.clone(), count) };
                // That at `from` comes as well.
                Read::All { from: start, filter, most: count.saturating_add(1) }
            }
        }
    }

    /// The server looks for events that pass a filter.
    fn searches(&self) -> bool {
        !self.unfiltered && !matches!(self.log, Log::Stream(_) | Log::All(Filter::None))
    }

    /// How many events to ask for, so that about `limit` are of the shards in the range.
    fn count(&self, range: &Range, limit: usize) -> u64 {
        let mine = range.after.iter().zip(&range.until).filter(|(after, until)| after < until).count().max(1);
        let wanted = limit.saturating_mul(range.after.len()) / mine;
        u64::try_from(wanted).unwrap_or(MOST_EVENTS).clamp(1, MOST_EVENTS)
    }

    /// Whether the log still goes as far as this, as it did when it was looked at.
    async fn reaches(&mut self, page: &EventPage, until: i64) -> Result<bool, ProjectorError> {
        let last = page.last_revision.or_else(|| page.events.last().map(|event| event.position));
        if last.map(position).transpose()?.is_some_and(|last| last >= until) {
            return Ok(true);
        }
        match self.log {
            Log::Stream(_) => Ok(false),
            Log::All(_) => Ok(self.head(until).await? >= until),
        }
    }
}

impl EventReader for KurrentDbReader {
    fn sharding(&self) -> Sharding {
        Sharding::Hashed { shards: self.shards, start: BEFORE_ALL }
    }

    fn place(&self, _: u32, position: i64) -> String {
        match &self.log {
            Log::Stream(stream) => format!("revision {position} of stream {stream}"),
            Log::All(_) => format!("commit position {position} of $all"),
        }
    }

    fn before(&self, position: i64) -> i64 {
        match self.log {
            Log::Stream(_) => position - 1,
            Log::All(_) => self.seen.iter().rev().copied().find(|seen| *seen < position).unwrap_or(position - 1),
        }
    }

    fn notifies(&self) -> bool {
        false
    }

    async fn identity(&mut self) -> Result<SourceIdentity, ProjectorError> {
        // No database of KurrentDB tells by which it is known from another.
        Ok(SourceIdentity { place: format!("{} in KurrentDB", self.log), server: None })
    }

    async fn look(&mut self, reached: &[(u32, i64)]) -> Result<Horizon, ProjectorError> {
        let lowest = reached.iter().map(|(_, position)| *position).min().unwrap_or(BEFORE_ALL);
        let head = vec![self.head(lowest).await?; self.shards as usize];
        Ok(Horizon { safe: head.clone(), head, blocked_by: None, grown: false })
    }

    async fn fetch(&mut self, range: &Range, limit: usize) -> Result<Fetch, ProjectorError> {
        let Some((from, until)) = range.bounds() else { return Ok(Fetch::Nothing) };
        let count = self.count(range, limit);
        let page = match self.events(self.read(from, until, count)).await {
            Err(error) if error.reason == Reason::TimedOut && self.searches() => {
                tracing::info!(
                    after = from,
                    "the server has found no event that passes the filter in time: reading without it up to the end of the log"
                );
                self.unfiltered = true;
                self.events(self.read(from, until, count)).await
            }
            page => page,
        };
        let Some(page) = page.map_err(failed)? else {
            // It was deleted since the look.
            return Ok(Fetch::WentBack);
        };
        if page.whole && !self.reaches(&page, until).await? {
            return Ok(Fetch::WentBack);
        }
        let filter = match &self.log {
            Log::Stream(_) => &Filter::None,
            Log::All(filter) => filter,
        };
        let slice = Slice { filter, types: &self.types, max_event_bytes: self.max_event_bytes, range, limit };
        let taken = slice.take(&page, (from, until))?;
        // Where many are meant, the server finds them soon.
        self.unfiltered &= !page.whole && taken.events.len() < limit;
        if until.abs_diff(from) > 1 {
            self.seen = std::iter::once(from).chain(taken.seen).collect();
        }
        Ok(match taken.unreadable {
            Some(unreadable) => Fetch::Unreadable(unreadable),
            None => {
                let reach = vec![taken.reach; range.after.len()];
                Fetch::Events(Fetched { events: taken.events, reach, cut: false })
            }
        })
    }

    async fn woken(&mut self) {
        std::future::pending::<()>().await;
    }
}

/// There is no such stream, and there may be one later: the name of one that was deleted for ever can never be used again.
fn may_come(error: &MeasureError) -> bool {
    error.reason == Reason::StreamNotFound && !error.message.contains("tombstone")
}
