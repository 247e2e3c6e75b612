//! Parking is one step with the checkpoint, whatever ends a worker; and what rights it takes.

use std::time::Duration;

use projectionist::api::OnPoison;
use test_cluster::{always_is, eventually_is};
use tokio_postgres::Client;

use crate::{
    parked::shop,
    workshop::{PATIENCE, Workshop, server},
};

/// Waits until a worker waits for a lock in the middle of this statement.
async fn waits_for_a_lock(shop: &Workshop, statement: &str) {
    let waiting = format!(
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query ilike '{statement}%'"
    );
    let look = || shop.try_ask::<i64>(&waiting);
    eventually_is(PATIENCE, "a worker waits for a lock", |seen| *seen > 0, look).await.unwrap();
}

/// Appends an event that fails, and one behind it, and brings the worker to the point where it has written the first to the table and not yet moved the
/// checkpoint. Returns a connection that keeps it there, and the shard.
async fn between_the_table_and_the_checkpoint(shop: &Workshop, store: &str) -> (Client, i32) {
    let (table, checkpoint) = (server().connect(store).await.unwrap(), server().connect(store).await.unwrap());
    table.batch_execute("begin; lock table projectionist_parked in exclusive mode").await.unwrap();
    shop.append("bad", &[0, 1]).await;
    waits_for_a_lock(shop, "insert into \"projectionist_parked\"").await;
    let shard: i32 = shop.ask("select shard from projectionist_checkpoints where failure is not null").await;
    let hold = format!("begin; select from projectionist_checkpoints where shard = {shard} for update");
    checkpoint.batch_execute(&hold).await.unwrap();
    table.batch_execute("commit").await.unwrap();
    waits_for_a_lock(shop, "update \"projectionist_checkpoints\" c set position").await;
    (checkpoint, shard)
}

/// Side by side, since each waits most of its time until an event is tried again.
#[tokio::test(flavor = "multi_thread")]
async fn parking_is_one_step_with_the_checkpoint_and_takes_few_rights() {
    tokio::join!(
        a_worker_that_is_killed_while_it_parks_or_replays_does_neither_by_halves(),
        a_worker_that_has_lost_the_shard_parks_nothing(),
        a_role_that_owns_no_table_needs_four_rights_on_it_and_is_told_where_one_is_missing(),
    );
}

async fn a_worker_that_is_killed_while_it_parks_or_replays_does_neither_by_halves() {
    let shop = shop("killed_parking", OnPoison::Park, 100).await;
    let first = shop.start_process("a");
    shop.shared(&[12]).await;
    let (locker, _) = between_the_table_and_the_checkpoint(&shop, "killed_parking_reads").await;
    drop(first);
    locker.batch_execute("commit").await.unwrap();
    let second = shop.start_process("b");
    shop.aside("parked", 2).await;
    // The handler reads this table.
    locker
        .batch_execute("insert into mended values (now()); begin; lock table mended in access exclusive mode")
        .await
        .unwrap();
    assert_eq!(shop.call("projectionist_replay('shop/killed_parking')").await, 2);
    waits_for_a_lock(&shop, "insert into applied").await;
    drop(second);
    locker.batch_execute("commit").await.unwrap();
    let third = shop.start_process("c");
    shop.aside("parked", 0).await;
    shop.append("bad", &[2]).await;
    shop.assert_exact(3).await;
    drop(third);
}

async fn a_worker_that_has_lost_the_shard_parks_nothing() {
    let shop = shop("fenced_parking", OnPoison::Park, 100).await;
    let worker = shop.start("a");
    shop.shared(&[12]).await;
    let (other, shard) = between_the_table_and_the_checkpoint(&shop, "fenced_parking_reads").await;
    // Another worker that is alive has it from now on.
    other
        .batch_execute(&format!(
            "insert into projectionist_workers values ('shop/fenced_parking', 'other', 'other', now() + interval '1 hour');
             update projectionist_checkpoints set owner = 'other', fence = fence + 1 where shard = {shard}; commit"
        ))
        .await
        .unwrap();
    let rows = || shop.try_ask::<i64>("select count(*) from projectionist_parked");
    always_is(Duration::from_secs(1), "nothing is parked", |seen| *seen == 0, rows).await.unwrap();
    let position: i64 =
        shop.ask(&format!("select position from projectionist_checkpoints where shard = {shard}")).await;
    assert_eq!(position, 0);
    shop.store.batch_execute("delete from projectionist_workers where worker = 'other'").await.unwrap();
    shop.aside("parked", 2).await;
    worker.stop().await;
}

async fn a_role_that_owns_no_table_needs_four_rights_on_it_and_is_told_where_one_is_missing() {
    let mut shop = shop("parking_rights", OnPoison::Park, 100).await;
    let owner = shop.start("owner");
    owner.says("200 OK").await;
    owner.stop().await;
    server().create_role("parker", "parker").await.unwrap();
    shop.store
        .batch_execute(
            "revoke create on schema public from public;
             grant select, insert, update, delete on all tables in schema public to parker;
             grant usage on all sequences in schema public to parker;
             revoke insert on projectionist_parked from parker",
        )
        .await
        .unwrap();
    shop.sql.setup = None;
    shop.store_url = server().url_as("parker", "parker", "parking_rights_reads");
    let worker = shop.start("a");
    shop.append("bad", &[0, 1]).await;
    let said = worker.says("projectionist_parked").await;
    assert!(said.contains("permission denied") || said.contains("42501"), "{said}");
    shop.store.batch_execute("grant insert on projectionist_parked to parker").await.unwrap();
    shop.aside("parked", 2).await;
    let replay = "select count(*) from projectionist_replay('shop/parking_rights')";
    let client = server().connect_as("parker", "parker", "parking_rights_reads").await.unwrap();
    assert!(client.query_one(replay, &[]).await.is_err(), "who may call it must be granted that");
    shop.store.batch_execute("grant execute on function projectionist_replay to parker").await.unwrap();
    assert_eq!(client.query_one(replay, &[]).await.unwrap().get::<_, i64>(0), 2);
    worker.stop().await;
}
