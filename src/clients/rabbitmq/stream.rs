//! Asks a RabbitMQ server about its streams over their own protocol (port 5552): how far a consumer has come, and which chunk of events is at a place.
//!
//! The management API tells neither. Nothing is consumed for good: a subscription is given one chunk, of which only the header is kept, and is ended. Frames are
//! bounded, and what is not the protocol ends the connection.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout_at},
};

use super::{
    ConnectionSettings,
    frames::{Call, Chunk, DELIVER_HEADER, Key, LARGEST_CHUNK, LARGEST_FRAME, Malformed, Response, request, string},
    words::stream_refusal,
};
use crate::{
    addresses::AddressRules,
    api::Reason,
    clients::{
        http::{Server, Stream, connect},
        words::by_io,
    },
    measure::MeasureError,
};

/// What is skipped is read in pieces of this size, in bytes.
const PIECE: usize = 16 << 10;
/// So many calls are on their way at once: a round trip for as many streams.
const AT_ONCE: usize = 200;
/// The server's code for a request that it has granted.
const OK: u16 = 1;
/// The server's code for a reference that never stored an offset.
const NO_OFFSET: u16 = 19;

/// What was told in answer to a [`Call`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Told {
    /// The offset that was stored last; none where none was ever stored.
    Stored(Option<u64>),
    /// The chunk; none where there is nothing at that place or beyond it.
    Chunk(Option<Chunk>),
}

/// Asks about the streams of one virtual host. Keeps its connection from call to call; one that broke is opened again by the next call.
pub struct StreamClient {
    settings: ConnectionSettings,
    addresses: Arc<AddressRules>,
    vhost: String,
    connection: Option<Connection>,
}

struct Connection {
    stream: Box<dyn Stream>,
    correlation: u32,
}

impl StreamClient {
    /// Not connected yet. `addresses`: which may be asked.
    pub fn new(settings: ConnectionSettings, addresses: Arc<AddressRules>, vhost: &str) -> Self {
        Self { settings, addresses, vhost: vhost.to_owned(), connection: None }
    }

    /// Sends all calls, many at once, and returns what was told, in their order. An answer that makes no sense ends the connection, and so does one that does not come
    /// in time: what comes behind it is not read.
    ///
    /// # Errors
    /// Outside: why nothing was told, with the address. Inside: why not of this one. Neither holds a secret.
    pub async fn ask(&mut self, calls: &[Call], by: Instant) -> Result<Vec<Result<Told, MeasureError>>, MeasureError> {
        let at = format!("port {} for streams", self.settings.stream_port);
        loop {
            // Taken out, so that a call that is given up half-way leaves no connection with answers to come.
            let kept = self.connection.take();
            let fresh = kept.is_none();
            let mut connection = match kept {
                Some(connection) => connection,
                None => {
                    let opened = timeout_at(by, self.open()).await.unwrap_or_else(|_| Err(timed_out()));
                    opened.map_err(|error| error.about(&at))?
                }
            };
            let mut told = Vec::new();
            let asked = timeout_at(by, connection.ask(calls, &mut told)).await.unwrap_or_else(|_| Err(timed_out()));
            match asked {
                Ok(()) => {
                    self.connection = Some(connection);
                    return Ok(told);
                }
                // A server may have closed a connection that was idle.
                Err(broken) if !fresh && told.is_empty() && broken.reason == Reason::SourceFailed => {}
                Err(broken) => {
                    told.push(Err(broken.about(&at)));
                    told.resize_with(calls.len(), || Err(not_read().about(&at)));
                    return Ok(told);
                }
            }
        }
    }

    async fn open(&mut self) -> Result<Connection, MeasureError> {
        let settings = &self.settings;
        let server = Server { port: settings.stream_port, ..settings.server.clone() };
        let mut connection = Connection { stream: connect(&server, &self.addresses).await?, correlation: 0 };
        let properties = [1_u32.to_be_bytes().to_vec(), string("product"), string("projectionist-sampler")].concat();
        connection.call(Key::PeerProperties, &properties).await?;
        connection.call(Key::SaslHandshake, &[]).await?;
        let secret = [b"\0", settings.user.as_bytes(), b"\0", settings.password.as_bytes()].concat();
        let length = u32::try_from(secret.len()).unwrap_or(u32::MAX).to_be_bytes();
        connection.call(Key::SaslAuthenticate, &[string("PLAIN").as_slice(), &length, &secret].concat()).await?;
        // The server proposes limits; they are taken, without heartbeats: each poll is one.
        let tune = connection.expect(Key::Tune).await?;
        let limits = [tune.get(..4).ok_or_else(|| malformed(Malformed::NotStreams))?, &[0; 4]].concat();
        connection.send(&request(Key::Tune, None, &limits)).await?;
        connection.call(Key::Open, &string(&self.vhost)).await?;
        Ok(connection)
    }
}

impl Connection {
    /// Sends all calls and reads what each was answered with, in their order, into `told`. So many at once that the server need not stop reading because its
    /// answers are not read.
    async fn ask(&mut self, calls: &[Call], told: &mut Vec<Result<Told, MeasureError>>) -> Result<(), MeasureError> {
        for calls in calls.chunks(AT_ONCE) {
            let mut frames = Vec::new();
            let mut correlation = self.correlation.wrapping_add(1);
            for call in calls {
                call.write(&mut self.correlation, &mut frames);
            }
            self.send(&frames).await?;
            for call in calls {
                told.push(self.told(call, &mut correlation).await?);
            }
        }
        Ok(())
    }

    async fn send(&mut self, frames: &[u8]) -> Result<(), MeasureError> {
        self.stream.write_all(frames).await.map_err(|error| by_io(&error))?;
        self.stream.flush().await.map_err(|error| by_io(&error))
    }

