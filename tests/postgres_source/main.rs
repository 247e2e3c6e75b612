//! The sampler against a real PostgreSQL: what it measures, what it calls unknown, and what it leaves alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod akka;
mod awaiting;
mod certificates;
mod checkpoints;
mod columns;
mod commanded;
mod connections;
mod cost;
mod emmett;
#[path = "../support/event_stores.rs"]
mod event_stores;
mod faults;
mod harness;
mod held_back;
mod late;
mod marten;
mod message_db;
mod outbox;
mod pooled;
mod positions;
mod query;
mod shards;
mod slots;

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use harness::{Running, append, commit, database, log_head, sampler_connections, server};
use projectionist::{
    api::Reason,
    lag::{Certain, Pending, Position},
};
use serde_json::{Value, json};
use test_cluster::{Postgres, eventually_is};

type Change = Box<dyn FnOnce(&mut Value)>;

#[tokio::test]
async fn an_uncommitted_earlier_event_holds_the_safe_head_and_its_writer_is_named() {
    let (url, client) = database(server(), "interleaved").await;
    append(&client, 5).await;
    commit(&client, "a", 5).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |_| {});
    sampler.wait_pending("a", 0).await;

    let slow = server().connect("interleaved").await.unwrap();
    let pid: i32 = slow.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    slow.batch_execute("begin; insert into events default values").await.unwrap();
    append(&client, 3).await;
    let held = sampler.wait_measured("the raw head moved", "a", |m| log_head(&m.sample).raw == Position(9)).await;
    assert_eq!(log_head(&held.sample).safe, Position(5), "position 6 is still in flight");
    assert_eq!(held.sample.blocked_by.as_ref().unwrap().pid, Some(pid));
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let still = sampler.wait_measured("still held", "a", |_| true).await;
    assert_eq!((log_head(&still.sample).safe, still.sample.held_back), (Position(5), 3));
    assert_eq!(still.assessment.pending, Pending { events: 3, exact: true }, "what is committed waits, safe or not");
    assert!(still.sample.blocked_by.as_ref().unwrap().open_for.unwrap() > Duration::from_secs(1));

    slow.batch_execute("commit").await.unwrap();
    let all = sampler.wait_measured("released", "a", |m| log_head(&m.sample).safe == Position(9)).await;
    assert_eq!(all.assessment.pending, Pending { events: 4, exact: true });
    assert_eq!(all.sample.arrived, 4);
    assert!(all.sample.blocked_by.is_none());

    slow.batch_execute("begin; insert into events default values").await.unwrap();
    append(&client, 2).await;
    sampler
        .wait_measured("held again", "a", |m| {
            log_head(&m.sample).raw == Position(12) && log_head(&m.sample).safe == Position(9)
        })
        .await;
    slow.batch_execute("rollback").await.unwrap();
    let passed =
        sampler.wait_measured("10 will never be filled", "a", |m| log_head(&m.sample).safe == Position(12)).await;
    assert_eq!((passed.assessment.pending.events, passed.sample.held_back, passed.sample.arrived), (6, 0, 6));
}

#[tokio::test]
async fn a_position_that_was_only_drawn_holds_the_safe_head_too() {
    let (url, client) = database(server(), "drawn").await;
    commit(&client, "a", 0).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |_| {});
    sampler.wait_pending("a", 0).await;
    let slow = server().connect("drawn").await.unwrap();
    slow.batch_execute("begin; select nextval(pg_get_serial_sequence('events', 'position'))").await.unwrap();
    append(&client, 1).await;
    let held = sampler.wait_measured("the raw head moved", "a", |m| log_head(&m.sample).raw == Position(2)).await;
    assert_eq!(log_head(&held.sample).safe, Position(0));
    slow.batch_execute("insert into events (position) overriding system value values (1); commit").await.unwrap();
    sampler.wait_pending("a", 2).await;
}

