//! Waiting in the read store, without the operator, until the read model has an event.

use std::time::{Duration, Instant};

use serde_json::json;
use test_cluster::eventually_is;
use tokio_postgres::{Client, error::SqlState};

use crate::{
    commanded, emmett, kurrentdb,
    kurrentdb_server::server::Fake,
    workshop::{APPLY, PATIENCE, Workshop, server},
};

/// Waits in the database, as an application does.
async fn reached(
    client: &Client,
    projection: &str,
    position: i64,
    timeout: &str,
) -> Result<bool, tokio_postgres::Error> {
    let wait = "select projectionist_await($1, $2, $3::text::interval)";
    Ok(client.query_one(wait, &[&projection, &position, &timeout]).await?.get(0))
}

async fn made(shop: &Workshop) {
    let there = "select to_regprocedure('projectionist_await(text, bigint, interval)') is not null";
    eventually_is(PATIENCE, "the function is made", |there| *there, || shop.try_ask::<bool>(there)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_waits_in_the_read_store_until_its_event_is_there() {
    let shop = Workshop::open("awaited", APPLY).await;
    let (a, b) = (shop.start("a"), shop.start("b"));
    made(&shop).await;
    shop.shared(&[6, 6]).await;
    for n in 1..=30_i64 {
        let position = shop.events.append(&format!("cart-{n}"), "Counted", &json!({ "n": n })).await.unwrap();
        assert!(reached(&shop.store, "shop/awaited", position, "60 s").await.unwrap(), "{position}");
        let handled: i64 = shop.ask(&format!("select count(*) from applied where position = {position}")).await;
        assert_eq!(handled, 1, "the read model has it");
    }

    // Beyond the head, and where an event before it waits.
    let head = shop.events.head().await.unwrap();
    let began = Instant::now();
    assert!(!reached(&shop.store, "shop/awaited", head + 1, "300 ms").await.unwrap());
    assert!(began.elapsed() >= Duration::from_millis(300));
    a.stop().await;
    b.stop().await;
    let waits = shop.events.append("cart-1", "Counted", &json!({ "n": 1 })).await.unwrap();
    assert!(!reached(&shop.store, "shop/awaited", waits, "100 ms").await.unwrap(), "no worker runs");
    assert!(reached(&shop.store, "shop/awaited", head, "0").await.unwrap(), "it is there already");

    let code = |error: tokio_postgres::Error| error.code().cloned();
    let unknown = reached(&shop.store, "shop/others", 1, "1 s").await.map_err(code);
    assert_eq!(unknown, Err(Some(SqlState::UNDEFINED_OBJECT)));
    let null = shop.store.query_one("select projectionist_await('shop/awaited', null)", &[]).await;
    assert_eq!(null.map(drop).map_err(code), Err(Some(SqlState::NULL_VALUE_NOT_ALLOWED)));
    for isolation in ["repeatable read", "serializable"] {
        shop.store.batch_execute(&format!("begin isolation level {isolation}")).await.unwrap();
        let refused = reached(&shop.store, "shop/awaited", 1, "1 s").await.unwrap_err();
        let words = refused.as_db_error().unwrap();
        assert_eq!(words.code(), &SqlState::ACTIVE_SQL_TRANSACTION);
        assert!(words.message().contains(isolation) && words.hint().is_some(), "{words:?}");
        shop.store.batch_execute("rollback").await.unwrap();
    }
    // A checkpoint that is missing is never taken for reached.
    shop.store.batch_execute("delete from projectionist_checkpoints where shard = 3").await.unwrap();
    assert!(!reached(&shop.store, "shop/awaited", 0, "0").await.unwrap());
}

/// An application that has appended waits for its event, which is at the position that `append` returns, and for one that does not come.
async fn waits_for_what_is_appended(shop: &Workshop, append: impl AsyncFn() -> i64) {
    let worker = shop.start("a");
    made(shop).await;
    let mut before = 0;
    for _ in 0..5 {
        let position = append().await;
        assert!(reached(&shop.store, &shop.config.projection, position, "60 s").await.unwrap(), "{position}");
        let there: i64 = shop.ask("select count(*) from applied").await;
        assert!(there > before, "the read model has it");
        before = there;
        assert!(!reached(&shop.store, &shop.config.projection, position + 1, "100 ms").await.unwrap());
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_waits_for_the_number_of_its_event_in_all_of_an_event_store_of_elixir() {
    let mut shop = Workshop::open("awaited_commanded", APPLY).await;
    commanded::in_event_store(&mut shop).await;
    let client = shop.events.client();
    let append = async || {
        client.batch_execute(&commanded::appended("cart-1", 1, commanded::MODULE, commanded::BODY)).await.unwrap();
        let last = "select stream_version from store.streams where stream_id = 0";
        client.query_one(last, &[]).await.unwrap().get::<_, i64>(0)
    };
    waits_for_what_is_appended(&shop, append).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_waits_for_the_global_position_of_its_message_in_an_event_store_of_emmett() {
    let mut shop = Workshop::open("awaited_emmett", APPLY).await;
    emmett::in_event_store(&mut shop).await;
    let client = shop.events.client();
    client.batch_execute(emmett::INDEX).await.unwrap();
    let append = async || {
        client.batch_execute(&emmett::appended("cart-1", 1, emmett::MEANT)).await.unwrap();
        client.query_one("select max(global_position) from store.emt_messages", &[]).await.unwrap().get::<_, i64>(0)
    };
    waits_for_what_is_appended(&shop, append).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_waits_for_the_commit_position_of_its_event_in_kurrentdb() {
    let fake = Fake::start().await;
    // No server is empty.
    fake.database(|database| database.put("$stats", "$statsCollected", b"{}", true, jiff::Timestamp::now()));
    let shop = kurrentdb::open(&fake, "awaited_kurrentdb", "$all", None).await;
    let append = async || {
        let now = jiff::Timestamp::now();
        let position = fake.database(|database| database.put("cart-1", "Counted", b"{\"n\": 1}", true, now));
        i64::try_from(position).unwrap()
    };
    waits_for_what_is_appended(&shop, append).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_roles_to_which_it_is_granted_may_call_it_and_it_shows_them_nothing_else() {
    let mut shop = Workshop::open("granted", APPLY).await;
    shop.sql.schema = Some("Read models".to_owned());
    let worker = shop.start("a");
    worker.says("200 OK").await;
    server().create_role("checkout", "checkout").await.unwrap();
    let client = server().connect_as("checkout", "checkout", "granted_reads").await.unwrap();
    let wait = "select \"Read models\".projectionist_await('shop/granted', 0, interval '60 s')";
    let refused = |error: tokio_postgres::Error| error.code().cloned() == Some(SqlState::INSUFFICIENT_PRIVILEGE);
    assert!(client.query_one(wait, &[]).await.is_err_and(refused));
    shop.store.batch_execute("grant usage on schema \"Read models\" to checkout").await.unwrap();
    assert!(client.query_one(wait, &[]).await.is_err_and(refused));
    let grant = "grant execute on function \"Read models\".projectionist_await to checkout";
    shop.store.batch_execute(grant).await.unwrap();
    assert!(client.query_one(wait, &[]).await.unwrap().get::<_, bool>(0));
    let table = client.query("select * from \"Read models\".projectionist_checkpoints", &[]).await;
    assert!(table.is_err_and(refused));
    // Its caller's search path and temporary tables change nothing.
    let disguise = "create temporary table projectionist_checkpoints (projection text, shards int, position bigint);
         insert into projectionist_checkpoints values ('shop/granted', 1, 1000000); set search_path = pg_temp, public";
    client.batch_execute(disguise).await.unwrap();
    let far = "select \"Read models\".projectionist_await('shop/granted', 1000000, interval '10 ms')";
    assert!(!client.query_one(far, &[]).await.unwrap().get::<_, bool>(0));
    worker.stop().await;

    // What another version made is replaced, and the right stays. What belongs to another role is left alone, and the worker works.
    let other = "create or replace function \"Read models\".projectionist_await(projection text, \"position\" bigint, timeout interval default interval '5 seconds')
         returns boolean language sql as 'select false'";
    shop.store.batch_execute(other).await.unwrap();
    let worker = shop.start("b");
    worker.says("200 OK").await;
    assert!(client.query_one(wait, &[]).await.unwrap().get::<_, bool>(0), "it is this version's");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_not_make_it_works_without_it() {
    let mut shop = Workshop::open("unmade", APPLY).await;
    // What the worker needs is there already, and its role may create nothing.
    let first = shop.start("a");
    first.says("200 OK").await;
    first.stop().await;
    shop.store
        .batch_execute(
            "drop function projectionist_await(text, bigint, interval); revoke create on schema public from public",
        )
        .await
        .unwrap();
    server().create_role("unmade", "unmade").await.unwrap();
    shop.store
        .batch_execute("grant select, insert, update, delete on all tables in schema public to unmade; grant usage on all sequences in schema public to unmade")
        .await
        .unwrap();
    shop.store_url = server().url_as("unmade", "unmade", "unmade_reads");
    shop.sql.setup = None;
    shop.events.append_events(10).await.unwrap();
    let worker = shop.start("b");
    shop.applied(10).await;
    let there = "select to_regprocedure('projectionist_await(text, bigint, interval)') is not null";
    assert!(!shop.ask::<bool>(there).await);
    worker.stop().await;
}
