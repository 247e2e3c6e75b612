//! The services that take part in an order's saga. In a real shop the payment service and the carrier are somebody else's, behind HTTP with an idempotency key; here
//! they are tables that answer the same way: the first answer counts, however often they are asked.

use thiserror::Error;

use crate::{
    catalogue::{self, ProductEvent},
    database::{ConnectError, Pool},
    event_store::{self, NewEvent, StoreError},
    orders::Order,
    saga::{Outcome, Participants, Step},
};

/// No customer's credit is larger.
pub const CREDIT_CENTS: i64 = 100_000;
/// The carrier does not go there.
pub const OUT_OF_REACH: &str = "Atlantis";
/// How often a reservation is decided again when another order came between.
const ATTEMPTS: u32 = 50;

/// Why a service cannot be asked.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Its database refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<tokio_postgres::Error> for ServiceError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Stock, payments and shipments.
#[derive(Clone)]
pub struct Services {
    pool: Pool,
}

impl Services {
    /// Services that keep what they know in this database.
    #[must_use]
    pub fn new(pool: Pool) -> Self {
        Self { pool }
    }

    /// Decides about a product's stock; the events of the product are what was decided before.
    async fn stock(
        &self,
        order: &Order,
        decide: impl Fn(&[ProductEvent]) -> Option<ProductEvent>,
    ) -> Result<Vec<ProductEvent>, ServiceError> {
        let mut client = self.pool.get().await?;
        let stream = catalogue::stream(&order.sku);
        let mut attempt = 1;
        loop {
            let transaction = client.transaction().await?;
            let product = event_store::read(&transaction, &stream).await?;
            let mut events: Vec<ProductEvent> = product.decode()?;
            let Some(event) = decide(&events) else { return Ok(events) };
            match event_store::append(&transaction, &stream, product.version, &[NewEvent::of(&event)?]).await {
                Err(StoreError::Conflict { .. }) if attempt < ATTEMPTS => attempt += 1,
                appended => {
                    appended?;
                    transaction.commit().await?;
                    events.push(event);
                    return Ok(events);
                }
            }
        }
    }

    async fn reserve(&self, order: &Order) -> Result<Outcome, ServiceError> {
        let events = self.stock(order, |events| {
            let available = catalogue::fold(events).map_or(0, |product| product.available);
            if decided(events, &order.id).is_some() {
                None
            } else if available >= order.quantity {
                Some(ProductEvent::StockReserved {
                    sku: order.sku.clone(),
                    order: order.id.clone(),
                    quantity: order.quantity,
                })
            } else {
                // Noted as well: who asks again must not get another answer when there is stock by then.
                Some(ProductEvent::ReservationRefused { sku: order.sku.clone(), order: order.id.clone() })
            }
        });
        Ok(match decided(&events.await?, &order.id) {
            Some(true) => Outcome::Done,
            _ => Outcome::Refused("out of stock".to_owned()),
        })
    }

    async fn release(&self, order: &Order) -> Result<Outcome, ServiceError> {
        let is_released =
            |event: &ProductEvent| matches!(event, ProductEvent::StockReleased { order: of, .. } if *of == order.id);
        self.stock(order, |events| {
            let released = events.iter().any(is_released);
            (decided(events, &order.id) == Some(true) && !released).then(|| ProductEvent::StockReleased {
                sku: order.sku.clone(),
                order: order.id.clone(),
                quantity: order.quantity,
            })
        })
        .await?;
        Ok(Outcome::Done)
    }

    async fn charge(&self, order: &Order) -> Result<Outcome, ServiceError> {
        const CHARGE: &str =
            "insert into charges (order_id, cents, accepted) values ($1, $2, $3) on conflict do nothing";
        let client = self.pool.get().await?;
        client.execute(CHARGE, &[&order.id, &order.total_cents, &(order.total_cents <= CREDIT_CENTS)]).await?;
        let first = client.query_one("select accepted from charges where order_id = $1", &[&order.id]).await?;
        Ok(done_or(first.get(0), "the payment was refused"))
    }

    async fn refund(&self, order: &Order) -> Result<Outcome, ServiceError> {
        const REFUND: &str =
            "update charges set refunded_at = now() where order_id = $1 and accepted and refunded_at is null";
        self.pool.get().await?.execute(REFUND, &[&order.id]).await?;
        Ok(Outcome::Done)
    }

    async fn ship(&self, order: &Order) -> Result<Outcome, ServiceError> {
        const SHIP: &str =
            "insert into shipments (order_id, country, accepted) values ($1, $2, $3) on conflict do nothing";
        let client = self.pool.get().await?;
        client.execute(SHIP, &[&order.id, &order.country, &(order.country != OUT_OF_REACH)]).await?;
        let first = client.query_one("select accepted from shipments where order_id = $1", &[&order.id]).await?;
        Ok(done_or(first.get(0), "the carrier does not go there"))
    }
}

/// Whether an order has its goods; none where that was not decided yet.
fn decided(events: &[ProductEvent], id: &str) -> Option<bool> {
    events.iter().find_map(|event| match event {
        ProductEvent::StockReserved { order, .. } if order == id => Some(true),
        ProductEvent::ReservationRefused { order, .. } if order == id => Some(false),
        _ => None,
    })
}

fn done_or(accepted: bool, refusal: &str) -> Outcome {
    if accepted { Outcome::Done } else { Outcome::Refused(refusal.to_owned()) }
}

impl Participants for Services {
    type Error = ServiceError;

    async fn perform(&self, step: Step, order: &Order) -> Result<Outcome, ServiceError> {
        match step {
            Step::Reserve => self.reserve(order).await,
            Step::Charge => self.charge(order).await,
            Step::Ship => self.ship(order).await,
            Step::Refund => self.refund(order).await,
            Step::Release => self.release(order).await,
        }
    }
}
