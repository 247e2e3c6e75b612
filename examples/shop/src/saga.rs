//! An order goes through several services: stock is reserved, the customer charged, the parcel shipped. No transaction spans them, so the saga does one step after
//! the other and notes each; when one is refused, what was done is undone in reverse.
//!
//! ```text
//! Reserve ─▶ Charge ─▶ Ship ─▶ OrderShipped
//!    │          │        │
//!    │          │        └─▶ Refund ─▶ Release ─▶ OrderCancelled
//!    │          └─▶ Release ─▶ OrderCancelled
//!    └─▶ OrderCancelled
//! ```
//!
//! A worker may be killed between any two of: taking an order, asking a service, noting the outcome. The next one then asks the same service for the same step of
//! the same order again. So services must give the first answer to a question that is repeated ([`Participants`]), and an outcome is noted only where the order still
//! stands at that step. Workers may be many: each takes another order.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio_postgres::{Client, Transaction};

use crate::{
    event_store::{self, StoreError},
    orders::{self, Order, OrderEvent},
};

/// How long a worker may take over a step before another one may try. Doubles with each attempt, up to [`LONGEST_LEASE`].
const LEASE: Duration = Duration::from_secs(5);
/// The longest that a step waits to be tried again.
const LONGEST_LEASE: Duration = Duration::from_secs(300);

/// What is to be done next.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub enum Step {
    /// Set goods aside.
    Reserve,
    /// Take the money.
    Charge,
    /// Send the parcel: what follows cannot be undone.
    Ship,
    /// Give the money back.
    Refund,
    /// Put the goods back.
    Release,
}

/// What a service answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Done.
    Done,
    /// Not done, and never will be.
    Refused(String),
}

/// The services that take part.
pub trait Participants: Send + Sync {
    /// Why a service cannot be asked just now: the step is tried again later.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Does a step for an order. Order and step are the idempotency key: whoever asks again gets the first answer, and nothing is done twice. `Refund` and
    /// `Release` must not be refused, since nothing is left to do instead; a service that cannot do them yet says `Err`.
    fn perform(&self, step: Step, order: &Order) -> impl Future<Output = Result<Outcome, Self::Error>> + Send;
}

/// What follows a step.
#[derive(Clone, Debug, PartialEq)]
struct Next {
    /// None where the saga has ended.
    step: Option<Step>,
    /// Why the order fails, once it does.
    reason: Option<String>,
    /// What is said of the order.
    event: OrderEvent,
}

