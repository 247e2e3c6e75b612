//! A connection of a worker: subscribes to queues, receives their messages, and tells what became of them.
//!
//! It is opened once. After a failure it is of no more use; what it was given and has not acknowledged goes back to its queue when it is dropped.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout_at},
};

use super::{
    super::{ConnectionSettings, words::amqp_refusal},
    decoder::{Decoder, Incoming, Malformed, Message},
    methods::{Ask, HEARTBEAT, LARGEST_FRAME, PROTOCOL, Told, frame},
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

/// What the server's list of connections shows.
const PRODUCT: &str = "projectionist-projector";
/// A connection on which nothing was heard for twice as long is dead, unless the server wants to know earlier.
const HEARTBEAT_EVERY: u16 = 60;
/// Bytes that are read at once.
const PIECE: usize = 64 << 10;
/// Once some messages came, the next are waited for this long: the server sends what it has in a row.
const QUIET: Duration = Duration::from_millis(3);
/// For what is sent: a server that takes nothing for so long hangs.
const DEADLINE: Duration = Duration::from_secs(10);
/// Answers that were not asked for.
const MOST_UNASKED: usize = 4;

/// What may be kept of messages, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// A larger body is not kept.
    pub largest: usize,
    /// All messages that are not acknowledged together. At least one of the largest must have room.
    pub kept: usize,
}

/// A worker's connection, with one channel.
pub struct Subscriber {
    stream: Box<dyn Stream>,
    decoder: Decoder,
    piece: Vec<u8>,
    bounds: Bounds,
    version: Option<String>,
    heartbeat: Duration,
    heard: Instant,
    said: Instant,
    consumers: Vec<Consumer>,
    /// Messages that were received and are neither acknowledged nor given back, with what they take of memory, and the sum of that.
    unsettled: BTreeMap<u64, usize>,
    kept: usize,
    /// A server that gives more messages than this without an acknowledgement does not do what it was asked.
    most: usize,
    /// Received and not looked at yet.
    ready: VecDeque<Message>,
    /// What the server answered.
    answers: VecDeque<Told>,
}

/// A queue that was subscribed to.
struct Consumer {
    queue: String,
    /// Names the subscription to the server: the queue's place, and how often it was subscribed to.
    name: String,
    times: u32,
    prefetch: u16,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fate {
    Done,
    Back,
}

impl Subscriber {
    /// Connects, logs in and opens the virtual host.
    ///
    /// # Errors
    /// Why there is no connection. Holds no secret and does not say at which host.
    pub async fn open(
        settings: &ConnectionSettings,
        addresses: &AddressRules,
        vhost: &str,
        bounds: Bounds,
        by: Instant,
    ) -> Result<Self, MeasureError> {
        let opened = timeout_at(by, Self::log_in(settings, addresses, vhost, bounds, by)).await;
        let opened = opened.unwrap_or_else(|_| Err(timed_out()));
        opened.map_err(|error| error.about(format!("port {} for AMQP", settings.amqp_port)))
    }

