//! Orders come to their end, whatever is killed between two steps, and nothing is done twice.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use shop::{
    orders::Order,
    participants::{OUT_OF_REACH, ServiceError, Services},
    saga::{self, Outcome, Participants, Progress, Step},
};
use tokio::sync::Notify;

use crate::write_side::WriteSide;

/// Services in front of which, and behind which, a worker hangs at one moment, where it is killed or goes on when it is told to.
struct Hanging {
    services: Services,
    /// How many moments come before that one.
    moments_left: AtomicUsize,
    hangs: Notify,
    goes_on: Notify,
}

impl Hanging {
    fn at(shop: &WriteSide, moment: usize) -> Self {
        let services = shop.services();
        Self { services, moments_left: AtomicUsize::new(moment), hangs: Notify::new(), goes_on: Notify::new() }
    }

    async fn moment(&self) {
        let left = self.moments_left.fetch_sub(1, Ordering::Relaxed);
        if left == 0 {
            self.hangs.notify_one();
            self.goes_on.notified().await;
        }
    }
}

impl Participants for Hanging {
    type Error = ServiceError;

    async fn perform(&self, step: Step, order: &Order) -> Result<Outcome, ServiceError> {
        self.moment().await;
        let outcome = self.services.perform(step, order).await?;
        self.moment().await;
        Ok(outcome)
    }
}

/// Steps until nothing is due, and says how many it took.
async fn run(shop: &WriteSide) -> Result<usize> {
    let (mut client, services) = (shop.database.connect().await?, shop.services());
    let mut steps = 0;
    while saga::step(&mut client, &services).await? != Progress::Nothing {
        steps += 1;
    }
    Ok(steps)
}

/// A way through the saga, by an order and a product that are called alike.
struct Way {
    id: &'static str,
    stock: i64,
    quantity: i64,
    country: &'static str,
    /// What becomes of the order after it was placed.
    events: &'static [&'static str],
    /// What is left of the product.
    left: i64,
}

const WAYS: [Way; 4] = [
    Way {
        id: "shipped",
        stock: 10,
        quantity: 2,
        country: "Portugal",
        events: &["OrderConfirmed", "OrderPaid", "OrderShipped"],
        left: 8,
    },
    Way { id: "no-stock", stock: 1, quantity: 2, country: "Portugal", events: &["OrderCancelled"], left: 1 },
    Way {
        id: "no-credit",
        stock: 50,
        quantity: 11,
        country: "Portugal",
        events: &["OrderConfirmed", "OrderFailed", "OrderCancelled"],
        left: 50,
    },
    Way {
        id: "no-carrier",
        stock: 10,
        quantity: 2,
        country: OUT_OF_REACH,
        events: &["OrderConfirmed", "OrderPaid", "OrderFailed", "OrderRefunded", "OrderCancelled"],
        left: 10,
    },
];

async fn has_ended(shop: &WriteSide, way: usize, when: &str) -> Result<()> {
    let Way { id, events: expected, left, .. } = WAYS[way];
    let rows = shop
        .client
        .query("select type from events where stream = 'order-' || $1 order by version offset 1", &[&id])
        .await?;
    let events: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    ensure!(events == expected, "{when}: {id}: {events:?}");
    ensure!(shop.stock_of(id).await?.available == left, "{when}: {id}: {:?}", shop.stock_of(id).await?);
    let open = "select count(*) from sagas where ended_at is null";
    ensure!(shop.number(open).await? == 0, "{when}: a saga has not ended");
    let charged = "select count(*) from charges where accepted and refunded_at is null";
    let shipped = "select count(*) from shipments where accepted";
    let goes = i64::from(way == 0);
    ensure!(
        shop.number(charged).await? == goes && shop.number(shipped).await? == goes,
        "{when}: {id}: money or parcel"
    );
    // The customer is told once.
    let told = "select count(*) from outbox where destination = 'rabbitmq'";
    ensure!(shop.number(told).await? == 1, "{when}: {id}: told {} times", shop.number(told).await?);
    let all_told = "select count(*) from outbox where destination = 'kafka'";
    ensure!(shop.number(all_told).await? == i64::try_from(expected.len() + 1)?, "{when}: {id}: what others are told");
    Ok(())
}

