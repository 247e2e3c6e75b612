//! Events that are committed below what a projector has passed: seen afterwards and named, whatever brought them there.

use projectionist::{
    api::Reason,
    lag::{CheckpointState, PassedOver, Position},
};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::harness::{Running, append, commit, database, server};

/// Waits until the projection is told of exactly these positions.
async fn passed_over(sampler: &Running, name: &str, positions: &[i64]) {
    let expected = PassedOver { positions: positions.iter().copied().map(Position).collect(), more: 0 };
    sampler.wait_measured("it is told", name, |m| m.sample.faults.passed_over == expected).await;
}

/// Waits until the projection was measured at this checkpoint, so that what lies below was looked at.
async fn seen_at(sampler: &Running, name: &str, position: i64) {
    seen_at_rows(sampler, name, &[position]).await;
}

/// The same for a checkpoint of several rows; returns what that look told the projection of.
async fn seen_at_rows(sampler: &Running, name: &str, positions: &[i64]) -> Vec<i64> {
    let at = CheckpointState::Committed(positions.iter().copied().map(Position).collect());
    let seen = sampler.wait_measured("its checkpoint is seen", name, |m| m.sample.checkpoint == at).await;
    seen.sample.faults.passed_over.positions.iter().map(|position| position.0).collect()
}

/// A table `drawn` without a sequence, and one for checkpoints of several rows.
const DRAWN_AND_ROWS: &str = "
    create table drawn (position bigint primary key, stream text not null, recorded_at timestamptz default now());
    insert into drawn values (1, 'x'), (10, 'x'), (1000, 'y');
    create table rows (projection text, shard text, position bigint, primary key (projection, shard))";

/// Sets the two rows of a checkpoint at once.
async fn commit_rows(client: &Client, name: &str, [first, second]: [i64; 2]) {
    let upsert = "insert into rows values ($1::text, 'x', $2::bigint), ($1::text, 'y', $3::bigint)
         on conflict (projection, shard) do update set position = excluded.position";
    client.execute(upsert, &[&name, &first, &second]).await.unwrap();
}

#[tokio::test]
async fn lower_positions_that_an_application_uses_late_are_named_to_those_who_passed_them_and_no_others() {
    let (url, client) = database(server(), "late").await;
    client
        .batch_execute(
            "create table drawn (position bigint primary key, recorded_at timestamptz default now());
             insert into drawn values (1), (51), (52)",
        )
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    for (name, position) in [("done", 52), ("between", 2), ("behind", 1)] {
        commit(&client, name, position).await;
        sampler.declare(name, |spec| spec["source"]["postgres"]["eventTable"]["table"] = json!("drawn"));
        seen_at(&sampler, name, position).await;
    }
    sampler.wait_pending("behind", 2).await;
    client.batch_execute("insert into drawn values (2), (3)").await.unwrap();
    passed_over(&sampler, "done", &[2, 3]).await;
    passed_over(&sampler, "between", &[2]).await;
    let behind = sampler.wait_pending("behind", 4).await;
    assert_eq!(behind.sample.faults.passed_over, PassedOver::default(), "it will come to them");
    // Once the checkpoint has gone back before them, they are handled.
    commit(&client, "done", 1).await;
    passed_over(&sampler, "done", &[]).await;
    commit(&client, "done", 52).await;
    seen_at(&sampler, "done", 52).await;
    client.batch_execute("insert into drawn values (40), (39)").await.unwrap();
    passed_over(&sampler, "done", &[39, 40]).await;
}

#[tokio::test]
async fn an_event_in_flight_that_a_bold_projector_has_passed_is_named() {
    let (url, client) = database(server(), "bold").await;
    commit(&client, "bold", 0).await;
    commit(&client, "careful", 0).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("bold", |_| {});
    sampler.declare("careful", |_| {});
    sampler.wait_pending("careful", 0).await;
    let slow = server().connect("bold").await.unwrap();
    slow.batch_execute("begin; insert into events default values").await.unwrap();
    append(&client, 3).await;
    commit(&client, "bold", 4).await;
    seen_at(&sampler, "bold", 4).await;
    slow.batch_execute("commit").await.unwrap();
    passed_over(&sampler, "bold", &[1]).await;
    let careful = sampler.wait_pending("careful", 4).await;
    assert_eq!(careful.sample.faults.passed_over, PassedOver::default());
}

