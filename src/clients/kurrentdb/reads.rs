//! What is read of a stream or of `$all`, and how it is asked for.

use bytes::Buf;
use prost::Message;

use super::{
    messages::{
        AllFrom, AllOptions, ControlOption, Empty, Expression, FilterBy, FilterOption, FilterOptions, From,
        LogPosition, ReadOptions, ReadReq, StreamIdentifier, StreamOptions, UuidOption,
    },
    words::{Trouble, not_the_api},
};

pub(super) const READ: &str = "/event_store.client.streams.Streams/Read";
/// The server looks at so many events before it goes on to the next piece of its log.
const SEARCH_WINDOW: u32 = 1_000;

/// Which events of `$all` are meant.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Filter {
    /// All, the server's own included.
    None,
    /// All but the server's own, whose types begin with `$`.
    NotSystem,
    /// Those whose type begins with one of these.
    EventTypes(Vec<String>),
    /// Those whose stream begins with one of these.
    Streams(Vec<String>),
}

impl Filter {
    /// Whether an event of this type and stream is meant.
    pub fn passes(&self, event_type: &str, stream: &str) -> bool {
        let begins = |text: &str, prefixes: &[String]| prefixes.iter().any(|prefix| text.starts_with(prefix.as_str()));
        match self {
            Self::None => true,
            Self::NotSystem => !event_type.starts_with('$') && !event_type.is_empty(),
            Self::EventTypes(prefixes) => begins(event_type, prefixes),
            Self::Streams(prefixes) => begins(stream, prefixes),
        }
    }
}

/// Where a read of `$all` begins.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Start {
    /// With the first event that is kept.
    Beginning,
    /// With the event at this commit position.
    At(u64),
    /// With the last event, going backwards.
    End,
}

/// Events to be read.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Read {
    /// Events of a stream from this revision on.
    Stream {
        /// The stream's name.
        stream: String,
        /// The revision.
        from: u64,
        /// At most so many.
        most: u64,
    },
    /// Events of `$all`.
    All {
        /// Where to begin.
        from: Start,
        /// Which are meant.
        filter: Filter,
        /// At most so many.
        most: u64,
    },
}

impl Read {
    /// At most so many events.
    pub(super) fn most(&self) -> usize {
        let (Self::Stream { most, .. } | Self::All { most, .. }) = self;
        usize::try_from(*most).unwrap_or(usize::MAX)
    }
}

pub(super) fn decode<M: Message + Default>(message: impl Buf) -> Result<M, Trouble> {
    M::decode(message).map_err(unreadable)
}

pub(super) fn unreadable<E>(_: E) -> Trouble {
    not_the_api("a message that cannot be read")
}

/// Ticks of 100 ns since 1970.
pub(super) fn created(ticks: &str) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_nanosecond(i128::from(ticks.parse::<i64>().ok()?).checked_mul(100)?).ok()
}

/// `follow`: links in a stream are followed.
pub(super) fn written(read: &Read, follow: bool) -> ReadReq {
    let (from, backwards, count, filter) = match read {
        Read::Stream { stream, from, most } => {
            let stream = Some(StreamIdentifier { stream_name: stream.clone().into_bytes() });
            (From::Stream(StreamOptions { stream, revision: Some(*from) }), false, *most, FilterOption::None(Empty {}))
        }
        Read::All { from, filter, most } => {
            let start = match from {
                Start::Beginning => AllFrom::Start(Empty {}),
                Start::At(position) => AllFrom::Position(LogPosition { commit: *position, prepare: *position }),
                Start::End => AllFrom::End(Empty {}),
            };
            let from_end = *from == Start::End;
            (From::All(AllOptions { from: Some(start) }), from_end, *most, filtered(filter))
        }
    };
    ReadReq {
        options: Some(ReadOptions {
            from: Some(from),
            direction: i32::from(backwards),
            resolve_links: follow && matches!(read, Read::Stream { .. }),
            count: Some(count),
            filter: Some(filter),
            uuid: Some(UuidOption { string: Some(Empty {}) }),
            control: Some(ControlOption { compatibility: 1 }),
        }),
    }
}

fn filtered(filter: &Filter) -> FilterOption {
    let prefixes = |prefix: &[String]| Expression { regex: String::new(), prefix: prefix.to_vec() };
    let by = match filter {
        Filter::None => return FilterOption::None(Empty {}),
        Filter::NotSystem => FilterBy::EventType(Expression { regex: "^[^\\$].*".to_owned(), prefix: Vec::new() }),
        Filter::EventTypes(prefix) => FilterBy::EventType(prefixes(prefix)),
        Filter::Streams(prefix) => FilterBy::Stream(prefixes(prefix)),
    };
    FilterOption::Filter(FilterOptions { by: Some(by), window: Some(SEARCH_WINDOW) })
}
