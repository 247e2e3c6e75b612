//! One worker on a queue: takes messages, commits their effects together with a note of them, and acknowledges them after that.
//!
//! A message that cannot be handled stays unacknowledged and is tried again after growing pauses, by whichever worker is given it; the others go on.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    batch_size::{BatchSize, NotCommitted},
    error::ProjectorError,
    event::Event,
    health::Health,
    input::queue::{Delivery, Queue},
    output::{ApplyError, Inbox},
    uncalled::UncalledHandlers,
};
use crate::backoff::Backoff;

/// How often an empty queue is asked.
const POLL: Duration = Duration::from_millis(100);
/// The pauses before a message that failed is given again.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
/// A worker forgets old messages no sooner after its start, so that those that were left unacknowledged are given to a worker first: a message that is noted
/// and given again after that note is gone would have its effects twice.
const FIRST_PRUNE: Duration = Duration::from_secs(60);
const PRUNE_EVERY: Duration = Duration::from_secs(30);

/// A worker on a queue.
pub(super) struct QueueWorker<Q, I> {
    queue: Q,
    inbox: I,
    health: Health,
    uncalled: UncalledHandlers,
    size: BatchSize,
    prune_at: Instant,
}

/// Messages in hand with an event to handle, column by column, in their order.
struct InHand<Receipt> {
    ids: Vec<String>,
    events: Vec<Event>,
    receipts: Vec<Receipt>,
}

impl<Receipt> InHand<Receipt> {
    fn push(&mut self, id: String, event: Event, receipt: Receipt) {
        self.ids.push(id);
        self.events.push(event);
        self.receipts.push(receipt);
    }

    fn remove(&mut self, index: usize) -> Option<(String, Event, Receipt)> {
        let is_there = index < self.ids.len();
        is_there.then(|| (self.ids.remove(index), self.events.remove(index), self.receipts.remove(index)))
    }

    /// Takes out the first `count` and returns their receipts.
    fn done(&mut self, count: usize) -> Vec<Receipt> {
        let count = count.min(self.ids.len());
        self.ids.drain(..count);
        self.events.drain(..count);
        self.receipts.drain(..count).collect()
    }
}

impl<Q: Queue, I: Inbox> QueueWorker<Q, I> {
    pub(super) fn new(queue: Q, inbox: I, health: Health, uncalled: UncalledHandlers, batch_size: u32) -> Self {
        let (size, prune_at) = (BatchSize::new(batch_size), Instant::now() + FIRST_PRUNE);
        Self { queue, inbox, health, uncalled, size, prune_at }
    }

    /// Works until it is asked to stop, then gives back what it has in hand.
    pub(super) async fn run(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), ProjectorError> {
        while !*stop.borrow() {
            let deliveries = self.queue.fetch(self.size.most()).await?;
            if self.health.ready() {
                tracing::info!("ready");
            }
            let is_idle = deliveries.is_empty();
            let in_hand = self.sort(deliveries).await?;
            self.uncalled.came(&in_hand.events);
            self.handle(in_hand, stop).await?;
            self.prune().await?;
            if is_idle {
                self.uncalled.log_when_caught_up();
                tokio::select! {
                    _ = stop.changed() => {}
                    () = sleep(POLL.mul_f64(rand::random_range(0.8..1.2))) => {}
                }
            }
        }
        self.queue.finish().await;
        Ok(())
    }

    /// Acknowledges messages without a handler, and gives back those that cannot be read.
    async fn sort(&mut self, deliveries: Vec<Delivery<Q::Receipt>>) -> Result<InHand<Q::Receipt>, ProjectorError> {
        let mut in_hand = InHand { ids: Vec::new(), events: Vec::new(), receipts: Vec::new() };
        let (mut passed, mut unreadable) = (Vec::new(), Vec::new());
        for Delivery { id, receipt, content } in deliveries {
            match content {
                Ok(Some(event)) => in_hand.push(id, event, receipt),
                Ok(None) => passed.push(receipt),
                Err(message) => unreadable.push((id, receipt, message)),
            }
        }
        if !passed.is_empty() {
            self.queue.acknowledge(&passed).await?;
        }
        for (id, receipt, message) in unreadable {
            let place = self.queue.place(&receipt);
            self.failed(&id, &receipt, &ProjectorError::MessageUnreadable { place, message }).await?;
        }
        Ok(in_hand)
    }

    async fn handle(
        &mut self,
        mut in_hand: InHand<Q::Receipt>,
        stop: &watch::Receiver<bool>,
    ) -> Result<(), ProjectorError> {
        let mut renewed = Instant::now();
        while !in_hand.ids.is_empty() {
            if *stop.borrow() {
                return self.queue.put_back(&in_hand.receipts, Duration::ZERO).await;
            }
            let count = self.size.now().min(in_hand.ids.len());
            let outcome = {
                let mut handling = std::pin::pin!(self.inbox.handle(&in_hand.ids[..count], &in_hand.events[..count]));
                loop {
                    tokio::select! {
                        outcome = &mut handling => break outcome,
                        () = sleep_until(renewed + self.queue.renew_every()) => {
                            self.queue.renew(&in_hand.receipts).await?;
                            renewed = Instant::now();
                        }
                    }
                }
            };
            match outcome {
                Ok(done) => {
                    self.size.committed();
                    self.uncalled.handled(done);
                    self.queue.acknowledge(&in_hand.done(done)).await?;
                }
                Err(error) => self.not_committed(&mut in_hand, error).await?,
            }
        }
        Ok(())
    }

    async fn not_committed(
        &mut self,
        in_hand: &mut InHand<Q::Receipt>,
        error: ApplyError,
    ) -> Result<(), ProjectorError> {
        let (index, message) = match self.size.not_committed(error, rand::random())? {
            NotCommitted::Again => return Ok(()),
            NotCommitted::AgainAfter(pause) => {
                sleep(pause).await;
                return Ok(());
            }
            NotCommitted::Event { index, message, fault: _ } => (index, message),
        };
        self.size.no_contention();
        let Some((id, event, receipt)) = in_hand.remove(index) else { return Ok(()) };
        let place = self.queue.place(&receipt);
        let why = ProjectorError::MessageFailed { event_type: event.event_type, place, message };
        self.failed(&id, &receipt, &why).await
    }

    /// Gives a message back to be tried again later, and says why: in the log, and in the read store, from where the operator reads it.
    async fn failed(&mut self, id: &str, receipt: &Q::Receipt, why: &ProjectorError) -> Result<(), ProjectorError> {
        let why = why.to_string();
        let times = self.inbox.record_failure(id, &why).await?;
        if times == 0 {
            // It is handled, and only the acknowledgement was lost. That it cannot be read or handled any more is no matter.
            return self.queue.acknowledge(std::slice::from_ref(receipt)).await;
        }
        let pause = BACKOFF.pause(times - 1);
        tracing::error!(retry_in = ?pause, times, "{why}");
        self.queue.put_back(std::slice::from_ref(receipt), pause).await
    }

    async fn prune(&mut self) -> Result<(), ProjectorError> {
        if Instant::now() >= self.prune_at && !self.inbox.prune().await? {
            self.prune_at = Instant::now() + PRUNE_EVERY;
        }
        Ok(())
    }
}
