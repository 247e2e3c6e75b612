//! What the event store, the read models and the customers' notifications have.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use http::{Method, StatusCode};
use redis::{AsyncCommands as _, RedisError, aio::ConnectionManager};
use serde_json::{Value, json};
use thiserror::Error;

use super::expected::{Card, Event, Expected, Searchable, Summary};
use crate::{
    database::{ConnectError, Pool},
    json_client::{AskError, JsonClient},
};

/// Documents that one request asks for.
const PAGE: usize = 1_000;

/// Where everything is.
pub struct Sources {
    /// The write side.
    pub writes: Pool,
    /// The read store of the order summary.
    pub reads: Pool,
    /// The product cards.
    pub redis: ConnectionManager,
    /// Asks Elasticsearch.
    pub http: JsonClient,
    /// The index of the order search, such as `http://search:9200/orders`.
    pub search: String,
}

/// What there is.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The order summary.
    pub summaries: BTreeMap<String, Summary>,
    /// The product cards.
    pub cards: BTreeMap<String, Card>,
    /// The order search.
    pub searchable: BTreeMap<String, Searchable>,
    /// How often customers were told of each order.
    pub told: BTreeMap<String, i64>,
    /// Orders whose saga has not ended.
    pub open_sagas: Vec<String>,
    /// Orders for which money was taken and not given back.
    pub paid: BTreeSet<String>,
    /// Messages that were not sent.
    pub unsent: i64,
}

/// What cannot be read.
#[derive(Debug, Error)]
pub enum FoundError {
    /// A database is away.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A database refuses.
    #[error("PostgreSQL: {0}")]
    Postgres(#[from] tokio_postgres::Error),
    /// Redis is away, or refuses.
    #[error("Redis: {0}")]
    Redis(#[from] RedisError),
    /// Elasticsearch is away.
    #[error("the order search: {0}")]
    Search(#[from] AskError),
    /// Elasticsearch refuses.
    #[error("the order search: {0}: {1}")]
    SearchRefuses(StatusCode, Value),
    /// An event is none of the shop's.
    #[error("an event: {0}")]
    Event(#[from] serde_json::Error),
}

impl Sources {
    /// What the events say.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn expected(&self) -> Result<Expected, FoundError> {
        let client = self.writes.get().await?;
        let rows = client.query("select stream, type, data from events order by position", &[]).await?;
        let event = |row: &tokio_postgres::Row| Event { stream: row.get(0), type_: row.get(1), data: row.get(2) };
        Ok(Expected::of(&rows.iter().map(event).collect::<Vec<_>>())?)
    }

    /// What the read models have, and the write side beside its events.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub async fn found(&self) -> Result<Found, FoundError> {
        let client = self.writes.get().await?;
        let told = client.query("select order_id, count(*) from notifications group by order_id", &[]).await?;
        let open = client.query("select order_id from sagas where ended_at is null", &[]).await?;
        let paid = client.query("select order_id from charges where accepted and refunded_at is null", &[]).await?;
        let unsent = client.query_one("select count(*) from outbox where sent_at is null", &[]).await?.get(0);
        Ok(Found {
            summaries: self.summaries().await?,
            cards: self.cards().await?,
            searchable: self.searchable().await?,
            told: told.iter().map(|row| (row.get(0), row.get(1))).collect(),
            open_sagas: open.iter().map(|row| row.get(0)).collect(),
            paid: paid.iter().map(|row| row.get(0)).collect(),
            unsent,
        })
    }

    async fn summaries(&self) -> Result<BTreeMap<String, Summary>, FoundError> {
        const ALL: &str =
            "select id, customer, sku, quantity, total_cents, status, reason, changes from orders.order_summary";
        let rows = self.reads.get().await?.query(ALL, &[]).await?;
        let summary = |row: &tokio_postgres::Row| Summary {
            customer: row.get(1),
            sku: row.get(2),
            quantity: row.get(3),
            total_cents: row.get(4),
            status: row.get(5),
            reason: row.get(6),
            changes: row.get(7),
        };
        Ok(rows.iter().map(|row| (row.get(0), summary(row))).collect())
    }

    async fn cards(&self) -> Result<BTreeMap<String, Card>, FoundError> {
        let mut redis = self.redis.clone();
        let mut cards = BTreeMap::new();
        // Few enough: the shop has some products.
        let keys: Vec<String> = redis.keys("card:*").await?;
        for key in keys {
            let mut fields: HashMap<String, String> = redis.hgetall(&key).await?;
            // What is no number is none that the events could say.
            let number = |field: &str| fields.get(field).and_then(|text| text.parse().ok()).unwrap_or(i64::MIN);
            let (price_cents, available, changes) = (number("price_cents"), number("available"), number("changes"));
            let name = fields.remove("name").unwrap_or_default();
            cards.insert(key.trim_start_matches("card:").to_owned(), Card { name, price_cents, available, changes });
        }
        Ok(cards)
    }

    async fn searchable(&self) -> Result<BTreeMap<String, Searchable>, FoundError> {
        self.search(Method::POST, "_refresh", &Value::Null).await?;
        let (mut found, mut after) = (BTreeMap::new(), Value::Null);
        loop {
            let mut page =
                json!({"size": PAGE, "sort": [{"id.keyword": {"order": "asc", "unmapped_type": "keyword"}}]});
            if !after.is_null() {
                page["search_after"] = after;
            }
            let answer = self.search(Method::POST, "_search", &page).await?;
            let hits = answer["hits"]["hits"].as_array().map_or(&[][..], Vec::as_slice);
            for hit in hits {
                let text = |field: &str| hit["_source"][field].as_str().unwrap_or_default().to_owned();
                let order = Searchable {
                    customer: text("customer"),
                    sku: text("sku"),
                    country: text("country"),
                    total_cents: hit["_source"]["total_cents"].as_i64().unwrap_or_default(),
                    status: text("status"),
                };
                found.insert(text("id"), order);
            }
            match hits.last() {
                Some(last) if hits.len() == PAGE => after = last["sort"].clone(),
                _ => return Ok(found),
            }
        }
    }

    /// An index that is not there yet is empty.
    async fn search(&self, method: Method, what: &str, body: &Value) -> Result<Value, FoundError> {
        let answer = self.http.ask(method, &format!("{}/{what}", self.search), &[], body).await?;
        match answer.status {
            status if status.is_success() => Ok(answer.body),
            StatusCode::NOT_FOUND => Ok(Value::Null),
            status => Err(FoundError::SearchRefuses(status, answer.body)),
        }
    }
}
