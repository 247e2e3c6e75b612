//! Tables with checkpoints: those of the built-in projector, and those that are in the way of others.

use std::{collections::BTreeSet, time::Duration};

use projectionist::{api::Reason, clients::postgres::shard_expression, lag::Pending};
use serde_json::json;

use crate::harness::{BUILTIN_CHECKPOINTS, Running, append, commit, counted_in_shards, database, server};

#[tokio::test]
async fn the_builtin_projectors_shards_are_counted_one_by_one() {
    let (url, client) = database(server(), "shards").await;
    append(&client, 1_000).await;
    let mut sampler = Running::start(&[("db", &url)]);
    sampler.declare("a", |spec| {
        spec["projector"] = json!({ "builtin": { "handlers": { "t": "select 1" } } });
        spec["scaling"] = json!({ "shards": 4 });
        spec.as_object_mut().unwrap().remove("checkpoint");
    });
    sampler.wait_unknown("a", Reason::NeverCommitted).await;
    client
        .batch_execute(&format!(
            "{BUILTIN_CHECKPOINTS}
             insert into projectionist_checkpoints values ('shop/a', 0, 4, 0), ('shop/a', 1, 4, 500), ('shop/a', 2, 4, 1000), ('shop/a', 3, 4, 990)",
        ))
        .await
        .unwrap();
    let seen = sampler.wait_measured("measured", "a", |_| true).await;
    let count = format!(
        "select count(*) from events e join projectionist_checkpoints c on c.shard = {} where e.position > c.position",
        shard_expression("stream", 4)
    );
    let expected = counted_in_shards(&client, &count).await;
    assert_eq!(seen.sample.pending_by_shard, expected);
    assert_eq!(seen.assessment.pending, Pending { events: expected.iter().sum(), exact: true });
    client.batch_execute("update projectionist_checkpoints set position = 1000").await.unwrap();
    sampler.wait_pending("a", 0).await;
}

#[tokio::test]
async fn parked_events_are_counted_and_unknown_is_not_none() {
    let (url, client) = database(server(), "parked").await;
    append(&client, 10).await;
    let modest = {
        server().create_role("parked_reader", "parked_reader").await.unwrap();
        server().url_as("parked_reader", "parked_reader", "parked")
    };
    client
        .batch_execute(&format!(
            "{BUILTIN_CHECKPOINTS}
             insert into projectionist_checkpoints select p, n, 2, 10 from generate_series(0, 1) n, unnest(array['shop/a', 'shop/b']) p;
             grant select on all tables in schema public to parked_reader"
        ))
        .await
        .unwrap();
    let mut sampler = Running::start(&[("db", &url), ("modest", &modest)]);
    let built_in = |spec: &mut serde_json::Value| {
        spec["projector"] = json!({ "builtin": { "handlers": { "t": "select 1" } } });
        spec["scaling"] = json!({ "shards": 2 });
        spec.as_object_mut().unwrap().remove("checkpoint");
    };
    sampler.declare("a", built_in);
    assert_eq!(sampler.wait_pending("a", 0).await.sample.parked, None, "nothing is ever set aside");
    client
        .batch_execute(
            "create table projectionist_parked (projection text, state text);
             insert into projectionist_parked values ('shop/a', 'parked'), ('shop/a', 'parked'), ('shop/a', 'skipped'), ('shop/a', 'dropped'), ('shop/b', 'parked')",
        )
        .await
        .unwrap();
    sampler.wait_measured("counted", "a", |measured| measured.sample.parked == Some(2)).await;
    client.batch_execute("delete from projectionist_parked where projection = 'shop/a'").await.unwrap();
    sampler.wait_measured("none", "a", |measured| measured.sample.parked == Some(0)).await;
    sampler.declare("b", |spec| {
        built_in(spec);
        spec["readStore"]["postgres"]["connection"]["secretRef"]["name"] = json!("modest");
    });
    let unknown = sampler.wait_measured("hidden", "b", |measured| measured.sample.parked.is_none()).await;
    let notes = format!("{:?}", unknown.sample.notes);
    assert!(notes.contains("ParkedUnknown") && notes.contains("grant select"), "{notes}");
}

#[tokio::test]
async fn checkpoint_tables_that_are_locked_do_not_keep_others_from_being_read() {
    let (url, client) = database(server(), "locked_checkpoints").await;
    append(&client, 5).await;
    let names: Vec<String> = (0..6).map(|number| format!("held_{number}")).collect();
    for name in &names {
        let table = format!(
            "create table {name} (projection text primary key, position bigint not null); insert into {name} values ('{name}', 0)"
        );
        client.batch_execute(&table).await.unwrap();
    }
    commit(&client, "free", 3).await;
    let mut sampler = Running::start(&[("db", &url)]);
    for name in &names {
        sampler.declare(name, |spec| spec["checkpoint"]["readStore"]["table"] = json!(name));
    }
    sampler.declare("free", |_| {});
    sampler.wait_pending("free", 2).await;
    for name in &names {
        sampler.wait_pending(name, 5).await;
    }
    let holder = server().connect("locked_checkpoints").await.unwrap();
    holder.batch_execute(&format!("begin; lock table {}", names.join(", "))).await.unwrap();
    for name in &names {
        sampler.wait_unknown(name, Reason::TimedOut).await;
    }
    // Six locks take longer to wait for than a poll lasts. After two polls that read the free table, each has been in the way once.
    let (mut looks, mut settled) = (BTreeSet::new(), None);
    while settled.is_none_or(|settled| looks.len() < settled + 5) {
        let seen = sampler.observation("free").unwrap();
        looks.extend(seen.measured.as_ref().map(|measured| measured.sample.at));
        settled = settled.or_else(|| Some(looks.len()).filter(|looks| *looks > 2));
        assert!(settled.is_none() || seen.failure.is_none(), "after {} looks: {:?}", looks.len(), seen.failure);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    holder.batch_execute("rollback").await.unwrap();
    for name in &names {
        sampler.wait_pending(name, 5).await;
    }
}
