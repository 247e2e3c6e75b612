//! Do the read models say what the events say, is every order at its end, and was every customer told once?
//!
//! [`expected`] folds the events apart from the Projections, so that a mistake in a handler, a shard or a checkpoint shows; [`found`] reads what the read models have;
//! [`compare`] says in words where they differ.

pub mod expected;
pub mod found;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use expected::Expected;
use found::{Found, FoundError, Sources};

/// How often read models that are behind are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Compares until nothing differs, and for no longer than `patience`: read models are behind by a moment. Returns what was expected, and what differed last.
///
/// # Errors
/// When the events or a read model cannot be read.
pub async fn check(sources: &Sources, patience: Duration) -> Result<(Expected, Vec<String>), FoundError> {
    let until = Instant::now() + patience;
    loop {
        let expected = sources.expected().await?;
        let differences = compare(&expected, &sources.found().await?);
        if differences.is_empty() || Instant::now() > until {
            return Ok((expected, differences));
        }
        sleep(EVERY).await;
    }
}

/// What differs, one sentence each.
#[must_use]
pub fn compare(expected: &Expected, found: &Found) -> Vec<String> {
    let mut differences = Vec::new();
    tables("the order summary", &expected.orders, &found.summaries, &mut differences);
    tables("the product cards", &expected.products, &found.cards, &mut differences);
    tables("the order search", &expected.searchable(), &found.searchable, &mut differences);
    for (order, summary) in &expected.orders {
        let told = found.told.get(order).copied().unwrap_or(0);
        let due = i64::from(summary.has_ended());
        if told != due {
            differences.push(format!("of {order} its customer was told {told} times, and not {due}"));
        }
    }
    let strangers = found.told.keys().filter(|order| !expected.orders.contains_key(*order));
    differences.extend(strangers.map(|order| format!("a customer was told of {order}, which nobody has placed")));
    differences.extend(found.open_sagas.iter().map(|order| format!("the saga of {order} has not ended")));
    let unended = expected.orders.iter().filter(|(_, summary)| !summary.has_ended());
    differences.extend(unended.map(|(order, summary)| format!("{order} has not ended: it is {}", summary.status)));
    for (order, summary) in &expected.orders {
        let paid = found.paid.contains(order);
        if summary.has_ended() && paid != (summary.status == "shipped") {
            differences.push(format!("{order} is {}, and {}", summary.status, if paid { "paid" } else { "not paid" }));
        }
    }
    if found.unsent > 0 {
        differences.push(format!("{} messages are still in the outbox", found.unsent));
    }
    differences
}

fn tables<T: Debug + PartialEq>(
    read_model: &str,
    expected: &BTreeMap<String, T>,
    found: &BTreeMap<String, T>,
    differences: &mut Vec<String>,
) {
    for (id, expected) in expected {
        match found.get(id) {
            None => differences.push(format!("{read_model} lacks {id}")),
            Some(found) if found != expected => {
                differences.push(format!("{read_model} has {id} as {found:?}; the events say {expected:?}"));
            }
            Some(_) => {}
        }
    }
    let invented = found.keys().filter(|id| !expected.contains_key(*id));
    differences.extend(invented.map(|id| format!("{read_model} has {id}, which is in no event")));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{expected::Event, *};

    fn events() -> Vec<Event> {
        let event = |stream: &str, type_: &str, data| Event { stream: stream.into(), type_: type_.into(), data };
        let order = json!({"id": "7", "customer": "ada", "sku": "book", "quantity": 2, "total_cents": 200, "country": "Portugal"});
        vec![
            event("product-book", "ProductAdded", json!({"sku": "book", "name": "Book", "price_cents": 100})),
            event("product-book", "StockDelivered", json!({"sku": "book", "quantity": 10})),
            event("order-7", "OrderPlaced", order),
            event("product-book", "StockReserved", json!({"sku": "book", "order": "7", "quantity": 2})),
            event("order-7", "OrderConfirmed", json!({})),
            event("order-7", "OrderPaid", json!({})),
            event("order-7", "OrderShipped", json!({})),
        ]
    }

    /// What true read models have.
    fn found(expected: &Expected) -> Found {
        Found {
            summaries: expected.orders.clone(),
            cards: expected.products.clone(),
            searchable: expected.searchable(),
            told: BTreeMap::from([("7".to_owned(), 1)]),
            open_sagas: Vec::new(),
            paid: ["7".to_owned()].into(),
            unsent: 0,
        }
    }

    #[test]
    fn true_read_models_differ_in_nothing() {
        let expected = Expected::of(&events()).unwrap();
        assert_eq!(expected.products["book"].available, 8);
        assert_eq!((expected.orders["7"].status.as_str(), expected.orders["7"].changes), ("shipped", 4));
        assert_eq!(compare(&expected, &found(&expected)), Vec::<String>::new());
    }

    #[test]
    fn an_order_whose_events_stop_short_is_told_although_no_saga_is_open() {
        let mut cut = events();
        cut.truncate(6);
        let expected = Expected::of(&cut).unwrap();
        let found = Found { told: BTreeMap::new(), ..found(&expected) };
        assert_eq!(compare(&expected, &found), ["7 has not ended: it is paid"]);
    }

    #[test]
    fn whatever_is_lost_doubled_invented_or_unfinished_is_told() {
        let expected = Expected::of(&events()).unwrap();
        type Spoil = fn(&mut Found);
        let cases: [(&str, Spoil); 11] = [
            ("the order summary lacks 7", |found| found.summaries.clear()),
            ("the order summary has 7 as", |found| found.summaries.values_mut().for_each(|order| order.changes += 1)),
            ("the order summary has 8, which is in no event", |found| {
                found.summaries.insert("8".to_owned(), found.summaries["7"].clone());
            }),
            ("the product cards has book as", |found| found.cards.values_mut().for_each(|card| card.available -= 2)),
            ("the order search lacks 7", |found| found.searchable.clear()),
            ("the order search has 7 as", |found| {
                found.searchable.values_mut().for_each(|order| order.total_cents -= 1);
            }),
            ("of 7 its customer was told 2 times, and not 1", |found| *found.told.get_mut("7").unwrap() = 2),
            ("of 7 its customer was told 0 times, and not 1", |found| found.told.clear()),
            ("the saga of 7 has not ended", |found| found.open_sagas.push("7".to_owned())),
            ("7 is shipped, and not paid", |found| found.paid.clear()),
            ("3 messages are still in the outbox", |found| found.unsent = 3),
        ];
        for (words, spoil) in cases {
            let mut found = found(&expected);
            spoil(&mut found);
            let differences = compare(&expected, &found);
            assert!(differences.len() == 1 && differences[0].starts_with(words), "{words}: {differences:?}");
        }
    }
}
