//! Consumers of event stores that libraries make in PostgreSQL, side by side, each with a namespace of its own: they keep how far they have come where the
//! library does, are scaled by a real autoscaler, and handle every event once. And one worker that confirms a replication slot.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result};
use futures::future::try_join_all;
use serde_json::{Value, json};
use test_cluster::{eventually, eventually_is};
use tokio_postgres::Client;

use crate::consumers::{Setting, Source, pending_exactly, projection};
use crate::event_stores::{
    AKKA, COMMANDED, EMMETT, MESSAGE_DB, akka_appended, akka_cart_in, commanded_appended, emmett_appended,
    marten_appended, marten_ddl, message_db_written,
};
use crate::shop::{Shop, merge};
use crate::side_by_side::{follows_the_lag, secrets_of_postgres, three};
use crate::stage::{PATIENCE, Stage, play, together};

/// How consumers share a store: what each has taken, in parts that have an order of their own. Each library's tables add the view
/// `log (part, position, name)`, which holds what its consumers may read, and the function `acknowledge`, which moves its checkpoint of a part.
const TAKEN: &str = "
    create table taken (part int, position bigint, name text not null, done boolean not null default false, primary key (part, position));
    insert into taken select part, position, name, true from log;
    create function done(names text[]) returns void language plpgsql as $body$
    begin
        lock table taken in exclusive mode;
        update taken set done = true where name = any (names);
        -- No further than all before it are done.
        perform acknowledge(t.part, max(t.position)) from taken t
        where t.part in (select part from taken where name = any (names))
            and not exists (select from taken u where u.part = t.part and u.position <= t.position and not u.done)
        group by t.part;
    end; $body$;";

/// The function by which a consumer takes events. `begin` is run each time, and `idle` where none waits and none is
/// at work on any. With `one_each`, a part is one consumer's at a time.
fn take(one_each: bool, begin: &str, idle: &str) -> String {
    let free = if one_each { "not exists (select from taken u where u.part = l.part and not u.done)" } else { "true" };
    format!(
        "create function take(most int) returns setof text language plpgsql as $body$
         declare
             ending pg_lsn := pg_current_wal_lsn();
             mine int;
         begin
             {begin}
             lock table taken in exclusive mode;
             select l.part into mine from log l left join (select part, max(position) as last from taken group by part) t using (part)
             where l.position > coalesce(t.last, 0) and {free} order by l.position limit 1;
             return query with next as (
                 select part, position, name from log
                 where part = mine and position > coalesce((select max(position) from taken where part = mine), 0) order by position limit most)
             insert into taken select part, position, name from next returning taken.name;
             if mine is null and not exists (select from taken where not done) then {idle} end if;
         end; $body$;"
    )
}

/// A library with its tables.
struct Library {
    /// The namespace, and the database.
    name: &'static str,
    tables: String,
    take: String,
    /// SQL that appends so many events after the first so many; their names are their numbers, from 1.
    append: fn(i64, i64) -> String,
    /// What the library's own checkpoint does not cover.
    unfinished: &'static str,
    rights: &'static [&'static str],
    /// In `spec.source.postgres`, beside the connection.
    source: Value,
}

fn marten() -> Library {
    Library {
        name: "marten",
        tables: marten_ddl("public", false)
            + ";
             create view log as select 0 as part, seq_id as position, data->>'n' as name from mt_events;
             create function acknowledge(int, bigint) returns void language sql as $body$ select mt_mark_event_progression('Orders:All', $2) $body$;
             select acknowledge(0, 0);",
        take: take(false, "", "null;"),
        append: |before, count| {
            marten_appended("public", count, "*DEFAULT*", &format!("jsonb_build_object('n', {before} + n)"))
        },
        unfinished: "select count(*) from mt_events, mt_event_progression where seq_id > last_seq_id",
        rights: &["usage on schema public", "select on mt_events, mt_event_progression"],
        source: json!({"marten": {"projection": "Orders"}}),
    }
}

