//! A client of AMQP 0-9-1 that takes messages one by one and holds them until it acknowledges them, and that publishes: so much of the protocol, and no
//! more.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A class and a method of it.
type Method = (u16, u16);

const START: Method = (10, 10);
const START_OK: Method = (10, 11);
const TUNE: Method = (10, 30);
const TUNE_OK: Method = (10, 31);
const OPEN: Method = (10, 40);
const OPEN_OK: Method = (10, 41);
const CHANNEL_OPEN: Method = (20, 10);
const CHANNEL_OPEN_OK: Method = (20, 11);
const PUBLISH: Method = (60, 40);
const GET: Method = (60, 70);
const GET_OK: Method = (60, 71);
const GET_EMPTY: Method = (60, 72);
const CONSUME: Method = (60, 20);
const CONSUME_OK: Method = (60, 21);
const ACK: Method = (60, 80);
const REJECT: Method = (60, 90);
const NACK: Method = (60, 120);
const CONFIRM: Method = (85, 10);
const CONFIRM_OK: Method = (85, 11);

const METHOD_FRAME: u8 = 1;
const HEADER_FRAME: u8 = 2;
const BODY_FRAME: u8 = 3;
const FRAME_END: u8 = 0xce;
/// A frame may have 128 KiB.
const LARGEST_PIECE: usize = 100_000;

/// One connection with one channel, as the user `guest` in the virtual host `/`. What it holds goes back to its queue when it is dropped.
#[derive(Debug)]
pub struct Consumer {
    stream: TcpStream,
    /// How many messages were published. The server confirms them by this number.
    published: u64,
}

/// A message that is published.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// The property `message-id`.
    pub id: Option<String>,
    /// The property `type`.
    pub type_: Option<String>,
    /// Headers, as text.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Published {
    /// Its properties, with flags for those that are there. A durable queue keeps it.
    fn properties(&self) -> Result<Vec<u8>> {
        let mut headers = Vec::new();
        for (name, value) in &self.headers {
            headers.extend(short(name));
            headers.push(b'S');
            headers.extend(u32::try_from(value.len())?.to_be_bytes());
            headers.extend(value.bytes());
        }
        let (id, type_) = (self.id.as_deref(), self.type_.as_deref());
        let flags = 1_u16 << 13 | 1 << 12 | u16::from(id.is_some()) << 7 | u16::from(type_.is_some()) << 5;
        let mut properties = flags.to_be_bytes().to_vec();
        properties.extend(u32::try_from(headers.len())?.to_be_bytes());
        properties.extend(headers);
        properties.push(2);
        properties.extend([id, type_].into_iter().flatten().flat_map(short));
        Ok(properties)
    }
}

