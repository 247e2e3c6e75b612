//! The read models as the events make them, computed apart from the Projections.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{catalogue::ProductEvent, orders::OrderEvent};

/// An event as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Which stream.
    pub stream: String,
    /// What happened.
    pub type_: String,
    /// With which details.
    pub data: Value,
}

/// An order, as the order summary has it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[allow(missing_docs)] // As in the order.
pub struct Summary {
    pub customer: String,
    pub sku: String,
    pub quantity: i64,
    pub total_cents: i64,
    pub status: String,
    pub reason: Option<String>,
    /// How many of its events were handled: one that came twice shows.
    pub changes: i64,
}

/// A product, as its card has it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[allow(missing_docs)] // As in the event.
pub struct Card {
    pub name: String,
    pub price_cents: i64,
    pub available: i64,
    /// As of an order.
    pub changes: i64,
}

/// An order, as the search has it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[allow(missing_docs)] // As in the order.
pub struct Searchable {
    pub customer: String,
    pub sku: String,
    pub country: String,
    pub total_cents: i64,
    pub status: String,
}

/// What the read models should have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expected {
    /// How many events there are.
    pub events: usize,
    /// By the orders' identities.
    pub orders: BTreeMap<String, Summary>,
    /// By the products' identities.
    pub products: BTreeMap<String, Card>,
    /// Where orders go.
    countries: BTreeMap<String, String>,
}

impl Summary {
    /// Whether nothing more happens to it.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.status.as_str(), "shipped" | "cancelled")
    }
}

impl Expected {
    /// Folds all events, which are in order.
    ///
    /// # Errors
    /// When an event is none of the shop's.
    pub fn of(events: &[Event]) -> Result<Self, serde_json::Error> {
        let mut expected = Self { events: events.len(), ..Self::default() };
        for Event { stream, type_, data } in events {
            let event = json!({"type": type_, "data": data});
            match stream.strip_prefix("order-") {
                Some(id) => expected.order(id, serde_json::from_value(event)?),
                None => expected.product(serde_json::from_value(event)?),
            }
        }
        Ok(expected)
    }

    /// The search is made of the same events as the summary.
    #[must_use]
    pub fn searchable(&self) -> BTreeMap<String, Searchable> {
        let searchable = |(id, order): (&String, &Summary)| {
            let country = self.countries.get(id).cloned().unwrap_or_default();
            let Summary { customer, sku, total_cents, status, .. } = order.clone();
            (id.clone(), Searchable { customer, sku, country, total_cents, status })
        };
        self.orders.iter().map(searchable).collect()
    }

    fn order(&mut self, id: &str, event: OrderEvent) {
        let summary = self.orders.entry(id.to_owned()).or_default();
        summary.changes += 1;
        let (status, reason) = match event {
            OrderEvent::OrderPlaced(order) => {
                self.countries.insert(order.id, order.country);
                (summary.customer, summary.sku) = (order.customer, order.sku);
                (summary.quantity, summary.total_cents) = (order.quantity, order.total_cents);
                ("placed", None)
            }
            OrderEvent::OrderConfirmed {} => ("confirmed", None),
            OrderEvent::OrderPaid {} => ("paid", None),
            OrderEvent::OrderShipped {} => ("shipped", None),
            OrderEvent::OrderFailed { reason } => ("failing", Some(reason)),
            OrderEvent::OrderRefunded {} => ("refunded", summary.reason.take()),
            OrderEvent::OrderCancelled { reason } => ("cancelled", Some(reason)),
        };
        status.clone_into(&mut summary.status);
        summary.reason = reason;
    }

    fn product(&mut self, event: ProductEvent) {
        let sku = match &event {
            ProductEvent::ProductAdded { sku, .. }
            | ProductEvent::PriceChanged { sku, .. }
            | ProductEvent::StockDelivered { sku, .. }
            | ProductEvent::StockReserved { sku, .. }
            | ProductEvent::ReservationRefused { sku, .. }
            | ProductEvent::StockReleased { sku, .. } => sku.clone(),
        };
        let card = self.products.entry(sku).or_default();
        card.changes += 1;
        match event {
            ProductEvent::ProductAdded { name, price_cents, .. } => (card.name, card.price_cents) = (name, price_cents),
            ProductEvent::PriceChanged { price_cents, .. } => card.price_cents = price_cents,
            ProductEvent::StockDelivered { quantity, .. } | ProductEvent::StockReleased { quantity, .. } => {
                card.available += quantity;
            }
            ProductEvent::StockReserved { quantity, .. } => card.available -= quantity,
            ProductEvent::ReservationRefused { .. } => {}
        }
    }
}