fn commanded() -> Library {
    // What a node of the application does that runs the subscription.
    let runs = "perform pg_try_advisory_lock('store.subscriptions'::regclass::oid::int, subscription_id::int) from store.subscriptions;";
    Library {
        name: "commanded",
        tables: format!(
            "create schema store; set search_path to store; {COMMANDED} reset search_path;
             insert into store.subscriptions (stream_uuid, subscription_name, last_seen) values ('$all', 'orders', 0);
             create view log as
                 select 0 as part, n.stream_version as position, convert_from(e.data, 'UTF8')::jsonb->>'n' as name
                 from store.stream_events n join store.events e using (event_id) where n.stream_id = 0;
             create function acknowledge(int, bigint) returns void language sql as $body$ update store.subscriptions set last_seen = $2 $body$;"
        ),
        take: take(false, runs, "null;"),
        append: |before, count| {
            let data = format!("convert_to(json_build_object('n', {before} + n)::text, 'UTF8')");
            let stream = format!("cart-{}", before % 7);
            commanded_appended("store", &stream, count, "Elixir.Shop.Counted", &data, "clock_timestamp()")
        },
        unfinished: "select count(*) from store.stream_events, store.subscriptions where stream_id = 0 and stream_version > last_seen",
        rights: &[
            "usage on schema store",
            "select (stream_id, stream_uuid, stream_version, deleted_at) on store.streams",
            "select (stream_id, stream_version, event_id) on store.stream_events",
            "select (event_id, created_at) on store.events",
            "select (subscription_id, stream_uuid, subscription_name, last_seen) on store.subscriptions",
        ],
        source: json!({"commanded": {"schema": "store", "subscription": "orders"}}),
    }
}

fn emmett() -> Library {
    Library {
        name: "emmett",
        tables: format!(
            "{EMMETT}
             create view log as
                 select 0 as part, global_position as position, message_data->>'n' as name from emt_messages
                 where partition = 'emt:default' and not is_archived and transaction_id < pg_snapshot_xmin(pg_current_snapshot());
             insert into emt_processors (processor_id, last_processed_checkpoint, last_processed_transaction_id)
                 values ('orders', lpad('0', 19, '0'), pg_current_xact_id());
             create function acknowledge(int, bigint) returns void language sql as $body$
                 update emt_processors set last_processed_checkpoint = lpad($2::text, 19, '0'), last_updated = now() $body$;"
        ),
        take: take(false, "", "null;"),
        append: |before, count| {
            let data = format!("jsonb_build_object('n', {before} + n)");
            emmett_appended("public", &format!("cart-{}", before % 7), count, "'emt:default', false", &data)
        },
        unfinished: "select count(*) from emt_messages, emt_processors where global_position > last_processed_checkpoint::bigint",
        rights: &[
            "usage on schema public",
            "select (partition, is_archived, transaction_id, global_position, created) on emt_messages",
            "select (processor_id, partition, version, last_processed_checkpoint) on emt_processors",
        ],
        source: json!({"emmett": {"processor": "orders"}}),
    }
}

fn message_db() -> Library {
    let record = message_db_written("orders:position-list", 1, "jsonb_build_object('position', $2)");
    Library {
        name: "message-db",
        tables: format!(
            "{MESSAGE_DB}
             create view log as
                 select 0 as part, global_position as position, data->>'n' as name from message_store.messages
                 where message_store.category(stream_name) = 'orders';
             create function acknowledge(int, bigint) returns void language sql as $body$ {record} $body$;
             select acknowledge(0, 0);"
        ),
        take: take(false, "", "null;"),
        append: |before, count| {
            let data = format!("jsonb_build_object('n', {before} + n)");
            message_db_written(&format!("orders-{}", before % 7), count, &data)
        },
        unfinished: "select count(*) from message_store.messages where message_store.category(stream_name) = 'orders' and global_position > (
             select (data->>'position')::bigint from message_store.messages where stream_name = 'orders:position-list' order by position desc limit 1)",
        rights: &["usage on schema message_store", "select on message_store.messages"],
        source: json!({"messageDb": {"category": "orders", "positionStream": "orders:position-list"}}),
    }
}

