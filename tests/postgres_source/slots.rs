//! Replication slots: bytes that their consumers have not confirmed, and slots that tell nothing.
//!
//! A slot is caught up only while a consumer confirms again and again: the server writes log of its own (what autovacuum does, which transactions
//! run), so that a slot which is moved to the end once is behind again soon.

use std::time::{Duration, Instant};

use projectionist::{
    api::Reason,
    lag::{CheckpointState, Note, Pending, Position},
    snapshot::Measured,
};
use serde_json::json;
use test_cluster::{Postgres, eventually_is};
use tokio::sync::OnceCell;
use tokio_postgres::Client;

use crate::harness::{Running, SOON, sampler_connections};

fn declare(sampler: &mut Running, name: &str) {
    sampler.declare(name, |spec| {
        spec["source"]["postgres"] =
            json!({ "connection": { "secretRef": { "name": "db" } }, "replicationSlot": { "name": name } });
        let fields = spec.as_object_mut().unwrap();
        fields.remove("checkpoint");
        fields.remove("readStore");
    });
}

/// A server that keeps changes for logical consumers; it can only be told before it starts.
async fn logical() -> Postgres {
    let own = Postgres::on_loopback().unwrap();
    let client = own.connect("postgres").await.unwrap();
    client.batch_execute("alter system set wal_level = 'logical'").await.unwrap();
    drop(client);
    own.stop().unwrap();
    own.start().unwrap();
    let client = own.connect("postgres").await.unwrap();
    client.batch_execute("create table t (x text)").await.unwrap();
    own
}

/// The one for all tests that do not reconfigure it.
pub(crate) async fn shared() -> (&'static Postgres, Client) {
    static SERVER: OnceCell<Postgres> = OnceCell::const_new();
    let own = SERVER.get_or_init(logical).await;
    (own, own.connect("postgres").await.unwrap())
}

async fn create(client: &Client, name: &str) {
    client.execute("select pg_create_logical_replication_slot($1, 'test_decoding')", &[&name]).await.unwrap();
}

async fn write(client: &Client) {
    client.batch_execute("insert into t select repeat('x', 500) from generate_series(1, 2000)").await.unwrap();
}

fn confirmed(measured: &Measured) -> Position {
    match measured.sample.checkpoint {
        CheckpointState::Committed(ref positions) => positions[0],
        ref other => panic!("a slot keeps a position: {other:?}"),
    }
}

fn lacks_consumer(measured: &Measured) -> bool {
    measured.sample.notes.iter().any(|note| matches!(note, Note::NoConsumer(_)))
}

fn is_caught_up(measured: &Measured) -> bool {
    measured.assessment.pending == Pending { events: 0, exact: true }
        && measured.assessment.staleness == Some(Duration::ZERO)
}

/// Waits until the server says this of a slot.
async fn wait_status(client: &Client, slot: &str, status: &str) {
    let ask = || async {
        let row =
            client.query_one("select wal_status from pg_replication_slots where slot_name = $1", &[&slot]).await?;
        row.try_get::<_, String>(0)
    };
    eventually_is(SOON, status, |now| now == status, ask).await.unwrap();
}