/// An order that a worker has taken.
#[derive(Clone, Debug)]
struct Taken {
    order: Order,
    step: Step,
    reason: Option<String>,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Progress {
    /// No order is due.
    Nothing,
    /// A step was done and noted.
    Stepped,
    /// It was noted by another worker meanwhile.
    Overtaken,
}

/// Why a step was not done or not noted. The order is due again when its lease ends.
#[derive(Debug, Error)]
pub enum SagaError<E> {
    /// A service cannot be asked.
    #[error("{step:?} of the order {order}: {error}")]
    Participant {
        /// Which step.
        step: Step,
        /// Of which order.
        order: String,
        /// What the service says.
        error: E,
    },
    /// A service refuses to undo something.
    #[error("{step:?} of the order {order} was refused, which leaves nothing to do instead: {reason}")]
    NotUndone {
        /// Which step.
        step: Step,
        /// Of which order.
        order: String,
        /// What the service says.
        reason: String,
    },
    /// The database is away, or has something that is no saga.
    #[error("the saga's state: {0}")]
    Store(#[from] StoreError),
}

impl<E> From<tokio_postgres::Error> for SagaError<E> {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Decides what follows. None where a step was refused that undoes another one.
fn next(step: Step, reason: Option<String>, outcome: Outcome) -> Option<Next> {
    let cancelled = |reason: Option<String>| OrderEvent::OrderCancelled { reason: reason.unwrap_or_default() };
    Some(match (step, outcome) {
        (Step::Reserve, Outcome::Done) => {
            Next { step: Some(Step::Charge), reason, event: OrderEvent::OrderConfirmed {} }
        }
        (Step::Reserve, Outcome::Refused(why)) => {
            Next { step: None, event: cancelled(Some(why.clone())), reason: Some(why) }
        }
        (Step::Charge, Outcome::Done) => Next { step: Some(Step::Ship), reason, event: OrderEvent::OrderPaid {} },
        (Step::Charge | Step::Ship, Outcome::Refused(why)) => {
            let undo = if step == Step::Charge { Step::Release } else { Step::Refund };
            Next { step: Some(undo), event: OrderEvent::OrderFailed { reason: why.clone() }, reason: Some(why) }
        }
        (Step::Ship, Outcome::Done) => Next { step: None, reason, event: OrderEvent::OrderShipped {} },
        (Step::Refund, Outcome::Done) => {
            Next { step: Some(Step::Release), reason, event: OrderEvent::OrderRefunded {} }
        }
        (Step::Release, Outcome::Done) => Next { step: None, event: cancelled(reason.clone()), reason },
        (Step::Refund | Step::Release, Outcome::Refused(_)) => return None,
    })
}

/// Begins the saga of an order, in the transaction that places it.
///
/// # Errors
/// When the database is away.
pub async fn begin(transaction: &Transaction<'_>, order: &Order) -> Result<(), StoreError> {
    const BEGIN: &str = "insert into sagas (order_id, step, details) values ($1, $2, $3)";
    transaction.execute(BEGIN, &[&order.id, &name(Step::Reserve)?, &serde_json::to_value(order)?]).await?;
    Ok(())
}

/// Takes an order that is due, does its next step, and notes what came of it.
///
/// # Errors
/// When a service or the database is away. The order is tried again when its lease ends.
pub async fn step<P: Participants>(client: &mut Client, participants: &P) -> Result<Progress, SagaError<P::Error>> {
    let Some(taken) = take(client).await? else { return Ok(Progress::Nothing) };
    let (step, order) = (taken.step, &taken.order);
    let asked = participants.perform(step, order).await;
    let outcome = asked.map_err(|error| SagaError::Participant { step, order: order.id.clone(), error })?;
    let refused = match &outcome {
        Outcome::Done => String::new(),
        Outcome::Refused(reason) => reason.clone(),
    };
    match next(step, taken.reason.clone(), outcome) {
        Some(next) => Ok(note(client, &taken, &next).await?),
        None => Err(SagaError::NotUndone { step, order: order.id.clone(), reason: refused }),
    }
}

/// No transaction stays open while a service is asked: it would hold up readers of events, which wait for older transactions. The order is this worker's for a lease instead.
async fn take(client: &Client) -> Result<Option<Taken>, StoreError> {
    const TAKE: &str = "update sagas
        set due_at = now() + make_interval(secs => least($1 * power(2, least(attempts, 16)), $2)), attempts = attempts + 1
        where order_id = (
            select order_id from sagas where ended_at is null and due_at <= now() order by due_at limit 1 for update skip locked)
        returning details, step, reason";
    let Some(row) = client.query_opt(TAKE, &[&LEASE.as_secs_f64(), &LONGEST_LEASE.as_secs_f64()]).await? else {
        return Ok(None);
    };
    let order = serde_json::from_value(row.get(0))?;
    Ok(Some(Taken { order, step: serde_json::from_value(row.get::<_, String>(1).into())?, reason: row.get(2) }))
}

async fn note(client: &mut Client, taken: &Taken, next: &Next) -> Result<Progress, StoreError> {
    const NOTE: &str = "update sagas set step = $3, reason = $4, due_at = now(), attempts = 0,
            ended_at = case when $3::text is null then clock_timestamp() end
        where order_id = $1 and step = $2 and ended_at is null";
    let step = next.step.map(name).transpose()?;
    let transaction = client.transaction().await?;
    let id = &taken.order.id;
    // Taken by two, since the first one's lease ended: whoever notes first counts. Both were given the same answer.
    if transaction.execute(NOTE, &[id, &name(taken.step)?, &step, &next.reason]).await? == 0 {
        return Ok(Progress::Overtaken);
    }
    let stream = event_store::read(&transaction, &orders::stream(id)).await?;
    orders::record(&transaction, &taken.order, stream.version, &next.event).await?;
    transaction.commit().await?;
    Ok(Progress::Stepped)
}

/// As the column has it.
fn name(step: Step) -> Result<String, serde_json::Error> {
    serde_json::from_value(serde_json::to_value(step)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_through_ends_and_undoes_what_was_done() {
        for refused in [None, Some(Step::Reserve), Some(Step::Charge), Some(Step::Ship)] {
            let (mut step, mut reason, mut done, mut last) = (Some(Step::Reserve), None, Vec::new(), None);
            while let Some(now) = step {
                let outcome = if refused == Some(now) { Outcome::Refused("no".to_owned()) } else { Outcome::Done };
                if outcome == Outcome::Done {
                    done.push(now);
                }
                let Next { step: following, reason: why, event } = next(now, reason, outcome).unwrap();
                (step, reason, last) = (following, why, Some(event));
            }
            let expected = match refused {
                None => vec![Step::Reserve, Step::Charge, Step::Ship],
                Some(Step::Charge) => vec![Step::Reserve, Step::Release],
                Some(Step::Ship) => vec![Step::Reserve, Step::Charge, Step::Refund, Step::Release],
                Some(_) => vec![],
            };
            assert_eq!(done, expected, "{refused:?}");
            let end = match refused {
                None => OrderEvent::OrderShipped {},
                Some(_) => OrderEvent::OrderCancelled { reason: "no".to_owned() },
            };
            assert_eq!(last, Some(end), "{refused:?}");
        }
    }

    #[test]
    fn what_undoes_something_cannot_be_refused() {
        assert_eq!(next(Step::Refund, None, Outcome::Refused("no".to_owned())), None);
        assert_eq!(next(Step::Release, None, Outcome::Refused("no".to_owned())), None);
    }
}
