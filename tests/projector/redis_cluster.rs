//! Read models in a Redis Cluster.

use serde_json::json;
use test_cluster::{Redis, RedisCluster, eventually_is, redis::Answer};

use crate::{
    dry_run_redis::keys_are_in_the_slots_of_the_real_ones,
    queues,
    queues_into_redis_kept::delivered_again,
    redis::{handlers, number, open},
    workshop::{PATIENCE, RedisTarget},
};

/// The master that has the slot of these braces, among three.
fn home(cluster: &RedisCluster, braces: &str) -> usize {
    let slot = cluster.slot(braces).unwrap();
    (0..3).rev().find(|place| place * 16_384 / 3 <= slot).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_redis_cluster_keys_in_the_projections_braces_are_written_and_others_are_told() {
    let cluster = RedisCluster::start(3, 0, "").unwrap();
    let other = "SET {data.key} {position} | HINCRBY {{shop/redis_cluster}}:totals events 1";
    let mut shop = open("redis_cluster", &cluster.nodes[0], other).await;
    let home = home(&cluster, "{shop/redis_cluster}");
    let key = cluster.key_on((home + 1) % 3, "order").unwrap();
    shop.events.append("s", "Counted", &json!({"n": 1, "key": key})).await.unwrap();
    let worker = shop.start("a");
    let said = worker.says("position 1").await;
    assert!(said.contains("{{shop/redis_cluster}}"), "{said}");
    worker.stop().await;
    shop.redis.as_mut().unwrap().handlers =
        handlers("SET {{shop/redis_cluster}}:{data.key} {position} | HINCRBY {{shop/redis_cluster}}:totals events 1");
    let worker = shop.start("b");
    let home = &cluster.nodes[home];
    let count = || async { home.run("HGET {shop/redis_cluster}:totals events").map(|count| number(&count)) };
    eventually_is(PATIENCE, "the event is handled", |count| *count == 1, count).await.unwrap();
    assert_eq!(home.run(&format!("GET {{shop/redis_cluster}}:{key}")).unwrap(), Answer::Text("1".to_owned()));
    // The claims are of the whole cluster, and so in a slot of their own.
    shop.config.projection = "shop/redis_cluster_other".to_owned();
    let refused = shop.start("c").ended().await.to_string();
    assert!(refused.contains("shop/redis_cluster has claimed it since"), "{refused}");
    worker.stop().await;
    let of_another_node = cluster.key_on((self::home(&cluster, "{shop/orders}") + 1) % 3, "elsewhere").unwrap();
    keys_are_in_the_slots_of_the_real_ones(&cluster, &of_another_node);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_slot_is_moved_to_another_node_nothing_is_written_beside_what_has_not_moved_yet() {
    let cluster = RedisCluster::start(3, 0, "").unwrap();
    let (state, totals) = ("projectionist:{shop/redis_moving}", "{shop/redis_moving}:totals");
    let commands = "HINCRBY {{shop/redis_moving}}:totals events 1";
    let rights = "+eval +hget +hset +hdel +hgetall +hincrby +time +info +cluster|slots +asking";
    for node in &cluster.nodes {
        node.run(&format!("ACL SETUSER cards on >pw ~{state} ~projectionist:claims ~{totals} {rights}")).unwrap();
    }
    let from = home(&cluster, "{shop/redis_moving}");
    let to = (from + 1) % 3;
    let mut shop = open("redis_moving", &cluster.nodes[from], commands).await;
    shop.redis.as_mut().unwrap().url = cluster.nodes[from].url_as("cards", "pw");
    shop.events.append("s", "Counted", &json!({"n": 1})).await.unwrap();
    let worker = shop.start("a");
    let handled = |at: usize, events: i64| {
        let node = &cluster.nodes[at];
        let count = move || async move { node.run(&format!("HGET {totals} events")).map(|count| number(&count)) };
        eventually_is(PATIENCE, "the event is handled", move |count| *count == events, count)
    };
    handled(from, 1).await.unwrap();
    let slot = cluster.slot(state).unwrap();
    let (old, new) = (&cluster.nodes[from], &cluster.nodes[to]);
    let migrate = |key: &str| old.run(&format!("MIGRATE 127.0.0.1 {} {key} 0 5000", new.address().port())).unwrap();
    new.run(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", cluster.id(from).unwrap())).unwrap();
    old.run(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", cluster.id(to).unwrap())).unwrap();
    migrate(state);
    shop.events.append("s", "Counted", &json!({"n": 1})).await.unwrap();
    let said = worker.says("being moved").await;
    assert!(said.contains("503"), "{said}");
    let there = new.run(&format!("CLUSTER COUNTKEYSINSLOT {slot}")).unwrap();
    assert_eq!(there, Answer::Integer(1), "nothing but the state");
    migrate(totals);
    for node in [new, old, &cluster.nodes[(from + 2) % 3]] {
        node.run(&format!("CLUSTER SETSLOT {slot} NODE {}", cluster.id(to).unwrap())).unwrap();
    }
    handled(to, 2).await.unwrap();
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_queue_wait_while_the_slot_is_moved_and_their_notes_come_with_it() {
    let (cluster, source) = (RedisCluster::start(3, 0, "").unwrap(), Redis::on_loopback().unwrap());
    let (name, braces) = ("queue_moving", "{shop/queue_moving}");
    let totals = format!("{braces}:totals");
    let from = home(&cluster, braces);
    let to = (from + 1) % 3;
    let (old, new) = (&cluster.nodes[from], &cluster.nodes[to]);
    for node in &cluster.nodes {
        let rights = "+eval +get +set +hset +hdel +hgetall +pexpire +time +info +cluster|slots +asking";
        let keys = format!("~projectionist:{braces}* ~projectionist:claims ~{totals}");
        node.run(&format!("ACL SETUSER cards on >pw {keys} {rights} +hincrby")).unwrap();
    }
    let mut shop = queues::open(&source, name, "", true).await;
    let commands = "HINCRBY {{shop/queue_moving}}:totals events 1";
    shop.redis = Some(RedisTarget { url: old.url_as("cards", "pw"), handlers: handlers(commands), shared: false });
    let worker = shop.start("a");
    let handled = |at: usize, events: i64| {
        let (node, read) = (&cluster.nodes[at], format!("HGET {totals} events"));
        let count = move || {
            let read = read.clone();
            async move { node.run(&read).map(|count| number(&count)) }
        };
        eventually_is(PATIENCE, "the events are handled", move |count| *count == events, count)
    };
    queues::append(&source, name, 0..5);
    handled(from, 5).await.unwrap();
    queues::acknowledged(&source, name).await;
    let slot = cluster.slot(braces).unwrap();
    new.run(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", cluster.id(from).unwrap())).unwrap();
    old.run(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", cluster.id(to).unwrap())).unwrap();
    queues::append(&source, name, 5..10);
    worker.says("being moved").await;
    assert_eq!(
        new.run(&format!("CLUSTER COUNTKEYSINSLOT {slot}")).unwrap(),
        Answer::Integer(0),
        "nothing is made there"
    );
    let Answer::Array(keys) = old.run(&format!("CLUSTER GETKEYSINSLOT {slot} 100")).unwrap() else { panic!("no keys") };
    assert_eq!(keys.len(), 6, "five notes and the totals");
    let port = new.address().port().to_string();
    for key in &keys {
        old.run_all(&[&["MIGRATE", "127.0.0.1", &port, key.text(), "0", "5000"]]).unwrap();
    }
    for node in [new, old, &cluster.nodes[(from + 2) % 3]] {
        node.run(&format!("CLUSTER SETSLOT {slot} NODE {}", cluster.id(to).unwrap())).unwrap();
    }
    handled(to, 10).await.unwrap();
    delivered_again(&source, name).await;
    handled(to, 10).await.unwrap();
    worker.stop().await;
}