#[tokio::test]
async fn explicit_positions_in_the_gaps_of_a_sequence_are_named_and_deletions_updates_and_rollbacks_are_not() {
    let (url, client) = database(server(), "gaps").await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |_| {});
    append(&client, 50).await;
    client.batch_execute("begin; insert into events default values; rollback").await.unwrap();
    append(&client, 50).await;
    commit(&client, "a", 101).await;
    seen_at(&sampler, "a", 101).await;
    client
        .batch_execute(
            "delete from events where position < 20; update events set data = '{\"n\": 1}' where position < 60;
             insert into events (position, stream) overriding system value values (7, 'restored')",
        )
        .await
        .unwrap();
    client.batch_execute("begin; insert into events default values; rollback").await.unwrap();
    append(&client, 2000).await;
    commit(&client, "a", 2_102).await;
    seen_at(&sampler, "a", 2_102).await;
    let measured = sampler.wait_pending("a", 0).await;
    assert_eq!(measured.sample.faults.passed_over, PassedOver::default(), "nothing of this is late");
    client
        .batch_execute("insert into events (position, stream) overriding system value values (51, 's'), (102, 's')")
        .await
        .unwrap();
    passed_over(&sampler, "a", &[51, 102]).await;
}

#[tokio::test]
async fn an_event_that_one_of_several_rows_has_passed_is_named_until_all_rows_have_gone_back_before_it() {
    let (url, client) = database(server(), "late_rows").await;
    client.batch_execute(DRAWN_AND_ROWS).await.unwrap();
    let mut sampler = Running::start(&[("db", &url)]);
    // The first is measured by its lowest row, the other shard by shard.
    for (name, shard) in [("lowest", None), ("shards", Some("stream"))] {
        commit_rows(&client, name, [10, 1000]).await;
        sampler.declare(name, |spec| {
            spec["source"]["postgres"]["eventTable"]["table"] = json!("drawn");
            if let Some(shard) = shard {
                spec["source"]["postgres"]["eventTable"]["shard"] = json!(shard);
            }
            spec["checkpoint"]["readStore"]["table"] = json!("rows");
        });
        assert!(seen_at_rows(&sampler, name, &[10, 1000]).await.is_empty());
    }
    client.batch_execute("insert into drawn values (500, 'y')").await.unwrap();
    for name in ["lowest", "shards"] {
        passed_over(&sampler, name, &[500]).await;
        // The rows come and go, and one of them is always beyond it.
        for rows in [[11, 1000], [12, 1000], [600, 1000], [5, 1000], [5, 500]] {
            commit_rows(&client, name, rows).await;
            assert_eq!(seen_at_rows(&sampler, name, &rows).await, [500], "{name} at {rows:?}");
        }
        commit_rows(&client, name, [5, 499]).await;
        assert!(seen_at_rows(&sampler, name, &[5, 499]).await.is_empty(), "{name} will read it again");
        commit_rows(&client, name, [999, 1000]).await;
        assert!(seen_at_rows(&sampler, name, &[999, 1000]).await.is_empty(), "{name} has handled it");
    }
}

#[tokio::test]
async fn a_late_event_that_is_deleted_is_named_no_more_unless_it_comes_back() {
    let (url, client) = database(server(), "late_deleted").await;
    client.batch_execute(DRAWN_AND_ROWS).await.unwrap();
    commit(&client, "a", 1000).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |spec| spec["source"]["postgres"]["eventTable"]["table"] = json!("drawn"));
    seen_at(&sampler, "a", 1000).await;
    client.batch_execute("insert into drawn values (500, 'y'), (501, 'y')").await.unwrap();
    passed_over(&sampler, "a", &[500, 501]).await;
    client.batch_execute("delete from drawn where position = 500").await.unwrap();
    passed_over(&sampler, "a", &[501]).await;
    client.batch_execute("insert into drawn values (500, 'y')").await.unwrap();
    passed_over(&sampler, "a", &[500, 501]).await;
}

