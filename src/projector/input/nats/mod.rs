//! Pulls messages from consumers of NATS JetStream.
//!
//! The server keeps which messages it has given and when. One that is neither acknowledged nor renewed within the consumer's `ack_wait` is given to any worker
//! again: so a dead worker's messages come back. One that failed is given back with a pause (`-NAK` with a delay), and those in hand are renewed (`+WPI`).

mod messages;
mod terms;

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use self::{
    messages::Messages,
    terms::{Terms, Unsuitable},
};
use super::{
    super::{config::NatsConsumers, error::ProjectorError},
    queue::{Delivery, Queue},
};
use crate::{
    addresses::AddressRules,
    api::{Reason, StreamConsumer},
    clients::nats::{Bounds, ConnectionSettings, Payload, Place, PullEnded, Pulled, Puller, Reply, Request},
    measure::MeasureError,
};

/// For all that is asked in one turn.
const DEADLINE: Duration = Duration::from_secs(10);
/// Where there is no message, the server is asked to wait for one so long, among all consumers.
const WAIT: Duration = Duration::from_secs(1);
const SHORTEST_WAIT: Duration = Duration::from_millis(20);
/// What messages in hand may take of memory, or twice as much as the largest event that is read.
const MOST_BYTES: usize = 16 << 20;
/// Headers, subjects and what else comes with a body.
const ENVELOPE: usize = 64 << 10;
/// No server takes larger messages (`max_payload`).
const LARGEST_MESSAGE: u64 = 65 << 20;
/// While messages of an earlier worker are waited for, it is looked so often whether there are any.
const LOOK_EVERY: Duration = Duration::from_secs(1);

const ACKNOWLEDGED: &str = "+ACK";
const IN_PROGRESS: &str = "+WPI";
const NOT_ACKNOWLEDGED: &str = "-NAK";

/// One worker on all consumers.
pub(in crate::projector) struct NatsQueue {
    puller: Puller,
    consumers: Vec<Consumer>,
    domain: Option<String>,
    messages: Messages,
    /// What one request may bring, and what one message may have to be kept whole, in bytes.
    most_bytes: usize,
    largest: usize,
    /// The consumer that is asked first.
    first: usize,
    /// What an earlier worker was given must come first.
    recovering: Option<Recovering>,
}

struct Consumer {
    names: StreamConsumer,
    terms: Terms,
}

/// There is one worker at a time, which keeps the order. What the one before it left unacknowledged is given again only once its time has run out, and until
/// then newer messages would come first.
struct Recovering {
    until: Instant,
    look_at: Instant,
}

/// Names a message to the server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::projector) struct Given {
    place: Place,
    acknowledge_on: String,
}

impl NatsQueue {
    /// Connects, and asks on which terms the consumers give messages. `types` are the types of event that are wanted; `alone`: there is one worker at a time,
    /// and it keeps the order.
    pub(in crate::projector) async fn open(
        settings: ConnectionSettings,
        source: &NatsConsumers,
        max_event_bytes: u64,
        types: Vec<String>,
        alone: bool,
    ) -> Result<Self, ProjectorError> {
        let NatsConsumers { consumers, domain, event } = source;
        let largest = usize::try_from(max_event_bytes).unwrap_or(usize::MAX).saturating_add(ENVELOPE);
        let most_bytes = MOST_BYTES.max(largest.saturating_mul(2));
        let bounds = Bounds { whole: largest, kept: most_bytes.saturating_mul(2), received: LARGEST_MESSAGE };
        let at = settings.to_string();
        let addresses = AddressRules::everywhere();
        let opened = Puller::open(settings, &addresses, bounds, Instant::now() + DEADLINE).await;
        let puller =
            opened.map_err(|MeasureError { message, .. }| ProjectorError::Source(format!("{at}: {message}")))?;
        let mut queue = Self {
            puller,
            consumers: Vec::new(),
            domain: domain.clone(),
            messages: Messages::new(event, types, max_event_bytes),
            most_bytes,
            largest,
            first: 0,
            recovering: None,
        };
        for names in consumers {
            let terms = queue.terms(names).await?;
            queue.consumers.push(Consumer { names: names.clone(), terms });
        }
        if alone && queue.consumers.iter().any(|consumer| consumer.terms.held > 0) {
            let longest = queue.consumers.iter().map(|consumer| consumer.terms.longest_wait).max().unwrap_or_default();
            tracing::info!(
                ?longest,
                "an earlier worker has left messages unacknowledged: waiting until they are given again, so that the order holds"
            );
            let now = Instant::now();
            queue.recovering = Some(Recovering { until: now + longest, look_at: now + LOOK_EVERY });
        }
        Ok(queue)
    }

