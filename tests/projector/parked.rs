//! Events that fail every time: parked with what follows them in their streams, skipped, or waited for; and handled again or dropped.

use std::{collections::BTreeMap, time::Duration};

use projectionist::{api::OnPoison, projector::Poison};
use serde_json::json;
use test_cluster::{always_is, eventually_is};

use crate::workshop::{PATIENCE, SETUP, Workshop};

/// A handler that refuses the number 0 until the read model is mended, with the error that the event names; and counts how often it was run.
const REFUSES: &str = "insert into applied (position, stream, n) values (:position, :stream, refuse((:data->>'n')::bigint, :data->>'code'))";
const REFUSING: &str = "create sequence if not exists runs;
     create table if not exists mended (at timestamptz);
     create or replace function refuse(n bigint, code text) returns bigint language plpgsql as $$ begin
         if n = 0 then
             perform nextval('runs');
             if not exists (select from mended) then raise exception 'refused' using errcode = coalesce(code, 'P0001'); end if;
         end if;
         return n;
     end $$";

/// A projection that sets events aside.
pub(crate) async fn shop(name: &str, on_poison: OnPoison, max_parked: u32) -> Workshop {
    let mut shop = Workshop::open(name, REFUSES).await;
    shop.sql.setup = Some(format!("{SETUP}; {REFUSING}"));
    shop.sql.handlers = BTreeMap::from([("Counted".to_owned(), REFUSES.to_owned())]);
    shop.config.poison = Poison { on_poison, max_parked, ..Poison::default() };
    shop
}

impl Workshop {
    /// Appends to a stream, and returns the last position.
    pub(crate) async fn append(&self, stream: &str, numbers: &[i64]) -> i64 {
        let mut last = 0;
        for n in numbers {
            last = self.events.append(stream, "Counted", &json!({ "n": n })).await.unwrap();
        }
        last
    }

    /// Waits until so many events are in this state.
    pub(crate) async fn aside(&self, state: &str, count: i64) {
        let counted = format!("select count(*) from projectionist_parked where state = '{state}'");
        let look = || async { Ok::<_, anyhow::Error>(self.try_ask::<i64>(&counted).await.unwrap_or(-1)) };
        eventually_is(PATIENCE, &format!("{count} events are {state}"), |seen| *seen == count, look).await.unwrap();
    }

    async fn mend(&self) {
        self.store.batch_execute("insert into mended values (now())").await.unwrap();
    }

    /// How many events a call of a function returns.
    pub(crate) async fn call(&self, call: &str) -> i64 {
        self.ask(&format!("select count(*) from {call}")).await
    }
}

/// Side by side, since each waits most of its time until an event is tried again.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_fail_every_time_are_set_aside_as_the_projection_says() {
    tokio::join!(
        an_event_is_parked_with_what_follows_it_in_its_stream_and_replayed_in_order(),
        what_fails_again_stays_with_its_stream_and_what_is_dropped_frees_it(),
        no_more_are_parked_than_may_be_those_behind_others_included(),
        a_failure_that_may_pass_or_is_the_handlers_parks_nothing(),
        what_is_skipped_is_noted_and_its_stream_goes_on(),
    );
}

async fn an_event_is_parked_with_what_follows_it_in_its_stream_and_replayed_in_order() {
    let shop = shop("parked", OnPoison::Park, 100).await;
    shop.append("bad", &[1, 0, 2, 3]).await;
    shop.events.append_events(50).await.unwrap();
    let worker = shop.start("a");
    shop.aside("parked", 3).await;
    shop.applied(51).await;
    worker.says("200 OK").await;
    let kept = "select string_agg(concat_ws('|', place, stream, type, error_class, attempts >= 3, first_failed_at < parked_at, data::jsonb->>'n', reason), E'\n' order by position)
         from projectionist_parked";
    let kept: String = shop.ask(kept).await;
    let kept: Vec<&str> = kept.lines().collect();
    assert!(
        kept[0].starts_with("position 2|bad|Counted|P0001|t|t|0|") && kept[0].contains("SQLSTATE P0001"),
        "{kept:?}"
    );
    assert_eq!(kept[1], "position 3|bad|Counted|f|2|behind the event at position 2");
    assert_eq!(kept[2], "position 4|bad|Counted|f|3|behind the event at position 2");
    shop.append("bad", &[4]).await;
    shop.aside("parked", 4).await;
    // Another worker takes over what the first one knew.
    worker.stop().await;
    let worker = shop.start("b");
    shop.append("bad", &[5]).await;
    shop.aside("parked", 5).await;
    let dry = "projectionist_replay('shop/parked', dry_run => true)";
    assert_eq!(
        (shop.call(dry).await, shop.ask::<i64>("select count(*) from projectionist_parked where replay").await),
        (5, 0)
    );
    // What follows a parked event is not handled without it.
    assert_eq!(shop.call("projectionist_replay('shop/parked', event_positions => array[3, 4]::bigint[])").await, 0);
    shop.mend().await;
    assert_eq!(shop.call("projectionist_replay('shop/parked', event_stream => 'bad', at_most => 2)").await, 2);
    shop.aside("parked", 3).await;
    assert_eq!(shop.call("projectionist_replay('shop/parked')").await, 3);
    shop.aside("parked", 0).await;
    shop.append("bad", &[6]).await;
    shop.assert_exact(57).await;
    worker.stop().await;
}

