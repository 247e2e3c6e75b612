//! Does the read model say what the events say? Every order once, every event handled once, sums equal; and how long events waited.
//!
//! [`compare`] is pure: it folds the events itself, so that a mistake in the projection's SQL, shards or checkpoints shows.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use anyhow::{Context, Result};
use demo::table::Missed;
use projectionist::api::HumanDuration;
use serde_json::Value;
use test_cluster::eventually_is;

use crate::shop::{SCHEMA, Shop};

/// How long the last events may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// One event as it is stored.
#[derive(Clone, Debug)]
struct Stored {
    position: i64,
    stream: String,
    type_: String,
    data: Value,
    /// Seconds since the epoch.
    recorded_at: f64,
}

/// One order, as the events say or as the read model says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Order {
    customer: String,
    status: String,
    items: i64,
    total_cents: i64,
}

/// What the comparison found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    events: usize,
    orders: usize,
    cents_written: i64,
    cents_read: i64,
    /// In words, one a difference.
    differences: Vec<String>,
    /// How long each handled event waited, in seconds, shortest first.
    waits: Vec<f64>,
}

impl Verdict {
    pub(crate) fn is_sound(&self) -> bool {
        self.differences.is_empty()
    }
}

/// Reads both sides and compares them.
pub(crate) async fn check(shop: &Shop<'_>, appended: u64) -> Result<Verdict> {
    let count = format!("select count(*) from {SCHEMA}.handled");
    let all = i64::try_from(appended)?;
    let what = format!("{appended} events are handled");
    let caught_up = eventually_is(
        PATIENCE,
        &what,
        |handled: &i64| *handled >= all,
        || async { Ok::<i64, tokio_postgres::Error>(shop.reads.query_one(&count, &[]).await?.get(0)) },
    );
    // Too few is a difference like others, and the comparison says which are missing.
    let late = caught_up.await.err();
    let events =
        "select position, stream, type, data, extract(epoch from recorded_at)::float8 from events order by position";
    let events: Vec<Stored> = (shop.events.query(events, &[]).await.context("reading the events")?.iter())
        .map(|row| Stored {
            position: row.get(0),
            stream: row.get(1),
            type_: row.get(2),
            data: row.get(3),
            recorded_at: row.get(4),
        })
        .collect();
    let orders = format!("select id, customer, status, items::bigint, total_cents from {SCHEMA}.order_summary");
    let orders: Vec<(String, Order)> = (shop.reads.query(&orders, &[]).await.context("reading the read model")?.iter())
        .map(|row| {
            (row.get(0), Order { customer: row.get(1), status: row.get(2), items: row.get(3), total_cents: row.get(4) })
        })
        .collect();
    let handled = format!("select position, extract(epoch from at)::float8 from {SCHEMA}.handled");
    let handled: HashMap<i64, f64> =
        shop.reads.query(&handled, &[]).await?.iter().map(|row| (row.get(0), row.get(1))).collect();
    let mut verdict = compare(&events, &orders, &handled);
    if events.len() as u64 != appended {
        verdict.differences.push(format!("{appended} events were appended, {} are stored", events.len()));
    }
    verdict.differences.extend(late.map(|error| format!("{error:#}")));
    Ok(verdict)
}

fn compare(events: &[Stored], orders: &[(String, Order)], handled: &HashMap<i64, f64>) -> Verdict {
    let expected = fold(events);
    let mut differences = Vec::new();
    let mut found: BTreeMap<&str, &Order> = BTreeMap::new();
    for (id, order) in orders {
        if found.insert(id, order).is_some() {
            differences.push(format!("{id} is in the read model twice"));
        }
        if !expected.contains_key(id.as_str()) {
            differences.push(format!("{id} is in the read model and in no event"));
        }
    }
    for (id, order) in &expected {
        match found.get(id) {
            None => differences.push(format!("{id} is missing in the read model")),
            Some(read) if *read != order => differences.push(format!("{id} is {read:?}; the events say {order:?}")),
            Some(_) => {}
        }
    }
    let mut waits = Vec::with_capacity(events.len());
    for event in events {
        match handled.get(&event.position) {
            Some(at) => waits.push((at - event.recorded_at).max(0.0)),
            None => differences.push(format!("the event at position {} was not handled", event.position)),
        }
    }
    if handled.len() > events.len() {
        differences.push(format!("{} events were handled, {} exist", handled.len(), events.len()));
    }
    waits.sort_by(f64::total_cmp);
    Verdict {
        events: events.len(),
        orders: expected.len(),
        cents_written: expected.values().map(|order| order.total_cents).sum(),
        cents_read: orders.iter().map(|(_, order)| order.total_cents).sum(),
        differences,
        waits,
    }
}

