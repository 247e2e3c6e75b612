//! What an event holds may be personal: nothing of it is found in what a worker tells, and the event is found all the same.

use std::collections::BTreeMap;

use serde_json::json;
use test_cluster::eventually_is;

use crate::workshop::{PATIENCE, Workshop};

const CANARY: &str = "canary_4711";

/// Event type, its value, handler, SQLSTATE, and what else is told.
const FAILING: [(&str, &str, &str, &str, &str); 11] = [
    ("NoNumber", CANARY, "insert into told values ((:data->>'v')::bigint)", "22P02", "invalid_text_representation"),
    ("NoDate", CANARY, "select (:data->>'v')::timestamptz", "22007", "invalid_datetime_format"),
    ("NoJson", CANARY, "select (:data->>'v')::jsonb", "22P02", "invalid_text_representation"),
    ("NoTable", CANARY, "select (:data->>'v')::regclass", "42P01", "undefined_table"),
    ("NoUnit", "timezone", "select date_trunc(:data->>'v', now())", "0A000", "feature_not_supported"),
    ("Twice", CANARY, "insert into emails values (:data->>'v')", "23505", "unique constraint \"emails_pkey\""),
    ("Forbidden", CANARY, "insert into short values (:data->>'v')", "23514", "check constraint \"short_email_check\""),
    ("Long", CANARY, "insert into narrow values (:data->>'v')", "22001", "string_data_right_truncation"),
    ("Dynamic", CANARY, "select dynamic(:data->>'v')", "42703", "undefined_column"),
    ("Raised", CANARY, "select raised(:data->>'v', 'P0001')", "P0001", "raise_exception"),
    ("Disguised", CANARY, "select raised(:data->>'v', '40001')", "40001", "serialization_failure"),
];

const SETUP: &str = "create table if not exists told (n bigint);
     create table if not exists emails (email text primary key);
     insert into emails values ('canary_4711') on conflict do nothing;
     create table if not exists short (email text check (length(email) < 3));
     create table if not exists narrow (email varchar(3));
     create or replace function dynamic(v text) returns void language plpgsql as $$ begin execute 'select ' || v; end $$;
     create or replace function raised(v text, code text) returns void language plpgsql as
         $$ begin raise notice 'see %', v; raise exception 'bad %', v using errcode = code, detail = v, hint = v, column = v; end $$";

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_event_is_named_by_position_and_code_and_nothing_of_it_is_told() {
    let mut shop = Workshop::open("discretion", "").await;
    shop.sql.setup = Some(SETUP.to_owned());
    // So many that each stream has a shard of its own: a failed event holds those behind it in its shard.
    shop.table().shards = 1_000;
    shop.sql.handlers = FAILING
        .iter()
        .map(|(name, _, handler, ..)| ((*name).to_owned(), (*handler).to_owned()))
        .collect::<BTreeMap<_, _>>();
    let mut positions = Vec::new();
    for (name, value, ..) in FAILING {
        let data = json!({ "v": value, "unused": CANARY });
        positions.push(shop.events.append(&format!("{CANARY} {name}"), name, &data).await.unwrap());
    }
    let worker = shop.start_process("a");
    let mut heard = Vec::new();
    for ((name, _, _, code, told), position) in FAILING.into_iter().zip(positions) {
        let named = format!("handler of event type {name} failed on the event at position {position}: ");
        let line = |output: &str| output.lines().find(|line| line.contains(&named)).map(str::to_owned);
        let found = || async { Ok::<_, anyhow::Error>(line(&worker.output())) };
        let line = eventually_is(PATIENCE, name, Option::is_some, found).await.unwrap().unwrap();
        heard.push(worker.readiness().await.unwrap());
        assert!(line.contains(&format!("(SQLSTATE {code}")) && line.contains(told), "{line}");
        assert_eq!(line.contains("run the SQL by hand in psql"), !code.starts_with("23"), "{line}");
    }
    heard.push(worker.output());
    assert!(heard.iter().any(|answer| answer.contains("503") && answer.contains("failed on the event at position")));
    assert!(heard.last().unwrap().contains("DEBUG"), "even where it tells the most");
    let leaks: Vec<&str> = heard.iter().flat_map(|text| text.lines()).filter(|line| line.contains(CANARY)).collect();
    assert_eq!(leaks, Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setup_that_fails_on_a_row_does_not_tell_it() {
    let mut shop = Workshop::open("discreet_setup", "select 1").await;
    shop.store
        .batch_execute("create table people (age text); insert into people values ('canary_4711')")
        .await
        .unwrap();
    shop.sql.setup = Some("alter table people alter column age type bigint using age::bigint".to_owned());
    let worker = shop.start("a");
    let answer = worker.says("invalid_text_representation (SQLSTATE 22P02").await;
    assert!(answer.contains("the setup SQL failed on the read store") && !answer.contains(CANARY), "{answer}");
    worker.stop().await;
}