    async fn log_in(
        settings: &ConnectionSettings,
        addresses: &AddressRules,
        vhost: &str,
        bounds: Bounds,
        by: Instant,
    ) -> Result<Self, MeasureError> {
        let server = Server { port: settings.amqp_port, ..settings.server.clone() };
        let mut stream = connect(&server, addresses).await?;
        stream.write_all(PROTOCOL).await.map_err(|error| by_io(&error))?;
        stream.flush().await.map_err(|error| by_io(&error))?;
        let now = Instant::now();
        let mut subscriber = Self {
            stream,
            decoder: Decoder::new(bounds.largest),
            piece: vec![0; PIECE],
            bounds,
            version: None,
            heartbeat: Duration::from_secs(HEARTBEAT_EVERY.into()),
            heard: now,
            said: now,
            consumers: Vec::new(),
            unsettled: BTreeMap::new(),
            kept: 0,
            most: 0,
            ready: VecDeque::new(),
            answers: VecDeque::new(),
        };
        let Told::Start { version, mechanisms } = subscriber.answer(by).await? else { return Err(not_amqp()) };
        subscriber.version = version;
        if !mechanisms.split(' ').any(|mechanism| mechanism == "PLAIN") {
            return Err(MeasureError {
                reason: Reason::AuthenticationFailed,
                message: "the server takes no login with a user and a password (PLAIN)".to_owned(),
            });
        }
        let (user, password) = (settings.user.as_str(), settings.password.as_str());
        subscriber.send([Ask::StartOk { product: PRODUCT, user, password }]).await?;
        let tune = subscriber.answer(by).await.map_err(|error| match error.reason {
            // Before the login is accepted, there is nothing else that could be refused.
            Reason::PermissionDenied => login_refused(),
            _ => error,
        })?;
        let Told::Tune { largest_frame, heartbeat } = tune else { return Err(not_amqp()) };
        let largest_frame = Some(largest_frame).filter(|bytes| *bytes > 0).unwrap_or(LARGEST_FRAME).min(LARGEST_FRAME);
        let heartbeat = Some(heartbeat).filter(|seconds| *seconds > 0).unwrap_or(HEARTBEAT_EVERY).min(HEARTBEAT_EVERY);
        subscriber.heartbeat = Duration::from_secs(heartbeat.into());
        subscriber.send([Ask::TuneOk { largest_frame, heartbeat }, Ask::Open(vhost)]).await?;
        subscriber.expect(&Told::OpenOk, by).await?;
        subscriber.call(Ask::ChannelOpen, &Told::ChannelOpenOk, by).await?;
        Ok(subscriber)
    }

    /// The server's version, where it tells that, such as `3.10.8`.
    pub fn server_version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Subscribes to a queue, so that up to `prefetch` of its messages are here unacknowledged; `exclusive`: while nothing else consumes it. A queue that was
    /// subscribed to is subscribed to once more with this prefetch; what it has given before does not count for that. A prefetch of 0 ends the subscription.
    ///
    /// # Errors
    /// The connection failed, or the server refuses it.
    pub async fn subscribe(
        &mut self,
        queue: &str,
        prefetch: u16,
        exclusive: bool,
        by: Instant,
    ) -> Result<(), MeasureError> {
        let place = match self.consumers.iter().position(|consumer| consumer.queue == queue) {
            Some(place) => place,
            None => {
                let queue = queue.to_owned();
                self.consumers.push(Consumer { queue, name: String::new(), times: 0, prefetch: 0 });
                self.consumers.len() - 1
            }
        };
        let Some(Consumer { name, times, prefetch: now, .. }) = self.consumers.get(place) else { return Ok(()) };
        let (old, times, now) = (name.clone(), times.wrapping_add(1), *now);
        if now > 0 {
            self.call(Ask::Cancel { consumer: &old }, &Told::CancelOk, by).await?;
        }
        let consumer = format!("{place}.{times}");
        if prefetch > 0 {
            // What comes before the answer counts as well.
            self.most = usize::MAX;
            self.call(Ask::Qos(prefetch), &Told::QosOk, by).await?;
            self.call(Ask::Consume { queue, consumer: &consumer, exclusive }, &Told::ConsumeOk, by).await?;
        }
        if let Some(known) = self.consumers.get_mut(place) {
            *known = Consumer { queue: queue.to_owned(), name: consumer, times, prefetch };
        }
        let asked: usize = self.consumers.iter().map(|consumer| usize::from(consumer.prefetch)).sum();
        self.most = self.unsettled.len().saturating_add(asked);
        Ok(())
    }