/// Akka's projections by slices: of four ranges each is one consumer's at a time, and each of its persistence ids has an offset.
fn akka() -> Library {
    fn appended(range: i32, count: i64, name: &str) -> String {
        let id = akka_cart_in(range * 256..=range * 256 + 255, 0);
        akka_appended(&id, count, "current_timestamp", &format!("convert_to(({name})::text, 'UTF8')"))
    }
    Library {
        name: "akka",
        // What was there and is handled: ranges of which none has stored an offset tell nothing.
        tables: format!(
            "{AKKA}
             create view numbered as
                 select slice / 256 as part, row_number() over (partition by slice / 256 order by db_timestamp, persistence_id, seq_nr) as position,
                     convert_from(event_payload, 'UTF8') as name, slice, persistence_id, seq_nr, db_timestamp
                 from event_journal;
             create view log as select part::int, position, name from numbered;
             create function acknowledge(int, bigint) returns void language sql as $body$
                 insert into akka_projection_timestamp_offset_store
                 select 'carts', format('carts-%s-%s', $1 * 256, $1 * 256 + 255), slice, persistence_id, max(seq_nr), max(db_timestamp), current_timestamp
                 from numbered where part = $1 and position <= $2 group by slice, persistence_id on conflict do nothing $body$;
             {}; select acknowledge(0, 1);",
            appended(0, 1, "0")
        ),
        take: take(true, "", "null;"),
        append: |before, count| {
            let each = count / 4;
            let range = |range: i32| appended(range, each, &format!("{before} + {each} * {range} + n"));
            (0..4).map(range).collect::<Vec<_>>().join("; ")
        },
        unfinished: "select count(*) from event_journal j where not exists (
             select from akka_projection_timestamp_offset_store o where o.persistence_id = j.persistence_id and o.seq_nr >= j.seq_nr)",
        rights: &[
            "usage on schema public",
            "select (slice, entity_type, persistence_id, seq_nr, db_timestamp, deleted) on event_journal",
            "select (projection_name, projection_key, slice, persistence_id, seq_nr, timestamp_offset, timestamp_consumed)
                 on akka_projection_timestamp_offset_store",
        ],
        source: json!({"akka": {"projection": "carts", "entityType": "Cart", "ranges": 4}}),
    }
}

