//! The messages of KurrentDB's gRPC API that are asked and read, field by field as in `streams.proto`, `persistent.proto` and `shared.proto` of KurrentDB 25.0
//! (package `event_store.client`, the same since EventStoreDB 22.6). Fields that are not read are left out: they are skipped on decoding.

use bytes::Bytes;
use prost::{
    DecodeError, Message, Oneof,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

#[derive(Clone, PartialEq, Message)]
pub(super) struct Empty {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StreamIdentifier {
    #[prost(bytes = "vec", tag = "3")]
    pub(super) stream_name: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ReadReq {
    #[prost(message, optional, tag = "1")]
    pub(super) options: Option<ReadOptions>,
}

/// The server insists on a filter option and a UUID option.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ReadOptions {
    #[prost(oneof = "From", tags = "1, 2")]
    pub(super) from: Option<From>,
    /// 0: forwards, 1: backwards.
    #[prost(int32, tag = "3")]
    pub(super) direction: i32,
    #[prost(bool, tag = "4")]
    pub(super) resolve_links: bool,
    /// The other cases of this oneof are subscriptions. Always written, since 0 would be no case at all.
    #[prost(uint64, optional, tag = "5")]
    pub(super) count: Option<u64>,
    #[prost(oneof = "FilterOption", tags = "7, 8")]
    pub(super) filter: Option<FilterOption>,
    #[prost(message, optional, tag = "9")]
    pub(super) uuid: Option<UuidOption>,
    #[prost(message, optional, tag = "10")]
    pub(super) control: Option<ControlOption>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum From {
    #[prost(message, tag = "1")]
    Stream(StreamOptions),
    #[prost(message, tag = "2")]
    All(AllOptions),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StreamOptions {
    #[prost(message, optional, tag = "1")]
    pub(super) stream: Option<StreamIdentifier>,
    /// The other cases of this oneof are start (3) and end (4).
    #[prost(uint64, optional, tag = "2")]
    pub(super) revision: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AllOptions {
    #[prost(oneof = "AllFrom", tags = "1, 2, 3")]
    pub(super) from: Option<AllFrom>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum AllFrom {
    #[prost(message, tag = "1")]
    Position(LogPosition),
    #[prost(message, tag = "2")]
    Start(Empty),
    #[prost(message, tag = "3")]
    End(Empty),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct LogPosition {
    #[prost(uint64, tag = "1")]
    pub(super) commit: u64,
    #[prost(uint64, tag = "2")]
    pub(super) prepare: u64,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum FilterOption {
    #[prost(message, tag = "7")]
    Filter(FilterOptions),
    #[prost(message, tag = "8")]
    None(Empty),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct FilterOptions {
    #[prost(oneof = "FilterBy", tags = "1, 2")]
    pub(super) by: Option<FilterBy>,
    /// So many events are looked at for one page of the server's. The other case of this oneof is its default (4).
    #[prost(uint32, optional, tag = "3")]
    pub(super) window: Option<u32>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum FilterBy {
    #[prost(message, tag = "1")]
    Stream(Expression),
    #[prost(message, tag = "2")]
    EventType(Expression),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Expression {
    #[prost(string, tag = "1")]
    pub(super) regex: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) prefix: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct UuidOption {
    #[prost(message, optional, tag = "2")]
    pub(super) string: Option<Empty>,
}

/// With 1, the last revision of the stream comes with each read.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ControlOption {
    #[prost(uint32, tag = "1")]
    pub(super) compatibility: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ReadResp {
    #[prost(message, optional, tag = "1")]
    pub(super) event: Option<ReadEvent>,
    #[prost(message, optional, tag = "4")]
    pub(super) stream_not_found: Option<Empty>,
    #[prost(uint64, optional, tag = "6")]
    pub(super) last_stream_position: Option<u64>,
}

/// With unresolved links, `event` is the link itself.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ReadEvent {
    #[prost(message, optional, tag = "1")]
    pub(super) event: Option<RecordedEvent>,
}

/// A `ReadResp` with what its event holds.
#[derive(Clone, PartialEq, Message)]
pub(super) struct EventResp {
    #[prost(message, optional, tag = "1")]
    pub(super) event: Option<ResolvedEvent>,
    #[prost(message, optional, tag = "4")]
    pub(super) stream_not_found: Option<Empty>,
    #[prost(uint64, optional, tag = "6")]
    pub(super) last_stream_position: Option<u64>,
}

/// An event with the link that led to it. Of a link whose target is gone there is the link alone.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ResolvedEvent {
    #[prost(message, optional, tag = "1")]
    pub(super) event: Option<WholeEvent>,
    #[prost(message, optional, tag = "2")]
    pub(super) link: Option<RecordedEvent>,
}

/// An event with its body, without the metadata that users add (field 7).
#[derive(Clone, PartialEq, Message)]
pub(super) struct WholeEvent {
    #[prost(message, optional, tag = "2")]
    pub(super) stream: Option<StreamIdentifier>,
    #[prost(uint64, tag = "3")]
    pub(super) stream_revision: u64,
    #[prost(uint64, tag = "4")]
    pub(super) prepare_position: u64,
    #[prost(uint64, tag = "5")]
    pub(super) commit_position: u64,
    #[prost(message, repeated, tag = "6")]
    pub(super) metadata: Vec<Metadata>,
    #[prost(bytes = "bytes", tag = "8")]
    pub(super) data: Bytes,
}

/// Without the bodies (fields 7 and 8) and the metadata (6), which are passed over.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RecordedEvent {
    #[prost(uint64, tag = "3")]
    pub(super) stream_revision: u64,
    #[prost(uint64, tag = "5")]
    pub(super) commit_position: u64,
}

/// One entry of an event's metadata. `created`: ticks of 100 ns since 1970, by the server's clock when it took the event.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Metadata {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(string, tag = "2")]
    pub(super) value: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ListReq {
    #[prost(message, optional, tag = "1")]
    pub(super) options: Option<ListOptions>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ListOptions {
    #[prost(message, optional, tag = "1")]
    pub(super) all: Option<Empty>,
}

/// A consumer of a persistent subscription. What the server tells of it is not read.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Consumer {}

/// What the server tells of a persistent subscription: numbers without a unit are events.
#[derive(Clone, PartialEq, Message)]
pub struct Subscription {
    /// The stream, or `$all`.
    #[prost(string, tag = "1")]
    pub event_source: String,
    /// The group.
    #[prost(string, tag = "2")]
    pub group_name: String,
    /// The server's flags as text: `Live`, `Behind`, `NotReady`, with others behind a comma.
    #[prost(string, tag = "3")]
    pub status: String,
    /// Its consumers that are connected, without what is told of each.
    #[prost(message, repeated, tag = "4")]
    pub connections: Vec<Consumer>,
    /// Handed out to consumers since the server started it, each time counted.
    #[prost(int64, tag = "6")]
    pub total_items: i64,
    /// The last event of which all up to it were handled, as far as that was written down: a revision, `C:1/P:1` for `$all`, empty where there is none.
    #[prost(string, tag = "8")]
    pub last_checkpointed_event_position: String,
    /// The last event that the subscription has seen, written as the checkpoint is.
    #[prost(string, tag = "9")]
    pub last_known_event_position: String,
    /// Where a subscription without a checkpoint begins: the first event to handle, or -1 for those that come.
    #[prost(string, tag = "11")]
    pub start_from: String,
    /// A checkpoint is written after so many events at the earliest.
    #[prost(int32, tag = "19")]
    pub min_check_point_count: i32,
    /// Read and not handed out yet.
    #[prost(int32, tag = "21")]
    pub read_buffer_count: i32,
    /// To be handed out again.
    #[prost(int32, tag = "23")]
    pub retry_buffer_count: i32,
    /// Handed out and neither acknowledged nor given back.
    #[prost(int32, tag = "25")]
    pub outstanding_messages_count: i32,
    /// Given up and laid aside.
    #[prost(int64, tag = "28")]
    pub parked_message_count: i64,
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Malformed;

impl std::convert::From<DecodeError> for Malformed {
    fn from(_: DecodeError) -> Self {
        Self
    }
}

/// The values of a field with this number in a message, where the field holds messages, one after the other: nothing is built of those that are not looked
/// at. Ends after the first error.
pub(super) fn parts(mut message: &[u8], field: u32) -> impl Iterator<Item = Result<&[u8], Malformed>> {
    std::iter::from_fn(move || {
        while !message.is_empty() {
            match part(&mut message, field) {
                Ok(None) => {}
                Ok(Some(part)) => return Some(Ok(part)),
                Err(error) => {
                    message = &[];
                    return Some(Err(error));
                }
            }
        }
        None
    })
}

/// Takes one field off the message; its value, where it has this number.
fn part<'a>(message: &mut &'a [u8], field: u32) -> Result<Option<&'a [u8]>, Malformed> {
    let (number, wire_type) = decode_key(message)?;
    if number != field || wire_type != WireType::LengthDelimited {
        skip_field(wire_type, number, message, DecodeContext::default())?;
        return Ok(None);
    }
    let length = usize::try_from(decode_varint(message)?).unwrap_or(usize::MAX);
    let Some((part, rest)) = message.split_at_checked(length) else {
        return Err(Malformed);
    };
    *message = rest;
    Ok(Some(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_message_are_those_of_the_field_and_a_cut_message_is_an_error() {
        // Field 1: "ab", field 2: 7, field 1: nothing, field 3: "x", field 1: "c".
        let message = b"\x0a\x02ab\x10\x07\x0a\x00\x1a\x01x\x0a\x01c";
        let of = |message, field| parts(message, field).collect::<Result<Vec<&[u8]>, _>>();
        assert_eq!(of(message, 1), Ok(vec![&b"ab"[..], b"", b"c"]));
        assert_eq!(of(message, 3), Ok(vec![&b"x"[..]]));
        assert_eq!(of(message, 2), Ok(Vec::new()), "a number is no message");
        assert_eq!(of(b"", 1), Ok(Vec::new()));
        for cut in [1, 2, 3, 5, 7, 9, 10, 12, 13] {
            assert_eq!(of(&message[..cut], 1), Err(Malformed), "{cut}");
        }
        assert_eq!(of(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 1), Err(Malformed), "a huge length");
        assert_eq!(parts(b"\xff", 1).count(), 1, "it ends after the first error");
    }
}
