//! The write side's load: orders, event by event, at a steady rate, then a burst, then quiet.
//!
//! Which event comes when is a pure function of its number, so that the checks need no memory of what was sent.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_postgres::Client;

use crate::Options;

/// Events of one order: placed, two items, paid.
const STEPS: u64 = 4;
/// Orders under way at once: their events alternate, as those of many customers do.
const AT_ONCE: u64 = 8;
/// How often what is due is appended.
const TICK: Duration = Duration::from_millis(50);

const APPEND: &str = "insert into events (stream, type, data) \
    select stream, type, data from unnest($1::text[], $2::text[], $3::jsonb[]) with ordinality as e (stream, type, data, n) order by n";

/// What the load does now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    Steady,
    Burst,
    Quiet,
    /// Nothing more comes.
    Over,
}

impl Phase {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Burst => "burst",
            Self::Quiet => "quiet",
            Self::Over => "over",
        }
    }
}

/// One event to append.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) stream: String,
    pub(crate) type_: &'static str,
    pub(crate) data: Value,
}

/// The event with this number, from 0.
pub(crate) fn event(number: u64) -> Event {
    let (block, place) = (number / (STEPS * AT_ONCE), number % (STEPS * AT_ONCE));
    let (order, step) = (block * AT_ONCE + place % AT_ONCE, place / AT_ONCE);
    let stream = format!("order-{order}");
    match step {
        0 => Event { stream, type_: "OrderPlaced", data: json!({"customer": format!("customer-{}", order % 97)}) },
        1 | 2 => {
            let (quantity, price) = (1 + (order + step) % 3, 199 + (order * 7 + step * 131) % 5_000);
            Event { stream, type_: "ItemAdded", data: json!({"quantity": quantity, "price_cents": price}) }
        }
        _ => Event { stream, type_: "OrderPaid", data: json!({}) },
    }
}

/// The first number at or after this one at which no order is half done.
fn whole_orders(number: u64) -> u64 {
    number.next_multiple_of(STEPS * AT_ONCE)
}

/// Runs all phases and returns how many events were appended. The quiet ends early when `no_more` says so.
pub(crate) async fn run(
    events: &Client,
    options: &Options,
    phase: &watch::Sender<Phase>,
    mut no_more: watch::Receiver<bool>,
) -> Result<u64> {
    let mut writer = Writer { events, appended: 0 };
    let score = [
        (Phase::Steady, options.steady_rate, options.steady_seconds),
        (Phase::Burst, options.burst_rate, options.burst_seconds),
    ];
    for (now, rate, seconds) in score {
        phase.send_replace(now);
        writer.append_at(rate, Duration::from_secs(seconds)).await?;
    }
    phase.send_replace(Phase::Quiet);
    tokio::select! {
        quiet = writer.append_at(options.quiet_rate, Duration::from_secs(options.quiet_seconds)) => quiet?,
        _ = no_more.wait_for(|enough| *enough) => {}
    }
    // An append may have been cut off above: what counts is what the table holds.
    writer.appended = stored(events).await?;
    writer.append_up_to(whole_orders(writer.appended)).await?;
    phase.send_replace(Phase::Over);
    Ok(writer.appended)
}

async fn stored(events: &Client) -> Result<u64> {
    let count: i64 = events.query_one("select count(*) from events", &[]).await.context("counting the events")?.get(0);
    Ok(u64::try_from(count)?)
}

struct Writer<'a> {
    events: &'a Client,
    appended: u64,
}

impl Writer<'_> {
    /// Appends steadily; what a slow database delays is made up for.
    async fn append_at(&mut self, rate: f64, duration: Duration) -> Result<()> {
        let (started, before) = (Instant::now(), self.appended);
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            let elapsed = started.elapsed().min(duration);
            self.append_up_to(before + whole(elapsed.as_secs_f64() * rate)).await?;
            if elapsed == duration {
                return Ok(());
            }
        }
    }

    /// Appends the events up to, not including, this number, in one statement.
    async fn append_up_to(&mut self, end: u64) -> Result<()> {
        if end <= self.appended {
            return Ok(());
        }
        let due: Vec<Event> = (self.appended..end).map(event).collect();
        let streams: Vec<&str> = due.iter().map(|event| event.stream.as_str()).collect();
        let types: Vec<&str> = due.iter().map(|event| event.type_).collect();
        let data: Vec<&Value> = due.iter().map(|event| &event.data).collect();
        self.events.execute(APPEND, &[&streams, &types, &data]).await.context("appending events")?;
        self.appended = end;
        Ok(())
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(count: f64) -> u64 {
    count.floor().max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_order_is_placed_filled_and_paid_in_this_order() {
        let mut orders: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for event in (0..STEPS * AT_ONCE * 5).map(event) {
            orders.entry(event.stream).or_default().push(event.type_);
        }
        assert_eq!(orders.len() as u64, AT_ONCE * 5);
        for (stream, types) in orders {
            assert_eq!(types, ["OrderPlaced", "ItemAdded", "ItemAdded", "OrderPaid"], "{stream}");
        }
    }

    #[test]
    fn orders_are_under_way_side_by_side() {
        let streams: Vec<String> = (0..AT_ONCE).map(|number| event(number).stream).collect();
        assert_eq!(streams.iter().collect::<std::collections::BTreeSet<_>>().len() as u64, AT_ONCE);
    }

    #[test]
    fn the_load_ends_with_whole_orders() {
        assert_eq!((whole_orders(0), whole_orders(1), whole_orders(32), whole_orders(33)), (0, 32, 32, 64));
    }
}