#[tokio::test]
async fn a_slot_is_behind_by_the_bytes_that_its_consumer_has_not_confirmed() {
    let (own, client) = shared().await;
    create(&client, "a").await;
    own.create_role("slot_reader", "hunter2").await.unwrap();
    // No right is needed beyond the login.
    let mut sampler = Running::start(&[("db", &own.url_as("slot_reader", "hunter2", "postgres"))]);
    declare(&mut sampler, "a");
    declare(&mut sampler, "missing");
    let first = sampler.wait_measured("measured", "a", |_| true).await;
    let missing = sampler.wait_unknown("missing", Reason::SlotNotFound).await;
    assert!(missing.message.contains("replication slot missing"), "{}", missing.message);

    write(&client).await;
    // Other tests write as well, into the same log.
    let behind = sampler.wait_measured("behind", "a", |m| m.sample.arrived > first.sample.arrived + 1_000_000).await;
    assert!(!behind.assessment.pending.exact, "other tables' bytes are among them");
    assert_eq!(confirmed(&behind), confirmed(&first));
    assert!(behind.assessment.pending.events > 1_000_000, "{behind:?}");
    assert!(lacks_consumer(&behind), "{:?}", behind.sample.notes);

    let consumer = own.consume("postgres", "a").unwrap();
    let caught_up = sampler.wait_measured("caught up", "a", is_caught_up).await;
    assert!(!lacks_consumer(&caught_up) && confirmed(&caught_up) > confirmed(&behind), "{caught_up:?}");
    let written = Instant::now();
    write(&client).await;
    let again = sampler.wait_measured("caught up again", "a", |m| {
        is_caught_up(m) && confirmed(m).0 > confirmed(&caught_up).0 + 1_000_000
    });
    again.await;
    drop(consumer);

    write(&client).await;
    let aged = |m: &Measured| m.assessment.staleness.is_some_and(|age| age > Duration::from_secs(3));
    let stale = |m: &Measured| aged(m) && m.assessment.pending.events > 1_000_000 && lacks_consumer(m);
    let stale = sampler.wait_measured("stale", "a", stale).await;
    // It was caught up after `written`, so that nothing that waits is older.
    assert!(stale.assessment.staleness.unwrap() < written.elapsed(), "{stale:?}");
}

#[tokio::test]
async fn a_login_to_any_database_of_the_server_suffices_and_is_needed() {
    let (own, client) = shared().await;
    create(&client, "rights").await;
    own.create_database("slot_rights").await.unwrap();
    own.create_role("slot_login", "hunter2").await.unwrap();
    client
        .batch_execute("alter role slot_login nologin; revoke connect on database slot_rights from public")
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &own.url_as("slot_login", "hunter2", "slot_rights"))]);
    declare(&mut sampler, "rights");
    let rights = [
        ("alter role slot_login login", "alter role slot_login nologin", Reason::AuthenticationFailed),
        (
            "grant connect on database slot_rights to slot_login",
            "revoke connect on database slot_rights from slot_login",
            Reason::PermissionDenied,
        ),
    ];
    for (give, _, without) in rights {
        sampler.wait_unknown("rights", without).await;
        client.batch_execute(give).await.unwrap();
    }
    sampler.wait_measured("measured", "rights", |_| true).await;
    for (give, take, without) in rights {
        client.batch_execute(take).await.unwrap();
        // The server asks for both when a connection begins.
        let end = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'slot_login'";
        client.batch_execute(end).await.unwrap();
        sampler.wait_unknown("rights", without).await;
        client.batch_execute(give).await.unwrap();
        sampler.wait_measured("measured again", "rights", |_| true).await;
    }
}

#[tokio::test]
async fn a_slot_that_is_dropped_is_missing_and_one_that_is_made_again_counts_from_where_it_begins() {
    let (own, client) = shared().await;
    create(&client, "old").await;
    write(&client).await;
    let mut sampler = Running::start(&[("db", &own.url("postgres"))]);
    declare(&mut sampler, "again");
    sampler.wait_unknown("again", Reason::SlotNotFound).await;
    write(&client).await;
    create(&client, "again").await;
    let first = sampler.wait_measured("created", "again", |_| true).await;

    client.batch_execute("select pg_drop_replication_slot('again')").await.unwrap();
    sampler.wait_unknown("again", Reason::SlotNotFound).await;
    write(&client).await;
    create(&client, "again").await;
    let later = sampler.wait_measured("created again", "again", |m| confirmed(m) > confirmed(&first)).await;

    // A copy of a slot that is further behind: its position lies before the one that was seen last.
    client
        .batch_execute(
            "select pg_drop_replication_slot('again'); select pg_copy_logical_replication_slot('old', 'again')",
        )
        .await
        .unwrap();
    let back = sampler.wait_measured("gone back", "again", |m| confirmed(m) < confirmed(&first)).await;
    assert!(back.assessment.pending.events > later.assessment.pending.events + 2_000_000, "{back:?}");
    assert_eq!(back.assessment.staleness, None, "it waits for what was written before the first look");
}