/// The read model that the events make, computed apart from the projection.
fn fold(events: &[Stored]) -> BTreeMap<&str, Order> {
    let mut orders: BTreeMap<&str, Order> = BTreeMap::new();
    for event in events {
        let order = orders.entry(event.stream.as_str()).or_default();
        let number = |key: &str| event.data.get(key).and_then(Value::as_i64).unwrap_or(0);
        match event.type_.as_str() {
            "OrderPlaced" => {
                order.customer = event.data.get("customer").and_then(Value::as_str).unwrap_or_default().to_owned();
                "placed".clone_into(&mut order.status);
            }
            "ItemAdded" => {
                order.items += number("quantity");
                order.total_cents += number("quantity") * number("price_cents");
            }
            "OrderPaid" => "paid".clone_into(&mut order.status),
            _ => {}
        }
    }
    orders
}

/// The verdict in words.
pub(crate) fn report(verdict: &Verdict, missed: &Missed, target: &HumanDuration) -> String {
    let seconds = target.0.as_secs_f64();
    let late = verdict.waits.iter().filter(|wait| **wait > seconds).count();
    let mut lines = vec![
        format!(
            "lag target {target}: missed for {:.0} s of {:.0} s, as the metric told{}",
            missed.above.as_secs_f64(),
            missed.of.as_secs_f64(),
            if missed.unknown.is_zero() {
                String::new()
            } else {
                format!(" (unknown for {:.0} s)", missed.unknown.as_secs_f64())
            }
        ),
        format!(
            "events that waited longer, as the read store told: {late} of {}; median wait {:.2} s, 99 % {:.1} s, longest {:.1} s",
            verdict.events,
            quantile(&verdict.waits, 0.5),
            quantile(&verdict.waits, 0.99),
            quantile(&verdict.waits, 1.0),
        ),
        format!(
            "write side: {} events, {} orders, {}; read side: {}",
            verdict.events,
            verdict.orders,
            money(verdict.cents_written),
            money(verdict.cents_read)
        ),
    ];
    if verdict.is_sound() {
        lines.push(
            "the read model equals the write side: every event handled once, every order once, all sums equal"
                .to_owned(),
        );
    } else {
        lines.push(format!("the read model DIFFERS in {} places:", verdict.differences.len()));
        lines.extend(verdict.differences.iter().take(20).map(|difference| format!("  {difference}")));
    }
    lines.join("\n")
}

fn money(cents: i64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).round() as usize).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load;

    /// What the load appends, as it would be stored.
    fn events(count: u64) -> Vec<Stored> {
        (0..count)
            .map(|number| {
                let event = load::event(number);
                Stored {
                    position: i64::try_from(number).unwrap() + 1,
                    stream: event.stream,
                    type_: event.type_.to_owned(),
                    data: event.data,
                    recorded_at: 100.0,
                }
            })
            .collect()
    }

    fn read_side(events: &[Stored]) -> (Vec<(String, Order)>, HashMap<i64, f64>) {
        let orders = fold(events).into_iter().map(|(id, order)| (id.to_owned(), order)).collect();
        (orders, events.iter().map(|event| (event.position, 101.5)).collect())
    }

    #[test]
    fn a_true_read_model_is_sound() {
        let events = events(64);
        let (orders, handled) = read_side(&events);
        let verdict = compare(&events, &orders, &handled);
        assert!(verdict.is_sound(), "{:?}", verdict.differences);
        assert_eq!((verdict.events, verdict.orders), (64, 16));
        assert!(verdict.cents_written > 0);
        assert_eq!(verdict.cents_written, verdict.cents_read);
        assert!((quantile(&verdict.waits, 0.5) - 1.5).abs() < 1e-9);
    }

    #[test]
    fn an_event_lost_an_event_twice_and_an_order_too_many_are_differences() {
        let events = events(64);
        let (orders, handled) = read_side(&events);

        let mut lost = handled.clone();
        lost.remove(&7);
        assert_eq!(compare(&events, &orders, &lost).differences, ["the event at position 7 was not handled"]);

        let mut twice = orders.clone();
        twice[3].1.total_cents *= 2;
        assert_eq!(compare(&events, &twice, &handled).differences.len(), 1);

        let mut invented = orders.clone();
        invented.push(("order-x".to_owned(), Order::default()));
        assert_eq!(compare(&events, &invented, &handled).differences, ["order-x is in the read model and in no event"]);

        assert_eq!(compare(&events, &orders[1..], &handled).differences.len(), 1);
    }

    #[test]
    fn the_report_says_what_differs() {
        let events = events(32);
        let (orders, handled) = read_side(&events);
        let verdict = compare(&events, &orders[1..], &handled);
        let target = HumanDuration(Duration::from_secs(1));
        let report = report(&verdict, &Missed::default(), &target);
        assert!(report.contains("DIFFERS in 1 places"), "{report}");
        assert!(report.contains("events that waited longer, as the read store told: 32 of 32"), "{report}");
    }
}
