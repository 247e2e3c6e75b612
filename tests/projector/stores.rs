//! Event stores of libraries as input: their tables as the libraries make them, and no others of their events than the Projection names.

use projectionist::{
    api::Projection,
    projector::{Input, PostgresInput, ProjectorConfig},
    resolve::{Pods, Workload, validate},
};
use serde_json::{Value, json};
use test_cluster::{Redis, eventually_is};

use crate::{
    elasticsearch,
    event_stores::{MESSAGE_DB, marten_ddl},
    killing::killed_and_frozen,
    redis,
    workshop::{APPLY, PATIENCE, Workshop},
};

/// What workers read for a Projection whose source is this.
pub(crate) fn input(source: &Value) -> PostgresInput {
    let mut postgres = json!({"connection": {"secretRef": {"name": "events"}}});
    postgres.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
    let projection: Projection = serde_json::from_value(json!({
        "apiVersion": "projectionist.dev/v1alpha1",
        "kind": "Projection",
        "metadata": {"namespace": "shop", "name": "orders", "uid": "1", "generation": 1},
        "spec": {
            "source": {"postgres": postgres},
            "readStore": {"postgres": {"connection": {"secretRef": {"name": "reads"}}}},
            "lag": {"target": "5s"},
            "scaling": {"shards": 12},
            "projector": {"builtin": {"handlers": {"Counted": APPLY}}},
        },
    }))
    .unwrap();
    let validated = validate(&projection).unwrap();
    let Workload::Own { pods: Pods::Builtin(pods), .. } = validated.workload else { panic!("no built-in projector") };
    let config = ProjectorConfig::from_json(&pods.configuration.to_string()).unwrap();
    let Input::Postgres(input) = config.input else { panic!("another input") };
    input
}

/// Appends, kills one of two workers in the middle, and waits until the rest is done. `append` makes so many events of which all are meant.
pub(crate) async fn each_once_through_a_kill(shop: &Workshop, append: impl AsyncFn(i64), events: &str) {
    append(1_000).await;
    let workers = [shop.start_process("a"), shop.start_process("b")];
    let handled =
        || async { Ok::<_, anyhow::Error>(shop.try_ask::<i64>("select count(*) from applied").await.unwrap_or(-1)) };
    eventually_is(PATIENCE, "some events are handled", |seen| *seen >= 200, handled).await.unwrap();
    workers[0].signal("KILL");
    append(500).await;
    shop.applied(1_500).await;
    drop(workers);
    assert_eq!(shop.ask::<i64>("select count(distinct position) from applied").await, 1_500, "each once");
    shop.assert_in_order().await;
    let written: i64 = shop.events.client().query_one(events, &[]).await.unwrap().get(0);
    assert_eq!(shop.ask::<i64>("select sum(position)::bigint from applied").await, written, "no other events");
}

/// Lets the events be those of one tenant in Marten's tables. What of them is meant is the view `events`, from which assertions read.
async fn in_marten(shop: &mut Workshop) {
    *shop.table() = input(&json!({"marten": {"schema": "store", "tenant": "one"}}));
    let view =
        "drop table events; create view events as select seq_id as position, stream_id::text as stream, type, data
         from store.mt_events where tenant_id = 'one' and not is_archived";
    let tables = format!("create schema store; {}; {view}", marten_ddl("store", false));
    shop.events.client().batch_execute(&tables).await.unwrap();
}

/// Appends so many events that are meant, of which each eleventh is of this type, and twice as many that are archived or another tenant's.
async fn append_to_marten(shop: &Workshop, count: i64, each_eleventh: &str) {
    let insert = "insert into store.mt_events (seq_id, id, stream_id, version, data, type, tenant_id, is_archived)
         select nextval('store.mt_events_sequence'), gen_random_uuid(), md5((n % 40)::text)::uuid, n, jsonb_build_object('n', n),
             case n % 33 when 0 then $2 else 'Counted' end, case n % 3 when 2 then 'two' else 'one' end, n % 3 = 1
         from generate_series(0, 3 * $1::bigint - 1) n";
    shop.events.client().execute(insert, &[&count, &each_eleventh]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_marten_are_handled_once_but_neither_archived_ones_nor_those_of_other_tenants() {
    let mut shop = Workshop::open("marten", APPLY).await;
    in_marten(&mut shop).await;
    let append = async |count| append_to_marten(&shop, count, "Counted").await;
    each_once_through_a_kill(&shop, append, "select sum(position)::bigint from events").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_marten_come_once_and_in_order_into_redis_while_workers_are_killed_and_frozen() {
    let redis = Redis::on_loopback().unwrap();
    let mut shop = redis::open("marten_redis", &redis, redis::COUNTED).await;
    in_marten(&mut shop).await;
    let append = async |count| append_to_marten(&shop, count, "Counted").await;
    let shared = async |holdings: &[usize]| redis::shared(&shop, &redis, holdings).await;
    let workers = killed_and_frozen(&shop, append, shared).await;
    redis::assert_exact(&shop, &redis).await;
    drop(workers);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_marten_come_once_and_in_order_into_elasticsearch_while_workers_are_killed_and_frozen() {
    let (server, name) = (elasticsearch::open_search(), "marten_search");
    elasticsearch::make_indices(server, name);
    let mut shop = elasticsearch::open(name, server, elasticsearch::counted(name)).await;
    in_marten(&mut shop).await;
    let append = async |count| append_to_marten(&shop, count, "Cleared").await;
    let shared = async |holdings: &[usize]| elasticsearch::shared(&shop, server, holdings).await;
    let workers = killed_and_frozen(&shop, append, shared).await;
    elasticsearch::assert_exact(&shop, server).await;
    drop(workers);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_category_of_message_db_are_handled_once_and_no_others() {
    let mut shop = Workshop::open("message_db", APPLY).await;
    *shop.table() = input(&json!({"messageDb": {"category": "order"}}));
    let client = shop.events.client();
    client.batch_execute(MESSAGE_DB).await.unwrap();
    let append = async |count: i64| {
        let insert = "insert into message_store.messages (stream_name, position, type, data)
             select case n % 2 when 0 then 'order-' else 'orderPosition-' end || n % 40, (select coalesce(max(position), 0) from message_store.messages) + 1 + n,
                 'Counted', '{\"n\": 1}'
             from generate_series(0, 2 * $1::bigint - 1) n";
        client.execute(insert, &[&count]).await.unwrap();
    };
    let meant = "select sum(global_position)::bigint from message_store.messages where stream_name like 'order-%'";
    each_once_through_a_kill(&shop, append, meant).await;
}
