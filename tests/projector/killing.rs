//! What read models go through whatever their source: workers are killed and frozen under load.

use std::time::Duration;

use crate::workshop::{Process, Workshop};

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
