//! What a page of KurrentDB's events holds for a worker. Pure.

use std::collections::BTreeSet;

use super::super::{
    super::{
        error::ProjectorError,
        event::{Event, JsonText, Timestamp},
    },
    Range, Unreadable,
    mapping::json,
};
use crate::{
    api::Reason,
    clients::kurrentdb::{Content, EventPage, Filter, LoggedEvent, shard_of, stream_hash},
    measure::MeasureError,
};

/// A batch of events ends where they reach this many bytes.
const MOST_BYTES: usize = 4 << 20;

/// What a worker wants.
pub(super) struct Slice<'a> {
    /// Which events are meant, also where the server was asked for others as well.
    pub(super) filter: &'a Filter,
    /// The types that have a handler.
    pub(super) types: &'a BTreeSet<String>,
    /// An event whose body and stream come to more bytes is not read.
    pub(super) max_event_bytes: u64,
    /// Of each shard.
    pub(super) range: &'a Range,
    /// At most so many events.
    pub(super) limit: usize,
}

/// What was taken of a page.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) events: Vec<Event>,
    /// Up to here these are all.
    pub(super) reach: i64,
    /// Positions of all events that were looked at, in their order.
    pub(super) seen: Vec<i64>,
    /// The first event, which cannot be read.
    pub(super) unreadable: Option<Unreadable>,
}

impl Slice<'_> {
    /// Takes the events after `from` up to `until`, as far as the page goes. One that cannot be read ends what is taken before it, or is what comes of it when
    /// it is the first.
    ///
    /// # Errors
    /// A position is none.
    pub(super) fn take(&self, page: &EventPage, (from, until): (i64, i64)) -> Result<Taken, ProjectorError> {
        let shards = u32::try_from(self.range.after.len()).unwrap_or(u32::MAX);
        let (mut taken, mut bytes) = (Taken { events: Vec::new(), reach: from, seen: Vec::new(), unreadable: None }, 0);
        for logged in &page.events {
            let at = position(logged.position)?;
            if at <= from {
                continue;
            }
            if at > until {
                taken.reach = until;
                return Ok(taken);
            }
            taken.seen.push(at);
            if let Some(content) = logged.content.as_ref().filter(|content| self.is_meant(content)) {
                let shard = shard_of(stream_hash(content.stream.as_bytes()), shards);
                if self.wants(shard, at) {
                    match self.event(logged, content, (at, taken.reach, shard)) {
                        Ok(None) => {}
                        Ok(Some(event)) => {
                            bytes += content.data.len();
                            taken.events.push(event);
                        }
                        Err(why) => {
                            if taken.events.is_empty() {
                                taken.unreadable = Some(Unreadable {
                                    position: at,
                                    shard,
                                    why,
                                    stream: Some(content.stream.clone()),
                                    is_alone_there: !logged.shares_position,
                                });
                            }
                            return Ok(taken);
                        }
                    }
                }
            }
            taken.reach = at;
            if taken.events.len() >= self.limit || bytes > MOST_BYTES {
                return Ok(taken);
            }
        }
        if page.whole {
            taken.reach = until;
        }
        Ok(taken)
    }

    fn is_meant(&self, content: &Content) -> bool {
        self.filter.passes(&content.event_type, &content.stream)
    }

    fn wants(&self, shard: u32, at: i64) -> bool {
        let Range { after, until } = self.range;
        let (after, until) = (after.get(shard as usize), until.get(shard as usize));
        after.zip(until).is_some_and(|(after, until)| *after < at && at <= *until)
    }

    /// The event at `at`, behind the one at `before`; `None` where its type has no handler.
    fn event(
        &self,
        logged: &LoggedEvent,
        content: &Content,
        (at, before, shard): (i64, i64, u32),
    ) -> Result<Option<Event>, String> {
        if logged.shares_position {
            return Err("it was written in a transaction whose events share one commit position, so that no checkpoint can come between them: read it by its stream or category".to_owned());
        }
        if !self.types.contains(&content.event_type) {
            return Ok(None);
        }
        let Content { stream, event_type, is_json, created, data } = content;
        let size = (data.len() + stream.len()) as u64;
        if size > self.max_event_bytes {
            return Err(format!(
                "it has {size} bytes, and spec.projector.builtin.maxEventBytes allows {}: raise it, and the workers' memory to six times as much",
                self.max_event_bytes
            ));
        }
        let data = match data.as_ref() {
            [] => None,
            _ if !is_json => {
                return Err("its content type is not application/json, and only JSON can be read".to_owned());
            }
            data => Some(JsonText(json(data)?.to_owned())),
        };
        Ok(Some(Event {
            position: at,
            since: at,
            // The event before it, of whatever shard: no read begins in between.
            before,
            shown_position: at,
            behind_parked: None,
            shard,
            event_type: event_type.clone(),
            stream: Some(stream.clone()),
            recorded_at: created.and_then(|time| Timestamp::of_micros(time.as_microsecond())),
            data,
        }))
    }
}