#[tokio::test]
async fn a_writer_on_a_partition_holds_the_safe_head() {
    let (url, client) = database(server(), "partitioned").await;
    let partitioned = "drop table events; create sequence positions;
        create table events (position bigint not null default nextval('positions'), recorded_at timestamptz default now()) partition by range (position);
        create table events_1 partition of events for values from (0) to (1000);
        create unique index on events (position);";
    client.batch_execute(partitioned).await.unwrap();
    commit(&client, "a", 0).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |_| {});
    sampler.wait_pending("a", 0).await;
    let slow = server().connect("partitioned").await.unwrap();
    slow.batch_execute("begin; insert into events_1 (position) values (1)").await.unwrap();
    client.batch_execute("insert into events (position) values (2)").await.unwrap();
    let held = sampler.wait_measured("the raw head moved", "a", |m| log_head(&m.sample).raw == Position(2)).await;
    assert_eq!(log_head(&held.sample).safe, Position(0));
    slow.batch_execute("commit").await.unwrap();
    sampler.wait_pending("a", 2).await;
}

#[tokio::test]
async fn projections_on_one_database_share_one_connection() {
    let (url, client) = database(server(), "shared").await;
    append(&client, 10).await;
    let mut sampler = Running::start(&[("db", &url), ("other", &url)]);
    for n in 0..10_i64 {
        let name = format!("p{n}");
        commit(&client, &name, n).await;
        sampler.declare(&name, |spec| {
            if n % 2 == 1 {
                spec["readStore"]["postgres"]["connection"]["secretRef"]["name"] = json!("other");
            }
        });
    }
    for n in 0..10 {
        sampler.wait_pending(&format!("p{n}"), 10 - n).await;
    }
    assert_eq!(sampler_connections(&client, "shared").await, 1);
    assert!(*sampler.first_round.borrow());
    assert_eq!(sampler.metrics.servers.load(Relaxed), 1);
}

#[tokio::test]
async fn a_notification_wakes_the_sampler_and_does_so_after_a_reconnect_too() {
    let (url, client) = database(server(), "notified").await;
    commit(&client, "a", 0).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |spec| {
        spec["source"]["postgres"]["eventTable"]["notifyChannel"] = json!("Appended");
    });
    sampler.wait_pending("a", 0).await;
    for round in 1..=3 {
        append(&client, 1).await;
        // The end of a connection wakes the sampler too: that has happened after two more polls.
        let polls = || async { Ok::<_, std::convert::Infallible>(sampler.metrics.polls.load(Relaxed)) };
        let later = polls().await.unwrap() + 2;
        eventually_is(harness::SOON, "two more polls", |polls| *polls >= later, polls).await.unwrap();
        let before = sampler.pushes();
        // What is announced before a new connection listens is lost, so that it is announced until it is heard.
        let announced = || async {
            client.batch_execute("notify \"Appended\"").await?;
            Ok::<_, tokio_postgres::Error>(sampler.pushes())
        };
        eventually_is(harness::SOON, "a notification wakes the sampler", |now| *now > before, announced).await.unwrap();
        sampler.wait_pending("a", round).await;
        let sessions =
            "from pg_stat_activity where application_name = 'projectionist-sampler' and datname = 'notified'";
        let ended = client.query_one(&format!("select pid, pg_terminate_backend(pid) {sessions}"), &[]).await.unwrap();
        let others = format!("select count(*) {sessions} and pid <> $1");
        let connected = || async {
            Ok::<_, tokio_postgres::Error>(
                client.query_one(&others, &[&ended.get::<_, i32>(0)]).await?.get::<_, i64>(0),
            )
        };
        eventually_is(harness::SOON, "the sampler has connected again", |others| *others == 1, connected)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_locked_table_is_unknown_the_others_go_on_and_it_comes_back() {
    let (url, client) = database(server(), "locked").await;
    client.batch_execute("create table locked_events (like events including all)").await.unwrap();
    commit(&client, "a", 0).await;
    commit(&client, "b", 0).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |_| {});
    sampler.declare("b", |spec| spec["source"]["postgres"]["eventTable"]["table"] = json!("locked_events"));
    sampler.wait_pending("a", 0).await;
    sampler.wait_pending("b", 0).await;
    let holder = server().connect("locked").await.unwrap();
    holder.batch_execute("begin; lock table locked_events").await.unwrap();
    let unknown = sampler.wait_unknown("b", Reason::TimedOut).await;
    assert!(unknown.message.contains("locked_events"), "{}", unknown.message);
    for round in 1..=3 {
        append(&client, 1).await;
        sampler.wait_pending("a", round).await;
    }
    assert_eq!(sampler_connections(&client, "locked").await, 1);
    holder.batch_execute("rollback").await.unwrap();
    sampler.wait_pending("b", 0).await;
}

