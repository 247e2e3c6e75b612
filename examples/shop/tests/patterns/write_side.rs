//! A database of a test's own, with the shop's tables, on one server for all tests.

use std::{
    num::NonZeroUsize,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::Result;
use serde_json::{Value, json};
use shop::{
    catalogue::{self, Product},
    checkout,
    command_bus::{CommandBus, Decision},
    database::{Database, Pool},
    event_store,
    participants::Services,
};
use test_cluster::Postgres;
use tokio_postgres::Client;

const SCHEMA: &str = include_str!("../../schema.sql");

static SERVER: LazyLock<Postgres> = LazyLock::new(|| Postgres::on_loopback().unwrap());
static COUNT: AtomicU32 = AtomicU32::new(0);

/// The write side.
pub struct WriteSide {
    pub database: Database,
    pub client: Client,
    pub bus: CommandBus,
}

impl WriteSide {
    pub async fn open() -> Result<Self> {
        let name = format!("shop_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Self::of(Database::new(&SERVER.create_database(&name).await?, None)?).await
    }

    /// The same in an empty database elsewhere.
    pub async fn of(database: Database) -> Result<Self> {
        let client = database.connect().await?;
        client.batch_execute(SCHEMA).await?;
        Ok(Self { database, client, bus: checkout::commands()? })
    }

    /// As if nothing had happened.
    pub async fn clear(&self) -> Result<()> {
        let tables = "events, idempotency_keys, outbox, sagas, charges, shipments, notifications";
        Ok(self.client.batch_execute(&format!("truncate {tables} restart identity")).await?)
    }

    pub fn services(&self) -> Services {
        Services::new(Pool::new(self.database.clone(), NonZeroUsize::new(3).unwrap()))
    }

    pub async fn execute(&mut self, key: &str, command: &str, body: &Value) -> Result<Decision> {
        Ok(checkout::execute(&self.bus, &mut self.client, key, command, body).await?)
    }

    /// A product of which there are so many, for 100.00 each.
    pub async fn product(&mut self, sku: &str, stock: i64) -> Result<()> {
        let body = json!({"sku": sku, "name": "A thing", "price_cents": 10_000, "stock": stock});
        let decision = self.execute(&format!("add-{sku}"), "AddProduct", &body).await?;
        anyhow::ensure!(matches!(decision, Decision::Accepted { .. }), "{decision:?}");
        Ok(())
    }

    pub async fn order(&mut self, id: &str, sku: &str, quantity: i64, country: &str) -> Result<Decision> {
        self.execute(&format!("place-{id}"), "PlaceOrder", &order(id, sku, quantity, country)).await
    }

    pub async fn number(&self, query: &str) -> Result<i64> {
        Ok(self.client.query_one(query, &[]).await?.get(0))
    }

    pub async fn stock_of(&self, sku: &str) -> Result<Product> {
        let events = event_store::read(&self.client, &catalogue::stream(sku)).await?.decode()?;
        Ok(catalogue::fold(&events).unwrap())
    }
}

pub fn order(id: &str, sku: &str, quantity: i64, country: &str) -> Value {
    json!({"id": id, "customer": "ada", "sku": sku, "quantity": quantity, "country": country})
}
