//! Positions that would lose an event.

use crate::workshop::{APPLY, Workshop};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_handled_while_two_events_may_share_a_position_and_all_is_once_they_may_not() {
    let mut shop = Workshop::open("shared_position", APPLY).await;
    let owner = shop.events.client();
    owner
        .batch_execute(
            "alter table events drop constraint events_pkey;
             insert into events (position, stream, type, data) overriding system value
                 select 100 + n / 2, 'cart', 'Counted', '{\"n\": 1}' from generate_series(1, 4) n",
        )
        .await
        .unwrap();
    // A batch that ends between the two would pass the second over.
    shop.config.batch_size = 1;
    let worker = shop.start("a");
    let answer = worker.says("create unique index concurrently on \"events\" (\"position\")").await;
    assert!(answer.contains("503"), "{answer}");
    owner.batch_execute("alter table events alter column position drop identity").await.unwrap();
    owner
        .batch_execute(
            "update events set position = 200 + n
             from (select ctid as at, row_number() over (order by position) as n from events) numbered where ctid = at",
        )
        .await
        .unwrap();
    owner.batch_execute("create unique index concurrently on \"events\" (\"position\")").await.unwrap();
    shop.assert_exact(4).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_before_the_first_checkpoint_is_told_and_handled_once_it_has_a_position() {
    let shop = Workshop::open("before_the_first", APPLY).await;
    let owner = shop.events.client();
    let insert = "insert into events (position, stream, type, data) overriding system value values (0, 'cart', 'Counted', '{\"n\": 1}')";
    owner.batch_execute(insert).await.unwrap();
    let worker = shop.start("a");
    worker.says("an event is at position 0 and would never be handled").await;
    owner
        .batch_execute("alter table events alter column position drop identity; update events set position = 1")
        .await
        .unwrap();
    shop.assert_exact(1).await;
    worker.stop().await;
}