impl Consumer {
    pub(super) fn open(stream: TcpStream) -> Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut consumer = Self { stream, published: 0 };
        consumer.stream.write_all(b"AMQP\x00\x00\x09\x01")?;
        consumer.expect(&[START])?;
        // No properties of the client; user and password; the language.
        let login =
            [&[0; 4], short("PLAIN").as_slice(), &12_u32.to_be_bytes(), b"\0guest\0guest", &short("en_US")].concat();
        consumer.send(0, START_OK, &login)?;
        let (_, mut limits) = consumer.expect(&[TUNE])?;
        limits.truncate(6);
        // No heartbeats.
        limits.extend([0, 0]);
        consumer.send(0, TUNE_OK, &limits)?;
        consumer.send(0, OPEN, &[short("/"), short(""), vec![0]].concat())?;
        consumer.expect(&[OPEN_OK])?;
        consumer.send(1, CHANNEL_OPEN, &short(""))?;
        consumer.expect(&[CHANNEL_OPEN_OK])?;
        Ok(consumer)
    }

    /// Takes the queue's next message and holds it. Returns the number by which it is acknowledged; none where the queue is empty.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn take(&mut self, queue: &str) -> Result<Option<u64>> {
        self.send(1, GET, &[vec![0, 0], short(queue), vec![0]].concat())?;
        match self.expect(&[GET_OK, GET_EMPTY])? {
            (GET_OK, told) => {
                let tag = told.first_chunk().context("no delivery tag")?;
                Ok(Some(u64::from_be_bytes(*tag)))
            }
            _ => Ok(None),
        }
    }

    /// Acknowledges one message.
    ///
    /// # Errors
    /// When the connection broke.
    pub fn acknowledge(&mut self, tag: u64) -> Result<()> {
        self.send(1, ACK, &[tag.to_be_bytes().as_slice(), &[0]].concat())
    }

    /// Publishes messages with these bodies and without properties into the queue, as [`Consumer::publish_all`] does.
    ///
    /// # Errors
    /// When the server refuses one, or the connection broke.
    pub fn publish(&mut self, queue: &str, bodies: impl IntoIterator<Item = String>) -> Result<()> {
        self.publish_all(queue, bodies.into_iter().map(|body| Published { body, ..Published::default() }))
    }

    /// Publishes messages into the queue, and waits until the server has confirmed each: unconfirmed ones can be lost, with the connection or while a
    /// quorum queue chooses its leader.
    ///
    /// # Errors
    /// When the server refuses one, or the connection broke.
    pub fn publish_all(&mut self, queue: &str, messages: impl IntoIterator<Item = Published>) -> Result<()> {
        if self.published == 0 {
            self.send(1, CONFIRM, &[0])?;
            self.expect(&[CONFIRM_OK])?;
        }
        let (mut frames, mut unconfirmed) = (Vec::new(), BTreeSet::new());
        for message in messages {
            let body = &message.body;
            let arguments = [vec![0, 0], short(""), short(queue), vec![0]].concat();
            frames.extend(frame(METHOD_FRAME, 1, &method(PUBLISH, &arguments))?);
            let length = u64::try_from(body.len())?.to_be_bytes();
            // The class, a weight, the length, and the properties.
            let properties = message.properties()?;
            frames.extend(frame(
                HEADER_FRAME,
                1,
                &[&PUBLISH.0.to_be_bytes()[..], &[0, 0], &length, &properties].concat(),
            )?);
            for piece in body.as_bytes().chunks(LARGEST_PIECE) {
                frames.extend(frame(BODY_FRAME, 1, piece)?);
            }
            self.published += 1;
            unconfirmed.insert(self.published);
        }
        self.stream.write_all(&frames)?;
        while !unconfirmed.is_empty() {
            let (answer, told) = self.expect(&[ACK, NACK])?;
            let (tag, rest) = told.split_first_chunk().context("no delivery tag")?;
            let tag = u64::from_be_bytes(*tag);
            if answer == NACK {
                bail!("the server refuses message {tag}");
            }
            let and_before = rest.first().is_some_and(|flags| flags & 1 == 1);
            unconfirmed.retain(|number| if and_before { *number > tag } else { *number != tag });
        }
        Ok(())
    }

    /// Refuses one message for good: it goes to the dead-letter exchange, where the queue has one.
    ///
    /// # Errors
    /// When the connection broke.
    pub fn reject(&mut self, tag: u64) -> Result<()> {
        self.send(1, REJECT, &[tag.to_be_bytes().as_slice(), &[0]].concat())
    }

    /// Subscribes to a queue: from then on the server sends all of its messages, which are never acknowledged.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn subscribe(&mut self, queue: &str) -> Result<()> {
        self.send(1, CONSUME, &[vec![0, 0], short(queue), short("test"), vec![0], vec![0; 4]].concat())?;
        self.expect(&[CONSUME_OK])?;
        Ok(())
    }

    fn send(&mut self, channel: u16, name: Method, arguments: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(&frame(METHOD_FRAME, channel, &method(name, arguments))?)?)
    }

    /// Reads on until a method comes, which must be one of these. Headers and bodies of messages are passed over.
    fn expect(&mut self, methods: &[Method]) -> Result<(Method, Vec<u8>)> {
        loop {
            let mut head = [0; 7];
            self.stream.read_exact(&mut head)?;
            let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
            let mut payload = vec![0; usize::try_from(length)? + 1];
            self.stream.read_exact(&mut payload)?;
            if head[0] != METHOD_FRAME {
                continue;
            }
            let [a, b, c, d, ..] = payload[..] else { bail!("a method without a name") };
            let method = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            if !methods.contains(&method) {
                bail!("{method:?} in place of {methods:?}: {}", String::from_utf8_lossy(&payload));
            }
            return Ok((method, payload.split_off(4)));
        }
    }
}

fn method((class, method): Method, arguments: &[u8]) -> Vec<u8> {
    [&class.to_be_bytes(), &method.to_be_bytes(), arguments].concat()
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Result<Vec<u8>> {
    let length = u32::try_from(payload.len())?.to_be_bytes();
    Ok([&[kind], &channel.to_be_bytes()[..], &length, payload, &[FRAME_END]].concat())
}

fn short(text: &str) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(text.len()).unwrap_or(u8::MAX)];
    bytes.extend(text.bytes());
    bytes
}