/// Places the order of this way, in a shop in which nothing else happened.
async fn place(shop: &mut WriteSide, way: usize) -> Result<()> {
    let Way { id, stock, quantity, country, .. } = WAYS[way];
    shop.clear().await?;
    shop.product(id, stock).await?;
    shop.order(id, id, quantity, country).await?;
    Ok(())
}

#[tokio::test]
async fn each_way_through_comes_to_its_end() -> Result<()> {
    let mut shop = WriteSide::open().await?;
    for way in 0..WAYS.len() {
        place(&mut shop, way).await?;
        run(&shop).await?;
        has_ended(&shop, way, "without a kill").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_kill_at_any_moment_between_two_steps_changes_nothing() -> Result<()> {
    let mut shop = WriteSide::open().await?;
    let mut kills = 0;
    for way in 0..WAYS.len() {
        // Before and behind each question to a service, until there is no such moment any more.
        for moment in 0.. {
            place(&mut shop, way).await?;
            let mut killed = shop.database.connect().await?;
            let services = Hanging::at(&shop, moment);
            let works = async {
                while saga::step(&mut killed, &services).await? != Progress::Nothing {}
                anyhow::Ok(())
            };
            let ended = tokio::select! { works = works => { works?; true } () = services.hangs.notified() => false };
            // With it goes its connection.
            drop(killed);
            its_lease_ends(&shop).await?;
            run(&shop).await?;
            has_ended(&shop, way, &format!("killed at moment {moment}")).await?;
            if ended {
                break;
            }
            kills += 1;
        }
    }
    // Reserve, charge and ship; reserve; reserve, charge and release; all five. Two moments each.
    assert_eq!(kills, 2 * (3 + 1 + 3 + 5));
    Ok(())
}

async fn its_lease_ends(shop: &WriteSide) -> Result<()> {
    shop.client.execute("update sagas set due_at = now() where ended_at is null", &[]).await?;
    Ok(())
}

#[tokio::test]
async fn a_worker_that_slept_through_its_lease_changes_nothing() -> Result<()> {
    let mut shop = WriteSide::open().await?;
    for way in 0..WAYS.len() {
        // Before it asks, and before it notes what it was answered.
        for moment in 0..2 {
            place(&mut shop, way).await?;
            let mut asleep = shop.database.connect().await?;
            let services = Hanging::at(&shop, moment);
            let others = async {
                services.hangs.notified().await;
                its_lease_ends(&shop).await?;
                run(&shop).await?;
                services.goes_on.notify_one();
                anyhow::Ok(())
            };
            let (late, others) = tokio::join!(saga::step(&mut asleep, &services), others);
            others?;
            assert_eq!(late?, Progress::Overtaken, "{way}, {moment}");
            has_ended(&shop, way, &format!("asleep at moment {moment}")).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn workers_share_the_orders_and_the_last_of_a_product_goes_to_one() -> Result<()> {
    let mut shop = WriteSide::open().await?;
    shop.product("last", 5).await?;
    for number in 0..20 {
        shop.order(&number.to_string(), "last", 1, "Portugal").await?;
    }
    let workers = futures::future::join_all((0..4).map(|_| run(&shop))).await;
    let steps: usize = workers.into_iter().sum::<Result<usize>>()?;
    assert_eq!(steps, 5 * 3 + 15);
    assert_eq!(shop.stock_of("last").await?.available, 0);
    let ended = "select count(*) from events where type = 'OrderShipped'";
    assert_eq!(shop.number(ended).await?, 5);
    assert_eq!(shop.number("select count(*) from events where type = 'OrderCancelled'").await?, 15);
    Ok(())
}
