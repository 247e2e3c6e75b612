//! Takes messages of queues in RabbitMQ over AMQP.
//!
//! The server gives a message to one consumer, and to another only once that has acknowledged nothing and its connection has ended: so a dead worker's
//! messages come back, in most queues to their old places. A message that failed is kept here, unacknowledged, until it is tried again: the server has no pause
//! for one that is given back, and quorum queues count how often that happens.

mod messages;
mod terms;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;

use self::{
    messages::{Messages, Understood},
    terms::{COLUMNS, Terms},
};
use super::{
    super::{config::RabbitMqQueues, error::ProjectorError},
    queue::{Delivery, Queue},
};
use crate::{
    addresses::AddressRules,
    clients::rabbitmq::{Body, Bounds, Client, ConnectionSettings, Message, Subscriber},
    measure::MeasureError,
};

/// For all that is asked in one turn.
const DEADLINE: Duration = Duration::from_secs(10);
/// The management API is waited for this long: a worker goes on without it.
const PATIENCE: Duration = Duration::from_secs(3);
/// Where there is no message, one is waited for so long.
const WAIT: Duration = Duration::from_secs(1);
/// The connection is read so often while messages are handled: a server that cannot send for 15 s (`send_timeout`) ends it.
const KEEP_EVERY: Duration = Duration::from_secs(3);
/// What messages in hand may take of memory, or twice as much as the largest event that is read.
const MOST_BYTES: usize = 16 << 20;
/// Headers and what else comes with a body.
const ENVELOPE: usize = 128 << 10;
/// So many messages that failed are kept here at most, and half of [`MOST_BYTES`]; then nothing new is taken.
const MOST_ASIDE: usize = 1_000;
/// One that fails for so long is given back, before the server takes the worker for dead (`consumer_timeout`, 30 minutes where nothing is set).
const LONGEST_ASIDE: Duration = Duration::from_secs(600);

/// One worker on all queues.
pub(in crate::projector) struct RabbitMqQueue {
    at: String,
    subscriber: Subscriber,
    queues: Vec<Subscribed>,
    messages: Messages,
    bounds: Bounds,
    /// There is one worker at a time, and it keeps the order.
    alone: bool,
    /// How large messages were of late, in bytes.
    seen: Option<usize>,
    held: BTreeMap<u64, Held>,
    /// Those of the held that failed, by the time at which they are tried again.
    aside: BTreeSet<(Instant, u64)>,
    aside_bytes: usize,
    /// Those for which there was no room: they go back once there is.
    crowded: Vec<u64>,
}

struct Subscribed {
    queue: String,
    exclusive: bool,
    /// How many messages may be here at once. 0: none are taken at present.
    prefetch: u16,
}

/// A message that is neither acknowledged nor given back.
struct Held {
    message: Message,
    since: Instant,
    bytes: usize,
}

/// Names a message to the server, and to people.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::projector) struct Tagged {
    tag: u64,
    name: Arc<str>,
}

impl RabbitMqQueue {
    /// Connects, asks on which terms the queues give messages, and subscribes. `types` are the types of event that are wanted; `alone`: there is one worker at a
    /// time, and it keeps the order.
    pub(in crate::projector) async fn open(
        settings: ConnectionSettings,
        source: &RabbitMqQueues,
        max_event_bytes: u64,
        types: Vec<String>,
        alone: bool,
    ) -> Result<Self, ProjectorError> {
        let RabbitMqQueues { vhost, queues, event } = source;
        let largest = usize::try_from(max_event_bytes).unwrap_or(usize::MAX);
        let kept = MOST_BYTES.max(largest.saturating_add(ENVELOPE).saturating_mul(2));
        let bounds = Bounds { largest, kept };
        let at = settings.to_string();
        let addresses = Arc::new(AddressRules::everywhere());
        let opened = Subscriber::open(&settings, &addresses, vhost, bounds, Instant::now() + DEADLINE).await;
        let subscriber =
            opened.map_err(|MeasureError { message, .. }| ProjectorError::Source(format!("{at}: {message}")))?;
        let mut opened = Self {
            at,
            subscriber,
            queues: Vec::new(),
            messages: Messages::new(event, types, max_event_bytes),
            bounds,
            alone,
            seen: None,
            held: BTreeMap::new(),
            aside: BTreeSet::new(),
            aside_bytes: 0,
            crowded: Vec::new(),
        };
        let mut client = Client::new(settings, addresses);
        for queue in queues {
            let single_active = opened.terms(&mut client, vhost, queue).await?.is_some_and(|terms| terms.single_active);
            opened.queues.push(Subscribed { queue: queue.clone(), exclusive: alone && !single_active, prefetch: 0 });
        }
        let first = opened.safe_prefetch();
        opened.subscribe(first).await?;
        Ok(opened)
    }