    /// Returns up to `most` messages, in the order in which they came. Waits for the first until `by`; none where there is none until then.
    ///
    /// # Errors
    /// The connection failed, or the server ended it.
    pub async fn receive(&mut self, most: usize, by: Instant) -> Result<Vec<Message>, MeasureError> {
        self.keep().await?;
        let mut until = if self.ready.is_empty() { by } else { Instant::now() };
        while self.ready.len() < most && self.read(until).await? {
            if !self.ready.is_empty() {
                until = Instant::now() + QUIET;
            }
        }
        if !self.answers.is_empty() {
            return Err(unasked("says what nothing has asked for"));
        }
        Ok(self.ready.drain(..most.min(self.ready.len())).collect())
    }

    /// Keeps the connection: the server closes one on which nothing is said, or of which it cannot send what it has.
    ///
    /// # Errors
    /// The connection failed, or the server ended it.
    pub async fn keep(&mut self) -> Result<(), MeasureError> {
        self.beat().await?;
        while self.read(Instant::now()).await? {}
        self.hears()
    }

    /// Which queue a message is from.
    pub fn queue_of(&self, message: &Message) -> Option<&str> {
        let place = std::str::from_utf8(&message.consumer).ok()?.split('.').next()?.parse::<usize>().ok()?;
        self.consumers.get(place).map(|consumer| consumer.queue.as_str())
    }

    /// Acknowledges messages. The server does not answer that.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn acknowledge(&mut self, tags: impl IntoIterator<Item = u64>) -> Result<(), MeasureError> {
        self.settle(tags, Fate::Done).await
    }

