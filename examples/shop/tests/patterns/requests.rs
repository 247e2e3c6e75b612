//! The API over HTTP, in front of real databases: what clients are answered.

use std::{collections::BTreeSet, num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Result;
use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, Request, StatusCode, header::RETRY_AFTER};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use shop::{
    api::{self, Api},
    checkout,
    database::Pool,
    rate_limit::RateLimit,
    read_through_cache::ReadThroughCache,
    read_your_writes::Operator,
    tls,
};
use test_cluster::{Redis, ServerCertificate, eventually};
use tokio::net::TcpListener;

use crate::write_side::{WriteSide, order};

const PATIENCE: Duration = Duration::from_secs(60);

/// Who asks, unless a test says otherwise.
const ADA: &str = "ada";

/// The API on a port of its own.
struct Shop {
    writes: WriteSide,
    redis: Redis,
    url: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Shop {
    async fn open(limit: RateLimit) -> Result<Self> {
        let (writes, redis) = (WriteSide::open().await?, Redis::on_loopback()?);
        // What the Projection `order-summary` would make.
        writes
            .client
            .batch_execute("create schema orders; create table orders.order_summary (id text primary key, status text)")
            .await?;
        let connection = api::connect_redis(&redis.url(), None).await?;
        let pool = || Pool::new(writes.database.clone(), NonZeroUsize::new(4).unwrap());
        let api = Api {
            bus: checkout::commands()?,
            writes: pool(),
            reads: pool(),
            cache: ReadThroughCache::new(connection.clone(), Duration::from_secs(3_600)),
            redis: connection,
            limit,
            operator: operator_that_is_away()?,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        tokio::spawn(warp::serve(api::routes(Arc::new(api))).incoming(listener).run());
        Ok(Self { writes, redis, url, client: Client::builder(TokioExecutor::new()).build_http() })
    }

    async fn ask(&self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let (parts, body) = self.client.request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    async fn get(&self, path: &str) -> Result<Answer> {
        self.ask(Request::get(format!("{}{path}", self.url)).body(Full::default())?).await
    }

    async fn post(&self, client: &str, key: &str, command: &str, body: &Value) -> Result<Answer> {
        let request = Request::post(format!("{}/commands/{command}", self.url));
        let request = request.header("x-client", client).header("idempotency-key", key);
        self.ask(request.body(Full::from(body.to_string()))?).await
    }
}

/// An operator that nothing listens for.
fn operator_that_is_away() -> Result<Operator> {
    let authority = ServerCertificate::for_hosts(&["127.0.0.1"])?.authority;
    let token = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    Ok(Operator::new("https://127.0.0.1:1".to_owned(), tls::trust(&authority)?, "shop".to_owned(), token))
}

fn unlimited() -> RateLimit {
    RateLimit { per_second: 1_000.0, burst: 1_000 }
}

fn product(sku: &str) -> Value {
    json!({"sku": sku, "name": "A thing", "price_cents": 100, "stock": 10})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_answered_once_for_each_key_of_each_client() -> Result<()> {
    let shop = Shop::open(unlimited()).await?;
    let first = shop.post(ADA, "k1", "AddProduct", &product("book")).await?;
    assert_eq!((first.status, &first.body["decision"]), (StatusCode::OK, &json!("accepted")));
    assert!(first.body["position"].as_i64() > Some(0), "{}", first.body);
    assert_eq!(shop.post(ADA, "k1", "AddProduct", &product("book")).await?.body, first.body);

    let other = shop.post(ADA, "k1", "AddProduct", &product("pen")).await?;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", other.body);
    // Another client's key is another key.
    let refused = shop.post("bob", "k1", "AddProduct", &product("book")).await?;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert_eq!(refused.body, json!({"decision": "refused", "reason": "the product book is there already"}));

    let body = order("7", "book", 1, "Portugal");
    let together = join_all((0..10).map(|_| shop.post(ADA, "k2", "PlaceOrder", &body))).await;
    let answers: BTreeSet<String> =
        together.into_iter().map(|answer| answer.map(|answer| answer.body.to_string())).collect::<Result<_>>()?;
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(shop.writes.number("select count(*) from events where type = 'OrderPlaced'").await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_wrong_is_told_what_is_wrong_and_does_nothing() -> Result<()> {
    let shop = Shop::open(unlimited()).await?;
    let cases = [
        ("PlaceOrders", json!({}), StatusCode::NOT_FOUND, "there is no command PlaceOrders"),
        (
            "PlaceOrder",
            order("7", "book", 0, "Portugal"),
            StatusCode::BAD_REQUEST,
            "PlaceOrder: quantity must be 1 to 1000000",
        ),
        ("PlaceOrder", json!({"id": "7"}), StatusCode::BAD_REQUEST, "PlaceOrder: missing field `customer`"),
    ];
    for (command, body, status, words) in cases {
        let answer = shop.post(ADA, "k", command, &body).await?;
        assert_eq!((answer.status, answer.body), (status, json!({"error": words})));
    }
    let place = || Request::post(format!("{}/commands/PlaceOrder", shop.url)).header("x-client", ADA);
    let without_key = shop.ask(place().body(Full::from("{}"))?).await?;
    assert_eq!(without_key.status, StatusCode::BAD_REQUEST);
    let no_json = shop.ask(place().header("idempotency-key", "k").body(Full::from("{"))?).await?;
    assert_eq!(no_json.status, StatusCode::BAD_REQUEST);
    let large = shop.post(ADA, "k", "AddProduct", &json!({"name": "x".repeat(20_000)})).await?;
    assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(shop.writes.number("select count(*) from events").await?, 0);
    assert_eq!(shop.writes.number("select count(*) from idempotency_keys").await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_are_answered_by_read_models_and_stock_from_the_cache_until_it_is_invalidated() -> Result<()> {
    let shop = Shop::open(unlimited()).await?;
    for path in ["/orders/7", "/products/book", "/products/book/availability", "/nothing"] {
        assert_eq!(shop.get(path).await?.status, StatusCode::NOT_FOUND, "{path}");
    }
    shop.writes.client.execute("insert into orders.order_summary values ('7', 'placed')", &[]).await?;
    assert_eq!(shop.get("/orders/7").await?.body, json!({"id": "7", "status": "placed"}));
    shop.redis.run("HSET card:book name Book")?;
    assert_eq!(shop.get("/products/book").await?.body, json!({"name": "Book"}));

    shop.post(ADA, "k1", "AddProduct", &product("book")).await?;
    let stock = |available: i64| json!({"sku": "book", "available": available});
    assert_eq!(shop.get("/products/book/availability").await?.body, stock(10));
    shop.post(ADA, "k2", "DeliverStock", &json!({"sku": "book", "quantity": 5})).await?;
    assert_eq!(shop.get("/products/book/availability").await?.body, stock(10));
    // As the Projection `product-cards` does it.
    shop.redis.run("INCR cache:{product:book}:generation")?;
    assert_eq!(shop.get("/products/book/availability").await?.body, stock(15));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_too_often_is_told_when_to_ask_again_and_others_are_not_held_up() -> Result<()> {
    let mut shop = Shop::open(RateLimit { per_second: 0.01, burst: 2 }).await?;
    for (number, expected) in [(1, StatusCode::OK), (2, StatusCode::OK), (3, StatusCode::TOO_MANY_REQUESTS)] {
        let answer = shop.post(ADA, &format!("k{number}"), "AddProduct", &product(&format!("p{number}"))).await?;
        assert_eq!(answer.status, expected, "{number}: {}", answer.body);
        if expected == StatusCode::TOO_MANY_REQUESTS {
            let seconds: u64 = answer.headers[RETRY_AFTER].to_str()?.parse()?;
            assert!((1..=100).contains(&seconds), "{seconds}");
        }
    }
    assert_eq!(shop.post("bob", "k3", "AddProduct", &product("p3")).await?.status, StatusCode::OK);

    // Orders are worth more than limits: without Redis they go on.
    shop.redis.kill();
    for number in 4..8 {
        let answer = shop.post(ADA, &format!("k{number}"), "AddProduct", &product(&format!("p{number}"))).await?;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    }
    let away = shop.get("/products/p4").await?;
    assert_eq!(
        (away.status, away.body),
        (StatusCode::SERVICE_UNAVAILABLE, json!({"error": "not just now: try again"}))
    );
    shop.redis.restart()?;
    eventually(PATIENCE, "the API finds Redis again", || async {
        anyhow::Ok(shop.get("/products/p4").await?.status == StatusCode::NOT_FOUND)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_done_also_when_it_cannot_be_told_whether_a_read_model_shows_it() -> Result<()> {
    let shop = Shop::open(unlimited()).await?;
    let answer = shop.post(ADA, "k1", "AddProduct?await=order-summary", &product("book")).await?;
    assert_eq!((answer.status, &answer.body["shown"]), (StatusCode::OK, &Value::Null), "{}", answer.body);
    assert_eq!(shop.writes.number("select count(*) from events where type = 'ProductAdded'").await?, 1);
    // The name of a Projection becomes part of a path.
    let strange = shop.post(ADA, "k2", "AddProduct?await=..%2Fothers", &product("pen")).await?;
    assert_eq!(strange.status, StatusCode::BAD_REQUEST, "{}", strange.body);
    Ok(())
}