async fn what_fails_again_stays_with_its_stream_and_what_is_dropped_frees_it() {
    let shop = shop("dropped", OnPoison::Park, 100).await;
    let bad = shop.append("bad", &[0]).await;
    shop.append("bad", &[2, 3]).await;
    let worker = shop.start("a");
    shop.aside("parked", 3).await;
    let attempts: i32 = shop.ask("select max(attempts) from projectionist_parked").await;
    assert_eq!(shop.call("projectionist_replay('shop/dropped')").await, 3);
    let again = "select array_agg(attempts order by position) from projectionist_parked where not replay";
    let look = || shop.try_ask::<Option<Vec<i32>>>(again);
    let failed = |seen: &Option<Vec<i32>>| *seen == Some(vec![attempts + 1, 0, 0]);
    eventually_is(PATIENCE, "it failed once more, and none is marked", failed, look).await.unwrap();
    let unnamed = shop.try_ask::<i64>("select count(*) from projectionist_drop('shop/dropped', ' ', array[1])").await;
    assert!(unnamed.is_err(), "without a reason");
    let drop = format!("projectionist_drop('shop/dropped', 'a test order', event_positions => array[{bad}])");
    assert_eq!(shop.call(&drop).await, 1);
    shop.aside("dropped", 1).await;
    assert_eq!(
        shop.ask::<String>("select dropped_reason from projectionist_parked where dropped_at is not null").await,
        "a test order"
    );
    // What was behind it is replayed by hand, and what comes meanwhile waits for that.
    shop.append("bad", &[4]).await;
    shop.aside("parked", 3).await;
    assert_eq!(shop.call("projectionist_replay('shop/dropped', event_type => 'Counted')").await, 3);
    shop.aside("parked", 0).await;
    shop.append("bad", &[5]).await;
    shop.applied(4).await;
    assert_eq!(shop.ask::<Vec<i64>>("select array_agg(n order by seq) from applied").await, [2, 3, 4, 5]);
    worker.stop().await;
}

async fn no_more_are_parked_than_may_be_those_behind_others_included() {
    let shop = shop("full", OnPoison::Park, 2).await;
    shop.append("a", &[0, 1]).await;
    let worker = shop.start("a");
    shop.aside("parked", 2).await;
    shop.append("b", &[0, 1]).await;
    shop.append("a", &[2]).await;
    shop.events.append_events(40).await.unwrap();
    let said = worker.says("spec.failure.maxParked (2)").await;
    assert!(said.contains("projectionist_replay"), "{said}");
    let recorded = "select count(*) from projectionist_checkpoints where failure like '%maxParked (2)%'";
    let look = || shop.try_ask::<i64>(recorded);
    eventually_is(PATIENCE, "both shards wait, and say why", |seen| *seen == 2, look).await.unwrap();
    let parked = || shop.try_ask::<i64>("select count(*) from projectionist_parked");
    always_is(Duration::from_secs(1), "no third one", |seen| *seen == 2, parked).await.unwrap();
    assert_eq!(shop.call("projectionist_drop('shop/full', 'test', event_stream => 'a')").await, 2);
    shop.aside("parked", 2).await;
    assert_eq!(
        shop.ask::<i64>("select count(*) from projectionist_parked where state = 'parked' and stream = 'b'").await,
        2
    );
    shop.applied(41).await;
    assert_eq!(shop.ask::<i64>("select count(*) from applied where stream = 'a'").await, 1, "the stream was freed");
    worker.says("200 OK").await;
    worker.stop().await;
}

async fn a_failure_that_may_pass_or_is_the_handlers_parks_nothing() {
    let shop = shop("passing", OnPoison::Park, 100).await;
    let codes = ["55P03", "57014", "42P01"];
    for code in codes {
        shop.events.append(code, "Counted", &json!({"n": 0, "code": code})).await.unwrap();
    }
    let shards: i64 = shop
        .events
        .client()
        .query_one("select count(distinct hashtextextended(stream, 0) % 12) from events", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(shards, 3, "they wait side by side");
    let worker = shop.start("a");
    // Four times each, of which three without the others, are more than it takes to park.
    let runs =
        || async { Ok::<_, anyhow::Error>(shop.try_ask::<i64>("select last_value from runs").await.unwrap_or(0)) };
    eventually_is(PATIENCE, "they are tried", |seen| *seen >= 12, runs).await.unwrap();
    let parked = || shop.try_ask::<i64>("select count(*) from projectionist_parked");
    always_is(Duration::from_millis(500), "none is parked", |seen| *seen == 0, parked).await.unwrap();
    shop.mend().await;
    shop.applied(3).await;
    worker.stop().await;
}

async fn what_is_skipped_is_noted_and_its_stream_goes_on() {
    let shop = shop("skipped", OnPoison::Skip, 1).await;
    let worker = shop.start("a");
    let bad = shop.append("bad", &[0]).await;
    shop.append("bad", &[1]).await;
    shop.append("worse", &[0, 2]).await;
    shop.aside("skipped", 2).await;
    shop.applied(2).await;
    worker.says("200 OK").await;
    assert_eq!(shop.call("projectionist_replay('shop/skipped')").await, 0, "not by default");
    shop.mend().await;
    let replay =
        format!("projectionist_replay('shop/skipped', event_positions => array[{bad}]::bigint[], skipped => true)");
    assert_eq!(shop.call(&replay).await, 1);
    shop.aside("skipped", 1).await;
    shop.applied(3).await;
    worker.stop().await;
}