/// The server's number as a position.
///
/// # Errors
/// It is beyond 2^63.
pub(super) fn position(number: u64) -> Result<i64, ProjectorError> {
    i64::try_from(number)
        .map_err(|_| failed(invalid("the server tells a position above 2^63, which no checkpoint can hold")))
}

pub(super) fn invalid(message: &str) -> MeasureError {
    MeasureError { reason: Reason::InvalidAnswer, message: message.to_owned() }
}

pub(super) fn failed(error: MeasureError) -> ProjectorError {
    ProjectorError::Source(error.message)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn logged(position: u64, content: Content) -> LoggedEvent {
        LoggedEvent { position, shares_position: false, content: Some(content) }
    }

    fn placed(stream: &str) -> Content {
        let data = Bytes::from_static(b"{\"n\": 1}");
        Content { stream: stream.to_owned(), event_type: "Placed".to_owned(), is_json: true, created: None, data }
    }

    /// Of two shards, all up to 900: positions with what precedes each, how far it reaches, and why the first cannot be read.
    fn taken(events: Vec<LoggedEvent>, whole: bool, limit: usize) -> (Vec<(i64, i64)>, i64, Option<String>) {
        let page = EventPage { events, last_revision: None, whole };
        let mut range = Range::nothing(2);
        range.add(0, 100, 900);
        range.add(1, 100, 900);
        let types = BTreeSet::from(["Placed".to_owned()]);
        let slice = Slice { filter: &Filter::NotSystem, types: &types, max_event_bytes: 100, range: &range, limit };
        let taken = slice.take(&page, (100, 900)).unwrap();
        let events = taken.events.iter().map(|event| (event.position, event.before)).collect();
        (events, taken.reach, taken.unreadable.map(|unreadable| unreadable.why))
    }

    #[test]
    fn a_page_reaches_as_far_as_the_log_or_its_last_event_and_each_event_stands_behind_the_one_before() {
        let other = Content { event_type: "Other".to_owned(), ..placed("a") };
        let gone = LoggedEvent { position: 400, shares_position: false, content: None };
        let page = || {
            vec![
                logged(100, placed("a")),
                logged(200, other.clone()),
                logged(300, placed("b")),
                gone.clone(),
                logged(500, placed("a")),
            ]
        };
        assert_eq!(taken(page(), true, 10), (vec![(300, 200), (500, 400)], 900, None));
        assert_eq!(taken(page(), false, 10), (vec![(300, 200), (500, 400)], 500, None));
        assert_eq!(taken(page(), true, 1), (vec![(300, 200)], 300, None));
        assert_eq!(taken(vec![logged(950, placed("a"))], true, 1), (Vec::new(), 900, None), "it came after the look");
        assert_eq!(taken(Vec::new(), true, 1), (Vec::new(), 900, None), "all of it is gone");
    }

    #[test]
    fn what_cannot_be_read_ends_what_comes_before_it_and_is_told_when_it_is_the_first() {
        let binary = Content { is_json: false, ..placed("a") };
        let large = Content { data: Bytes::from(vec![b' '; 100]), ..placed("a") };
        let torn = Content { data: Bytes::from_static(b"{\"secret"), ..placed("a") };
        let shared = LoggedEvent { shares_position: true, ..logged(300, placed("a")) };
        for (event, words) in [
            (logged(300, binary), "not application/json"),
            (logged(300, large), "maxEventBytes allows 100"),
            (logged(300, torn), "no JSON"),
            (shared, "transaction"),
        ] {
            let (events, reach, why) = taken(vec![logged(200, placed("b")), event.clone()], true, 10);
            assert_eq!((events, reach, why), (vec![(200, 100)], 200, None));
            let (events, reach, why) = taken(vec![event], true, 10);
            assert!(events.is_empty() && reach == 100, "{events:?}");
            let why = why.unwrap();
            assert!(why.contains(words) && !why.contains("secret"), "{why}");
        }
        let empty = Content { data: Bytes::new(), is_json: false, ..placed("a") };
        assert_eq!(taken(vec![logged(300, empty)], true, 10).0, [(300, 100)], "no body is none that cannot be read");
        assert!(position(1 << 63).is_err() && position((1 << 63) - 1).is_ok());
    }
}