    /// One request of logging in.
    async fn call(&mut self, key: Key, body: &[u8]) -> Result<(), MeasureError> {
        self.correlation = self.correlation.wrapping_add(1);
        let frame = request(key, Some(self.correlation), body);
        self.send(&frame).await?;
        let response = self.response(key, self.correlation, &mut None).await?;
        if response.code == OK { Ok(()) } else { Err(stream_refusal(response.code)) }
    }

    /// Reads what one call was answered with.
    async fn told(&mut self, call: &Call, correlation: &mut u32) -> Result<Result<Told, MeasureError>, MeasureError> {
        let mut chunk = None;
        let mut next = || {
            let this = *correlation;
            *correlation = correlation.wrapping_add(1);
            this
        };
        match call {
            Call::Stored { .. } => {
                let response = self.response(Key::QueryOffset, next(), &mut chunk).await?;
                Ok(match response.code {
                    OK => match response.body.first_chunk() {
                        Some(offset) => Ok(Told::Stored(Some(u64::from_be_bytes(*offset)))),
                        None => return Err(malformed(Malformed::NotStreams)),
                    },
                    NO_OFFSET => Ok(Told::Stored(None)),
                    code => Err(stream_refusal(code)),
                })
            }
            Call::Chunk { .. } => {
                let subscribed = self.response(Key::Subscribe, next(), &mut chunk).await?;
                // The server sends the chunk, if there is one, before it answers what came after the subscription.
                self.response(Key::Unsubscribe, next(), &mut chunk).await?;
                Ok(if subscribed.code == OK { Ok(Told::Chunk(chunk)) } else { Err(stream_refusal(subscribed.code)) })
            }
        }
    }

    /// The response to a request. The first chunk that is delivered meanwhile is put into `chunk`.
    async fn response(
        &mut self,
        key: Key,
        correlation: u32,
        chunk: &mut Option<Chunk>,
    ) -> Result<Response, MeasureError> {
        loop {
            let (found, body) = self.frame(chunk).await?;
            match found {
                found if found == key.response() => {
                    let response = Response::read(&body).ok_or_else(|| malformed(Malformed::NotStreams))?;
                    if response.correlation != correlation {
                        return Err(malformed(Malformed::NotStreams));
                    }
                    return Ok(response);
                }
                found if found == Key::Close as u16 => return Err(closed(&body)),
                found if Key::is_unasked(found) => {}
                _ => return Err(malformed(Malformed::NotStreams)),
            }
        }
    }

    /// The body of a frame that the server sends unasked while it logs in.
    async fn expect(&mut self, key: Key) -> Result<Vec<u8>, MeasureError> {
        let (found, body) = self.frame(&mut None).await?;
        match found {
            found if found == key as u16 => Ok(body),
            found if found == Key::Close as u16 => Err(closed(&body)),
            _ => Err(malformed(Malformed::NotStreams)),
        }
    }

    /// Reads one frame: its key, and what follows the version. Of a chunk only the header is kept, and the body is empty.
    async fn frame(&mut self, chunk: &mut Option<Chunk>) -> Result<(u16, Vec<u8>), MeasureError> {
        let mut head = [0; 8];
        self.read(&mut head).await?;
        let [a, b, c, d, e, f, _, _] = head;
        let (size, key) = (u32::from_be_bytes([a, b, c, d]) as usize, u16::from_be_bytes([e, f]));
        let rest = size.checked_sub(4).ok_or_else(|| malformed(Malformed::NotStreams))?;
        if key != Key::Deliver as u16 {
            if rest > LARGEST_FRAME {
                return Err(malformed(Malformed::TooLarge));
            }
            let mut body = vec![0; rest];
            self.read(&mut body).await?;
            return Ok((key, body));
        }
        let rest = rest.checked_sub(DELIVER_HEADER).ok_or_else(|| malformed(Malformed::NotStreams))?;
        if rest > LARGEST_CHUNK {
            return Err(malformed(Malformed::TooLarge));
        }
        let mut header = [0; DELIVER_HEADER];
        self.read(&mut header).await?;
        let found = Chunk::read(&header).ok_or_else(|| malformed(Malformed::NotStreams))?;
        chunk.get_or_insert(found);
        let mut left = rest;
        let mut piece = vec![0; PIECE];
        while left > 0 {
            let some = left.min(PIECE);
            self.read(&mut piece[..some]).await?;
            left -= some;
        }
        Ok((key, Vec::new()))
    }

    async fn read(&mut self, into: &mut [u8]) -> Result<(), MeasureError> {
        self.stream.read_exact(into).await.map(drop).map_err(|error| by_io(&error))
    }
}

fn not_read() -> MeasureError {
    MeasureError {
        reason: Reason::SourceFailed,
        message: "an answer about another stream ended the connection before this one".to_owned(),
    }
}

/// The server ends the connection, with a number, a code, and a text that is not repeated.
fn closed(body: &[u8]) -> MeasureError {
    stream_refusal(body.get(4..6).map_or(0, |code| u16::from_be_bytes([code[0], code[1]])))
}

fn malformed(malformed: Malformed) -> MeasureError {
    let message = match malformed {
        Malformed::NotStreams => {
            "the answer is not in the protocol of RabbitMQ's streams: is the plugin rabbitmq_stream enabled, is this the port of its listener (5552), and does it want TLS?"
        }
        Malformed::TooLarge => "the answer is larger than any that makes sense: is this the port for streams (5552)?",
    };
    MeasureError { reason: Reason::InvalidAnswer, message: message.to_owned() }
}

fn timed_out() -> MeasureError {
    MeasureError {
        reason: Reason::TimedOut,
        message: "no whole answer in time: does a firewall or network policy drop packets, or does the server hang?"
            .to_owned(),
    }
}
