//! Checkpoints in Redis: what a key can hold, and what is read.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use projectionist::{
    api::{CheckpointLocation, CheckpointRows, Reason, RedisLocation, RedisPart},
    clients::redis::ConnectionSettings,
    lag::{CheckpointState, Position},
    measure::MeasureError,
    read_stores::{Checkpoint, CheckpointStore, RedisStore},
};
use serde_json::json;
use test_cluster::Redis;
use tokio::time::Instant;

use crate::{
    harness::{append, declare, events, redis_server, sampler_with},
    sampler::loopback,
};

fn store(url: &str) -> CheckpointStore {
    let settings = ConnectionSettings::from_keys(|key| (key == "url").then_some(url)).unwrap();
    CheckpointStore::Redis(Arc::new(RedisStore::new(settings.identity(), loopback())))
}

fn by_shard() -> CheckpointRows {
    CheckpointRows::Keyed { column: None, shards: None }
}

fn at(key: &str, part: RedisPart, rows: CheckpointRows) -> CheckpointLocation {
    CheckpointLocation::Redis(RedisLocation { key: key.to_owned(), part, rows })
}

fn value(key: &str) -> CheckpointLocation {
    at(key, RedisPart::Value, CheckpointRows::One)
}

fn field(key: &str, name: &str) -> CheckpointLocation {
    at(key, RedisPart::Field(name.to_owned()), CheckpointRows::One)
}

async fn read_within(
    store: &CheckpointStore,
    locations: &[CheckpointLocation],
    limit: Duration,
) -> Vec<Result<Checkpoint, MeasureError>> {
    let asked: BTreeSet<CheckpointLocation> = locations.iter().cloned().collect();
    let mut answers = store.read(&asked, Instant::now() + limit).await;
    assert_eq!(answers.len(), asked.len());
    locations.iter().map(|location| answers.remove(location).unwrap()).collect()
}

async fn read(store: &CheckpointStore, location: &CheckpointLocation) -> Result<Checkpoint, MeasureError> {
    read_within(store, std::slice::from_ref(location), Duration::from_secs(60)).await.remove(0)
}

fn run(commands: &str) {
    for line in commands.lines().map(str::trim).filter(|line| !line.is_empty()) {
        redis_server().run(line).unwrap();
    }
}

fn committed(positions: &[i64]) -> CheckpointState {
    CheckpointState::Committed(positions.iter().copied().map(Position).collect())
}

#[tokio::test]
async fn a_position_is_read_from_a_text_or_a_field_and_one_that_is_missing_was_never_committed() {
    run("SET plain 41\nHSET hash orders 7 bills 0\nSET largest 9223372036854775807");
    let store = store(&redis_server().url());
    for (location, state) in [
        (value("plain"), committed(&[41])),
        (value("largest"), committed(&[i64::MAX])),
        (field("hash", "orders"), committed(&[7])),
        (field("hash", "bills"), committed(&[0])),
        (value("nowhere"), CheckpointState::NeverCommitted),
        (field("hash", "unheard"), CheckpointState::NeverCommitted),
        (field("nowhere", "orders"), CheckpointState::NeverCommitted),
        (at("nowhere", RedisPart::Fields, by_shard()), CheckpointState::NeverCommitted),
        (at("nowhere:", RedisPart::Keys(3), by_shard()), CheckpointState::NeverCommitted),
    ] {
        let found = read(&store, &location).await.unwrap();
        assert_eq!((found.state, found.bound), (state, None), "{location:?}");
    }
}

