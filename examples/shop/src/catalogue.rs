//! Products: their prices, and what is in stock. A product's stream also has who reserved what, so that two orders cannot both get the last one.

use serde::{Deserialize, Serialize};

use crate::{
    command_bus::{Command, Decision, Handler},
    event_store::{self, NewEvent, StoreError},
};
use tokio_postgres::Transaction;

/// The most that one order or delivery may be of.
pub const MOST: i64 = 1_000_000;

/// What happens to a product.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "type", content = "data")]
#[allow(missing_docs)] // The names say it.
pub enum ProductEvent {
    ProductAdded { sku: String, name: String, price_cents: i64 },
    PriceChanged { sku: String, price_cents: i64 },
    StockDelivered { sku: String, quantity: i64 },
    StockReserved { sku: String, order: String, quantity: i64 },
    ReservationRefused { sku: String, order: String },
    StockReleased { sku: String, order: String, quantity: i64 },
}

/// A product, as its events make it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Product {
    /// What it is called.
    pub name: String,
    /// What one costs.
    pub price_cents: i64,
    /// How many nobody has reserved.
    pub available: i64,
}

/// Folds a product's events; none where it was never added.
#[must_use]
pub fn fold(events: &[ProductEvent]) -> Option<Product> {
    events.iter().fold(None, |product: Option<Product>, event| match (product, event) {
        (None, ProductEvent::ProductAdded { name, price_cents, .. }) => {
            Some(Product { name: name.clone(), price_cents: *price_cents, available: 0 })
        }
        (Some(product), ProductEvent::PriceChanged { price_cents, .. }) => {
            Some(Product { price_cents: *price_cents, ..product })
        }
        (
            Some(product),
            ProductEvent::StockDelivered { quantity, .. } | ProductEvent::StockReleased { quantity, .. },
        ) => Some(Product { available: product.available + quantity, ..product }),
        (Some(product), ProductEvent::StockReserved { quantity, .. }) => {
            Some(Product { available: product.available - quantity, ..product })
        }
        (product, _) => product,
    })
}

/// The stream of a product's events.
#[must_use]
pub fn stream(sku: &str) -> String {
    format!("product-{sku}")
}

/// Offers a product.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // As in the event.
pub struct AddProduct {
    pub sku: String,
    pub name: String,
    pub price_cents: i64,
    /// How many there are at first.
    pub stock: i64,
}

/// Asks another price from now on.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // As in the event.
pub struct ChangePrice {
    pub sku: String,
    pub price_cents: i64,
}

/// Puts more into stock.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // As in the event.
pub struct DeliverStock {
    pub sku: String,
    pub quantity: i64,
}

/// Checks that a number is in its bounds.
pub(crate) fn within(field: &str, value: i64, least: i64) -> Result<(), String> {
    if (least..=MOST).contains(&value) { Ok(()) } else { Err(format!("{field} must be {least} to {MOST}")) }
}

/// Checks that a text can be part of a stream's name, a key in Redis and a path.
pub(crate) fn word(field: &str, value: &str) -> Result<(), String> {
    let plain = |character: char| character.is_ascii_alphanumeric() || character == '-';
    if (1..=64).contains(&value.len()) && value.chars().all(plain) {
        Ok(())
    } else {
        Err(format!("{field} must be 1 to 64 letters, digits and hyphens"))
    }
}

impl Command for AddProduct {
    const NAME: &'static str = "AddProduct";

    fn validate(&self) -> Result<(), String> {
        word("sku", &self.sku)?;
        within("price_cents", self.price_cents, 1)?;
        within("stock", self.stock, 0)
    }
}

impl Command for ChangePrice {
    const NAME: &'static str = "ChangePrice";

    fn validate(&self) -> Result<(), String> {
        word("sku", &self.sku)?;
        within("price_cents", self.price_cents, 1)
    }
}

impl Command for DeliverStock {
    const NAME: &'static str = "DeliverStock";

    fn validate(&self) -> Result<(), String> {
        word("sku", &self.sku)?;
        within("quantity", self.quantity, 1)
    }
}

/// Handles the commands about products.
#[derive(Clone, Copy, Debug)]
pub struct Catalogue;

impl Handler<AddProduct> for Catalogue {
    async fn handle(&self, command: &AddProduct, transaction: &Transaction<'_>) -> Result<Decision, StoreError> {
        let AddProduct { sku, name, price_cents, stock } = command.clone();
        let stream = stream(&sku);
        if event_store::read(transaction, &stream).await?.version > 0 {
            return Ok(Decision::refused(format!("the product {sku} is there already")));
        }
        let delivered = ProductEvent::StockDelivered { sku: sku.clone(), quantity: stock };
        let events = [NewEvent::of(&ProductEvent::ProductAdded { sku, name, price_cents })?, NewEvent::of(&delivered)?];
        Ok(event_store::append(transaction, &stream, 0, &events).await?.into())
    }
}

impl Handler<ChangePrice> for Catalogue {
    async fn handle(&self, command: &ChangePrice, transaction: &Transaction<'_>) -> Result<Decision, StoreError> {
        let ChangePrice { sku, price_cents } = command.clone();
        append_to(transaction, &ProductEvent::PriceChanged { sku: sku.clone(), price_cents }, &sku).await
    }
}

impl Handler<DeliverStock> for Catalogue {
    async fn handle(&self, command: &DeliverStock, transaction: &Transaction<'_>) -> Result<Decision, StoreError> {
        let DeliverStock { sku, quantity } = command.clone();
        append_to(transaction, &ProductEvent::StockDelivered { sku: sku.clone(), quantity }, &sku).await
    }
}

/// Appends to a product that must be there.
async fn append_to(transaction: &Transaction<'_>, event: &ProductEvent, sku: &str) -> Result<Decision, StoreError> {
    let stream = stream(sku);
    match event_store::read(transaction, &stream).await?.version {
        0 => Ok(Decision::refused(format!("there is no product {sku}"))),
        version => Ok(event_store::append(transaction, &stream, version, &[NewEvent::of(event)?]).await?.into()),
    }
}
