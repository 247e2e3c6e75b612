//! What the built-in projector does about events of KurrentDB that are gone or cannot be handled, and what it refuses.

use std::time::Duration;

use test_cluster::{always_is, eventually_is};

use crate::{
    kurrentdb::{append, assert_applied, assert_at_events, open},
    kurrentdb_server::server::Fake,
    workshop::{PATIENCE, Workshop},
};

fn put(fake: &Fake, stream: &str, body: &[u8]) -> i64 {
    let put = fake.database(|database| database.put(stream, "Counted", body, true, jiff::Timestamp::now()));
    i64::try_from(put).unwrap()
}

/// Events of one stream with these revisions.
fn put_many(fake: &Fake, revisions: std::ops::Range<i64>) {
    for _ in revisions {
        put(fake, "order-1", BODY);
    }
}

const BODY: &[u8] = b"{\"n\": 1}";

/// Waits until all shards have come this far.
async fn reached(shop: &Workshop, position: i64) {
    let lowest = || shop.try_ask::<i64>("select min(position) from projectionist_checkpoints");
    eventually_is(PATIENCE, "all shards are there", |at| *at == position, lowest).await.unwrap();
}

/// Waits until it is written down that a shard waits before this position.
async fn held(shop: &Workshop, position: i64, words: &str) {
    let told = format!(
        "select count(*) from projectionist_checkpoints where failed_position = {position} and failure like '%{words}%'"
    );
    eventually_is(PATIENCE, "it is written down", |n| *n == 1, || shop.try_ask::<i64>(&told)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_read_is_named_and_holds_its_shard_alone() {
    let fake = Fake::start().await;
    let mut shop = open(&fake, "kurrentdb_odd", "$all", None).await;
    shop.config.max_event_bytes = 2_000;
    // Streams of different shards.
    put(&fake, "good", BODY);
    let torn = put(&fake, "torn", b"{\"canary");
    let binary = fake.database(|database| database.put("binary", "Counted", b"canary", false, jiff::Timestamp::now()));
    let binary = i64::try_from(binary).unwrap();
    let large = put(&fake, "large", &[b' '; 3_000]);
    let together = fake.database(|database| {
        let (first, second) = (b"{\"n\": 2}".as_slice(), b"{\"n\": 3}".as_slice());
        database.put_together("together", "Counted", &[first, second], jiff::Timestamp::now())
    });
    let together = i64::try_from(together).unwrap();
    let worker = shop.start("a");
    for (position, words) in
        [(torn, "no JSON"), (binary, "not application/json"), (large, "maxEventBytes"), (together, "transaction")]
    {
        held(&shop, position, words).await;
        held(&shop, position, &format!("commit position {position} of $all")).await;
    }
    // Those that come later are handled, but for those of these shards.
    fake.database(|database| append(database, 100));
    let others = "select count(distinct stream) from applied where stream like 'cart-%'";
    eventually_is(PATIENCE, "other shards go on", |n| *n >= 20, || shop.try_ask::<i64>(others)).await.unwrap();
    let answer = worker.says("cannot be read").await;
    assert!(answer.contains("503") && !answer.contains("canary"), "{answer}");
    worker.stop().await;
    assert_at_events(&shop, &fake).await;
    // Another worker begins where this one stood; by hand the checkpoints are moved beyond the events.
    let worker = shop.start("b");
    worker.says("cannot be read").await;
    for position in [torn, binary, large, together] {
        let skip = "update projectionist_checkpoints set position = failed_position where failed_position = $1";
        shop.store.execute(skip, &[&position]).await.unwrap();
    }
    let mut expected = fake.database(|database| database.commits("Counted"));
    expected.retain(|stream, _| stream.starts_with("cart-") || stream == "good");
    assert_applied(&shop, expected).await;
    worker.says("200 OK").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_fails_is_tried_again_and_reading_goes_on_at_events_alone() {
    let fake = Fake::start().await;
    let shop = open(&fake, "kurrentdb_fails", "$all", None).await;
    shop.store
        .batch_execute("create table applied (seq bigserial, position bigint, stream text, n bigint check (n <> 13))")
        .await
        .unwrap();
    fake.database(|database| append(database, 300));
    let worker = shop.start("a");
    worker.says("failed on the event at commit position").await;
    fake.database(|database| append(database, 10));
    let end = fake.database(|database| database.put("cart-1", "Seen", b"{}", true, jiff::Timestamp::now()));
    let highest = || shop.try_ask::<i64>("select max(position) from projectionist_checkpoints");
    let end = i64::try_from(end).unwrap();
    eventually_is(PATIENCE, "other shards go on", |at| *at == end, highest).await.unwrap();
    worker.stop().await;
    assert_at_events(&shop, &fake).await;
    let worker = shop.start("b");
    worker.says("failed on the event at commit position").await;
    shop.store.batch_execute("alter table applied drop constraint applied_n_check").await.unwrap();
    assert_applied(&shop, fake.database(|database| database.commits("Counted"))).await;
    worker.says("200 OK").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_a_scavenge_has_removed_are_passed_over_also_where_a_checkpoint_is_at_one() {
    let fake = Fake::start().await;
    let shop = open(&fake, "kurrentdb_scavenged", "$all", None).await;
    // Those before the first start are gone.
    fake.database(|database| {
        append(database, 200);
        database.truncate("cart-1", 5);
        database.delete("cart-2");
        database.scavenge();
    });
    let expected = || fake.database(|database| database.commits("Counted"));
    let first = expected();
    assert!(!first.contains_key("cart-2") && first["cart-1"].len() < 5);
    let worker = shop.start("a");
    assert_applied(&shop, first).await;
    let last = put(&fake, "cart-40", BODY);
    reached(&shop, last).await;
    worker.stop().await;
    let before = expected();
    // The event that all checkpoints are at, and all that came in the meantime.
    fake.database(|database| append(database, 200));
    fake.database(|database| {
        (0..=40).for_each(|n| database.delete(&format!("cart-{n}")));
        database.scavenge();
    });
    let left = put(&fake, "cart-41", BODY);
    let worker = shop.start("b");
    reached(&shop, left).await;
    let mut all = before;
    all.insert("cart-41".to_owned(), vec![left]);
    assert_applied(&shop, all).await;
    worker.says("200 OK").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_over_what_it_has_lost_and_goes_on_after_it_was_deleted_and_appended_to_again() {
    let fake = Fake::start().await;
    let shop = open(&fake, "kurrentdb_stream", "order-1", None).await;
    // There is no such stream yet.
    let worker = shop.start("a");
    worker.says("200 OK").await;
    put_many(&fake, 0..10);
    reached(&shop, 9).await;
    worker.stop().await;
    // 10 to 14 are gone before they are read, then all of it, and then it is deleted.
    put_many(&fake, 10..20);
    fake.database(|database| database.truncate("order-1", 15));
    let worker = shop.start("b");
    reached(&shop, 19).await;
    worker.stop().await;
    put_many(&fake, 20..25);
    fake.database(|database| database.truncate("order-1", 25));
    let worker = shop.start("c");
    reached(&shop, 24).await;
    fake.database(|database| database.delete("order-1"));
    put(&fake, "order-1", BODY);
    reached(&shop, 25).await;
    let handled: Vec<i64> = shop.ask("select array_agg(position order by seq) from applied").await;
    let expected: Vec<i64> = (0..10).chain(15..20).chain([25]).collect();
    assert_eq!(handled, expected);
    fake.database(|database| database.tombstones.insert("order-1".to_owned()));
    worker.says("deleted for ever").await;
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_whose_event_is_gone_is_passed_over() {
    let fake = Fake::start().await;
    fake.database(|database| database.links_categories = true);
    let shop = open(&fake, "kurrentdb_links", "$ce-cart", None).await;
    fake.database(|database| {
        append(database, 200);
        database.truncate("cart-1", 4);
        database.delete("cart-2");
    });
    let expected = fake.database(|database| database.links("$ce-cart", "Counted"));
    assert!(!expected.contains_key("cart-2"));
    let worker = shop.start("a");
    assert_applied(&shop, expected).await;
    worker.says("200 OK").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_ends_before_the_checkpoint_is_told_and_nothing_of_it_is_handled() {
    let fake = Fake::start().await;
    let shop = open(&fake, "kurrentdb_restored", "order-1", None).await;
    put_many(&fake, 0..10);
    let worker = shop.start_process("a");
    reached(&shop, 9).await;
    // A restored backup, or another database behind the same name.
    fake.database(|database| database.forget_after("order-1", 5));
    let told = || async { Ok::<_, anyhow::Error>(worker.output()) };
    let words = "the checkpoint is beyond the source's head";
    eventually_is(PATIENCE, "the worker says it", |said: &String| said.contains(words), told).await.unwrap();
    put(&fake, "order-1", BODY);
    let count = || shop.try_ask::<i64>("select count(*) from applied");
    always_is(Duration::from_secs(1), "nothing is handled", |count| *count == 10, count).await.unwrap();
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_read_is_told_what_to_grant() {
    let fake = Fake::start().await;
    let shop = open(&fake, "kurrentdb_refused", "$all", None).await;
    put(&fake, "cart-1", BODY);
    fake.require_login("shop", "another");
    let worker = shop.start("a");
    let refused = worker.says("the login is refused").await;
    assert!(refused.contains("KurrentDB at 127.0.0.1") && !refused.contains("hunter2"), "{refused}");
    fake.require_login("shop", "hunter2");
    fake.database(|database| database.secret.insert("$all".to_owned()));
    let refused = worker.says("access denied").await;
    assert!(refused.contains("docs/sources/kurrentdb.md"), "{refused}");
    fake.database(|database| database.secret.remove("$all"));
    shop.applied(1).await;
    worker.says("200 OK").await;
    worker.stop().await;
}
