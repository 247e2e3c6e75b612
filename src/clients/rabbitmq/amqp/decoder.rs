//! What a server sends, piece by piece, as methods and whole messages. Pure.
//!
//! Nothing takes more memory than was allowed: frames are no larger than was agreed, a body that is larger than any that is wanted is counted and
//! not kept, and neither is one for which there is no room at present.

use super::{
    fields::{Fields, Properties},
    methods::{BODY, CHANNEL, Delivered, FRAME_END, HEADER, HEARTBEAT, LARGEST_FRAME, METHOD, Told},
};

/// The kind, the channel and the length of a frame, in bytes; the payload and the end follow.
const HEAD: usize = 7;

/// Why a connection cannot be read any further.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Malformed {
    /// This is not the protocol.
    NotAmqp,
    /// A frame is larger than was agreed.
    TooLarge,
}

/// What came in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Incoming {
    Told(Told),
    Message(Message),
    /// The server is there, and has nothing to say.
    Heartbeat,
}

/// A message of a queue.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// The consumer that it was delivered to.
    pub(super) consumer: Vec<u8>,
    /// Names it to the server, on this connection.
    pub tag: u64,
    /// With which key it was published.
    pub routing_key: String,
    /// What it says of itself.
    pub properties: Properties,
    /// What it holds.
    pub body: Body,
}

impl Message {
    /// One that nothing has delivered.
    #[cfg(test)]
    pub fn new(routing_key: &str, properties: Properties, body: Body) -> Self {
        Self { consumer: Vec::new(), tag: 0, routing_key: routing_key.to_owned(), properties, body }
    }

    /// About so many bytes of memory are taken.
    pub(super) fn bytes(&self) -> usize {
        let body = match &self.body {
            Body::Whole(body) => body.len(),
            Body::TooLarge(_) | Body::NoRoom(_) => 0,
        };
        size_of::<Self>() + self.consumer.len() + self.routing_key.len() + self.properties.bytes() + body
    }
}

/// The body of a message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Body {
    /// All of it.
    Whole(Vec<u8>),
    /// It has so many bytes, more than any that is wanted, and was not kept.
    TooLarge(u64),
    /// It has so many bytes, for which there was no room beside those that were not acknowledged yet. It was not kept.
    NoRoom(u64),
}

/// A message of which the body has not come whole.
#[derive(Debug)]
struct Begun {
    delivered: Delivered,
    /// Absent until its header has come.
    content: Option<Content>,
}

#[derive(Debug)]
struct Content {
    properties: Properties,
    /// So many bytes of the body are to come.
    left: u64,
    body: Body,
}

/// Reads one connection.
#[derive(Debug)]
pub(super) struct Decoder {
    buffer: Vec<u8>,
    /// What comes before was read.
    at: usize,
    /// A body with more bytes is not kept.
    largest: usize,
    begun: Option<Begun>,
}

impl Decoder {
    /// A body with more than `largest` bytes is not kept.
    pub(super) fn new(largest: usize) -> Self {
        Self { buffer: Vec::new(), at: 0, largest, begun: None }
    }

    /// Takes in what came. All that can be read is to be read before more is taken in.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend(bytes);
    }

    /// The next of what came; none where more has to come first. For a message that begins there are `room` bytes.
    pub(super) fn next(&mut self, room: usize) -> Result<Option<Incoming>, Malformed> {
        loop {
            let rest = self.buffer.get(self.at..).unwrap_or_default();
            let Some((head, rest)) = rest.split_at_checked(HEAD) else { return Ok(None) };
            // A server of another version answers with its own, as text.
            let [kind @ (METHOD | HEADER | BODY | HEARTBEAT), a, b, c, d, e, f] = *head else {
                return Err(Malformed::NotAmqp);
            };
            let (channel, length) = (u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, f]));
            if length > LARGEST_FRAME {
                return Err(Malformed::TooLarge);
            }
            let length = usize::try_from(length).map_err(|_| Malformed::TooLarge)?;
            let Some((payload, end)) = rest.split_at_checked(length) else { return Ok(None) };
            match end.first() {
                Some(&FRAME_END) => {}
                Some(_) => return Err(Malformed::NotAmqp),
                None => return Ok(None),
            }
            let read = read(&mut self.begun, (kind, channel), payload, self.largest, room)?;
            self.at += HEAD + length + 1;
            if read.is_some() {
                return Ok(read);
            }
        }
    }
}

/// Reads one frame. None where a message goes on.
fn read(
    begun: &mut Option<Begun>,
    (kind, channel): (u8, u16),
    payload: &[u8],
    largest: usize,
    room: usize,
) -> Result<Option<Incoming>, Malformed> {
    match kind {
        HEARTBEAT => return Ok(Some(Incoming::Heartbeat)),
        METHOD => {
            return match Told::read(payload).ok_or(Malformed::NotAmqp)? {
                Told::Deliver(_) if channel != CHANNEL || begun.is_some() => Err(Malformed::NotAmqp),
                Told::Deliver(delivered) => {
                    *begun = Some(Begun { delivered, content: None });
                    Ok(None)
                }
                told => Ok(Some(Incoming::Told(told))),
            };
        }
        _ => {}
    }
    let message = begun.as_mut().filter(|_| channel == CHANNEL).ok_or(Malformed::NotAmqp)?;
    let is_done = match &mut message.content {
        None if kind == HEADER => {
            let content = header(payload, largest, room).ok_or(Malformed::NotAmqp)?;
            message.content.insert(content).left == 0
        }
        Some(content) if kind == BODY => {
            content.left = content.left.checked_sub(payload.len() as u64).ok_or(Malformed::NotAmqp)?;
            if let Body::Whole(body) = &mut content.body {
                body.extend(payload);
            }
            content.left == 0
        }
        _ => return Err(Malformed::NotAmqp),
    };
    let done = if is_done { begun.take() } else { None };
    let Some(Begun { delivered: Delivered { consumer, tag, routing_key }, content: Some(content) }) = done else {
        return Ok(None);
    };
    let routing_key = String::from_utf8_lossy(&routing_key).into_owned();
    let Content { properties, body, left: _ } = content;
    Ok(Some(Incoming::Message(Message { consumer, tag, routing_key, properties, body })))
}

