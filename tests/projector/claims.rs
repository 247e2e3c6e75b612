//! Which Projection writes where: the first has it, others are refused and told what to do, and none that writes already is disturbed.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use projectionist::projector::ProjectorError;
use serde_json::{Value, json};
use test_cluster::{Elasticsearch, Redis, eventually_is, redis::Answer};
use tokio::time::Instant;

use crate::{
    elasticsearch::{open_search, output},
    queues,
    redis::items,
    workshop::{APPLY, PATIENCE, RedisTarget, SearchTarget, Worker, Workshop},
};

/// What workers run on the claims in Redis, so fast that two of them hardly ever meet there.
const SCRIPT: &str = include_str!("../../src/projector/output/redis/claims.lua");
const FIRST: &str = "shop/first";
const SECOND: &str = "shop/second";

/// A read store in which Projections write to places: hashes in Redis, indices in Elasticsearch.
enum Store {
    Redis(Redis),
    Search(&'static Elasticsearch),
}

/// Projections of the same events.
struct Shop {
    shop: Workshop,
    store: Store,
    state: String,
    field: &'static str,
}

impl Shop {
    async fn in_redis(name: &str) -> Self {
        let shop = Workshop::open(name, APPLY).await;
        let field = "spec.projector.builtin.redis.shared";
        Self {
            shop,
            store: Store::Redis(Redis::on_loopback().unwrap()),
            state: "projectionist:claims".to_owned(),
            field,
        }
    }

    async fn in_search(name: &str) -> Self {
        let shop = Workshop::open(name, APPLY).await;
        let field = "spec.projector.builtin.elasticsearch.shared";
        Self { shop, store: Store::Search(open_search()), state: format!("{name}_state"), field }
    }

    /// A worker of this Projection, which notes each event in this place under its own name.
    fn start(&mut self, projection: &str, place: &str, shared: bool) -> Worker {
        projection.clone_into(&mut self.shop.config.projection);
        // For Redis in words, which have no blanks.
        let id = format!("{projection}-{}", if self.is_queue() { "{data.n}" } else { "{position}" });
        match &self.store {
            Store::Redis(server) => {
                let commands = vec![["HSET", place, &id, "1"].map(str::to_owned).to_vec()];
                let handlers = BTreeMap::from([("Counted".to_owned(), commands)]);
                self.shop.redis = Some(RedisTarget { url: server.url(), handlers, shared });
            }
            Store::Search(server) => {
                let mut document = json!({"index": {"index": place, "id": id, "document": {}}});
                if self.is_queue() {
                    document["index"]["version"] = json!("{data.n}");
                }
                let mut output = output(json!({"Counted": [document]}));
                self.state.clone_into(&mut output.state_index);
                output.shared = shared;
                let authority = server.authority().map(str::to_owned);
                self.shop.search = Some(SearchTarget { url: server.url(), authority, output });
            }
        }
        self.shop.start("worker")
    }

    fn is_queue(&self) -> bool {
        matches!(self.shop.config.input, projectionist::projector::Input::Queue(_))
    }

    /// A worker of this Projection once the place is free. `remove` is the command that takes it from another one, whose workers may claim it once more.
    async fn start_once_free(&mut self, projection: &str, place: &str, remove: Option<&str>) -> Worker {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(message) = remove {
                self.obey(message);
            }
            let mut worker = self.start(projection, place, false);
            if !is_refused(&worker.begun().await) {
                return worker;
            }
            assert!(Instant::now() < until, "{place} is never free");
        }
    }

    /// How a worker is refused.
    async fn refused(&mut self, projection: &str, place: &str, shared: bool) -> String {
        self.start(projection, place, shared).ended().await.to_string()
    }

    /// Which events a Projection has noted in this place, by their positions or numbers.
    fn noted(&self, projection: &str, place: &str) -> anyhow::Result<BTreeSet<i64>> {
        let ids = match &self.store {
            Store::Redis(server) => items(&server.run(&format!("HKEYS {place}"))?),
            Store::Search(server) => {
                if server.call("POST", &format!("/{place}/_refresh"), &Value::Null)?.0 == 404 {
                    return Ok(BTreeSet::new());
                }
                let found = server.run("GET", &format!("/{place}/_search?size=10000"), &Value::Null)?;
                let hits = found["hits"]["hits"].as_array().cloned().unwrap_or_default();
                hits.iter().filter_map(|hit| hit["_id"].as_str().map(str::to_owned)).collect()
            }
        };
        let own = ids.iter().filter_map(|id| id.strip_prefix(projection)?.strip_prefix('-'));
        Ok(own.map(str::parse).collect::<Result<_, _>>()?)
    }