    /// Gives messages back to their queues, to be given to any consumer. The server does not answer that.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn give_back(&mut self, tags: impl IntoIterator<Item = u64>) -> Result<(), MeasureError> {
        self.settle(tags, Fate::Back).await
    }

    /// Ends the connection; what was told before is heard. What was not acknowledged goes back.
    ///
    /// # Errors
    /// The server did not say that it has heard it.
    pub async fn close(&mut self, by: Instant) -> Result<(), MeasureError> {
        self.send([Ask::Close]).await?;
        // Messages may still come, and an answer to something else.
        while self.answer(by).await? != Told::CloseOk {}
        Ok(())
    }

    async fn settle(&mut self, tags: impl IntoIterator<Item = u64>, fate: Fate) -> Result<(), MeasureError> {
        let mut asks = Vec::new();
        for tag in tags {
            // A number that the server does not know would end the channel.
            if let Some(bytes) = self.unsettled.remove(&tag) {
                self.kept = self.kept.saturating_sub(bytes);
                asks.push(match fate {
                    Fate::Done => Ask::Ack(tag),
                    Fate::Back => Ask::Nack(tag),
                });
            }
        }
        if asks.is_empty() { Ok(()) } else { self.send(asks).await }
    }

    async fn call(&mut self, ask: Ask<'_>, answer: &Told, by: Instant) -> Result<(), MeasureError> {
        self.send([ask]).await?;
        self.expect(answer, by).await
    }

    async fn expect(&mut self, answer: &Told, by: Instant) -> Result<(), MeasureError> {
        if self.answer(by).await? == *answer { Ok(()) } else { Err(not_amqp()) }
    }

    /// What the server says next, other than messages.
    async fn answer(&mut self, by: Instant) -> Result<Told, MeasureError> {
        loop {
            if let Some(told) = self.answers.pop_front() {
                return Ok(told);
            }
            if !self.read(by).await? {
                return Err(timed_out());
            }
        }
    }

    async fn send(&mut self, asks: impl IntoIterator<Item = Ask<'_>>) -> Result<(), MeasureError> {
        let mut frames = Vec::new();
        for ask in asks {
            ask.write(&mut frames);
        }
        self.write(&frames).await
    }

    async fn write(&mut self, frames: &[u8]) -> Result<(), MeasureError> {
        let stream = &mut self.stream;
        let written = timeout_at(Instant::now() + DEADLINE, async {
            stream.write_all(frames).await?;
            stream.flush().await
        });
        match written.await {
            Ok(Ok(())) => {
                self.said = Instant::now();
                Ok(())
            }
            // What the server said before it hung up may still be read.
            Ok(Err(error)) => Err(self.last_words().await.unwrap_or_else(|| by_io(&error))),
            Err(_) => Err(timed_out()),
        }
    }

    /// Why the server hung up, where it has said so.
    async fn last_words(&mut self) -> Option<MeasureError> {
        loop {
            match self.read(Instant::now()).await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(error),
            }
        }
    }

    /// Says that the client is there, when it is time for that.
    async fn beat(&mut self) -> Result<(), MeasureError> {
        if self.said.elapsed() < self.heartbeat / 3 {
            return Ok(());
        }
        let mut heartbeat = Vec::new();
        frame(HEARTBEAT, 0, &[], &mut heartbeat);
        self.write(&heartbeat).await
    }

    /// Whether the server is still there.
    fn hears(&self) -> Result<(), MeasureError> {
        if self.heard.elapsed() <= self.heartbeat * 2 {
            return Ok(());
        }
        let message = format!(
            "nothing was heard from the server for {:?}, although it is to send heartbeats: is the network cut, or does the server hang?",
            self.heartbeat * 2
        );
        Err(MeasureError { reason: Reason::TimedOut, message })
    }

    /// Reads what is there, or waits for it until then. False where nothing came.
    async fn read(&mut self, until: Instant) -> Result<bool, MeasureError> {
        // What has come is taken even if its time is over.
        let Ok(read) = timeout_at(until, self.stream.read(&mut self.piece)).await else { return Ok(false) };
        let length = read.map_err(|error| by_io(&error))?;
        if length == 0 {
            return Err(by_io(&io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        self.heard = Instant::now();
        self.decoder.take(self.piece.get(..length).unwrap_or_default());
        while let Some(incoming) = self.decoder.next(self.bounds.kept.saturating_sub(self.kept)).map_err(malformed)? {
            match incoming {
                Incoming::Heartbeat => {}
                Incoming::Message(message) => {
                    if self.unsettled.len() >= self.most {
                        return Err(unasked("sends more messages than it was asked for"));
                    }
                    let bytes = message.bytes();
                    self.kept = self.kept.saturating_add(bytes);
                    self.unsettled.insert(message.tag, bytes);
                    self.ready.push_back(message);
                }
                Incoming::Told(Told::Closed(closed)) => return Err(amqp_refusal(closed.code, &closed.text)),
                Incoming::Told(Told::Cancelled { .. }) => return Err(queue_gone()),
                Incoming::Told(told) => {
                    if self.answers.len() >= MOST_UNASKED {
                        return Err(unasked("says what nothing has asked for"));
                    }
                    self.answers.push_back(told);
                }
            }
        }
        Ok(true)
    }
}

fn queue_gone() -> MeasureError {
    MeasureError {
        reason: Reason::QueueNotFound,
        message: "a queue was deleted, or its node is down: see that it is there".to_owned(),
    }
}

fn login_refused() -> MeasureError {
    amqp_refusal(403, "Login was refused")
}

fn unasked(what: &str) -> MeasureError {
    MeasureError { reason: Reason::InvalidAnswer, message: format!("the server {what}: is it RabbitMQ?") }
}

fn not_amqp() -> MeasureError {
    malformed(Malformed::NotAmqp)
}

fn malformed(malformed: Malformed) -> MeasureError {
    let message = match malformed {
        Malformed::NotAmqp => {
            "the answer is not in AMQP 0-9-1: is this the port for AMQP (5672; key amqp-port in the Secret), and does it want TLS?"
        }
        Malformed::TooLarge => "the server sends larger frames than were agreed (128 KiB): is this the port for AMQP?",
    };
    MeasureError { reason: Reason::InvalidAnswer, message: message.to_owned() }
}

fn timed_out() -> MeasureError {
    MeasureError {
        reason: Reason::TimedOut,
        message: "no answer in time: does a firewall or network policy drop packets, does the port want TLS, or does the server hang?"
            .to_owned(),
    }
}