    /// What the management API tells of a queue; none where it tells nothing.
    async fn terms(&self, client: &mut Client, vhost: &str, queue: &str) -> Result<Option<Terms>, ProjectorError> {
        let [in_vhost, name] = [vhost, queue].map(|text| utf8_percent_encode(text, NON_ALPHANUMERIC));
        let path = format!("queues/{in_vhost}/{name}?columns={COLUMNS}");
        let why = match client.get(&path, Instant::now() + PATIENCE).await {
            Ok(answer) => match Terms::read(&answer.body, self.subscriber.server_version()) {
                Some(Ok(terms)) => return Ok(Some(terms)),
                Some(Err(why)) => return Err(self.failed(Some(queue), &why)),
                None => "its answer is no queue".to_owned(),
            },
            Err(error) => error.message,
        };
        // The workers need AMQP alone. Whether the queue is there, AMQP tells as well.
        tracing::warn!(
            queue,
            why,
            "the management API does not tell whether the queue drops messages (delivery-limit) or is deleted with the last worker (auto_delete)"
        );
        Ok(None)
    }

    fn failed(&self, queue: Option<&str>, why: &str) -> ProjectorError {
        let queue = queue.map(|queue| format!("queue {queue}: ")).unwrap_or_default();
        ProjectorError::Source(format!("{}: {queue}{why}", self.at))
    }

    /// So many messages of each queue have room, however large they are.
    fn safe_prefetch(&self) -> u16 {
        let each = self.bounds.kept / self.bounds.largest.saturating_add(ENVELOPE) / self.queues.len().max(1);
        u16::try_from(each).unwrap_or(u16::MAX).max(1)
    }

    /// So many messages that failed are kept that nothing new may be taken.
    fn is_full(&self) -> bool {
        self.aside.len() >= MOST_ASIDE || self.aside_bytes >= self.bounds.kept / 2
    }

    /// How many messages of each queue are to be here: as many as one batch takes, as far as those of late say that there is room for them, and those that failed.
    fn wanted_prefetch(&self, limit: usize) -> u16 {
        let safe = self.safe_prefetch();
        // One that is alone subscribes once: between two subscriptions another worker could come, and what has no room would lose its place.
        if self.alone {
            return safe;
        }
        if self.is_full() {
            return 0;
        }
        let count = self.queues.len().max(1);
        let room = self.seen.map_or(0, |bytes| self.bounds.kept / 2 / bytes.max(1) / count).min(limit);
        let room = u16::try_from(room).unwrap_or(u16::MAX).max(safe);
        // In steps, so that it is not asked for with each that fails.
        let aside = if self.aside.is_empty() { 0 } else { (self.aside.len() * 2).next_power_of_two() };
        room.saturating_add(u16::try_from(aside).unwrap_or(u16::MAX))
    }

    /// Subscribes again where much more or much less is wanted than was asked for.
    async fn adapt(&mut self, limit: usize) -> Result<(), ProjectorError> {
        let wanted = self.wanted_prefetch(limit);
        let is_far = |now: u16| wanted != now && (wanted == 0 || now == 0 || wanted / 2 >= now || now / 2 >= wanted);
        if !self.queues.iter().any(|subscribed| is_far(subscribed.prefetch)) {
            return Ok(());
        }
        if wanted == 0 {
            tracing::warn!(
                failed = self.aside.len(),
                "so many messages could not be handled that no new ones are taken until some of them can be"
            );
        }
        self.subscribe(wanted).await
    }

    async fn subscribe(&mut self, prefetch: u16) -> Result<(), ProjectorError> {
        tracing::debug!(prefetch, "subscribing");
        for place in 0..self.queues.len() {
            let Some(Subscribed { queue, exclusive, .. }) = self.queues.get(place) else { continue };
            let (queue, exclusive) = (queue.clone(), *exclusive);
            let done = self.subscriber.subscribe(&queue, prefetch, exclusive, Instant::now() + DEADLINE).await;
            done.map_err(|error| self.failed(Some(&queue), &error.message))?;
            if let Some(subscribed) = self.queues.get_mut(place) {
                subscribed.prefetch = prefetch;
            }
        }
        Ok(())
    }

    fn delivery(&self, message: &Message) -> Delivery<Tagged> {
        let queue = self.subscriber.queue_of(message).unwrap_or("?");
        let Understood { id, name, content } = self.messages.understand(queue, message);
        Delivery { id, receipt: Tagged { tag: message.tag, name: name.into() }, content }
    }