#[tokio::test]
async fn each_shard_has_a_field_or_a_key_and_one_without_has_no_position() {
    run("HSET shards b 5 a 3\nSET part:0 10\nSET part:2 30");
    let store = store(&redis_server().url());
    let fields = read(&store, &at("shards", RedisPart::Fields, by_shard())).await.unwrap();
    let names = |checkpoint: &Checkpoint| {
        checkpoint.shards.as_ref().unwrap().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!((names(&fields), fields.state.clone()), (vec!["a".to_owned(), "b".to_owned()], committed(&[3, 5])));
    let keys = read(&store, &at("part:", RedisPart::Keys(3), by_shard())).await.unwrap();
    assert_eq!((names(&keys), keys.state.clone()), (vec!["0".to_owned(), "2".to_owned()], committed(&[10, 30])));
    // Where it is not known which event is whose, the lowest stands for all, and it is said.
    let unknown = read(&store, &at("shards", RedisPart::Fields, CheckpointRows::One)).await.unwrap();
    assert_eq!((unknown.state, unknown.shards), (committed(&[3, 5]), None));
    let bound = unknown.bound.unwrap();
    assert!(bound.contains("the fields of key shards") && bound.contains("eventTable.shard"), "{bound}");
}

#[tokio::test]
async fn what_is_no_position_is_said_with_its_place_and_without_its_text() {
    let long = "1".repeat(3_000);
    redis_server().run_all(&[&["SET", "long", &long], &["SET", "spaced", " 12"], &["SET", "empty", ""]]).unwrap();
    run(
        "SET text hunter2\nSET fraction 12.0\nSET below -1\nSET beyond 9223372036854775808\nRPUSH list 1\nHSET mixed a 1 b hunter2\nHSET whole a 1",
    );
    redis_server().run_all(&[&["SET", "bytes", "\u{fffd}1"]]).unwrap();
    let store = store(&redis_server().url());
    for (location, reason, words) in [
        (value("text"), Reason::InvalidAnswer, "key text: it holds a text of 7 bytes that is no integer"),
        (value("fraction"), Reason::InvalidAnswer, "without a fraction"),
        (value("spaced"), Reason::InvalidAnswer, "no integer"),
        (value("empty"), Reason::InvalidAnswer, "a text of 0 bytes"),
        (value("bytes"), Reason::InvalidAnswer, "no integer"),
        (value("beyond"), Reason::InvalidAnswer, "below 2^63"),
        (value("below"), Reason::InvalidAnswer, "a negative number"),
        (value("long"), Reason::InvalidAnswer, "a text of 3000 bytes"),
        (value("list"), Reason::InvalidSpec, "does not hold a text"),
        (field("text", "orders"), Reason::InvalidSpec, "key text, field orders: the key does not hold a hash"),
        (at("mixed", RedisPart::Fields, by_shard()), Reason::InvalidAnswer, "field b: it holds a text"),
        (at("list", RedisPart::Fields, by_shard()), Reason::InvalidSpec, "does not hold a hash"),
    ] {
        let unknown = read(&store, &location).await.expect_err(words);
        assert_eq!(unknown.reason, reason, "{location:?}: {}", unknown.message);
        assert!(unknown.message.contains(words), "{}", unknown.message);
        assert!(unknown.message.contains(&redis_server().address().to_string()), "{}", unknown.message);
        assert!(!unknown.message.contains("hunter2"), "{}", unknown.message);
    }
    let both = read_within(&store, &[value("text"), field("whole", "a")], Duration::from_secs(60)).await;
    assert!(both[0].is_err() && both[1].is_ok(), "one that cannot be read does not affect the others: {both:?}");
}

#[tokio::test]
async fn a_hash_that_is_too_large_to_be_one_of_shards_is_refused() {
    let pairs: Vec<String> = (0..30_000).flat_map(|n| [format!("session-{n}"), "1".to_owned()]).collect();
    for chunk in pairs.chunks(5_000) {
        let mut command = vec!["HSET", "sessions"];
        command.extend(chunk.iter().map(String::as_str));
        redis_server().run_all(&[&command]).unwrap();
    }
    let store = store(&redis_server().url());
    let refused = read(&store, &at("sessions", RedisPart::Fields, by_shard())).await.unwrap_err();
    assert_eq!(refused.reason, Reason::InvalidAnswer);
    assert!(refused.message.contains("more than can be shards"), "{}", refused.message);
    assert!(read(&store, &field("sessions", "session-7")).await.is_ok());
}

#[tokio::test]
async fn keys_whose_answers_are_too_large_spoil_no_other_and_are_read_once_they_are_right() {
    let body = "x".repeat(34 << 20);
    redis_server().run_all(&[&["SET", "big:a", &body], &["HSET", "big:c", "0", &body]]).unwrap();
    run("SET big:b 2\nSET big:d 4\nSET big:e0 5\nSET big:e1 6");
    let store = store(&redis_server().url());
    let places = [
        value("big:a"),
        value("big:b"),
        at("big:c", RedisPart::Fields, by_shard()),
        value("big:d"),
        at("big:e", RedisPart::Keys(2), by_shard()),
    ];
    let states = |all: Vec<Result<Checkpoint, MeasureError>>| all.into_iter().map(|one| one.map(|one| one.state));
    let small = [committed(&[2]), committed(&[4]), committed(&[5, 6])];
    for round in 0..3 {
        let all: Vec<_> = states(read_within(&store, &places, Duration::from_secs(60)).await).collect();
        for (bad, key) in [(0, "key big:a"), (2, "the fields of key big:c")] {
            let unknown = all[bad].as_ref().unwrap_err();
            assert_eq!(unknown.reason, Reason::InvalidAnswer, "{round}: {}", unknown.message);
            assert!(
                unknown.message.contains(&format!("{key}: the answer is larger than 32 MiB")),
                "{}",
                unknown.message
            );
        }
        let good = [1, 3, 4].map(|place| all[place].clone().unwrap());
        assert_eq!(good, small, "{round}");
    }
    run("DEL big:c\nHSET big:c 0 7");
    for last in [false, true] {
        let all: Vec<_> = states(read_within(&store, &places, Duration::from_secs(60)).await).collect();
        assert_eq!([1, 3, 4].map(|place| all[place].clone().unwrap()), small);
        assert!(all[0].is_err());
        assert!(!last || all[2] == Ok(committed(&[7])), "each of them is asked in turn: {:?}", all[2]);
    }
    run("DEL big:a\nSET big:a 1");
    let all = read_within(&store, &places, Duration::from_secs(60)).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
}

#[tokio::test]
async fn the_rights_in_the_documentation_suffice_and_each_of_them_is_needed() {
    let rights = ["+get", "+hget", "+hgetall"];
    let page = include_str!("../../docs/read-stores.md");
    assert!(page.contains(&format!("%R~checkpoint* {}", rights.join(" "))), "the page lists them");
    run("SET checkpoint:0 1\nHSET checkpoints orders 2");
    let places = [
        at("checkpoint:", RedisPart::Keys(1), by_shard()),
        field("checkpoints", "orders"),
        at("checkpoints", RedisPart::Fields, by_shard()),
    ];
    let user = |name: &str, keys: &str, rights: &[&str]| {
        run(&format!("ACL SETUSER {name} on >hunter2 resetkeys nocommands {keys} {}", rights.join(" ")));
        store(&redis_server().url_as(name, "hunter2"))
    };
    let enough = user("enough", "%R~checkpoint*", &rights);
    for place in &places {
        read(&enough, place).await.unwrap();
    }
    for (place, missing) in places.iter().zip(rights) {
        let rest: Vec<&str> = rights.into_iter().filter(|right| *right != missing).collect();
        let refused = read(&user("lacking", "%R~checkpoint*", &rest), place).await.expect_err(missing);
        assert_eq!(refused.reason, Reason::PermissionDenied, "{missing}: {}", refused.message);
        assert!(refused.message.contains("ACL SETUSER"), "{}", refused.message);
    }
    let elsewhere = read(&user("elsewhere", "%R~invoices*", &rights), &places[1]).await.unwrap_err();
    assert_eq!(elsewhere.reason, Reason::PermissionDenied, "{}", elsewhere.message);
}

#[tokio::test]
async fn a_thousand_projections_take_one_connection_and_one_round_trip() {
    let own = Redis::on_loopback().unwrap();
    let places: Vec<CheckpointLocation> = (0..1_000).map(|n| field("checkpoints", &format!("p{n}"))).collect();
    let store = store(&own.url());
    for _ in 0..3 {
        let all = read_within(&store, &places, Duration::from_secs(60)).await;
        assert!(all.iter().all(|answer| answer.as_ref().unwrap().state == CheckpointState::NeverCommitted));
    }
    let clients = own.run("CLIENT LIST").unwrap();
    assert_eq!(clients.text().matches("name=projectionist-sampler").count(), 1, "{}", clients.text());
}

#[tokio::test]
async fn events_are_counted_beyond_a_checkpoint_in_redis_by_shard_and_whatever_happens_to_the_server() {
    let mut own = Redis::with("user shop on >hunter2 allkeys allcommands").unwrap();
    let (url, client) = events("redis_checkpoints").await;
    append(&client, &["a", "a", "b", "b", "b"]).await;
    let mut sampler = sampler_with(&[("events", &url), ("redis", &own.url_as("shop", "hunter2"))]);
    let read_store = json!({ "redis": { "connection": { "secretRef": { "name": "redis" } } } });
    declare(&mut sampler, "plain", &json!({ "readStore": read_store, "checkpoint": { "redis": {} } }));
    let sharded = json!({ "postgres": { "connection": { "secretRef": { "name": "events" } }, "eventTable": { "shard": "tenant" } } });
    let layout = json!({ "redis": { "key": "shards", "layout": "FieldPerShard" } });
    declare(&mut sampler, "sharded", &json!({ "readStore": read_store, "checkpoint": layout, "source": sharded }));
    let never = sampler.wait_unknown("plain", Reason::NeverCommitted).await;
    assert!(!never.message.is_empty());
    own.run("HSET checkpoints plain 2").unwrap();
    own.run("HSET shards a 2 b 4").unwrap();
    sampler.wait_pending("plain", 3).await;
    let measured = sampler.wait_pending("sharded", 1).await;
    assert_eq!(measured.sample.checkpoint, committed(&[2, 4]));
    own.run("HSET checkpoints plain 9").unwrap();
    let beyond = sampler.wait_unknown("plain", Reason::CheckpointBeyondHead).await;
    assert!(beyond.message.contains('9'), "{}", beyond.message);
    own.run("HSET checkpoints plain 5").unwrap();
    sampler.wait_pending("plain", 0).await;
    own.pause();
    let hung = sampler.wait_unknown("plain", Reason::TimedOut).await;
    assert!(hung.message.contains("read store: Redis at 127.0.0.1:"), "{}", hung.message);
    own.resume();
    sampler.wait_pending("plain", 0).await;
    // A rotated password takes effect without a restart.
    own.run("ACL SETUSER shop resetpass >hunter2-new").unwrap();
    own.run("CLIENT KILL USER shop").unwrap();
    sampler.wait_unknown("plain", Reason::AuthenticationFailed).await;
    sampler.secret("redis", &json!({ "url": &own.url_as("shop", "hunter2-new") }));
    sampler.wait_pending("plain", 0).await;
    own.kill();
    sampler.wait_unknown("plain", Reason::ConnectionRefused).await;
}