    /// Appends events, and waits until a Projection has noted them.
    async fn goes_on(&self, projection: &str, place: &str) {
        let before = self.shop.events.head().await.unwrap();
        self.shop.events.append_events(10).await.unwrap();
        let head = self.shop.events.head().await.unwrap();
        assert_eq!(head, before + 10);
        let noted = || async { self.noted(projection, place) };
        let all = |noted: &BTreeSet<i64>| (before + 1..=head).all(|position| noted.contains(&position));
        eventually_is(PATIENCE, "the events are noted", all, noted).await.unwrap();
    }

    /// Runs the command with which a message ends.
    fn obey(&self, message: &str) {
        let (_, command) = message.rsplit_once(": ").unwrap();
        match &self.store {
            Store::Redis(server) => assert_eq!(server.run(command).unwrap(), Answer::Integer(1), "{command}"),
            Store::Search(server) => {
                let words: Vec<&str> = command.splitn(3, ' ').collect();
                let body = words.get(2).map_or(Value::Null, |body| serde_json::from_str(body).unwrap());
                server.run(words[0], words[1], &body).unwrap();
            }
        }
    }

    /// Writes something else in the place of a Projection's claims.
    fn damage(&self, projection: &str) {
        match &self.store {
            Store::Redis(server) => drop(server.run(&format!("HSET projectionist:claims {projection} mine")).unwrap()),
            Store::Search(server) => {
                let document = json!({"doc": {"claims": {projection: "mine"}}, "doc_as_upsert": true});
                drop(server.run("POST", &format!("/{}/_update/claims", self.state), &document).unwrap());
            }
        }
    }

    /// The same in the place of all claims.
    fn damage_all(&self) {
        match &self.store {
            Store::Redis(server) => {
                server.run("DEL projectionist:claims").unwrap();
                server.run("SET projectionist:claims mine").unwrap();
            }
            Store::Search(server) => {
                drop(server.run("PUT", &format!("/{}/_doc/claims", self.state), &json!({"mine": true})).unwrap());
            }
        }
    }
}

/// Whether a worker was refused since another Projection has the place.
fn is_refused(begun: &Result<(), ProjectorError>) -> bool {
    match begun {
        Ok(()) => false,
        Err(ProjectorError::PlaceOfAnother { .. }) => true,
        Err(error) => panic!("{error}"),
    }
}