const TAKES: [(&str, Setting<'static>); 2] =
    [("TAKE", Setting::Value("select * from take($1)")), ("DONE", Setting::Value("select done($1)"))];

/// A library's event store with a producer.
struct Store {
    client: Client,
    library: Library,
    appended: AtomicUsize,
}

impl Source for Store {
    async fn append(&self, count: usize) -> Result<()> {
        let before = self.appended.fetch_add(count, Ordering::Relaxed);
        let statement = (self.library.append)(i64::try_from(before)?, i64::try_from(count)?);
        self.client.batch_execute(&statement).await.with_context(|| statement.clone())
    }

    async fn unfinished(&self) -> Result<i64> {
        Ok(self.client.query_one(self.library.unfinished, &[]).await?.get(0))
    }

    async fn names(&self) -> Result<BTreeSet<String>> {
        Ok((1..=self.appended.load(Ordering::Relaxed)).map(|number| number.to_string()).collect())
    }
}

async fn consumers_follow(stage: &'static Stage, library: Library) -> Result<()> {
    let shop = Shop::open(stage, library.name).await?;
    shop.make_record().await?;
    let client = shop.reader().await?;
    let tables = [library.tables.as_str(), TAKEN, &library.take].concat();
    client.batch_execute(&tables).await.with_context(|| tables.clone())?;
    secrets_of_postgres(&shop, library.rights).await?;
    let store = Store { client, library, appended: AtomicUsize::new(0) };
    let spec = |secret: &str| {
        let mut postgres = json!({"connection": {"secretRef": {"name": secret}}});
        merge(&mut postgres, &store.library.source);
        json!({"postgres": postgres})
    };
    follows_the_lag(&shop, &store, &TAKES, spec, &three()).await
}

/// One worker at a time reads changes through a slot: it comes with them, and goes when all is confirmed.
async fn slot(stage: &'static Stage) -> Result<()> {
    // What others write would keep the slot behind.
    let server = stage.cluster.postgres()?;
    server.connect("postgres").await?.batch_execute("alter system set wal_level = 'logical'").await?;
    server.stop()?;
    server.start()?;
    let shop = Shop::open_on(stage, &server, "slot").await?;
    shop.make_record().await?;
    let client = shop.reader().await?;
    // Nothing but what is behind the slot's own position can be confirmed.
    let confirm = |to: &str| {
        format!(
            "perform pg_replication_slot_advance('changes', {to}) from pg_replication_slots where slot_name = 'changes' and confirmed_flush_lsn < {to};"
        )
    };
    let tables = format!(
        "create table orders (id bigint generated always as identity primary key, n bigint not null);
         create view log as
             select 0 as part, (lsn - '0/0'::pg_lsn)::bigint as position, substring(data from 'id\\[bigint\\]:(\\d+)') as name
             from pg_logical_slot_peek_changes('changes', null, null) where data like 'table public.orders: INSERT%';
         create function acknowledge(int, bigint) returns void language plpgsql as $body$ begin {} end; $body$;",
        confirm("'0/0'::pg_lsn + $2")
    );
    // It can only be made before anything else in a transaction.
    let slot = "select pg_create_logical_replication_slot('changes', 'test_decoding')";
    for statements in [slot, &tables, TAKEN, &take(true, "", &confirm("ending"))] {
        client.batch_execute(statements).await.with_context(|| statements.to_owned())?;
    }
    server.create_role("measures", "changes").await?;
    shop.secret("orders-source", &[("url", &server.url_as("measures", "changes", &shop.database))])?;
    let append = async |count: i64| {
        client
            .execute("insert into orders (n) select n from generate_series(1, $1::bigint) n", &[&count])
            .await
            .context("writing rows")
    };
    let change = |suspend| {
        json!({"spec": {
            "suspend": suspend,
            "source": {"postgres": {"connection": {"secretRef": {"name": "orders-source"}}, "replicationSlot": {"name": "changes"}}},
            "scaling": {"minWorkers": 0, "maxWorkers": 1, "ordering": "Strict", "idleFor": "5s"},
        }})
    };
    let played = async {
        append(300).await?;
        shop.apply(&projection(&shop.namespace, &TAKES, &change(true)))?;
        let behind = "what is not confirmed is pending, in bytes";
        shop.projection_is("orders", behind, |one| {
            let pending = one.status.as_ref().and_then(|status| status.pending.as_ref());
            pending.is_some_and(|pending| pending.value > 300 && !pending.exact)
        })
        .await?;
        shop.apply(&projection(&shop.namespace, &TAKES, &change(false)))?;
        shop.autoscaler_asks_for("the autoscaler asks for the one", |asked| asked == 1).await?;
        // It may be gone again before it was seen.
        eventually_is(PATIENCE, "what waited is handled", |count| *count == 300, || shop.recorded()).await?;
        append(200).await?;
        shop.projection_is("orders", "all is confirmed", pending_exactly(0)).await?;
        shop.replicas_become(0).await?;
        // What comes while none runs brings it back.
        append(50).await?;
        eventually_is(PATIENCE, "every change is handled", |count| *count == 550, || shop.recorded()).await?;
        shop.consumers_are_gone().await?;
        shop.each_was_handled_once(&(1..=550).map(|id| id.to_string()).collect()).await?;
        let confirmed =
            "select confirmed_flush_lsn >= (select '0/0'::pg_lsn + max(position) from taken) from pg_replication_slots";
        let all = || async { Ok::<bool, anyhow::Error>(client.query_one(confirmed, &[]).await?.get(0)) };
        eventually(PATIENCE, "the slot has passed every change", all).await
    };
    played.await.map_err(|error| stage.cluster.explain(&error, &shop.namespace))?;
    eprintln!("{}: 550 changes, each handled once, by one worker at a time", shop.namespace);
    Ok(())
}

#[test]
fn consumers_of_libraries_event_stores_and_of_a_slot_are_scaled_side_by_side_and_every_event_is_handled_once() {
    let _turn = together();
    play(|stage| async move {
        let libraries = [marten(), commanded(), emmett(), message_db(), akka()];
        let mut all: Vec<_> =
            libraries.into_iter().map(|library| tokio::spawn(consumers_follow(stage, library))).collect();
        all.push(tokio::spawn(slot(stage)));
        try_join_all(all.into_iter().map(|one| async { one.await.context("it broke down")? })).await.map(drop)
    });
}