#[tokio::test]
async fn a_slot_that_is_temporary_or_unused_is_unknown_in_words_and_a_physical_one_is_measured() {
    let (own, client) = shared().await;
    client
        .batch_execute(
            "select pg_create_physical_replication_slot('passing', true, true);
             select pg_create_physical_replication_slot('unused'); select pg_create_physical_replication_slot('kept', true)",
        )
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &own.url("postgres"))]);
    for name in ["passing", "unused", "kept"] {
        declare(&mut sampler, name);
    }
    let temporary = sampler.wait_unknown("passing", Reason::InvalidSpec).await;
    assert!(temporary.message.contains("temporary"), "{}", temporary.message);
    sampler.wait_unknown("unused", Reason::NeverCommitted).await;
    write(&client).await;
    let behind = sampler.wait_measured("behind", "kept", |m| m.assessment.pending.events > 1_000_000).await;
    client.batch_execute("select pg_replication_slot_advance('kept', pg_current_wal_lsn())").await.unwrap();
    sampler.wait_measured("moved on", "kept", |m| confirmed(m).0 > confirmed(&behind).0 + 1_000_000).await;
}

#[tokio::test]
async fn a_slot_whose_log_is_removed_is_announced_and_then_lost() {
    let own = logical().await;
    let client = own.connect("postgres").await.unwrap();
    let mut sampler = Running::start(&[("db", &own.url("postgres"))]);
    for name in ["a", "other"] {
        create(&client, name).await;
        declare(&mut sampler, name);
        sampler.wait_measured("measured", name, |_| true).await;
    }
    assert_eq!(sampler_connections(&client, "postgres").await, 1);
    client.batch_execute("alter system set max_slot_wal_keep_size = '1MB'").await.unwrap();
    client.batch_execute("select pg_reload_conf()").await.unwrap();
    for _ in 0..3 {
        // The end of the log moves to a new file.
        client.batch_execute("insert into t values ('x'); select pg_switch_wal()").await.unwrap();
    }
    wait_status(&client, "a", "unreserved").await;
    let threatened = |m: &Measured| {
        m.sample
            .notes
            .iter()
            .any(|note| matches!(note, Note::Estimated(text) if text.contains("max_slot_wal_keep_size")))
    };
    let warned = sampler.wait_measured("announced", "a", threatened).await;
    assert!(warned.assessment.pending.events > 16_000_000, "{warned:?}");

    client.batch_execute("checkpoint").await.unwrap();
    wait_status(&client, "a", "lost").await;
    let lost = sampler.wait_unknown("a", Reason::SourceFailed).await;
    assert!(lost.message.contains("replication slot a: it is lost"), "{}", lost.message);
    client.batch_execute("select pg_drop_replication_slot('a')").await.unwrap();
    create(&client, "a").await;
    sampler.wait_measured("created again", "a", |_| true).await;
}

#[tokio::test]
async fn a_standby_is_refused_and_measured_once_it_is_the_primary() {
    let (own, _) = shared().await;
    let standby = own.standby().unwrap();
    let reader = || async { standby.connect("postgres").await.map(|_| true) };
    eventually_is(SOON, "the standby answers", |answers| *answers, reader).await.unwrap();
    let client = standby.connect("postgres").await.unwrap();
    client.batch_execute("select pg_create_physical_replication_slot('cascade', true)").await.unwrap();
    let mut sampler = Running::start(&[("db", &standby.url("postgres"))]);
    declare(&mut sampler, "cascade");
    let refused = sampler.wait_unknown("cascade", Reason::SourceIsReplica).await;
    assert!(refused.message.contains("name the primary"), "{}", refused.message);
    client.execute("select pg_promote()", &[]).await.unwrap();
    sampler.wait_measured("promoted", "cascade", |_| true).await;
}