#[tokio::test]
async fn a_stopped_and_a_hanging_server_are_unknown_others_go_on_and_they_come_back() {
    let own = Postgres::on_loopback().unwrap();
    let (url, client) = database(&own, "events").await;
    append(&client, 3).await;
    commit(&client, "a", 1).await;
    let (other, steady) = database(server(), "steady").await;
    commit(&steady, "b", 0).await;
    let mut sampler = Running::start(&[("db", &url), ("other", &other)]);
    sampler.declare("a", |_| {});
    sampler.declare("b", |spec| {
        for store in ["source", "readStore"] {
            spec[store]["postgres"]["connection"]["secretRef"]["name"] = json!("other");
        }
    });
    sampler.wait_pending("a", 2).await;
    own.stop().unwrap();
    let seen = sampler.wait_unknown("a", Reason::ConnectionRefused).await;
    assert!(seen.message.contains("database events at 127.0.0.1:"), "{}", seen.message);
    assert!(sampler.observation("a").unwrap().measured.is_some(), "the last good measurement is kept");
    own.start().unwrap();
    sampler.wait_pending("a", 2).await;

    own.pause().unwrap();
    sampler.wait_unknown("a", Reason::TimedOut).await;
    append(&steady, 1).await;
    sampler.wait_pending("b", 1).await;
    own.resume().unwrap();
    sampler.wait_pending("a", 2).await;
}

#[tokio::test]
async fn a_read_store_that_hangs_does_not_stop_the_others_on_the_same_source() {
    let own = Postgres::on_loopback().unwrap();
    let (hanging, client) = database(&own, "read").await;
    commit(&client, "a", 0).await;
    let (url, events) = database(server(), "manystores").await;
    commit(&events, "b", 0).await;
    let mut sampler = Running::start(&[("db", &url), ("read", &hanging)]);
    sampler.declare("a", |spec| spec["readStore"]["postgres"]["connection"]["secretRef"]["name"] = json!("read"));
    sampler.declare("b", |_| {});
    sampler.wait_pending("a", 0).await;
    own.pause().unwrap();
    for round in 1..=3 {
        append(&events, 1).await;
        sampler.wait_pending("b", round).await;
    }
    let unknown = sampler.wait_unknown("a", Reason::TimedOut).await;
    assert!(unknown.message.starts_with("read store: "), "{}", unknown.message);
    own.resume().unwrap();
    sampler.wait_pending("a", 3).await;
}