/// The status in which the operator left the events that were passed over.
fn left_behind(positions: &[&str]) -> Value {
    json!({ "passedOver": { "eventTable": "drawn", "positions": positions, "more": 0 } })
}

#[tokio::test]
async fn a_late_event_is_named_by_the_next_process_until_it_is_deleted_or_the_checkpoint_goes_back() {
    let (url, client) = database(server(), "late_restart").await;
    client.batch_execute(DRAWN_AND_ROWS).await.unwrap();
    let drawn = |spec: &mut Value| spec["source"]["postgres"]["eventTable"]["table"] = json!("drawn");
    let mut sampler = Running::start(&[("db", &url)]);
    for name in ["a", "b"] {
        commit(&client, name, 1000).await;
        sampler.declare(name, drawn);
        seen_at(&sampler, name, 1000).await;
    }
    client.batch_execute("insert into drawn values (500, 'y'), (501, 'y')").await.unwrap();
    for name in ["a", "b"] {
        passed_over(&sampler, name, &[500, 501]).await;
    }
    drop(sampler);
    client.batch_execute("delete from drawn where position = 501").await.unwrap();

    let mut next = Running::start(&[("db", &url)]);
    next.declare("untold", drawn);
    commit(&client, "untold", 1000).await;
    for name in ["a", "b"] {
        next.declare_with_status(name, &left_behind(&["500", "501"]), drawn);
        // Its first word: 501 was deleted meanwhile.
        assert_eq!(seen_at_rows(&next, name, &[1000]).await, [500]);
    }
    assert!(seen_at_rows(&next, "untold", &[1000]).await.is_empty(), "what was there before is not late");
    commit(&client, "b", 499).await;
    passed_over(&next, "b", &[]).await;
    commit(&client, "b", 1000).await;
    assert!(seen_at_rows(&next, "b", &[1000]).await.is_empty(), "b has handled it");
    // Another spec, with the status of before: what was put right in this process is not told again.
    commit(&client, "renamed", 900).await;
    next.declare_with_status("b", &left_behind(&["500"]), |spec| {
        drawn(spec);
        spec["checkpoint"]["readStore"]["name"] = json!("renamed");
    });
    assert!(seen_at_rows(&next, "b", &[900]).await.is_empty(), "the status is read at the start only");
    passed_over(&next, "a", &[500]).await;
    client.batch_execute("delete from drawn where position = 500").await.unwrap();
    passed_over(&next, "a", &[]).await;
}

#[tokio::test]
async fn a_late_event_is_named_with_other_credentials_too() {
    let own = server();
    let (_, client) = database(own, "late_rotation").await;
    client.batch_execute(DRAWN_AND_ROWS).await.unwrap();
    let mut sampler = Running::start(&[]);
    for role in ["late_before", "late_after"] {
        own.create_role(role, role).await.unwrap();
        client.batch_execute(&format!("grant select on drawn, checkpoints to {role}")).await.unwrap();
    }
    let as_role = |role: &str| own.url_as(role, role, "late_rotation");
    commit(&client, "a", 1000).await;
    sampler.secrets.0.lock().unwrap().insert("db".to_owned(), as_role("late_before"));
    sampler.declare("a", |spec| spec["source"]["postgres"]["eventTable"]["table"] = json!("drawn"));
    seen_at(&sampler, "a", 1000).await;
    client.batch_execute("insert into drawn values (500, 'y')").await.unwrap();
    passed_over(&sampler, "a", &[500]).await;
    client.batch_execute("drop owned by late_before").await.unwrap();
    sampler.wait_unknown("a", Reason::PermissionDenied).await;
    // Only the new role sees this.
    commit(&client, "a", 999).await;
    sampler.secrets.0.lock().unwrap().insert("db".to_owned(), as_role("late_after"));
    assert_eq!(seen_at_rows(&sampler, "a", &[999]).await, [500]);
}