async fn the_first_has_it_until_its_handlers_or_a_person_give_it_back(mut shop: Shop, place: &str, words: [&str; 2]) {
    let first = shop.start(FIRST, place, false);
    shop.goes_on(FIRST, place).await;
    let message = shop.refused(SECOND, place, false).await;
    let told = [words[0], "shop/first has claimed it since 20", "so that shop/second may not write there", shop.field];
    for part in told {
        assert!(message.contains(part), "{part}: {message}");
    }
    // The operator takes the last line of what a pod has written.
    let mut process = shop.shop.start_process("process");
    assert!(!process.wait().success());
    assert_eq!(process.output().lines().last().unwrap(), format!("projectionist: {message}"));
    // What begins as it does would be written as well, and saying alone that it is shared does not help.
    let message = shop.refused(SECOND, &format!("{place}{{data.none}}"), true).await;
    assert!(message.contains(words[1]) && message.contains(&format!("(with {})", words[0])), "{message}");
    shop.goes_on(FIRST, place).await;
    assert_eq!(shop.noted(SECOND, place).unwrap(), BTreeSet::new(), "it has written nothing");
    first.stop().await;
    // Its next worker has it still.
    shop.refused(SECOND, place, false).await;
    let first = shop.start(FIRST, place, false);
    shop.goes_on(FIRST, place).await;
    first.stop().await;
    // Handlers that write elsewhere give it back, after a while in which workers with the old ones may still be there.
    let elsewhere = format!("{place}-elsewhere");
    let first = shop.start(FIRST, &elsewhere, false);
    shop.shop.events.append_events(10).await.unwrap();
    first.says("200 OK").await;
    let second = shop.start_once_free(SECOND, place, None).await;
    shop.goes_on(SECOND, place).await;
    first.stop().await;
    // A command takes it from one that is gone; one that is not works on until it ends.
    let message = shop.refused(FIRST, place, false).await;
    assert!(message.contains("shop/second has claimed it since"), "{message}");
    let first = shop.start_once_free(FIRST, place, Some(&message)).await;
    shop.goes_on(FIRST, place).await;
    shop.goes_on(SECOND, place).await;
    second.stop().await;
    let message = shop.refused(SECOND, place, false).await;
    assert!(message.contains("shop/first has claimed it since"), "{message}");
    first.stop().await;
    // Both say that it is shared.
    let first = shop.start(FIRST, place, true);
    shop.goes_on(FIRST, place).await;
    let second = shop.start(SECOND, place, true);
    shop.goes_on(SECOND, place).await;
    let message = shop.refused("shop/third", place, false).await;
    assert!(message.contains("shop/first has claimed it since"), "{message}");
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_has_the_projection_that_wrote_there_first_until_it_is_given_back() {
    let words = ["index claimed_index", "indices that begin with claimed_index"];
    let shop = Shop::in_search("claimed_index").await;
    the_first_has_it_until_its_handlers_or_a_person_give_it_back(shop, "claimed_index", words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_the_projection_that_wrote_it_first_until_it_is_given_back() {
    let words = ["key claimed:key", "keys that begin with claimed:key"];
    let shop = Shop::in_redis("claimed_key").await;
    the_first_has_it_until_its_handlers_or_a_person_give_it_back(shop, "claimed:key", words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_projections_that_start_at_once_exactly_one_has_the_place() {
    for mut shop in [Shop::in_redis("claimed_at_once").await, Shop::in_search("claimed_at_once_in_search").await] {
        for round in 0..6 {
            // Neither has had it before.
            let place = format!("claimed_at_once-{round}-");
            let mut workers = [FIRST, SECOND, "shop/third"].map(|projection| shop.start(projection, &place, false));
            let begun = join_all(workers.iter_mut().map(Worker::begun)).await;
            let refused = begun.iter().filter(|begun| is_refused(begun)).count();
            assert_eq!(refused, 2, "{place}: {begun:?}");
            for (worker, begun) in workers.into_iter().zip(begun) {
                if begun.is_ok() {
                    worker.stop().await;
                }
            }
        }
    }
}

#[test]
fn claims_in_redis_are_written_only_as_long_as_those_of_all_are_as_they_were_read() {
    let redis = Redis::on_loopback().unwrap();
    let run = |words: &[&str]| {
        let command = [&["EVAL", SCRIPT, "1", "projectionist:claims"], words].concat();
        items(&redis.run_all(&[&command]).unwrap()[0])
    };
    let read = || run(&[])[1].clone();
    let (none, written) = (read(), vec!["written".to_owned()]);
    assert_eq!(run(&[FIRST, "one", &none]), written);
    let one = read();
    assert_eq!(run(&[SECOND, "two", &none]), ["kept", &one, FIRST, "one"]);
    redis.run("HSET projectionist:claims shop/first own").unwrap();
    assert_eq!(run(&[SECOND, "two", &one])[2..], [FIRST, "own"], "of as many letters");
    assert_eq!(run(&[SECOND, "two", &read()]), written);
    assert_eq!(run(&[FIRST, "", &one])[0], "kept");
    assert_eq!(run(&[FIRST, "", &read()]), written);
    assert_eq!(run(&[])[2..], [SECOND, "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_something_else_wrote_are_told_and_keep_no_one_from_what_it_has() {
    for mut shop in [Shop::in_redis("claims_damaged").await, Shop::in_search("claims_damaged_in_search").await] {
        let place = "claims_damaged_place";
        let first = shop.start(FIRST, place, false);
        shop.goes_on(FIRST, place).await;
        first.stop().await;
        shop.damage("shop/zoo");
        let message = shop.refused(SECOND, "claims_damaged_other", false).await;
        assert!(message.contains("\"shop/zoo\"") && message.contains("are not what a worker writes"), "{message}");
        let first = shop.start(FIRST, place, false);
        shop.goes_on(FIRST, place).await;
        first.stop().await;
        shop.obey(&message);
        let mut second = shop.start(SECOND, "claims_damaged_other", false);
        second.begun().await.unwrap();
        second.stop().await;
        shop.damage_all();
        let message = shop.refused("shop/third", "claims_damaged_third", false).await;
        assert!(message.contains("are not what a worker writes"), "{message}");
        assert_eq!(shop.noted("shop/third", "claims_damaged_third").unwrap(), BTreeSet::new());
        shop.obey(&message);
        let third = shop.start("shop/third", "claims_damaged_third", false);
        shop.goes_on("shop/third", "claims_damaged_third").await;
        third.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_on_a_queue_claim_their_places_before_they_are_given_a_message() {
    for mut shop in [Shop::in_redis("claimed_queue").await, Shop::in_search("claimed_queue_in_search").await] {
        let queue = Redis::on_loopback().unwrap();
        shop.shop = queues::open(&queue, &format!("{}_queue", shop.state.replace(':', "_")), "", false).await;
        let key = shop.shop.config.projection.trim_start_matches("shop/").to_owned();
        let place = "claimed_queue_place";
        let noted = async |shop: &Shop, events: i64| {
            let all = |noted: &BTreeSet<i64>| *noted == (0..events).collect();
            eventually_is(PATIENCE, "they are noted", all, || async { shop.noted(FIRST, place) }).await.unwrap();
        };
        let first = shop.start(FIRST, place, false);
        queues::append(&queue, &key, 0..20);
        noted(&shop, 20).await;
        first.stop().await;
        queues::append(&queue, &key, 20..40);
        let message = shop.refused(SECOND, place, false).await;
        assert!(message.contains("shop/first has claimed it since"), "{message}");
        let first = shop.start(FIRST, place, false);
        // The other was given none.
        noted(&shop, 40).await;
        first.stop().await;
    }
}