#[tokio::test]
async fn each_failure_has_its_reason_and_concerns_only_its_projection() {
    let (url, client) = database(server(), "failures").await;
    server().create_role("reader", "hunter2").await.unwrap();
    client
        .batch_execute(
            "grant select on events, checkpoints to reader; create table hidden (like events including all);
             create table odd (position text, recorded_at text); create view seen as select * from events;
             create table bunched (position bigserial primary key, recorded_at timestamptz);
             alter sequence bunched_position_seq cache 20;
             create table odd_checkpoints (projection text, position numeric);
             create table raw_checkpoints (projection text, position text); insert into raw_checkpoints values ('quoting', 'hunter2');
             create view quoting_checkpoints as select projection, position::bigint as position from raw_checkpoints;
             grant select on quoting_checkpoints, odd, seen, bunched, odd_checkpoints to reader",
        )
        .await
        .unwrap();
    commit(&client, "good", 0).await;
    let reader = server().url_as("reader", "hunter2", "failures");
    let port = server().address().port();
    let mut sampler = Running::start(&[
        ("db", &reader),
        ("wrong", &server().url_as("reader", "hunter2-wrong", "failures")),
        ("nodb", &server().url_as("reader", "hunter2", "missing")),
        ("nohost", &format!("postgres://reader:hunter2@no-such-host.invalid:{port}/failures")),
        ("closed", "postgres://reader:hunter2@127.0.0.1:1/failures"),
        ("notls", &format!("{url}?sslmode=verify-full")),
        ("garbage", "hunter2"),
    ]);
    let source = |field: &'static str, value: &'static str| {
        move |spec: &mut Value| spec["source"]["postgres"]["eventTable"][field] = json!(value)
    };
    let secret = |name: &'static str| {
        move |spec: &mut Value| spec["source"]["postgres"]["connection"]["secretRef"]["name"] = json!(name)
    };
    let checkpoint = |field: &'static str, value: &'static str| {
        move |spec: &mut Value| spec["checkpoint"]["readStore"][field] = json!(value)
    };
    sampler.declare("good", |_| {});
    let cases: Vec<(&str, Reason, Change)> = vec![
        ("no-table", Reason::TableNotFound, Box::new(source("table", "nowhere"))),
        ("no-column", Reason::ColumnNotFound, Box::new(source("position", "place"))),
        ("hidden", Reason::PermissionDenied, Box::new(source("table", "hidden"))),
        ("odd", Reason::ColumnTypeUnsuitable, Box::new(source("table", "odd"))),
        ("odd-time", Reason::ColumnTypeUnsuitable, Box::new(source("recordedAt", "type"))),
        ("bunched", Reason::PositionUnsuitable, Box::new(source("table", "bunched"))),
        ("view", Reason::InvalidSpec, Box::new(source("table", "seen"))),
        ("no-checkpoints", Reason::TableNotFound, Box::new(checkpoint("table", "nowhere"))),
        ("no-checkpoint-column", Reason::ColumnNotFound, Box::new(checkpoint("positionColumn", "place"))),
        ("odd-checkpoints", Reason::ColumnTypeUnsuitable, Box::new(checkpoint("table", "odd_checkpoints"))),
        ("quoting", Reason::ColumnTypeUnsuitable, Box::new(checkpoint("table", "quoting_checkpoints"))),
        ("never", Reason::NeverCommitted, Box::new(|_: &mut Value| {})),
        ("wrong", Reason::AuthenticationFailed, Box::new(secret("wrong"))),
        ("nodb", Reason::DatabaseNotFound, Box::new(secret("nodb"))),
        ("nohost", Reason::HostNotFound, Box::new(secret("nohost"))),
        ("closed", Reason::ConnectionRefused, Box::new(secret("closed"))),
        ("notls", Reason::TlsFailed, Box::new(secret("notls"))),
        ("garbage", Reason::ConnectionStringInvalid, Box::new(secret("garbage"))),
        ("nosecret", Reason::SecretNotFound, Box::new(secret("nosecret"))),
    ];
    let mut expected = Vec::new();
    for (name, reason, change) in cases {
        if name != "never" {
            commit(&client, name, 0).await;
        }
        sampler.declare(name, change);
        expected.push((name, reason));
    }
    for (name, reason) in expected {
        let unknown = sampler.wait_unknown(name, reason).await;
        println!("{name}: {reason}: {}", unknown.message);
    }
    append(&client, 2).await;
    sampler.wait_pending("good", 2).await;
    client.batch_execute("create table nowhere (like events including all)").await.unwrap();
    client.batch_execute("grant select on nowhere to reader").await.unwrap();
    sampler.wait_pending("no-table", 0).await;
}

#[tokio::test]
async fn what_makes_no_sense_is_unknown_and_never_zero() {
    let (url, client) = database(server(), "nonsense").await;
    append(&client, 4).await;
    commit(&client, "a", 2).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |_| {});
    sampler.wait_pending("a", 2).await;
    commit(&client, "a", 90).await;
    let unknown = sampler.wait_unknown("a", Reason::CheckpointBeyondHead).await;
    assert!(unknown.message.contains("90") && unknown.message.contains('4'), "{}", unknown.message);
    commit(&client, "a", 4).await;
    client.batch_execute("insert into events (recorded_at) values (null)").await.unwrap();
    let odd = sampler.wait_pending("a", 1).await;
    assert_eq!(odd.assessment.staleness, None, "NULL is not fresh");
    commit(&client, "a", 5).await;
    client.batch_execute("insert into events (recorded_at) values (now() + interval '1 hour')").await.unwrap();
    let ahead = sampler.wait_measured("ahead", "a", |m| log_head(&m.sample).safe == Position(6)).await;
    assert_eq!(ahead.assessment.staleness, Some(Duration::ZERO));
    assert!(ahead.sample.ahead_of_clock > Duration::from_secs(3_500));
    commit(&client, "a", 6).await;
    client.batch_execute("insert into events (recorded_at) values (now() - interval '1 minute')").await.unwrap();
    let stale =
        sampler.wait_measured("stale", "a", |m| log_head(&m.sample).safe == Position(7)).await.assessment.staleness;
    assert!((60.0..70.0).contains(&stale.unwrap().as_secs_f64()), "{stale:?}");
    client.batch_execute("truncate events restart identity").await.unwrap();
    sampler.wait_unknown("a", Reason::CheckpointBeyondHead).await;
    commit(&client, "a", 0).await;
    append(&client, 2).await;
    sampler.wait_pending("a", 2).await;
}

