//! The shop's API: commands in, read models out.
//!
//! | request | |
//! |---|---|
//! | `POST /commands/NAME`, with `Idempotency-Key` and `?await=PROJECTION` | does what the body says, once for each key; waits until the read model shows it |
//! | `GET /orders/ID` | the order summary, from PostgreSQL |
//! | `GET /products/SKU` | the product card, from Redis |
//! | `GET /products/SKU/availability` | what is in stock: a slow query of the events, behind the cache |
//!
//! A client that asks too often is answered 429 with `Retry-After`. Clients are told apart by the header `X-Client`, which whatever stands in front of the API must set.

use std::{collections::HashMap, sync::Arc, time::Duration};

use redis::{
    AsyncCommands as _, RedisError, TlsCertificates,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use serde::Deserialize;
use serde_json::{Value, json};
use warp::{
    Filter, Rejection, Reply,
    http::{StatusCode, header::RETRY_AFTER},
    reply::{Response, json as reply_json, with_header, with_status},
};

use crate::{
    catalogue,
    checkout::{self, ExecuteError},
    command_bus::{CommandBus, CommandError, Decision},
    database::Pool,
    event_store::{self, StoreError},
    idempotency_key::KeyError,
    rate_limit::{RateLimit, Verdict},
    read_through_cache::{CacheError, ReadThroughCache},
    read_your_writes::Operator,
};

/// The largest body of a command, in bytes.
const LARGEST_BODY: u64 = 16 * 1024;
/// How long a command waits for a read model. It is done all the same when that is not enough.
const AWAIT: Duration = Duration::from_secs(5);

/// How long Redis may take to answer, and to be connected to.
const REDIS_WITHIN: Duration = Duration::from_secs(1);
/// How long a command is held up by asking whether it is one too many.
const LIMIT_WITHIN: Duration = Duration::from_millis(200);

/// A connection to Redis that is made again when it was lost. Over TLS (`rediss://…`) only to a server whose certificate `authority`, in PEM, signed for its host.
///
/// # Errors
/// When the URL is none, or Redis is away now.
pub async fn connect_redis(url: &str, authority: Option<&str>) -> Result<ConnectionManager, RedisError> {
    let client = match authority {
        Some(authority) => {
            let root_cert = Some(authority.as_bytes().to_owned());
            redis::Client::build_with_tls(url, TlsCertificates { client_tls: None, root_cert })?
        }
        None => redis::Client::open(url)?,
    };
    let config = ConnectionManagerConfig::new().set_number_of_retries(1);
    let config = config.set_connection_timeout(Some(REDIS_WITHIN)).set_response_timeout(Some(REDIS_WITHIN));
    client.get_connection_manager_with_config(config).await
}

/// What requests are answered from.
pub struct Api {
    /// The commands.
    pub bus: CommandBus,
    /// The write side.
    pub writes: Pool,
    /// The read store of the order summary.
    pub reads: Pool,
    /// Product cards and rates.
    pub redis: ConnectionManager,
    /// In front of what is in stock.
    pub cache: ReadThroughCache,
    /// How often a client may ask.
    pub limit: RateLimit,
    /// Says when a read model shows what was written.
    pub operator: Operator,
}

/// An answer that is no success. The words are for the client; what is the shop's own trouble is in the log.
struct Problem(StatusCode, String);

impl Problem {
    /// Something that the shop stands on is away: the client may try again.
    fn away(error: &dyn std::fmt::Display) -> Self {
        tracing::warn!("a request cannot be answered: {error}");
        Self(StatusCode::SERVICE_UNAVAILABLE, "not just now: try again".to_owned())
    }
}

impl From<ExecuteError> for Problem {
    fn from(error: ExecuteError) -> Self {
        let status = match &error {
            ExecuteError::Command(CommandError::Unknown(_)) => StatusCode::NOT_FOUND,
            ExecuteError::Command(CommandError::Invalid { .. }) => StatusCode::BAD_REQUEST,
            ExecuteError::Command(CommandError::Store(StoreError::Conflict { .. })) => StatusCode::CONFLICT,
            ExecuteError::Key(KeyError::OtherRequest) => StatusCode::UNPROCESSABLE_ENTITY,
            _ => return Self::away(&error),
        };
        Self(status, error.to_string())
    }
}

#[derive(Deserialize)]
struct CommandQuery {
    #[serde(rename = "await")]
    projection: Option<String>,
}

/// All routes.
pub fn routes(api: Arc<Api>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    let with_api = warp::any().map(move || Arc::clone(&api));
    let client = warp::header::<String>("x-client");
    // Paths come first: another method is 405 only where there is something.
    let command = warp::path!("commands" / String)
        .and(warp::post())
        .and(warp::query::<CommandQuery>())
        .and(warp::header::<String>("idempotency-key"))
        .and(client)
        .and(warp::body::content_length_limit(LARGEST_BODY))
        .and(warp::body::json())
        .and(with_api.clone())
        .then(
            |name: String, query: CommandQuery, key: String, client: String, body: Value, api: Arc<Api>| async move {
                answer(api.command(&client, &name, &key, &body, query.projection.as_deref()).await)
            },
        );
    let order = warp::path!("orders" / String)
        .and(warp::get())
        .and(with_api.clone())
        .then(|id: String, api: Arc<Api>| async move { answer(api.order(&id).await) });
    let card = warp::path!("products" / String)
        .and(warp::get())
        .and(with_api.clone())
        .then(|sku: String, api: Arc<Api>| async move { answer(api.card(&sku).await) });
    let availability = warp::path!("products" / String / "availability")
        .and(warp::get())
        .and(with_api)
        .then(|sku: String, api: Arc<Api>| async move { answer(api.availability(&sku).await) });
    command.or(order).unify().or(card).unify().or(availability).unify()
}

/// As HTTP says it.
fn answer(answered: Result<Response, Problem>) -> Response {
    answered.unwrap_or_else(|Problem(status, text)| {
        with_status(reply_json(&json!({"error": text})), status).into_response()
    })
}

impl Api {
    async fn command(
        &self,
        client: &str,
        name: &str,
        key: &str,
        body: &Value,
        projection: Option<&str>,
    ) -> Result<Response, Problem> {
        if let Some(projection) = projection {
            catalogue::word("await", projection).map_err(|reason| Problem(StatusCode::BAD_REQUEST, reason))?;
        }
        let mut redis = self.redis.clone();
        match tokio::time::timeout(LIMIT_WITHIN, self.limit.take(&mut redis, client)).await {
            Ok(Ok(Verdict::Allowed)) => {}
            Ok(Ok(Verdict::TooMany { retry_after })) => {
                let seconds = retry_after.as_millis().div_ceil(1_000).to_string();
                let problem = json!({"error": "too many requests"});
                let reply = with_status(reply_json(&problem), StatusCode::TOO_MANY_REQUESTS);
                return Ok(with_header(reply, RETRY_AFTER, seconds).into_response());
            }
            // Orders are worth more than limits.
            Ok(Err(error)) => tracing::warn!("rates are not limited: {error}"),
            Err(_) => tracing::warn!("rates are not limited: Redis did not answer within {LIMIT_WITHIN:?}"),
        }
        let mut connection = self.writes.get().await.map_err(|error| Problem::away(&error))?;
        // A client sees no answers of others.
        let key = format!("{client}/{key}");
        let decision = checkout::execute(&self.bus, &mut connection, &key, name, body).await?;
        // Others need it while this one waits.
        drop(connection);
        let position = match &decision {
            Decision::Accepted { position } => *position,
            Decision::Refused { .. } => {
                return Ok(with_status(reply_json(&decision), StatusCode::CONFLICT).into_response());
            }
        };
        let Some(projection) = projection else { return Ok(reply_json(&decision).into_response()) };
        let shown = self.operator.shows(projection, position, AWAIT).await;
        let shown = shown.map_err(|error| tracing::warn!("whether {projection} shows it: {error}")).ok();
        Ok(reply_json(&json!({"decision": "accepted", "position": position, "shown": shown})).into_response())
    }

    async fn order(&self, id: &str) -> Result<Response, Problem> {
        const ORDER: &str = "select to_jsonb(o) from orders.order_summary o where id = $1";
        let client = self.reads.get().await.map_err(|error| Problem::away(&error))?;
        let row = client.query_opt(ORDER, &[&id]).await.map_err(|error| Problem::away(&error))?;
        row.map(|row| reply_json(&row.get::<_, Value>(0)).into_response()).ok_or_else(not_found)
    }

    async fn card(&self, sku: &str) -> Result<Response, Problem> {
        let card = self.redis.clone().hgetall(format!("card:{sku}")).await;
        let card: HashMap<String, String> = card.map_err(|error| Problem::away(&error))?;
        if card.is_empty() { Err(not_found()) } else { Ok(reply_json(&card).into_response()) }
    }

    async fn availability(&self, sku: &str) -> Result<Response, Problem> {
        let query = || async {
            let client = self.writes.get().await.map_err(|error| Problem::away(&error))?;
            let stream = event_store::read(&*client, &catalogue::stream(sku)).await;
            let events = stream.and_then(|stream| stream.decode()).map_err(|error| Problem::away(&error))?;
            let product = catalogue::fold(&events).ok_or_else(not_found)?;
            Ok(json!({"sku": sku, "available": product.available}).to_string())
        };
        let asked = self.cache.get(&format!("product:{sku}"), query).await;
        let text = asked.map_err(|error| match error {
            CacheError::Redis(error) => Problem::away(&error),
            CacheError::Query(problem) => problem,
        })?;
        Ok(with_header(text, "content-type", "application/json").into_response())
    }
}

fn not_found() -> Problem {
    Problem(StatusCode::NOT_FOUND, "there is no such thing, or the read model does not show it yet".to_owned())
}
