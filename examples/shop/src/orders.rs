//! Orders: what happens to them, and whom it is told. Each event goes to the event store and, in the same transaction, into the outbox for other teams; how an order
//! ended is told to its customer.

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_postgres::Transaction;

use crate::{
    event_store::{self, Appended, NewEvent, StoreError},
    outbox::{self, Destination, Message},
};

/// The topic in which other teams, and the Projection behind the search, read what happens to orders.
pub const TOPIC: &str = "shop.orders";
/// The queue of what customers are to be told.
pub const NOTIFICATIONS: &str = "shop.notifications";

/// An order as it was placed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Order {
    /// Chosen by whoever orders.
    pub id: String,
    /// Who orders.
    pub customer: String,
    /// Which product.
    pub sku: String,
    /// How many.
    pub quantity: i64,
    /// The price of all, when it was ordered.
    pub total_cents: i64,
    /// Where it goes.
    pub country: String,
}

/// What happens to an order.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "type", content = "data")]
#[allow(missing_docs)] // The names say it.
pub enum OrderEvent {
    OrderPlaced(Order),
    /// Its goods are set aside.
    OrderConfirmed {},
    OrderPaid {},
    OrderShipped {},
    /// It will not be shipped; what was done is being undone.
    OrderFailed {
        reason: String,
    },
    OrderRefunded {},
    OrderCancelled {
        reason: String,
    },
}

impl OrderEvent {
    /// What the customer is told, where it is the end.
    fn notification(&self, order: &Order) -> Option<String> {
        match self {
            Self::OrderShipped {} => Some(format!("{}: your order {} is on its way", order.customer, order.id)),
            Self::OrderCancelled { reason } => {
                Some(format!("{}: your order {} was cancelled: {reason}", order.customer, order.id))
            }
            _ => None,
        }
    }
}

/// The stream of an order's events.
#[must_use]
pub fn stream(order: &str) -> String {
    format!("order-{order}")
}

/// Appends an event to an order that is at this version, and puts what is to be told into the outbox.
///
/// # Errors
/// [`StoreError::Conflict`] when the order is at another version.
pub async fn record(
    transaction: &Transaction<'_>,
    order: &Order,
    version: i64,
    event: &OrderEvent,
) -> Result<Appended, StoreError> {
    let (stream, new) = (stream(&order.id), NewEvent::of(event)?);
    let appended = event_store::append(transaction, &stream, version, std::slice::from_ref(&new)).await?;
    let told = Message {
        id: format!("{stream}/{}", appended.version),
        destination: Destination::Kafka,
        address: TOPIC.to_owned(),
        key: stream.clone(),
        type_: new.type_,
        body: new.data,
    };
    outbox::put(transaction, &told).await?;
    if let Some(text) = event.notification(order) {
        let notification = Message {
            id: format!("{stream}/end"),
            destination: Destination::RabbitMq,
            address: NOTIFICATIONS.to_owned(),
            key: stream,
            type_: "Notification".to_owned(),
            body: json!({"order": order.id, "text": text}),
        };
        outbox::put(transaction, &notification).await?;
    }
    Ok(appended)
}
