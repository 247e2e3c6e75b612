//! Where the patterns of the write side meet: one transaction takes the idempotency key, has the command decided about, appends its events, puts messages into the
//! outbox and begins the saga. It is committed as a whole; when another writer was faster, everything is decided again.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;
use tokio_postgres::{Client, Transaction};

use crate::{
    catalogue::{self, AddProduct, Catalogue, ChangePrice, DeliverStock},
    command_bus::{Command, CommandBus, CommandError, Decision, Handler, SecondHandler},
    event_store::{self, StoreError},
    idempotency_key::{self, Claim, KeyError},
    orders::{self, Order, OrderEvent},
    saga,
};

/// How often a command is decided again when another writer was faster.
const ATTEMPTS: u32 = 10;

/// Orders something.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // As in the order.
pub struct PlaceOrder {
    pub id: String,
    pub customer: String,
    pub sku: String,
    pub quantity: i64,
    pub country: String,
}

impl Command for PlaceOrder {
    const NAME: &'static str = "PlaceOrder";

    fn validate(&self) -> Result<(), String> {
        catalogue::word("id", &self.id)?;
        catalogue::word("customer", &self.customer)?;
        catalogue::word("sku", &self.sku)?;
        catalogue::word("country", &self.country)?;
        catalogue::within("quantity", self.quantity, 1)
    }
}

/// Handles the commands about orders.
#[derive(Clone, Copy, Debug)]
pub struct Checkout;

impl Handler<PlaceOrder> for Checkout {
    async fn handle(&self, command: &PlaceOrder, transaction: &Transaction<'_>) -> Result<Decision, StoreError> {
        let PlaceOrder { id, customer, sku, quantity, country } = command.clone();
        if event_store::read(transaction, &orders::stream(&id)).await?.version > 0 {
            return Ok(Decision::refused(format!("the order {id} was placed already")));
        }
        let product = event_store::read(transaction, &catalogue::stream(&sku)).await?;
        let Some(product) = catalogue::fold(&product.decode()?) else {
            return Ok(Decision::refused(format!("there is no product {sku}")));
        };
        let order = Order { total_cents: product.price_cents * quantity, id, customer, sku, quantity, country };
        let appended = orders::record(transaction, &order, 0, &OrderEvent::OrderPlaced(order.clone())).await?;
        saga::begin(transaction, &order).await?;
        Ok(appended.into())
    }
}

/// All commands of the shop.
///
/// # Errors
/// When a command is in this list twice.
pub fn commands() -> Result<CommandBus, SecondHandler> {
    CommandBus::default()
        .with::<PlaceOrder, _>(Checkout)?
        .with::<AddProduct, _>(Catalogue)?
        .with::<ChangePrice, _>(Catalogue)?
        .with::<DeliverStock, _>(Catalogue)
}

/// Why a request was not answered.
#[derive(Debug, Error)]
pub enum ExecuteError {
    /// See there.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// See there.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The answer under the key is of another version of this program.
    #[error("the answer under this idempotency key cannot be read: {0}")]
    Answer(#[from] serde_json::Error),
}

impl From<tokio_postgres::Error> for ExecuteError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Command(CommandError::Store(error.into()))
    }
}

/// Does what a request asks for, once for each `key`, and commits. A request that is repeated with its key gets the decision of the first.
///
/// # Errors
/// When it cannot be decided: nothing has changed then, and the request can be repeated with the same key. After an error of the database while it commits that is not
/// known, and repeating it with the key is what tells.
pub async fn execute(
    bus: &CommandBus,
    client: &mut Client,
    key: &str,
    name: &str,
    body: &Value,
) -> Result<Decision, ExecuteError> {
    let mut attempt = 1;
    loop {
        match attempt_once(bus, client, key, name, body).await {
            Err(ExecuteError::Command(CommandError::Store(StoreError::Conflict { .. }))) if attempt < ATTEMPTS => {
                attempt += 1;
            }
            decided => return decided,
        }
    }
}

async fn attempt_once(
    bus: &CommandBus,
    client: &mut Client,
    key: &str,
    name: &str,
    body: &Value,
) -> Result<Decision, ExecuteError> {
    let transaction = client.transaction().await?;
    let request = json!({"command": name, "body": body});
    if let Claim::Answered(answer) = idempotency_key::claim(&transaction, key, &request).await? {
        return Ok(serde_json::from_value(answer)?);
    }
    // A refusal is an answer like another one, and kept. Handlers refuse before they append, so that there is nothing to take back.
    let decision = bus.dispatch(&transaction, name, body).await?;
    idempotency_key::answer(&transaction, key, &serde_json::to_value(&decision)?).await?;
    transaction.commit().await?;
    Ok(decision)
}
