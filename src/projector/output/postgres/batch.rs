//! Runs the handlers of one batch of events inside a transaction that its caller commits.
//!
//! Statements are sent without waiting for each other's answers, in the order of the events, so that a batch costs the network a few round
//! trips and not one an event. How many at once depends on how long they take, so that a batch of slow handlers can be cut short soon.

use std::{collections::VecDeque, time::Duration};

use futures::future::maybe_done;
use tokio::time::Instant;
use tokio_postgres::{Client, Error};

use super::{super::super::event::Event, handlers::Handlers};

/// A transaction is committed after this long even if events of the batch are left: others wait for the locks it holds, and the checkpoint shows how
/// far it has come.
const SLICE: Duration = Duration::from_millis(500);
/// What is sent at once should take about this long.
const CHUNK: Duration = Duration::from_millis(50);
const LARGEST_CHUNK: f64 = 500.0;
/// The time of one handler until it is known.
const FIRST_GUESS: Duration = Duration::from_millis(2);

/// How long a handler takes, learnt from batch to batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandlerTime {
    per_event: f64,
}

impl Default for HandlerTime {
    fn default() -> Self {
        Self { per_event: FIRST_GUESS.as_secs_f64() }
    }
}

impl HandlerTime {
    /// How many events to send at once.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn chunk(self) -> usize {
        // Within 1 and the largest, so that nothing is lost.
        (CHUNK.as_secs_f64() / self.per_event.max(1e-6)).clamp(1.0, LARGEST_CHUNK) as usize
    }

    fn learn(&mut self, events: usize, took: Duration) {
        let events = u32::try_from(events.max(1)).unwrap_or(u32::MAX);
        let seen = took.as_secs_f64() / f64::from(events);
        // A slower time counts at once, a faster one little by little: what is sent cannot be taken back.
        self.per_event = if seen > self.per_event { seen } else { 0.5 * (seen + self.per_event) };
    }
}

/// A handler failed.
#[derive(Debug)]
pub(super) struct Failed {
    /// Which event's, by its index in the batch; the batch's first when the transaction could not begin.
    pub(super) index: usize,
    /// Why.
    pub(super) error: Error,
}

/// Whose matter it is to begin the transaction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Transaction {
    /// It is begun together with the first handlers, in the same round trip.
    ToBegin,
    /// It has begun.
    Begun,
}

/// Begins a transaction, unless that is done, and runs the handlers of `events` in order until all are done, time is up or `hurry` says so. Returns how many were
/// run: at least one, if there is one. On failure the transaction is still open.
pub(super) async fn run(
    client: &Client,
    handlers: &Handlers,
    events: &[Event],
    (transaction, handler_time): (Transaction, &mut HandlerTime),
    hurry: impl Fn() -> bool,
) -> Result<usize, Failed> {
    let started = Instant::now();
    let mut done = 0;
    while done < events.len() {
        let chunk = events.get(done..).unwrap_or_default();
        let chunk = chunk.get(..handler_time.chunk().min(chunk.len())).unwrap_or_default();
        let began = Instant::now();
        send(client, handlers, chunk, transaction == Transaction::ToBegin && done == 0)
            .await
            .map_err(|failed| Failed { index: done + failed.index, ..failed })?;
        handler_time.learn(chunk.len(), began.elapsed());
        done += chunk.len();
        if started.elapsed() > SLICE || hurry() {
            break;
        }
    }
    Ok(done)
}

async fn send(client: &Client, handlers: &Handlers, events: &[Event], begin: bool) -> Result<(), Failed> {
    let mut begun = Box::pin(maybe_done(async {
        if begin { client.batch_execute("begin isolation level read committed").await } else { Ok(()) }
    }));
    // A statement is on its way once its future has been polled: this, and not the order of waiting, is the order on the server.
    let _ = futures::poll!(begun.as_mut());
    let mut sent = VecDeque::with_capacity(events.len());
    for (index, event) in events.iter().enumerate() {
        let Some((statement, values)) = handlers.bind(event) else { continue };
        let mut running = Box::pin(maybe_done(client.execute_raw(statement, values)));
        let _ = futures::poll!(running.as_mut());
        sent.push_back((index, running));
    }
    begun.as_mut().await;
    if let Some(Err(error)) = begun.as_mut().take_output() {
        return Err(Failed { index: 0, error });
    }
    while let Some((index, mut running)) = sent.pop_front() {
        running.as_mut().await;
        if let Some(Err(error)) = running.as_mut().take_output() {
            // Those after it fail because of it.
            return Err(Failed { index, error });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_handlers_are_sent_one_by_one_and_quick_ones_by_the_hundred() {
        let mut handler_time = HandlerTime::default();
        assert_eq!(handler_time.chunk(), 25);
        handler_time.learn(25, Duration::from_secs(5));
        assert_eq!(handler_time.chunk(), 1);
        for _ in 0..30 {
            handler_time.learn(100, Duration::from_millis(3));
        }
        assert_eq!(handler_time.chunk(), 500);
    }
}