/// Reads the class, a weight, the length of the body, and the properties.
fn header(payload: &[u8], largest: usize, room: usize) -> Option<Content> {
    let mut fields = Fields::new(payload);
    fields.long()?;
    let length = fields.long_long()?;
    let properties = Properties::read(&mut fields)?;
    let body = match usize::try_from(length) {
        Ok(bytes) if bytes > largest => Body::TooLarge(length),
        Err(_) => Body::TooLarge(length),
        Ok(bytes) if bytes.saturating_add(properties.bytes()) > room => Body::NoRoom(length),
        Ok(_) => Body::Whole(Vec::new()),
    };
    Some(Content { properties, left: length, body })
}

#[cfg(test)]
mod tests {
    use super::{super::methods::frame, *};

    const LARGEST: usize = 1_000;

    /// The frames of a message without properties.
    fn message(tag: u64, body: &[u8], piece: usize) -> Vec<u8> {
        let mut frames = Vec::new();
        let deliver = [b"\0\x3c\0\x3c\x010".as_slice(), &tag.to_be_bytes(), b"\0\0\x01k"].concat();
        frame(METHOD, CHANNEL, &deliver, &mut frames);
        let header = [b"\0\x3c\0\0".as_slice(), &(body.len() as u64).to_be_bytes(), b"\0\0"].concat();
        frame(HEADER, CHANNEL, &header, &mut frames);
        for piece in body.chunks(piece) {
            frame(BODY, CHANNEL, piece, &mut frames);
        }
        frames
    }

    /// Reads what comes in pieces of this size.
    fn read_in(bytes: &[u8], piece: usize, room: usize) -> Result<Vec<Incoming>, Malformed> {
        let (mut decoder, mut found) = (Decoder::new(LARGEST), Vec::new());
        for piece in bytes.chunks(piece) {
            decoder.take(piece);
            while let Some(incoming) = decoder.next(room)? {
                found.push(incoming);
            }
        }
        Ok(found)
    }

    fn bodies(found: Vec<Incoming>) -> Vec<(u64, Body)> {
        let body = |incoming| match incoming {
            Incoming::Message(message) => (message.tag, message.body),
            other => panic!("{other:?}"),
        };
        found.into_iter().map(body).collect()
    }

    #[test]
    fn messages_are_whole_in_whatever_pieces_they_come() {
        let sent = [message(1, b"hello", 2), message(2, b"", 1), message(3, b"x", 1)].concat();
        let whole = |body: &[u8]| Body::Whole(body.to_vec());
        for piece in [1, 2, 3, 7, 8, 1_000] {
            let found = bodies(read_in(&sent, piece, 10_000).unwrap());
            assert_eq!(found, [(1, whole(b"hello")), (2, whole(b"")), (3, whole(b"x"))], "{piece}");
        }
    }

    #[test]
    fn a_body_that_is_too_large_or_has_no_room_is_counted_and_not_kept() {
        let sent = [message(1, &[7; 1_001], 100), message(2, &[7; 1_000], 100), message(3, b"x", 1)].concat();
        let room = 900 + Properties::default().bytes();
        let expected = [(1, Body::TooLarge(1_001)), (2, Body::NoRoom(1_000)), (3, Body::Whole(b"x".to_vec()))];
        assert_eq!(bodies(read_in(&sent, 64, room).unwrap()), expected);
    }

    #[test]
    fn what_is_not_the_protocol_is_told_before_it_takes_memory() {
        let mut large = vec![BODY, 0, 1];
        large.extend((LARGEST_FRAME + 1).to_be_bytes());
        assert_eq!(read_in(&large, 100, 1), Err(Malformed::TooLarge));
        let longer = [message(1, b"12", 2), message(2, b"", 1)].concat();
        let mut more = message(1, b"", 1);
        frame(BODY, CHANNEL, b"more", &mut more);
        let begun = message(1, b"12", 2)[..HEAD + 18 + 1].to_vec();
        let begun_twice = [begun.clone(), begun].concat();
        for bytes in [b"HTTP/1.1 400 Bad Request".to_vec(), b"AMQP\0\0\x09\x01".to_vec(), more, begun_twice] {
            assert_eq!(read_in(&bytes, 100, 1_000), Err(Malformed::NotAmqp), "{bytes:?}");
        }
        assert_eq!(read_in(&longer, 100, 1_000).unwrap().len(), 2);
        let mut ended = longer;
        *ended.last_mut().unwrap() = 0;
        assert_eq!(read_in(&ended, 100, 1_000), Err(Malformed::NotAmqp));
    }
}
