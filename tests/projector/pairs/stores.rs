//! Every kind of read store: handlers in which an event that is lost, comes twice or comes in the wrong order can be seen, and what they have made.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use test_cluster::{Elasticsearch, redis::Answer};

use super::{
    servers::Stores,
    sources::{STREAMS, Source},
};
use crate::{
    elasticsearch::output,
    redis::{handlers, items, number},
    workshop::{RedisTarget, SearchTarget, Workshop},
};

/// Figures of each stream.
pub(super) type Figures = BTreeSet<Vec<i64>>;

/// A kind of read store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Store {
    Postgres,
    Redis,
    Elasticsearch,
}

impl Store {
    pub(super) const ALL: [Self; 3] = [Self::Postgres, Self::Redis, Self::Elasticsearch];

    /// Lets the read model of this name be there.
    pub(super) async fn target(self, servers: &Stores, name: &str, source: Source, shop: &mut Workshop) {
        match self {
            Self::Postgres => {
                shop.store_url = servers.postgres.create_database(name).await.unwrap();
                let handler = "insert into applied (stream, n) values (:stream, (:data->>'n')::bigint)";
                shop.sql.handlers = BTreeMap::from([("Counted".to_owned(), handler.to_owned())]);
            }
            Self::Redis => {
                // A script that is done by half would leave another sum.
                let commands = format!("RPUSH {name}:{{stream}} {{data.n}} | HINCRBY {name} {{stream}} {{data.n}}");
                shop.redis =
                    Some(RedisTarget { url: servers.redis.url(), handlers: handlers(&commands), shared: false });
            }
            Self::Elasticsearch => {
                for kind in ["streams", "events"] {
                    let shards = json!({"settings": {"number_of_shards": 1, "number_of_replicas": 0}});
                    servers.search.run("PUT", &format!("/{name}-{kind}"), &shards).unwrap();
                }
                shop.search = Some(SearchTarget {
                    url: servers.search.url(),
                    authority: servers.search.authority().map(str::to_owned),
                    output: output(json!({"Counted": documents(name, source)})),
                });
            }
        }
    }

    /// What the read model of this name holds of each stream, in the order in which it was handled.
    ///
    /// # Errors
    /// While the server has not come back, or workers have made nothing.
    pub(super) async fn figures(self, servers: &Stores, name: &str, source: Source) -> anyhow::Result<Figures> {
        match self {
            Self::Postgres => {
                let client = servers.postgres.connect(name).await?;
                let query = "select array_agg(n order by seq) from applied group by stream";
                let rows = client.query(query, &[]).await?;
                Ok(rows.iter().map(|row| unordered(row.get(0), source)).collect())
            }
            Self::Redis => {
                let sums = items(&servers.redis.run(&format!("HGETALL {name}"))?);
                let streams = sums.chunks_exact(2).map(|pair| {
                    let handled = servers.redis.run(&format!("LRANGE {name}:{} 0 -1", pair[0]))?;
                    let handled = items(&handled).iter().map(|n| n.parse()).collect::<Result<Vec<i64>, _>>()?;
                    let mut figures = unordered(handled, source);
                    figures.push(number(&Answer::Text(pair[1].clone())));
                    anyhow::Ok(figures)
                });
                streams.collect()
            }
            Self::Elasticsearch => {
                let mut figures: Figures = found(&servers.search, &format!("{name}-streams"))?
                    .iter()
                    .map(|hit| match source.is_queue() {
                        true => vec![integer(&hit["_source"]["n"]), integer(&hit["_version"])],
                        false => ["events", "sum", "last"].map(|field| integer(&hit["_source"][field])).to_vec(),
                    })
                    .collect();
                let events = found(&servers.search, &format!("{name}-events"))?;
                figures.insert(events.iter().map(|hit| integer(&hit["_source"]["n"])).collect());
                Ok(figures)
            }
        }
    }

    /// The same, as events with the numbers below `events` say.
    pub(super) fn expected(self, source: Source, events: i64) -> Figures {
        let step = usize::try_from(STREAMS).unwrap();
        let streams = (0..STREAMS.min(events)).map(|stream| (stream..events).step_by(step).collect::<Vec<i64>>());
        let mut expected: Figures = streams
            .map(|mut numbers| {
                let (sum, last) = (numbers.iter().sum(), numbers[numbers.len() - 1]);
                match self {
                    Self::Postgres => {}
                    Self::Redis => numbers.push(sum),
                    Self::Elasticsearch if source.is_queue() => numbers = vec![last, last],
                    Self::Elasticsearch => numbers = vec![i64::try_from(numbers.len()).unwrap(), sum, last],
                }
                numbers
            })
            .collect();
        if self == Self::Elasticsearch {
            expected.insert((0..events).collect());
        }
        expected
    }
}

/// Queues promise no order.
fn unordered(mut numbers: Vec<i64>, source: Source) -> Vec<i64> {
    if source.is_queue() {
        numbers.sort_unstable();
    }
    numbers
}

/// Of each stream sums, or where nothing can be added what its last event says; and a document of each event.
fn documents(name: &str, source: Source) -> Value {
    let (streams, events) = (format!("{name}-streams"), format!("{name}-events"));
    if source.is_queue() {
        let document = |index: &str, id: &str| json!({"index": {"index": index, "id": id, "version": "{data.n}", "document": {"n": "{data.n}"}}});
        return json!([document(&streams, "{stream}"), document(&events, "{data.n}")]);
    }
    let first = json!({"events": 1, "sum": "{data.n}", "last": "{data.n}"});
    let added = json!({"index": streams, "id": "{stream}", "add": {"events": 1, "sum": "{data.n}"}, "doc": {"last": "{data.n}"}, "upsert": first});
    json!([{"update": added}, {"index": {"index": events, "id": "{data.n}", "document": {"n": "{data.n}"}}}])
}

/// The documents of an index, sorted by the number that they hold.
fn found(server: &Elasticsearch, index: &str) -> anyhow::Result<Vec<Value>> {
    server.run("POST", &format!("/{index}/_refresh"), &Value::Null)?;
    let found = server.run("GET", &format!("/{index}/_search?size=10000&version=true"), &Value::Null)?;
    let mut hits = found["hits"]["hits"].as_array().cloned().unwrap_or_default();
    hits.sort_by_key(|hit| integer(&hit["_source"]["n"]));
    Ok(hits)
}

/// A number, or -1 where there is none.
fn integer(value: &Value) -> i64 {
    value.as_i64().unwrap_or(-1)
}
