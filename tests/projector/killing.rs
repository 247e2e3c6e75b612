//! What read models go through whatever their source: workers are killed and frozen under load.

use std::time::Duration;

use test_cluster::eventually_is;

use crate::workshop::{PATIENCE, Process, Workshop};

/// A handler that takes a while, so that a worker is killed in the middle, and notes a number that events hold.
pub(crate) const SLOWLY: &str =
    "insert into applied (position, stream, n) select (:data->>'n')::bigint, :stream, 0 from pg_sleep(0.002)";

/// Appends for some seconds while of three workers one is killed and one frozen, again and again. `append` makes so many events, and `shared` waits until the
/// workers hold so many shards each. Returns the workers that are left.
pub(crate) async fn killed_and_frozen(
    shop: &Workshop,
    append: impl AsyncFn(i64),
    shared: impl AsyncFn(&[usize]),
) -> [Process; 2] {
    let (first, second) = (shop.start_process("a"), shop.start_process("b"));
    append(2_000).await;
    shared(&[6, 6]).await;
    let load = async {
        for _ in 0..60 {
            append(100).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let faults = async {
        for round in 0..3 {
            tokio::time::sleep(Duration::from_millis(300 + 170 * round)).await;
            // Dropped, and so killed, wherever it is.
            let killed = shop.start_process(&format!("killed-{round}"));
            shared(&[4, 4, 4]).await;
            drop(killed);
            first.signal("STOP");
            // Another worker has taken all.
            shared(&[12]).await;
            // It goes on with what it held.
            first.signal("CONT");
            shared(&[6, 6]).await;
        }
    };
    tokio::join!(load, faults);
    [first, second]
}

/// Waits until a worker is in the middle of its work.
pub(crate) async fn some_are_handled(shop: &Workshop) {
    let handled =
        || async { Ok::<_, anyhow::Error>(shop.try_ask::<i64>("select count(*) from applied").await.unwrap_or(-1)) };
    eventually_is(PATIENCE, "some are handled", |seen| *seen >= 100, handled).await.unwrap();
}

/// The numbers that [`SLOWLY`] has noted only grow.
pub(crate) async fn assert_in_order(shop: &Workshop) {
    let disorder = "select count(*) from (select position < lag(position) over (order by seq) as wrong from applied) s where wrong";
    assert_eq!(shop.ask::<i64>(disorder).await, 0);
}

/// Of a queue that holds the numbers below `events` in their order: the one worker is killed, and the next keeps the order.
pub(crate) async fn keeps_the_order_through_a_kill(shop: &Workshop, events: i64) {
    let first = shop.start_process("a");
    some_are_handled(shop).await;
    drop(first);
    let second = shop.start_process("a");
    shop.applied(events).await;
    assert_in_order(shop).await;
    drop(second);
}