    /// Takes messages that failed and whose time has come.
    fn due(&mut self, limit: usize) -> Vec<Delivery<Tagged>> {
        let now = Instant::now();
        let mut found = Vec::new();
        while found.len() < limit {
            let Some((due, tag)) = self.aside.first().copied().filter(|(due, _)| *due <= now) else { break };
            self.aside.remove(&(due, tag));
            if let Some(held) = self.held.get(&tag) {
                self.aside_bytes = self.aside_bytes.saturating_sub(held.bytes);
                found.push(self.delivery(&held.message));
            }
        }
        found
    }

    /// Gives back what failed for too long, and that for which there was no room.
    async fn let_go(&mut self) -> Result<(), ProjectorError> {
        let is_old = |tag: &u64| self.held.get(tag).is_some_and(|held| held.since.elapsed() >= LONGEST_ASIDE);
        let old: Vec<(Instant, u64)> = self.aside.iter().filter(|(_, tag)| is_old(tag)).copied().collect();
        let mut back = std::mem::take(&mut self.crowded);
        for (due, tag) in old {
            self.aside.remove(&(due, tag));
            if let Some(held) = self.held.remove(&tag) {
                self.aside_bytes = self.aside_bytes.saturating_sub(held.bytes);
            }
            back.push(tag);
        }
        let done = self.subscriber.give_back(back).await;
        done.map_err(|error| self.failed(None, &error.message))
    }

    /// Takes in what was received, and returns that for which there was room.
    fn take_in(&mut self, received: Vec<Message>) -> Vec<Delivery<Tagged>> {
        let mut found = Vec::new();
        let mut largest = 0;
        for message in received {
            let bytes = match &message.body {
                Body::Whole(body) => body.len(),
                // It takes nothing.
                Body::TooLarge(_) => 0,
                Body::NoRoom(bytes) => usize::try_from(*bytes).unwrap_or(usize::MAX),
            };
            largest = largest.max(bytes.saturating_add(ENVELOPE / 64));
            if matches!(message.body, Body::NoRoom(_)) {
                self.crowded.push(message.tag);
                continue;
            }
            found.push(self.delivery(&message));
            self.held.insert(message.tag, Held { message, since: Instant::now(), bytes });
        }
        if largest > 0 {
            // It is forgotten slowly that some were large.
            self.seen = Some(self.seen.map_or(largest, |seen| largest.max(seen - seen / 8)));
        }
        found
    }
}

impl Queue for RabbitMqQueue {
    type Receipt = Tagged;

    fn renew_every(&self) -> Duration {
        KEEP_EVERY
    }

    async fn fetch(&mut self, limit: usize) -> Result<Vec<Delivery<Tagged>>, ProjectorError> {
        self.adapt(limit).await?;
        self.let_go().await?;
        // Those that failed leave room for others, however many there are.
        let mut found = self.due((limit / 2).max(1));
        let now = Instant::now();
        let next_due = self.aside.first().map_or(now + WAIT, |(due, _)| *due);
        let until = if found.is_empty() { next_due.min(now + WAIT) } else { now };
        let received = self.subscriber.receive(limit.saturating_sub(found.len()).max(1), until).await;
        let received = received.map_err(|error| self.failed(None, &error.message))?;
        found.extend(self.take_in(received));
        Ok(found)
    }

    async fn renew(&mut self, _: &[Tagged]) -> Result<(), ProjectorError> {
        let kept = self.subscriber.keep().await;
        kept.map_err(|error| self.failed(None, &error.message))
    }

    async fn acknowledge(&mut self, done: &[Tagged]) -> Result<(), ProjectorError> {
        for Tagged { tag, .. } in done {
            self.held.remove(tag);
        }
        let acknowledged = self.subscriber.acknowledge(done.iter().map(|done| done.tag)).await;
        acknowledged.map_err(|error| self.failed(None, &error.message))
    }

    async fn put_back(&mut self, held: &[Tagged], pause: Duration) -> Result<(), ProjectorError> {
        if !pause.is_zero() {
            let due = Instant::now() + pause;
            for Tagged { tag, .. } in held {
                self.aside.insert((due, *tag));
                self.aside_bytes += self.held.get(tag).map_or(0, |held| held.bytes);
            }
            return Ok(());
        }
        for Tagged { tag, .. } in held {
            self.held.remove(tag);
        }
        let given = self.subscriber.give_back(held.iter().map(|held| held.tag)).await;
        given.map_err(|error| self.failed(None, &error.message))
    }

    fn place(&self, Tagged { name, .. }: &Tagged) -> String {
        name.to_string()
    }

    /// All that is held goes back with the connection.
    async fn finish(&mut self) {
        if let Err(error) = self.subscriber.close(Instant::now() + PATIENCE).await {
            tracing::debug!(error = error.message, "the connection ends without a word of the server");
        }
    }
}