    /// The subject of JetStream's API for this.
    fn subject(&self, what: &str, StreamConsumer { stream, consumer }: &StreamConsumer) -> String {
        match &self.domain {
            None => format!("$JS.API.{what}.{stream}.{consumer}"),
            Some(domain) => format!("$JS.{domain}.API.{what}.{stream}.{consumer}"),
        }
    }

    async fn terms(&mut self, names: &StreamConsumer) -> Result<Terms, ProjectorError> {
        let subject = self.subject("CONSUMER.INFO", names);
        let request = Request { subject, body: String::new() };
        let reply: Result<Reply, MeasureError> = self.puller.ask(request, Instant::now() + DEADLINE).await;
        let reply = reply.map_err(|error| self.failed(names, &error.message))?;
        Terms::read(&reply).map_err(|unsuitable| match unsuitable {
            Unsuitable::Refused(why) => self.failed(names, &why),
            Unsuitable::Unknown(MeasureError { reason: Reason::NeverCommitted, .. }) => self.failed(
                names,
                "there is no such consumer: create a durable pull consumer with ack_policy explicit that begins where the read model begins. If there was one, let it begin behind what was handled (deliver_policy by_start_sequence or by_start_time): messages that the inbox has forgotten would have their effects twice",
            ),
            Unsuitable::Unknown(MeasureError { message, .. }) => self.failed(names, &message),
        })
    }

    fn failed(&self, StreamConsumer { stream, consumer }: &StreamConsumer, why: &str) -> ProjectorError {
        let at = self.puller.settings();
        ProjectorError::Source(format!("{at}: stream {stream}, consumer {consumer}: {why}"))
    }

    /// Whether messages of an earlier worker are still to be waited for.
    async fn recovers(&mut self) -> Result<bool, ProjectorError> {
        let now = Instant::now();
        let Some(recovering) = &mut self.recovering else { return Ok(false) };
        if recovering.until > now && recovering.look_at > now {
            return Ok(true);
        }
        let mut is_held = recovering.until > now;
        recovering.look_at = now + LOOK_EVERY;
        if is_held {
            let names: Vec<StreamConsumer> = self.consumers.iter().map(|consumer| consumer.names.clone()).collect();
            is_held = false;
            for names in &names {
                is_held |= self.terms(names).await?.held > 0;
            }
        }
        if !is_held {
            self.recovering = None;
        }
        Ok(is_held)
    }

    /// Asks one consumer for messages.
    async fn pull(&mut self, place: usize, limit: usize) -> Result<Vec<Pulled>, ProjectorError> {
        let Some(Consumer { names, terms }) = self.consumers.get(place) else { return Ok(Vec::new()) };
        let (names, terms) = (names.clone(), *terms);
        let count = terms.most.unwrap_or(usize::MAX).min(limit).max(1);
        let bytes = terms.most_bytes.unwrap_or(usize::MAX).min(self.most_bytes);
        let (found, ended) = self.ask(&names, count, Some(bytes)).await?;
        let is_too_large = ended.as_ref().is_some_and(|ended| ended.description.starts_with("Message Size Exceeds"));
        if found.is_empty() && is_too_large {
            // Alone it may be larger, and is told as one that cannot be read; else it would stay in front of the others.
            let (found, ended) = self.ask(&names, 1, None).await?;
            return self.checked(&names, ended.as_ref()).map(|()| found);
        }
        // What is kept of a message is decided as it comes in. One that is cut although it is small must not be told as one that is too large.
        if found.iter().any(|message| message.length <= self.largest && matches!(message.payload, Payload::Tail(_))) {
            return Err(self.failed(&names, "the server sends more than it was asked for"));
        }
        self.checked(&names, ended.as_ref()).map(|()| found)
    }

