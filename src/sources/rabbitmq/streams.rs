//! Streams of RabbitMQ: how far a consumer has come by the offset that it stored, and what the stream holds beyond it.
//!
//! Two round trips a poll for each virtual host: the stored offsets and the newest chunk of each stream, then the chunk at which each consumer that is behind
//! goes on, which tells where its first event is and how old.

use std::collections::{BTreeSet, HashMap, HashSet};

use tokio::time::Instant;

use crate::{
    api::{Reason, StreamReference},
    clients::{
        blamed::Blamed,
        rabbitmq::{Call, Chunk, Place, StreamClient, Told},
    },
    measure::MeasureError,
};

/// So often at most is asked at one look for what an answer that ended the connection kept from being read.
const MOST_ROUND_TRIPS: usize = 3;

/// What was seen of one consumer of a stream.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct StreamSample {
    /// Offsets beyond the stored one up to the last event.
    pub(super) events: u64,
    /// Whether these are events alone. The server gives offsets to what it writes into a stream between events as well, such as stored offsets.
    pub(super) exact: bool,
    /// So many events wait for certain: those in the chunks that were looked at.
    pub(super) certain: u64,
    /// When the first of them was written, by the server's clock in milliseconds since 1970.
    pub(super) oldest: Option<i64>,
    /// Since measuring began.
    pub(super) arrived: u64,
    pub(super) handled: u64,
}

/// What was seen of one virtual host's streams.
pub(super) type Looked = HashMap<StreamReference, Result<StreamSample, MeasureError>>;

/// What is remembered of one consumer from poll to poll: the events that were written and handled since measuring began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// The offset of the next event, and the offset at which the consumer goes on.
    last: Option<(u64, u64)>,
    arrived: u64,
    handled: u64,
}

impl Progress {
    /// Of a stream that was made again, all is new. A consumer that goes back has handled nothing.
    fn take(&mut self, end: u64, next: u64) -> (u64, u64) {
        if let Some((end_before, next_before)) = self.last {
            let before = if end < end_before { 0 } else { end_before };
            self.arrived = self.arrived.saturating_add(end - before);
            self.handled = self.handled.saturating_add(next.saturating_sub(next_before));
        }
        self.last = Some((end, next));
        (self.arrived, self.handled)
    }
}

/// Asks about the streams of one virtual host.
pub(super) struct Streams {
    client: StreamClient,
    progress: HashMap<StreamReference, Progress>,
    /// Streams whose answers ended the connection, or came too late.
    blamed: Blamed<String>,
}

impl Streams {
    /// Connects with the first look.
    pub(super) fn new(client: StreamClient) -> Self {
        Self { client, progress: HashMap::new(), blamed: Blamed::default() }
    }

    /// Looks once at these streams. What cannot be read of one does not hide the others: it is asked about last from then on.
    pub(super) async fn look(&mut self, asked: &BTreeSet<&StreamReference>, by: Instant) -> Looked {
        self.progress.retain(|one, _| asked.contains(one));
        let names: BTreeSet<&str> = asked.iter().map(|one| one.stream.as_str()).collect();
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let (first, last) = self.blamed.part(&names);
        let names: Vec<&String> = first.into_iter().chain(last).collect();
        // Offsets first, so that a healthy one is never beyond the end.
        let offsets = asked.iter().map(|one| stored(one));
        let ends = names.iter().map(|name| newest(name));
        let told = self.ask(offsets.chain(ends).collect(), by).await;
        let of = |call: Call| told.get(&call).cloned().unwrap_or_else(|| Err(nonsense()));
        let found: Vec<(&StreamReference, Result<Bounds, MeasureError>)> =
            asked.iter().map(|one| (*one, bounds(of(stored(one)), of(newest(&one.stream))))).collect();

        let behind = names.iter().flat_map(|name| found.iter().filter(move |(one, _)| one.stream == **name));
        let behind = behind.filter_map(|(one, bounds)| bounds.as_ref().ok()?.begins_at(one)).collect();
        let told = self.ask(behind, by).await;
        let mut looked = Looked::new();
        for (one, bounds) in found {
            let seen = bounds.and_then(|bounds| {
                let first = match bounds.begins_at(one) {
                    Some(call) => chunk(told.get(&call).cloned())?,
                    None => None,
                };
                let (arrived, handled) = self.progress.entry(one.clone()).or_default().take(bounds.end, bounds.next);
                Ok(StreamSample { arrived, handled, ..beyond(bounds, first) })
            });
            let about = |unknown: MeasureError| {
                unknown.about(format_args!("stream {}, reference {}", one.stream, one.reference))
            };
            looked.insert(one.clone(), seen.map_err(about));
        }
        looked
    }

    /// The answer to each of these calls. What an answer that ended the connection kept from being read is asked for again.
    async fn ask(&mut self, mut calls: Vec<Call>, by: Instant) -> HashMap<Call, Result<Told, MeasureError>> {
        let mut answers = HashMap::new();
        for _ in 0..MOST_ROUND_TRIPS {
            if calls.is_empty() {
                break;
            }
            let told = match self.client.ask(&calls, by).await {
                Ok(told) => told,
                Err(unknown) => calls.iter().map(|_| Err(unknown.clone())).collect(),
            };
            let asked: Vec<(Call, Result<Told, MeasureError>)> = calls.into_iter().zip(told).collect();
            let names: Vec<String> = asked.iter().map(|(call, _)| call.stream().to_owned()).collect();
            let outcomes = asked.iter().map(|(_, told)| told.as_ref().map(drop));
            let spoilt: HashSet<&String> = self.blamed.judge(names.iter().zip(outcomes)).into_iter().collect();
            calls = asked
                .iter()
                .zip(&names)
                .filter(|((_, told), name)| told.is_err() && spoilt.contains(name))
                .map(|((call, _), _)| call.clone())
                .collect();
            for ((call, told), name) in asked.into_iter().zip(&names) {
                let told = told.map_err(|error| self.blamed.explain(name, error));
                answers.insert(call, told);
            }
        }
        answers
    }
}

