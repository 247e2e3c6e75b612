//! The frames of the protocol of RabbitMQ's streams, as far as they are used. Pure.
//!
//! A frame is its length (4 bytes), a key (2), a version (2) and what the key says. Requests carry a number by which the response is known.

/// Other frames than chunks are no larger, in bytes.
pub(super) const LARGEST_FRAME: usize = 1 << 20;
/// A chunk that is skipped is no larger, in bytes.
pub(super) const LARGEST_CHUNK: usize = 64 << 20;
/// The subscription, and the header of the chunk behind it, in bytes.
pub(super) const DELIVER_HEADER: usize = 1 + 48;
/// The one subscription of a connection: each ends before the next begins.
const SUBSCRIPTION: u8 = 1;

/// What a frame is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub(super) enum Key {
    Subscribe = 7,
    Deliver = 8,
    QueryOffset = 11,
    Unsubscribe = 12,
    MetadataUpdate = 16,
    PeerProperties = 17,
    SaslHandshake = 18,
    SaslAuthenticate = 19,
    Tune = 20,
    Open = 21,
    Close = 22,
    Heartbeat = 23,
}

impl Key {
    /// The key of the response to it.
    pub(super) fn response(self) -> u16 {
        self as u16 | 0x8000
    }

    /// Whether the server sends such frames without being asked, and they may be passed over.
    pub(super) fn is_unasked(key: u16) -> bool {
        [Self::Heartbeat, Self::MetadataUpdate, Self::Deliver].into_iter().any(|known| known as u16 == key)
    }
}

/// Why a connection cannot be read any further.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Malformed {
    /// This is not the protocol.
    NotStreams,
    /// A frame is larger than any that makes sense.
    TooLarge,
}

/// A place in a stream.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Place {
    /// The newest chunk.
    Last,
    /// The chunk that holds this offset, or the first beyond it.
    At(u64),
}

/// A question about a stream.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Call {
    /// Which offset was stored last under a reference.
    Stored {
        /// The stream.
        stream: String,
        /// The consumer's name.
        reference: String,
    },
    /// Which chunk is there.
    Chunk {
        /// The stream.
        stream: String,
        /// Where.
        place: Place,
    },
}

impl Call {
    /// The stream that it is about.
    pub fn stream(&self) -> &str {
        match self {
            Self::Stored { stream, .. } | Self::Chunk { stream, .. } => stream,
        }
    }

    /// Appends its frames, each with the number after `correlation`.
    pub(super) fn write(&self, correlation: &mut u32, frames: &mut Vec<u8>) {
        let mut add = |key, body: &[u8]| {
            *correlation = correlation.wrapping_add(1);
            frames.extend(request(key, Some(*correlation), body));
        };
        match self {
            Self::Stored { stream, reference } => {
                add(Key::QueryOffset, &[string(reference), string(stream)].concat());
            }
            Self::Chunk { stream, place } => {
                let place = match place {
                    Place::Last => vec![0, 2],
                    Place::At(offset) => [&[0, 4], offset.to_be_bytes().as_slice()].concat(),
                };
                // A credit of one chunk.
                let body = [&[SUBSCRIPTION], string(stream).as_slice(), &place, &[0, 1]].concat();
                add(Key::Subscribe, &body);
                add(Key::Unsubscribe, &[SUBSCRIPTION]);
            }
        }
    }
}

/// A frame, with its length.
pub(super) fn request(key: Key, correlation: Option<u32>, body: &[u8]) -> Vec<u8> {
    let mut frame = [key as u16, 1].map(u16::to_be_bytes).concat();
    frame.extend(correlation.iter().flat_map(|number| number.to_be_bytes()));
    frame.extend(body);
    [u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes().as_slice(), &frame].concat()
}

/// A text with its length. The spec bounds names at 255 characters.
pub(super) fn string(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    [length.to_be_bytes().as_slice(), &text.as_bytes()[..usize::from(length)]].concat()
}

/// A response, behind its key and version.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Response {
    pub(super) correlation: u32,
    pub(super) code: u16,
    pub(super) body: Vec<u8>,
}

impl Response {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (correlation, rest) = bytes.split_first_chunk()?;
        let (code, body) = rest.split_first_chunk()?;
        Some(Self {
            correlation: u32::from_be_bytes(*correlation),
            code: u16::from_be_bytes(*code),
            body: body.to_vec(),
        })
    }
}

/// Events that were written together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Chunk {
    /// The offset of the first.
    pub first: u64,
    /// How many there are, at least one.
    pub records: u32,
    /// When they were written, by the server's clock in milliseconds since 1970.
    pub written: i64,
}

impl Chunk {
    /// The offset of the last event.
    pub fn last(&self) -> u64 {
        self.first.saturating_add(u64::from(self.records)).saturating_sub(1)
    }

    /// Reads what a delivery begins with: the subscription, then magic and version, type, entries (2), records (4), time (8), epoch (8), first offset (8).
    pub(super) fn read(delivery: &[u8; DELIVER_HEADER]) -> Option<Self> {
        let header = &delivery[1..];
        let [0x50, 0, ..] = header else { return None };
        let number = |at: usize| header.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        let records =
            header.get(4..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)).filter(|count| *count > 0)?;
        Some(Self { first: number(24)?, records, written: i64::from_be_bytes(number(8)?.to_be_bytes()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_written_as_the_protocol_says() {
        let mut correlation = 6;
        let mut frames = Vec::new();
        Call::Stored { stream: "s".to_owned(), reference: "ab".to_owned() }.write(&mut correlation, &mut frames);
        assert_eq!(frames, [0, 0, 0, 15, 0, 11, 0, 1, 0, 0, 0, 7, 0, 2, b'a', b'b', 0, 1, b's']);
        frames.clear();
        Call::Chunk { stream: "s".to_owned(), place: Place::At(258) }.write(&mut correlation, &mut frames);
        let subscribe = [0, 0, 0, 24, 0, 7, 0, 1, 0, 0, 0, 8, 1, 0, 1, b's', 0, 4, 0, 0, 0, 0, 0, 0, 1, 2, 0, 1];
        assert_eq!(frames[..28], subscribe);
        assert_eq!(frames[28..], [0, 0, 0, 9, 0, 12, 0, 1, 0, 0, 0, 9, 1]);
    }

    #[test]
    fn a_chunk_is_read_from_its_header_and_one_of_another_kind_is_refused() {
        let mut delivery = [0; DELIVER_HEADER];
        delivery[1] = 0x50;
        delivery[8] = 3;
        delivery[16] = 9;
        delivery[32] = 100;
        assert_eq!(Chunk::read(&delivery), Some(Chunk { first: 100, records: 3, written: 9 }));
        assert_eq!(Chunk::read(&delivery).unwrap().last(), 102);
        for (place, value) in [(1, 0x51), (2, 1), (8, 0)] {
            let mut other = delivery;
            other[place] = value;
            assert_eq!(Chunk::read(&other), None, "{place}");
        }
    }

    #[test]
    fn a_response_that_is_cut_is_none() {
        assert_eq!(Response::read(&[0, 0, 0, 1, 0]), None);
        let whole = Response { correlation: 1, code: 19, body: vec![7] };
        assert_eq!(Response::read(&[0, 0, 0, 1, 0, 19, 7]), Some(whole));
        assert!(Key::is_unasked(23) && !Key::is_unasked(22));
    }
}
