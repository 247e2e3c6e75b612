//! What one worker can do. A figure for people; the bound is far below it.

use std::time::Instant;

use crate::workshop::Workshop;

#[tokio::test(flavor = "multi_thread")]
async fn one_worker_handles_thousands_of_events_a_second() {
    const EVENTS: u32 = 20_000;
    let mut shop = Workshop::open(
        "throughput",
        "insert into totals values (:stream, (:data->>'n')::bigint, 1)
         on conflict (stream) do update set sum = totals.sum + excluded.sum, events = totals.events + 1",
    )
    .await;
    shop.config.batch_size = 500;
    shop.config.shards = 24;
    shop.events.append_events(EVENTS).await.unwrap();
    let worker = shop.start("a");
    worker.says("200 OK").await;
    let started = Instant::now();
    let before: i64 = shop.ask("select coalesce(sum(events), 0)::bigint from totals").await;
    loop {
        let done: i64 = shop.ask("select coalesce(sum(events), 0)::bigint from totals").await;
        if done >= i64::from(EVENTS) {
            let rate = (done - before) as f64 / started.elapsed().as_secs_f64();
            println!(
                "one worker: {rate:.0} upserts a second ({} events in {:.2} s)",
                done - before,
                started.elapsed().as_secs_f64()
            );
            assert!(rate > 1_000.0, "{rate}");
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        assert!(started.elapsed().as_secs() < 60, "{done} of {EVENTS} after a minute");
    }
    worker.stop().await;
}