fn stored(one: &StreamReference) -> Call {
    Call::Stored { stream: one.stream.clone(), reference: one.reference.clone() }
}

fn newest(stream: &str) -> Call {
    Call::Chunk { stream: stream.to_owned(), place: Place::Last }
}

/// Between which offsets events wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Bounds {
    /// That of the first event of the newest chunk.
    newest: u64,
    /// One beyond the last event.
    end: u64,
    /// Where the consumer goes on.
    next: u64,
}

impl Bounds {
    /// What is asked about the events that wait, where there are some.
    fn begins_at(&self, one: &StreamReference) -> Option<Call> {
        (self.next < self.end).then(|| Call::Chunk { stream: one.stream.clone(), place: Place::At(self.next) })
    }
}

fn bounds(stored: Result<Told, MeasureError>, newest: Result<Told, MeasureError>) -> Result<Bounds, MeasureError> {
    let (newest, end) = match newest? {
        Told::Chunk(newest) => newest.map_or((0, 0), |chunk| (chunk.first, chunk.last().saturating_add(1))),
        Told::Stored(_) => return Err(nonsense()),
    };
    let stored = match stored? {
        Told::Stored(stored) => stored.ok_or_else(never_stored)?,
        Told::Chunk(_) => return Err(nonsense()),
    };
    let next = stored.saturating_add(1);
    if next > end {
        return Err(MeasureError {
            reason: Reason::CheckpointBeyondHead,
            message: format!(
                "the stored offset is {stored}, and the stream ends before offset {end}: was it deleted and declared again, or does the consumer store the offset of the next event in place of the last that it has handled?"
            ),
        });
    }
    Ok(Bounds { newest, end, next })
}

/// What waits. `first`: the chunk where the consumer goes on, or the first beyond it: offsets before that are no events.
fn beyond(Bounds { newest, end, next }: Bounds, first: Option<Chunk>) -> StreamSample {
    let there = first.map_or(next, |chunk| chunk.first.max(next).min(end));
    let oldest = first.map(|chunk| chunk.written).filter(|_| there < end);
    // Within one chunk there are events alone.
    let exact = there == end || there >= newest;
    let in_first = first.map_or(0, |chunk| chunk.last().saturating_add(1).min(end).saturating_sub(there));
    let certain = if exact { end - there } else { in_first.saturating_add(end - newest) };
    StreamSample { events: end - there, exact, certain, oldest, ..StreamSample::default() }
}

fn chunk(told: Option<Result<Told, MeasureError>>) -> Result<Option<Chunk>, MeasureError> {
    match told {
        Some(Ok(Told::Chunk(chunk))) => Ok(chunk),
        Some(Err(unknown)) => Err(unknown),
        _ => Err(nonsense()),
    }
}

fn never_stored() -> MeasureError {
    MeasureError {
        reason: Reason::NeverCommitted,
        message: "no offset is stored under this reference, so that how much is pending cannot be told: correct its name in the Projection, and see that the consumer has this name and stores its offsets at the server. The server forgets an offset once retention has removed the event that it is of"
            .to_owned(),
    }
}

fn nonsense() -> MeasureError {
    MeasureError { reason: Reason::InvalidAnswer, message: "the answer makes no sense for this question".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(first: u64, records: u32) -> Chunk {
        Chunk { first, records, written: 7 }
    }

    #[test]
    fn what_waits_is_beyond_the_stored_offset() {
        let stored = |offset| Ok(Told::Stored(Some(offset)));
        let newest = || Ok(Told::Chunk(Some(at(8, 2))));
        let from = |next| Bounds { newest: 8, end: 10, next };
        assert_eq!(bounds(stored(4), newest()), Ok(from(5)));
        assert_eq!(bounds(stored(9), newest()), Ok(from(10)));
        let ahead = bounds(stored(10), Ok(Told::Chunk(Some(at(8, 2))))).unwrap_err();
        assert_eq!(ahead.reason, Reason::CheckpointBeyondHead);
        let never = bounds(Ok(Told::Stored(None)), Ok(Told::Chunk(None))).unwrap_err();
        assert_eq!(never.reason, Reason::NeverCommitted);
        let seen =
            |events, exact, oldest| StreamSample { events, exact, certain: events, oldest, ..StreamSample::default() };
        let bound = StreamSample { certain: 4, ..seen(5, false, Some(7)) };
        assert_eq!(beyond(from(5), Some(at(4, 3))), bound, "5, 6, and the newest chunk's 8 and 9");
        assert_eq!(beyond(from(9), Some(at(8, 2))), seen(1, true, Some(7)));
        assert_eq!(beyond(from(5), Some(at(8, 2))), seen(2, true, Some(7)), "three stored offsets lie between");
        assert_eq!(beyond(from(10), None), seen(0, true, None));
        let bound = StreamSample { certain: 2, ..seen(5, false, None) };
        assert_eq!(beyond(from(5), None), bound, "unknown age, and not zero");
    }

    #[test]
    fn counters_only_grow() {
        let mut progress = Progress::default();
        let taken = [(10, 5), (12, 9), (12, 3), (2, 1)].map(|(end, next)| progress.take(end, next));
        assert_eq!(taken, [(0, 0), (2, 4), (2, 4), (4, 4)]);
    }
}