#[tokio::test]
async fn a_table_that_is_dropped_is_told_and_one_that_is_made_again_is_another_log() {
    let (url, client) = database(server(), "dropped").await;
    append(&client, 9).await;
    commit(&client, "a", 7).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |_| {});
    sampler.wait_pending("a", 2).await;
    client.batch_execute("create table model (like events including all); drop table events").await.unwrap();
    let gone = sampler.wait_unknown("a", Reason::TableNotFound).await;
    assert!(gone.message.contains("events"), "{}", gone.message);
    client.batch_execute("alter table model rename to events").await.unwrap();
    append(&client, 3).await;
    sampler.wait_unknown("a", Reason::CheckpointBeyondHead).await;
    commit(&client, "a", 0).await;
    let again = sampler.wait_pending("a", 3).await;
    assert_eq!((log_head(&again.sample).raw, again.sample.arrived), (Position(3), 0), "nothing has come since");
}

#[tokio::test]
async fn several_rows_of_one_name_give_the_lowest_and_no_exact_count() {
    let (url, client) = database(server(), "rows").await;
    append(&client, 9).await;
    client.batch_execute("alter table checkpoints drop constraint checkpoints_pkey; insert into checkpoints values ('a', 7), ('a', 3), ('a', null)").await.unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |_| {});
    let seen = sampler.wait_measured("measured", "a", |_| true).await;
    assert_eq!(seen.assessment.pending, Pending { events: 6, exact: false });
    assert_eq!(seen.sample.certain, Some(Certain::Newest(2)), "8 and 9 wait for certain");
}

#[tokio::test]
async fn far_behind_the_count_is_an_upper_bound() {
    let (url, client) = database(server(), "far").await;
    append(&client, 30_000).await;
    commit(&client, "a", 0).await;
    commit(&client, "b", 29_000).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |_| {});
    sampler.declare("b", |_| {});
    sampler.wait_pending("b", 1_000).await;
    let far = sampler.wait_measured("measured", "a", |_| true).await;
    assert_eq!(far.assessment.pending, Pending { events: 30_000, exact: false });
}

#[tokio::test]
async fn a_corrected_secret_connects_without_a_restart() {
    let (url, client) = database(server(), "rotated").await;
    commit(&client, "a", 0).await;
    let mut sampler = Running::start(&[("db", &server().url_as("postgres", "hunter2", "rotated"))]);
    sampler.declare("a", |_| {});
    sampler.wait_unknown("a", Reason::AuthenticationFailed).await;
    sampler.secrets.0.lock().unwrap().insert("db".to_owned(), url);
    sampler.wait_pending("a", 0).await;
}

#[tokio::test]
async fn where_nothing_moves_nothing_is_counted_again() {
    let (url, client) = database(server(), "quiet").await;
    append(&client, 100).await;
    commit(&client, "a", 10).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |_| {});
    sampler.wait_pending("a", 90).await;
    let first = sampler.wait_measured("measured", "a", |_| true).await.assessment.staleness.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    // The counting statement is the last that names the bounds of a segment; polls go on, it does not.
    let last = "select extract(epoch from now() - query_start)::float8 from pg_stat_activity where application_name = 'projectionist-sampler' and datname = 'quiet' and query like '%unnest%'";
    assert!(client.query_opt(last, &[]).await.unwrap().is_none(), "the connection's last statement is a look");
    let later = sampler.wait_measured("measured", "a", |_| true).await.assessment.staleness.unwrap();
    assert!(later > first + Duration::from_secs(1), "{first:?} {later:?}: events that wait grow old all the same");
}
