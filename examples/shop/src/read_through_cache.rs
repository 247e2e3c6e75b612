//! Redis in front of a slow query. What is not there is asked for once, however many want it; it expires; and it is invalidated when something happened that
//! changes it.
//!
//! Invalidation raises the entry's generation: a counter beside the value. Whoever asks the slow query notes the generation first, and what comes back is kept only
//! if that is still the same. Without it an answer from before a change could be put there after the invalidation, and stay. A handler of a
//! Projection that writes to Redis can invalidate without any code: `- [INCR, "cache:{{product:{data.sku}}}:generation"]` (doubled braces stand for single ones).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use redis::{RedisError, aio::ConnectionManager};
use thiserror::Error;

/// The value and the generation of a key: the value counts only with the generation that it was made in.
const LOOK: &str = "
local generation = redis.call('GET', KEYS[2]) or '0'
local value = redis.call('HMGET', KEYS[1], 'generation', 'value')
if value[1] == generation then return {generation, value[2]} end
return {generation, false}";

/// Keeps a value that was asked for in this generation, unless it is another one now.
const KEEP: &str = "
if (redis.call('GET', KEYS[2]) or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'generation', ARGV[1], 'value', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1";

/// Why there is no value.
#[derive(Debug, Error)]
pub enum CacheError<E> {
    /// Redis is away, or refuses.
    #[error("the cache: {0}")]
    Redis(#[from] RedisError),
    /// The slow query failed.
    #[error(transparent)]
    Query(E),
}

/// A cache. Clones share it.
#[derive(Clone)]
pub struct ReadThroughCache {
    connection: ConnectionManager,
    /// How long a value is kept that nothing invalidates.
    expiry: Duration,
    /// The keys that are being asked for in this process, so that one task asks and the others wait.
    flights: Arc<Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>>,
}

impl ReadThroughCache {
    /// A cache in this Redis, whose values are kept for so long.
    #[must_use]
    pub fn new(connection: ConnectionManager, expiry: Duration) -> Self {
        Self { connection, expiry, flights: Arc::default() }
    }

    /// The value of a key: that in Redis, or what `query` says.
    ///
    /// # Errors
    /// When Redis is away or the query fails.
    pub async fn get<E, Asked>(&self, key: &str, query: impl FnOnce() -> Asked) -> Result<String, CacheError<E>>
    where
        Asked: Future<Output = Result<String, E>>,
    {
        if let (_, Some(value)) = self.look(key).await? {
            return Ok(value);
        }
        let flight = self.flight(key);
        let _alone = flight.lock().await;
        // Whoever waited finds what the first one has kept.
        let (generation, value) = self.look(key).await?;
        if let Some(value) = value {
            return Ok(value);
        }
        let value = query().await.map_err(CacheError::Query)?;
        self.keep(key, &generation, &value).await?;
        Ok(value)
    }

    /// Makes the next one who asks ask the query. To be called after the change was committed.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn invalidate(&self, key: &str) -> Result<(), RedisError> {
        let [_, generation] = names(key);
        redis::cmd("INCR").arg(generation).exec_async(&mut self.connection.clone()).await
    }

    async fn look(&self, key: &str) -> Result<(String, Option<String>), RedisError> {
        let mut look = redis::cmd("EVAL");
        look.arg(LOOK).arg(2).arg(&names(key));
        look.query_async(&mut self.connection.clone()).await
    }

    async fn keep(&self, key: &str, generation: &str, value: &str) -> Result<(), RedisError> {
        let expiry = u64::try_from(self.expiry.as_millis()).unwrap_or(u64::MAX);
        let mut keep = redis::cmd("EVAL");
        keep.arg(KEEP).arg(2).arg(&names(key)).arg(generation).arg(value).arg(expiry);
        keep.exec_async(&mut self.connection.clone()).await
    }

    /// What those who ask for this key share. It is gone when the last of them has its answer.
    fn flight(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = flights.get(key).and_then(Weak::upgrade) {
            return flight;
        }
        let flight = Arc::default();
        flights.insert(key.to_owned(), Arc::downgrade(&flight));
        flight
    }
}

/// Where a key's value and its generation are. The braces keep them together in a Redis Cluster.
fn names(key: &str) -> [String; 2] {
    [format!("cache:{{{key}}}:value"), format!("cache:{{{key}}}:generation")]
}
