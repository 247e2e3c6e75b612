//! What workers on a queue keep in Redis: notes that expire, the rights that they need, and servers that would lose them.

use std::time::Duration;

use test_cluster::{Redis, eventually, eventually_is, redis::Answer};

use crate::{
    queues,
    queues_into_redis::{COUNTED, assert_each_once, failures, open},
    redis::{handled, handlers, items, number},
    workshop::{PATIENCE, Workshop},
};

/// What docs/projector.md lists for queues, beside the keys and the handlers' own.
const RIGHTS: [&str; 9] = ["+eval", "+get", "+set", "+hset", "+hdel", "+hgetall", "+pexpire", "+time", "+info"];

/// The notes of messages.
fn notes(shop: &Workshop, redis: &Redis) -> Vec<String> {
    // Keys may hold blanks.
    let pattern = format!("projectionist:{{{}}}:seen:*", shop.config.projection);
    items(&redis.run_all(&[&["KEYS", &pattern]]).unwrap()[0])
}

/// For how many milliseconds a key is kept.
fn kept_for(redis: &Redis, key: &str) -> i64 {
    number(&redis.run_all(&[&["PTTL", key]]).unwrap()[0])
}

/// Lets the group give all entries once more, and waits until they are acknowledged again.
pub(crate) async fn delivered_again(redis: &Redis, key: &str) {
    redis.run(&format!("XGROUP SETID {key} list 0")).unwrap();
    let last = || async {
        let Answer::Array(groups) = redis.run(&format!("XINFO GROUPS {key}"))? else { anyhow::bail!("no groups") };
        let Answer::Array(fields) = &groups[0] else { anyhow::bail!("no group") };
        let at = fields.iter().position(|field| *field == Answer::Text("last-delivered-id".to_owned())).unwrap();
        let newest = redis.run(&format!("XREVRANGE {key} + - COUNT 1"))?;
        let Answer::Array(newest) = newest else { anyhow::bail!("no entries") };
        let Answer::Array(newest) = &newest[0] else { anyhow::bail!("no entry") };
        Ok(fields[at + 1] == newest[0] && queues::pending(redis, key) == 0)
    };
    eventually(PATIENCE, "all are acknowledged again", last).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_note_expires_and_is_kept_longer_where_its_message_comes_again() {
    let redis = Redis::on_loopback().unwrap();
    let key = "into_redis_notes";
    let shop = open(&redis, key, COUNTED, true).await;
    let worker = shop.start("a");
    queues::append(&redis, key, 0..20);
    handled(&redis, 20).await;
    queues::acknowledged(&redis, key).await;
    let all = notes(&shop, &redis);
    assert_eq!(all.len(), 20);
    let hour = i64::try_from(Duration::from_secs(3_600).as_millis()).unwrap();
    for note in &all {
        assert!((1..=hour).contains(&kept_for(&redis, note)), "{note}");
        redis.run_all(&[&["PEXPIRE", note, "600000"]]).unwrap();
    }
    delivered_again(&redis, key).await;
    assert_each_once(&redis, 20).await;
    assert!(all.iter().all(|note| kept_for(&redis, note) > 600_000));
    // What has no note any more is taken for new.
    redis.run_all(&[&["DEL", &all[0]]]).unwrap();
    delivered_again(&redis, key).await;
    assert_eq!(number(&redis.run("HGET totals events").unwrap()), 21);
    assert_eq!(notes(&shop, &redis).len(), 20);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_note_that_no_worker_has_written_holds_its_message_alone_until_it_is_mended() {
    let redis = Redis::on_loopback().unwrap();
    let key = "into_redis_tampered";
    let shop = open(&redis, key, COUNTED, true).await;
    let worker = shop.start("a");
    queues::append(&redis, key, 0..20);
    handled(&redis, 20).await;
    queues::acknowledged(&redis, key).await;
    let [text, hash]: [String; 2] = notes(&shop, &redis)[..2].to_vec().try_into().unwrap();
    redis.run_all(&[&["SET", &text, "no-note-canary"], &["DEL", &hash], &["HSET", &hash, "a", "1"]]).unwrap();
    redis.run(&format!("XGROUP SETID {key} list 0")).unwrap();
    // Those in front of them and behind them in the same script go on, and those that come later.
    queues::append(&redis, key, 20..30);
    handled(&redis, 30).await;
    let two = |why: &Vec<String>| why.len() == 2;
    let why = eventually_is(PATIENCE, "both are told", two, || failures(&shop, &redis)).await.unwrap();
    let is_told = |why: &String| {
        why.contains("its note holds what no worker writes")
            && why.contains("DEL \"projectionist:{shop/")
            && !why.contains("canary")
    };
    assert!(why.iter().all(is_told), "{why:?}");
    let left = || async { anyhow::Ok(queues::pending(&redis, key) == 2) };
    eventually(PATIENCE, "only these are left", left).await.unwrap();
    assert_each_once(&redis, 30).await;
    // Nothing is made of what is there, until it is said: the one was handled, the other was not.
    let kept = redis.run_all(&[&["GET", &text], &["TYPE", &hash]]).unwrap();
    assert_eq!([kept[0].text(), kept[1].text()], ["no-note-canary", "hash"]);
    redis.run_all(&[&["SET", &text, "1", "PX", "3600000"], &["DEL", &hash]]).unwrap();
    handled(&redis, 31).await;
    queues::acknowledged(&redis, key).await;
    assert_eq!(number(&redis.run("HGET totals events").unwrap()), 31);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_are_listed_suffice_and_each_of_them_is_needed() {
    let page = include_str!("../../docs/projector.md");
    let listed = RIGHTS.join(" ");
    assert!(page.contains(&listed), "docs/projector.md lists them: {listed}");
    assert!(page.contains("~projectionist:{shop/orders}* ~projectionist:claims"), "docs/projector.md lists the keys");
    let redis = Redis::on_loopback().unwrap();
    let key = "into_redis_rights";
    let mut shop = open(
        &redis,
        key,
        "RPUSH applied {data.n} | HINCRBY totals {stream} {data.n} | SADD card:{data.n} {stream} | HINCRBY totals events 1",
        true,
    )
    .await;
    redis.run("SET card:13 no-set").unwrap();
    queues::append(&redis, key, 0..20);
    shop.redis.as_mut().unwrap().url = redis.url_as("cards", "pw");
    let allow = |rights: &[&str]| {
        let keys = format!("~projectionist:{{shop/{key}}}* ~projectionist:claims ~applied ~totals ~card:*");
        let rights = rights.join(" ");
        redis.run(&format!("ACL SETUSER cards reset on >pw {keys} {rights} +rpush +hincrby +sadd")).unwrap();
    };
    let without = |right: &str| RIGHTS.into_iter().filter(|other| *other != right).collect::<Vec<_>>();
    for right in ["+eval", "+get", "+set", "+hset", "+hgetall", "+pexpire", "+time"] {
        allow(&without(right));
        let said = shop.start(right).says("grant the user").await;
        assert!(said.contains("503") && said.contains("read store"), "{right}: {said}");
        if right == "+eval" || right == "+get" || right == "+set" {
            assert_eq!(redis.run("EXISTS applied").unwrap(), Answer::Integer(0), "{right}");
        }
    }
    allow(&RIGHTS);
    let worker = shop.start("failed");
    let failed = |why: &Vec<String>| why.len() == 1;
    eventually_is(PATIENCE, "one has failed", failed, || failures(&shop, &redis)).await.unwrap();
    worker.stop().await;
    redis.run("DEL card:13").unwrap();
    allow(&without("+hdel"));
    shop.start("+hdel").says("grant the user").await;
    allow(&RIGHTS);
    let worker = shop.start("all");
    queues::acknowledged(&redis, key).await;
    delivered_again(&redis, key).await;
    assert_each_once(&redis, 20).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_evicts_keys_and_a_handler_that_asks_for_a_position_are_refused() {
    let redis = Redis::with("maxmemory 50mb\nmaxmemory-policy volatile-lru").unwrap();
    let key = "into_redis_evicts";
    let mut shop = open(&redis, key, COUNTED, true).await;
    queues::append(&redis, key, 0..20);
    let worker = shop.start("a");
    for policy in ["volatile-lru", "allkeys-lfu"] {
        redis.run(&format!("CONFIG SET maxmemory-policy {policy}")).unwrap();
        let said = worker.says(policy).await;
        assert!(said.contains("set noeviction") && said.contains("503"), "{said}");
    }
    assert!(notes(&shop, &redis).is_empty());
    redis.run("CONFIG SET maxmemory-policy noeviction").unwrap();
    assert_each_once(&redis, 20).await;
    worker.stop().await;
    shop.redis.as_mut().unwrap().handlers = handlers("SET a:{stream} {position}");
    let refused = shop.start("b").ended().await.to_string();
    assert!(refused.contains("{position}") && refused.contains("messages of a queue have none"), "{refused}");
}