    async fn ask(
        &mut self,
        names: &StreamConsumer,
        count: usize,
        bytes: Option<usize>,
    ) -> Result<(Vec<Pulled>, Option<PullEnded>), ProjectorError> {
        let wait = WAIT / u32::try_from(self.consumers.len()).unwrap_or(u32::MAX).max(1);
        let wait = u64::try_from(wait.max(SHORTEST_WAIT).as_nanos()).unwrap_or(u64::MAX);
        // Without a time the server would keep the request while as many messages are in hand as it allows.
        let mut body = json!({ "batch": count, "no_wait": true, "expires": wait });
        if let Some(bytes) = bytes {
            body["max_bytes"] = json!(bytes);
        }
        let request = Request { subject: self.subject("CONSUMER.MSG.NEXT", names), body: body.to_string() };
        let pulled = self.puller.pull(&request, count, Instant::now() + DEADLINE).await;
        pulled.map_err(|error| self.failed(names, &error.message))
    }

    /// Takes what ended a request for a failure, unless it only means that there is nothing more.
    fn checked(&self, names: &StreamConsumer, ended: Option<&PullEnded>) -> Result<(), ProjectorError> {
        let Some(PullEnded { code, description }) = ended else { return Ok(()) };
        match (code, description.as_str()) {
            (404 | 408, _) => Ok(()),
            (409, "Batch Completed" | "Exceeded MaxWaiting") => Ok(()),
            (409, words) if words.starts_with("Message Size Exceeds") => Ok(()),
            (503, _) => {
                Err(self.failed(names, "nothing answers for this consumer: was it deleted, or has it no leader?"))
            }
            _ => {
                let said: String = description.chars().filter(|letter| !letter.is_control()).take(200).collect();
                Err(self.failed(names, &format!("the server gives no messages: {code} {said}")))
            }
        }
    }

    fn delivery(&self, message: Pulled) -> Delivery<Given> {
        let content = self.messages.event(&message);
        let Place { stream, sequence, stored_at, pending: _ } = &message.place;
        // A stream that is made again has the same numbers and other times. Names of streams have no blanks.
        let id = format!("{stream} {sequence} {stored_at}");
        Delivery { id, receipt: Given { place: message.place, acknowledge_on: message.acknowledge_on }, content }
    }

    /// Says the same of all these messages.
    async fn tell(&mut self, about: &[Given], what: &str) -> Result<(), ProjectorError> {
        if about.is_empty() {
            return Ok(());
        }
        let messages: Vec<(&str, &str)> = about.iter().map(|given| (given.acknowledge_on.as_str(), what)).collect();
        let told = self.puller.tell(&messages, Instant::now() + DEADLINE).await;
        told.map_err(|error| ProjectorError::Source(format!("{}: {}", self.puller.settings(), error.message)))
    }
}

impl Queue for NatsQueue {
    type Receipt = Given;

    fn renew_every(&self) -> Duration {
        let shortest = self.consumers.iter().map(|consumer| consumer.terms.renew_every()).min();
        shortest.unwrap_or(WAIT)
    }

    async fn fetch(&mut self, limit: usize) -> Result<Vec<Delivery<Given>>, ProjectorError> {
        if self.recovers().await? {
            return Ok(Vec::new());
        }
        let count = self.consumers.len();
        let share = limit / count.max(1);
        let (mut found, mut bytes) = (Vec::new(), 0);
        let first = self.first;
        for turn in 0..count {
            let place = (first + turn) % count;
            for message in self.pull(place, share).await? {
                bytes += message.length;
                found.push(self.delivery(message));
            }
            self.first = (place + 1) % count;
            if bytes >= MOST_BYTES {
                break;
            }
        }
        Ok(found)
    }

    async fn renew(&mut self, held: &[Given]) -> Result<(), ProjectorError> {
        self.tell(held, IN_PROGRESS).await
    }

    async fn acknowledge(&mut self, done: &[Given]) -> Result<(), ProjectorError> {
        self.tell(done, ACKNOWLEDGED).await
    }

    async fn put_back(&mut self, held: &[Given], pause: Duration) -> Result<(), ProjectorError> {
        if pause.is_zero() {
            return self.tell(held, NOT_ACKNOWLEDGED).await;
        }
        let delay = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
        self.tell(held, &format!("{NOT_ACKNOWLEDGED} {}", json!({ "delay": delay }))).await
    }

    fn place(&self, Given { place: Place { stream, sequence, .. }, .. }: &Given) -> String {
        format!("message {sequence} of stream {stream}")
    }

    /// What was given and not looked at yet goes back at once.
    async fn finish(&mut self) {
        let left: Vec<Given> =
            self.puller.take_early().into_iter().map(|message| self.delivery(message).receipt).collect();
        if let Err(error) = self.put_back(&left, Duration::ZERO).await {
            tracing::debug!(%error, "messages that came late are left to be given again after ack_wait");
        }
    }
}
